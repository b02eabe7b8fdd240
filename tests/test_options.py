"""Options are checked once, before anything runs; a message says what was given, what is right, and what to type."""

import contextvars
import fractions
import importlib.util
import inspect
import itertools
import math
import threading
from functools import partial
from typing import get_type_hints

import numpy as np
import pytest

import fourfold as ff
from fourfold import engines, options
from fourfold.distribute.connection import OnConnection
from fourfold.distribute.engine import EngineInfo
from fourfold.errors import (
    MissingExtra,
    OptionError,
    OptionTypeError,
    UnknownOption,
    UnsupportedOption,
)
from fourfold.options import CLUSTER_ENGINES, Options, Settings, resolve


class Counter:
    """A function that counts its items."""

    def __init__(self):
        self.items = 0

    def __call__(self, item):
        self.items += 1
        return item


@pytest.fixture
def count():
    return Counter()


def refuse_to_be_read():
    raise AssertionError("an item was read before the options were checked")
    yield


# ---- wrong names, types and values -------------------------------------------------------------------------------------------

BAD = [
    # what is given, the class, what the message has
    ({"worker": 2}, UnknownOption, "there is no option 'worker' (did you mean 'workers'?)"),
    ({"n_jobs": 2}, UnknownOption, "there is no option 'n_jobs': workers= is its name here. Options: engine, workers, chunk"),
    ({"backend": "loky"}, UnknownOption, "there is no option 'backend': engine= is its name here"),
    ({"onerror": "skip"}, UnknownOption, "did you mean 'on_error'?"),
    ({"chunksize": 3}, UnknownOption, "there is no option 'chunksize': chunk= is its name here"),
    (
        {"engine": "process"},
        OptionError,
        "unknown engine 'process' (did you mean 'processes'?). Engines: auto, serial, threads",
    ),
    ({"engine": "mpi"}, OptionError, "Engines: auto, serial, threads, processes, spark, ray, dask"),
    ({"engine": ""}, OptionError, "unknown engine ''"),
    ({"engine": None}, OptionTypeError, "engine=None is neither a name nor an Engine object"),
    ({"engine": 3}, OptionTypeError, "engine=3 is neither a name nor an Engine object (it has no open())"),
    ({"workers": 0}, OptionError, "workers=0 must be at least 1"),
    ({"workers": -1}, OptionError, "leave workers out to get all cores that this process may use"),
    ({"workers": -7}, OptionError, "workers=-7 must be at least 1"),
    ({"workers": 2.0}, OptionTypeError, "workers=2.0 must be a whole number, not float"),
    ({"workers": "2"}, OptionTypeError, "workers='2' must be a whole number, not str"),
    ({"workers": True}, OptionTypeError, "workers=True must be a whole number, not bool"),
    ({"chunk": 0}, OptionError, "chunk=0 must be at least 1"),
    ({"chunk": -5}, OptionError, "chunk=-5 must be at least 1"),
    ({"chunk": 1.5}, OptionTypeError, "chunk=1.5 must be a whole number"),
    ({"chunk": "big"}, OptionError, "chunk='big' must be a number of items or \"auto\""),
    ({"on_error": "ignore"}, OptionError, "on_error='ignore' is not known. Choices: raise, collect, skip"),
    ({"on_error": "skp"}, OptionError, "did you mean 'skip'?"),
    ({"on_error": None}, OptionTypeError, "on_error=None must be one of raise, collect, skip"),
    ({"max_failures": -1}, OptionError, "max_failures=-1 must be at least 0"),
    ({"max_failures": 1.5}, OptionError, "a float is a fraction of all items, from 0.0 to 1.0; use an int for a count"),
    ({"max_failures": math.nan}, OptionError, "max_failures=nan: a float is a fraction"),
    ({"max_failures": "1"}, OptionTypeError, "max_failures='1' must be a whole number"),
    ({"retries": -1}, OptionError, "retries=-1 must be at least 0"),
    ({"retries": None}, OptionTypeError, "retries=None must be a whole number"),
    ({"retries": 1.0}, OptionTypeError, "retries=1.0 must be a whole number"),
    ({"retry_on": "ValueError"}, OptionTypeError, "retry_on='ValueError' must be an exception class or a tuple of them"),
    ({"retry_on": [ValueError]}, OptionTypeError, "must be an exception class or a tuple of them"),
    ({"retry_on": (ValueError, int)}, OptionTypeError, "must be an exception class or a tuple of them"),
    ({"retry_on": ValueError("x")}, OptionTypeError, "must be an exception class or a tuple of them"),
    ({"timeout": 0}, OptionError, "timeout=0 must be a positive, finite number of seconds"),
    ({"timeout": -3}, OptionError, "timeout=-3 must be a positive, finite number of seconds; leave it out for no limit"),
    ({"timeout": math.inf}, OptionError, "timeout=inf must be a positive, finite number of seconds"),
    ({"timeout": math.nan}, OptionError, "timeout=nan must be a positive"),
    ({"timeout": "5"}, OptionTypeError, "timeout='5' must be a number of seconds, not str"),
    ({"timeout": True}, OptionTypeError, "timeout=True must be a number of seconds, not bool"),
    ({"memory": 0}, OptionError, "memory=0 must be at least 1"),
    ({"memory": "1GB"}, OptionTypeError, "memory='1GB' must be a whole number"),
    ({"idempotent": 1}, OptionTypeError, "idempotent=1 must be True or False"),
    ({"seed": -1}, OptionError, "seed=-1 must be at least 0"),
    ({"seed": 1.5}, OptionTypeError, "seed=1.5 must be a whole number"),
    ({"seed": "abc"}, OptionTypeError, "seed='abc' must be a whole number"),
    ({"cost": 3}, OptionTypeError, "cost=3 must be a function that takes an item and returns its relative cost"),
    ({"run": 3}, OptionTypeError, "run=3 must be the path of a folder"),
    ({"progress": "yes"}, OptionTypeError, "progress='yes' must be True or False"),
    ({"init": 3}, OptionTypeError, "init=3 must be a tuple of arguments, such as init=(3,)"),
    ({"init": "path"}, OptionTypeError, "init='path' must be a tuple of arguments, such as init=('path',)"),
    ({"init": [1]}, OptionTypeError, "must be a tuple of arguments"),
    ({"threads_per_worker": 0}, OptionError, "threads_per_worker=0 must be at least 1"),
    ({"gpus": -1}, OptionError, "gpus=-1 must be at least 0"),
    ({"gpus": 0.5}, OptionTypeError, "gpus=0.5 must be a whole number"),
]


