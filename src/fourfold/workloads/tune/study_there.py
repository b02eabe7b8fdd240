"""The study of a trial, as far as it can be asked from where the trial runs."""

from typing import Any

import optuna

from fourfold.workloads.tune.asking import Ask, Job

OF_STUDY = frozenset(
    {
        *("best_params", "best_value", "best_values", "best_trial", "best_trials", "trials", "user_attrs"),
        *("metric_names", "get_trials", "set_user_attr", "stop"),
    }
)
"""What an objective may ask its study for."""


class StudyThere:
    """The study of a trial, which is at the desk.

    Args:
        ask: The way there.
        job: The trial.
    """

    def __init__(self, ask: Ask, job: Job) -> None:
        self._ask, self._job = ask, job

    @property
    def study_name(self) -> str:
        """As in Optuna."""
        return self._job.study_name

    @property
    def directions(self) -> list[optuna.study.StudyDirection]:
        """As in Optuna."""
        return [optuna.study.StudyDirection[each] for each in self._job.directions]

    @property
    def direction(self) -> optuna.study.StudyDirection:
        """As in Optuna."""
        if len(self._job.directions) > 1:
            raise RuntimeError("a study with several directions has no single one: look at `directions`")
        return self.directions[0]

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[Any]:
        """As in Optuna."""
        value: list[Any] = self._ask("study", self._job.key, "get_trials", (False, states))
        return value

    def set_user_attr(self, key: str, value: Any) -> None:
        """As in Optuna."""
        self._ask("study", self._job.key, "set_user_attr", (key, value))

    def stop(self) -> None:
        """As in Optuna: no trial is started any more."""
        self._ask("study", self._job.key, "stop", ())

    def __getattr__(self, name: str) -> Any:
        if name not in OF_STUDY:
            raise AttributeError(
                f"the study of a trial has no {name!r} where the trial runs. It has: {', '.join(sorted(OF_STUDY))}"
            )
        return self._ask("study", self._job.key, name, None)
