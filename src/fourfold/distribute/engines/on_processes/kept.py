"""What a worker has finished of the chunk that it is on: kept in the file of its control page, where no death undoes it.

The worker writes one parcel behind the other, through a mapping: without a system call, and whatever an item does to open
files. KEPT says how many bytes are valid, so half a parcel is none. The driver reads them when the worker is dead.

The room is reserved and takes no memory until it is written. Nothing is kept where that cannot be: where the page is a file of
a disk, which may be full when it is written, or where there is no address space.
"""

import contextlib
import mmap
import os
import signal
import struct

from fourfold.distribute.engines.on_processes import segments
from fourfold.distribute.engines.on_processes.page import BEGAN_NS, EXPIRED, KEPT, KEPT_AT, ROOM_BYTES, Page
from fourfold.records import Buffer, Parcel


class Room:
    """The worker's side."""

    def __init__(self, page: Page) -> None:
        self._fields = page.fields
        self._memory = _reserved(page.fd)
        self.is_there = self._is_open = self._memory is not None
        """Whether anything can be kept."""

    def empty(self) -> None:
        """Another ticket begins."""
        self._fields[KEPT] = 0

    def put(self, head: Buffer, buffers: tuple[Buffer, ...]) -> bool:
        """Keep the results of the items that have finished next; False when there is no room for them.

        Not when their time was over meanwhile: the driver has said so, and that is what became of them.
        """
        fields = self._fields
        if not self._is_open or self._memory is None:
            return False
        if fields[EXPIRED] and fields[EXPIRED] == fields[BEGAN_NS]:
            os.killpg(0, signal.SIGKILL)
        end = segments.write_into(self._memory, fields[KEPT], head, buffers)
        if end >= 0:
            fields[KEPT] = end
        return end >= 0

    def let_go(self) -> None:
        """Give back the memory; the room stays."""
        if self._memory is not None and hasattr(mmap, "MADV_REMOVE"):
            with contextlib.suppress(OSError):
                self._memory.madvise(mmap.MADV_REMOVE)

    def leave(self) -> None:
        """In a child that an item has forked: the room is its parent's. Unmapping it would close a number of a file."""
        self._is_open = False


def _reserved(fd: int) -> mmap.mmap | None:
    try:
        if not os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
            return None
        if os.fstat(fd).st_size < KEPT_AT + ROOM_BYTES:
            os.ftruncate(fd, KEPT_AT + ROOM_BYTES)
        return mmap.mmap(fd, ROOM_BYTES, offset=KEPT_AT)
    except OSError:
        return None


def read(page: Page) -> tuple[Parcel, ...]:
    """The driver's side: what the dead worker has kept of the ticket that it was on, in order."""
    size = int(page.fields[KEPT])
    if not 0 < size <= ROOM_BYTES:
        return ()
    parcels, at = [], 0
    with contextlib.suppress(OSError, struct.error, ValueError):  # C code of an item may have written anywhere
        data = memoryview(bytearray(os.pread(page.fd, size, KEPT_AT)))
        while at < size:
            end = at + segments.size_of(data[at:])
            if end > size:
                break
            parcels.append(segments.read(data[at:end]))
            at = end
    return tuple(parcels)
