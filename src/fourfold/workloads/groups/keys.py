"""Keys: the values of some columns that the rows of a group have in common. NaN is null, and -0.0 is 0.0."""

import datetime
import hashlib
from collections.abc import Sequence
from typing import Any

from fourfold.errors import OptionError

Key = tuple[Any, ...]
"""A value of Python for each column; None for null."""

FACTOR = 1_000_003
"""What mixes the hashes of several columns: any large odd number."""


def check_types(by: Sequence[str], schema: Any) -> None:
    """Raise OptionError when a column holds what cannot be a key."""
    for name in by:
        if not _is_key(_value_type(schema.field(name).type)):
            raise OptionError(
                f"by={name!r}: its values are {schema.field(name).type}, and keys are texts, numbers, booleans, dates or times"
            )


def _value_type(type_: Any) -> Any:
    import pyarrow as pa

    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_key(type_: Any) -> bool:
    import pyarrow.types as types

    tests = (types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_temporal, types.is_null)
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(test(type_) for test in (*tests, *texts)) and not types.is_float16(type_)


def key_columns(table: Any, by: Sequence[str]) -> list[Any]:
    """The columns of keys as arrays in which equal keys are equal values."""
    return [_plain(table.column(name)) for name in by]


def key_table(table: Any, by: Sequence[str]) -> Any:
    """The columns of keys alone, as a table."""
    import pyarrow as pa

    return pa.table(key_columns(table, by), names=list(by))


def _plain(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no rows, or of more texts than one array holds
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    if pa.types.is_floating(array.type):
        array = pc.add(array, pa.scalar(0.0, array.type))  # -0.0 becomes 0.0
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array


def numbered(columns: Sequence[Any], n_rows: int) -> tuple[Any, Any]:
    """Groups of rows with the same key, numbered from 0 on.

    Returns:
        For each row the number of its group, and for each group the place of its first row.
    """
    import numpy as np

    codes = np.zeros(n_rows, np.int64)
    n_groups = min(n_rows, 1)
    for column in columns:
        encoded = column.dictionary_encode(null_encoding="encode")
        indices = encoded.indices.to_numpy(zero_copy_only=False)
        if n_groups > 1:
            seen, codes = np.unique(codes * len(encoded.dictionary) + indices, return_inverse=True)
            n_groups = len(seen)
        else:
            codes, n_groups = indices.astype(np.int64), len(encoded.dictionary)
    firsts = np.empty(n_groups, np.int64)
    firsts[codes[::-1]] = np.arange(n_rows - 1, -1, -1)  # the last assignment stays: that of the first row
    return codes, firsts


def hashes(columns: Sequence[Any], rows: Any) -> Any:
    """A number for the key of each of these rows: equal for equal keys, in any process."""
    import numpy as np
    import pyarrow as pa

    mixed = np.zeros(len(rows), np.uint64)
    for column in columns:
        mixed = mixed * np.uint64(FACTOR) + _hashed(column.take(pa.array(rows)))
    return mixed ^ (mixed >> np.uint64(32))


def _hashed(values: Any) -> Any:
    import numpy as np
    import pyarrow as pa
    from pandas.util import hash_array

    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.uint64)
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.string())
    elif pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    elif pa.types.is_temporal(values.type):
        values = values.cast(pa.int32() if values.type.bit_width == 32 else pa.int64())
    nothing = b"" if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type) else 0
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    array = values.fill_null("" if is_text else nothing).to_numpy(zero_copy_only=False)
    found = np.array(hash_array(array, categorize=False))
    found[values.is_null().to_numpy(zero_copy_only=False)] = 1
    return found


def keys_of(columns: Sequence[Any], n_rows: int) -> list[Key]:
    """The key of each row."""
    return list(zip(*(_values(column) for column in columns), strict=True)) if columns else [()] * n_rows


def _values(column: Any) -> list[Any]:
    """Values of Python. Times with a zone are pandas' Timestamps.

    For datetime the hour before clocks go back is the same as the hour after.
    """
    import pandas as pd
    import pyarrow as pa

    if not pa.types.is_timestamp(column.type) or column.type.tz is None:
        return column.to_pylist()  # type: ignore[no-any-return]
    return [None if each is pd.NaT else each for each in column.to_pandas()]


def rows_of(columns: Sequence[Any], key: Key, n_rows: int) -> Any:
    """Which rows have this key: an array of booleans."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pa.array([True]).take(pa.array([0] * n_rows, pa.int64()))
    for column, value in zip(columns, key, strict=True):
        same = column.is_null() if value is None else pc.equal(column, pa.scalar(value, column.type))
        found = pc.and_(found, pc.fill_null(same, False))
    return found


def canonical(key: Any, by: Sequence[str]) -> Key:
    """The key that a user wrote: one value for one column, a tuple for several.

    Raises:
        KeyError: It has another number of values.
    """
    values = key if isinstance(key, tuple) else (key,)
    if len(values) != len(by):
        raise KeyError(f"{key!r}: a key has a value for each of {', '.join(by)}")
    return tuple(_of_python(value) for value in values)


def _of_python(value: Any) -> Any:
    import numpy as np
    import pandas as pd

    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return None
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return pd.Timestamp(value)
    if isinstance(value, np.datetime64 | np.timedelta64):
        return (pd.Timestamp if isinstance(value, np.datetime64) else pd.Timedelta)(value)
    return value.item() if isinstance(value, np.generic) else value


def number_of(key: Key) -> int:
    """A number for a key, the root of its random numbers: the same in any process, and for any type of column."""
    texts = [repr(int(each)) if isinstance(each, float) and each.is_integer() else str(each) for each in key]
    digest = hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
