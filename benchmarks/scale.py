"""P15: the schedule that runs real jobs, on 10,000 simulated workers and 10 million items; and the bundles of Spark's engine.

Time is virtual, the decisions are real. The driver is modelled as one person who spends MESSAGE_S per chunk (measured by
constants.py on real workers); the time that the decisions really take is measured here and must fit into that.

    python benchmarks/scale.py [--quick]
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fourfold.aggregate.failures import Failures
from fourfold.distribute.bundles import Bundles
from fourfold.distribute.driver import Driver
from fourfold.distribute.engine import EngineInfo
from fourfold.distribute.engines.simulated import Simulated
from fourfold.distribute.lane import Lane
from fourfold.distribute.schedule import Rules, Schedule
from fourfold.distribute.sizes import MESSAGE_S
from fourfold.divide.source import Source
from fourfold.execute.objects import ObjectCodec
from fourfold.records import ChunkResult, Kind, Outcome, Ticket

EFFICIENCY_BAR = 0.95

# Seconds that Spark takes to start a job, as its engine says.
JOB_S = 0.1


class NoProgram:
    """Runs nothing: only the schedule is under test."""

    def prepare(self) -> Any:
        """Give back what says that all items ran."""
        return lambda chunk, cell: (Kind.DONE, ChunkResult(len(chunk.items), [], [], 0.0))


@dataclass(eq=False)
class Job:
    """Tickets that start together, and come back together."""

    tickets: list[Ticket]
    outcomes: list[Outcome] = field(default_factory=list)


class SimulatedJobs(Simulated):
    """A cluster as Spark is: what runs is a job of tasks, one job after the other takes its time to start, and nothing of it
    comes back before all of it has ended. The bundles are those of the engine on Spark.

    Args:
        job_s: Seconds that it takes to start a job.
        more: Of `Simulated`.
    """

    def __init__(self, *args: Any, job_s: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self.info = EngineInfo("simulated jobs", takes_objects=True, honours=frozenset(), kills="bundle", dispatch_s=job_s)
        self.n_jobs = 0
        self._job_s, self._bundles = job_s, Bundles(job_s)
        self._starter_free_at = 0.0
        self._job_of: dict[int, Job] = {}

    def slots(self) -> int:
        """All of them: the cluster was there before."""
        return len(self._workers)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue tickets, and start jobs as far as it makes sense."""
        self.now += self._message_s / 2 * len(tickets)
        self._bundles.add(tickets)
        self._start_jobs()

    def _start_jobs(self) -> None:
        while tickets := self._bundles.next(self.slots()):
            self.n_jobs += 1
            self._starter_free_at = max(self.now, self._starter_free_at) + self._job_s
            self._at(self._starter_free_at, Job(tickets))

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Let virtual time pass until a job starts or ends."""
        outcomes = super().wait(timeout)
        self._start_jobs()
        return outcomes

    def _boot(self, what: Any) -> None:
        if not isinstance(what, Job):
            super()._boot(what)
            return
        self._job_of |= {ticket.id: what for ticket in what.tickets}
        before, self._message_s = self._message_s, 0.0  # its tickets were submitted already
        super().submit(what.tickets)
        self._message_s = before

    def _tell(self, outcome: Outcome) -> None:
        job = self._job_of.pop(outcome.id)
        job.outcomes.append(outcome)
        self._bundles.learn(outcome.data.elapsed_s, outcome.data.done)
        if len(job.outcomes) == len(job.tickets):
            self._bundles.ended(len(job.tickets))
            self._outcomes += job.outcomes


def plan(
    n_items: int, workers: int, item_s: float, chunk: int | None, boot_s: float = 0.0, job_s: float = 0.0
) -> dict[str, Any]:
    """Run one plan; returns its figures."""
    more: dict[str, Any] = {"message_s": MESSAGE_S, "boot_s": boot_s, "evenly": True}
    engine = (
        SimulatedJobs(workers, lambda item: item_s, job_s=job_s, **more)
        if job_s
        else Simulated(workers, lambda item: item_s, **more)
    )
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
        "job_s": job_s,
        "jobs": engine.n_jobs if isinstance(engine, SimulatedJobs) else 0,
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
    rows += [plan(items // share, workers, item_s, None, job_s=JOB_S) for item_s, share in ((0.1, 1), (1.0, 10))]
    rows += [plan(1000 * few, few, 0.1, None, job_s=JOB_S) for few in (10, 100, 1000) if few < workers]
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
