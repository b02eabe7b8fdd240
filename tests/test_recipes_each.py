"""Each class that has a recipe, over 1, 7 and 64 pieces: what its own fit makes of rows that are hard, and does with new ones."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from recipes import N_ROWS, NUMBERS, assert_same, rows_per_piece
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.feature_selection import SelectKBest, SelectPercentile, VarianceThreshold, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from tables import small_pieces
from test_recipes import Cut

import fourfold as ff
from fourfold.workloads.fit.registry import OF_SKLEARN

__all__ = ["small_pieces"]


def _table() -> pd.DataFrame:
    """Numbers as they are in NUMBERS, and categories: one is in the last row only, and one column has gaps."""
    draw = np.random.default_rng(13)
    table = NUMBERS.copy()
    table["town"] = draw.choice(["oslo", "rome", "lima"], N_ROWS, p=[0.6, 0.35, 0.05])
    table.loc[N_ROWS - 1, "town"] = "quito"
    table["sky"] = table["kind"].where(draw.random(N_ROWS) < 0.8, None)
    table["text"] = [
        f"{town} has {kind} and {'wind' if row % 3 else 'calm'}"
        for row, (town, kind) in enumerate(table[["town", "kind"]].to_numpy())
    ]
    return table


TABLE = _table()
NEW = TABLE.iloc[::-9].assign(
    town=lambda rows: ["nowhere", *rows["town"][1:]], sky=lambda rows: [None, "snow", *rows["sky"][2:]]
)
HOLES, WHOLE, NEAR = ["x", "far", "same", "same_far", "holes", "count"], ["x", "far", "same", "count"], ["x", "same", "count"]
KINDS = ["town", "sky", "count"]


class Each(NamedTuple):
    """An estimator and what it is fitted to: see `recipes.Case`."""

    estimator: Any
    features: Any
    target: str | None = None
    weight: str | None = None
    scale: float = 1.0
    ignore: tuple[str, ...] = ()


CASES = [
    Each(
        ColumnTransformer(
            [
                ("n", make_pipeline(SimpleImputer(), StandardScaler()), HOLES),
                ("k", OneHotEncoder(handle_unknown="ignore"), KINDS),
            ]
        ),
        [*HOLES, "town", "sky"],
    ),
    Each(CountVectorizer(), "text"),
    Each(FeatureUnion([("a", MinMaxScaler()), ("b", KBinsDiscretizer(3, strategy="uniform"))]), ["x", "far"]),
    Each(FunctionTransformer(np.negative, feature_names_out="one-to-one"), HOLES),
    Each(GaussianNB(), WHOLE, "kind", "weight"),
    Each(HashingVectorizer(n_features=32), "text"),
    Each(KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf"), ["x", "far", "value"]),
    Each(KMeans(3, random_state=0), ["x", "far", "same"], weight="weight", ignore=("labels_",)),
    Each(LinearRegression(), WHOLE, "value", "weight", scale=1e8),
    Each(LogisticRegression(solver="newton-cholesky", tol=1e-12), NEAR, "kind", "weight", 1e4, ("n_iter_",)),  # two searches
    Each(MaxAbsScaler(), HOLES),
    Each(MinMaxScaler(), HOLES),
    Each(MultinomialNB(), ["same", "count"], "kind", "weight"),
    Each(OneHotEncoder(min_frequency=30, handle_unknown="infrequent_if_exist"), KINDS),
    Each(OrdinalEncoder(max_categories=3, handle_unknown="use_encoded_value", unknown_value=-1), KINDS),
    Each(PCA(2, svd_solver="full"), ["x", "count", "value"]),
    Each(make_pipeline(TargetEncoder(cv=KFold(5)), StandardScaler(), Ridge()), ["town", "sky"], "value"),
    Each(Ridge(), WHOLE, "value", "weight", scale=1e8),
    Each(RobustScaler(), HOLES),
    Each(SelectKBest(f_classif, k=2), ["x", "count", "value"], "kind"),
    Each(SelectPercentile(f_classif, percentile=40), ["x", "count", "value"], "kind"),
    Each(SimpleImputer(add_indicator=True), HOLES),
    Each(StandardScaler(), HOLES, weight="weight"),
    Each(TargetEncoder(), ["town", "sky"], "kind"),
    Each(TfidfVectorizer(max_features=6), "text"),
    Each(VarianceThreshold(), HOLES),
]
each_class = pytest.mark.parametrize("case", CASES, ids=[type(case.estimator).__name__ for case in CASES])


def test_each_class_that_has_a_recipe_is_here() -> None:
    assert sorted(type(case.estimator).__name__ for case in CASES) == sorted(OF_SKLEARN)


@each_class
def test_over_1_7_and_64_pieces_it_is_what_its_own_fit_makes(case: Each, small_pieces: Cut) -> None:
    X = TABLE[case.features]
    y = () if case.target is None else (TABLE[case.target],)
    weight = {} if case.weight is None else {_weight_of(case.estimator): TABLE[case.weight]}
    expected = clone(case.estimator).fit(X, *y, **weight)
    names = [case.features] if isinstance(case.features, str) else case.features
    rows = ff.scan(TABLE[[*dict.fromkeys([*names, *filter(None, (case.target, case.weight))])]])
    new = NEW[case.features]
    for n_pieces in (1, 7, 64):
        small_pieces(rows_per_piece(n_pieces), 1 << 30)
        assert len(rows._plan.pieces()) == n_pieces
        found = rows.fit(clone(case.estimator), case.target, case.features, case.weight, engine="serial")
        assert_same(found, expected, case.scale, case.ignore)
        assert_says_the_same(found, expected, new)


def _weight_of(estimator: Any) -> str:
    return f"{estimator.steps[-1][0]}__sample_weight" if isinstance(estimator, Pipeline) else "sample_weight"


def assert_says_the_same(found: Any, expected: Any, new: Any) -> None:
    method = "transform" if hasattr(expected, "transform") and not hasattr(expected, "predict") else "predict"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found unknown categories")
        one, other = (np.asarray(_dense(getattr(each, method)(new))) for each in (found, expected))
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    if one.dtype.kind == "f":
        np.testing.assert_allclose(one, other, 1e-7, 1e-7)
    else:
        assert one.tolist() == other.tolist()


def _dense(value: Any) -> Any:
    return value.toarray() if hasattr(value, "toarray") else value
