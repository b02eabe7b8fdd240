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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import tables
from fourfolds import start_workers
from fresh import FreshProcessFailed, in_fresh_process
from measure import Contestant, Lap, Race, race, usable_cores
from rows import FOURFOLD, LOOP, Row, against_the_best_peer, without_figure

import fourfold as ff

BAR_LOOP, BAR_SPARK, BAR_RAY, BAR_ON_SPARK = 1.85, 0.7, 0.5, 1.10
ON_SPARK = {"files": "fourfold on Spark, files", "frames": "fourfold on Spark, frames"}
TIMEOUT_S = 900.0

# A twentieth of the rows warms everybody up before the first round: imports, workers, Java's compiler. A whole round for that
# would take a quarter of the time of P11.
WARM_UP = 20

# Ray Data takes four times as long as fourfold, far from its bar: a third round would say the same.
RAY_ROUNDS = 2

NUMBERS = itertools.count()


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Each part in a process of its own: one that fails costs its own rows only."""
    races = {"rounds": min(rounds, 3), "n_rows": 50_000 if is_quick else 1_000_000}
    parts = {"with_joblib": races, "with_spark": races, "with_ray": races, "others": {"is_quick": is_quick}}
    found = []
    for part, arguments in parts.items():
        try:
            said = in_fresh_process("p11_prediction", part, timeout_s=TIMEOUT_S, **arguments)
            found += [Row(**row) for row in said]
        except FreshProcessFailed as error:
            found.append(without_figure("P11", f"{part} could not be measured", str(error)))
    return found


# ---- prediction --------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What everybody does: score these rows with this model, and write what comes out."""

    source: str
    model: str


Call = Callable[[Job, str], Any]


def with_joblib(rounds: int, n_rows: int) -> list[dict[str, Any]]:
    """The race with joblib, and with the loop."""
    workers = usable_cores()
    with _joblib(workers) as theirs:
        calls = {LOOP: lambda job, out: tables.predict_in_a_loop(*job, out), "joblib": theirs, FOURFOLD: _ours}
        result = _raced(calls, rounds, n_rows)
    case = f"{n_rows:,} rows × 100 trees"
    figure = result.median_of(lambda ours, loop: loop / ours, FOURFOLD, LOOP)
    speedup = _row(result, f"{case} on {workers}", figure, "× the loop's speed", BAR_LOOP)
    return [asdict(speedup), asdict(against_the_best_peer("P11", case, result, ["joblib"], None))]


def with_ray(rounds: int, n_rows: int) -> list[dict[str, Any]]:
    """The race with Ray Data."""
    with _ray(usable_cores()) as theirs:
        result = _raced({"Ray Data": theirs, FOURFOLD: _ours}, min(rounds, RAY_ROUNDS), n_rows)
    return [asdict(against_the_best_peer("P11", f"{n_rows:,} rows × 100 trees", result, ["Ray Data"], BAR_RAY))]


def with_spark(rounds: int, n_rows: int) -> list[dict[str, Any]]:
    """On one session mapInPandas as one writes it by hand, fourfold on it with files that workers read and with a frame of
    Spark; and fourfold without it."""
    with _spark(usable_cores()) as theirs:
        on_spark = {ON_SPARK["files"]: _files_on_spark, ON_SPARK["frames"]: _frame}
        result = _raced({"Spark": theirs, FOURFOLD: _ours, **on_spark}, rounds, n_rows)
    case = f"{n_rows:,} rows × 100 trees"
    found = [against_the_best_peer("P11", case, result, ["Spark"], BAR_SPARK)]
    for kind, name in ON_SPARK.items():
        found.append(against_the_best_peer("P11", f"{case} on Spark, {kind}", result, ["Spark"], BAR_ON_SPARK, name))
    return [asdict(row) for row in found]


