"""What cannot travel costs its own item only, and the message has the path to what is to blame."""

import copyreg
import functools
import pickle
import threading

import numpy as np
import pytest
import ways

import fourfold as ff
from fourfold.errors import NotPicklable, RemoteError
from fourfold.execute.pickling import dump, explain, load, weigh
from fourfold.execute.troubles import pickled, unpickled

way_to_processes = ways.way_to_processes

PROCESSES = {"engine": "processes", "workers": 2}


class WithLock:
    def __init__(self):
        self._lock = threading.Lock()


class Result:
    def __init__(self):
        self.model = WithLock()


class Slotted:
    __slots__ = ("empty", "lock")

    def __init__(self):
        self.lock = threading.Lock()


class FailsToLoad:
    """Pickles well; whoever loads it gets an error."""

    def __reduce__(self):
        return int, ("no number",)


class ExitsAtLoad:
    """Whoever loads it gets what ends a program."""

    def __reduce__(self):
        return exec, ("raise SystemExit('at load')",)


class FailsToDump:
    def __reduce__(self):
        raise RuntimeError("refuses to be pickled")


def paths():
    lock = threading.Lock()
    return [
        (lock, "cannot pickle '_thread.lock' object"),
        (Result(), ".model._lock: cannot pickle '_thread.lock' object"),
        (Slotted(), ".lock: cannot pickle '_thread.lock' object"),
        ([1, (2, {"k": lock})], "[1][1]['k']: cannot pickle '_thread.lock' object"),
        ({"x" * 100: lock}, "['xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...]: cannot pickle"),
        ((n for n in [1]), "cannot pickle 'generator' object"),
        (FailsToDump(), "refuses to be pickled"),
        (functools.partial(print, 1, end=lock), ".keywords['end']: cannot pickle"),
        (functools.partial(print, lock), ".args[0]: cannot pickle"),
        (WithLock().__init__, ".__self__._lock: cannot pickle"),
        (lambda: lock, " closure 'lock': cannot pickle"),
        (threading.current_thread, None),
    ]


# ---- the path --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(paths())))
def test_the_path_leads_to_the_innermost_part_that_fails(number):
    obj, text = paths()[number]
    if text is None:
        assert load(dump(obj)) is obj
        return
    with pytest.raises((TypeError, RuntimeError), match="pickle") as caught:
        dump(obj)
    assert explain(obj, "it", caught.value).startswith("it")
    assert text in explain(obj, "it", caught.value)


def test_the_path_of_a_circle_ends():
    circle = [threading.Lock()]
    circle.insert(0, circle)
    assert explain(circle, "it", TypeError("no")).startswith("it[1]: cannot pickle")


def test_the_path_of_something_deep_ends():
    deep = threading.Lock()
    for _ in range(200):
        deep = [deep]
    assert explain(deep, "it", TypeError("no")).startswith("it[0][0]")


def test_a_part_that_pickles_alone_but_not_together_is_named_by_the_whole():
    assert explain([1, 2], "it", TypeError("too strange")) == "it: too strange"


def test_the_weight_counts_stream_and_buffers_apart():
    weight = weigh([np.zeros(100_000), "text"], 1 << 30)
    assert weight.complete
    assert weight.buffer_bytes == 800_000
    assert weight.stream_bytes < 1000


def test_weighing_gives_up_at_its_limit():
    assert not weigh(["x" * 1000 for _ in range(10_000)], 10_000).complete


def test_weighing_what_cannot_travel_names_the_path():
    with pytest.raises(NotPicklable, match=r"item\[0\]\.model\._lock: cannot pickle"):
        weigh([Result()], 1 << 20)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(4, 6),
        np.arange(24.0).reshape(4, 6).T,
        np.arange(24.0)[::2],
        np.arange(24.0)[::-1],
        np.array([], dtype="i4"),
        np.array(3.5),
        np.array(["a", "bc"]),
        np.array([{"x": 1}, None], dtype=object),
        np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
        np.arange(10, dtype=">i8"),
        np.array(["2020-02-29"], dtype="datetime64[D]"),
        np.ma.masked_array([1, 2], [True, False]),
        np.broadcast_to(np.arange(3), (1000, 3)),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_come_back_equal_with_their_type_and_shape(array):
    back = load(dump(array))
    assert (type(back), back.dtype, back.shape) == (type(array), array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)


