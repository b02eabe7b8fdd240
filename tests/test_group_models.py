"""`GroupModels`: predictions by the right model, and models on disk."""

import contextlib
import json
import os
import pickle
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from groups import FEATURES, Mean, TwoClasses, one_thread, rows_of  # noqa: F401
from running import started
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import GaussianNB
from tables import small_pieces  # noqa: F401

import fourfold as ff
import fourfold.workloads.groups.stored as stored
from fourfold.errors import OptionError, UnreadableInput
from fourfold.workloads.groups.levels import Level
from fourfold.workloads.groups.pickled import Pickled

pytestmark = pytest.mark.usefixtures("workers_of_tables")

Cut = Callable[[int, int], None]

ROWS = rows_of(12, 600)
GIVEN: dict[str, Any] = {"target": "y", "features": FEATURES, "engine": "serial"}


@pytest.fixture(scope="module")
def models() -> ff.GroupModels:
    return ff.scan(ROWS).fit_groups(Ridge(), by="shop", **GIVEN)


def expected(models: ff.GroupModels, rows: pd.DataFrame) -> Any:
    values = np.empty(len(rows))
    for key in rows.shop.unique():
        of_key = (rows.shop == key).to_numpy()
        values[of_key] = models[key].predict(rows.loc[of_key, FEATURES])
    return values


@pytest.mark.parametrize("kind", ["pandas", "arrow", "polars", "dict"])
def test_rows_of_any_table_get_what_the_model_of_their_group_says_in_their_order(models: ff.GroupModels, kind: str) -> None:
    table = {"pandas": ROWS, "arrow": pa.Table.from_pandas(ROWS), "polars": pl.DataFrame(ROWS), "dict": ROWS.to_dict("list")}
    assert models.predict(table[kind]).tobytes() == expected(models, ROWS).tobytes()


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_dataset_gets_a_column_more(models: ff.GroupModels, engine: str) -> None:
    new = rows_of(14, 300, seed=1)
    found = models.predict(ff.scan(new)).to_pandas(engine=engine)
    assert found.drop(columns="prediction").equals(new)
    known = new.shop < 12
    np.testing.assert_allclose(found.prediction[known], expected(models, new[known]), rtol=1e-12)  # batches have other rows
    assert found.prediction[~known].isna().all()


@pytest.mark.parametrize(
    ("said", "expected"),
    [("yes", ["yes", None, "yes"]), (3, [3.0, None, 3.0]), ([1.0, 2.0], [[1.0, 2.0], None, [1.0, 2.0]])],
)
def test_a_batch_of_unknown_groups_alone_goes_together_with_others(
    said: Any,
    expected: list[Any],
    small_pieces: Cut,  # noqa: F811
) -> None:
    class Says(Mean):
        def predict(self, X: Any) -> Any:
            return np.array([said] * len(X))

    small_pieces(50, 1 << 30)
    models = ff.scan(ROWS).fit_groups(Says(), by="shop", **GIVEN)
    new = pd.DataFrame({"shop": [*models][:1] * 50 + [-1] * 50 + [*models][:1] * 50, "a": 0.0, "b": 0.0})
    table = models.predict(ff.scan(new)).to_arrow(engine="serial")
    assert table.column("prediction").to_pylist()[::50] == expected


def test_rows_of_unknown_groups_are_null_or_an_error(models: ff.GroupModels) -> None:
    new = ROWS.head(3).assign(shop=[1, 99, 2])
    for word in ("null", "fallback"):
        assert np.isnan(models.predict(new, unknown=word)).tolist() == [False, True, False]
    with pytest.raises(KeyError, match="there was no group 99"):
        models.predict(new, unknown="raise")
    with pytest.raises(OptionError, match="unknown='mean' is not known"):
        models.predict(new, unknown="mean")
    with pytest.raises(OptionError, match="there is no column 'b'"):
        models.predict(new.drop(columns="b"))


