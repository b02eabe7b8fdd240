"""Rows are put into the folders that `partition_by` makes of their values.

columns ──> a number for each of their values ──> one for each folder ──> rows sorted by it, once ──> a slice for each folder

Python looks at each value once, and not at each row.
"""

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from fourfold.data.files import NULL_KEY
from fourfold.errors import UnwritableValue


def divided(table: Any, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The rows of each folder, in order, without the columns that its name says; folders in the order of their first rows.

    Args:
        table: Of Arrow.
        names: The columns. With none there is one folder, "".

    Raises:
        UnwritableValue: There is no such column, or no other one.
    """
    import numpy as np

    if not names:
        yield "", table
        return
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise UnwritableValue(f"partition_by: there is no column {missing[0]!r}; columns: {', '.join(table.column_names)}")
    if table.num_columns == len(names):
        raise UnwritableValue("partition_by names all columns: nothing would be left to write")
    rest = table.drop_columns(list(names))
    numbers, folders = _folders(table, names)
    if len(folders) < 2:
        yield from ((folder, rest) for folder in folders)
        return
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=len(folders)))
    rows = rest.take(order)
    for folder, begin, end in sorted(zip(folders, [0, *ends], ends, strict=False), key=lambda each: order[each[1]]):
        yield folder, rows.slice(begin, end - begin)


def _folders(table: Any, names: Sequence[str]) -> tuple[Any, list[str]]:
    """For each row the number of its folder, and the folders: `carrier=AA/month=7`, in the way of Hive, Spark and Arrow."""
    import numpy as np

    numbers, folders = np.zeros(table.num_rows, np.int64), [""]
    for name in names:
        own, texts = _values(table.column(name))
        pairs, numbers = np.unique(numbers * len(texts) + own, return_inverse=True)
        said = [f"{quote(name, safe='')}={text}" for text in texts]
        folders = [f"{folders[pair // len(texts)]}/{said[pair % len(texts)]}".lstrip("/") for pair in pairs.tolist()]
    return numbers, folders


def _values(column: Any) -> tuple[Any, list[str]]:
    """For each row of a column the number of its value, and how the values are said: no two of them alike."""
    import numpy as np
    import pyarrow as pa

    chunks = [each.dictionary_decode() if isinstance(each, pa.DictionaryArray) else each for each in column.chunks]
    whole = pa.concat_arrays(chunks) if chunks else pa.array([], pa.null())
    try:
        encoded = whole.dictionary_encode()
        said = [_said(value) for value in encoded.dictionary.to_pylist()]
    except pa.ArrowNotImplementedError:  # lists and records: by what is said of each
        encoded = pa.array([_said(value) for value in whole.to_pylist()], pa.string()).dictionary_encode()
        said = encoded.dictionary.to_pylist()
    said.append(NULL_KEY)
    numbers = encoded.indices.fill_null(len(said) - 1).to_numpy(zero_copy_only=False)
    places = {text: at for at, text in enumerate(dict.fromkeys(said))}  # a null, and the text that stands for one, are alike
    return np.array([places[text] for text in said], np.int64)[numbers], [*places]


def _said(value: Any) -> str:
    return NULL_KEY if value is None else quote(str(value), safe=" ")
