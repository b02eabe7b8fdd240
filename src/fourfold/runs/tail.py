"""What a run has finished since its last commit, one line each time: a killed driver loses none of it.

A commit of SQLite takes 0.2 ms or more, a line here some microseconds; so lines come at once, and commits in groups. A line
has the number of the commit that it follows: lines of an older one are in the journal already, and are not read again.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import fourfold.system.seams as seams
from fourfold.runs.place import create_private

TAIL = "journal.tail"

Row = tuple[str, tuple[Any, ...]]
"""The name of a statement, and its values."""


class Tail:
    """The file of lines, made when the first one is written.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TAIL
        self._fd = -1
        self._end = 0

    def append(self, n_commits: int, rows: list[Row]) -> None:
        """Write a line, which outlives this process from here on.

        Raises:
            OSError: There is no room: nothing was added.
        """
        seams.hit("journal.tail")
        if self._fd < 0:
            self._fd = self._open()
        line, end = _line([n_commits, rows]), self._end
        while line:
            written = os.pwrite(self._fd, line, end)
            end, line = end + written, line[written:]
        self._end = end  # not before: half a line on a full disk is written over

    def _open(self) -> int:
        """What is there of an earlier driver has been read, and is committed."""
        try:
            return os.open(self._path, os.O_RDWR | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return create_private(self._path)

    def exists(self) -> bool:
        """Whether there is one: a run that has ended well has none."""
        return self._path.exists()

    def read(self, n_commits: int) -> list[Row]:
        """The rows that were written after this commit, up to the first line that is not whole.

        Raises:
            OSError: The file is there and cannot be read.
        """
        if not self.exists():
            return []
        rows: list[Row] = []
        for line in self._path.read_bytes().split(b"\n"):
            found = _read(line)
            if found is None:
                break
            follows, new = found
            if follows == n_commits:
                rows += [(name, tuple(values)) for name, values in new]
        return rows

    def rewind(self) -> None:
        """All of it is committed: the next line is written over the first. What is behind it follows an older commit."""
        self._end = 0

    def remove(self) -> None:
        """All of it is committed, and no more comes.

        Raises:
            OSError: The disk has an error.
        """
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _line(content: list[Any]) -> bytes:
    text = json.dumps(content, default=_as_hex, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read(line: bytes) -> Any:
    checksum, _, text = line.partition(b" ")
    return json.loads(text, object_hook=_from_hex) if checksum == b"%08x" % zlib.crc32(text) else None


def _as_hex(data: bytes) -> dict[str, str]:
    return {"hex": data.hex()}


def _from_hex(found: dict[str, str]) -> bytes:
    return bytes.fromhex(found["hex"])
