"""What every recipe is tested with: estimators beside rows, how rows are cut, and how two fitted estimators are compared.

A line in CASES is all that a new recipe needs: tests/test_recipes.py does with each case what is promised of all recipes.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, SelectPercentile, VarianceThreshold, chi2, f_classif, f_regression
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

import fourfold as ff
from fourfold.workloads.fit.contract import About, Pass, Rows, drive
from fourfold.workloads.fit.registry import fit_with

N_ROWS = 448


def _numbers() -> pd.DataFrame:
    draw = np.random.default_rng(7)
    table = pd.DataFrame(
        {
            "x": draw.normal(size=N_ROWS),
            "far": 1e8 + draw.normal(size=N_ROWS),
            "same": 3.7,
            "same_far": 1e8,
            "holes": draw.normal(2.0, 5.0, N_ROWS),
            "count": draw.integers(0, 9, N_ROWS),
        }
    )
    table["kind"] = draw.choice(["rain", "fog", "sun"], N_ROWS, p=[0.6, 0.3, 0.1])
    table["value"] = 3.0 * table["x"] - 0.5 * table["count"] + draw.normal(size=N_ROWS) + 20.0
    table["weight"] = draw.uniform(0.0, 2.0, N_ROWS)
    table.loc[::5, "weight"] = 0.0
    table.loc[::3, "holes"] = np.nan
    table.loc[:100, "holes"] = np.nan  # a part without any value
    return table


NUMBERS = _numbers()


def _mixed() -> pd.DataFrame:
    """Texts, integers, numbers, truths and categories, with and without gaps, and a column of nothing but gaps."""
    draw = np.random.default_rng(11)
    table = pd.DataFrame(
        {
            "text": draw.choice(["a", "bb", "ccc", "dd"], N_ROWS).astype(object),
            "whole": draw.integers(0, 5, N_ROWS),
            "gaps": draw.integers(0, 5, N_ROWS).astype("float64"),
            "number": draw.choice([0.5, 1.5, -2.0], N_ROWS),
            "even": np.arange(N_ROWS) % 2 + 7.0,  # all values are there equally often
            "truth": draw.integers(0, 2, N_ROWS).astype(bool),
            "nothing": np.nan,
        }
    )
    table.loc[draw.integers(0, N_ROWS, 60), "text"] = None
    table.loc[300:, "gaps"] = np.nan
    table["nullable"] = table["gaps"].astype("Int64")
    table["category"] = table["text"].astype("category")
    table["small"] = table["number"].astype("float32")
    return ff.scan(table).to_pandas()  # None of a text column is what pandas makes of it


MIXED = _mixed()
MIXED_NUMBERS = ["whole", "gaps", "number", "even", "nothing"]
ALL = ["x", "far", "same", "same_far", "holes", "count"]
WHOLE = ["x", "far", "same", "same_far", "count"]
NEAR = ["x", "same", "count"]
"""Where scikit-learn's own sums keep enough digits to be compared with."""


class Case(NamedTuple):
    """An estimator, and what it is fitted to.

    Attributes:
        name: For pytest.
        estimator: Not fitted.
        features: Columns of X.
        target: The column of y.
        weight: The column of weights.
        table: The rows.
        scale: Numbers of this size may be off by 1e-12 of it: what scikit-learn itself is off by, near zero.
        ignore: Attributes that are not compared.
    """

    name: str
    estimator: Any
    features: Sequence[str]
    target: str | None = None
    weight: str | None = None
    table: pd.DataFrame = NUMBERS
    scale: float = 1.0
    ignore: Sequence[str] = ()

    def fitted_by_itself(self) -> Any:
        """By scikit-learn, on all rows."""
        y = () if self.target is None else (self.table[self.target],)
        weight = {} if self.weight is None else {"sample_weight": self.table[self.weight]}
        return clone(self.estimator).fit(self.table[list(self.features)], *y, **weight)


