"""`run=FOLDER`: the same call goes on where the last one ended, and gives what an uninterrupted one gives."""

import contextlib
import itertools
import os
import pickle
import shutil
import signal
import sys
import time
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
import ways
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import run_script

import fourfold as ff
from fourfold import engines
from fourfold.errors import (
    EngineError,
    Indeterminate,
    JournalError,
    OptionError,
    OptionTypeError,
    RunChanged,
    RunInUse,
    TooManyFailures,
    UnsupportedOption,
)
from fourfold.runs.story import failures_of, story_of
from fourfold.runs.upkeep import change
from fourfold.system import seams

way = ways.way


class Count:
    """Counts what runs, in whatever process."""

    def __init__(self, folder):
        self.book = ways.Notebook(folder / "ran.txt")

    def __call__(self, item):
        self.book.write(item)
        return item * item

    def ran(self):
        path = Path(self.book.path)
        items = [int(line) for line in path.read_text().split()] if path.exists() else []
        path.unlink(missing_ok=True)
        return items


class FailsAt(Count):
    """Counts, and raises for one item until a file is there."""

    def __init__(self, folder, item):
        super().__init__(folder)
        self.item, self.mended = item, folder / "mended"

    def __call__(self, item):
        if item == self.item and not self.mended.exists():
            raise ValueError(f"no {item}")
        return super().__call__(item)


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


# ---- a run with nothing left


@pytest.fixture
def no_cluster(monkeypatch):
    """Whoever connects to a cluster, or looks for one, gets an error."""

    def open(self):
        raise EngineError(f"{self.info.name} was started")

    monkeypatch.setattr("fourfold.options.check_installed", lambda *given: None)
    monkeypatch.setattr("fourfold.lanes._clusters", {})
    for engine in (engines.Spark, engines.Ray, engines.Dask):
        monkeypatch.setattr(engine, "open", open)


NAMES = pytest.mark.parametrize("engine", ["spark", "ray", "dask", "tcp://nowhere:1", engines.Dask("tcp://nowhere:1")])


@NAMES
def test_a_finished_run_starts_no_cluster(engine, tmp_path, run, no_cluster):
    fn = Count(tmp_path)
    for items in (range(20), [*range(20)]):
        expected = ff.map(fn, items, run=run, engine="serial")
    fn.ran()
    again = ff.map(fn, range(20), run=run, engine=engine)
    assert (again, fn.ran()) == (expected, [])
    assert again.report.verdict == "all 20 items were recorded before: nothing was left to do"
    assert ff.reduce(max, range(20), fn, run=f"{run}-max", engine="serial") == 361
    assert ff.reduce(max, range(20), fn, run=f"{run}-max", engine=engine) == 361
    assert ff.map(fn, range(20), run=run, engine=engine, cost=abs) == expected
    assert story_of(Path(run)).state == "done"


@NAMES
def test_a_run_with_something_left_starts_its_cluster(engine, tmp_path, run, no_cluster):
    fn = FailsAt(tmp_path, 7)
    ff.map(fn, range(20), run=run, engine="serial", on_error="collect")
    with pytest.raises(EngineError, match="was started"):
        ff.map(fn, range(20), run=run, engine=engine)
    with pytest.raises(EngineError, match="was started"):
        ff.map(fn, range(21), run=run, engine=engine, on_error="collect")
    assert ff.map(fn, range(20), run=run, engine=engine, on_error="collect").failures[0].index == 7
    fn.mended.touch()
    assert ff.map(fn, range(21), run=run, engine="serial") == [each * each for each in range(21)]


def test_an_item_that_is_left_of_a_shorter_list_starts_its_cluster_too(tmp_path, run, no_cluster):
    fn = FailsAt(tmp_path, 0)
    ff.map(fn, range(4), run=run, engine="serial", on_error="collect")
    assert change(Path(run), forget_failures=True) == 1
    fn.ran()
    for _ in range(2):
        with pytest.raises(EngineError, match="was started"):
            ff.map(fn, range(3), run=run, engine="dask", on_error="collect")
    assert fn.ran() == []


def one_by_one(items):
    """Nobody knows how many they are."""
    return (item for item in items)


