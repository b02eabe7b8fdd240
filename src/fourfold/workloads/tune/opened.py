"""Trials that the study has not been told of yet, and what becomes of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from fourfold.workloads.tune import states


@dataclass
class End:
    """What became of a trial: its state, its values, or why it has none."""

    state: str
    values: list[float] | None = None
    error: str = ""


@dataclass
class Open:
    """A trial that has not been told to the study."""

    trial: optuna.Trial
    sampler: BaseSampler
    ticket: int | None = None
    attempts: int = 0
    n_raised: int = 0
    is_paused: bool = False
    is_to_pause: bool = False
    """It was told to pause, and has not yet."""
    end: End | None = None
    study_attrs: dict[str, Any] = field(default_factory=dict)
    """What the sampler had counted in the study when it was proposed."""
    reported: list[tuple[int, float]] = field(default_factory=list)
    """What its bracket has not heard yet."""
    reported_steps: set[int] = field(default_factory=set)
    first_attrs: dict[str, Any] = field(default_factory=dict)
    """User attributes that it had before it ran, as one that was enqueued has."""
    user_attrs: dict[str, Any] = field(default_factory=dict)
    """Those that it has where it runs: what an attempt has set that came to nothing is not among them."""


class Ended(NamedTuple):
    """A trial as it was when it ended, before it was told; or when it paused, which is no end."""

    trial: FrozenTrial
    end: End | None
    study_attrs: dict[str, Any]


@contextmanager
def asked(study: optuna.Study) -> Iterator[None]:
    """A block in which the study believes that it is optimised: in a callback or objective it may be stopped."""
    before = study._thread_local.in_optimize_loop
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = before


def study_attrs(study: optuna.Study) -> dict[str, Any]:
    """What samplers have noted in a study."""
    attrs = study._storage.get_study_system_attrs(study._study_id)
    return {key: value for key, value in attrs.items() if not key.startswith("fourfold:")}


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the `n_trials` of its study."""
    return trial.state != TrialState.WAITING and trial.system_attrs.get(states.STATE) != states.UNFINISHED


def first_of(study: optuna.Study) -> int:
    """The number of the trial that begins next: one that waits, or a new one."""
    trials = study.get_trials(deepcopy=False)
    return min((each.number for each in trials if each.state == TrialState.WAITING), default=len(trials))
