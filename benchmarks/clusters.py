"""CLUSTERS: `ff.map` on Spark, Ray and Dask against what people write by hand there, on one session of two workers.

The peer has the same cluster and the same function, and its best chunk size of several; the session is up for both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import work
from fourfolds import fourfold
from fresh import in_fresh_process
from measure import race, usable_cores
from peers import entry, opened
from rows import Row, against_the_best_peer

import fourfold as ff

# A lap takes ten seconds on two cores: more rounds would take an hour.
ROUNDS = 5
TIMEOUT_S = 400.0


class Case(NamedTuple):
    """A cluster, what is written by hand there, in which settings, and the bar."""

    peer: str
    settings: Sequence[dict[str, Any]]
    bar: float


CASES = {
    "spark": Case("Spark", [{"slices": 16}, {"slices": 32}], 1.15),
    "ray": Case("Ray", [{"chunk": 25}, {"chunk": 100}, {"chunk": 250}], 1.10),
    "dask": Case("Dask", [{"chunk": 25}, {"chunk": 100}, {"chunk": 250}], 1.10),
}


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """One race on each cluster, in a process of its own: a process has one Ray, and one Java."""
    count = 400 if is_quick else 4000
    return [
        Row(**in_fresh_process("clusters", "race_on", timeout_s=TIMEOUT_S, name=name, rounds=min(rounds, ROUNDS), count=count))
        for name in CASES
    ]


def race_on(name: str, rounds: int, count: int) -> dict[str, Any]:
    """Race `ff.map` against the hand-written map on one cluster; returns the row."""
    workers, case = usable_cores(), CASES[name]
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where workers find `work`, whoever sends them there
    items = work.items_of(5000, count, work.calibrate())
    with opened(workers, [case.peer]) as maps:
        theirs = entry(case.peer, maps[case.peer], work.spin, items, *case.settings)
        ours = fourfold(work.spin, items, engine=_engine(name))
        ff.map(abs, range(workers), engine=_engine(name))  # the peer has run once as well: both are up
        result = race([theirs, ours], rounds, tries=1)
    row = against_the_best_peer("CLUSTERS", f"{count} × 5 ms on {case.peer}", result, [case.peer], case.bar)
    return asdict(row)


def _engine(name: str) -> Any:
    """fourfold's engine on the cluster that the peer has opened."""
    import fourfold.engines as engines

    if name == "dask":
        import distributed

        return engines.Dask(client=distributed.default_client())
    return engines.Spark() if name == "spark" else engines.Ray()
