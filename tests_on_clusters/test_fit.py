"""An estimator is fitted on a cluster: to files that its workers read, and to frames that live there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clusters import Cluster
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import MinMaxScaler
from test_frames import TABLE, native

import fourfold as ff
from fourfold.workloads.fit import on_frames
from fourfold.workloads.fit.contract import About, Fit, Pass, Rows
from fourfold.workloads.fit.kept import Kept
from fourfold.workloads.fit.seen import Numbers

N_ROWS = 3000


class Power:
    """Sums of powers, one pass for each, over rows that are kept."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> None:
        raise NotImplementedError


def sum_of() -> Any:
    """A class that travels by value: this module is not on the workers."""

    class Sum:
        def __init__(self, power: int) -> None:
            self.power = power

        def fold(self, rows: Rows) -> Any:
            powers = rows.X**self.power if rows.weight is None else rows.X**self.power * rows.weight[:, None]
            return powers.sum(axis=0), rows.n_rows, rows.first

        def combine(self, left: Any, right: Any) -> Any:
            assert left[2] is None or right[2] == left[2] + left[1]
            return left[0] + right[0], left[1] + right[1], left[2]

        def finish(self, state: Any) -> Any:
            return state[0]

    return Sum


@ff.recipe(Power)
def fit_power(estimator: Power, about: About) -> Fit:
    numbers, kind, found = Numbers(takes_nan=False), sum_of(), []
    for power in range(1, 5):
        found.append((yield Pass(kind(power), (numbers,), keep=True)))
    estimator.sums_ = np.concatenate(found)
    return estimator


