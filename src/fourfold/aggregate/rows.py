"""Results become rows: dicts with columns, or bare values; and what a text format can hold of them."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import math
from collections.abc import Mapping
from typing import Any

from fourfold.errors import UnwritableValue
from fourfold.fixed import Fixed, fields_of
from fourfold.shown import safe_repr

VALUE_COLUMN = "value"
"""The one column of results that are no dicts, in csv and parquet."""


class Columns:
    """The columns of a table: those of its first row; every later row is held to them."""

    def __init__(self, index: int, value: object) -> None:
        row = as_row(value)
        self._has_dicts = isinstance(row, dict)
        self._first_index = index
        self.names: list[str] = list(row) if isinstance(row, dict) else [VALUE_COLUMN]
        for name in self.names:
            if not isinstance(name, str):
                raise UnwritableValue(f"item {index}: the column name {name!r} is {type(name).__name__}, not str")
        self._known = frozenset(self.names)

    def cells(self, index: int, value: object) -> list[object]:
        """The values of one row in the order of the columns, None where one is missing.

        Raises:
            UnwritableValue: a column that the first row does not have, or a dict among bare values.
        """
        row = value if type(value) is dict else as_row(value)
        if isinstance(row, dict) != self._has_dicts:
            raise UnwritableValue(
                f"item {index}: its result is {type(value).__name__}, but that of item {self._first_index} "
                f"{'is a row with columns' if self._has_dicts else 'is a bare value'}; return the same kind"
            )
        if not isinstance(row, dict):
            return [row]
        if not self._known.issuperset(row):
            new = next(name for name in row if name not in self._known)
            raise UnwritableValue(
                f"item {index}: its result has the column {new!r}, which the first row (item "
                f"{self._first_index}) does not have: {', '.join(map(str, self.names))}. Return every column "
                f"each time (None where there is no value), or write .jsonl"
            )
        return [row.get(name) for name in self.names]


def as_row(value: object) -> object:
    """A dict for results that have named fields (mappings, dataclasses, named tuples); others as they are."""
    if type(value) is dict:
        return value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, Fixed):
        return {name: getattr(value, name) for name in fields_of(type(value))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value


def to_json(value: object) -> tuple[str, int]:
    """`value` as JSON text, and how many of its numbers JSON does not have (NaN, infinities: now null).

    Raises:
        TypeError: something in it has no JSON form; the message says what, where and what to return instead.
    """
    nulled: list[str] = []
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=plain)
    except (TypeError, ValueError):  # walk through it: slower, but it knows where it is
        value = _without_nan(value, "result", nulled)
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    return text, len(nulled)


def _without_nan(value: object, path: str, nulled: list[str]) -> object:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        nulled.append(path)
        return None
    if isinstance(value, dict):
        return {key: _without_nan(inner, f"{path}[{key!r}]", nulled) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner, f"{path}[{at}]", nulled) for at, inner in enumerate(value)]
    try:
        found = plain(value)
    except TypeError as exc:
        raise TypeError(f"{path}: {exc}") from None
    return _without_nan(found, path, nulled)


def plain(value: object) -> object:
    """`value` as a number, text, list or dict (whose contents may need the same again).

    Dates and times become ISO 8601 text; a Decimal becomes text, because a JSON number would round it.

    Raises:
        TypeError: there is no such form; the message says what to return instead.
    """
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    row = as_row(value)
    if isinstance(row, dict | list | tuple):
        return row
    # NumPy's scalars and arrays, and tensors and columns that follow them, without importing any of them.
    array: Any = value
    kind = getattr(getattr(array, "dtype", None), "kind", "")
    if hasattr(array, "tolist") and kind not in ("m", "V", "c"):
        # datetime64[ns] would come out as a bare number of nanoseconds.
        found = (array.astype(str) if kind == "M" else array).tolist()
        if found is None or isinstance(found, str | int | float | list):
            return found
    hint = _HINTS.get(type(value).__name__, "return str(...) of it, or a dict of plain values")
    raise TypeError(f"{type(value).__name__} cannot be written: {hint}")


_HINTS = {
    "bytes": "decode it, or return base64.b64encode(...).decode()",
    "set": "return sorted(...) of it",
    "complex": "return its real and imaginary parts",
    "timedelta": "return its .total_seconds()",
    "Path": "return str(path)",
    "PosixPath": "return str(path)",
    "DataFrame": "one item makes one row; return its rows as a list, or write the file in the function",
}


def short(value: object, limit: int = 60) -> str:
    """The repr of `value`, cut to `limit` characters."""
    text = " ".join(safe_repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
