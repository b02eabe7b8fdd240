"""Frames that live in a cluster: steps run where the rows are, and a frame of the same kind comes back."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clusters import Cluster

import fourfold as ff
from fourfold.errors import OptionError

TABLE = pd.DataFrame({"id": range(400), "x": np.random.default_rng(2).random(400), "word": [f"w{k % 5}" for k in range(400)]})


def native(cluster: Cluster, table: pd.DataFrame = TABLE) -> Any:
    """The table as a frame of the cluster, in several parts."""
    cluster.engine().open()
    if cluster.kind == "dask":
        import dask.dataframe as dd

        return dd.from_pandas(table, npartitions=4)
    if cluster.kind == "ray":
        import ray

        return ray.data.from_pandas(table).repartition(4)
    from pyspark.sql import SparkSession

    return SparkSession.getActiveSession().createDataFrame(table).repartition(4)


def brought(cluster: Cluster, frame: Any) -> pd.DataFrame:
    """All rows of a frame of the cluster, by its own means."""
    if cluster.kind == "dask":
        engine = cluster.engine()
        engine.open()
        with engine.connection.client.as_current():
            found = frame.compute()
    else:
        found = frame.to_pandas() if cluster.kind == "ray" else frame.toPandas()
    return found.sort_values("id").reset_index(drop=True)


def test_steps_run_there_and_the_same_kind_of_frame_comes_back(cluster: Cluster) -> None:
    def prepare(batch: pd.DataFrame) -> pd.DataFrame:
        return batch.assign(y=np.sqrt(batch["x"]), pid=os.getpid())

    before = native(cluster)
    frame = ff.scan(before, columns=["id", "x"]).map_batches(prepare).filter(lambda batch: batch["x"] > 0.5)
    assert frame.columns == ["id", "x", "y", "pid"]
    assert type(frame.native) is type(before)
    found = brought(cluster, frame.native)
    expected = TABLE[TABLE["x"] > 0.5]
    assert found["id"].tolist() == expected["id"].tolist()
    assert found["y"].tolist() == np.sqrt(expected["x"]).tolist()
    assert os.getpid() not in set(found["pid"])


def test_transformers_models_and_splits_give_what_they_give_here(cluster: Cluster) -> None:
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    scaler = StandardScaler().fit(TABLE[["x"]])
    scaled = pd.DataFrame(scaler.transform(TABLE[["x"]]), columns=["x"])
    model = DecisionTreeClassifier(random_state=0).fit(scaled, TABLE["word"])
    here = ff.scan(TABLE).transform(scaler).predict(model, keep=["id"])
    there = ff.scan(native(cluster)).transform(scaler).predict(model, keep=["id"])
    expected = here.to_pandas()
    assert brought(cluster, there.native)["prediction"].tolist() == expected["prediction"].tolist()
    parts = ff.scan(native(cluster)).split(0.3, seed=2, by="word")
    ids = [brought(cluster, part.native)["id"].tolist() for part in parts]
    assert ids == [part.to_pandas()["id"].tolist() for part in ff.scan(TABLE).split(0.3, seed=2, by="word")]


def test_a_class_is_built_once_by_each_thread_of_a_worker_however_often_the_steps_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    class Noted:
        def __init__(self, path: str) -> None:
            with open(path, "a") as file:
                file.write(f"{os.getpid()} {threading.get_ident()}\n")

        def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
            return batch

    schema = {"id": "int64", "x": "float64", "word": "string"}
    before = native(cluster)
    for _ in range(2):
        frame = ff.scan(before).map_batches(Noted, init=(str(tmp_path / "built"),), schema=schema)
        assert len(brought(cluster, frame.native)) == len(TABLE)
    built = (tmp_path / "built").read_text().splitlines()
    assert 0 < len(built) == len(set(built))


def test_what_cannot_be_done_is_said_before_a_job_runs(cluster: Cluster) -> None:
    frame = ff.scan(native(cluster))
    with pytest.raises(OptionError, match="have no numbers"):
        frame.split(0.5)
    with pytest.raises(OptionError, match="no column 'none'"):
        frame.select(["none"])
    with pytest.raises(OptionError, match="are for files"):
        ff.scan(native(cluster), format="csv")


def test_a_row_that_fails_is_shown_in_the_clusters_own_error(cluster: Cluster) -> None:
    def check(batch: pd.DataFrame) -> pd.DataFrame:
        if (batch["id"] == 333).any():
            raise ValueError("not this one")
        return batch

    frame = ff.scan(native(cluster)).map_batches(check, schema={"id": "int64", "x": "float64", "word": "string"})
    with pytest.raises(Exception, match=r"not this one") as caught:
        brought(cluster, frame.native)
    told = "".join(getattr(caught.value, "__notes__", [str(caught.value)]))  # Ray and Spark tell the traceback as text
    assert "fourfold: the row is {'id': 333" in told
