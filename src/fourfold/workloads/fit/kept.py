"""Rows that are wanted again, as files on the machine where they were made: each of its workers maps them into its memory.

/tmp/fourfold-fit-<user>-<fit>/     0700, and locked as long as somebody uses it; who finds one that nobody holds removes it
  3-0                               piece 3, view 0: all its batches; it is there whole or not at all
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import pickle
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fourfold.distribute.cargo import remove_unheld
from fourfold.errors import RunError
from fourfold.seams import hit
from fourfold.workloads.fit.contract import Rows

ALIGNED = 64
"""Bytes at whose multiples an array begins: a line of the cache. Smaller: some processors read slower. Larger: holes."""

UNUSED_S = 600.0
"""Seconds after which a worker on another machine lets go of a fit of which it has not heard. Less: a slow fit reads its rows
again. More: files of fits that are over lie there, as long as the cluster keeps the worker."""

NAMES = Rows._fields[:3]

_held: dict[str, tuple[int, float]] = {}
"""Folders that this process holds: the descriptor that locks each, and when it was used last."""


def _prefix() -> str:
    return f"fourfold-fit-{os.getuid()}-"


def sweep(spare: str = "") -> list[str]:
    """Remove the folders of fits on this machine that nobody holds, except the one of that path; returns them."""
    return remove_unheld(rf"{_prefix()}[0-9a-f]{{32}}(-.+)?", 0.0, spare)


class Kept:
    """What the workers of each machine keep of one fit. It travels by its name.

    Args:
        name: Of the fit, 32 hexadecimal digits: no other one has it.
    """

    def __init__(self, name: str) -> None:
        self.name, self._home = name, socket.gethostname()

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.name, self._home)

    @property
    def folder(self) -> str:
        """On this machine. Only its owner can read it."""
        return os.path.join(tempfile.gettempdir(), _prefix() + self.name)

    def open(self) -> None:
        """Called by the driver, before anything is kept: what dead ones have left is removed."""
        if self.folder not in _held:
            sweep()
            _hold(self.folder)

    def forget(self) -> None:
        """Remove what this machine keeps. Workers that still run keep nothing more on it."""
        _let_go(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def find(self, piece: int, view: int, first: int | None) -> Iterator[Rows] | None:
        """The rows of a piece, batch by batch; None when this machine has not kept them."""
        try:
            handle = os.open(os.path.join(self.folder, f"{piece}-{view}"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if not _is_ours(os.lstat(self.folder)) or os.fstat(handle).st_uid != os.getuid():
                raise PermissionError(f"{self.folder} belongs to somebody else: rows are not taken from it")
            data = mmap.mmap(handle, 0, prot=mmap.PROT_READ)
        finally:
            os.close(handle)
        if self.folder in _held:
            _held[self.folder] = _held[self.folder][0], time.monotonic()
        return _batches(data, first)

    def new(self, piece: int, view: int) -> "Keeping | None":
        """Keep the rows of a piece from now on; None where the driver has forgotten this fit."""
        if not os.path.isdir(self.folder):
            if socket.gethostname() == self._home:
                return None
            _let_go_of_old()
            sweep(self.folder)
            _hold(self.folder)
        return Keeping(self.folder, f"{piece}-{view}")


def _arrived(name: str, home: str) -> Kept:
    kept = Kept(name)
    kept._home = home
    return kept


class Keeping:
    """A file of kept rows that is being written. Another worker may write the same one: both write the same."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = folder, name
        self._batches: list[dict[str, Any]] = []
        handle, self._path = self._told(lambda: tempfile.mkstemp(dir=folder))
        self._file = os.fdopen(handle, "wb")

    def add(self, rows: Rows) -> None:
        """One more batch."""
        self._batches.append({name: self._put(value) for name, value in zip(NAMES, rows, strict=False) if value is not None})

    def finish(self) -> None:
        """All batches of the piece are there."""
        footer = json.dumps(self._batches).encode()
        self._told(lambda: self._file.write(footer + len(footer).to_bytes(8, "little")))
        self._told(self._file.close)
        os.replace(self._path, os.path.join(self._folder, self._name))

    def discard(self) -> None:
        """The piece has failed."""
        with contextlib.suppress(OSError):  # what was not written yet cannot be: that is known already
            self._file.close()
        Path(self._path).unlink(missing_ok=True)

    def _put(self, value: Any) -> Any:
        if hasattr(value, "tocsr"):
            return {
                "shape": list(map(int, value.shape)),
                "form": type(value).__name__,
                "parts": [self._array(part) for part in (value.data, value.indices, value.indptr)],
            }
        return self._array(value)

    def _array(self, array: Any) -> list[Any]:
        """Where it is, and what: see `_array_of`."""
        if array.dtype == object:
            content: Any = pickle.dumps(array, protocol=5)
            about = ["", [len(content)], ""]
        else:
            order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
            content = (array.T if order == "F" else array).reshape(-1).view("u1")
            about = [array.dtype.str, list(array.shape), order]
        begin = -self._file.tell() % ALIGNED + self._file.tell()
        self._told(lambda: self._write(begin, content))
        return [begin, *about]

    def _write(self, begin: int, content: Any) -> None:
        hit("kept.write")
        self._file.write(bytes(begin - self._file.tell()))
        self._file.write(content)

    def _told(self, do: Any) -> Any:
        try:
            return do()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"there is no room in {tempfile.gettempdir()} on {socket.gethostname()} for the rows that this fit looks at "
                "again and again: make room, or set TMPDIR to a folder of a larger disk",
            ) from None


