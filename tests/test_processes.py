"""Worker processes: they die and nothing is lost, they share what is large, they follow the driver, they fit small machines.

Workers are really killed. Functions are written inside the tests: so they travel by value, and workers need not import this
module (and pytest with it).
"""

import contextlib
import ctypes
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from leaks import descendants, living_descendants, the_pool
from running import run_script, until

import fourfold as ff
from fourfold.distribute.engines.on_processes import channel
from fourfold.distribute.engines.on_processes.engine import Processes
from fourfold.errors import Indeterminate
from fourfold.system.machine import cores
from fourfold.testing.rig import Rig


def on_processes(fn: Callable[[Any], Any], items: Any, **options: Any) -> ff.Results:
    return ff.map(fn, items, **{"engine": "processes", "workers": 2, **options})


def die_once(mark: Path, how: Callable[[], Any]) -> Callable[[], None]:
    """A function that dies the first time that it is called, in any process."""
    path = str(mark)

    def die() -> None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            how()

    return die


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def workers_of_the_pool() -> list[int]:
    return [worker.pid for worker in the_pool()._idle if worker.pid]


# ---- a worker dies


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fresh_worker_is_made_when_all_have_run_something_and_nothing_runs_beside(tmp_path: Path, workers: int) -> None:
    gate = tmp_path / "gate"

    def pid_behind_the_gate(waits: bool) -> int:
        if waits:
            until(gate.exists, "the gate opens")
        return os.getpid()

    with Rig(Processes(workers, lambda record: None)) as rig:
        rig.put(pid_behind_the_gate)
        before = {pid for result in rig.run(*[[False]] * 8) for pid in result.values}
        busy = rig.submit(*[[True]] * 2 * workers)  # all have something to do, and something beside it
        alone = rig.submit([False], [False], fresh=True)
        after = rig.submit(*[[False]] * 8)
        gate.touch()
        pids = [rig.result(outcome).values[0] for outcome in rig.outcomes_of([*alone, *busy, *after])]
    fresh, others = pids[:2], pids[2 : 2 + len(busy)]
    assert not {*fresh} & {*before, *others}
    assert len({*fresh}) == 2


@pytest.mark.parametrize("chunk", [1, 50, "auto"])
@pytest.mark.fault("F14")
def test_a_worker_that_is_killed_costs_no_item(tmp_path: Path, chunk: Any) -> None:
    die = die_once(tmp_path / "died", lambda: os.kill(os.getpid(), signal.SIGKILL))

    def square(x: int) -> int:
        if x == 617:
            die()
        return x * x

    results = on_processes(square, range(1000), chunk=chunk)
    assert results == [x * x for x in range(1000)]
    assert results.report.n_workers_lost == 1


