"""What a cluster keeps for a call: the function once, and nothing of it afterwards; results only as large as it carries."""

import gc
import logging
import os
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from clusters import Cluster
from running import SCALE, until

import fourfold as ff
from fourfold.engines import Dask
from fourfold.errors import WorkerLost
from fourfold.records import Kind

LARGE_BYTES = 32 << 20

FREED_S = 30.0
"""Seconds in which a cluster has freed what nobody wants any more."""


def in_ray(engine: Any) -> int:
    """Objects that this process owns."""
    import ray

    return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


def in_dask(engine: Any) -> int:
    client = engine.connection.client
    return int(client.run_on_scheduler(lambda dask_scheduler: sum(task.nbytes or 0 for task in dask_scheduler.tasks.values())))


def in_spark(engine: Any) -> int:
    """Bytes of blocks, in all block managers."""
    status = engine.connection.spark.sparkContext._jsc.sc().getExecutorMemoryStatus().valuesIterator()
    used = 0
    while status.hasNext():
        most_and_left = status.next()
        used += most_and_left._1() - most_and_left._2()
    return used


STORED: dict[str, tuple[Callable[[Any], int], int]] = {
    "ray": (in_ray, 0),
    "dask": (in_dask, 1 << 20),
    "spark": (in_spark, 1 << 20),
}
"""How much a cluster keeps, and how much more of that is nothing of ours."""


@pytest.mark.contract(22)
def test_what_items_share_is_freed_after_the_call(cluster: Cluster) -> None:
    engine = cluster.engine()
    ff.map(abs, [1], engine=engine)
    table = np.arange(LARGE_BYTES // 8)
    if cluster.is_connect:  # as the docstring of `drop` says: its files stay until the session ends, but each is sent once
        stored = engine.connection._stored
        before = len(stored)
        for _ in range(2):
            assert ff.map(lambda x: int(table[x]), range(4), engine=engine) == list(range(4))
            assert len(stored) == before + 1
        return
    look, slack = STORED[cluster.kind]
    before, most = look(engine), 0
    for value in ff.imap(lambda x: int(table[x]), range(6), engine=engine, chunk=1):
        most = look(engine) if value == 1 else most
    assert most > before + slack
    until(lambda: look(engine) <= before + slack, "it is freed", timeout=FREED_S)


@pytest.mark.contract(22)
def test_dask_keeps_nothing_between_calls(cluster: Cluster) -> None:
    if cluster.kind != "dask":
        pytest.skip("this is about the keys of a Dask scheduler")
    engine = cluster.engine()
    client = engine.connection._given
    gc.collect()  # what connections of other tests keep is let go with them
    n_keys = lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))  # noqa: E731
    before = n_keys()
    assert ff.map(abs, [-1, -2], engine=engine, chunk=1) == [1, 2]
    until(lambda: n_keys() <= before, "it is freed", timeout=FREED_S)


@pytest.mark.slow
def test_a_dask_that_adapts_has_no_worker_between_calls_and_starts_one_for_the_next(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--cluster") != "dask":
        pytest.skip("once is enough: it has a Dask cluster of its own, which adapts")
    import distributed

    quiet = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, **quiet) as adapts, distributed.Client(adapts) as client:
        adapts.adapt(minimum=0, maximum=1, interval="300ms")  # three times idle, and it goes
        engine = Dask(client=client)
        for x in (-1, -2):
            assert ff.map(abs, [x], engine=engine) == [-x]
            until(lambda: not client.scheduler_info(n_workers=-1)["workers"], "its worker has gone", timeout=FREED_S)


@pytest.mark.contract(25)
def test_a_result_that_the_cluster_does_not_carry_costs_its_item_and_is_told(cluster: Cluster) -> None:
    if cluster.kind != "spark":
        pytest.skip("not applicable: Ray and Dask have other limits, see below")
    begin = time.monotonic()
    results = ff.map(lambda x: bytes(x << 20), [1, 128, 2], engine=cluster.engine(), chunk=1, on_error="collect")
    assert [len(results[0]), len(results[2])] == [1 << 20, 2 << 20]
    assert isinstance(results[1].error, WorkerLost)
    assert "spark.driver.maxResultSize" in results[1].message
    assert time.monotonic() - begin < 60 * SCALE


@pytest.mark.contract(25, "dask")
def test_a_result_that_is_too_large_for_a_dask_worker_costs_its_item_and_is_told(cluster: Cluster) -> None:
    if cluster.kind != "dask":
        pytest.skip("not applicable: it is about Dask")
    from distributed import Client, LocalCluster

    options = {"host": "127.0.0.1", "dashboard_address": None, "memory_limit": "600MB"}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, **options) as machine,
        Client(machine, set_as_default=False) as client,
    ):
        here = {"engine": Dask(client=client), "chunk": 1, "on_error": "collect"}
        before = client.run(os.getpid)
        results = ff.map(lambda x: np.zeros(x << 20, "u1"), [1, 400, 2], **here)
        assert [len(results[0]), len(results[2])] == [1 << 20, 2 << 20]
        (failure,) = results.failures
        assert isinstance(failure.error, WorkerLost)
        assert "its result of 400 MiB does not fit into the memory of a Dask worker, of 572 MiB" in failure.message
        assert client.run(os.getpid) == before  # no worker of Dask was lost for it


@pytest.mark.contract(25, "ray")
@pytest.mark.parametrize("name", ["OutOfDiskError", "ObjectStoreFullError"])
def test_a_result_that_ray_cannot_store_is_that_items_failure_and_ray_goes_on(cluster: Cluster, name: str) -> None:
    """What Ray raises then, as it comes out of `ray.get`: to fill a disk takes another Ray, and half a minute."""
    if cluster.kind != "ray":
        pytest.skip("not applicable: it is about Ray")
    import ray

    error = ray.exceptions.RayTaskError("fourfold_chunk", "a traceback", getattr(ray.exceptions, name)("Local disk is full"))

    def get(ref: Any) -> Any:
        raise error

    engine = cluster.engine()
    engine.open()
    engine._flying["a reference"] = 7
    (outcome,) = engine._outcome(types.SimpleNamespace(exceptions=ray.exceptions, get=get), "a reference")
    assert (outcome.id, outcome.kind) == (7, Kind.LOST)
    assert f"Ray has no room for its result, neither in memory nor on disk ({name}: Local disk is full" in outcome.reason
