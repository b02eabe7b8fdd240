"""Tables that a fit will see some other way: they are kept where that is cheap, and no bit depends on it."""

import os
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, StandardScaler
from tables import small_pieces

import fourfold as ff
from fourfold.workloads.fit import kept_tables
from fourfold.workloads.fit.contract import Rows
from fourfold.workloads.fit.kept import Kept
from fourfold.workloads.fit.kept_tables import KeepingTables

__all__ = ["small_pieces"]

N_ROWS = 1000
DRAW = np.random.default_rng(3)
TABLE = pd.DataFrame(
    {
        "a": np.where(DRAW.random(N_ROWS) < 0.1, np.nan, DRAW.normal(1e8, 1, N_ROWS)),
        "b": DRAW.integers(0, 9, N_ROWS),
        "word": DRAW.choice(["x", "y", "z"], N_ROWS),
        "y": DRAW.choice(["late", "in time"], N_ROWS),
    }
)
ARROW = pa.table({"a": [1.5, None], "s": ["one", None]})


@pytest.fixture
def kept(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = Kept("one")
    found.open()
    yield found
    found.forget()


def passed(kept: Kept, *tables: Any, n_pieces: int = 1) -> bool:
    """Whether tables are kept that have all come by."""
    new = kept.new_tables(3, n_pieces)
    assert new is not None
    assert [*map(id, new.passing(iter(tables)))] == [*map(id, tables)]
    return new.finish()


def test_each_table_comes_back_as_one_that_equals_it(kept: Kept) -> None:
    chunked = pa.concat_tables([ARROW, ARROW]).replace_schema_metadata({"some": "words"})
    assert passed(kept, chunked, chunked.slice(1, 2), chunked.slice(0, 0))
    first, second = kept.find_tables(3) or ()
    assert first.equals(chunked)
    assert first.schema.metadata == {b"some": b"words"}
    assert second.equals(chunked.slice(1, 2))
    assert os.listdir(kept.folder) == ["3"]


@pytest.mark.parametrize(
    "tables",
    [
        [ARROW, pa.table({"a": [1, 2], "s": ["one", None]})],
        [ARROW, ARROW.append_column("d", pa.array(["one", "two"]).dictionary_encode())],
        [pa.table({"d": pa.array(["one", "two"]).dictionary_encode()})],
        [pa.table({"t": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((2, 3)))})],
        [],
    ],
    ids=["other types", "other columns", "a dictionary", "a type of its own", "no rows"],
)
def test_tables_that_may_come_back_otherwise_are_given_up_and_leave_nothing(kept: Kept, tables: list[Any]) -> None:
    assert not passed(kept, *tables)
    assert kept.find_tables(3) is None
    assert not os.listdir(kept.folder)


def test_pieces_share_the_room_and_one_that_takes_more_is_given_up(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_tables, "MOST_BYTES", 4 * ARROW.nbytes)
    assert passed(kept, ARROW, ARROW, n_pieces=2)
    assert not passed(kept, ARROW, ARROW, ARROW, n_pieces=2)
    monkeypatch.setattr(kept_tables, "SHARE_OF_ROOM", 0.0)
    assert not passed(kept, ARROW)


def test_a_full_disk_ends_the_keeping_and_not_the_fit(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, schema: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_file", full)
    assert not passed(kept, ARROW)
    assert not os.listdir(kept.folder)


def test_only_the_machine_of_the_driver_keeps_tables(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert kept.new_tables(3, 1) is None


def test_what_a_view_shares_with_its_base_is_read_only_as_far_as_it_is_wanted(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept.new(3, 0)
    assert base is not None
    texts = Rows(np.ones((2, 2)), np.array(["a", "b"], object))
    base.add(texts)
    base.finish()
    coded = kept.new(3, 1, base=0)
    assert coded is not None
    [before] = kept.find(3, 0, 0) or ()
    coded.add(before._replace(y=np.array([0.0, 1.0])), before)
    coded.finish()
    monkeypatch.setattr("pickle.loads", lambda data: pytest.fail("texts that nobody wants are unpickled"))
    [rows] = kept.find(3, 1, 7) or ()
    assert (rows.first, rows.y.tolist(), rows.X.tolist()) == (7, [0.0, 1.0], [[1.0, 1.0]] * 2)


def whole() -> Pipeline:
    """A pipeline that looks at all rows in four ways, at some of them more than once."""
    cut = KBinsDiscretizer(4, subsample=None, quantile_method="averaged_inverted_cdf")
    numbers = Pipeline([("fill in", SimpleImputer()), ("scale", StandardScaler()), ("cut", cut)])
    columns = ColumnTransformer([("numbers", numbers, ["a", "b"]), ("names", OneHotEncoder(), ["word"])])
    return Pipeline([("columns", columns), ("chance", LogisticRegression())])


def bits(fitted: Pipeline) -> list[bytes]:
    """All that it has learned of numbers."""
    _, scale, cut = (step for _, step in fitted[0].named_transformers_["numbers"].steps)
    return [scale.mean_.tobytes(), scale.var_.tobytes(), *map(bytes, cut.bin_edges_), fitted[-1].coef_.tobytes()]


@pytest.mark.parametrize("n_kept", [0, 3, 5], ids=["none", "too few to ask for them", "most"])
def test_whether_tables_are_kept_changes_no_bit(small_pieces: Any, monkeypatch: pytest.MonkeyPatch, n_kept: int) -> None:
    small_pieces(150, 1 << 20)
    calls: list[int] = []
    rows = ff.scan(TABLE).map_batches(lambda batch: calls.append(len(batch)) or batch, schema=ff.scan(TABLE).schema)
    expected = bits(rows.fit(whole(), target="y", engine="serial"))
    assert calls == [150] * 6 + [100], "all passes but the first find the tables"
    calls.clear()
    room = KeepingTables.__init__

    def of_some(self: KeepingTables, folder: str, name: str, n_pieces: int) -> None:
        room(self, folder, name, n_pieces if int(name) < n_kept else 1 << 60)

    monkeypatch.setattr(KeepingTables, "__init__", of_some)
    assert bits(rows.fit(whole(), target="y", engine="serial")) == expected
    n_read = {0: 4 * N_ROWS, 3: 4 * N_ROWS, 5: N_ROWS + 3 * 250}[n_kept]
    assert sum(calls) == n_read


@pytest.mark.parametrize("engine", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_workers_find_the_tables_of_each_other(small_pieces: Any, engine: str) -> None:
    small_pieces(150, 1 << 20)
    expected = bits(ff.scan(TABLE).fit(whole(), target="y", engine="serial"))
    assert bits(ff.scan(TABLE).fit(whole(), target="y", engine=engine, workers=2)) == expected


def test_a_fit_of_one_pass_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "open", lambda self: pytest.fail("it is kept"))
    ff.scan(TABLE[["a", "b"]]).fit(StandardScaler(), engine="serial")
