"""What a chunk has finished outlives its worker: it does not run again, and whoever kills the worker is blamed as ever.

Workers really die here; who ran how often is counted in files, which outlive them.
"""

import os
import signal
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fourfold as ff
from fourfold.distribute.engines.on_processes import kept, stacks
from fourfold.distribute.engines.on_processes.cell import PageCell
from fourfold.distribute.engines.on_processes.handle import new_worker
from fourfold.distribute.engines.on_processes.page import KEPT, KEPT_AT, PAGE_BYTES, STACK_AT, STATUS, Page
from fourfold.execute import keep as keep_module
from fourfold.execute.chunk import Program
from fourfold.execute.keep import COST_S, SHARE
from fourfold.execute.parcels import ParcelCodec
from fourfold.execute.pickling import dump, load
from fourfold.execute.remote import RemoteProgram
from fourfold.records import Chunk, Kind, Parcel

ITEM_S = 0.05
"""Long enough for each result to be kept at once, also on a machine that is slow and busy."""


def counted(folder, fn):
    """The function, which notes each start of an item in the folder."""

    def run(x):
        with open(folder / f"starts-{x}", "a") as file:
            file.write("+")
        return fn(x)

    return run


def starts(folder, n):
    return [len((folder / f"starts-{x}").read_text()) for x in range(n)]


def on_processes(fn, items, **options):
    return ff.map(fn, items, **{"engine": "processes", "workers": 1, "on_error": "collect", **options})


