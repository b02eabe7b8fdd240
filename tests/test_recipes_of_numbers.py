"""What recipes of numbers do with sparse rows, far, constant and collinear columns, and what they refuse."""

import functools
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import N_ROWS, NUMBERS, assert_same, cut, fitted_to_parts
from scipy import sparse, stats
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, VarianceThreshold, chi2, f_classif, f_regression, mutual_info_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

import fourfold as ff
from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import Rows
from fourfold.workloads.fit.recipes.moments import ColumnMoments
from fourfold.workloads.fit.recipes.triangle import Factor

ENDS = range(0, N_ROWS, 61)


def rows_of(X: Any, target: str | None = None, weight: str | None = None) -> Rows:
    return Rows(X, *(None if name is None else NUMBERS[name].to_numpy() for name in (target, weight)))


def a_matrix(has_nan: bool = False, is_negative: bool = True) -> sparse.csr_matrix:
    draw = np.random.default_rng(5)
    values = draw.normal(size=(N_ROWS, 6)) if is_negative else draw.integers(0, 4, (N_ROWS, 6)).astype(float)
    values[draw.uniform(size=values.shape) < 0.7] = 0.0
    values[:, 3] = 0.0
    if has_nan:
        values[::9, 1] = np.nan
        values[:, 5] = np.nan
    return sparse.csr_matrix(values)


SPARSE = [
    (StandardScaler(with_mean=False), None, None, True),
    (StandardScaler(with_mean=False), None, "weight", True),
    (StandardScaler(with_mean=False, with_std=False), None, None, True),
    (StandardScaler(with_mean=False, with_std=False), None, "weight", True),
    (MaxAbsScaler(), None, None, True),
    (VarianceThreshold(), None, None, True),
    (SimpleImputer(), None, None, True),
    (SimpleImputer(strategy="median", keep_empty_features=True), None, None, True),
    (SimpleImputer(missing_values=2, strategy="median"), None, None, False),
    (SelectKBest(f_classif, k=2), "kind", None, False),
    (SelectKBest(f_regression, k=2), "value", None, False),
    (SelectKBest(functools.partial(f_regression, center=False, force_finite=False), k=2), "value", None, False),
    (SelectKBest(chi2, k=2), "kind", None, False),
    (MultinomialNB(), "kind", None, False),
    (MultinomialNB(alpha=0.1), "kind", "weight", False),
]


@pytest.mark.parametrize(("estimator", "target", "weight", "takes_nan"), SPARSE)
def test_sparse_rows_are_fitted_as_their_own_fit_would(
    estimator: Any, target: str | None, weight: str | None, takes_nan: bool
) -> None:
    X = a_matrix(takes_nan, is_negative=takes_nan)
    rows = rows_of(X, target, weight)
    own = {} if weight is None else {"sample_weight": rows.weight}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = type(estimator)(**estimator.get_params()).fit(X, *(() if target is None else (rows.y,)), **own)
        found = fitted_to_parts(estimator, cut(rows, ENDS))
    assert_same(found, expected)


@pytest.mark.parametrize("estimator", [LinearRegression(), Ridge(), Ridge(solver="svd"), PCA(3)])
def test_sparse_rows_of_least_squares_are_solved_as_dense_ones_are(estimator: Any) -> None:
    X = a_matrix()
    rows = rows_of(X, None if isinstance(estimator, PCA) else "value")
    expected = fitted_to_parts(estimator, [rows._replace(X=X.toarray())])
    found = fitted_to_parts(estimator, cut(rows, ENDS))
    for name in ("components_", "explained_variance_") if isinstance(estimator, PCA) else ("coef_", "intercept_"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), 1e-10, 1e-12)


def collinear() -> pd.DataFrame:
    table = NUMBERS[["x", "count"]].assign(again=NUMBERS["x"], sum=NUMBERS["x"] + NUMBERS["count"], same=4.0)
    return table.assign(tiny=NUMBERS["far"] * 1e-9)  # beside the others it counts as nothing


@pytest.mark.parametrize("n_rows", [N_ROWS, 4, 2])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_of_collinear_columns_the_smallest_coefficients_are_found(fit_intercept: bool, n_rows: int) -> None:
    X, y = collinear().iloc[:n_rows], NUMBERS["value"][:n_rows]
    expected = LinearRegression(fit_intercept=fit_intercept).fit(X, y)
    found = fitted_to_parts(LinearRegression(fit_intercept=fit_intercept), cut(Rows(X, y.to_numpy()), range(0, n_rows, 3)))
    assert_same(found, expected, scale=1000.0)
    assert found.rank_ < X.shape[1]


