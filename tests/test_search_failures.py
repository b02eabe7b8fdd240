"""A search outlives its candidates: those that crash, hang or raise are rows, and a search whose own process died goes on."""

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import run_script, started, until
from scipy.stats import uniform
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, ShuffleSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import fourfold as ff
from fourfold.errors import RunChanged

pytestmark = pytest.mark.usefixtures("workers_of_tables")

X = np.arange(24.0).reshape(12, 2)
y = np.arange(12) % 2


class Does(ClassifierMixin, BaseEstimator):
    """Says 1 for each row, once it has done what it was told."""

    def __init__(self, what: str = "", c: float = 0.0) -> None:
        self.what, self.c = what, c

    def fit(self, X: Any, y: Any) -> "Does":
        """As told."""
        if self.what == "raise":
            raise ValueError("as told")
        if self.what == "exit":
            os._exit(3)
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "sys.exit":
            raise SystemExit(4)
        if self.what == "hang":
            signal.pause()
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        """1."""
        return np.ones(len(X), int)


def searched(estimator: Any, space: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ff.SearchCV(estimator, space, method="grid", cv=2, **options).fit(X, y)


@pytest.mark.parametrize(("what", "kind", "said"), [("exit", "lost", "code 3"), ("kill", "lost", "SIGKILL")])
def test_a_candidate_that_kills_its_worker_is_a_row_with_the_reason(what: str, kind: str, said: str) -> None:
    search = searched(Does(), {"what": ["", what]}, n_jobs=2)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]
    assert search.best_params_ == {"what": ""}
    assert [(each.candidate, each.split, each.params) for each in search.failures_] == [
        (1, 0, {"what": what}),
        (1, 1, {"what": what}),
    ]
    assert all(said in each.reason for each in search.failures_), search.failures_


def test_what_a_crash_left_out_is_in_the_warning_as_what_was_raised_is() -> None:
    search = ff.SearchCV(Does(), {"what": ["", "exit", "raise"]}, method="grid", cv=2, n_jobs=2)
    with (
        pytest.warns(FitFailedWarning, match=r"(?s)4 fits failed out of a total of 6.*code 3"),
        pytest.warns(UserWarning, match="non-finite"),
    ):
        search.fit(X, y)
    assert {each.kind for each in search.failures_ if each.candidate == 2} == {"raised"}
    assert {each.reason for each in search.failures_ if each.candidate == 2} == {"ValueError: as told"}


def test_sys_exit_in_a_fit_is_a_row() -> None:
    search = searched(Does(), {"what": ["", "sys.exit"]}, n_jobs=2, error_score=-1.0)
    assert search.cv_results_["mean_test_score"].tolist() == [0.5, -1.0]


@pytest.mark.slow
def test_a_fit_that_takes_too_long_is_a_row_and_only_that() -> None:
    search = searched(Does(), {"what": ["", "hang"]}, timeout=1.0)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]
    assert [each.reason.partition(":")[0] for each in search.failures_] == ["ItemTimeout"] * 2