def test_large_buffers_are_not_copied_into_the_stream():
    parcel = dump({"a": np.zeros(1_000_000), "b": [np.zeros(500_000)[::2]]})
    assert len(parcel.head) < 2000
    assert sorted(memoryview(buffer).nbytes for buffer in parcel.buffers) == [2_000_000, 8_000_000]


# ---- exceptions that travel -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def as_python_does_it(monkeypatch):
    """Without tblib, with which `distributed` makes another pickle of each exception class that is there when it is imported."""
    for cls in [each for each in copyreg.dispatch_table if isinstance(each, type) and issubclass(each, BaseException)]:
        monkeypatch.delitem(copyreg.dispatch_table, cls)


class TwoArguments(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


class Changing(Exception):
    def __reduce__(self):
        return ValueError, ("no more what it was",)


@pytest.mark.parametrize(
    "error",
    [
        TwoArguments(1, "x"),
        Changing(),
        type("Locked", (Exception,), {"lock": None})(threading.Lock()),
        ValueError(FailsToLoad()),
    ],
    ids=["two arguments", "becomes another", "lock", "fails to load"],
)
def test_an_exception_that_would_not_come_back_alive_does_not_travel(error):
    assert pickled(error) is None


def test_causes_and_contexts_travel_with_an_exception():
    error, cause, root = ValueError("outer"), KeyError("middle"), OSError("root")
    cause.__context__ = root
    error.__cause__ = cause
    back = unpickled(pickled(error))
    assert repr(back) == "ValueError('outer')"
    assert repr(back.__cause__) == "KeyError('middle')"
    assert repr(back.__cause__.__context__) == "OSError('root')"


def test_what_is_no_pickle_comes_back_as_nothing():
    assert unpickled(b"no pickle") is None


# ---- results ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F30")
def test_a_result_that_cannot_travel_is_its_items_failure_with_the_path(way_to_processes):
    def make(item):
        return Result() if item == 300 else item

    options = {**way_to_processes, "chunk": 200}
    results = ff.map(make, range(500), on_error="collect", **options)
    assert [value for value in results if not isinstance(value, ff.Failure)] == [n for n in range(500) if n != 300]
    (failure,) = results.failures
    assert (failure.index, failure.kind, failure.item) == (300, "unpicklable", "300")
    assert failure.message == "result.model._lock: cannot pickle '_thread.lock' object"
    assert type(failure.error) is NotPicklable


def test_under_raise_it_is_raised():
    with pytest.raises(NotPicklable, match=r"^result\.model\._lock: cannot pickle '_thread.lock' object") as caught:
        ff.map(lambda item: Result(), range(5), **PROCESSES)
    assert "fourfold: item 0 of" in caught.value.__notes__[0]


@pytest.mark.parametrize("make", [threading.Lock, lambda: (n for n in [1]), Slotted, FailsToDump, FailsToLoad, ExitsAtLoad])
@pytest.mark.fault("F31")
def test_a_hundred_results_that_cannot_travel_do_not_hold_up_a_hundred_that_can(make):
    results = ff.map(lambda item: make() if item < 100 else item, range(200), on_error="collect", **PROCESSES)
    assert results[100:] == list(range(100, 200))
    assert [failure.index for failure in results.failures] == list(range(100))
    assert {failure.kind for failure in results.failures} == {"unpicklable"}
    assert results.report.n_workers_lost == 0


def test_results_that_cannot_travel_do_not_matter_where_nothing_travels():
    for engine in ("serial", "threads", "auto"):
        assert len(ff.map(lambda item: threading.Lock(), range(10), engine=engine, workers=2)) == 10


def test_a_failed_item_and_one_that_cannot_travel_are_told_apart():
    def function(item):
        if item == 1:
            raise ValueError("raised")
        return threading.Lock() if item == 2 else item

    results = ff.map(function, range(5), on_error="collect", chunk=5, **PROCESSES)
    assert [(failure.index, failure.kind) for failure in results.failures] == [(1, "raised"), (2, "unpicklable")]
    assert (results[0], results[3], results[4]) == (0, 3, 4)


@pytest.mark.fault("F30")
def test_a_result_that_cannot_be_loaded_by_the_driver_is_its_items_failure():
    results = ff.map(lambda item: FailsToLoad() if item == 7 else item, range(20), on_error="collect", chunk=20, **PROCESSES)
    (failure,) = results.failures
    assert (failure.index, failure.kind, failure.error_type, failure.item) == (7, "unpicklable", "ValueError", "7")
    assert results[:7] + results[8:] == [n for n in range(20) if n != 7]


def test_a_result_that_cannot_be_loaded_is_not_computed_again_and_again(tmp_path):
    notebook = ways.Notebook(tmp_path / "notebook")

    def function(item):
        notebook.write(item)
        return FailsToLoad()

    ff.map(function, range(1), on_error="skip", retries=5, **PROCESSES)
    assert notebook.lines() == ["0"]


# ---- items ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F30")
def test_an_item_that_cannot_travel_is_a_failure_with_the_path(tmp_path):
    with (tmp_path / "log").open("w") as file:
        items = [1, Result(), {"a": [file]}, (n for n in []), 5]
        results = ff.map(lambda item: "ran", items, on_error="collect", **PROCESSES)
    assert (results[0], results[4]) == ("ran", "ran")
    messages = [failure.message for failure in results.failures]
    assert messages[0] == "item.model._lock: cannot pickle '_thread.lock' object"
    assert messages[1].startswith("item['a'][0]: ")
    assert messages[2] == "item: cannot pickle 'generator' object"
    assert {failure.kind for failure in results.failures} == {"unpicklable"}
    assert "Result object" in results.failures[0].item


@pytest.mark.parametrize("cls", [FailsToLoad, ExitsAtLoad])
@pytest.mark.fault("F30")
def test_an_item_that_cannot_be_loaded_by_the_worker_is_a_failure_that_shows_the_item(cls):
    items = [1, 2, cls(), 4]
    results = ff.map(lambda item: item, items, on_error="collect", chunk=4, **PROCESSES)
    assert (results[0], results[1], results[3]) == (1, 2, 4)
    (failure,) = results.failures
    assert (failure.index, failure.kind) == (2, "unpicklable")
    assert cls.__name__ in failure.item
    assert results.report.n_workers_lost == 0


@pytest.mark.fault("F31")
def test_a_hundred_items_that_cannot_travel_do_not_hold_up_a_hundred_that_can():
    for cls in (threading.Lock, FailsToLoad, FailsToDump):
        items = [cls() for _ in range(100)] + list(range(100))
        results = ff.map(lambda item: "ran", items, on_error="collect", **PROCESSES)
        assert results[100:] == ["ran"] * 100
        assert [failure.index for failure in results.failures] == list(range(100))


def test_items_that_cannot_travel_keep_auto_the_loop(monkeypatch):
    options = ways.options_of("auto that moves", monkeypatch)
    locks = [threading.Lock() for _ in range(50)]
    results = ff.map(lambda lock: lock.locked(), locks, **options)
    assert results == [False] * 50
    assert results.report.engine == "serial"
    assert "cannot pickle '_thread.lock' object" in results.report.verdict


def test_an_item_after_the_move_that_cannot_travel_is_a_failure_with_the_path(monkeypatch):
    options = ways.options_of("auto that moves", monkeypatch)
    items = [*range(500), Result()]
    (failure,) = ff.map(lambda item: 1, items, on_error="skip", **options).failures
    assert (failure.index, failure.message) == (500, "item.model._lock: cannot pickle '_thread.lock' object")


# ---- exceptions ----------------------------------------------------------------------------------------------------------------------------


def local_exception_classes():
    class TwoArguments(Exception):
        def __init__(self, code, text):
            super().__init__(f"{code}: {text}")

    class Locked(Exception):
        def __init__(self, code, text):
            super().__init__(f"{code}: {text}")
            self.lock = threading.Lock()

    class LoadsBadly(Exception):
        def __reduce__(self):
            return int, ("no number",)

        def __str__(self):
            return "5: five"

    return [TwoArguments, Locked, LoadsBadly]


@pytest.mark.parametrize("cls", local_exception_classes(), ids=lambda cls: cls.__name__)
@pytest.mark.fault("F33")
def test_an_exception_that_cannot_travel_is_quoted_with_class_and_message(cls):
    def fail(item):
        raise cls(item, "five")

    with pytest.raises(RemoteError, match=r"\.(TwoArguments|Locked|LoadsBadly): 5: five") as caught:
        ff.map(fail, [5], **PROCESSES)
    assert caught.value.error_type.endswith(f".{cls.__name__}")
    assert "raise cls(item" in caught.value.__cause__.text
    (failure,) = ff.map(fail, [5], on_error="skip", **PROCESSES).failures
    assert (failure.kind, failure.message) == ("raised", "5: five")
    assert failure.error_type.endswith(f".{cls.__name__}")
    pickle.loads(pickle.dumps(failure))


@pytest.mark.fault("F31")
def test_a_hundred_of_them_do_not_hold_up_a_hundred_good_items():
    for cls in local_exception_classes():

        def fail(item, cls=cls):
            if item < 100:
                raise cls(item, "x")
            return item

        results = ff.map(fail, range(200), on_error="collect", **PROCESSES)
        assert results[100:] == list(range(100, 200))
        assert [failure.index for failure in results.failures] == list(range(100))


# ---- functions -----------------------------------------------------------------------------------------------------------------------------


def unpicklable_functions():
    lock = threading.Lock()
    held = Result()
    return [
        (lambda item: lock, r"<lambda> closure 'lock': cannot pickle '_thread.lock' object"),
        (lambda item: held.model, r"<lambda> closure 'held'\.model\._lock: cannot pickle '_thread.lock' object"),
        (functools.partial(max, held), r"max\.args\[0\]\.model\._lock: cannot pickle"),
        (held.__eq__, r"__self__\.model\._lock: cannot pickle|cannot pickle '_thread.lock' object"),
    ]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.fault("F30")
def test_a_function_that_cannot_travel_names_the_variable_and_what_to_do(number):
    fn, text = unpicklable_functions()[number]
    with pytest.raises(NotPicklable, match=text) as caught:
        ff.map(fn, range(5), **PROCESSES)
    assert "the function cannot travel to workers" in str(caught.value)
    assert 'engine="threads"' in str(caught.value)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("number", range(2))
def test_a_function_that_cannot_travel_keeps_auto_the_loop_and_the_verdict_says_why(monkeypatch, number):
    fn, _ = unpicklable_functions()[number]
    results = ff.map(fn, range(50), **ways.options_of("auto that moves", monkeypatch))
    assert len(results) == 50
    assert results.report.engine == "serial"
    assert "cannot pickle '_thread.lock' object" in results.report.verdict


@pytest.mark.fault("F30")
def test_an_init_argument_that_cannot_travel_is_named():
    class Model:
        def __init__(self, held):
            self.held = held

        def __call__(self, item):
            return item

    with pytest.raises(NotPicklable, match=r"init\[0\]\.model\._lock: cannot pickle '_thread.lock' object"):
        ff.map(Model, range(5), init=(Result(),), **PROCESSES)


@pytest.mark.fault("F30")
def test_a_combine_that_cannot_travel_is_named():
    lock = threading.Lock()
    with pytest.raises(NotPicklable, match=r"combine\.function closure 'lock': cannot pickle '_thread.lock' object"):
        ff.reduce(lambda a, b: lock, range(5), **PROCESSES)


def test_a_function_that_cannot_be_loaded_in_the_worker_ends_the_call_with_the_reason():
    broken = FailsToLoad()
    with pytest.raises(ValueError, match="invalid literal for int"):
        ff.map(lambda item: broken, range(5), **PROCESSES)
    assert ff.map(abs, [-1], **PROCESSES) == [1]


def test_a_function_of_main_travels_by_value_and_what_it_holds_is_a_copy():
    held = [0]

    def function(item):
        held.append(item)
        return len(held)

    assert ff.map(function, range(3), engine="processes", workers=1, chunk=1) == [2, 3, 4]
    assert held == [0]
