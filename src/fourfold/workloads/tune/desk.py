"""The desk in the driver: it owns the study, hands out trials, and hears what becomes of them.

a ticket ──"job"──> a trial that runs again, or was paused and goes on, or is new; nothing for now; nothing any more
the trial ──"suggest_float", "report", …──> the study            from threads of lines, one after the other
the ticket's outcome ──> ended, failed ──> the study is told     a batch in the order of numbers, else at once
"""

import datetime
import logging
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
from fourfold.workloads.tune import states
from fourfold.workloads.tune.ahead import Ahead, Guess, Stand
from fourfold.workloads.tune.checkpoints import Checkpoints
from fourfold.workloads.tune.drawing import given
from fourfold.workloads.tune.opened import End, Ended, Open, Running, asked, begun_at, counts, study_attrs, suggest
from fourfold.workloads.tune.proposing import Way
from fourfold.workloads.tune.rungs import Rungs

WAIT_S = 5.0
"""Seconds after which a ticket for which there is no trial yet is given back. Fewer: more tickets. More: a worker that is to
end, since memory is short, ends later."""

LOST_IN_A_ROW = 8
"""Workers that die one after the other before one of them has asked for a trial end the call: what they are sent kills them.
Fewer: chance ends it. More: it takes longer to say so. Not measured."""

