"""Rows of the fault matrix (faults.py) that belong to no other file: what items do to their process, data, drivers, small machines.

Functions are written inside the tests or without a name: so they travel by value.
"""

import asyncio
import concurrent.futures
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from leaks import the_pool
from running import run_script, started, until
from ways import notebook  # noqa: F401

import fourfold as ff
from fourfold.distribute.engines.on_processes import expiry

fault = pytest.mark.fault


def on_processes(fn, items, **options):
    return ff.map(fn, items, **{"engine": "processes", "workers": 2, **options})


BAD = 61
"""The item of a hundred that goes wrong."""


def costs_itself_at_most(bad, chunk, on_error):
    """Run a hundred items of which one goes wrong."""
    fn = lambda x: bad() or x if x == BAD else x  # noqa: E731
    if on_error == "raise":
        try:
            assert on_processes(fn, range(100), chunk=chunk) == list(range(100))
        except ff.errors.WorkerLost as error:
            said = "".join(error.__notes__)
            assert f"item {BAD} of" in said
        return
    results = on_processes(fn, range(100), chunk=chunk, on_error="collect")
    assert [x for x in results if not isinstance(x, ff.Failure)] == [x for x in range(100) if x != BAD or not results.failures]
    assert [failure.index for failure in results.failures] in ([], [BAD])
    assert on_processes(abs, range(10)) == list(range(10))


# ---- F23: descriptors


def ways_to_spoil_descriptors():
    """Made in a function, so that they travel by value: by name, each worker would import this file and all that tests need."""

    def write_everywhere():
        for fd in range(3, 40):
            try:
                os.write(fd, b"\xff" * 300)
            except OSError:
                continue

    def write_at_the_start_of_everything():
        for fd in range(3, 40):
            try:
                os.pwrite(fd, b"\xff" * 4096, 0)
            except OSError:
                continue

    def close_the_first_20():
        os.closerange(0, 21)

    def close_all():
        os.closerange(0, 4096)

    def put_another_file_in_their_place():
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3, 40):
            if fd != null:
                os.dup2(null, fd)

    def close_the_standard_streams():
        os.closerange(0, 3)

    return [
        write_everywhere,
        write_at_the_start_of_everything,
        close_the_first_20,
        close_all,
        put_another_file_in_their_place,
        close_the_standard_streams,
    ]