@pytest.fixture
def large_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few candidates: each death takes its time."""
    monkeypatch.setattr("fourfold.workloads.tune.search.prefixes.UNITS_PER_WORKER", 1)


@pytest.mark.usefixtures("large_groups")
def test_of_candidates_that_share_a_step_only_the_one_that_crashes_has_no_score() -> None:
    pipeline = Pipeline([("scale", StandardScaler()), ("does", Does())])
    space = {"does__what": ["", "exit", "raise"], "does__c": [1]}
    search = searched(pipeline, space, n_jobs=2, return_train_score=True)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True, True]
    assert np.isnan(search.cv_results_["mean_train_score"]).tolist() == [False, True, True]
    assert search.reports_[-1].n_failures == 2  # of the groups that were lost each candidate ran alone


@pytest.mark.usefixtures("large_groups")
def test_where_each_group_has_a_candidate_that_crashes_the_others_have_their_scores() -> None:
    pipeline = Pipeline([("scale", StandardScaler()), ("does", Does())])
    values = ["exit", ""]
    search = searched(pipeline, {"does__c": [0, 1], "does__what": values}, n_jobs=2)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [True, False] * 2


def test_with_several_scores_a_crash_has_each_of_them() -> None:
    search = searched(Does(), {"what": ["", "exit"]}, n_jobs=2, scoring=["accuracy", "f1"], refit="f1", error_score=-2)
    assert search.cv_results_["mean_test_accuracy"][1] == search.cv_results_["mean_test_f1"][1] == -2


def test_error_score_raise_raises_for_a_crash() -> None:
    with pytest.raises(ff.errors.WorkerLost, match="code 3"):
        searched(Does(), {"what": ["exit"]}, n_jobs=2, error_score="raise")


@pytest.mark.slow
@pytest.mark.parametrize("is_recorded", [False, True])
def test_neighbours_that_all_crash_do_not_end_the_search(
    is_recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourfold.distribute.schedule.HOPELESS", 4)
    space = [{"what": ["exit"], "c": [1, 2, 3, 4, 5]}, {"c": [6, 7, 8, 9]}]
    search = searched(Does(), space, n_jobs=2, run=tmp_path / "run" if is_recorded else None)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [True] * 5 + [False] * 4
    assert [(each.candidate, each.split) for each in search.failures_] == [(row, at) for row in range(5) for at in range(2)]
    assert len(search.reports_) == 1  # that of the call that came to its end


@pytest.mark.slow
def test_a_search_of_which_nothing_works_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.distribute.schedule.HOPELESS", 4)
    monkeypatch.setattr("fourfold.workloads.tune.search.rounds.ATTEMPTS", 2)
    with pytest.raises(ff.errors.WorkersKeepDying, match="code 3"):
        searched(Does(), {"what": ["exit"], "c": list(range(9))}, n_jobs=2)


# ---- one word for all that failed ----------------------------------------------------------------------------------------


def lacks_depth(estimator: Any, X: Any, y: Any) -> float:
    """A score that cannot be had."""
    return float(estimator.depth)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_scorer_that_raises_is_one_warning_and_each_fit_has_its_row(n_jobs: int) -> None:
    search = ff.SearchCV(Does(), {"c": [1.0, 2.0]}, method="grid", cv=2, scoring=lacks_depth, n_jobs=n_jobs)
    with (
        pytest.warns(UserWarning, match=r"(?s)Scoring failed for 4 fits out of a total of 4.*'c': 1.0.*and 3 more") as told,
        pytest.warns(UserWarning, match="non-finite"),
    ):
        search.fit(X, y)
    assert len(told) == 1
    assert [(each.candidate, each.split, each.kind) for each in search.failures_] == [
        (row, split, "unscored") for row in range(2) for split in range(2)
    ]
    assert search.failures_[0].reason == "AttributeError: 'Does' object has no attribute 'depth'"


def test_of_several_scores_the_one_that_raises_is_named_and_the_others_are_there() -> None:
    scoring = {"right": "accuracy", "deep": lacks_depth}
    search = searched(Does(), {"c": [1.0]}, scoring=scoring, refit="right", error_score=-1.0, return_train_score=True)
    assert search.cv_results_["mean_test_right"].tolist() == [0.5]
    assert search.cv_results_["mean_test_deep"].tolist() == search.cv_results_["mean_train_deep"].tolist() == [-1.0]
    assert {each.text.partition(":")[0] for each in search.failures_} == {"deep"}


def scores_some(estimator: Any, X: Any, y: Any) -> dict[str, float]:
    """Several, of some."""
    return {"c": 1.0 / estimator.c}


def test_a_function_of_several_scores_that_raises_for_some_leaves_the_others_theirs() -> None:
    search = searched(Does(), {"c": [0.0, 2.0]}, scoring=scores_some, refit="c", error_score=-1.0)
    assert search.cv_results_["mean_test_c"].tolist() == [-1.0, 0.5]


def test_a_search_without_its_target_says_so() -> None:
    with pytest.raises(ValueError, match=r"All the 2 fits failed\. Does needs a target, and there is none: fit\(X, y\)"):
        ff.SearchCV(Does(), {"c": [1.0]}, method="grid", cv=2, scoring=lacks_depth).fit(X)


def test_a_target_of_one_class_is_told_where_all_fits_fail() -> None:
    with pytest.raises(ValueError, match=r"All the 2 fits failed\. y has one class only, 'a'") as raised:
        ff.SearchCV(LogisticRegression(), {"C": [1.0]}, method="grid", cv=2).fit(X, ["a"] * len(X))
    assert str(raised.value).count("Traceback") == 1


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_error_names_its_candidate_and_its_fold(n_jobs: int) -> None:
    with pytest.raises(ValueError, match="as told") as raised:
        searched(Does(), {"what": ["raise"]}, error_score="raise", n_jobs=n_jobs)
    assert "candidate 0, {'what': 'raise'}, on fold 0 (" in "".join(raised.value.__notes__)


# ---- the search itself dies ----------------------------------------------------------------------------------------------

SEARCH = """
    import json, os, sys
    import numpy as np
    import fourfold as ff
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import KFold

    class Counts(ClassifierMixin, BaseEstimator):
        def __init__(self, c=0): self.c = c
        def fit(self, X, y):
            with open(f"{sys.argv[1]}/fits", "a") as file:
                file.write(f"{self.c}\\n")
            if self.c == 7 and os.path.exists(f"{sys.argv[1]}/wait"):
                open(f"{sys.argv[1]}/wait").read()
            self.classes_ = np.unique(y)
            return self
        def predict(self, X): return np.full(len(X), self.c % 2)

    if __name__ == "__main__":
        X, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
        space = {"c": list(range(8))}
        search = ff.SearchCV(Counts(), space, method="grid", cv=KFold(2), n_jobs=2, refit=False, run=sys.argv[1] + "/run")
        search.fit(X, y)
        print(json.dumps([search.cv_results_["mean_test_score"].tolist(), search.reports_[0].n_recorded]))
