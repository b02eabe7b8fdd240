"""One model per group on a cluster: of files that its workers read, and of frames that live there."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clusters import Cluster
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LinearRegression
from test_fit import at_work
from test_frames import native

import fourfold as ff
from fourfold.errors import OptionError

N_ROWS = 600


def table() -> pd.DataFrame:
    """Rows of shops in towns. Some have no shop, one is alone in its town, one shop cannot be fitted, and one kills."""
    draw = np.random.default_rng(6)
    shop = np.where(draw.random(N_ROWS) < 0.1, None, [f"s{each}" for each in draw.integers(0, 5, N_ROWS)])
    rows = pd.DataFrame({"id": range(N_ROWS), "town": [f"t{each}" for each in draw.integers(0, 3, N_ROWS)], "shop": shop})
    rows = rows.assign(a=draw.normal(size=N_ROWS), b=draw.normal(size=N_ROWS), y=draw.normal(size=N_ROWS), what=0)
    rows.loc[0, ["town", "shop"]] = "alone"
    rows.loc[(rows["town"] == "t0") & (rows["shop"] == "s1"), "what"] = 1
    rows.loc[(rows["town"] == "t1") & (rows["shop"] == "s2"), "what"] = 2
    return rows


TABLE = table()
DEADLY = ("t1", "s2")
COLUMNS: dict[str, Any] = {"by": ["town", "shop"], "target": "y", "features": ["a", "b", "what"]}
ASKED: dict[str, Any] = {**COLUMNS, "min_rows": 2, "seed": 4, "fallback": "parent", "score": "r2"}


def odd(dies: bool) -> Any:
    """A model that travels by value: this module is not on the workers."""

    class Odd(RegressorMixin, BaseEstimator):
        def __init__(self, dies: bool, random_state: Any = None) -> None:
            self.dies, self.random_state = dies, random_state

        def fit(self, X: Any, y: Any) -> "Odd":
            what = set(X["what"])
            if what == {2} and self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if what in ({1}, {2}):
                raise ValueError("this group is odd")
            self.coef_ = LinearRegression().fit(X[["a", "b"]], y).coef_
            return self

        def predict(self, X: Any) -> Any:
            return X[["a", "b"]].to_numpy() @ self.coef_ + self.random_state % 97

    return Odd(dies)


def of_groups(models: ff.GroupModels) -> pd.DataFrame:
    """What became of groups, but for the times."""
    return models.summary().drop(columns=["seconds", "error"])


@pytest.fixture
def here() -> ff.GroupModels:
    return ff.scan(TABLE).fit_groups(odd(dies=False), engine="serial", **ASKED)


@pytest.mark.of_any_kind
def test_groups_of_files_have_there_the_bits_and_statuses_of_here(
    cluster: Cluster, here: ff.GroupModels, tmp_path: Path
) -> None:
    pq.write_table(pa.Table.from_pandas(TABLE), tmp_path / "in.parquet", row_group_size=90)
    files, folder = ff.scan(tmp_path / "in.parquet"), str(tmp_path / "rows")
    there = files.fit_groups(odd(dies=False), engine=cluster.engine(), workers=2, folder=folder, **ASKED)
    pd.testing.assert_frame_equal(of_groups(there), of_groups(here), check_exact=True)
    assert there.summary()["error"].tolist() == here.summary()["error"].tolist()
    assert set(there.summary()["status"]) == {"ok", "too_few_rows", "error"}
    assert None in {shop for _, shop in there}
    new = pd.concat([TABLE, TABLE.head(2).assign(shop="unseen"), TABLE.tail(2).assign(town="unseen")])
    for unknown in ("fallback", "null"):
        assert there.predict(new, unknown).tobytes() == here.predict(new, unknown).tobytes()
    assert os.listdir(folder) == []


def test_groups_of_a_frame_are_fitted_where_it_lives(cluster: Cluster, here: ff.GroupModels, tmp_path: Path) -> None:
    def twice(batch: pd.DataFrame) -> pd.DataFrame:
        return batch.assign(a=batch["a"] * 2)

    frame = ff.scan(native(cluster, TABLE.assign(a=TABLE["a"] / 2)))
    with at_work(cluster):
        frame = frame.map_batches(twice)
        there = frame.fit_groups(odd(dies=True), folder=str(tmp_path), **ASKED)
        with pytest.raises(OptionError, match="workers on other machines must see them: name a folder"):
            frame.fit_groups(odd(dies=True), **ASKED)
    expected = of_groups(here)
    died = (expected["town"] == DEADLY[0]) & (expected["shop"] == DEADLY[1])
    expected.loc[died, "status"] = "crashed"
    pd.testing.assert_frame_equal(of_groups(there), expected, rtol=1e-9)
    assert sorted(failure.kind for failure in there.failures) == ["crashed", "raised"]
    np.testing.assert_allclose(there.predict(TABLE), here.predict(TABLE), rtol=1e-9)
    for level in (0, 1):
        assert there.summary(level)["rows"].tolist() == here.summary(level)["rows"].tolist()
    assert os.listdir(tmp_path) == []