@fault("F23")
@pytest.mark.parametrize("harm", ways_to_spoil_descriptors(), ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("chunk", [1, 50])
@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_an_item_that_spoils_descriptors_costs_itself_at_most(harm, chunk, on_error):
    costs_itself_at_most(harm, chunk, on_error)
    the_pool().close()  # whose descriptors are spoiled: nobody is to inherit that


# ---- F24: the state of the process


def state():
    """What an item can change of its process, and the next call must find as it was."""
    return {
        "folder": os.getcwd(),
        "environment": os.environ.get("FOURFOLD_TEST_VALUE"),
        "arguments": list(sys.argv),
        "path": "/nowhere" in sys.path,
        "recursion": sys.getrecursionlimit(),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "SIGINT": callable(signal.getsignal(signal.SIGINT)),
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "umask": [os.umask(0o22), os.umask(0o22)][0],
    }


def change_all():
    os.chdir("/")
    os.environ["FOURFOLD_TEST_VALUE"] = "changed"
    sys.path.append("/nowhere")
    sys.argv.append("changed")
    sys.setrecursionlimit(777)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    os.umask(0o77)


@fault("F24")
@pytest.mark.parametrize("chunk", [1, 50])
def test_what_an_item_changes_of_its_process_is_as_before_in_the_next_call(chunk, monkeypatch):
    look, change = state, change_all
    before = on_processes(lambda _: (os.getpid(), look()), range(8), chunk=1, workers=1)
    changed = on_processes(lambda _: (change(), os.getpid(), look())[1:], range(60), chunk=chunk, workers=1)
    after = on_processes(lambda _: (os.getpid(), look()), range(8), chunk=1, workers=1)
    assert {pid for pid, _ in [*before, *changed, *after]} == {before[0][0]}, "it was the same process"
    same = {key for key, value in changed[-1][1].items() if value == before[0][1][key]}
    assert same == set(), "these were not changed"
    assert [found for _, found in after] == [before[0][1]] * 8


@fault("F24")
def test_an_item_finds_what_the_one_before_it_in_its_worker_has_changed_as_in_the_loop(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fn = lambda x: os.chdir("/") if x == 0 else os.getcwd()  # noqa: E731
    on_one_worker = on_processes(fn, range(4), workers=1, chunk=1)
    assert on_one_worker == [None, "/", "/", "/"]
    assert ff.map(fn, range(4), engine="serial") == on_one_worker


@fault("F24")
def test_the_arguments_of_the_driver_are_those_of_workers(monkeypatch):
    for arguments in (["train.py", "--rate", "0.1"], ["train.py"]):  # the second time in the same worker
        monkeypatch.setattr(sys, "argv", arguments)
        assert on_processes(lambda _: sys.argv, range(1), chunk=1, workers=1) == [arguments]


@fault("F24")
def test_the_recursion_limit_of_the_driver_holds_in_workers(monkeypatch):
    def dive(depth):
        return dive(depth - 1) + 1 if depth else 0

    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(9000)
    try:
        assert on_processes(lambda x: dive(x), [5000], chunk=1) == [5000]
    finally:
        sys.setrecursionlimit(usual)


# ---- F25: forks


@fault("F25")
@pytest.mark.parametrize("chunk", [1, 50])
@pytest.mark.parametrize("ends", ["returns", "raises", "exits"])
def test_the_child_of_an_item_that_forked_gives_no_second_result_and_runs_no_other_item(chunk, ends, notebook):  # noqa: F811
    def fn(x):
        notebook.write(x)
        time.sleep(0.002)  # each item is a block of its own
        if x == BAD and os.fork() == 0:
            if ends == "raises":
                raise ValueError(x)
            if ends == "exits":
                sys.exit(3)
        return x

    assert on_processes(fn, range(100), chunk=chunk) == list(range(100))
    the_pool().close()  # with all that items have started
    assert sorted(map(int, notebook.lines())) == list(range(100))


# ---- F26: parallel work inside items


def work_with_a_pool_of_processes(x):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [x, -x])


def work_with_an_executor(x):
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
        return list(executor.map(abs, [x, -x]))


def work_with_a_pool_of_new_interpreters(x):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(abs, [x, -x])


def work_with_joblib(x):
    import joblib
    from joblib.externals.loky import get_reusable_executor

    try:
        return joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(each) for each in [x, -x])
    finally:
        get_reusable_executor().shutdown(wait=True)  # else its semaphores keep their names when the worker is killed


def work_with_threads_of_joblib(x):
    import joblib

    with joblib.parallel_config("threading"):
        return joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(each) for each in [x, -x])


def work_with_threads(x):
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        return list(executor.map(abs, [x, -x]))


def work_with_fourfold(x):
    return ff.map(abs, [x, -x])


@fault("F26")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize(
    "work",
    [
        work_with_a_pool_of_processes,
        work_with_an_executor,
        work_with_threads,
        work_with_threads_of_joblib,
        work_with_fourfold,
    ],
)
def test_an_item_may_work_in_parallel_itself(work, chunk):
    assert [list(each) for each in on_processes(lambda x: list(work(x)), range(8), chunk=chunk)] == [[x, x] for x in range(8)]


@fault("F26")
@pytest.mark.slow
@pytest.mark.parametrize("work", [work_with_joblib, work_with_a_pool_of_new_interpreters])
def test_an_item_may_start_interpreters_of_its_own(work):
    assert on_processes(lambda x: list(work(x)), range(2), chunk=1) == [[0, 0], [1, 1]]
    the_pool().close()


@fault("F26")
def test_calls_inside_items_start_no_processes():
    def nested(x):
        inner = ff.map(lambda y: (os.getpid(), len(ff.map(abs, range(3)))), range(3))
        return {pid for pid, _ in inner} == {os.getpid()}

    assert on_processes(nested, range(8), chunk=1) == [True] * 8


