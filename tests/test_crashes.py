"""Workers that die or hang: the item to blame and the cause are named, the others keep their results, and all within a bound.

Workers really die. Functions are written inside the tests or without a name: so they travel by value. Each test says which row of
the fault matrix it is for.
"""

import contextlib
import ctypes
import logging
import mmap
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pytest
from leaks import the_pool
from running import is_in_time, run_script, started, until

import fourfold as ff
from fourfold.distribute import respawn, watch
from fourfold.distribute.engines.on_processes import handle, obituary
from fourfold.distribute.inbox import Inbox
from fourfold.distribute.schedule import HOPELESS
from fourfold.errors import WorkerLost, WorkersKeepDying
from fourfold.system import machine

BOUND_S = 5.0
"""Seconds in which a run with a crash must end."""

fault = pytest.mark.fault


def on_processes(fn, items, **options):
    return ff.map(fn, items, **{"engine": "processes", "workers": 2, **options})


def within(bound_s, run):
    """Run it; fail when it took longer."""
    begin = time.monotonic()
    try:
        return run()
    finally:
        assert is_in_time(time.monotonic() - begin, bound_s)


def looker_behind_the_end_of_a_file():
    def look():
        with tempfile.TemporaryFile() as file:
            file.truncate(4096)
            view = mmap.mmap(file.fileno(), 4096)
            file.truncate(0)
            view[0]

    return look


# ---- the cause is named -------------------------------------------------------------------------------------------------------

EXITS = {
    "exited with code 7 (os._exit, or exit() in C code)": lambda: os._exit(7),
    "exited with code 0 (os._exit, or exit() in C code)": lambda: ctypes.CDLL(None).exit(0),
    "was killed by SIGKILL (often the kernel's answer to too little memory)": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "was killed by SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
}
CRASHES = {
    "was killed by SIGSEGV (C code used memory that is not its own": lambda: ctypes.string_at(0),
    # The C library's own recursion: Python's has a limit.
    "was killed by SIGSEGV": lambda: ctypes.CDLL(None).regcomp(ctypes.create_string_buffer(4096), b"(" * 2_000_000, 1),
    "was killed by SIGABRT (C code gave up and called abort())": lambda: os.abort(),
    "was killed by SIGBUS (C code used memory that is not there": looker_behind_the_end_of_a_file(),
    "was killed by SIGFPE (C code divided by zero)": lambda: os.kill(os.getpid(), signal.SIGFPE),
}
ROWS = dict(zip([*EXITS, *CRASHES], ["F3", "F4", "F5", "F5", "F6", "F7", "F7", "F7", "F7"], strict=True))
SENT = {said: 1 for said in EXITS if "was killed by" in said}
"""A signal that somebody must send may be an outsider's: one death more."""
DEATHS = [pytest.param(said, marks=fault(row), id=f"{row}-{said[:30]}") for said, row in ROWS.items()]


@pytest.mark.parametrize("said", DEATHS)
@pytest.mark.parametrize("chunk", [1, 50])
def test_a_collected_crash_says_which_item_how_it_died_and_where(said, chunk):
    die = {**EXITS, **CRASHES}[said]

    def square(x):
        if x == 61:
            die()
        return x * x

    results = within(BOUND_S, lambda: on_processes(square, range(100), chunk=chunk, on_error="collect"))
    (failure,) = results.failures
    assert [value for value in results if value is not failure] == [x * x for x in range(100) if x != 61]
    assert (failure.index, failure.kind, failure.item, failure.attempts) == (61, "crashed", "61", 2 + SENT.get(said, 0))
    assert said in failure.message
    assert "\n" not in failure.message
    assert re.search(r"; its peak memory was [1-9]\d* MiB$", failure.message)
    assert ("in square" in failure.traceback) == (said in CRASHES)
    assert "/fourfold/" not in failure.traceback  # our own frames help nobody


@pytest.mark.parametrize("said", DEATHS)
@pytest.mark.parametrize("chunk", [1, 50])
def test_a_raised_crash_says_which_item_how_it_died_and_where(said, chunk):
    die = {**EXITS, **CRASHES}[said]

    def square(x):
        if x == 61:
            die()
        return x * x

    with pytest.raises(WorkerLost, match=re.escape(said)) as caught:
        within(BOUND_S, lambda: on_processes(square, range(100), chunk=chunk))
    assert f"item 61 of square: 61 (attempt {2 + SENT.get(said, 0)}, " in "".join(caught.value.__notes__)
    assert ("in square" in str(caught.value.__cause__)) == (said in CRASHES)


