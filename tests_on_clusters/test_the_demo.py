"""The demo on a cluster, as a user types it: `FOURFOLD_ENGINE=spark fourfold demo`."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from clusters import Cluster
from running import SCALE


def start(engine: str, folder: Path, **environment: str) -> "subprocess.Popen[str]":
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "fourfold", "demo", "--aircraft", "40"],
        cwd=folder,
        env={**os.environ, **environment, "FOURFOLD_ENGINE": engine},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.contract(40)
def test_the_demo_writes_the_numbers_of_this_machine(cluster: Cluster, tmp_path: Path) -> None:
    engine = cluster.kind if cluster.starts_by_itself else cluster.address()
    here, there = start("serial", tmp_path / "here"), start(engine, tmp_path / "there", **cluster.environment())
    with here, there:
        for each, name in ((here, "serial"), (there, cluster.kind)):
            stdout, stderr = each.communicate(timeout=60 * SCALE)
            assert each.returncode == 0, stderr
            assert "equal, bit for bit" in stdout
            assert f"({name})" in stdout
    files = [tmp_path / name / "fourfold-demo" / "flights.parquet" for name in ("here", "there")]
    assert pq.read_table(files[0]).to_pandas().equals(pq.read_table(files[1]).to_pandas())  # where NaN is NaN
    assert files[0].read_bytes() == files[1].read_bytes()
