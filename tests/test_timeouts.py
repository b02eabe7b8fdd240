"""`timeout=`: seconds per item, whatever its chunk; the worker is really stopped, and only that item is charged."""

import contextlib
import ctypes
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from running import is_in_time, started, until

import fourfold as ff
from fourfold.distribute.engines.on_processes import expiry

HANGS = 7
BOUND_S = 3.0
"""Seconds beyond the timeout in which a run must go on: promise R7. The grace between SIGTERM and SIGKILL is 2 s of it."""


@pytest.fixture
def short_grace(monkeypatch):
    """Who is asked to end and does not is killed after this many seconds. Promised are 2: the tests that need no more have less."""
    assert expiry.GRACE_S == 2.0
    monkeypatch.setattr(expiry, "GRACE_S", 0.3)
    return 0.3


@pytest.fixture
def long_grace(monkeypatch):
    """Who waits for its end is seen to wait, however busy the machine is: `with_timeout` fails."""
    monkeypatch.setattr(expiry, "GRACE_S", 60.0)


def with_timeout(fn, items, timeout=0.3, on_error="collect", slack=2.0, workers=2, **options):
    """Run on two workers; returns the results, and fails when an item was not stopped in time."""
    begin = time.monotonic()
    results = ff.map(fn, items, engine="processes", workers=workers, timeout=timeout, on_error=on_error, **options)
    assert is_in_time(time.monotonic() - begin - timeout, BOUND_S + slack)
    return results


def ways_to_hang():
    """Made in a function, so that they travel by value: by name, each worker would import this file and all that tests need."""

    def sleep_forever():
        time.sleep(60)

    def ignore_sigterm():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    def hold_the_gil():
        sum(itertools.repeat(1, 10**12))

    def block_in_c():
        sleep = ctypes.PyDLL(None).sleep
        while True:  # a signal wakes it, and an item that has ended has no stack any more
            sleep(60)

    def freeze():
        os.kill(os.getpid(), signal.SIGSTOP)

    def spin():
        while True:
            pass

    return {fn.__name__: fn for fn in (sleep_forever, ignore_sigterm, hold_the_gil, block_in_c, freeze, spin)}


HANG = ways_to_hang()


@pytest.mark.parametrize("chunk", [1, 20, "auto"])
@pytest.mark.parametrize("hang", HANG.values(), ids=HANG)
@pytest.mark.fault("F18")
def test_only_the_item_that_takes_too_long_fails(hang, chunk, short_grace):
    def fn(item):
        if item == HANGS:
            hang()
        return item * item

    results = with_timeout(fn, range(20), chunk=chunk)
    (failure,) = results.failures
    assert (failure.index, failure.kind, failure.attempts) == (HANGS, "timed out", 1)
    assert [value for value in results if value is not failure] == [item * item for item in range(20) if item != HANGS]


