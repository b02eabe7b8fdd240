"""One item of a hundred goes wrong, in each way in which an item can: alone in its chunk and with fifty in it, under `on_error="raise"`
and `"collect"`. It costs itself at most, the next call works, and what must come of it is the same in all four.

What items do is written without a name, or inside a function: so it travels by value.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import pytest
from leaks import living_descendants, the_pool
from running import until

import fourfold as ff
from fourfold.errors import InitFailed, ItemTimeout, NotPicklable, RemoteError, WorkerLost, WorkerStartFailed
from fourfold.system import seams

fault = pytest.mark.fault

N_ITEMS, BAD = 100, 61

each_way = lambda test: pytest.mark.parametrize("on_error", ["raise", "collect"])(  # noqa: E731
    pytest.mark.parametrize("chunk", [1, 50])(test)
)


def on_processes(fn, items, **options):
    return ff.map(fn, items, **{"engine": "processes", "workers": 2, **options})


class Fault(NamedTuple):
    """What an item does, and what must come of it.

    `harm` takes the folder of the test and returns what the item is to do. The item then has a failure with an `error`, or, when
    that is None, the value `value`. Workers die of it, or not.
    """

    row: str
    harm: Any
    error: type[BaseException] | None = None
    dies: bool = False
    value: Any = BAD
    options: dict[str, Any] = {}  # noqa: RUF012


def raises(error):
    def harm(folder):
        def fail(x):
            raise error

        return fail

    return harm


def raises_what_takes_two_arguments(folder):
    class TwoArguments(Exception):
        def __init__(self, code, text):
            super().__init__(f"{code}: {text}")

    def fail(x):
        raise TwoArguments(5, "five")

    return fail


def raises_its_own_cause(folder):
    def fail(x):
        error = ValueError("circle")
        error.__cause__ = error
        raise error

    return fail


def dies_while_it_is_pickled(base, is_raised=False):
    def harm(folder):
        class Deadly(base):
            def __reduce__(self):
                os._exit(7)

        def make(x):
            if is_raised:
                raise Deadly
            return Deadly()

        return make

    return harm


def dies_in_the_middle_of_a_message(folder):
    class Deadly:
        def __reduce__(self):
            for fd in map(int, os.listdir("/proc/self/fd")):
                try:
                    end = socket.socket(fileno=os.dup(fd))
                    end.send(b"half a mess")
                except OSError:  # no socket, or one whose other end has gone: what an earlier call has left
                    continue
            os._exit(7)

    return lambda x: Deadly()


def dies_once(folder):
    def die_once(x):
        try:
            os.close(os.open(f"{folder}/died", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return x
        os.kill(os.getpid(), signal.SIGKILL)

    return die_once


def leaves_a_program(then):
    def harm(folder):
        def leave(x):
            child = subprocess.Popen(["sleep", "1000"])
            with open(f"{folder}/pids", "a") as file:
                file.write(f"{child.pid}\n")
            return then(x)

        return leave

    return harm


def forks(folder):
    return lambda x: [os.fork(), x][1]  # the child comes back as well


def ignores_signals(folder):
    def ignore(x):
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        return x

    return ignore


FOR_EVER = {"timeout": 0.2}
LIMIT = {"memory": 300_000_000}

FAULTS = {
    "raises": Fault("F1", raises(ZeroDivisionError("nothing")), ZeroDivisionError),
    "calls sys.exit": Fault("F2", lambda folder: lambda x: sys.exit(3), SystemExit),
    "dies in the middle of a message": Fault("F8", dies_in_the_middle_of_a_message, WorkerLost, dies=True),
    "dies while its result is pickled": Fault("F9", dies_while_it_is_pickled(object), WorkerLost, dies=True),
    "dies while its exception is pickled": Fault("F9", dies_while_it_is_pickled(Exception, True), WorkerLost, dies=True),
    "dies once": Fault("F14", dies_once, dies=True),
    "sleeps": Fault("F18", lambda folder: lambda x: time.sleep(1000), ItemTimeout, options=FOR_EVER),
    "sleeps in C": Fault("F18", lambda folder: lambda x: ctypes.PyDLL(None).sleep(1000), ItemTimeout, options=FOR_EVER),
    "freezes": Fault("F19", lambda folder: lambda x: os.kill(os.getpid(), signal.SIGSTOP), ItemTimeout, options=FOR_EVER),
    "leaves a program and dies": Fault("F20", leaves_a_program(lambda x: os._exit(7)), WorkerLost, dies=True),
    "leaves a program and hangs": Fault("F20", leaves_a_program(lambda x: time.sleep(1000)), ItemTimeout, options=FOR_EVER),
    "leaves a program": Fault("F20", leaves_a_program(lambda x: x)),
    "asks for too much memory": Fault("F21", lambda folder: lambda x: bytearray(2_000_000_000), MemoryError, options=LIMIT),
    "forks": Fault("F25", forks),
    "raises KeyboardInterrupt": Fault("F27", raises(KeyboardInterrupt()), KeyboardInterrupt),
    "ignores signals": Fault("F27", ignores_signals),
    "returns a lock": Fault("F30", lambda folder: lambda x: threading.Lock(), NotPicklable),
    "returns what fails to pickle late": Fault(
        "F31", lambda folder: lambda x: [bytes(1 << 20), threading.Lock()], NotPicklable
    ),
    "returns nothing at all": Fault("F32", lambda folder: lambda x: b"", value=b""),
    "returns three megabytes": Fault("F32", lambda folder: lambda x: b"x" * 3_000_000, value=b"x" * 3_000_000),
    "raises what takes two arguments": Fault("F33", raises_what_takes_two_arguments, RemoteError),
    "raises what is no Unicode": Fault("F33", raises(ValueError("\udcff\x00 broken")), ValueError),
    "raises three megabytes": Fault("F33", raises(ValueError("m" * 3_000_000)), ValueError),
    "raises its own cause": Fault("F33", raises_its_own_cause, ValueError),
}


def check(fault, on_error, run):
    """Run it, and see that the item `BAD` cost itself at most, and that the next call works."""
    if fault.error is not None and on_error == "raise":
        with pytest.raises(fault.error) as caught:
            run()
        assert f"item {BAD} of" in "".join(caught.value.__notes__)
    else:
        results = run()
        assert [results[x] for x in range(N_ITEMS) if x != BAD] == [x for x in range(N_ITEMS) if x != BAD]
        if fault.error is None:
            assert (results[BAD], results.failures) == (fault.value, [])
        else:
            assert isinstance(results[BAD].error, fault.error)
            assert [failure.index for failure in results.failures] == [BAD]
        assert (results.report.n_workers_lost > 0) == fault.dies
    assert on_processes(abs, range(10)) == list(range(10))


@each_way
@pytest.mark.parametrize("name", [pytest.param(name, marks=fault(each.row)) for name, each in FAULTS.items()])
def test_an_item_that_goes_wrong_costs_itself_at_most(name, chunk, on_error, tmp_path):
    found = FAULTS[name]
    harm = found.harm(str(tmp_path))
    fn = lambda x: harm(x) if x == 61 else x  # noqa: E731
    check(found, on_error, lambda: on_processes(fn, range(N_ITEMS), chunk=chunk, on_error=on_error, **found.options))
    if name in ("leaves a program", "ignores signals"):
        the_pool().close()  # what an item left ends with its worker
    pids = tmp_path / "pids"
    left = {int(pid) for pid in pids.read_text().split()} if pids.exists() else set()
    assert (found.row == "F20") == bool(left)
    until(lambda: not left & {each.pid for each in living_descendants(0)}, "what the item started is gone", timeout=2.0)


class EndsWhoLoadsIt:
    def __reduce__(self):
        return os._exit, (7,)


class FailsWhoLoadsIt:
    def __reduce__(self):
        return int, ("no number",)


@each_way
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(EndsWhoLoadsIt, Fault("F9", None, WorkerLost, dies=True), marks=fault("F9")),
        pytest.param(FailsWhoLoadsIt, Fault("F9", None, ValueError), marks=fault("F9")),
        pytest.param(threading.Lock, Fault("F30", None, NotPicklable), marks=fault("F30")),
        pytest.param(lambda: [bytes(1 << 20), threading.Lock()], Fault("F31", None, NotPicklable), marks=fault("F31")),
        pytest.param(lambda: b"", Fault("F32", None, value=b""), marks=fault("F32")),
        pytest.param(lambda: b"x" * 3_000_000, Fault("F32", None, value=b"x" * 3_000_000), marks=fault("F32")),
    ],
    ids=["ends who loads it", "fails who loads it", "lock", "fails to pickle late", "nothing at all", "three megabytes"],
)
def test_an_item_that_does_not_arrive_costs_itself_only(make, expected, chunk, on_error):
    items = [make() if x == BAD else x for x in range(N_ITEMS)]
    check(expected, on_error, lambda: on_processes(lambda x: x, items, chunk=chunk, on_error=on_error))


# ---- what is wrong before the first item, and behind the last one


@fault("F10")
@each_way
def test_what_dies_behind_the_last_item_costs_nothing(chunk, on_error):
    class Deadly:
        def __call__(self, x):
            import atexit

            atexit.register(os.abort)
            return x

        def __del__(self):
            if os.environ.get("FOURFOLD_ROLE") == "worker":
                os._exit(9)

    for _ in range(2):
        results = on_processes(Deadly(), range(N_ITEMS), chunk=chunk, on_error=on_error)
        assert (results, results.failures, results.report.n_workers_lost) == (list(range(N_ITEMS)), [], 0)


@pytest.fixture
def at_seam():
    """Makes calls of the operating system fail in this process."""
    yield seams.set_faults
    seams.set_faults("")


@fault("F16")
@each_way
def test_workers_that_cannot_start_leave_the_work_to_the_others(chunk, on_error, at_seam):
    on_processes(abs, range(4))
    n_idle = len(the_pool()._idle)
    at_seam("pool.spawn:2+:EAGAIN")
    results = on_processes(lambda x: x, range(N_ITEMS), workers=n_idle + 3, chunk=chunk, on_error=on_error)
    assert seams.calls["pool.spawn"] == 2
    assert (results, results.failures) == (list(range(N_ITEMS)), [])


@fault("F16")
@each_way
def test_when_no_worker_can_start_it_is_one_error(chunk, on_error, at_seam):
    the_pool().close()
    at_seam("template.start:1+:EAGAIN")
    with pytest.raises(WorkerStartFailed, match=r"Resource temporarily unavailable.*ulimit"):
        on_processes(lambda x: x, range(N_ITEMS), chunk=chunk, on_error=on_error)


@fault("F17")
@each_way
def test_a_class_that_cannot_be_built_is_one_error(chunk, on_error):
    class Model:
        def __init__(self, path):
            raise OSError(f"no weights in {path}")

        def __call__(self, x):
            return x

    with pytest.raises(InitFailed, match=r"Model\('w.pt'\) raised OSError: no weights in w.pt"):
        on_processes(Model, range(N_ITEMS), init=("w.pt",), chunk=chunk, on_error=on_error)


@fault("F22")
@each_way
def test_a_worker_that_has_grown_is_replaced_and_no_item_is_lost(chunk, on_error):
    def leak(x):
        if x in (60, 80):  # not in the first chunk, against which it is measured
            sys.kept_by_a_test = [*getattr(sys, "kept_by_a_test", []), b"x" * 170_000_000]
            time.sleep(0.05)  # long enough to be measured behind it
        return os.getpid()

    results = on_processes(leak, range(150), workers=1, chunk=chunk, on_error=on_error)
    assert (len(set(results)), results.failures, results.report.n_workers_lost) == (2, [], 0)