@pytest.mark.parametrize("options", [{"solver": "lsqr"}, {"solver": "sparse_cg"}, {"positive": True}])
def test_solvers_that_iterate_find_what_they_would_find_on_all_rows(options: dict[str, Any]) -> None:
    X, y = NUMBERS[["x", "count"]], NUMBERS["value"]
    estimator = Ridge(tol=1e-12, **options)
    found = fitted_to_parts(estimator, cut(Rows(X, y.to_numpy()), ENDS))
    np.testing.assert_allclose(found.coef_, Ridge(tol=1e-12, **options).fit(X, y).coef_, 1e-7)
    assert found.solver_ == options.get("solver", "lbfgs")


def test_scores_of_columns_far_from_zero_keep_their_digits() -> None:
    near = NUMBERS[["count", "holes"]].fillna(1.0)
    near["holes"] = (near["holes"] + 1e8) - 1e8
    far = near + 1e8  # the same numbers, without rounding
    for score in (f_classif, f_regression):
        target = "kind" if score is f_classif else "value"
        at_zero, at_far = (
            fitted_to_parts(SelectKBest(score, k=1), cut(rows_of(X, target), ENDS)).scores_ for X in (near, far)
        )
        np.testing.assert_allclose(at_far, at_zero, 1e-9)
    groups = [near["count"][NUMBERS["kind"] == kind] for kind in ("fog", "rain", "sun")]
    assert np.isclose(
        fitted_to_parts(SelectKBest(f_classif, k=1), cut(rows_of(far, "kind"), ENDS)).scores_[0], stats.f_oneway(*groups)[0]
    )


def test_a_column_that_is_constant_far_from_zero_is_known_to_be() -> None:
    X = NUMBERS[["same_far", "x"]].assign(odd=1e8 + 0.1)
    found = fitted_to_parts(StandardScaler(), cut(Rows(X), ENDS))
    assert found.scale_[[0, 2]].tolist() == [1.0, 1.0]
    assert found.var_[[0, 2]].tolist() == [0.0, 0.0]
    with pytest.warns(UserWarning, match=r"Features \[0 2\] are constant"):
        scores = fitted_to_parts(SelectKBest(f_classif, k=1), cut(rows_of(X, "kind"), ENDS)).scores_
    assert np.isnan(scores[[0, 2]]).all()
    scores = fitted_to_parts(SelectKBest(f_regression, k=1), cut(rows_of(X, "value"), ENDS)).scores_
    assert scores[[0, 2]].tolist() == [0.0, 0.0]
    triangle = Factor().fold(Rows(X.to_numpy())).triangle
    assert not triangle[:, [0, 2]].any()


@pytest.mark.parametrize("value", [3.7, 1e8 + 0.1, -1e-9])
@pytest.mark.parametrize("others", [[], ["x"]])
def test_a_column_of_one_value_has_no_coefficient_whatever_rows_weigh(value: float, others: list[str]) -> None:
    """scikit-learn makes of its rounding some coefficient, alone of a moderate size."""
    rows = rows_of(NUMBERS[others].assign(one=value), "value", "weight")
    for ends in ([], ENDS, range(0, len(NUMBERS), 7)):
        found = fitted_to_parts(LinearRegression(), cut(rows, ends))
        assert found.coef_[-1] == 0.0
        assert found.rank_ == len(others)
        mean = np.average(NUMBERS["value"], weights=NUMBERS["weight"])
        middle = found.predict(
            pd.DataFrame({"x": [np.average(NUMBERS["x"], weights=NUMBERS["weight"])], "one": [value]})[[*others, "one"]]
        )
        np.testing.assert_allclose(middle, mean, rtol=1e-10)