def test_it_is_an_error_of_its_own_that_says_how_long_and_which_item():
    with pytest.raises(
        ff.errors.ItemTimeout, match=r"ran longer than timeout=0.2 seconds; worker \d+ \(pid \d+\) was stopped"
    ) as caught:
        ff.map(lambda item: time.sleep(60), ["slow one"], timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert "item 0 of <lambda>: 'slow one'" in "".join(caught.value.__notes__)


def test_a_timeout_means_processes_from_the_first_item():
    report = ff.map(abs, [-1], timeout=5).report
    assert report.engine == "processes"


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_an_engine_that_cannot_stop_an_item_refuses(engine):
    with pytest.raises(ff.errors.UnsupportedOption, match="timeout"):
        ff.map(abs, [-1], timeout=5, engine=engine)


STARTS = {
    "a child": "exec sleep 1000",
    "a child with a session of its own": "exec setsid sleep 1000",
    "a daemon whose parent has ended": "setsid sleep 1000 & exit",
    "a daemon that starts others": "setsid sh -c 'sleep 1000 & sleep 1000' & exit",
}
"""What an item may start, as lines for a shell that is the worker's child."""

ENDS = {
    "timed out": lambda: time.sleep(60),
    "crashed": lambda: os._exit(0),
}


@pytest.mark.fault("F20")
@pytest.mark.parametrize("what", STARTS)
@pytest.mark.parametrize("kind", ENDS)
def test_what_the_item_started_ends_with_it_wherever_it_has_gone(tmp_path, what, kind):
    line, end, mark, find, found = STARTS[what], ENDS[kind], str(tmp_path), _marked, tmp_path / "found"

    def fn(item):
        if item == 0:
            child = subprocess.Popen(["sh", "-c", line], env={**os.environ, "MARK": mark})
            if "daemon" in what:
                child.wait()
            until(lambda: find(mark), "it runs")
            found.touch()
            end()
        return item

    results = with_timeout(fn, [0, 1], workers=1, timeout=0.5)
    assert [(failure.index, failure.kind) for failure in results.failures] == [(0, kind)]
    assert found.exists()
    until(lambda: not _marked(mark), "all that it started is gone")


def _marked(mark):
    """The living processes that have it in their environment."""
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if f"MARK={mark}".encode() in (folder / "environ").read_bytes() and _runs(folder.name):
                    found.append(int(folder.name))
    return found


ORPHANS = """
    import os, subprocess, time
    import fourfold as ff

    def work(x):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(["sleep", "1000"], start_new_session=True, **quiet)
        subprocess.run(["sh", "-c", "sleep 1000 &"], start_new_session=True, **quiet)  # a daemon
        if x == 1:
            print("runs", flush=True)
            time.sleep(1000)
        return x

    list(ff.imap(work, range(2), engine="processes", workers=1, chunk=1))
"""


@pytest.mark.fault("F42")
def test_what_items_started_in_sessions_of_its_own_ends_with_a_driver_that_is_killed(tmp_path):
    with started(ORPHANS, folder=tmp_path) as script:
        assert script.read_line() == "[item 1] runs"
        assert len(script.survivors(0)) >= 6  # the driver, the template, a worker and what it has started
        script.process.kill()
        assert script.end().survivors == []


def test_what_items_that_ended_well_left_running_in_a_session_of_its_own_stays_when_the_driver_ends_well(tmp_path):
    with started(ORPHANS.replace("x == 1", "False"), folder=tmp_path) as script:
        ended = script.end(survive_s=0.1)
        assert (ended.code, ended.stderr, len(ended.survivors)) == (0, "", 4)


def _runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_guilty_one_is_found_among_items_that_run_thousands_at_once():
    def fn(item):
        if item == 60_000:
            time.sleep(60)
        return -item

    results = with_timeout(fn, range(100_000), on_error="skip")
    assert [failure.index for failure in results.failures] == [60_000]
    assert results == [-item for item in range(100_000) if item != 60_000]


@pytest.mark.parametrize(("item_s", "n"), [(0.15, 10), (0.02, 10)], ids=["sent before", "kept"])
def test_items_that_ended_well_before_it_in_its_chunk_do_not_run_again(tmp_path, item_s, n):
    def fn(item):
        with open(tmp_path / str(item), "a") as file:
            file.write("x")
        time.sleep(60 if item == n - 1 else item_s)
        return item

    results = with_timeout(fn, range(n), timeout=0.6, chunk=n, slack=5.0)
    assert [failure.index for failure in results.failures] == [n - 1]
    assert [len((tmp_path / str(item)).read_text()) for item in range(n)] == [1] * n


def test_retries_are_for_exceptions_and_not_for_timeouts():
    results = with_timeout(lambda item: time.sleep(60), [0], retries=3)
    assert results.failures[0].attempts == 1


def test_an_item_that_must_not_run_twice_runs_once(tmp_path):
    def fn(item):
        with open(tmp_path / str(item), "a") as file:
            file.write("x")
        time.sleep(60 if item == 2 else 0)
        return item

    results = with_timeout(fn, range(5), idempotent=False)
    assert [failure.index for failure in results.failures] == [2]
    assert [len((tmp_path / str(item)).read_text()) for item in range(5)] == [1] * 5


def test_many_timeouts_are_no_reason_to_give_up():
    results = with_timeout(lambda item: time.sleep(60), range(12), timeout=0.1)
    assert {failure.kind for failure in results.failures} == {"timed out"}
    assert len(results.failures) == 12
    assert results.report.n_workers_lost == 0


class SlowToLoad:
    def __init__(self, seconds):
        self.seconds = seconds

    def __reduce__(self):
        return time.sleep, (self.seconds,)  # and nothing to import, which takes time as well


@pytest.mark.fault("F18")
def test_an_item_that_hangs_while_it_is_loaded_times_out():
    items = [SlowToLoad(60 if number == 3 else 0) for number in range(6)]
    results = with_timeout(lambda item: item, items, chunk=6)
    assert [(failure.index, failure.kind) for failure in results.failures] == [(3, "timed out")]


def test_items_within_their_time_are_left_alone_however_long_their_chunk_takes():
    results = with_timeout(lambda item: time.sleep(0.1) or item, range(20), timeout=0.5, chunk=10, slack=5.0)
    assert (results, results.failures) == (list(range(20)), [])


def test_streams_and_reductions_have_timeouts_too():
    def fn(item):
        time.sleep(60 if item == 2 else 0)
        return item

    options = {"engine": "processes", "workers": 2, "timeout": 0.3, "on_error": "skip"}
    assert sorted(ff.imap(fn, range(5), ordered=False, **options)) == [0, 1, 3, 4]
    assert ff.reduce(lambda a, b: a + b, range(5), fn=fn, **options) == 8


@pytest.mark.slow
def test_the_command_line_has_it_too(tmp_path):
    (tmp_path / "work.py").write_text(
        "import time\ndef fn(line):\n    time.sleep(60 if line == 'b' else 0)\n    return line\n"
    )
    (tmp_path / "in.txt").write_text("a\nb\nc\n")
    command = [sys.executable, "-m", "fourfold", "map", "work:fn", "in.txt", "-o", "out.jsonl", "--timeout", "0.5"]
    done = subprocess.run(
        [*command, "--on-error", "skip"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "out.jsonl").read_text() == '"a"\n"c"\n'
    assert "timed out" in (tmp_path / "out.jsonl.failures.jsonl").read_text()


class SlowToPickle:
    def __reduce__(self):
        time.sleep(0.1)
        return SlowToPickle, ()


def test_pickling_many_values_is_not_charged_to_the_last_item():
    results = with_timeout(lambda item: SlowToPickle(), range(8), timeout=0.5, chunk=8, slack=6.0)
    assert results.failures == []


def test_combining_many_values_is_not_charged_to_the_last_item():
    def combine(a, b):
        time.sleep(0.05)
        return a + b

    options = {"engine": "processes", "workers": 1, "timeout": 0.3, "chunk": 16, "on_error": "skip"}
    assert ff.reduce(combine, range(32), **options) == 496


def test_an_item_that_waits_to_be_heard_is_not_late():
    def talk(item):
        print("x" * 600_000)
        time.sleep(0.2)
        return item

    values = []
    for value in ff.imap(talk, range(3), engine="processes", workers=1, timeout=0.5, chunk=1):
        time.sleep(1.0)
        values.append(value)
    assert values == [0, 1, 2]


# ---- what it says, and how it ends: asked where it is, asked to end, killed


@pytest.mark.fault("F18")
@pytest.mark.parametrize("chunk", [1, 8])
def test_an_item_that_outlives_a_request_to_end_gets_no_further(chunk):
    def fn(item):
        if item == 0:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            time.sleep(60)
        return item

    results = with_timeout(fn, range(8), chunk=chunk, workers=1)
    assert [(failure.index, failure.kind) for failure in results.failures] == [(0, "timed out")]
    assert results[1:] == list(range(1, 8))


@pytest.mark.fault("F18")
@pytest.mark.parametrize("hang", [HANG[name] for name in ("sleep_forever", "hold_the_gil", "block_in_c", "spin")])
def test_the_failure_says_where_the_item_was(hang, monkeypatch):
    monkeypatch.setattr(expiry, "ASK_S", 5.0)  # a busy machine answers later than in the tenth of a second that it has

    def outer(item):
        hang()

    (failure,) = with_timeout(outer, [0]).failures
    stack = failure.traceback.partition("Python stack of the worker, most recent call first:\n")[2]
    assert f" in {hang.__name__}\n" in stack
    assert " in outer" in stack
    assert "/fourfold/src" not in stack
    assert str(failure.error.__cause__) in failure.traceback


def listen_to_nobody():
    signal.signal(signal.SIGUSR1, lambda *_: None)
    time.sleep(60)


@pytest.mark.parametrize("hang", [HANG["freeze"], listen_to_nobody])
def test_an_item_that_cannot_say_where_it_was_is_stopped_all_the_same(hang, long_grace):
    (failure,) = with_timeout(lambda item: hang(), [0]).failures  # nobody waits for what is frozen
    assert (failure.kind, failure.traceback.count("most recent call first")) == ("timed out", 0)


@pytest.mark.fault("F18")
def test_an_item_with_a_handler_may_clean_up_before_it_is_killed(tmp_path, long_grace):
    def fn(item):
        def clean_up(number, frame):
            (tmp_path / "begun").touch()
            time.sleep(0.3)
            (tmp_path / "cleaned").touch()
            os._exit(0)

        signal.signal(signal.SIGTERM, clean_up)
        time.sleep(60)

    (failure,) = with_timeout(fn, [0]).failures  # it is not waited for when it has ended
    assert failure.kind == "timed out"
    assert (tmp_path / "cleaned").exists()


@pytest.mark.fault("F18")
def test_an_item_that_is_asked_to_end_and_does_not_is_killed_after_the_grace_and_no_sooner(tmp_path, short_grace):
    asked = tmp_path / "asked"

    def fn(item):
        signal.signal(signal.SIGTERM, lambda *_: asked.write_text(str(time.monotonic())))
        while True:
            time.sleep(0.01)

    (failure,) = with_timeout(fn, [0]).failures
    took_s = time.monotonic() - float(asked.read_text())
    assert failure.kind == "timed out"
    assert took_s >= short_grace
    assert is_in_time(took_s - short_grace, 1.0)


def test_while_one_item_has_its_grace_others_run_and_none_waits_for_its_worker(short_grace):
    def fn(item):
        if item == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        time.sleep(0.02)
        return os.getpid()

    results = with_timeout(fn, range(40), timeout=0.1, chunk=1)
    assert [failure.index for failure in results.failures] == [0]
    assert len(set(results[1:])) in (2, 3)
