"""P12: tuning by `ff.optimize`, against the loop of Optuna, its threads, two of its processes that share SQLite, and Ray Tune;
and what a trial costs beside its work.

All of them run random search. An answer is how many trials have ended with a value.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from fresh import FreshProcessFailed, in_fresh_process
from measure import Contestant, Lap, Race, race
from rows import FOURFOLD, LOOP, Row, as_efficiency, without_figure
from work import calibrate, spin

import fourfold as ff

WORKERS = 2
WORK_MS, N_TRIALS = 50.0, 64
BAR_LOOP, BAR_THREADS = 1.85, 1.8

# Without work: all that a trial takes is overhead. Fewer: the start of a call counts. More: Optuna with SQLite takes minutes.
N_EMPTY = 200
BAR_OVERHEAD_MS, BAR_SQLITE = 5.0, 0.5

TIMEOUT_S = 900.0
THREADS, SQLITE, RAY = "Optuna n_jobs=2", "Optuna, SQLite, 2 processes", "Ray Tune"


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Each part in a process of its own: one that fails costs its own rows only."""
    found = []
    for part, n_trials in (("with_work", 16 if is_quick else N_TRIALS), ("without_work", 50 if is_quick else N_EMPTY)):
        try:
            said = in_fresh_process("p12_tuning", part, timeout_s=TIMEOUT_S, rounds=rounds, n_trials=n_trials)
            found += [Row(**row) for row in said]
        except FreshProcessFailed as error:
            found.append(without_figure("P12", f"{part} could not be measured", str(error)))
    return found


def objective(units: int, trial: Any) -> float:
    """Two parameters, and work that holds the GIL."""
    x, y = trial.suggest_float("x", -10, 10), trial.suggest_float("y", -10, 10)
    spin(units)
    return float(x * x + y)


def lap(tune: Callable[[], int]) -> Lap:
    """One study, which gives how many of its trials have a value."""
    began = time.perf_counter()
    n_complete = tune()
    return Lap(time.perf_counter() - began, f"{n_complete} trials")


def complete(study: optuna.Study) -> int:
    """How many trials have a value."""
    return sum(each.state.name == "COMPLETE" for each in study.trials)


# ---- the contestants -------------------------------------------------------------------------------------------------------


