"""`ff.map` gives what `[fn(item) for item in items]` gives, in every way to run it."""

import functools
import math
import operator
import os
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import ways

import fourfold as ff
from fourfold.errors import InitFailed

way = ways.way
way_to_processes = ways.way_to_processes
notebook = ways.notebook

SIZES = [0, 1, 2, 3, 4, 101]
"""None, one, workers - 1, workers, workers + 1 for one to three workers, and many."""


# ---- the same values, in order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 2, 7, 1000, "auto"])
def test_the_values_are_those_of_the_loop_in_input_order(way, chunk, workers):
    for size in SIZES:
        options = {**way, "chunk": chunk, "workers": workers}
        assert ff.map(lambda x: x * x - 1, range(size), **options) == [x * x - 1 for x in range(size)], size


def test_many_items_come_back_in_order(way):
    assert ff.map(lambda x: -x, range(30_000), **way) == list(range(0, -30_000, -1))


def test_costly_items_first_still_gives_input_order(way):
    results = ff.map(lambda x: x + 1, range(100), cost=lambda x: (x * 37) % 100, **way)
    assert results == list(range(1, 101))


def test_auto_that_moves_really_moves(monkeypatch):
    results = ff.map(lambda x: x, range(1000), **ways.options_of("auto that moves", monkeypatch))
    assert results.report.engine == "processes"
    assert results == list(range(1000))


def test_without_failures_the_list_of_failures_is_empty(way):
    assert ff.map(abs, [-1, 2], **way).failures == []


def test_the_report_counts_the_items(way):
    report = ff.map(abs, range(10), chunk=5, **way).report
    assert (report.n_items, report.n_failures, report.n_retries, report.n_workers_lost) == (10, 0, 0, 0)


def test_the_report_of_no_items_is_whole(way):
    results = ff.map(abs, [], **way)
    assert (results, results.report.n_items, results.report.n_chunks) == ([], 0, 0)


# ---- what items may be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items",
    [
        (3, 1, 2),
        range(5, 0, -1),
        {"b": 1, "a": 2},
        "text",
        b"bytes",
        {7},
        frozenset([8]),
        np.arange(12).reshape(4, 3),
        {"x": 1}.items(),
        memoryview(b"abc"),
    ],
    ids=lambda items: type(items).__name__,
)
def test_any_container_is_iterated_as_the_loop_does(way, items):
    values = ff.map(repr, items, **way)
    assert values == [repr(item) for item in items]


def test_iterators_are_read_to_their_end(way):
    assert ff.map(operator.neg, iter([1, 2, 3]), **way) == [-1, -2, -3]
    assert ff.map(sum, zip([1, 2], [3, 4], strict=True), **way) == [4, 6]
    assert ff.map(int, map(str, range(3)), **way) == [0, 1, 2]


@pytest.mark.fault("F35")
def test_an_iterable_is_iterated_once_only(way):
    class Cursor:
        opened = 0

        def __iter__(self):
            Cursor.opened += 1
            return iter([1, 2, 3])

    assert ff.map(abs, Cursor(), **way) == [1, 2, 3]
    assert Cursor.opened == 1


def test_a_sequence_by_getitem_alone_is_iterated(way):
    class Old:
        def __getitem__(self, index):
            if index > 3:
                raise IndexError(index)
            return index * 10

    assert ff.map(abs, Old(), **way) == [0, 10, 20, 30]


@pytest.mark.parametrize("said", [0, 3, 10_000])
@pytest.mark.fault("F35")
def test_a_length_that_lies_changes_nothing(way, said):
    class Liar:
        def __iter__(self):
            return iter(range(100))

        def __len__(self):
            return said

    assert ff.map(abs, Liar(), **way) == list(range(100))


@pytest.mark.fault("F35")
def test_a_length_that_raises_changes_nothing(way):
    class Raising:
        def __iter__(self):
            return iter(range(100))

        def __len__(self):
            raise OSError("no length")

    assert ff.map(abs, Raising(), **way) == list(range(100))


@pytest.mark.fault("F34")
def test_items_are_never_compared_shown_measured_or_asked_whether_they_are_true(way):
    class Touchy:
        def __init__(self, number):
            self.number = number

        def _refuse(self, *_):
            raise AssertionError("fourfold must not do this")

        __eq__ = __repr__ = __str__ = __len__ = __bool__ = __hash__ = __lt__ = __iter__ = __format__ = _refuse

    items = [Touchy(number) for number in range(20)]
    assert ff.map(lambda item: item.number, items, **way) == list(range(20))


@pytest.mark.fault("F34")
def test_touchy_results_are_given_back_as_they_are(way):
    class Touchy:
        def _refuse(self, *_):
            raise AssertionError("fourfold must not do this")

        __eq__ = __repr__ = __len__ = __bool__ = __hash__ = _refuse

    assert [type(value).__name__ for value in ff.map(lambda _: Touchy(), range(20), **way)] == ["Touchy"] * 20


