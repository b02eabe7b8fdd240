"""What work imports: found out from its pickle, imported once for all workers where that is safe, and priced before any start."""

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import types

import numpy as np
import pandas as pd
import pytest
import ways
from leaks import the_pool
from running import is_in_time, run_script, until
from sklearn.linear_model import Ridge

import fourfold as ff
from fourfold.data.kinds import IMPORTS_OF
from fourfold.distribute import chooser, verdict
from fourfold.distribute.engines import on_this_thread
from fourfold.distribute.engines.on_processes.pool import FAREWELL_S
from fourfold.distribute.lane import Lane
from fourfold.distribute.verdict import COLD_START_S, FREE, MARGIN, Crew, Work, price
from fourfold.execute.pickling import _modules_of, dump
from fourfold.records import Chunk, ChunkResult
from fourfold.system import imports, machine
from fourfold.system.imports import Load
from fourfold.system.machine import THREAD_VARIABLES


def modules_of(obj):
    found = set()
    dump(obj, found)
    return found


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_pool():
    """Nothing was imported for anybody yet."""
    pool = the_pool()
    if pool is not None:
        pool.close()
    yield
    the_pool().close()  # what was imported for these tests is for nobody else


# ---- what a program speaks of ---------------------------------------------------------------------------------------------


def test_a_function_speaks_of_the_modules_that_it_uses():
    def uses(x):
        return np.sqrt(x)

    def imports_itself(x):
        import pandas

        return pandas.NA

    assert "numpy" in modules_of(uses)
    assert "pandas" in modules_of(imports_itself)
    assert "pandas" not in modules_of(uses)


def test_a_model_speaks_of_the_modules_of_its_classes():
    model = Ridge().fit(np.eye(3), np.arange(3))
    assert "sklearn.linear_model._ridge" in modules_of((abs, (model,)))


def test_steps_of_a_dataset_speak_of_what_their_kind_of_table_needs(tmp_path):
    rows = ff.scan([{"x": 1}])
    assert "pandas" in modules_of(rows.map_batches(abs)._plan)
    assert "pandas" not in modules_of(rows.map_batches(abs, batch_format="arrow")._plan)
    assert set(IMPORTS_OF) == {"pandas", "polars", "arrow", "numpy", "pylist"}


def test_a_file_with_a_model_speaks_of_the_modules_of_its_classes(tmp_path):
    import joblib

    path = str(tmp_path / "model.joblib")
    joblib.dump(Ridge().fit(pd.DataFrame({"x": [1.0, 2.0]}), [1, 2]), path)
    assert "sklearn.linear_model._ridge" in modules_of(ff.scan([{"x": 1.0}]).predict(path)._plan)


def test_what_modules_of_the_user_import_is_found(tmp_path, monkeypatch):
    (tmp_path / "of_user.py").write_text("import pandas as pd\n\n\ndef score(x):\n    return pd.NA\n")
    monkeypatch.syspath_prepend(tmp_path)
    import of_user

    assert imports.imports_of(modules_of(of_user.score)).shared == ("pandas",)


def test_only_packages_that_are_known_to_be_safe_are_imported_for_all():
    names = {"json", "polars", "numpy", "of_nobody", "__main__"}
    assert imports.imports_of(names) == imports.Imports(frozenset(names), ("numpy",))


@pytest.mark.parametrize(("value", "is_shared"), [("1", True), ("4", False)])
def test_threads_that_the_user_wants_are_not_started_before_a_fork(monkeypatch, value, is_shared):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert bool(imports.imports_of({"numpy"}).shared) == is_shared


def test_the_cost_of_imports_grows_with_what_the_packages_have_here(monkeypatch):
    for number in range(50):
        monkeypatch.setitem(sys.modules, f"of_somebody.part_{number}", types.ModuleType("part"))
    load = imports.load_of(imports.Imports(frozenset({"numpy", "of_somebody.part_1"}), ("numpy",)))
    assert load.each_s == pytest.approx(50 * imports.MODULE_S)
    assert load.once_s == imports.MODULE_S * sum(name.partition(".")[0] == "numpy" for name in sys.modules)
    assert load.packages == ("numpy", "of_somebody")
    assert imports.load_of(imports.Imports(frozenset({"json", "__main__"}))) == Load()


