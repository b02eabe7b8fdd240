"""The measurement: contestants take turns, and only times of the same round are compared.

    round 1   loop  fourfold  peer A  peer B      A machine that slows down for a minute slows all of a round.
    round 2   loop  fourfold  peer A  peer B      A ratio per round, then the median over the rounds: what the
    round 3   loop  fourfold  peer A  peer B      neighbours on this machine do mostly cancels out.

A contestant may come with several settings (chunk sizes, ways to pass arrays): each is tried before round 1,
which also warms it, and the fastest runs in the rounds. Every answer is compared with that of the first.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class WrongAnswer(Exception):
    """A contestant's answer differs from the loop's: its time does not count."""


@dataclass(frozen=True)
class Lap:
    """One timed call: how long it took, a digest of what came out, and what the contestant says about it."""

    elapsed_s: float
    digest: str
    note: str = ""


@dataclass(frozen=True)
class Contestant:
    """Who takes part, and the call that does the whole job once, for each setting.

    Args:
        name: As printed.
        settings: Label of a setting -> the call. The fastest at the try-out runs in the rounds.
        max_rounds: Rounds it takes part in at most (a slow peer that no bar speaks of); None for all.
    """

    name: str
    settings: Mapping[str, Callable[[], Lap]]
    max_rounds: int | None = None


@dataclass
class Race:
    """What was measured: the digest of the right answer and, by contestant, its seconds in each round, the setting it
    ran with, its last note, its error."""

    digest: str = ""
    laps_s: dict[str, list[float]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def median_s(self, name: str) -> float | None:
        """The median seconds of a contestant, None when it has none."""
        laps = self.laps_s.get(name)
        return statistics.median(laps) if laps else None

    def median_of(self, figure: Callable[[float, float], float], name: str, other: str) -> float | None:
        """The median over the rounds of `figure(seconds of name, seconds of other)`."""
        rounds = zip(self.laps_s.get(name, ()), self.laps_s.get(other, ()), strict=False)
        figures = [figure(ours, theirs) for ours, theirs in rounds]
        return statistics.median(figures) if figures else None

    def ratio(self, name: str, to: str) -> float | None:
        """The median over the rounds of `name`'s seconds over `to`'s."""
        return self.median_of(lambda ours, theirs: ours / theirs, name, to)

    def excess_s(self, name: str, over: str) -> float | None:
        """The median over the rounds of `name`'s seconds less `over`'s."""
        return self.median_of(lambda ours, theirs: ours - theirs, name, over)

    def best(self, names: Iterable[str]) -> str | None:
        """The name with the lowest median."""
        timed = [(median, name) for name in names if (median := self.median_s(name)) is not None]
        return min(timed)[1] if timed else None


def usable_cores() -> int:
    """The cores this process may run on: the number of workers of every contestant."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loop(fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """The plain loop: what everybody is compared with."""
    return [fn(item) for item in items]


def timed(job: Callable[[], Iterable[Any]]) -> Lap:
    """Times one call. Garbage is collected before it, the digest of the answer taken after it."""
    gc.collect()
    start = time.perf_counter()
    answer = job()
    elapsed_s = time.perf_counter() - start
    report = getattr(answer, "report", None)
    return Lap(elapsed_s, digest_of(answer), getattr(report, "verdict", ""))


def digest_of(answer: Iterable[Any]) -> str:
    """A short text, equal for equal answers in any process: order, types and values count."""
    values = [_array_digest(value) if type(value).__module__ == "numpy" else value for value in answer]
    return f"{len(values)}:{zlib.crc32(repr(values).encode()):08x}"


def _array_digest(array: Any) -> tuple[Any, ...]:
    import numpy as np  # here: a fresh interpreter that needs no arrays must not find it imported

    # The sum of the bits sees any changed number, the checksum of every 64th a changed order; a full checksum
    # of 800 MB would take longer than the benchmark.
    bits = np.ascontiguousarray(array).view(np.uint64)
    return array.shape, str(array.dtype), int(bits.sum()), zlib.crc32(np.ascontiguousarray(bits[::64]))


def race(contestants: Sequence[Contestant], rounds: int, tries: int = 1, digest: str = "") -> Race:
    """Runs the contestants in turn, `rounds` times.

    A contestant that raises or answers wrongly is out and its error kept; the others go on.

    Args:
        contestants: In the order of their turns.
        rounds: How often each runs, after its try-out.
        tries: Calls of each setting at the try-out; the shortest decides. 0 where there is nothing to choose and
            nothing to warm: cold laps.
        digest: Of the right answer. None is given: the first answer of the first contestant is the right one.
    """
    result = Race(digest)
    calls: dict[str, Callable[[], Lap]] = {}
    for contestant in contestants:
        if call := _chosen(contestant, tries, result):
            calls[contestant.name] = call
    for number in range(rounds):
        for contestant in contestants:
            if contestant.name in calls and number < (contestant.max_rounds or rounds):
                _take_turn(contestant.name, calls, result)
    return result


def _chosen(contestant: Contestant, tries: int, result: Race) -> Callable[[], Lap] | None:
    """The call of the setting that was fastest at the try-out; None when none answered rightly."""
    if not tries:
        return next(iter(contestant.settings.values()))
    fastest: dict[str, float] = {}
    for label, call in contestant.settings.items():
        try:
            fastest[label] = min(_checked(call(), result).elapsed_s for _ in range(tries))
        except Exception as exc:  # a peer may fail in any way; it is out and the table says why
            result.errors[f"{contestant.name} {label}".strip()] = _described(exc)
    if not fastest:
        return None
    label = min(fastest, key=fastest.__getitem__)
    result.settings[contestant.name] = label
    return contestant.settings[label]


def _take_turn(name: str, calls: dict[str, Callable[[], Lap]], result: Race) -> None:
    try:
        lap = _checked(calls[name](), result)
    except Exception as exc:  # as above
        result.errors[name] = _described(exc)
        result.laps_s.pop(name, None)
        del calls[name]
        return
    result.laps_s.setdefault(name, []).append(lap.elapsed_s)
    result.notes[name] = lap.note


def _checked(lap: Lap, result: Race) -> Lap:
    result.digest = result.digest or lap.digest
    if lap.digest != result.digest:
        raise WrongAnswer(f"the answer has digest {lap.digest}, the right one has {result.digest}")
    return lap


def _described(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"[:4000]
