"""What is done with the rows of a dataset, one after the other, in one pass over each batch.

A step is what the user wrote, and travels; `prepare` makes of it what a worker calls for each batch. A batch is an Arrow
table, and the numbers of its rows among all rows of the dataset while those are known.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from fourfold.data.kinds import IMPORTS_OF, as_kind, as_table
from fourfold.data.predicates import check_expression, columns_of_expression
from fourfold.data.schema import SchemaConflict, fitted
from fourfold.errors import InitFailed, OptionError
from fourfold.execute import current
from fourfold.execute.chunk import is_worker_class
from fourfold.system.machine import user_name_of


class Batch(NamedTuple):
    """Rows on their way through the steps. `numbers` is None, or an array of the rows' numbers in the dataset."""

    table: Any
    numbers: Any = None

    def filtered(self, mask: Any) -> "Batch":
        """Only the rows where the mask, an array of booleans, is true."""
        numbers = self.numbers
        return Batch(self.table.filter(mask), None if numbers is None else numbers[mask.to_numpy(zero_copy_only=False)])


Apply = Callable[[Batch], Batch]


class Loadable(Protocol):
    """A model, before it is loaded.

    Attributes:
        digest: What `look` has said last, in whichever process, or anything new where none was asked; "" before that. It is
            part of what a recorded run is, and of the name by which workers of clusters know what they have loaded.
    """

    digest: str

    @property
    def is_hidden(self) -> bool:
        """Whether it is a file that is not on this machine: then only workers may see it."""

    def look(self) -> str:
        """A text that is another one for another model, as its file is now; "" of what is no file and travels itself.

        Raises:
            OptionError: The file is not on this machine, or cannot be read.
        """

    def check_here(self) -> None:
        """Called before a run whose workers are on this machine: what can be said of its file without loading it.

        Raises:
            OptionError: It is not there, or no model.
            MissingExtra: What loads it is not installed.
        """


class Step(Protocol):
    """One step of a dataset."""

    @property
    def title(self) -> str:
        """What it is called in messages."""

    keeps_rows: bool
    """Whether each row that goes in comes out, or not at all, and still is that row."""
    most_rows: int | None
    """The most rows that are taken at once; None when it does not matter."""
    least_rows: int
    """Rows that it wants to see together; 0 when it does not matter."""

    @property
    def model(self) -> "Loadable | None":
        """What `prepare` loads, once in each worker; None when there is no model in it."""

    @property
    def where(self) -> Any:
        """None, or an expression of Arrow that is true of each row that it keeps: others need not be read."""

    def schema(self, before: Any) -> Any:
        """The schema that it makes of this one; None when only a run can tell.

        Raises:
            OptionError: It cannot work on such a table.
        """

    def looks_at(self, before: Any) -> Sequence[str] | None:
        """The columns of this schema that tell which rows it keeps; None when it may do anything with any column.

        Where it does not, columns that nobody looks at are not read, and neither are rows that a later step leaves out.
        """

    def prepare(self) -> Apply:
        """What one worker calls for each batch. Called once per worker, and again when one takes another's place."""


def check_columns(columns: Sequence[str], schema: Any, what: str) -> None:
    """Raise OptionError unless the schema, when it is known, has these columns."""
    missing = [name for name in columns if schema is not None and name not in schema.names]
    if missing:
        from fourfold.options import did_you_mean

        raise OptionError(
            f"{what}: there is no column {missing[0]!r}{did_you_mean(missing[0], schema.names)}. Columns: "
            f"{', '.join(schema.names)}"
        )


def is_of_plan(error: BaseException) -> bool:
    """Whether an error that a batch raised is about the steps: no row is to blame, and no other batch would do better."""
    return bool(getattr(error, "is_of_plan", False))


class Select:
    """Some columns, in this order."""

    title = "select"
    keeps_rows = True
    most_rows: int | None = None
    least_rows = 0
    model = None
    where = None

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = list(columns)

    def schema(self, before: Any) -> Any:
        import pyarrow as pa

        check_columns(self.columns, before, "select")
        return None if before is None else pa.schema([before.field(name) for name in self.columns])

    def looks_at(self, before: Any) -> Sequence[str] | None:
        return ()

    def prepare(self) -> Apply:
        return self._apply

    def _apply(self, batch: Batch) -> Batch:
        check_columns(self.columns, batch.table.schema, "select")
        return Batch(batch.table.select(self.columns), batch.numbers)