def test_what_comes_along_with_a_library_and_modules_of_our_own_cost_their_import_too(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    of_sklearn, of_tables = (imports.Imports(shared=(name,)) for name in ("sklearn", "fourfold.data.plan"))
    before, ours = imports.load_of(of_sklearn).once_s, imports.load_of(of_tables).once_s
    for number in range(50):
        monkeypatch.setitem(sys.modules, f"rich.part_{number}", types.ModuleType("part"))
    assert imports.load_of(of_sklearn).once_s == pytest.approx(before + 50 * imports.MODULE_S)
    assert ours == pytest.approx(imports.MODULE_S * sum(name.startswith(imports.OURS) for name in sys.modules))
    assert ours > 0


# ---- imported once ----------------------------------------------------------------------------------------------------------


LIBRARY = """
    import os
    with open({notes!r}, "a") as file:
        file.write(str(os.getpid()) + chr(10))
    {more}
    def fn(x):
        return x + 1
"""


@pytest.fixture
def library(tmp_path, monkeypatch, notebook):
    """Makes a library that notes which processes import it, and that is known to be safe."""

    def make(name, more="", folder="site-packages"):
        text = textwrap.dedent(LIBRARY).format(notes=notebook.path, more=more)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path / folder)
        monkeypatch.setattr(imports, "FORK_SAFE", imports.FORK_SAFE | {name})
        return __import__(name)

    return make


notebook = ways.notebook


def test_what_all_workers_need_is_imported_once_for_all_of_them(no_pool, library, notebook):
    fn = library("imported_once").fn
    assert ff.map(fn, range(20), engine="processes", workers=2, chunk=1) == list(range(1, 21))
    here, *others = notebook.lines()
    assert (here, others) == (str(os.getpid()), [str(the_pool()._template.pid)])


def test_a_file_of_the_user_with_the_name_of_a_safe_library_is_imported_by_each_worker(no_pool, library, notebook):
    fn = library("named_like_one", folder="project").fn
    assert imports.imports_of({"named_like_one"}).shared == ()
    assert ff.map(fn, range(20), engine="processes", workers=2, chunk=1) == list(range(1, 21))
    assert str(the_pool()._template.pid) not in notebook.lines()


class Proxy:
    """As lazy settings are: to look at what it says of itself makes it, and that may fail."""

    __module__ = None

    @property
    def __class__(self):
        raise RuntimeError("not configured")


def test_what_the_user_imported_is_looked_at_without_being_asked(monkeypatch):
    module = types.ModuleType("of_the_user")
    module.__file__, module.settings, module.loads = "/home/me/of_the_user.py", Proxy(), json.loads
    monkeypatch.setitem(sys.modules, "of_the_user", module)
    monkeypatch.setitem(sys.modules, "has_nothing", Proxy())
    assert imports._reached({"of_the_user", "has_nothing"}) == {"of_the_user", "has_nothing", "json"}


def test_a_class_from_no_module_has_no_imports():
    assert {*_modules_of(Nowhere), *_modules_of(Nowhere())} == {""}


def test_a_process_that_still_imports_for_nobody_is_ended_at_once(no_pool, library):
    library("takes_long", "if os.environ.get('FOURFOLD_ROLE'): __import__('time').sleep(60)")
    pool = the_pool()
    (worker,) = pool.lend(1, ("takes_long",))
    pool.dismiss(worker)
    began = time.monotonic()
    (worker,) = pool.lend(1, ("json",))
    assert is_in_time(time.monotonic() - began, FAREWELL_S / 2)
    pool.dismiss(worker)


class Nowhere:
    pass


Nowhere.__module__ = None


