"""`fourfold.scan`: a dataset of whatever has rows."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fourfold.addresses import Credentials
from fourfold.data.files import find
from fourfold.data.frames import frame_kind_of
from fourfold.data.kinds import as_table, kind_of
from fourfold.data.pieces import TableSource
from fourfold.data.plan import Plan
from fourfold.data.schema import declared
from fourfold.data.text import dialect_of
from fourfold.errors import MissingExtra, OptionError, OptionTypeError
from fourfold.workloads.dataset import Dataset
from fourfold.workloads.frame import Frame


def scan(
    source: Any,
    columns: Sequence[str] | None = None,
    filter: Any = None,
    *,
    format: str | None = None,
    schema: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    **reading: Any,
) -> Any:
    """A `Dataset` of the rows of files, or of a table in memory. Reads what it must know of them, and no rows.

    A frame that lives in a cluster (a DataFrame of Spark or Dask, a Dataset of Ray) gives a `Frame`: its steps run there.

    Args:
        source: A path, a glob, a folder or a URL of fsspec (s3, gs, hdfs, …), or a list of these: Parquet, CSV, JSON lines or
            text. Folders named `column=value` give columns. Or a table: pandas, Polars, Arrow, a list of dicts, anything with
            `__arrow_c_stream__`.
        columns: Those to read; None for all.
        filter: Which rows to keep: see `Dataset.filter`.
        format: Of the files: "parquet", "csv", "jsonl" or "text"; None goes by their extensions.
        schema: Types of columns of CSV and JSON lines, as far as they are not to be learned from the files' beginnings.
        storage_options: For the file system of a URL. They go to the workers, and are kept in no file of a recorded run.
        **reading: Of CSV: `delimiter=","`, `header=True`, `quoted_newlines=True`.

    Raises:
        OptionError: Nothing is there, or an argument cannot be used.
        UnreadableInput: A file is not what its format promises.
        MissingExtra: A package is missing.

    Example:
        >>> import fourfold as ff
        >>> ff.scan([{"x": 1, "y": 2}, {"x": 3}], columns=["y"]).to_arrow().to_pylist()
        [{'y': 2}, {'y': None}]
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra(f"tables need {error.name}: pip install 'fourfold[data]'") from error
    del pyarrow
    if (kind := frame_kind_of(source)) is not None:
        if format is not None or schema is not None or storage_options or reading:
            raise OptionError(f"format=, schema=, storage_options= and options of CSV are for files, and this is {kind.name}")
        frame = Frame(kind, source)
        frame = frame if filter is None else frame.filter(filter)
        return frame if columns is None else frame.select(columns)
    found = _source_of(source, format, declared(schema), Credentials(storage_options or {}), reading)
    dataset = Dataset(Plan(found, tuple(found.schema.names)))
    if filter is not None and columns is None:
        return dataset.filter(filter)
    if filter is not None:
        return dataset.filter(filter).select(columns or ())
    return dataset if columns is None else dataset.select(columns)


def _source_of(source: Any, format: str | None, schema: Any, storage: Credentials, reading: dict[str, Any]) -> TableSource:
    from fourfold.data.sources.in_memory import InMemory

    if isinstance(source, str | os.PathLike):
        source = [source]
    if isinstance(source, list | tuple) and source and all(isinstance(each, str | os.PathLike) for each in source):
        return _files_source([os.fspath(each) for each in source], format, schema, storage, reading)
    if kind_of(source) is None and not hasattr(source, "__arrow_c_stream__"):
        raise OptionTypeError(
            f"scan({type(source).__module__}.{type(source).__qualname__}): give a path, a list of paths, a table of "
            "pandas, Polars or Arrow, a list of dicts, or an object with __arrow_c_stream__"
        )
    if format is not None or schema is not None or storage or reading:
        raise OptionError("format=, schema=, storage_options= and options of CSV are for files, and this is a table in memory")
    return InMemory(as_table(source, "the source"))


def _files_source(
    paths: list[str], format: str | None, schema: Any, storage: Credentials, reading: dict[str, Any]
) -> TableSource:
    from fourfold.data.sources.lines import Lines
    from fourfold.data.sources.parquet import Parquet

    files = find(paths, format, storage)
    kinds = {file.format: file for file in files}
    if len(kinds) > 1:
        one, other = [*kinds.values()][:2]
        raise OptionError(f"{one.path} is {one.format} and {other.path} is {other.format}: scan files of one format")
    (kind,) = kinds
    if reading and kind != "csv":
        raise OptionTypeError(f"{next(iter(reading))}= is for CSV, and {files[0].path} is {kind}")
    if kind == "parquet":
        if schema is not None:
            raise OptionError("schema= is for CSV and JSON lines: Parquet files have their types in them")
        return Parquet(files, storage)
    return Lines(files, storage, schema, dialect_of(reading))