DEATHS = {"exits": lambda: os._exit(7), "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL)}


# ---- with real workers


@pytest.mark.fault("F3")
@pytest.mark.parametrize(("how", "recorded"), [("exits", False), ("is killed", True)], ids=["exits", "is killed, recorded"])
def test_items_that_finished_before_their_worker_died_run_exactly_once(tmp_path, how, recorded):
    die = DEATHS[how]

    def fn(x):
        time.sleep(ITEM_S)
        if x == 2:
            die()
        return x * x

    options = {"run": tmp_path / "run"} if recorded else {}
    results = on_processes(counted(tmp_path, fn), range(5), chunk=5, **options)
    assert [(failure.index, failure.kind) for failure in results.failures] == [(2, "crashed")]
    assert [value for value in results if not isinstance(value, ff.Failure)] == [0, 1, 9, 16]
    # The deadly one dies among its neighbours, then twice alone, and after a signal once more; nobody else runs a second time.
    n_deaths = 3 if how == "exits" else 4
    assert starts(tmp_path, 5) == [1, 1, n_deaths, 1, 1]
    if recorded:
        again = on_processes(counted(tmp_path, fn), range(5), chunk=5, **options)
        assert again.report.n_recorded == 5
        assert starts(tmp_path, 5) == [1, 1, n_deaths, 1, 1]


@pytest.mark.fault("F5")
def test_a_kill_by_somebody_else_repeats_only_the_item_that_it_hit(tmp_path):
    def fn(x):
        time.sleep(ITEM_S)
        if x == 2 and (tmp_path / "starts-2").read_text() == "+":
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    stream = ff.imap(counted(tmp_path, fn), range(5), engine="processes", workers=1, chunk=5)
    assert list(stream) == list(range(5))
    assert starts(tmp_path, 5) == [1, 1, 2, 1, 1]


@pytest.mark.fault("F3")
def test_failures_before_the_death_are_counted_once_and_retried_as_often_as_asked(tmp_path):
    def fn(x):
        time.sleep(ITEM_S)
        if x == 0 or (x == 1 and (tmp_path / "starts-1").read_text() == "+"):
            raise ValueError(x)
        if x == 3:
            os._exit(7)
        return x

    results = on_processes(counted(tmp_path, fn), range(5), chunk=5, retries=1)
    assert [(failure.index, failure.kind, failure.attempts) for failure in results.failures] == [
        (0, "raised", 2),
        (3, "crashed", 2),
    ]
    assert (results[1], results[2], results[4]) == (1, 2, 4)
    # To pickle an exception takes so long that item 2 may have to wait for its turn to be kept, and runs again then.
    assert starts(tmp_path, 2) == [2, 2]


@pytest.mark.fault("F9")
def test_a_result_that_cannot_be_pickled_is_its_items_failure_also_when_its_worker_dies_later(tmp_path):
    def fn(x):
        time.sleep(ITEM_S)
        if x == 3:
            os._exit(7)
        return (each for each in ()) if x == 1 else x

    results = on_processes(counted(tmp_path, fn), range(4), chunk=4)
    assert [(failure.index, failure.kind) for failure in results.failures] == [(1, "unpicklable"), (3, "crashed")]
    assert starts(tmp_path, 3) == [1, 1, 1]


@pytest.mark.fault("F9")
def test_a_worker_that_dies_of_pickling_a_result_dies_of_that_item(tmp_path):
    class Deadly:
        def __reduce__(self):
            os._exit(7)

    def fn(x):
        time.sleep(ITEM_S)
        return Deadly() if x == 1 else x

    results = on_processes(counted(tmp_path, fn), range(4), chunk=4)
    assert [(failure.index, failure.kind) for failure in results.failures] == [(1, "crashed")]
    assert starts(tmp_path, 4) == [1, 3, 1, 1]


def test_arrays_that_outlived_their_worker_are_as_others(tmp_path):
    def fn(x):
        time.sleep(ITEM_S)
        if x == 2:
            os._exit(7)
        return np.full((3, 5), x).T, np.arange(x, x + 9)[::2]

    results = on_processes(counted(tmp_path, fn), range(4), chunk=4)
    assert starts(tmp_path, 2) == [1, 1]
    for x in (0, 1, 3):
        for value, expected in zip(results[x], (np.full((5, 3), x), np.arange(x, x + 9, 2)), strict=True):
            assert np.array_equal(value, expected)
            value += 1  # nobody else has this memory
    assert np.array_equal(results[0][1], np.arange(1, 10, 2))


def test_a_child_that_an_item_forks_and_that_comes_back_keeps_nothing(tmp_path):
    def fn(x):
        time.sleep(ITEM_S)
        if x == 1 and os.fork():
            os.wait()  # for the child, which goes on as this worker would
            time.sleep(ITEM_S)
            os._exit(7)
        return ("child" if x == 1 else x), os.getpid()

    results = on_processes(fn, range(4), chunk=4)
    assert [failure.index for failure in results.failures] == [1]
    assert [results[x][0] for x in (0, 2, 3)] == [0, 2, 3]


def test_what_may_not_run_twice_runs_once_and_has_a_value_or_is_told_of(tmp_path):
    def fn(x):
        time.sleep(ITEM_S)
        if x == 2:
            os._exit(7)
        return x

    results = on_processes(counted(tmp_path, fn), range(5), idempotent=False, run=tmp_path / "run")
    assert [(failure.index, failure.kind) for failure in results.failures] == [(2, "indeterminate")]
    assert starts(tmp_path, 5) == [1] * 5


def test_a_reduction_gives_the_same_bits_when_its_workers_die(tmp_path):
    """What combines values runs in their worker, so nothing is kept: its items may run again."""

    def fn(x):
        time.sleep(ITEM_S)
        if x == 3 and (tmp_path / "starts-3").read_text() == "+":
            os._exit(7)
        return 0.1 * x

    def add(a, b):
        return a + b

    total = ff.reduce(add, range(5), fn=counted(tmp_path, fn), engine="processes", workers=1, chunk=5)
    assert total == ff.reduce(add, [0.1 * x for x in range(5)], engine="serial")


# ---- what it takes


class Clock:
    """Time that passes when somebody says so."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(keep_module.time, "perf_counter", made)
    return made


class Cell:
    """What an engine would share, with room for what is kept."""

    inline = whole = False

    def __init__(self):
        self.marks, self.parcels = [], []

    def mark(self, offset, count):
        self.marks.append((offset, count))

    def stopped(self):
        return False

    def keep(self, head, buffers):
        self.parcels.append(Parcel(bytes(head), tuple(map(bytes, buffers))))
        return True

    def results(self):
        return [ParcelCodec().unpack(parcel)[0] for parcel in self.parcels]


def run(fn, items, cell):
    program = RemoteProgram(Program(fn)).prepare()
    kind, parcel = program(dump(tuple(Chunk(0, items))), cell)
    assert kind is Kind.DONE
    return ParcelCodec().unpack(parcel)[0]


class Slow:
    """A value that takes its time to be pickled."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __reduce__(self):
        self.clock.now += self.seconds
        return int, ()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["value", "error", "unpicklable", "array"]), max_size=30),
    st.lists(st.integers(0, 3), max_size=30),
)
def test_what_is_kept_is_the_result_of_the_first_items_as_it_comes_at_the_end(fates, pauses):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keep_module.time, "perf_counter", clock)

        def fn(x):
            clock.now += 0.01 * (pauses[x] if x < len(pauses) else 1)
            match fates[x]:
                case "error":
                    raise ValueError(x)
                case "unpicklable":
                    return (each for each in ())
                case "array":
                    return np.arange(x)
            return x

        cell = Cell()
        whole = run(fn, range(len(fates)), cell)
    at = 0
    for part in cell.results():
        assert part.done > 0
        assert repr(list(part.values)) == repr(whole.values[at : at + part.done])
        told = [(each.offset + at, each.kind, each.message) for each in part.troubles]
        assert told == [
            (each.offset, each.kind, each.message) for each in whole.troubles if at <= each.offset < at + part.done
        ]
        at += part.done
    assert at < max(1, len(fates))  # the last one comes with the end
    if not pauses and fates:
        assert at == len(fates) - 1


