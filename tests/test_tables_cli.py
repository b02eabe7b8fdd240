"""Tables from the command line: `head`, `map --batch` and `predict`, as a user types them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import joblib
import pandas as pd
import prompt
import pyarrow.parquet as pq
import pytest
from sklearn.tree import DecisionTreeClassifier
from tables import people, write_csv, write_parquet

import fourfold as ff
from fourfold.cli.head import _n_that_fit


@pytest.fixture(autouse=True, scope="module")
def _prompt() -> Iterator[None]:
    with prompt.served("pyarrow.parquet", "sklearn.tree"):
        yield


def fourfold(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return prompt.fourfold(*words, cwd=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_parquet(people(50), tmp_path / "in.parquet")
    (tmp_path / "mine.py").write_text(
        "def double(batch):\n"
        "    if (batch['id'] == 30).any() and len(batch) == 1:\n"
        "        raise ValueError('not this one')\n"
        "    if (batch['id'] == 30).any():\n"
        "        raise ValueError('somewhere in here')\n"
        "    return batch.assign(y=batch['id'] * 2)\n"
    )
    return tmp_path


def test_describe_has_a_line_for_each_figure_and_cuts_nothing_for_a_pipe(folder: Path) -> None:
    pd.DataFrame({f"a_column_with_a_long_name_{number}": [1.5, 2.5] for number in range(12)}).to_csv(folder / "wide.csv")
    ended = fourfold("describe", "wide.csv", folder=folder)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "a_column_with_a_long_name_0" in lines[1]
    assert "a_column_with_a_long_name_11" in lines[1]
    assert [line for line in lines if line.startswith("│ nulls ") and line.count(" 0 ") == 13]
    assert "…" not in ended.stdout


@pytest.mark.parametrize(("room", "n_fit"), [(1, 1), (16, 1), (17, 2), (40, 3)])
def test_a_terminal_gets_as_many_columns_in_a_line_as_it_has_room_for(room: int, n_fit: int) -> None:
    assert _n_that_fit([["12345", "1"], ["12345\n1", ""], ["1", "12345"]], room) == n_fit


def test_head_prints_columns_types_and_rows(folder: Path) -> None:
    write_csv(people(3), folder / "in.csv")
    ended = fourfold("head", "in.csv", "-n", "2", "--columns", "id,word", folder=folder)
    assert ended.returncode == 0, ended.stderr
    for word in ("id", "int64", "word", "string", "plain"):
        assert word in ended.stdout
    assert "a,comma" not in ended.stdout


def test_head_shows_brackets_and_colons_as_they_are(folder: Path) -> None:
    pd.DataFrame({"[bold] a": ["[abc] hello", "x [/b] y", ":smile: z"]}).to_parquet(folder / "marked.parquet")
    ended = fourfold("head", "marked.parquet", folder=folder)
    assert ended.returncode == 0, ended.stderr
    for words in ("[bold] a", "[abc] hello", "x [/b] y", ":smile: z"):
        assert words in ended.stdout


def test_map_with_batches_writes_a_folder_and_keeps_rows_that_fail(folder: Path) -> None:
    ended = fourfold("map", "mine:double", "in.parquet", "-o", "out", "--batch", "pandas", folder=folder)
    assert ended.returncode == 3, ended.stderr
    assert ff.scan(folder / "out").to_pandas()["y"].tolist() == [2 * row for row in range(50) if row != 30]
    assert "out: 49 rows in 1 files" in ended.stderr
    assert "the first: row 30 of in.parquet: ValueError: not this one" in ended.stderr
    assert pq.read_table(folder / "out" / "_failed" / "rows.parquet").column("id").to_pylist() == [30]


def test_predict_writes_a_folder_and_the_same_command_finds_it_done(folder: Path) -> None:
    frame = pd.DataFrame({"id": range(50), "x": [row / 10 for row in range(50)]})
    frame.to_parquet(folder / "rows.parquet")
    tree = DecisionTreeClassifier(random_state=0)
    joblib.dump(tree.fit(frame[["x"]], frame["id"] % 2), folder / "m.joblib")
    command = ["predict", "m.joblib", "rows.parquet", "-o", "scores/", "--method", "predict_proba", "--keep", "id", "--resume"]
    ended = fourfold(*command, folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert ff.scan(folder / "scores").columns == ["id", "proba_0", "proba_1"]
    assert "scores/: 50 rows in 1 files, 1 loads of m.joblib" in ended.stderr
    again = fourfold(*command, folder=folder).stderr
    assert "nothing was left to do" in again
    assert "0 loads of m.joblib" in again
    joblib.dump(tree.fit(frame[["x"]], frame["id"] % 3), folder / "m.joblib")
    ended = fourfold(*command, folder=folder)
    assert ended.returncode == 1
    assert "the model, an option or the input is another one than before: to begin again, remove scores.run" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(("options", "run"), [(["--resume"], "out.run"), (["--run", "kept"], "kept")])
def test_predict_goes_on_with_what_finished_before_it_failed(options: list[str], run: str, folder: Path) -> None:
    (folder / "in").mkdir()
    for part in range(3):
        ids = pd.DataFrame({"id": range(20 * part, 20 * part + 20)})
        ids.to_parquet(folder / "in" / f"{part}.parquet")
    (folder / "scorer.py").write_text(
        "import os\n"
        "class Score:\n"
        "    def __call__(self, batch):\n"
        "        with open('asked', 'a') as file:\n"
        "            file.writelines(f'{each}\\n' for each in batch['id'])\n"
        "        if batch['id'].max() >= 40 and not os.path.exists('mended'):\n"
        "            raise ValueError('not yet')\n"
        "        return batch['id'].to_numpy() * 2\n"
    )
    command = ["predict", "scorer:Score", "in", "-o", "out", "--keep", "id", "--engine", "serial", *options]
    ended = fourfold(*command, folder=folder)
    assert (ended.returncode, (folder / "out").exists()) == (1, False), ended.stderr
    assert (folder / run).is_dir()
    (folder / "mended").touch()
    (folder / "asked").unlink()
    ended = fourfold(*command, folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert ff.scan(folder / "out").to_pandas()["prediction"].tolist() == [2 * row for row in range(60)]
    assert {int(line) for line in (folder / "asked").read_text().split()} == {*range(40, 60)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["head", "none.parquet"], "input not found: none.parquet"),
        (["head", "in.parquet", "--columns", "idd"], "did you mean 'id'?"),
        (["predict", "none.joblib", "in.parquet", "-o", "out"], "there is no such file"),
        (
            ["predict", "none.joblib", "in.parquet", "-o", "memory://out", "--resume"],
            "--resume keeps its run beside OUTPUT, which is a store: give --run FOLDER",
        ),
        (["map", "mine:double", "in.parquet", "-o", "out", "--batch", "panda"], "--batch panda is not known"),
        (["map", "mine:double", "in.parquet", "-o", "out", "--batch", "pandas", "--items", "paths"], "leave --items out"),
    ],
)
def test_the_first_wrong_thing_is_one_line(arguments: list[str], words: str, folder: Path) -> None:
    ended = fourfold(*arguments, folder=folder)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not os.path.exists(folder / "out")
