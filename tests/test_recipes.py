"""Every recipe gives what scikit-learn's own fit gives on all rows, however they are cut, and whoever works."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import CASES, N_ROWS, Case, assert_same, cut, fitted_to_parts, rows_per_piece, state_of
from sklearn.base import clone
from tables import small_pieces

import fourfold as ff
from fourfold.workloads.fit.contract import Rows

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def dataset(case: Case) -> Any:
    return ff.scan(case.table[[*dict.fromkeys([*case.features, *filter(None, (case.target, case.weight))])]])


def fit(case: Case, **options: Any) -> Any:
    return dataset(case).fit(clone(case.estimator), case.target, list(case.features), case.weight, **options)


@functools.cache
def expected_by(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some warn of columns without any value
        return next(case for case in CASES if case.name == name).fitted_by_itself()


def expected_of(case: Case) -> Any:
    return expected_by(case.name)


def rows_of(case: Case) -> Rows:
    y, weight = (None if name is None else case.table[name].to_numpy() for name in (case.target, case.weight))
    return Rows(case.table[list(case.features)], y, weight)


@pytest.mark.parametrize("n_pieces", [1, 64])
@each_case
def test_a_recipe_gives_what_its_own_fit_gives(case: Case, n_pieces: int) -> None:
    rows = cut(rows_of(case), range(0, N_ROWS, rows_per_piece(n_pieces)))
    assert len(rows) == n_pieces
    assert_same(fitted_to_parts(case.estimator, rows), expected_of(case), case.scale, case.ignore)


@each_case
def test_a_dataset_is_fitted_as_its_own_fit_would(case: Case, small_pieces: Cut) -> None:
    small_pieces(rows_per_piece(7), 1 << 30)
    assert len(list(dataset(case)._plan.pieces())) == 7
    assert_same(fit(case, engine="serial"), expected_of(case), case.scale, case.ignore)


@each_case
def test_what_a_recipe_has_fitted_works_on_new_rows(case: Case) -> None:
    new = case.table[list(case.features)].iloc[::-7]
    found, expected = fitted_to_parts(case.estimator, cut(rows_of(case), [100])), expected_of(case)
    method = "transform" if hasattr(found, "transform") else "predict"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping features without any observed values")
        one, other = (np.asarray(getattr(each, method)(new)) for each in (found, expected))
    assert one.dtype == other.dtype
    if one.dtype.kind == "f":
        np.testing.assert_allclose(one, other, 1e-7, 1e-7)
    else:
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize(
    "name",
    [
        "StandardScaler with weights",
        "PCA",
        "Ridge",
        "GaussianNB",
        "SelectKBest by f_regression",
        "SimpleImputer by median",
        "SimpleImputer by most frequent text, kept",
    ],
)
def test_two_workers_give_the_bits_of_one_and_of_the_loop(name: str, small_pieces: Cut) -> None:
    case = next(each for each in CASES if each.name == name)
    small_pieces(rows_per_piece(7), 1 << 30)
    bits = state_of(fit(case, engine="serial"))
    assert state_of(fit(case, engine="threads", workers=2)) == bits
    assert state_of(fit(case, engine="processes", workers=1)) == bits
    assert state_of(fit(case, engine="processes", workers=2)) == bits


@settings(max_examples=4, deadline=None)
@given(ends=st.lists(st.integers(0, N_ROWS), max_size=12), part=st.integers(1, 3))
@each_case
def test_any_cut_gives_the_same(case: Case, ends: list[int], part: int) -> None:
    rows = cut(rows_of(case), [*ends, *range(0, N_ROWS, 40), *range(part, 9, part)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fitted_to_parts(case.estimator, rows)
    assert_same(found, expected_of(case), case.scale, case.ignore)
