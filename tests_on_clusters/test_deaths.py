"""A machine of the cluster is lost, and the cluster itself: nothing that finished is lost, and nothing hangs."""

import time

import psutil
import pytest
from clusters import Cluster

import fourfold as ff
from fourfold.errors import EngineError

GONE_S = 60.0
"""Seconds in which a call must say that its cluster is gone."""


def kill(pid: int) -> None:
    """Kill a process and all that it has started, as the loss of a machine does."""
    family = psutil.Process(pid)
    for each in [*family.children(recursive=True), family]:
        if each.is_running():
            each.kill()


def test_a_machine_that_is_lost_costs_no_item(cluster: Cluster, tmp_path):
    victims = cluster.workers()
    if not victims:
        pytest.skip("this cluster is one machine: when it is lost, the cluster is")
    reached = tmp_path / "reached"

    def fn(x):
        if x == 20:
            reached.touch()
        time.sleep(0.05)
        return x * 2

    results = []
    for value in ff.imap(fn, range(150), engine=cluster.engine(), chunk=5):
        results.append(value)
        if victims and reached.exists():
            kill(victims.pop())
            victims.clear()
    cluster.mend()
    assert results == [x * 2 for x in range(150)]


@pytest.mark.breaks_it
def test_a_call_whose_cluster_is_gone_says_so_and_goes_on_here(request, tmp_path):
    shared = request.getfixturevalue("shared_cluster")
    if not shared.processes and shared.kind != "ray":
        pytest.skip("this cluster lives in the process of the tests")
    if shared.kind == "ray":
        pytest.skip("Ray ends a process whose own raylet is gone")

    def fn(x):
        time.sleep(0.05)
        return x * 2

    run = str(tmp_path / "run")
    killed_at = 0.0

    def go_on_until_it_is_gone():
        nonlocal killed_at
        for value in ff.imap(fn, range(400), engine=shared.engine(), chunk=4, run=run):
            if value >= 60 and not killed_at:
                killed_at = time.monotonic()
                shared.kill()

    with pytest.raises(EngineError) as caught:
        go_on_until_it_is_gone()
    assert killed_at
    assert time.monotonic() - killed_at < GONE_S
    assert "gone" in str(caught.value)
    results = ff.map(fn, range(400), engine="processes", workers=2, run=run)
    assert results == [x * 2 for x in range(400)]
    assert results.report.n_recorded >= 30