def open_file(items):
    """What has neither a length nor a generator's `close`."""
    return map(int, map(str, items))


@NAMES
@pytest.mark.parametrize("lazily", [one_by_one, open_file])
def test_a_finished_run_of_items_that_come_one_by_one_starts_no_cluster_either(engine, lazily, tmp_path, run, no_cluster):
    fn = FailsAt(tmp_path, 7)
    expected = ff.map(fn, range(20), run=run, engine="serial", on_error="collect")
    fn.ran()
    again = ff.map(fn, lazily(range(20)), run=run, engine=engine, on_error="collect")
    assert (again[:7], again[8:], fn.ran()) == (expected[:7], expected[8:], [])
    assert again.failures[0].index == 7
    assert again.report.verdict == "all 20 items were recorded before: nothing was left to do"
    with pytest.raises(EngineError, match="was started"):
        ff.map(fn, lazily(range(21)), run=run, engine=engine, on_error="collect")
    with pytest.raises(EngineError, match="was started"):  # item 7 runs again
        ff.map(fn, lazily(range(20)), run=run, engine=engine)
    assert ff.reduce(max, range(5), fn, run=f"{run}-max", engine="serial") == 16
    assert ff.reduce(max, lazily(range(5)), fn, run=f"{run}-max", engine=engine) == 16


def test_items_that_come_one_by_one_are_looked_at_up_to_the_first_that_is_left(tmp_path, run, no_cluster):
    fn, taken = Count(tmp_path), []
    ff.map(fn, range(4), run=run, engine="serial")
    with pytest.raises(EngineError, match="was started"):
        ff.map(fn, (taken.append(item) or item for item in range(20)), run=run, engine="dask")
    assert taken == [*range(5)]


def test_an_item_that_was_looked_at_runs_in_its_turn(tmp_path, run):
    fn = Count(tmp_path)
    ff.map(fn, range(4), run=run, engine="serial")
    fn.ran()
    stream = ff.imap(fn, one_by_one(range(50)), run=run, engine="threads", workers=2)
    assert [*stream] == [each * each for each in range(50)]
    assert sorted(fn.ran()) == [*range(4, 50)]
    assert ff.map(fn, range(50), run=run, engine="serial").report.n_recorded == 50


def test_items_that_raise_while_they_are_looked_at_raise_in_their_turn(tmp_path, run):
    def items():
        yield from range(4)
        raise OSError("the disk is gone")

    fn, seen = Count(tmp_path), []
    ff.map(fn, range(4), run=run, engine="serial")
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(ff.imap(fn, items(), run=run, engine="threads", workers=2))
    assert story_of(Path(run)).state == "failed"
    with pytest.raises(RunChanged, match="item 3 is not the item"):
        ff.map(fn, one_by_one([0, 1, 2, 5]), run=run, engine="threads", workers=2)


@NAMES
def test_a_finished_run_of_other_items_is_refused_before_a_cluster_is_looked_for(engine, tmp_path, run, no_cluster):
    fn = Count(tmp_path)
    ff.map(fn, range(20), run=run, engine="serial")
    with pytest.raises(RunChanged, match="item 0 is not the item"):
        ff.map(fn, range(1, 21), run=run, engine=engine)
    with pytest.raises(RunChanged):
        ff.map(len, range(30), run=run, engine=engine)


def test_options_of_a_finished_run_are_those_that_its_cluster_can_keep(tmp_path, run, no_cluster):
    ff.map(Count(tmp_path), range(20), run=run, engine="serial")
    assert ff.map(Count(tmp_path), range(20), run=run, engine="spark", timeout=5.0) == [each * each for each in range(20)]
    with pytest.raises(UnsupportedOption, match="cannot honour idempotent=False"):
        ff.map(Count(tmp_path), range(20), run=run, engine="dask", idempotent=False)


# ---- the same call does the rest


def test_a_run_that_failed_goes_on_and_gives_what_the_loop_gives(tmp_path, run, way):
    fn = FailsAt(tmp_path, 617)
    with pytest.raises(ValueError, match="no 617"):
        ff.map(fn, range(1000), run=run, **way)
    before = fn.ran()
    fn.mended.touch()
    results = ff.map(fn, range(1000), run=run, **way)
    assert results == [item * item for item in range(1000)]
    assert not set(before) & set(fn.ran()), "a recorded item ran again"
    assert results.report.n_items == 1000
    assert results.report.n_recorded >= 617


