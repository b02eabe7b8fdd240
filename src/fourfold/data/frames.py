"""Frames that live in a cluster already: their rows are not brought here, the steps go there.

    a DataFrame of Spark   mapInArrow         ┐
    a DataFrame of Dask    map_partitions     ├── FramePass: all steps on each batch ──> a lazy frame of the same kind
    a Dataset of Ray       map_batches        ┘                                     (frame_kinds.py has the three)

The cluster runs, retries and writes; fourfold must be installed where its workers are.
"""

import functools
import hashlib
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from fourfold.data.kinds import as_table
from fourfold.data.pieces import Piece
from fourfold.data.plan import BATCH_ROWS
from fourfold.data.poison import BadRow, part_of, run_apart
from fourfold.data.schema import cast_column, common, fitted
from fourfold.data.staying import Members
from fourfold.data.steps import Apply, Batch, Step, concatenated, is_of_plan, parts_of
from fourfold.data.work import Gather, shown

SAMPLE_ROWS = 20
"""Rows on which the steps are run once here, when only that tells the columns that they make. Fewer: more often a type is not
seen. More: whoever defines a step waits longer."""

PREPARED = 8
"""Passes of which a worker keeps what it has built. Fewer: a job of many steps builds again. More: models stay in memory."""


class _Prepared(threading.local):
    """What a thread of a worker process has built, by pass, the newest last: clusters unpickle a function for each task.

    A model or a class of the user need not bear two calls at once, and workers of Dask have several threads.
    """

    def __init__(self) -> None:
        self.passes: dict[str, list[Apply]] = {}

    def of(self, key: str, steps: Callable[[], Sequence[Step]]) -> list[Apply]:
        """What it has built of the pass with this key; it builds it first when there is none."""
        if key not in self.passes:
            while len(self.passes) >= PREPARED:
                del self.passes[next(iter(self.passes))]
            self.passes[key] = [step.prepare() for step in steps()]
        return self.passes[key]


_prepared = _Prepared()


class Steps(NamedTuple):
    """The steps of a pass, as they are or as bytes that have arrived.

    Attributes:
        key: Of what a worker has built of them.
        unpack: Gives them.
    """

    key: str
    unpack: Callable[[], Sequence[Step]]

    @classmethod
    def here(cls, steps: Sequence[Step]) -> "Steps":
        """These steps: nobody has built anything of them before."""
        return cls(uuid.uuid4().hex, lambda: tuple(steps))

    @classmethod
    def arrived(cls, packed: bytes) -> "Steps":
        """Steps that have travelled: a worker that has built the same ones before need not load their models again."""
        return cls(hashlib.blake2b(packed).hexdigest(), lambda: pickle.loads(packed))

    def packed(self) -> bytes:
        """What travels."""
        import cloudpickle

        return bytes(cloudpickle.dumps(self.unpack(), protocol=5))


