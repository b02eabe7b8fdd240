"""`engine="auto"`: the loop or workers, decided by prices; the verdict says which, with the figures, and the answer is the same."""

import itertools
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading

import pytest
import ways
from hypothesis import given
from hypothesis import strategies as st

import fourfold as ff
from fourfold.distribute import chooser, verdict
from fourfold.distribute.verdict import (
    COLD_START_S,
    FREE,
    MARGIN,
    NO_LOAD,
    WARM_START_S,
    Carriage,
    Crew,
    Work,
    carriage,
    price,
    seconds,
)
from fourfold.records import Chunk, ChunkResult, Kind, Outcome
from fourfold.system import machine


@pytest.fixture
def moved(monkeypatch):
    """Options with which auto moves after its first chunk."""
    return ways.options_of("auto that moves", monkeypatch)


# ---- prices -----------------------------------------------------------------------------------------------------------------


def test_work_shorter_than_the_start_stays_the_loop_and_long_work_does_not():
    assert not price(Work(100, 0.001, 1.0, FREE), Crew(2, 2, False)).workers_pay
    assert price(Work(10_000, 0.001, 1.0, FREE), Crew(2, 2, False)).workers_pay


def test_warm_workers_pay_earlier():
    assert price(Work(100, 0.001, 1.0, FREE), Crew(2, 2, True)).workers_pay
    assert WARM_START_S < COLD_START_S


def test_items_that_cost_more_to_carry_than_to_run_stay_the_loop():
    cost = carriage(pickle_s=0.01, buffer_bytes=0)
    assert not price(Work(1e6, 0.001, 1.0, cost), Crew(64, 64, True)).workers_pay
    assert price(Work(1e6, 1.0, 1.0, cost), Crew(64, 64, True)).workers_pay


def test_the_driver_can_carry_only_so_fast_for_any_number_of_workers():
    cost = carriage(pickle_s=0.001, buffer_bytes=0)
    few, many = (price(Work(1000, 0.01, 1.0, cost), Crew(workers, workers, True)).workers_s for workers in (10, 1000))
    assert few == pytest.approx(many, rel=0.5)
    assert many >= 1000 * cost.driver_s


def test_large_buffers_cost_their_move():
    assert carriage(0.0, 1.5e9).driver_s == pytest.approx(1.0)
    assert carriage(0.0, 0.0) == Carriage(verdict.HANDLE_S, verdict.HANDLE_S)


def test_items_that_wait_gain_from_more_workers_than_cores():
    waiting = price(Work(1000, 0.01, 0.0, FREE), Crew(8, 2, True))
    computing = price(Work(1000, 0.01, 1.0, FREE), Crew(8, 2, True))
    assert waiting.workers_s < computing.workers_s / 3


def test_items_that_keep_all_cores_busy_already_stay_the_loop():
    assert not price(Work(1000, 0.01, 4.0, FREE), Crew(4, 4, True)).workers_pay


@given(
    left=st.floats(0, 1e9),
    item_s=st.floats(0, 100),
    busy=st.floats(0, 64),
    pickle_s=st.floats(0, 1),
    buffer_bytes=st.floats(0, 1e10),
    workers=st.integers(1, 1000),
    cores=st.integers(1, 1000),
    warm=st.booleans(),
)
def test_workers_are_never_chosen_without_the_margin(left, item_s, busy, pickle_s, buffer_bytes, workers, cores, warm):
    prices = price(Work(left, item_s, busy, carriage(pickle_s, buffer_bytes)), Crew(workers, cores, warm))
    assert prices.workers_s >= prices.start_s > 0
    if prices.workers_pay:
        assert prices.workers_s <= (1 - MARGIN) * prices.loop_s
        assert workers > 1


@given(left=st.floats(0, 1e6), item_s=st.floats(0, 1), more=st.floats(0, 1e6))
def test_more_work_never_speaks_against_workers(left, item_s, more):
    if price(Work(left, item_s, 1.0, FREE), Crew(2, 2, False)).workers_pay:
        assert price(Work(left + more, item_s, 1.0, FREE), Crew(2, 2, False)).workers_pay


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 µs"),
        (5e-6, "5 µs"),
        (0.0004, "400 µs"),
        (0.0125, "12.5 ms"),
        (1.5, "1.5 s"),
        (119, "119 s"),
        (300, "5 min"),
        (9000, "2.5 h"),
    ],
)
def test_durations_are_for_people(value, text):
    assert seconds(value) == text