def test_a_run_that_is_done_runs_nothing(tmp_path, run, way):
    fn = Count(tmp_path)
    first = ff.map(fn, range(50), run=run, **way)
    assert sorted(fn.ran()) == list(range(50))
    second = ff.map(fn, range(50), run=run, **way)
    assert (second, fn.ran()) == (first, [])
    assert "recorded before" in second.report.verdict


def test_any_engine_goes_on_with_what_another_one_began(tmp_path, run):
    fn = FailsAt(tmp_path, 60)
    for engine in ("serial", "threads", "processes"):
        with pytest.raises(ValueError, match="no 60"):
            ff.map(fn, range(100), run=run, engine=engine, workers=2, seed=3)
    fn.mended.touch()
    assert ff.map(fn, range(100), run=run, seed=3) == [item * item for item in range(100)]


def test_random_numbers_are_those_of_an_uninterrupted_run(tmp_path, run, way):
    def draw(item):
        if item == 30 and not mended.exists():
            raise ValueError("not yet")
        return ff.rng().random()

    mended = tmp_path / "mended"
    with pytest.raises(ValueError, match="not yet"):
        ff.map(draw, range(40), run=run, seed=5, chunk=3, **way)
    mended.touch()
    assert ff.map(draw, range(40), run=run, seed=5, chunk=7, **way) == ff.map(draw, range(40), seed=5, engine="serial")


def test_a_reduction_goes_on_to_the_same_bits(tmp_path, run, way):
    values = np.random.default_rng(0).normal(size=500) * 10.0 ** np.random.default_rng(1).integers(-8, 8, 500)
    fn = FailsAt(tmp_path, float(values[300]))
    fn.book = ways.Notebook(tmp_path / "ran.txt")
    whole = ff.reduce(plus, values.tolist(), fn=float.__pos__, engine="serial")
    fails = Switch(float(values[300]), tmp_path / "mended")
    with pytest.raises(ValueError, match="not yet"):
        ff.reduce(plus, values.tolist(), fn=fails, run=run, chunk=7, **way)
    (tmp_path / "mended").touch()
    assert ff.reduce(plus, values.tolist(), fn=fails, run=run, chunk=11, **way) == whole
    assert ff.reduce(plus, values.tolist(), fn=fails, run=run, **way) == whole


def plus(a, b):
    return a + b


class Switch:
    def __init__(self, item, mended):
        self.item, self.mended = item, mended

    def __call__(self, item):
        if item == self.item and not self.mended.exists():
            raise ValueError("not yet")
        return item


def test_a_reduction_that_left_items_out_leaves_out_the_same_ones(tmp_path, run, way):
    fn = FailsAt(tmp_path, 13)
    first = ff.reduce(plus, range(40), fn=fn, run=run, on_error="skip", **way)
    assert first == sum(item * item for item in range(40) if item != 13)
    fn.ran()
    assert ff.reduce(plus, range(40), fn=fn, run=run, on_error="skip", **way) == first
    assert fn.ran() == []


def test_the_costly_ones_go_first_in_the_rest_too(tmp_path, run, way):
    fn = FailsAt(tmp_path, 5)
    with pytest.raises(ValueError, match="no 5"):
        ff.map(fn, range(30), run=run, cost=float, chunk=1, **way)
    before = fn.ran()
    fn.mended.touch()
    assert ff.map(fn, range(30), run=run, cost=float, chunk=1, **way) == [item * item for item in range(30)]
    after = fn.ran()
    assert sorted(before + after) == list(range(30))


def test_items_come_from_a_generator_that_is_read_again(tmp_path, run, way):
    fn = FailsAt(tmp_path, 40)
    with pytest.raises(ValueError, match="no 40"):
        ff.map(fn, (item for item in range(80)), run=run, **way)
    fn.mended.touch()
    assert ff.map(fn, (item for item in range(80)), run=run, **way) == [item * item for item in range(80)]


