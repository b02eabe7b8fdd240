"""P13: a run that is recorded takes at most 3 % longer than the same run that is not; and what a killed driver costs.

Both are fourfold's own: no peer of this table records single items. Items take 1 ms, so a second of work has a thousand of
them to record.
"""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import work
from fourfolds import start_workers
from measure import Contestant, Lap, Race, race, timed, usable_cores
from rows import Row

import fourfold as ff

BAR = 1.03

# Each lap has a folder of its own: a second call in the same one would have nothing to do.
NUMBERS = itertools.count()

# The loop is not what the bar speaks of: both contestants are fourfold.
PLAIN, RECORDED = "without run=", "with run="


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Races `ff.map` with and without `run=`, on processes and in the loop; then kills a driver half way."""
    workers = usable_cores()
    count = 1000 if is_quick else 4000
    items = work.items_of(1000, count, work.calibrate())
    start_workers(workers)
    judged = []
    with tempfile.TemporaryDirectory() as folder:
        for engine, share in (("processes", 1), ("serial", 2)):
            result = _race(items[: count // share], rounds, Path(folder), {"engine": engine, "workers": workers})
            judged.append(_row(f"{count // share} × 1 ms, engine={engine}", result, BAR))
            judged.append(_beside_the_items(items[: count // share], rounds, Path(folder), engine, workers))
        # Items a hundred times shorter, for orientation: what the bar does not promise.
        short = work.items_of(10, count, work.calibrate())
        judged.append(_row(f"{count} × 10 µs, engine=serial", _race(short, rounds, Path(folder), {"engine": "serial"}), None))
    return [*judged, _after_a_kill(2000 if is_quick else 20_000, workers)]


def _race(items: Any, rounds: int, folder: Path, options: dict[str, Any]) -> Race:
    def recorded() -> Lap:
        run = folder / str(next(NUMBERS))
        return timed(lambda: ff.map(work.spin, items, run=run, **options))

    plain = Contestant(PLAIN, {"": lambda: timed(lambda: ff.map(work.spin, items, **options))})
    return race([plain, Contestant(RECORDED, {"": recorded})], rounds)


def _beside_the_items(items: Any, rounds: int, folder: Path, engine: str, workers: int) -> Row:
    """What recording adds beside the items themselves, whose own time varies by more than the bar on a shared machine."""

    def beside_s(**options: Any) -> tuple[float, float]:
        began = time.perf_counter()
        report = ff.map(work.spin, items, engine=engine, workers=workers, **options).report
        took_s = time.perf_counter() - began
        return took_s - report.busy_s / report.workers, took_s

    shares = []
    for _ in range(rounds):
        plain_s, took_s = beside_s()
        recorded_s, _ = beside_s(run=folder / str(next(NUMBERS)))
        shares.append(1 + (recorded_s - plain_s) / took_s)
    case = f"{len(items)} × 1 ms, engine={engine}, without the time of the items"
    return Row("P13", case, statistics.median(shares), "× without", None, None)


def _row(case: str, result: Race, bar: float | None) -> Row:
    figure = result.ratio(RECORDED, PLAIN)
    is_met = None if bar is None else figure is not None and figure <= bar
    return Row(
        "P13",
        case,
        figure,
        "× without",
        bar,
        is_met,
        loop_s=result.median_s(PLAIN),
        fourfold_s=result.median_s(RECORDED),
        laps_s=result.laps_s,
        errors=result.errors,
    )


SCRIPT = """
    import os, sys
    import fourfold as ff

    def fn(item):
        end = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(end, b"x")
        os.close(end)
        return item

    def items(count):
        for item in range(count):
            if len(sys.argv) > 2 and os.path.exists("ran") and os.stat("ran").st_size >= count // 2:
                os.kill(os.getpid(), 9)
            yield item

    if __name__ == "__main__":
        print(len(ff.map(fn, items(int(sys.argv[1])), run="run", engine="processes", chunk=20)))
"""

# Items of a chunk in the script: two chunks for each worker are in flight.
CHUNK = 20


def _after_a_kill(count: int, workers: int) -> Row:
    """The driver is killed when half of the items have run: how many run in the call that goes on?"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "script.py").write_text(textwrap.dedent(SCRIPT))
        command = [sys.executable, "script.py", str(count)]
        environment = {**os.environ, "FOURFOLD_WORKERS": str(workers)}
        killed = subprocess.run([*command, "kill"], cwd=folder, env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL
        n_before = (path / "ran").stat().st_size
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        n_after = (path / "ran").stat().st_size - n_before
    lost = n_before + n_after - count
    case = f"driver killed after {n_before:,} of {count:,} items"
    note = f"{n_after:,} items ran in the call that went on; {lost:,} ran twice: they were in flight"
    # From how work is handed out, and not from what was seen to run twice: that bar could not be missed.
    n_flying = 2 * workers * CHUNK
    bar = (count - n_before + n_flying) / count
    return Row("P13", case, n_after / count, "of all items", bar, n_after / count <= bar, note=note)
