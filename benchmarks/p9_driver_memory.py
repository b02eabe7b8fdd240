"""P9: ten million lazily made items pass through `ff.imap` and the driver's memory stays flat."""

from __future__ import annotations

import time
from typing import Any

import psutil
import work
from fresh import in_fresh_process
from rows import Row, without_figure

import fourfold as ff

BAR_MB = 50.0

# Items between two looks at the memory. Smaller: looking costs more than the items; larger: a short peak is
# missed.
LOOK_EVERY = 10_000

TIMEOUT_S = 300.0


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """One fresh process for each engine."""
    del rounds
    count = 1_000_000 if is_quick else 10_000_000
    return [_row(engine, count) for engine in ("auto", "processes")]


def _row(engine: str, count: int) -> Row:
    case = f"imap over {count:,} items, engine={engine!r}"
    try:
        seen = in_fresh_process("p9_driver_memory", "stream", engine=engine, count=count, timeout_s=TIMEOUT_S)
    except Exception as exc:
        return without_figure("P9", case, str(exc))
    figure = seen["growth_mb"]
    is_met = seen["is_right"] and figure < BAR_MB
    note = "" if seen["is_right"] else "the answer is not the loop's"
    return Row(
        "P9",
        case,
        figure,
        "MB",
        BAR_MB,
        is_met,
        loop_s=seen["loop_s"],
        fourfold_s=seen["elapsed_s"],
        note=note,
    )


def stream(engine: str, count: int) -> dict[str, Any]:
    """Streams the items and returns how far the memory rose above where it was after a short first run."""
    me = psutil.Process()
    for _ in ff.imap(work.add_one, iter(range(LOOK_EVERY)), engine=engine):
        pass
    before = peak = me.memory_info().rss
    total, start = 0, time.perf_counter()
    for number, value in enumerate(ff.imap(work.add_one, (k for k in range(count)), engine=engine)):
        total += value
        if number % LOOK_EVERY == 0:
            peak = max(peak, me.memory_info().rss)
    elapsed_s = time.perf_counter() - start
    start = time.perf_counter()
    expected = sum(work.add_one(k) for k in range(count))
    loop_s = time.perf_counter() - start
    return {
        "growth_mb": (peak - before) / 1e6,
        "is_right": total == expected,
        "elapsed_s": elapsed_s,
        "loop_s": loop_s,
    }