def test_parent_is_the_model_of_a_key_without_its_last_column_down_to_all_rows() -> None:
    keys = ["town", "shop"]
    lonely = pd.DataFrame({"town": ["town 1", "far"], "shop": [500, 501], "a": 0.0, "b": 0.0, "y": 0.0})
    rows = pd.concat([ROWS, lonely])
    models = ff.scan(rows).fit_groups(Mean(), by=keys, fallback="parent", min_rows=2, **GIVEN)
    new = pd.DataFrame({"town": ["town 1", "town 1", "far", "nowhere", None], "shop": [1, 500, 501, 1, 2], "a": 0.0, "b": 0.0})
    of_town = rows[rows.town == "town 1"].y
    said = models.predict(new)
    assert said[0] == models["town 1", 1].mean_ == np.average(rows[(rows.town == "town 1") & (rows.shop == 1)].y)
    assert said[1] == np.average(of_town)
    assert said[2:].tolist() == [np.average(rows.y)] * 3
    assert models.summary(level=1).town.tolist() == ["far", *sorted(ROWS.town.unique())]
    assert models.summary(level=1).status.tolist() == ["too_few_rows", *["ok"] * 7]
    assert models.summary(level=0).rows.tolist() == [602]
    assert np.isnan(models.predict(new, unknown="null")).tolist() == [False, True, True, True, True]
    with pytest.raises(KeyError, match="too_few_rows"):
        models.predict(new[1:2], unknown="raise")


def test_global_is_the_model_of_all_rows_in_their_order() -> None:
    models = ff.scan(ROWS).fit_groups(Mean(), by=["town", "shop"], fallback="global", **GIVEN)
    new = ROWS.head(2).assign(town="town 1", shop=77)
    assert models.predict(new).tolist() == [np.average(ROWS.y)] * 2
    assert models._model((0, 0)).rows_ == ROWS.a.tolist()
    with pytest.raises(OptionError, match="level=1: there are models of 0, 2 key columns"):
        models.summary(level=1)


def test_what_models_say_may_be_texts_integers_or_rows_of_numbers() -> None:
    table = pd.DataFrame({"key": [1, 1, 1, 2, 2, 2], "x": 0.0, "y": ["a", "a", "b", "c", "dd", "dd"]})
    texts = ff.scan(table).fit_groups(TwoClasses(), by="key", target="y", engine="serial")
    assert texts.predict(table).tolist() == ["a"] * 3 + ["dd"] * 3
    assert texts.predict(table.assign(key=[1, 3, 2, 2, 2, 2])).tolist() == ["a", None, *["dd"] * 4]
    counts = ff.scan(table.assign(y=[0, 0, 1, 5, 6, 6])).fit_groups(TwoClasses(), by="key", target="y", engine="serial")
    assert counts.predict(table).tolist() == [0, 0, 0, 6, 6, 6]
    assert counts.predict(table).dtype == np.int64

    class Twice(Mean):
        def predict(self, X: Any) -> Any:
            return np.full((len(X), 2), self.mean_)

    pairs = ff.scan(ROWS).fit_groups(Twice(), by="shop", **GIVEN)
    assert pairs.predict(ROWS.head(2).assign(shop=[3, 99]))[0].tolist() == [pairs[3].mean_] * 2


# ---- chances -----------------------------------------------------------------------------------------------------------

LABELS = {
    0: ["late", "early", "early"],
    1: ["early", "lost", "lost"],
    2: ["late", "late", "late"],
    3: ["lost", "early", "late"],
}
CLASSED = pd.DataFrame(
    {
        "line": [line for line in LABELS for _ in range(6)],
        "x": np.random.default_rng(3).normal(size=24),
        "y": [label for labels in LABELS.values() for label in labels * 2],
    }
)


@pytest.fixture(scope="module")
def classifiers() -> ff.GroupModels:
    return ff.scan(CLASSED).fit_groups(GaussianNB(), by="line", target="y", min_rows=3, engine="serial")


def test_chances_are_those_of_the_model_of_a_group_and_0_for_classes_that_it_has_not_seen(classifiers: ff.GroupModels) -> None:
    assert classifiers.classes_.tolist() == ["early", "late", "lost"]
    said = classifiers.predict_proba(CLASSED)
    assert said.shape == (24, 3)
    for line in LABELS:
        own, model = said[CLASSED.line == line], classifiers[line]
        expected = pd.DataFrame(model.predict_proba(CLASSED[CLASSED.line == line][["x"]]), columns=model.classes_)
        assert own.tolist() == expected.reindex(columns=["early", "late", "lost"], fill_value=0.0).to_numpy().tolist()


