"""What a worker does: fit and score the candidates of one unit, on one fold, as scikit-learn's searches do."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fourfold.workloads.tune.search.prefixes import Candidate, Shared


class Job(NamedTuple):
    """What all units of a round have in common; it travels once to each worker.

    Attributes:
        estimator: Cloned for each fit.
        X, y: All rows.
        splits: The rows of each fold: for training, and for the score.
        how: The arguments of scikit-learn's `_fit_and_score` that are the same for all fits.
        config: The configuration of scikit-learn in the process that searches.
        n_candidates: How many there are, for messages.
    """

    estimator: Any
    X: Any
    y: Any
    splits: Sequence[tuple[Any, Any]]
    how: Mapping[str, Any]
    config: Mapping[str, Any]
    n_candidates: int


class Unit(NamedTuple):
    """What a worker does in one go: candidates that share their first steps, on one fold. It is known by its number."""

    number: int
    split: int
    candidates: Sequence[Candidate]


class Fits:
    """A worker's own: built once, with the job, then called for each unit."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shared = Shared()

    def __call__(self, unit: Unit) -> list[dict[str, Any]]:
        from sklearn import config_context

        with config_context(**self._job.config):
            return [self._result(candidate, unit.split) for candidate in unit.candidates]

    def _result(self, candidate: Candidate, split: int) -> dict[str, Any]:
        from sklearn.base import clone
        from sklearn.model_selection._validation import _fit_and_score

        job = self._job
        estimator, one_fit = clone(job.estimator), None
        if candidate.path:
            one_fit = self._shared.of(split, candidate.path)
            estimator.set_params(memory=one_fit)
        train, test = job.splits[split]
        result: dict[str, Any] = _fit_and_score(
            estimator,
            job.X,
            job.y,
            train=train,
            test=test,
            parameters=candidate.params,
            split_progress=(split, len(job.splits)),
            candidate_progress=(candidate.number, job.n_candidates),
            **job.how,
        )
        if one_fit is not None:
            result["fit_time"] += one_fit.saved_s  # as if it had been alone
        return result