def test_a_library_that_starts_a_thread_is_imported_by_each_worker(no_pool, library, notebook):
    more = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    before = {*threading.enumerate()}
    fn = library("starts_a_thread", f"if os.environ.get('FOURFOLD_ROLE'): {more}").fn
    assert {*threading.enumerate()} == before
    assert ff.map(fn, range(20), engine="processes", workers=2, chunk=1) == list(range(1, 21))
    template = str(the_pool()._template.pid)
    here, tried, *workers = notebook.lines()
    assert (here, tried) == (str(os.getpid()), template)
    assert workers
    assert template not in workers


def test_a_library_that_cannot_be_imported_for_all_is_the_error_of_the_worker(no_pool, library, monkeypatch):
    fn = library("imported_here_only", f"if os.getpid() != {os.getpid()}: raise ImportError('no licence')").fn
    with pytest.raises(ImportError, match="no licence"):
        ff.map(fn, range(4), engine="processes", workers=2)


def load_on(fn, workers=2):
    """What it takes so many workers of the pool to import what a function speaks of."""
    return imports.load_of(the_pool().left_of(imports.imports_of(modules_of(fn)), workers))


def test_what_was_imported_for_all_costs_nothing_the_next_time(no_pool, library):
    fn = library("imported_before").fn
    assert load_on(fn) == Load(imports.MODULE_S, 0.0, ("imported_before",))
    ff.map(fn, range(4), engine="processes", workers=2)
    assert load_on(fn) == Load()
    assert load_on(fn, workers=3) == Load()  # the third is forked from the same template


def test_what_could_not_be_imported_for_all_is_priced_for_each_worker_and_not_tried_again(no_pool, library, notebook):
    more = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    fn = library("starts_one_too", f"if os.environ.get('FOURFOLD_ROLE'): {more}").fn
    ff.map(fn, range(20), engine="processes", workers=2, chunk=1)
    pool = the_pool()
    assert load_on(fn, workers=3) == Load(0.0, imports.MODULE_S, ("starts_one_too",))
    pool.close()
    assert load_on(fn) == Load(0.0, imports.MODULE_S, ("starts_one_too",))
    ff.map(fn, range(20), engine="processes", workers=2, chunk=1)
    assert str(pool._template.pid) not in notebook.lines()


def test_workers_that_are_missing_are_priced_with_what_they_will_import(no_pool, library):
    ff.map(abs, range(4), engine="processes", workers=1)
    fn = library("imported_by_one").fn
    ff.map(fn, range(4), engine="processes", workers=1)
    assert load_on(fn, workers=1) == Load()
    assert load_on(fn, workers=2) == Load(0.0, imports.MODULE_S, ("imported_by_one",))


def test_workers_that_are_there_stay_for_work_that_imports_something_else(no_pool, library, notebook):
    def meet(item):  # both of them are there
        notebook.write(os.getpid())
        until(lambda: len({*notebook.lines()}) == 2, "two workers have begun")
        return os.getpid()

    before = {*ff.map(meet, range(2), engine="processes", workers=2, chunk=1)}
    fn = library("imported_later").fn
    assert ff.map(fn, range(20), engine="processes", workers=2, chunk=1) == list(range(1, 21))
    importers = {int(pid) for pid in notebook.lines()} - before - {os.getpid()}
    assert importers == set()


def test_workers_draw_different_numbers_also_when_numpy_was_imported_before_the_fork(no_pool, notebook):
    def draw(item):
        notebook.write(os.getpid())
        until(lambda: len({*notebook.lines()}) == 2, "two workers have begun")
        return "numpy.random" in sys.modules, np.random.random()

    both = ff.map(draw, range(10), engine="processes", workers=2, chunk=1)
    assert len({number for _, number in both}) == 10
    assert "numpy" in the_pool()._imported