def test_rows_without_a_model_have_no_chances_and_a_dataset_gets_a_column_for_each_class(
    classifiers: ff.GroupModels,
    small_pieces: Cut,  # noqa: F811
) -> None:
    small_pieces(2, 1 << 30)
    new = CLASSED.iloc[[0, 0, 7, 7]].assign(line=[0, 1, 99, 98])
    said = classifiers.predict_proba(new, "null")
    assert np.isnan(said).all(axis=1).tolist() == [False, False, True, True]
    assert classifiers.predict_proba(new[2:]).shape == (2, 3)
    assert classifiers.predict_proba(new[:0]).shape == (0, 3)
    with pytest.raises(KeyError, match="there was no group 99"):
        classifiers.predict_proba(new, "raise")
    found = classifiers.predict_proba(ff.scan(new)).to_pandas(engine="serial")
    assert found.columns.tolist() == [*new.columns, "proba_early", "proba_late", "proba_lost"]
    np.testing.assert_array_equal(found.iloc[:, 3:].to_numpy(), said)


def test_chances_of_a_group_without_a_model_are_those_of_what_it_falls_back_on() -> None:
    lonely = pd.DataFrame({"line": [9], "x": [0.5], "y": ["unheard of"]})
    models = ff.scan(pd.concat([CLASSED, lonely])).fit_groups(
        GaussianNB(), by="line", target="y", min_rows=2, fallback="global", engine="serial"
    )
    assert models.classes_.tolist() == ["early", "late", "lost", "unheard of"]
    assert models.predict_proba(lonely).tolist() == models._model((0, 0)).predict_proba(lonely[["x"]]).tolist()
    assert models.predict_proba(CLASSED)[:, 3].tolist() == [0.0] * 24


def test_chances_come_back_from_disk(classifiers: ff.GroupModels, tmp_path: Path) -> None:
    classifiers.save(tmp_path / "models")
    back = ff.GroupModels.load(tmp_path / "models")
    assert back.classes_.tolist() == classifiers.classes_.tolist()
    assert back.predict_proba(CLASSED).tobytes() == classifiers.predict_proba(CLASSED).tobytes()


@pytest.mark.parametrize(
    ("classes", "expected", "dtype"),
    [([0, 2, 1], [0, 1, 2], "int64"), ([True, False], [False, True], "bool"), ([b"x", b"y"], [b"x", b"y"], "S1")],
)
def test_classes_keep_their_type(classes: list[Any], expected: list[Any], dtype: str) -> None:
    rows = pd.DataFrame({"key": [1] * 6, "x": np.arange(6.0), "y": (classes * 3)[:6]})
    models = ff.scan(rows).fit_groups(TwoClasses(), by="key", target="y", engine="serial")
    assert (models.classes_.tolist(), models.classes_.dtype) == (expected, dtype)


def test_models_that_know_no_chances_are_refused(models: ff.GroupModels) -> None:
    with pytest.raises(OptionError, match="predict_proba is for classifiers of one target"):
        models.predict_proba(ROWS)
    with pytest.raises(AttributeError, match="these models have no classes"):
        models.classes_  # noqa: B018
    without = ff.scan(CLASSED).fit_groups(TwoClasses(), by="line", target="y", engine="serial")
    with pytest.raises(OptionError, match="TwoClasses has no predict_proba"):
        without.predict_proba(CLASSED)


def test_it_is_a_mapping_of_the_groups_that_have_a_model() -> None:
    models = ff.scan(ROWS.head(40)).fit_groups(Mean(), by="shop", min_rows=4, **GIVEN)
    sizes = ROWS.head(40).groupby("shop").size()
    assert dict(models.items()).keys() == {*sizes.index[sizes >= 4]}
    assert len(models) == (sizes >= 4).sum() < len(sizes) == len(models.summary())
    assert repr(models) == f"GroupModels({len(models)} models of {len(sizes)} groups by shop)"
    assert models.get("nowhere") is None
    assert "nowhere" not in models
    assert ("nowhere", 1) not in models
    assert models[int(sizes.idxmax())] is models[sizes.idxmax()]


