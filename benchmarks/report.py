"""What is printed and written: the table of the bars, the table of all contestants, and the same as JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from measure import usable_cores
from rich.console import Console
from rich.table import Table
from rows import Row

PACKAGES = ("fourfold", "numpy", "joblib", "mpire", "ray", "distributed", "pyspark")

# Columns of the tables where the output is no terminal. Smaller: the cells break; larger: a log breaks them.
WIDTH = 150


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": usable_cores(),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_1_min": os.getloadavg()[0],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def console() -> Console:
    """The console of the tables: as wide as the terminal, or WIDTH."""
    return Console(highlight=False, width=None if Console().is_terminal else WIDTH)


def print_tables(out: Console, rows: Sequence[Row]) -> None:
    """Prints the bars, then the medians of everybody who took part."""
    out.print(_bars(rows))
    with_peers = [row for row in rows if row.peer]
    if with_peers:
        out.print(_contestants(with_peers))
    for row in rows:
        if row.figure is None:
            out.print(f"{row.promise} {row.case}: no figure. {row.note}", markup=False)
    missed = sum(row.is_met is False for row in rows)
    judged = sum(row.is_met is not None for row in rows)
    out.print(f"{judged - missed} of {judged} bars met.")


def _bars(rows: Iterable[Row]) -> Table:
    table = Table(title="fourfold against its bars (seconds are medians, figures are medians of the rounds' ratios)")
    for name in ("", "case"):
        table.add_column(name)
    for name in ("loop s", "fourfold s", "best peer", "peer s", "figure", "bar", ""):
        table.add_column(name, justify="right")
    promise = ""
    for row in rows:
        if row.promise != promise:
            table.add_section()
        promise = row.promise
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    bar = "" if row.bar is None else f"{'≤' if row.is_lower_better else '≥'} {row.bar:g}"
    verdict = {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}[row.is_met]
    figure = "–" if row.figure is None else f"{row.figure:.3f} {row.unit}"
    seconds = [_seconds(row.loop_s), _seconds(row.fourfold_s)]
    return [row.promise, row.case, *seconds, row.peer, _seconds(row.peer_s), figure, bar, verdict]


def _contestants(rows: Sequence[Row]) -> Table:
    table = Table(title="everybody who took part, fastest first: seconds (median) and the setting it ran with")
    table.add_column("")
    table.add_column("case")
    table.add_column("contestants")
    seen: list[object] = []
    for row in rows:
        if row.laps_s not in seen:  # several rows may judge one race
            table.add_row(row.promise, row.case, _standing(row))
        seen.append(row.laps_s)
    return table


def _standing(row: Row) -> str:
    by_speed = sorted((median(laps), name) for name, laps in row.laps_s.items() if laps)
    texts = [f"{name} {_seconds(seconds)}{_setting(row, name)}" for seconds, name in by_speed]
    texts += [f"{name} failed: {' '.join(why.split())[:80]}" for name, why in row.errors.items()]
    return " · ".join(texts)


def _setting(row: Row, name: str) -> str:
    return f" ({row.settings[name]})" if row.settings.get(name) else ""


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.4f}" if seconds < 0.1 else f"{seconds:.2f}"


def write_json(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Writes everything that was measured, each lap of each contestant too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