CASES = [
    Case("StandardScaler", StandardScaler(), ALL),
    Case("StandardScaler of whole columns", StandardScaler(), WHOLE),
    Case("StandardScaler without mean", StandardScaler(with_mean=False), ALL),
    Case("StandardScaler without std", StandardScaler(with_std=False), ALL),
    Case("StandardScaler without anything", StandardScaler(with_mean=False, with_std=False), ALL),
    Case("StandardScaler with weights", StandardScaler(), ALL, weight="weight"),
    Case(
        "StandardScaler with weights and without anything",
        StandardScaler(with_mean=False, with_std=False),
        ALL,
        weight="weight",
    ),
    Case("MinMaxScaler", MinMaxScaler(), ALL),
    Case("MinMaxScaler of a range, clipped", MinMaxScaler((-2, 3), clip=True), ALL),
    Case("MaxAbsScaler", MaxAbsScaler(), ALL),
    Case("SimpleImputer", SimpleImputer(), ALL),
    Case(
        "SimpleImputer of gaps, kept", SimpleImputer(keep_empty_features=True, add_indicator=True), MIXED_NUMBERS, table=MIXED
    ),
    Case("SimpleImputer of gaps", SimpleImputer(add_indicator=True), MIXED_NUMBERS, table=MIXED),
    Case("SimpleImputer of a number", SimpleImputer(missing_values=2), ["whole", "even", "number"], table=MIXED),
    Case("SimpleImputer by median", SimpleImputer(strategy="median"), ALL),
    Case(
        "SimpleImputer by median, kept", SimpleImputer(strategy="median", keep_empty_features=True), MIXED_NUMBERS, table=MIXED
    ),
    Case("SimpleImputer by median of a number", SimpleImputer(missing_values=2, strategy="median"), ["whole"], table=MIXED),
    Case("SimpleImputer by median of small", SimpleImputer(strategy="median"), ["small"], table=MIXED),
    Case(
        "SimpleImputer of nullable numbers",
        SimpleImputer(missing_values=pd.NA, strategy="mean"),
        ["nullable", "gaps"],
        table=MIXED,
    ),
    Case("SimpleImputer by most frequent", SimpleImputer(strategy="most_frequent"), MIXED_NUMBERS, table=MIXED),
    Case("SimpleImputer by most frequent text", SimpleImputer(strategy="most_frequent"), list(MIXED), table=MIXED),
    Case(
        "SimpleImputer by most frequent text, kept",
        SimpleImputer(strategy="most_frequent", keep_empty_features=True, add_indicator=True),
        ["text", "whole", "gaps", "nothing", "truth"],
        table=MIXED,
    ),
    Case(
        "SimpleImputer by most frequent other text",
        SimpleImputer(missing_values="dd", strategy="most_frequent", add_indicator=True),
        ["whole", "truth", "word"],
        table=MIXED.assign(word=MIXED["text"].fillna("dd")),
    ),
    Case("SimpleImputer of whole numbers", SimpleImputer(missing_values=3, strategy="most_frequent"), ["whole"], table=MIXED),
    Case("SimpleImputer by a constant", SimpleImputer(strategy="constant", add_indicator=True), list(MIXED), table=MIXED),
    Case("SimpleImputer by a number", SimpleImputer(strategy="constant", fill_value=-1.0), MIXED_NUMBERS, table=MIXED),
    Case(
        "SimpleImputer by a text, kept",
        SimpleImputer(strategy="constant", fill_value="none", keep_empty_features=True),
        ["text", "nothing"],
        table=MIXED,
    ),
    Case("VarianceThreshold", VarianceThreshold(), ALL),
    Case("VarianceThreshold of one", VarianceThreshold(1.0), ALL),
    Case("SelectKBest by f_classif", SelectKBest(f_classif, k=1), ["x", "count", "value"], "kind"),
    Case("SelectKBest by f_regression", SelectKBest(f_regression, k=2), ["x", "count"], "value"),
    Case("SelectKBest by chi2", SelectKBest(chi2, k=1), ["same", "count", "weight"], "kind"),
    Case("SelectPercentile", SelectPercentile(f_classif, percentile=50), ["x", "count", "value"], "kind"),
    Case("PCA", PCA(), ["x", "count", "value"]),
    Case("PCA of one hundred million", PCA(3, svd_solver="full"), WHOLE),
    Case("PCA of two", PCA(2, svd_solver="full", whiten=True), ["x", "count", "value"]),
    Case("PCA of a share", PCA(0.9), ["x", "count", "value"]),
    Case("PCA by likelihood", PCA("mle"), ["x", "count", "value"]),
    Case("PCA of covariances", PCA(2, svd_solver="covariance_eigh"), ["x", "count", "value"]),
    Case("LinearRegression", LinearRegression(), WHOLE, "value", scale=1e8),
    Case("LinearRegression with weights", LinearRegression(), NEAR, "value", "weight"),
    Case("LinearRegression through zero", LinearRegression(fit_intercept=False), NEAR, "value"),
    Case("LinearRegression above zero", LinearRegression(positive=True), ["x", "count"], "value"),
    Case("Ridge", Ridge(), WHOLE, "value", scale=1e8),
    Case("Ridge with weights", Ridge(alpha=10.0), NEAR, "value", "weight"),
    Case("Ridge through zero", Ridge(fit_intercept=False, solver="cholesky"), NEAR, "value"),
    Case("Ridge by svd", Ridge(solver="svd"), NEAR, "value"),
    Case("GaussianNB", GaussianNB(), WHOLE, "kind"),
    Case("GaussianNB with weights", GaussianNB(var_smoothing=1e-3), NEAR, "kind", "weight"),
    Case("GaussianNB with priors", GaussianNB(priors=[0.2, 0.3, 0.5]), NEAR, "kind"),
    Case("MultinomialNB", MultinomialNB(), ["same", "count", "weight"], "kind"),
    Case("MultinomialNB with weights", MultinomialNB(alpha=0.5, fit_prior=False), ["same", "count"], "kind", "weight"),
    Case(
        "MultinomialNB with a prior", MultinomialNB(alpha=[1.0, 2.0], class_prior=[0.2, 0.3, 0.5]), ["same", "count"], "kind"
    ),
]


