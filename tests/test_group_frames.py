"""`fit_groups` of frames: partitions in this process in the place of a cluster's, and the models of the same rows of a dataset."""

import datetime
import os
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from groups import FEATURES, Deadly, Mean, loop, one_thread, rows_of  # noqa: F401
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from test_fit_frames import Here, parted

import fourfold as ff
from fourfold.data.frames import FrameFold
from fourfold.errors import OptionError
from fourfold.workloads.frame import Frame
from fourfold.workloads.groups import merge, spill

GIVEN: dict[str, Any] = {"by": "shop", "target": "y", "features": FEATURES}


class Local(Here):
    """Partitions in this process, and an engine for the calls."""

    def engine(self, frame: Any) -> Any:
        return "serial"


def framed(rows: pd.DataFrame, n_parts: int = 5) -> Frame:
    return Frame(Local(), parted(n_parts, rows))


@pytest.fixture
def folders() -> Iterator[list[str]]:
    """What is left of rows in the folder for temporary files, at the end: nothing."""
    yield []
    assert not [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("fourfold-groups-")]


@pytest.mark.parametrize("n_parts", [1, 7])
def test_groups_of_partitions_have_the_models_of_the_loop(n_parts: int, folders: list[str]) -> None:
    rows = rows_of(15, 700)
    kind = Local()
    models = Frame(kind, parted(n_parts, rows)).fit_groups(Ridge(), **GIVEN)
    expected = loop(Ridge(), rows, "shop")
    assert len(models) == len(expected) == 15
    for key, model in expected.items():
        assert models[key].coef_.tobytes() == model.coef_.tobytes()
    assert kind.n_jobs == 1


def test_what_becomes_of_each_group_is_what_becomes_of_it_in_a_dataset() -> None:
    rows = rows_of(12, 400).astype({"shop": "float64"})
    rows.loc[rows.index % 11 == 0, "shop"] = None
    rows.loc[rows.index % 13 == 0, "town"] = None
    rows.loc[rows["shop"] == 3, "a"] = 4.0  # an error
    asked: dict[str, Any] = {**GIVEN, "by": ["shop", "town"], "fallback": "parent", "min_rows": 6}
    here = ff.scan(rows).fit_groups(Deadly(), engine="serial", **asked)
    there = framed(rows).fit_groups(Deadly(), **asked)
    pd.testing.assert_frame_equal(there.summary().drop(columns="seconds"), here.summary().drop(columns="seconds"))
    assert set(there.summary()["status"]) == {"ok", "too_few_rows", "error"}
    new = pd.concat([rows, rows.head(3).assign(shop=99.0)])
    for unknown in ("fallback", "null"):
        assert there.predict(new, unknown).tobytes() == here.predict(new, unknown).tobytes()
    assert len(there.failures) == len(here.failures) > 0
    with pytest.raises(ValueError, match="this group is odd"):
        framed(rows).fit_groups(Deadly(), on_error="raise", **asked)


def test_weights_scores_and_seeds_are_those_of_a_dataset() -> None:
    rows = rows_of(6, 300).assign(w=lambda t: np.arange(len(t)) % 4 + 1.0)
    asked: dict[str, Any] = {**GIVEN, "weight": "w", "score": "r2", "seed": 5}
    forest = RandomForestRegressor(n_estimators=2)
    here = ff.scan(rows).fit_groups(forest, engine="serial", **asked)
    there = framed(rows).fit_groups(forest, **asked)
    assert there.summary()["score"].tolist() == here.summary()["score"].tolist()
    assert there.predict(rows).tobytes() == here.predict(rows).tobytes()
    assert {there[key].random_state for key in there} == {here[key].random_state for key in here}


def test_steps_before_run_where_the_rows_are_and_no_other_columns_travel() -> None:
    rows = rows_of(5, 200)
    seen = []

    def twice(batch: Any) -> Any:
        seen.append([*batch.columns])
        return batch.assign(a=batch["a"] * 2)

    schema = {"shop": "int64", "town": "string", "a": "float64", "b": "float64", "y": "float64"}
    models = framed(rows).map_batches(twice, schema=schema).filter([("shop", "<", 3)]).fit_groups(Ridge(), **GIVEN)
    expected = loop(Ridge(), rows.assign(a=rows["a"] * 2).query("shop < 3"), "shop")
    assert {key: models[key].coef_.tobytes() for key in models} == {
        key: each.coef_.tobytes() for key, each in expected.items()
    }
    kind = Local()
    read = []
    kind.select = lambda frame, columns: read.append([*columns]) or [part.select(columns) for part in frame]  # type: ignore[method-assign,func-returns-value]
    Frame(kind, parted(3, rows)).fit_groups(Mean(), by="shop", target="y", features=["a"])
    assert read == [["shop", "a", "y"]]


@pytest.mark.parametrize("reported", ["first", "last"])
def test_of_two_attempts_at_a_partition_that_come_to_other_orders_one_counts(reported: str) -> None:
    class Twice(Local):
        def gather(self, frame: Any, fold: FrameFold) -> list[bytes]:
            found = []
            for number, part in enumerate(frame):
                backwards = part.take(pa.array(range(part.num_rows - 1, -1, -1), pa.int64()))
                attempts = [
                    fold(number, iter([each])) for each in ((part, backwards) if reported == "first" else (backwards, part))
                ]
                found.append(attempts[0 if reported == "first" else 1])
            return found

    rows = rows_of(20, 600)
    models = Frame(Twice(), parted(4, rows)).fit_groups(Mean(), **GIVEN)
    for key, model in loop(Mean(), rows, "shop").items():
        assert models[key].rows_ == model.rows_