def test_new_items_at_the_end_are_the_only_ones_that_run(tmp_path, run, way):
    fn = Count(tmp_path)
    ff.map(fn, range(20), run=run, **way)
    fn.ran()
    assert ff.map(fn, range(25), run=run, **way) == [item * item for item in range(25)]
    assert sorted(fn.ran()) == [20, 21, 22, 23, 24]


def test_arrays_come_back_equal_and_writable(run):
    def arrays(item):
        return np.full((300, 1000), item, dtype=float), np.arange(item)

    first = ff.map(arrays, range(3), run=run, engine="processes", workers=2)
    again = ff.map(arrays, range(3), run=run)
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) and b.flags.writeable for a, b in zip(one, two, strict=True))


def test_two_calls_of_a_block_have_a_folder_each(tmp_path):
    fn = Count(tmp_path)
    for _ in range(2):
        with ff.using(run=tmp_path / "both"):
            assert ff.map(fn, [1, 2]) == [1, 4]
            assert ff.map(fn, [3]) == [9]
    assert sorted(fn.ran()) == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["1", "2"]


def test_calls_inside_items_are_not_recorded_with_the_block(tmp_path):
    def outer(item):
        return sum(ff.map(abs, [item, -item]))

    with ff.using(run=tmp_path / "runs", engine="serial"):
        assert ff.map(outer, [1, 2]) == [2, 4]
        assert ff.map(abs, [-1]) == [1]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["1", "2"]


# ---- streams


def test_a_stream_that_was_left_goes_on(tmp_path, run, way):
    fn = Count(tmp_path)
    with_few = ff.imap(fn, itertools.count(), run=run, chunk=5, **way)
    assert list(itertools.islice(with_few, 20)) == [item * item for item in range(20)]
    with_few.close()
    recorded = set(fn.ran())
    stream = ff.imap(fn, itertools.count(), run=run, chunk=5, **way)
    assert list(itertools.islice(stream, 60)) == [item * item for item in range(60)]
    stream.close()
    assert not set(range(20)) & set(fn.ran())
    assert recorded >= set(range(20))


def test_an_unordered_stream_gives_recorded_values_too(tmp_path, run, way):
    fn = FailsAt(tmp_path, 30)
    assert len(list(ff.imap(fn, range(40), ordered=False, run=run, on_error="skip", **way))) == 39
    fn.ran()
    again = ff.imap(fn, range(45), ordered=False, run=run, on_error="skip", **way)
    assert sorted(again) == [item * item for item in range(45) if item != 30]
    assert sorted(fn.ran()) == [40, 41, 42, 43, 44]
    assert [failure.index for failure in again.failures] == [30]


def test_a_stream_that_nobody_reads_lets_go_of_its_folder(run):
    stream = ff.imap(abs, [1], run=run)
    with pytest.raises(RunInUse):
        ff.map(abs, [1], run=run)
    del stream
    assert ff.map(abs, [1], run=run) == [1]


# ---- failures


def test_recorded_failures_stand_where_they_stood(tmp_path, run, way):
    fn = FailsAt(tmp_path, 7)
    first = ff.map(fn, range(20), run=run, on_error="collect", **way)
    fn.mended.touch()
    again = ff.map(fn, range(20), run=run, on_error="collect", **way)
    assert again[7].index == first[7].index == 7
    assert (again[7].error_type, again[7].message, again[7].item) == ("ValueError", "no 7", "7")
    assert type(again[7].error) is ValueError
    assert again.failures == [again[7]]
    assert again.report.n_failures == 1
    assert ff.map(fn, range(20), run=run, on_error="skip", **way) == [item * item for item in range(20) if item != 7]


def test_under_raise_a_recorded_failure_runs_again(tmp_path, run, way):
    fn = FailsAt(tmp_path, 7)
    ff.map(fn, range(20), run=run, on_error="skip", **way)
    fn.mended.touch()
    fn.ran()
    assert ff.map(fn, range(20), run=run, **way) == [item * item for item in range(20)]
    assert fn.ran() == [7]
    assert ff.map(fn, range(20), run=run, on_error="collect", **way).failures == []