# ---- F27: handlers


@fault("F27")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_item_that_ignores_signals_is_stopped_by_its_timeout_and_ends_with_the_pool(number, monkeypatch):
    monkeypatch.setattr(expiry, "GRACE_S", 0.3)

    def deaf(x):
        signal.signal(number, signal.SIG_IGN)
        if x == 3:
            time.sleep(1000)
        return os.getpid()

    results = on_processes(deaf, range(6), chunk=1, timeout=0.3, on_error="collect")
    assert [failure.index for failure in results.failures] == [3]
    the_pool().close()
    for pid in {value for value in results if isinstance(value, int)}:
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), "the worker is gone")


# ---- F32: payloads


@fault("F32")
@pytest.mark.parametrize("around", [1, 32768, 65536, 65536 * 2, 212992, 1 << 20])
def test_items_and_results_of_sizes_around_every_boundary_come_whole(around):
    sizes = [max(0, around + by) for by in (-200, -64, -2, -1, 0, 1, 2, 64, 200)]
    fn = lambda data: (len(data), data)  # noqa: E731
    assert on_processes(fn, [os.urandom(1) * n for n in sizes], chunk=1) is not None
    results = on_processes(fn, [b"x" * n for n in sizes], chunk=1)
    assert results == [(n, b"x" * n) for n in sizes]


@pytest.mark.alone  # it takes gigabytes
@fault("F32")
@pytest.mark.slow
def test_an_item_and_a_result_of_more_than_two_gib_come_whole():
    n_bytes = (2 << 30) + 4097
    if psutil.virtual_memory().available < 6 * n_bytes:
        pytest.skip(f"{6 * n_bytes >> 30} GiB of memory are needed")
    data = np.zeros(n_bytes, dtype="u1")
    data[[0, -1]] = 1, 2
    (result,) = on_processes(lambda array: array, [data], workers=1)
    assert (result.size, result[0], result[-1], int(result[1:-1].max())) == (n_bytes, 1, 2, 0)
    del data, result
    the_pool().close()  # with the memory that is kept for the next call


@fault("F32")
@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_a_result_that_the_driver_has_no_memory_for_is_one_clear_error(tmp_path, on_error):
    text = f"""
        import resource
        import fourfold as ff

        ff.map(abs, range(4), engine="processes", workers=2)  # the workers are there, and have no limit
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, resource.RLIM_INFINITY))
        try:
            results = ff.map(
                lambda x: bytes(300_000_000 if x == 2 else 1), range(4),
                engine="processes", workers=2, chunk=1, on_error={on_error!r},
            )
            print([failure.index for failure in results.failures], [len(value) for value in results if value and isinstance(value, bytes)])
        except (MemoryError, ff.errors.FourfoldError) as error:
            print(type(error).__name__, error)
    """
    ended = run_script(text, folder=tmp_path)
    assert (ended.code, ended.stderr, ended.survivors) == (0, "", [])
    assert "emory" in ended.stdout or ended.stdout == "[2] [1, 1, 1]\n"


# ---- F35, F36: sources


@fault("F35")
@pytest.mark.parametrize("chunk", [1, 50, "auto"])
def test_a_list_that_grows_while_it_is_mapped_gives_each_item_once(chunk):
    items = list(range(100))
    stream = ff.imap(lambda x: x, items, engine="processes", workers=2, chunk=chunk)
    got = [next(stream)]
    items += [100, 101]
    got += list(stream)
    assert got in (list(range(100)), list(range(102)))


@fault("F35")
def test_a_source_may_call_fourfold_itself():
    def source():
        for x in range(20):
            yield from on_processes(abs, [-x])

    assert on_processes(lambda x: x * x, source(), chunk=3) == [x * x for x in range(20)]


@fault("F35")
def test_a_generator_that_is_asked_while_it_runs_says_so_as_in_the_loop():
    def source():
        yield from (next(items) for _ in range(3))

    items = source()
    with pytest.raises(ValueError, match="generator already executing"):
        on_processes(abs, items)


