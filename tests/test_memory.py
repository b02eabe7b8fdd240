"""Memory: what items take is measured, fewer run where it is scarce, `memory=` holds, and workers that grow are replaced."""

import ctypes
import functools
import mmap
import os
import pathlib
import re
import signal
import time

import numpy as np
import psutil
import pytest
from running import until

import fourfold as ff
from fourfold.distribute import memory
from fourfold.distribute.engine import EngineInfo, MemoryUse
from fourfold.distribute.engines.on_processes.gauge import private_bytes
from fourfold.distribute.engines.on_processes.pool import POOL
from fourfold.distribute.events import MemoryRoom
from fourfold.system import machine
from fourfold.system.machine import FreeMemory, MemoryReader

pytestmark = pytest.mark.alone

MB = 1_000_000


def take(n_bytes):
    """Memory of this process that was really written to."""
    return np.ones(n_bytes // 8)


def on_processes(fn, items, workers=2, **options):
    return ff.map(fn, items, engine="processes", workers=workers, **options)


# ---- how much is free ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path):
    """Makes a machine of 100 MB, 60 of them free, and cgroups in it; returns what reads it."""

    def make(membership, files):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "membership").write_text(membership)
        (tmp_path / "meminfo").write_text("MemTotal:   100000 kB\nMemFree:  100 kB\nMemAvailable:   60000 kB\n")
        return MemoryReader(tmp_path / "cgroup", tmp_path / "membership", tmp_path / "meminfo")

    return make


V2, V1 = "0::/job\n", "5:memory:/job\n"
MACHINE = FreeMemory(60_000 * 1024, 100_000 * 1024)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (V2, {}, MACHINE),
        (V2, {"job/memory.max": "max\n", "job/memory.current": "7\n"}, MACHINE),
        (
            V2,
            {"job/memory.max": "9000\n", "job/memory.current": "2000\n", "job/memory.stat": "inactive_file 500\n"},
            (7000, 9000),
        ),
        (
            V2,
            {"job/memory.max": "9000\n", "job/memory.current": "8000\n", "job/memory.stat": "a 1\ninactive_file 500\n"},
            (1500, 9000),
        ),
        (V2, {"job/memory.max": "9000\n", "job/memory.current": "9500\n"}, (0, 9000)),
        (V2, {"job/memory.max": "9000\n"}, MACHINE),
        (V1, {"memory/job/memory.limit_in_bytes": "9000", "memory/job/memory.usage_in_bytes": "8000"}, (1000, 9000)),
        (V1, {"memory/job/memory.limit_in_bytes": str(2**63 - 4096), "memory/job/memory.usage_in_bytes": "1"}, MACHINE),
    ],
)
def test_free_memory_is_the_least_of_the_machines_and_the_cgroups(reader, membership, files, expected):
    assert reader(membership, files).read() == FreeMemory(*expected)


def test_where_nobody_says_what_is_free_it_is_unknown(tmp_path):
    assert MemoryReader(tmp_path, tmp_path / "none", tmp_path / "none").read() is None


def test_the_real_machine_says_what_is_free():
    free = MemoryReader().read()
    assert 0 < free.free_bytes < free.limit_bytes <= machine.memory().limit_bytes


# ---- what items take -------------------------------------------------------------------------------------------------------------


def test_the_report_has_what_an_item_took_at_its_peak_although_it_has_let_go():
    def fn(item):
        return take(200 * MB)[:1].sum()

    report = on_processes(fn, range(4)).report
    assert 200 * MB < report.peak_item_bytes < 280 * MB
    assert report.memory_workers is None


def test_items_of_one_run_say_nothing_about_those_of_the_next():
    on_processes(lambda item: take(200 * MB).sum(), range(4))
    assert on_processes(lambda item: item, range(100)).report.peak_item_bytes < 60 * MB


def test_what_items_share_with_the_driver_is_not_their_own():
    big = [take(80 * MB) for _ in range(3)]
    assert on_processes(lambda array: array[::100].sum(), big).report.peak_item_bytes < 60 * MB


# ---- fewer items at once ---------------------------------------------------------------------------------------------------------


