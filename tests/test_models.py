"""Models of other libraries, from files and from memory: what they say themselves, in workers that share them."""

import functools
import importlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from tables import small_pieces

import fourfold as ff
from fourfold.distribute.engine import NO_NEED, EngineInfo
from fourfold.distribute.engines.on_this_thread import ThisThread
from fourfold.distribute.orders import Orders
from fourfold.errors import InitFailed, MissingExtra, OptionError, RunChanged
from fourfold.execute.pickling import dump
from fourfold.execute.remote import RemoteProgram
from fourfold.execute.troubles import describe
from fourfold.records import Need
from fourfold.workloads.frame import Frame
from fourfold.workloads.models import Model

__all__ = ["small_pieces"]

pytestmark = pytest.mark.usefixtures("workers_of_tables")

Cut = Callable[[int, int], None]

N_ROWS = 300
FEATURES = ["dep delay", "b", "c"]  # LightGBM has no spaces in its names


def frame() -> pd.DataFrame:
    draw = np.random.default_rng(7)
    table = pd.DataFrame(draw.normal(size=(N_ROWS, 3)), columns=FEATURES)
    table.insert(0, "id", range(N_ROWS))
    table["city"] = draw.choice(["Rom", "Oslo", "Bonn"], N_ROWS)
    table["label"] = np.where(table["b"] + draw.normal(size=N_ROWS) > 0, "yes", "no")
    return table


TABLE = frame()
X, Y = TABLE[FEATURES], TABLE["label"]
TURNED = TABLE[["c", "label", "id", "b", "city", "dep delay"]]  # the order of columns is not the model's
TWO = {"engine": "processes", "workers": 2}


def said_by(model: Any, method: str = "predict_proba", rows: Any = TURNED, **options: Any) -> pd.DataFrame:
    return ff.scan(rows).predict(model, method=method, keep=["id"], **options).to_pandas(**TWO)


# ---- LightGBM and XGBoost --------------------------------------------------------------------------------------------


def test_a_model_of_lightgbm_gets_its_columns_by_name_and_names_its_classes(tmp_path: Path, small_pieces: Cut) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    small_pieces(60, 1 << 20)
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, Y)
    joblib.dump(model, tmp_path / "m.joblib")
    for each in (model, tmp_path / "m.joblib"):
        found = said_by(each)
        assert [*found.columns] == ["id", "proba_no", "proba_yes"]
        assert (found[["proba_no", "proba_yes"]].to_numpy() == model.predict_proba(X)).all()
    with pytest.raises(OptionError, match=r"LGBMClassifier was fitted on 3 features, of which 'dep_delay' is not in"):
        ff.scan(TABLE.drop(columns="dep delay")).predict(model)


def test_a_model_of_lightgbm_that_was_fitted_on_an_array_has_no_names(small_pieces: Cut) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    model = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1).fit(X.to_numpy(), TABLE["id"])
    found = said_by(model, "predict", TABLE[["id", *FEATURES]])
    assert found["prediction"].tolist() == model.predict(X.to_numpy()).tolist()


def test_a_model_of_xgboost_gets_its_columns_by_name(tmp_path: Path, small_pieces: Cut) -> None:
    xgboost = pytest.importorskip("xgboost")
    small_pieces(60, 1 << 20)
    model = xgboost.XGBClassifier(n_estimators=5).fit(X, Y == "yes")
    joblib.dump(model, tmp_path / "m.joblib")
    for each in (model, tmp_path / "m.joblib"):
        found = said_by(each)
        assert [*found.columns] == ["id", "proba_0", "proba_1"]
        assert (found[["proba_0", "proba_1"]].to_numpy() == model.predict_proba(X)).all()
    with pytest.raises(OptionError, match=r"of which 'b' is not in the table"):
        ff.scan(TABLE.drop(columns="b")).predict(model)
    with pytest.raises(OptionError, match=r"XGBClassifier takes numbers, and column 'b' is string"):
        ff.scan(TABLE.assign(b="x")).predict(model)


