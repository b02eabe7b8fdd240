"""FIT: what `Dataset.fit` gains by a second worker, and what it takes of a DataFrame that Spark has cached.

The columns are the demo's: numbers that are filled in and scaled, and names that become columns, of a year of flights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fourfolds import start_workers
from fresh import FreshProcessFailed, in_fresh_process
from measure import Contestant, Lap, race, usable_cores
from p10_logistic import STRENGTH, TOL, cached, drawn, lap
from rows import FOURFOLD, LOOP, Row, against_the_best_peer, without_figure

import fourfold as ff

WORKERS_BAR, SPARK_BAR = 1.7, 0.8
ONE = "fourfold, one worker"
TIMEOUT_S = 900.0


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Each part in a process of its own."""
    n_rows, months = (50_000, 2) if is_quick else (1_000_000, 12)
    found = []
    for part, options in (("columns", {"months": months}), ("on_spark", {"n_rows": n_rows})):
        try:
            said = in_fresh_process("fits", part, timeout_s=TIMEOUT_S, rounds=min(rounds, 3), **options)
            found += [Row(**row) for row in said]
        except FreshProcessFailed as error:
            found.append(without_figure("FIT", f"{part} could not be measured", str(error)))
    return found


def columns(rounds: int, months: int) -> list[dict[str, Any]]:
    """The ColumnTransformer of the demo, with one worker and with all; scikit-learn beside it, with all rows in memory."""
    from fourfold.cli.demo_data import find_source, write_data
    from fourfold.cli.demo_flights import FEATURES
    from fourfold.cli.demo_steps import preprocess
    from fourfold.cli.demo_train import CATEGORIES, flights, model

    with tempfile.TemporaryDirectory() as folder:
        write_data(find_source(), Path(folder, "data"))
        preprocess(Path(folder, "data"), months, Path(folder, "features"), {"engine": "serial"}).write()
        train, _ = flights(Path(folder, "features"))
        names = [*FEATURES, *CATEGORIES]
        workers = usable_cores()

        def ours(n: int) -> Lap:
            return _lap(lambda: train.fit(model(1)[0], features=names, engine="processes", workers=n))

        def theirs() -> Lap:
            return _lap(lambda: model(1)[0].fit(train.select(names).to_pandas(engine="serial")))

        contestants = [
            Contestant(LOOP, {"": theirs}),
            Contestant(ONE, {"": lambda: ours(1)}),
            Contestant(FOURFOLD, {"": lambda: ours(workers)}),
        ]
        start_workers(workers)
        ours(workers)  # workers import scikit-learn
        result = race(contestants, rounds)
    case = f"the demo's ColumnTransformer, {workers} workers against one"
    figure = result.median_of(lambda ours, one: one / ours, FOURFOLD, ONE)
    is_met = figure is not None and figure >= WORKERS_BAR
    laps = {"loop_s": result.median_s(LOOP), "fourfold_s": result.median_s(FOURFOLD), "laps_s": result.laps_s}
    return [asdict(Row("FIT", case, figure, "× one worker", WORKERS_BAR, is_met, False, **laps, errors=result.errors))]


def _lap(fit: Callable[[], Any]) -> Lap:
    began = time.perf_counter()
    fitted = fit()
    elapsed_s = time.perf_counter() - began
    scaler = fitted.named_transformers_["numbers"][-1]
    return Lap(elapsed_s, f"{scaler.mean_.sum():.9g} {len(fitted.get_feature_names_out())}")


def on_spark(rounds: int, n_rows: int) -> list[dict[str, Any]]:
    """`Dataset.fit` on a cached DataFrame of columns, against Spark's own trainer on the same rows, cached as vectors."""
    from pyspark.ml.classification import LogisticRegression

    X, y = drawn(n_rows)
    with tempfile.TemporaryDirectory() as folder:
        session, vectors, frame = cached(X, y, Path(folder), usable_cores())
        trainer = LogisticRegression(regParam=STRENGTH, standardization=False, tol=TOL, maxIter=100)

        def theirs() -> tuple[Any, float, int]:
            model = trainer.fit(vectors)
            return model.coefficients.toArray(), model.intercept, model.summary.totalIterations

        def ours() -> tuple[Any, float, int]:
            model = ff.LogisticRegression(reg_param=STRENGTH, standardization=False, tol=TOL)
            ff.scan(frame).fit(model, target="label")
            return model.coef_[0], float(model.intercept_[0]), model.n_iter_

        name = f"Spark local[{usable_cores()}]"
        contestants = [
            Contestant(name, {"": lambda: lap(theirs, X, y)}),
            Contestant(FOURFOLD, {"": lambda: lap(ours, X, y)}),
        ]
        result = race(contestants, rounds)
        session.stop()
    case = f"logistic regression on a cached DataFrame of Spark, {n_rows:,} × {X.shape[1]}"
    return [asdict(against_the_best_peer("FIT", case, result, [name], SPARK_BAR))]