def test_the_libraries_of_workers_have_the_threads_that_they_may_use(no_pool):
    def threads(item):
        import threadpoolctl

        np.ones((2, 2)) @ np.ones((2, 2))
        return os.environ["OMP_NUM_THREADS"], {each["num_threads"] for each in threadpoolctl.threadpool_info()}

    (answer,) = ff.map(threads, [1], engine="processes", workers=1, threads_per_worker=2)
    assert answer == ("2", {2})
    assert "numpy" in the_pool()._imported


@pytest.mark.parametrize(("variable", "said"), [("MKL_NUM_THREADS", ("3", {3})), ("OPENBLAS_NUM_THREADS", ("3", {1}))])
def test_a_variable_that_speaks_of_one_library_says_nothing_of_the_others(no_pool, monkeypatch, variable, said):
    def threads(item):
        import threadpoolctl

        np.ones((2, 2)) @ np.ones((2, 2))
        of_numpy = {each["num_threads"] for each in threadpoolctl.threadpool_info() if each["internal_api"] == "openblas"}
        return os.environ["OMP_NUM_THREADS"], of_numpy, os.environ[variable]

    monkeypatch.setattr(machine, "cores", lambda: machine.Cores(3, "three, for a test"))
    monkeypatch.setenv(variable, "1")
    assert ff.map(threads, [1], engine="processes", workers=1) == [(*said, "1")]
    assert "numpy" in the_pool()._imported
    (answer,) = ff.map(threads, [1], engine="processes", workers=1, threads_per_worker=2)
    assert answer == ("2", {2}, "2")
    assert ff.map(threads, [1], engine="processes", workers=1) == [(*said, "1")]


def test_a_script_ends_at_once_while_something_is_imported_for_nobody_any_more(tmp_path):
    (tmp_path / "takes_ages.py").write_text(
        "import os, time\nif os.environ.get('FOURFOLD_ROLE'): time.sleep(1000)\ndef fn(x):\n    return x\n"
    )
    ended = run_script(
        """
        import time
        import fourfold as ff, takes_ages
        from fourfold.system import imports
        from fourfold.distribute.engines.on_processes.pool import POOL

        imports.FORK_SAFE |= {"takes_ages"}
        POOL.lend(1, ("takes_ages",))
        began = time.monotonic()
        POOL.close()
        print(time.monotonic() - began < 0.5)
        """,
        folder=tmp_path,
    )
    assert (ended.code, ended.stdout, ended.survivors) == (0, "True\n", []), ended.stderr


# ---- loaded before the move -------------------------------------------------------------------------------------------------


class LoadsWhenToldTo:
    """In a worker it is built when a file says so; and it names the process that it runs in."""

    def __init__(self, driver, told):
        if os.getpid() != driver:
            until(lambda: os.path.exists(told), "the driver has come to its last item")
        self.told = told

    def __call__(self, item):
        if item == 299:
            open(self.told, "w").close()
        return os.getpid()


def test_the_loop_goes_on_until_a_worker_has_loaded_the_function(tmp_path, monkeypatch):
    as_it_is = Lane.is_loaded
    moving = ways.options_of("auto that moves", monkeypatch)
    monkeypatch.setattr(Lane, "is_loaded", as_it_is)
    told = str(tmp_path / "told")
    results = ff.map(LoadsWhenToldTo, range(300), init=(os.getpid(), told), **moving)
    assert {*results} == {os.getpid()}
    assert results.report.engine == "serial"


