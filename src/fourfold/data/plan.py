"""What is done with each piece: read it, batch by batch, and take each batch through all steps in one pass.

piece ──read──> batch ──step──> batch ──step──> batch ──> table          a batch that raises is taken apart: see poison.py
"""

import functools
import logging
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fourfold.data.pieces import CALLS, FULL_ROWS, MIN_ROWS, Piece, TableSource
from fourfold.data.schema import SchemaConflict
from fourfold.data.sparse import check_dense
from fourfold.data.steps import Apply, Batch, Select, Step
from fourfold.errors import FourfoldError, MissingExtra, OptionError

BATCH_ROWS = 2 * FULL_ROWS
"""Rows of a batch when no step wants fewer: all of a piece that is full, and of a row group that is not cut because it has
less than twice as many. Smaller: more calls of the steps. Larger: more memory, and more rows are searched when one fails."""


WITH_ROWS_TOO = (FourfoldError, SchemaConflict, NameError, ImportError)
"""What a step raises that has nothing to do with how many rows there are: a column that is not there, a misspelt name."""


class Plan(NamedTuple):
    """A source, which of its columns are read, and the steps. It travels to each worker once.

    Attributes:
        batch_rows: The most rows that are taken through the steps at once.
        takes_sparse: What comes out may have sparse columns: who wants it knows them.
    """

    source: TableSource
    columns: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    batch_rows: int = BATCH_ROWS
    takes_sparse: bool = False

    def with_step(self, step: Step) -> "Plan":
        """The plan with one more step at its end.

        Raises:
            OptionError: The step cannot work on what comes before it.
        """
        step.schema(self.schema())
        plan = self._replace(steps=(*self.steps, step))
        return plan.narrowed(step.columns) if isinstance(step, Select) else plan

    def narrowed(self, wanted: Sequence[str]) -> "Plan":
        """The plan that reads no more columns than it must, for these to come out in this order."""
        looked = self._looked_at()
        if len(looked) < len(self.steps):
            return self  # a step may do anything
        steps = tuple(step for step in self.steps if not isinstance(step, Select))
        others = {name for names in looked for name in names} - {*wanted}
        columns = (*wanted, *(name for name in self.columns if name in others))
        return self._replace(columns=columns, steps=(*steps, Select(wanted)) if others and wanted else steps)

    def _looked_at(self) -> list[Sequence[str]]:
        """What each of the first steps looks at, up to one that may look at any column."""
        schema = self.read_schema()
        looked: list[Sequence[str]] = []
        for step in self.steps:
            names = step.looks_at(schema)
            if names is None:
                break
            looked.append(names)
        return looked

    def where(self) -> Any:
        """An expression that is true of all rows that come through the first steps; None when there is none to tell."""
        first = self.steps[: len(self._looked_at())]
        conditions = [step.where for step in first if step.where is not None]
        return functools.reduce(operator.and_, conditions) if conditions else None

    def read_schema(self) -> Any:
        """Of what is read."""
        import pyarrow as pa

        return pa.schema([self.source.schema.field(name) for name in self.columns])

    def schema(self) -> Any:
        """Of what comes out; None when only a run can tell."""
        schema = self.read_schema()
        for step in self.steps:
            schema = step.schema(schema)
        return schema

    def keeps_rows(self) -> bool:
        """Whether each row that comes out is one that was read."""
        return all(step.keeps_rows for step in self.steps)

    def pieces(self) -> Iterable[Piece]:
        """How the source is cut for these steps: where one takes few rows at once, each of them may take long."""
        fewest = min((step.most_rows for step in self.steps if step.most_rows is not None), default=FULL_ROWS)
        least = max((step.least_rows for step in self.steps), default=0)
        calls = CALLS * fewest
        return self.source.pieces(max(1, least, min(MIN_ROWS, calls)), min(FULL_ROWS, calls), self.where())

    def check_models(self) -> None:
        """Check those files of models that workers on this machine will load.

        Raises:
            OptionError: One is not there, or no model.
            MissingExtra: What loads it is not installed.
        """
        for step in self.steps:
            if step.model is not None:
                step.model.check_here()

    def of_no_rows(self) -> Any:
        """What comes out when there are no rows: columns, as far as the steps can tell, here."""
        import pyarrow as pa

        try:
            self.check_models()
        except (OptionError, MissingExtra) as error:  # only workers have it
            logging.getLogger("fourfold").warning("there are no rows, and so no columns: %s", error)
            return pa.table({})
        return self.prepare().of_no_rows()

    def prepare(self) -> "Prepared":
        """What one worker needs, once."""
        return Prepared(self, [step.prepare() for step in self.steps])


class Prepared:
    """A plan in a worker: instances are built, models loaded."""

    def __init__(self, plan: Plan, applies: Sequence[Apply]) -> None:
        self.plan, self._applies = plan, applies

    def batches(self, piece: Piece) -> Iterator[tuple[int, Batch]]:
        """What is read of a piece: the place in it of the first row of each batch, and the batch."""
        import numpy as np

        plan = self.plan
        for row, table in plan.source.read(piece, plan.columns, plan.batch_rows):
            if piece.rows is not None and row >= piece.rows[1]:
                return
            for begin, end in _wanted(row, row + table.num_rows, piece):
                numbers = None if piece.first is None else np.arange(piece.first + begin, piece.first + end)
                yield begin, Batch(table.slice(begin - row, end - begin), numbers)

    def run(self, batch: Batch) -> Any:
        """A batch through all steps: a table; None when no row was left before the last one.

        Functions and models are not called without rows: many cannot take that, and what they make of nothing has no types.
        """
        for apply in self._applies:
            if not batch.table.num_rows:
                return None
            batch = apply(batch)
        if not self.plan.takes_sparse:
            check_dense(batch.table.schema, "columns")
        return batch.table if batch.table.num_rows or not self._applies else None

    def of_no_rows(self) -> Any:
        """What the steps make of no rows: columns, as far as they can tell.

        Many functions and models cannot take a batch without rows. Then the table has no columns, and the log says why.

        Raises:
            Exception: What would have come with rows, too.
        """
        import numpy as np
        import pyarrow as pa

        batch = Batch(self.plan.read_schema().empty_table(), np.arange(0))
        for step, apply in zip(self.plan.steps, self._applies, strict=True):
            try:
                batch = apply(batch)
            except WITH_ROWS_TOO:
                raise
            except Exception as error:
                logging.getLogger("fourfold").warning(
                    "there are no rows, and so no columns: %s was asked for them with a batch of no rows, and raised %s: %s. "
                    "Perhaps it does so with rows, too. map_batches(…, schema=…) says the columns without asking",
                    step.title,
                    type(error).__name__,
                    error,
                )
                return pa.table({})
        check_dense(batch.table.schema, "columns")
        return batch.table


def _wanted(begin: int, end: int, piece: Piece) -> Iterator[tuple[int, int]]:
    """Which of the rows `[begin, end)` of a piece are to be run, as ranges."""
    first, last = piece.rows or (begin, end)
    begin, end = max(begin, first), min(end, last)
    for out in sorted(each for each in piece.without if begin <= each < end):
        if begin < out:
            yield begin, out
        begin = out + 1
    if begin < end:
        yield begin, end