# ---- what auto does -----------------------------------------------------------------------------------------------------------


def test_tiny_work_stays_the_loop_and_says_so():
    results = ff.map(lambda x: x + 1, range(100))
    assert results == list(range(1, 101))
    assert results.report.engine == "serial"
    assert results.report.workers == 1
    assert results.report.verdict.startswith("stayed the loop: 100 items with ")
    assert "it was over before workers could have helped" in results.report.verdict


@pytest.fixture
def looks_at_once(monkeypatch):
    """Prices are looked at after the first chunk, on two cores, and workers start for nothing."""
    monkeypatch.setattr(machine, "cores", lambda: machine.Cores(2, "two, for a test"))
    monkeypatch.setattr(chooser, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(verdict, "WARM_START_S", 0.0)
    monkeypatch.setattr(verdict, "COLD_START_S", 0.0)


def test_work_that_does_not_pay_is_priced_both_ways(looks_at_once, monkeypatch):
    monkeypatch.setattr(verdict, "MARGIN", 10.0)
    report = ff.map(lambda x: x + 1, range(1000)).report
    assert report.engine == "serial"
    assert " in the loop but about " in report.verdict
    assert re.search(
        r" with 2 workers(; the \S+ µs saved are too little to be sure of)?(; other programs are on .*)?$", report.verdict
    )


def test_work_that_is_shorter_than_the_start_of_workers_says_so(looks_at_once, monkeypatch):
    monkeypatch.setattr(verdict, "WARM_START_S", 1000.0)
    monkeypatch.setattr(verdict, "COLD_START_S", 1000.0)
    report = ff.map(lambda x: x + 1, range(1000)).report
    assert report.engine == "serial"
    assert report.verdict.endswith(", less than the start of workers")


class _Light:
    """What weighing finds when nothing weighs anything."""

    pickle_s, buffer_bytes, stream_bytes, complete = 0.0, 0, 0, True


@pytest.mark.parametrize(
    ("total", "warm", "busy_s", "moves"),
    [
        (100_000, 2, 0.05, True),
        (None, 2, 0.05, False),
        (None, 2, 0.2, True),
        (None, 0, 1.0, False),
        (None, 0, 2.0, True),
    ],
)
def test_an_unknown_rest_is_bet_on_with_a_tenth_of_what_was_done(total, warm, busy_s, moves):
    choose = chooser.Chooser(
        total, lambda: 2, lambda: 2, lambda: warm, lambda obj, limit: _Light(), lambda: NO_LOAD, lambda: "workers"
    )
    choose.begin()
    choose._began_wall -= busy_s
    choose._began_cpu -= busy_s  # one core was busy
    n = int(busy_s / 0.001)
    answer = choose(Chunk(0, range(n)), ChunkResult(n, list(range(n)), [], busy_s))
    assert answer == ("workers" if moves else None)
    assert moves or "nobody knew how many items were left" in choose.why


def test_a_single_core_is_a_reason(looks_at_once, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: machine.Cores(1, "one, for a test"))
    report = ff.map(lambda x: x + 1, range(1000)).report
    assert report.engine == "serial"
    assert "there is only 1 worker for it" in report.verdict


def test_a_function_that_cannot_travel_is_a_reason(moved):
    lock = threading.Lock()
    results = ff.map(lambda x: lock.locked(), range(100), **moved)
    assert results == [False] * 100
    assert results.report.engine == "serial"
    assert "cannot send the work to other processes: " in results.report.verdict
    assert "closure 'lock'" in results.report.verdict


def test_a_move_says_to_what_and_after_how_many_items(moved):
    results = ff.map(lambda x: os.getpid(), range(2000), **moved)
    in_the_loop = [pid == os.getpid() for pid in results]
    count = sum(in_the_loop)
    assert in_the_loop == [True] * count + [False] * (2000 - count)
    assert 0 < count < 2000
    assert results.report.engine == "processes"
    assert results.report.verdict.startswith("changed from the loop to ")
    n_ready = r"\d processes(?: \(of 2 wanted: the others were not ready before the end\))?"
    assert re.search(rf"to {n_ready} after {count} items: 2000 items with ", results.report.verdict), results.report.verdict
    assert "times as fast as its items one after the other" in results.report.verdict


@pytest.mark.parametrize(("engine", "text"), [("serial", "the loop, as asked: "), ("threads", "2 threads, as asked: ")])
def test_an_engine_that_was_asked_for_says_so(engine, text):
    assert ff.map(abs, range(10), engine=engine, workers=2).report.verdict.startswith(text)


def test_processes_that_were_asked_for_say_so():
    report = ff.map(abs, range(10), engine="processes", workers=1).report
    assert report.verdict.startswith("1 processes, as asked: 10 items with ")


def test_processes_that_an_option_needs_are_told_with_the_option():
    report = ff.map(abs, range(10), workers=1, timeout=60, threads_per_worker=1).report
    assert report.verdict.startswith(
        "1 processes, since the loop cannot keep threads_per_worker= and timeout=: 10 items with "
    )


def test_inside_an_item_the_verdict_says_that_it_is_inside_one():
    verdicts = ff.map(lambda x: ff.map(abs, [x], engine="threads").report.verdict, range(2), engine="serial")
    assert all(text.startswith("the loop, since it runs inside an item: ") for text in verdicts)


def test_an_option_that_the_loop_cannot_keep_means_processes_from_the_first_item():
    results = ff.map(lambda x: os.getpid(), range(5), threads_per_worker=1)
    assert os.getpid() not in results
    assert results.report.engine == "processes"


def test_workers_that_cannot_start_leave_it_the_loop(moved, monkeypatch):
    from fourfold.distribute.engines.on_processes import pool
    from fourfold.errors import WorkerStartFailed

    def refuse(count, imports):
        raise WorkerStartFailed("not one worker process could be started: no descriptors")

    monkeypatch.setattr(pool.POOL, "lend", refuse)
    results = ff.map(lambda x: -x, range(500), **moved)
    assert results == [-x for x in range(500)]
    assert results.report.engine == "serial"
    assert "workers cannot start: not one worker process could be started" in results.report.verdict


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(machine.cores().n_cores < 2, reason="this process may use one core only")
def test_real_work_moves_to_real_workers_of_a_fresh_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import os
            import fourfold as ff
            from fourfold.distribute import chooser

            chooser.waited_for_a_core_s = lambda: 0.0  # who else is on the machine is none of this test's concern

            def work(item):
                for _ in range(40_000):
                    pass
                return item, os.getpid()

            results = ff.map(work, range(1500), progress=False)
            assert [item for item, _ in results] == list(range(1500))
            print(results.report.engine, sum(pid == os.getpid() for _, pid in results))
            print(results.report.verdict)
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    facts, text = done.stdout.splitlines()
    engine, in_the_loop = facts.split()
    assert engine == "processes"
    assert text.startswith("changed from the loop to ")
    assert f" processes after {in_the_loop} items: 1500 items with " in text, "the caller computed while the workers started"


# ---- the same answer across the move -------------------------------------------------------------------------------------------


def test_values_failures_and_random_numbers_are_those_of_the_loop(moved):
    def work(item):
        if item % 97 == 13:
            raise ValueError(item)
        return item, ff.rng().random()

    alone = ff.map(work, range(1000), engine="serial", on_error="collect", seed=3)
    across = ff.map(work, range(1000), on_error="collect", seed=3, **moved)
    assert across.report.engine == "processes"
    assert [getattr(value, "message", value) for value in across] == [getattr(value, "message", value) for value in alone]
    assert [failure.index for failure in across.failures] == [failure.index for failure in alone.failures]


def test_a_generator_is_read_on_by_the_same_thread_and_closed(moved):
    notes = set()

    def source():
        try:
            for number in range(1000):
                notes.add((os.getpid(), threading.get_ident()))
                yield number
        finally:
            notes.add("closed")

    results = ff.map(lambda x: x * 2, source(), **moved)
    assert results == [x * 2 for x in range(1000)]
    assert results.report.engine == "processes"
    assert notes == {(os.getpid(), threading.get_ident()), "closed"}


def test_a_failure_after_the_move_is_raised_as_in_the_loop(moved):
    def fail(item):
        if item in (700, 701):
            raise KeyError(item)
        return item

    with pytest.raises(KeyError, match="700"):
        ff.map(fail, range(1000), **moved)


def test_a_failure_at_the_very_move_is_raised(moved):
    with pytest.raises(ZeroDivisionError):
        ff.map(lambda x: 1 / x, range(1000), **moved)
    assert len(ff.map(lambda x: 1 / x, range(1000), on_error="skip", **moved)) == 999


def test_a_stream_moves_too(moved):
    stream = ff.imap(lambda x: x, itertools.count(), **moved)
    assert list(itertools.islice(stream, 2000)) == list(range(2000))
    assert stream.report.engine == "processes"
    stream.close()


def test_retries_across_the_move_are_counted_per_item(moved, tmp_path):
    notebook = ways.Notebook(tmp_path / "notebook")

    def fail_first(item):
        notebook.write(item)
        if item % 50 == 0 and notebook.lines().count(str(item)) == 1:
            raise ValueError(item)
        return item

    results = ff.map(fail_first, range(200), retries=1, **moved)
    assert results == list(range(200))
    assert results.report.n_retries == 4


# ---- the log ------------------------------------------------------------------------------------------------------------------------


def verdicts_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "fourfold" and record.levelno == logging.INFO]