@pytest.mark.parametrize(("given", "error", "text"), BAD, ids=[f"{next(iter(each[0].items()))}" for each in BAD])
def test_a_bad_option_says_what_is_right_before_anything_runs(given, error, text, count):
    with pytest.raises(error) as caught:
        ff.map(count, refuse_to_be_read(), **given)
    assert text in str(caught.value)
    assert type(caught.value) is error
    assert count.items == 0


@pytest.mark.parametrize("call", [ff.imap, partial(ff.reduce, max)], ids=["imap", "reduce"])
def test_every_call_checks_its_options_at_once(call, count):
    with pytest.raises(UnknownOption, match="there is no option 'worker'"):
        call(items=refuse_to_be_read(), fn=count, worker=2)
    assert count.items == 0


def test_bad_options_are_value_errors_and_wrong_types_are_type_errors_too():
    for given, error, _ in BAD:
        with pytest.raises(TypeError if issubclass(error, OptionTypeError) else ValueError):
            resolve(given)


@pytest.mark.parametrize(
    "name", ["spark", "ray", "dask", "spark://host:7077", "sc://host", "ray://host:1", "tcp://host:8786", "tls://host:8786"]
)
def test_an_engine_whose_package_is_missing_says_the_pip_line(name, monkeypatch, count):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    extra = {"sc": "spark", "tcp": "dask", "tls": "dask"}.get(name.partition("://")[0], name.partition("://")[0])
    with pytest.raises(MissingExtra, match=rf"{CLUSTER_ENGINES[extra]}, which is not installed") as caught:
        ff.map(count, refuse_to_be_read(), engine=name)
    assert f"pip install 'fourfold[{extra}]'" in str(caught.value)
    assert isinstance(caught.value, ImportError)
    assert count.items == 0


