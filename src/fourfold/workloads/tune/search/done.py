"""What one search has evaluated so far, as the table that scikit-learn makes of it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fourfold.workloads.tune.search.fits import Job
from fourfold.workloads.tune.search.rounds import Result, Rounds


class Rows:
    """The rows of a search, in memory, and what its fits have in common.

    Args:
        search: The SearchCV.
        X, y: All rows.
        scorers: Of scikit-learn.
        routed: The parameters of `fit`, by who gets them.
    """

    def __init__(self, search: Any, X: Any, y: Any, scorers: Any, routed: Any) -> None:
        self._search, self._X, self._y, self._routed = search, X, y, routed
        self._how = {
            "scorer": scorers,
            "fit_params": routed.estimator.fit,
            "score_params": routed.scorer.score,
            "return_train_score": search.return_train_score,
            "return_times": True,
            "error_score": search.error_score,
            "verbose": search.verbose,
        }

    def job(self, cv: Any, n_candidates: int) -> Job:
        """For the fits of so many candidates on the folds of a splitter; None for that of the search."""
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
        return Job(clone(search.estimator), X, y, splits, self._how, get_config(), n_candidates)


class Done:
    """What one `fit` has evaluated so far.

    Args:
        search: The SearchCV.
        rounds: Runs the fits, and keeps what failed.
        rows: None where they are not in memory.
    """

    def __init__(self, search: Any, rounds: Rounds, rows: Rows | None) -> None:
        self._search, self.rounds, self._rows = search, rounds, rows
        self.candidates: list[Mapping[str, Any]] = []
        self.results: list[Result] = []
        self.table: dict[str, Any] = {}
        self._more: dict[str, list[Any]] = defaultdict(list)
        self._is_judged = False

    def evaluate(
        self,
        candidate_params: Any,
        cv: Any = None,
        more_results: Mapping[str, Sequence[Any]] | None = None,
        callback_ctx: Any = None,
        judge: bool = True,
        run: Callable[..., list[Result]] | None = None,
    ) -> dict[str, Any]:
        """Fit and score candidates; returns the table of all so far. Most names are scikit-learn's.

        `run` does it in another way than fit by fit; with `judge=False` nobody is told of failures before the end.
        """
        from sklearn.model_selection._validation import _insert_error_scores, _warn_or_raise_about_fit_failures

        candidates, search = list(candidate_params), self._search
        job = None if self._rows is None else self._rows.job(cv, len(candidates))
        results = (run or self.rounds.results)(job, candidates)  # type: ignore[arg-type]
        if not results:
            raise ValueError("No fits were performed. Was the CV iterator empty? Were there no candidates?")
        self._is_judged = judge
        if judge:
            _warn_or_raise_about_fit_failures(results, search.error_score)
        if callable(search.scoring):
            _insert_error_scores(results, search.error_score)
        self.candidates += candidates
        self.results += results
        for key, value in (more_results or {}).items():
            self._more[key].extend(value)
        self.table = search._format_results(self.candidates, search.n_splits_, self.results, self._more)
        return self.table

    def judge_at_end(self) -> None:
        """Warn of fits that failed, or raise when all did, unless that was done round by round."""
        from sklearn.model_selection._validation import _warn_or_raise_about_fit_failures

        if not self._is_judged:
            _warn_or_raise_about_fit_failures(self.results, self._search.error_score)