def test_a_model_that_another_thread_drops_meanwhile_is_had_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ff.scan(ROWS).fit_groups(Mean(), by="shop", **GIVEN)
    one, other = [*models][:2]
    name = "fourfold.workloads.groups.models.KEPT_MODELS"

    class Overtaken(int):
        def __lt__(self, n_loaded: int) -> bool:
            monkeypatch.setattr(name, 1)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(lambda: models[other]).result()
            return n_loaded > 1

    monkeypatch.setattr(name, Overtaken(1))
    assert models[one].mean_ == ROWS[ROWS.shop == one].y.mean()


def test_a_column_of_keys_may_have_the_name_of_a_fact() -> None:
    models = ff.scan(ROWS.rename(columns={"shop": "status"})).fit_groups(Mean(), by="status", **GIVEN)
    assert models.summary().columns.tolist() == ["status", "rows", "status_of_fit", "seconds", "score", "error"]


# ---- on disk -----------------------------------------------------------------------------------------------------------


def test_models_come_back_from_few_files_and_are_read_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ROWS.assign(town=ROWS.town.where(ROWS.shop != 3))
    models = ff.scan(rows).fit_groups(Ridge(), by=["town", "shop"], fallback="parent", min_rows=45, **GIVEN)
    monkeypatch.setattr(stored, "FILE_BYTES", 3000)
    models.save(tmp_path / "models")
    files = sorted(os.listdir(tmp_path / "models"))
    assert 1 < len([name for name in files if name.startswith("2-")]) < len(models)
    read: list[bytes] = []
    usual = pickle.loads
    monkeypatch.setattr(pickle, "loads", lambda data, **given: read.append(data) or usual(data, **given))
    back = ff.GroupModels.load(tmp_path / "models")
    assert back.summary().equals(models.summary())
    assert back.summary(level=1).equals(models.summary(level=1))
    assert list(back) == list(models)
    assert not read
    key = next(iter(models))
    assert back[key].coef_.tobytes() == models[key].coef_.tobytes()
    assert len(read) == 2
    new = rows_of(14, 100, seed=2)
    assert back.predict(new).tobytes() == models.predict(new).tobytes()
    assert (back.by, back.features, back.fallback) == (("town", "shop"), ("a", "b"), "parent")


def test_keys_of_any_type_come_back(tmp_path: Path) -> None:
    table = pa.table(
        {"key": pa.array([1.5, None, -1.0]), "day": pa.array([0, 1, 2], pa.date32()), "x": [0.0] * 3, "y": [1.0, 2.0, 3.0]}
    )
    models = ff.scan(table).fit_groups(Mean(), by=["key", "day"], target="y", engine="serial")
    models.save(tmp_path / "models")
    assert list(ff.GroupModels.load(tmp_path / "models")) == list(models)


