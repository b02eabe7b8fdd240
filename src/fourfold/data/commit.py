"""A folder of files appears whole, or not at all.

    workers ──Part──> driver: the first outcome of a piece wins
       │                 │ all there: one schema, the winners alone in a folder of their own
       ▼                 ▼
    .out.<run>.part/   .out.<run>.whole/ ──rename──> out/      one step of the file system: readers see all or nothing

What a slow or forgotten attempt writes goes into `.part`, under a name that no other attempt has, and is removed with it.
Source: the manifest committer of Hadoop, whose tasks write where nobody looks, and whose job alone publishes.
"""

import concurrent.futures
import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fourfold.system.seams as seams
from fourfold.data.manifests import MANIFEST, Wanted, facts_in, manifest_bytes
from fourfold.data.parts import EXTENSION, Part
from fourfold.data.places import Folder, OnDisk
from fourfold.data.together import has_types, in_order, one_schema, write_tables, write_widened
from fourfold.errors import OptionError, RunError, RunInUse
from fourfold.runs.leftovers import LOCK, OF_RUN, OLD, put_back, remove, settle
from fourfold.system.interrupts import Shield

SYNC_THREADS = 8
"""Files that are brought to the disk at once. They wait for the disk, not for cores. Not measured."""

FAILED_ROWS = "_failed/rows.parquet"
"""The file, in the output, of the rows that have no value."""