def test_keeping_takes_no_more_than_its_share_of_the_time(clock):
    for pickle_s, item_s in [(1e-5, 1e-4), (1e-5, 1e-2), (1e-3, 1e-3), (0.1, 0.01)]:

        def fn(x, pickle_s=pickle_s, item_s=item_s):
            clock.now += item_s
            return Slow(clock, pickle_s)

        began, cell = clock.now, Cell()
        program = RemoteProgram(Program(fn)).prepare()
        n = 5000
        program(dump((0, range(n), None)), cell)
        spent_s = clock.now - began - n * (item_s + pickle_s)  # in the end all of them are pickled
        first_s = max(pickle_s, pickle_s * COST_S / SHARE / item_s)
        assert spent_s <= 3 * first_s + 1.1 * SHARE * n * item_s  # at first nobody knows what it takes


def test_slow_items_are_kept_one_by_one_and_marked_while_they_are(clock):
    def fn(x):
        clock.now += 0.02
        return x

    cell = Cell()
    run(fn, range(5), cell)
    assert [(part.done, list(part.values)) for part in cell.results()] == [(1, [0]), (1, [1]), (1, [2]), (1, [3])]
    ran_then_kept = [mark for x in range(4) for mark in ((x, 1), (x, 1))]
    assert cell.marks == [*ran_then_kept, (4, 1), (4, 1)]


def test_results_that_would_take_long_to_copy_are_not_kept(clock):
    def fn(x):
        clock.now += 0.02
        return np.zeros(1 << 20)

    cell = Cell()
    run(fn, range(5), cell)
    assert cell.parcels == []


def test_one_slow_moment_does_not_put_off_what_follows(clock):
    value = Slow(clock, 0.0)

    def fn(x):
        clock.now += 0.01
        value.seconds = 0.1 if x == 1 else 0.0  # somebody else had the processor
        return value

    cell = Cell()
    run(fn, range(8), cell)
    assert [part.done for part in cell.results()][:4] == [1, 1, 1, 1]


def test_a_slow_first_pickle_does_not_put_off_what_follows(clock):
    class Fresh:
        """Quick to be pickled but for the first time, and larger than a number."""

        n_pickled = 0

        def __reduce__(self):
            Fresh.n_pickled += 1
            clock.now += 100e-6 if Fresh.n_pickled == 1 else 5e-6
            return bytes, (bytes(600),)

    def fn(x):
        clock.now += 0.005
        return Fresh()

    cell = Cell()
    run(fn, range(100), cell)
    assert sum(part.done for part in cell.results()) >= 98


@pytest.mark.parametrize("once_s", [30e-6, 60e-6, 100e-6])
def test_items_are_caught_up_with_where_keeping_any_of_them_is_slow(clock, once_s):
    def fn(x):
        clock.now += 0.005
        return x

    class Far(Cell):
        def keep(self, head, buffers):
            clock.now += once_s
            return super().keep(head, buffers)

    cell, began, n = Far(), clock.now, 300
    run(fn, range(n), cell)
    assert sum(part.done for part in cell.results()) >= n - 1 - 2 * once_s / SHARE / 0.005
    assert clock.now - began - n * 0.005 <= 1.1 * SHARE * n * 0.005 + 3 * once_s


