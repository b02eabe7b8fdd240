"""P6: items are matrix products: workers that each start a thread a core fight for the cores."""

from __future__ import annotations

from typing import Any

import work
from fourfolds import fourfold
from measure import Contestant, loop, timed, usable_cores
from peers import bouts
from rows import LOOP, Row, against_the_best_peer

BAR = 1.0
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "joblib": [{}, {"batch_size": 1}],
    "mpire": [{"chunk_size": 1}],
}


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Races against joblib, which caps threads too, and against mpire, which does not."""
    workers = usable_cores()
    seeds = list(range(8 if is_quick else 48))
    ours = [
        Contestant(LOOP, {"": lambda: timed(lambda: loop(work.matrix_products, seeds))}),
        fourfold(work.matrix_products, seeds, engine="processes", workers=workers),
    ]
    races = bouts(workers, ours, work.matrix_products, seeds, SETTINGS, (rounds, 2))
    label = f"{len(seeds)} × products of 600 × 600"
    return [against_the_best_peer("P6", label, result, names, BAR) for names, result in races]
