"""Every test runs under a leak check and a watchdog.

What a test leaves behind fails it (see leaks.py). A test that hangs ends with the stacks of all threads. What takes longer than it may
fails, too; in company it has longer, and is noted: it runs again, alone, with the bound as it is promised.
"""

import faulthandler
import gc
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

OUTSIDE = tempfile.gettempdir()
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", OUTSIDE)  # where pytest keeps what tests write in their `tmp_path`
os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="t-", dir=OUTSIDE)
"""Temporary files of these tests are nobody else's, so that a new one is a leak. A short name: sockets lie there, too."""

import pytest  # noqa: E402
from cases import one_case_each  # noqa: E402
from faults import bound_of, rows_of  # noqa: E402
from leaks import Holdings, adopt_orphans, living_descendants, the_pool  # noqa: E402
from notes import Notes  # noqa: E402

SETTLE_S = 5.0
"""Seconds in which what a test has ended must be gone: a killed process takes a moment to be one no more."""

WATCHDOG_S = 150.0
"""Seconds of one test until stacks are dumped and all ends. Longer than pytest's own timeout, which says more but needs the
main thread to listen: C code that never returns does not."""

SHARED_S = 20.0
"""Seconds for which a watchdog that was set is that of the tests that begin meanwhile, too, which so have up to that much longer: it
has two threads, and to set one anew costs more than most tests do."""

ASK_AHEAD_S = 5.0
"""Seconds before that in which workers are asked where they are: the end itself is in C, and knows nothing of workers."""

WORKERS_OF_TABLES = "workers_of_tables"

OWN_LOAD = 3
"""Processes that want to run because of the tests: driver and two workers. Bounds are for machines on which there are no others."""

COLLECTED = pytest.StashKey[list[pytest.Item]]()
"""All tests of the files that pytest was given."""

