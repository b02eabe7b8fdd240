"""A cluster that is started here ends with its driver, however that ends, and hears no Ctrl-C."""

import contextlib
import os
import signal
import time

import psutil
import pytest
from running import started, until

from fourfold.distribute.keeper import Keeper
from fourfold.errors import EngineError

# What a keeper starts here: processes that would sleep for long, the second of them below the first.
CLUSTER = """
    import os, subprocess, sys, time

    def start_here(count):
        if count < 0:
            raise ValueError("no such count")
        if count == 0:
            os._exit(3)
        print("a library says hello")
        inner = "import subprocess, time; subprocess.Popen(['sleep', '600'], process_group=0); time.sleep(600)"
        one = subprocess.Popen([sys.executable, "-c", inner])
        return f"here:{one.pid}", one.kill
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    (tmp_path / "sleepers.py").write_text("\n".join(line[4:] for line in CLUSTER.splitlines()))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "sleepers"


def session(leader):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_all_of_it_ends_when_it_is_closed(cluster):
    keeper = Keeper(cluster, 2)
    leader = keeper._process.pid
    until(lambda: len(session(leader)) == 3, "the cluster is up", timeout=10)
    assert keeper.address.startswith("here:")
    assert os.getsid(0) != leader
    keeper.close()
    assert session(leader) == []


def test_a_fork_that_holds_the_pipe_does_not_delay_the_end(cluster):
    keeper = Keeper(cluster, 2)
    leader = keeper._process.pid
    fork = os.fork()
    if not fork:
        time.sleep(60)
        os._exit(0)
    try:
        begin = time.monotonic()
        keeper.close()
        assert time.monotonic() - begin < 5
        assert session(leader) == []
    finally:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)


@pytest.mark.parametrize(("count", "told"), [(-1, "ValueError: no such count"), (0, "ended with code 3")])
def test_a_cluster_that_does_not_start_says_why(cluster, count, told):
    with pytest.raises(EngineError, match=told):
        Keeper(cluster, count)


SCRIPT = """
    import sys, time
    sys.path.insert(0, sys.argv[1])
    from fourfold.distribute.keeper import Keeper

    if __name__ == "__main__":
        keeper = Keeper("sleepers", 2)
        print(keeper._process.pid, flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_driver(cluster, tmp_path, number):
    with started(SCRIPT, str(tmp_path), folder=tmp_path) as script:
        leader = int(script.read_line())
        until(lambda: len(session(leader)) == 3, "the cluster is up", timeout=10)
        os.killpg(script.process.pid, number)  # as a terminal does it: the cluster does not hear it
        script.process.wait(10)
        until(lambda: session(leader) == [], "the cluster has ended", timeout=10)
        script.end()
