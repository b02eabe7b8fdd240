"""Segments of shared memory without names, and parcels laid out flat in them.

The side that writes a parcel owns the segment, and only ever writes it by system calls; its descriptor travels with the
message, and the side that reads maps it for as long as it looks at it. Then the owner writes it again: memory whose pages
exist takes a copy ten times as fast as fresh memory, and fresh memory is filled twice as fast by a system call as through
page faults (benchmarks/constants.py).

A parcel is laid out as a table of lengths, then the pickle stream, then the buffers, each aligned for any number type:

    | count | length of each ... | stream | buffer 0 | buffer 1 | ...
"""

import errno
import mmap
import os
import struct
import tempfile
from typing import NamedTuple

import fourfold.system.seams as seams
from fourfold.records import Buffer, Parcel

ALIGN = 64
"""Bytes; the alignment that NumPy and Arrow want at most."""

GATHER_BYTES = 1 << 18
"""Smaller parts are put together before they are written, larger ones are written from where they are. Not measured."""

KEEP_BYTES = 1 << 29
"""Bytes of free segments that one owner keeps for the next parcels. Less: more fresh memory. More: more memory held."""

_COUNT = struct.Struct("<q")
_ONE_LENGTH = struct.Struct("<2q")


class Place(NamedTuple):
    """Where a parcel lies: in the message itself, or in the first `used_bytes` of a segment."""

    inline: bytes | None
    segment: int
    used_bytes: int


class Owner:
    """The segments that this side writes and the other side reads."""

    def __init__(self) -> None:
        self._free: list[_Segment] = []
        self._busy: dict[int, _Segment] = {}
        self._next = 0

    def write(self, parcel: Parcel, inline_bytes: int) -> tuple[Place, int]:
        """Lay out a parcel inline or in a free segment; returns the place, and the descriptor to send with it or -1.

        Raises:
            OSError: There is no memory or descriptor for a new segment.
        """
        lengths, size = layout(parcel)
        if size <= inline_bytes:
            return Place(b"".join(_pieces(parcel, lengths)), -1, size), -1
        segment = self._take(size)
        self._busy[segment.id] = segment
        try:
            _write(segment.fd, parcel, lengths)
        except OSError:
            self.abandon(segment.id)
            raise
        segment.size = max(segment.size, size)
        return Place(None, segment.id, size), segment.fd

    def _take(self, size: int) -> "_Segment":
        """The smallest free segment that is large enough, or else the largest, which grows."""
        if self._free:
            fitting = [segment for segment in self._free if segment.size >= size]
            best = min(fitting, key=_size) if fitting else max(self._free, key=_size)
            if fitting or hasattr(os, "memfd_create"):
                self._free.remove(best)
                return best
        self._next += 1
        return _Segment(self._next, new_file(size))

    def release(self, id: int) -> None:
        """Nobody looks at the segment any more: it may be written again."""
        segment = self._busy.pop(id, None)
        if segment is not None:
            self._free.append(segment)
            self.trim(KEEP_BYTES)

    @property
    def free_bytes(self) -> int:
        """Bytes of memory that nobody looks at."""
        return sum(map(_size, self._free))

    def trim(self, keep_bytes: int) -> None:
        """Let go of free segments until they have `keep_bytes` at most, the smallest first."""
        held = self.free_bytes
        while held > keep_bytes:
            smallest = min(self._free, key=_size)
            held -= smallest.size
            self._free.remove(smallest)
            smallest.close()

    def abandon(self, id: int) -> None:
        """Somebody goes on looking at the segment: never write it again. It goes with its last user."""
        segment = self._busy.pop(id, None)
        if segment is not None:
            segment.close()

    def close(self) -> None:
        """Let go of everything."""
        for segment in [*self._free, *self._busy.values()]:
            segment.close()
        self._free.clear()
        self._busy.clear()


class _Segment:
    """One file in memory."""

    __slots__ = ("fd", "id", "size")

    def __init__(self, id: int, fd: int) -> None:
        self.id, self.fd, self.size = id, fd, 0

    def close(self) -> None:
        os.close(self.fd)


def _size(segment: _Segment) -> int:
    return segment.size


def new_file(size: int) -> int:
    """Return a descriptor of memory without a name; of an unlinked file where there is no memfd.

    Raises:
        OSError: There is no descriptor, or no folder with room for `size` bytes.
    """
    seams.hit("segments.create")
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create("fourfold", os.MFD_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):  # some sandboxes forbid it
                raise
    try:
        return _new_file_in("/dev/shm", size)
    except OSError:  # it is not there, full, or not ours to write
        return _new_file_in(tempfile.gettempdir(), size)


def _new_file_in(folder: str, size: int) -> int:
    fd, path = tempfile.mkstemp(prefix="fourfold-", dir=folder)
    os.unlink(path)
    try:
        os.posix_fallocate(fd, 0, size)  # a full disk is an error here, not when the memory is touched
    except OSError:
        os.close(fd)
        raise
    return fd


