"""The desk in the driver: it owns the study, hands out trials, and hears what becomes of them.

a ticket ──"job"──> a trial that runs again, or was paused and goes on, or is new; nothing for now; nothing any more
the trial ──"suggest_float", "report", …──> the study            from threads of lines, one after the other
the ticket's outcome ──> ended, failed ──> the study is told     a batch in the order of numbers, else at once
"""

import datetime
import threading
import time
from collections import deque
from collections.abc import Callable

import optuna

from fourfold.records import Failure
from fourfold.system.interrupts import Shield
from fourfold.workloads.tune import states
from fourfold.workloads.tune.ahead import Ahead, Guess, Stand, say
from fourfold.workloads.tune.book import Book
from fourfold.workloads.tune.checkpoints import Checkpoints
from fourfold.workloads.tune.drawing import given
from fourfold.workloads.tune.opened import End, Open, counts, of_trial, suggest
from fourfold.workloads.tune.proposing import Way

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

CUT_S = 0.5
"""Seconds for what a dead worker had said before to be heard. Fewer: its last parameters are lost on a busy machine. More:
where something else holds its line open, a trial is told later. Not measured."""


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
        book: The trials of the study; `rungs`, `open`, `going`, `batch` and `failures` are its.
        ready: Numbers of trials that wait for a worker.
        ahead: Trials that run before the study has them, since the first one runs yet.
        n_retries: How often a trial that had raised was run again.
        waited_s: Seconds that tickets have waited for a trial, together.
        hears: No trial begins before callbacks have been called with those that have ended: they may stop the study.
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
        self.book = book = Book(study, way, checkpoints)
        self.rungs, self.open, self.failures = book.rungs, book.open, book.failures
        self.going, self.batch = book.going, book.batch
        self.sign = 1.0 if study.directions[0].name == "MAXIMIZE" else -1.0
        self.changed = threading.Condition(book.lock)
        self.ready: deque[int] = deque()
        self.ahead = Ahead(way)
        self._of_ticket: dict[int, int] = {}
        self._over: set[int] = set()
        """Tickets that have failed for good: what their workers had asked for before they died may come late."""
        self._waits: dict[int, object] = {}
        """Tickets that wait for a trial, each with what tells who asked last: a worker that has died asks no more."""
        self._lost_in_a_row = 0
        self._orphans: set[int] = set()
        """Trials whose workers have died, until others have them."""
        self._orphaned_at = 0.0
        self._is_closed = False
        self.n_retries, self.waited_s = 0, 0.0
        self.hears = False

    @property
    def error(self) -> BaseException | None:
        """What ends the call."""
        return self.book.error

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
            self._put_back_attrs(here)
            self.going.add(here.trial.number)
            self._orphans.discard(here.trial.number)
            if here.trial.number == self.way.first:
                self.ahead.first()
            self.book.set(here, states.ATTEMPTS, here.attempts)
            self.book.watch(self.book.running)
            return here

    def _put_back_attrs(self, here: Open) -> None:
        """A trial begins, or goes on, with the user attributes that it had there.

        Those that it has set since stay in the study until it sets them again, since Optuna removes none.
        """
        if here.attempts > 1 or self.checkpoints.has(here.trial.number):
            here.user_attrs = {**here.first_attrs, **self.checkpoints.user_attrs(here.trial.number)}
            for key, value in here.user_attrs.items():
                here.trial.set_user_attr(key, value)

    def _waited_for(self, ticket: int) -> int | Guess | None:
        began = time.monotonic()
        until = began + self.wait_s
        asks = self._waits[ticket] = object()
        try:
            while (number := self._next()) is None:
                soon = max(began, self._orphaned_at) + LOST_WAIT_S
                left = (min(until, soon) if self._orphans else until) - time.monotonic()
                if left <= 0 or not self.may_have_more or self._keeps_callbacks_waiting(ticket):
                    return None
                quiet_in_s = self._guess_in_s()
                if quiet_in_s == 0 and (guess := self.ahead.next(self.open[self.way.first or 0].trial, ticket)) is not None:
                    return guess
                self.changed.wait(min(left, quiet_in_s or left))
                if self._waits.get(ticket) is not asks:
                    return None
            return number
        finally:
            self.waited_s += time.monotonic() - began
            if self._waits.get(ticket) is asks:
                del self._waits[ticket]

    def _keeps_callbacks_waiting(self, ticket: int) -> bool:
        """Whether its worker has died behind the end of its trial, which callbacks hear of when the ticket has come back."""
        return self.hears and self.book.n_unheard > 0 and ticket in self._of_ticket

    def _guess_in_s(self) -> float | None:
        """Seconds after which a trial may begin before the first one has ended; None when that is not known, or never."""
        first = self.open.get(-1 if self.way.first is None else self.way.first)
        if first is None or first.ticket is None or first.is_cut or self.ready or self.is_stopping or not self._may_begin:
            return None
        return self.ahead.quiet_in_s()

    def has_asked(self, number: int) -> None:
        """A trial has asked for a parameter."""
        if number == self.way.first:
            self.ahead.heard(self.open[number].trial)
            self.changed.notify_all()  # who waits for it to be quiet waits from now on

    def wait_while_open(self, guess: Guess) -> None:
        """Wait until the first trial has ended, or for as long as one may."""
        began = time.monotonic()
        self.changed.wait_for(lambda: guess.stand is not Stand.OPEN, self.wait_s)
        self.waited_s += time.monotonic() - began

    def _withdraw(self, number: int) -> None:
        """Nobody runs this trial for now. If others wait for it, their workers must be free for it."""
        if number == self.way.first and self.ahead.withdraw(f"trial {number} begins again"):
            self.changed.notify_all()

    def _settle(self) -> None:
        """The first trial has drawn all: those that run already are of the study now, if they draw what was foretold."""
        if self.way.first is None and self.ahead.open:
            if not self.ahead.settle(self._take_in) and self.error is None:
                say("the first trial has ended otherwise than foreseen, or another one was made meanwhile")
            self.book.watch(self.book.running)
            self.changed.notify_all()

    def _take_in(self, guess: Guess) -> bool:
        """Whether the next trial of the study is the one that runs already."""
        if self.error is not None or self._is_closed or self._is_full():
            return False
        try:
            here = self.book.begin(guess.started)
            number = here.trial.number
            if (number, given(here.trial, here.sampler)) != (guess.number, guess.given):
                self.ready.append(number)
                return False
            here.ticket, here.attempts, here.is_cut = guess.ticket, guess.attempts, guess.failure is not None
            here.began_at -= (datetime.datetime.now() - guess.started).total_seconds()
            self.book.set(here, states.ATTEMPTS, here.attempts)
            if guess.ticket is None:
                self.ready.append(number)
            else:
                self._of_ticket[guess.ticket] = number
            for each in guess.said:
                suggest(here, *each)
        except Exception as error:  # of the sampler, of the storage
            self.book.fails(error)
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
                self.book.set(here, states.STATE, states.CRASHED)  # unless it ends otherwise after all
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
        with self.book.lock:
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
        n_begun = self.book.n_begun + len(self.ahead.open)
        return (self._n_trials is None or n_begun < self._n_trials) and self.way.has_more(self.study)

    def _next(self) -> int | None:
        if self.is_stopping or (self.hears and self.book.n_unheard):
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
            if not self._is_full():
                self.ready.append(self._begun())
            return
        while self._may_begin and not self._is_full():
            number = self._begun()
            self.batch.append(number)
            self.ready.append(number)
            if (number + 1 - self._first) % size == 0 or len(self.batch) >= size:  # a study of several has gaps
                break

    @property
    def why_idle(self) -> str:
        """Why no trial has run, where none has."""
        if self._n_trials is not None and self.book.n_begun >= self._n_trials:
            return f"the study has its n_trials={self._n_trials} already: nothing ran"
        return "" if self.way.has_more(self.study) else "the study has all points of its grid already: nothing ran"

    def _is_full(self) -> bool:
        """Whether the study has its trials, with those that other processes have begun meanwhile."""
        if self.book.mark is None or self._n_trials is None:
            return False
        self.study._thread_local.cached_all_trials = None
        self.book.n_begun = sum(counts(each) for each in self.study.get_trials(deepcopy=False))
        return self.book.n_begun >= self._n_trials

    def _begun(self) -> int:
        try:
            return self.book.begin().trial.number
        except BaseException:  # the call ends, and who waits for a trial gets none
            self.changed.notify_all()
            raise

    # ---- what becomes of trials --------------------------------------------------------------------------------------

    def paused(self, number: int) -> None:
        """A trial waits for others, and may go on."""
        with self.changed:
            self.book.paused(number)
            self._settle()
            self.changed.notify_all()

    def ended(self, number: int, end: End) -> None:
        """A trial has ended."""
        with self.changed:
            self._orphans.discard(number)
            self.book.ended(number, end)
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
            told, end = of_trial(failure, here)
            self.failures.append(told)
            if error is not None and end.state == states.FAILED and not is_caught(error):
                self.book.fails(error)
            self.ended(told.index, end)

    def _lost(self, failure: Failure) -> None:
        """A ticket has failed that had no trial."""
        self._lost_in_a_row += 1
        if states.OF_KIND[failure.kind] == states.FAILED or self._lost_in_a_row >= LOST_IN_A_ROW:
            self.book.fails(failure.error)

    def heard(self, n_trials: int) -> None:
        """Callbacks were called with so many."""
        with self.changed:
            self.book.n_unheard -= n_trials
            self.changed.notify_all()

    def close(self, is_done: bool = False) -> None:
        """No trial runs any more: none is left running in the study.

        Args:
            is_done: Those that wait will not go on, in a later call either.
        """
        with Shield(), self.changed:
            self._is_closed = True
            self.ahead.withdraw()
            self.ready.clear()
            self.book.close(is_done)
            self.changed.notify_all()
