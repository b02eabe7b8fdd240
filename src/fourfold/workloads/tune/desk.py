"""The desk in the driver: it owns the study, hands out trials, and hears what becomes of them.

a ticket ──"job"──> a trial that runs again, or was paused and goes on, or is new; nothing for now; nothing any more
the trial ──"suggest_float", "report", …──> the study            from threads of lines, one after the other
the ticket's outcome ──> ended, failed ──> the study is told     a batch in the order of numbers, else at once
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from fourfold.interrupts import Shield
from fourfold.records import Failure
from fourfold.workloads.tune import drivers, states
from fourfold.workloads.tune.checkpoints import Checkpoints
from fourfold.workloads.tune.opened import End, Ended, Open, asked, counts, study_attrs
from fourfold.workloads.tune.proposing import Way
from fourfold.workloads.tune.rungs import Rungs

WAIT_S = 5.0
"""Seconds after which a ticket for which there is no trial yet is given back. Fewer: more tickets. More: a worker that is to
end, since memory is short, ends later."""

LOST_WAIT_S = 0.1
"""The same while the worker of a trial has died that others wait for: what is to run it again may have its place only when one
of those that wait is given back. Fewer: more tickets that come to nothing. More: the others stand still for longer. Not
measured; with WAIT_S in its place one in ten such deaths cost 5 s."""

LOST_IN_A_ROW = 8
"""Workers that die one after the other before one of them has asked for a trial end the call: what they are sent kills them.
Fewer: chance ends it. More: it takes longer to say so. Not measured."""

NOTE = "fourfold: "


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
        retries: How often a trial that has raised runs again.

    Attributes:
        wait_s: The same.
        open: Trials that the study has not been told of, by number.
        going: The numbers of those that run or are to, and neither wait for others nor have ended.
        ready: Those that wait for a worker.
        batch: Those of which none is told before all have ended.
        failures: Trials without a value, each with `index` its number.
        n_ended: How many trials this call has seen to their end.
        n_retries: How often a trial that had raised was run again.
        waited_s: Seconds that tickets have waited for a trial, together.
        error: What ends the call.
        watch: Told of the trials that run, whenever these are others.
        hears: No trial begins before callbacks have been called with those that have ended: they may stop the study.
        mark: What a trial bears in a study that other processes see, and may work on; None: nobody else does.
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
        retries: int = 0,
    ) -> None:
        self.study, self.way, self._n_trials, self._deadline = study, way, n_trials, deadline
        self.checkpoints, self._first, self.wait_s, self._retries = checkpoints, first, wait_s, retries
        self.rungs: Rungs | None = study.pruner.rungs() if hasattr(study.pruner, "rungs") else None
        self.sign = 1.0 if study.directions[0].name == "MAXIMIZE" else -1.0
        self._lock = threading.RLock()
        self.changed = threading.Condition(self._lock)
        self.open: dict[int, Open] = {}
        self.going: set[int] = set()
        self.ready: deque[int] = deque()
        self.batch: list[int] = []
        self._of_ticket: dict[int, int] = {}
        self._over: set[int] = set()
        """Tickets that have failed for good: what their workers had asked for before they died may come late."""
        self._waits: dict[int, object] = {}
        """Tickets that wait for a trial, each with what tells who asked last: a worker that has died asks no more."""
        self._told: deque[int] = deque()
        self._ended: deque[Ended] = deque()
        self._lost_in_a_row = 0
        self._orphans: set[int] = set()
        """Trials whose workers have died, until others have them."""
        self._orphaned_at = 0.0
        self._is_closed = False
        self.n_begun = sum(counts(each) for each in study.get_trials(deepcopy=False))
        self.n_ended, self.n_retries, self.waited_s = 0, 0, 0.0
        self.failures: list[Failure] = []
        self.error: BaseException | None = None
        self.watch: Callable[[list[int]], None] = _nobody
        self.mark: drivers.Mark | None = None
        self.hears, self._n_unheard = False, 0

    # ---- which trial runs next ---------------------------------------------------------------------------------------

    def job(self, ticket: int) -> Open | None:
        """The trial that a ticket is to run; None when there is none."""
        with self.changed:
            self.study._thread_local.cached_all_trials = None  # a thread serves many trials: each looks at the study anew
            if ticket in self._over:
                return None
            self._lost_in_a_row = 0
            here = self.of_ticket(ticket)
            if here is None:  # else its worker has died, or it is tried again
                number = self._waited_for(ticket)
                if number is None:
                    return None
                self._of_ticket[ticket] = number
                here = self.open[number]
            here.ticket, here.is_paused = ticket, False
            here.attempts += 1
            self._put_back_attrs(here)
            self.going.add(here.trial.number)
            self._orphans.discard(here.trial.number)
            self.set(here, states.ATTEMPTS, here.attempts)
            self.watch(self.running)
            return here

    def _put_back_attrs(self, here: Open) -> None:
        """A trial begins, or goes on, with the user attributes that it had there.

        Those that it has set since stay in the study until it sets them again, since Optuna removes none.
        """
        if here.attempts > 1 or self.checkpoints.has(here.trial.number):
            here.user_attrs = {**here.first_attrs, **self.checkpoints.user_attrs(here.trial.number)}
            for key, value in here.user_attrs.items():
                here.trial.set_user_attr(key, value)

    def _waited_for(self, ticket: int) -> int | None:
        began = time.monotonic()
        until = began + self.wait_s
        asks = self._waits[ticket] = object()
        try:
            while (number := self._next()) is None:
                soon = max(began, self._orphaned_at) + LOST_WAIT_S
                left = (min(until, soon) if self._orphans else until) - time.monotonic()
                if left <= 0 or not self.may_have_more:
                    return None
                self.changed.wait(left)
                if self._waits.get(ticket) is not asks:
                    return None
            return number
        finally:
            self.waited_s += time.monotonic() - began
            if self._waits.get(ticket) is asks:
                del self._waits[ticket]

    def undelivered(self, ticket: int, attempts: int) -> None:
        """Who asked for a trial is not there any more: somebody else is to have it, and it has not begun."""
        with self.changed:
            here = self.of_ticket(ticket)
            if here is not None and here.ticket == ticket and here.attempts == attempts:
                del self._of_ticket[ticket]
                here.ticket, here.attempts = None, attempts - 1
                self.ready.appendleft(here.trial.number)
                self.changed.notify_all()

    def again(self, number: int) -> bool:
        """Whether a trial that has raised runs again: in whatever worker is free, and without waiting for its ticket."""
        with self.changed:
            here = self.open[number]
            here.n_raised += 1
            if here.n_raised > self._retries:
                return False
            self._of_ticket.pop(-1 if here.ticket is None else here.ticket, None)
            here.ticket = None
            self.n_retries += 1
            self.ready.appendleft(number)
            self.changed.notify_all()
            return True

    def hung_up(self, ticket: int) -> None:
        """The line of a ticket has ended. When its trial has not, its worker has died."""
        with self.changed:
            here = self.of_ticket(ticket)
            if here is not None and here.ticket == ticket:
                self.set(here, states.STATE, states.CRASHED)  # unless it ends otherwise after all
                self._orphans.add(here.trial.number)
                self._orphaned_at = time.monotonic()
            self.changed.notify_all()

    def of_ticket(self, ticket: int) -> Open | None:
        """The trial that runs, or is to run again, for a ticket."""
        here = self.open.get(self._of_ticket.get(ticket, -1))
        return here if here is not None and here.end is None and not here.is_paused else None

    @property
    def may_have_more(self) -> bool:
        """Whether there is, or will be, a trial for another ticket."""
        with self._lock:
            if self.is_stopping:
                return False
            self._promote()
            if self.ready or self._may_begin:
                return True
            return (self.rungs is not None or self._retries > 0) and bool(self.going)

    @property
    def is_stopping(self) -> bool:
        """Whether no trial is begun or continued any more."""
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        return is_late or self._is_closed or self.error is not None or self.study._stop_flag

    @property
    def _may_begin(self) -> bool:
        return (self._n_trials is None or self.n_begun < self._n_trials) and self.way.has_more(self.study)

    def _next(self) -> int | None:
        if self.is_stopping or (self.hears and self._n_unheard):
            return None
        self._promote()
        must_wait = bool(self.batch) or (self.way.waits_for_first and bool(self.going))
        if not self.ready and self._may_begin and not must_wait:
            self._propose()  # none, when others have begun the rest
        return self.ready.popleft() if self.ready else None

    def _promote(self) -> None:
        """Let the best of the paused trials go on, as soon as a worker is free."""
        if self.rungs is None or self.ready:
            return
        is_last = not self._may_begin and not self.going
        number = self.rungs.promotable(is_last)
        if number is not None:
            self.ready.append(number)

    def _propose(self) -> None:
        size = self.way.batch_size
        if size is None:
            if self._is_full():
                return
            self.ready.append(self.begin().trial.number)
            return
        while self._may_begin and not self._is_full():
            number = self.begin().trial.number
            self.batch.append(number)
            self.ready.append(number)
            if (number + 1 - self._first) % size == 0 or len(self.batch) >= size:  # a study of several has gaps
                break

    @property
    def why_idle(self) -> str:
        """Why no trial has run, where none has."""
        if self._n_trials is not None and self.n_begun >= self._n_trials:
            return f"the study has its n_trials={self._n_trials} already: nothing ran"
        return "" if self.way.has_more(self.study) else "the study has all points of its grid already: nothing ran"

    def _is_full(self) -> bool:
        """Whether the study has its trials, with those that other processes have begun meanwhile."""
        if self.mark is None or self._n_trials is None:
            return False
        self.study._thread_local.cached_all_trials = None
        self.n_begun = sum(counts(each) for each in self.study.get_trials(deepcopy=False))
        return self.n_begun >= self._n_trials

    def begin(self) -> Open:
        """Make the next trial of the study.

        Raises:
            Exception: What its sampler raises. The trial is one that has failed, then, and the call ends.
        """
        with Shield():
            trial = self._asked()
            here = self.take_up(trial, self.study.sampler)
        self.n_begun += 1
        try:
            here.sampler = self.way.proposed(trial)
        except Exception as error:
            self.error = self.error or error
            self.ended(trial.number, End(states.FAILED, error=f"{type(error).__name__}: {error}"))
            raise
        if self.way.counts:
            here.study_attrs = study_attrs(self.study)
        return here

    def take_up(self, trial: optuna.Trial, sampler: BaseSampler) -> Open:
        """A trial is open from now on."""
        here = self.open[trial.number] = Open(trial, sampler, first_attrs=(attrs := trial.user_attrs), user_attrs=dict(attrs))
        self.going.add(trial.number)
        return here

    def _asked(self) -> optuna.Trial:
        """What `Study.ask` gives, which leaves a trial running when its sampler fails."""
        study = self.study
        study._thread_local.cached_all_trials = None
        trial_id = study._pop_waiting_trial_id()
        is_new = trial_id is None
        trial_id = drivers.begun(study, self.mark) if trial_id is None else trial_id
        try:
            if self.mark is not None and not is_new:
                study._storage.set_trial_system_attr(trial_id, states.DRIVER, self.mark)
            return optuna.Trial(study, trial_id)
        except BaseException as error:
            self.error = self.error or error
            state = states.FAILED if isinstance(error, Exception) else states.UNFINISHED
            study._storage.set_trial_system_attr(trial_id, states.STATE, state)
            study._storage.set_trial_system_attr(trial_id, states.ERROR, f"{type(error).__name__}: {error}")
            study._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            self._told.append(trial_id)
            raise

    # ---- what becomes of trials --------------------------------------------------------------------------------------

    def paused(self, number: int) -> None:
        """A trial waits for others, and may go on."""
        with self.changed:
            here = self.open[number]
            here.is_paused, here.ticket = True, None
            self.going.discard(number)
            if self.rungs is not None:
                self.rungs.pause(number)
            self.way.ended(number)  # it has drawn what others wait for
            self._note(here)
            self.changed.notify_all()

    def ended(self, number: int, end: End) -> None:
        """A trial has ended."""
        with self.changed:
            here = self.open[number]
            here.end = end
            self.going.discard(number)
            self._orphans.discard(number)
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
            self.changed.notify_all()

    def failed(self, failure: Failure, is_caught: Callable[[BaseException], bool]) -> None:
        """A ticket has failed for good."""
        with self.changed:
            self._over.add(failure.index)
            self._waits.pop(failure.index, None)
            self.changed.notify_all()
            here, error = self.of_ticket(failure.index), failure.error
            if here is None:
                if failure.index not in self._of_ticket:  # else its trial has said what became of it, and that stands
                    self._lost(failure)
                return
            number, item = here.trial.number, f"trial {here.trial.number} with {here.trial.params}"
            state = states.OUT_OF_MEMORY if isinstance(error, MemoryError) else states.OF_KIND[failure.kind]
            told = Failure(**{**vars(failure), "index": number, "item": item, "attempts": here.attempts})
            self.failures.append(told)
            if error is not None:
                _renote(error, f"{NOTE}{item} (attempt {here.attempts}, {failure.worker or 'driver'})")
                if state == states.FAILED and not is_caught(error):
                    self.error = self.error or error
            self.ended(number, End(state, error=f"{failure.error_type}: {failure.message}"))

    def _lost(self, failure: Failure) -> None:
        """A ticket has failed that had no trial."""
        self._lost_in_a_row += 1
        if states.OF_KIND[failure.kind] == states.FAILED or self._lost_in_a_row >= LOST_IN_A_ROW:
            self.error = self.error or failure.error

    def tell(self, number: int) -> None:
        """Tell the study what became of a trial."""
        here = self.open[number]
        assert here.end is not None
        is_pruned, values = here.end.state == states.PRUNED, here.end.values
        with Shield():
            try:
                with asked(self.study):
                    if here.end.state == states.COMPLETE:
                        self.study.tell(here.trial, values)
                    else:
                        self.study.tell(here.trial, state=TrialState.PRUNED if is_pruned else TrialState.FAIL)
            except Exception as error:  # of the sampler, of the user's constraints, of the storage
                self.error = self.error or error
            del self.open[number]  # not before: a second Ctrl-C leaves no trial running
        self.way.ended(number)
        self._told.append(here.trial._trial_id)
        self._n_unheard += 1

    def told(self) -> list[FrozenTrial]:
        """The trials that were told to the study since the last time."""
        with self._lock:
            found = [self.study._storage.get_trial(each) for each in self._told]
            self._told.clear()
            return found

    def heard(self, n_trials: int) -> None:
        """Callbacks were called with so many."""
        with self.changed:
            self._n_unheard -= n_trials
            self.changed.notify_all()

    def newly_ended(self) -> list[Ended]:
        """What has ended or paused since the last time, told or not."""
        with self._lock:
            found = list(self._ended)
            self._ended.clear()
            return found

    @property
    def running(self) -> list[int]:
        """The numbers of trials that workers have now."""
        return [number for number in sorted(self.going) if self.open[number].ticket is not None]

    def _note(self, here: Open) -> None:
        self.watch(self.running)
        self._ended.append(Ended(self.study._storage.get_trial(here.trial._trial_id), here.end, here.study_attrs))

    def close(self, is_done: bool = False) -> None:
        """No trial runs any more: none is left running in the study.

        Args:
            is_done: Those that wait will not go on, in a later call either.
        """
        with Shield(), self.changed:
            self._is_closed = True
            self.batch.clear()
            self.ready.clear()
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
            self.changed.notify_all()

    def set(self, here: Open, key: str, value: Any) -> None:
        """Say something of a trial in the study."""
        self.study._storage.set_trial_system_attr(here.trial._trial_id, key, value)


def _renote(error: BaseException, note: str) -> None:
    """An exception that has come out of a ticket speaks of the trial."""
    others = [each for each in getattr(error, "__notes__", []) if not each.startswith(NOTE)]
    BaseException.__setattr__(error, "__notes__", [*others, note])


def _nobody(running: list[int]) -> None:
    """Nobody looks."""
