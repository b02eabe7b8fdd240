"""What `fourfold.scan` was given, as a source of rows."""

import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fourfold.addresses import Credentials
from fourfold.data.files import DataFile, find
from fourfold.data.keys import files_that_match, key_columns
from fourfold.data.kinds import as_table, kind_of
from fourfold.data.pieces import TableSource
from fourfold.data.predicates import can_be_evaluated, check_expression, columns_of_expression
from fourfold.data.steps import check_columns
from fourfold.data.text import dialect_of
from fourfold.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from fourfold.data.sources.lines import Lines
    from fourfold.data.sources.parquet import Parquet

_read: weakref.WeakSet[Any] = weakref.WeakSet()
"""Readers of record batches that were scanned: they have no more rows, and do not say so."""


class Reading(NamedTuple):
    """How a source is read, and which part of it is wanted. See `fourfold.scan`.

    Attributes:
        columns: None for all.
        where: None, or an expression: the condition of the first step.
    """

    format: str | None
    schema: Any
    storage: Credentials
    dialect: dict[str, Any]
    columns: Sequence[str] | None
    where: Any


def source_of(source: Any, reading: Reading) -> TableSource:
    """The source of its rows.

    Raises:
        OptionError: It cannot be one, or an option is not for it.
    """
    from fourfold.data.sources.in_memory import InMemory

    if isinstance(source, str | os.PathLike):
        source = [source]
    if isinstance(source, list | tuple) and source and all(isinstance(each, str | os.PathLike) for each in source):
        return _files([os.fspath(each) for each in source], reading)
    is_lazy = _is_lazy(source)
    if kind_of(source) is None and not is_lazy and not hasattr(source, "__arrow_c_stream__"):
        raise OptionTypeError(
            f"scan({type(source).__module__}.{type(source).__qualname__}): give a path, a list of paths, a table of "
            "pandas, Polars or Arrow, a list of dicts, or an object with __arrow_c_stream__"
        )
    if reading.format is not None or reading.schema is not None or reading.storage or reading.dialect:
        raise OptionError("format=, schema=, storage_options= and options of CSV are for files, and this is a table in memory")
    return InMemory(_collected(source, reading) if is_lazy else _table(source))


def _table(source: Any) -> Any:
    """A table in memory; a stream is read to its end.

    Raises:
        OptionError: It is a stream that was read before.
    """
    import pyarrow as pa

    if not isinstance(source, pa.RecordBatchReader):
        return as_table(source, "the source")
    if source in _read:
        raise OptionError(
            "this reader of record batches was scanned before, and has no rows any more: use the dataset of that scan again, "
            "or make a new reader"
        )
    _read.add(source)
    return as_table(source, "the source")


# ---- what is read when it is scanned ---------------------------------------------------------------------------------


def _is_lazy(source: Any) -> bool:
    polars, dataset = sys.modules.get("polars"), sys.modules.get("pyarrow.dataset")
    return (polars is not None and isinstance(source, polars.LazyFrame)) or (
        dataset is not None and isinstance(source, dataset.Dataset)
    )


def _collected(source: Any, reading: Reading) -> Any:
    """The rows of a LazyFrame of Polars or a Dataset of Arrow: its own engine reads no more columns of it than are wanted."""
    is_arrow = hasattr(source, "to_table")
    schema = source.schema if is_arrow else as_table(source.clear().collect(), "the source").schema
    check_columns(reading.columns or (), schema, "columns=")
    if reading.where is not None:
        check_expression(reading.where, schema)
    columns = _wanted(reading, schema)
    if is_arrow:
        return as_table(source.to_table(columns=columns, filter=reading.where), "the source")
    return as_table(source.select(columns).collect(engine="streaming"), "the source")


def _wanted(reading: Reading, schema: Any) -> list[str]:
    """The columns that are kept, and those that the condition looks at."""
    if reading.columns is None:
        return list(schema.names)
    looked = columns_of_expression(reading.where, schema) if reading.where is not None else ()
    return [name for name in schema.names if looked is None or name in reading.columns or name in looked]


# ---- files -----------------------------------------------------------------------------------------------------------


def _files(paths: list[str], reading: Reading) -> TableSource:
    files = find(paths, reading.format, reading.storage)
    kinds = {file.format: file for file in files}
    if len(kinds) > 1:
        one, other = [*kinds.values()][:2]
        raise OptionError(f"{one.path} is {one.format} and {other.path} is {other.format}: scan files of one format")
    if reading.dialect and "csv" not in kinds:
        raise OptionTypeError(f"{next(iter(reading.dialect))}= is for CSV, and {files[0].path} is {files[0].format}")
    keys = key_columns(files, reading.schema)
    some = files_that_match(files, keys, reading.where)
    source = _opened(some or files[:1], reading, keys)  # one of them tells the columns
    if len(some) == len(files):
        return source
    # Folders say nothing of rows when files have that column themselves; and what is missing may be in the others.
    is_said_twice = any(name in source.in_files.names for name in keys)
    is_missing = any(name not in source.schema.names for name in reading.columns or ())
    if is_said_twice or is_missing or not can_be_evaluated(reading.where, source.schema):
        return _opened(files, reading, keys)
    return source


def _opened(files: list[DataFile], reading: Reading, keys: Mapping[str, Any]) -> "Parquet | Lines":
    from fourfold.data.sources.lines import Lines
    from fourfold.data.sources.parquet import Parquet

    if files[0].format == "parquet":
        return Parquet(files, reading.storage, reading.schema, keys)
    return Lines(files, reading.storage, reading.schema, dialect_of(reading.dialect), keys)
