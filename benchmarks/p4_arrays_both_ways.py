"""P4: 200 arrays of 4 MB go to the workers and as many come back."""

from __future__ import annotations

from typing import Any

import work
from fourfolds import fourfold
from measure import Contestant, loop, timed, usable_cores
from peers import bouts
from rows import LOOP, Row, against_the_best_peer

BAR = 0.40

# Rounds of each peer: the slowest take five seconds a lap.
PEER_ROUNDS = 3


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "Pool": [{"chunksize": 1}],
    "ProcessPoolExecutor": [{"chunksize": 1}, {"chunksize": 5}],
    "joblib": [{"max_nbytes": None}, {"batch_size": 1}],  # pickled, and memory-mapped
    "mpire": [{"chunk_size": 1}, {"chunk_size": 5}],
    "Ray": [{"chunk": 1}, {"chunk": 10}],
    "Dask": [{}],
}


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Races against all the quiet peers at once, then against each restless one."""
    workers = usable_cores()
    count = 40 if is_quick else 200
    arrays = work.arrays_of_4_mb(count)
    ours = [
        Contestant(LOOP, {"": lambda: timed(lambda: loop(work.double, arrays))}),
        fourfold(work.double, arrays, engine="processes", workers=workers),
    ]
    races = bouts(workers, ours, work.double, arrays, SETTINGS, (rounds, PEER_ROUNDS), PEER_ROUNDS)
    label = f"{count} × 4 MB in and out"
    return [against_the_best_peer("P4", label, result, names, BAR) for names, result in races]
