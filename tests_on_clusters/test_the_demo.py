"""The demo on a cluster, as a user types it: `FOURFOLD_ENGINE=spark fourfold demo`."""

import os
import subprocess
from pathlib import Path

import joblib
import pytest
import quick_demo
from clusters import Cluster
from running import SCALE

from fourfold.cli.demo_data import find_source, write_data


def start(engine: str, folder: Path, data: Path, **environment: str) -> "subprocess.Popen[str]":
    (folder / "fourfold-demo").mkdir(parents=True)
    (folder / "fourfold-demo" / "data").symlink_to(data)
    return subprocess.Popen(
        quick_demo.COMMAND,
        cwd=folder,
        env={**os.environ, **environment, "FOURFOLD_ENGINE": engine},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.contract(40)
def test_the_demo_writes_the_numbers_of_this_machine(cluster: Cluster, tmp_path: Path) -> None:
    if not cluster.starts_by_itself:
        pytest.skip('engine="spark" starts no Connect server: the demo is on the one that it starts, with --cluster=spark')
    engine = cluster.kind
    data = tmp_path / "data"
    write_data(find_source(), data)
    here, there = start("serial", tmp_path / "here", data), start(engine, tmp_path / "there", data, **cluster.environment())
    with here, there:
        for each, name in ((here, "serial"), (there, cluster.kind)):
            stdout, stderr = each.communicate(timeout=60 * SCALE)
            assert each.returncode == 0, stderr
            assert stdout.count("equal, bit for bit") >= 2
            assert f"({name}), " in stdout
    assert written(tmp_path / "here") == written(tmp_path / "there")


def written(folder: Path) -> dict[str, bytes]:
    """The files of both steps, and what the model has learned: its own file has other bytes after each fit."""
    files = sorted((folder / "fourfold-demo").glob("*/part-*.parquet"))
    assert files
    chance = joblib.load(folder / "fourfold-demo" / "model.joblib")["chance"]
    learned = {"coef_": chance.coef_.tobytes(), "intercept_": chance.intercept_.tobytes()}
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files} | learned