@fault("F6")
def test_the_stack_has_the_users_callers_too():
    def inner():
        ctypes.string_at(0)

    def outer(x):
        inner()

    (failure,) = on_processes(outer, [1], on_error="collect").failures
    stack = failure.traceback.partition("most recent call first:\n")[2]
    frames = re.findall(r" in (\w+)", stack.partition('"""')[0])
    assert frames == ["string_at", "inner", "outer"]


@fault("F6")
def test_a_deep_stack_is_cut():
    def dive(depth):
        return dive(depth - 1) if depth else ctypes.string_at(0)

    (failure,) = on_processes(lambda x: dive(x), [90], on_error="collect").failures
    assert failure.traceback.count("in dive") < 50
    assert re.search(r"\.\.\. and \d+ more", failure.traceback)


@fault("F6")
def test_an_item_that_sets_up_faulthandler_itself_has_its_stack_on_stderr():
    def crash(x):
        import faulthandler

        faulthandler.enable()
        ctypes.string_at(0)

    (failure,) = on_processes(crash, [1], on_error="collect").failures
    assert "last lines on stderr:\nFatal Python error: Segmentation fault" in failure.traceback
    assert "in crash" in failure.traceback


@fault("F6")
def test_a_crash_of_a_process_that_an_item_forked_is_not_told_of_its_worker():
    def fork_then_die(x):
        pid = os.fork()
        if pid == 0:
            ctypes.string_at(0)
        os.waitpid(pid, 0)
        os._exit(7)

    (failure,) = on_processes(fork_then_die, [1], on_error="collect").failures
    assert "exited with code 7" in failure.message
    assert "string_at" not in failure.traceback


@fault("F6")
@pytest.mark.parametrize("how", ["is killed", "crashes"])
def test_what_a_worker_answered_before_is_not_told_as_its_end(how):
    def answer():
        os.kill(os.getpid(), signal.SIGUSR1)

    def die(x):
        answer()
        ctypes.string_at(0) if how == "crashes" else os.kill(os.getpid(), signal.SIGKILL)

    (failure,) = on_processes(die, [1], on_error="collect").failures
    assert "in answer" not in failure.traceback
    assert ("in die" in failure.traceback) == (how == "crashes")


@fault("F7")
@pytest.mark.parametrize("chunk", [1, 50])
def test_too_deep_a_recursion_in_python_is_the_items_failure_and_no_crash(chunk):
    def dive(depth):
        return dive(depth + 1)

    results = on_processes(lambda x: dive(0) if x == 61 else x, range(100), chunk=chunk, on_error="collect")
    assert [(failure.index, failure.error_type) for failure in results.failures] == [(61, "RecursionError")]
    assert results.report.n_workers_lost == 0


# ---- what it wrote to fd 2 --------------------------------------------------------------------------------------------------------


def test_the_last_words_of_a_worker_are_in_the_failure_and_on_stderr(capfd):
    the_pool().close()  # the next one starts here, with this stderr

    def abort(x):
        os.write(2, b"free(): invalid pointer\n")
        os.abort()

    (failure,) = on_processes(abort, [1], on_error="collect").failures
    assert 'last lines on stderr:\nfree(): invalid pointer"""' in failure.traceback
    until(lambda: "free(): invalid pointer\n" in capfd.readouterr().err, "it reaches the driver's own stderr")
    the_pool().close()


def test_the_last_64_kib_are_kept():
    def flood(x):
        for number in range(20_000):
            os.write(2, b"%099d\n" % number)
        os._exit(7)

    (failure,) = on_processes(flood, [1], on_error="collect").failures
    words = failure.traceback.partition("last lines on stderr:\n")[2].partition('"""')[0]
    assert words.endswith("19999")
    assert len(words) in range(65_000, 65_537)


WRITES = {
    "the item": "os.write(2, data)",
    "a program that it starts": "subprocess.run([sys.executable, '-c', f'import os; os.write(2, {data!r})'], check=True)",
    "a program that opens /dev/stderr": "subprocess.run(['sh', '-c', f'printf %s {data.decode()} > /dev/stderr'], check=True)",
    "a program with its own session": (
        "subprocess.run([sys.executable, '-c', f'import os; os.write(2, {data!r})'], start_new_session=True, check=True)"
    ),
}


