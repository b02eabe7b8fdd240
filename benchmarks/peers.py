"""The peers, each opened once and kept warm: a context manager that yields its `map`.

A peer's `map(fn, items, **setting)` returns the list of answers in the order of the items. Each is used in
the best way its documentation knows; where that depends on the work, the promise offers several settings and
the fastest runs. A peer is imported when it is opened.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from fourfolds import start_workers
from measure import Contestant, Race, race, timed

Mapper = Callable[..., Iterable[Any]]

# Bytes of Ray's object store: arguments and results of P4 (0.8 GB each) of two calls. Smaller: Ray spills to
# disk and loses. Larger: nothing gained.
RAY_STORE_BYTES = 4 << 30


def entry(
    name: str,
    mapper: Mapper,
    fn: Callable[[Any], Any],
    items: Sequence[Any],
    *settings: dict[str, Any],
    max_rounds: int | None = None,
) -> Contestant:
    """A contestant that maps `fn` over `items`, in each of the settings (keyword arguments of `mapper`)."""

    def call(setting: dict[str, Any]) -> Callable[[], Any]:
        return lambda: timed(lambda: mapper(fn, items, **setting))

    named = {", ".join(f"{key}={value}" for key, value in setting.items()): setting for setting in settings or ({},)}
    return Contestant(name, {label: call(setting) for label, setting in named.items()}, max_rounds)


@contextmanager
def multiprocessing_pool(workers: int) -> Iterator[Mapper]:
    """multiprocessing.Pool, forked: its fastest start method."""
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield lambda fn, items, chunksize=None: pool.map(fn, items, chunksize)


@contextmanager
def process_pool_executor(workers: int) -> Iterator[Mapper]:
    """concurrent.futures.ProcessPoolExecutor, forked, all workers started."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as executor:
        list(executor.map(abs, range(workers)))
        yield lambda fn, items, chunksize=1: list(executor.map(fn, items, chunksize=chunksize))


@contextmanager
def joblib_parallel(workers: int) -> Iterator[Mapper]:
    """joblib with loky: the workers outlive the `Parallel` objects, as in any program that uses it."""
    import joblib

    def run(fn: Callable[[Any], Any], items: Iterable[Any], **setting: Any) -> list[Any]:
        return joblib.Parallel(n_jobs=workers, **setting)(joblib.delayed(fn)(item) for item in items)

    run(abs, range(workers))
    yield run
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


@contextmanager
def mpire_pool(workers: int) -> Iterator[Mapper]:
    """mpire's WorkerPool, forked and kept alive between calls."""
    import mpire

    with mpire.WorkerPool(workers, start_method="fork", keep_alive=True) as pool:
        pool.map(abs, range(workers))
        yield lambda fn, items, **setting: pool.map(fn, items, concatenate_numpy_output=False, **setting)


@contextmanager
def ray_cluster(workers: int) -> Iterator[Mapper]:
    """Ray on this machine, on loopback only, without dashboard and usage statistics; `chunk` items a task."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    warnings.filterwarnings("ignore", module="ray")
    import logging

    import ray

    ray.init(
        "local",  # and not the one that somebody has started here
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=RAY_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )
    try:
        run_chunk = ray.remote(_run_chunk)

        def run(fn: Callable[[Any], Any], items: Sequence[Any], chunk: int = 1) -> list[Any]:
            function = ray.put(fn)
            starts = range(0, len(items), chunk)
            answers = ray.get([run_chunk.remote(function, items[start : start + chunk]) for start in starts])
            return [answer for answers_of_chunk in answers for answer in answers_of_chunk]

        run(abs, range(workers))
        yield run
    finally:
        ray.shutdown()


def _run_chunk(fn: Callable[[Any], Any], chunk: Sequence[Any]) -> list[Any]:
    return [fn(item) for item in chunk]


@contextmanager
def dask_cluster(workers: int) -> Iterator[Mapper]:
    """Dask on this machine: one thread a worker, on loopback only, without dashboard; `chunk` items a task."""
    import logging

    import distributed

    with (
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):

        def run(fn: Callable[[Any], Any], items: Sequence[Any], chunk: int = 0, **setting: Any) -> list[Any]:
            if not chunk:
                return client.gather(client.map(fn, items, pure=False, **setting))
            chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
            answers = client.gather(client.map(partial(_run_chunk, fn), chunks, pure=False))
            return [answer for answers_of_chunk in answers for answer in answers_of_chunk]

        run(abs, range(workers))
        yield run


@contextmanager
def spark_session(workers: int) -> Iterator[Mapper]:
    """Spark in one JVM on this machine, on loopback only, without its pages; `slices` partitions."""
    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{workers}]")
    for name, value in {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.log.level": "OFF",
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    try:

        def run(fn: Callable[[Any], Any], items: Sequence[Any], slices: int | None = None) -> list[Any]:
            return session.sparkContext.parallelize(items, slices).map(fn).collect()

        run(abs, range(workers))
        yield run
    finally:
        session.stop()


OPENERS: dict[str, Callable[[int], AbstractContextManager[Mapper]]] = {
    "Pool": multiprocessing_pool,
    "ProcessPoolExecutor": process_pool_executor,
    "joblib": joblib_parallel,
    "mpire": mpire_pool,
    "Ray": ray_cluster,
    "Dask": dask_cluster,
    "Spark": spark_session,
}

# Peers that use the processor while they have nothing to do (measured idle on 2 cores, of one core: mpire 3.5 %,
# Ray 5.5 %, Dask 13 %; the others 0.0 %). They are up only while they are measured.
RESTLESS = ("mpire", "Ray", "Dask")


@contextmanager
def opened(workers: int, names: Iterable[str]) -> Iterator[dict[str, Mapper]]:
    """Opens some peers together, the forked ones first."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(OPENERS[name](workers)) for name in OPENERS if name in names}


def bouts(
    workers: int,
    ours: Sequence[Contestant],
    fn: Callable[[Any], Any],
    items: Sequence[Any],
    settings: Mapping[str, Sequence[dict[str, Any]]],
    rounds: tuple[int, int],
    peer_rounds: int | None = None,
) -> Iterator[tuple[tuple[str, ...], Race]]:
    """Races with all quiet peers at once, then with each restless one by itself.

    Args:
        workers: Workers of each peer.
        ours: The loop, fourfold, and whoever else takes part in the first race. Later races have fourfold and one
            peer: the loop's answer is known by then.
        fn: What the peers map.
        items: Over what.
        settings: Peer -> the settings to choose from.
        rounds: Of the race with the quiet peers, and of each race with a restless one.
        peer_rounds: Rounds of a quiet peer at most, None for all.

    Yields:
        The names of the peers in the race, and the race.
    """
    quiet = [name for name in settings if name not in RESTLESS]
    with opened(workers, quiet) as maps:
        start_workers(workers)
        theirs = [entry(name, maps[name], fn, items, *settings[name], max_rounds=peer_rounds) for name in quiet]
        first = race([*ours, *theirs], rounds[0])
    yield tuple(quiet), first
    for name in settings:
        if name in RESTLESS:
            with opened(workers, [name]) as maps:
                pair = [ours[1], entry(name, maps[name], fn, items, *settings[name])]
                found = race(pair, rounds[1], digest=first.digest)
            yield (name,), found
