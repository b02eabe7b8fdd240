"""`ff.imap` streams what the loop gives: lazily, in bounded memory, and it can be left at any time."""

import gc
import itertools
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import ways

import fourfold as ff
from fourfold.distribute.schedule import AHEAD
from fourfold.distribute.sizes import CHUNK_BYTES
from fourfold.errors import TooManyFailures

way = ways.way
way_to_processes = ways.way_to_processes
notebook = ways.notebook


def window(workers, chunk):
    """How many items may be read before the slowest is given out: AHEAD windows of two chunks per worker, filled up again
    when the slowest has just ended, and one chunk."""
    return ((AHEAD + 1) * 2 * workers + 1) * chunk


# ---- the same values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 1000, "auto"])
@pytest.mark.parametrize("ordered", [True, False])
def test_the_values_are_those_of_the_loop(way, ordered, chunk):
    for size in (0, 1, 2, 3, 101):
        values = list(ff.imap(lambda x: 3 * x, range(size), ordered=ordered, chunk=chunk, **way))
        assert (values if ordered else sorted(values)) == [3 * x for x in range(size)], size


def test_costly_first_in_order_of_input(way):
    assert list(ff.imap(abs, range(50), cost=lambda x: x, **way)) == list(range(50))
    assert sorted(ff.imap(abs, range(50), ordered=False, cost=lambda x: x, **way)) == list(range(50))


def test_unordered_gives_what_is_ready_before_a_slow_earlier_item(tmp_path):
    gate = tmp_path / "gate"

    def wait_for_the_gate_at_zero(item):
        import time

        deadline = time.monotonic() + 60
        while item == 0 and not gate.exists():
            assert time.monotonic() < deadline, "the gate was never opened"
            time.sleep(0.001)
        return item

    for engine in ("threads", "processes"):
        stream = ff.imap(wait_for_the_gate_at_zero, range(6), ordered=False, engine=engine, workers=2, chunk=1)
        early = [next(stream) for _ in range(4)]
        gate.touch()
        assert 0 not in early
        assert sorted([*early, *stream]) == list(range(6))
        gate.unlink()


def test_ordered_waits_for_a_slow_earlier_item():
    opened = threading.Event()

    def wait_at_zero(item):
        if item == 0:
            assert opened.wait(60)
        if item == 3:
            opened.set()
        return item

    assert list(ff.imap(wait_at_zero, range(6), engine="threads", workers=2, chunk=1)) == list(range(6))


# ---- lazy, and bounded ------------------------------------------------------------------------------------------------------


def test_nothing_is_read_before_the_first_value_is_asked_for(way):
    read = []
    stream = ff.imap(abs, (read.append(n) or n for n in range(10)), **way)
    assert read == []
    assert next(stream) == 0
    stream.close()


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.fault("F35")
def test_an_endless_source_is_read_a_bounded_distance_ahead(way, ordered, chunk):
    read = 0

    def endless():
        nonlocal read
        for number in itertools.count():
            read = number + 1
            yield number

    stream = ff.imap(abs, endless(), ordered=ordered, chunk=chunk, **way)
    for consumed, _ in enumerate(itertools.islice(stream, 300)):
        assert read <= consumed + window(2, chunk)
    stream.close()


@pytest.mark.parametrize("chunk", [1, 5])
def test_a_slow_first_item_lets_the_others_run_only_a_bounded_distance_ahead(chunk):
    too_far, read = threading.Event(), 0

    def items():
        nonlocal read
        for number in range(5000):
            read = number + 1
            if read > window(2, chunk):
                too_far.set()
            yield number

    def wait_at_zero(item):
        if item == 0:
            too_far.wait(0.3)
        return item

    stream = ff.imap(wait_at_zero, items(), engine="threads", workers=2, chunk=chunk)
    assert next(stream) == 0
    assert not too_far.is_set()
    assert read > 2 * 2 * chunk, "the other worker went on"
    stream.close()


def test_large_items_travel_in_small_chunks():
    arrays = [np.zeros(1 << 18) for _ in range(300)]
    results = ff.map(len, arrays, engine="processes", workers=2)
    assert results == [1 << 18] * 300
    assert results.report.n_chunks >= sum(array.nbytes for array in arrays) / CHUNK_BYTES