@pytest.mark.fault("F14")
def test_every_worker_may_be_killed_once(tmp_path: Path) -> None:
    deaths = [die_once(tmp_path / f"died-{number}", lambda: os.kill(os.getpid(), signal.SIGKILL)) for number in range(5)]

    def square(x: int) -> int:
        if x % 20 == 0:
            deaths[x // 20]()
        return x * x

    results = on_processes(square, range(100), chunk=3)
    assert results == [x * x for x in range(100)]
    assert results.report.n_workers_lost == 5


WAYS_TO_DIE = {
    "exited with code 7": lambda: os._exit(7),
    "exited with code 0": lambda: os._exit(0),
    "killed by SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "killed by SIGSEGV": lambda: ctypes.string_at(0),
    "killed by SIGABRT": lambda: os.abort(),
}


@pytest.mark.parametrize("said", WAYS_TO_DIE)
@pytest.mark.fault("F13")
def test_an_item_that_always_kills_its_worker_costs_one_item(said: str) -> None:
    die = WAYS_TO_DIE[said]

    def square(x: int) -> int:
        if x == 617:
            die()
        return x * x

    results = on_processes(square, range(1000), on_error="collect")
    (failure,) = results.failures
    assert results[:617] + results[618:] == [x * x for x in range(1000) if x != 617]
    assert (failure.index, failure.kind, failure.item) == (617, "crashed", "617")
    assert failure.error_type == "fourfold.errors.WorkerLost"
    assert said in failure.message


@pytest.mark.parametrize("chunk", [1, 50])
@pytest.mark.parametrize("deadly", [(0, 11, 99), tuple(range(35, 55))], ids=["3 items", "20 items in a row"])
@pytest.mark.fault("F13")
def test_items_that_kill_their_workers_cost_themselves_only(deadly: tuple[int, ...], chunk: int) -> None:
    def square(x: int) -> int:
        if x in deadly:
            os._exit(7)
        return x * x

    results = on_processes(square, range(100), on_error="skip", chunk=chunk)
    assert results == [x * x for x in range(100) if x not in deadly]
    assert [failure.index for failure in results.failures] == list(deadly)


@pytest.mark.fault("F15")
def test_a_run_ends_though_every_item_kills_its_worker() -> None:
    results = on_processes(lambda x: os._exit(3), range(6), on_error="collect")
    assert [failure.kind for failure in results] == ["crashed"] * 6


@pytest.mark.fault("F3")
def test_an_item_that_kills_its_worker_is_raised_as_worker_lost() -> None:
    def fail(x: int) -> int:
        return os._exit(7) if x == 3 else x

    with pytest.raises(ff.errors.WorkerLost, match="exited with code 7") as caught:
        on_processes(fail, range(10))
    assert any("item 3 of fail: 3" in note for note in caught.value.__notes__)


def test_an_item_that_is_not_idempotent_never_runs_again_after_its_worker_died(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def charge(x: int) -> int:
        with open(log, "a") as file:
            file.write(f"{x}\n")
        return os._exit(7) if x == 3 else x

    results = on_processes(charge, range(6), idempotent=False, on_error="skip")
    assert results == [0, 1, 2, 4, 5]
    assert sorted(Path(log).read_text().split()) == list("012345")
    (failure,) = results.failures
    assert (failure.index, failure.kind, failure.attempts, type(failure.error)) == (3, "indeterminate", 1, Indeterminate)
    assert "exited with code 7" in failure.message


@pytest.mark.fault("F10")
def test_a_death_between_items_is_nobodys_fault(tmp_path: Path) -> None:
    die = die_once(tmp_path / "died", lambda: threading.Timer(0.01, os._exit, (9,)).start())

    def square(x: int) -> int:
        die()
        return x * x

    assert on_processes(square, range(200), chunk=1) == [x * x for x in range(200)]


@pytest.mark.parametrize("method", ["__getstate__", "__setstate__"])
@pytest.mark.fault("F9")
def test_a_result_that_kills_the_process_which_pickles_it_costs_its_item(method: str) -> None:
    class Deadly:
        def __getstate__(self) -> object:
            if method == "__getstate__":
                os._exit(7)
            return 1

        def __setstate__(self, state: object) -> None:
            raise RuntimeError("cannot be read")

    results = on_processes(lambda x: Deadly() if x == 30 else x, range(100), on_error="collect", chunk=20)
    assert [x for x in results if x != results[30]] == [x for x in range(100) if x != 30]
    assert [failure.index for failure in results.failures] == [30]
    assert results[30].kind == ("crashed" if method == "__getstate__" else "unpicklable")


@pytest.mark.fault("F9")
def test_an_item_that_kills_the_process_which_unpickles_it_costs_itself() -> None:
    class Deadly:
        def __reduce__(self) -> Any:
            return os._exit, (7,)

    items = [Deadly() if x == 30 else x for x in range(100)]
    results = on_processes(lambda x: x, items, on_error="skip", chunk=20)
    assert results == [x for x in range(100) if x != 30]
    assert [(failure.index, failure.kind) for failure in results.failures] == [(30, "crashed")]


@pytest.mark.fault("F23")
def test_an_item_that_closes_all_descriptors_costs_itself() -> None:
    def close_all(x: int) -> int:
        if x == 5:
            os.closerange(3, 1000)
        return x

    results = on_processes(close_all, range(20), on_error="skip", chunk=1)
    assert results == [x for x in range(20) if x != 5]


@pytest.mark.fault("F25")
def test_an_item_that_forks_and_returns_twice_has_one_result() -> None:
    def fork(x: int) -> int:
        if x == 5:
            os.fork()
        return x

    assert on_processes(fork, range(20), chunk=1) == list(range(20))


@pytest.mark.parametrize("ends", ["crashes", "returns"])
@pytest.mark.fault("F20")
def test_what_an_item_started_dies_with_its_worker(ends: str) -> None:
    def start(x: int) -> int:
        process = subprocess.Popen(["sleep", "60"])
        if ends == "crashes":
            os._exit(7)
        return process.pid

    on_processes(start, range(6), on_error="collect", chunk=1)
    the_pool().close()
    until(lambda: not [each for each in living_descendants(0) if each.name == "sleep"], "the item's children are gone")


# ---- what is idle dies


@pytest.fixture
def warm_pool() -> Any:
    assert on_processes(abs, range(4), chunk=1) == [0, 1, 2, 3]
    pool = the_pool()
    until(lambda: pool.warm() >= 2, "two workers are warm")
    return pool


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not {each.pid for each in descendants() if each.state not in "ZX"} & set(pids), f"{pids} are dead")


def test_workers_stay_warm_between_calls(warm_pool: Any) -> None:
    before = set(workers_of_the_pool())
    assert set(on_processes(lambda x: os.getpid(), range(20), chunk=1)) <= before


@pytest.mark.parametrize("how_many", ["one", "all"])
@pytest.mark.fault("F12")
def test_the_next_call_works_after_idle_workers_were_killed(warm_pool: Any, how_many: str) -> None:
    pids = workers_of_the_pool()
    killed = pids[:1] if how_many == "one" else pids
    kill(*killed)
    # A process whose threads have not all ended yet has its files open still.
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in killed), "the template has buried them")
    results = on_processes(abs, range(100))
    assert results == list(range(100))
    assert results.report.n_workers_lost == 0