def test_a_folder_that_is_there_is_kept_unless_it_may_be_overwritten(models: ff.GroupModels, tmp_path: Path) -> None:
    models.save(tmp_path / "models")
    with pytest.raises(OptionError, match="is there already"):
        models.save(tmp_path / "models")
    ff.scan(ROWS).fit_groups(Mean(), by="town", **GIVEN).save(tmp_path / "models", overwrite=True)
    assert ff.GroupModels.load(tmp_path / "models").by == ("town",)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(OptionError, match="holds other things"):
        models.save(tmp_path / "other", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["models", "other"]


def test_a_save_that_fails_leaves_nothing(models: ff.GroupModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        models.save(tmp_path / "models")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_save_that_is_cut_off_as_it_takes_the_place_of_another_leaves_one_whole(
    in_one_step: bool, models: ff.GroupModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_one_step:  # as on a file system that cannot
        monkeypatch.setattr(stored, "in_one_step", lambda one, other: False)
    models.save(tmp_path / "models")
    usual = os.rename

    def cut(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "rename", usual)
        usual(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", cut)
    with contextlib.suppress(KeyboardInterrupt):
        models.save(tmp_path / "models", overwrite=True)
    assert [*ff.GroupModels.load(tmp_path / "models")] == [*models]
    assert os.listdir(tmp_path) == ["models"]


SAVE = """
    import os
    import pandas as pd
    from sklearn.dummy import DummyRegressor
    import fourfold as ff
    import fourfold.workloads.groups.stored as stored

    rows = pd.DataFrame({"k": [1], "x": [0.0], "y": [2.0]})
    models = ff.scan(rows).fit_groups(DummyRegressor(), by="k", target="y", engine="serial")
    usual, stored.in_one_step = os.rename, lambda one, other: False
    os.rename = lambda source, target: (usual(source, target), os.kill(os.getpid(), 9))
    models.save("out/models", overwrite=True)
"""


class Killed(BaseException):
    """After it nothing more happens to files."""


@pytest.mark.parametrize("when", ["begun", "written", "replaced", pytest.param("really", marks=pytest.mark.slow)])
def test_what_a_killed_save_leaves_is_removed_by_the_next_one_and_models_that_were_there_are_there_again(
    when: str, models: ff.GroupModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_at(owner: Any, name: str, usual: Any = lambda *args: None) -> None:
        def killed(*args: Any) -> None:
            usual(*args)
            patched.setattr(os, "rename", lambda *args: None)
            patched.setattr(stored.shutil, "rmtree", lambda *args, **options: None)
            raise Killed

        patched.setattr(owner, name, killed)

    folder = tmp_path / "out"
    models.save(folder / "models")
    with monkeypatch.context() as patched:
        if when == "really":
            with started(SAVE, folder=tmp_path) as script:
                assert script.end().code == -9
        else:
            kill_at(*{"begun": (os, "open"), "written": (stored, "_write_level"), "replaced": (os, "rename", os.rename)}[when])
            patched.setattr(stored, "in_one_step", lambda one, other: False)
            with pytest.raises(Killed):
                models.save(folder / "models", overwrite=True)
    left = set(os.listdir(folder))
    is_replaced = when in ("replaced", "really")
    assert {name[-4:] for name in left - {"models"}} == ({".new", ".old"} if is_replaced else {".new"})
    assert ("models" in left) != is_replaced
    assert [*ff.GroupModels.load(folder / "models")] == [*models]
    with pytest.raises(OptionError, match="is there already"):
        models.save(folder / "models")
    ff.scan(ROWS).fit_groups(Mean(), by="town", **GIVEN).save(folder / "models", overwrite=True)
    assert os.listdir(folder) == ["models"]
    assert ff.GroupModels.load(folder / "models").by == ("town",)


def test_what_another_save_writes_right_now_is_left_to_it(
    models: ff.GroupModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, during = stored._write_level, []

    def another_one_comes(folder: Path, *args: Any) -> None:
        monkeypatch.setattr(stored, "_write_level", usual)
        ff.scan(ROWS).fit_groups(Mean(), by="town", **GIVEN).save(tmp_path / "models")
        during.extend(sorted(os.listdir(tmp_path)))
        usual(folder, *args)

    monkeypatch.setattr(stored, "_write_level", another_one_comes)
    models.save(tmp_path / "models", overwrite=True)
    assert (len(during), during[-1]) == (2, "models")
    assert os.listdir(tmp_path) == ["models"]
    assert ff.GroupModels.load(tmp_path / "models").by == ("shop",)


def test_a_folder_that_another_save_takes_for_one_of_the_dead_is_made_again(
    models: ff.GroupModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((os, "open"), (stored.fcntl, "flock")):
        usual, swept = getattr(owner, name), []

        def other_is_faster(*args: Any, owner: Any = owner, name: str = name, usual: Any = usual, swept: Any = swept) -> Any:
            monkeypatch.setattr(owner, name, usual)
            stored._sweep(tmp_path / "models")
            swept.append(os.listdir(tmp_path))
            return usual(*args)

        monkeypatch.setattr(owner, name, other_is_faster)
        models.save(tmp_path / "models", overwrite=True)
        assert [[each for each in names if each.endswith(".new")] for names in swept] == [[]]
        assert os.listdir(tmp_path) == ["models"]


def test_models_are_written_one_by_one(tmp_path: Path) -> None:
    class Made:
        def __getitem__(self, at: int) -> Pickled:
            return Pickled(bytes([at]) * 500_000, (bytes([at + 1]) * 500_000,))

    n_models = 40
    facts = {name: [0] * n_models for name in ("rows", "seconds", "score")} | {
        name: [word] * n_models for name, word in (("status", "ok"), ("error", ""))
    }
    levels = {1: Level.read(pa.table({"key": range(n_models)}), facts, Made())}
    tracemalloc.start()
    try:
        stored.save({"by": ["key"]}, levels, tmp_path / "models", False)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000
    _, back = stored.load(tmp_path / "models")
    assert all(back[1].pickles[at] == Made()[at] for at in range(n_models))


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_large_arrays_of_models_come_back_as_their_own_and_may_be_changed(engine: str, tmp_path: Path) -> None:
    class Large(Mean):
        room: Any = None

        def fit(self, X: Any, y: Any) -> "Large":  # type: ignore[override]
            if Large.room is None:
                Large.room = np.arange(20_000.0).reshape(2, -1)
            Large.room[0, 0] = len(X)
            self.small_, self.large_ = np.arange(10.0), Large.room
            return self

    models = ff.scan(ROWS).fit_groups(Large(), by="shop", **{**GIVEN, "engine": engine, "on_error": "raise"})
    models.save(tmp_path / "models")
    for found in (models, ff.GroupModels.load(tmp_path / "models")):
        for at in (1, 11):
            assert found[at].large_[0, 0] == (ROWS.shop == at).sum()
            assert found[at].large_.ravel()[1:].tolist() == [*range(1, 20_000)]
            assert found[at].small_.tolist() == np.arange(10.0).tolist()
            found[at].large_ += 1
        assert found._levels[1].pickles[1].load().large_[0, 1] == 1.0
    file = tmp_path / "models" / "1-0.models"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UnreadableInput, match=r"1-0\.models: ends before the model at \d+ does"):
        ff.GroupModels.load(tmp_path / "models")[11]


def test_large_models_do_not_all_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ff.scan(ROWS).fit_groups(Mean(), by="shop", **GIVEN)
    one, other = [models._levels[1].pickles[at] for at in range(2)]
    monkeypatch.setattr("fourfold.workloads.groups.models.KEPT_BYTES", one.size_bytes + other.size_bytes + 10)
    models.predict(ROWS)
    assert len(models._loaded) == 3  # those that fit, and the last one


def test_models_that_a_link_points_to_are_overwritten_where_they_are(models: ff.GroupModels, tmp_path: Path) -> None:
    models.save(tmp_path / "models")
    (tmp_path / "link").symlink_to("models")
    ff.scan(ROWS).fit_groups(Mean(), by="town", **GIVEN).save(tmp_path / "link", overwrite=True)
    assert ff.GroupModels.load(tmp_path / "models").by == ("town",)
    assert sorted(os.listdir(tmp_path)) == ["link", "models"]


def test_what_is_no_folder_of_models_is_refused(models: ff.GroupModels, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is no folder of models of groups"):
        ff.GroupModels.load(tmp_path)
    models.save(tmp_path / "models")
    index = tmp_path / "models" / "groups.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 1}))
    with pytest.raises(OptionError, match="in a way that this one does not know"):
        ff.GroupModels.load(tmp_path / "models")


def test_a_file_of_models_that_was_cut_off_or_is_gone_is_named(models: ff.GroupModels, tmp_path: Path) -> None:
    models.save(tmp_path / "models")
    file = tmp_path / "models" / "1-0.models"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UnreadableInput, match=r"1-0\.models: ends before the model at \d+ does"):
        ff.GroupModels.load(tmp_path / "models")[11]
    file.unlink()
    with pytest.raises(UnreadableInput, match=r"1-0\.models: cannot be read: No such file"):
        ff.GroupModels.load(tmp_path / "models")[0]


def test_an_index_that_was_cut_off_or_is_gone_is_named(models: ff.GroupModels, tmp_path: Path) -> None:
    models.save(tmp_path / "models")
    file = tmp_path / "models" / "1.arrow"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UnreadableInput, match=r"1\.arrow: is no whole index of models"):
        ff.GroupModels.load(tmp_path / "models")
    file.unlink()
    with pytest.raises(UnreadableInput, match=r"1\.arrow: cannot be read: No such file"):
        ff.GroupModels.load(tmp_path / "models")