class Filter:
    """The rows that fulfil a condition: an expression of Arrow, or a function that gives a boolean for each row of a batch."""

    title = "filter"
    keeps_rows = True
    most_rows: int | None = None
    least_rows = 0
    model = None

    def __init__(self, condition: Any, kind: str) -> None:
        self.condition, self.kind = condition, kind

    @property
    def where(self) -> Any:
        """See `Step`."""
        import pyarrow.compute as pc

        return self.condition if isinstance(self.condition, pc.Expression) else None

    @property
    def imports(self) -> tuple[str, ...]:
        """See `fourfold.system.imports`."""
        return ("pyarrow.dataset",) if self.where is not None else IMPORTS_OF[self.kind]

    def schema(self, before: Any) -> Any:
        if before is not None and self.where is not None:
            check_expression(self.where, before)
        return before

    def looks_at(self, before: Any) -> Sequence[str] | None:
        return None if self.where is None else columns_of_expression(self.where, before)

    def prepare(self) -> Apply:
        return self._apply

    def _apply(self, batch: Batch) -> Batch:
        return batch.filtered(self._mask(batch.table))

    def _mask(self, table: Any) -> Any:
        import pyarrow.compute as pc

        if self.where is not None:
            check_expression(self.where, table.schema)
            mask = _evaluated(table, self.where)
        else:
            batch = as_kind(table, self.kind)
            mask = _booleans(self.condition(batch), batch)
        if len(mask) != table.num_rows:
            raise ValueError(
                f"filter: {user_name_of(self.condition)} gave {len(mask)} booleans for a batch of {table.num_rows} rows"
            )
        return pc.fill_null(mask, False)


def _evaluated(table: Any, expression: Any) -> Any:
    """The value of an expression for each row."""
    import pyarrow as pa
    import pyarrow.dataset as pads

    column = pads.dataset(table).scanner(columns={"": expression}, use_threads=False).to_table().column(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.bool_())


def _booleans(values: Any, batch: Any) -> Any:
    """An array of booleans; a Series of pandas is taken by its index, as pandas does."""
    import pyarrow as pa

    if hasattr(values, "reindex") and hasattr(batch, "index") and len(values) == len(batch):
        values = values.reindex(batch.index)
    if hasattr(values, "to_arrow"):  # a Series of Polars
        values = values.to_arrow()
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_null(array.type):
        array = array.cast(pa.bool_())
    if not pa.types.is_boolean(array.type):
        raise TypeError(f"filter: the function gave {array.type}, and not one boolean for each row")
    return array


class MapBatches:
    """A function of the user, called with each batch as the kind of table that it wants.

    Args:
        fn: Takes a batch and gives a table of any kind; or a class that is built once per worker, and then called.
        init: The arguments of that class.
        kind: What it takes.
        most: None, or the most rows of one call.
        declared: None, or the schema of what it gives.
    """

    keeps_rows = False
    least_rows = 0
    model = None
    where = None

    def __init__(self, fn: Any, init: tuple[Any, ...], kind: str, most: int | None, declared: Any) -> None:
        self.fn, self.init, self.kind, self.most_rows, self.declared = fn, init, kind, most, declared

    @property
    def title(self) -> str:
        """The name of the function."""
        return user_name_of(self.fn)

    @property
    def imports(self) -> tuple[str, ...]:
        """See `fourfold.system.imports`."""
        return IMPORTS_OF[self.kind]

    def schema(self, before: Any) -> Any:
        return self.declared

    def looks_at(self, before: Any) -> Sequence[str] | None:
        return None

    def prepare(self) -> Apply:
        call = built(self.fn, self.init)

        def apply(batch: Batch) -> Batch:
            return Batch(concatenated([self._called(call, part) for part in parts_of(batch.table, self.most_rows)]))

        return apply

    def _called(self, call: Callable[[Any], Any], table: Any) -> Any:
        current.renew()  # a time limit is for a call, not for all of them
        given = as_table(call(as_kind(table, self.kind)), self.title)
        if self.declared is None:
            return given
        try:
            return fitted(given, self.declared)
        except SchemaConflict as error:
            raise SchemaConflict(f"{self.title} gave a batch that does not fit schema=: {error}", error.column) from error


def built(fn: Any, init: tuple[Any, ...]) -> Callable[[Any], Any]:
    """What to call for each batch: the function, or an instance of the class.

    Raises:
        InitFailed: The class raised.
    """
    if not is_worker_class(fn):
        call: Callable[[Any], Any] = fn
        return call
    try:
        call = fn(*init)
    except Exception as error:
        shown = ", ".join(map(repr, init))
        raise InitFailed(f"{fn.__qualname__}({shown}) raised {type(error).__name__}: {error}") from error
    return call


def parts_of(table: Any, most: int | None) -> list[Any]:
    """A table in parts of at most so many rows; one of no rows is one part."""
    if most is None or table.num_rows <= most:
        return [table]
    return [table.slice(at, most) for at in range(0, table.num_rows, most)]


def concatenated(tables: Sequence[Any]) -> Any:
    """Tables of the same columns as one, each column of the type that holds all."""
    import pyarrow as pa

    from fourfold.data.schema import unified

    tables = [table for table in tables if table.num_rows] or tables[:1]  # one without rows has no types to speak of
    if len(tables) == 1:
        return tables[0]
    schema = unified([table.schema for table in tables])
    return pa.concat_tables([fitted(table, schema) for table in tables])
