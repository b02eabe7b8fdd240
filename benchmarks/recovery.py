"""RECOVERY: what the death of one worker costs: from its last instruction until the item runs again, in another worker."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rows import Row

import fourfold as ff

BAR_MS = 150.0

# Deaths per round: one takes some milliseconds.
REPEATS = 5

# What travels with the function in the second case.
CLOSURE_BYTES = 64 << 20


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Lets one worker die again and again, with a small function, and with one that needs NumPy and an array."""
    import numpy as np

    array = np.ones((1 << 20 if is_quick else CLOSURE_BYTES) // 8)
    cases = {
        "a small function": lambda: None,
        f"a function with NumPy and an array of {array.nbytes >> 20} MiB": lambda: float(array[-1]),
    }
    # The second is for orientation: most of it is the import of NumPy in the new worker.
    return [_row(case, work, rounds * REPEATS, bar) for (case, work), bar in zip(cases.items(), (BAR_MS, None), strict=True)]


def _row(case: str, work: Callable[[], object], deaths: int, bar_ms: float | None) -> Row:
    ff.map(lambda _: work(), range(3), engine="processes", workers=1)
    laps_s = [_recovery_s(work) for _ in range(deaths)]
    figure_ms = 1000 * statistics.median(laps_s)
    note = f"from {1000 * min(laps_s):.1f} to {1000 * max(laps_s):.1f} ms in {deaths} deaths"
    laps = {"fourfold": laps_s}
    is_met = None if bar_ms is None else figure_ms <= bar_ms
    return Row("RECOVERY", case, figure_ms, "ms", bar_ms, is_met, fourfold_s=figure_ms / 1000, note=note, laps_s=laps)


def _recovery_s(work: Callable[[], object]) -> float:
    """Seconds between the death in an item and the beginning of its second attempt; all processes share the clock."""
    with tempfile.TemporaryDirectory() as folder:
        died = Path(folder) / "died"

        def die_once(item: int) -> float:
            now = time.monotonic()
            work()
            if item == 1 and not died.exists():
                died.write_text(str(time.monotonic()))
                os._exit(7)
            return now

        begins = ff.map(die_once, range(3), engine="processes", workers=1, chunk=1)
        return begins[1] - float(died.read_text())
