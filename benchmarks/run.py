"""The benchmark of the promises: `make bench`, or `python benchmarks/run.py --only P1,P4 --rounds 7`.

run.py      the command: which promises, one process each, the tables, the JSON
pN_*.py     one promise each: its cases, its contestants, its bar
peers.py    the other libraries, opened and warmed       fourfolds.py  ours
measure.py  turns, laps, ratios of the same round        rows.py       how a race is judged
fresh.py    calls in a fresh interpreter (cold figures)  work.py       what the items do
tables.py   tables and models for P11                   groups.py    one model per group
fits.py     `Dataset.fit` by more workers, and on Spark
p12_search.py  `ff.SearchCV` against GridSearchCV
recovery.py what the death of a worker costs           clusters.py    Spark, Ray, Dask by hand and by fourfold
report.py   the tables and the JSON                      scale.py      P15, on simulated workers
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import sys
import time
from pathlib import Path

from fresh import in_fresh_process
from report import console, machine, print_tables, write_json
from rows import Row, without_figure

PROMISES = {
    "P1": "p1_never_slower",
    "P2": "p2_items_of_1_ms",
    "P3": "p3_skewed_items",
    "P4": "p4_arrays_both_ways",
    "P5": "p5_shared_object",
    "P6": "p6_blas_items",
    "P7": "p7_items_without_work",
    "P8": "p8_import",
    "P9": "p9_driver_memory",
    "P10": "p10_logistic",
    "P11": "p11_prediction",
    "P12": "p12_tuning",
    "SEARCH": "p12_search",
    "ASHA": "p12_asha",
    "P13": "p13_journal",
    "P15": "p15_scale",
    "FIT": "fits",
    "GROUPS": "groups",
    "RECOVERY": "recovery",
    "CLUSTERS": "clusters",
}

# Seconds one promise may take before it is ended. Smaller: slow machines fail; larger: a hang costs more.
PROMISE_TIMEOUT_S = 1500.0

# What benchmarks/requirements.txt installs and `make bench` finds there.
NEEDED = ("distributed", "fourfold", "joblib", "mpire", "numpy", "optuna", "psutil", "pyspark", "ray", "sklearn")

DEFAULT_ROUNDS = 5
QUICK_ROUNDS = 2


def main() -> int:
    """Measures the promises asked for.

    Returns:
        0 when every promise could be measured, met or missed; 1 when one could not.
    """
    asked = _arguments()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(
            f"not installed: {', '.join(missing)}. Type `make bench`, which installs what it needs",
            file=sys.stderr,
        )
        return 1
    # pip compiles what it installs, and so the peers; an editable checkout may run under PYTHONDONTWRITEBYTECODE.
    compileall.compile_dir(Path(importlib.util.find_spec("fourfold").origin).parent, quiet=1)
    out = console()
    about = machine() | {"rounds": asked.rounds, "is_quick": asked.quick}
    start, rows, seconds = time.perf_counter(), [], {}
    for promise in asked.only:
        started = time.perf_counter()
        rows += _measured(promise, asked.rounds, asked.quick)
        seconds[promise] = round(time.perf_counter() - started, 1)
        print(f"{promise} measured in {seconds[promise]:.0f} s", file=sys.stderr, flush=True)
        about |= {"elapsed_s": round(time.perf_counter() - start, 1), "elapsed_by_promise_s": seconds}
        write_json(asked.output, rows, about)  # after each promise: an interrupted run keeps what it has
    print_tables(out, rows)
    out.print(f"{about['elapsed_s']:.0f} s in all; every lap is in {asked.output}")
    return int(any(row.figure is None for row in rows))


def _measured(promise: str, rounds: int, is_quick: bool) -> list[Row]:
    try:
        found = in_fresh_process(PROMISES[promise], "rows", timeout_s=PROMISE_TIMEOUT_S, rounds=rounds, is_quick=is_quick)
    except Exception as exc:  # one promise that cannot be measured costs its own rows only
        return [without_figure(promise, "could not be measured", str(exc))]
    return [Row(**row) for row in found]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures fourfold's promises against the loop and its peers.")
    parser.add_argument("--only", type=_promises, default=list(PROMISES), help="for example P1,P4 (default: all)")
    parser.add_argument("--rounds", type=int, help=f"rounds of each race (default {DEFAULT_ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: shows that it runs, judges nothing")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="where the JSON goes")
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else DEFAULT_ROUNDS)
    if asked.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {asked.rounds}")
    return asked


def _promises(text: str) -> list[str]:
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PROMISES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"no promise {', '.join(unknown) or repr(text)}; there are {', '.join(PROMISES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