@pytest.mark.parametrize("who", WRITES)
@pytest.mark.parametrize("n_bytes", [100, 100_000])
def test_all_that_is_written_to_fd_2_reaches_the_drivers_stderr_also_while_the_driver_is_busy(tmp_path, who, n_bytes):
    text = f"""
        import os, pathlib, subprocess, sys, time
        import fourfold as ff

        def write(x):
            data = (b"abcdefgh"[x : x + 1] * {n_bytes})
            {WRITES[who]}
            pathlib.Path(f"written-{{x}}").touch()
            return x

        stream = ff.imap(write, range(3), engine="processes", workers=1, chunk=1)
        first = next(stream)
        # The driver does not listen now, and yet the next item gets rid of its words.
        deadline = time.monotonic() + 20
        while not os.path.exists("written-1") and time.monotonic() < deadline:
            time.sleep(0.001)
        print(os.path.exists("written-1"), [first, *stream])
    """
    ended = run_script(text, folder=tmp_path)
    assert (ended.code, ended.stdout, ended.survivors) == (0, "True [0, 1, 2]\n", [])
    assert {letter: ended.stderr.count(letter) for letter in "abc"} == dict.fromkeys("abc", n_bytes)


def test_a_stderr_that_nobody_reads_stops_only_those_who_write_to_it(tmp_path):
    text = """
        import os, sys
        import fourfold as ff

        def work(x):
            if x == 0:
                os.write(2, b"x" * 1_000_000)
            if x == 5:
                os._exit(7)
            return x

        options = {"engine": "processes", "workers": 2, "chunk": 1, "on_error": "skip", "progress": False}
        for value in ff.imap(work, range(12), ordered=False, **options):
            print(value, flush=True)
    """
    with started(text, folder=tmp_path) as script:
        # Nobody reads stderr, and the others run on: only one item waits behind the one that writes. A worker is replaced.
        lines = [script.read_line() for _ in range(9)]
        assert "0" not in lines
        ended = script.end()
    assert sorted(map(int, [*lines, *ended.stdout.split()])) == [x for x in range(12) if x != 5]
    assert (ended.code, ended.stderr.count("x"), ended.survivors) == (0, 1_000_000, [])


def test_words_that_wait_when_the_driver_ends_are_passed_on(tmp_path):
    text = """
        import os, fourfold as ff
        ff.map(lambda x: os.write(2, b"x" * 100_000), [1], engine="processes", workers=1, progress=False)
        os._exit(0)
    """
    with started(text, folder=tmp_path) as script:
        script.process.wait(20)  # stderr, a pipe, was not read so far, and holds less than that
        assert script.end().stderr == "x" * 100_000


def test_words_of_a_worker_that_was_asked_nothing_are_not_lost_at_the_end(tmp_path):
    text = """
        import os, fourfold as ff
        ff.map(lambda x: os.write(2, b"late words\\n"), [1], engine="processes", workers=1)
        os._exit(0)
    """
    assert run_script(text, folder=tmp_path).stderr == "late words\n"


# ---- who is to blame ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def deaths(monkeypatch):
    """For each worker that died on items: the indices of those that it was on."""
    heard, lost = [], Inbox._lost

    def note(inbox, outcome):
        chunk, (first, count) = inbox.flying[outcome.id], outcome.running
        heard.append(range(chunk.start + first, chunk.start + first + count))
        lost(inbox, outcome)

    monkeypatch.setattr(Inbox, "_lost", note)
    return heard


@fault("F13")
@pytest.mark.parametrize("chunk", [1, 50, "auto"])
@pytest.mark.parametrize("on_error", ["collect", "raise"])
def test_three_deadly_items_of_a_thousand_cost_themselves_only(chunk, on_error, deaths):
    deadly = {3: lambda: os._exit(7), 500: lambda: os.abort(), 999: lambda: os.kill(os.getpid(), signal.SIGKILL)}

    def square(x):
        if x in deadly:
            deadly[x]()
        return x * x

    if on_error == "raise":
        with pytest.raises(WorkerLost, match="exited with code 7") as caught:
            within(2 * BOUND_S, lambda: on_processes(square, range(1000), chunk=chunk))
        assert "item 3 of square" in "".join(caught.value.__notes__)
        return
    results = within(2 * BOUND_S, lambda: on_processes(square, range(1000), chunk=chunk, on_error="collect"))
    said = ["exited with code 7", "SIGABRT", "SIGKILL"]
    assert [failure.index for failure in results.failures] == sorted(deadly)
    assert all(each in failure.message for each, failure in zip(said, results.failures, strict=True))
    assert [results[x] for x in range(1000) if x not in deadly] == [x * x for x in range(1000) if x not in deadly]
    # One death makes suspects, and each is run again alone; in a chunk, where it may be a neighbour's fault, one time more,
    # and once more after a signal, which may be an outsider's.
    suspects = {x: max(len(hit) for hit in deaths if x in hit) for x in deadly}
    assert results.report.n_workers_lost == len(deaths)
    assert len(deaths) <= 1 + sum((1 if chunk == 1 else 2) + n_suspects for n_suspects in suspects.values())


