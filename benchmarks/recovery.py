"""RECOVERY: what the death of one worker costs: from its last instruction until the item runs again, in another worker.

And how long after the end of its time (`timeout=`) the failure of an item is known to the driver.
"""

from __future__ import annotations

import os
import re
import signal
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
    judged = [_row(case, work, rounds * REPEATS, bar) for (case, work), bar in zip(cases.items(), (BAR_MS, None), strict=True)]
    return judged + [_late_row(case, *how, rounds) for case, how in LATE.items()]


def _row(case: str, work: Callable[[], object], deaths: int, bar_ms: float | None) -> Row:
    ff.map(lambda _: work(), range(3), engine="processes", workers=1)
    return _judged(case, [_recovery_s(work) for _ in range(deaths)], bar_ms)


def _judged(case: str, laps_s: list[float], bar_ms: float | None) -> Row:
    figure_ms = 1000 * statistics.median(laps_s)
    note = f"from {1000 * min(laps_s):.1f} to {1000 * max(laps_s):.1f} ms in {len(laps_s)} deaths"
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


TIMEOUT_S = 0.2


def _sleep() -> None:
    time.sleep(60)


def _search_in_c() -> None:
    re.match("(a+)+$", "a" * 60 + "b")  # for years, and nobody else has the interpreter


def _refuse_to_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


# What an item does when its time is over; the milliseconds after which its failure is to be known (three seconds at most, of
# which two are for those who clean up: docs/faults.md, F18); and how often it is measured in a round.
LATE: dict[str, tuple[Callable[[], None], float, int]] = {
    "timeout=, an item that sleeps": (_sleep, 20.0, REPEATS),
    "timeout=, C code that never lets go": (_search_in_c, 3000.0, REPEATS),
    "timeout=, an item that ignores SIGTERM": (_refuse_to_end, 3000.0, 1),
}


def _late_row(case: str, work: Callable[[], None], bar_ms: float, repeats: int, rounds: int) -> Row:
    ff.map(abs, range(3), engine="processes", workers=1)
    return _judged(case, [_late_s(work) for _ in range(rounds * repeats)], bar_ms)


def _late_s(work: Callable[[], None]) -> float:
    """Seconds between the end of an item's time and the failure in the driver's hands."""
    with tempfile.TemporaryDirectory() as folder:
        began = Path(folder) / "began"

        def never_end(item: int) -> None:
            began.write_text(str(time.monotonic()))
            work()

        stream = ff.imap(never_end, [0], engine="processes", workers=1, timeout=TIMEOUT_S, on_error="collect")
        failure = next(stream)
        known = time.monotonic()
        assert isinstance(failure, ff.Failure)
        assert failure.kind == "timed out"
        return known - float(began.read_text()) - TIMEOUT_S
