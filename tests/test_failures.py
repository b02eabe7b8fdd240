"""What becomes of items that fail: which failure counts, what it says, how often it is tried again, and when the run stops."""

import os
import pickle
import re
import threading
import traceback
from dataclasses import dataclass

import numpy as np
import pytest
import ways

import fourfold as ff
from fourfold.errors import RemoteError, RemoteTraceback, TooManyFailures

way = ways.way
way_to_processes = ways.way_to_processes
notebook = ways.notebook

ENDS = [
    StopIteration("it"),
    GeneratorExit("gen"),
    SystemExit(3),
    SystemExit("bye"),
    MemoryError("mem"),
    RecursionError("deep"),
]


def fail_at(*failing):
    def function(item):
        if item in failing:
            raise ValueError(f"item {item} is bad")
        return item * 10

    return function


# ---- the first failure is the loop's -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 7, "auto"])
@pytest.mark.fault("F1", faults=6)
def test_the_error_is_that_of_the_first_failing_item_whatever_failed_first(way, chunk):
    for failing in [(0,), (99,), (3, 4), (97, 11), range(100), range(40, 60)]:
        with pytest.raises(ValueError, match=rf"^item {min(failing)} is bad") as caught:
            ff.map(fail_at(*failing), range(100), chunk=chunk, **way)
        assert type(caught.value) is ValueError


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_slow_first_failure_still_comes_before_a_fast_second_one(engine, tmp_path):
    second_has_failed = tmp_path / "second_has_failed"

    def function(item):
        import time

        if item == 1:
            second_has_failed.touch()
            raise KeyError("second")
        deadline = time.monotonic() + 60
        while item == 0 and not second_has_failed.exists():
            assert time.monotonic() < deadline
        if item == 0:
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        ff.map(function, range(4), engine=engine, workers=2, chunk=1)


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_an_earlier_item_that_has_not_started_when_a_later_one_fails_still_comes_first(engine, tmp_path):
    """Items 0 and 1 are one chunk: 0 ends when 2 has failed, and then 1 fails, which the loop would have met first."""
    later_has_failed = tmp_path / "later_has_failed"

    def function(item):
        import time

        if item == 2:
            later_has_failed.touch()
            raise KeyError("later")
        deadline = time.monotonic() + 60
        while item == 0 and not later_has_failed.exists():
            assert time.monotonic() < deadline
        if item == 0:  # give the driver time to hear of the failure, and to cancel too much
            until = time.monotonic() + 0.1
            while time.monotonic() < until:
                pass
        if item == 1:
            raise ValueError("earlier")

    with pytest.raises(ValueError, match="earlier"):
        ff.map(function, range(8), engine=engine, workers=2, chunk=2)


def test_no_item_starts_long_after_one_has_failed(notebook):
    def function(item):
        notebook.write(item)
        if item == 5:
            raise ValueError("stop here")

    for engine in ("serial", "threads", "processes"):
        with pytest.raises(ValueError, match="stop here"):
            ff.map(function, range(2000), engine=engine, workers=2, chunk=1)
    assert len(notebook.lines()) < 3 * 60


def test_calls_after_a_failure_work(way):
    for _ in range(3):
        with pytest.raises(ValueError, match="item 1 is bad"):
            ff.map(fail_at(1), range(50), **way)
        assert ff.map(fail_at(), range(50), **way) == list(range(0, 500, 10))


def test_costly_first_fails_with_the_first_item_by_index_or_one_that_ran_before(way):
    with pytest.raises(ValueError, match="is bad") as caught:
        ff.map(fail_at(3, 90), range(100), cost=lambda item: item, chunk=1, **way)
    index = int(re.search(r"item (\d+) is bad", str(caught.value)).group(1))
    assert f"fourfold: item {index} of " in caught.value.__notes__[0]


# ---- it is what the function raised --------------------------------------------------------------------------------------------