class Cgroup:
    """A memory cgroup made of files, in which the workers of this process are: what they take is in use."""

    def __init__(self, folder, limit_bytes):
        job = folder / "cgroup" / "job"
        job.mkdir(parents=True)
        (job / "memory.max").write_text(str(limit_bytes))
        (folder / "membership").write_text(V2)
        self._current = job / "memory.current"
        self._current.write_text("0")
        self._reader = MemoryReader(folder / "cgroup", folder / "membership")

    def read(self):
        self._current.write_text(str(sum(worker.private_bytes(live=True) for worker in list(POOL._lent))))
        return self._reader.read()


@pytest.fixture
def scarce(tmp_path, monkeypatch):
    """Puts workers into a cgroup with so little memory, and has the driver look at it often."""

    def make(limit_bytes):
        cgroup = Cgroup(tmp_path, limit_bytes)
        monkeypatch.setattr(memory, "MemoryReader", lambda: cgroup)
        monkeypatch.setattr(memory, "LOOK_S", 0.01)
        monkeypatch.setattr(memory, "LOOK_SHARE", 0.5)

    return make


def grow(n_bytes, steps=20):
    """Takes memory bit by bit; returns when it began and ended."""
    begin = time.monotonic()
    kept = [take(n_bytes // steps) for _ in range(steps)]
    return begin, time.monotonic(), len(kept)


def at_once(spans):
    """How many of the spans run while each of them begins."""
    return [sum(begin <= at < end for begin, end, _ in spans) for at, _, _ in spans]


@pytest.mark.slow
@pytest.mark.fault("F21")
def test_fewer_items_run_at_once_before_memory_runs_out(scarce):
    scarce(500 * MB)
    spans = on_processes(grow, [150 * MB] * 24, workers=4)
    assert max(at_once(sorted(spans)[8:])) <= 2
    assert spans.report.memory_workers in (1, 2)
    assert spans.report.n_workers_lost == 0
    assert re.search(r"memory let [12] of 4 workers run: an item needs about [\d.]+ MB, .* were free", spans.report.verdict)


@pytest.mark.slow
def test_where_memory_is_plenty_all_workers_run(scarce):
    scarce(8000 * MB)
    spans = on_processes(grow, [20 * MB] * 24, workers=3)
    assert spans.report.memory_workers is None
    assert "memory" not in spans.report.verdict


@pytest.mark.slow
@pytest.mark.fault("F21")
def test_when_memory_is_nearly_gone_the_youngest_item_is_stopped_and_runs_again(scarce, tmp_path):
    scarce(700 * MB)
    log = tmp_path / "log"

    def pids():
        return [int(pid) for pid in log.read_text().split()]

    def fn(item):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        until(lambda: len(pids()) >= 3, "all workers have begun")
        kept = take(400 * MB)
        until(lambda: not all(psutil.pid_exists(pid) for pid in pids()[:3]), "one of them is stopped")
        return kept.size

    results = on_processes(fn, range(6), workers=3)
    assert results == [400 * MB // 8] * 6
    assert len(pids()) > 6, "nothing was stopped"
    assert results.report.n_workers_lost == 0
    assert results.report.n_failures == 0


class Claims:
    """An engine that says what its workers take, and does nothing else."""

    info = EngineInfo("claims", takes_objects=True, honours=frozenset(), measures_memory=True)

    def __init__(self, item_bytes, held_bytes=0):
        self.use = MemoryUse(item_bytes, item_bytes, held_bytes, 0)

    def memory(self, live):
        return self.use if live else MemoryUse(0, self.use.top_bytes, 0, 0)  # no chunk has ended yet


@pytest.mark.parametrize(
    ("free", "limit", "item", "held", "expected"),
    [
        (500, 1000, 100, 0, (4, False)),  # 50 are kept in reserve
        (500, 1000, 100, 200, (6, False)),  # two of them are running
        (40, 1000, 100, 300, (3, False)),  # of very little, only half is kept in reserve
        (20, 1000, 100, 300, (3, True)),
        (20, 1000, 1, 4, None),  # others have filled the machine, but items take next to nothing
        (0, 1000, 100, 300, (3, True)),
        (900, 1000, 100, 0, None),
        (3000, 100_000, 100, 0, None),  # 2 GiB are enough in reserve: these are MiB
    ],
)
def test_there_is_room_for_what_is_free_and_held_less_a_reserve(monkeypatch, free, limit, item, held, expected):
    monkeypatch.setattr(memory, "LOOK_S", 0.0)
    MiB = 1 << 20
    watch = memory.MemoryWatch(lambda: FreeMemory(free * MiB, limit * MiB))
    room = watch.look(Claims(item * MiB, held * MiB), slots=8)
    assert room == (MemoryRoom(*expected) if expected else None)


def test_what_is_free_is_looked_at_rarely(monkeypatch):
    looks = []
    watch = memory.MemoryWatch(lambda: looks.append(1) or FreeMemory(1000, 1000))
    for _ in range(1000):
        watch.look(Claims(1), slots=8)
    assert looks == [], "not before LOOK_S"
    monkeypatch.setattr(memory, "LOOK_S", 0.0)

    def read_slowly():
        begin = time.perf_counter()
        while time.perf_counter() < begin + 0.002:
            looks.append(1)
        return FreeMemory(1000, 1000)

    slow = memory.MemoryWatch(read_slowly)
    slow.look(Claims(1), slots=8)
    n_looks = len(looks)
    for _ in range(1000):
        slow.look(Claims(1), slots=8)
    assert len(looks) == n_looks, "2 ms of looking are not more than a share of seconds"


# ---- memory= ---------------------------------------------------------------------------------------------------------------------

LIMIT = 300 * MB


@pytest.mark.fault("F21")
def test_an_allocation_beyond_the_limit_is_an_ordinary_failure_of_its_item():
    def fn(item):
        return take(1000 * MB).size if item == 3 else take(50 * MB).size

    results = on_processes(fn, range(8), memory=LIMIT, on_error="collect")
    failure = results[3]
    assert isinstance(failure.error, MemoryError)
    assert (failure.kind, failure.attempts) == ("raised", 1)
    assert any(re.search(r"peaked at \d+ MB", note) for note in failure.error.__notes__)
    assert [value for value in results if value is not failure] == [50 * MB // 8] * 7
    assert results.report.n_workers_lost == 0


def test_the_limit_ends_with_its_run():
    on_processes(lambda item: item, range(4), memory=LIMIT)
    assert on_processes(lambda item: take(350 * MB).size, range(2)) == [350 * MB // 8] * 2


def test_the_limit_is_for_items_and_not_for_what_a_worker_has_already():
    """A worker that has imported large libraries has gigabytes of address space that it never touches."""

    class Reserves:
        def __init__(self):
            self.never_touched = np.empty(2000 * MB // 8)

        def __call__(self, item):
            return take(100 * MB).size

    assert on_processes(Reserves, range(2), memory=LIMIT) == [100 * MB // 8] * 2


def unchecked(n_bytes):
    """Takes memory as C code does that does not look whether it got it."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.memset(libc.malloc(ctypes.c_size_t(n_bytes)), 1, n_bytes)
    signal.pause()


@pytest.mark.slow
@pytest.mark.fault("F21")
def test_code_that_does_not_look_whether_it_got_its_memory_is_stopped_and_only_its_item_fails():
    def fn(item):
        return unchecked(1000 * MB) if item == 3 else item

    results = on_processes(fn, range(8), memory=LIMIT, on_error="collect")
    failure = results[3]
    assert failure.kind == "out of memory"
    assert isinstance(failure.error, ff.errors.OutOfMemory)
    assert isinstance(failure.error, MemoryError)
    told = re.search(r"had (\d+) MB of private memory, more than memory=300000000, and was stopped", failure.message)
    assert told
    assert 300 < int(told[1]) < 1000, "while it still takes: a machine that is busy looks late"
    assert re.search(r"there are [\d.]+ [MG]B for all workers together", failure.message)
    assert failure.attempts == 2, "once beside others and once alone"
    assert [value for value in results if value is not failure] == [0, 1, 2, 4, 5, 6, 7]
    assert "workers died of memory" in results.report.verdict


@pytest.mark.slow
@pytest.mark.fault("F21")
def test_an_item_that_fails_once_for_each_cause_succeeds(tmp_path):
    def fn(item):
        if item != 1:
            return item
        attempt = len(list(tmp_path.iterdir()))
        (tmp_path / str(attempt)).touch()
        if attempt == 0:
            raise ValueError("once")
        if attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if attempt == 2:
            unchecked(1000 * MB)
        return item

    assert on_processes(fn, range(4), memory=LIMIT, retries=1) == [0, 1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_function_that_is_larger_than_the_limit_is_said_to_be():
    with pytest.raises(ff.errors.OutOfMemory, match=r"memory=1000 leaves nothing for items: a worker .* has \d+ bytes"):
        on_processes(abs, range(4), memory=1000)


def test_auto_runs_on_processes_from_the_first_item_under_a_limit():
    pids = ff.map(lambda item: os.getpid(), range(4), workers=1, memory=LIMIT)
    assert os.getpid() not in pids
    assert pids.report.engine == "processes"


# ---- workers that grow -----------------------------------------------------------------------------------------------------------

kept = []


def leak(n_bytes, item):
    """Keeps memory for good. Says who it was, and how often that one has done so."""
    kept.append(take(n_bytes))
    return os.getpid(), len(kept)


@pytest.mark.slow
@pytest.mark.fault("F22")
def test_a_worker_that_keeps_growing_is_replaced_between_chunks_and_no_item_is_lost():
    results = on_processes(functools.partial(leak, 80 * MB), range(20), workers=1, chunk=1)
    assert [count for _, count in results[:3]] == [1, 2, 3]
    assert max(count for _, count in results) <= 10, "400 MB, and what came between two measurements"
    assert len({pid for pid, _ in results}) > 1
    report = results.report
    assert (report.n_items, report.n_failures, report.n_workers_lost) == (20, 0, 0)
    assert re.search(r"\d workers were replaced, since they had grown", report.verdict)


@pytest.mark.slow
@pytest.mark.fault("F22")
def test_the_next_run_does_not_get_a_worker_that_has_grown_too_large():
    first = on_processes(functools.partial(leak, 200 * MB), range(3), workers=1, chunk=1)
    (pid,) = on_processes(lambda item: os.getpid(), range(1), workers=1)
    assert pid != first[-1][0]


@pytest.mark.slow
def test_garbage_in_cycles_is_no_growth():
    def fn(item):
        cycle = [take(150 * MB)]
        cycle.append(cycle)
        return os.getpid()

    assert len(set(on_processes(fn, range(10), workers=1, chunk=1))) == 1


@pytest.mark.slow
def test_what_an_item_needs_and_lets_go_is_no_growth():
    results = on_processes(lambda item: (take(400 * MB).size, os.getpid()), range(4), workers=1, chunk=1)
    assert len({pid for _, pid in results}) == 1


@pytest.mark.slow
def test_where_items_need_much_to_keep_a_part_of_it_is_no_growth():
    def fn(item):
        return leak(320 * MB if item else MB, item)[0], take(1000 * MB).size

    assert len({pid for pid, _ in on_processes(fn, range(3), workers=1, chunk=1)}) == 1


@pytest.mark.slow
@pytest.mark.fault("F22")
def test_under_a_limit_a_worker_is_replaced_before_the_next_item_would_not_fit():
    results = on_processes(functools.partial(leak, 40 * MB), range(20), memory=200 * MB, chunk=1, on_error="collect")
    assert results.report.n_failures == 0
    assert len({pid for pid, _ in results}) > 2


@pytest.mark.slow
def test_a_class_function_is_built_again_in_the_worker_that_takes_over(tmp_path):
    class Leaks:
        def __init__(self):
            (tmp_path / str(os.getpid())).touch()

        def __call__(self, item):
            return leak(200 * MB, item)[0]

    pids = on_processes(Leaks, range(6), workers=1, chunk=1)
    assert set(pids) == {int(path.name) for path in tmp_path.iterdir()}
    assert len(set(pids)) > 1


def test_private_memory_is_what_a_process_shares_with_nobody():
    before, _ = private_bytes()
    with mmap.mmap(-1, 50 * MB) as shared:
        shared.write(bytes(50 * MB))
        assert private_bytes()[0] < before + 25 * MB
    own = take(50 * MB)
    assert private_bytes()[0] > before + 45 * MB
    assert own.size
    assert private_bytes(1 << 30) == (0, 0)
    assert pathlib.Path("/proc/self/statm").exists()