@fault("F36")
@pytest.mark.parametrize("n_items", [0, 1, 3])
@pytest.mark.parametrize("chunk", [1, 50, "auto"])
def test_fewer_items_than_workers_are_the_loops_answer(n_items, chunk):
    assert on_processes(abs, range(n_items), workers=4, chunk=chunk) == list(range(n_items))


@fault("F36")
@pytest.mark.slow
def test_a_million_tiny_items_come_back_in_order():
    assert on_processes(lambda x: -x, range(1_000_000)) == list(range(0, -1_000_000, -1))


# ---- F43, F44: the driver is stopped, or becomes another program


@fault("F43")
@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_driver_that_was_frozen_goes_on_and_no_item_is_late(tmp_path, n_workers):
    text = f"""
        import os, time
        import fourfold as ff

        def work(x):
            open(f"ran-{{x}}", "w").close()
            time.sleep(0.05)
            return x

        results = ff.map(work, range(16), engine="processes", workers={n_workers}, chunk=1, timeout=1, progress=False)
        print(results == list(range(16)), results.report.n_workers_lost)
    """
    with started(text, folder=tmp_path) as script:
        until(lambda: (tmp_path / "ran-3").exists(), "items run")
        script.process.send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            script.process.wait(1.3)  # longer than any item may take
        script.process.send_signal(signal.SIGCONT)
        ended = script.end()
    assert ended == (0, "True 0\n", "", [])


@fault("F44")
def test_a_driver_that_becomes_another_program_leaves_no_workers(tmp_path):
    text = """
        import os, sys
        import fourfold as ff

        ff.map(abs, range(4), engine="processes", workers=2)
        again = "import os, sys; sys.stdin.readline()"
        print("ready", flush=True)
        os.execv(sys.executable, [sys.executable, "-c", again])
    """
    with started(text, folder=tmp_path) as script:
        assert script.read_line() == "ready"
        others = lambda: [each for each in script._family() if each.pid != script.process.pid]  # noqa: E731
        until(lambda: not others(), "the workers are gone", timeout=2.0)
        assert script.process.poll() is None


# ---- F46: threads and asyncio


@fault("F46")
def test_coroutines_may_call_side_by_side_in_threads_and_in_the_loop_itself():
    async def one(k):
        return await asyncio.to_thread(on_processes, lambda x: x * k, range(50), chunk=5)

    async def main():
        direct = on_processes(abs, range(5))
        return direct, await asyncio.gather(*(one(k) for k in range(4)))

    assert asyncio.run(main()) == (list(range(5)), [[x * k for x in range(50)] for k in range(4)])


@fault("F46")
@pytest.mark.slow
def test_a_thousand_calls_from_four_threads_get_their_own_answers():
    def call(k):
        return all(on_processes(lambda x: x * k, range(6), chunk=2) == [x * k for x in range(6)] for _ in range(250))

    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        assert list(executor.map(call, range(4))) == [True] * 4


# ---- F47: little of everything


@fault("F47")
@pytest.mark.parametrize("folder", ["/nonexistent", "/proc/self"])
def test_a_folder_for_temporary_files_is_not_needed(tmp_path, folder):
    text = 'import fourfold as ff\nprint(ff.map(len, [bytes(300_000)] * 4, engine="processes", workers=2))'
    assert run_script(text, folder=tmp_path, TMPDIR=folder) == (0, "[300000, 300000, 300000, 300000]\n", "", [])


FEW_PROCESSES = """
    import os, resource, sys

    if os.getuid() == 0:  # whom no limit binds: become somebody who has no other processes, and may still read all files
        reads = "-all,+dac_override,+dac_read_search"
        become = "setpriv --reuid 54321 --regid 54321 --clear-groups".split() + ["--inh-caps", reads, "--ambient-caps", reads]
        os.execvp("setpriv", [*become, sys.executable, *sys.argv])

    import fourfold as ff

    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    try:
        results = ff.map(lambda x: x * x, range(40), engine="processes", workers=4, chunk=1)
        print(results == [x * x for x in range(40)], 1 <= results.report.workers <= 4)
    except ff.errors.EngineError as error:
        print(type(error).__name__, error)
"""