class Output:
    """The folder to be written.

    Args:
        path: Where it will be.
        wanted: What is to be there.
        is_synced: Workers bring each part to the disk: they are on other machines, or what they have finished is recorded.

    Raises:
        OptionError: Something is there already, or its parent is not.
    """

    def __init__(self, path: str, wanted: Wanted, is_synced: bool = True) -> None:
        self.path, self._wanted = Path(os.path.abspath(path)), wanted
        self.staging = self.path.with_name(f".{self.path.name}.{wanted.id}.part")
        self._whole = self.path.with_name(f".{self.path.name}.{wanted.id}.whole")
        self._old = self._whole.with_name(self._whole.name + OLD)
        self.place = Folder(str(self.staging), is_synced)
        self._lock: int | None = None
        if not self.path.parent.is_dir():
            raise OptionError(f"the folder {self.path.parent} does not exist; make it first: mkdir -p {self.path.parent}")
        if os.path.ismount(self.path):
            raise OptionError(f"{path!r} is where another file system begins, which cannot be replaced: give a folder in it")
        put_back(self.path)
        if not wanted.overwrite and not self.is_published() and os.path.lexists(self.path) and not _is_empty(self.path):
            raise OptionError(f"{path!r} is there already: give another path, or overwrite=True to replace it")

    def is_published(self) -> bool:
        """Whether this run has made what is there."""
        return self._wanted.has_made(self.manifest())

    def manifest(self) -> dict[str, Any]:
        """What the folder says of itself; empty when it is not ours."""
        try:
            return facts_in((self.path / MANIFEST).read_bytes())
        except OSError:
            return {}

    def open(self) -> None:
        """Make the place for parts. Who can lock it knows that its driver is dead: `fourfold clean`.

        Raises:
            RunInUse: Another driver writes there.
        """
        while not self._take_lock():
            self._let_go()
        self._forget_the_dead()
        if self._wanted.run is not None:
            (self.staging / OF_RUN).write_text(os.path.abspath(self._wanted.run))

    def _forget_the_dead(self) -> None:
        """A driver of this run may have died while it published."""
        if os.path.lexists(self._old):
            with contextlib.suppress(RunError):  # another output is there: it will be replaced, and then both are done with
                settle(self._old)
        if os.path.lexists(self._old):  # until then the folder itself tells `fourfold clean` that a person has to decide
            for each in self._whole.iterdir():
                remove(each)
        else:
            remove(self._whole)

    def _take_lock(self) -> bool:
        """False: another driver, which has published, has removed the folder meanwhile."""
        self.staging.mkdir(exist_ok=True)
        path = self.staging / LOCK
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._let_go()
            raise RunInUse(f"another call of the same run writes {self.path} right now") from None
        except OSError:  # a file system without locks
            return True
        try:
            return os.path.samestat(os.fstat(self._lock), os.stat(path))
        except FileNotFoundError:
            return False

    def check(self, parts: Sequence[Part]) -> None:
        """Check that parts which an earlier call has recorded are there still.

        Raises:
            RunError: One is gone.
        """
        for part in parts:
            path = self.staging / part.path
            if not path.is_file() or path.stat().st_size != part.size_bytes:
                raise RunError(
                    f"{path}, which an earlier call of this run has written, is gone or has another size: use "
                    "another folder for run="
                )

    def add_empty(self, table: Any) -> None:
        """There is no row: one file tells the columns, where anybody knows them."""
        if not table.num_columns:
            return
        format = self._wanted.format
        write_tables([table], OnDisk(str(self._whole / f"part-00000{EXTENSION[format]}")), format)

    def add_failed(self, table: Any) -> None:
        """Keep rows that have no value beside the others."""
        write_tables([table], OnDisk(str(self._whole / FAILED_ROWS)), "parquet")

    def where(self, facts: dict[str, Any]) -> tuple[list[str], str]:
        """The files that a manifest names, and the one of rows without a value, if there are any."""
        return [str(self.path / each["path"]) for each in facts["files"]], str(self.path / FAILED_ROWS)

    def publish(self, parts: Sequence[Part], facts: dict[str, Any]) -> dict[str, Any]:
        """Make the folder appear, with these parts; returns its manifest.

        Raises:
            UnwritableValue: The parts do not go together.
        """
        self._whole.mkdir(exist_ok=True)
        ordered = in_order(parts)
        if not self.place.is_synced:
            _sync_all([self.staging / part.path for part in ordered])
        schema = one_schema(ordered)
        files: list[dict[str, Any]] = []
        digits = max(5, len(str(len(ordered))))  # so that the order of the names is that of the rows
        for at, part in enumerate(ordered):
            name = part.beside(f"part-{at:0{digits}d}{EXTENSION[self._wanted.format]}")
            n_rows, size_bytes, checksum = self._place(part, schema, self._whole / name)
            files.append({"path": name, "rows": n_rows, "bytes": size_bytes, "crc32": checksum})
        facts = self._wanted.manifest({**facts, "files": files})
        with open(self._whole / MANIFEST, "wb") as file:
            file.write(manifest_bytes(facts))
            os.fsync(file.fileno())
        _sync_folders(self._whole)
        seams.hit("output.publish")
        self._take_place()
        return facts

    def _place(self, part: Part, schema: Any, to: Path) -> tuple[int, int, int]:
        """Put a part into the folder that will be published: as it is, or, where its types are narrower, written anew.

        Returns:
            Rows, bytes and checksum of the file.
        """
        to.parent.mkdir(parents=True, exist_ok=True)
        path = self.staging / part.path
        if not has_types(part, schema, self._wanted.format):
            return write_widened(path, OnDisk(str(to)), schema)
        try:
            os.link(path, to)  # and no rename: the part stays for the call that goes on when this driver dies here
        except OSError:  # a file system without links
            shutil.copyfile(path, to)
            _sync(to)
        return part.n_rows, part.size_bytes, part.checksum

    def _take_place(self) -> None:
        if self._wanted.overwrite and os.path.lexists(self.path):
            self._exchange()
            _sync(self.path.parent)  # before the old one is removed
            with contextlib.suppress(OSError):  # what is left of it is for `fourfold clean`
                remove(self._whole)
        else:
            try:
                os.rename(self._whole, self.path)  # also over an empty folder; over anything else the system refuses it
            except OSError as error:
                if error.errno not in IS_TAKEN:
                    raise
                raise OptionError(
                    f"{self.path} has appeared meanwhile: nothing of it was changed. Give another path"
                ) from error
        _sync(self.path.parent)
        seams.hit("output.published")

    def _exchange(self) -> None:
        """Let the new output and the old one change places. `fourfold.runs.leftovers` has what is left by a kill in here."""
        if in_one_step(self._whole, self.path):
            return
        with Shield():
            remove(self._old)
            os.rename(self.path, self._old)
            seams.hit("output.aside")
            try:
                os.rename(self._whole, self.path)
            except OSError:
                os.rename(self._old, self.path)
                raise
            seams.hit("output.exchanged")
            os.rename(self._old, self._whole)

    def close(self) -> None:
        """Let go of the place for parts; what is in it stays for a call that goes on."""
        if self._lock is not None and self.staging.is_dir() and {*os.listdir(self.staging)} <= {OF_RUN, LOCK}:
            self.discard()  # nothing is in it
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove what was written, unless another driver does so: nobody will go on with it."""
        if self._lock is not None:
            shutil.rmtree(self.staging, ignore_errors=True)
            if not os.path.lexists(self._old):  # else it tells `fourfold clean` what has happened
                with contextlib.suppress(OSError):
                    remove(self._whole)
            self._let_go()
            with contextlib.suppress(OSError):  # NFS keeps a file that is open, under another name, and so its folder
                self.staging.rmdir()


IS_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""What a file system says when a folder cannot be given a name because somebody else has it."""


def _is_empty(path: Path) -> bool:
    """Whether it is a folder with nothing in it, and no link to one."""
    return path.is_dir() and not path.is_symlink() and not os.listdir(path)


def in_one_step(one: Path, other: Path) -> bool:
    """Let two names change places, where the kernel and the file system can: nobody finds neither. False: they cannot."""
    at_fdcwd, exchange = -100, 2
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), exchange) == 0)
    return False


def _sync_all(paths: Sequence[Path]) -> None:
    """Bring files to the disk: most of each is there already, and they are waited for together."""
    if not paths:
        return
    with concurrent.futures.ThreadPoolExecutor(min(SYNC_THREADS, len(paths))) as pool:
        list(pool.map(_sync, paths))


def _sync_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        _sync(Path(folder))


def _sync(path: Path) -> None:
    """Bring a folder's names, or what is in a file, to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