CUT_S = 0.5
"""Seconds for what a dead worker had said before to be heard. Fewer: its last parameters are lost on a busy machine. More:
where something else holds its line open, a trial is told later. Not measured."""

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
        ahead: Those that run before the study has them, since the first one runs yet.
        failures: Trials without a value, each with `index` its number.
        n_ended: How many trials this call has seen to their end.
        n_retries: How often a trial that had raised was run again.
        waited_s: Seconds that tickets have waited for a trial, together.
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
        self.ahead = Ahead()
        self._of_ticket: dict[int, int] = {}
        self._over: set[int] = set()
        """Tickets that have failed for good: what their workers had asked for before they died may come late."""
        self._waits: dict[int, object] = {}
        """Tickets that wait for a trial, each with what tells who asked last: a worker that has died asks no more."""
        self._told: deque[int] = deque()
        self._ended: deque[Ended] = deque()
        self._lost_in_a_row = 0
        self._is_closed = False
        self.n_begun = sum(counts(each) for each in study.get_trials(deepcopy=False))
        self.n_ended, self.n_retries, self.waited_s = 0, 0, 0.0
        self.failures: list[Failure] = []
        self.error: BaseException | None = None
        self.watch: Callable[[list[int]], None] = _nobody

    # ---- which trial runs next ---------------------------------------------------------------------------------------

    def job(self, ticket: int) -> Open | Guess | None:
        """The trial that a ticket is to run; None when there is none."""
        with self.changed:
            self.study._thread_local.cached_all_trials = None  # a thread serves many trials: each looks at the study anew
            if ticket in self._over:
                return None
            self._lost_in_a_row = 0
            here = self.of_ticket(ticket)
            if here is None:  # else its worker has died, or it is tried again
                if (guess := self.ahead.open_of(ticket)) is not None:
                    guess.attempts += 1
                    return guess
                self.ahead.forget(ticket)
                found = self._waited_for(ticket)
                if found is None or isinstance(found, Guess):
                    return found
                self._of_ticket[ticket] = found
                here = self.open[found]
            here.ticket, here.is_paused, here.is_cut = ticket, False, False
            here.attempts += 1
            here.began_at = time.monotonic()
            self.going.add(here.trial.number)
            if here.trial.number == self.way.first:
                self.ahead.first()
            self.set(here, states.ATTEMPTS, here.attempts)
            self.watch(self.running)
            return here

    def _waited_for(self, ticket: int) -> int | Guess | None:
        began = time.monotonic()
        until = began + self.wait_s
        asks = self._waits[ticket] = object()
        try:
            while (number := self._next()) is None:
                left = until - time.monotonic()
                if left <= 0 or not self.may_have_more:
                    return None
                quiet_in_s = self._guess_in_s()
                if quiet_in_s == 0 and (guess := self._guess(ticket)) is not None:
                    return guess
                self.changed.wait(min(left, quiet_in_s or left))
                if self._waits.get(ticket) is not asks:
                    return None
            return number
        finally:
            self.waited_s += time.monotonic() - began
            if self._waits.get(ticket) is asks:
                del self._waits[ticket]

    def _guess_in_s(self) -> float | None:
        """Seconds after which a trial may begin before the first one has ended; None when that is not known, or never."""
        first = self.open.get(-1 if self.way.first is None else self.way.first)
        if first is None or first.ticket is None or first.is_cut or self.ready or self.is_stopping or not self._may_begin:
            return None
        return self.ahead.quiet_in_s()

    def _guess(self, ticket: int) -> Guess | None:
        first, others = self.open[self.way.first or 0], self.study.get_trials(deepcopy=False)
        if (found := self.ahead.nobodys(ticket)) is not None:
            return found
        if any(each.state == TrialState.WAITING for each in others):
            return None
        number = len(others) + len(self.ahead.open)
        foretold = self.way.foretold(first.trial, number)
        return self.ahead.begin(number, foretold, ticket) if foretold else None

    def has_asked(self, number: int) -> None:
        """A trial has asked for a parameter."""
        if number == self.way.first:
            first = self.open[number].trial
            if self.ahead.heard(len(first._cached_frozen_trial.params)):
                self._say_withdrawn(f"trial {number} has asked for {list(first.params)[-1]!r}")
            self.changed.notify_all()  # who waits for it to be quiet waits from now on

    def wait_while_open(self, guess: Guess) -> None:
        """Wait until the first trial has ended, or for as long as one may."""
        began = time.monotonic()
        self.changed.wait_for(lambda: guess.stand is not Stand.OPEN, self.wait_s)
        self.waited_s += time.monotonic() - began

    def _withdraw(self, number: int) -> None:
        """Nobody runs this trial for now. If others wait for it, their workers must be free for it."""
        if number == self.way.first and self.ahead.withdraw():
            self._say_withdrawn(f"trial {number} begins again")

    def _say_withdrawn(self, why: str) -> None:
        logging.getLogger("fourfold").warning(
            "%s: trials that had begun meanwhile begin again, with what they draw then. Of what they did nothing is kept", why
        )
        self.changed.notify_all()

    def _settle(self) -> None:
        """The first trial has drawn all: those that run already are of the study now, if they draw what was foretold."""
        if self.way.first is None and self.ahead.open:
            self.ahead.settle(self._take_in)
            self.changed.notify_all()

    def _take_in(self, guess: Guess) -> bool:
        """Whether the next trial of the study is the one that runs already."""
        if self.error is not None or self._is_closed:
            return False
        try:
            here = self.begin(guess.started)
            number = here.trial.number
            if guess.ticket is None or (number, given(here.trial, here.sampler)) != (guess.number, guess.given):
                self.ready.append(number)
                return False
            here.ticket, here.attempts, here.is_cut = guess.ticket, guess.attempts, guess.failure is not None
            self._of_ticket[guess.ticket] = number
            self.set(here, states.ATTEMPTS, here.attempts)
            for each in guess.said:
                suggest(here, *each)
        except Exception as error:  # of the sampler, of the storage
            self.error = self.error or error
            return False
        if guess.failure is not None:
            self.failed(*guess.failure)
        return True

    def undelivered(self, ticket: int, attempts: int) -> None:
        """Who asked for a trial is not there any more: somebody else is to have it, and it has not begun."""
        with self.changed:
            if self.ahead.undelivered(ticket, attempts):
                self.changed.notify_all()
                return
            here = self.of_ticket(ticket)
            if here is not None and here.ticket == ticket and here.attempts == attempts:
                self._withdraw(here.trial.number)
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
            self._withdraw(number)
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
                here.is_cut = True
                self._withdraw(here.trial.number)
                self.set(here, states.STATE, states.CRASHED)  # unless it ends otherwise after all
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
        n_begun = self.n_begun + len(self.ahead.open)
        return (self._n_trials is None or n_begun < self._n_trials) and self.way.has_more(self.study)

    def _next(self) -> int | None:
        if self.is_stopping:
            return None
        self._promote()
        must_wait = bool(self.batch) or (self.way.waits_for_first and bool(self.going))
        if not self.ready and self._may_begin and not must_wait:
            self._propose()
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
            self.ready.append(self.begin().trial.number)
            return
        while self._may_begin:
            number = self.begin().trial.number
            self.batch.append(number)
            self.ready.append(number)
            if (number + 1 - self._first) % size == 0 or len(self.batch) >= size:  # a study of several has gaps
                break

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
            self.error = self.error or error
            self.ended(trial.number, End(states.FAILED, error=f"{type(error).__name__}: {error}"))
            raise
        if self.way.counts:
            here.study_attrs = study_attrs(self.study)
        return here

    def take_up(self, trial: optuna.Trial, sampler: BaseSampler) -> Open:
        """A trial is open from now on."""
        here = self.open[trial.number] = Open(trial, sampler)
        self.going.add(trial.number)
        return here

    def _asked(self, started: datetime.datetime | None) -> optuna.Trial:
        """What `Study.ask` gives, which leaves a trial running when its sampler fails."""
        study = self.study
        study._thread_local.cached_all_trials = None
        trial_id = study._pop_waiting_trial_id()
        if trial_id is None:
            trial_id = study._storage.create_new_trial(study._study_id, None if started is None else begun_at(started))
        try:
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
            self._settle()
            self.changed.notify_all()

    def ended(self, number: int, end: End) -> None:
        """A trial has ended."""
        with self.changed:
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
            self._settle()
            self.changed.notify_all()

    def failed(self, failure: Failure, is_caught: Callable[[BaseException], bool]) -> None:
        """A ticket has failed for good."""
        with self.changed:
            self._over.add(failure.index)
            self._waits.pop(failure.index, None)
            self.changed.notify_all()
            here, error = self.of_ticket(failure.index), failure.error
            if here is None and (guess := self.ahead.of_ticket(failure.index)) is not None:
                guess.failure = failure, is_caught  # nobody asks for that of one that was withdrawn
                return
            if here is None:
                if failure.index not in self._of_ticket:  # else its trial has said what became of it, and that stands
                    self._lost(failure)
                return
            if here.ticket is not None:
                self.changed.wait_for(lambda: here.is_cut or here.end is not None, CUT_S)
            if self.of_ticket(failure.index) is not here:  # it was about to say so when it died
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
                    # `Study.tell`, which copies the trial for its caller: that takes longer than all the rest.
                    if here.end.state == states.COMPLETE:
                        _tell_with_warning(self.study, here.trial, values)
                    else:
                        state = TrialState.PRUNED if is_pruned else TrialState.FAIL
                        _tell_with_warning(self.study, here.trial, state=state)
            except Exception as error:  # of the sampler, of the user's constraints, of the storage
                self.error = self.error or error
            del self.open[number]  # not before: a second Ctrl-C leaves no trial running
        self.way.ended(number)
        self._told.append(here.trial._trial_id)

    def told(self) -> list[FrozenTrial]:
        """The trials that were told to the study since the last time."""
        with self._lock:
            found = [self.study._storage.get_trial(each) for each in self._told]
            self._told.clear()
            return found

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

    def watched(self) -> list[Running]:
        """The trials that workers have now, those first that have run longest."""
        with self._lock:
            now = time.monotonic()
            found = [self.open[number] for number in self.running]
            told = [Running(each.trial.number, now - each.began_at, each.last) for each in found]
        return sorted(told, key=lambda each: -each.seconds)

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
            self.ahead.withdraw()
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
