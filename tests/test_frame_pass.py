"""A pass over the batches of a cluster's frame, without the cluster: the values that come out are those that the steps made."""

import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from fourfold.data.frame_kinds import OnDask, OnRay, OnSpark, _as_frame
from fourfold.data.frames import FramePass, Steps
from fourfold.data.schema import SchemaConflict
from fourfold.data.steps import MapBatches
from fourfold.errors import OptionError


def category_of(values: list[Any], categories: list[str]) -> Any:
    table = pa.table({"c": pa.array(values).dictionary_encode()})
    return _as_frame(table, {"c": pd.CategoricalDtype(categories)})["c"]


def test_a_category_keeps_its_dtype_where_all_values_are_of_it() -> None:
    series = category_of(["b", None, "a"], ["a", "b", "z"])
    assert list(series.cat.categories) == ["a", "b", "z"]
    assert [None if pd.isna(value) else value for value in series] == ["b", None, "a"]


@pytest.mark.parametrize("values", [["A", "missing"], ["missing", None], ["B", "A"]])
def test_values_that_a_category_does_not_have_are_kept(values: list[Any]) -> None:
    series = category_of(values, ["A", "b"])
    assert [None if pd.isna(value) else value for value in series] == values


@pytest.mark.parametrize("n_parts", [1, 2])
def test_a_column_of_which_only_nulls_were_seen_has_the_type_of_its_batch(
    n_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourfold.data.frames.BATCH_ROWS", 2 // n_parts)
    seen = pa.schema({"id": pa.int64(), "later": pa.null()})
    batch = pa.table({"id": [1, 2], "later": [None, 0.5]})
    out = FramePass(Steps.here(()), seen, seen)(batch)
    assert out.column("later").to_pylist() == [None, 0.5]
    nulls = pa.table({"id": [1], "later": pa.nulls(1)})
    assert FramePass(Steps.here(()), seen, seen)(nulls).column("later").to_pylist() == [None]


# ---- decimals that are objects of Python: only rows tell how many digits they have


def decimals(*texts: str) -> pa.Table:
    return pa.table({"price": pa.array([Decimal(text) for text in texts])})


@pytest.mark.parametrize("texts", [("1.5",), ("123456789012345678901234.5",), ("0.1234567890123456789012", "7"), ("300", "4")])
def test_decimals_have_the_digits_of_their_batch_and_not_of_the_first_rows(texts: tuple[str, ...]) -> None:
    seen = decimals("1.25").schema
    out = FramePass(Steps.here(()), seen, seen)(decimals(*texts))
    assert out.equals(decimals(*texts))


def test_decimals_of_parts_of_one_batch_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.data.frames.BATCH_ROWS", 1)

    def anew(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"price": each["price"] * 10} for each in batch]

    seen = decimals("1.25").schema
    steps = Steps.here([MapBatches(anew, (), "pylist", None, None)])
    out = FramePass(steps, seen, seen)(decimals("0.001", "2"))
    assert out.column("price").to_pylist() == [Decimal("0.010"), Decimal(20)]


def test_a_declared_decimal_is_what_comes_out() -> None:
    declared = pa.schema({"price": pa.decimal128(9, 3)})
    steps = Steps.here([MapBatches(lambda batch: batch, (), "arrow", None, declared)])
    out = FramePass(steps, decimals("1.25").schema, declared)(decimals("1.5"))
    assert out.schema.equals(declared)
    with pytest.raises(SchemaConflict, match=r"does not fit decimal128\(9, 3\)"):
        FramePass(steps, decimals("1.25").schema, declared)(decimals("0.0001"))


class Objects:
    """Frames of Dask and Ray in which decimals are objects: they tell no type of them."""

    def __init__(self, *texts: str) -> None:
        self.rows = pd.DataFrame({"price": [Decimal(text) for text in texts]})
        self._meta = self.rows.iloc[:0]

    def head(self, n_rows: int, npartitions: int) -> pd.DataFrame:
        return self.rows.head(n_rows)

    def schema(self) -> Any:
        return SimpleNamespace(names=["price"], types=[object])

    def limit(self, n_rows: int) -> Any:
        return SimpleNamespace(iter_batches=lambda batch_format: [decimals(*map(str, self.rows["price"]))])


@pytest.mark.parametrize("kind", [OnDask(), OnRay()])
def test_the_schema_of_decimals_that_are_objects_is_that_of_the_first_rows(kind: Any) -> None:
    assert kind.schema(Objects("1.25", "10.5")).field("price").type == pa.decimal128(4, 2)