@fault("F13")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("chunk", [1, 50])
def test_who_is_suspected_runs_again_in_a_worker_that_has_run_nothing_else(tmp_path, workers, chunk):
    mark = tmp_path / "died"

    def ran_before(x):
        sys.ran_in_a_test = ran = getattr(sys, "ran_in_a_test", 0) + 1
        if x == 20 and not mark.exists():
            mark.touch()
            os._exit(7)
        time.sleep(0.002)  # so long that a block is one item, and the mark is exact
        return ran - 1

    results = on_processes(ran_before, range(40), workers=workers, chunk=chunk)
    the_pool().close()  # whose workers have counted
    assert (results[20], results.report.n_workers_lost) == (0, 1)
    assert max(results) > 5


@fault("F13")
def test_what_items_leave_in_their_workers_is_blamed_on_nobody():
    def dies_of_those_before(x):
        sys.ran_in_a_test = ran = getattr(sys, "ran_in_a_test", 0) + 1
        if ran == 8:
            os._exit(7)
        return x

    results = on_processes(dies_of_those_before, range(100), chunk=1, on_error="collect")
    the_pool().close()
    assert (results, results.failures) == (list(range(100)), [])


@fault("F5")
@pytest.mark.parametrize("chunk", [1, 50])
def test_a_worker_that_somebody_else_kills_costs_no_item(tmp_path, chunk):
    note = tmp_path / "pid"

    def wait_to_be_killed_once(x):
        if x == 61 and not note.exists():
            part = pathlib.Path(f"{note}.part")
            part.write_text(str(os.getpid()))
            part.rename(note)
            signal.pause()
        return x

    def kill():
        until(note.exists, "the item runs")
        os.kill(int(note.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    results = within(BOUND_S, lambda: on_processes(wait_to_be_killed_once, range(100), chunk=chunk))
    killer.join()
    assert (results, results.report.n_workers_lost) == (list(range(100)), 1)


@fault("F11")
@pytest.mark.parametrize("on_error", ["raise", "collect"])
@pytest.mark.parametrize("chunk", [1, 50])
@pytest.mark.parametrize("workers", [1, 2, 5, 13])
def test_workers_may_kill_each_other(tmp_path, workers, chunk, on_error):
    marks, driver = str(tmp_path), os.getpid()

    def kill_the_others_once(x):
        if x % 5:
            return x
        try:
            os.close(os.open(f"{marks}/{x}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return x
        parent = os.getppid()
        assert parent != driver
        children = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for pid in children:
            if int(pid) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        return x

    # A victim may be hit twice while it runs alone, and then nobody can know better. Each killer has killed once.
    try:
        results = on_processes(kill_the_others_once, range(100), workers=workers, chunk=chunk, on_error=on_error)
    except WorkerLost:
        assert on_error == "raise"
        assert workers > 1
        return
    assert len(results) == 100
    assert [value for value in results if not isinstance(value, ff.Failure)] == [
        x for x in range(100) if not isinstance(results[x], ff.Failure)
    ]
    assert len(results.failures) <= (5 if workers > 1 else 0)


@fault("F10")
@pytest.mark.parametrize("chunk", [1, 50])
def test_what_dies_in_the_destructor_of_the_function_costs_nothing(chunk):
    class Deadly:
        def __call__(self, x):
            return x

        def __del__(self):
            if "fourfold.worker" in sys.modules and os.environ.get("FOURFOLD_ROLE") == "worker":
                os._exit(9)

    for _ in range(3):
        results = within(BOUND_S, lambda: on_processes(Deadly(), range(100), chunk=chunk))
        assert (results, results.report.n_workers_lost) == (list(range(100)), 0)


@fault("F10")
def test_what_would_die_at_the_end_of_a_worker_costs_nothing():
    def arm(x):
        import atexit
        import weakref

        class Mine:
            pass

        sys.kept_by_a_test = [*getattr(sys, "kept_by_a_test", []), Mine()]
        weakref.finalize(sys.kept_by_a_test[-1], os.abort)
        atexit.register(os.abort)
        return x

    results = on_processes(arm, range(20), chunk=1)
    the_pool().close()
    assert (results, results.report.n_workers_lost) == (list(range(20)), 0)


@fault("F8")
@pytest.mark.parametrize("chunk", [1, 50])
@pytest.mark.parametrize("garbage", [b"half a mess", b"", b"N", b"\xff" * 1000])
def test_a_worker_that_dies_in_the_middle_of_a_message_costs_its_item(garbage, chunk):
    class Deadly:
        def __reduce__(self):
            import socket

            for fd in map(int, os.listdir("/proc/self/fd")):
                try:
                    end = socket.socket(fileno=os.dup(fd))
                except OSError:
                    continue
                if garbage:
                    end.send(garbage)
            os._exit(7)

    results = within(
        2 * BOUND_S, lambda: on_processes(lambda x: Deadly() if x == 61 else x, range(100), chunk=chunk, on_error="collect")
    )
    assert [(failure.index, failure.kind) for failure in results.failures] == [(61, "crashed")]
    assert [value for value in results if not isinstance(value, ff.Failure)] == [x for x in range(100) if x != 61]
    said = "wrote into the socket on which it talks to this process" if garbage else "exited with code 7"
    assert said in results.failures[0].message


@fault("F50")
@pytest.mark.parametrize("chunk", [1, 50])
def test_the_process_that_starts_workers_may_be_killed_during_a_call(tmp_path, chunk):
    mark, driver = tmp_path / "killed", os.getpid()

    def kill_the_template_and_die(x):
        if x == 61 and not mark.exists():
            assert os.getppid() != driver
            mark.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(7)
        return x

    results = within(2 * BOUND_S, lambda: on_processes(kill_the_template_and_die, range(100), chunk=chunk))
    assert results == list(range(100))
    assert on_processes(abs, range(10)) == list(range(10))


@fault("F50")
def test_a_death_that_nobody_watched_is_told_all_the_same():
    driver = os.getpid()

    def kill_the_template_and_die(x):
        assert os.getppid() != driver
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(7)

    (failure,) = within(BOUND_S, lambda: on_processes(kill_the_template_and_die, [1], workers=1, on_error="collect")).failures
    assert "exited with code 7" in failure.message or "nobody noted how" in failure.message


# ---- the kernel ends it for want of memory --------------------------------------------------------------------------------------


@pytest.fixture
def kills(tmp_path, monkeypatch):
    """The file in which this machine's kernel would count its kills for want of memory: here it is another one."""
    root, member = tmp_path / "cgroup", tmp_path / "membership"
    root.mkdir()
    member.write_text("0::/\n")
    count = root / "memory.events"
    count.write_text("oom 0\noom_kill 3\n")
    monkeypatch.setattr(obituary, "oom_kills", lambda: machine.oom_kills(str(root), str(member)))
    return count


def killed_as_by_the_kernel(count):
    """A function whose item 3 is killed, and counted."""

    def fn(x):
        if x == 3:
            kills = int(count.read_text().split()[-1])
            count.write_text(f"oom 0\noom_kill {kills + 1}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    return fn


@fault("F21")
@pytest.mark.parametrize("chunk", [1, 50])
def test_a_kill_for_want_of_memory_is_told_as_one(kills, chunk):
    with pytest.raises(ff.errors.OutOfMemory, match="was killed by the kernel's out-of-memory killer"):
        on_processes(killed_as_by_the_kernel(kills), range(60), chunk=chunk)
    (failure,) = on_processes(killed_as_by_the_kernel(kills), range(60), on_error="collect", chunk=chunk).failures
    assert failure.index == 3
    assert "was killed by the kernel's out-of-memory killer (SIGKILL); its peak memory was" in failure.message


@fault("F21")
def test_a_kill_that_the_kernel_did_not_count_is_told_as_any_other(kills):
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    (failure,) = on_processes(lambda x: die() if x == 3 else x, range(6), on_error="collect", chunk=1).failures
    assert "was killed by SIGKILL (often the kernel's answer to too little memory)" in failure.message


@fault("F21")
def test_one_kill_by_the_kernel_explains_one_death(kills):
    counted = obituary.OutOfMemoryKills()
    assert not counted.account_for_one()
    kills.write_text("oom_kill 5\n")
    assert [counted.account_for_one() for _ in range(3)] == [True, True, False]


@fault("F21")
def test_the_engine_says_of_the_outcome_that_memory_ran_out(kills):
    heard = []
    with pytest.MonkeyPatch.context() as patch:
        lost = Inbox._lost
        patch.setattr(Inbox, "_lost", lambda self, outcome: (heard.append(outcome), lost(self, outcome))[1])
        on_processes(killed_as_by_the_kernel(kills), range(6), on_error="collect", chunk=1)
    assert [outcome.out_of_memory for outcome in heard] == [True, True]


# ---- when nothing works, the run ends ---------------------------------------------------------------------------------------------


@fault("F15")
@pytest.mark.parametrize("chunk", [1, 50, "auto"])
def test_when_every_item_kills_its_worker_the_run_ends_with_one_error(chunk):
    def die(x):
        os.write(2, b"no licence found\n")
        os._exit(3)

    with pytest.raises(
        WorkersKeepDying, match=r"5\d workers of die died .*exited with code 3.*the last that it left: no licence found"
    ) as caught:
        within(10, lambda: on_processes(die, range(100_000), chunk=chunk, on_error="collect"))
    assert "last lines on stderr:\nno licence found" in str(caught.value.__cause__)


@fault("F15")
def test_workers_that_take_their_time_to_die_end_the_run_when_that_goes_on(monkeypatch):
    monkeypatch.setattr(respawn, "LASTS_S", 0.5)

    def die_slowly(x):
        time.sleep(0.1)
        os._exit(3)

    with pytest.raises(WorkersKeepDying, match=r"(?<!\d)\d+ workers of die_slowly died .*exited with code 3") as caught:
        within(BOUND_S, lambda: on_processes(die_slowly, range(1000), chunk=1, on_error="collect"))
    assert 5 < int(re.match(r"\d+", str(caught.value))[0]) < HOPELESS


@fault("F17")
@pytest.mark.parametrize("on_error", ["raise", "collect"])
@pytest.mark.parametrize("how", ["exits", "crashes"])
def test_a_class_that_kills_the_worker_while_it_is_built_is_one_error(how, on_error):
    class Model:
        def __init__(self, how):
            os.write(2, b"bad weights\n")
            os._exit(3) if how == "exits" else ctypes.string_at(0)

        def __call__(self, x):
            return x

    said = "exited with code 3" if how == "exits" else "SIGSEGV"
    with pytest.raises(
        WorkersKeepDying, match=rf"workers of .*Model died .*{said}.* while it loaded the function.*: bad weights\. "
    ) as caught:
        within(10, lambda: on_processes(Model, range(100), init=(how,), on_error=on_error))
    assert ("in __init__" in str(caught.value.__cause__)) == (how == "crashes")


@fault("F16")
def test_a_worker_that_cannot_start_is_one_error_with_its_last_words(tmp_path):
    (tmp_path / "broken.py").write_text("def main(*arguments):\n    raise OSError('no such device')\n")
    text = """
        import fourfold as ff
        from fourfold.distribute.engines.on_processes import pool

        pool.WORKER_MAIN = "broken:main"
        try:
            ff.map(abs, range(100), engine="processes", workers=2)
        except ff.errors.EngineError as error:
            print(error)
    """
    ended = within(10, lambda: run_script(text, folder=tmp_path))
    assert (ended.code, ended.survivors) == (0, [])
    assert re.fullmatch(
        r"workers died before they were ready; the last one: worker \d+ \(pid \d+\) exited with code 1 before it was ready; its "
        r"peak memory was \d+ MiB; the last that it said: OSError: no such device. Run `fourfold doctor`\n",
        ended.stdout,
    )


@fault("F16")
def test_a_template_that_cannot_start_is_one_error_with_its_last_words(tmp_path):
    text = """
        import fourfold as ff
        from fourfold.distribute.engines.on_processes import pool

        pool.WORKER_MAIN = "no_such_module:main"
        try:
            ff.map(abs, range(100), engine="processes", workers=2)
        except ff.errors.EngineError as error:
            print(error)
    """
    # Nobody waits for a note of how workers died: whoever writes it is dead.
    ended = within(3, lambda: run_script(text, folder=tmp_path))
    assert ended == (
        0,
        "the process that starts workers could not start itself; the last that it said: ModuleNotFoundError: "
        "No module named 'no_such_module'. Run `fourfold doctor`\n",
        "",
        [],
    )


# ---- when one hangs, it is told ------------------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch):
    """What takes long is told of after half a second."""
    monkeypatch.setattr(watch, "STALL_S", 0.5)


WAITS = {
    "in Python": lambda path: [time.sleep(0.01) for _ in iter(lambda: os.path.exists(path), True)],
    "in C, with the interpreter locked": lambda path: ctypes.PyDLL(None).system(
        f"until test -e {path}; do sleep 0.05; done".encode()
    ),
}
hang_until = WAITS["in Python"]


@pytest.fixture
def stall(soon, caplog, tmp_path, monkeypatch):
    return lambda fn, items, **options: _stall(caplog, tmp_path, monkeypatch, fn, items, **options)


def _stall(caplog, tmp_path, monkeypatch, fn, items, **options):
    """Run until a stall was told of, and then on to the end; returns the warnings."""
    caplog.set_level(logging.WARNING, "fourfold")
    release, looks = tmp_path / "release", []

    def let_go():
        until(lambda: caplog.messages, "a stall is told of")
        n_looks = len(looks)
        until(lambda: len(looks) > n_looks + 2, "the engine looks again, and could tell of it again")
        release.touch()

    look = handle.Worker.look
    monkeypatch.setattr(handle.Worker, "look", lambda worker: (looks.append(worker), look(worker))[1])

    helper = threading.Thread(target=let_go)
    helper.start()
    try:
        results = on_processes(fn(str(release)), items, **options)
    finally:
        release.touch()
        helper.join()
    return results, caplog.messages


@fault("F18")
@pytest.mark.parametrize("chunk", [1, 20])
@pytest.mark.parametrize("where", WAITS)
def test_an_item_that_hangs_is_told_with_its_stack(stall, where, chunk):
    hang = WAITS[where]

    def make(release):
        def wait_long(x):
            if x == 7:
                hang(release)
            return x

        return wait_long

    results, (message,) = stall(make, range(20), chunk=chunk)
    assert results == list(range(20))
    assert re.match(r"worker \d+ \(pid \d+\) has run item \d+ (or one of the \d+ behind it )?of wait_long for \d+ s", message)
    first, behind = re.search(r"item (\d+) (?:or one of the (\d+))?", message).groups()
    assert int(first) <= 7 <= int(first) + int(behind or 0)
    assert chunk > 1 or behind is None
    assert "timeout= stops what takes too long" in message
    assert re.search(r"most recent call first:\n(?s:.*)in <lambda>\n(?s:.*)in wait_long$", message)


@fault("F18")
def test_under_cost_the_index_of_what_hangs_is_the_inputs(stall):
    make = lambda release: lambda x: hang_until(release) if x == 17 else x  # noqa: E731
    _, (message,) = stall(make, range(20), cost=lambda x: x, chunk=1)
    assert "has run item 17 of" in message


@fault("F19")
def test_a_frozen_worker_is_told_without_a_stack(soon, caplog):
    caplog.set_level(logging.WARNING, "fourfold")
    pids = on_processes(lambda x: os.getpid(), range(4), chunk=1, workers=1)

    def wake():
        until(lambda: caplog.messages, "a stall is told of")
        os.kill(pids[0], signal.SIGCONT)

    helper = threading.Thread(target=wake)
    helper.start()
    results = on_processes(lambda x: os.kill(os.getpid(), signal.SIGSTOP) or x, [5], workers=1)
    helper.join()
    assert results == [5]
    assert "It does not say where it is: it may be frozen." in caplog.messages[0]


@fault("F17")
def test_a_class_that_hangs_while_it_is_built_is_told(stall):
    def make(release):
        class Model:
            def __init__(self):
                hang_until(release)

            def __call__(self, x):
                return x

        return Model

    results, (message,) = stall(make, range(20), workers=1)
    assert results == list(range(20))
    assert re.match(r"worker \d+ \(pid \d+\) has been building .*Model\(\.\.\.\) for \d+ s", message)
    assert "timeout= is for items and does not stop this" in message
    assert "in __init__" in message


@fault("F17")
def test_a_function_that_hangs_while_it_is_unpickled_is_told(stall):
    class Slow:
        def __init__(self, release):
            self.release = release

        def __call__(self, x):
            return x

        def __setstate__(self, state):
            hang_until(state["release"])

    results, (message,) = stall(Slow, range(20), workers=1)
    assert results == list(range(20))
    assert re.match(r"worker \d+ \(pid \d+\) has been loading .*Slow for \d+ s", message)
    assert "in __setstate__" in message


def test_items_that_take_as_long_as_those_before_are_not_told_of(monkeypatch, caplog):
    monkeypatch.setattr(watch, "STALL_S", 0.05)
    caplog.set_level(logging.WARNING, "fourfold")
    on_processes(lambda x: time.sleep(0.3 if x == 5 else 0.03), range(6), chunk=1, workers=1)
    assert caplog.messages == []


def test_an_item_that_wants_no_signal_is_told_of_and_lives(stall):
    def make(release):
        def wait_long(x):
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            hang_until(release)
            return x

        return wait_long

    results, (message,) = stall(make, [5])
    assert (results, results.report.n_workers_lost) == ([5], 0)
    assert "It does not say where it is" in message
    the_pool().close()


# ---- when somebody asks ----------------------------------------------------------------------------------------------------------------

HANGS = """
    import ctypes, os, sys, time
    import fourfold as ff

    def hang(x):
        open(f"runs-{x}", "w").close()
        if x == 0:
            ctypes.PyDLL(None).system(b"until test -e go; do sleep 0.02; done")
        while x == 1 and not os.path.exists("go"):
            time.sleep(0.01)
        return x

    print(os.getpid(), flush=True)
    print(ff.map(hang, range(2), engine="processes", workers=2, chunk=1))
"""


@pytest.mark.parametrize("how", ["kill -USR1", pytest.param("fourfold status", marks=pytest.mark.slow)])
def test_a_driver_that_is_asked_says_where_all_are(tmp_path, how):
    with started(HANGS, folder=tmp_path) as script:
        pid = int(script.read_line())
        until(lambda: (tmp_path / "runs-0").exists() and (tmp_path / "runs-1").exists(), "both items run")
        begin = time.monotonic()
        if how == "fourfold status":
            done = fourfold("status", str(pid))
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == f"process {pid} prints on its stderr where its workers are\n"
        else:
            os.kill(pid, signal.SIGUSR1)
        said = []
        while (
            not said
            or not said[-1].startswith('  File "')
            or "in <module>" not in said[-1]
            or "this process" not in "".join(said)
        ):
            said.append(script.process.stderr.readline())
        assert is_in_time(time.monotonic() - begin, 1.0 if how == "kill -USR1" else 5.0)
        (tmp_path / "go").touch()
        ended = script.end()
    text = "".join(said)
    assert (ended.code, ended.stdout, ended.survivors) == (0, "[0, 1]\n", [])
    for index in range(2):
        assert re.search(
            rf'worker \d \(pid \d+\) has run item {index} of hang for [\d.]+ s:\n(  File .+\n)*  File "\S+script.py", line \d+ in hang\n',
            text,
        )
    assert re.search(r"this process, most recent call first:\n(?s:.*) in wait\n(?s:.*)in <module>\n", text)


def fourfold(*arguments):
    command = [sys.executable, "-m", "fourfold", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_status_refuses_what_would_die_of_the_signal(tmp_path):
    text = """
        import os, sys
        import fourfold as ff
        {work}
        print(os.getpid(), flush=True)
        sys.stdin.readline()
    """
    for work, said in [
        ("", "has no workers of fourfold"),
        ("ff.map(abs, range(9), engine='threads', workers=1)", "has no workers of fourfold"),
        (
            "ff.map(abs, range(9), engine='processes', workers=1)",
            "does not listen for SIGUSR1 now: nothing runs on its workers",
        ),
    ]:
        with started(textwrap.dedent(text).format(work=work), folder=tmp_path) as script:
            pid = script.read_line()
            done = fourfold("status", pid)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.startswith(f"fourfold: process {pid} {said}")
            assert script.process.poll() is None


def test_status_of_a_process_that_is_not_there_says_so():
    done = fourfold("status", "999999999")
    assert (done.returncode, done.stderr) == (2, "fourfold: there is no process 999999999\n")


def test_a_handler_of_the_user_stays_and_ours_goes_with_the_run():
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    stream = ff.imap(abs, range(100), engine="processes", workers=1)
    next(stream)
    assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
    stream.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    mine = lambda *_: None  # noqa: E731
    signal.signal(signal.SIGUSR1, mine)
    try:
        stream = ff.imap(abs, range(100), engine="processes", workers=1)
        next(stream)
        assert signal.getsignal(signal.SIGUSR1) is mine
        stream.close()
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_runs_that_overlap_are_all_told_of_and_the_last_one_takes_the_handler_along(capfd):
    first = ff.imap(lambda x: x, range(100), engine="processes", workers=1)
    second = ff.imap(abs, range(100), engine="processes", workers=1)
    assert (next(first), next(second)) == (0, 0)
    first.close()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert "workers are ready for abs" in capfd.readouterr().err
    second.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_in_a_thread_no_handler_is_set():
    found = []

    def call():
        stream = ff.imap(abs, range(100), engine="processes", workers=1)
        next(stream)
        found.append(signal.getsignal(signal.SIGUSR1))
        stream.close()

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


# ---- workers of a template that is dead ------------------------------------------------------------------------------------------------


@fault("F50")
def test_workers_whose_template_is_dead_are_not_lent_again():
    before = set(on_processes(lambda x: os.getpid(), range(20), chunk=1))
    pool = the_pool()
    os.kill(pool._template.pid, signal.SIGKILL)
    until(lambda: pool._template.poll() is not None, "the template is dead")
    assert not set(on_processes(lambda x: os.getpid(), range(20), chunk=1)) & before
