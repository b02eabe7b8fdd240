"""Trials that the study has not been told of yet, and what becomes of them."""

import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from fourfold.records import Failure
from fourfold.workloads.tune import states
from fourfold.workloads.tune.drawing import sampled_by

NOTE = "fourfold: "
"""Begins what we add to an exception."""


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
    is_cut: bool = False
    """The line of its ticket has ended: nothing more comes from there."""
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
    last: tuple[int, float] | None = None
    """The step and value that it has reported last."""
    began_at: float = field(default_factory=time.monotonic)
    """When a worker was given it, this time."""
    first_attrs: dict[str, Any] = field(default_factory=dict)
    """User attributes that it had before it ran, as one that was enqueued has."""
    user_attrs: dict[str, Any] = field(default_factory=dict)
    """Those that it has where it runs: what an attempt has set that came to nothing is not among them."""


class Running(NamedTuple):
    """A trial that a worker has: for how long, and the step and value that it has reported last."""

    number: int
    seconds: float
    reported: tuple[int, float] | None


@runtime_checkable
class Watcher(Protocol):
    """A callback that also wants to look at the trials that run, between their ends."""

    def watch(self, running: Callable[[], list[Running]]) -> None:
        """Called once, before the first trial. `running` may be called from any thread, and gives the oldest first."""


class Ended(NamedTuple):
    """A trial as it was when it ended, before it was told; or when it paused, which is no end."""

    trial: FrozenTrial
    end: End | None
    study_attrs: dict[str, Any]


def begun_at(started: datetime.datetime, system_attrs: dict[str, Any]) -> FrozenTrial:
    """A trial that has begun at a time of its own, for a storage to make one of it."""
    nothing: dict[str, Any] = {key: {} for key in ("params", "distributions", "user_attrs", "intermediate_values")}
    where: dict[str, Any] = {"number": -1, "trial_id": -1, "datetime_start": started, "datetime_complete": None}
    return FrozenTrial(state=TrialState.RUNNING, value=None, system_attrs=system_attrs, **where, **nothing)


@contextmanager
def asked(study: optuna.Study) -> Iterator[None]:
    """A block in which the study believes that it is optimised: in a callback or objective it may be stopped."""
    before = study._thread_local.in_optimize_loop
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = before


def suggest(here: Open, how: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """A value for a parameter, drawn by the sampler of the trial."""
    study = here.trial.study
    with asked(study), sampled_by(study, here.sampler):
        return getattr(here.trial, how)(*args, **named)


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


def of_trial(failure: Failure, here: Open) -> tuple[Failure, End]:
    """The failure of a trial, and its end, by that of the ticket which ran it. Its exception then speaks of the trial."""
    number, error, item = here.trial.number, failure.error, f"trial {here.trial.number} with {here.trial.params}"
    if error is not None:
        _renote(error, f"{NOTE}{item} (attempt {here.attempts}, {failure.worker or 'driver'})")
    state = states.OUT_OF_MEMORY if isinstance(error, MemoryError) else states.OF_KIND[failure.kind]
    told = Failure(**{**vars(failure), "index": number, "item": item, "attempts": here.attempts})
    return told, End(state, error=f"{failure.error_type}: {failure.message}")


def _renote(error: BaseException, note: str) -> None:
    """An exception that has come out of a ticket speaks of the trial."""
    others = [each for each in getattr(error, "__notes__", []) if not each.startswith(NOTE)]
    BaseException.__setattr__(error, "__notes__", [*others, note])
