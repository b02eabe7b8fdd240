"""A search over a Dataset: folds by hashes of rows, fits by `Dataset.fit`, scores of its predictions."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import make_scorer, mean_absolute_error
from sklearn.model_selection import GridSearchCV, KFold, PredefinedSplit
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import fourfold as ff
from fourfold.data.draw import mixed
from fourfold.errors import OptionError

pytestmark = pytest.mark.usefixtures("workers_of_tables")

rng = np.random.default_rng(0)
FRAME = pd.DataFrame(rng.normal(size=(120, 3)), columns=["a", "b", "c"]).assign(shop=np.arange(120) % 7)
FRAME["y"] = np.where(FRAME.a + rng.normal(size=120) > 0, "up", "down")
FRAME["amount"] = FRAME.b * 2 + rng.normal(size=120)
FEATURES = ["a", "b", "c"]


def folds(n_folds: int, seed: int = 0) -> PredefinedSplit:
    """The folds that rows fall into by their numbers."""
    shares = (mixed(np.arange(len(FRAME), dtype=np.uint64), seed) >> np.uint64(11)) / 2.0**53
    return PredefinedSplit(np.floor(shares * n_folds).astype(int))


def same_scores(ours: Any, theirs: Any) -> None:
    for name in theirs.cv_results_:
        if "test_" in name or "train_" in name:
            np.testing.assert_allclose(ours.cv_results_[name], theirs.cv_results_[name], rtol=1e-9, err_msg=name)
    assert ours.best_params_ == theirs.best_params_
    assert ours.n_splits_ == theirs.n_splits_


def test_the_table_is_that_of_a_search_in_memory_with_these_folds() -> None:
    pipeline, space = make_pipeline(StandardScaler(), GaussianNB()), {"gaussiannb__var_smoothing": [1e-9, 0.1, 5.0]}
    options = {"scoring": ["accuracy", "roc_auc", "neg_log_loss"], "refit": "roc_auc", "return_train_score": True}
    theirs = GridSearchCV(pipeline, space, cv=folds(3), **options).fit(FRAME[FEATURES], FRAME.y)
    ours = ff.SearchCV(pipeline, space, method="grid", cv=3, **options).fit(ff.scan(FRAME), target="y", features=FEATURES)
    same_scores(ours, theirs)
    assert ours.predict(FRAME[FEATURES]).tolist() == theirs.predict(FRAME[FEATURES]).tolist()
    assert ours.failures_ == []


def test_five_folds_and_the_estimators_own_score_are_what_nobody_asks_for() -> None:
    theirs = GridSearchCV(Ridge(), {"alpha": [0.1, 100.0]}, cv=folds(5, seed=2)).fit(FRAME[FEATURES], FRAME.amount)
    search = ff.SearchCV(Ridge(), {"alpha": [0.1, 100.0]}, method="grid", random_state=2)
    same_scores(search.fit(ff.scan(FRAME), target="amount", features=FEATURES), theirs)


def test_a_score_of_your_own_is_one_of_predictions() -> None:
    scorer = make_scorer(mean_absolute_error, greater_is_better=False)
    theirs = GridSearchCV(Ridge(), {"alpha": [0.1, 100.0]}, cv=folds(3), scoring=scorer).fit(FRAME[FEATURES], FRAME.amount)
    search = ff.SearchCV(Ridge(), {"alpha": [0.1, 100.0]}, method="grid", cv=3, scoring=scorer)
    same_scores(search.fit(ff.scan(FRAME), target="amount", features=FEATURES), theirs)


def test_rows_of_one_group_are_in_one_fold() -> None:
    rows = ff.scan(FRAME)
    search = ff.SearchCV(Ridge(), {"alpha": [1.0]}, method="grid", cv=2).fit(
        rows, target="amount", features=FEATURES, by="shop"
    )
    train, test = rows.split(test=0.5, by="shop")
    model = train.fit(Ridge(), target="amount", features=FEATURES)
    held = test.to_pandas()
    assert search.cv_results_["split0_test_score"][0] == pytest.approx(model.score(held[FEATURES], held.amount))


def test_tpe_proposes_for_a_dataset_too() -> None:
    search = ff.SearchCV(Ridge(), {"alpha": [0.1, 1.0]}, method="tpe", n_trials=3, cv=2, random_state=0)
    assert len(search.fit(ff.scan(FRAME), target="amount", features=FEATURES).study_.trials) == 3


@pytest.mark.filterwarnings("ignore")
def test_a_candidate_that_fails_is_a_row() -> None:
    search = ff.SearchCV(Ridge(), {"alpha": [-1.0, 1.0]}, method="grid", cv=2)
    search.fit(ff.scan(FRAME), target="amount", features=FEATURES)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [True, False]
    assert [(each.candidate, each.kind) for each in search.failures_] == [(0, "raised"), (0, "raised")]


REFUSED = {
    "a splitter": ({"cv": KFold(2)}, {}, "give a number of folds"),
    "halving": ({"method": "halving"}, {}, "draws from rows that are in memory"),
    "a record": ({"run": "somewhere"}, {}, "run= is not for a Dataset"),
    "groups": ({}, {"groups": "shop"}, "groups=….: a Dataset takes target=, features=, weight=, by="),
    "a function of rows": ({"scoring": lambda estimator, X, y: 1.0}, {}, "made by make_scorer"),
    "no recipe": ({"estimator": SVC(), "space": {"C": [1.0]}}, {}, "recipe"),
    "a column that is not there": ({}, {"target": "z"}, "z"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_dataset_cannot_do_is_said(case: str) -> None:
    options, params, said = REFUSED[case]
    given = {"estimator": LinearRegression(), "space": {"fit_intercept": [True]}, "method": "grid", "cv": 2, **options}
    with pytest.raises(OptionError, match=said):
        ff.SearchCV(**given).fit(ff.scan(FRAME), **{"target": "amount", "features": FEATURES, **params})