@pytest.mark.fault("F1")
def test_the_exception_keeps_its_type_arguments_and_attributes(way):
    class Refused(LookupError):
        pass

    def refuse(item):
        error = Refused("no", item)
        error.code = 7
        error.add_note("the function's own note")
        raise error

    with pytest.raises(Refused) as caught:
        ff.map(refuse, [41], **way)
    assert caught.value.args == ("no", 41)
    assert caught.value.code == 7
    assert caught.value.__notes__[0] == "the function's own note"


def test_the_note_names_index_function_item_attempt_and_worker(way):
    with pytest.raises(ValueError, match="bad") as caught:
        ff.map(fail_at("cc"), ["aa", "bb", "cc"], **way)
    (note,) = caught.value.__notes__
    worker = r"(this thread|thread \d+|worker \d+ \(pid \d+\))"
    assert re.fullmatch(
        rf"fourfold: item 2 of fail_at\.<locals>\.function: 'cc' \(attempt 1, {worker}\)", note
    ) or re.fullmatch(rf"fourfold: item 2 of function: 'cc' \(attempt 1, {worker}\)", note), note


def test_the_note_is_in_the_printed_traceback_with_the_line_of_the_function(way):
    with pytest.raises(ValueError, match="bad") as caught:
        ff.map(fail_at(2), range(4), **way)
    text = "".join(traceback.format_exception(caught.value))
    assert "fourfold: item 2 of" in text
    assert 'raise ValueError(f"item {item} is bad")' in text


def test_in_other_processes_the_cause_is_the_remote_traceback_with_the_line():
    with pytest.raises(ValueError, match="bad") as caught:
        ff.map(fail_at(2), range(4), engine="processes", workers=2)
    cause = caught.value.__cause__
    assert type(cause) is RemoteTraceback
    assert f'File "{__file__}", line ' in cause.text
    assert 'raise ValueError(f"item {item} is bad")' in cause.text
    assert "execute/chunk.py" not in cause.text


def test_the_functions_own_cause_stands_behind_the_remote_traceback(way):
    def chain(item):
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        ff.map(chain, [1], **way)
    text = "".join(traceback.format_exception(caught.value))
    assert "KeyError: 'missing'" in text
    assert "The above exception was the direct cause" in text
    cause = caught.value.__cause__
    while type(cause) is RemoteTraceback:
        cause = cause.__cause__
    assert repr(cause) == "KeyError('missing')"


def test_a_context_that_was_not_asked_for_is_kept_too(way):
    def chain(item):
        try:
            {}["missing"]
        except KeyError:
            raise ValueError("outer")  # noqa: B904

    with pytest.raises(ValueError, match="outer") as caught:
        ff.map(chain, [1], **way)
    assert repr(caught.value.__context__) == "KeyError('missing')"


def test_a_cause_that_was_cut_off_stays_cut_off(way):
    def cut(item):
        try:
            {}["missing"]
        except KeyError:
            raise ValueError("outer") from None

    with pytest.raises(ValueError, match="outer") as caught:
        ff.map(cut, [1], **way)
    text = "".join(traceback.format_exception(caught.value))
    assert "KeyError" not in text


@pytest.mark.fault("F33")
def test_an_exception_that_is_its_own_cause_ends_the_call(way):
    def circle(item):
        error = ValueError("circle")
        error.__cause__ = error
        raise error

    with pytest.raises(ValueError, match="circle"):
        ff.map(circle, [1], **way)


def test_groups_keep_their_members(way):
    def group(item):
        raise ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError("k")])])

    with pytest.raises(ExceptionGroup, match="several") as caught:
        ff.map(group, [1], **way)
    first, second = caught.value.exceptions
    assert (repr(first), second.message, repr(second.exceptions[0])) == ("ValueError(1)", "inner", "KeyError('k')")