def open_inline(place: Place) -> Parcel:
    """The parcel inside a message, writable."""
    assert place.inline is not None
    return read(memoryview(bytearray(place.inline)))


def open_readonly(place: Place, fd: int = -1) -> tuple[Parcel, mmap.mmap | None]:
    """The parcel of a program: the same memory for all workers, which none can write. Closes `fd`; returns the mapping too."""
    if place.inline is not None:
        return read(memoryview(place.inline)), None
    mapping = _map(fd, place.used_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    return read(memoryview(mapping)), mapping


def open_shared(place: Place, fd: int = -1) -> tuple[Parcel, mmap.mmap | None]:
    """The parcel of a chunk: what is written to it, its owner will overwrite. Closes `fd`; returns the mapping too."""
    if place.inline is not None:
        return open_inline(place), None
    mapping = _map(fd, place.used_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return read(memoryview(mapping)), mapping


def open_private(place: Place, fd: int) -> tuple[Parcel, mmap.mmap]:
    """The parcel of a result: what is written to it stays in this process. Closes `fd`; returns the mapping too."""
    mapping = _map(fd, place.used_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    return read(memoryview(mapping)), mapping


def open_copy(place: Place, fd: int) -> Parcel:
    """The parcel, copied into memory of this process. Closes `fd`."""
    if place.inline is not None:
        return open_inline(place)
    data = bytearray(place.used_bytes)
    view, at = memoryview(data), 0
    try:
        while at < len(data):
            at += os.preadv(fd, [view[at:]], at)
    finally:
        os.close(fd)
    return read(view)


def _map(fd: int, size: int, flags: int, prot: int) -> mmap.mmap:
    try:
        seams.hit("segments.map")
        return mmap.mmap(fd, size, flags=flags, prot=prot)
    finally:
        os.close(fd)


def layout(parcel: Parcel) -> tuple[list[int], int]:
    """The lengths of a parcel's parts, and the bytes that it takes when laid out."""
    lengths = [memoryview(part).nbytes for part in (parcel.head, *parcel.buffers)]
    size = _aligned(8 * (1 + len(lengths))) + sum(map(_aligned, lengths))
    return lengths, size


def _pieces(parcel: Parcel, lengths: list[int]) -> list[Buffer]:
    """The bytes of a laid out parcel, in order."""
    table = struct.pack(f"<{1 + len(lengths)}q", len(lengths), *lengths)
    pieces: list[Buffer] = [table, _padding(len(table))]
    for part, length in zip((parcel.head, *parcel.buffers), lengths, strict=True):
        if length:
            pieces.append(memoryview(part).cast("B"))
            pieces.append(_padding(length))
    return pieces


def _write(fd: int, parcel: Parcel, lengths: list[int]) -> None:
    """Lay out a parcel in a file."""
    at, small = 0, bytearray()
    for piece in _pieces(parcel, lengths):
        if len(piece) < GATHER_BYTES:
            small += piece
            continue
        at = _write_all(fd, memoryview(small), at)
        small = bytearray()
        at = _write_all(fd, memoryview(piece), at)
    _write_all(fd, memoryview(small), at)


def write_into(memory: mmap.mmap, at: int, head: Buffer, buffers: tuple[Buffer, ...]) -> int:
    """Lay out a parcel in mapped memory, from `at` on; returns where it ends, or -1 when there is no room for it.

    For small parcels, and often: between two items this code is in no cache of the processor, and each line counts.
    """
    if not buffers:
        length = len(head)
        begin = at + ALIGN
        end = begin + length + -length % ALIGN
        if end > len(memory):
            return -1
        _ONE_LENGTH.pack_into(memory, at, 1, length)
        memory[begin : begin + length] = head
        return end
    parcel = Parcel(head, buffers)
    lengths, size = layout(parcel)
    if at + size > len(memory):
        return -1
    for piece in _pieces(parcel, lengths):
        memory[at : at + len(piece)] = piece
        at += len(piece)
    return at


def _write_all(fd: int, data: memoryview, at: int) -> int:
    done = 0
    while done < len(data):
        seams.hit("segments.write")
        done += os.pwrite(fd, data[done:], at + done)
    return at + done


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


def size_of(view: memoryview) -> int:
    """The bytes that the parcel at the beginning of `view` takes, as its table says.

    Raises:
        struct.error: There is no such table.
        ValueError: No parcel has such a table.
    """
    (count,) = _COUNT.unpack_from(view)
    lengths = struct.unpack_from(f"<{count}q", view, 8) if count > 0 else ()
    if not lengths or min(lengths) < 0:
        raise ValueError(f"a table of {count} lengths: {lengths[:8]}")
    return _aligned(8 * (1 + count)) + sum(map(_aligned, lengths))


def is_looked_at(mapping: mmap.mmap | None) -> bool:
    """Close a mapping; True when something still looks at it, and it lives on.

    To release the views that were handed out would not tell: pickle makes its own of them for arrays that cannot be written.
    """
    try:
        if mapping is not None:
            mapping.close()
    except BufferError:
        return True
    return False


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _padding(size: int) -> bytes:
    return bytes(-size % ALIGN)