def test_an_exception_that_cannot_be_pickled_is_recorded_by_its_words(run):
    class Local(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a}{b}")
            self.lock = open
            self.generator = (each for each in ())

    def fn(item):
        raise Local("x", item)

    ff.map(fn, [1], run=run, on_error="collect", engine="serial")
    (failure,) = ff.map(fn, [1], run=run, on_error="collect", engine="serial")
    assert failure.message == "x1"
    assert "Local" in str(failure.error)


def test_the_error_of_an_item_says_how_to_see_it_again(tmp_path, run):
    with pytest.raises(ValueError, match="no 3") as caught:
        ff.map(FailsAt(tmp_path, 3), range(5), run=run)
    assert f"fourfold replay {run} --item 3" in caught.value.__notes__[-1]


def test_values_that_cannot_be_pickled_are_given_out_and_not_recorded(run, caplog):
    for _ in range(2):
        (value,) = ff.map(lambda item: (each for each in [item]), [4], run=run, engine="serial")
        assert list(value) == [4]
        assert "cannot be pickled" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_items_that_cannot_be_pickled_are_known_by_their_place(run, engine):
    items = [(each for each in [number]) for number in range(3)]
    assert ff.map(next, items, run=run, engine=engine) == [0, 1, 2]
    assert ff.map(next, [(each for each in ()) for _ in range(3)], run=run, engine=engine) == [0, 1, 2]


# ---- another call


def changes(run, fn, items=range(5), **options):
    with pytest.raises(RunChanged) as caught:
        ff.map(fn, items, run=run, engine="serial", **options)
    return str(caught.value)


def test_another_function_is_refused_and_named(run):
    ff.map(abs, range(5), run=run, engine="serial")
    assert "abs" in changes(run, lambda item: item)


def test_an_item_that_changed_is_refused_and_named(run):
    ff.map(abs, [1, 2, 3, 4], run=run, engine="serial")
    assert "item 2 is not" in changes(run, abs, [1, 2, 4, 3])
    assert "item 0 is not" in changes(run, abs, [0, 1, 2, 3, 4])
    assert "only 2" in changes(run, abs, [1, 2])
    assert ff.map(abs, [1, 2, 3, 4], run=run) == [1, 2, 3, 4]


def test_what_changes_values_is_compared_and_what_does_not_is_not(run):
    ff.map(abs, range(5), run=run, seed=1, engine="serial")
    assert "seed was 1 and is 2" in changes(run, abs, seed=2)
    assert "seed is gone" in changes(run, abs)
    results = ff.map(abs, range(5), run=run, seed=1, engine="threads", workers=3, chunk=2, retries=1, progress=False)
    assert results.report.n_recorded == 5


def test_a_map_is_no_reduction(run):
    ff.map(abs, range(5), run=run)
    with pytest.raises(RunChanged, match="recorded by map, and this is reduce"):
        ff.reduce(plus, range(5), fn=abs, run=run)


def test_no_journal_is_made_for_a_call_that_is_refused(tmp_path, run):
    with pytest.raises(OptionTypeError):
        ff.map(abs, 5, run=run)
    with pytest.raises(OptionTypeError):
        ff.map(abs, [], run=5)
    with pytest.raises(OptionError):
        ff.map(abs, [], run="")
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="is a file"):
        ff.map(abs, [], run=tmp_path / "file")
    with pytest.raises(OptionError, match=r"other things in it, such as file"):
        ff.map(abs, [], run=tmp_path)
    assert ff.map(abs, [1], run=run) == [1]


def test_one_driver_at_a_time(run):
    stream = ff.imap(abs, range(10), run=run)
    assert next(stream) == 0
    with pytest.raises(RunInUse, match="works on the run"):
        ff.map(abs, range(10), run=run)
    stream.close()
    assert ff.map(abs, range(10), run=run) == list(range(10))


# ---- items that must not run twice


