"""A search counts its fits: how many of all of its rounds, how many have failed, and the best score so far."""

import io
import sys
import threading
from typing import Any

import numpy as np
import pytest
from scipy.stats import uniform
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fourfold as ff
from fourfold.aggregate import progress
from fourfold.workloads.tune.search.shown import Shown

X, y = np.arange(144.0).reshape(72, 2), np.arange(72) % 2


class Scores(ClassifierMixin, BaseEstimator):
    """Its score is what it was told."""

    def __init__(self, c: float = 0.0) -> None:
        self.c = c

    def fit(self, X: Any, y: Any) -> "Scores":
        """Nothing is learned."""
        self.classes_ = np.unique(y)
        return self

    def score(self, X: Any, y: Any) -> float:
        """As told."""
        return self.c


class Watched(io.StringIO):
    """A stderr on which somebody waits for words."""

    def __init__(self) -> None:
        super().__init__()
        self._has_more = threading.Condition()

    def write(self, text: str) -> int:
        """Written, and looked at."""
        with self._has_more:
            count = super().write(text)
            self._has_more.notify_all()
        return count

    def until(self, words: str) -> None:
        """Until they are there."""
        with self._has_more:
            assert self._has_more.wait_for(lambda: words in self.getvalue(), 60), self.getvalue()


def test_lines_have_fits_of_all_how_many_failed_and_the_best_score_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.001)
    stderr, shown = Watched(), Shown(2, "score")
    monkeypatch.setattr(sys, "stderr", stderr)
    with shown.on_screen(8, {"engine": "serial"}):
        stderr.until("SearchCV: 0/8 fits")  # also while the first one takes long
        for candidate, score in [(0, 0.25), (0, 0.5), (1, 0.125)]:
            shown.take_result(candidate, {"fit_error": None, "test_scores": score})
        stderr.until("best 0.375, about")
        shown.take_result(1, {"fit_error": "it raised", "test_scores": float("nan")})
    assert "SearchCV: 4/8 fits" in stderr.getvalue().splitlines()[-1]
    assert ", 1 failed, best 0.375, about" in stderr.getvalue().splitlines()[-1]


def reports(**options: Any) -> Any:
    return ff.SearchCV(Scores(), **{"cv": 2, "random_state": 0, **options}).fit(X, y).reports_


def test_the_verdict_of_each_round_has_its_fits_all_of_the_search_and_the_best() -> None:
    first, second = reports(space={"c": uniform(0, 1)}, method="tpe", n_trials=12)
    assert (first.n_items, second.n_items) == (16, 8)
    assert "16 fits with" in first.verdict
    assert "16 of 24 fits are done; best 0." in first.verdict
    assert "24 of 24 fits are done" in second.verdict


def test_the_total_of_halving_is_that_of_all_its_rounds() -> None:
    for options in (
        {},
        {"n_trials": 9, "factor": 2},
        {"n_trials": 6, "min_resources": "exhaust"},
        {"n_trials": 9, "min_resources": 16, "aggressive_elimination": True},
    ):
        told = reports(space={"c": uniform(0, 1)}, method="halving", **options)
        n_fits = sum(report.n_items for report in told)
        assert len(told) > 1
        assert f"{n_fits} of {n_fits} fits are done" in told[-1].verdict


def test_who_is_best_among_fewer_rows_is_not_the_best_of_the_next_round() -> None:
    shown = Shown(1, "score")
    shown.take_result(0, {"fit_error": None, "test_scores": 0.9})
    shown.begin_round(is_comparable=True)
    assert shown.words() == "best 0.9"
    shown.begin_round(is_comparable=False)
    shown.take_result(0, {"fit_error": None, "test_scores": {"score": 0.5}})
    shown.take_result(1, {"fit_error": "it raised", "test_scores": float("nan")})
    assert (shown.words(), shown.finished, shown.failures) == ("best 0.5", 3, 1)


def test_groups_of_shared_steps_are_told_with_their_fits() -> None:
    pipeline = make_pipeline(StandardScaler(), GaussianNB())
    search = ff.SearchCV(pipeline, {"gaussiannb__var_smoothing": [1e-9, 0.1, 1.0]}, method="grid", cv=2).fit(X, y)
    assert "2 groups of 6 fits with" in search.reports_[0].verdict
    assert search.reports_[0].n_items == 6


def test_a_search_over_a_dataset_counts_its_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd
    from sklearn.linear_model import Ridge

    counted: list[Shown] = []
    monkeypatch.setattr("fourfold.workloads.tune.search.estimator.Shown", lambda: counted.append(Shown()) or counted[-1])
    rows = ff.scan(pd.DataFrame(X, columns=["a", "b"]))
    search = ff.SearchCV(Ridge(), {"alpha": [0.1, 1.0]}, method="grid", cv=2).fit(rows, target="b")
    assert (counted[0].finished, counted[0].total) == (4, 4)
    assert counted[0].best == pytest.approx(search.best_score_)


def test_nothing_is_shown_where_the_search_is_itself_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(sys, "stderr", Watched())

    def searched(c: float) -> float:
        search = ff.SearchCV(Scores(), {"c": [c]}, method="grid", cv=2, verbose=1).fit(X, y)
        return float(search.best_score_)

    assert ff.map(searched, [1.0], engine="serial", progress=False) == [1.0]
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