@pytest.mark.parametrize("package", ["lightgbm", "xgboost"])
def test_categories_of_a_file_are_those_that_the_model_learned(package: str, tmp_path: Path) -> None:
    library = pytest.importorskip(package)
    table = TABLE.assign(city=TABLE["city"].astype("category")).sort_values("city")  # no group of rows has all of them
    table.to_parquet(tmp_path / "in.parquet", row_group_size=80)
    kind = library.LGBMClassifier if package == "lightgbm" else library.XGBClassifier
    options = {"verbose": -1, "min_child_samples": 2} if package == "lightgbm" else {"enable_categorical": True}
    model = kind(n_estimators=5, **options).fit(table[["city", "b"]], table["city"] == "Oslo")
    found = ff.scan(tmp_path / "in.parquet").predict(model, batch_size=30).to_pandas(engine="serial")
    assert found["prediction"].tolist() == (table["city"] == "Oslo").tolist()


def n_threads(batch: pd.DataFrame) -> pd.DataFrame:
    return batch.assign(**{f"n_{'after' if 'n_before' in batch else 'before'}": len(os.listdir("/proc/self/task"))})


@pytest.mark.parametrize("package", ["lightgbm", "xgboost"])
def test_a_model_that_asks_for_many_threads_has_those_of_its_worker(package: str, small_pieces: Cut) -> None:
    library = pytest.importorskip(package)
    small_pieces(100, 1 << 20)
    kind = library.LGBMClassifier if package == "lightgbm" else library.XGBClassifier
    model = kind(n_estimators=2, n_jobs=24, **({"verbose": -1} if package == "lightgbm" else {})).fit(X, Y == "yes")
    counted = ff.scan(TABLE).map_batches(n_threads).predict(model).map_batches(n_threads).to_pandas(**TWO)
    assert (counted["n_after"] - counted["n_before"]).max() < 20
    assert model.n_jobs == 24  # the owner's is another one


def test_estimators_within_others_have_the_threads_of_the_worker_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forests = [(name, RandomForestClassifier(n_estimators=2, n_jobs=jobs)) for name, jobs in (("a", 8), ("b", -1), ("c", 1))]
    joblib.dump(make_pipeline(VotingClassifier(forests)).fit(X, Y), tmp_path / "m.joblib")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("fourfold.execute.current._in_worker", True)
    loaded = Model(tmp_path / "m.joblib").load()
    assert [each.n_jobs for each in loaded[0].estimators_] == [2, 2, 1]


# ---- files -----------------------------------------------------------------------------------------------------------


