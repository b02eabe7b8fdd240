"""A pass over the batches of a cluster's frame, without the cluster: the values that come out are those that the steps made."""

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from fourfold.data.frame_kinds import _as_frame
from fourfold.data.frames import FramePass, Steps


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