def test_a_column_that_differs_by_the_last_digit_alone_has_its_coefficient() -> None:
    at = np.arange(64) % 2
    table = pd.DataFrame({"x": np.where(at, np.nextafter(1e8, 2e8), 1e8), "y": 2.0 * at})
    found = ff.scan(table).fit(LinearRegression(), "y", engine="serial")
    np.testing.assert_allclose(found.coef_, 2.0 / (np.nextafter(1e8, 2e8) - 1e8), rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 3)), min_size=2, max_size=40),
    ends=st.lists(st.integers(0, 40), max_size=6),
    offset=st.sampled_from([0.0, 1e8, -1e12]),
)
def test_moments_are_those_of_rows_that_are_there_as_often_as_they_weigh(
    values: list[tuple[float, int]], ends: list[int], offset: float
) -> None:
    X = np.array([[round(value) + offset] for value, _ in values])
    weight = np.array([float(count) for _, count in values])
    inner = ColumnMoments(has_weight=True)
    parts = cut(Rows(X, None, weight), [min(end, len(X)) for end in ends])
    found = inner.finish(functools.reduce(inner.combine, map(inner.fold, parts)))
    often = np.repeat(X - offset, weight.astype(int), axis=0)
    if not len(often):
        assert np.isnan(found.mean).all()
        return
    np.testing.assert_allclose(found.variance, often.var(axis=0), 1e-12, 1e-12)
    np.testing.assert_allclose(found.mean, often.mean(axis=0) + offset, 1e-14, 1e-12)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize("estimator", [VarianceThreshold(0.5), GaussianNB()])
def test_numbers_whose_squares_are_too_large_for_a_float_have_an_infinite_variance(estimator: Any) -> None:
    draw = np.random.default_rng(0)
    X, y = draw.normal(size=(60, 2)) * [1e300, 1.0], draw.integers(0, 2, 60)
    expected = clone(estimator).fit(X, y)
    parts = cut(Rows(X, y if isinstance(estimator, GaussianNB) else None), [7, 30])
    assert_same(fitted_to_parts(estimator, parts), expected, scale=1e301)
    assert np.isinf(getattr(expected, "variances_" if isinstance(estimator, VarianceThreshold) else "var_")).any()


def test_a_triangle_has_the_same_bits_for_any_number_of_threads() -> None:
    X = np.random.default_rng(0).normal(size=(2_000, 300))  # of fewer columns the bits are the same anyway

    def bits(n_threads: int) -> bytes:
        with threadpoolctl.threadpool_limits(n_threads):
            state = Factor().fold(Rows(X))
            return bytes(Factor().combine(state, state).triangle.tobytes())

    assert bits(1) == bits(2)