class Scale:
    """Notes where it is loaded, and says whether its array is mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.factors = str(folder), np.arange(1000.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        with open(f"{self.folder}/loads", "a") as file:
            file.write(f"{os.getpid()}\n")

    def predict(self, features: Any) -> Any:
        return np.full(len(features), isinstance(self.factors, np.memmap)) & (self.factors[3] == 3)


@pytest.mark.parametrize("name", ["m.joblib", "m.pkl"])
def test_a_file_is_loaded_once_per_worker_and_its_arrays_are_mapped(name: str, tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)
    joblib.dump(Scale(tmp_path), tmp_path / name)
    rows = ff.scan(TURNED).predict(tmp_path / name, keep=["id"])
    written = rows.write(tmp_path / "out", run=str(tmp_path / "run"), **TWO)
    assert ff.scan(tmp_path / "out").to_pandas()["prediction"].all()
    loads = (tmp_path / "loads").read_text().split()
    assert 1 <= len(loads) <= 2
    assert len(set(loads)) == len(loads) == written.n_loads  # 30 pieces, and no worker loaded twice
    assert str(os.getpid()) not in loads
    assert rows.write(tmp_path / "out", run=str(tmp_path / "run"), **TWO).n_loads == 0  # when all is done nothing is loaded
    assert (tmp_path / "loads").read_text().split() == loads


def test_loads_are_those_of_models_and_of_this_call(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(30, 1 << 20)
    line = LinearRegression().fit(X, TABLE["id"])
    joblib.dump(line, tmp_path / "m.joblib")

    class Check:
        def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
            if (batch["id"] == 200).any() and not (tmp_path / "mended").exists():
                raise ValueError("not yet")
            return batch

    checked = ff.scan(TABLE).map_batches(Check)
    both = checked.predict(tmp_path / "m.joblib").predict(line, name="again")

    def write(rows: ff.Dataset) -> Any:
        return rows.write(tmp_path / "out", run=tmp_path / "run", overwrite=True, engine="serial")

    with pytest.raises(ValueError, match="not yet"):
        write(both)
    (tmp_path / "mended").touch()
    written = write(both)
    assert 6 <= written.report.n_recorded < 10  # those before, and what the chunk of the failure has had behind it
    assert written.n_loads == 2, "two models in one worker, and none for what was recorded before"
    assert write(both).n_loads == 0
    assert checked.write(tmp_path / "none", engine="serial").n_loads == 0, "a class of map_batches is no model"


SPOILT: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": ("m.joblib", lambda path: None, r"there is no such file in /"),
    "a folder": ("m.joblib", lambda path: path.mkdir(), r"cannot be read: Is a directory"),
    "a link to itself": ("m.onnx", lambda path: path.symlink_to(path), r"cannot be read: Too many levels"),
    "empty": ("m.pkl", lambda path: path.touch(), r"is empty: was it written to its end\?"),
    "a pointer": (
        "m.onnx",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        r"stands for one that git-lfs has not fetched; type: git lfs pull",
    ),
    "no skops": ("m.skops", lambda path: path.write_text("<html>"), r"is no file of skops: skops\.io\.dump makes them"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_file_that_is_no_model_is_one_error_before_anything_starts(
    spoilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, spoil, words = SPOILT[spoilt]
    spoil(tmp_path / name)
    monkeypatch.setattr("fourfold.data.running.Call", lambda *given, **named: pytest.fail("a call began"))
    with pytest.raises(OptionError, match=rf"^model='{re.escape(str(tmp_path / name))}'.*{words}"):
        ff.scan(TABLE).predict(tmp_path / name).write(tmp_path / "out", run=tmp_path / "run", **TWO)
    with pytest.raises(OptionError, match=words):
        ff.scan(TABLE).predict(tmp_path / name).head()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "package", "line"),
    [("m.joblib", "joblib", "joblib"), ("m.skops", "skops", "skops"), ("m.onnx", "onnxruntime", r"'fourfold\[onnx\]'")],
)
def test_what_a_file_needs_and_is_not_installed_is_said_before_anything_starts(
    name: str, package: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"PK as skops has it")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("fourfold.data.running.Call", lambda *given, **named: pytest.fail("a call began"))
    with pytest.raises(MissingExtra, match=f"needs the package {package}, which is not installed: pip install {line}$"):
        ff.scan(TABLE).predict(tmp_path / name).to_arrow(**TWO)


class Elsewhere(ThisThread):
    """An engine whose workers may see files that the driver does not: they come into being when it opens."""

    info = EngineInfo(name="elsewhere", takes_objects=True, honours=frozenset(), inline=True, elsewhere=True, kills="no")

    def __init__(self, put: Callable[[], Any]) -> None:
        super().__init__(lambda error: describe(error, 0, None))
        self._put = put

    def open(self) -> None:
        self._put()
        super().open()


def test_a_path_that_only_workers_see_is_theirs_to_load_and_to_complain_of(tmp_path: Path) -> None:
    path, line = tmp_path / "theirs.joblib", LinearRegression().fit(X, TABLE["id"])
    rows = ff.scan(TABLE).predict(path, keep=["id"])
    with pytest.raises(
        InitFailed, match=r"theirs\.joblib could not be loaded: OptionError: .* has no such file\. Workers load"
    ):
        rows.to_pandas(engine=Elsewhere(lambda: None))
    found = rows.to_pandas(engine=Elsewhere(lambda: joblib.dump(line, path)))
    np.testing.assert_allclose(found["prediction"], line.predict(X), rtol=1e-12)


def test_a_path_that_only_workers_see_may_meet_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, line = tmp_path / "theirs.joblib", LinearRegression().fit(X, TABLE["id"])

    def forget(batch: pd.DataFrame) -> Any:
        path.unlink(missing_ok=True)
        return batch["id"] < 0

    rows = ff.scan(TABLE).filter(forget).predict(path)
    written = rows.write(tmp_path / "out", engine=Elsewhere(lambda: joblib.dump(line, path)))
    assert (written.n_rows, written.n_loads) == (0, 1)
    assert "there are no rows, and so no columns: model=" in caplog.text


class Theirs(Elsewhere):
    """An engine with a file that only its workers see: it is there from its opening to its end."""

    def __init__(self, path: Path, model: Any) -> None:
        super().__init__(lambda: joblib.dump(model.fit(X, TABLE["id"]), path))
        self._path, self.n_opened = path, 0

    def open(self) -> None:
        self.n_opened += 1
        super().open()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        super().close()


def test_another_model_in_a_file_that_only_workers_see_is_another_run(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)
    path, mended = tmp_path / "theirs.joblib", tmp_path / "mended"

    def stop(batch: pd.DataFrame) -> pd.DataFrame:
        if batch["id"].iloc[0] >= 20 and not mended.exists():
            raise ValueError("not yet")
        return batch

    def write(model: Any) -> Any:
        rows = ff.scan(TABLE).map_batches(stop).predict(path, keep=["id"])
        return rows.write(tmp_path / "out", engine=Theirs(path, model), run=str(tmp_path / "run"), overwrite=True)

    with pytest.raises(ValueError, match="not yet"):
        write(LinearRegression())
    mended.touch()
    told = rf"something else: the model in {path} \(step 2\) is another one than the run was recorded with\. To keep"
    with pytest.raises(RunChanged, match=told):
        write(LinearRegression(positive=True))
    written = write(LinearRegression())
    assert (written.n_rows, written.report.n_recorded) == (len(TABLE), 2)


class Keyed(Elsewhere):
    """An engine that notes by which name workers of a cluster know what they have loaded."""

    def __init__(self, put: Callable[[], Any], keys: list[str]) -> None:
        super().__init__(put)
        self._keys = keys

    def put(self, key: str, program: Any, need: Need = NO_NEED) -> None:
        self._keys.append(Orders("1", ()).key_of(dump(RemoteProgram(program)), need))
        super().put(key, program, need)


@pytest.mark.parametrize("seen_by", ["all", "workers only"])
def test_workers_of_a_cluster_do_not_take_another_model_in_the_same_file_for_the_one_that_they_have(
    seen_by: str, tmp_path: Path
) -> None:
    path, keys = tmp_path / "m.joblib", list[str]()
    for model in (LinearRegression(), LinearRegression(), LinearRegression(positive=True)):
        put = functools.partial(joblib.dump, model.fit(X, TABLE["id"]), path)
        if seen_by == "all":
            put()
        found = ff.scan(TABLE).predict(path, keep=["id"]).to_pandas(engine=Keyed(put, keys))
        np.testing.assert_allclose(found["prediction"], model.predict(X), rtol=1e-12)
        if seen_by == "workers only":
            path.unlink()
    assert len({*keys}) == (2 if seen_by == "all" else 3), "nobody but its workers can tell that a file is the same"
    assert keys[2] not in keys[:2]


def test_a_recorded_run_asks_a_worker_for_a_model_that_nobody_has(tmp_path: Path) -> None:
    rows = ff.scan(TABLE).predict(tmp_path / "none.joblib")
    with pytest.raises(OptionError, match=r"none\.joblib': .* has no such file\. Workers load it themselves"):
        rows.write(tmp_path / "out", engine=Elsewhere(lambda: None), run=str(tmp_path / "run"))
    assert not (tmp_path / "out").exists()


def test_a_model_that_changes_after_its_dataset_was_made_is_another_run(tmp_path: Path) -> None:
    joblib.dump(LinearRegression().fit(X, TABLE["id"]), tmp_path / "m.joblib")
    rows = ff.scan(TABLE).predict(tmp_path / "m.joblib", keep=["id"])
    rows.write(tmp_path / "out", engine="serial", run=str(tmp_path / "run"))
    joblib.dump(LinearRegression(positive=True).fit(X, TABLE["id"]), tmp_path / "m.joblib")
    with pytest.raises(RunChanged):
        rows.write(tmp_path / "out", engine="serial", run=str(tmp_path / "run"))


def test_a_frame_in_a_cluster_needs_the_file_of_its_model_here_too(tmp_path: Path) -> None:
    class Kind:
        name = "stub"

        def schema(self, frame: pa.Table) -> pa.Schema:
            return frame.schema

        def sample(self, frame: pa.Table, n_rows: int) -> pa.Table:
            return frame.slice(0, n_rows)

    with pytest.raises(OptionError, match="there is no such file in /"):
        Frame(Kind(), pa.Table.from_pandas(X)).predict(tmp_path / "none.joblib")  # type: ignore[arg-type]


def test_a_compressed_file_is_loaded_and_the_log_says_that_it_is_not_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    joblib.dump(Scale(tmp_path), tmp_path / "m.joblib", compress=3)
    with caplog.at_level(logging.INFO, "fourfold"):
        found = ff.scan(TABLE).predict(tmp_path / "m.joblib").to_pandas(engine="serial")
    assert not found["prediction"].any()
    assert "m.joblib is compressed, so each worker has its own copy" in caplog.text


def test_a_plain_pickle_is_loaded(tmp_path: Path) -> None:
    import pickle

    model = LinearRegression().fit(X, TABLE["id"])
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(model))
    np.testing.assert_allclose(said_by(tmp_path / "m.pkl", "predict")["prediction"], model.predict(X), rtol=1e-12)


@pytest.mark.slow  # importing skops takes seconds
def test_a_file_of_skops_is_loaded(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    skops.dump(model, tmp_path / "m.skops")
    found = said_by(tmp_path / "m.skops")
    np.testing.assert_allclose(found[["proba_no", "proba_yes"]], model.predict_proba(X), rtol=1e-12)


@pytest.mark.slow  # importing skops takes seconds
def test_a_file_of_skops_with_a_class_that_nobody_trusts_says_how_to_trust_it(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    model = RandomForestClassifier(n_estimators=2, random_state=0).fit(X, Y)
    skops.dump({"model": model, "scale": Scale(tmp_path)}, tmp_path / "m.skops")
    with pytest.raises(
        InitFailed, match=r"skops does not trust .*test_models\.Scale.* give what you have loaded: predict"
    ) as caught:
        ff.scan(TABLE).predict(tmp_path / "m.skops").to_arrow(engine="serial")
    typed = re.search(r"predict\((skops\.io\.load\(.*\))\)$", str(caught.value))
    assert typed is not None
    loaded = eval(typed[1], {"skops": importlib.import_module("skops")})  # it can be typed as it stands
    found = said_by(loaded["model"])
    assert (found[["proba_no", "proba_yes"]].to_numpy() == model.predict_proba(X)).all()


def test_a_method_that_the_model_of_a_file_lacks_is_one_error(tmp_path: Path) -> None:
    joblib.dump(LinearRegression().fit(X, TABLE["id"]), tmp_path / "m.joblib")
    with pytest.raises(InitFailed, match=r"^method='predict_proba': .*m\.joblib has none; it has predict$"):
        said_by(tmp_path / "m.joblib")


def test_another_model_in_the_same_file_is_another_run(tmp_path: Path) -> None:
    def write(model: Any) -> Any:
        joblib.dump(model.fit(X, TABLE["id"]), tmp_path / "m.joblib")
        rows = ff.scan(TABLE).predict(tmp_path / "m.joblib", keep=["id"])
        return rows.write(tmp_path / "out", engine="serial", run=str(tmp_path / "run"), overwrite=True)

    write(LinearRegression())
    assert "nothing was left to do" in write(LinearRegression()).report.verdict
    path, run = tmp_path / "m.joblib", tmp_path / "run"
    with pytest.raises(RunChanged) as caught:
        write(LinearRegression(positive=True))
    assert str(caught.value) == (
        f"the run {run} was recorded by something else: the model in {path} (step 1) is another one than the run was recorded "
        f"with. To keep what it has and go on with what you have now, type: fourfold resume {run} --accept-changes. To begin "
        "again, use another folder"
    )


def test_another_estimator_is_another_run_and_so_is_what_is_done_before_it(tmp_path: Path) -> None:
    def write(model: Any, n_rows: int = 5, on_error: str = "raise") -> Any:
        rows = ff.scan(TABLE).filter(pc.field("id") < n_rows).predict(model.fit(X, TABLE["id"]), keep=["id"])
        return rows.write(tmp_path / "out", engine="serial", run=tmp_path / "run", overwrite=True, on_error=on_error)

    def differences(*arguments: Any, **options: Any) -> list[str]:
        with pytest.raises(RunChanged) as caught:
            write(*arguments, **options)
        return list(caught.value.differences)

    write(LinearRegression())
    assert "nothing was left to do" in write(LinearRegression()).report.verdict
    other = "the model LinearRegression (step 2) is another one than the run was recorded with"
    assert differences(LinearRegression(positive=True)) == [other]
    assert differences(LinearRegression(), n_rows=6) == ["step 1 (filter) changed"]
    assert differences(LinearRegression(), n_rows=6, on_error="skip") == [
        "step 1 (filter) changed",
        "on_error=, retries= or retry_on= changed",
    ]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_feature_that_the_model_of_a_file_misses_is_one_error_and_no_row_is_to_blame(
    on_error: str, tmp_path: Path, small_pieces: Cut
) -> None:
    small_pieces(50, 1 << 20)
    joblib.dump(LinearRegression().fit(X, TABLE["id"]), tmp_path / "m.joblib")
    rows = ff.scan(TABLE.drop(columns="b")).predict(tmp_path / "m.joblib")
    with pytest.raises(OptionError, match="of which 'b' is not in the table") as caught:
        rows.write(tmp_path / "out", on_error=on_error, **TWO)
    assert not getattr(caught.value, "__notes__", [])
    assert not (tmp_path / "out").exists()


# ---- what estimators of scikit-learn take ----------------------------------------------------------------------------


def test_models_that_have_encoders_within_them_take_texts() -> None:
    inner = make_pipeline(ColumnTransformer([("city", OneHotEncoder(), ["city"])]), LogisticRegression())
    for model in (GridSearchCV(inner, {}, cv=2), VotingClassifier([("one", inner)]), DummyClassifier()):
        fitted = model.fit(TABLE[["city"]], Y)
        found = ff.scan(TURNED).predict(fitted).to_pandas(engine="serial")
        assert found["prediction"].tolist() == fitted.predict(TABLE[["city"]]).tolist()


def test_a_pipeline_of_texts_takes_the_one_column_that_is_no_key() -> None:
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TABLE["city"], Y)
    found = said_by(model, rows=TABLE[["id", "city"]])
    np.testing.assert_allclose(found[["proba_no", "proba_yes"]], model.predict_proba(TABLE["city"]), rtol=1e-12)


def test_a_model_without_names_takes_the_columns_that_are_no_keys() -> None:
    model = LinearRegression().fit(X.to_numpy(), TABLE["id"])
    found = said_by(model, "predict", TABLE[["id", *FEATURES]])
    np.testing.assert_allclose(found["prediction"], model.predict(X.to_numpy()), rtol=1e-12)


@pytest.mark.parametrize(
    ("columns", "keep", "words"),
    [
        (["id", "b", "c"], ["id"], r"has 2 columns that keep= does not name \(b, c\): what keep= names is no feature"),
        (FEATURES, ["dep delay"], r"has 2 columns that keep= does not name \(b, c\): what keep= names is no feature"),
        (
            ["id", "label", *FEATURES],
            ["id"],
            r"has 4 columns that keep= does not name \(label, dep delay, b, c\): select\(\) those",
        ),
    ],
    ids=["a feature is missing", "a feature is kept", "too many"],
)
def test_a_kept_column_takes_the_place_of_no_feature(columns: list[str], keep: list[str], words: str) -> None:
    model = LinearRegression().fit(X.to_numpy(), TABLE["id"])
    with pytest.raises(OptionError, match=f"fitted on 3 features without names, and the table {words}"):
        ff.scan(TABLE[columns]).predict(model, keep=keep)


class Lengths(BaseEstimator):
    """An estimator of the user, that makes numbers of texts itself, and says what it was fitted on."""

    def fit(self, table: pd.DataFrame, y: Any = None) -> "Lengths":
        self.feature_names_in_ = np.asarray(table.columns, object)
        self.n_features_in_ = len(table.columns)
        return self

    def predict(self, table: pd.DataFrame) -> Any:
        return table["city"].str.len().to_numpy()


def test_an_estimator_of_the_user_may_take_texts() -> None:
    found = ff.scan(TABLE).predict(Lengths().fit(TABLE[["b", "city"]])).to_pandas(engine="serial")
    assert found["prediction"].tolist() == [len(city) for city in TABLE["city"]]


class Widths:
    """An estimator of the user, that says nothing of what it was fitted on."""

    def predict(self, features: Any) -> Any:
        return np.full(len(features), features.shape[1])


@pytest.mark.parametrize(("keep", "width"), [(None, 3), ([], 3), (["b"], 2), (FEATURES, 3)], ids=str)
def test_columns_that_are_kept_are_no_features_unless_there_are_no_others(keep: list[str] | None, width: int) -> None:
    found = ff.scan(X).predict(Widths(), keep=keep).to_pandas(engine="serial")
    assert set(found["prediction"]) == {width}


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def onnx_file(model: Any, path: Path, inputs: list[tuple[str, Any]] | None = None, zipmap: bool = False) -> Path:
    skl2onnx = pytest.importorskip("skl2onnx")
    types = inputs or [("x", skl2onnx.common.data_types.FloatTensorType([None, 3]))]
    options = {id(model): {"zipmap": zipmap}} if hasattr(model, "classes_") else {}
    path.write_bytes(skl2onnx.convert_sklearn(model, initial_types=types, options=options).SerializeToString())
    return path


SINGLE = X.astype(np.float32)


def test_a_file_of_onnx_says_what_its_runtime_says(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(60, 1 << 20)
    forest = RandomForestClassifier(n_estimators=5, max_depth=3, random_state=0).fit(SINGLE.to_numpy(), Y)
    path = onnx_file(forest, tmp_path / "m.onnx")
    rows = pd.concat([TABLE[["id"]], SINGLE], axis=1)
    assert said_by(path, "predict", rows)["prediction"].tolist() == forest.predict(SINGLE.to_numpy()).tolist()
    proba = said_by(path, rows=rows)
    assert [*proba.columns] == ["id", "proba_0", "proba_1"]
    np.testing.assert_allclose(proba.iloc[:, 1:], forest.predict_proba(SINGLE.to_numpy()), atol=1e-6)


def test_a_file_of_onnx_that_names_its_classes_names_the_columns(tmp_path: Path) -> None:
    model = LogisticRegression().fit(SINGLE.to_numpy(), Y)
    found = said_by(onnx_file(model, tmp_path / "m.onnx", zipmap=True), rows=SINGLE.assign(id=TABLE["id"]))
    np.testing.assert_allclose(found[["proba_no", "proba_yes"]], model.predict_proba(SINGLE.to_numpy()), atol=1e-6)


def test_an_onnx_model_of_numbers_gives_one_column_and_knows_how_many_it_takes(tmp_path: Path) -> None:
    path = onnx_file(LinearRegression().fit(SINGLE.to_numpy(), TABLE["id"]), tmp_path / "m.onnx")
    found = ff.scan(SINGLE).predict(path, keep=[]).to_pandas()
    np.testing.assert_allclose(
        found["prediction"], LinearRegression().fit(SINGLE.to_numpy(), TABLE["id"]).predict(SINGLE.to_numpy()), rtol=1e-4
    )
    with pytest.raises(OptionError, match=r"m\.onnx was fitted on 3 features without names, and the table has 6 columns"):
        ff.scan(TABLE).predict(path).to_arrow(engine="serial")
    with pytest.raises(OptionError, match="the model has the one output 'variable'"):
        ff.scan(SINGLE).predict(path, method="predict_proba").to_arrow(engine="serial")


def test_a_session_of_onnx_has_the_threads_of_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(onnx_file(LinearRegression().fit(SINGLE.to_numpy(), TABLE["id"]), tmp_path / "m.onnx"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert model.load()._session.get_session_options().intra_op_num_threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")  # for nested regions
    assert model.load()._session.get_session_options().intra_op_num_threads == 3


def test_the_runtime_of_onnx_reports_nothing_over_the_network(tmp_path: Path) -> None:
    path = onnx_file(LinearRegression().fit(SINGLE.to_numpy(), TABLE["id"]), tmp_path / "m.onnx")
    program = (
        "import os, sys; from fourfold.workloads.models import Model; Model(sys.argv[1]).load()\n"
        "print(*(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{fd}')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    asked = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True, timeout=100)
    assert "onnxruntime" not in done.stdout  # what it reports it keeps in a file of its own, and starts threads


def test_an_onnx_model_with_an_input_for_each_column_gets_them_by_name(tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    prepare = ColumnTransformer([("city", OneHotEncoder(), ["city"]), ("rest", "passthrough", ["b", "c"])])
    model = make_pipeline(prepare, LogisticRegression()).fit(TABLE[["city", "b", "c"]], Y)
    types = skl2onnx.common.data_types
    inputs = [("city", types.StringTensorType([None, 1]))]
    inputs += [(name, types.FloatTensorType([None, 1])) for name in ("b", "c")]
    path = onnx_file(model, tmp_path / "m.onnx", inputs)
    found = said_by(path)
    np.testing.assert_allclose(found.iloc[:, 1:], model.predict_proba(TABLE[["city", "b", "c"]]), atol=1e-6)
    with pytest.raises(OptionError, match="of which 'city' is not in the table"):
        ff.scan(TABLE.drop(columns="city")).predict(path).to_arrow(engine="serial")


# ---- torch -----------------------------------------------------------------------------------------------------------


def torch_or_skip() -> Any:
    return pytest.importorskip(
        "torch", reason="torch is not installed: it is too large for the extra test (pip install torch)"
    )


def module_of(torch: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def test_a_module_of_torch_takes_the_columns_that_are_no_keys(small_pieces: Cut) -> None:
    torch = torch_or_skip()
    small_pieces(60, 1 << 20)
    module = module_of(torch)
    found = said_by(module, "predict", TABLE[["id", *FEATURES]])
    with torch.inference_mode():
        expected = module.eval()(torch.tensor(SINGLE.to_numpy())).numpy()
    assert [*found.columns] == ["id", "prediction_0", "prediction_1"]
    np.testing.assert_allclose(found.iloc[:, 1:], expected, rtol=1e-5)


def test_a_module_that_is_being_trained_goes_on_being_trained() -> None:
    module = module_of(torch_or_skip()).train()
    one, other = (ff.scan(X).predict(module).to_pandas(engine="serial") for _ in range(2))
    assert one.equals(other)  # no dropout
    assert module.training
    assert module[1].training


def test_a_module_of_torch_has_one_method_and_takes_numbers() -> None:
    module = module_of(torch_or_skip())
    with pytest.raises(OptionError, match="method='predict_proba': Sequential has none; it has predict"):
        ff.scan(X).predict(module, method="predict_proba")
    with pytest.raises(OptionError, match="Sequential takes numbers, and column 'city' is string"):
        ff.scan(TABLE).predict(module)


def test_a_module_of_torch_may_give_several_outputs_by_name() -> None:
    torch = torch_or_skip()

    class Two(torch.nn.Module):
        def forward(self, rows: Any) -> Any:
            return {"sum": rows.sum(1), "half": rows[:, :2] / 2}

    class Pair(torch.nn.Module):
        def forward(self, rows: Any) -> Any:
            return rows, rows

    found = ff.scan(X).predict(Two(), keep=[]).to_arrow(engine="serial")
    assert found.column_names == ["sum", "half"]
    assert found.column("half").type == pa.list_(pa.float32(), 2)
    with pytest.raises(TypeError, match="the module gave a tuple: it must give a tensor, or a dict of tensors"):
        ff.scan(X).predict(Pair()).to_arrow(engine="serial")


def test_a_module_has_the_threads_of_its_worker() -> None:
    torch = torch_or_skip()

    class Threads(torch.nn.Module):
        def forward(self, rows: Any) -> Any:
            return torch.full((len(rows),), torch.get_num_threads())

    assert set(ff.scan(X).predict(Threads()).to_pandas(**TWO)["prediction"]) == {1}
