"""Tests on real clusters: `pytest tests_on_clusters --cluster=ray`. One kind of cluster for each pytest process.

Ray, Dask and Spark keep threads and processes of their own, so only what fourfold itself leaves behind fails a test.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import java
import psutil
import pytest
from clusters import KINDS, Cluster

from fourfold.distribute.cargo import remove_unused
from fourfold.distribute.engine import Engine
from fourfold.distribute.engines.on_processes.pool import POOL

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cases import one_case_each
from notes import Notes

SETTLE_S = 10.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cluster", choices=sorted(KINDS), required=True, help="the kind of cluster to start and test on")
    parser.addoption("--one-case-of", metavar="NAME,...", default="", help="run one case of each test in test_NAME.py, ...")


MARK = f"FOURFOLD_TESTS={os.getpid()}"
"""In the environment of all that these tests start, wherever it ends up in the tree of processes."""


def pytest_configure(config: pytest.Config) -> None:
    name, _, value = MARK.partition("=")
    os.environ[name] = value
    if config.getoption("--cluster").startswith("spark"):
        os.environ.update(java.variables())
    config.pluginmanager.register(Notes())
    pytest.register_assert_rewrite("fourfold.testing")
    config.addinivalue_line("filterwarnings", "default")  # Ray, Dask and Spark have warnings of their own
    config.addinivalue_line(
        "markers", "of_any_kind: in `make test` it runs on one kind of cluster, which stands for all of them"
    )
    config.addinivalue_line(
        "markers", "breaks_it: the cluster is of no use afterwards; these tests run last, each on one of its own"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """`-m contract` finds the tests of the contract suite too."""
    rows = getattr(getattr(item, "function", None), "contract_rows", ())
    if rows:
        item.add_marker(pytest.mark.contract(*rows))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = {item.path.stem.removeprefix("test_") for item in items} - {*config.getoption("--one-case-of").split(",")}
    kept = one_case_each(items, names)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    items.sort(key=lambda item: item.get_closest_marker("breaks_it") is not None)


@pytest.fixture(scope="session")
def shared_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of all tests that leave it whole."""
    cluster = KINDS[request.config.getoption("--cluster")](tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Cluster:
    return request.getfixturevalue("shared_cluster")


@pytest.fixture
def make_engine(cluster: Cluster) -> Callable[[], Engine]:
    """Makes an engine on the cluster. Each call makes another one."""
    return cluster.engine


@pytest.fixture(scope="session", autouse=True)
def no_worker_of_ours_survives() -> Iterator[None]:
    """All worker processes that sites have started are gone with their clusters. What travelled to them goes now."""
    yield
    POOL.close()  # of this process, for what a test ran here
    deadline = time.monotonic() + SETTLE_S
    while (left := ours()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    remove_unused(0.0)


def ours() -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line = " ".join(process.info["cmdline"] or [])
        is_mine = (process.info["environ"] or {}).get("FOURFOLD_TESTS") == str(os.getpid())
        if is_mine and "fourfold.distribute.engines.on_processes.template" in line:
            found.append(f"{process.pid} {line[:100]}")
    return found