@pytest.mark.parametrize(
    ("good", "kept"),
    [
        ({"workers": np.int64(2)}, 2),
        ({"workers": None}, None),
        ({"chunk": "auto"}, None),
        ({"chunk": np.int32(5)}, 5),
        ({"max_failures": 0}, 0),
        ({"max_failures": 0.0}, 0.0),
        ({"max_failures": 1.0}, 1.0),
        ({"timeout": 3}, 3.0),
        ({"retry_on": (KeyError, OSError)}, (KeyError, OSError)),
        ({"seed": 2**100}, 2**100),
        ({"init": ()}, ()),
        ({"progress": None}, None),
    ],
)
def test_good_values_are_kept_in_one_type(good, kept):
    name = next(iter(good))
    value = getattr(resolve(good), name)
    assert value == kept
    assert type(value) is type(kept)


def test_options_and_settings_have_the_same_names_and_every_one_has_a_check_and_a_word_of_explanation():
    names = set(get_type_hints(Options))
    assert names == set(options.NAMES) == set(options._CHECKS)
    assert inspect.getdoc(Settings) is not None
    for name in names:
        assert f"\n    {name}: " in inspect.getdoc(Settings), name


# ---- arguments -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [3, None, "abs", [abs]])
def test_what_cannot_be_called_is_no_function(fn):
    with pytest.raises(OptionTypeError, match=rf"must be a function of one item; it is of type {type(fn).__name__}"):
        ff.map(fn, refuse_to_be_read())


@pytest.mark.parametrize("items", [3, None, 1.5, object(), len])
def test_what_cannot_be_iterated_is_no_items(items, count):
    with pytest.raises(OptionTypeError, match=rf"something to iterate over.*not {type(items).__name__}"):
        ff.map(count, items)
    assert count.items == 0


def test_a_generator_function_must_be_called(count):
    def rows():
        yield 1

    with pytest.raises(OptionTypeError, match=r"items is the generator function .*rows: call it, .*rows\(\)"):
        ff.map(count, rows)


def test_an_async_generator_must_be_collected(count):
    async def rows():
        yield 1

    with pytest.raises(OptionTypeError, match=r"items is an async.*\[x async for x in \.\.\.\]"):
        ff.map(count, rows())


def test_an_async_function_must_be_wrapped():
    async def fetch(item):
        return item

    with pytest.raises(OptionTypeError, match=r"fetch is an async function: wrap it, lambda item: asyncio.run\(fn\(item\)\)"):
        ff.map(fetch, refuse_to_be_read())


def test_an_error_of_the_containers_own_iter_is_passed_on(count):
    class Closed:
        def __iter__(self):
            raise TypeError("the connection is closed")

    with pytest.raises(TypeError, match="the connection is closed") as caught:
        ff.map(count, Closed())
    assert type(caught.value) is TypeError


def test_init_is_for_classes():
    with pytest.raises(OptionError, match=r"init=\(1,\) is for classes; abs is a function: use functools.partial"):
        ff.map(abs, refuse_to_be_read(), init=(1,))


def test_init_is_for_classes_whose_instances_can_be_called():
    with pytest.raises(OptionError, match=r"instances of Fraction cannot be called: give it a __call__\(self, item\)"):
        ff.map(fractions.Fraction, refuse_to_be_read(), init=(1,))