def test_a_slow_source_is_not_read_in_large_chunks(way):
    """Values come as they can: a chunk of a slow source would keep back those that are ready."""
    clock = iter_with_clock()
    stream = ff.imap(lambda x: x, clock.slow_items(), **way)
    behind = [clock.read - 1 - value for value in itertools.islice(stream, 120)]
    stream.close()
    assert max(behind) < 100, "over 100 items of 2 ms, 0.2 s of reading, before a value was given out"


class iter_with_clock:
    """A source that takes 2 ms for each item, by the processor's clock and not by sleeping."""

    def __init__(self):
        self.read = 0

    def slow_items(self):
        import time

        for number in itertools.count():
            until = time.perf_counter() + 0.002
            while time.perf_counter() < until:
                pass
            self.read = number + 1
            yield number


BOUNDED = """
    import fourfold as ff
    import gc, sys

    def resident_bytes():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    made, peak = 0, 0

    def items():
        global made, peak
        for number in range({count}):
            made += 1
            if made % {look} == 0:
                peak = max(peak, resident_bytes())
            yield {item}

    list(ff.imap(len, [b"x"] * 10, **{options}))
    before = resident_bytes()
    given = 0
    for value in ff.imap({fn}, items(), **{options}):
        given += 1
    assert given == {count}
    print((max(peak, resident_bytes()) - before) >> 20)
"""


def growth_mb(fn, item, count, options, look=1000):
    """By how many MB a fresh process grows while it streams."""
    code = textwrap.dedent(BOUNDED).format(fn=fn, item=item, count=count, options=options, look=look)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "threads", "processes", "auto"])
@pytest.mark.fault("F35")
def test_memory_is_flat_over_many_small_items(engine):
    options = {"engine": engine, "workers": 2, "progress": False}
    assert growth_mb("abs", "number", 300_000, options) < 50


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "threads", "processes", "auto"])
def test_memory_is_bounded_when_items_are_large_and_the_function_is_fast(engine):
    options = {"engine": engine, "workers": 2, "progress": False}
    assert growth_mb("len", "bytes(200_000)", 4000, options, look=10) < 400


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "threads", "processes", "auto"])
def test_memory_is_bounded_when_results_are_large_and_the_function_is_fast(engine):
    options = {"engine": engine, "workers": 2, "progress": False}
    assert growth_mb("lambda n: bytes(200_000)", "number", 4000, options, look=10) < 400


# ---- the source -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, "auto"])
@pytest.mark.parametrize("at", [0, 1, 20])
@pytest.mark.fault("F35")
def test_all_values_before_a_broken_item_of_the_source_are_given_as_in_the_loop(way, at, chunk):
    error = OSError("the source broke")

    def items():
        yield from range(at)
        raise error

    given = []
    with pytest.raises(OSError, match="the source broke") as caught:
        given.extend(ff.imap(abs, items(), chunk=chunk, **way))
    assert caught.value is error
    assert given == list(range(at))


def test_the_callers_thread_alone_reads_the_items(way):
    readers = set()

    def items():
        for number in range(60):
            readers.add(threading.get_ident())
            yield number

    assert list(ff.imap(abs, items(), chunk=2, **way)) == list(range(60))
    assert readers == {threading.get_ident()}


# ---- leaving early ----------------------------------------------------------------------------------------------------------


def source_with_a_note(notes):
    try:
        yield from itertools.count()
    finally:
        notes.append("closed")


def test_close_closes_the_source_and_ends_the_stream(way):
    notes = []
    stream = ff.imap(abs, source_with_a_note(notes), **way)
    assert [next(stream), next(stream)] == [0, 1]
    stream.close()
    assert notes == ["closed"]
    assert list(stream) == []
    stream.close()


def test_close_before_the_first_value_reads_and_runs_nothing(way, notebook):
    stream = ff.imap(notebook.write, itertools.count(), **way)
    stream.close()
    assert list(stream) == []
    assert notebook.lines() == []


def test_leaving_a_for_loop_closes_the_source_when_the_stream_goes(way):
    notes = []
    for value in ff.imap(abs, source_with_a_note(notes), **way):
        if value == 3:
            break
    gc.collect()
    assert notes == ["closed"]


