"""The kinds of table that a batch function may take and give: everything is an Arrow table in between.

arrow ──as_kind──> pandas | polars | arrow | numpy | pylist ──> the function of the user ──> any of these ──as_table──> arrow
"""

import sys
from collections.abc import Mapping
from types import GeneratorType
from typing import Any, Literal, get_args

from fourfold.data.sparse import check_dense
from fourfold.errors import MissingExtra, OptionError

Kind = Literal["pandas", "polars", "arrow", "numpy", "pylist"]
KINDS: tuple[str, ...] = get_args(Kind)


def check_kind(name: str, kind: Any) -> str:
    """The kind of table that the argument `name` asks for.

    Raises:
        OptionError: There is no such kind.
        MissingExtra: Its package is not installed.
    """
    if kind not in KINDS:
        raise OptionError(f"{name}={kind!r} is not known. Choices: {', '.join(KINDS)}")
    package = {"pandas": "pandas", "polars": "polars", "numpy": "numpy"}.get(kind)
    if package is not None:
        from importlib.util import find_spec

        if find_spec(package) is None:
            raise MissingExtra(f"{name}={kind!r} needs the package {package}, which is not installed: pip install {package}")
    return str(kind)


IMPORTS_OF = {"pandas": ("pandas",), "polars": ("polars",), "arrow": (), "numpy": ("numpy",), "pylist": ()}
"""What is imported to make a table of a kind."""


def kind_of(obj: Any) -> str | None:
    """The kind of a table of the user, None when it is no table of a known kind."""
    for package, name in (("pandas", "DataFrame"), ("polars", "DataFrame")):
        if package in sys.modules and isinstance(obj, getattr(sys.modules[package], name)):
            return package
    if "pyarrow" in sys.modules:
        import pyarrow as pa

        if isinstance(obj, pa.Table | pa.RecordBatch):
            return "arrow"
    if isinstance(obj, list) and all(isinstance(row, Mapping) for row in obj):
        return "pylist"
    return None


def as_kind(table: Any, kind: str) -> Any:
    """An Arrow table as the kind of table that the user asked for.

    "pylist" is a list of dicts, "numpy" a dict of arrays: a column of lists of one length is an array of two dimensions, and
    numbers with nulls are floats with NaN.

    Raises:
        OptionTypeError: A column of it is sparse.
    """
    check_dense(table.schema, "a function of yours")
    if kind == "pandas":
        return _frame(table)
    if kind == "polars":
        import polars

        return polars.from_arrow(table)
    if kind == "numpy":
        return {name: _array(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    if kind == "pylist":
        return table.to_pylist()
    return table


def as_table(obj: Any, what: str) -> Any:
    """What a function of the user gave, as an Arrow table.

    Args:
        obj: A table of any kind, a dict of columns, a list of dicts, anything with `__arrow_c_stream__`, or a generator.
        what: Gave it, for messages.

    Raises:
        TypeError: It is none of these.
    """
    import pyarrow as pa

    if isinstance(obj, GeneratorType):
        parts = [as_table(each, what) for each in obj]
        if not parts:
            raise TypeError(f"{what} gave a generator of no table: for no rows, give a table without rows")
        return pa.concat_tables(parts, promote_options="permissive")
    table = _table(obj, what)
    twice = [name for name in dict.fromkeys(table.column_names) if table.column_names.count(name) > 1]
    if twice:
        raise ValueError(f"{what} gave more than one column of the name {twice[0]!r}")
    return _plain(table)


def _table(obj: Any, what: str) -> Any:
    import pyarrow as pa

    kind = kind_of(obj)
    if isinstance(obj, pa.RecordBatch):
        return pa.table(obj)
    if kind == "pandas":
        # One thread: to start some for each batch takes as long as they save, and in workers there is one core for each.
        return pa.Table.from_pandas(_without_index(obj), preserve_index=False, nthreads=1)
    if kind == "arrow":
        return obj
    if kind == "polars":
        return obj.to_arrow()
    if kind == "pylist":
        return table_of_rows(obj)
    if isinstance(obj, Mapping):
        return pa.table({str(name): as_column(values) for name, values in obj.items()})
    if hasattr(obj, "__arrow_c_stream__"):
        try:
            return pa.table(obj)
        except pa.ArrowInvalid as error:  # as of a Series, unless it is of records
            raise TypeError(
                f"{what} gave a {type(obj).__name__}, which is a column and no table: give it a name, to_frame(name), or add "
                "it to the batch, assign(name=…)"
            ) from error
    raise TypeError(
        f"{what} gave {_described(obj)}, which is no table: give a DataFrame, an Arrow table, a dict of columns or a "
        "list of dicts"
    )


def _described(obj: Any) -> str:
    return "None" if obj is None else f"a {type(obj).__module__}.{type(obj).__qualname__}".replace("a builtins.", "a ")


def table_of_rows(rows: Any) -> Any:
    """An Arrow table of dicts, with the columns of all of them in the order in which they first come."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({str(name): pa.array([row.get(name) for row in rows]) for name in names})


def _without_index(frame: Any) -> Any:
    """A DataFrame whose index has become columns where it has names; without them it only numbers the rows."""
    return frame.reset_index(drop=all(name is None for name in frame.index.names))


EXACT = 1 << 53
"""Integers up to here are exact as 64-bit floats."""


def _frame(table: Any) -> Any:
    """A DataFrame. pandas has floats for integers with nulls, which is exact up to EXACT; larger ones stay integers."""
    frame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if _is_large(column):
            frame[name] = column.to_pandas(types_mapper=_nullable)
    return frame


def _is_large(column: Any) -> bool:
    """Whether it has integers and nulls, and floats would not do."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_integer(column.type) or not column.null_count or column.null_count == len(column):
        return False
    ends = pc.min_max(column).as_py()
    return bool(ends["min"] < -EXACT or ends["max"] > EXACT)


def _nullable(type_: Any) -> Any:
    import pandas as pd

    return pd.api.types.pandas_dtype(str(type_).replace("uint", "UInt").replace("int", "Int"))


def as_column(values: Any) -> Any:
    """A column of one array or list; rows of an array of two dimensions become lists of one length."""
    import numpy as np
    import pyarrow as pa

    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if not isinstance(values, np.ndarray):
        return pa.array(values)
    if values.ndim <= 1:
        return pa.array(np.atleast_1d(values))
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def _array(column: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # a column of no rows has no chunk
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
    if pa.types.is_fixed_size_list(whole.type) and not whole.null_count:
        inner = _array(pa.chunked_array([whole.flatten()]))
        return inner.reshape(len(whole), whole.type.list_size, *inner.shape[1:])
    array = whole.to_numpy(zero_copy_only=False)
    return array if array.flags.writeable else np.array(array)


def _plain(table: Any) -> Any:
    """A table without what only pandas knows about it, and with one type where kinds of tables have several for the same."""
    import pyarrow as pa

    fields = [field.with_type(_usual(field.type)) for field in table.schema]
    schema = pa.schema([field.remove_metadata() for field in fields])
    return table.replace_schema_metadata(None) if table.schema.equals(schema, check_metadata=True) else table.cast(schema)


def _usual(type_: Any) -> Any:
    """Batches are small: no text of theirs needs offsets of 64 bits. Polars and pandas use them, files and JSON do not."""
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        return pa.dictionary(pa.int32(), _usual(type_.value_type))
    if pa.types.is_large_list(type_):
        return pa.list_(_usual(type_.value_type))
    if type_ in (pa.large_string(), pa.string_view()):
        return pa.string()
    if type_ in (pa.large_binary(), pa.binary_view()):
        return pa.binary()
    return type_
