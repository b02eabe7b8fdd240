"""P7: a million items without any work, processes forced: the bare cost of an item."""

from __future__ import annotations

import work
from fourfolds import fourfold, start_workers
from measure import Contestant, loop, race, timed, usable_cores
from peers import entry, opened
from rows import LOOP, Row, against_the_best_peer

BAR = 1.5
CHUNK_SIZES = (None, 1000, 10_000, 50_000, 125_000, 250_000)

# A lap is a tenth of a second, so more of them are run than of the long cases.
REPEATS = 3


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Races against Pool.map with its best chunk size, the best of three tries deciding which that is."""
    workers = usable_cores()
    items = list(range(100_000 if is_quick else 1_000_000))
    with opened(workers, ["Pool"]) as peers:
        start_workers(workers)
        contestants = [
            Contestant(LOOP, {"": lambda: timed(lambda: loop(work.same, items))}),
            fourfold(work.same, items, engine="processes", workers=workers),
            entry("Pool", peers["Pool"], work.same, items, *({"chunksize": size} for size in CHUNK_SIZES)),
        ]
        result = race(contestants, rounds * REPEATS, tries=REPEATS)
    return [against_the_best_peer("P7", f"{len(items):,} × nothing", result, ["Pool"], BAR)]
