"""Threads of this process: nothing is copied, nothing is left running, and what was given up stays given up."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from running import run_script, started, until

import fourfold as ff
from fourfold.distribute import driver, watch
from fourfold.distribute.engines.on_threads import Threads
from fourfold.execute.troubles import describe
from fourfold.records import Kind
from fourfold.runs.story import story_of
from fourfold.testing import Gate, Rig, stop_at


def on_threads(fn: Callable[[Any], Any], items: Any, **options: Any) -> ff.Results:
    return ff.map(fn, items, **{"engine": "threads", "workers": 2, **options})


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fourfold")]


# ---- under a call


@pytest.mark.parametrize("count", [0, 1, 2, 3, 500])
def test_it_gives_what_the_loop_gives(count: int) -> None:
    assert on_threads(lambda x: x * x, range(count)) == [x * x for x in range(count)]


def test_nothing_is_copied() -> None:
    items = [object() for _ in range(10)]
    results = on_threads(lambda item: item, items)
    assert all(result is item for result, item in zip(results, items, strict=True))


def test_what_cannot_be_pickled_is_welcome() -> None:
    lock = threading.Lock()
    results = on_threads(lambda item: (item, lock), [lock, (x for x in [1])])
    assert results[0] == (lock, lock)


def test_items_run_in_other_threads_than_the_callers() -> None:
    names = set(on_threads(lambda x: threading.current_thread().name, range(50), chunk=1))
    assert names <= {"fourfold-0", "fourfold-1"}


def test_as_many_items_run_at_once_as_there_are_workers() -> None:
    meeting = threading.Barrier(3)
    assert sorted(on_threads(lambda x: meeting.wait(30), range(3), workers=3, chunk=1)) == [0, 1, 2]


def test_a_class_is_built_once_in_each_thread() -> None:
    built = []

    class Model:
        def __init__(self) -> None:
            built.append(threading.current_thread().name)

        def __call__(self, x: int) -> int:
            return x

    on_threads(Model, range(50), chunk=1)
    assert 1 <= len(built) == len(set(built)) <= 2


def test_the_exception_of_an_item_is_the_very_object_that_was_raised() -> None:
    error = ValueError("mine")

    def fail(x: int) -> None:
        raise error

    with pytest.raises(ValueError, match="mine") as caught:
        on_threads(fail, [1])
    assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_item_that_raises_what_ends_programs_is_a_failed_item(error: type[BaseException]) -> None:
    def fail(x: int) -> int:
        if x == 1:
            raise error
        return x

    results = on_threads(fail, range(3), on_error="collect", chunk=1)
    assert (results[0], results[1].error_type, results[2]) == (0, error.__name__, 2)


@pytest.mark.parametrize("end", ["all done", "a failure", "a stream that is closed", "a source that raises"])
def test_no_thread_is_left_after(end: str) -> None:
    def numbers() -> Iterator[int]:
        yield from range(50)
        if end == "a source that raises":
            raise LookupError

    def work(x: int) -> int:
        if end == "a failure" and x == 20:
            raise LookupError
        return x

    try:
        stream = ff.imap(work, numbers(), engine="threads", workers=4, chunk=1)
        for _ in stream:
            if end == "a stream that is closed":
                stream.close()
    except LookupError:
        pass
    until(lambda: not our_threads(), "no thread of ours is left")


@pytest.mark.fault("F46")
def test_two_calls_may_run_at_once() -> None:
    meeting = threading.Barrier(2)
    found: dict[int, list[int]] = {}

    def call(number: int) -> None:
        meeting.wait(30)
        found[number] = list(on_threads(lambda x: x + number, range(300), chunk=3))

    callers = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert found == {number: [x + number for x in range(300)] for number in range(2)}


@pytest.mark.contract(29, "threads")
def test_numerical_libraries_share_the_cores_while_items_run_and_have_them_back_after() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))

    def threads(_: object = None) -> set[int]:
        return {library["num_threads"] for library in threadpoolctl.threadpool_info()}

    before = threads()
    assert on_threads(threads, range(2), workers=64) == [{1}, {1}]
    assert threads() == before


# ---- what was given up


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig(Threads(2, lambda error: describe(error, 0, None))) as rig:
        yield rig


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def give_up(rig: Rig, gate: Gate) -> None:
    """Leave a thread of the rig's engine at the gate, given up."""
    rig.put(lambda path: stop_at(path) or "late", "late")
    ids = rig.submit([gate.path], key="late")
    gate.await_arrival()
    rig.engine.cancel(ids, hard=True)
    assert rig.kinds(ids) == [Kind.LOST]


@pytest.mark.contract(17, "threads")
def test_what_is_given_up_and_ends_late_is_not_told(rig: Rig, gate: Gate) -> None:
    give_up(rig, gate)
    n_threads = len(our_threads())
    gate.open()
    until(lambda: len(our_threads()) < n_threads, "the thread that was given up ends")
    rig.wait(0)
    assert [outcome.kind for outcome in rig.outcomes] == [Kind.LOST]


