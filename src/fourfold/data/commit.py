"""A folder of files appears whole, or not at all.

    workers ──Part──> driver: the first outcome of a piece wins
       │                 │ all there: one schema, the winners alone in a folder of their own
       ▼                 ▼
    .out.<run>.part/   .out.<run>.whole/ ──rename──> out/      one step of the file system: readers see all or nothing

What a slow or forgotten attempt writes goes into `.part`, under a name that no other attempt has, and is removed with it.
Source: the manifest committer of Hadoop, whose tasks write where nobody looks, and whose job alone publishes.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fourfold.seams as seams
from fourfold.data.parts import EXTENSION, Part, PartWriter, manifest_bytes
from fourfold.data.schema import SchemaConflict, fitted, unified
from fourfold.errors import OptionError, RunError, RunInUse, UnwritableValue
from fourfold.runs.upkeep import OF_RUN
from fourfold.version import VERSION

MANIFEST = "_fourfold.json"
"""What the folder holds and which run made it. Readers of Parquet leave names with `_` alone."""

FAILED = "_failed"
"""The folder, in the output, of the rows that have no value."""


class Output:
    """The folder to be written.

    Args:
        path: Where it will be.
        run_id: The same for all calls of one recorded run.
        overwrite: Whether it may take the place of another one.
        format: One of EXTENSION.
        run: The folder of the recorded run that goes on with the parts, None when there is none.

    Raises:
        OptionError: Something is there already, or its parent is not.
    """

    def __init__(self, path: str, run_id: str, overwrite: bool, format: str, run: str | None = None) -> None:
        self.path, self._run = Path(os.path.abspath(path)), run
        self._run_id, self._overwrite, self._format = run_id, overwrite, format
        self.staging = self.path.with_name(f".{self.path.name}.{run_id}.part")
        self._whole = self.path.with_name(f".{self.path.name}.{run_id}.whole")
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
            found = json.loads((self.path / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

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
        self._whole.mkdir(exist_ok=True)
        writer = PartWriter(str(self._whole / f"part-00000{EXTENSION[self._format]}"), self._format)
        writer.write(table)
        writer.finish()

    def failed_rows(self, table: Any) -> str:
        """Keep rows that have no value beside the others; returns where they will be."""
        name = os.path.join(FAILED, "rows.parquet")
        writer = PartWriter(str(self._whole / name), "parquet")
        writer.write(table)
        writer.finish()
        return str(self.path / name)

    def publish(self, parts: Sequence[Part], facts: dict[str, Any]) -> list[str]:
        """Make the folder appear, with these parts; returns the files in it.

        Raises:
            UnwritableValue: The parts do not go together.
        """
        self._whole.mkdir(exist_ok=True)
        ordered = sorted(parts, key=lambda part: (part.number, part.first, part.folder))
        schema = self._one_schema(ordered)
        files: list[dict[str, Any]] = []
        for at, part in enumerate(ordered):
            name = os.path.join(part.folder, f"part-{at:05d}{EXTENSION[self._format]}")
            self._place(part, schema, self._whole / name)
            files.append({"path": name, "rows": part.n_rows, "bytes": part.size_bytes, "crc32": part.checksum})
        facts = {"run": self._run_id, "fourfold": VERSION, "written_at": time.time(), **facts, "files": files}
        with open(self._whole / MANIFEST, "wb") as file:
            file.write(manifest_bytes(facts))
            os.fsync(file.fileno())
        _sync_folders(self._whole)
        seams.hit("output.publish")
        self._take_place()
        return [str(self.path / each["path"]) for each in files]

    def _one_schema(self, parts: Sequence[Part]) -> Any:
        import pyarrow as pa

        schemas = [pa.ipc.read_schema(pa.py_buffer(part.schema)) for part in parts]
        whole = schemas[0] if schemas else None
        for part, schema in zip(parts, schemas, strict=True):
            try:
                whole = unified([whole, schema])
            except SchemaConflict as error:
                raise UnwritableValue(
                    f"what came of piece {part.number} does not go with the pieces before it: {error}"
                ) from error
        return whole

    def _place(self, part: Part, schema: Any, to: Path) -> None:
        """Put a part into the folder that will be published: as it is, or, where its types are narrower, written anew."""
        import pyarrow as pa

        to.parent.mkdir(parents=True, exist_ok=True)
        path = self.staging / part.folder / part.name
        if self._format != "parquet" or pa.ipc.read_schema(pa.py_buffer(part.schema)).equals(schema):
            try:
                os.link(path, to)  # and no rename: the part stays for the call that goes on when this driver dies here
            except OSError:  # a file system without links
                shutil.copyfile(path, to)
            return
        import pyarrow.parquet as pq

        writer = PartWriter(str(to), self._format)
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    writer.write(fitted(file.read_row_group(group), schema))
            writer.finish()
        except BaseException:
            writer.discard()
            raise

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


def _sync_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        _sync(Path(folder))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
