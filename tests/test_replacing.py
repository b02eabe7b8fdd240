"""An output that takes the place of another one, where names cannot change places in one step, and the driver is killed there."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from killer import is_killed_at
from tables import people
from typer.testing import CliRunner

import fourfold as ff
from fourfold.cli import app
from fourfold.data import commit
from fourfold.errors import OptionError, RunError
from fourfold.runs.leftovers import put_back, remove
from fourfold.runs.upkeep import sweep
from fourfold.system import seams

OUT_IS_GONE, NEW_IS_THERE = "output.aside:1:KILL", "output.exchanged:1:KILL"


@pytest.fixture(autouse=True)
def _no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit.ctypes, "CDLL", lambda *given, **named: object())


def write(folder: Path, n_rows: int, **options: Any) -> int:
    return ff.scan(people(n_rows)).write(folder / "out", engine="serial", **options).n_rows


def killed(folder: Path, where: str, **options: Any) -> None:
    write(folder, 3)
    assert is_killed_at(where, lambda: write(folder, 6, overwrite=True, **options))
    assert (folder / "out").exists() == (where == NEW_IS_THERE)


def n_rows_in(folder: Path) -> int:
    return ff.scan(folder / "out").count(engine="serial")


def left_in(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != "run")


class HalfReplaced(NamedTuple):
    """An output that a call was about to replace when its driver was killed."""

    where: str
    n_rows: int
    """Of the one that counts: what has not happened is undone, and what has is brought to its end."""
    options: dict[str, Any]
    """Those of the call."""


@pytest.fixture(params=[{}, {"run": "run"}], ids=["not recorded", "recorded"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.fixture(params=[(OUT_IS_GONE, 3), (NEW_IS_THERE, 6)], ids=["out is gone", "new is there"])
def half(
    request: pytest.FixtureRequest, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> HalfReplaced:
    monkeypatch.chdir(tmp_path)
    where, n_rows = request.param
    killed(tmp_path, where, **options)
    return HalfReplaced(where, n_rows, options)


def test_clean_undoes_what_has_not_happened_and_ends_what_has(half: HalfReplaced, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["clean", str(tmp_path)])
    assert ended.exit_code == 0, ended.output
    said = f"{tmp_path / 'out'} is there again: a run was killed while it replaced it"
    assert (said in ended.output) == (half.where == OUT_IS_GONE)
    assert n_rows_in(tmp_path) == half.n_rows
    assert not [name for name in left_in(tmp_path) if ".whole" in name]
    assert half.options or left_in(tmp_path) == ["out"]


def test_the_next_call_that_may_not_overwrite_finds_the_output(half: HalfReplaced, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is there already"):
        write(tmp_path, 9)
    assert n_rows_in(tmp_path) == half.n_rows


def test_the_same_call_goes_on_and_leaves_nothing_of_both(half: HalfReplaced, tmp_path: Path) -> None:
    assert write(tmp_path, 6, overwrite=True, **half.options) == 6
    assert n_rows_in(tmp_path) == 6
    [*sweep(tmp_path)]
    assert left_in(tmp_path) == ["out"]


def test_an_old_output_that_is_a_file_comes_back_too(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert is_killed_at(OUT_IS_GONE, lambda: write(tmp_path, 6, overwrite=True))
    [*sweep(tmp_path)]
    assert (tmp_path / "out").read_text() == "mine"
    assert left_in(tmp_path) == ["out"]


def test_an_output_that_a_living_driver_replaces_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 3)
    found: list[Any] = []
    hit = seams.hit

    def look(seam: str) -> None:
        if seam == "output.aside":
            found.extend(sweep(tmp_path))
            put_back(tmp_path / "out")
            assert not (tmp_path / "out").exists()
        hit(seam)

    monkeypatch.setattr(seams, "hit", look)
    assert write(tmp_path, 6, overwrite=True) == 6
    assert found == []
    assert n_rows_in(tmp_path) == 6
    assert left_in(tmp_path) == ["out"]


def test_of_two_outputs_none_is_lost_and_both_are_named(tmp_path: Path) -> None:
    killed(tmp_path, OUT_IS_GONE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    for _ in range(2):
        (left,) = [each for each in sweep(tmp_path) if each.error is not None]
        assert left.path.endswith(".whole.old")
        assert "keep one of them and remove the other" in str(left.error)
        assert isinstance(left.error, RunError)
    assert os.listdir(tmp_path / "out") == ["theirs"]
    shutil.rmtree(tmp_path / "out")
    [*sweep(tmp_path)]
    assert n_rows_in(tmp_path) == 3
    assert left_in(tmp_path) == ["out"]


def test_a_call_that_goes_on_and_fails_leaves_it_to_a_person_which_of_two_outputs_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    killed(tmp_path, OUT_IS_GONE, run="run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    with monkeypatch.context() as patch:
        patch.setattr(commit.Output, "publish", lambda *given: end_here())
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 6, overwrite=True, run="run")
    (left,) = sweep(tmp_path)
    assert "keep one of them and remove the other" in str(left.error)
    assert write(tmp_path, 6, overwrite=True, run="run") == 6
    [*sweep(tmp_path)]
    assert (n_rows_in(tmp_path), left_in(tmp_path)) == (6, ["out"])
    assert len([name for name in os.listdir(tmp_path / "out") if name.endswith(".parquet")]) == 1, "no part of the dead one"


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("then", ["clean", "the same call"])
def test_an_old_output_that_was_no_folder_and_could_not_be_removed_goes_later(
    kind: str, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    (tmp_path / "out").write_text("mine") if kind == "file" else (tmp_path / "out").symlink_to(tmp_path / "mine")
    with monkeypatch.context() as patch:
        patch.setattr(commit.seams, "hit", lambda seam: seam == "output.published" and end_here())
        patch.setattr(commit, "remove", refuse_what_is_no_folder)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 6, overwrite=True, run=tmp_path / "run")
    assert [name for name in left_in(tmp_path) if name.endswith(".whole")]
    if then == "the same call":
        assert write(tmp_path, 6, overwrite=True, run=tmp_path / "run") == 6
    [*sweep(tmp_path)]
    assert not [name for name in left_in(tmp_path) if name.endswith(".whole")]
    assert n_rows_in(tmp_path) == 6
    assert os.listdir(tmp_path / "mine") == ["kept"]


def end_here() -> None:
    raise KeyboardInterrupt


def refuse_what_is_no_folder(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        raise PermissionError(f"{path} cannot be removed")
    remove(path)


def test_what_cannot_take_the_place_of_an_output_leaves_it_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 3)
    rename = os.rename

    def refuse(one: Any, other: Any) -> None:
        if Path(other).name == "out" and Path(one).name.endswith(".whole"):
            raise PermissionError("not this one")
        rename(one, other)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PermissionError):
        write(tmp_path, 6, overwrite=True)
    assert n_rows_in(tmp_path) == 3
    assert left_in(tmp_path) == ["out"]
