"""The contract of where tables come from: a source says what its pieces are, and reads one of them.

source.pieces() ──> Piece, Piece, …      small: they travel, and a worker reads what they name
source.read(piece) ──> (row, table), …   in a worker: a piece is streamed, never held
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

PIECES = 128
"""A source is cut into about so many pieces when the limits allow: some for each of many workers, not too many files. What a
row costs is not known, and pieces must not depend on it: the same input is always cut alike. Fewer: workers wait for the last
one. More: each is some milliseconds, to open what it is in and to write a file."""

FEW_PIECES = 16
"""A small source is cut into so many, as long as they are less than full: a step costs some milliseconds for each, whatever
its rows. In 128 pieces the features of 337,000 flights took twice the processor time of the loop over 12 files, in 36 pieces a
third more. Fewer: workers have nothing to do. More: these milliseconds are all that they do."""

FULL_ROWS, FULL_BYTES = 32_000, 8 << 20
"""What fills a piece: more at once makes few steps faster. Where the user wants calls of a few rows, CALLS of them. Smaller:
more pieces of small sources, and dear calls: a forest of 100 trees takes 12 ms for each call besides its rows, so 4.8 s of a
processor for a million rows in pieces of 50,000, 4.9 in 33,000, 5.3 in 17,000 and 5.5 in 8,000. And row groups of Parquet
that are cut are decoded by each worker that has a part of them. Larger: fewer pieces for many workers: a million rows in row
groups of 50,000 are 20 pieces, and more of them only where the user says batch_size=."""

MIN_ROWS, MAX_ROWS = 256, 1 << 20
"""Rows of a piece; fewer than the least, where calls of a few rows are wanted. Smaller least: a small table becomes many
files. Larger most: more is run again after a death. Not measured."""

MIN_BYTES, MAX_BYTES = 1 << 20, 128 << 20
"""Bytes of a piece, before compression, likewise. Of files of lines, whose rows nobody has counted, a piece has no less."""

CALLS = 4
"""A piece has rows for at least so many calls of the function that takes the fewest. Fewer: more pieces. Not measured."""

Part = tuple[int, ...]


class Piece(NamedTuple):
    """What one item of a run is: a part of a file, or of a table in memory. Small, and the same for the same input.

    Attributes:
        number: Its place among all pieces.
        path: The file; "" for a table in memory.
        part: What of it, in the words of its source.
        stamp: Changes when the file does.
        keys: What the folders above the file say, as texts.
        format: Of the file.
        compression: Of the file, None for none.
        first: The number of its first row among all rows of the dataset, None when nobody knows yet.
        rows: None, or only the rows `[first, end)` of the piece: where one is searched for that killed its worker.
        without: Places of rows in the piece that are left out: they were found.
    """

    number: int
    path: str
    part: Part
    stamp: str = ""
    keys: tuple[tuple[str, str | None], ...] = ()
    format: str = ""
    compression: str | None = None
    first: int | None = None
    rows: tuple[int, int] | None = None
    without: tuple[int, ...] = ()


class TableSource(Protocol):
    """Where the rows of a dataset come from. It travels to workers with the plan, so it is small or made of large buffers.

    Attributes:
        schema: Of all its rows.
        n_rows: How many there are, None when nobody knows yet.
        only_here: Only this process sees what pieces name, and its threads.
    """

    schema: Any
    n_rows: int | None
    only_here: bool

    def pieces(self, least_rows: int = MIN_ROWS, full_rows: int = FULL_ROWS, where: Any = None) -> Iterable[Piece]:
        """All pieces, in the order of the rows. They do not depend on the number of workers.

        Args:
            least_rows: How few rows a piece may have.
            full_rows: How many are enough for one.
            where: None, or an expression of Arrow: rows of which it cannot be true may be left out, where that is known
                without reading them. The numbers of the others are the same.
        """

    def read(self, piece: Piece, columns: Sequence[str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        """The rows of a piece: the place of the first one in the piece, and an Arrow table of at most `batch_rows` rows.

        Raises:
            UnreadableInput: The file is not what it should be; the message opens with its name.
        """

    def place(self, piece: Piece, row: int) -> tuple[str, int]:
        """The file of a row of a piece, and the row's number in it, from 0 on. Called only for rows that failed."""


def full_bytes(full_rows: int) -> int:
    """How many bytes are enough for a piece for which so many rows are; 0 where few rows are wanted, whatever their bytes."""
    return FULL_BYTES if full_rows >= FULL_ROWS else 0


def share(total: int, least: int, most: int, full: int = 0) -> int:
    """How much of `total` a piece should have."""
    return max(least, min(most, max(math.ceil(total / PIECES), min(full, math.ceil(total / FEW_PIECES)))))
