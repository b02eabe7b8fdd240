"""The demo on a cluster, as a user types it: `FOURFOLD_ENGINE=spark fourfold demo`."""

import os
import subprocess
from pathlib import Path

import joblib
import pytest
import quick_demo
from clusters import Cluster
from running import SCALE

from fourfold.cli.demo import demo_command
from fourfold.cli.demo_data import find_source, write_data
from fourfold.data import pieces


def with_data(folder: Path, data: Path) -> None:
    (folder / "fourfold-demo").mkdir(parents=True)
    (folder / "fourfold-demo" / "data").symlink_to(data)


def run_here(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has what the demo imports, and in the loop."""
    with_data(folder, data)
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(pieces, "PIECES", quick_demo.PIECES)
        demo_command(months=quick_demo.MONTHS, engine="serial")


def start(engine: str, folder: Path, data: Path, **environment: str) -> "subprocess.Popen[str]":
    with_data(folder, data)
    return subprocess.Popen(
        quick_demo.COMMAND,
        cwd=folder,
        env={**os.environ, **environment, "FOURFOLD_ENGINE": engine},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.contract(40)
@pytest.mark.of_any_kind
def test_the_demo_writes_the_numbers_of_this_machine(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not cluster.starts_by_itself:
        pytest.skip('engine="spark" starts no Connect server: the demo is on the one that it starts, with --cluster=spark')
    data = tmp_path / "data"
    write_data(find_source(), data)
    with start(cluster.kind, tmp_path / "there", data, **cluster.environment()) as there:
        run_here(tmp_path / "here", data, monkeypatch)
        check(capsys.readouterr().out, "serial")
        stdout, stderr = there.communicate(timeout=60 * SCALE)
        assert there.returncode == 0, stderr
    check(stdout, cluster.kind)
    assert written(tmp_path / "here") == written(tmp_path / "there")


def check(said: str, name: str) -> None:
    assert said.count("equal, bit for bit") >= 2
    assert f"({name}), " in said


def written(folder: Path) -> dict[str, bytes]:
    """The files of both steps, and what the model has learned: its own file has other bytes after each fit."""
    files = sorted((folder / "fourfold-demo").glob("*/part-*.parquet"))
    assert files
    chance = joblib.load(folder / "fourfold-demo" / "model.joblib")["chance"]
    learned = {"coef_": chance.coef_.tobytes(), "intercept_": chance.intercept_.tobytes()}
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files} | learned
