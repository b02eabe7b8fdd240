"""P11: a forest over a million rows, Parquet to Parquet, against the loop, Spark's mapInPandas, Ray Data and joblib; and what
else is promised of tables: a pass that does nothing, a slow model, a finished run, rows of unequal cost, the size of batches.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tables
from fourfolds import start_workers
from fresh import in_fresh_process
from measure import Contestant, Lap, Race, race, usable_cores
from rows import FOURFOLD, LOOP, Row, against_the_best_peer

import fourfold as ff

BAR_LOOP, BAR_SPARK, BAR_RAY, BAR_ON_SPARK = 1.85, 0.7, 0.5, 1.10
ON_SPARK = {"files": "fourfold on Spark, files", "frames": "fourfold on Spark, frames"}
TIMEOUT_S = 900.0

NUMBERS = itertools.count()


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Each peer in a process of its own."""
    rounds, n_rows = min(rounds, 3), 50_000 if is_quick else 1_000_000
    found = []
    for name in ("joblib", "Spark", "Ray Data"):
        arguments = {"peer": name, "rounds": rounds, "n_rows": n_rows}
        found += [Row(**row) for row in in_fresh_process("p11_prediction", "against", timeout_s=TIMEOUT_S, **arguments)]
    arguments = {"rounds": rounds, "n_rows": n_rows}
    found += [Row(**row) for row in in_fresh_process("p11_prediction", "on_spark", timeout_s=TIMEOUT_S, **arguments)]
    found += [Row(**row) for row in in_fresh_process("p11_prediction", "others", timeout_s=TIMEOUT_S, is_quick=is_quick)]
    return found


# ---- prediction --------------------------------------------------------------------------------------------------------


def against(peer: str, rounds: int, n_rows: int) -> list[dict[str, Any]]:
    """The race with one peer; with the first of them also the loop."""
    from dataclasses import asdict

    workers = usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        source, model = tables.write_rows(Path(folder), n_rows), str(Path(folder, "model.joblib"))
        tables.write_forest(Path(model))

        def entry(name: str, call: Callable[[str], Any]) -> Contestant:
            return Contestant(name, {"": lambda: _lap(call, folder)})

        ours = entry(FOURFOLD, lambda out: _ours(source, model, out, workers))
        start_workers(workers)
        with PEERS[peer](workers, source, model) as call:
            theirs = entry(peer, call)
            if peer != "joblib":
                result = race([theirs, ours], rounds, tries=1)
                bar = BAR_SPARK if peer == "Spark" else BAR_RAY
                return [asdict(against_the_best_peer("P11", f"{n_rows:,} rows × 100 trees", result, [peer], bar))]
            loop = entry(LOOP, lambda out: tables.predict_in_a_loop(source, model, out))
            result = race([loop, theirs, ours], rounds, tries=1)
    figure = result.median_of(lambda ours, loop: loop / ours, FOURFOLD, LOOP)
    speedup = _row(result, f"{n_rows:,} rows × 100 trees on {workers}", figure, "× the loop's speed", BAR_LOOP)
    return [asdict(speedup), asdict(against_the_best_peer("P11", f"{n_rows:,} rows × 100 trees", result, [peer], None))]


def on_spark(rounds: int, n_rows: int) -> list[dict[str, Any]]:
    """Two races on one session, with mapInPandas as one writes it by hand: files that workers read, and a frame of Spark."""
    from dataclasses import asdict

    with tempfile.TemporaryDirectory() as folder:
        source, model = tables.write_rows(Path(folder), n_rows), str(Path(folder, "model.joblib"))
        tables.write_forest(Path(model))
        with _spark(usable_cores(), source, model) as call:

            def entry(name: str, call: Callable[[str], Any]) -> Contestant:
                return Contestant(name, {"": lambda: _lap(call, folder)})

            ours = {"files": lambda out: _files_on_spark(source, model, out), "frames": lambda out: _frame(source, model, out)}
            laps = [entry("Spark", call), *(entry(ON_SPARK[name], each) for name, each in ours.items())]
            result = race(laps, rounds, tries=1)
    case = f"{n_rows:,} rows × 100 trees on Spark"
    return [
        asdict(against_the_best_peer("P11", f"{case}, {kind}", result, ["Spark"], BAR_ON_SPARK, name))
        for kind, name in ON_SPARK.items()
    ]


