"""What a worker does: fit and score the candidates of one unit, on one fold, as scikit-learn's searches do."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fourfold.workloads.tune.search.placed import ABSENT
from fourfold.workloads.tune.search.prefixes import Candidate, Shared

Result = dict[str, Any]
"""What scikit-learn's `_fit_and_score` returns: scores, times, and the text of the error, `fit_error`. Here also the text of
what scores raised, `score_error`, and `kind`: what became of the worker, where it was that."""


class Job(NamedTuple):
    """What all units of a round have in common; it travels once to each worker.

    Attributes:
        estimator: Cloned for each fit.
        X, y: All rows; None where `placed` has them.
        splits: The rows of each fold: for training, and for the score.
        how: The arguments of scikit-learn's `_fit_and_score` that are the same for all fits.
        config: The configuration of scikit-learn in the process that searches.
        n_candidates: How many there are, for messages.
        placed: None; or, in a worker, X and y as it has found them, False where it has not. Before, what finds them.
    """

    estimator: Any
    X: Any
    y: Any
    splits: Sequence[tuple[Any, Any]]
    how: Mapping[str, Any]
    config: Mapping[str, Any]
    n_candidates: int
    placed: Any = None

    def with_rows(self) -> "Job | None":
        """In a worker: itself, with X and y; None where this machine does not have them."""
        if self.placed is None:
            return self
        return None if self.placed is False else self._replace(X=self.placed[0], y=self.placed[1], placed=None)

    def parts(self) -> dict[str, Any]:
        """What a recorded round is the same by, by the names that users know."""
        how = dict(self.how)
        how.pop("verbose")
        return {
            "the estimator": self.estimator,
            "X": self.X,
            "y": self.y,
            "the folds": self.splits,
            "scoring": how.pop("scorer"),
            "error_score, return_train_score or a parameter of fit": how,
            "the configuration of scikit-learn": dict(self.config),
            "the number of candidates": self.n_candidates,
        }


class Unit(NamedTuple):
    """What a worker does in one go: candidates that share their first steps, on one fold. It is known by its number."""

    number: int
    split: int
    candidates: Sequence[Candidate]

    def __repr__(self) -> str:  # in messages
        if len(self.candidates) == 1:
            return f"candidate {self.candidates[0].number}, {dict(self.candidates[0].params)}, on fold {self.split}"
        return f"candidates {', '.join(str(each.number) for each in self.candidates)} on fold {self.split}"


class Fits:
    """A worker's own: built once, with the job, then called for each unit."""

    def __init__(self, job: Job) -> None:
        self._job = job.with_rows()
        self._shared = Shared()

    def __call__(self, unit: Unit) -> list[Result] | str:
        from sklearn import config_context

        job = self._job
        if job is None:
            return ABSENT
        with config_context(**job.config):
            return [self._result(job, candidate, unit.split) for candidate in unit.candidates]

    def _result(self, job: Job, candidate: Candidate, split: int) -> Result:
        from sklearn.base import clone

        estimator, one_fit = clone(job.estimator), None
        if candidate.path:
            one_fit = self._shared.of(split, candidate.path)
            estimator.set_params(memory=one_fit)
        result = fit_and_score(job, estimator, candidate, split, candidate.params)
        if one_fit is not None:
            result["fit_time"] += one_fit.saved_s  # as if it had been alone
        return result


def fit_and_score(job: Job, estimator: Any, candidate: Candidate, split: int, parameters: Mapping[str, Any] | None) -> Result:
    """What comes of an estimator with these parameters on a fold."""
    from sklearn.model_selection._validation import _fit_and_score

    from fourfold.workloads.tune.search.noted import noted

    train, test = job.splits[split]
    scorer = noted(job.how["scorer"], job.how["error_score"])
    result: Result = _fit_and_score(
        estimator,
        job.X,
        job.y,
        train=train,
        test=test,
        parameters=parameters,
        split_progress=(split, len(job.splits)),
        candidate_progress=(candidate.number, job.n_candidates),
        **{**job.how, "scorer": scorer},
    )
    if scorer.errors:
        result["score_error"] = scorer.errors[0]
    return result
