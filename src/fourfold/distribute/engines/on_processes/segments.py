"""Segments of shared memory without names, and parcels laid out flat in them.

A segment is made by the side that writes it; its descriptor travels once, then both sides have it mapped and it is used
again and again: memory whose pages are there already takes a copy four times as fast as fresh memory does
(benchmarks/transport.py).

A parcel is laid out as a table of lengths, then the pickle stream, then the buffers, each aligned for any number type:

    | count | length of each ... | stream | buffer 0 | buffer 1 | ...
"""

import contextlib
import mmap
import os
import struct
import tempfile
from typing import NamedTuple

from fourfold.records import Buffer, Parcel

ALIGN = 64
"""Bytes; the alignment that NumPy and Arrow want at most."""

SMALLEST = 1 << 20
"""Bytes of the smallest segment. Smaller: more segments are outgrown. Larger: more memory per worker. Not measured."""

KEEP_FREE = 2
"""Free segments that one side keeps for the next parcel. Fewer: more fresh memory. More: more memory held."""

_COUNT = struct.Struct("<q")


def new_file(size: int) -> int:
    """Return a descriptor of `size` bytes of memory without a name; of an unlinked file where there is no memfd.

    Raises:
        OSError: There is no memory, disk or descriptor for it.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("fourfold", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        return fd
    return _new_disk_file(size)


def _new_disk_file(size: int) -> int:
    folders = [folder for folder in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(folder)]
    for number, folder in enumerate(folders):
        fd, path = tempfile.mkstemp(prefix="fourfold-", dir=folder)
        os.unlink(path)
        try:
            # Reserve it now: a full disk must be an error here, not a SIGBUS when the memory is written.
            os.posix_fallocate(fd, 0, size)
        except OSError:
            os.close(fd)
            if number == len(folders) - 1:
                raise
        else:
            return fd
    raise FileNotFoundError(f"no folder for temporary files: {folders}")


class Segment:
    """One mapped piece of shared memory. `fd` is open until the other side has it."""

    __slots__ = ("fd", "id", "map", "size")

    def __init__(self, id: int, fd: int, size: int, *, readonly: bool = False) -> None:
        self.id, self.fd, self.size = id, fd, size
        self.map = mmap.mmap(fd, size, access=mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE)

    def close_fd(self) -> None:
        """The other side has it: the mapping is enough."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Unmap; when something still looks at the memory, it goes with its last user."""
        self.close_fd()
        with contextlib.suppress(BufferError):
            self.map.close()


class Place(NamedTuple):
    """Where a parcel lies: in the message itself (`inline`), or in a segment; with the segment's size when it is new there."""

    inline: bytes | None
    segment: int
    size: int
    used: int


class Writer:
    """The segments that this side writes and the other side reads."""

    def __init__(self) -> None:
        self._free: list[Segment] = []
        self._busy: dict[int, Segment] = {}
        self._next = 0

    def write(self, parcel: Parcel, inline_bytes: int) -> tuple[Place, Segment | None]:
        """Lay out a parcel inline or in a free segment; returns the segment when the other side does not have it yet.

        Raises:
            OSError: There is no memory for a new segment.
        """
        lengths, size = layout(parcel)
        if size <= inline_bytes:
            data = bytearray(size)
            fill(memoryview(data), parcel, lengths)
            return Place(bytes(data), -1, 0, size), None
        segment, new = self._find(size)
        fill(memoryview(segment.map), parcel, lengths)
        self._busy[segment.id] = segment
        return Place(None, segment.id, segment.size if new else 0, size), segment if new else None

    def _find(self, size: int) -> tuple[Segment, bool]:
        fitting = [segment for segment in self._free if segment.size >= size]
        if fitting:
            best = min(fitting, key=lambda segment: segment.size)
            self._free.remove(best)
            return best, False
        rounded = max(SMALLEST, 1 << (size - 1).bit_length()) if size < 1 << 28 else -(-size // 4096) * 4096
        self._next += 1
        return Segment(self._next, new_file(rounded), rounded), True

    def release(self, id: int) -> list[int]:
        """The other side has read the segment: use it again. Returns the ids of those it should forget."""
        segment = self._busy.pop(id, None)
        if segment is None:
            return []
        self._free.append(segment)
        self._free.sort(key=lambda each: each.size)
        surplus = self._free[: max(0, len(self._free) - KEEP_FREE)]
        del self._free[: len(surplus)]
        for each in surplus:
            each.close()
        return [each.id for each in surplus]

    def abandon(self, id: int) -> None:
        """The other side still looks at the segment: never write it again."""
        segment = self._busy.pop(id, None)
        if segment is not None:
            segment.close()

    def trim(self, largest: int) -> list[int]:
        """Let go of free segments larger than `largest` bytes; returns the ids that the other side should forget."""
        surplus = [segment for segment in self._free if segment.size > largest]
        for segment in surplus:
            self._free.remove(segment)
            segment.close()
        return [segment.id for segment in surplus]

    def close(self) -> None:
        """Let go of everything."""
        for segment in [*self._free, *self._busy.values()]:
            segment.close()
        self._free.clear()
        self._busy.clear()


class Reader:
    """The segments that the other side writes and this side reads."""

    def __init__(self, *, readonly: bool = False) -> None:
        self._segments: dict[int, Segment] = {}
        self._readonly = readonly

    def view(self, place: Place, fds: list[int]) -> memoryview:
        """The memory of a parcel. New segments take their descriptor from `fds`."""
        if place.inline is not None:
            return memoryview(place.inline if self._readonly else bytearray(place.inline))
        if place.size:
            fd = fds.pop(0)
            segment = self._segments[place.segment] = Segment(place.segment, fd, place.size, readonly=self._readonly)
            segment.close_fd()
        return memoryview(self._segments[place.segment].map)[: place.used]

    def forget(self, ids: list[int]) -> None:
        """The other side does not use these segments any more."""
        for id in ids:
            segment = self._segments.pop(id, None)
            if segment is not None:
                segment.close()

    def close(self) -> None:
        """Let go of everything."""
        self.forget(list(self._segments))


def layout(parcel: Parcel) -> tuple[list[int], int]:
    """The lengths of a parcel's parts, and the bytes that it takes when laid out."""
    lengths = [len(parcel.head), *(memoryview(buffer).nbytes for buffer in parcel.buffers)]
    size = _aligned(8 * (1 + len(lengths)))
    for length in lengths:
        size += _aligned(length)
    return lengths, size


def fill(view: memoryview, parcel: Parcel, lengths: list[int]) -> None:
    """Lay out a parcel in `view`."""
    struct.pack_into(f"<{1 + len(lengths)}q", view, 0, len(lengths), *lengths)
    at = _aligned(8 * (1 + len(lengths)))
    for part, length in zip((parcel.head, *parcel.buffers), lengths, strict=True):
        view[at : at + length] = memoryview(part).cast("B") if length else b""
        at += _aligned(length)


def read(view: memoryview) -> Parcel:
    """The parcel that is laid out in `view`, as views of it."""
    (count,) = _COUNT.unpack_from(view)
    lengths = struct.unpack_from(f"<{count}q", view, 8)
    at = _aligned(8 * (1 + count))
    parts: list[Buffer] = []
    for length in lengths:
        parts.append(view[at : at + length])
        at += _aligned(length)
    return Parcel(parts[0], tuple(parts[1:]))


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