@pytest.mark.parametrize(
    ("cost", "error", "text"),
    [
        (lambda item: "much", OptionTypeError, r"cost\(items\[0\]\) returned 'much'; it must return a number"),
        (lambda item: -1.0 if item == 2 else 1, OptionError, r"cost\(items\[2\]\) returned -1.0"),
        (lambda item: math.nan, OptionError, r"returned nan; a cost must be finite and not negative"),
        (lambda item: math.inf, OptionError, r"returned inf"),
    ],
)
def test_a_cost_must_be_a_finite_number(cost, error, text, count):
    with pytest.raises(error, match=text):
        ff.map(count, range(3), cost=cost)
    assert count.items == 0


def test_a_cost_that_raises_is_passed_on(count):
    with pytest.raises(ZeroDivisionError):
        ff.map(count, range(3), cost=lambda item: 1 / item)
    assert count.items == 0


# ---- what an engine cannot honour ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "given"),
    [
        *itertools.product(["auto", "serial", "threads", "processes"], [{"gpus": 1}]),
        *itertools.product(["serial", "threads"], [{"timeout": 5.0}, {"memory": 1 << 30}]),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_honoured_is_an_error_before_anything_runs(engine, given, count):
    name = next(iter(given))
    with pytest.raises(UnsupportedOption, match=rf"cannot honour {name}=.*Leave {name} out"):
        ff.map(count, refuse_to_be_read(), engine=engine, **given)
    assert count.items == 0


def test_the_default_value_of_such_an_option_asks_for_nothing():
    assert ff.map(abs, [-1], timeout=None, memory=None, run=None, gpus=0) == [1]


def test_threads_per_worker_is_honoured_or_refused():
    assert ff.map(abs, [-1], engine="serial", threads_per_worker=1) == [1]
    assert ff.map(abs, [-1], engine="processes", workers=1, threads_per_worker=1) == [1]


def test_allowed_failures_need_a_place_to_stand(count):
    with pytest.raises(OptionError, match='max_failures=3 allows failures, and on_error="raise" ends at the first one: add'):
        ff.map(count, refuse_to_be_read(), max_failures=3)
    assert count.items == 0
    with ff.using(max_failures=3):
        assert ff.map(int, ["1", "x"], on_error="skip") == [1]


def test_what_may_not_run_twice_cannot_be_retried(count):
    with pytest.raises(OptionError, match="retries=2 runs items again, and idempotent=False forbids it"):
        ff.map(count, refuse_to_be_read(), idempotent=False, retries=2)
    assert count.items == 0


@pytest.mark.parametrize("cluster", ["ray", "dask", "spark"])
def test_a_cluster_is_not_started_for_an_option_that_it_cannot_keep(monkeypatch, cluster):
    monkeypatch.setattr(options, "check_installed", lambda cluster, who: None)
    monkeypatch.setattr(OnConnection, "open", lambda self: pytest.fail("it was connected to"))
    for kind in (engines.Ray, engines.Dask, engines.Spark):
        monkeypatch.setattr(kind, "info", EngineInfo(name="there", takes_objects=False, honours=frozenset()))
    with pytest.raises(UnsupportedOption, match=r"engine 'there' cannot honour timeout=1\.0"):
        ff.map(abs, refuse_to_be_read(), engine=cluster, timeout=1)


@pytest.mark.parametrize(("cluster", "kind"), [("ray", engines.Ray), ("dask", engines.Dask), ("spark", engines.Spark)])
def test_an_engine_object_says_what_to_install_where_its_library_is_missing(monkeypatch, cluster, kind):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf"fourfold.engines.{kind.__name__} needs .* pip install 'fourfold\[{cluster}\]'"):
        ff.map(abs, refuse_to_be_read(), engine=kind())


@pytest.mark.parametrize("engine", ["serial", "threads", "processes", "auto"])
def test_idempotent_false_alone_changes_no_answer(engine):
    assert ff.map(abs, range(-20, 0), engine=engine, workers=2, idempotent=False) == list(range(20, 0, -1))


