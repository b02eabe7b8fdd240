"""A machine of the cluster is lost, and the cluster itself: nothing that finished is lost, and nothing hangs."""

import contextlib
import os
import time

import numpy as np
import psutil
import pytest
from clusters import PATIENCE_S, Cluster
from running import SCALE

import fourfold as ff
from fourfold.distribute.engines.on_spark import pulse
from fourfold.engines import Dask
from fourfold.errors import EngineError, WorkerLost

GONE_S = 60.0
"""Seconds in which a call must say that its cluster is gone."""


def kill(pid: int) -> None:
    """Kill a process and all that it has started, as the loss of a machine does."""
    family = psutil.Process(pid)
    for each in [*family.children(recursive=True), family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


@pytest.mark.contract(14, 15, 23)
def test_a_machine_that_is_lost_costs_no_item(cluster: Cluster, tmp_path):
    if not cluster.workers():
        pytest.skip("not applicable: this cluster is one machine: when it is lost, the cluster is")
    reached = tmp_path / "reached"
    shared = np.arange(2 << 20)  # 16 MiB, which that machine keeps, where a machine does

    def fn(x):
        if x == 20:
            reached.touch()
        time.sleep(0.05)
        return int(shared[x << 10])

    results, is_killed = [], False
    try:
        for value in ff.imap(fn, range(150), engine=cluster.engine(), chunk=5):
            results.append(value)
            if not is_killed and reached.exists():
                kill(cluster.holder())
                is_killed = True
    finally:
        if is_killed:
            cluster.mend()
    assert is_killed
    assert results == [x << 10 for x in range(150)]


def test_a_machine_that_does_not_come_back_costs_no_item(cluster: Cluster, tmp_path):
    victims = cluster.hosts()
    if not victims:
        pytest.skip("here it is the machine itself that is lost in the test above")
    seen = 0
    for value in ff.imap(lambda x: time.sleep(0.05) or x * 2, range(100), engine=cluster.engine(), chunk=5):
        assert value == seen * 2
        seen += 1
        if seen == 20:
            kill(victims[0])
    cluster.mend()
    assert seen == 100


@pytest.mark.parametrize("slots", [1, None], ids=["alone", "others wait behind it"])
def test_an_item_that_takes_its_machine_along_is_the_only_one_that_fails(cluster: Cluster, slots):
    if cluster.kind != "dask" or not cluster.workers():
        pytest.skip("only Dask runs what was on a machine that is lost again until it gives up (KilledWorker)")

    def allow_failures(count, dask_scheduler=None):  # here it travels by value
        dask_scheduler.allowed_failures = count

    def fn(x):
        if x == 7:
            above = psutil.Process().parents()
            machine = next(each for each in above if "multiprocessing.spawn" in " ".join(each.cmdline()))
            machine.kill()
            time.sleep(60)
        time.sleep(0.1)  # so that others wait behind it
        return x * 2

    client = cluster.engine().connection._given
    client.run_on_scheduler(allow_failures, 0)
    try:
        # Of two tasks that are on a machine, Dask does not say which of them ran when it died.
        results = ff.map(fn, range(16), engine=cluster.engine(slots=slots), chunk=1, on_error="collect")
    finally:
        client.run_on_scheduler(allow_failures, 3)
        cluster.mend()
    assert [x for x, result in enumerate(results) if result != x * 2] == [7]
    assert isinstance(results.failures[0].error, WorkerLost), results.failures[0]
    assert "Dask lost" in str(results.failures[0])
    assert results.failures[0].attempts == 2, "what went with the machine was taken for the death of another item"


@pytest.mark.slow
def test_items_that_each_take_their_machine_along_are_found_though_they_run_at_the_same_time(cluster: Cluster):
    if cluster.kind != "dask" or not cluster.hosts():
        pytest.skip("only of Dask, and where machines come back: what both machines kept is lost with them")

    def fn(x):
        if x in (7, 8):
            above = psutil.Process().parents()
            next(each for each in above if "multiprocessing.spawn" in " ".join(each.cmdline())).kill()
            time.sleep(60)
        return x * 2

    try:
        results = ff.map(fn, range(16), engine=cluster.engine(), chunk=1, on_error="collect")
    finally:
        cluster.mend()
    assert [x for x, result in enumerate(results) if result != x * 2] == [7, 8]
    assert [type(failure.error) for failure in results.failures] == [WorkerLost, WorkerLost]


def test_a_dask_that_is_started_here_has_another_worker_in_the_place_of_one_that_it_lost(cluster: Cluster, monkeypatch):
    if cluster.kind != "dask":
        pytest.skip("only Dask counts its machines")
    # By itself it looks after 15 s, and lets go of the place when another worker is lost just then. Here it looks at once.
    monkeypatch.setenv("DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT", "0")
    engine = Dask(slots=1)
    try:
        assert ff.map(abs, [-1], engine=engine) == [1]
        (first,) = engine.connection.client.run(os.getpid).values()
        kill(first)
        assert ff.map(abs, [-2], engine=engine, timeout=PATIENCE_S) == [2]
        (second,) = engine.connection.client.run(os.getpid).values()
        assert second != first
    finally:
        engine.shutdown()


def test_an_item_for_which_spark_gives_up_its_job_costs_one_item(cluster: Cluster):
    """Each time it runs Spark's own worker dies, and the others in its job come back with nothing."""
    if cluster.kind != "spark":
        pytest.skip("this is about the jobs of Spark")

    def fn(x):
        if x == 5:
            above = psutil.Process().parents()
            next(each for each in above if "pyspark.daemon" in each.cmdline()).kill()
            time.sleep(60)
        return x * 2

    results = ff.map(fn, range(16), engine=cluster.engine(), chunk=2, on_error="collect")
    assert [x for x, result in enumerate(results) if result != x * 2] == [5]
    (failure,) = results.failures
    assert isinstance(failure.error, WorkerLost)
    assert "Spark gave the job up: " in failure.message
    assert "Python worker exited unexpectedly" in failure.message


@pytest.mark.contract(32)
def test_what_is_slow_on_a_machine_may_run_on_another_machine_too_and_counts_once(cluster: Cluster, tmp_path):
    if not cluster.speculates:
        pytest.skip("not applicable: this cluster starts nothing a second time")

    def fn(x):
        with open(tmp_path / f"starts-{x}", "a") as starts:
            starts.write("+")
        if x == 3 and os.path.getsize(tmp_path / "starts-3") == 1:
            time.sleep(600)
        return x * 2

    begin = time.monotonic()
    results = ff.map(fn, range(20), engine=cluster.engine(), chunk=1)
    assert results == [x * 2 for x in range(20)]
    assert (tmp_path / "starts-3").read_text() == "++"
    assert time.monotonic() - begin < 40 * SCALE


@pytest.mark.contract(11)
def test_what_a_chunk_has_finished_outlives_its_worker_process_on_a_cluster_too(cluster: Cluster, tmp_path):
    def fn(x):
        with open(tmp_path / f"starts-{x}", "a") as starts:
            starts.write("+")
        time.sleep(0.06)  # long enough for each result to be kept at once
        if x == 2 and (tmp_path / "starts-2").read_text() == "+":
            os._exit(7)
        return np.full(3, x)

    results = ff.map(fn, range(4), engine=cluster.engine(), chunk=4)
    assert [value.tolist() for value in results] == [[x] * 3 for x in range(4)]
    results[0] += 1  # it may be written to as any other
    assert [(tmp_path / f"starts-{x}").read_text() for x in range(4)] == ["+", "+", "++", "+"]


@pytest.mark.contract(32)
def test_what_may_not_run_twice_does_not_run_on_another_machine_too(cluster: Cluster, tmp_path):
    if not cluster.speculates:
        pytest.skip("not applicable: this cluster starts nothing a second time")

    def fn(x):
        with open(tmp_path / f"starts-{x}", "a") as starts:
            starts.write("+")
        if x == 3:
            time.sleep(20)
        return x * 2

    results = ff.map(fn, range(20), engine=cluster.engine(), chunk=1, idempotent=False, on_error="collect")
    assert [x for x, result in enumerate(results) if result != x * 2] == [3]
    assert "took it for slow" in str(results.failures[0])
    assert {(tmp_path / f"starts-{x}").read_text() for x in range(20)} == {"+"}


@pytest.mark.contract(36)
@pytest.mark.breaks_it
def test_a_call_whose_cluster_is_gone_says_so_and_goes_on_here(request, tmp_path, monkeypatch):
    shared = request.getfixturevalue("shared_cluster")
    if not shared.processes and shared.kind != "ray":
        pytest.skip("not applicable: this cluster lives in the process of the tests")
    if shared.kind == "ray":
        pytest.skip("not applicable: Ray ends a process whose own raylet is gone; test_drivers.py has a script for it")

    monkeypatch.setattr(pulse, "SILENT_S", 5.0)  # without the patience for a Spark that starts again: tests are long enough
    run, hurry = str(tmp_path / "run"), tmp_path / "hurry"
    killed_at = 0.0

    def fn(x):
        time.sleep(0.0 if hurry.exists() else 0.05)
        return x * 2

    def go_on_until_it_is_gone():
        nonlocal killed_at
        for value in ff.imap(fn, range(400), engine=shared.engine(), chunk=4, run=run):
            if value >= 60 and not killed_at:
                killed_at = time.monotonic()
                shared.kill()

    with pytest.raises(EngineError) as caught:
        go_on_until_it_is_gone()
    assert killed_at
    assert time.monotonic() - killed_at < GONE_S * SCALE
    assert "gone" in str(caught.value)
    hurry.touch()
    results = ff.map(fn, range(400), engine="processes", workers=2, run=run)
    assert results == [x * 2 for x in range(400)]
    assert results.report.n_recorded >= 30