@pytest.mark.fault("F50")
def test_the_next_call_works_after_the_template_was_killed(warm_pool: Any) -> None:
    kill(warm_pool._template.pid)
    assert on_processes(abs, range(100), workers=4) == list(range(100))


@pytest.mark.fault("F50")
def test_the_next_call_works_after_everybody_was_killed(warm_pool: Any) -> None:
    kill(warm_pool._template.pid, *workers_of_the_pool())
    assert on_processes(abs, range(100)) == list(range(100))


@pytest.mark.slow
@pytest.mark.fault("F50")
def test_a_crash_without_a_template_is_told_all_the_same(warm_pool: Any) -> None:
    kill(warm_pool._template.pid)
    results = on_processes(lambda x: os._exit(7) if x == 3 else x, range(10), on_error="skip")
    assert results == [x for x in range(10) if x != 3]


def test_idle_workers_end_by_themselves_and_the_next_call_starts_others(tmp_path: Path) -> None:
    (tmp_path / "hasty.py").write_text(
        "from fourfold.distribute.engines.on_processes import worker_loop\n"
        "worker_loop.LET_GO_S, worker_loop.IDLE_S = 0.01, 0.02\n"
        "from fourfold.worker import main\n"
    )
    text = """
        import select
        import time
        import fourfold as ff
        from fourfold.distribute.engines.on_processes import pool

        pool.WORKER_MAIN = "hasty:main"
        print(ff.map(abs, range(3), engine="processes", workers=2))
        deadline = time.monotonic() + 20
        for worker in pool.POOL._idle:
            while not worker.ready:  # the other one may have done all the items
                select.select([worker.end], [], [], 20)
                worker.hear()
            while not worker.is_dead() and time.monotonic() < deadline:  # it may have ended before it was heard
                time.sleep(0.005)
            print(worker.is_dead())
        print(ff.map(abs, range(3), engine="processes", workers=2))
    """
    assert run_script(text, folder=tmp_path) == (0, "[0, 1, 2]\nTrue\nTrue\n[0, 1, 2]\n", "", [])


# ---- signals


@pytest.mark.fault("F49")
def test_interrupted_system_calls_do_no_harm(tmp_path: Path) -> None:
    text = """
        import signal
        import fourfold as ff

        signal.signal(signal.SIGALRM, lambda number, frame: None)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        print(sum(ff.map(lambda x: sum(range(x)), range(3000), engine="processes", workers=2)))
        signal.setitimer(signal.ITIMER_REAL, 0)
    """
    assert run_script(text, folder=tmp_path) == (0, f"{sum(sum(range(x)) for x in range(3000))}\n", "", [])


# ---- what travels with the function is shared


SIZES = [10, 10_000_000]

