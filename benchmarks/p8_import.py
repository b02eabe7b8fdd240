"""P8: `import fourfold` and `fourfold --help` are there at once, and nothing heavy comes along."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rows import Row

IMPORT_BAR_MS = 60.0
HELP_BAR_MS = 300.0

# Fresh interpreters of each kind, beyond the rounds: one takes some 20 ms.
REPEATS = 3

# Libraries that a user of `import fourfold` must not pay for before they use what needs them.
HEAVY = {
    *("numpy", "pandas", "polars", "pyarrow", "narwhals", "fsspec", "scipy", "sklearn", "optuna", "torch"),
    *("ray", "dask", "distributed", "pyspark", "joblib", "bokeh", "tqdm", "typer", "rich"),
    *("cloudpickle", "psutil", "threadpoolctl"),
}


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Times fresh interpreters, in turn: doing nothing, importing fourfold, printing the help."""
    del is_quick
    command = str(Path(sys.executable).parent / "fourfold")
    laps: dict[str, list[float]] = {"nothing": [], "import": [], "help": []}
    for _ in range(rounds * REPEATS):
        laps["nothing"].append(_elapsed_ms([sys.executable, "-c", "pass"]))
        laps["import"].append(_elapsed_ms([sys.executable, "-c", "import fourfold"]))
        laps["help"].append(_elapsed_ms([command, "--help"]))
    pairs = zip(laps["import"], laps["nothing"], strict=True)
    import_ms = statistics.median(imported - bare for imported, bare in pairs)
    help_ms = statistics.median(laps["help"])
    heavy = _heavy_modules()
    return [
        _row("import fourfold", import_ms, "ms", IMPORT_BAR_MS, laps),
        _row("import fourfold, by -X importtime", _import_time_ms(rounds), "ms", IMPORT_BAR_MS, {}),
        Row("P8", "heavy modules imported", len(heavy), "modules", 0, not heavy, note=", ".join(heavy)),
        _row("fourfold --help", help_ms, "ms", HELP_BAR_MS, {}),
    ]


def _row(case: str, figure_ms: float, unit: str, bar_ms: float, laps_ms: dict[str, list[float]]) -> Row:
    laps_s = {name: [lap / 1000 for lap in values] for name, values in laps_ms.items()}
    return Row("P8", case, figure_ms, unit, bar_ms, figure_ms <= bar_ms, fourfold_s=figure_ms / 1000, laps_s=laps_s)


def _elapsed_ms(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def _import_time_ms(rounds: int) -> float:
    """The time Python itself counts for the package and all that it imports."""
    totals = []
    for _ in range(rounds):
        command = [sys.executable, "-X", "importtime", "-c", "import fourfold"]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        lines = [line for line in report.splitlines() if line.rsplit("|", 1)[-1].strip() == "fourfold"]
        totals.append(int(lines[-1].split("|")[1]) / 1000)
    return statistics.median(totals)


def _heavy_modules() -> list[str]:
    code = "import fourfold, json, sys; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return sorted(set(json.loads(answer)) & HEAVY)
