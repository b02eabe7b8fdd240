"""Files of pickled values. Each session of a run writes one of its own, to its end; the journal says what is where.

A parcel lies in a file as: the lengths of its pieces, then the pieces. Its checksum and its seal are in the journal.
"""

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import fourfold.system.seams as seams
from fourfold.errors import JournalCorrupt
from fourfold.records import Buffer, Parcel
from fourfold.runs.place import create_private
from fourfold.runs.seal import changed, is_right

BUFFER_BYTES = 1 << 20
"""Bytes that wait for a write. Smaller: more writes, of some microseconds each. Larger: memory."""


class Where(NamedTuple):
    """Where a parcel lies: file number, offset and length in bytes; the checksum (CRC-32) of those bytes, and their seal."""

    part: int
    offset: int
    length_bytes: int
    checksum: int
    seal: bytes


class ValueWriter:
    """Appends parcels to a new file.

    What waits is in a buffer of our own: one of Python's would be written by a fork of the driver too, when that ends.

    Args:
        folder: Of the run.
        number: Of the file.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number, self.path = number, part_path(folder, number)
        seams.hit("journal.create")
        self._fd = create_private(self.path)
        self._buffer, self._in_file = bytearray(), 0

    def write(self, parcel: Parcel, seal: hashlib.blake2b) -> Where:
        """Append a parcel, and feed its bytes to its seal; it is in the file after the next `flush`.

        Raises:
            OSError: There is no room.
        """
        pieces = [parcel.head, *parcel.buffers]
        pieces.insert(0, _lengths(pieces))
        offset, checksum = self._end, 0
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
            seal.update(piece)
            if memoryview(piece).nbytes >= BUFFER_BYTES:
                self._write_out()
                self._in_file += self._pwrite(memoryview(piece).cast("B"))
            else:
                self._buffer += piece
                if len(self._buffer) >= BUFFER_BYTES:
                    self._write_out()
        return Where(self.number, offset, self._end - offset, checksum, seal.digest())

    @property
    def _end(self) -> int:
        return self._in_file + len(self._buffer)

    def _write_out(self) -> None:
        # A copy: whoever keeps an error of the write looks at what was written, and would keep the buffer from growing.
        self._in_file += self._pwrite(memoryview(bytes(self._buffer)))
        self._buffer = bytearray()

    def _pwrite(self, data: memoryview) -> int:
        """Write at the end of what is in the file; returns how much. What failed there is written over by the next try."""
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], self._in_file + written)
        return written

    def flush(self) -> None:
        """Give what was written to the operating system: from here on it outlives this process.

        Raises:
            OSError: There is no room.
        """
        seams.hit("journal.write")
        self._write_out()

    def sync(self) -> int:
        """Bring it to the disk, where it outlives the machine; returns how many bytes are there.

        Raises:
            OSError: The disk has an error.
        """
        self.flush()
        seams.hit("journal.sync")
        os.fdatasync(self._fd)
        return self._in_file

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        with contextlib.suppress(
            OSError
        ):  # a file system of the network may tell here of a full disk; it is closed all the same
            os.close(self._fd)


def part_path(folder: Path, number: int) -> Path:
    return folder / f"values-{number:04d}.part"


def read_parcel(folder: Path, where: Where, seal: hashlib.blake2b, what: str) -> Parcel:
    """Read a parcel back; its buffers can be written to.

    Args:
        folder: Of the run.
        where: The parcel lies.
        seal: That is fed with its bytes.
        what: Is lost when it cannot be read.

    Raises:
        JournalCorrupt: It is not what was written.
        UntrustedRun: It was changed by somebody who has not our key.
    """
    pieces = _read_whole(folder, where, what)
    if not is_right(where.seal, _sealed(seal, pieces)):
        raise changed(part_path(folder, where.part), what)
    head, *buffers = pieces
    return Parcel(bytes(head), tuple(buffers))


def seal_again(folder: Path, where: Where, seal: hashlib.blake2b, what: str) -> bytes:
    """The seal of a parcel, whatever seal it has now.

    Raises:
        JournalCorrupt: It is not what was written.
    """
    return _sealed(seal, _read_whole(folder, where, what))


def is_whole(folder: Path, where: Where) -> bool:
    """Whether a parcel fits its checksum."""
    try:
        _read_whole(folder, where, "")
    except JournalCorrupt:
        return False
    return True


def _sealed(seal: hashlib.blake2b, pieces: list[bytearray]) -> bytes:
    seal.update(_lengths(pieces))
    for piece in pieces:
        seal.update(piece)
    return seal.digest()


def _lengths(pieces: Sequence[Buffer]) -> bytes:
    return struct.pack(f"<I{len(pieces)}Q", len(pieces), *(memoryview(piece).nbytes for piece in pieces))


def _read_whole(folder: Path, where: Where, what: str) -> list[bytearray]:
    path = part_path(folder, where.part)
    try:
        with open(path, "rb") as file:
            file.seek(where.offset)
            pieces, checksum = _read_pieces(file, where.length_bytes)
    except (OSError, struct.error) as error:
        raise JournalCorrupt(f"{path} holds {what}, and cannot be read: {error}{_WAY_ON}") from error
    if checksum != where.checksum:
        raise JournalCorrupt(
            f"{path} is damaged from byte {where.offset} to {where.offset + where.length_bytes}, where {what} should be: "
            f"the checksum is wrong{_WAY_ON}"
        )
    return pieces


def _read_pieces(file: BinaryIO, length_bytes: int) -> tuple[list[bytearray], int]:
    """The pieces of a parcel and the checksum of all its bytes; nonsense, with a wrong checksum, where it is damaged."""
    count_bytes = file.read(4)
    (count,) = struct.unpack("<I", count_bytes)
    if not 0 < count <= length_bytes // 8:
        return [bytearray()], -1
    lengths_bytes = file.read(8 * count)
    lengths = struct.unpack(f"<{count}Q", lengths_bytes)
    if 4 + 8 * count + sum(lengths) != length_bytes:
        return [bytearray()], -1
    checksum, pieces = zlib.crc32(lengths_bytes, zlib.crc32(count_bytes)), []
    for length in lengths:
        pieces.append(piece := bytearray(length))
        file.readinto(piece)  # type: ignore[attr-defined]  # a short read leaves zeros, which the checksum tells
        checksum = zlib.crc32(piece, checksum)
    return pieces, checksum


_WAY_ON = ". Bring the file back from a copy, or begin again in another folder"