CARRIERS = {
    "closure": lambda array: lambda x: (array.flags.writeable, array[x]),
    "partial": lambda array: functools.partial(lambda array, x: (array.flags.writeable, array[x]), array),
    "bound method": lambda array: Holder(array).look,
    "dict in a closure": lambda array: (lambda held: lambda x: (held["a"].flags.writeable, held["a"][x]))({"a": array}),
}


class Holder:
    def __init__(self, array: Any) -> None:
        self.array = array

    def look(self, x: int) -> Any:
        return self.array.flags.writeable, self.array[x]


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_an_array_that_travels_with_the_function_is_readonly_at_every_size(carrier: str, size_bytes: int) -> None:
    array = np.arange(size_bytes, dtype=np.uint8)
    assert on_processes(CARRIERS[carrier](array), range(4)) == [(False, x) for x in range(4)]
    assert array.flags.writeable


ARRAYS = {
    "strided": lambda n: np.arange(2 * n, dtype=np.float64)[::2],
    "backwards": lambda n: np.arange(n, dtype=np.float64)[::-1],
    "by columns": lambda n: np.asfortranarray(np.arange(2 * n, dtype=np.float64).reshape(2, n)),
    "a part of a table": lambda n: np.arange(4 * n, dtype=np.float64).reshape(n, 4)[:, 1:3],
    "of structures": lambda n: np.zeros(n, dtype=[("a", "i4"), ("b", "f8")]),
    "of dates": lambda n: np.arange(n).astype("datetime64[s]"),
    "of text": lambda n: np.full(n, "text"),
    "of half floats": lambda n: np.ones(n, dtype=np.float16),
    "in other byte order": lambda n: np.arange(n, dtype=">i8"),
    "of no dimension": lambda n: np.array(float(n)),
    "empty": lambda n: np.empty((0, n)),
}


@pytest.mark.parametrize("count", [3, 100_000])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_arrive_equal_and_readonly(kind: str, count: int) -> None:
    array = ARRAYS[kind](count)
    (there,) = on_processes(lambda _: (array.flags.writeable, array.dtype, array.shape, array.tobytes()), [0])
    assert there == (False, array.dtype, array.shape, array.tobytes())


def private_growth(fn: Callable[[], object]) -> int:
    """By how many bytes the private memory of a worker grows while it runs `fn`; the most of all workers."""

    def measure(_: int) -> int:
        from pathlib import Path

        def private_bytes() -> int:
            # Not psutil's USS: that counts shared memory as private to the first worker that looks at it.
            found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
            assert found is not None
            return int(found[1]) * 1024

        before = private_bytes()
        fn()
        return private_bytes() - before

    return max(on_processes(measure, range(8), chunk=1))


