"""Errors of the library on the command line speak of options as they are typed there."""

import itertools
from pathlib import Path

import pytest
from tables import people, write_parquet
from typer.testing import CliRunner

from fourfold.cli import app, typed
from fourfold.cli.typed import as_typed

MAP = ["map", "builtins:list", "in.parquet", "-o", "out", "--batch", "pylist"]
NAMES = ["run=2024.01.05", "seed=007", "seed=1"]
PREDICT = ["predict", "builtins:int", "in.parquet", "-o", "out"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(typed, "_options", {})
    write_parquet(people(5), tmp_path / "in.parquet")


def said(*command: str) -> str:
    """What a command says that is wrong."""
    ended = CliRunner().invoke(app, [*command])
    assert ended.exit_code in (1, 2), ended.output
    return ended.stderr


def test_an_output_that_is_there_names_the_option_that_replaces_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert said(*MAP) == "fourfold: 'out' is there already: give another path, or --overwrite to replace it\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-failures", "3", "--on-error", "raise"], "add --on-error collect or --on-error skip"),
        (["--run", "out/run"], "--run out/run and the output out lie one in the other"),
        (["--engine", "proceses"], "unknown engine 'proceses' (did you mean 'processes'?)"),
        (["--engine", "threads", "--memory", "5"], "cannot honour --memory 5. Leave memory out, or use --engine processes"),
        (["--timeout", "-1"], "--timeout -1.0 must be a positive, finite number of seconds"),
        (["--workers", "0"], "--workers 0 must be at least 1"),
        (["--seed", "-4"], "--seed -4 must be at least 0"),
    ],
)
def test_options_in_errors_are_those_of_the_command(words: list[str], told: str) -> None:
    assert told in said(*MAP, *words)


@pytest.mark.parametrize(
    "text",
    [
        "run=2024.01.05 is there already",
        "seed=007 is there",
        "seed=1.jsonl is there",
        "run='\\' is odd",
        "seed=1e",
    ],
)
def test_what_no_option_can_have_is_taken_for_the_name_of_a_file(text: str) -> None:
    said(*MAP, "--workers", "0")
    assert as_typed(text) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("(seed=7).", "(--seed 7)."),
        ("seed=1.: x", "--seed 1.: x"),
        ("timeout=-1.5", "--timeout -1.5"),
        ("timeout=1e-05: no", "--timeout 1e-05: no"),
    ],
)
def test_numbers_are_told_with_what_is_behind_them(text: str, told: str) -> None:
    said(*MAP, "--workers", "0")
    assert as_typed(text) == told


@pytest.mark.parametrize(
    ("command", "name"),
    [*itertools.product(["rows", "batches"], NAMES), ("rows", "seed=1.jsonl")],  # batches are written into a folder
)
def test_an_output_with_the_name_of_an_option_is_called_by_it(command: str, name: str, tmp_path: Path) -> None:
    if command == "rows":
        (tmp_path / name).touch()
        told = said("map", "builtins:len", "in.parquet", "-o", name)
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
        told = said(*[name if word == "out" else word for word in MAP])
    assert told.startswith(f"fourfold: '{name}' is there already: ")


def test_an_option_has_the_name_that_it_has_here() -> None:
    assert "fourfold: --batch panda is not known" in said(*MAP[:-1], "panda")
    assert as_typed("cannot be used with storage_options= of it") == "cannot be used with --storage-option of it"


def test_what_is_no_option_of_the_command_stays_as_it_is() -> None:
    said("head", "none.parquet")
    assert as_typed("say what it holds: format='parquet'") == "say what it holds: --format parquet"
    for text in (
        "engine='serial'",
        "schema={'x': 'string'}",
        "s3://host/?format='csv'",
        "in/format=3/x.parquet is gone",
        "filter (a == 'format=')",
        "the platform='x'",
    ):
        assert as_typed(text) == text
    assert as_typed("write it again, with overwrite=True") == "write it again, with --overwrite"


def test_of_two_formats_it_is_that_of_the_input_unless_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "in.dat").touch()
    (tmp_path / "scorer.py").write_text("class Model:\n    def __call__(self, batch):\n        return [0] * len(batch)\n")
    unknown = said(*["in.dat" if word == "in.parquet" else word for word in PREDICT])
    assert "say what it holds: --format parquet, or another one of csv" in unknown
    unwritten = said(*["scorer:Model" if word == "builtins:int" else word for word in PREDICT], "--write-format", "xlsx")
    assert unwritten == "fourfold: --write-format xlsx cannot be written. Formats: parquet, csv, jsonl\n"


def test_what_a_switch_says_that_is_off() -> None:
    said(*MAP, "--workers", "0")
    assert (
        as_typed("idempotent=False forbids it, progress=True, order=False.")
        == "--not-idempotent forbids it, --progress, --no-order."
    )
    assert as_typed("overwrite=False") == "overwrite=False"
    assert as_typed("use another folder for run=") == "use another folder for --run"


def test_an_error_of_the_user_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(batch):\n    raise ValueError('overwrite=True')\n")
    assert "ValueError: overwrite=True" in said("map", "mine:f", *MAP[2:], "--on-error", "raise")