_state = pytest.StashKey[str]()
_notes = pytest.StashKey[Notes]()
_watchdog = pytest.StashKey["Watchdog"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ff-seed", type=int, help="run only the simulated cases of this seed")
    parser.addoption("--one-case-but-of", metavar="NAME,...", help="run one case of each test, but all in test_NAME.py, ...")


def pytest_itemcollected(item: pytest.Item) -> None:
    """`-m contract` finds the tests of the contract suite too."""
    rows = getattr(getattr(item, "function", None), "contract_rows", ())
    if rows:
        item.add_marker(pytest.mark.contract(*rows))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """What was found is kept before `-m` leaves some out, and then more are left out by our own options."""
    config.stash[COLLECTED] = [*items]
    yield
    if config.getoption("--ff-seed") is not None:
        run_only(config, items, [item for item in items if "seeds" in getattr(item, "fixturenames", ())])
    if (whole := config.getoption("--one-case-but-of")) is not None:
        run_only(config, items, one_case_each(items, whole.split(",")))


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it for garbage again and again, and in each fork, costs more than many tests do."""
    gc.collect()
    gc.freeze()


def run_only(config: pytest.Config, items: list[pytest.Item], wanted: list[pytest.Item]) -> None:
    kept = {*wanted}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = wanted


def pytest_configure(config: pytest.Config) -> None:
    pytest.register_assert_rewrite("fourfold.testing", "running")
    adopt_orphans()
    assert sys.__stderr__ is not None
    config.stash[_notes] = Notes()
    config.pluginmanager.register(config.stash[_notes])
    config.stash[_watchdog] = Watchdog(os.dup(sys.__stderr__.fileno()))
    # The key that seals recorded runs: tests and the scripts that they start have one of their own.
    config.stash[_state] = os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="state-")
    os.environ.pop("FOURFOLD_KEY", None)
    # A shell makes what it starts in the background deaf to Ctrl-C and Ctrl-\\, and the scripts of these tests would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:  # also where who started us hears Ctrl-C again
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_watchdog].end()
    shutil.rmtree(config.stash[_state], ignore_errors=True)
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


class Watchdog:
    """Ends all when a test hangs, with the stacks of all threads and workers.

    Args:
        fd: Where the stacks are written.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._set_at = -math.inf
        self._asker: threading.Timer | None = None

    def attend(self) -> None:
        """A test begins."""
        if time.monotonic() - self._set_at < SHARED_S:
            return
        self.end()
        self._set_at = time.monotonic()
        patience_s = WATCHDOG_S + SHARED_S
        faulthandler.dump_traceback_later(patience_s, exit=True, file=self._fd)
        self._asker = threading.Timer(patience_s - ASK_AHEAD_S, write_stacks_of_workers, [self._fd])
        self._asker.daemon = True
        self._asker.start()

    def end(self) -> None:
        """No test runs any more."""
        faulthandler.cancel_dump_traceback_later()
        if self._asker is not None:
            self._asker.cancel()
            self._asker.join()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    request.config.stash[_watchdog].attend()
    before = Holdings.now()
    yield
    leaks = settled(before.leaks)
    if leaks:
        pytest.fail("the test leaves behind:\n  " + "\n  ".join(leaks), pytrace=False)


TABLES = {"pandas", "sklearn.linear_model", "sklearn.preprocessing"}


@pytest.fixture(scope="module")
def workers_of_tables() -> None:
    """Workers of this file are forks of a process that has imported pandas and scikit-learn: else each new one does, for seconds.

    Who has started the pool before decides what its workers begin with, as long as some of them are there. Files that want this and
    come one after the other have one pool.
    """
    import fourfold as ff
    from fourfold.distribute.engines.on_processes.pool import POOL

    if not POOL.warm() or not POOL._imported.issuperset(TABLES):
        POOL.close()
        ff.map(_speak_of_tables, [0], engine="processes", workers=1)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The next file begins with workers that have imported nothing, unless it wants those of this one, too."""
    is_wanted = nextitem is not None and WORKERS_OF_TABLES in getattr(nextitem, "fixturenames", ())
    pool = the_pool()
    if WORKERS_OF_TABLES in getattr(item, "fixturenames", ()) and not is_wanted and pool is not None:
        pool.close()


def _speak_of_tables(x: int) -> int:
    import pandas
    import sklearn.linear_model
    import sklearn.preprocessing

    return x + bool(pandas) + bool(sklearn)


@pytest.fixture(autouse=True, scope="session")
def the_pool_leaves_nothing_behind(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    pool = the_pool()
    if pool is not None:
        pool.close()
    left = settled(lambda: [process.line for process in living_descendants(0)])
    if left:
        pytestconfig.stash[_notes].is_final = True  # the last test is not to blame, and would pass alone
    assert left == []


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[object]:
    """A test of a fault is over within the bound of its row, for each such fault that it makes. Fixtures do not count."""
    from running import LATE, SCALE, is_in_time  # not before its assertions were rewritten

    LATE.clear()
    begin = time.monotonic()
    try:
        result = yield
    finally:
        elapsed_s, bound_s = time.monotonic() - begin, bound_of(pyfuncitem)
        is_late = bound_s is not None and not is_in_time(elapsed_s, bound_s)
        if LATE or is_late:
            pyfuncitem.config.stash[_notes].late.append(pyfuncitem.nodeid)
    if bound_s is not None and elapsed_s > bound_s * SCALE * crowd():
        rows = ", ".join(f"{number} × {n_faults}" for number, n_faults in rows_of(pyfuncitem).items())
        pytest.fail(f"it took {elapsed_s:.1f} s, and its faults ({rows}) have {bound_s * SCALE * crowd():g} s", pytrace=False)
    return result


def crowd() -> float:
    """How many times as many processes want to run as there are cores, those of these tests (some OWN_LOAD) not counted."""
    return max(1.0, (os.getloadavg()[0] - OWN_LOAD) / (os.cpu_count() or 1))


def write_stacks_of_workers(fd: int) -> None:
    """Ask all workers that listen for SIGUSR1 where they are, and write what they say."""
    pool = the_pool()
    if pool is None:
        return
    from fourfold.distribute.engines.on_processes import stacks

    workers = [worker for worker in [*pool._lent, *pool._idle] if worker.pid and not worker.gone]
    said = stacks.ask([(worker.pid, worker.pidfd, worker.page) for worker in workers])
    for worker, stack in zip(workers, said, strict=True):
        os.write(fd, f"\n{worker.name} is here:\n{stack or '  (it does not say)'}\n".encode())


def settled(find_leaks: Callable[[], list[str]]) -> list[str]:
    """The leaks that are there for good. Costs nothing when there are none at once."""
    leaks = find_leaks()
    deadline = time.monotonic() + SETTLE_S
    while leaks and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
        leaks = find_leaks()
    return leaks