def _raced(calls: Mapping[str, Call], rounds: int, n_rows: int) -> Race:
    """Everybody warmed up, and the race."""
    with tempfile.TemporaryDirectory() as folder:
        model, few, all_rows = Path(folder, "model.joblib"), Path(folder, "few"), Path(folder, "all")
        tables.write_forest(model)
        few.mkdir()
        all_rows.mkdir()
        for part, n, n_rounds in ((few, n_rows // WARM_UP, 1), (all_rows, n_rows, rounds)):
            job = Job(tables.write_rows(part, n), str(model))
            laps = [Contestant(name, {"": functools.partial(_lap, call, job, folder)}) for name, call in calls.items()]
            result = race(laps, n_rounds, tries=0)
    return result


def _files_on_spark(job: Job, out: str) -> Any:
    from fourfold.engines import Spark

    return ff.scan(job.source).predict(job.model, method="predict_proba", keep=["id"]).write(out, engine=Spark())


def _frame(job: Job, out: str) -> None:
    from pyspark.sql import SparkSession

    rows = ff.scan(SparkSession.getActiveSession().read.parquet(job.source))
    rows.predict(job.model, method="predict_proba", keep=["id"]).native.write.parquet(out)


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


def _lap(call: Call, job: Job, folder: str) -> Lap:
    out = str(Path(folder, f"out-{next(NUMBERS)}"))
    began = time.perf_counter()
    answer = call(job, out)
    elapsed_s = time.perf_counter() - began
    n_rows, total = tables.digest_of_folder(out)
    shutil.rmtree(out)
    return Lap(elapsed_s, f"{n_rows}:{total:.6f}", getattr(getattr(answer, "report", None), "verdict", ""))


def _ours(job: Job, out: str) -> Any:
    rows = ff.scan(job.source).predict(job.model, method="predict_proba", keep=["id"])
    return rows.write(out, engine="processes", workers=usable_cores())


@contextmanager
def _joblib(workers: int) -> Iterator[Call]:
    import glob

    import joblib

    def call(job: Job, out: str) -> None:
        Path(out).mkdir()
        joblib.Parallel(n_jobs=workers)(
            joblib.delayed(_one_group)(path, group, job.model, out)
            for path in sorted(glob.glob(job.source))
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
def _spark(workers: int) -> Iterator[Call]:
    # Its workers are of this environment, and find `tables` where they are.
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(paths)}
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{workers}]").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")

    def call(job: Job, out: str) -> None:
        model = job.model

        def score(batches: Iterator[Any]) -> Iterator[Any]:
            loaded = _score(model)
            for batch in batches:
                yield loaded(batch)

        frame = session.read.parquet(job.source)
        frame.mapInPandas(score, "id long, proba_False double, proba_True double").write.parquet(out)

    yield call
    session.stop()


@contextmanager
def _ray(workers: int) -> Iterator[Call]:
    import ray

    # One more than there are: what calls the model holds its own for good, and the tasks that read would wait for ever.
    ray.init("local", num_cpus=workers + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def call(job: Job, out: str) -> None:
        # The folder: of a list of files Ray looks at each in a thread of its own, and without aiohttp their imports collide.
        rows = ray.data.read_parquet(str(Path(job.source).parent))
        options = {"fn_constructor_args": (job.model,), "batch_format": "pandas", "batch_size": 16_384, "concurrency": workers}
        rows.map_batches(tables.Score, **options).write_parquet(out)

    yield call
    ray.shutdown()


# ---- what else is promised of tables --------------------------------------------------------------------------------------


def others(is_quick: bool) -> list[dict[str, Any]]:
    """One row for each."""
    workers = usable_cores()
    start_workers(workers)
    # And have them import pandas, as in the races: the shortest of these rows lasts a second, and that takes a third of one.
    ff.scan(_ids(64)).predict(tables.SlowModel, init=(0.0, 0.0), batch_size=1).to_arrow(engine="processes", workers=workers)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            *_pass_that_does_nothing(Path(folder), workers, is_quick),
            _slow_model(Path(folder), workers),
            _finished_run(Path(folder)),
            _unequal_rows(workers),
            *_batch_sizes(is_quick),
            *_batch_sizes_of_models(is_quick),
        ]
    return [asdict(row) for row in found]