def test_the_verdict_is_logged_once_at_info(caplog):
    caplog.set_level(logging.INFO, logger="fourfold")
    results = ff.map(abs, range(10))
    assert verdicts_of(caplog) == [f"abs: {results.report.verdict}"]


def test_reduce_logs_its_verdict_once(caplog):
    caplog.set_level(logging.INFO, logger="fourfold")
    ff.reduce(max, range(10), fn=abs)
    (text,) = verdicts_of(caplog)
    assert text.startswith("abs: stayed the loop: 10 items")


def test_a_stream_logs_its_verdict_once_at_its_end_however_often_its_report_is_read(caplog):
    caplog.set_level(logging.INFO, logger="fourfold")
    stream = ff.imap(abs, range(10))
    next(stream)
    assert stream.report.n_items >= 1
    assert verdicts_of(caplog) == []
    assert len(list(stream)) == 9
    assert stream.report.n_items == 10
    (text,) = verdicts_of(caplog)
    assert text == f"abs: {stream.report.verdict}"


def test_the_report_of_a_stream_that_has_ended_does_not_change():
    stream = ff.imap(abs, range(10))
    list(stream)
    assert stream.report == stream.report


def test_the_report_of_a_stream_that_was_closed_early_does_not_change():
    stream = ff.imap(abs, itertools.count())
    next(stream)
    stream.close()
    assert stream.report == stream.report


