"""Options of stores, and the order of rows, from the command line: `--storage-option KEY=VALUE`, `--no-order`.

Where a command runs in this process its store is `memory://`, which takes any option; elsewhere it is a folder behind `dir://`, whose
place is an option: without it nothing is found. test_s3.py has a real one.
"""

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import prompt
import pyarrow.parquet as pq
import pytest
from tables import people, write_parquet
from typer.testing import CliRunner

import fourfold as ff
from fourfold import addresses
from fourfold.cli import app
from fourfold.cli.storage import storage_for_both, storage_of
from fourfold.errors import OptionError

NAME = "--storage-option"


@pytest.fixture(autouse=True, scope="module")
def _prompt() -> Iterator[None]:
    with prompt.served():
        yield


def fourfold(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return prompt.fourfold(*words, cwd=folder)


def of_store(place: Path, name: str = NAME) -> list[str]:
    options = [f"path={place}", "target_protocol=file", 'target_options={"auto_mkdir": true}']
    return [word for each in options for word in (name, each)]


class Ids:
    """A model that says of each row its number."""

    def __call__(self, batch: pd.DataFrame) -> Any:
        return batch["id"].to_numpy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    (tmp_path / "here" / "in").mkdir(parents=True)
    write_parquet(people(50), tmp_path / "store" / "in.parquet")
    return tmp_path / "here"


@pytest.fixture
def typed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command here, which must succeed; returns what it prints."""
    monkeypatch.chdir(folder)

    def run(*words: str) -> str:
        ended = CliRunner().invoke(app, [*words])
        assert ended.exit_code == 0, ended.output
        return ended.output

    return run


@pytest.fixture(autouse=True)
def _words_of_no_other_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_of_commands", {})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """What the memory, with a table in it, is told when a URL is opened."""
    fs, found, original = fsspec.filesystem("memory"), {}, fsspec.core.url_to_fs
    fs.store.clear()
    with fs.open("/in.parquet", "wb") as file:
        pq.write_table(people(50), file)

    def url_to_fs(url: str, **storage: Any) -> Any:
        found.setdefault(url.rpartition("/")[2], []).append(storage)
        return original(url, **storage)

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    yield found
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


COMMANDS = [["map", "builtins:list", "--batch", "pylist"], ["predict", f"{__name__}:Ids"]]

RECORDED = [
    "map",
    "mine:same",
    "dir://in.parquet",
    "-o",
    "dir://out",
    "--batch",
    "arrow",
    "--on-error",
    "raise",
    "--run",
    "run",
]

RED, BLUE = [NAME, "color=red", NAME, "size:=3"], ["--write-storage-option", "color=blue"]


@pytest.mark.parametrize("command", ["head", "describe", "clean"])
def test_a_store_is_told_its_options(command: str, typed: Callable[..., str], told: dict[str, Any]) -> None:
    typed(command, "memory://in.parquet", *RED)
    assert told["in.parquet"]
    assert all(each == {"color": "red", "size": 3} for each in told["in.parquet"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("words", "of_output"), [(RED, {"color": "red", "size": 3}), ([*RED, *BLUE], {"color": "blue"})])
def test_options_hold_for_what_is_read_and_written_unless_the_output_has_its_own(
    command: list[str], words: list[str], of_output: dict[str, Any], typed: Callable[..., str], told: dict[str, Any]
) -> None:
    typed(*command, "memory://in.parquet", "-o", "memory://out", *words)
    assert told["in.parquet"]
    assert all(each == {"color": "red", "size": 3} for each in told["in.parquet"])
    assert told["out"]
    assert all(each == of_output for each in told["out"])
    assert ff.scan("memory://out").to_pandas()["id"].tolist() == [*range(50)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("order", "n_files"), [([], 3), (["--order"], 3), (["--no-order"], 1)])
def test_no_order_puts_small_files_together(
    command: list[str], order: list[str], n_files: int, typed: Callable[..., str], folder: Path
) -> None:
    for number in range(3):
        write_parquet(people(10), folder / "in" / f"{number}.parquet")
    typed(*command, "in", "-o", "out", *order)
    assert len([*(folder / "out").glob("*.parquet")]) == n_files
    assert sorted(ff.scan(folder / "out").to_pandas()["id"]) == sorted([*range(10)] * 3)


@pytest.mark.slow
def test_a_run_keeps_no_option_that_may_be_a_secret_and_says_so_when_it_is_resumed(folder: Path) -> None:
    (folder / "mine.py").write_text("def same(batch):\n    raise ValueError('not yet')\n")
    storage = of_store(folder.parent / "store")
    ended = fourfold(*RECORDED, *storage, NAME, "token=hunter2", f"{NAME}=key=hunter2", folder=folder)
    assert (ended.returncode, "not yet" in ended.stderr) == (1, True), ended.stderr
    kept = [path for path in (folder / "run").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if b"hunter2" in path.read_bytes()]
    shown = json.loads(fourfold("show", "run", "--json", folder=folder).stdout)["command"]
    assert shown[-3:] == [NAME, "token=…", f"{NAME}=key=…"]
    assert f"path={folder.parent / 'store'}" in shown
    resumed = fourfold("resume", "run", folder=folder)
    words = shlex.join(["fourfold", *RECORDED, *storage, NAME, "token=…", f"{NAME}=key=…"])
    assert resumed.stderr == (
        f"fourfold: run was made with {NAME} token=… and {NAME} key=…, and no run keeps such values: type its command again, with "
        f"the values in place of …, in {folder}: {words}. A value that is the name of a variable, KEY=$NAME, need not be typed "
        "again\n"
    )


@pytest.mark.slow
def test_a_run_whose_secrets_are_variables_is_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    (folder / "mine.py").write_text(
        "import os\n"
        "def same(batch):\n"
        "    if not os.path.exists('mended'):\n"
        "        raise ValueError('not yet')\n"
        "    return batch\n"
    )
    storage = of_store(folder.parent / "store")
    assert fourfold(*RECORDED, *storage, NAME, "token=$TOKEN", folder=folder).returncode == 1
    (folder / "mended").touch()
    ended = fourfold("resume", "run", folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert ff.scan(folder.parent / "store" / "out").count() == 50


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("profile=work", "work"),
        ("secret=a=b", "a=b"),
        ("anon=true", True),
        ("anon=false", False),
        ("secret=9000", "9000"),
        ("secret=1e5", "1e5"),
        ("secret=-7", "-7"),
        ("secret=null", "null"),
        ("secret=NaN", "NaN"),
        ('secret="12345"', '"12345"'),
        ("secret=[12", "[12"),
        ("secret=", ""),
        ('client_kwargs={"endpoint_url": "http://host"}', {"endpoint_url": "http://host"}),
        ('names=["a", 1]', ["a", 1]),
        ("port:=9000", 9000),
        ("token:=null", None),
        ("anon:=true", True),
        ('account:="12345"', "12345"),
        ("port:=$SECRET_OF_MINE", 4711),
        ("secret=$SECRET_OF_MINE", "4711"),
        ("secret=${SECRET_OF_MINE}", "4711"),
        ("secret=$SECRET_OF_MINE.", "$SECRET_OF_MINE."),
    ],
)
def test_a_value_is_text_unless_it_says_otherwise(text: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "4711")
    (found,) = storage_of(NAME, [text]).values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "is_recorded"),
    [
        ("profile=work", True),
        ("endpoint_url=http://host", True),
        ("endpoint_url=http://me:hunter2@host", False),
        ('client_kwargs={"endpoint_url": "http://host"}', True),
        ('client_kwargs={"aws_session_token": "hunter2"}', False),
        ('path=["hunter2"]', False),
        ("secret=hunter2", False),
        ("secret=4711", False),
        ("secret:=4711", False),
        ("port:=9000", True),
        ("anything=hunter2", False),
        ("secret=$SECRET_OF_MINE", True),
    ],
)
def test_what_may_be_a_secret_is_not_recorded(text: str, is_recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "4711")
    storage_of(NAME, [text])
    shown = text if is_recorded else f"{text.partition('=')[0]}=…"
    assert addresses.without_kept_out(["fourfold", NAME, text, f"{NAME}={text}", "in"]) == [
        "fourfold", NAME, shown, f"{NAME}={shown}", "in",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["hunter2"], "must be KEY=VALUE, such as profile=work, and one of them has no ="),
        (["=hunter2"], "must be KEY=VALUE, such as profile=work, and one of them has no KEY"),
        (["key=hunter2", "key=hunter3"], "--storage-option key=… is there twice"),
        (["key=hunter2", "key:=3"], "--storage-option key=… is there twice"),
        (["key:=hunter2"], "--storage-option key:=… is no JSON, such as 9000 or null; --storage-option key=… is for texts"),
        ([":=hunter2"], "must be KEY=VALUE, such as profile=work, and one of them has no KEY"),
        (["key=$NOT_THERE_HUNTER"], "--storage-option key: the environment has no NOT_THERE_HUNTER"),
    ],
)
def test_a_wrong_option_of_a_store_is_named_without_its_value(texts: list[str], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        storage_of(NAME, texts)
    assert words in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_options_without_a_url_are_an_error() -> None:
    with pytest.raises(OptionError, match=r"is for URLs such as s3://bucket/in, and in\.csv is none"):
        storage_for_both(["in.csv"], "out", ["anon=true"], None)
    with pytest.raises(OptionError, match=r"is for URLs such as s3://bucket/in, and in\.csv is none"):
        storage_for_both(["in.csv"], "s3://out", ["anon=true"], ["profile=work"])
    with pytest.raises(OptionError, match=r"is for URLs such as s3://bucket/out, and out is none"):
        storage_for_both(["s3://in"], "out", ["anon=true"], ["profile=work"])
    assert storage_for_both(["in.csv"], "s3://out", ["anon=true"], None) == ({}, {"anon": True})
    assert storage_for_both(["s3://in"], "out", ["anon=true"], None) == ({"anon": True}, {})


def test_without_batches_no_option_of_tables_is_taken_in_silence(folder: Path) -> None:
    for words in ([NAME, "anon=true"], ["--write-storage-option", "anon=true"], ["--no-order"]):
        ended = CliRunner().invoke(app, ["map", "builtins:len", str(folder.parent / "store"), "-o", "out.csv", *words])
        assert ended.exit_code == 2
        assert "are for --batch" in ended.stderr