def test_after_a_time_that_was_too_dear_keeping_goes_on_in_later_chunks(clock):
    """Twice in a row it took 10 ms: that is believed, and made good by two seconds without."""
    value, slow = Slow(clock, 0.0), 2

    def fn(x):
        clock.now += 0.01
        return value

    class Far(Cell):
        def keep(self, head, buffers):
            nonlocal slow
            clock.now += 0.01 if slow > 0 else 5e-6
            slow -= 1
            return super().keep(head, buffers)

    cells = [Far() for _ in range(8)]
    program = RemoteProgram(Program(fn)).prepare()
    for cell in cells:
        program(dump(tuple(Chunk(0, range(50)))), cell)  # half a second
    done = [sum(part.done for part in cell.results()) for cell in cells]
    assert done[0] <= 3
    assert done[1:3] == [0, 0]
    assert done[5:] == [49, 49, 49]


def test_a_chunk_that_has_no_room_left_tries_once_and_the_next_one_again(clock):
    class Full(Cell):
        def keep(self, head, buffers):
            super().keep(head, buffers)
            return False

    def fn(x):
        clock.now += 0.02
        return x

    program = RemoteProgram(Program(fn)).prepare()
    for _ in range(2):
        cell = Full()
        program(dump(tuple(Chunk(0, range(50)))), cell)
        assert len(cell.parcels) == 1


def test_what_is_large_is_kept_when_the_time_for_its_copy_has_passed_and_tried_no_more_often(clock):
    def fn(x):
        clock.now += 0.02
        return np.zeros(1 << 20)

    cell = Cell()
    run(fn, range(100), cell)
    assert [part.done for part in cell.results()] == [1]
    n_blocks_and_end = 100 + 1
    assert len(cell.marks) - n_blocks_and_end == 2


# ---- where it lies


@pytest.fixture
def worker_and_cell():
    """The driver's side of a worker, and the cell on the other side. No process is needed for this."""
    worker, end, page_fd = new_worker(1, lambda: False)
    page = Page(page_fd)
    os.close(page_fd)
    cell = PageCell(page)
    yield worker, cell, page
    cell.keep.__self__._memory.close()
    end.close()
    page.close()
    worker.close()
    worker.page.close()


def lost(worker, page, id=0):
    """What the driver is told when this worker dies on a ticket."""
    worker.ready, worker.flights[id] = True, -1
    page.fields[STATUS] = 1 + (7 << 8)  # as its template notes that it has exited with 7
    (outcome,) = [each for each in worker.bury(None) if each.id == id]
    return outcome


@pytest.mark.parametrize("obj", [b"", b"x" * 63, b"x" * 64, list(range(1000)), np.arange(1000), [np.arange(3), np.zeros(0)]])
def test_what_the_worker_kept_is_what_the_driver_reads(worker_and_cell, obj):
    worker, cell, page = worker_and_cell
    cell.begin(0)
    cell.mark(2, 1)
    for x in range(3):
        parcel = dump((x, obj))
        assert cell.keep(parcel.head, parcel.buffers)
    outcome = lost(worker, page)
    assert (outcome.kind, outcome.running) == (Kind.LOST, (2, 1))
    assert [repr(load(parcel)) for parcel in outcome.kept] == [repr((x, obj)) for x in range(3)]


def test_another_ticket_has_kept_nothing_yet(worker_and_cell):
    worker, cell, page = worker_and_cell
    cell.begin(0)
    assert cell.keep(b"x", ())
    cell.end()
    cell.begin(1)
    assert lost(worker, page, 1).kept == ()


def test_half_of_what_is_kept_is_nothing(worker_and_cell):
    worker, cell, page = worker_and_cell
    cell.begin(0)
    cell.keep(b"whole", ())
    size = page.fields[KEPT]
    cell.keep(b"half", ())
    page.fields[KEPT] = size  # it died before it said so
    assert [bytes(each.head) for each in lost(worker, page).kept] == [b"whole"]


def test_what_is_no_parcel_is_not_read(worker_and_cell):
    worker, cell, page = worker_and_cell
    cell.begin(0)
    cell.keep(b"whole", ())
    page.fields[KEPT] = 1 << 40  # C code of an item wrote there
    assert lost(worker, page).kept == ()


@pytest.mark.parametrize(
    "table",
    [(0, 0), (1, -64), (1, -128), (-1, 5), (1, 1000), (1, 1 << 62), (2, 5), (1 << 40, 5), (1 << 61, 1), (2, 9, -64)],
    ids=str,
)
def test_a_table_that_was_overwritten_ends_what_is_read(worker_and_cell, table):
    worker, cell, page = worker_and_cell
    cell.begin(0)
    cell.keep(b"whole", ())
    at = page.fields[KEPT]
    cell.keep(b"other", ())
    os.pwrite(page.fd, struct.pack(f"<{len(table)}q", *table), KEPT_AT + at)
    if table == (2, 5):
        os.pwrite(page.fd, struct.pack("<q", 1000), KEPT_AT + at + 16)
    assert [bytes(each.head) for each in lost(worker, page).kept] == [b"whole"]


