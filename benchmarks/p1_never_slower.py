"""P1: `ff.map` is never slower than the plain loop, for any item size, warm and cold.

Warm: the pool of processes has been started by an earlier call. Cold: the first call of a fresh interpreter,
after `import fourfold` and after the data was made. The control runs the loop a second time: how far its
ratio is from 1 is how far this machine can be trusted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import work
from fourfolds import fourfold, start_workers
from fresh import fresh_lap
from measure import Contestant, Lap, loop, race, timed, usable_cores
from rows import FOURFOLD, LOOP, Row, against_the_loop

import fourfold as ff

BAR = 1.10
SLACK_S = 0.001

# Seconds of laps that one contestant of one case gets beyond its rounds: short cases, where the timer and the
# neighbours show most, run more often, at most MAX_REPEATS times as often.
LAPS_BUDGET_S = 0.25
MAX_REPEATS = 5


@dataclass(frozen=True)
class Job:
    """A function and its items: made anew for each lap, since a generator is used up."""

    fn: Callable[[Any], Any]
    make_items: Callable[[], Iterable[Any]]


def _spins(microseconds: float, count: int) -> Callable[[float], Job]:
    def make(units_per_us: float) -> Job:
        items = work.items_of(microseconds, count, units_per_us)
        return Job(work.spin, lambda: items)

    return make


def _plain(fn: Callable[[Any], Any], make_list: Callable[[], list[Any]]) -> Callable[[float], Job]:
    def make(_: float) -> Job:
        items = make_list()
        return Job(fn, lambda: items)

    return make


def _locked(units_per_us: float) -> Job:
    lock = threading.Lock()  # cannot be pickled, and the loop does not care

    def spin_locked(units: int) -> int:
        with lock:
            return work.spin(units)

    items = work.items_of(1000, 200, units_per_us)
    return Job(spin_locked, lambda: items)


def _generated(microseconds: float, count: int) -> Callable[[float], Job]:
    def make(units_per_us: float) -> Job:
        items = work.items_of(microseconds, count, units_per_us)

        def generate() -> Iterator[int]:
            yield from items

        return Job(work.spin, generate)

    return make


CASES: dict[str, Callable[[float], Job]] = {
    "8 lists of 1000 squares": _plain(work.squares, lambda: [list(range(k, k + 1000)) for k in range(8)]),
    "100k × x+1": _plain(work.add_one, lambda: list(range(100_000))),
    "1M × x+1": _plain(work.add_one, lambda: list(range(1_000_000))),
    "10k × 20 µs": _spins(20, 10_000),
    "1000 × 200 µs": _spins(200, 1000),
    "200 × 1 ms": _spins(1000, 200),
    "2000 × 1 ms": _spins(1000, 2000),
    "20 arrays of 4 MB, mean": _plain(work.mean_of, lambda: work.arrays_of_4_mb(20)),
    "20 arrays of 4 MB, doubled": _plain(work.double, lambda: work.arrays_of_4_mb(20)),
    "100k small rows": _plain(work.total_row, lambda: [{"id": k, "price": k * 0.5, "count": k % 7} for k in range(100_000)]),
    "100k strings": _plain(work.shout, lambda: [f" name {k} " for k in range(100_000)]),
    "200 × 1 ms, a lock in the closure": _locked,
    "generator, 100k × 1 µs": _generated(1, 100_000),
    "generator, 500 × 1 ms": _generated(1000, 500),
    "200 × sleep 1 ms": _plain(work.nap, lambda: [0.001] * 200),
}


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Races every case warm, then cold."""
    units_per_us = work.calibrate()
    start_workers(usable_cores())
    names = list(CASES)[:4] if is_quick else list(CASES)
    warm = [_warm_row(name, rounds, units_per_us) for name in names]
    return warm + [_cold_row(name, rounds, units_per_us) for name in names]


def _warm_row(name: str, rounds: int, units_per_us: float) -> Row:
    job = CASES[name](units_per_us)
    contestants = [
        Contestant(LOOP, {"": lambda: timed(lambda: loop(job.fn, job.make_items()))}),
        fourfold(job.fn, job.make_items),
        Contestant("control", {"": lambda: timed(lambda: loop(job.fn, job.make_items()))}),
    ]
    loop_s = contestants[0].settings[""]().elapsed_s
    result = race(contestants, rounds * _repeats(loop_s))
    return against_the_loop("P1", f"{name}, warm", result, BAR, SLACK_S)


def _cold_row(name: str, rounds: int, units_per_us: float) -> Row:
    def cold_lap(contestant: str) -> Contestant:
        call = fresh_lap("p1_never_slower", "cold", case=name, contestant=contestant, units_per_us=units_per_us)
        return Contestant(contestant, {"": call})

    result = race([cold_lap(LOOP), cold_lap(FOURFOLD)], rounds, tries=0)
    return against_the_loop("P1", f"{name}, cold", result, BAR, SLACK_S)


def cold(case: str, contestant: str, units_per_us: float) -> Lap:
    """One first call, in this fresh interpreter."""
    job = CASES[case](units_per_us)
    run = {LOOP: loop, FOURFOLD: ff.map}[contestant]
    return timed(lambda: run(job.fn, job.make_items()))


def _repeats(loop_s: float) -> int:
    return max(1, min(MAX_REPEATS, int(LAPS_BUDGET_S / loop_s)))