def _files_on_spark(source: str, model: str, out: str) -> Any:
    from fourfold.engines import Spark

    return ff.scan(source).predict(model, method="predict_proba", keep=["id"]).write(out, engine=Spark())


def _frame(source: str, model: str, out: str) -> None:
    from pyspark.sql import SparkSession

    rows = ff.scan(SparkSession.getActiveSession().read.parquet(source))
    rows.predict(model, method="predict_proba", keep=["id"]).native.write.parquet(out)


def _row(result: Race, case: str, figure: float | None, unit: str, bar: float) -> Row:
    is_met = figure is not None and figure >= bar
    return Row(
        "P11",
        case,
        figure,
        unit,
        bar,
        is_met,
        False,
        loop_s=result.median_s(LOOP),
        fourfold_s=result.median_s(FOURFOLD),
        laps_s=result.laps_s,
        errors=result.errors,
        note=result.notes.get(FOURFOLD, ""),
    )


def _lap(call: Callable[[str], Any], folder: str) -> Lap:
    out = str(Path(folder, f"out-{next(NUMBERS)}"))
    began = time.perf_counter()
    answer = call(out)
    elapsed_s = time.perf_counter() - began
    n_rows, total = tables.digest_of_folder(out)
    shutil.rmtree(out)
    return Lap(elapsed_s, f"{n_rows}:{total:.6f}", getattr(getattr(answer, "report", None), "verdict", ""))


def _ours(source: str, model: str, out: str, workers: int) -> Any:
    rows = ff.scan(source).predict(model, method="predict_proba", keep=["id"])
    return rows.write(out, engine="processes", workers=workers)


@contextmanager
def _joblib(workers: int, source: str, model: str) -> Iterator[Callable[[str], Any]]:
    import glob

    import joblib

    def call(out: str) -> None:
        Path(out).mkdir()
        joblib.Parallel(n_jobs=workers)(
            joblib.delayed(_one_group)(path, group, model, out)
            for path in sorted(glob.glob(source))
            for group in _groups(path)
        )

    yield call


def _groups(path: str) -> range:
    import pyarrow.parquet as pq

    return range(pq.read_metadata(path).num_row_groups)


@functools.cache
def _score(model: str) -> tables.Score:
    return tables.Score(model)


def _one_group(path: str, group: int, model: str, out: str) -> None:
    import pyarrow.parquet as pq

    batch = pq.ParquetFile(path).read_row_group(group).to_pandas()
    _score(model)(batch).to_parquet(Path(out, f"{Path(path).stem}-{group}.parquet"))


@contextmanager
def _spark(workers: int, source: str, model: str) -> Iterator[Callable[[str], Any]]:
    # Its workers are of this environment, and find `tables` where they are.
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(paths)}
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{workers}]").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")

    def score(batches: Iterator[Any]) -> Iterator[Any]:
        loaded = _score(model)
        for batch in batches:
            yield loaded(batch)

    def call(out: str) -> None:
        frame = session.read.parquet(source)
        frame.mapInPandas(score, "id long, proba_False double, proba_True double").write.parquet(out)

    yield call
    session.stop()


@contextmanager
def _ray(workers: int, source: str, model: str) -> Iterator[Callable[[str], Any]]:
    import glob

    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def call(out: str) -> None:
        rows = ray.data.read_parquet(sorted(glob.glob(source)))
        options = {"fn_constructor_args": (model,), "batch_format": "pandas", "batch_size": 16_384, "concurrency": workers}
        rows.map_batches(tables.Score, **options).write_parquet(out)

    yield call
    ray.shutdown()


PEERS = {"joblib": _joblib, "Spark": _spark, "Ray Data": _ray}