"""


def fits(folder: Path) -> list[str]:
    path = folder / "fits"
    return path.read_text().split() if path.exists() else []


@pytest.mark.slow
def test_a_search_whose_process_was_killed_does_only_the_rest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "wait")
    with started(SEARCH, str(tmp_path), folder=tmp_path) as script:
        until(lambda: "7" in fits(tmp_path), "a fit waits", timeout=60)
        until(lambda: [*tmp_path.glob("run/1/*")], "the run is recorded")
        script.process.kill()
        assert script.end().survivors == []
    before = len(fits(tmp_path))
    (tmp_path / "wait").unlink()
    ended = run_script(SEARCH, str(tmp_path), folder=tmp_path)
    assert ended.code == 0, ended.stderr
    scores, n_recorded = json.loads(ended.stdout)
    assert scores == [0.5] * 8
    assert 0 < n_recorded < 16
    assert len(fits(tmp_path)) - before == 16 - n_recorded


def test_a_search_that_is_done_fits_nothing_again(tmp_path: Path) -> None:
    first = searched(Does(), {"c": [1.0, 2.0], "what": ["", "raise"]}, run=tmp_path / "run", refit=False)
    again = searched(Does(), {"c": [1.0, 2.0], "what": ["", "raise"]}, run=tmp_path / "run", refit=False)
    assert [report.n_recorded for report in again.reports_] == [8]
    for name, column in first.cv_results_.items():
        np.testing.assert_array_equal(again.cv_results_[name], column)  # times as well
    assert again.failures_ == first.failures_


def test_each_round_of_halving_is_recorded(tmp_path: Path) -> None:
    options = {"method": "halving", "cv": KFold(2), "random_state": 0, "n_trials": 4, "factor": 2, "run": tmp_path / "run"}
    search = ff.SearchCV(Does(), {"c": [1.0, 2.0, 3.0, 4.0]}, refit=False, **options)
    rows, target = np.repeat(X, 4, axis=0), np.repeat(y, 4)
    n_items = [report.n_items for report in search.fit(rows, target).reports_]
    assert len(n_items) > 1
    assert [report.n_recorded for report in search.fit(rows, target).reports_] == n_items


def test_a_recorded_search_refuses_other_rows(tmp_path: Path) -> None:
    searched(Does(), {"c": [1.0]}, run=tmp_path / "run")
    with pytest.raises(RunChanged, match="X changed"):
        ff.SearchCV(Does(), {"c": [1.0]}, method="grid", cv=2, run=tmp_path / "run").fit(X + 1, y)
    with pytest.raises(RunChanged, match="the folds changed"):
        ff.SearchCV(Does(), {"c": [1.0]}, method="grid", cv=3, run=tmp_path / "run").fit(X, y)
    with pytest.raises(RunChanged, match="item 0 is not the item"):
        searched(Does(), {"c": [2.0]}, run=tmp_path / "run")
    assert searched(Does(), {"c": [1.0]}, run=tmp_path / "run", verbose=1).reports_[0].n_recorded == 2


# ---- what cannot be done is said at once ---------------------------------------------------------------------------------

REFUSED = {
    "n_trials of a grid": ({"method": "grid", "n_trials": 3}, r"n_trials=3 is not for method=\"grid\""),
    "a distribution in a grid": ({"method": "grid", "space": {"c": uniform()}}, "has a distribution of them"),
    "drawn, recorded, no seed": ({"run": "somewhere"}, "need random_state="),
    "folds that differ": ({"method": "grid", "run": "somewhere", "cv": ShuffleSplit(2)}, "set its random_state"),
    "many scores and tpe": ({"method": "tpe", "scoring": ["f1", "accuracy"], "refit": False}, "needs one score to go by"),
    "many scores and halving": ({"method": "halving", "scoring": ["f1"]}, "needs one score to go by"),
    "nothing to start from": ({"method": "halving", "min_resources": "exhaust"}, "give one of them"),
    "no dict": ({"space": ["c"]}, "must be a dict of parameters' names"),
    "an engine that does not exist": ({"engine": "spork"}, "unknown engine 'spork'"),
    "a method that does not exist": ({"method": "gird"}, "The 'method' parameter of SearchCV must be a str among"),
    "no jobs": ({"n_jobs": 0}, "n_jobs == 0 has no meaning"),
    "halving's alone": ({"method": "grid", "factor": 2}, r"factor=2 is for method=\"halving\", not for \"grid\""),
    "halving by nothing": ({"method": "halving", "factor": 1}, "factor=1 must be larger than 1"),
    "an unknown parameter": ({"space": {"C": [1.0]}}, r"\(did you mean 'c'\?\): Invalid parameter 'C' for estimator Does"),
    "an unknown one in a later part": ({"space": [{"c": [1.0]}, {"what": [""], "cc": [2.0]}]}, "Invalid parameter 'cc'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said_before_a_fit(case: str) -> None:
    options, said = REFUSED[case]
    with pytest.raises(ValueError, match=said):
        ff.SearchCV(Does("kill"), **{"space": {"c": [1.0]}, **options}).fit(X, y)


def test_a_parameter_that_lacks_the_name_of_its_step_is_told_with_it() -> None:
    pipeline = Pipeline([("scale", StandardScaler()), ("does", Does("kill"))])
    with pytest.raises(ValueError, match=r"did you mean 'does__c'\?.*Invalid parameter 'c' for estimator Pipeline"):
        ff.SearchCV(pipeline, {"c": [1.0]}).fit(X, y)


def test_parameters_of_a_step_that_is_searched_itself_are_taken() -> None:
    pipeline = Pipeline([("scale", StandardScaler()), ("last", Does("raise"))])
    search = ff.SearchCV(pipeline, {"last": [Does()], "last__c": [1.0, 2.0]}, method="grid", cv=2).fit(X, y)
    assert [each["last__c"] for each in search.cv_results_["params"]] == [1.0, 2.0]


class TakesAll(Does):
    """As boosters have it: more parameters than its `get_params` tells."""

    def set_params(self, **params: Any) -> "TakesAll":
        vars(self).update(params)
        return self


def test_an_estimator_may_take_parameters_that_it_does_not_tell() -> None:
    search = ff.SearchCV(TakesAll(), {"depth": [1, 2]}, method="grid", cv=2).fit(X, y)
    assert [each["depth"] for each in search.cv_results_["params"]] == [1, 2]