def by_optuna(units: int, n_trials: int, n_jobs: int = 1) -> int:
    """In this process: one after the other, or by threads."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(partial(objective, units), n_trials=n_trials, n_jobs=n_jobs)
    return complete(study)


def by_fourfold(units: int, n_trials: int) -> int:
    """On processes."""
    sampler = optuna.samplers.RandomSampler(0)
    return complete(ff.optimize(partial(objective, units), n_trials=n_trials, sampler=sampler, workers=WORKERS))


@contextmanager
def optuna_processes(folder: Path) -> Iterator[Callable[[int, int], int]]:
    """Processes that share a study by SQLite, as Optuna's tutorial has it. They are there before the clock runs."""
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import p12_tuning as p; p.serve()",
    ]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(WORKERS)]
    n_laps = 0

    def run(units: int, n_trials: int) -> int:
        nonlocal n_laps
        n_laps += 1
        url = f"sqlite:///{folder}/{n_laps}.db"
        study = optuna.create_study(study_name="p12", storage=url)
        for each in processes:
            print(url, units, n_trials // WORKERS, file=each.stdin, flush=True)
        for each in processes:
            each.stdout.readline()
        return complete(study)

    try:
        for each in processes:
            each.stdout.readline()
        yield run
    finally:
        for each in processes:
            each.stdin.close()
            each.wait()


def serve() -> None:
    """One of these processes: a line is a study to take part in."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("ready", flush=True)
    for line in sys.stdin:
        url, units, n_trials = line.split()
        study = optuna.load_study(study_name="p12", storage=url, sampler=optuna.samplers.RandomSampler())
        study.optimize(partial(objective, int(units)), n_trials=int(n_trials))
        print("done", flush=True)


@contextmanager
def ray_tune(folder: Path) -> Iterator[Callable[[int, int], int]]:
    """Ray is up; each trial is a function in an actor, and actors are used again."""
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    import ray
    from ray import tune

    ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    def trainable(config: dict[str, float]) -> dict[str, float]:
        spin(int(config["units"]))
        return {"value": config["x"] ** 2 + config["y"]}

    def run(units: int, n_trials: int) -> int:
        space = {"x": tune.uniform(-10, 10), "y": tune.uniform(-10, 10), "units": units}
        settings = tune.TuneConfig(num_samples=n_trials, max_concurrent_trials=WORKERS, reuse_actors=True)
        place = tune.RunConfig(storage_path=str(folder), verbose=0)
        results = tune.Tuner(trainable, param_space=space, tune_config=settings, run_config=place).fit()
        return len(results) - results.num_errors

    try:
        yield run
    finally:
        ray.shutdown()


# ---- the races -------------------------------------------------------------------------------------------------------------


def raced(units: int, n_trials: int, rounds: int, has_loop: bool) -> Race:
    """All of them, with as many trials of as much work."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, optuna_processes(Path(folder)) as sqlite, ray_tune(Path(folder)) as ray:
        entries: dict[str, Callable[[int, int], int]] = {LOOP: by_optuna} if has_loop else {}
        entries |= {FOURFOLD: by_fourfold, THREADS: partial(by_optuna, n_jobs=WORKERS), SQLITE: sqlite}
        contestants = [Contestant(name, {"": partial(lap, partial(run, units, n_trials))}) for name, run in entries.items()]
        slow = Contestant(RAY, {"": partial(lap, partial(ray, units, n_trials))}, max_rounds=1)
        return race([*contestants, slow], rounds)


def with_work(rounds: int, n_trials: int) -> list[dict[str, Any]]:
    """Trials of 50 ms."""
    found = raced(int(calibrate() * WORK_MS * 1000), n_trials, rounds, has_loop=True)
    case = f"{n_trials} trials of {WORK_MS:g} ms that hold the GIL, {WORKERS} workers"
    beside_loop = as_efficiency("P12", case, found, WORKERS, BAR_LOOP / WORKERS)
    ratio = found.median_of(lambda ours, theirs: theirs / ours, FOURFOLD, THREADS)
    is_met = ratio is not None and ratio >= BAR_THREADS
    beside_threads = replace(
        beside_loop, figure=ratio, unit=f"× as fast as {THREADS}", bar=BAR_THREADS, is_met=is_met, peer=THREADS,
        peer_s=found.median_s(THREADS),
    )  # fmt: skip
    return [asdict(beside_loop), asdict(beside_threads)]


def without_work(rounds: int, n_trials: int) -> list[dict[str, Any]]:
    """Trials that do nothing."""
    found = raced(0, n_trials, rounds, has_loop=False)
    ours_s, ratio = found.median_s(FOURFOLD), found.ratio(FOURFOLD, SQLITE)
    ms = None if ours_s is None else 1000 * ours_s / n_trials
    case = f"{n_trials} trials without work, {WORKERS} workers"
    is_met = ms is not None and ms <= BAR_OVERHEAD_MS
    each = Row(
        "P12", f"{case}: each", ms, "ms", BAR_OVERHEAD_MS, is_met, fourfold_s=ours_s, peer=found.best([SQLITE, RAY]) or "",
        peer_s=found.median_s(SQLITE), laps_s=found.laps_s, errors=found.errors,
    )  # fmt: skip
    is_met = ratio is not None and ratio <= BAR_SQLITE
    return [
        asdict(each),
        asdict(replace(each, case=case, figure=ratio, unit=f"× {SQLITE}", bar=BAR_SQLITE, is_met=is_met, peer=SQLITE)),
    ]