# ---- what else is promised of tables --------------------------------------------------------------------------------------


def others(is_quick: bool) -> list[dict[str, Any]]:
    """One row for each."""
    from dataclasses import asdict

    workers = usable_cores()
    start_workers(workers)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            *_pass_that_does_nothing(Path(folder), workers, is_quick),
            _slow_model(Path(folder), workers),
            _finished_run(Path(folder)),
            _unequal_rows(workers),
            *_batch_sizes(),
            *_batch_sizes_of_models(is_quick),
        ]
    return [asdict(row) for row in found]


def _pass_that_does_nothing(folder: Path, workers: int, is_quick: bool) -> list[Row]:
    import glob

    import pyarrow as pa
    import pyarrow.dataset as pads
    import pyarrow.parquet as pq

    # 96 bytes per row: 1 GB is 11 million rows.
    source = tables.write_rows(folder, 200_000 if is_quick else 11_000_000, n_files=8)
    pa.set_cpu_count(workers)

    def theirs(out: str) -> None:
        options = pads.ParquetFileFormat().make_write_options()
        pads.write_dataset(pads.dataset(sorted(glob.glob(source))), out, format="parquet", file_options=options)

    def lap(call: Callable[[str], Any]) -> Lap:
        out = str(folder / f"out-{next(NUMBERS)}")
        began = time.perf_counter()
        call(out)
        elapsed_s = time.perf_counter() - began
        n_rows = sum(pq.read_metadata(each).num_rows for each in Path(out).glob("*.parquet"))
        shutil.rmtree(out)
        return Lap(elapsed_s, str(n_rows))

    before = psutil.Process().memory_info().rss
    ours = Contestant(FOURFOLD, {"": lambda: lap(lambda out: ff.scan(source).write(out, engine="processes", workers=workers))})
    own = race([ours], 1, tries=0)
    grown_mb = (psutil.Process().memory_info().rss - before) / 1e6
    result = race([Contestant("pyarrow", {"": lambda: lap(theirs)}), ours], 3, tries=0)
    figure = result.median_of(lambda ours, theirs: theirs / ours, FOURFOLD, "pyarrow")
    for path in glob.glob(source):
        Path(path).unlink()
    size_gb = 0.02 if is_quick else 1
    return [
        _row(result, f"{size_gb:g} GB of Parquet, no step", figure, "of pyarrow's speed", 0.8),
        Row("P11", "memory of the driver in that pass", grown_mb, "MB more", 200, grown_mb < 200, laps_s=own.laps_s),
    ]


def _slow_model(folder: Path, workers: int) -> Row:
    load_s, batch_s, n_batches, batch_rows = 2.0, 0.01, 1000, 100
    rows = ff.scan(_ids(n_batches * batch_rows))
    said = rows.predict(tables.SlowModel, init=(load_s, batch_s), batch_size=batch_rows)
    began = time.perf_counter()
    said.write(folder / "slow", engine="processes", workers=workers)
    took_s = time.perf_counter() - began
    ideal_s = load_s + n_batches * batch_s / workers
    case = f"a model of {load_s:g} s, {n_batches:,} batches of 10 ms on {workers}"
    return Row("P11", case, took_s / ideal_s, "× ideal", 1.1, took_s <= 1.1 * ideal_s, fourfold_s=took_s)


def _ids(n_rows: int) -> Any:
    import pyarrow as pa

    return pa.table({"id": np.arange(n_rows)})


def _finished_run(folder: Path) -> Row:
    rows = ff.scan(_ids(100_000)).predict(tables.SlowModel, init=(2.0, 0.0))
    rows.write(folder / "done", run=folder / "run")
    began = time.perf_counter()
    rows.write(folder / "done", run=folder / "run")
    took_s = time.perf_counter() - began
    return Row("P11", "a run that was finished, again", took_s, "s", 1.0, took_s <= 1.0, fourfold_s=took_s)


