"""GROUPS: one model per group: 10,000 tiny fits against the loop and joblib, and one group that has half of all rows.

The loop is what one writes by hand: `for key, part in frame.groupby(by): clone(estimator).fit(part[features], part[target])`.
joblib gets the same parts, with several sizes of batches, and the fastest runs. All begin with a DataFrame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from fourfolds import start_workers
from measure import Contestant, Lap, digest_of, race, usable_cores
from peers import joblib_parallel
from rows import FOURFOLD, LOOP, Row, against_the_best_peer, as_efficiency
from sklearn.base import clone
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

import fourfold as ff

TINY_SHARE_BAR = 0.9
"""Of a tiny fit's shortest possible time: on two workers this is 1.8 times the loop's speed."""

SKEW_BAR, JOBLIB_BAR = 1.10, 1.0
FEATURES = [f"x{at}" for at in range(5)]
BATCHES = ["auto", 50, 200, 1000]


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """The three rows."""
    workers = usable_cores()
    start_workers(workers)
    with threadpool_limits(1), joblib_parallel(workers) as parallel:
        return [*_tiny(rounds, workers, parallel, 500 if is_quick else 10_000), _skewed(rounds, workers, is_quick)]


def _tiny(rounds: int, workers: int, parallel: Callable[..., Any], n_groups: int) -> list[Row]:
    frame, ridge = table(n_groups, 40 * n_groups), Ridge()
    batches = {f"batch_size={size}": lambda size=size: _joblib(ridge, frame, parallel, size) for size in BATCHES}
    contestants = [
        Contestant(LOOP, {"": lambda: _lap(lambda: loop(ridge, frame))}),
        Contestant("joblib", batches),
        Contestant(FOURFOLD, {"": lambda: _lap(lambda: _ours(ridge, frame, workers))}),
    ]
    result = race(contestants, min(rounds, 3))
    case = f"{n_groups:,} groups of 40 rows, Ridge, on {workers}"
    return [
        as_efficiency("GROUPS", case, result, workers, TINY_SHARE_BAR),
        against_the_best_peer("GROUPS", case, result, ["joblib"], JOBLIB_BAR),
    ]


def _skewed(rounds: int, workers: int, is_quick: bool) -> Row:
    """One group has half of all rows: the call takes as long as its fit, since it begins first.

    There are few others: a hundred small forests take three times as long as one of as many rows.
    """
    n_rows = 4_000 if is_quick else 80_000
    frame, forest = table(10, n_rows), RandomForestRegressor(n_estimators=20, random_state=0)
    frame.loc[frame.index % 2 == 0, "key"] = 7
    half = frame[frame.key == 7]
    alone = {"": lambda: _lap(lambda: {7: clone(forest).fit(half[FEATURES], half.y)})}
    ours = {"": lambda: _lap(lambda: {7: _ours(forest, frame, workers)[7]})}
    result = race([Contestant(LOOP, alone), Contestant(FOURFOLD, ours)], min(rounds, 3))
    figure = result.ratio(FOURFOLD, LOOP)
    return Row(
        "GROUPS",
        f"one group of 10 has half of {n_rows:,} rows, forests, on {workers}",
        figure,
        "× that fit",
        SKEW_BAR,
        figure is not None and figure <= SKEW_BAR,
        loop_s=result.median_s(LOOP),
        fourfold_s=result.median_s(FOURFOLD),
        laps_s=result.laps_s,
        errors=result.errors,
        note=result.notes.get(FOURFOLD, ""),
    )


def table(n_groups: int, n_rows: int) -> pd.DataFrame:
    """Rows of groups in no order."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(n_rows, len(FEATURES))), columns=FEATURES)
    key = random.integers(0, n_groups, n_rows)
    return frame.assign(key=key, y=frame.x0 * (key % 7) + random.normal(size=n_rows))


def loop(estimator: Any, frame: pd.DataFrame) -> dict[int, Any]:
    """By hand."""
    return {key: clone(estimator).fit(part[FEATURES], part.y) for key, part in frame.groupby("key")}


def _fit(estimator: Any, key: int, part: pd.DataFrame) -> tuple[int, Any]:
    return key, clone(estimator).fit(part[FEATURES], part.y)


def _joblib(estimator: Any, frame: pd.DataFrame, parallel: Callable[..., Any], size: Any) -> Lap:
    import joblib

    def run() -> dict[int, Any]:
        calls = (joblib.delayed(_fit)(estimator, key, part) for key, part in frame.groupby("key"))
        return dict(joblib.Parallel(n_jobs=usable_cores(), batch_size=size, pre_dispatch="4*n_jobs")(calls))

    return _lap(run)


def _ours(estimator: Any, frame: pd.DataFrame, workers: int) -> ff.GroupModels:
    return ff.scan(frame).fit_groups(
        estimator, by="key", target="y", features=FEATURES, engine="processes", workers=workers, progress=False
    )


def _lap(run: Callable[[], Mapping[int, Any]]) -> Lap:
    """Times one call; the answer is what all models say of one row."""
    began = time.perf_counter()
    models = run()
    elapsed_s = time.perf_counter() - began
    row = pd.DataFrame(np.ones((1, len(FEATURES))), columns=FEATURES)
    said = [(int(key), float(models[key].predict(row)[0])) for key in list(models)[:: max(1, len(models) // 200)]]
    report = getattr(models, "report", None)
    return Lap(elapsed_s, digest_of(said), getattr(report, "verdict", ""))
