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
import fcntl
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fourfold.seams as seams
from fourfold.data.manifests import MANIFEST, facts_in, manifest_bytes
from fourfold.data.parts import EXTENSION, Part
from fourfold.data.places import Folder, OnDisk
from fourfold.data.together import has_types, in_order, one_schema, write_tables, write_widened
from fourfold.errors import OptionError, RunError, RunInUse
from fourfold.runs.upkeep import OF_RUN
from fourfold.version import VERSION

SYNC_THREADS = 8
"""Files that are brought to the disk at once. They wait for the disk, not for cores. Not measured."""

FAILED_ROWS = "_failed/rows.parquet"
"""The file, in the output, of the rows that have no value."""


class Output:
    """The folder to be written.

    Args:
        path: Where it will be.
        run_id: The same for all calls of one recorded run.
        overwrite: Whether it may take the place of another one.
        format: One of EXTENSION.
        run: The folder of the recorded run that goes on with the parts, None when there is none.
        is_synced: Workers bring each part to the disk: they are on other machines, or what they have finished is recorded.

    Raises:
        OptionError: Something is there already, or its parent is not.
    """

    def __init__(
        self, path: str, run_id: str, overwrite: bool, format: str, run: str | None = None, is_synced: bool = True
    ) -> None:
        self.path, self._run = Path(os.path.abspath(path)), run
        self._run_id, self._overwrite, self._format = run_id, overwrite, format
        self.staging = self.path.with_name(f".{self.path.name}.{run_id}.part")
        self._whole = self.path.with_name(f".{self.path.name}.{run_id}.whole")
        self.place = Folder(str(self.staging), is_synced)
        self._lock: int | None = None
        if not self.path.parent.is_dir():
            raise OptionError(f"the folder {self.path.parent} does not exist; make it first: mkdir -p {self.path.parent}")
        if not overwrite and not self.is_published() and (self.path.is_file() or _has_entries(self.path)):
            raise OptionError(f"{path} is there already: give another path, or overwrite=True to replace it")

    def is_published(self) -> bool:
        """Whether this run has made what is there."""
        return self.manifest().get("run") == self._run_id

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
        self.staging.mkdir(exist_ok=True)
        self._lock = os.open(self.staging, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise RunInUse(f"another call of the same run writes {self.path} right now") from None
        except OSError:  # a file system without locks
            pass
        shutil.rmtree(self._whole, ignore_errors=True)  # of a driver that died while it published
        if self._run is not None:
            (self.staging / OF_RUN).write_text(os.path.abspath(self._run))

    def check(self, parts: Sequence[Part]) -> None:
        """Check that parts which an earlier call has recorded are there still.

        Raises:
            RunError: One is gone.
        """
        for part in parts:
            path = self.staging / part.folder / part.name
            if not path.is_file() or path.stat().st_size != part.size_bytes:
                raise RunError(
                    f"{path}, which an earlier call of this run has written, is gone or has another size: use "
                    "another folder for run="
                )

    def add_empty(self, table: Any) -> None:
        """There is no row: one file tells the columns, where anybody knows them."""
        if not table.num_columns:
            return
        write_tables([table], OnDisk(str(self._whole / f"part-00000{EXTENSION[self._format]}")), self._format)

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
            _sync_all([self.staging / part.folder / part.name for part in ordered])
        schema = one_schema(ordered)
        files: list[dict[str, Any]] = []
        digits = max(5, len(str(len(ordered))))  # so that the order of the names is that of the rows
        for at, part in enumerate(ordered):
            name = os.path.join(part.folder, f"part-{at:0{digits}d}{EXTENSION[self._format]}")
            n_rows, size_bytes, checksum = self._place(part, schema, self._whole / name)
            files.append({"path": name, "rows": n_rows, "bytes": size_bytes, "crc32": checksum})
        facts = {"run": self._run_id, "fourfold": VERSION, "written_at": time.time(), **facts, "files": files}
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
        path = self.staging / part.folder / part.name
        if not has_types(part, schema, self._format):
            return write_widened(path, OnDisk(str(to)), schema)
        try:
            os.link(path, to)  # and no rename: the part stays for the call that goes on when this driver dies here
        except OSError:  # a file system without links
            shutil.copyfile(path, to)
        return part.n_rows, part.size_bytes, part.checksum

    def _take_place(self) -> None:
        if self.path.is_dir() and not _has_entries(self.path):
            self.path.rmdir()
        if not os.path.lexists(self.path):
            os.rename(self._whole, self.path)
        elif self._overwrite:
            _exchange(self._whole, self.path)
            _remove(self._whole)
        else:
            raise OptionError(f"{self.path} has appeared meanwhile: nothing of it was changed. Give another path")
        _sync(self.path.parent)

    def close(self) -> None:
        """Let go of the place for parts; what is in it stays for a call that goes on."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove what was written, unless another driver does so: nobody will go on with it."""
        if self._lock is not None:
            shutil.rmtree(self.staging, ignore_errors=True)
            shutil.rmtree(self._whole, ignore_errors=True)
        self.close()


def _has_entries(path: Path) -> bool:
    return path.is_dir() and bool(os.listdir(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Let two names change places, in one step where the kernel can: nobody finds neither."""
    at_fdcwd, exchange = -100, 2
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), exchange) == 0:
            return
    aside = one.with_name(f"{one.name}.old")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


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
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