def test_an_exception_object_that_many_items_raise_has_one_note(way):
    class Stubborn:
        error = ValueError("the same object")

        def __call__(self, item):
            raise self.error

    results = ff.map(Stubborn(), range(5), on_error="collect", **way)
    for failure in results.failures:
        assert len(failure.error.__notes__) == 1


@pytest.mark.fault("F33")
def test_a_huge_message_arrives(way):
    def shout(item):
        raise ValueError("m" * 3_000_000)

    (failure,) = ff.map(shout, [1], on_error="skip", **way).failures
    assert len(str(failure.error)) == 3_000_000
    assert len(failure.message) < 200_000


@pytest.mark.fault("F33")
def test_text_that_is_no_unicode_arrives(way):
    def shout(item):
        raise ValueError("\udcff\x00 broken")

    (failure,) = ff.map(shout, [1], on_error="skip", **way).failures
    assert failure.message == "\udcff\x00 broken"


@pytest.mark.fault("F33")
def test_an_exception_that_cannot_be_shown_is_a_failure_like_any_other(way):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

        __repr__ = __str__

    (failure,) = ff.map(lambda item: (_ for _ in ()).throw(Mute()), [1], on_error="skip", **way).failures
    assert failure.message == "<unprintable Mute>"
    assert failure.error_type.endswith("Mute")


@pytest.mark.fault("F33")
def test_an_exception_that_takes_no_attributes_is_a_failure_like_any_other(way):
    @dataclass(frozen=True)
    class Frozen(Exception):
        code: int

    def freeze(item):
        raise Frozen(item)

    results = ff.map(freeze, [1, 2], on_error="collect", **way)
    assert [failure.error_type.rpartition(".")[2] for failure in results.failures] == ["Frozen", "Frozen"]
    with pytest.raises(Exception, match="1") as caught:
        ff.map(freeze, [1, 2], **way)
    assert type(caught.value).__name__ in ("Frozen", "RemoteError")


@pytest.mark.fault("F34")
def test_items_that_cannot_be_shown_are_named_by_their_class(way):
    class Touchy:
        def __repr__(self):
            raise RuntimeError("no text")

    (failure,) = ff.map(len, [Touchy()], on_error="skip", **way).failures
    assert failure.item == "<unprintable Touchy>"


def test_a_huge_item_is_shown_shortly(way):
    items = ["x" * 10_000_000, list(range(100_000)), b"y" * 10_000]
    for failure in ff.map(lambda item: 1 / 0, items, on_error="skip", **way).failures:
        assert len(failure.item) < 400, failure.item[:1000]


# ---- no end of the item is the end of the worker ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ENDS, ids=repr)
@pytest.mark.fault("F2")
def test_whatever_an_item_raises_is_its_failure(way, error):
    def raise_at_two(item):
        if item == 2:
            raise error
        return item

    results = ff.map(raise_at_two, range(5), on_error="collect", **way)
    assert [value for value in results if not isinstance(value, ff.Failure)] == [0, 1, 3, 4]
    (failure,) = results.failures
    assert (failure.index, failure.kind, failure.error_type) == (2, "raised", type(error).__name__)
    assert type(failure.error) is type(error)


@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_whatever_an_item_raises_keeps_its_type(way, error):
    def raise_it(item):
        raise error

    with pytest.raises(BaseException) as caught:  # noqa: PT011
        ff.map(raise_it, range(5), **way)
    assert type(caught.value) is type(error)


@pytest.mark.parametrize("error", [*ENDS, KeyboardInterrupt()], ids=repr)
@pytest.mark.fault("F2")
def test_the_worker_lives_on_after_it(error):
    def pid_or_end(item):
        if item == 1:
            raise error
        return os.getpid()

    results = ff.map(pid_or_end, range(3), on_error="skip", engine="processes", workers=1)
    assert len(set(results)) == 1
    assert len(results) == 2
    assert results.report.n_workers_lost == 0
    assert ff.map(pid_or_end, [0], engine="processes", workers=1) == results[:1]


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.fault("F27")
def test_a_keyboard_interrupt_of_an_item_in_a_worker_is_its_failure(engine):
    def interrupt(item):
        if item == 1:
            raise KeyboardInterrupt("of the item")
        return item

    results = ff.map(interrupt, range(3), on_error="collect", engine=engine, workers=2)
    assert (results[0], results[2]) == (0, 2)
    assert results[1].error_type == "KeyboardInterrupt"


