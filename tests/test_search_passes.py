"""Learners with `partial_fit` under a pruner: few passes for all, more for the best, which go on from what they have learned."""

import time
import warnings
from typing import Any

import numpy as np
import pytest
from scipy.stats import loguniform
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import make_classification
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import KFold, cross_val_score
from sklearn.svm import SVC

import fourfold as ff
from fourfold.errors import OptionError

pytestmark = pytest.mark.usefixtures("workers_of_tables")

X, y = make_classification(90, 5, random_state=0)


class Counts(ClassifierMixin, BaseEstimator):
    """Its score is `rate` × the passes that it has had: what `partial_fit` was called with is counted."""

    def __init__(self, rate: float = 0.0, fails_at: int = 99) -> None:
        self.rate, self.fails_at = rate, fails_at

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> "Counts":
        """One pass more."""
        self.n_passes_ = getattr(self, "n_passes_", 0) + 1
        if self.n_passes_ == 1:
            self.classes_ = classes
        if self.n_passes_ >= self.fails_at:
            raise ValueError("no further")
        return self

    def fit(self, X: Any, y: Any) -> "Counts":
        """Is not called."""
        raise AssertionError

    def predict(self, X: Any) -> Any:
        """Of no use."""
        return np.zeros(len(X))

    def score(self, X: Any, y: Any) -> float:
        """By passes."""
        return float(self.rate * self.n_passes_)


def climbed(rates: list[float], pruner: Any = None, **options: Any) -> Any:
    given = {"estimator": Counts(), "method": "grid", "cv": 2, "pruner": pruner or ff.ASHA(1, 9, 3), **options}
    return ff.SearchCV(space={"rate": rates}, **given).fit(X, y)


def test_the_best_third_goes_on_at_each_rung_from_what_it_has_learned() -> None:
    search = climbed([float(rate) for rate in range(9)])
    table = search.cv_results_
    assert table["n_resources"].tolist() == [1] * 9 + [3] * 3 + [9]
    assert table["iter"].tolist() == [0] * 9 + [1] * 3 + [2]
    assert [each["rate"] for each in table["params"][9:]] == [6.0, 7.0, 8.0, 8.0]
    assert table["mean_test_score"][-1] == 8.0 * 9
    assert (search.best_index_, search.best_params_) == (12, {"rate": 8.0})
    assert search.best_estimator_.n_passes_ == 9
    assert search.best_estimator_.classes_.tolist() == [0, 1]


class Slow(Counts):
    """A pass takes a moment."""

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> "Slow":
        """Busy for 10 ms."""
        end = time.perf_counter() + 0.01
        while time.perf_counter() < end:
            pass
        super().partial_fit(X, y, classes)
        return self


def test_the_time_of_a_fit_counts_all_passes_that_a_candidate_has_had() -> None:
    table = climbed([1.0, 2.0, 3.0], estimator=Slow()).cv_results_
    assert (table["mean_fit_time"] >= 0.01 * table["n_resources"]).all()


def test_who_is_best_is_asked_of_those_with_the_most_passes() -> None:
    search = climbed([-1.0, -2.0, -3.0])
    assert search.cv_results_["mean_test_score"].tolist() == [-1.0, -2.0, -3.0, -3.0, -9.0]
    assert search.best_index_ == 4


def test_hyperband_begins_some_candidates_higher() -> None:
    search = climbed([float(rate) for rate in range(8)], ff.Hyperband(1, 9, 3))
    first = search.cv_results_["n_resources"][search.cv_results_["iter"] == 0]
    assert {*first.tolist()} == {1, 3, 9}
    assert search.best_estimator_.n_passes_ == 9


def test_a_candidate_that_fails_on_its_way_is_a_row_and_another_goes_on() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = ff.SearchCV(
            Counts(rate=1.0), {"fails_at": [99, 2, 1, 99, 99, 99]}, method="grid", cv=2, pruner=ff.ASHA(1, 9, 3)
        ).fit(X, y)
    assert search.best_estimator_.n_passes_ == 9
    assert {(each.candidate < 6, each.params["fails_at"]) for each in search.failures_} == {(True, 1), (False, 2)}
    assert {each.reason for each in search.failures_} == {"ValueError: no further"}