def test_the_memory_of_an_array_in_a_closure_is_shared_by_all_workers() -> None:
    array = np.ones((64 << 20) // 8)
    assert private_growth(lambda: array.copy()) >= 0  # what NumPy needs for itself is there now
    assert private_growth(lambda: array.sum()) < 0.05 * array.nbytes


@pytest.mark.slow
def test_the_memory_of_an_arrow_table_in_a_closure_is_shared_by_all_workers() -> None:
    def total(table: Any) -> float:
        return float(np.asarray(table["a"].chunk(0)).sum())

    table, small = pa.table({"a": np.ones((64 << 20) // 8)}), pa.table({"a": np.ones(8)})
    private_growth(lambda: total(small))
    assert private_growth(lambda: total(table)) < 0.05 * table.nbytes


def test_a_model_in_a_closure_is_loaded_into_memory_of_workers_once_and_not_per_item() -> None:
    array = np.ones((16 << 20) // 8)

    def address(_: int) -> tuple[int, int]:
        return os.getpid(), array.ctypes.data

    assert len(set(on_processes(address, range(20), chunk=1))) <= 2


def test_a_program_travels_once_to_each_worker(tmp_path: Path) -> None:
    log = str(tmp_path / "loaded")

    class Model:
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.__dict__ = state
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")

    model = Model()
    model.weights = np.ones(100_000)  # type: ignore[attr-defined]
    on_processes(lambda x: float(model.weights[x]), range(50), chunk=1)  # type: ignore[attr-defined]
    pids = Path(log).read_text().split()
    assert len(pids) == len(set(pids)) <= 2


def test_an_array_of_an_earlier_function_that_a_worker_keeps_stays_as_it_was() -> None:
    def keep(array: Any) -> Callable[[int], None]:
        def function(_: int) -> None:
            import builtins

            builtins.kept_by_a_test = array  # type: ignore[attr-defined]

        return function

    def look(_: int) -> set[float]:
        import builtins

        return set(getattr(builtins, "kept_by_a_test", [1.0]))

    on_processes(keep(np.full(300_000, 1.0)), range(10), chunk=1)
    for value in (2.0, 3.0):
        other = np.full(300_000, value)
        assert on_processes(lambda x, other=other: other[x], range(10), chunk=1) == [value] * 10
    assert on_processes(look, range(10), chunk=1) == [{1.0}] * 10
    the_pool().close()


# ---- items and results


@pytest.mark.parametrize("size_bytes", SIZES)
def test_the_array_of_an_item_is_writable_at_every_size(size_bytes: int) -> None:
    def change(array: Any) -> Any:
        array[0] = 7
        return array.sum()

    items = [np.zeros(size_bytes, dtype=np.uint8) for _ in range(3)]
    assert on_processes(change, items) == [7, 7, 7]
    assert [item[0] for item in items] == [0, 0, 0]


@pytest.mark.parametrize("size_bytes", SIZES)
def test_the_array_of_a_result_is_writable_at_every_size(size_bytes: int) -> None:
    for array in on_processes(lambda x: np.full(size_bytes, x, dtype=np.uint8), range(3)):
        array[0] += 1
        assert array[0] == array[1] + 1


@pytest.mark.fault("F38")
def test_a_view_of_an_item_that_the_function_keeps_stays_as_it_was() -> None:
    class KeepsAll:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def __call__(self, array: Any) -> list[int]:
            self.kept.append(array[::1000])
            return sorted({int(value) for view in self.kept for value in view} ^ {int(view[0]) for view in self.kept})

    # What it keeps has one value each; were the memory used again, older ones would show newer values, or both.
    items = [np.full(200_000, number) for number in range(40)]
    assert on_processes(KeepsAll, items, chunk=1, workers=1) == [[]] * 40

    class KeepsFirst(KeepsAll):
        def __call__(self, array: Any) -> Any:
            self.kept.append(array)
            return [int(view[0]) for view in self.kept], [int(view[-1]) for view in self.kept]

    results = on_processes(KeepsFirst, items, chunk=1, workers=1)
    assert results == [(list(range(n + 1)), list(range(n + 1))) for n in range(40)]


def test_results_keep_their_values_while_others_arrive() -> None:
    kept = list(ff.imap(lambda x: np.full(100_000, x), range(40), engine="processes", workers=2, chunk=1))
    assert [(int(array[0]), int(array[-1])) for array in kept] == [(x, x) for x in range(40)]


def test_results_keep_their_values_when_later_calls_use_the_memory_again() -> None:
    first = on_processes(lambda x: np.full(300_000, x), range(8), chunk=2)
    for _ in range(3):
        on_processes(lambda x: np.full(300_000, -x), range(8), chunk=2)
    assert [sorted(set(array.tolist())) for array in first] == [[x] for x in range(8)]


@pytest.mark.fault("F38")
def test_results_are_independent_of_each_other_and_of_their_workers() -> None:
    results = on_processes(lambda x: np.full(300_000, x), range(8), chunk=4)
    results[1][:] = 100
    the_pool().close()
    results[2][:] = 200
    assert [int(array[-1]) for array in results] == [0, 100, 200, 3, 4, 5, 6, 7]


@pytest.mark.fault("F44")
def test_results_in_a_forked_child_keep_their_values_when_the_parent_lets_go_of_its_own() -> None:
    results = on_processes(lambda x: np.full(300_000, x), range(4), chunk=1)
    told_read, told_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told_write)
        os.read(told_read, 1)
        os._exit(0 if [set(array.tolist()) for array in results] == [{x} for x in range(4)] else 1)
    del results
    for _ in range(3):
        on_processes(lambda x: np.full(300_000, -1), range(8), chunk=1)
    os.write(told_write, b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(told_read)
    os.close(told_write)


def test_the_memory_of_items_is_used_again() -> None:
    def memory(array: Any) -> set[str]:
        with open("/proc/self/maps") as maps:
            return {line.split()[4] for line in maps if "fourfold" in line and int(line.split()[4])}

    found = on_processes(memory, [np.zeros(200_000) for _ in range(40)], chunk=1, workers=1)
    assert len(set.union(*found)) < 10


@pytest.mark.parametrize("size_bytes", [100_000, 2_000_000], ids=["copied", "mapped"])
def test_the_memory_of_results_is_used_again(size_bytes: int) -> None:
    def memory(_: int) -> Any:
        import os

        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/dev/fd/{fd}")]
        return np.full(size_bytes // 8, sum("fourfold" in target for target in held))

    most = 0
    for _ in range(3):
        for array in ff.imap(memory, range(40), engine="processes", workers=1, chunk=1):
            most = max(most, int(array[0]))
    assert most < 20


def test_calls_with_large_items_and_results_do_not_add_up_memory() -> None:
    def call() -> int:
        on_processes(lambda array: array + 1, [np.ones(300_000) for _ in range(6)], chunk=1)
        with open("/proc/self/maps") as maps:
            return sum("fourfold" in line for line in maps)

    held = [call() for _ in range(5)]
    assert held[-1] <= held[1]


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.fault("F32")
def test_a_result_of_500_mb_comes_whole() -> None:
    (array,) = on_processes(lambda n: np.arange(n), [500_000_000 // 8])
    assert array.nbytes == 500_000_000
    assert array[-1] == len(array) - 1


def test_a_result_whose_class_the_driver_cannot_find_costs_its_item() -> None:
    def make(x: int) -> Any:
        import sys
        import types

        if x != 2:
            return x
        module = types.ModuleType("module_that_only_the_worker_has")
        sys.modules[module.__name__] = module
        exec("class Strange: pass", module.__dict__)
        return module.Strange()

    results = on_processes(make, range(5), on_error="collect")
    assert [results[0], results[1], results[3], results[4]] == [0, 1, 3, 4]
    assert results[2].kind == "unpicklable"
    assert "module_that_only_the_worker_has" in results[2].message


def test_a_function_whose_module_the_worker_cannot_find_is_one_clear_error() -> None:
    module = types.ModuleType("module_that_only_the_driver_has")
    module.__file__ = "/nowhere/module_that_only_the_driver_has.py"
    exec("def double(x): return 2 * x", module.__dict__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        with pytest.raises(ModuleNotFoundError, match="module_that_only_the_driver_has"):
            on_processes(module.double, range(5))


@pytest.mark.fault("F32")
def test_results_that_fill_the_channel_while_nobody_reads_come_in_the_end() -> None:
    # More prints than the channel holds, while the driver is busy elsewhere.
    stream = ff.imap(lambda x: "y" * 1000, range(2000), engine="processes", workers=2)
    assert next(stream) == "y" * 1000
    assert sum(map(len, stream)) == 1999 * 1000


# ---- workers follow the driver


def test_a_change_of_folder_reaches_warm_workers(warm_pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(on_processes(lambda x: os.getcwd(), range(4), chunk=1)) == {str(tmp_path)}


def test_a_folder_that_was_removed_does_not_stop_warm_workers(
    warm_pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    on_processes(abs, range(4), chunk=1)
    monkeypatch.chdir(tmp_path)
    gone.rmdir()
    assert set(on_processes(lambda x: os.getcwd(), range(4), chunk=1)) == {str(tmp_path)}


def test_a_driver_in_a_folder_that_was_removed_can_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert on_processes(abs, range(4)) == [0, 1, 2, 3]


def test_changes_of_the_environment_reach_warm_workers(warm_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: int) -> str | None:
        return os.environ.get("FOURFOLD_TEST_VALUE")

    monkeypatch.setenv("FOURFOLD_TEST_VALUE", "first")
    assert set(on_processes(read, range(4), chunk=1)) == {"first"}
    monkeypatch.delenv("FOURFOLD_TEST_VALUE")
    assert set(on_processes(read, range(4), chunk=1)) == {None}


def test_a_change_of_the_import_path_reaches_warm_workers(
    warm_pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_this_test.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import module_of_this_test  # type: ignore[import-not-found]

    assert on_processes(module_of_this_test.double, range(4)) == [0, 2, 4, 6]


# ---- threads of numerical libraries


@pytest.mark.parametrize("threads", [1, 3])
def test_each_worker_gets_the_threads_that_were_asked_for(threads: int) -> None:
    def measure(_: int) -> tuple[set[int], str | None]:
        import numpy
        import threadpoolctl

        numpy.ones((2, 2)) @ numpy.ones((2, 2))
        return {each["num_threads"] for each in threadpoolctl.threadpool_info()}, os.environ.get("OMP_NUM_THREADS")

    results = on_processes(measure, range(4), threads_per_worker=threads, chunk=1)
    assert results == [({threads}, str(threads))] * 4


BLAS_SCRIPT = """
    import fourfold as ff

    def threads(_):
        import numpy, threadpoolctl
        return {each["num_threads"] for each in threadpoolctl.threadpool_info()}

    options = {"engine": "processes", "workers": 2, "chunk": 1, "progress": False}  # a busy machine takes 5 s to import NumPy
    print(set().union(*ff.map(threads, range(4), **options)))
"""


def test_workers_share_the_cores(tmp_path: Path) -> None:
    each = max(1, cores().n_cores // 2)
    assert run_script(BLAS_SCRIPT, folder=tmp_path) == (0, f"{{{each}}}\n", "", [])


def test_a_number_of_threads_that_the_user_set_stays(tmp_path: Path) -> None:
    assert run_script(BLAS_SCRIPT, folder=tmp_path, OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2").stdout == "{2}\n"


# ---- small machines


SMALL_SCRIPT = """
    import fourfold as ff
    import numpy as np

    options = {{"engine": "processes", "workers": {workers}, "progress": False}}  # a busy machine takes 5 s to import NumPy
    results = ff.map(lambda array: array * 2, [np.full(200_000, k) for k in range(8)], **options)
    print([int(array[0]) for array in results], results.report.workers)
"""

EVEN = "[0, 2, 4, 6, 8, 10, 12, 14]"


@pytest.mark.fault("F47")
def test_64_open_files_are_enough(tmp_path: Path) -> None:
    text = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    ended = run_script(text + textwrap.dedent(SMALL_SCRIPT.format(workers=2)), folder=tmp_path)
    assert ended == (0, f"{EVEN} 2\n", "", [])


@pytest.mark.fault("F16")
def test_more_workers_than_64_open_files_allow_are_fewer_workers(tmp_path: Path) -> None:
    text = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    ended = run_script(text + textwrap.dedent(SMALL_SCRIPT.format(workers=40)), folder=tmp_path)
    assert (ended.code, ended.stderr, ended.survivors) == (0, "", [])
    values, _, workers = ended.stdout.strip().rpartition(" ")
    assert values == EVEN
    assert 1 <= int(workers) < 40


@pytest.mark.fault("F16")
@pytest.mark.fault("F47")
def test_no_open_files_at_all_is_one_clear_error(tmp_path: Path) -> None:
    text = """
        import os, resource
        import fourfold as ff

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            for fd in held[-3:]:
                os.close(fd)
        try:
            ff.map(abs, range(10), engine="processes", workers=2)
        except ff.errors.EngineError as error:
            print(error)
    """
    ended = run_script(text, folder=tmp_path)
    assert "ulimit -n" in ended.stdout
    assert (ended.code, ended.stderr, ended.survivors) == (0, "", [])


@pytest.mark.fault("F47")
def test_without_memfd_all_works(tmp_path: Path) -> None:
    take_away_memfd(tmp_path)
    ended = run_script(SMALL_SCRIPT.format(workers=2), folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert ended == (0, f"{EVEN} 2\n", "", [])


def take_away_memfd(folder: Path) -> None:
    """In the driver and in the template, whose forks the workers are: both run this when they start."""
    (folder / "sitecustomize.py").write_text("import os\nif hasattr(os, 'memfd_create'):\n    del os.memfd_create\n")


SHARED_MEMORY_FOLDERS = {
    "tiny": "mount -t tmpfs -o size=64k tmpfs /dev/shm",
    "read-only": "mount -t tmpfs -o ro tmpfs /dev/shm",
    "not there": "mount -t tmpfs tmpfs /dev",
}


def _may_mount() -> bool:
    return subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0


@pytest.mark.parametrize("memfd", [True, False], ids=["memfd", "no memfd"])
@pytest.mark.parametrize("folder", SHARED_MEMORY_FOLDERS)
@pytest.mark.fault("F47")
def test_dev_shm_may_be_tiny_readonly_or_missing(tmp_path: Path, folder: str, memfd: bool) -> None:
    if not _may_mount():
        pytest.skip("this user may not mount file systems")
    if not memfd:
        take_away_memfd(tmp_path)
    (tmp_path / "job.py").write_text(textwrap.dedent(SMALL_SCRIPT.format(workers=2)))
    # Python wants /dev/urandom and subprocess /dev/null, also where /dev/shm is missing.
    keep = "exec 3</dev/null 4</dev/urandom; " if folder == "not there" else ""
    make = "mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; " if folder == "not there" else ""
    command = f"{keep}{SHARED_MEMORY_FOLDERS[folder]} && {make}exec {sys.executable} job.py"
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{EVEN} 2\n", "")


# ---- who calls


@pytest.mark.fault("F46")
def test_two_threads_may_call_at_once() -> None:
    found: dict[int, list[int]] = {}
    both = threading.Barrier(2)

    def call(number: int) -> None:
        both.wait(20)
        for _ in range(3):
            found[number] = list(on_processes(lambda x: x * 2 + number, range(200), chunk=5))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: [x * 2 + number for x in range(200)] for number in range(2)}


def test_two_streams_may_be_read_in_turn() -> None:
    first = ff.imap(lambda x: x + 1, range(50), engine="processes", workers=2, chunk=1)
    second = ff.imap(lambda x: x + 2, range(50), engine="processes", workers=2, chunk=1)
    assert list(zip(first, second, strict=True)) == [(x + 1, x + 2) for x in range(50)]


@pytest.mark.fault("F44")
def test_a_forked_child_of_a_driver_with_warm_workers_can_call(warm_pool: Any) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(write_end, "w") as pipe:
                results = on_processes(lambda x: os.getpid(), range(4), chunk=1)
                mine = set(workers_of_the_pool())
                pipe.write(f"{set(results) <= mine} ")
                the_pool().close()
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said == "True "
    assert on_processes(abs, range(4)) == [0, 1, 2, 3]


@pytest.mark.fault("F26")
def test_a_nested_call_runs_in_its_worker() -> None:
    def nested(x: int) -> tuple[list[int], str, set[bool]]:
        import fourfold

        results = fourfold.map(lambda y: (y * x, os.getpid()), range(3), engine="processes", workers=2)
        return [y for y, _ in results], results.report.engine, {pid == os.getpid() for _, pid in results}

    assert on_processes(nested, range(4)) == [([0, x, 2 * x], "serial", {True}) for x in range(4)]


def test_nobody_listens_for_connections(warm_pool: Any) -> None:
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        assert [each for each in process.net_connections("all") if each.status == psutil.CONN_LISTEN] == []


def test_workers_inherit_no_open_files_of_the_driver() -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    on_processes(abs, range(4), workers=3)
    os.close(write_end)
    # The end of the pipe is told although workers live on: none of them holds it open.
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_workers_do_not_hold_each_others_channels(warm_pool: Any) -> None:
    def sockets(_: int) -> set[str]:
        found = set()
        for entry in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{entry}"))
        return {target for target in found if target.startswith("socket:")}

    assert [len(found) for found in on_processes(sockets, range(8), chunk=1, workers=3)] == [1] * 8


def test_a_worker_has_no_standard_input() -> None:
    assert on_processes(lambda x: sys.stdin.read(), range(2)) == ["", ""]


def test_signals_that_end_a_program_end_a_worker_too() -> None:
    def terminate(x: int) -> int:
        if x == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return x

    results = on_processes(terminate, range(3), on_error="collect", chunk=1)
    assert "SIGTERM" in results[1].message


def test_the_sockets_of_the_driver_are_private(warm_pool: Any) -> None:
    family = {worker.end.family for worker in warm_pool._idle}
    assert family == {socket.AF_UNIX}
    assert {worker.end.getsockname() for worker in warm_pool._idle} == {""}


def test_workers_wait_for_work_whatever_the_default_timeout_of_sockets_is():
    socket.setdefaulttimeout(0.001)
    try:
        ours, theirs = channel.pair()
        again = channel.inherited(os.dup(theirs.fileno()))
    finally:
        socket.setdefaulttimeout(None)
    with ours, theirs, again:
        assert [os.get_blocking(each.fileno()) for each in (ours, theirs, again)] == [True] * 3
        assert again.gettimeout() is None
