"""`fourfold.scan`: a dataset of whatever has rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from fourfold.addresses import Credentials
from fourfold.data.frame_kinds import frame_kind_of
from fourfold.data.plan import Plan
from fourfold.data.schema import declared
from fourfold.data.steps import check_columns
from fourfold.errors import MissingExtra, OptionError
from fourfold.workloads.dataset import Dataset
from fourfold.workloads.frame import Frame
from fourfold.workloads.opening import Reading, source_of
from fourfold.workloads.steps import filtered, selected


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
            `__arrow_c_stream__`. What is lazy (a LazyFrame of Polars, a Dataset of Arrow) or can be read once only (a reader
            of record batches) is read now, in this process, and kept.
        columns: Those to read; None for all.
        filter: Which rows to keep: see `Dataset.filter`. Files of folders `column=value` whose rows cannot be among them are
            not even opened: what they alone would say of columns and types is not known then.
        format: Of the files: "parquet", "csv", "jsonl" or "text"; None goes by their extensions.
        schema: Types of columns, as far as they are not those that Parquet files have, or that the beginnings of CSV and JSON
            lines let expect: an Arrow schema, or a dict of names and types.
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
    first = None if filter is None else filtered(filter, "pandas")
    keep = None if columns is None else selected(columns)
    columns, where = keep.columns if keep else None, first.where if first else None
    found = source_of(source, Reading(format, declared(schema), Credentials(storage_options or {}), reading, columns, where))
    plan = Plan(found, tuple(found.schema.names))
    check_columns(columns or (), found.schema, "columns=")
    plan = plan if first is None else plan.with_step(first)
    return Dataset(plan if keep is None else plan.with_step(keep))