def test_an_item_with_effects_whose_end_nobody_knows_does_not_run_again(tmp_path, run):
    from fourfold.runs.journal import Journal

    fn = Count(tmp_path)
    ff.map(fn, range(5), run=run, idempotent=False, engine="processes", workers=1)
    journal = Journal(Path(run))
    journal.database.execute("delete from done where first = 3")
    journal.start([3])  # what a driver leaves that is killed while item 3 runs
    journal.close()
    fn.ran()
    options = {"run": run, "idempotent": False, "engine": "processes", "workers": 1}
    with pytest.raises(Indeterminate, match="fourfold rerun"):
        ff.map(fn, range(5), **options)
    results = ff.map(fn, range(5), on_error="collect", **options)
    assert results[3].kind == "indeterminate"
    assert results[:3] + results[4:] == [0, 1, 4, 16]
    assert fn.ran() == []


def test_an_item_with_effects_that_raised_does_not_run_again_by_itself(tmp_path, run):
    fn = FailsAt(tmp_path, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="no 2"):
            ff.map(fn, range(5), run=run, idempotent=False, engine="serial")
        fn.mended.touch()


WITH_EFFECTS = """
    import os, signal, sys, time
    import fourfold as ff

    def fn(item):
        with open("ran.txt", "a") as file:
            file.write(f"{item}\\n")
        if item == 3 and sys.argv[2] == "interrupt":
            os.kill(int(os.environ["DRIVER"]), signal.SIGINT)
            time.sleep(0.3)
        if item == 3:
            raise ValueError("of its own")
        time.sleep(0.02)
        return item

    if __name__ == "__main__":
        os.environ["DRIVER"] = str(os.getpid())
        options = {"run": "run", "idempotent": False, "engine": sys.argv[1], "workers": 2}
        try:
            ff.map(fn, range(20), **options)
        except (KeyboardInterrupt, ValueError) as error:
            print(type(error).__name__)
        results = ff.map(fn, range(20), on_error="collect", **options)
        print([(failure.index, failure.error_type) for failure in results.failures])
        print(sorted(open("ran.txt").read().split(), key=int) == [str(item) for item in range(20)])
"""


@pytest.mark.parametrize("engine", ["processes", "threads"])
@pytest.mark.parametrize(("how", "error"), [("interrupt", "KeyboardInterrupt"), ("fail", "ValueError")])
def test_of_items_with_effects_it_is_known_after_an_early_end_which_have_run(tmp_path, engine, how, error):
    """Those that were handed out and did not begin may run; one that failed meanwhile has failed, and did not vanish."""
    ended = run_script(WITH_EFFECTS, engine, how, folder=tmp_path)
    assert (ended.code, ended.stdout) == (0, f"{error}\n[(3, 'ValueError')]\nTrue\n"), ended


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_ctrl_c_while_it_is_noted_that_an_item_starts_leaves_it_to_the_next_call(run, engine, monkeypatch):
    from fourfold.runs.journal import Journal

    start = Journal.start

    def interrupted(journal, items):
        start(journal, items)
        if 5 in items:
            os.kill(os.getpid(), signal.SIGINT)

    options = {"run": run, "idempotent": False, "engine": engine, "workers": 2}
    monkeypatch.setattr(Journal, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ff.map(abs, range(20), **options)
    monkeypatch.undo()
    assert ff.map(abs, range(20), **options) == [*range(20)]


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_an_item_whose_start_cannot_be_noted_has_not_run_and_may(run, engine):
    options = {"run": run, "idempotent": False, "engine": engine, "workers": 1}
    seams.set_faults("journal.commit:4:ENOSPC")
    try:
        with pytest.raises(JournalError, match="cannot be written"):
            ff.map(abs, range(20), **options)
    finally:
        seams.set_faults("")
    assert ff.map(abs, range(20), **options) == [*range(20)]


# ---- the record


def test_nothing_is_unpickled_to_tell_the_story(tmp_path, run):
    fn = FailsAt(tmp_path, 2)
    ff.map(fn, range(5), run=run, on_error="collect", engine="serial")
    loads, pickle.loads = pickle.loads, None
    try:
        story, failures = story_of(Path(run)), failures_of(Path(run))
    finally:
        pickle.loads = loads
    assert (story.state, story.n_done, story.n_failed, story.total) == ("done", 4, 1, 5)
    assert failures[0].place.startswith("test_runs.py:")


def test_a_recorded_call_costs_no_file_and_no_process_when_it_is_over(run):
    for _ in range(3):
        ff.map(abs, range(10), run=run)
    assert sorted(path.name for path in Path(run).iterdir()) == [
        "journal.sqlite",
        "lock",
        "program.pickle",
        "values-0001.part",
    ]


def test_a_recorded_stream_holds_no_values_that_nobody_asked_for(run):
    ff.map(bytes, [1 << 20] * 40, run=run, engine="serial", chunk=1)

    tracemalloc.start()
    stream = ff.imap(bytes, [1 << 20] * 40, run=run, engine="serial")
    for value in stream:
        assert len(value) == 1 << 20
        del value
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 << 20, f"{peak >> 20} MiB"
    assert sys.getrefcount(stream) <= 3


# ---- what a second pair of eyes found


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_items=st.integers(0, 60),
    chunk=st.sampled_from([None, 1, 3, 20]),
    by_cost=st.booleans(),
    stops=st.lists(st.integers(0, 60), max_size=3),
    kind=st.sampled_from(["map", "imap", "reduce"]),
)
def test_any_sessions_give_what_one_gives(tmp_path_factory, n_items, chunk, by_cost, stops, kind):
    """A law: however often a run is stopped, and wherever, its answer is that of the plain loop."""
    folder = tmp_path_factory.mktemp("law")
    options = {"run": folder / "run", "engine": "serial", "cost": _cost if by_cost else None, "chunk": chunk or "auto"}
    fn = Stops(folder / "stop")
    for stop in stops:
        (folder / "stop").write_text(str(stop))
        with contextlib.suppress(ValueError):
            ff.map(fn, range(n_items), **options) if kind != "reduce" else ff.reduce(join, range(n_items), fn=fn, **options)
    (folder / "stop").unlink(missing_ok=True)
    for _ in range(2):
        if kind == "map":
            assert ff.map(fn, range(n_items), **options) == [(item,) for item in range(n_items)]
        elif kind == "imap":
            assert list(ff.imap(fn, range(n_items), **options)) == [(item,) for item in range(n_items)]
        elif n_items:
            assert ff.reduce(join, range(n_items), fn=fn, **options) == tuple(range(n_items))


