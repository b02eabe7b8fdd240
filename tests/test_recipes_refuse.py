"""What recipes refuse before a state grows, and only all rows together can show."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler, TargetEncoder
from tables import small_pieces
from test_recipes import Cut

import fourfold as ff

__all__ = ["small_pieces"]
draw = np.random.default_rng(5)
TABLE = pd.DataFrame(
    {"a": draw.random(40), "kind": draw.integers(0, 2, 40), "value": draw.random(40), "nothing": 0.0, "word": ["x", "y"] * 20}
)


def own_message(estimator: Any, target: str | None, **weights: Any) -> str:
    y = () if target is None else (TABLE[target],)
    with pytest.raises(ValueError, match=r"Unknown label type|non-zero") as raised:
        clone(estimator).fit(TABLE[["a"]], *y, **weights)
    return str(raised.value)


@pytest.mark.parametrize(
    ("estimator", "target"),
    [
        (StandardScaler(), None),
        (KBinsDiscretizer(2, strategy="uniform"), None),
        (KMeans(2), None),
        (LinearRegression(), "value"),
        (Ridge(), "value"),
        (GaussianNB(), "kind"),
        (MultinomialNB(), "kind"),
    ],
)
def test_weights_that_are_all_0_are_refused(estimator: Any, target: str | None, small_pieces: Cut) -> None:
    small_pieces(16, 1 << 30)
    rows = ff.scan(TABLE[["a", *filter(None, [target]), "nothing"]])
    message = own_message(estimator, target, sample_weight=TABLE["nothing"])
    with pytest.raises(ValueError, match=message):
        rows.fit(clone(estimator), target, ["a"], "nothing", engine="serial")


def test_weights_that_are_all_0_are_refused_behind_other_steps() -> None:
    rows = ff.scan(TABLE[["a", "value", "nothing"]])
    with pytest.raises(ValueError, match="at least one non-zero"):
        rows.fit(make_pipeline(StandardScaler(), Ridge()), "value", ["a"], "nothing", engine="serial")


@pytest.mark.parametrize("estimator", [GaussianNB(), MultinomialNB(), SelectKBest(chi2, k=1)])
def test_a_target_of_a_regression_is_refused_by_what_wants_classes(estimator: Any) -> None:
    assert own_message(estimator, "value").startswith("Unknown label type")
    with pytest.raises(ValueError, match="Unknown label type"):
        ff.scan(TABLE[["a", "value"]]).fit(clone(estimator), "value", engine="serial")


def test_a_column_whose_bins_are_all_too_narrow_is_named() -> None:
    narrow = pd.DataFrame({"a": TABLE["a"], "narrow": TABLE["a"] * 1e-9})
    with pytest.warns(UserWarning, match="too small"), pytest.raises(ValueError, match="'narrow' has no bin"):
        ff.scan(narrow).fit(KBinsDiscretizer(3), engine="serial")


def test_a_target_encoder_that_is_told_of_two_classes_numbers_all_there_are() -> None:
    """As scikit-learn does, whose numbers of labels it takes the means of."""
    X, y = TABLE[["word"]], TABLE["value"]
    expected = TargetEncoder(target_type="binary").fit(X, y)
    found = ff.scan(TABLE[["word", "value"]]).fit(TargetEncoder(target_type="binary"), "value", engine="serial")
    np.testing.assert_allclose(found.encodings_, expected.encodings_)
    np.testing.assert_array_equal(found.classes_, expected.classes_)
