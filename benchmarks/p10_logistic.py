"""P10: one logistic regression from a million rows of 28 columns, against scikit-learn's lbfgs and Spark's own trainer; and
what an iteration of `Dataset.fit` costs beside its work.

Everybody minimises the same objective and must end at the same value of it: an answer is that value, to six digits.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fourfolds import start_workers
from fresh import FreshProcessFailed, in_fresh_process
from measure import Contestant, Lap, race, usable_cores
from rows import FOURFOLD, Row, against_the_best_peer, without_figure

import fourfold as ff
from fourfold.workloads.fit.contract import About, Fit, Pass, Rows

BAR_SKLEARN, BAR_SPARK, BAR_PASS_MS = 0.65, 0.15, 5.0
N_COLUMNS, STRENGTH = 28, 1e-4

# Both stop where the objective has these digits; with scikit-learn's 1e-4 it has four.
SKLEARN_TOL, TOL = 1e-5, 1e-6
DIGITS = 6
TIMEOUT_S = 900.0

# Passes over which one is averaged. Fewer: the first one, which starts the run, counts.
N_PASSES = 40


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Each part in a process of its own: one that fails costs its own rows only."""
    n_rows = 50_000 if is_quick else 1_000_000
    parts = {"with_sklearn": (rounds, n_rows), "with_spark": (min(rounds, 3), n_rows), "passes": (rounds, n_rows)}
    found = []
    for part, (n_rounds, n) in parts.items():
        try:
            said = in_fresh_process("p10_logistic", part, timeout_s=TIMEOUT_S, rounds=n_rounds, n_rows=n)
            found += [Row(**row) for row in said]
        except FreshProcessFailed as error:
            found.append(without_figure("P10", f"{part} could not be measured", str(error)))
    return found