def test_types_that_change_from_batch_to_batch_go_together() -> None:
    class Parts(Local):
        def schema(self, frame: Any) -> Any:
            return frame[0][0].schema

        def select(self, frame: Any, columns: Any) -> Any:
            return [[batch.select(columns) for batch in part] for part in frame]

        def gather(self, frame: Any, fold: FrameFold) -> list[bytes]:
            return [fold(number, iter(part)) for number, part in enumerate(frame)]

    def table(keys: list[str], values: list[Any], prices: list[str]) -> pa.Table:
        return pa.table({"key": keys, "a": values, "price": [Decimal(each) for each in prices], "y": [1.0] * len(keys)})

    first = [table(["k", "l"], [None, None], ["1.5", "2"]), table(["l", "k"], [0.5, 1.5], ["0.125", "3"])]
    second = [table(["k"], [2.5], ["12345.75"])]
    models = Frame(Parts(), [first, second]).fit_groups(Mean(), by="key", target="y", on_error="raise")
    assert np.isnan(models["k"].rows_[0])
    assert models["k"].rows_[1:] == [1.5, 2.5]
    prices = Frame(Parts(), [first, second]).fit_groups(Mean(), by="key", target="y", features=["price"])
    assert prices["k"].rows_ == [Decimal("1.5"), Decimal(3), Decimal("12345.75")]


@pytest.mark.parametrize("key", [datetime.date(2024, 2, 29), True, 2.5, "é", b"\0", Decimal("1.50")])
def test_keys_of_any_kind_find_their_rows_in_all_partitions(key: Any) -> None:
    other = {bool: False}.get(type(key), key * 2 if not isinstance(key, datetime.date) else datetime.date(2024, 3, 1))
    table = pa.table({"key": [key, other, None, key], "a": [0.0, 1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0, 4.0]})
    models = Frame(Local(), [table.slice(at, 1) for at in range(4)]).fit_groups(Mean(), by="key", target="y")
    assert (models[key].rows_, models[other].rows_, models[None].rows_) == ([0.0, 3.0], [1.0], [2.0])


def test_a_frame_without_rows_has_no_groups() -> None:
    models = framed(rows_of(2, 10).head(0)).fit_groups(Mean(), fallback="parent", **GIVEN)
    assert (len(models), len(models.summary())) == (0, 0)
    assert models.predict(rows_of(2, 3)).tolist() == pytest.approx([np.nan] * 3, nan_ok=True)


def test_a_folder_that_machines_do_not_see_is_one_error(tmp_path: Path) -> None:
    class Elsewhere(Local):
        def gather(self, frame: Any, fold: FrameFold) -> list[bytes]:
            (folder,) = tmp_path.iterdir()
            hidden = folder.rename(folder.with_name("hidden"))
            try:
                return super().gather(frame, fold)
            finally:
                hidden.rename(folder)

    with pytest.raises(OptionError, match=r"a worker does not see .*fourfold-groups-.*name a folder that all share"):
        Frame(Elsewhere(), parted(2, rows_of(2, 10))).fit_groups(Mean(), folder=str(tmp_path), **GIVEN)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"engine": "serial"}, "engine= is not for a list of tables: the cluster that has its rows"),
        ({"run": "somewhere"}, "run= is not for a list of tables: .*Write it into files"),
        ({"by": "z"}, "no column 'z'"),
        ({"by": "nobody"}, "by='nobody': its first values are all null"),
        ({"timeout": -1.0}, "timeout"),
    ],
)
def test_what_cannot_be_asked_of_a_frame_is_refused_before_a_job_runs(asked: dict[str, Any], said: str) -> None:
    kind = Local()
    table = pa.Table.from_pandas(rows_of(2, 10)).append_column("nobody", pa.nulls(10))
    with pytest.raises(OptionError, match=said):
        Frame(kind, [table]).fit_groups(Mean(), **{**GIVEN, **asked})
    assert kind.n_jobs == 0


def test_a_row_that_a_step_fails_on_is_shown() -> None:
    def check(batch: Any) -> Any:
        if (batch["shop"] == 3).any():
            raise ValueError("not this one")
        return batch

    frame = framed(rows_of(4, 40)).map_batches(check, schema=framed(rows_of(4, 40)).schema)
    with pytest.raises(ValueError, match="not this one") as raised:
        frame.fit_groups(Mean(), **GIVEN)
    assert "fourfold: the row is {'shop': 3" in raised.value.__notes__[0]


def test_a_partition_may_be_large_and_no_worker_holds_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, write, seen = rows_of(64, 2000), merge._write, []
    kept = pa.Table.from_pandas(rows[["shop", *FEATURES, "y"]], preserve_index=False)
    monkeypatch.setattr(spill, "BUCKET_BYTES", kept.nbytes // 8)
    monkeypatch.setattr(merge, "_write", lambda path, table: seen.append(table.num_rows) or write(path, table))
    models = framed(rows, 1).fit_groups(Mean(), **GIVEN)
    assert sum(seen) == len(rows)
    assert max(seen) < len(rows) / 2
    for key, model in loop(Mean(), rows, "shop").items():
        assert models[key].rows_ == model.rows_