class Unequal:
    """One row in 64 costs a hundred times as much; a call costs what its most expensive row does, for each of its rows."""

    def __call__(self, batch: Any) -> Any:
        size = batch["size"].to_numpy()
        time.sleep(len(size) * size.max() * 2e-5)
        return size


def _unequal_rows(workers: int) -> Row:
    import pyarrow as pa

    n_rows = 64 * 512
    size = np.where(np.arange(n_rows) % 64 == 0, 100, 1)
    rows = ff.scan(pa.table({"size": size})).predict(Unequal, batch_size=64, size_of=lambda batch: batch["size"])
    began = time.perf_counter()
    rows.to_arrow(engine="processes", workers=workers)
    took_s = time.perf_counter() - began
    ideal_s = float(size.sum()) * 2e-5 / workers
    padded_s = n_rows * 100 * 2e-5 / workers
    figure, case = ideal_s / took_s, "1 row in 64 costs 100 ×, batches of 64 padded"
    note = f"without size_of= all batches are padded: {padded_s:.1f} s"
    return Row("P11", case, figure, "of ideal", 0.9, figure >= 0.9, False, fourfold_s=took_s, note=note)


class PerCall:
    """Costs that grow with the call, with the row, or with the square of the rows above a bound."""

    def __init__(self, call_s: float, row_s: float, knee: int) -> None:
        self.call_s, self.row_s, self.knee = call_s, row_s, knee

    def __call__(self, batch: Any) -> Any:
        n_rows = len(batch)
        until = time.perf_counter() + self.call_s + n_rows * self.row_s * max(1.0, n_rows / self.knee)
        while time.perf_counter() < until:
            pass
        return batch["id"].to_numpy()


def _batch_sizes() -> list[Row]:
    models = {
        "dear calls": (PerCall, (0.002, 1e-6, 1 << 30), 40_000),
        "dear rows": (PerCall, (1e-5, 2e-5, 1 << 30), 40_000),
        "slower above 512 rows": (PerCall, (0.001, 5e-6, 512), 40_000),
    }
    found = []
    for name, (model, init, n_rows) in models.items():
        rows = ff.scan(_ids(n_rows))

        def took_s(batch_size: Any, rows: Any = rows, model: Any = model, init: Any = init) -> float:
            began = time.perf_counter()
            rows.predict(model, init=init, batch_size=batch_size).to_arrow(engine="serial")
            return time.perf_counter() - began

        fixed = {size: took_s(size) for size in (8, 64, 256, 1024)}
        best = min(fixed, key=fixed.__getitem__)
        ratio = took_s("auto") / fixed[best]
        case = f'batch_size="auto", {name} (best: {best})'
        found.append(Row("P11", case, ratio, "× the best size", 1.1, ratio <= 1.1))
    return found


SIZES = (64, 256, 1024, 4096, 16_384)


def _batch_sizes_of_models(is_quick: bool) -> list[Row]:
    """The same with models as people have them, which spend their time in C, in caches and in pandas."""
    rounds, found = (1 if is_quick else 5), []
    for name, (model, table) in tables.models_and_rows(is_quick).items():
        rows = ff.scan(table)

        def lap(batch_size: Any, rows: Any = rows, model: Any = model) -> Lap:
            began = time.perf_counter()
            answer = rows.predict(model, keep=["id"], batch_size=batch_size).to_arrow(engine="serial")
            elapsed_s = time.perf_counter() - began
            return Lap(elapsed_s, f"{np.sum(answer.column('prediction').to_numpy()):.6f}")

        said = [Contestant(f"{each}", {"": functools.partial(lap, each)}) for each in (*SIZES, "auto")]
        result = race(said, rounds, tries=1)
        best = min(map(str, SIZES), key=lambda each: result.median_s(each) or float("inf"))
        ratio = result.median_of(lambda auto, fixed: auto / fixed, "auto", best)
        is_met = ratio is not None and ratio <= 1.1
        case = f'batch_size="auto", {name} (best: {best})'
        found.append(Row("P11", case, ratio, "× the best size", 1.1, is_met, laps_s=result.laps_s, errors=result.errors))
    return found
