"""Trials that run before the study has them: what they draw follows from the first one, which still runs.

    first trial   asks for x, y ── quiet ───────────────────────── ends: the study is told, and begins 1, 2, …
    a guess       ·················· x, y of trial 1 are foretold: it runs ─── asks for anything else: waits ──> trial 1
    ... or        the first one asks for z: what was foretold is wrong, the guess is withdrawn, and trial 1 begins anew

A guess is a promise of nothing: what it says is kept here until the first trial has ended. Then its trial is begun as any
other, and only if that draws what was foretold it is the guess's.
"""

import datetime
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import optuna
from optuna.trial import TrialState

from fourfold.records import Failure
from fourfold.workloads.tune.asking import Given
from fourfold.workloads.tune.proposing import Way

QUIET_S, QUIET_TIMES = 0.5, 3.0
"""Seconds since the first trial has asked for a parameter, and how many times as long as it had run until then, after which
others begin, if it has not said that it is quiet. Fewer: an objective that prepares something between two parameters, or waits
for a processor, has its trials run again more often. More: workers idle so long, once in a study. Not measured."""

Said = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A parameter that a guess was asked for: the method of a trial, and its arguments."""


class Stand(Enum):
    """How it stands with a guess."""

    OPEN = "the first trial runs"
    RIGHT = "the study has its trial"
    WITHDRAWN = "it drew something wrong, or would never be told"


@dataclass
class Guess:
    """A trial that runs before the study has it.

    Attributes:
        key: What its worker calls it: a negative number, that of no trial.
        number: Of the trial that it will be.
        given: What that will draw.
        ticket: For which it runs; None when nobody does.
        attempts: How often it was begun.
        said: Which parameters it was asked for.
        failure: Why it has no value, and which exceptions do not end the call.
    """

    key: int
    number: int
    given: Given
    ticket: int | None
    attempts: int = 1
    started: datetime.datetime = field(default_factory=datetime.datetime.now)
    stand: Stand = Stand.OPEN
    said: list[Said] = field(default_factory=list)
    failure: tuple[Failure, Callable[[BaseException], bool]] | None = None


class Ahead:
    """The guesses of a study. Once one was wrong there are no more.

    Args:
        way: Foretells what trials draw.

    Attributes:
        open: Those of which nobody knows whether they are right, in the order of their numbers.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self.open: list[Guess] = []
        self._by_key: dict[int, Guess] = {}
        self._of_ticket: dict[int, Guess] = {}
        self._began_at, self._quiet_at, self._n_asked, self._is_off = 0.0, 0.0, 0, False

    def first(self) -> None:
        """The first trial begins."""
        self._began_at, self._n_asked = time.monotonic(), 0

    def heard(self, first: optuna.Trial) -> None:
        """The first trial has asked for a parameter. If it is a new one, guesses were wrong."""
        n_asked = len(first._cached_frozen_trial.params)
        if n_asked <= self._n_asked:
            return
        now = time.monotonic()
        self._n_asked, self._quiet_at = n_asked, now + max(QUIET_S, QUIET_TIMES * (now - self._began_at))
        self._way.foretell_anew()
        self.withdraw(f"trial {first.number} has asked for {list(first._cached_frozen_trial.params)[-1]!r}")

    def is_quiet(self) -> None:
        """The first trial says that it will probably ask for no more."""
        self._quiet_at = 0.0

    def quiet_in_s(self) -> float | None:
        """Seconds after which a guess may begin, if nothing is heard until then; None when none may."""
        if self._is_off or not self._n_asked:
            return None
        return max(0.0, self._quiet_at - time.monotonic())

    def next(self, first: optuna.Trial, ticket: int) -> Guess | None:
        """What a ticket can run while the first trial does; None when nobody can say what it would draw."""
        if (found := self._nobodys(ticket)) is not None:
            return found
        others = first.study.get_trials(deepcopy=False)
        if any(each.state == TrialState.WAITING for each in others):
            return None
        number = len(others) + len(self.open)
        given = self._way.foretold(first, number)
        if not given:
            self._way.foretell_anew()
            return None
        found = Guess(-1 - len(self._by_key), number, given, ticket)
        self.open.append(found)
        self._by_key[found.key] = self._of_ticket[ticket] = found
        return found

    def of_key(self, key: int) -> Guess:
        """The guess that a worker speaks of."""
        return self._by_key[key]

    def of_ticket(self, ticket: int) -> Guess | None:
        """The guess that a ticket has run last, whatever has become of it."""
        return self._of_ticket.get(ticket)

    def open_of(self, ticket: int) -> Guess | None:
        """The guess that a ticket runs."""
        found = self._of_ticket.get(ticket)
        return found if found is not None and found.stand is Stand.OPEN else None

    def _nobodys(self, ticket: int) -> Guess | None:
        """A guess that nobody runs, since who asked for it has died before."""
        found = next((each for each in self.open if each.ticket is None), None)
        if found is not None:
            found.ticket, found.attempts = ticket, found.attempts + 1
            self._of_ticket[ticket] = found
        return found

    def undelivered(self, ticket: int, attempts: int) -> bool:
        """Whether it was a guess that could not be handed to who had asked: it has not begun."""
        found = self.open_of(ticket)
        if found is None or found.attempts != attempts:
            return False
        found.ticket, found.attempts = None, attempts - 1
        del self._of_ticket[ticket]
        return True

    def forget(self, ticket: int) -> None:
        """A ticket runs a guess no more."""
        self._of_ticket.pop(ticket, None)

    def settle(self, take_in: Callable[[Guess], bool]) -> bool:
        """The first trial has drawn all: each guess becomes its trial, until one turns out wrong. Whether none did."""
        is_right = True
        while self.open and is_right:
            each = self.open.pop(0)
            each.stand = Stand.WITHDRAWN  # unless nothing comes between
            is_right = take_in(each)
            if is_right:
                each.stand = Stand.RIGHT
        self.withdraw()
        return is_right

    def withdraw(self, why: str = "") -> bool:
        """Nothing comes of any guess, and the log says why if they begin again. Whether there was one."""
        found, self.open = self.open, []
        if found and why:
            say(why)
        for each in found:
            each.stand = Stand.WITHDRAWN
        self._is_off = self._is_off or bool(found)
        return bool(found)


def say(why: str) -> None:
    """Say in the log why trials run twice."""
    logging.getLogger("fourfold").warning(
        "%s: trials that had begun meanwhile begin again, with what they draw then. Of what they did nothing is kept", why
    )
