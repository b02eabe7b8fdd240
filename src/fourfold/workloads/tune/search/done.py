"""What one search has evaluated so far, as the table that scikit-learn makes of it."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fourfold.workloads.tune.search.failed import FitFailure, failures_of, raise_if_all_failed, warn_of
from fourfold.workloads.tune.search.fits import Job, Result
from fourfold.workloads.tune.search.placed import Placed
from fourfold.workloads.tune.search.prefixes import Values
from fourfold.workloads.tune.search.rounds import Rounds
from fourfold.workloads.tune.search.shown import Shown, score_of

OURS = ("kind", "score_error")
"""What results have that scikit-learn does not know."""


class Rows:
    """The rows of a search, in memory, and what its fits have in common.

    Args:
        search: The SearchCV.
        X, y: All rows.
        scorers: Of scikit-learn.
        routed: The parameters of `fit`, by who gets them.
        rounds: Runs the fits.
        placed: None; or where the rows are from the first round to the last.
    """

    def __init__(
        self, search: Any, X: Any, y: Any, scorers: Any, routed: Any, rounds: Rounds, placed: Placed | None = None
    ) -> None:
        self._placed = placed
        self._search, self._X, self._y, self._routed, self._rounds = search, X, y, routed, rounds
        self._how = {
            "scorer": scorers,
            "fit_params": routed.estimator.fit,
            "score_params": routed.scorer.score,
            "return_train_score": search.return_train_score,
            "return_times": True,
            "error_score": search.error_score,
            "verbose": search.verbose,
        }

    def results(self, candidates: Sequence[Mapping[str, Any]], cv: Any, run: Any = None) -> list[Result]:
        """What came of each candidate on each fold of a splitter, None for that of the search. `run` does it in other ways."""
        results: list[Result] = (run or self._rounds.results)(self._job(cv, len(candidates)), candidates)
        return results

    def _job(self, cv: Any, n_candidates: int) -> Job:
        from sklearn import get_config
        from sklearn.base import clone

        search, X, y = self._search, self._X, self._y
        splits = list((cv or search._checked_cv_orig).split(X, y, **self._routed.splitter.split))
        if len(splits) != search.n_splits_:
            raise ValueError(
                "cv.split and cv.get_n_splits return inconsistent results. "
                f"Expected {search.n_splits_} splits, got {len(splits)}"
            )
        if search.verbose > 0:
            n_fits = n_candidates * len(splits)
            print(f"Fitting {len(splits)} folds for each of {n_candidates} candidates, totalling {n_fits} fits")
        if self._placed is not None:
            X = y = None
        return Job(clone(search.estimator), X, y, splits, self._how, get_config(), n_candidates, self._placed)


class Done:
    """What one `fit` has evaluated so far.

    Args:
        search: The SearchCV.
        results_of: Evaluates candidates; takes them, a splitter or None, and `run` of `scores`.
        metric: The name of the score to go by; None when there is none.
        shown: Is told of rounds.
        why: Has a cause that all fits may fail for; "" for no idea.
    """

    def __init__(
        self,
        search: Any,
        results_of: Callable[..., list[Result]],
        metric: str | None,
        shown: Shown,
        why: Callable[[], str] = str,
    ) -> None:
        self._search, self._results_of, self._metric, self._shown, self._why = search, results_of, metric, shown, why
        self.candidates: list[Mapping[str, Any]] = []
        self.results: list[Result] = []
        self.table: dict[str, Any] = {}
        self._more: dict[str, list[Any]] = defaultdict(list)
        self._values = Values()
        self._known: dict[Any, list[Result]] = {}

    def evaluate(
        self,
        candidate_params: Any,
        cv: Any = None,
        more_results: Mapping[str, Sequence[Any]] | None = None,
        callback_ctx: Any = None,
    ) -> dict[str, Any]:
        """Fit and score candidates; returns the table of all so far. The names are scikit-learn's.

        Raises:
            ValueError: All these fits failed, or there were none.
        """
        new = self._add(list(candidate_params), cv, more_results)
        at = len(self.results) - len(new)
        failures = [each for each in self.failures() if each.candidate >= at // self._search.n_splits_]
        raise_if_all_failed(failures, len(new), self._why)
        return self._made()

    def scores(
        self,
        candidates: Sequence[Mapping[str, Any]],
        more_results: Mapping[str, Sequence[Any]] | None = None,
        run: Any = None,
    ) -> list[float]:
        """Fit and score candidates; returns the score to go by of each, NaN where it has none. All may fail, this time."""
        return self._means(self._add(list(candidates), None, more_results, run=run))

    def scores_once(self, candidates: Sequence[Mapping[str, Any]]) -> list[float]:
        """As `scores`; a candidate that was there before has the results that it had."""
        keys = [self._values.key_of(each) for each in candidates]
        new = {key: each for key, each in zip(keys, candidates, strict=True) if key not in self._known}
        self._shown.begin_round(is_comparable=True)
        found, n_splits = self._results_of([*new.values()], None) if new else [], self._search.n_splits_
        for at, key in enumerate(new):
            self._known[key] = found[at * n_splits : (at + 1) * n_splits]
        self._shown.finished += (len(candidates) - len(new)) * n_splits
        results = [dict(result) for key in keys for result in self._known[key]]
        self._note(candidates, results)
        return self._means(results)

    def scores_found(self) -> Iterator[Any]:
        """Of each fit so far."""
        return (result["test_scores"] for result in self.results)

    def end(self) -> None:
        """Make the table, and tell of what failed.

        Raises:
            ValueError: All fits failed.
        """
        failures = self.failures()
        raise_if_all_failed(failures, len(self.results), self._why)
        warn_of(failures, len(self.results), self._search.error_score)
        if not self.table:
            self._made()

    def failures(self) -> list[FitFailure]:
        """Those of all fits so far that have no score of their own."""
        return failures_of(self.candidates, self.results, self._search.n_splits_)

    def _add(
        self, candidates: list[Any], cv: Any, more_results: Mapping[str, Sequence[Any]] | None, **named: Any
    ) -> list[Result]:
        self._shown.begin_round(is_comparable=False)
        new = self._results_of(candidates, cv, **named)
        if not new:
            raise ValueError("No fits were performed. Was the CV iterator empty? Were there no candidates?")
        self._note(candidates, new)
        for key, value in (more_results or {}).items():
            self._more[key].extend(value)
        return new

    def _note(self, candidates: Sequence[Any], results: Sequence[Result]) -> None:
        self.candidates += candidates
        self.results += results

    def _means(self, results: Sequence[Result]) -> list[float]:
        self._check_metric(results)
        scores, n_splits = [score_of(result, self._metric) for result in results], self._search.n_splits_
        return [math.fsum(scores[at : at + n_splits]) / n_splits for at in range(0, len(scores), n_splits)]

    def _made(self) -> dict[str, Any]:
        """The table of all so far."""
        plain = [{key: value for key, value in result.items() if key not in OURS} for result in self.results]
        if callable(self._search.scoring):
            _insert_error_scores(plain, self._search.error_score)
        self.table = self._search._format_results(self.candidates, self._search.n_splits_, plain, self._more)
        return self.table

    def _check_metric(self, new: Sequence[Result]) -> None:
        scores = next((each["test_scores"] for each in new if isinstance(each["test_scores"], dict)), None)
        if scores is not None and self._metric not in scores:
            raise ValueError(
                f"this search needs one score to go by: name one of {', '.join(scores)} in refit=, not {self._search.refit!r}"
            )


def _insert_error_scores(results: Sequence[Result], error_score: Any) -> None:
    """What a function of several scores has not given has the score of an error: only what it has given says their names."""
    scores = next((each["test_scores"] for each in results if isinstance(each["test_scores"], dict)), None)
    if scores is None:
        return
    for result in results:
        for key in ("test_scores", "train_scores"):
            if key in result and not isinstance(result[key], dict):
                result[key] = dict.fromkeys(scores, error_score)
