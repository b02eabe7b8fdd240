"""Ctrl-C of a command, before and after its output has appeared: what is said of the output is true."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tables import people, write_parquet
from typer.testing import CliRunner

import fourfold as ff
from fourfold.cli import app
from fourfold.data.commit import Output
from fourfold.data.stores import StoreOutput

ROWS = ["map", "builtins:len", "in.jsonl", "-o", "out.jsonl"]
BATCHES = ["map", "builtins:list", "in.parquet", "--batch", "pylist", "-o", "out"]
TO_STORE = [*BATCHES[:-1], "memory://interrupted/out"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(people(5), tmp_path / "in.parquet")
    (tmp_path / "in.jsonl").write_text('"a"\n"bb"\n')
    fs = fsspec.filesystem("memory")
    if fs.exists("/interrupted"):
        fs.rm("/interrupted", recursive=True)


def interrupt(*given: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


def then_interrupt(usual: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **options: Any) -> None:
        usual(*given, **options)
        raise KeyboardInterrupt

    return call


AFTER: list[tuple[list[str], str, Any]] = [
    (ROWS, "fourfold.aggregate.part_file.os.replace", None),
    (ROWS, "fourfold.cli.map._tell", interrupt),
    (BATCHES, "fourfold.data.commit.Output.publish", None),
    (BATCHES, "fourfold.data.commit.Output.discard", None),
    (BATCHES, "fourfold.cli.batches.say", interrupt),
    (TO_STORE, "fourfold.data.stores.StoreOutput.publish", None),
    (TO_STORE, "fourfold.cli.batches.say", interrupt),
]
USUAL = {
    "fourfold.data.commit.Output.publish": Output.publish,
    "fourfold.data.commit.Output.discard": Output.discard,
    "fourfold.data.stores.StoreOutput.publish": StoreOutput.publish,
}


@pytest.mark.parametrize(("command", "where", "how"), AFTER)
@pytest.mark.parametrize("run", [[], ["--run", "run"]])
def test_an_output_that_was_there_before_ctrl_c_is_said_to_be(
    command: list[str], where: str, how: Any, run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = USUAL.get(where, os.replace)
    with monkeypatch.context() as patch:
        patch.setattr(where, how or then_interrupt(usual))
        ended = CliRunner().invoke(app, [*command, *run])
    assert ended.stderr == f"fourfold: interrupted, and {_named(command[-1])} was written before that, whole\n"
    assert ended.exit_code == 130
    if command is ROWS:
        assert Path("out.jsonl").read_text() == "1\n2\n"
    else:
        assert ff.scan(command[-1]).count(engine="serial") == 5


def _named(output: str) -> str:
    return output if "." in output or ":" in output else str(Path(output).absolute())


BEFORE = [
    (ROWS, "fourfold.aggregate.part_file.os.replace"),
    (BATCHES, "fourfold.data.commit.Output._take_place"),
    (TO_STORE, "fourfold.data.stores.StoreOutput._put_manifest"),
]


@pytest.mark.parametrize(("command", "where"), BEFORE)
def test_an_output_that_was_not_there_yet_is_said_not_to_be(
    command: list[str], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, interrupt)
        ended = CliRunner().invoke(app, command)
    assert ended.stderr == f"fourfold: interrupted: {command[-1]} was not written; the same command starts again\n"
    assert ended.exit_code == 130


@pytest.mark.parametrize("run", [[], ["--run", "run"]])
def test_ctrl_c_stays_ctrl_c_where_the_store_is_dead_that_was_to_tell_of_the_output(
    run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*given: Any) -> None:
        monkeypatch.setattr("fourfold.data.stores.read_manifest", lambda *given: 1 / 0)
        raise KeyboardInterrupt

    monkeypatch.setattr("fourfold.data.stores.StoreOutput.publish", die)
    ended = CliRunner().invoke(app, [*TO_STORE, *run])
    assert ended.stderr.splitlines()[-1].startswith("fourfold: interrupted: memory://interrupted/out was not written; ")
    assert ended.exit_code == 130


@pytest.mark.parametrize("command", [ROWS, BATCHES])
def test_an_output_of_an_earlier_command_is_not_taken_for_this_one(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CliRunner().invoke(app, command).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr("fourfold.aggregate.part_file.os.replace", interrupt)
        patch.setattr("fourfold.data.commit.Output._take_place", interrupt)
        ended = CliRunner().invoke(app, [*command, "--overwrite"])
    assert ended.stderr == f"fourfold: interrupted: {command[-1]} was not written; the same command starts again\n"


def test_a_program_that_is_interrupted_is_told_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "publish", then_interrupt(Output.publish))
    with pytest.raises(KeyboardInterrupt) as caught:
        ff.scan(people(3)).write(tmp_path / "new")
    assert caught.value.__notes__ == [f"fourfold: {tmp_path / 'new'} was written before that, whole"]