@pytest.mark.parametrize("estimator", [LinearRegression(), LinearRegression(fit_intercept=False)])
def test_a_triangle_is_made_block_by_block(estimator: LinearRegression, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.workloads.fit.recipes.triangle.SLICE_ROWS", 37)
    monkeypatch.setattr("fourfold.workloads.fit.recipes.triangle.BLOCK_NUMBERS", 100 * 3)
    rows = rows_of(NUMBERS[["x", "count"]], "value", "weight")
    expected = clone(estimator).fit(rows.X, rows.y, rows.weight)
    assert_same(fitted_to_parts(estimator, cut(rows, [350])), expected)


def small() -> pd.DataFrame:
    return NUMBERS[["x", "count", "value"]].astype("float32")


@pytest.mark.parametrize(
    ("estimator", "target"),
    [
        (MinMaxScaler(), None),
        (MaxAbsScaler(), None),
        (PCA(2), None),
        (LinearRegression(), "weight"),
        (Ridge(), "weight"),
        (GaussianNB(), "kind"),
    ],
)
def test_small_floats_give_small_floats(estimator: Any, target: str | None) -> None:
    rows = rows_of(small(), target)
    expected = type(estimator)(**estimator.get_params()).fit(rows.X, *(() if target is None else (rows.y,)))
    assert_same(fitted_to_parts(estimator, cut(rows, ENDS)), expected, ignore=["epsilon_"])


X_OF_KIND = {"target": "kind", "features": ["count"]}
X_OF_VALUE = {"target": "value", "features": ["x"]}


@pytest.mark.parametrize(
    ("estimator", "options", "error", "message"),
    [
        (PCA(), {"features": ["x", "holes"]}, ValueError, "column 'holes' is nan"),
        (GaussianNB(), {"features": ["holes"], "target": "kind"}, ValueError, "column 'holes' is nan"),
        (StandardScaler(), {"features": ["x", "kind"]}, ValueError, "column 'kind'"),
        (SimpleImputer(), {"features": ["kind"]}, ValueError, "column 'kind'"),
        (SimpleImputer(missing_values=1), {"features": ["holes"]}, ValueError, "column 'holes' is nan"),
        (
            SimpleImputer(missing_values=1, strategy="most_frequent"),
            {"features": ["holes"]},
            ValueError,
            "Input X contains NaN: column 'holes'",
        ),
        (SimpleImputer(missing_values="a"), {"features": ["x"]}, ValueError, "expected to be both numerical"),
        (SimpleImputer(strategy=np.max), {"features": ["x"]}, OptionError, "give the name of a strategy"),
        (SimpleImputer(strategy="constant", fill_value="a"), {"features": ["x"]}, ValueError, "cannot be cast"),
        (
            StandardScaler(),
            {"features": ["count"], "weight": "x"},
            ValueError,
            "Negative values in data passed to `sample_weight`",
        ),
        (StandardScaler(), {"features": ["x"], "weight": "holes"}, ValueError, "sample_weight contains NaN"),
        (MinMaxScaler(), {"features": ["x"], "weight": "weight"}, OptionError, "MinMaxScaler takes no weights"),
        (MinMaxScaler((1, 1)), {"features": ["x"]}, ValueError, "Minimum of desired feature range"),
        (PCA(), {"features": ["x"], "weight": "weight"}, OptionError, "PCA takes no weights"),
        (PCA(svd_solver="randomized"), {"features": ["x"]}, OptionError, "computes exactly here"),
        (PCA(3), {"features": ["x"]}, ValueError, "n_components=3 must be between 0 and"),
        (Ridge(), {"features": ["x"]}, ValueError, "name its column with target="),
        (Ridge(solver="saga"), X_OF_VALUE, OptionError, '"auto" gives the same'),
        (Ridge(solver="lbfgs"), X_OF_VALUE, ValueError, "only when positive=True"),
        (Ridge(alpha=[1.0, 2.0]), X_OF_VALUE, ValueError, "Number of targets and number of penalties"),
        (Ridge(), {"features": ["x"], "target": "holes"}, ValueError, "Input y contains NaN"),
        (LinearRegression(), {"features": ["x"], "target": "kind"}, ValueError, "could not convert string to float"),
        (GaussianNB(), X_OF_VALUE, ValueError, "Unknown label type"),
        (GaussianNB(priors=[1.0]), X_OF_KIND, ValueError, "Number of priors must match"),
        (GaussianNB(priors=[0.5, 0.6, 0.1]), X_OF_KIND, ValueError, "sum of the priors should be 1"),
        (GaussianNB(priors=[1.5, -0.6, 0.1]), X_OF_KIND, ValueError, "Priors must be non-negative"),
        (
            MultinomialNB(),
            {"features": ["x"], "target": "kind"},
            ValueError,
            "Negative values in data passed to MultinomialNB",
        ),
        (SelectKBest(chi2, k=1), {"features": ["x"], "target": "kind"}, ValueError, "Input X must be non-negative"),
        (SelectKBest(mutual_info_classif, k=1), X_OF_KIND, OptionError, "f_classif, f_regression and chi2"),
        (VarianceThreshold(), {"features": ["same"]}, ValueError, "No feature in X meets the variance threshold"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_words(
    estimator: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        ff.scan(NUMBERS).fit(estimator, engine="serial", **options)


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (StandardScaler(), ValueError, "Cannot center sparse matrices"),
        (MinMaxScaler(), TypeError, "does not support sparse input"),
        (GaussianNB(), TypeError, "dense data is required"),
        (LinearRegression(positive=True), TypeError, "dense data is required"),
        (PCA(svd_solver="full"), TypeError, "only support sparse inputs"),
        (SimpleImputer(strategy="most_frequent"), OptionError, "takes sparse columns for"),
        (Ridge(), OptionError, "6,000 sparse ones are too many"),
    ],
)
def test_sparse_rows_that_cannot_be_fitted_are_refused_in_words(estimator: Any, error: type[Exception], message: str) -> None:
    width = 6_000 if isinstance(estimator, Ridge) else 6
    X = sparse.csr_matrix((N_ROWS, width))
    with pytest.raises(error, match=message):
        fitted_to_parts(estimator, [rows_of(X, None if isinstance(estimator, StandardScaler | PCA) else "kind")])


def test_integers_with_gaps_in_one_part_are_what_they_are_in_all() -> None:
    table = pd.DataFrame({"whole": pd.array([3, 3, 1, None, 1, 1], "Int64"), "text": ["a", "b", "b", None, "b", "c"]})
    whole = ff.scan(table).to_pandas()
    estimator = SimpleImputer(strategy="most_frequent")
    for parts in ([0, 2, 4], [0, 3], [0]):
        batches: Sequence[Rows] = [
            Rows(
                whole.iloc[begin:end].assign(
                    whole=whole["whole"][begin:end].astype("float64" if 3 in range(begin, end) else "int64")
                )
            )
            for begin, end in itertools.pairwise([*parts, 6])
        ]
        found = fitted_to_parts(estimator, batches)
        assert [(type(each), each) for each in found.statistics_] == [(float, 1.0), (str, "b")]
