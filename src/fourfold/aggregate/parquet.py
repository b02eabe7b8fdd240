"""The Parquet sink. Imports Arrow when it is imported: only `open_sink` does that."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fourfold.aggregate.part_file import PartFile
from fourfold.aggregate.rows import Columns, short
from fourfold.errors import UnwritableValue

# Rows that become one row group. Smaller: worse compression, and more column types are guessed from too few
# rows. Larger: more rows held as Python objects. Not measured.
_GROUP_ROWS = 32_768


class Parquet:
    """One row group per batch of rows. Columns come from the first row, their types from the first batch.

    A type may still widen (a column of nulls gets its type, integers become floats): then the file begun is
    copied once into one of the wider type. Anything else that does not fit is an error that names the item.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = PartFile(path)
        self._columns: Columns | None = None
        self._indices: list[int] = []
        self._rows: list[list[object]] = []
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None
        self.n_nulled = 0

    def write(self, index: int, value: object) -> None:
        if self._columns is None:
            self._columns = Columns(index, value)
        self._rows.append(self._columns.cells(index, value))
        self._indices.append(index)
        if len(self._rows) >= _GROUP_ROWS:
            self._write_group()

    def finish(self) -> None:
        if self._rows or self._writer is None:
            self._write_group()
        if self._writer is not None:
            self._writer.close()
        self._file.finish()

    def publish(self) -> None:
        self._file.publish()

    def discard(self) -> None:
        if self._writer is not None:
            # Left open it would try again when it is collected, and complain on stderr.
            with contextlib.suppress(pa.ArrowException, OSError, ValueError):
                self._writer.close()
        self._file.discard()

    def _write_group(self) -> None:
        names = self._columns.names if self._columns else []
        columns = zip(*self._rows, strict=True)
        arrays = [self._column(name, list(values)) for name, values in zip(names, columns, strict=True)]
        table = pa.table(arrays, names=names)
        schema = self._widened(table.schema)
        if self._writer is None or schema != self._schema:
            self._begin(schema)
        assert self._writer is not None
        self._writer.write_table(_cast(table, schema, self._indices[0] if self._indices else 0))
        self._rows.clear()
        self._indices.clear()

    def _column(self, name: str, values: list[object]) -> pa.Array:
        try:
            return _array(values)
        except _REFUSALS as exc:
            at = _first_that_fails(values)
            raise UnwritableValue(
                f"item {self._indices[at]}, column {name!r}: {short(values[at])} "
                f"({type(values[at]).__name__}) does not fit the values before it: {exc}"
            ) from exc

    def _widened(self, schema: pa.Schema) -> pa.Schema:
        """The schema so far, widened where this batch needs it."""
        if self._schema is None:
            return schema
        fields = []
        for old, new in zip(self._schema, schema, strict=True):
            type_ = _common_type(old.type, new.type)
            if type_ is None:
                at = next(i for i, row in enumerate(self._rows) if _cell(row, schema, old.name) is not None)
                raise UnwritableValue(
                    f"item {self._indices[at]}, column {old.name!r}: "
                    f"{short(_cell(self._rows[at], schema, old.name))} is {new.type}, but the column holds "
                    f"{old.type} since the first rows; return one type"
                )
            fields.append(pa.field(old.name, type_))
        return pa.schema(fields)

    def _begin(self, schema: pa.Schema) -> None:
        """Open the writer; with a file already begun, copy it into a new one of this schema."""
        begun, begun_writer = self._file, self._writer
        if begun_writer is not None:
            begun_writer.close()
            begun.handle.flush()
            self._file = PartFile(self.path)
        self._schema = schema
        self._writer = pq.ParquetWriter(self._file.handle, schema)
        if begun_writer is not None:
            try:
                with pq.ParquetFile(begun.part) as file:
                    for group in range(file.num_row_groups):
                        self._writer.write_table(_cast(file.read_row_group(group), schema, 0))
            finally:
                begun.discard()


def _cast(table: pa.Table, schema: pa.Schema, index: int) -> pa.Table:
    try:
        return table.cast(schema)
    except pa.ArrowException as exc:
        raise UnwritableValue(
            f"in the rows from item {index} on: a value does not fit its column's type: {exc}; return one type"
        ) from exc


_REFUSALS = (pa.ArrowException, TypeError, ValueError, OverflowError)
"""What Arrow raises when it cannot make a column of some values."""


def _array(values: list[object]) -> pa.Array:
    """A column of these values; unlike Arrow, it makes no bytes of texts and no dates of times."""
    kinds = set(map(type, values))
    for one, other in _NOT_MIXED:
        if one in kinds and other in kinds:
            raise TypeError(f"{one.__name__} and {other.__name__} in one column")
    return pa.array(values, from_pandas=False)


_NOT_MIXED: tuple[tuple[type, type], ...] = ((str, bytes), (datetime.date, datetime.datetime))


def _common_type(old: Any, new: Any) -> Any:
    """The type that holds both, or None: null gives way to anything, integers to floats."""
    try:
        unified = pa.unify_schemas([pa.schema([("", old)]), pa.schema([("", new)])], promote_options="permissive")
    except (pa.ArrowException, TypeError):
        return None
    return None if {old, new} == {pa.string(), pa.binary()} else unified.field(0).type


def _first_that_fails(values: list[object]) -> int:
    """The position of the first value that makes a column of all before it impossible."""
    low, high = 0, len(values)
    while high - low > 1:  # values[:low] fits, values[:high] does not
        middle = (low + high) // 2
        try:
            _array(values[:middle])
            low = middle
        except _REFUSALS:
            high = middle
    return high - 1


def _cell(row: list[object], schema: pa.Schema, name: str) -> object:
    return row[schema.get_field_index(name)]