@pytest.mark.fault("F37")
def test_nan_duplicates_and_unhashable_items_are_told_apart_by_place(way):
    items = [math.nan, math.nan, [1], [1], {}, {}, 0, 0.0, False, "", None]
    assert ff.map(repr, items, **way) == [repr(item) for item in items]


def test_none_is_a_value_like_any_other(way):
    assert ff.map(lambda x: None, range(5), **way) == [None] * 5


def test_values_that_are_exceptions_or_failures_are_values(way):
    values = ff.map(lambda x: ValueError(x), range(3), **way)
    assert [type(value) for value in values] == [ValueError] * 3
    assert values.failures == []


def test_arrays_go_there_and_back(way):
    arrays = [np.arange(n, dtype="f8").reshape(-1, 1) for n in range(40)] + [np.arange(200_000.0), np.array("x"), np.array([])]
    for given, back in zip(arrays, ff.map(lambda a: a[::-1] if a.ndim else a, arrays, **way), strict=True):
        np.testing.assert_array_equal(back, given[::-1] if given.ndim else given)


@pytest.mark.fault("F38")
def test_the_items_of_the_caller_are_not_changed_by_what_processes_do():
    items = [[n] for n in range(500)]
    ff.map(lambda item: item.append(0), items, engine="processes", workers=2)
    assert items == [[n] for n in range(500)]


def test_results_of_processes_may_be_changed(way_to_processes):
    results = ff.map(lambda n: np.zeros(50_000), range(4), **way_to_processes)
    for result in results:
        result += 1
    assert [result.sum() for result in results] == [50_000] * 4


# ---- one thread reads the items, lazily -----------------------------------------------------------------------------------


def test_the_callers_thread_alone_reads_the_items(way):
    readers = set()

    def items():
        for number in range(200):
            readers.add((os.getpid(), threading.get_ident()))
            yield number

    assert ff.map(abs, items(), chunk=3, **way) == list(range(200))
    assert readers == {(os.getpid(), threading.get_ident())}


@pytest.mark.fault("F35")
def test_a_generator_is_closed_when_an_item_fails(way):
    closed = []

    def items():
        try:
            yield from range(10**9)
        finally:
            closed.append(threading.get_ident())

    def fail_at_five(item):
        if item == 5:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError):
        ff.map(fail_at_five, items(), **way)
    assert closed == [threading.get_ident()]


def test_a_file_that_is_read_stays_open(way, tmp_path):
    path = tmp_path / "lines"
    path.write_text("1\n2\n3\n")
    with path.open() as file:
        assert ff.map(int, file, **way) == [1, 2, 3]
        assert not file.closed


@pytest.mark.parametrize("at", [0, 1, 2, 57])
@pytest.mark.fault("F35")
def test_an_iterator_that_raises_ends_the_call_with_that_very_exception(way, at):
    error = OSError("the source broke")

    def items():
        yield from range(at)
        raise error

    with pytest.raises(OSError, match="the source broke") as caught:
        ff.map(abs, items(), **way)
    assert caught.value is error
    assert ff.map(abs, [-1], **way) == [1]


def test_an_item_that_fails_before_the_iterator_raises_comes_first_as_in_the_loop(way):
    def items():
        yield from range(30)
        raise OSError("the source broke")

    def fail_at_seven(item):
        if item == 7:
            raise KeyError(item)

    with pytest.raises(KeyError):
        ff.map(fail_at_seven, items(), **way)


@pytest.mark.fault("F35")
def test_an_iterator_that_stops_twice_is_not_asked_again(way):
    class Resuming:
        def __init__(self):
            self.asked_after_end = 0
            self.given = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.given < 20:
                self.given += 1
                return self.given
            self.asked_after_end += 1
            if self.asked_after_end > 1:
                return -1  # a broken iterator that goes on after its end
            raise StopIteration

    assert ff.map(abs, Resuming(), **way) == list(range(1, 21))


# ---- what the function may be ---------------------------------------------------------------------------------------------


def test_lambdas_partials_methods_and_builtins_are_functions(way):
    class Adder:
        def __init__(self, by):
            self.by = by

        def add(self, item):
            return item + self.by

        @classmethod
        def named(cls, item):
            return cls.__name__, item

        @staticmethod
        def same(item):
            return item

        def __call__(self, item):
            return item * self.by

    assert ff.map(functools.partial(pow, 2), [1, 2, 3], **way) == [2, 4, 8]
    assert ff.map(Adder(10).add, [1, 2], **way) == [11, 12]
    assert ff.map(Adder(10), [1, 2], **way) == [10, 20]
    assert ff.map(Adder.named, [1], **way) == [("Adder", 1)]
    assert ff.map(Adder.same, [1], **way) == [1]
    assert ff.map(len, ["", "abc"], **way) == [0, 3]
    assert ff.map("a-{}".format, [1, 2], **way) == ["a-1", "a-2"]
    assert ff.map(operator.itemgetter("k"), [{"k": 5}], **way) == [5]
    assert ff.map(np.sqrt, [4.0, 9.0], **way) == [2.0, 3.0]