def _batches(data: Any, first: int | None) -> Iterator[Rows]:
    size = int.from_bytes(data[-8:], "little")
    for batch in json.loads(data[-8 - size : -8]):
        X, y, weight = (_value_of(data, batch.get(name)) for name in NAMES)
        yield Rows(X, y, weight, first)
        first = None if first is None else first + int(X.shape[0])


def _value_of(data: Any, about: Any) -> Any:
    if isinstance(about, dict):
        from scipy import sparse

        values, indices, indptr = (_array_of(data, *part) for part in about["parts"])
        matrix = getattr(sparse, about["form"])(tuple(about["shape"]), dtype=values.dtype)
        matrix.data, matrix.indices, matrix.indptr = values, indices, indptr  # to hand it these is to have all of them checked
        return matrix
    return None if about is None else _array_of(data, *about)


def _array_of(data: Any, begin: int, dtype: str, shape: Sequence[int], order: str) -> Any:
    import numpy as np

    if not dtype:  # objects, such as texts of a target, cannot be mapped
        return pickle.loads(data[begin : begin + shape[0]])
    return np.ndarray(tuple(shape), np.dtype(dtype), data, begin, order="F" if order == "F" else "C")


def _hold(folder: str) -> None:
    """Make it, unless it is there, and lock it as long as this process lives or until it is let go.

    Raises:
        PermissionError: It is somebody else's, or others may look into it.
    """
    while folder not in _held:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # removed meanwhile
            continue
        if _is_locked(handle, folder):
            _held[folder] = handle, time.monotonic()
        else:
            os.close(handle)


def _is_locked(handle: int, folder: str) -> bool:
    about = os.fstat(handle)
    if not _is_ours(about):
        os.close(handle)
        raise PermissionError(f"{folder} belongs to somebody else, or others may look into it: no rows are kept there")
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # who locks it alone is about to remove it
        time.sleep(0.001)
        return False
    except OSError:  # there are no locks here, and so nothing is removed
        return True
    try:
        return os.path.samestat(about, os.stat(folder))
    except FileNotFoundError:
        return False


def _is_ours(about: os.stat_result) -> bool:
    return about.st_uid == os.getuid() and not about.st_mode & 0o077


def _let_go(folder: str) -> None:
    if folder in _held:
        os.close(_held.pop(folder)[0])


def _let_go_of_old() -> None:
    for folder, (_, used) in list(_held.items()):
        if time.monotonic() - used > UNUSED_S:
            _let_go(folder)


def name_in(run: str | None) -> str:
    """The name of a fit: a new one, or the one that its recorded run has already, since it is part of what is recorded.

    Raises:
        RunError: There is something else in its place.
    """
    if run is None:
        return os.urandom(16).hex()
    path = Path(run, "fit")
    os.makedirs(run, mode=0o700, exist_ok=True)
    if not path.exists():
        handle, private = tempfile.mkstemp(dir=run)
        with os.fdopen(handle, "w") as file:
            file.write(os.urandom(16).hex())
        with contextlib.suppress(FileExistsError):  # another driver was faster: one of them will hear that the run is in use
            os.link(private, path)
        os.unlink(private)
    found = path.read_text()
    if not re.fullmatch("[0-9a-f]{32}", found):
        raise RunError(f"{path} does not name a fit: {run} is of something else. Give a fit a folder of its own")
    return found
