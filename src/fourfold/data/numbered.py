"""A source whose rows nobody has counted, with the numbers of its rows: one pass over it, when they are first needed."""

from collections.abc import Iterator, Sequence
from typing import Any

from fourfold.data.pieces import FULL_ROWS, MIN_ROWS, Piece, TableSource
from fourfold.data.plan import Plan
from fourfold.data.running import Run
from fourfold.data.work import Count


class Numbered:
    """See `TableSource`: the same rows as `source`, and each piece knows how many come before it."""

    def __init__(self, source: TableSource) -> None:
        self._source = source
        self.schema = source.schema
        self.n_rows: int | None = None
        self.only_here = source.only_here
        self._pieces: list[Piece] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Workers are handed the pieces."""
        return {**self.__dict__, "_pieces": None}

    def pieces(self, least_rows: int = MIN_ROWS, full_rows: int = FULL_ROWS, where: Any = None) -> list[Piece]:
        """All of the source, counted: on the engine of `using`, or of this machine."""
        if self._pieces is None:
            run = Run(Plan(self._source, ()), Count(), {}, "count rows")
            at, numbered = 0, []
            with run.pieces_done() as pieces:
                for piece, done in pieces:
                    numbered.append(piece._replace(first=at))
                    at += done.value
            self._pieces, self.n_rows = numbered, at
        return self._pieces

    def read(self, piece: Piece, columns: Sequence[str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        """As the source."""
        return self._source.read(piece, columns, batch_rows)

    def place(self, piece: Piece, row: int) -> tuple[str, int]:
        """As the source."""
        return self._source.place(piece, row)
