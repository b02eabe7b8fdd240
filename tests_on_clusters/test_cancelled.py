"""Jobs of Spark that somebody cancels, by what was set for the thread that called: they end the call, none begins again."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster
from running import until
from test_fit import Power, in_order, sum_of
from test_frames import native

import fourfold as ff
from fourfold.distribute.engines.on_spark.inherited import settings_of_this_thread
from fourfold.errors import EngineError
from fourfold.workloads.fit.contract import About, Fit, Pass
from fourfold.workloads.fit.seen import Numbers

GROUP = "the work of the tests"

CANCELLED = "a Spark job of this call was cancelled"


@pytest.fixture
def spark(cluster: Cluster) -> Any:
    if cluster.kind != "spark":
        pytest.skip("not applicable: it is about Spark")
    return native(cluster).sparkSession


@pytest.fixture
def cancel(spark: Any, cluster: Cluster) -> Iterator[Callable[[], None]]:
    """Cancels what this thread has begun since."""
    if cluster.is_connect:
        spark.addTag("mine")
        yield lambda: spark.interruptTag("mine")
        spark.removeTag("mine")
    else:
        context = spark.sparkContext
        context.setJobGroup(GROUP, "what it is about")
        yield lambda: context.cancelJobGroup(GROUP)
        for name in ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel"):
            context.setLocalProperty(name, None)


def test_who_cancels_the_job_group_of_a_caller_ends_the_call(
    cluster: Cluster, cancel: Callable[[], None], tmp_path: Path
) -> None:
    folder = str(tmp_path)

    def wait(x: int) -> int:
        import os
        import time

        with open(f"{folder}/began-{x}", "a") as file:
            file.write("began\n")
        until_s = time.monotonic() + 60
        while not os.path.exists(f"{folder}/go") and time.monotonic() < until_s:
            time.sleep(0.02)
        return x

    def cancel_soon() -> None:
        until(lambda: any(tmp_path.glob("began-*")), "an item runs", timeout=60)
        cancel()

    ff.map(abs, range(3), engine=cluster.engine())  # it is connected
    other = threading.Thread(target=cancel_soon)
    other.start()
    try:
        with pytest.raises(EngineError, match=CANCELLED):
            ff.map(wait, range(8), engine=cluster.engine())
    finally:
        (tmp_path / "go").touch()
        other.join()
    assert all(each.read_text() == "began\n" for each in tmp_path.glob("began-*"))
    assert ff.map(abs, range(-3, 3), engine=cluster.engine()) == [3, 2, 1, 0, 1, 2]


class Sums(Power):
    """Of so many passes that it is cancelled before the last one."""

    def __init__(self, cancel: Callable[[], None] | None = None) -> None:
        self.cancel = cancel


@ff.recipe(Sums)
def fit_sums(estimator: Sums, about: About) -> Fit:
    numbers, kind = Numbers(takes_nan=False), sum_of()
    for at in range(10_000):
        yield Pass(kind(1), (numbers,), keep=True)
        if at == 2 and estimator.cancel is not None:
            estimator.cancel()
    return estimator


def test_who_cancels_the_job_group_of_a_fit_ends_it(cluster: Cluster, cancel: Callable[[], None]) -> None:
    if cluster.is_connect:
        pytest.skip("not applicable: between two passes nothing runs there that could be cancelled")
    frame = ff.scan(in_order(cluster)).select(["x", "id"])
    with pytest.raises(EngineError, match="the Spark job of this pass was cancelled"):
        frame.fit(Sums(cancel))
    assert ff.map(abs, range(-3, 3), engine=cluster.engine()) == [3, 2, 1, 0, 1, 2]


def test_a_job_of_one_thread_has_no_tag_of_another(spark: Any, cluster: Cluster) -> None:
    tags = spark if cluster.is_connect else spark.sparkContext
    add, told = (tags.addTag, tags.getTags) if cluster.is_connect else (tags.addJobTag, tags.getJobTags)
    set_there, together = settings_of_this_thread(spark), threading.Barrier(3)
    found: dict[str, set[str]] = {}

    def tag(name: str) -> None:
        set_there()
        add(name)
        together.wait(60)
        found[name] = set(told())

    threads = [threading.Thread(target=tag, args=(name,)) for name in "abc"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == {name: {name} for name in "abc"}
