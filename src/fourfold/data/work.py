"""What a worker does with one piece: all batches of it through all steps, and what comes out into one value.

piece ──> batches ──steps──> tables ──gather.fold──> value ─┐
             └─ raises ──> retried, taken apart ──> FailedRow ─┴──> PieceDone
"""

import secrets
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from fourfold.data.pieces import Piece
from fourfold.data.plan import Plan
from fourfold.data.poison import BadRow, part_of, run_apart
from fourfold.data.steps import Batch, is_of_plan
from fourfold.errors import FourfoldError
from fourfold.execute import current
from fourfold.execute.troubles import describe, safe_repr
from fourfold.fixed import Fixed

SHOWN_COLUMNS = 8
"""Columns of a failed row that a message shows."""


class FailedRow(Fixed):
    """A row that has no value, and why.

    Attributes:
        path: The file it is in; "the table" for one in memory.
        row: Its number in that file, from 0 on; -1: all rows that could not be read.
        kind: "raised", "crashed", "timed out" or "out of memory".
        error: The exception, None when it could not travel.
        error_type, message, traceback: What a person reads of it.
        shown: The row's first columns.
        data: The row as it was read, an Arrow table; None when it cannot be read.
    """

    _hidden = ("error", "traceback", "data")

    path: str
    row: int
    kind: str
    error: BaseException | None
    error_type: str
    message: str
    traceback: str
    shown: str
    data: Any = None


class Policy(NamedTuple):
    """What to do about a batch that raises.

    Attributes:
        first_only: The first failure ends the run.
        retries: How often a batch is run again.
        retry_on: For which exceptions.
    """

    first_only: bool
    retries: int
    retry_on: Any


class PieceDone(NamedTuple):
    """What came of one piece: what `gather` made of its tables, the rows that were read, and those without a value.

    `loader` is the worker that ran it, where that has loaded models; else None.
    """

    value: Any
    n_rows: int
    failed: list[FailedRow]
    elapsed_s: float
    loader: "Loader | None" = None


class Loader(NamedTuple):
    """A worker that has loaded the models of the steps, each once.

    Attributes:
        name: No other one has it.
        n_models: So many.
    """

    name: str
    n_models: int


class Gather(Protocol):
    """Makes one value of the tables of a piece, in a worker."""

    def open(self) -> None:
        """Called once in each worker, before the first piece.

        Raises:
            OptionError: It cannot be done there: the run ends, whatever is to be done about rows that fail.
        """

    def fold(self, piece: Piece, tables: Iterator[Any]) -> Any:
        """Go through all tables, and return what is to travel back."""


class RunPiece:
    """The function of a run: called with each piece. Built once per worker."""

    def __init__(self, plan: Plan, gather: Gather, policy: Policy) -> None:
        gather.open()
        self._prepared, self._gather, self._policy = plan.prepare(), gather, policy
        self._source = plan.source
        n_models = sum(step.model is not None for step in plan.steps)
        self._loader = Loader(secrets.token_hex(8), n_models) if n_models else None

    def __call__(self, piece: Piece) -> PieceDone:
        """Run one piece.

        Raises:
            Exception: What the first failing row raised, when that ends the run; or why the piece cannot be read.
        """
        began = time.perf_counter()
        work = _Work(self, piece)
        value = self._gather.fold(piece, work.tables())
        return PieceDone(value, work.n_rows, work.failed, time.perf_counter() - began, self._loader)

    def run(self, batch: Batch) -> Any:
        """Run a batch, again where the user wants that."""
        for attempt in range(self._policy.retries + 1):
            try:
                return self._prepared.run(batch)
            except Exception as error:
                if attempt == self._policy.retries or not isinstance(error, self._policy.retry_on):
                    raise
        raise AssertionError

    @property
    def policy(self) -> Policy:
        """What to do about a batch that raises."""
        return self._policy

    def batches(self, piece: Piece) -> Iterator[tuple[int, Batch]]:
        """What is read of a piece."""
        return self._prepared.batches(piece)

    def place(self, piece: Piece, row: int) -> tuple[str, int]:
        """The file and number of a row."""
        return self._source.place(piece, row)


class _Work:
    """One piece at work."""

    def __init__(self, owner: RunPiece, piece: Piece) -> None:
        self._owner, self._piece = owner, piece
        self.n_rows = 0
        self.failed: list[FailedRow] = []
        self._first: tuple[str, int] | None = None

    def _place(self, row: int) -> tuple[str, int]:
        """The file and number of a row. Where rows must be counted for that, that is done once."""
        if self._first is None:
            self._first = self._owner.place(self._piece, 0)
            current.renew()
        path, first = self._first
        return path, first + row

    def tables(self) -> Iterator[Any]:
        for first, batch in self._owner.batches(self._piece):
            current.renew()  # reading has a time of its own
            self.n_rows += batch.table.num_rows
            try:
                table = self._owner.run(batch)
            except Exception as error:
                if is_of_plan(error):
                    raise
                yield from self._apart(first, batch, error)
            else:
                if table is not None:
                    yield table

    def _apart(self, first: int, batch: Batch, error: Exception) -> Iterator[Any]:
        first_only = self._owner.policy.first_only
        try:
            for each in run_apart(self._again, batch, error, first_only):
                if not isinstance(each, BadRow):
                    if each is not None:
                        yield each
                    continue
                if first_only:
                    each.error.add_note(self._note(first + each.offset, part_of(batch, each.offset, 1).table))
                    raise each.error
                self.failed.append(self._failed(first + each.offset, part_of(batch, each.offset, 1).table, each.error))
        except Exception as inner:
            if inner is error and not getattr(error, "__notes__", None):
                path, row = self._place(first)
                error.add_note(
                    f"fourfold: in rows {row} to {row + batch.table.num_rows - 1} of {path}: none of them fails alone"
                )
            raise

    def _again(self, batch: Batch) -> Any:
        current.renew()
        return self._owner.run(batch)

    def _note(self, at: int, row: Any) -> str:
        path, number = self._place(at)
        return f"fourfold: row {number} of {path}: {shown(row)}"

    def _failed(self, at: int, row: Any, error: Exception) -> FailedRow:
        path, number = self._place(at)
        trouble = describe(error, 0, None)
        travels = error if isinstance(error, FourfoldError) or _can_travel(error) else None
        return FailedRow(
            path, number, "raised", travels, trouble.error_type, trouble.message, trouble.traceback, shown(row), alone(row)
        )


def _can_travel(error: BaseException) -> bool:
    from fourfold.execute.troubles import pickled

    error.__traceback__ = None
    return pickled(error) is not None


def alone(row: Any) -> Any:
    """A table of one row without the buffers of the batch that it was cut from."""
    import pyarrow as pa

    return pa.table(row.take([0]).combine_chunks()) if row.num_columns else row


def shown(row: Any) -> str:
    """The first columns of a table of one row, for messages."""
    some = row.select(row.column_names[:SHOWN_COLUMNS]).to_pylist()
    text = safe_repr(some[0] if some else {})
    return text if row.num_columns <= SHOWN_COLUMNS else f"{text} and {row.num_columns - SHOWN_COLUMNS} more columns"


class Tables:
    """Gathers the tables themselves."""

    def open(self) -> None:
        """It needs nothing."""

    def fold(self, piece: Piece, tables: Iterator[Any]) -> list[Any]:
        """All of them."""
        return list(tables)


class Count:
    """Gathers how many rows there are."""

    def open(self) -> None:
        """It needs nothing."""

    def fold(self, piece: Piece, tables: Iterator[Any]) -> int:
        """Their number."""
        return sum(table.num_rows for table in tables)