@pytest.fixture
def items_until_it_stays_the_loop(monkeypatch):
    """Options of a call that moves when a worker has loaded the function, and items until it is known that none will."""
    as_it_is, failed = Lane.is_loaded, chooser.Chooser.failed
    moving = ways.options_of("auto that moves", monkeypatch)
    told = threading.Event()

    def note(self, error):
        failed(self, error)
        told.set()

    def items():
        deadline = time.monotonic() + 60
        while not told.wait(0.001):
            assert time.monotonic() < deadline, "nobody has told that workers cannot load the function"
            yield 1

    monkeypatch.setattr(Lane, "is_loaded", as_it_is)
    monkeypatch.setattr(chooser.Chooser, "failed", note)
    return items(), moving


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        (lambda: os._exit(9), r"worker \d+ \(pid \d+\) exited with code 9 \(.*\) while it loaded the function"),
        (
            lambda: os.stat("/no licence"),
            r"worker \d+ \(pid \d+\) could not load the function: .* raised FileNotFoundError: .*'/no licence'",
        ),
    ],
    ids=["dies", "raises"],
)
def test_what_workers_cannot_load_stays_the_loop_and_the_verdict_says_why(ends, why, items_until_it_stays_the_loop):
    class Fn:
        def __init__(self, driver):
            if os.getpid() != driver:
                ends()

        def __call__(self, item):
            return os.getpid()

    Fn.__module__ = "__main__"  # it travels by value: to import this module takes a worker seconds
    ends.__module__ = "__main__"
    items, moving = items_until_it_stays_the_loop
    results = ff.map(Fn, items, init=(os.getpid(),), chunk=1, **moving)
    assert {*results} == {os.getpid()}
    assert re.match(rf"stayed the loop: \d+ items .*; workers cannot start: {why}", results.report.verdict)
    assert results.report.n_workers_lost == 0


# ---- priced -----------------------------------------------------------------------------------------------------------------


TWO, NEW = Crew(2, 2, is_there=False), Load()


def prices_of(left, load=NEW, crew=TWO):
    return price(Work(left, 0.05, 1.0, FREE), crew, load)


def test_what_workers_import_and_load_counts_as_their_start():
    plain = prices_of(100)
    assert plain.workers_pay
    once, each = prices_of(100, Load(once_s=1.0)), prices_of(100, Load(each_s=1.0))
    assert once.workers_s == pytest.approx(plain.workers_s + 0.5)  # meanwhile the caller goes on
    assert each.workers_s == pytest.approx(plain.workers_s + 1.0)
    assert (once.start_s, each.start_s) == (COLD_START_S, COLD_START_S + 1.0)
    assert not prices_of(30, Load(once_s=1.5)).workers_pay
    assert prices_of(30).workers_pay


def test_what_the_caller_does_itself_while_workers_import_needs_no_margin():
    """Three seconds of predictions, and imports of 1.4: a fifth is saved, of what workers take over a third."""
    prices = prices_of(60, Load(once_s=1.4))
    assert prices.loop_s == 3.0
    assert prices.handed_s == pytest.approx(1.6)
    assert MARGIN * prices.handed_s < prices.loop_s - prices.workers_s < MARGIN * prices.loop_s
    assert prices.workers_pay
    assert not prices_of(60, Load(each_s=0.7)).workers_pay  # which costs as much, and nobody goes on meanwhile
    assert not prices_of(28, Load(once_s=1.4)).workers_pay  # the caller comes to the end first


def test_workers_beyond_the_cores_load_one_after_the_other():
    few, many = (prices_of(1000, Load(each_s=1.0), Crew(workers, 2, is_there=False)) for workers in (2, 8))
    assert (few.start_s, many.start_s) == (COLD_START_S + 1.0, COLD_START_S + 4.0)


def chooser_of(load, total=40):
    light = types.SimpleNamespace(pickle_s=0.0, buffer_bytes=0, stream_bytes=0, complete=True)
    choose = chooser.Chooser(total, lambda: 2, lambda: 2, lambda: 0, lambda obj, limit: light, lambda: load, lambda: "workers")
    choose.begin()
    choose._began_wall -= 1.0
    choose._began_cpu -= 1.0
    return choose


def test_short_work_stays_the_loop_where_workers_import_for_longer_and_the_verdict_says_so():
    chunk, result = Chunk(0, [0]), ChunkResult(1, [0], [], 0.05)
    assert chooser_of(Load())(chunk, result) == "workers"
    choose = chooser_of(Load(1.6, 0.0, ("pandas", "sklearn")))
    assert choose(chunk, result) is None
    assert " with 2 workers, which have to import pandas, sklearn first: 1.6 s" in choose.why


