"""A table in memory: its buffers travel with the plan, once per worker, and pieces are ranges of its rows."""

from collections.abc import Iterator, Sequence
from typing import Any

from fourfold.data.pieces import FULL_ROWS, MAX_BYTES, MAX_ROWS, MIN_BYTES, MIN_ROWS, Piece, full_bytes, share


class InMemory:
    """An Arrow table. See `TableSource`."""

    only_here = False

    def __init__(self, table: Any) -> None:
        self._table = table
        self.schema = table.schema
        self.n_rows: int | None = table.num_rows

    def pieces(self, least_rows: int = MIN_ROWS, full_rows: int = FULL_ROWS, where: Any = None) -> list[Piece]:
        """Ranges of rows."""
        n_rows = self._table.num_rows
        if not n_rows:
            return []
        row_bytes = max(1, self._table.nbytes // n_rows)
        rows = min(
            share(n_rows, least_rows, MAX_ROWS, full_rows),
            max(1, share(self._table.nbytes, MIN_BYTES, MAX_BYTES, full_bytes(full_rows)) // row_bytes),
        )
        return [
            Piece(number, "", (first, min(first + rows, n_rows)), first=first)
            for number, first in enumerate(range(0, n_rows, rows))
        ]

    def read(self, piece: Piece, columns: Sequence[str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        """Slices, without a copy."""
        first, end = piece.part
        table = self._table.select(list(columns))
        for row in range(first, end, batch_rows):
            yield row - first, table.slice(row, min(batch_rows, end - row))

    def place(self, piece: Piece, row: int) -> tuple[str, int]:
        """The row of the table."""
        return "the table", piece.part[0] + row