class FramePass:
    """All steps on one batch, wherever it is.

    Args:
        steps: What is done.
        before: The schema of the frame: some clusters give the same column other types from batch to batch, such as a time
            in the zone of a session, or nothing but nulls.
        schema: What must come out; None when it is not known yet.
    """

    def __init__(self, steps: Steps, before: Any, schema: Any = None) -> None:
        self._steps, self.before, self.schema = steps, before, schema

    def giving(self, schema: Any) -> "FramePass":
        """The same, with this schema for what comes out."""
        return FramePass(self._steps, self.before, schema)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self._steps.packed(), self.before, self.schema)

    def __call__(self, table: Any) -> Any:
        """Run a batch, in parts of at most BATCH_ROWS.

        Raises:
            Exception: What the first failing row raised, with its content in a note.
        """
        found = self._found(table)
        return concatenated(found) if self.schema is None else _as_one(found, _with_types_seen(self.schema, found, _varies))

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same for record batches, as Spark gives them: their columns have places, whatever they are called there.

        It takes no other types than it was told.
        """
        for batch in batches:
            found = self._found(batch.rename_columns(self.before.names))
            yield from _as_one(found, _with_types_seen(self.schema, found, lambda known, _: _is_unknown(known))).to_batches()

    def tables(self, table: Any) -> Iterator[Any]:
        """What comes out of a batch, one part after the other, with the types that it has there."""
        for part in parts_of(self._as_before(as_table(table, "the frame")), BATCH_ROWS):
            yield self._run(Batch(part))

    def _found(self, table: Any) -> list[Any]:
        return list(self.tables(table))

    def _as_before(self, table: Any) -> Any:
        """The batch with the types of the frame, except those that vary."""
        if table.schema.equals(self.before):
            return table
        for number, field in enumerate(table.schema):
            at = self.before.get_field_index(field.name)
            known = field.type if at < 0 else self.before.field(at).type
            wanted = field.type if _varies(known, field.type) else known
            table = table.set_column(number, field.name, cast_column(table.column(number), field.name, wanted))
        return table

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
        for apply in _prepared.of(*self._steps):
            if not batch.table.num_rows and self.schema is not None:
                return self.schema.empty_table()
            batch = apply(batch)
        return batch.table if batch.table.num_rows or self.schema is None else self.schema.empty_table()


def _as_one(tables: Sequence[Any], schema: Any) -> Any:
    import pyarrow as pa

    return pa.concat_tables(fitted(each, schema) for each in tables)


def _is_unknown(known: Any) -> bool:
    """Whether nobody knows the type of a column: only nulls of it were seen."""
    import pyarrow as pa

    return bool(pa.types.is_null(known))


def _varies(known: Any, seen: Any) -> bool:
    """Whether a column that is known by one type may have another one in a batch.

    Decimals of Python have as many digits as they need, which the first rows do not tell of all.
    """
    import pyarrow as pa

    return _is_unknown(known) or bool(pa.types.is_decimal(known) and pa.types.is_decimal(seen))


def _with_types_seen(schema: Any, tables: Sequence[Any], may_vary: Callable[[Any, Any], bool]) -> Any:
    """The schema, with the types that these tables have for columns whose types may vary."""
    import pyarrow as pa

    for number, field in enumerate(schema):
        types = [each.schema.field(field.name).type for each in tables if field.name in each.schema.names]
        seen = [type_ for type_ in types if not pa.types.is_null(type_) and may_vary(field.type, type_)]
        if seen:
            widest = functools.reduce(functools.partial(common, field.name), seen)
            schema = schema.set(number, field.with_type(widest))
    return schema


def _arrived(packed: bytes, before: Any, schema: Any) -> FramePass:
    return FramePass(Steps.arrived(packed), before, schema)


class FrameKnown:
    """What is known of a partition without its rows, pickled.

    Args:
        known: Gives the value of the partition with a number; None where this machine cannot.
    """

    def __init__(self, known: Callable[[int], Any]) -> None:
        self._known = known

    def __call__(self, number: int) -> bytes:
        """The value; nothing where this machine does not know it."""
        import cloudpickle

        value = self._known(number)
        return b"" if value is None else bytes(cloudpickle.dumps(value, protocol=5))


class FrameFold:
    """All steps on the rows of one partition, and one value of what comes out, pickled.

    Args:
        run: The steps.
        gather: Makes the value: see `fourfold.data.work.Gather`.
        known: None, or what is asked before.
    """

    def __init__(self, run: FramePass, gather: Gather, known: FrameKnown | None = None) -> None:
        self.run, self._gather, self._known = run, gather, known

    def __call__(self, number: int, batches: Iterator[Any]) -> bytes:
        """The value of the partition with this number."""
        import cloudpickle

        if self._known is not None and (known := self._known(number)):
            for _ in batches:  # Spark wants them to be taken
                pass
            return known
        tables = (table for batch in batches for table in self.run.tables(batch) if table.num_rows)
        return bytes(cloudpickle.dumps(self._gather.fold(Piece(number, "", ()), tables), protocol=5))


class FrameKind(Protocol):
    """One kind of frame. It imports its library inside its methods."""

    name: str

    def schema(self, frame: Any) -> Any:
        """The Arrow schema of a frame, without running it where the frame can tell.

        Raises:
            OptionError: Nobody can tell.
        """

    def sample(self, frame: Any, n_rows: int) -> Any:
        """The first rows, as an Arrow table: this runs a job."""

    def select(self, frame: Any, columns: Sequence[str]) -> Any:
        """The frame with these of its columns, by its own means: those who read files read no others."""

    def map(self, frame: Any, run: FramePass) -> Any:
        """A lazy frame of the same kind, whose batches went through `run`; its schema is known."""

    def settled(self, frame: Any) -> Any:
        """The frame with partitions that stay as they are, when it is to be gone through more than once."""

    def gather(self, frame: Any, fold: FrameFold) -> list[bytes]:
        """What `fold` makes of each partition, in the order of partitions: this runs a job."""

    def engine(self, frame: Any) -> Any:
        """What runs calls where the frame lives: an `engine=`."""

    def members(self, frame: Any, n_partitions: int) -> Members | None:
        """Tasks that stay, for questions about what machines know; None where none come."""

    def known(self, frame: Any, known: FrameKnown, n_partitions: int) -> list[bytes]:
        """What machines of the cluster know of partitions without their rows, b"" of others; none where rows cost no job."""
