"""The driver is interrupted, or killed: nobody is left behind on the cluster, and the run goes on from its record."""

import contextlib
import os
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
from clusters import Cluster, RayElsewhere
from running import Script, started, until

import fourfold as ff
from fourfold.runs.story import story_of

SCRIPT = """
    import os, sys, time
    import fourfold as ff

    FOLDER = os.path.dirname(os.path.abspath(__file__))

    def fn(item):
        with open(os.path.join(FOLDER, "ran"), "a") as file:
            file.write(f"{item}\\n")
        time.sleep(float(os.environ.get("ITEM_S", "0.05")))
        return item * 3

    if __name__ == "__main__":
        results = ff.map(fn, range(300), run="run", engine=sys.argv[1], chunk=2, progress=False)
        assert results == [item * 3 for item in range(300)]
        print(results.report.n_recorded)
"""

IMPATIENT = SCRIPT.replace(
    "import fourfold as ff", "import fourfold as ff; from fourfold.distribute.engines.on_ray import head"
)
IMPATIENT = IMPATIENT.replace("results = ff.map", "head.SILENT_S = 5.0; results = ff.map")
"""The same, without the patience of 20 s for a head that may come back: tests are long enough."""

RESUME = "fourfold: what finished is recorded in run: the same call goes on from there"

GONE_S = 10.0
"""Seconds in which nobody must be left of what a driver has started, after Ctrl-C."""

DOWN_S = 60.0
"""Seconds in which a call must say that its cluster is gone."""

CODE = {"ray": 1}
"""The exit code of a script that Ctrl-C has ended, where it is not the signal: Ray changes it, for any script."""

KILLED_GONE_S = 60.0
"""... and after SIGKILL: a cluster may notice by a lost heartbeat only."""


@pytest.fixture(params=["its own", "given"])
def is_given(request: pytest.FixtureRequest, cluster: Cluster) -> bool:
    """Whether the script uses a cluster that is there and stays, or one that it starts and ends."""
    if request.param == "given" and not cluster.is_elsewhere():
        pytest.skip("not applicable: this cluster lives in the process of the tests")
    if request.param == "its own" and not cluster.starts_by_itself:
        pytest.skip('not applicable: engine="spark" starts no Connect server: what it starts is tested with --cluster=spark')
    return bool(request.param == "given")


def start(cluster: Cluster, is_given: bool, folder: Path) -> AbstractContextManager[Script]:
    if is_given:
        return started(SCRIPT, cluster.address(), folder=folder, **cluster.environment())
    return started(SCRIPT, cluster.kind, folder=folder)


def lines(folder: Path) -> list[str]:
    path = folder / "ran"
    return path.read_text().splitlines() if path.exists() else []


def recorded(folder: Path) -> int:
    return story_of(folder / "run").n_done


def is_under_way(folder: Path) -> bool:
    return bool(lines(folder)) and recorded(folder) >= 20


def finish_here(folder: Path) -> None:
    """The same call on this machine does the rest: what is recorded does not run again."""
    n_recorded, n_ran = recorded(folder), len(lines(folder))
    with started(SCRIPT, "processes", folder=folder, ITEM_S="0") as script:  # nobody needs to come between any more
        ended = script.end()
    assert (ended.code, ended.stderr) == (0, "")
    assert int(ended.stdout) == n_recorded > 0
    assert len(lines(folder)) == n_ran + 300 - n_recorded


def check_that_it_still_works(cluster: Cluster) -> None:
    assert ff.map(lambda x: x + 1, range(10), engine=cluster.engine()) == list(range(1, 11))


@pytest.mark.contract(20)
def test_ctrl_c_keeps_what_finished_and_leaves_nobody_behind(cluster: Cluster, is_given: bool, tmp_path: Path) -> None:
    with start(cluster, is_given, tmp_path) as script:
        until(lambda: is_under_way(tmp_path), "20 items are recorded", timeout=60)
        os.killpg(script.process.pid, signal.SIGINT)  # as a terminal does it
        ended = script.end(survive_s=GONE_S)
    assert (ended.code, ended.survivors) == (CODE.get(cluster.kind, -signal.SIGINT), [])
    # Not "the last line": Ray has words of its own when a driver leaves, at times.
    assert RESUME in ended.stderr.splitlines(), ended.stderr
    finish_here(tmp_path)
    if is_given:
        check_that_it_still_works(cluster)


@pytest.mark.contract(21)
def test_a_killed_driver_leaves_nobody_behind(cluster: Cluster, is_given: bool, tmp_path: Path) -> None:
    with start(cluster, is_given, tmp_path) as script:
        until(lambda: is_under_way(tmp_path), "20 items are recorded", timeout=60)
        script.process.kill()
        ended = script.end(survive_s=KILLED_GONE_S)
        if is_given:
            wait_until_quiet(tmp_path)
    assert (ended.code, ended.survivors) == (-signal.SIGKILL, [])
    finish_here(tmp_path)
    if is_given:
        check_that_it_still_works(cluster)


@pytest.mark.contract(36)
def test_a_cluster_that_is_killed_is_told_and_what_finished_is_kept(cluster: Cluster, tmp_path: Path) -> None:
    if not cluster.starts_by_itself:
        pytest.skip('not applicable: engine="spark" starts no Connect server: one that is killed is in test_deaths.py')
    with start(cluster, False, tmp_path) as script:
        until(lambda: is_under_way(tmp_path), "20 items are recorded", timeout=60)
        for each in psutil.Process(script.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        ended = script.end(timeout=DOWN_S, survive_s=KILLED_GONE_S)
    assert (ended.code, ended.survivors) == (1, []), ended.stderr
    assert "fourfold.errors.EngineError" in ended.stderr
    finish_here(tmp_path)


def test_a_given_ray_that_is_stopped_is_told_and_what_finished_is_kept(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.kind != "ray":
        pytest.skip("one of another kind is in test_deaths.py")
    (tmp_path / "cluster").mkdir()
    given = RayElsewhere(tmp_path / "cluster")
    try:
        given.start()
        with started(IMPATIENT, "ray", folder=tmp_path, **given.environment()) as script:
            until(lambda: is_under_way(tmp_path), "20 items are recorded", timeout=60)
            given.kill()
            ended = script.end(timeout=DOWN_S, survive_s=KILLED_GONE_S)
    finally:
        given.stop()
    assert (ended.code, ended.survivors) == (1, []), ended.stderr
    assert "fourfold.errors.EngineError" in ended.stderr
    finish_here(tmp_path)


def wait_until_quiet(folder: Path) -> None:
    """Returns when the cluster has dropped what the driver had started there."""
    deadline = time.monotonic() + KILLED_GONE_S
    while True:
        before = len(lines(folder))
        time.sleep(1.0)
        if len(lines(folder)) == before:
            return
        assert time.monotonic() < deadline, "the cluster goes on with the items of a dead driver"