def test_a_room_that_is_full_takes_nothing_more(worker_and_cell, monkeypatch):
    worker, cell, page = worker_and_cell
    cell.begin(0)
    large = bytes(kept.ROOM_BYTES // 2)
    assert [cell.keep(large, ()), cell.keep(large, ()), cell.keep(b"small", ())] == [True, False, True]
    assert [len(each.head) for each in lost(worker, page).kept] == [len(large), 5]


def test_a_stack_that_is_asked_for_leaves_what_is_kept(worker_and_cell):
    worker, cell, page = worker_and_cell
    cell.begin(0)
    cell.keep(b"kept", ())
    os.write(page.fd, b"a stack")
    assert worker.page.stack() == "a stack"
    worker.page.clear_stack()
    assert worker.page.stack() == ""
    os.write(page.fd, b"another")
    assert worker.page.stack() == "another"
    assert [bytes(each.head) for each in lost(worker, page).kept] == [b"kept"]


def test_crashes_of_many_children_reach_neither_what_is_kept_nor_the_last_words(worker_and_cell):
    worker, cell, page = worker_and_cell
    cell.begin(0)
    array = np.zeros(20_000)
    parcel = dump(array)
    cell.keep(parcel.head, parcel.buffers)
    worker.page.keep_words(b"said last")
    for _ in range(300):
        os.write(page.fd, b"Fatal Python error: Segmentation fault\n\n" + b'  File "child.py", line 1 in f\n' * 100)
    os.write(page.fd, b'Fatal Python error: Aborted\n\n  File "user.py", line 2 in g\n')
    assert stacks.at_death(worker.page) == '  File "user.py", line 2 in g'
    assert worker.page.words() == "said last"
    assert [np.array_equal(load(each), array) for each in kept.read(worker.page)] == [True]
    worker.page.clear_stack()
    assert worker.page.stack() == ""
    assert os.fstat(page.fd).st_blocks * 512 < 1 << 19  # none of the memory is left
    assert [np.array_equal(load(each), array) for each in kept.read(worker.page)] == [True]


def test_more_last_words_than_there_is_room_for_are_cut_at_their_beginning(worker_and_cell):
    worker, cell, _ = worker_and_cell
    cell.begin(0)
    cell.keep(b"kept", ())
    worker.page.keep_words(b"x" * (KEPT_AT - PAGE_BYTES) + b"the end")
    assert worker.page.words().endswith("the end")
    assert [bytes(each.head) for each in kept.read(worker.page)] == [b"kept"]


def test_a_worker_at_rest_gives_the_memory_back(worker_and_cell):
    _, cell, page = worker_and_cell
    cell.begin(0)
    cell.keep(bytes(1 << 20), ())
    assert os.fstat(page.fd).st_blocks * 512 > 1 << 20
    cell.rest()
    assert os.fstat(page.fd).st_blocks * 512 < 1 << 19
    cell.begin(1)
    assert cell.keep(b"again", ())


def test_where_a_page_is_a_file_of_a_disk_nothing_is_kept(tmp_path):
    """The disk may be full when it is written, and a worker would die of that."""
    with open(tmp_path / "page", "w+b") as file:
        file.truncate(PAGE_BYTES)
        page = Page(file.fileno())
        cell = PageCell(page)
        cell.begin(0)
        assert cell.keep is None  # and so nothing is pickled for it
        assert kept.read(page) == ()
        page.close()


def test_a_page_that_is_a_file_of_a_disk_takes_only_the_room_of_its_texts(tmp_path):
    with open(tmp_path / "page", "w+b") as file:
        file.truncate(PAGE_BYTES)
        os.lseek(file.fileno(), STACK_AT, os.SEEK_SET)
        page = Page(file.fileno())
        page.keep_words(b"said")
        os.write(page.fd, b"was here")
        assert (page.words(), page.stack()) == ("said", "was here")
        assert os.fstat(page.fd).st_blocks * 512 <= 1 << 17
        page.clear_stack()
        assert (page.words(), page.stack()) == ("said", "")
        page.close()
