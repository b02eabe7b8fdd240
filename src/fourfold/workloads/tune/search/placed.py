"""X and y of a search with several rounds: they come to each machine once, and later rounds speak of them by name.

    /tmp/fourfold-fit-<user>-<search>/rows     their pickle, and the memory of arrays behind it: workers map it into their own

For workers of this machine it is written before the first round. Of a cluster, the first worker of each machine that is sent
the rows writes them. A worker that is on a machine without them says so, and what it was to do is done again by those who are
sent them.
"""

import contextlib
import mmap
import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Iterator
from typing import Any

from fourfold.execute import current
from fourfold.execute.pickling import dump, weigh
from fourfold.workloads.fit.kept import Kept, _hold, _is_ours, _let_go_of_old, name_in, sweep

ABSENT = "absent"
"""What a worker makes of a unit on a machine without the rows."""

PLACED_BYTES = 1 << 20
"""Bytes of rows from which they are placed. Fewer: a search of small ones writes a file, of some milliseconds. More: they
travel with each round, which takes as long for 10 MB. Not measured."""

ALIGNED = 64
"""Bytes at whose multiples the memory of arrays begins, as NumPy has it for its own."""


@contextlib.contextmanager
def place_for(rows: tuple[Any, Any], engine: Any) -> "Iterator[Placed | None]":
    """A block with a place for rows, where workers of that engine have memory of their own; None where it is of no use.

    Without an engine there is none.
    """
    placed = Placed(rows, engine == "processes") if _is_of_use(rows, engine) else None
    try:
        yield placed
    finally:
        if placed is not None:
            placed.forget()


def _is_of_use(rows: tuple[Any, Any], engine: Any) -> bool:
    info = getattr(engine, "info", None)
    if engine in (None, "serial", "threads") or current.inside_item() or (info is not None and info.takes_objects):
        return False
    weight = weigh(rows, PLACED_BYTES)
    return not weight.complete or weight.stream_bytes + weight.buffer_bytes >= PLACED_BYTES


class Placed:
    """Rows, and where they are. It travels by its name alone, or with them while `travels`.

    Args:
        rows: X and y.
        is_here: Workers are on this machine.
    """

    def __init__(self, rows: tuple[Any, Any], is_here: bool) -> None:
        self._rows, self._kept = rows, Kept(name_in(None))
        self.travels = True
        self._is_full = False
        try:
            self._kept.open()
            if is_here:
                _write(self._kept.folder, rows)
                self.travels = False
        except OSError:  # there is no room
            self._is_full = True

    def sent(self, some_lack_them: bool) -> None:
        """A call has ended: whether the next one has the rows with it."""
        self.travels = self._is_full or some_lack_them

    def forget(self) -> None:
        """Remove what is here. On other machines it goes when its workers end, or have not been asked for ten minutes."""
        self._kept.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return found, (self._kept, self._rows if self.travels else None)


def found(kept: Kept, rows: tuple[Any, Any] | None) -> Any:
    """X and y, in a worker; False where it is not sent them and its machine has not kept them."""
    data = _mapped(kept.folder)
    if data is not None:
        return _read(data)
    if rows is None:
        return False
    with contextlib.suppress(OSError):
        if _has_folder(kept):
            _write(kept.folder, rows)
    return rows


def _mapped(folder: str) -> mmap.mmap | None:
    try:
        handle = os.open(os.path.join(folder, "rows"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if not _is_ours(os.lstat(folder)) or os.fstat(handle).st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to somebody else: rows are not taken from it")
        return mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)  # who writes into them does so for itself
    finally:
        os.close(handle)


def _has_folder(kept: Kept) -> bool:
    """Make it, unless it is there; on the driver's machine that has made it, or has forgotten it."""
    if os.path.isdir(kept.folder):
        return True
    if _is_home(kept):
        return False
    _let_go_of_old()
    sweep(kept.folder)
    _hold(kept.folder)
    return True


def _is_home(kept: Kept) -> bool:
    return kept._home == socket.gethostname()


def _write(folder: str, rows: Any) -> None:
    """As one file, which is there whole or not at all."""
    parcel = dump(rows)
    sizes = [len(parcel.head), *(memoryview(each).nbytes for each in parcel.buffers)]
    handle, path = tempfile.mkstemp(dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes))
            for each in (parcel.head, *parcel.buffers):
                file.write(bytes(-file.tell() % ALIGNED))
                file.write(each)
        os.rename(path, os.path.join(folder, "rows"))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise


def _read(data: mmap.mmap) -> tuple[Any, Any]:
    """Arrays have the file for their memory."""
    (n_parts,) = struct.unpack_from("<Q", data)
    sizes, at = struct.unpack_from(f"<{n_parts}Q", data, 8), 8 * (1 + n_parts)
    parts = []
    for size in sizes:
        at += -at % ALIGNED
        parts.append(memoryview(data)[at : at + size])
        at += size
    rows: tuple[Any, Any] = pickle.loads(parts[0], buffers=parts[1:])
    return rows
