"""The trials of a study at the desk: here each is begun, and told when it has ended, and nowhere else."""

import datetime
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.study._tell import _tell_with_warning
from optuna.trial import FrozenTrial, TrialState

from fourfold.records import Failure
from fourfold.system.interrupts import Shield
from fourfold.workloads.tune import drivers, states
from fourfold.workloads.tune.checkpoints import Checkpoints
from fourfold.workloads.tune.opened import End, Ended, Open, Running, asked, counts, study_attrs
from fourfold.workloads.tune.proposing import Way
from fourfold.workloads.tune.rungs import Rungs


class Book:
    """Keeps the trials of a study that is being optimised. Who calls it holds `lock`, but for `told` and `newly_ended`.

    Args:
        study: What is optimised.
        way: How its sampler is asked.
        checkpoints: Keeps what trials want to go on with.

    Attributes:
        lock: One thread at a time.
        rungs: Where trials pause; None where they do not.
        open: Trials that the study has not been told of, by number.
        going: The numbers of those that run or are to, and neither wait for others nor have ended.
        batch: Those of which none is told before all have ended.
        failures: Trials without a value, each with `index` its number.
        n_begun: How many trials the study has, of those that count.
        n_ended: How many trials this call has seen to their end.
        error: What ends the call.
        watch: Told of the trials that run, whenever these are others.
        mark: What a trial bears in a study that other processes see, and may work on; None: nobody else does.
        n_unheard: Trials that were told since callbacks were called last.
    """

    def __init__(self, study: optuna.Study, way: Way, checkpoints: Checkpoints) -> None:
        self.study, self.way, self.checkpoints = study, way, checkpoints
        self.lock = threading.RLock()
        self.rungs: Rungs | None = study.pruner.rungs() if hasattr(study.pruner, "rungs") else None
        self.open: dict[int, Open] = {}
        self.going: set[int] = set()
        self.batch: list[int] = []
        self.failures: list[Failure] = []
        self.n_begun = sum(counts(each) for each in study.get_trials(deepcopy=False))
        self.n_ended = 0
        self.error: BaseException | None = None
        self.watch: Callable[[list[int]], None] = _nobody
        self.mark: drivers.Mark | None = None
        self.n_unheard = 0
        self._told: deque[int] = deque()
        self._ended: deque[Ended] = deque()

    def fails(self, error: BaseException | None) -> None:
        """This ends the call, unless something else does."""
        self.error = self.error or error

    def begin(self, started: datetime.datetime | None = None) -> Open:
        """Make the next trial of the study.

        Args:
            started: When it began; None for now.

        Raises:
            Exception: What its sampler raises. The trial is one that has failed, then, and the call ends.
        """
        with Shield():
            trial = self._asked(started)
            here = self.take_up(trial, self.study.sampler)
        self.n_begun += 1
        try:
            here.sampler = self.way.proposed(trial)
        except Exception as error:
            self.fails(error)
            self.ended(trial.number, End(states.FAILED, error=f"{type(error).__name__}: {error}"))
            raise
        if self.way.counts:
            here.study_attrs = study_attrs(self.study)
        return here

    def take_up(self, trial: optuna.Trial, sampler: BaseSampler) -> Open:
        """A trial is open from now on."""
        attrs = trial.user_attrs
        here = self.open[trial.number] = Open(trial, sampler, first_attrs=attrs, user_attrs=dict(attrs))
        self.going.add(trial.number)
        return here

    def _asked(self, started: datetime.datetime | None) -> optuna.Trial:
        """What `Study.ask` gives, which leaves a trial running when its sampler fails."""
        study = self.study
        study._thread_local.cached_all_trials = None
        trial_id = study._pop_waiting_trial_id()
        is_new = trial_id is None
        trial_id = drivers.begun(study, self.mark, started) if trial_id is None else trial_id
        try:
            if self.mark is not None and not is_new:
                study._storage.set_trial_system_attr(trial_id, states.DRIVER, self.mark)
            return optuna.Trial(study, trial_id)
        except BaseException as error:
            self.fails(error)
            state = states.FAILED if isinstance(error, Exception) else states.UNFINISHED
            study._storage.set_trial_system_attr(trial_id, states.STATE, state)
            study._storage.set_trial_system_attr(trial_id, states.ERROR, f"{type(error).__name__}: {error}")
            study._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            self._told.append(trial_id)
            raise

    def paused(self, number: int) -> None:
        """A trial waits for others, and may go on."""
        here = self.open[number]
        here.is_paused, here.ticket = True, None
        self.going.discard(number)
        if self.rungs is not None:
            self.rungs.pause(number)
        self.way.ended(number)  # it has drawn what others wait for
        self._note(here)

    def ended(self, number: int, end: End) -> None:
        """A trial has ended."""
        here = self.open[number]
        here.end = end
        self.going.discard(number)
        self.set(here, states.STATE, end.state)
        if end.error:
            self.set(here, states.ERROR, end.error)
        if self.rungs is not None:
            (self.rungs.end if end.state in (states.COMPLETE, states.PRUNED) else self.rungs.fail)(number)
        self.checkpoints.drop(number)
        self.n_ended += 1
        self._note(here)
        if number not in self.batch:
            self.tell(number)
        elif all(self.open[each].end is not None for each in self.batch):
            for each in sorted(self.batch):
                self.tell(each)
            self.batch.clear()

    def tell(self, number: int) -> None:
        """Tell the study what became of a trial."""
        here = self.open[number]
        assert here.end is not None
        is_pruned, values = here.end.state == states.PRUNED, here.end.values
        with Shield():
            try:
                with asked(self.study):
                    # `Study.tell`, which copies the trial for its caller: that takes longer than all the rest.
                    if here.end.state == states.COMPLETE:
                        _tell_with_warning(self.study, here.trial, values)
                    else:
                        state = TrialState.PRUNED if is_pruned else TrialState.FAIL
                        _tell_with_warning(self.study, here.trial, state=state)
            except Exception as error:  # of the sampler, of the user's constraints, of the storage
                self.fails(error)
            del self.open[number]  # not before: a second Ctrl-C leaves no trial running
        self.way.ended(number)
        self._told.append(here.trial._trial_id)
        self.n_unheard += 1

    def told(self) -> list[FrozenTrial]:
        """The trials that were told to the study since the last time."""
        with self.lock:
            found = [self.study._storage.get_trial(each) for each in self._told]
            self._told.clear()
            return found

    def newly_ended(self) -> list[Ended]:
        """What has ended or paused since the last time, told or not."""
        with self.lock:
            found = list(self._ended)
            self._ended.clear()
            return found

    @property
    def running(self) -> list[int]:
        """The numbers of trials that workers have now."""
        return [number for number in sorted(self.going) if self.open[number].ticket is not None]

    def watched(self) -> list[Running]:
        """The trials that workers have now, those first that have run longest."""
        with self.lock:
            now = time.monotonic()
            found = [self.open[number] for number in self.running]
            told = [Running(each.trial.number, now - each.began_at, each.last) for each in found]
        return sorted(told, key=lambda each: -each.seconds)

    def _note(self, here: Open) -> None:
        self.watch(self.running)
        self._ended.append(Ended(self.study._storage.get_trial(here.trial._trial_id), here.end, here.study_attrs))

    def close(self, is_done: bool) -> None:
        """No trial runs any more: none is left running in the study. See `Desk.close`."""
        self.batch.clear()
        for number, here in sorted(self.open.items()):
            if here.end is None:
                unfinished = End(states.UNFINISHED, error="the call ended before it")
                here.end = End(states.PRUNED) if here.is_paused else unfinished
                self.going.discard(number)
                self.set(here, states.STATE, here.end.state)
                if here.end.error:
                    self.set(here, states.ERROR, here.end.error)
                if here.is_paused and is_done:
                    self._note(here)
                    self.checkpoints.drop(number)
            self.tell(number)

    def set(self, here: Open, key: str, value: Any) -> None:
        """Say something of a trial in the study."""
        self.study._storage.set_trial_system_attr(here.trial._trial_id, key, value)


def _nobody(running: list[int]) -> None:
    """Nobody looks."""
