"""Candidates from Optuna's TPE: proposed in batches, told in order, so that they depend on the seed alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fourfold.workloads.tune.search.spaces import Axis

BATCH = 8
"""Candidates that are proposed before any of them is told. Smaller: fewer fits at once, and workers that wait for the last of
each batch. Larger: candidates that know less of those before them. With five folds these are 40 fits. Not measured."""

SPACE = "space"
"""The name under which the study keeps which dict of a list of them a candidate is of."""


class Proposals:
    """An Optuna study, and how its trials are parameters.

    Args:
        parts: The dicts of the space.
        seed: Of the sampler.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]], seed: int) -> None:
        import optuna

        self._axes = [{name: Axis(name, values) for name, values in part.items()} for part in parts]
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        quiet = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # "A new study created": nobody asked for one
        try:
            self.study = optuna.create_study(direction="maximize", sampler=sampler)
        finally:
            optuna.logging.set_verbosity(quiet)

    def search(self, n_trials: int, score: Callable[[list[dict[str, Any]]], Sequence[float]]) -> None:
        """Propose so many candidates, a batch at a time. `score` has one number for each, NaN where there is none."""
        for begin in range(0, n_trials, BATCH):
            asked = [self.study.ask() for _ in range(min(BATCH, n_trials - begin))]
            candidates = [self._candidate(trial) for trial in asked]
            for trial, value in zip(asked, score(candidates), strict=True):
                self._tell(trial, float(value))

    def _candidate(self, trial: Any) -> dict[str, Any]:
        part, prefix = 0, ""
        if len(self._axes) > 1:
            part = trial.suggest_categorical(SPACE, tuple(range(len(self._axes))))
            prefix = f"{part}."  # a parameter may have other values in another dict
        return {name: axis.proposed(trial, f"{prefix}{name}") for name, axis in self._axes[part].items()}

    def _tell(self, trial: Any, value: float) -> None:
        from optuna.trial import TrialState

        if value != value:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, value)