@pytest.mark.parametrize("engine", ["serial", "auto"])
@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_a_keyboard_interrupt_in_the_callers_thread_ends_the_call(engine, on_error):
    def interrupt(item):
        if item == 1:
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        ff.map(interrupt, range(3), on_error=on_error, engine=engine)
    assert ff.map(abs, [-1], engine=engine) == [1]


def test_a_generator_that_ends_inside_the_function_does_not_end_the_map(way):
    def first_of(items):
        return next(iter(items))

    results = ff.map(first_of, [[1], [], [3], [], [5]], on_error="collect", **way)
    assert [getattr(value, "error_type", value) for value in results] == [1, "StopIteration", 3, "StopIteration", 5]


# ---- collect and skip --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000, "auto"])
@pytest.mark.fault("F1")
def test_collected_failures_stand_in_their_places(way, chunk):
    failing = {0, 1, 7, 8, 9, 49}
    results = ff.map(fail_at(*failing), range(50), on_error="collect", chunk=chunk, **way)
    for index, value in enumerate(results):
        if index in failing:
            assert isinstance(value, ff.Failure)
            assert (value.index, value.item, value.message) == (index, str(index), f"item {index} is bad")
        else:
            assert value == index * 10
    assert [failure.index for failure in results.failures] == sorted(failing)
    assert [value for value in results if isinstance(value, ff.Failure)] == results.failures
    assert (results.report.n_items, results.report.n_failures) == (50, 6)


@pytest.mark.parametrize("chunk", [1, 7, "auto"])
def test_skipped_failures_leave_no_gap_and_are_still_listed(way, chunk):
    results = ff.map(fail_at(0, 3, 19), range(20), on_error="skip", chunk=chunk, **way)
    assert results == [n * 10 for n in range(20) if n not in (0, 3, 19)]
    assert [failure.index for failure in results.failures] == [0, 3, 19]


def test_when_all_fail_the_list_is_empty_or_all_failures(way):
    assert ff.map(fail_at(*range(20)), range(20), on_error="skip", **way) == []
    assert [failure.index for failure in ff.map(fail_at(*range(20)), range(20), on_error="collect", **way)] == list(range(20))


def test_under_cost_failures_are_sorted_by_index_too(way):
    results = ff.map(fail_at(2, 30, 17), range(40), on_error="collect", cost=lambda item: (item * 7) % 40, **way)
    assert [failure.index for failure in results.failures] == [2, 17, 30]
    assert [failure.index for failure in results if isinstance(failure, ff.Failure)] == [2, 17, 30]
    assert [value for value in results if not isinstance(value, ff.Failure)] == [
        n * 10 for n in range(40) if n not in (2, 17, 30)
    ]


def test_a_failure_says_all_there_is_to_say(way):
    (failure,) = ff.map(fail_at("b"), ["a", "b"], on_error="collect", **way).failures
    assert failure.index == 1
    assert failure.kind == "raised"
    assert failure.error_type == "ValueError"
    assert failure.message == "item b is bad"
    assert failure.item == "'b'"
    assert failure.attempts == 1
    assert re.fullmatch(r"this thread|thread \d+|worker \d+ \(pid \d+\)", failure.worker)
    assert failure.traceback.startswith("Traceback (most recent call last):\n")
    assert 'raise ValueError(f"item {item} is bad")' in failure.traceback
    assert failure.traceback.endswith("ValueError: item b is bad\n")
    assert type(failure.error) is ValueError