# ---- types that Spark does not have


class OfSpark:
    """A DataFrame of Spark, as far as a pass needs one."""

    columns = ("x",)

    def mapInArrow(self, run: Any, fields: Any) -> Any:
        return run, fields


def mapped(column: pa.Array) -> pa.Array:
    """What comes of a column that a step has made."""
    pytest.importorskip("pyspark")
    made = pa.table({"x": column})
    steps = Steps.here([MapBatches(lambda batch: made, (), "arrow", None, None)])
    before = pa.schema({"x": pa.int64()})
    run, fields = OnSpark().map(OfSpark(), FramePass(steps, before, made.schema))
    (batch,) = run(iter([pa.record_batch([pa.array([*range(len(column))])], schema=before)]))
    from pyspark.sql.pandas.types import from_arrow_schema

    assert from_arrow_schema(batch.schema) == fields
    return batch.column(0)


BIG = 2**64 - 1
UNSIGNED = {
    "struct": (pa.struct({"a": pa.uint8(), "b": pa.struct({"c": pa.uint64()})}), [{"a": 255, "b": {"c": BIG}}, None]),
    "map": (pa.map_(pa.string(), pa.uint32()), [[("k", 2**32 - 1)], None, []]),
    "keys of a map": (pa.map_(pa.uint16(), pa.list_(pa.uint8())), [[(65535, [255, None])]]),
    "list of structs": (pa.list_(pa.struct({"a": pa.uint32(), "b": pa.float16()})), [[{"a": 2**32 - 1, "b": 0.5}], []]),
    "list of maps": (pa.large_list(pa.map_(pa.string(), pa.uint64())), [[[("k", BIG)]]]),
    "flat": (pa.uint64(), [BIG, None]),
}


@pytest.mark.parametrize("case", UNSIGNED)
def test_unsigned_integers_are_widened_for_spark_however_deep_they_lie(case: str) -> None:
    type_, values = UNSIGNED[case]
    assert mapped(pa.array(values, type_)).to_pylist() == values


ODD = {
    "view": pa.array(["a"], pa.string_view()),
    "view of bytes": pa.array([b"a"], pa.binary_view()),
    "dictionary in a struct": pa.array([{"a": "x"}], pa.struct({"a": pa.dictionary(pa.int8(), pa.string())})),
    "date of milliseconds": pa.array([datetime.date(2026, 1, 2)], pa.date64()),
    "wide decimal of few digits": pa.array([{"a": Decimal("1.50")}], pa.struct({"a": pa.decimal256(5, 2)})),
}


@pytest.mark.parametrize("case", ODD)
def test_types_with_a_sister_in_spark_take_hers(case: str) -> None:
    assert mapped(ODD[case]).to_pylist() == ODD[case].to_pylist()


@pytest.mark.parametrize(
    "type_",
    [
        pa.decimal256(50, 2),
        pa.struct({"a": pa.decimal256(50, 2)}),
        pa.month_day_nano_interval(),
        pa.map_("string", "month_day_nano_interval"),
    ],
)
def test_a_type_that_spark_has_not_is_refused_by_name(type_: pa.DataType) -> None:
    with pytest.raises(OptionError) as caught:
        mapped(pa.nulls(1, type_))
    assert str(caught.value) == (
        f"column 'x' is {type_}, and Spark has no such type: make another one of it in a step before, such as texts"
    )


def test_decimals_for_spark_have_the_type_that_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark")
    seen = decimals("1.25").schema
    run, _ = OnSpark().map(
        SimpleNamespace(columns=("price",), mapInArrow=OfSpark().mapInArrow), FramePass(Steps.here(()), seen, seen)
    )
    (batch,) = run(iter(decimals("1.25").to_batches()))
    assert batch.schema.field("price").type == pa.decimal128(3, 2)
    steps = Steps.here([MapBatches(lambda batch: decimals("1.5"), (), "arrow", None, None)])
    run, _ = OnSpark().map(SimpleNamespace(columns=("price",), mapInArrow=OfSpark().mapInArrow), FramePass(steps, seen, seen))
    (batch,) = run(iter(decimals("1.25").to_batches()))
    assert batch.column(0).to_pylist() == [Decimal("1.50")]
    assert batch.schema.field("price").type == pa.decimal128(3, 2)
