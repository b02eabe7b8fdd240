"""Rungs: which trials go on and which wait, as they report. A pure state machine: no study, no clock, nothing read or written.

    resource   81  ── the end ──                a trial that gets here is not stopped any more
               27  │ 7                          1 of 3, if there are 3
                9  │ 7 2 5                      the best third of those below has come this far
                3  │ 7 2 5 9 0 4 …              of the rest each waits at its rung
                1  │ 7 2 5 9 0 4 1 3 6 8 …      where all trials come first

A worker that is free takes the best trial that waits at the highest rung, if it is among the best third there; if there is
none, it begins a new one. So nobody waits for a rung to be full. A third may change as others arrive: whoever was in it then
has gone on and stays ahead, so that a rung lets somewhat more pass than its third, by about the square root of their number
when trials come in no order.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, algorithm 2. Brackets: Li et al.,
"Hyperband", JMLR 18 (2018), algorithm 1, as many trials in each as there.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from fourfold.errors import Bug, OptionError
from fourfold.options import whole_number

GOLDEN = (math.sqrt(5) - 1) / 2
"""The share of a round by which the bracket of the next trial is moved on: no part of a round is long without one."""


class Decision(Enum):
    """What a trial that has reported is to do."""

    GO_ON = "go on"
    PAUSE = "pause"


@dataclass
class _Trial:
    """Where a trial is: the rung at which it is recorded next, and what it has reported last."""

    bracket: int
    level: int = 0
    resource: int = 0
    value: float = math.nan


Key = tuple[bool, float, int]
"""The place of a value in a rung: numbers before NaN, great before small, and of equal ones who came first."""


class Rung:
    """The values of all trials that have come to one resource.

    Args:
        resource: How much of it a trial has had here.
        reduction_factor: One of so many goes on.
    """

    def __init__(self, resource: int, reduction_factor: int) -> None:
        self.resource, self._factor = resource, reduction_factor
        self._ranked: list[Key] = []
        self._waiting: list[Key] = []
        self._keys: dict[int, Key] = {}
        self._numbers: list[int] = []

    def __contains__(self, number: int) -> bool:
        return number in self._keys

    @property
    def waiting(self) -> list[int]:
        """The trials that wait here, the best first."""
        return [self._numbers[key[2]] for key in self._waiting]

    def record(self, number: int, value: float) -> None:
        """A trial has come here. What it says the next time, when it runs again from its beginning, does not count."""
        if number not in self._keys:
            is_nan = math.isnan(value)
            key = (is_nan, 0.0 if is_nan else -value, len(self._numbers))
            self._keys[number] = key
            self._numbers.append(number)
            insort(self._ranked, key)

    def passes(self, number: int, is_last: bool = False) -> bool:
        """Whether a trial is among those that go on: the best of so many. The last time that is one at least."""
        return self._is_within(self._keys[number], is_last)

    def wait(self, number: int) -> None:
        """A trial waits here."""
        self.leave(number)
        insort(self._waiting, self._keys[number])

    def leave(self, number: int) -> None:
        """A trial waits here no more, if it did."""
        if (key := self._keys.get(number)) is not None:
            _discard(self._waiting, key)

    def fail(self, number: int) -> None:
        """A trial that was here has failed: it counts as the worst, and another one goes on in its place."""
        if (key := self._keys.get(number)) is not None:
            _discard(self._ranked, key)
            self._keys[number] = worst = (True, 0.0, key[2])
            insort(self._ranked, worst)

    def next(self, is_last: bool = False) -> int | None:
        """The best trial that waits here, if it is one of those that go on."""
        if self._waiting and self._is_within(self._waiting[0], is_last):
            return self._numbers[self._waiting[0][2]]
        return None

    def _is_within(self, key: Key, is_last: bool) -> bool:
        n_passing = max(len(self._ranked) // self._factor, int(is_last))
        return not key[0] and bisect_left(self._ranked, key) < n_passing


def _discard(keys: list[Key], key: Key) -> None:
    at = bisect_left(keys, key)
    if keys[at : at + 1] == [key]:
        del keys[at]


class Rungs:
    """Decides which trials go on, from what they report.

    Args:
        min_resource: Of the lowest rung, in reports: a trial that has reported step 4 has had 5.
        max_resource: What a trial gets that is never stopped. No rung is there, and none above.
        reduction_factor: A rung has so many times the resource of the one below; one trial of so many goes on.
        n_brackets: More than one for Hyperband: each begins a rung higher than the one before.

    Guarantees: everything follows from the sequence of calls.

    >>> rungs = Rungs(min_resource=1, max_resource=9, reduction_factor=3)
    >>> [rungs.report(number, 0, value).value for number, value in enumerate([0.3, 0.1, 0.5])]
    ['pause', 'pause', 'go on']
    """

    def __init__(self, min_resource: int, max_resource: int, reduction_factor: int, n_brackets: int = 1) -> None:
        levels = resources(min_resource, max_resource, reduction_factor)
        made = range(n_brackets)
        self._brackets = [[Rung(each, reduction_factor) for each in levels[at:]] for at in made]
        # From the highest rung down; at equal height the bracket that stops later first.
        self._rungs = sorted((rung for bracket in self._brackets for rung in bracket), key=lambda rung: rung.resource)[::-1]
        self._shares = shares(n_brackets, reduction_factor)
        self._trials: dict[int, _Trial] = {}

    @property
    def paused(self) -> list[int]:
        """The trials that wait to be continued."""
        return [number for rung in self._rungs for number in rung.waiting]

    def report(self, number: int, step: int, value: float) -> Decision:
        """A trial has reported.

        Args:
            number: Of the trial.
            step: As in Optuna: the first is 0.
            value: Greater is better. NaN is the worst of all, and never goes on.

        Returns:
            PAUSE at a rung from which it does not go on now. If it does not stop there, it is told at each report.
        """
        trial = self._trials.setdefault(number, _Trial(bracket_of(number, self._shares)))
        trial.resource, trial.value = step + 1, float(value)
        self._left(number)
        return self._climb(number, trial)

    def pause(self, number: int) -> None:
        """A trial has stopped as it was told, and can be continued from there: from now on `promotable` may name it."""
        trial = self._trials.get(number)
        bracket = self._brackets[trial.bracket] if trial else []
        if trial is None or trial.level >= len(bracket) or number not in bracket[trial.level]:
            raise Bug(f"trial {number} was not told to pause")
        bracket[trial.level].wait(number)

    def promotable(self, is_last: bool = False) -> int | None:
        """The trial to be continued next, of those that wait: from the highest rung, the best there. It waits no more.

        Args:
            is_last: No trial will be begun any more, and none runs. Then the best of a rung goes on though there are too few
                for that, so that of a short study one comes to the end.
        """
        while (rung := self._next_rung(is_last)) is not None:
            number = rung.next(is_last)
            assert number is not None
            rung.leave(number)
            trial = self._trials[number]
            trial.level += 1
            # Who reports seldom may have come to the next rung as well, and may have to wait there.
            if self._climb(number, trial, is_last) is Decision.GO_ON:
                return number
            self.pause(number)
        return None

    @property
    def has_promotable(self) -> bool:
        """Whether a trial that waits can be continued."""
        return self._next_rung() is not None

    def _next_rung(self, is_last: bool = False) -> Rung | None:
        return next((rung for rung in self._rungs if rung.next(is_last) is not None), None)

    def end(self, number: int) -> None:
        """A trial is over: complete, or not to be continued. Its values stay, and others are compared with them."""
        self._left(number)

    def fail(self, number: int) -> None:
        """A trial is over without a value: it counts as the worst at all rungs, and others go on in its place."""
        self._left(number)
        for rung in self._brackets[self._trials[number].bracket] if number in self._trials else ():
            rung.fail(number)

    def recall(self, number: int, reports: Mapping[int, float], waits: bool = False) -> bool:
        """A trial of an earlier call has reported this: others are compared with it. Call `fail` after it if it had failed.

        Args:
            number: Of the trial.
            reports: What it had reported, by step; greater is better.
            waits: It had paused, and can be continued: it waits at the highest rung that it had come to.

        Returns:
            Whether it waits: it may have come to no rung.
        """
        trial = self._trials[number] = _Trial(bracket_of(number, self._shares))
        if not reports:
            return False
        bracket, recorded = self._brackets[trial.bracket], -1
        trial.resource, trial.value = max(reports) + 1, float(reports[max(reports)])
        while trial.level < len(bracket) and trial.resource >= (rung := bracket[trial.level]).resource:
            recorded = min(step for step in reports if step + 1 >= rung.resource)
            rung.record(number, float(reports[recorded]))
            trial.level += 1
        if trial.level and (waits or recorded == max(reports)):  # what it was told at its last report is asked again
            trial.level -= 1
            if waits:
                bracket[trial.level].wait(number)
                return True
        return False

    def _left(self, number: int) -> None:
        trial = self._trials.get(number)
        if trial and trial.level < len(bracket := self._brackets[trial.bracket]):
            bracket[trial.level].leave(number)

    def _climb(self, number: int, trial: _Trial, is_last: bool = False) -> Decision:
        """Past all rungs that it has come to, as far as it is among those that go on."""
        bracket = self._brackets[trial.bracket]
        while trial.level < len(bracket) and trial.resource >= (rung := bracket[trial.level]).resource:
            rung.record(number, trial.value)
            if not rung.passes(number, is_last):
                return Decision.PAUSE
            trial.level += 1
        return Decision.GO_ON


def resources(min_resource: int, max_resource: int, reduction_factor: int) -> list[int]:
    """The resources of the rungs, from the lowest up.

    Raises:
        OptionError: One of them is no whole number, or too small.

    >>> resources(1, 81, 3)
    [1, 3, 9, 27]
    """
    lowest, factor = whole_number("min_resource", min_resource, 1), whole_number("reduction_factor", reduction_factor, 2)
    highest = whole_number("max_resource", max_resource, 1)
    if highest <= lowest:
        raise OptionError(
            f"max_resource={highest} must be greater than min_resource={lowest}: nothing could be stopped between them. "
            "It is the number of steps that a trial reports when it is not stopped"
        )
    found = [lowest]
    while found[-1] * factor < highest:
        found.append(found[-1] * factor)
    return found


def n_brackets(min_resource: int, max_resource: int, reduction_factor: int) -> int:
    """How many brackets Hyperband has: one per rung, and one without any where these end exactly at the highest resource.

    >>> n_brackets(1, 81, 3), n_brackets(1, 80, 3)
    (5, 4)
    """
    levels = resources(min_resource, max_resource, reduction_factor)
    return len(levels) + (levels[-1] * reduction_factor == max_resource)


def shares(n_brackets: int, reduction_factor: int) -> list[int]:
    """How many trials of a round each bracket has, so that all brackets use about the same resource.

    >>> shares(5, 3)
    [81, 34, 15, 8, 5]
    """
    return [-(-n_brackets * reduction_factor**at // (at + 1)) for at in reversed(range(n_brackets))]


def bracket_of(number: int, shares: list[int]) -> int:
    """The bracket of a trial: exactly as many as the shares say in each round of trials, and well mixed.

    >>> [bracket_of(number, [81, 34, 15, 8, 5]) for number in range(8)]
    [0, 1, 0, 2, 0, 0, 1, 0]
    """
    total = sum(shares)
    stride = max(1, round(total * GOLDEN))
    while math.gcd(stride, total) > 1:
        stride += 1
    place = number * stride % total
    bracket = 0
    while place >= shares[bracket]:
        place -= shares[bracket]
        bracket += 1
    return bracket
