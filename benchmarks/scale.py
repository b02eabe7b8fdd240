"""P15: the schedule that runs real jobs, on 10,000 simulated workers and 10 million items.

Time is virtual, the decisions are real. The driver is modelled as one person who spends MESSAGE_S per chunk (measured by
constants.py on real workers); the time that the decisions really take is measured here and must fit into that.

    python benchmarks/scale.py [--quick]
"""

import json
import sys
import time
from itertools import pairwise
from typing import Any

from fourfold.aggregate.failures import Failures
from fourfold.distribute.driver import Driver, Lane
from fourfold.distribute.engines.simulated import Simulated
from fourfold.distribute.schedule import Rules, Schedule
from fourfold.distribute.sizes import MESSAGE_S
from fourfold.divide.source import Source
from fourfold.execute.objects import ObjectCodec
from fourfold.records import ChunkResult, Kind

EFFICIENCY_BAR = 0.95


class NoProgram:
    """Runs nothing: only the schedule is under test."""

    def prepare(self) -> Any:
        """Give back what says that all items ran."""
        return lambda chunk, cell: (Kind.DONE, ChunkResult(len(chunk.items), [], [], 0.0))


def plan(n_items: int, workers: int, item_s: float, chunk: int | None, boot_s: float = 0.0) -> dict[str, Any]:
    """Run one plan; returns its figures."""
    engine = Simulated(workers, lambda item: item_s, message_s=MESSAGE_S, boot_s=boot_s, evenly=True)
    schedule = Schedule(Rules(total=n_items, chunk=chunk))
    failures = Failures("plan", "raise", (), lambda data: None)
    driver = Driver(Source(range(n_items)), schedule, Lane(engine, ObjectCodec(), NoProgram), failures)
    began = time.process_time()
    for _ in driver.run():
        pass
    real_s = time.process_time() - began
    chunks = schedule.tally.chunks
    assert schedule.tally.finished == n_items
    return {
        "items": n_items,
        "workers": workers,
        "item_s": item_s,
        "chunk": chunk or "auto",
        "chunks": chunks,
        "virtual_s": engine.now,
        "efficiency": n_items * item_s / (workers * engine.now),
        "driver_us_per_item": 1e6 * chunks * MESSAGE_S / n_items,
        "decisions_us_per_chunk": 1e6 * real_s / chunks,
    }


def main(quick: bool = False) -> dict[str, Any]:
    """Run all plans; `passed` tells whether P15 holds."""
    items, workers = (1_000_000, 1000) if quick else (10_000_000, 10_000)
    rows = [plan(items, workers, 0.1, None)]
    # Driver cost per item falls with the chunk: the same work in forced chunks of growing size.
    rows += [plan(items // 10, workers, 0.1, chunk) for chunk in (1, 4, 16, 64)]
    rows += [plan(items, workers, item_s, None) for item_s in (0.001, 0.01)]
    rows += [plan(items // 10, workers, 1.0, None)]
    rows += [plan(1000 * few, few, 0.1, None) for few in (2, 10, 100, 1000) if few < workers]
    per_item = [row["driver_us_per_item"] for row in rows[1:5]]
    falls = all(later < earlier for earlier, later in pairwise(per_item))
    return {
        "rows": rows,
        "efficiency": rows[0]["efficiency"],
        "driver_cost_falls": falls,
        "passed": rows[0]["efficiency"] >= EFFICIENCY_BAR and falls,
    }


if __name__ == "__main__":
    result = main(quick="--quick" in sys.argv)
    if "--json" in sys.argv:
        print(json.dumps(result))
    else:
        for row in result["rows"]:
            print(
                "  ".join(
                    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
                )
            )
        print("passed" if result["passed"] else "FAILED")
