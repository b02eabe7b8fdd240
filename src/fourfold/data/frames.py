"""Frames that live in a cluster already: their rows are not brought here, the steps go there.

    a DataFrame of Spark   mapInArrow         ┐
    a DataFrame of Dask    map_partitions     ├── FramePass: all steps on each batch ──> a lazy frame of the same kind
    a Dataset of Ray       map_batches        ┘

The cluster runs, retries and writes; fourfold must be installed where its workers are.
"""

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from fourfold.data.kinds import as_table
from fourfold.data.poison import BadRow, part_of, run_apart
from fourfold.data.schema import fitted
from fourfold.data.steps import Apply, Batch, Step, concatenated, is_of_plan
from fourfold.data.work import shown

SAMPLE_ROWS = 20
"""Rows on which the steps are run once here, when only that tells the columns that they make. Fewer: more often a type is not
seen. More: whoever defines a step waits longer."""

PREPARED = 8
"""Passes of which a worker keeps what it has built. Fewer: a job of many steps builds again. More: models stay in memory."""

_prepared: dict[str, list[Apply]] = {}
"""What a worker process has prepared, by pass, the newest last: clusters unpickle a function for each task."""


class FramePass:
    """All steps on one batch, wherever it is.

    Args:
        steps: What is done.
        schema: What must come out; None when it is not known yet.
    """

    def __init__(self, steps: Sequence[Step], schema: Any = None) -> None:
        self._steps, self.schema, self._key = tuple(steps), schema, uuid.uuid4().hex

    def __call__(self, table: Any) -> Any:
        """Run a batch.

        Raises:
            Exception: What the first failing row raised, with its content in a note.
        """
        found = self._run(Batch(as_table(table, "the frame")))
        return found if self.schema is None else fitted(found, self.schema)

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same for record batches, as Spark gives them."""
        for batch in batches:
            yield from self(batch).to_batches()

    def _run(self, batch: Batch) -> Any:
        try:
            return self._applied(batch)
        except Exception as error:
            if is_of_plan(error):
                raise
            tables = []
            for each in run_apart(self._applied, batch, error, first_only=True):
                if isinstance(each, BadRow):
                    each.error.add_note(f"fourfold: the row is {shown(part_of(batch, each.offset, 1).table)}")
                    raise each.error from None
                tables.append(each)
            return concatenated(tables)

    def _applied(self, batch: Batch) -> Any:
        if self._key not in _prepared:
            while len(_prepared) >= PREPARED:
                _prepared.pop(next(iter(_prepared)), None)
            _prepared[self._key] = [step.prepare() for step in self._steps]
        for apply in _prepared[self._key]:
            if not batch.table.num_rows and self.schema is not None:
                return self.schema.empty_table()
            batch = apply(batch)
        return batch.table if batch.table.num_rows or self.schema is None else self.schema.empty_table()


class FrameKind(Protocol):
    """One kind of frame. It imports its library inside its methods."""

    name: str

    def schema(self, frame: Any) -> Any:
        """The Arrow schema of a frame, without running it."""

    def sample(self, frame: Any, n_rows: int) -> Any:
        """The first rows, as an Arrow table: this runs a job."""

    def map(self, frame: Any, run: FramePass) -> Any:
        """A lazy frame of the same kind, whose batches went through `run`; its schema is known."""


class OnSpark:
    """A DataFrame of Spark, Classic or Connect."""

    name = "a DataFrame of Spark"

    def schema(self, frame: Any) -> Any:
        from pyspark.sql.pandas.types import to_arrow_schema

        return _usual(to_arrow_schema(frame.schema))

    def sample(self, frame: Any, n_rows: int) -> Any:
        return as_table(frame.limit(n_rows).toArrow(), self.name)

    def map(self, frame: Any, run: FramePass) -> Any:
        from pyspark.sql.pandas.types import from_arrow_schema

        return frame.mapInArrow(run.batches, from_arrow_schema(run.schema))


class OnDask:
    """A DataFrame of Dask."""

    name = "a DataFrame of Dask"

    def schema(self, frame: Any) -> Any:
        return as_table(frame._meta, self.name).schema

    def sample(self, frame: Any, n_rows: int) -> Any:
        return as_table(frame.head(n_rows, npartitions=-1), self.name)

    def map(self, frame: Any, run: FramePass) -> Any:
        meta = run.schema.empty_table().to_pandas()
        return frame.map_partitions(_of_pandas, run, meta=meta)


def _of_pandas(part: Any, run: FramePass) -> Any:
    return run(part).to_pandas()


class OnRay:
    """A Dataset of Ray."""

    name = "a Dataset of Ray"

    def schema(self, frame: Any) -> Any:
        import pyarrow as pa

        found = frame.schema()
        return _usual(pa.schema(list(zip(found.names, found.types, strict=True))))

    def sample(self, frame: Any, n_rows: int) -> Any:
        import pyarrow as pa

        batches = [*frame.limit(n_rows).iter_batches(batch_format="pyarrow")]
        return as_table(pa.concat_tables(batches), self.name) if batches else self.schema(frame).empty_table()

    def map(self, frame: Any, run: FramePass) -> Any:
        return frame.map_batches(run, batch_format="pyarrow", zero_copy_batch=True)


def _usual(schema: Any) -> Any:
    return as_table(schema.empty_table(), "the frame").schema


def frame_kind_of(obj: Any) -> FrameKind | None:
    """What kind of cluster's frame this is, by where its class is from; None for anything else."""
    for each in type(obj).__mro__:
        module = each.__module__
        if each.__name__ == "DataFrame" and module.startswith("pyspark.sql"):
            return OnSpark()
        if each.__name__ in ("DataFrame", "FrameBase") and module.startswith(("dask.dataframe", "dask_expr")):
            return OnDask()
        if each.__name__ == "Dataset" and module.startswith("ray.data"):
            return OnRay()
    return None
