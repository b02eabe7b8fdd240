"""The desk in the driver: it owns the study, hands out trials, and answers what they ask.

a ticket ──"job"──> a trial that runs again, or was paused and goes on, or is new; nothing for now; nothing any more
the trial ──"suggest_float", "report", …──> the study            from threads of lines, one after the other
the ticket's outcome ──> ended, failed ──> the study is told     a batch in the order of numbers, else at once
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from fourfold.records import Failure
from fourfold.workloads.tune import states
from fourfold.workloads.tune.checkpoints import Checkpoints
from fourfold.workloads.tune.proposing import Way
from fourfold.workloads.tune.rungs import Rungs

WAIT_S = 5.0
"""Seconds after which a ticket for which there is no trial yet is given back. Fewer: more tickets. More: a worker that is to
end, since memory is short, ends later."""


@dataclass
class End:
    """What became of a trial: its state, its values, or why it has none."""

    state: str
    values: list[float] | None = None
    error: str = ""
    failure: Failure | None = None


@dataclass
class Open:
    """A trial that has not been told to the study."""

    trial: optuna.Trial
    sampler: BaseSampler
    ticket: int | None = None
    attempts: int = 0
    is_paused: bool = False
    is_to_pause: bool = False
    """It was told to pause, and has not yet."""
    end: End | None = None
    study_attrs: dict[str, Any] = field(default_factory=dict)
    """What the sampler had counted in the study when it was proposed."""
    reported: list[tuple[int, float]] = field(default_factory=list)
    """What its bracket has not heard yet."""
    reported_steps: set[int] = field(default_factory=set)


class Ended(NamedTuple):
    """A trial as it was when it ended, before it was told; or when it paused, which is no end."""

    trial: FrozenTrial
    end: End | None
    study_attrs: dict[str, Any]


class Desk:
    """Serves tickets.

    Args:
        study: What is optimised.
        way: How its sampler is asked.
        n_trials: How many trials the study is to have in all; None for no limit.
        deadline: By `time.monotonic`, when no trial is begun any more; None for no limit.
        checkpoints: Keeps what trials want to go on with.
        first: The number of the first trial of this call and of those before that it continues.
        wait_s: A ticket waits at most so long for a trial.

    Attributes:
        failures: Trials without a value, each with `index` its number.
        error: What ends the call.
        watch: Told of the trials that run, whenever these are others.
    """

    def __init__(
        self,
        study: optuna.Study,
        way: Way,
        n_trials: int | None,
        deadline: float | None,
        checkpoints: Checkpoints,
        first: int,
        wait_s: float = WAIT_S,
    ) -> None:
        self.study, self._way, self._n_trials, self._deadline = study, way, n_trials, deadline
        self.checkpoints, self._first, self._wait_s = checkpoints, first, wait_s
        self.rungs: Rungs | None = study.pruner.rungs() if hasattr(study.pruner, "rungs") else None
        self.sign = 1.0 if study.directions[0].name == "MAXIMIZE" else -1.0
        self._lock = threading.RLock()
        self.changed = threading.Condition(self._lock)
        self.open: dict[int, Open] = {}
        self._of_ticket: dict[int, int] = {}
        self._ready: deque[int] = deque()
        """Trials that were proposed, and wait for a worker."""
        self._batch: list[int] = []
        """Trials of which none is told before all have ended."""
        self._told: deque[int] = deque()
        self._ended: deque[Ended] = deque()
        self.n_begun = sum(_counts(each) for each in study.get_trials(deepcopy=False))
        self.failures: list[Failure] = []
        self.error: BaseException | None = None
        self.watch: Callable[[list[int]], None] = _nobody

    # ---- which trial runs next ---------------------------------------------------------------------------------------

    def job(self, ticket: int) -> Open | None:
        """The trial that a ticket is to run; None when there is none."""
        until = time.monotonic() + self._wait_s
        with self.changed:
            here = self.open.get(self._of_ticket.get(ticket, -1))
            if here is not None and here.end is None and not here.is_paused:  # its worker has died, or it is tried again
                return here
            while (number := self._next()) is None:
                left = until - time.monotonic()
                if left <= 0 or not self.may_have_more:
                    return None
                self.changed.wait(left)
            self._of_ticket[ticket] = number
            here = self.open[number]
            here.ticket = ticket
            self.watch(self.running)
            return here

    def hung_up(self, ticket: int) -> None:
        """The line of a ticket has ended. When its trial has not, its worker has died."""
        with self.changed:
            here = self.open.get(self._of_ticket.get(ticket, -1))
            if here is not None and here.ticket == ticket and here.end is None and not here.is_paused:
                self.set(here, states.STATE, states.CRASHED)  # unless it ends otherwise after all
            self.changed.notify_all()

    def number_of(self, ticket: int) -> int:
        """The number of the trial of a ticket; −1 when it has none."""
        return self._of_ticket.get(ticket, -1)

    @property
    def may_have_more(self) -> bool:
        """Whether there is, or will be, a trial for another ticket."""
        with self._lock:
            if self.is_stopping:
                return False
            self._promote()
            if self._ready or self._may_begin:
                return True
            return self.rungs is not None and self._runs

    @property
    def is_stopping(self) -> bool:
        """Whether no trial is begun or continued any more."""
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        return is_late or self.error is not None or self.study._stop_flag

    @property
    def _runs(self) -> bool:
        return any(not each.is_paused and each.end is None for each in self.open.values())

    @property
    def _may_begin(self) -> bool:
        return self._n_trials is None or self.n_begun < self._n_trials

    def _next(self) -> int | None:
        if self.is_stopping:
            return None
        self._promote()
        if not self._ready and self._may_begin and not self._must_wait:
            self._propose()
        return self._ready.popleft() if self._ready else None

    @property
    def _must_wait(self) -> bool:
        return bool(self._batch) or (self._way.waits_for_first and bool(self.open))

    def _promote(self) -> None:
        """Let the best of the paused trials go on, as soon as a worker is free."""
        if self.rungs is None or self._ready:
            return
        is_last = not self._may_begin and not self._runs
        number = self.rungs.promotable(is_last)
        if number is not None:
            self.open[number].is_paused = False
            self._ready.append(number)

    def _propose(self) -> None:
        size = self._way.batch_size
        if size is None:
            self._ready.append(self.begin().trial.number)
            return
        while self._may_begin:
            number = self.begin().trial.number
            self._batch.append(number)
            self._ready.append(number)
            if (number + 1 - self._first) % size == 0:
                break

    def begin(self) -> Open:
        """Make the next trial of the study."""
        trial = self.study.ask()
        here = self.open[trial.number] = Open(trial, self._way.proposed(trial))
        if self._way.counts:
            here.study_attrs = study_attrs(self.study)
        self.n_begun += 1
        return here

    def resume(self, number: int, kept: FrozenTrial | None, end: End | None, is_told: bool) -> None:
        """Go on from a trial of an earlier call.

        Args:
            number: Of the trial.
            kept: As it was; None when nobody knows: it begins again.
            end: How it ended; None when it has not.
            is_told: The study is told of it at once, and not with its batch.
        """
        there = self.study.get_trials(deepcopy=False)
        if number < len(there) and there[number].state.is_finished():  # the study has outlived its driver
            return
        if number == len(there) and kept is not None and end is not None and is_told:
            self.study.add_trial(kept)
            self.n_begun += 1
            return
        if number < len(there) and there[number].state == TrialState.RUNNING:
            trial = optuna.Trial(self.study, there[number]._trial_id)
            here = self.open[number] = Open(trial, self._way.proposed(trial))
        else:
            here = self.begin()
        if kept is not None:
            self._fill(here, kept)
        if not is_told:
            self._batch.append(number)
        if end is not None:
            here.end = end
            if is_told:
                self._tell(number)
        elif kept is not None and self.rungs is not None:
            here.is_paused = True
            for step, value in kept.intermediate_values.items():
                self.rungs.report(number, step, self.sign * value)
            self.rungs.pause(number)
        else:
            self._ready.append(number)

    def _fill(self, here: Open, kept: FrozenTrial) -> None:
        storage, trial_id = self.study._storage, here.trial._trial_id
        for name, value in kept.params.items():
            distribution = kept.distributions[name]
            storage.set_trial_param(trial_id, name, distribution.to_internal_repr(value), distribution)
        for step, value in kept.intermediate_values.items():
            storage.set_trial_intermediate_value(trial_id, step, value)
        for key, value in kept.user_attrs.items():
            storage.set_trial_user_attr(trial_id, key, value)
        for key, value in kept.system_attrs.items():
            storage.set_trial_system_attr(trial_id, key, value)
        here.reported_steps = set(kept.intermediate_values)
        here.attempts = int(kept.system_attrs.get(states.ATTEMPTS, 0))

    # ---- what becomes of trials --------------------------------------------------------------------------------------

    def paused(self, number: int) -> None:
        """A trial waits for others, and may go on."""
        with self.changed:
            here = self.open[number]
            here.is_paused, here.ticket = True, None
            if self.rungs is not None:
                self.rungs.pause(number)
            self._ended.append(self._noted(here))
            self.watch(self.running)
            self.changed.notify_all()

    def ended(self, number: int, end: End) -> None:
        """A trial has ended."""
        with self.changed:
            here = self.open[number]
            here.end = end
            self.set(here, states.STATE, end.state)
            if end.error:
                self.set(here, states.ERROR, end.error)
            if self.rungs is not None:
                self.rungs.end(number)
            self.checkpoints.drop(number)
            self._ended.append(self._noted(here))
            self.watch(self.running)
            if number not in self._batch:
                self._tell(number)
            elif all(self.open[each].end is not None for each in self._batch):
                for each in sorted(self._batch):
                    self._tell(each)
                self._batch.clear()
            self.changed.notify_all()

    def failed(self, failure: Failure, is_caught: Callable[[BaseException], bool]) -> None:
        """A ticket has failed for good."""
        with self.changed:
            number = self._of_ticket.get(failure.index)
            here = self.open.get(number) if number is not None else None
            if number is None or here is None or here.end is not None or here.is_paused:  # what its trial has said stands
                self.error = self.error or (failure.error if number is None else None)
                self.changed.notify_all()
                return
            params = here.trial.params
            state = states.OUT_OF_MEMORY if isinstance(failure.error, MemoryError) else states.OF_KIND[failure.kind]
            told = Failure(**{**vars(failure), "index": number, "item": f"trial {number} with {params}"})
            self.failures.append(told)
            error = failure.error
            if state == states.FAILED and error is not None and not is_caught(error):
                self.error = self.error or error
            self.ended(number, End(state, error=f"{failure.error_type}: {failure.message}", failure=told))

    def _tell(self, number: int) -> None:
        here = self.open.pop(number)
        assert here.end is not None
        end, study = here.end, self.study
        with asked(study):
            if end.state == states.COMPLETE:
                study.tell(here.trial, end.values)
            else:
                study.tell(here.trial, state=TrialState.PRUNED if end.state == states.PRUNED else TrialState.FAIL)
        self._way.ended(number)
        self._told.append(number)

    def told(self) -> list[FrozenTrial]:
        """The trials that were told to the study since the last time."""
        with self._lock:
            trials = self.study.get_trials(deepcopy=False) if self._told else []
            found = [trials[number] for number in self._told]
            self._told.clear()
            return found

    @property
    def running(self) -> list[int]:
        """The numbers of trials that workers have now."""
        return [n for n, each in self.open.items() if each.ticket is not None and each.end is None and not each.is_paused]

    def newly_ended(self) -> list["Ended"]:
        """What has ended or paused since the last time, told or not."""
        with self._lock:
            found = list(self._ended)
            self._ended.clear()
            return found

    def _noted(self, here: Open) -> "Ended":
        return Ended(self.study._storage.get_trial(here.trial._trial_id), here.end, here.study_attrs)

    def close(self) -> None:
        """No trial runs any more: none is left running in the study."""
        with self.changed:
            self._batch.clear()
            for number, here in sorted(self.open.items()):
                if here.end is None:
                    here.end = (
                        End(states.PRUNED) if here.is_paused else End(states.UNFINISHED, error="the call ended before it")
                    )
                    self.set(here, states.STATE, here.end.state)
                    if here.is_paused:
                        self._ended.append(self._noted(here))
                self._tell(number)
            self._ready.clear()
            self.changed.notify_all()

    def set(self, here: Open, key: str, value: Any) -> None:
        """Say something of a trial in the study."""
        self.study._storage.set_trial_system_attr(here.trial._trial_id, key, value)


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


def _nobody(running: list[int]) -> None:
    """Nobody looks."""


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the `n_trials` of its study."""
    return trial.state != TrialState.WAITING and trial.system_attrs.get(states.STATE) != states.UNFINISHED