def test_another_thread_takes_the_place_of_one_that_was_given_up(rig: Rig, gate: Gate) -> None:
    give_up(rig, gate)
    meeting = threading.Barrier(2)
    rig.put(lambda x: meeting.wait(30))
    assert sorted(result.values[0] for result in rig.run([0], [1])) == [0, 1]
    gate.open()


def test_a_late_end_does_not_pass_for_a_new_ticket_with_the_same_number(tmp_path: Path) -> None:
    engine = Threads(1, lambda error: describe(error, 0, None))
    old, new = Gate(tmp_path / "old"), Gate(tmp_path / "new")
    with Rig(engine) as rig:
        give_up(rig, old)
    until(lambda: len(our_threads()) == 1, "only the thread at the gate is left")
    (left,) = our_threads()
    with Rig(engine) as rig:
        rig.put(lambda path: stop_at(path) or "new", "late")
        ids = rig.submit([new.path], key="late")
        new.await_arrival()
        old.open()
        left.join(30)
        new.open()
        (outcome,) = rig.outcomes_of(ids)
        assert rig.result(outcome).values == ["new"]


# ---- when one hangs


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What takes long is told of soon; a list that grows with each look."""
    monkeypatch.setattr(watch, "STALL_S", 0.1)
    monkeypatch.setattr(driver, "PATIENCE_S", 0.01)
    looks: list[float] = []
    is_time = watch.Stalls.is_time_to_look
    monkeypatch.setattr(watch.Stalls, "is_time_to_look", lambda stalls: is_time(stalls) and (looks.append(0.0) or True))
    return looks


@pytest.mark.fault("F18")
def test_an_item_that_hangs_is_told_once_with_its_stack(looks: list[float], caplog: pytest.LogCaptureFixture) -> None:
    def hang(x: int) -> int:
        if x == 7:
            until(lambda: caplog.messages, "it is told of")
            n_looks = len(looks)
            until(lambda: len(looks) > n_looks + 2, "the engine looks again")
        return x

    assert on_threads(hang, range(20), chunk=1) == list(range(20))
    (message,) = caplog.messages
    assert message.startswith("thread ")
    assert " has run item 7 of hang for 0 s. If it hangs: on engine=" in message
    assert " in hang" in message
    assert "/src/fourfold/" not in message


@pytest.mark.fault("F17")
def test_a_class_that_hangs_while_it_is_built_is_told(looks: list[float], caplog: pytest.LogCaptureFixture) -> None:
    class Model:
        def __init__(self) -> None:
            until(lambda: caplog.messages, "it is told of")

        def __call__(self, x: int) -> int:
            return x

    assert on_threads(Model, range(3), workers=1) == [0, 1, 2]
    assert re.match(r"thread 0 has been building .*Model\(\.\.\.\) for 0 s", caplog.messages[0])


def test_items_that_take_as_long_as_those_before_are_not_told_of(looks: list[float], caplog: pytest.LogCaptureFixture) -> None:
    def take_long(x: int) -> None:
        n_looks = len(looks)
        until(lambda: len(looks) > n_looks + (2 if x == 4 else 0), "the engine looks")
        threading.Event().wait(0.12 if x == 4 else 0.02)

    on_threads(take_long, range(6), chunk=1, workers=1)
    assert caplog.messages == []


def test_a_driver_that_is_asked_says_where_its_threads_are(capfd: pytest.CaptureFixture[str]) -> None:
    said = []

    def ask(x: int) -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        until(
            lambda: said.append(capfd.readouterr().err) or "this process, most recent call first" in "".join(said), "it says"
        )
        return x

    assert on_threads(ask, [5], workers=1) == [5]
    assert re.search(
        r'thread 0 has run item 0 of ask for \d.\d s:\n(  File .+\n)*  File ".+test_threads.py", line \d+ in ask\n',
        "".join(said),
    )
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


# ---- the end of the process


@pytest.mark.contract(21, "threads")
def test_a_killed_driver_takes_its_threads_along_and_its_record_goes_on(tmp_path: Path) -> None:
    text = """
        import sys, time
        import fourfold as ff

        def fn(item):
            time.sleep(float(sys.argv[1]))
            return item * 3

        if __name__ == "__main__":
            results = ff.map(fn, range(40), run="run", engine="threads", workers=2)
            print(results == [item * 3 for item in range(40)], results.report.n_recorded)
    """
    with started(text, "0.05", folder=tmp_path) as script:
        until(lambda: (tmp_path / "run" / "journal.sqlite").exists() and story_of(tmp_path / "run").n_done >= 5, "5 are done")
        script.process.kill()
        ended = script.end()
    assert (ended.code, ended.survivors) == (-signal.SIGKILL, [])
    n_recorded = story_of(tmp_path / "run").n_done
    assert run_script(text, "0", folder=tmp_path) == (0, f"True {n_recorded}\n", "", [])
