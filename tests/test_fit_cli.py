"""`fourfold fit`, as a user types it."""

import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import prompt
import pytest
from sklearn.preprocessing import MinMaxScaler

import fourfold as ff

TABLE = pd.DataFrame({"a": np.arange(50.0), "b": np.arange(50.0) % 7, "t": 1.0})


@pytest.fixture(autouse=True, scope="module")
def _prompt() -> Iterator[None]:
    with prompt.served("pyarrow.parquet", "sklearn.linear_model", "fourfold.workloads.fit.fitting"):
        yield


def fourfold(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return prompt.fourfold(*arguments, cwd=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TABLE.to_parquet(tmp_path / "in.parquet")
    (tmp_path / "mine.py").write_text(
        "def scaler():\n"
        "    from sklearn.preprocessing import MinMaxScaler\n"
        "    return MinMaxScaler((0, 2))\n"
        "def needs(x):\n"
        "    return x\n"
        "number = 7\n"
        "class Bare:\n"
        "    pass\n"
    )
    return tmp_path


@pytest.mark.slow
def test_the_fitted_estimator_is_in_the_file(folder: Path) -> None:
    command = ("fit", "mine:scaler", "in.parquet", "--features", "b,a", "-o", "scaler.joblib", "--resume")
    ended = fourfold(*command, folder=folder)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert ended.stderr.splitlines()[-1] == "fourfold: scaler.joblib: MinMaxScaler fitted to 50 rows"
    found, expected = joblib.load(folder / "scaler.joblib"), MinMaxScaler((0, 2)).fit(TABLE[["b", "a"]])
    assert found.scale_.tolist() == expected.scale_.tolist()
    assert found.feature_names_in_.tolist() == ["b", "a"]
    assert {path.name for path in folder.iterdir()} >= {"scaler.joblib.run"}
    again = fourfold(*command, folder=folder)
    assert again.returncode == 2
    assert again.stderr == "fourfold: scaler.joblib is there already: choose another name, or --overwrite\n"
    assert fourfold(*command, "--overwrite", folder=folder).returncode == 0
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.slow
def test_rows_that_are_left_out_are_told_and_the_code_says_so(folder: Path) -> None:
    TABLE.assign(t=[1.0] * 49 + [np.nan]).to_parquet(folder / "in.parquet")
    command = ("fit", "sklearn.preprocessing:MinMaxScaler", "in.parquet", "--target", "t", "-o", "scaler.pkl")
    ended = fourfold(*command, folder=folder)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "the target 't' is missing or NaN" in line
    assert "row 49 of " in line
    assert not (folder / "scaler.pkl").exists()
    ended = fourfold(*command, "--on-error", "skip", folder=folder)
    assert ended.returncode == 3, ended.stderr
    assert "scaler.pkl: MinMaxScaler fitted to 49 rows" in ended.stderr
    assert "1 rows were left out; the first: row 49 of in.parquet" in ended.stderr
    assert pickle.loads((folder / "scaler.pkl").read_bytes()).data_max_.tolist() == [48.0, 6.0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mine:scalr", "in.parquet", "-o", "x.joblib"), "has no 'scalr'; did you mean 'scaler'?"),
        (("mine:scaler", "in.parquet", "-o", "x.model"), "x.model is to end with .joblib or .pkl"),
        (("mine:scaler", "in.parquet", "-o", "no/x.pkl"), "there is no folder no"),
        (("mine:number", "in.parquet", "-o", "x.pkl"), "mine:number is of type int, and neither an estimator nor a function"),
        (("mine:needs", "in.parquet", "-o", "x.pkl"), "mine:needs cannot be called without arguments"),
        (("mine:Bare", "in.parquet", "-o", "x.pkl"), "give an estimator, such as StandardScaler()"),
        (("mine:scaler", "in.parquet", "--min-rows", "5", "-o", "x.pkl"), "--min-rows is for groups: name their columns"),
        (("mine:scaler", "in.parquet", "--fallback", "global", "-o", "x.pkl"), "--fallback is for groups: name their"),
        (("mine:scaler", "in.parquet", "--by", "b", "-o", ".", "--overwrite"), ". holds other things than models of groups"),
        (("mine:scaler", "in.parquet", "--target", "tt", "-o", "x.pkl"), "no column 'tt' (did you mean 't'?)"),
    ],
)
def test_what_is_typed_wrong_is_one_line(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    ended = fourfold("fit", *arguments, folder=folder)
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert says in line
    assert not [path for path in folder.iterdir() if path.name.startswith("x.")]


@pytest.mark.slow
def test_with_by_there_is_one_model_for_each_group_and_the_code_says_that_one_has_none(folder: Path) -> None:
    TABLE.to_csv(folder / "in.csv", index=False)
    command = ("fit", "sklearn.linear_model:Ridge", "in.csv", "--by", "b", "--target", "a", "-o", "models/")
    ended = fourfold(*command, "--features", "t", "--min-rows", "8", "--fallback", "global", folder=folder)
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.splitlines()[-1] == "fourfold: models/: GroupModels(1 models of 7 groups by b)"
    models = ff.GroupModels.load(folder / "models")
    assert models[0].intercept_ == pytest.approx(TABLE.a[TABLE.b == 0].mean())
    assert models.predict(TABLE)[1] == pytest.approx(TABLE.a.mean())
    again = fourfold(*command, folder=folder)
    assert again.returncode == 2
    assert again.stderr == "fourfold: models/ is there already: choose another name, or --overwrite\n"
    assert fourfold(*command, "--overwrite", folder=folder).returncode == 0
