"""Lines into tables: CSV, JSON lines and text, each from bytes that begin and end between two rows."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from fourfold.data.quotes import is_open
from fourfold.errors import OptionError, OptionTypeError

BOM = b"\xef\xbb\xbf"
"""What some programs write before UTF-8."""

TEXT = "text"
"""The one column of files of text."""


class Dialect(NamedTuple):
    """How CSV is written.

    Attributes:
        delimiter: Between values.
        header: Whether the first line has the names of the columns; without, they are "0", "1" and so on.
        quoted_newlines: Whether values in quotes may contain line ends. False: a large file is cut without a pass over it.
    """

    delimiter: str = ","
    header: bool = True
    quoted_newlines: bool = True


def dialect_of(reading: dict[str, Any]) -> Dialect:
    """The dialect with these fields.

    Raises:
        OptionTypeError: There is no such field, or its value is of the wrong type.
        OptionError: Its value cannot be used.
    """
    for name, value in reading.items():
        if name not in Dialect._fields:
            raise OptionTypeError(f"there is no option {name!r} for reading; those of CSV are: {', '.join(Dialect._fields)}")
        wanted = str if name == "delimiter" else bool
        if not isinstance(value, wanted):
            raise OptionTypeError(f"{name}={value!r} must be of type {wanted.__name__}")
    dialect = Dialect(**reading)
    if len(dialect.delimiter) != 1 or not dialect.delimiter.isascii() or dialect.delimiter in '"\r\n':
        raise OptionError(f"delimiter={dialect.delimiter!r} must be one character of ASCII, and no quote or line end")
    return dialect


def header_of(line: bytes, dialect: Dialect) -> list[str]:
    """The names of the columns, by the first row of a CSV file.

    Raises:
        ValueError: Two of them are the same.
    """
    from pyarrow import csv

    if not line.strip(b"\r\n"):
        return []
    names = csv.read_csv(
        io.BytesIO(line),
        read_options=csv.ReadOptions(use_threads=False, block_size=_block(line)),
        parse_options=csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True),
    ).column_names
    names = names if dialect.header else [str(number) for number in range(len(names))]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"the header names {twice[0]!r} more than once")
    return list(names)


def parse_csv(data: bytes, names: Sequence[str], schema: Any, columns: Sequence[str] | None, dialect: Dialect) -> Any:
    """The rows of CSV without a header.

    Args:
        data: Whole rows.
        names: Of the columns, as they come.
        schema: The types of columns that are known; the others are inferred.
        columns: Those that are wanted; None for all.
        dialect: How it is written.

    Raises:
        ValueError: A value is not what its column's type or the dialect says.
    """
    from pyarrow import csv

    if not dialect.quoted_newlines and is_open(data, dialect.delimiter):
        raise ValueError(
            "a value in quotes contains a line end, or a quote at the beginning of a value is never closed: leave out "
            "quoted_newlines=False"
        )
    if data.startswith(BOM):  # behind the beginning of a file it is text, and not a mark of the encoding
        data = b"\n" + data

    types = {field.name: field.type for field in schema if field.name in names}
    wanted = list(names) if columns is None else [name for name in columns if name in names]
    if not wanted:  # the rows are counted all the same
        wanted = list(names)[:1]
    return csv.read_csv(
        io.BytesIO(data),
        read_options=csv.ReadOptions(use_threads=False, column_names=list(names), block_size=_block(data)),
        parse_options=csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=dialect.quoted_newlines),
        convert_options=csv.ConvertOptions(
            column_types=types, include_columns=wanted, strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def parse_jsonl(data: bytes, schema: Any, strict: bool) -> Any:
    """The rows of JSON lines. `strict`: a field that is not in the schema is an error, and not a column more."""
    import pyarrow as pa
    from pyarrow import json

    if not data.strip():
        return pa.table({field.name: pa.array([], field.type) for field in schema})
    return json.read_json(
        io.BytesIO(data),
        read_options=json.ReadOptions(use_threads=False, block_size=_block(data)),
        parse_options=json.ParseOptions(
            explicit_schema=schema if len(schema) else None, unexpected_field_behavior="error" if strict else "infer"
        ),
    )


def unfit_column(data: bytes, schema: Any) -> str | None:
    """The first column of this schema that JSON lines do not fit: where Arrow does not say. None when each does alone."""
    import pyarrow as pa
    from pyarrow import json

    for field in schema:
        try:
            json.read_json(
                io.BytesIO(data),
                read_options=json.ReadOptions(use_threads=False, block_size=_block(data)),
                parse_options=json.ParseOptions(explicit_schema=pa.schema([field]), unexpected_field_behavior="ignore"),
            )
        except pa.ArrowException:
            return str(field.name)
    return None


def parse_text(data: bytes) -> Any:
    """One row per line, without its line end."""
    import pyarrow as pa

    lines = data.decode("utf-8").split("\n")
    if not lines[-1]:
        del lines[-1]
    return pa.table({TEXT: pa.array([line.removesuffix("\r") for line in lines], pa.string())})


def _block(data: bytes) -> int:
    """All of it: a row that lies in two blocks of Arrow is an error to it."""
    return max(1 << 16, len(data) + 1)