def test_a_class_of_a_module_is_named_with_its_module(way):
    import json

    (failure,) = ff.map(json.loads, ["{"], on_error="skip", **way).failures
    assert failure.error_type == "json.decoder.JSONDecodeError"
    assert failure.error.pos == 1


def test_a_collected_failure_holds_no_frames(way):
    class Large:
        alive = 0

    def fail(item):
        large = Large()
        raise ValueError(str(large is None))

    (failure,) = ff.map(fail, [1], on_error="collect", **way).failures
    assert failure.error.__traceback__ is None


def test_results_with_failures_pickle(way):
    results = ff.map(fail_at(1), range(3), on_error="collect", **way)
    back = pickle.loads(pickle.dumps(results))
    assert type(back) is ff.Results
    assert back[0] == 0
    assert back.report == results.report
    assert (back[1].index, back[1].message, back[1].worker) == (1, "item 1 is bad", results[1].worker)
    assert type(back.failures[0].error) is ValueError


def test_results_without_failures_pickle_and_copy(way):
    import copy

    results = ff.map(abs, range(3), **way)
    for back in (pickle.loads(pickle.dumps(results)), copy.copy(results), copy.deepcopy(results)):
        assert (type(back), back, back.failures, back.report) == (ff.Results, results, [], results.report)


def test_a_failure_cannot_be_changed():
    (failure,) = ff.map(int, ["x"], on_error="skip").failures
    with pytest.raises(AttributeError):
        failure.index = 3


# ---- max_failures -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["collect", "skip"])
@pytest.mark.parametrize(
    ("limit", "stops"), [(0, True), (1, True), (2, True), (3, False), (0.02, True), (0.03, False), (1.0, False)]
)
def test_more_failures_than_allowed_stop_the_run_and_as_many_do_not(way, on_error, limit, stops):
    options = {**way, "on_error": on_error, "max_failures": limit}
    if not stops:
        assert len(ff.map(fail_at(5, 50, 95), range(100), **options).failures) == 3
        return
    with pytest.raises(TooManyFailures, match=rf"more than max_failures={limit} allows; the first is item \d+") as caught:
        ff.map(fail_at(5, 50, 95), range(100), **options)
    assert len(caught.value.failures) > limit * (100 if isinstance(limit, float) else 1)
    assert [failure.index for failure in caught.value.failures] == sorted(failure.index for failure in caught.value.failures)
    assert type(caught.value.__cause__) is ValueError


def test_a_fraction_of_a_source_without_length_is_one_of_all_its_items(way):
    results = ff.map(fail_at(0), iter(range(100)), on_error="skip", max_failures=0.05, **way)
    assert len(results) == 99
    with pytest.raises(TooManyFailures):
        ff.map(fail_at(*range(10)), iter(range(100)), on_error="skip", max_failures=0.05, **way)


# ---- retries ---------------------------------------------------------------------------------------------------------------------------


class FailFirst:
    """Fails the first `times` attempts of some items; notes each attempt."""

    def __init__(self, notebook, times, failing=(3,), error=ValueError):
        self.notebook, self.times, self.failing, self.error = notebook, times, failing, error

    def __call__(self, item):
        self.notebook.write(item)
        if item in self.failing and self.notebook.lines().count(str(item)) <= self.times:
            raise self.error(f"attempt at {item}")
        return -item


@pytest.mark.parametrize("chunk", [1, 4, "auto"])
def test_an_item_that_fails_as_often_as_it_may_succeeds(way, notebook, chunk):
    results = ff.map(FailFirst(notebook, times=2), range(8), retries=2, chunk=chunk, **way)
    assert results == [-n for n in range(8)]
    assert results.failures == []
    assert results.report.n_retries == 2
    assert sorted(notebook.lines()) == sorted(["3"] * 3 + [str(n) for n in range(8) if n != 3])