def test_after_close_no_item_starts(notebook):
    stream = ff.imap(lambda n: notebook.write(n), itertools.count(), engine="processes", workers=2, chunk=1)
    next(stream)
    stream.close()
    ran = notebook.lines()
    assert ff.map(abs, [-1], engine="processes", workers=2) == [1]
    assert notebook.lines() == ran


def test_a_stream_that_is_never_iterated_starts_nothing(way):
    notes = []
    stream = ff.imap(abs, source_with_a_note(notes), **way)
    del stream
    gc.collect()
    assert notes == []
    assert ff.map(abs, [-1], **way) == [1]


def test_many_streams_that_are_left_do_not_disturb_those_after_them(way):
    for _ in range(10):
        stream = ff.imap(abs, itertools.count(), **way)
        next(stream)
        stream.close()
    assert list(ff.imap(abs, range(20), **way)) == list(range(20))


def test_two_streams_may_be_read_in_turns(way):
    first = ff.imap(lambda x: x, range(30), chunk=2, **way)
    second = ff.imap(lambda x: -x, range(30), chunk=3, **way)
    assert list(zip(first, second, strict=True)) == [(x, -x) for x in range(30)]


def test_a_stream_may_be_read_by_another_thread_than_the_one_that_made_it(way):
    stream = ff.imap(abs, range(40), chunk=3, **way)
    given = [next(stream)]
    thread = threading.Thread(target=lambda: given.extend(stream))
    thread.start()
    thread.join(60)
    assert given == list(range(40))


# ---- failures -----------------------------------------------------------------------------------------------------------------


def fail_at_multiples_of_five(item):
    if item % 5 == 0:
        raise KeyError(item)
    return item


def test_a_failed_item_raises_after_the_values_before_it(way):
    def fail_at_seventeen(item):
        if item == 17:
            raise KeyError(item)
        return item

    given = []
    with pytest.raises(KeyError) as caught:
        given.extend(ff.imap(fail_at_seventeen, itertools.count(), chunk=4, **way))
    assert given == list(range(17))
    assert caught.value.args == (17,)


def test_a_stream_that_has_raised_is_over(way):
    stream = ff.imap(fail_at_multiples_of_five, itertools.count(), **way)
    with pytest.raises(KeyError):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize("ordered", [True, False])
def test_failures_stand_in_their_place_or_are_left_out(way, ordered):
    collected = list(ff.imap(fail_at_multiples_of_five, range(23), ordered, on_error="collect", chunk=3, **way))
    values = [item.index if isinstance(item, ff.Failure) else item for item in collected]
    assert (values if ordered else sorted(values)) == list(range(23))
    skipped = list(ff.imap(fail_at_multiples_of_five, range(23), ordered, on_error="skip", chunk=3, **way))
    assert (skipped if ordered else sorted(skipped)) == [n for n in range(23) if n % 5]


def test_the_stream_knows_its_failures_and_its_report_so_far(way):
    stream = ff.imap(fail_at_multiples_of_five, range(23), on_error="skip", chunk=1, **way)
    assert (stream.failures, stream.report.n_items) == ([], 0)
    assert next(stream) == 1
    assert stream.failures[0].index == 0
    assert list(stream) == [n for n in range(2, 23) if n % 5]
    assert [failure.index for failure in stream.failures] == [0, 5, 10, 15, 20]
    assert (stream.report.n_items, stream.report.n_failures) == (23, 5)


def test_too_many_failures_end_a_stream(way):
    given = []
    with pytest.raises(TooManyFailures) as caught:
        given.extend(ff.imap(fail_at_multiples_of_five, itertools.count(), on_error="skip", max_failures=3, chunk=2, **way))
    assert given == [n for n in range(len(given) + len(given) // 4 + 2) if n % 5][: len(given)]
    assert 4 <= len(caught.value.failures) <= 8


def test_a_retried_item_keeps_its_place(way, notebook):
    def fail_once(item):
        if item == 3 and "3" not in notebook.lines():
            notebook.write(item)
            raise KeyError(item)
        return item

    assert list(ff.imap(fail_once, range(8), retries=1, chunk=2, **way)) == list(range(8))


def test_ordered_must_be_a_flag():
    with pytest.raises(ff.errors.OptionTypeError, match="ordered=1 must be True or False"):
        ff.imap(abs, [], 1)