def _cost(item):
    return item * 7 % 11


def join(a, b):
    return a + b


class Stops:
    """Raises for the item that a file names."""

    def __init__(self, path):
        self.path = path

    def __call__(self, item):
        if self.path.exists() and int(self.path.read_text()) == item:
            raise ValueError("stop")
        return (item,)


def test_the_loop_records_what_ended_before_a_slow_item_of_the_same_chunk(tmp_path, run):
    copy = tmp_path / "copy"

    def fn(item):
        if item == 3000:
            shutil.copytree(run, copy)  # what would be there if the driver died now
        return item

    def items():
        for item in range(6000):
            if item == 2900:
                time.sleep(0.1)  # one chunk cannot hold all of them
            yield item

    ff.map(fn, items(), run=run, engine="serial")
    change(copy)
    assert story_of(copy).n_done > 0


def test_classes_of_a_script_come_back_as_its_own(tmp_path):
    text = """
        import fourfold as ff

        class Point:
            def __init__(self, x):
                self.x = x
            def __eq__(self, other):
                return type(other) is Point and other.x == self.x

        if __name__ == "__main__":
            for engine in ("processes", "serial"):
                points = ff.map(Point, [1, 2], run="run", engine=engine)
                print(points == [Point(1), Point(2)])
    """
    for _ in range(2):
        assert run_script(text, folder=tmp_path) == (0, "True\nTrue\n", "", [])


def test_an_unordered_stream_raises_what_it_must_not_run_again(tmp_path, run):
    from fourfold.runs.journal import Journal

    options = {"run": run, "idempotent": False, "engine": "serial"}
    ff.map(abs, range(5), **options)
    journal = Journal(Path(run))
    journal.database.execute("delete from done where first = 3")
    journal.start([3])
    journal.close()
    with pytest.raises(Indeterminate):
        list(ff.imap(abs, range(5), ordered=False, **options))


def test_half_a_letter_in_a_message_is_recorded(run):
    def fn(item):
        raise ValueError("caf\udce9.txt")

    for _ in range(2):
        results = ff.map(fn, range(3), run=run, on_error="collect", engine="serial")
        assert [failure.index for failure in results.failures] == [0, 1, 2]
        assert "caf" in results[0].message