def test_a_recursive_closure_travels(way):
    def factorial(n):
        return 1 if n == 0 else n * factorial(n - 1)

    assert ff.map(factorial, range(6), **way) == [1, 1, 2, 6, 24, 120]


def test_a_class_without_call_makes_one_object_per_item(way):
    @dataclass
    class Point:
        x: int

    assert ff.map(int, ["1", "2"], **way) == [1, 2]
    assert [point.x for point in ff.map(Point, [3, 4], **way)] == [3, 4]


def test_a_class_with_call_is_built_once_per_worker(way_to_processes, notebook):
    class Model:
        def __init__(self, *parts):
            notebook.write(os.getpid(), *parts)
            self.sum = sum(parts)

        def __call__(self, item):
            return self.sum + item

    results = ff.map(Model, range(50), init=(10, 1), chunk=3, **way_to_processes)
    assert results == list(range(11, 61))
    built = notebook.lines()
    assert len(built) == len(set(built)), built
    assert {line.split(" ", 1)[1] for line in built} == {"10 1"}


def test_a_class_with_call_is_built_once_for_the_loop_and_once_per_thread(notebook):
    class Model:
        def __init__(self):
            notebook.write(threading.current_thread().name)

        def __call__(self, item):
            return -item

    assert ff.map(Model, range(50), engine="serial", chunk=3) == list(range(0, -50, -1))
    assert notebook.lines() == ["MainThread"]
    assert ff.map(Model, range(50), engine="threads", workers=2, chunk=3) == list(range(0, -50, -1))
    names = notebook.lines()[1:]
    assert names
    assert len(set(names)) == len(names) <= 2


def test_a_class_with_inherited_call_is_built_too(way):
    class Base:
        def __call__(self, item):
            return self.factor * item

    class Derived(Base):
        def __init__(self, factor):
            self.factor = factor

    assert ff.map(Derived, [1, 2], init=(3,), **way) == [3, 6]


@pytest.mark.fault("F17")
def test_a_class_that_cannot_be_built_names_itself_its_arguments_and_why(way):
    class Model:
        def __init__(self, path):
            raise FileNotFoundError(f"no weights at {path}")

        def __call__(self, item):
            return item

    with pytest.raises(InitFailed, match=r"Model\('w\.bin'\) raised FileNotFoundError: no weights at w\.bin") as caught:
        ff.map(Model, range(10), init=("w.bin",), **way)
    causes = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any(type(cause) is FileNotFoundError for cause in causes)
    assert ff.map(abs, [-1], **way) == [1]


def test_results_of_the_function_may_be_large(way):
    results = ff.map(lambda n: bytes([n]) * 3_000_000, range(4), **way)
    assert [(len(value), value[0]) for value in results] == [(3_000_000, n) for n in range(4)]


# ---- inside one another, and beside one another -----------------------------------------------------------------------------


@pytest.mark.fault("F26")
def test_a_call_inside_an_item_runs_as_the_loop(way):
    def outer(n):
        inner = ff.map(lambda x: x * n, range(5), engine="processes", workers=2)
        return list(inner), inner.report.engine

    assert ff.map(outer, range(3), **way) == [([0, n, 2 * n, 3 * n, 4 * n], "serial") for n in range(3)]


@pytest.mark.fault("F46")
def test_threads_may_call_at_the_same_time(way):
    answers = {}

    def call(number):
        answers[number] = ff.map(lambda x: x + number, range(300), chunk=10, **way)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {number: [x + number for x in range(300)] for number in range(3)}


def test_the_source_may_itself_be_a_stream_of_fourfold(way):
    first = ff.imap(lambda x: x + 1, range(100), chunk=3, **way)
    assert ff.map(lambda x: x * 2, first, chunk=4, **way) == [2 * (x + 1) for x in range(100)]


@pytest.mark.parametrize("fn_kind", ["in Python", "in C"])
def test_the_loop_runs_each_item_of_a_list_once_where_chunks_end_and_items_fail(fn_kind):
    seen = []

    def note(x):
        seen.append(x)
        return 1 // (x not in (3, 4, 9))

    fn = note if fn_kind == "in Python" else note.__call__
    values = ff.map(fn, list(range(10)), engine="serial", chunk=4, on_error="collect")
    assert seen == list(range(10))
    assert [isinstance(value, ff.Failure) for value in values] == [x in (3, 4, 9) for x in range(10)]
