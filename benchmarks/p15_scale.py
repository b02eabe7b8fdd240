"""P15: the schedule alone, on ten thousand simulated workers: `scale.py` runs it, here its rows are judged."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from fresh import in_fresh_process
from rows import Row

EFFICIENCY_BAR = 0.95

# Of chunks that start in jobs, as on Spark: these start one after the other, in 0.1 s each, and tell of their chunks at their
# end. Ten million items of 100 ms gave 0.89.
JOBS_BAR = 0.85

TIMEOUT_S = 600.0


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Runs all plans of `scale.main` in a process of its own: virtual time needs no second round."""
    del rounds
    plans = in_fresh_process("scale", "main", timeout_s=TIMEOUT_S, quick=is_quick)["rows"]
    bars = _Bars(plans[0]["item_s"], plans[0]["workers"])
    with_chunk = sorted((plan for plan in plans if plan["chunk"] != "auto"), key=lambda plan: plan["chunk"])
    judged = [_efficiency(plan, bars.of(plan)) for plan in plans if plan["chunk"] == "auto"]
    return [*judged, _driver_cost(with_chunk)]


class _Bars(NamedTuple):
    """They speak of items of 100 ms; the other lengths are there to see where the driver becomes the limit."""

    item_s: float
    most_workers: int

    def of(self, plan: dict[str, Any]) -> float | None:
        """The bar of a plan, if it has one: that of jobs speaks of the largest cluster."""
        if plan["item_s"] != self.item_s:
            return None
        if not plan["jobs"]:
            return EFFICIENCY_BAR
        return JOBS_BAR if plan["workers"] == self.most_workers else None


def _efficiency(plan: dict[str, Any], bar: float | None) -> Row:
    in_jobs = f", in jobs that take {plan['job_s']:g} s to start" if plan["jobs"] else ""
    case = f"{plan['items']:,} × {plan['item_s'] * 1000:g} ms on {plan['workers']:,} simulated workers{in_jobs}"
    note = f"{plan['chunks']:,} chunks, {plan['decisions_us_per_chunk']:.1f} µs of decisions for each"
    note += f", {plan['jobs']:,} jobs" if in_jobs else ""
    is_met = None if bar is None else plan["efficiency"] >= bar
    return Row("P15", case, plan["efficiency"], "of ideal", bar, is_met, is_lower_better=False, note=note)


def _driver_cost(plans: list[dict[str, Any]]) -> Row:
    """The largest step of the driver's cost per item from one chunk size to the next larger: below 1, it falls."""
    costs = [plan["driver_us_per_item"] for plan in plans]
    worst = max(later / earlier for earlier, later in itertools.pairwise(costs))
    shown = ", ".join(f"{cost:.3g}" for cost in costs)
    case = f"driver µs per item, chunks of {', '.join(str(plan['chunk']) for plan in plans)}: {shown}"
    return Row("P15", case, worst, "per step", 1.0, worst < 1.0)
