"""`partition_by`: rows into folders by their values, as a loop over the rows would put them."""

import datetime
import decimal
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fourfold.data.partitions import divided


def by_the_loop(table: pa.Table, names: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """One row after the other."""

    def said(value: Any) -> str:
        return "__HIVE_DEFAULT_PARTITION__" if value is None else quote(str(value), safe=" ")

    rows = table.select(names).to_pylist()
    folders = ["/".join(f"{quote(name, safe='')}={said(row[name])}" for name in names) for row in rows]
    rest = table.drop_columns([*names])
    for folder in dict.fromkeys(folders):
        yield folder, rest.filter(pc.equal(pa.array(folders, pa.string()), folder))


DAY = datetime.date(2013, 1, 1)
KEYS: dict[str, pa.Array] = {
    "texts": pa.array(["b", "a/b=c%", None, "b", "ü x", "", "__HIVE_DEFAULT_PARTITION__"] * 3),
    "large texts": pa.array(["b", None, "a"] * 5, pa.large_string()),
    "views of texts": pa.array(["b", None, "a"] * 5, pa.string_view()),
    "bytes": pa.array([b"x", None, b"\xff"] * 3),
    "integers": pa.array([3, None, 1, 3, 2**62] * 4),
    "fractions": pa.array([0.0, -0.0, float("nan"), None, 1.5, float("nan"), float("inf")] * 2),
    "small fractions": pa.array(np.array([0.5, 1, 0.5], np.float16)),
    "booleans": pa.array([True, None, False, True]),
    "days": pa.array([DAY, None, DAY + datetime.timedelta(1), DAY]),
    "times": pa.array([datetime.datetime(2013, 1, 1, 5, tzinfo=datetime.UTC), None] * 2),
    "nanoseconds": pa.array([1, 2, 1], pa.timestamp("ns")),
    "durations": pa.array([1000, None, 1000], pa.duration("us")),
    "decimals": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2.00")] * 2),
    "categories": pa.array(["b", None, "a", "b"]).dictionary_encode(),
    "as many categories as their numbers allow": pa.DictionaryArray.from_arrays(
        pa.array([*range(128), None], pa.int8()), [f"c{at}" for at in range(128)]
    ),
    "lists": pa.array([[1, 2], None, [1, 2], []]),
    "records": pa.array([{"a": 1}, None, {"a": 2}, {"a": 1}]),
    "nulls": pa.nulls(4),
    "one value": pa.array(["x"] * 4),
    "no rows": pa.array([], pa.string()),
}


def check(table: pa.Table, names: Sequence[str]) -> None:
    found, expected = [*divided(table, names)], [*by_the_loop(table, names)]
    assert [folder for folder, _ in found] == [folder for folder, _ in expected]
    for (_, part), (_, wanted) in zip(found, expected, strict=True):
        assert part.schema == wanted.schema
        assert part.equals(wanted)


@pytest.mark.parametrize("kind", KEYS)
def test_rows_are_put_into_folders_as_a_loop_over_them_would(kind: str) -> None:
    keys = KEYS[kind]
    table = pa.table({"n": range(len(keys)), "k": keys, "word": [f"w{at}" for at in range(len(keys))]})
    check(table, ["k"])
    check(pa.concat_tables([table, table.slice(1), table]), ["k"])


@pytest.mark.parametrize("n_values", [1, 3, 500, 10_000])
def test_several_columns_make_folders_in_folders(n_values: int) -> None:
    draw = np.random.default_rng(n_values)
    keys = {name: draw.integers(0, n_values, 600) for name in "abcdef"}  # numbers of pairs would not fit into 64 bits
    table = pa.table({"x": range(600), **keys, "t": pa.array([None, "s", "r", "s"] * 150).dictionary_encode()})
    check(table, [*"abcdef", "t"])
    check(table, ["t", "c"])


def test_categories_that_differ_from_chunk_to_chunk_are_the_same_values() -> None:
    chunks = [pa.array(words).dictionary_encode() for words in (["b", "a"], ["a", None, "c"], ["c", "b"])]
    check(pa.table({"n": range(7), "k": pa.chunked_array(chunks)}), ["k"])
