"""P15: the schedule alone, on ten thousand simulated workers: `scale.py` runs it, here its rows are judged."""

from __future__ import annotations

import itertools
from typing import Any

from fresh import in_fresh_process
from rows import Row

EFFICIENCY_BAR = 0.95
TIMEOUT_S = 600.0


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Runs all plans of `scale.main` in a process of its own: virtual time needs no second round."""
    del rounds
    plans = in_fresh_process("scale", "main", timeout_s=TIMEOUT_S, quick=is_quick)["rows"]
    item_s = plans[0]["item_s"]
    with_chunk = sorted((plan for plan in plans if plan["chunk"] != "auto"), key=lambda plan: plan["chunk"])
    judged = [_efficiency(plan, item_s) for plan in plans if plan["chunk"] == "auto"]
    return [*judged, _driver_cost(with_chunk)]


def _efficiency(plan: dict[str, Any], item_s: float) -> Row:
    """The bar speaks of items of 100 ms; the other lengths are there to see where the driver becomes the limit."""
    in_jobs = f", in jobs that take {plan['job_s']:g} s to start" if plan["jobs"] else ""
    case = f"{plan['items']:,} × {plan['item_s'] * 1000:g} ms on {plan['workers']:,} simulated workers{in_jobs}"
    bar = EFFICIENCY_BAR if plan["item_s"] == item_s and not in_jobs else None
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