def test_when_the_only_one_that_goes_on_fails_another_takes_its_place() -> None:
    space = [{"rate": [9.0], "fails_at": [9]}, {"rate": [float(rate) for rate in range(8)]}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = ff.SearchCV(Counts(), space, method="grid", cv=2, pruner=ff.ASHA(1, 9, 3)).fit(X, y)
    assert {(each.candidate, each.params["rate"]) for each in search.failures_} == {(12, 9.0)}
    assert search.best_params_ == {"rate": 7.0}
    assert search.best_estimator_.n_passes_ == 9


def test_when_nobody_comes_to_the_end_the_best_is_of_those_that_came_farthest() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = climbed([1.0, 2.0, 3.0], estimator=Counts(fails_at=4))
    assert (search.best_params_, search.cv_results_["n_resources"][search.best_index_]) == ({"rate": 3.0}, 3)


def test_a_refit_by_a_function_is_checked_as_in_scikit_learn() -> None:
    with pytest.raises(IndexError, match="out of range"):
        climbed([1.0, 2.0], refit=lambda table: 99)


def test_passes_by_legs_are_passes_in_one_go_on_any_number_of_workers() -> None:
    options = {"n_trials": 9, "random_state": 0, "cv": KFold(3), "pruner": ff.ASHA(1, 9, 3)}
    one = ff.SearchCV(SGDClassifier(random_state=0), {"alpha": loguniform(1e-5, 1)}, **options).fit(X, y)
    two = ff.SearchCV(SGDClassifier(random_state=0), {"alpha": loguniform(1e-5, 1)}, n_jobs=2, **options).fit(X, y)
    assert one.cv_results_["params"] == two.cv_results_["params"]
    assert one.cv_results_["mean_test_score"].tolist() == two.cv_results_["mean_test_score"].tolist()

    class Whole(SGDClassifier):
        """Its fit is nine passes."""

        def fit(self, X: Any, y: Any) -> Any:
            for _ in range(9):
                self.partial_fit(X, y, classes=[0, 1])
            return self

    expected = cross_val_score(Whole(random_state=0, **one.best_params_), X, y, cv=KFold(3))
    assert [one.cv_results_[f"split{at}_test_score"][one.best_index_] for at in range(3)] == expected.tolist()


def test_a_search_by_passes_that_is_done_runs_nothing_again(tmp_path: Any) -> None:
    first, again = (climbed([1.0, 2.0, 3.0], run=tmp_path / "run") for _ in range(2))
    assert [report.n_recorded for report in again.reports_] == [report.n_items for report in first.reports_] == [6, 2, 2]
    assert again.cv_results_["mean_test_score"].tolist() == first.cv_results_["mean_test_score"].tolist()


REFUSED = {
    "no partial_fit": (ff.SearchCV(SVC(), {"C": [1]}, pruner=ff.ASHA(1, 9)), "has none"),
    "halving": (ff.SearchCV(Counts(), {"rate": [1]}, method="halving", pruner=ff.ASHA(1, 9)), "says itself who goes on"),
    "a pruner of another kind": (ff.SearchCV(Counts(), {"rate": [1]}, pruner="asha"), "The 'pruner' parameter of SearchCV"),
    "a time limit": (ff.SearchCV(Counts(), {"rate": [1]}, pruner=ff.ASHA(1, 9), timeout=1), "do not go together"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said_before_a_pass(case: str) -> None:
    search, said = REFUSED[case]
    with pytest.raises(ValueError, match=said):
        search.fit(X, y)


def test_several_scores_need_one_to_go_by() -> None:
    with pytest.raises(OptionError, match="name it in refit="):
        climbed([1.0], scoring=["accuracy", "f1"], refit=False)