def test_an_engine_that_goes_down_while_the_loop_runs_is_a_reason(moved, monkeypatch):
    from fourfold.distribute.engines.on_processes.engine import Processes

    def down(self, timeout):
        return [Outcome(-1, Kind.ENGINE_DOWN, reason="workers died before they were ready")]

    monkeypatch.setattr(Processes, "wait", down)
    results = ff.map(lambda x: -x, range(500), **moved)
    assert results == [-x for x in range(500)]
    assert "workers cannot start: workers died before they were ready" in results.report.verdict


def test_the_report_is_a_frozen_record_that_adds_up():
    report = ff.map(abs, range(100), chunk=10, engine="threads", workers=2, seed=4).report
    assert (report.n_items, report.n_chunks, report.seed, report.engine, report.workers) == (100, 10, 4, "threads", 2)
    assert report.busy_s >= 0
    assert report.elapsed_s > 0
    assert (report.sent_bytes, report.returned_bytes) == (0, 0)
    with pytest.raises(AttributeError):
        report.workers = 3


def test_bytes_that_crossed_to_processes_are_counted():
    report = ff.map(lambda data: data * 2, [bytes([n]) * 100_000 for n in range(4)], engine="processes", workers=2).report
    assert 400_000 < report.sent_bytes < 500_000
    assert 800_000 < report.returned_bytes < 900_000
