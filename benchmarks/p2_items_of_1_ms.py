"""P2: items of 1 ms on w cores take a w-th of the loop's time, warm and counting the start of the pool.

"bare processes" are two forked processes that each run half of the items and say nothing until they are done:
what this machine gives to anybody. Where they miss the bar too, the cores are not whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import work
from fourfolds import fourfold
from fresh import fresh_lap
from measure import Contestant, Lap, loop, timed, usable_cores
from peers import bouts
from rows import LOOP, Row, against_the_best_peer, as_efficiency

import fourfold as ff

WARM_BAR = 0.97
COLD_BAR = 0.95
COLD = "fourfold, cold"
BARE = "bare processes"

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "Pool": [{"chunksize": 10}],
    "ProcessPoolExecutor": [{"chunksize": 10}],
    "joblib": [{}],
    "mpire": [{}],
    "Ray": [{"chunk": 20}],
    "Dask": [{"batch_size": 20}],
}

# Rounds of the peers: their figures are for orientation, no bar speaks of them.
PEER_ROUNDS = 2


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Races fourfold, warm and cold, with the loop and the bare processes; the peers take part for a while."""
    workers, units_per_us = usable_cores(), work.calibrate()
    count = 400 if is_quick else 4000
    items = work.items_of(1000, count, units_per_us)
    ours = [
        Contestant(LOOP, {"": lambda: timed(lambda: loop(work.spin, items))}),
        fourfold(work.spin, items, engine="processes", workers=workers),
        Contestant(COLD, {"": _cold_call(count, units_per_us, workers)}),
        Contestant(BARE, {"": lambda: timed(lambda: bare_processes(work.spin, items, workers))}),
    ]
    races = bouts(workers, ours, work.spin, items, SETTINGS, (rounds, 1), PEER_ROUNDS)
    label = f"{count} × 1 ms on {workers}"
    _, result = next(races)
    return [
        as_efficiency("P2", f"{label}, warm", result, workers, WARM_BAR),
        as_efficiency("P2", f"{label}, cold", result, workers, COLD_BAR, name=COLD),
        as_efficiency("P2", f"{label}, bare processes", result, workers, None, name=BARE),
        *(against_the_best_peer("P2", f"{label}, warm", result, names, None) for names, result in races),
    ]


def _cold_call(count: int, units_per_us: float, workers: int) -> Callable[[], Lap]:
    return fresh_lap("p2_items_of_1_ms", "cold", count=count, units_per_us=units_per_us, workers=workers)


def cold(count: int, units_per_us: float, workers: int) -> Lap:
    """One first call, in this fresh interpreter."""
    items = work.items_of(1000, count, units_per_us)

    return timed(lambda: ff.map(work.spin, items, engine="processes", workers=workers))


def bare_processes(fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    """The least that can be done: one forked process a worker, an equal share each, one message back."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    share = -(-len(items) // workers)
    ends = []
    for start in range(0, len(items), share):
        receiving, sending = context.Pipe(duplex=False)
        context.Process(target=_send_share, args=(sending, fn, items[start : start + share])).start()
        ends.append(receiving)
    return [answer for end in ends for answer in end.recv()]


def _send_share(sending: Any, fn: Callable[[Any], Any], items: Sequence[Any]) -> None:
    sending.send([fn(item) for item in items])