def test_an_item_that_fails_once_more_is_a_failure_with_all_its_attempts(way, notebook):
    results = ff.map(FailFirst(notebook, times=3), range(8), retries=2, on_error="collect", **way)
    (failure,) = results.failures
    assert (failure.index, failure.attempts) == (3, 3)
    assert "(attempt 3, " in failure.error.__notes__[0]
    assert notebook.lines().count("3") == 3
    assert (results.report.n_retries, results.report.n_items) == (2, 8)


def test_without_retries_an_item_runs_once(way, notebook):
    ff.map(FailFirst(notebook, times=9), range(8), on_error="skip", **way)
    assert sorted(notebook.lines()) == [str(n) for n in range(8)]


@pytest.mark.parametrize(
    ("retry_on", "attempts"),
    [(ValueError, 3), ((KeyError, ValueError), 3), (Exception, 3), (KeyError, 1), (LookupError, 1), ((), 1)],
)
def test_only_the_named_exceptions_are_tried_again(way, notebook, retry_on, attempts):
    results = ff.map(FailFirst(notebook, times=9), range(5), retries=2, retry_on=retry_on, on_error="skip", **way)
    assert results.failures[0].attempts == attempts
    assert notebook.lines().count("3") == attempts


def test_what_ends_a_program_is_tried_again_only_when_it_is_named(way, notebook):
    fn = FailFirst(notebook, times=1, error=SystemExit)
    assert ff.map(fn, range(5), retries=2, on_error="skip", **way).failures[0].error_type == "SystemExit"
    assert ff.map(fn, [3], retries=2, retry_on=SystemExit, **way) == [-3]


def test_every_item_has_retries_of_its_own(way, notebook):
    results = ff.map(FailFirst(notebook, times=1, failing=range(20)), range(20), retries=1, chunk=4, **way)
    assert results == [-n for n in range(20)]
    assert results.report.n_retries == 20


def test_under_raise_the_error_comes_after_the_last_attempt(way, notebook):
    with pytest.raises(ValueError, match="attempt at 3") as caught:
        ff.map(FailFirst(notebook, times=9), range(30), retries=1, **way)
    assert "(attempt 2, " in caught.value.__notes__[0]
    assert notebook.lines().count("3") == 2


def test_retries_do_not_change_which_failure_is_first(way, notebook):
    with pytest.raises(ValueError, match="attempt at 3"):
        ff.map(FailFirst(notebook, times=9, failing=(3, 4, 20)), range(30), retries=2, chunk=2, **way)


def test_retries_under_cost_keep_indices(way, notebook):
    fn = FailFirst(notebook, times=1, failing=(3, 17))
    assert ff.map(fn, range(20), retries=1, cost=lambda item: (item * 7) % 20, chunk=3, **way) == [-n for n in range(20)]


def test_an_exception_that_could_not_travel_is_retried_as_what_stands_for_it(notebook):
    class Locked(Exception):
        def __init__(self, text):
            super().__init__(text)
            self.lock = threading.Lock()

    fn = FailFirst(notebook, times=1, error=Locked)
    assert ff.map(fn, range(5), retries=1, engine="processes", workers=1) == [0, -1, -2, -3, -4]
    (failure,) = ff.map(lambda item: (_ for _ in ()).throw(Locked("x")), [1], on_error="skip", engine="processes").failures
    assert type(failure.error) is RemoteError


@pytest.mark.parametrize(("engine", "is_told"), [("processes", True), ("serial", False)])
def test_who_writes_to_an_array_that_workers_share_is_told_to_copy_it(engine, is_told):
    shared = np.zeros(3)
    shared.flags.writeable = engine != "serial"

    def write(item):
        shared[0] = item

    with pytest.raises(ValueError, match="read-only") as caught:
        ff.map(write, [1], engine=engine, workers=1)
    assert ("change a .copy()" in caught.value.__notes__[-1]) is is_told