@pytest.fixture
def rows(tmp_path: Path) -> ff.Dataset:
    draw = np.random.default_rng(1)
    table = pa.table({"a": draw.normal(1e8, 1, N_ROWS), "b": draw.random(N_ROWS), "w": draw.random(N_ROWS)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=300)
    return ff.scan(tmp_path / "in.parquet")


@pytest.mark.of_any_kind
def test_what_is_fitted_there_has_the_bits_of_what_is_fitted_here(cluster: Cluster, rows: ff.Dataset) -> None:
    engine = cluster.engine()
    here, there = (rows.fit(MinMaxScaler(), **options) for options in ({"engine": "serial"}, {"engine": engine, "workers": 2}))
    assert there.scale_.tobytes() == here.scale_.tobytes()
    here, there = (
        rows.fit(Power(), weight="w", **options) for options in ({"engine": "serial"}, {"engine": engine, "workers": 2})
    )
    assert there.sums_.tobytes() == here.sums_.tobytes()


@contextlib.contextmanager
def at_work(cluster: Cluster) -> Iterator[None]:
    """A frame of Dask runs on the client that is the current one."""
    if cluster.kind != "dask":
        yield
        return
    engine = cluster.engine()
    engine.open()
    with engine.connection.client.as_current():
        yield


def test_a_frame_is_fitted_to_where_it_lives(cluster: Cluster) -> None:
    before = native(cluster)
    table = TABLE[["id", "x"]]
    with at_work(cluster):
        schema = {"id": "int64", "x": "float64", "y": "int64"}
        frame = ff.scan(before, columns=["id", "x"]).map_batches(lambda batch: batch.assign(y=os.getpid()), schema=schema)
        prep = ColumnTransformer([("scale", MinMaxScaler(), ["x"]), ("pass", "passthrough", ["id"])])
        found = frame.fit(prep, features=["id", "x"])
        np.testing.assert_allclose(found.transform(table), prep.fit(table).transform(table), rtol=1e-12)
        pids = frame.fit(MinMaxScaler(), features=["y"])
        assert pids.n_samples_seen_ == 400
        assert os.getpid() not in (pids.data_min_[0], pids.data_max_[0])


def in_order(cluster: Cluster) -> Any:
    """A frame whose partitions have the same rows in the same order each time: those of a shuffle come as they come."""
    frame = native(cluster)
    if cluster.kind == "spark":
        frame = frame.cache()
        frame.count()
    return frame


def test_rows_of_a_frame_that_are_wanted_again_are_kept_where_they_were_made(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.urandom(16).hex()
    monkeypatch.setattr(on_frames, "name_in", lambda run: name)

    def note(batch: Any) -> Any:
        with open(tmp_path / "calls", "a") as file:
            file.write(".")
        return batch

    before = in_order(cluster)
    with at_work(cluster):
        frame = ff.scan(before, columns=["x", "id"]).map_batches(note, schema={"x": "float64", "id": "int64"})
        frame.fit(MinMaxScaler())
        once = (tmp_path / "calls").stat().st_size
        one = frame.fit(Power())
        calls = (tmp_path / "calls").stat().st_size - once
        if not cluster.speculates:  # else what takes long runs twice
            assert calls == once, "four passes, of which the first one alone runs the steps"
        assert calls < 3 * once
        other = ff.scan(before).fit(Power(), features=["x", "id"])
    expected = np.concatenate([(TABLE[["x", "id"]].to_numpy() ** power).sum(axis=0) for power in range(1, 5)])
    np.testing.assert_allclose(one.sums_, expected, rtol=1e-10)
    assert one.sums_.tobytes() == other.sums_.tobytes()
    assert not os.path.exists(Kept(name).folder)


class Deadly:
    """As Power, and the third of its passes kills the process that comes to it first."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def fit(self, X: Any) -> None:
        raise NotImplementedError


@ff.recipe(Deadly)
def fit_deadly(estimator: Deadly, about: About) -> Fit:
    numbers, found, sum_ = Numbers(takes_nan=False), [], sum_of()

    class Kill(sum_):  # type: ignore[misc, valid-type]
        def __init__(self, power: int, marker: str) -> None:
            super().__init__(power)
            self.marker = marker

        def fold(self, rows: Rows) -> Any:
            import os
            import signal

            if self.marker:
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().fold(rows)

    for power in range(1, 5):
        found.append((yield Pass(Kill(power, estimator.marker if power == 3 else ""), (numbers,), keep=True)))
    estimator.sums_ = np.concatenate(found)
    return estimator


def test_a_process_that_is_killed_in_a_pass_over_a_frame_changes_no_bit(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.kind != "spark" or cluster.is_connect:
        pytest.skip("tasks that stay from pass to pass are for Spark Classic, and jobs go on where one is lost")
    frame = ff.scan(in_order(cluster)).select(["x", "id"])
    marker = tmp_path / "killed"
    fitted = frame.fit(Deadly(str(marker)))
    assert marker.exists()
    assert fitted.sums_.tobytes() == frame.fit(Deadly("")).sums_.tobytes() == frame.fit(Power()).sums_.tobytes()


def test_a_row_of_a_frame_that_is_refused_is_shown(cluster: Cluster) -> None:
    def lack(batch: Any) -> Any:
        return batch.assign(z=batch["x"].where(batch["id"] != 333))

    schema = {"id": "int64", "x": "float64", "z": "float64"}
    frame = ff.scan(native(cluster), columns=["id", "x"]).map_batches(lack, schema=schema)
    with at_work(cluster), pytest.raises(Exception, match=r"the target 'z' is missing or NaN") as caught:
        frame.fit(Power(), target="z")
    told = "".join(getattr(caught.value, "__notes__", [str(caught.value)]))  # Ray and Spark tell the traceback as text
    assert "fourfold: the row is {'id': 333" in told


def test_figures_of_a_frame_are_those_of_the_same_rows_here(cluster: Cluster) -> None:
    before = native(cluster)
    with at_work(cluster):
        found = ff.scan(before).select(["id", "x", "word"]).describe().set_index("column")
    here = ff.scan(TABLE).describe().set_index("column")
    exact = ["rows", "nulls", "min", "max", "distinct", "50%"]
    pd.testing.assert_frame_equal(found[exact], here[exact], check_exact=True)
    pd.testing.assert_frame_equal(found[["mean", "std"]], here[["mean", "std"]], rtol=1e-12)


TWO_ROWS = pd.DataFrame({"a": [0.0, 2.0], "b": [1.1, 1.0], "c": [0.1, -1.0], "label": [1.0, 0.0]})
COEF, INTERCEPT = [-1.2274184001573272, 24.548368003146543, 2.2316698184678674], -23.544116584836004
"""The closed form of the optimum of Spark's objective at a penalty of 0.01."""


@pytest.mark.of_any_kind
def test_the_example_of_two_rows_has_the_numbers_of_the_formula_there(cluster: Cluster) -> None:
    model = ff.LogisticRegression(reg_param=0.01, max_iter=100, tol=1e-12)
    ff.scan(TWO_ROWS).fit(model, target="label", engine=cluster.engine(), workers=2)
    np.testing.assert_allclose([*model.coef_[0], *model.intercept_], [*COEF, INTERCEPT], rtol=1e-9)


def test_the_example_of_two_rows_is_what_spark_itself_fits(cluster: Cluster) -> None:
    if cluster.kind != "spark" or cluster.is_connect:
        pytest.skip("Spark's own trainer is on Spark, and gives the same over Connect")
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import VectorAssembler

    frame = native(cluster, TWO_ROWS)
    vectors = VectorAssembler(inputCols=["a", "b", "c"], outputCol="features").transform(frame)
    theirs = LogisticRegression(regParam=0.01, maxIter=10).fit(vectors)
    ours = ff.scan(frame).fit(ff.LogisticRegression(reg_param=0.01, max_iter=10), target="label")
    np.testing.assert_allclose(ours.coef_[0], theirs.coefficients.toArray(), rtol=1e-6)
    np.testing.assert_allclose(ours.intercept_[0], theirs.intercept, rtol=1e-6)
    assert ours.n_iter_ == theirs.summary.totalIterations == 9
