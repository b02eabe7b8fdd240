"""P3: items of very different length, shortest first, come close to the shortest possible time.

The shortest possible time is max(sum / workers, longest item). With `cost=` the longest start first; without
it the order is the caller's, and even a perfect hand-out of single items stays below 1: the note says where.
"""

from __future__ import annotations

import heapq
from typing import Any

import work
from fourfolds import fourfold
from measure import Contestant, loop, timed, usable_cores
from peers import bouts
from rows import LOOP, Row, against_the_best_peer, as_efficiency

WITH_COST_BAR = 0.97
WITHOUT_BAR = 0.92
WITH_COST = "fourfold, cost="

# The spread of the lengths (sigma of the lognormal law). At 1.5 and 600 items the longest is 37 times the
# mean and a perfect hand-out reaches 0.96 on two cores. Smaller: no skew to speak of; larger: one item
# decides everything.
SIGMA = 1.5
ITEMS_PER_WORKER = 300
SECONDS_PER_WORKER = 1.5

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "Pool": [{"chunksize": 1}],
    "ProcessPoolExecutor": [{"chunksize": 1}],
    "joblib": [{"batch_size": 1, "pre_dispatch": "all"}, {}],
    "mpire": [{"chunk_size": 1}, {}],
    "Ray": [{"chunk": 1}],
}

# Rounds of the peers: their figures are for orientation, no bar speaks of them.
PEER_ROUNDS = 3


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Races fourfold with and without `cost=`; the peers take part for a while."""
    workers = usable_cores()
    total_s = SECONDS_PER_WORKER * workers * (0.2 if is_quick else 1.0)
    items = work.skewed_items(total_s, ITEMS_PER_WORKER * workers, work.calibrate(), SIGMA)
    ours = [
        Contestant(LOOP, {"": lambda: timed(lambda: loop(work.spin, items))}),
        fourfold(work.spin, items, engine="processes", workers=workers),
        fourfold(work.spin, items, WITH_COST, engine="processes", workers=workers, cost=work.units_of),
    ]
    races = bouts(workers, ours, work.spin, items, SETTINGS, (rounds, 2), PEER_ROUNDS)
    label, longest = f"{len(items)} skewed items on {workers}", items[-1] / sum(items)
    in_order = f"{label}, in order (perfect: {perfect_hand_out(items, workers):.3f})"
    _, result = next(races)
    return [
        as_efficiency("P3", f"{label}, cost=", result, workers, WITH_COST_BAR, longest, WITH_COST),
        as_efficiency("P3", in_order, result, workers, WITHOUT_BAR, longest),
        *(against_the_best_peer("P3", f"{label}, in order", result, names, None) for names, result in races),
    ]


def perfect_hand_out(items: list[int], workers: int) -> float:
    """The efficiency of handing out single items in order, at no cost, to whoever is free."""
    busy_until = [0] * workers
    for length in items:
        heapq.heappush(busy_until, heapq.heappop(busy_until) + length)
    return max(sum(items) / workers, max(items)) / max(busy_until)
