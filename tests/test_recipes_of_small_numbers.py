"""Columns of float32: what is fitted to them has the types that scikit-learn gives it, and works on such rows."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.linear_model import LinearRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import KBinsDiscretizer, RobustScaler, StandardScaler

import fourfold as ff

draw = np.random.default_rng(3)
FEATURES = ["a", "b"]
TABLE = pd.DataFrame(draw.exponential(size=(60, 2)).astype("float32"), columns=FEATURES).assign(
    kind=draw.integers(0, 2, 60), weight=draw.uniform(0.5, 2.0, 60)
)
BY_MEANS = "averaged_inverted_cdf"
CASES: list[tuple[Any, str | None, str | None]] = [
    (RobustScaler(), None, None),
    (KBinsDiscretizer(3, strategy="uniform"), None, None),
    (KBinsDiscretizer(3, strategy="kmeans"), None, None),
    (KBinsDiscretizer(3, quantile_method=BY_MEANS), None, None),
    (KBinsDiscretizer(3, quantile_method=BY_MEANS), None, "weight"),
    (KMeans(3, random_state=0), None, None),
    (GaussianNB(), "kind", None),
    (LinearRegression(positive=True, fit_intercept=False), "kind", None),
    (StandardScaler(with_mean=False, with_std=False), None, "weight"),
]


@pytest.mark.parametrize(("estimator", "target", "weight"), CASES, ids=[f"{each[0]} {each[2]}" for each in CASES])
def test_small_floats_give_the_types_of_its_own_fit(estimator: Any, target: str | None, weight: str | None) -> None:
    y = () if target is None else (TABLE[target],)
    weights = {} if weight is None else {"sample_weight": TABLE[weight]}
    expected = clone(estimator).fit(TABLE[FEATURES], *y, **weights)
    columns = [*FEATURES, *filter(None, (target, weight))]
    found = ff.scan(TABLE[columns]).fit(clone(estimator), target, FEATURES, weight, engine="serial")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = "transform" if hasattr(found, "transform") else "predict"
        np.testing.assert_allclose(*(_dense(getattr(each, method)(TABLE[FEATURES])) for each in (found, expected)), rtol=1e-5)
    for name in (name for name in vars(expected) if name.endswith("_") and name != "labels_"):
        assert _types(getattr(found, name)) == _types(getattr(expected, name)), name


def test_kmeans_predicts_small_floats() -> None:
    fitted = ff.scan(TABLE[FEATURES]).fit(KMeans(3, random_state=0), engine="serial")
    assert fitted.predict(TABLE[FEATURES]).tolist() == KMeans(3, random_state=0).fit_predict(TABLE[FEATURES]).tolist()


def test_a_later_step_of_a_pipeline_is_given_small_floats_too() -> None:
    for last in (KMeans(3, random_state=0), KBinsDiscretizer(2), RobustScaler()):
        steps = Pipeline([("scale", StandardScaler()), ("last", last)])
        found, expected = ff.scan(TABLE[FEATURES]).fit(clone(steps), engine="serial"), clone(steps).fit(TABLE[FEATURES])
        method = "predict" if hasattr(expected, "predict") else "transform"
        one, other = (_dense(getattr(each, method)(TABLE[FEATURES])) for each in (found, expected))
        np.testing.assert_allclose(one, other, rtol=1e-5, strict=True)


def _types(value: Any) -> Any:
    array = np.asarray(value)
    return [_types(each) for each in array] if array.dtype == object and array.ndim else array.dtype


def _dense(value: Any) -> Any:
    return value.toarray() if hasattr(value, "toarray") else value