@fault("F47")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who has no processes yet")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv (util-linux)")
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 6, 10])
def test_under_a_limit_of_processes_there_are_fewer_workers_or_one_error(tmp_path, limit):
    ended = run_script(FEW_PROCESSES, str(limit), folder=tmp_path)
    assert (ended.code, ended.survivors) == (0, [])
    # A worker that may not start its thread has said so on stderr.
    assert set(re.findall(r"^(\w+: .*)$", ended.stderr, re.MULTILINE)) <= {"RuntimeError: can't start new thread"}
    error = re.search(r"^\w+ .*(Resource temporarily unavailable|can't start new thread)", ended.stdout)
    if limit < 4:  # driver, template, and a worker with its thread
        assert error
    elif limit >= 10:  # four workers
        assert (ended.stdout, ended.stderr) == ("True True\n", "")
    else:  # workers may take each other the room for a thread
        assert error or ended.stdout == "True True\n"


# ---- F49: interrupted system calls


@fault("F49")
@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_interrupted_system_calls_do_no_harm_to_a_recorded_run(tmp_path, engine):
    text = f"""
        import signal
        import fourfold as ff

        signal.signal(signal.SIGALRM, lambda number, frame: None)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        print(sum(ff.map(lambda x: sum(range(x)), range(1000), engine={engine!r}, workers=2, run="run")))
        signal.setitimer(signal.ITIMER_REAL, 0)
    """
    assert run_script(text, folder=tmp_path) == (0, f"{sum(sum(range(x)) for x in range(1000))}\n", "", [])


@fault("F49")
@pytest.mark.parametrize("chunk", [1, 50])
def test_items_that_let_themselves_be_interrupted_all_the_time_do_no_harm(chunk):
    def fn(x):
        signal.signal(signal.SIGALRM, lambda number, frame: None)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        return bytes([x]) * 100_000

    assert on_processes(fn, range(100), chunk=chunk) == [bytes([x]) * 100_000 for x in range(100)]


# ---- F51: what threads hold while workers start


@fault("F51", faults=3)
@pytest.mark.slow
def test_workers_start_while_threads_log_and_multiply_matrices():
    import logging

    import numpy as np

    over = threading.Event()
    array = np.ones((300, 300))

    def log():
        while not over.is_set():
            logging.getLogger("a test").debug("words")

    def multiply():
        while not over.is_set():
            array @ array

    threads = [threading.Thread(target=log), threading.Thread(target=multiply)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            the_pool().close()
            assert on_processes(lambda x: float((array @ array)[0, x]), range(4), chunk=1) == [300.0] * 4
    finally:
        over.set()
        for thread in threads:
            thread.join()


# ---- F45: interpreters that end


@fault("F45")
@pytest.mark.parametrize("how", ["os._exit(5)", "sys.exit(5)", "ctypes.CDLL(None).exit(5)"])
def test_a_driver_that_ends_itself_with_items_in_flight_leaves_nobody(tmp_path, how):
    text = f"""
        import ctypes, os, sys, time
        import fourfold as ff

        for value in ff.imap(lambda x: time.sleep(0.2 * x) or x, range(100), engine="processes", workers=2, chunk=1):
            if value == 2:
                {how}
    """
    ended = run_script(text, folder=tmp_path)
    assert (ended.code, ended.stderr, ended.survivors) == (5, "", [])


@fault("F38")
@pytest.mark.parametrize("size", [10, 300_000])
def test_a_result_that_is_its_item_is_a_value_of_its_own(size):
    import numpy as np

    items = [np.full(size, k) for k in range(4)]
    results = on_processes(lambda array: (array, array[: size // 2]), items, chunk=1)
    for whole, half in results:
        whole += 1
        assert not np.shares_memory(whole, items[0])
        half[:] = -1
    assert [int(array[0]) for array in items] == [0, 1, 2, 3]
