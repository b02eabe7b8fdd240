"""What is shown of trials: how many there are of each state, the best, and what went wrong.

tune_live.py shows it while they run.
"""

from __future__ import annotations

import bisect
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fourfold.cli.exits import printable, say

if TYPE_CHECKING:
    from rich.table import Table

    from fourfold.workloads.tune.told import Told

N_SHOWN = 10
"""Trials that are shown, of all. More: the reader scrolls."""

MESSAGE_CHARS = 200

STATES = ("complete", "pruned", "paused", "failed", "crashed", "out of memory", "timed out", "invalid", "unfinished")
"""In the order in which they are told."""

WITHOUT_VALUE = STATES[3:]


class Board:
    """Trials so far, of which only the best are kept.

    Args:
        directions: "minimize" or "maximize", for each value.
        total: How many trials there will be; None when nobody knows.

    Attributes:
        n_of: How many trials there are of each state.
        best: The best trials, the best first; with several directions, those that no other trial beats in all of them.
    """

    def __init__(self, directions: Sequence[str], total: int | None = None) -> None:
        self._signs = [-1.0 if each.lower() == "maximize" else 1.0 for each in directions]
        self.total = total
        self.n_of: Counter[str] = Counter()
        self.best: list[Told] = []
        self._first: dict[str, Told] = {}

    def add(self, trial: Told) -> None:
        """One trial more."""
        self.n_of[trial.state] += 1
        if trial.state == "complete":
            self._place(trial)
        elif trial.state in WITHOUT_VALUE:
            self._first.setdefault(trial.state, trial)

    def _place(self, trial: Told) -> None:
        if len(self._signs) == 1:
            bisect.insort(self.best, trial, key=lambda each: (self._losses(each), each.number))
            del self.best[N_SHOWN:]
        elif not any(self._beats(other, trial) for other in self.best):
            self.best = [*(other for other in self.best if not self._beats(trial, other)), trial]

    def _losses(self, trial: Told) -> list[float]:
        return [sign * value for sign, value in zip(self._signs, trial.values or (), strict=True)]

    def _beats(self, one: Told, other: Told) -> bool:
        ours, theirs = self._losses(one), self._losses(other)
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    @property
    def n_without_value(self) -> int:
        """Trials that failed in one way or another."""
        return sum(self.n_of[state] for state in WITHOUT_VALUE)

    def counted(self) -> str:
        """How far it is, as in "37 of 200 trials: 30 complete, 7 pruned"."""
        n_trials = sum(self.n_of.values())
        text = f"{n_trials:,} of {self.total:,} trials" if self.total is not None else f"{n_trials:,} trials"
        each = [f"{self.n_of[state]:,} {state}" for state in STATES if self.n_of[state]]
        return f"{text}: {', '.join(each)}" if each else text

    def line(self) -> str:
        """How far it is, and the best."""
        if not self.best:
            return self.counted()
        first = self.best[0]
        best = f"best {values_of(first)} (trial {first.number})" if len(self._signs) == 1 else f"{len(self.best)} are best"
        return f"{self.counted()}; {best}"

    def tell_failures(self) -> None:
        """Say what went wrong, by state."""
        for state, first in self._first.items():
            which = "the first is trial" if self.n_of[state] > 1 else "trial"
            with_what = in_words(first.params) or "no parameters"
            say(f"{self.n_of[state]:,} {state}; {which} {first.number} with {with_what}: {shortened(first.error)}")

    def table(self) -> Table:
        """The best trials."""
        return table_of(*self._shown())

    def print(self) -> None:
        """Print the best trials on stdout."""
        if self.best:
            print_table(*self._shown())
        if len(self.best) > N_SHOWN:
            print(f"and {len(self.best) - N_SHOWN:,} more that no other trial beats")

    def _shown(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        headings = ("trial", "value" if len(self._signs) == 1 else "values", "parameters")
        return headings, [(str(each.number), values_of(each), in_words(each.params)) for each in self.best[:N_SHOWN]]

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        best = [
            {"number": each.number, "values": each.values, "params": each.params, "user_attrs": each.user_attrs}
            for each in self.best
        ]
        failures = [
            {"state": state, "count": self.n_of[state], "first": {"number": each.number, "error": each.error}}
            for state, each in self._first.items()
        ]
        return {"states": dict(self.n_of), "total": self.total, "best": best, "failures": failures}


def values_of(trial: Told) -> str:
    """Its values, for people."""
    return ", ".join(f"{value:.6g}" for value in trial.values or ())


def in_words(params: Mapping[str, Any]) -> str:
    """Parameters, for people."""
    told = (f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items())
    return printable(" ".join(", ".join(told).split()))


def shortened(error: str) -> str:
    """What was raised, in a line: its type without the modules that it is in."""
    return printable(re.sub(r"^(?:\w+\.)+(?=\w+: )", "", " ".join(error.split()))[:MESSAGE_CHARS])


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of figures, the last column of which is text."""
    from rich.table import Table
    from rich.text import Text  # not str: brackets and colons in it would be markup and emoji

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings[:-1]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(headings[-1], overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table_of(headings, rows))
        return
    console.width = 1 << 20  # a pipe has no width, and wants no blanks to the end of it
    with console.capture() as text:
        console.print(table_of(headings, rows))
    print("\n".join(line.rstrip() for line in text.get().splitlines()), flush=True)  # before what is said on stderr


def print_json(found: dict[str, Any]) -> None:
    """Print it on stdout. What JSON does not have is text; nan and infinities are null, as everywhere on the command line."""
    print(json.dumps(_plain(found), indent=2, default=str, allow_nan=False), flush=True)


def _plain(found: Any) -> Any:
    """The same with the numbers of Python in the place of NumPy's."""
    if isinstance(found, Mapping):
        return {str(key): _plain(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_plain(value) for value in found]
    if type(found).__module__ == "numpy" and hasattr(found, "tolist"):
        return _plain(found.tolist())
    return None if isinstance(found, float) and not math.isfinite(found) else found
