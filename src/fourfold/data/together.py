"""What the parts of an output must have in common to be one table."""

from collections.abc import Iterable, Sequence
from typing import Any

from fourfold.data.parts import Part, PartWriter
from fourfold.data.places import Target
from fourfold.data.schema import SchemaConflict, fitted, unified
from fourfold.errors import UnwritableValue


def in_order(parts: Sequence[Part]) -> list[Part]:
    """Parts in the order of the rows of the input."""
    return sorted(parts, key=lambda part: (part.number, part.first, part.folder))


def one_schema(parts: Sequence[Part]) -> Any:
    """The types that all parts have in common; None of no parts.

    Raises:
        UnwritableValue: They do not go together.
    """
    whole = None
    for part in parts:
        schema = schema_of(part)
        try:
            whole = schema if whole is None else unified([whole, schema])
        except SchemaConflict as error:
            raise UnwritableValue(
                f"what came of piece {part.number} does not go with the pieces before it: {error}"
            ) from error
    return whole


def has_types(part: Part, schema: Any, format: str) -> bool:
    """Whether a part can stay as it is: only Parquet has its types in it."""
    return format != "parquet" or bool(schema_of(part).equals(schema))


def write_widened(source: Any, target: Target, schema: Any) -> tuple[int, int, int]:
    """Write a part of Parquet anew, with these types; returns its rows, bytes and checksum."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        tables = (fitted(file.read_row_group(group), schema) for group in range(file.num_row_groups))
        return write_tables(tables, target, "parquet")


def write_tables(tables: Iterable[Any], target: Target, format: str) -> tuple[int, int, int]:
    """Write tables into one file, or none of them; returns its rows, bytes and checksum.

    Raises:
        UnwritableValue: They do not go together, or the format cannot hold them.
    """
    writer = PartWriter(target, format)
    try:
        for table in tables:
            writer.write(table)
        return writer.finish()
    except BaseException as error:
        writer.discard()
        if isinstance(error, SchemaConflict):  # a table that is fitted while it is read
            raise UnwritableValue(f"what came of one piece does not go with the others: {error}") from error
        raise


def schema_of(part: Part) -> Any:
    """The types of a part."""
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(part.schema))