def test_a_gain_that_is_too_small_for_a_start_is_told_as_one():
    choose = chooser_of(Load(each_s=0.6))
    assert choose(Chunk(0, [0]), ChunkResult(1, [0], [], 0.05)) is None
    found = re.search(r"left (\S+) s in the loop but about (\S+) s with .*; the (\S+) ms saved are less", choose.why)
    assert found, choose.why
    loop_s, workers_s, saved_ms = map(float, found.groups())
    assert 0 < saved_ms == pytest.approx(1000 * (loop_s - workers_s), abs=15)
    assert choose.why.endswith(" are less than the 750 ms that their start takes from items")
    choose = chooser_of(Load(each_s=4.0))
    assert choose(Chunk(0, [0]), ChunkResult(1, [0], [], 0.05)) is None
    assert "saved" not in choose.why


def test_a_chunk_that_has_imported_libraries_does_not_tell_how_long_items_take(monkeypatch):
    choose = chooser_of(Load())
    chunk = Chunk(0, [0])
    for number in range(400):
        monkeypatch.setitem(sys.modules, f"of_somebody.part_{number}", types.ModuleType("part"))
    assert choose(chunk, ChunkResult(1, [0], [], 0.5)) is None
    assert choose(Chunk(1, [0]), ChunkResult(1, [0], [], 0.001)) is None
    assert choose(Chunk(2, [0]), ChunkResult(1, [0], [], 0.1)) == "workers"


def test_what_the_loop_has_built_is_priced_for_workers_too(monkeypatch):
    monkeypatch.setattr(verdict, "COLD_START_S", 0.0)
    monkeypatch.setattr(verdict, "WARM_START_S", 0.0)

    class Slow:
        def __init__(self):
            time.sleep(0.2)

        def __call__(self, item):
            return json.dumps(sum(range(20_000)))

    report = ff.map(Slow, range(200), init=(), workers=2).report
    assert report.engine == "serial", report.verdict


def test_what_the_loop_waited_for_a_core_while_it_built_is_no_time_of_building(monkeypatch):
    waited = [0.0]
    monkeypatch.setattr(on_this_thread, "waited_for_a_core_s", lambda: waited[0])

    class Program:
        def prepare(self):
            waited[0] += 60.0  # others were on it all the time

    engine = on_this_thread.ThisThread(str)
    engine.put("program", Program())
    engine._prepare("program")
    assert engine.prepared_s == 0.0


# ---- a machine that others use ------------------------------------------------------------------------------------------------


def test_where_others_are_on_the_cores_it_stays_the_loop_and_the_verdict_says_so(monkeypatch):
    waited = [0.0]
    monkeypatch.setattr(chooser, "waited_for_a_core_s", lambda: waited[0])
    choose = chooser_of(Load(), total=1000)
    waited[0] = 1.5  # of 2.5 s in which it could have computed
    assert choose(Chunk(0, [0]), ChunkResult(1, [0], [], 0.05)) is None
    assert choose.why.endswith("; other programs are on the cores, 60% of the time that this one could use")


def test_this_thread_waits_for_a_core_when_others_are_on_all_of_them():
    if not os.path.exists("/proc/thread-self/schedstat"):
        pytest.skip("this system does not count that: no /proc/thread-self/schedstat")
    before, only = machine.waited_for_a_core_s(), {min(os.sched_getaffinity(0))}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    mine = os.sched_getaffinity(0)
    try:
        for pid in (0, *(other.pid for other in others)):
            os.sched_setaffinity(pid, only)
        deadline = time.monotonic() + 60
        while machine.waited_for_a_core_s() - before < 0.02 and time.monotonic() < deadline:
            sum(range(10_000))
    finally:
        os.sched_setaffinity(0, mine)
        for other in others:
            other.kill()
            other.wait()
    assert machine.waited_for_a_core_s() - before >= 0.02
