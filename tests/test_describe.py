"""Figures of columns: those of the whole table, from parts of it, within the errors that are stated."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import small_pieces

import fourfold as ff
from fourfold.data.draw import mixed
from fourfold.data.sketches import Distinct, Moments, Quantiles

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]

DRAW = np.random.default_rng(3)
N_ROWS = 5000
TABLE = pd.DataFrame(
    {
        "wide": DRAW.lognormal(0, 3, N_ROWS) * np.where(DRAW.random(N_ROWS) < 0.3, -1, 1),
        "far": 1e8 + DRAW.normal(size=N_ROWS),
        "few": DRAW.integers(0, 7, N_ROWS),
        "gaps": np.where(DRAW.random(N_ROWS) < 0.2, np.nan, DRAW.normal(size=N_ROWS)),
        "word": [f"w{row % 900}" for row in range(N_ROWS)],
        "flag": DRAW.random(N_ROWS) < 0.25,
        "constant": 3.0,
    }
)


@pytest.fixture
def figures(small_pieces: Cut) -> pd.DataFrame:
    small_pieces(700, 1 << 20)
    found: pd.DataFrame = ff.scan(TABLE).describe(engine="threads", workers=2)
    return found.set_index("column")


@pytest.mark.parametrize("name", ["wide", "far", "few", "gaps", "constant"])
def test_mean_and_deviation_are_those_of_the_whole_column(name: str, figures: pd.DataFrame) -> None:
    np.testing.assert_allclose(figures.loc[name, "mean"], TABLE[name].mean(), rtol=1e-12)
    np.testing.assert_allclose(figures.loc[name, "std"], TABLE[name].std(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["wide", "far", "few", "gaps", "constant"])
def test_quantiles_are_within_one_percent_of_their_value(name: str, figures: pd.DataFrame) -> None:
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        exact = TABLE[name].quantile(share, interpolation="lower")
        assert abs(figures.loc[name, f"{share:.0%}"] - exact) <= 0.01 * abs(exact) + 1e-12


def test_rows_nulls_least_and_most_are_exact(figures: pd.DataFrame) -> None:
    assert set(figures["rows"]) == {N_ROWS}
    assert figures.loc["gaps", "nulls"] == TABLE["gaps"].isna().sum()
    assert figures.loc["wide", "min"] == str(TABLE["wide"].min())
    assert figures.loc["word", "max"] == "w99"
    assert figures.loc["flag", "type"] == "bool"


@pytest.mark.parametrize(("name", "error"), [("few", 0), ("flag", 0), ("word", 0.05), ("wide", 0.05), ("constant", 0)])
def test_distinct_values_are_counted_within_three_standard_errors(name: str, error: float, figures: pd.DataFrame) -> None:
    n_distinct = TABLE[name].nunique()
    assert abs(figures.loc[name, "distinct"] - n_distinct) <= error * n_distinct


def test_the_bits_do_not_depend_on_workers_or_engine(small_pieces: Cut) -> None:
    small_pieces(700, 1 << 20)
    one, other = (
        ff.scan(TABLE).describe(**options) for options in ({"engine": "serial"}, {"engine": "processes", "workers": 3})
    )
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_neighbours_of_large_integers_are_told_apart() -> None:
    found = ff.scan([{"id": 2**60 + row} for row in range(2000)]).describe("pylist")
    assert abs(found[0]["distinct"] - 2000) < 120


def test_no_rows_and_only_nulls() -> None:
    empty = ff.scan(TABLE.head(0)).describe("pylist")
    assert [row["rows"] for row in empty] == [0] * TABLE.shape[1]
    nulls = ff.scan([{"a": None}, {"a": None}]).describe("pylist")
    assert (nulls[0]["nulls"], nulls[0]["mean"], nulls[0]["distinct"]) == (2, None, 0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1e150, 1e150, allow_subnormal=False).map(lambda x: 0.0 if abs(x) < 1e-100 else x), max_size=20),
        min_size=1,
        max_size=6,
    )
)
def test_parts_merge_to_the_whole(parts: list[list[float]]) -> None:
    merged, whole = Quantiles(), Quantiles()
    for part in parts:
        each = Quantiles()
        each.add(np.array(part))
        merged.merge(each)
    values = np.array([value for part in parts for value in part])
    whole.add(values)
    assert merged.counts == whole.counts
    for share in (0.0, 0.3, 1.0):
        found = whole.at(share)
        if len(values):
            exact = np.sort(values)[int(np.floor(share * (len(values) - 1)))]
            assert found is not None
            assert abs(found - exact) <= 0.0101 * abs(exact)


@pytest.mark.parametrize("n", [0, 1, 100, 5_000, 300_000])
def test_estimates_of_distinct_values_for_any_number(n: int) -> None:
    parts = [Distinct(), Distinct()]
    hashes = mixed(np.arange(n, dtype=np.uint64), 9)
    for part, each in zip(parts, (hashes[: n // 2], hashes[n // 3 :]), strict=True):
        part.add(each)
    parts[0].merge(parts[1])
    assert abs(parts[0].estimate() - n) <= 0.05 * n


def test_variance_far_from_zero_keeps_its_digits() -> None:
    values = 1e9 + np.arange(10) % 2
    moments = Moments()
    for value in values:
        moments.add(np.array([value]))
    assert moments.std is not None
    np.testing.assert_allclose(moments.std, np.std(values, ddof=1), rtol=1e-7)