# ---- defaults of a block ----------------------------------------------------------------------------------------------------------


def test_a_block_sets_defaults_and_a_call_overrides_them():
    with ff.using(engine="threads", workers=2, on_error="skip"):
        assert ff.map(int, ["1", "x"]).report.engine == "threads"
        assert ff.map(int, ["1", "x"]) == [1]
        assert ff.map(int, ["1", "2"], engine="serial").report.engine == "serial"
        with pytest.raises(ValueError, match="invalid literal"):
            ff.map(int, ["1", "x"], on_error="raise")
    with pytest.raises(ValueError, match="invalid literal"):
        ff.map(int, ["1", "x"])


def test_blocks_nest_and_end_with_their_exceptions():
    with ff.using(engine="threads", workers=2):
        with pytest.raises(ValueError, match="'y'"), ff.using(engine="serial"):
            ff.map(int, ["y"])
        report = ff.map(int, ["1"]).report
        assert (report.engine, report.workers) == ("threads", 2)


def test_a_block_with_a_bad_option_is_not_entered():
    with pytest.raises(OptionError, match="workers=0"), ff.using(workers=0):
        pytest.fail("the block was entered")


def test_reduce_and_imap_hear_the_block():
    with ff.using(on_error="skip", engine="serial"):
        assert ff.reduce(max, ["1", "x"], fn=int) == 1
        assert list(ff.imap(int, ["1", "x"])) == [1]


def test_a_stream_keeps_the_options_it_was_made_with():
    with ff.using(on_error="skip"):
        stream = ff.imap(int, ["1", "x", "2"])
    assert list(stream) == [1, 2]


def test_a_block_is_of_its_thread():
    engines = []

    def call():
        engines.append(ff.map(abs, [1]).report.engine)

    with ff.using(engine="threads", workers=2):
        for run in (call, lambda: contextvars.Context().run(call)):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join(60)
        call()
    assert engines == ["serial", "serial", "threads"]


# ---- the environment ----------------------------------------------------------------------------------------------------------------


def test_the_environment_names_the_engine_and_the_workers(monkeypatch):
    monkeypatch.setenv("FOURFOLD_ENGINE", "threads")
    monkeypatch.setenv("FOURFOLD_WORKERS", "3")
    report = ff.map(abs, range(10)).report
    assert (report.engine, report.workers) == ("threads", 3)
    with ff.using(workers=2):
        assert ff.map(abs, range(10)).report.workers == 2
        assert ff.map(abs, range(10), workers=1).report.workers == 1


@pytest.mark.parametrize("value", ["0", "-2", "two", "1.5", " "])
def test_a_bad_number_of_workers_in_the_environment_names_the_variable(monkeypatch, count, value):
    monkeypatch.setenv("FOURFOLD_WORKERS", value)
    with pytest.raises(OptionError, match=rf"the environment has FOURFOLD_WORKERS='{value}'; it must be a whole number"):
        ff.map(count, refuse_to_be_read())
    assert count.items == 0


def test_a_bad_engine_in_the_environment_names_the_variable(monkeypatch, count):
    monkeypatch.setenv("FOURFOLD_ENGINE", "proceses")
    with pytest.raises(OptionError, match="did you mean 'processes'") as caught:
        ff.map(count, refuse_to_be_read())
    assert "FOURFOLD_ENGINE" in str(caught.value)
    assert count.items == 0


def test_a_variable_that_is_empty_is_not_there(monkeypatch):
    monkeypatch.setenv("FOURFOLD_ENGINE", "")
    monkeypatch.setenv("FOURFOLD_WORKERS", "")
    assert ff.map(abs, [-1]) == [1]


def test_what_the_call_says_hides_a_bad_variable(monkeypatch):
    monkeypatch.setenv("FOURFOLD_WORKERS", "none at all")
    monkeypatch.setenv("FOURFOLD_ENGINE", "none at all")
    assert ff.map(abs, [-1], workers=1, engine="serial") == [1]