def assert_same(found: Any, expected: Any, scale: float = 1.0, ignore: Sequence[str] = ()) -> None:
    """Two fitted estimators have the same attributes: their names, types, shapes and values."""
    names = {name for name in vars(expected) if name.endswith("_") and not name.startswith("__")}.difference(ignore)
    assert {name for name in vars(found) if name.endswith("_")}.difference(ignore) == names
    for name in sorted(names) + (["steps"] if hasattr(expected, "steps") else []):
        _assert_same_value(name, getattr(found, name), getattr(expected, name), scale)


def _assert_same_value(name: str, found: Any, expected: Any, scale: float) -> None:
    if isinstance(expected, BaseEstimator):
        assert type(found) is type(expected), name
        assert_same(found, expected, scale)
        return
    if isinstance(expected, list | tuple) or (
        isinstance(expected, np.ndarray) and any(isinstance(each, np.ndarray) for each in expected)
    ):
        assert (type(found), len(found)) == (type(expected), len(expected)), name
        for one, other in zip(found, expected, strict=True):
            _assert_same_value(name, one, other, scale)
        return
    if expected is None or isinstance(expected, str | dict):
        assert found == expected, name
        return
    one, other = np.asarray(found), np.asarray(expected)
    assert (one.dtype, one.shape) == (other.dtype, other.shape), (name, one.dtype, other.dtype, one.shape, other.shape)
    if one.dtype.kind == "f":
        rtol = 1e-10 if one.dtype.itemsize == 8 else 1e-3  # scikit-learn computes with small floats
        np.testing.assert_allclose(one, other, rtol, 1e-12 * scale if rtol == 1e-10 else 1e-6, err_msg=name)
    else:
        assert [(type(each), each) if each == each else "NaN" for each in one.ravel().tolist()] == [
            (type(each), each) if each == each else "NaN" for each in other.ravel().tolist()
        ], name


def state_of(fitted: Any) -> dict[str, bytes | str]:
    """The bits of a fitted estimator."""
    return {
        name: np.asarray(value).tobytes() if np.asarray(value).dtype != object else repr(value)
        for name, value in vars(fitted).items()
        if name.endswith("_")
    }


def run_over(parts: Sequence[Rows]) -> Callable[[list[Pass]], list[Any]]:
    """What `drive` wants, for rows that are in parts already: one state per part, joined from left to right."""

    def one(wanted: Pass) -> Any:
        state = None
        for part in parts:
            rows = part
            for seen in wanted.seen:
                rows = seen(rows)
            found = wanted.aggregator.fold(rows)
            state = found if state is None else wanted.aggregator.combine(state, found)
        return wanted.aggregator.finish(state)

    return lambda passes: [one(wanted) for wanted in passes]


def fitted_to_parts(estimator: Any, parts: Sequence[Rows]) -> Any:
    """The estimator, fitted to rows that are in parts."""
    X = parts[0].X
    about = About(
        X.iloc[:0] if hasattr(X, "iloc") else None,
        X.shape[1],
        hasattr(X, "tocsr"),
        parts[0].y is not None,
        parts[0].weight is not None,
    )
    return drive(fit_with(clone(estimator), about), run_over(parts))


def cut(rows: Rows, ends: Sequence[int]) -> list[Rows]:
    """Rows in parts that end there; parts without rows are left out."""
    places = [0, *sorted(ends), rows.n_rows]
    parts = []
    for begin, end in itertools.pairwise(places):
        if begin < end:
            X = rows.X.iloc[begin:end] if hasattr(rows.X, "iloc") else rows.X[begin:end]
            parts.append(Rows(X, *(None if each is None else each[begin:end] for each in (rows.y, rows.weight))))
    return parts


def rows_per_piece(n_pieces: int) -> int:
    """So that the rows of a case come in so many pieces."""
    return math.ceil(N_ROWS / n_pieces)
