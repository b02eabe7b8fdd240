"""Columns that the folders of a file say, `year=2024/month=7/`, beside those that are in it."""

from collections.abc import Mapping, Sequence
from typing import Any


def filled(in_files: Any, keys: Mapping[str, Any]) -> Any:
    """The schema of the files with the columns of the folders behind; of one that is in both, the files know more."""
    import pyarrow as pa

    return pa.schema([*in_files, *(pa.field(name, type_) for name, type_ in keys.items() if name not in in_files.names)])


def columns_of(batch: Any, said: Sequence[tuple[str, str | None]], columns: Sequence[str], schema: Any) -> Any:
    """The table of these columns: from the batch, from what the folders say, or null where neither has it."""
    import pyarrow as pa

    texts = dict(said)
    arrays = []
    for name in columns:
        type_ = schema.field(name).type
        if name in batch.schema.names:
            column = batch.column(name)
            arrays.append(column if column.type.equals(type_) else column.cast(type_))
        elif name in texts:
            arrays.append(pa.repeat(pa.scalar(texts[name], pa.string()), batch.num_rows).cast(type_))
        else:
            arrays.append(pa.nulls(batch.num_rows, type_))
    if not arrays:  # a table of no columns has its number of rows nowhere else
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        return table.select([])
    return pa.table(arrays, schema=pa.schema([schema.field(name) for name in columns]))