def drawn(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of about deviation 1, labels that these tell in part."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, N_COLUMNS))
    margins = X @ (0.5 * rng.standard_normal(N_COLUMNS)) + rng.logistic(size=n_rows)
    return X, (margins > 0.5).astype(np.int64)


def objective_of(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: float) -> float:
    """What all of them minimise."""
    margins = np.where(y == 1, -1.0, 1.0) * (X @ coef + intercept)
    return float(np.logaddexp(0.0, margins).mean() + STRENGTH / 2 * coef @ coef)


def lap(fit: Callable[[], tuple[np.ndarray, float, int]], X: np.ndarray, y: np.ndarray) -> Lap:
    """One fit, which gives coefficients, intercept and iterations."""
    began = time.perf_counter()
    coef, intercept, n_iter = fit()
    elapsed_s = time.perf_counter() - began
    return Lap(elapsed_s, f"{objective_of(X, y, coef, intercept):.{DIGITS}f}", f"{n_iter} iterations")


def _ours(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, int]:
    model = ff.LogisticRegression(reg_param=STRENGTH, standardization=False, tol=TOL, n_jobs=-1).fit(X, y)
    return model.coef_[0], float(model.intercept_[0]), model.n_iter_


def with_sklearn(rounds: int, n_rows: int) -> list[dict[str, Any]]:
    """In memory, with as many threads of BLAS as there are cores."""
    from sklearn.linear_model import LogisticRegression

    X, y = drawn(n_rows)

    def theirs() -> tuple[np.ndarray, float, int]:
        model = LogisticRegression(C=1 / (STRENGTH * n_rows), tol=SKLEARN_TOL).fit(X, y)
        return model.coef_[0], float(model.intercept_[0]), int(model.n_iter_[0])

    name = "scikit-learn lbfgs"
    contestants = [
        Contestant(name, {"": lambda: lap(theirs, X, y)}),
        Contestant(FOURFOLD, {"": lambda: lap(lambda: _ours(X, y), X, y)}),
    ]
    case = f"logistic regression, {n_rows:,} × {N_COLUMNS}, in memory"
    return [asdict(against_the_best_peer("P10", case, race(contestants, rounds), [name], BAR_SKLEARN))]


def with_spark(rounds: int, n_rows: int) -> list[dict[str, Any]]:
    """Its session is up and its rows are cached, as vectors; ours are in memory."""
    X, y = drawn(n_rows)
    with tempfile.TemporaryDirectory() as folder:
        session, rows_of_spark, _ = cached(X, y, Path(folder), usable_cores())
        from pyspark.ml.classification import LogisticRegression

        trainer = LogisticRegression(regParam=STRENGTH, standardization=False, tol=TOL, maxIter=100)

        def theirs() -> tuple[np.ndarray, float, int]:
            model = trainer.fit(rows_of_spark)
            return model.coefficients.toArray(), model.intercept, model.summary.totalIterations

        name = f"Spark local[{usable_cores()}]"
        contestants = [
            Contestant(name, {"": lambda: lap(theirs, X, y)}),
            Contestant(FOURFOLD, {"": lambda: lap(lambda: _ours(X, y), X, y)}),
        ]
        result = race(contestants, rounds)
        session.stop()
    case = f"logistic regression, {n_rows:,} × {N_COLUMNS}, cached"
    return [asdict(against_the_best_peer("P10", case, result, [name], BAR_SPARK))]


def cached(X: np.ndarray, y: np.ndarray, folder: Path, workers: int) -> tuple[Any, Any, Any]:
    """A session of Spark, and the rows in it: as vectors, and as columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import SparkSession

    names = [f"x{at}" for at in range(N_COLUMNS)]
    table = pa.table({**{name: X[:, at] for at, name in enumerate(names)}, "label": y.astype(float)})
    pq.write_table(table, folder / "rows.parquet", row_group_size=65_536)
    builder = SparkSession.builder.master(f"local[{workers}]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.memory", "4g")
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    read = session.read.parquet(str(folder / "rows.parquet")).repartition(workers).cache()
    frame = VectorAssembler(inputCols=names, outputCol="features").transform(read).select("features", "label").cache()
    read.count(), frame.count()
    return session, frame, read


# ---- what a pass costs -----------------------------------------------------------------------------------------------------


class Nothing:
    """An aggregator that looks at no number."""

    def fold(self, rows: Rows) -> int:
        """How many there are."""
        return rows.n_rows

    def combine(self, left: int, right: int) -> int:
        """Of both."""
        return left + right

    def finish(self, state: int) -> int:
        """As it is."""
        return state


class Looks:
    """An estimator that looks at all rows so many times, and learns nothing."""

    def __init__(self, n_passes: int) -> None:
        self.n_passes = n_passes

    def fit(self, X: Any, y: Any = None) -> None:
        """As of an estimator."""


@ff.recipe(Looks)
def look(estimator: Looks, about: About) -> Fit:
    """The passes of an iterative fit, without its work."""
    from fourfold.workloads.fit.seen import Numbers

    seen = (Numbers(takes_nan=True),)
    for _ in range(estimator.n_passes):
        yield Pass(Nothing(), seen, keep=True)
    return estimator


def passes(rounds: int, n_rows: int) -> list[dict[str, Any]]:
    """What a pass takes on processes when nothing is done with the rows: the least that an iteration takes."""
    import pyarrow as pa

    X, y = drawn(n_rows // 10)
    table = pa.table({**{f"x{at}": X[:, at] for at in range(N_COLUMNS)}, "y": y})
    workers = usable_cores()
    start_workers(workers)

    def took_s(n_passes: int) -> float:
        began = time.perf_counter()
        ff.scan(table).fit(Looks(n_passes), target="y", engine="processes", workers=workers)
        return time.perf_counter() - began

    took_s(2)
    each_ms = [1000 * (took_s(N_PASSES + 2) - took_s(2)) / N_PASSES for _ in range(rounds)]
    figure = float(np.median(each_ms))
    case = f"a pass of Dataset.fit without work, {len(X):,} rows kept by {workers} processes"
    return [asdict(Row("P10", case, figure, "ms", BAR_PASS_MS, figure <= BAR_PASS_MS))]