@pytest.mark.parametrize("arguments", [[], ["go on"]])
def test_a_forked_child_leaves_the_run_to_its_parent(tmp_path, arguments):
    text = """
        import os, sys
        import fourfold as ff

        stream = ff.imap(abs, range(100), run="run", engine="serial", chunk=1)
        for value in stream:
            if value == 5:
                pid = os.fork()
                if not pid:
                    if sys.argv[1:]:
                        try:
                            next(stream)
                        except ff.errors.JournalError as error:
                            print("a fork" in str(error), flush=True)
                    sys.exit(0)
                os.waitpid(pid, 0)
                try:
                    ff.map(abs, range(100), run="run", engine="serial")
                except RuntimeError as error:
                    print(type(error).__name__)
        results = ff.map(abs, range(100), run="run")
        print(results.report.n_recorded, results == [*range(100)])
    """
    ended = run_script(text, *arguments, folder=tmp_path, python=("-W", "ignore"))
    assert (ended.code, ended.stdout) == (0, ("True\n" if arguments else "") + "RunInUse\n100 True\n"), ended


def test_a_stream_that_is_closed_before_its_first_value_lets_go(run):
    stream = ff.imap(abs, [1], run=run)
    stream.close()
    assert ff.map(abs, [1], run=run) == [1]


def test_recorded_items_come_before_the_error_of_the_input(run):
    def items():
        yield from range(5)
        raise KeyError("the input broke")

    for _ in range(2):
        stream = ff.imap(abs, items(), run=run, engine="serial")
        assert list(itertools.islice(stream, 5)) == [0, 1, 2, 3, 4]
        with pytest.raises(KeyError, match="the input broke"):
            next(stream)


def test_max_failures_counts_over_all_sessions(tmp_path, run):
    def fn(item):
        if item % 10 == 0:
            raise ValueError
        if item == 55 and not (tmp_path / "mended").exists():
            raise KeyboardInterrupt
        return item

    options = {"run": run, "on_error": "skip", "engine": "serial", "chunk": 1}
    with pytest.raises(KeyboardInterrupt):
        ff.map(fn, range(100), max_failures=0.1, **options)
    (tmp_path / "mended").touch()
    assert len(ff.map(fn, range(100), max_failures=0.1, **options)) == 90
    with pytest.raises(TooManyFailures, match="10 of 100 items failed"):
        ff.map(fn, range(100), max_failures=9, **options)


def test_a_class_of_items_may_change_when_that_is_accepted(tmp_path, run):
    def items(body):
        space = {"__name__": "shop", "__file__": "shop.py"}
        exec(f"class Item:\n    def __init__(self, x): self.x = x\n    def price(self): return {body}", space)
        sys.modules["shop"] = types.SimpleNamespace(**space)
        return [space["Item"](x) for x in (1, 2)]

    try:
        ff.map(price, items("self.x"), run=run, engine="serial")
        assert ff.map(price, items("self.x"), run=run, engine="serial").report.n_recorded == 2
        with pytest.raises(RunChanged, match=r"shop.Item.price has other code"):
            ff.map(price, items("-self.x"), run=run, engine="serial")
        change(Path(run), accept_changes=True)
        assert ff.map(price, items("-self.x"), run=run, engine="serial") == [1, 2]
    finally:
        del sys.modules["shop"]


def price(item):
    return item.price()


def test_a_value_that_cannot_come_back_is_one_error_of_ours(run, monkeypatch):
    ff.map(fragile, [1], run=run, engine="serial")
    monkeypatch.setenv("FRAGILE", "1")
    with pytest.raises(RunChanged, match=r"the values of items 0 to 0 .* cannot be unpickled: RuntimeError: gone"):
        ff.map(fragile, [1], run=run, engine="serial", on_error="collect")


def fragile(x):
    return Fragile(x)


class Fragile:
    def __init__(self, x):
        self.x = x

    def __setstate__(self, state):
        if os.environ.get("FRAGILE"):
            raise RuntimeError("gone")
        self.__dict__.update(state)
