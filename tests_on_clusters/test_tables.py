"""Tables on real clusters: workers read and write the files themselves, and the answers are those of this machine."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clusters import Cluster
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

import fourfold as ff
from fourfold.errors import InitFailed, UnreadableInput


def prepare() -> Any:
    """A function that travels by value: this module is not on the workers."""
    return lambda batch: batch.assign(y=np.sqrt(batch["x"]) + batch["id"])


@pytest.fixture
def rows(tmp_path: Path) -> ff.Dataset:
    n_rows = 3000
    table = pa.table(
        {"id": range(n_rows), "x": np.random.default_rng(1).random(n_rows), "key": [k % 3 for k in range(n_rows)]}
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=700)
    return ff.scan(tmp_path / "in.parquet")


def test_what_is_computed_and_written_there_is_what_is_here(cluster: Cluster, rows: ff.Dataset, tmp_path: Path) -> None:
    dataset = rows.map_batches(prepare()).filter(lambda batch: batch["x"] > 0.25)
    here = dataset.write(tmp_path / "here", partition_by="key", engine="serial")
    there = dataset.write(tmp_path / "there", partition_by="key", engine=cluster.engine(), workers=2)
    assert [Path(each).read_bytes() for each in here.files] == [Path(each).read_bytes() for each in there.files]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


METHODS: dict[str, Callable[[ff.Dataset, dict[str, Any]], Any]] = {
    "select": lambda rows, there: rows.select(["x", "id"]).to_arrow(**there),
    "filter": lambda rows, there: rows.filter([[("key", "in", [0, 2]), ("id", "<", 2000)], [("x", ">", 0.9)]]).to_arrow(
        **there
    ),
    "map_batches": lambda rows, there: rows.map_batches(prepare(), batch_size=500).to_arrow(**there),
    "transform": lambda rows, there: rows.transform(scaler()).to_arrow(**there),
    "predict": lambda rows, there: rows.predict(tree(), method="predict_proba", keep=["id"]).to_arrow(**there),
    "split": lambda rows, there: [part.to_arrow(**there) for part in rows.split(0.3, seed=1)],
    "fit": lambda rows, there: rows.fit(StandardScaler(), features=["x", "id"], **there).var_.tobytes(),
    "fit_groups": lambda rows, there: models(rows, there),
    "sample": lambda rows, there: rows.sample(0.3, by="key").to_arrow(**there),
    "count": lambda rows, there: rows.filter([("x", "<", 0.5)]).count(**there),
    "describe": lambda rows, there: rows.describe("arrow", **there),
    "head": lambda rows, there: rows.head(3, "arrow"),
    "iter_batches": lambda rows, there: [*rows.iter_batches(700, "arrow", **there)],
    "to_arrow": lambda rows, there: rows.to_arrow(**there),
    "to_pandas": lambda rows, there: rows.to_pandas(**there).to_dict("list"),
    "to_polars": lambda rows, there: rows.to_polars(**there).to_dict(as_series=False),
    "write": lambda rows, there: written(rows, there),
}
"""What `docs/engines.md` says that datasets do on every engine."""


def models(rows: ff.Dataset, there: dict[str, Any]) -> dict[Any, bytes]:
    """The coefficients of one model per key; rows wait in a folder that all workers see."""
    with tempfile.TemporaryDirectory() as folder:
        found = rows.fit_groups(LinearRegression(), "key", "x", ["id"], folder=folder, **there)
        return {key: found[key].coef_.tobytes() for key in found}


def scaler() -> Any:
    return StandardScaler().fit(pd.DataFrame({"x": [0.0, 0.5, 1.0]}))


def tree() -> Any:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(random_state=0).fit(pd.DataFrame({"x": [0.1, 0.4, 0.6, 0.9]}), [0, 1, 0, 1])


def written(rows: ff.Dataset, there: dict[str, Any]) -> Any:
    """What others read of an output whose small files were put together, and how many there are."""
    with tempfile.TemporaryDirectory() as folder:
        found = rows.write(f"{folder}/out", partition_by="key", order=False, **there)
        return len(found.files), pq.read_table(f"{folder}/out").sort_by("id")


@pytest.mark.slow
@pytest.mark.of_any_kind
def test_each_method_of_a_dataset_gives_there_what_it_gives_here(cluster: Cluster, rows: ff.Dataset) -> None:
    assert {*METHODS} == {name for name, each in vars(ff.Dataset).items() if not name.startswith("_") and callable(each)}
    there = {"engine": cluster.engine(), "workers": 2}
    for name, method in METHODS.items():
        assert method(rows, there) == method(rows, {"engine": "serial"}), name


@pytest.mark.of_any_kind
def test_figures_of_columns_and_a_split_have_the_same_bits(cluster: Cluster, rows: ff.Dataset) -> None:
    train, _ = rows.split(0.3, seed=4)
    one, other = (train.describe(engine=engine) for engine in ("serial", cluster.engine()))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.mark.of_any_kind
def test_rows_that_fail_or_kill_are_found_there_too(cluster: Cluster, rows: ff.Dataset) -> None:
    def check(batch: pd.DataFrame) -> pd.DataFrame:
        if (batch["id"] == 1234).any():
            os._exit(9)
        if (batch["id"] == 55).any():
            raise ValueError("not this one")
        return batch

    found = rows.map_batches(check).to_arrow(engine=cluster.engine(), on_error="skip")
    assert found.column("id").to_pylist() == [row for row in range(3000) if row not in (55, 1234)]


def test_a_file_that_workers_do_not_see_is_one_error_that_names_it(cluster: Cluster, rows: ff.Dataset, tmp_path: Path) -> None:
    os.rename(tmp_path / "in.parquet", tmp_path / "gone.parquet")
    with pytest.raises(UnreadableInput, match=r"in\.parquet cannot be read on .*put them where all machines see them"):
        rows.map_batches(prepare()).count(engine=cluster.engine())


@pytest.mark.of_any_kind
def test_a_model_that_workers_do_not_see_is_one_error_of_theirs(cluster: Cluster, rows: ff.Dataset, tmp_path: Path) -> None:
    scores = rows.predict(tmp_path / "none.joblib", keep=["id"])
    with pytest.raises(
        InitFailed, match=r"none\.joblib could not be loaded: .* has no such file\. Workers load it themselves"
    ):
        scores.write(tmp_path / "out", engine=cluster.engine())
    assert os.listdir(tmp_path) == ["in.parquet"]


@pytest.mark.slow
@pytest.mark.of_any_kind
def test_a_model_that_was_fitted_anew_into_the_same_file_is_not_the_one_that_workers_have(
    cluster: Cluster, rows: ff.Dataset, tmp_path: Path
) -> None:
    said = []
    for value in (1.0, 2.0):
        joblib.dump(DummyRegressor(strategy="constant", constant=value).fit([[0.0]], [0.0]), tmp_path / "new.joblib")
        os.replace(tmp_path / "new.joblib", tmp_path / "m.joblib")  # else the arrays that are mapped change with it
        found = (
            rows.select(["id", "x"]).predict(tmp_path / "m.joblib", keep=["id"]).to_pandas(engine=cluster.engine(), workers=2)
        )
        said.append([*found["prediction"].unique()])
    assert said == [[1.0], [2.0]]