def _pass_that_does_nothing(folder: Path, workers: int, is_quick: bool) -> list[Row]:
    import glob

    import pyarrow as pa
    import pyarrow.dataset as pads
    import pyarrow.parquet as pq

    # 96 bytes per row: 1 GB is 11 million rows. One file is drawn and copied: to draw eight takes longer than to pass them on.
    n_files, n_rows = 8, 200_000 if is_quick else 11_000_000
    source = tables.write_rows(folder, n_rows // n_files, n_files=1)
    for number in range(1, n_files):
        shutil.copyfile(folder / "in-0.parquet", folder / f"in-{number}.parquet")
    pa.set_cpu_count(workers)
    grown_mb: list[float] = []

    def theirs(out: str) -> None:
        options = pads.ParquetFileFormat().make_write_options()
        pads.write_dataset(pads.dataset(sorted(glob.glob(source))), out, format="parquet", file_options=options)

    def ours(out: str) -> None:
        before = psutil.Process().memory_info().rss
        ff.scan(source).write(out, engine="processes", workers=workers)
        grown_mb.append((psutil.Process().memory_info().rss - before) / 1e6)

    def lap(call: Callable[[str], None]) -> Lap:
        out = str(folder / f"out-{next(NUMBERS)}")
        began = time.perf_counter()
        call(out)
        elapsed_s = time.perf_counter() - began
        n_rows = sum(pq.read_metadata(each).num_rows for each in Path(out).glob("*.parquet"))
        shutil.rmtree(out)
        return Lap(elapsed_s, str(n_rows))

    # Ours goes first, before pyarrow has left memory in this process that is free to be used.
    laps = [Contestant(FOURFOLD, {"": lambda: lap(ours)}), Contestant("pyarrow", {"": lambda: lap(theirs)})]
    result = race(laps, 1 if is_quick else 2, tries=0)
    figure = result.median_of(lambda ours, theirs: theirs / ours, FOURFOLD, "pyarrow")
    for path in glob.glob(source):
        Path(path).unlink()
    size_gb, grown = 0.02 if is_quick else 1, max(grown_mb, default=None)
    is_met = grown is not None and grown < 200
    return [
        _row(result, f"{size_gb:g} GB of Parquet, no step", figure, "of pyarrow's speed", 0.8),
        Row("P11", "memory of the driver in that pass", grown, "MB more", 200, is_met, errors=result.errors),
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
        until = time.thread_time() + self.call_s + n_rows * self.row_s * max(1.0, n_rows / self.knee)
        while time.thread_time() < until:
            pass
        return batch["id"].to_numpy()


# Costs, rows and the sizes that are tried, around the best one. That is 8 rows for no model, and with 8 a round takes minutes.
# Rows enough that what the first calls of "auto" find out is little of the time, as with tables of a million rows.
OF_CALLS = {
    "dear calls": ((0.002, 1e-6, 1 << 30), 300_000, (1024, 4096, 16_384)),
    "dear rows": ((1e-5, 2e-5, 1 << 30), 15_000, (64, 1024, 16_384)),
    "slower above 512 rows": ((0.001, 5e-6, 512), 60_000, (128, 512, 1024)),
}
OF_MODELS = (1024, 4096, 16_384)


def _batch_sizes(is_quick: bool) -> list[Row]:
    """What costs this much per call and this much per row."""
    found = []
    for name, (init, n_rows, sizes) in OF_CALLS.items():
        rows = ff.scan(_ids(n_rows))
        said = functools.partial(rows.predict, PerCall, init=init)
        found.append(_sizes_row(name, said, sizes, 1 if is_quick else 3))
    return found


def _batch_sizes_of_models(is_quick: bool) -> list[Row]:
    """The same with models as people have them, which spend their time in C, in caches and in pandas. Each has one thread, as
    in a worker beside others: threads that wait for each other on a busy machine would be all that this shows."""
    import threadpoolctl

    models, found = tables.models_and_rows(is_quick), []
    with threadpoolctl.threadpool_limits(1):  # of libraries that are loaded: those of the models are now
        for name, (model, table) in models.items():
            said = functools.partial(ff.scan(table).predict, model, keep=["id"])
            found.append(_sizes_row(name, said, OF_MODELS, 1 if is_quick else 3))
    return found


def _sizes_row(name: str, predicted: Callable[..., Any], sizes: Sequence[int], rounds: int) -> Row:
    """`batch_size="auto"` beside the best of these, in turns, in seconds of the processor: all of it is one thread, and who
    else is on the machine says nothing of a size."""

    def lap(batch_size: Any) -> Lap:
        began = time.process_time()
        answer = predicted(batch_size=batch_size).to_arrow(engine="serial")
        elapsed_s = time.process_time() - began
        return Lap(elapsed_s, f"{np.sum(answer.column('prediction').to_numpy()):.6f}")

    # The smallest is there to show that the best one is not smaller: it takes longest, and one round.
    laps = [Contestant(f"{each}", {"": functools.partial(lap, each)}, rounds if each != sizes[0] else 1) for each in sizes]
    laps.append(Contestant("auto", {"": functools.partial(lap, "auto")}))
    result = race(laps, rounds, tries=0)
    best = result.best(map(str, sizes))
    ratio = result.ratio("auto", best) if best else None
    case = f'batch_size="auto", {name} (best: {best})'
    is_met = ratio is not None and ratio <= 1.1
    return Row("P11", case, ratio, "× the best size", 1.1, is_met, laps_s=result.laps_s, errors=result.errors)
