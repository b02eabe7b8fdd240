"""Items that fail, under a call: each costs itself, and is named."""

import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourfold.compose import map as parallel_map
from fourfold.distribute.engine import Engine
from fourfold.errors import ItemTimeout, UnsupportedOption, WorkerLost
from fourfold.records import Failure
from fourfold.testing.rig import Fixtures
from fourfold.testing.rows import contract

DEATHS: dict[str, tuple[Callable[[], object], int, str]] = {
    "os._exit": (lambda: os._exit(3), 3, "exited with code 3"),
    "abort": (os.abort, -signal.SIGABRT, "SIGABRT"),
    "segmentation fault": (lambda: ctypes.string_at(0), -signal.SIGSEGV, "SIGSEGV"),
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL, "SIGKILL"),
}
"""Ways in which an item ends its process, with the exit code of that, and the word by which a failure names it."""

FOUND_S = 30.0
"""Seconds in which the one item among 20 that kills its worker is found, or one that takes too long."""

CHILD = """
import os, pickle, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.path[:], program = pickle.load(sys.stdin.buffer)
make_engine, call, deaths = pickle.loads(program)
codes = []
for way in deaths:
    pid = os.fork()
    if not pid:
        call(make_engine(), way)
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(codes)
"""


def codes_of_callers(make_engine: Callable[[], Engine], call: Callable[[Engine, str], object]) -> dict[str, int]:
    """How processes end that make a call in which an item ends its process in one of the ways of DEATHS."""
    import cloudpickle

    home = sys.modules[make_engine.__module__]  # the tests need not be where a child can import them
    cloudpickle.register_pickle_by_value(home)
    try:
        program = cloudpickle.dumps((make_engine, call, list(DEATHS)))
    finally:
        cloudpickle.unregister_pickle_by_value(home)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=pickle.dumps((sys.path, program)),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    codes: list[int] = json.loads(done.stdout)
    return dict(zip(DEATHS, codes, strict=True))


class Failures(Fixtures):
    """Failures of items."""

    @contract(4)
    def test_a_failed_item_is_raised_with_its_own_type_and_its_index(self, make_engine: Callable[[], Engine]) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            parallel_map(lambda x: 1 // (x - 5), range(20), engine=make_engine())
        assert any("item 5 " in note for note in caught.value.__notes__)

    @contract(4)
    def test_a_failure_has_the_traceback_of_where_it_was_raised(self, make_engine: Callable[[], Engine]) -> None:
        def divide_by_nothing(x: int) -> float:
            return x / 0

        results = parallel_map(divide_by_nothing, [1], engine=make_engine(), on_error="collect")
        assert "in divide_by_nothing" in results[0].traceback

    @contract(5)
    def test_an_exception_that_cannot_travel_keeps_its_name_and_message(self, make_engine: Callable[[], Engine]) -> None:
        class Awkward(Exception):
            def __init__(self, needed: str, also_needed: int) -> None:
                super().__init__(f"{needed} {also_needed}")

        class Locked(Exception):
            def __init__(self, message: str) -> None:
                super().__init__(message)
                self.lock = threading.Lock()

        def fail(item: int) -> None:
            raise Awkward("code", item) if item == 7 else Locked("cannot be pickled")

        results = parallel_map(fail, [7, 8], engine=make_engine(), on_error="collect")
        assert [failure.error_type.rpartition(".")[2] for failure in results] == ["Awkward", "Locked"]
        assert [failure.message for failure in results] == ["code 7", "cannot be pickled"]

    @contract(6)
    def test_a_keyboard_interrupt_that_an_item_raises_is_its_failure(self, make_engine: Callable[[], Engine]) -> None:
        def interrupt(x: int) -> int:
            if x == 1:
                raise KeyboardInterrupt
            return x

        engine = make_engine()
        if engine.info.inline:
            with pytest.raises(KeyboardInterrupt):
                parallel_map(interrupt, range(3), engine=engine)
        else:
            results = parallel_map(interrupt, range(3), engine=engine, on_error="collect")
            assert [failure.error_type for failure in results.failures] == ["KeyboardInterrupt"]
            assert [results[0], results[2]] == [0, 2]

    @contract(7)
    def test_values_that_cannot_travel_cost_their_items_and_are_named(self, make_engine: Callable[[], Engine]) -> None:
        def make(x: int) -> Any:
            if x == 3:
                return open(os.devnull, "w")
            return x if x % 4 == 0 else threading.Lock() if x == 1 else (y for y in [x])

        engine = make_engine()
        results = parallel_map(make, range(5), engine=engine, on_error="collect")
        assert [results[0], results[4]] == [0, 4]
        if engine.info.takes_objects:
            assert [type(each).__name__ for each in results[1:4]] == ["lock", "generator", "TextIOWrapper"]
            results[3].close()
        else:
            assert all(failure.error_type.endswith("NotPicklable") for failure in results[1:4])
            words = zip(("lock", "generator", "file"), results[1:4], strict=True)
            assert [word in failure.message for word, failure in words] == [True] * 3

    @contract(8)
    def test_a_value_whose_class_is_not_here_costs_one_item_and_is_named(
        self, make_engine: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def make(x: int) -> Any:
            if x != 1:
                return x
            module = sys.modules["only_there"] = types.ModuleType("only_there")
            thing = module.Thing = type("Thing", (), {"__module__": "only_there"})  # type: ignore[attr-defined]
            return thing()

        engine = make_engine()
        if engine.info.takes_objects:
            monkeypatch.setitem(sys.modules, "only_there", None)  # so that it is taken out again
        results = parallel_map(make, range(3), engine=engine, on_error="collect")
        assert [results[0], results[2]] == [0, 2]
        if engine.info.takes_objects:  # it does not travel
            assert type(results[1]).__name__ == "Thing"
        else:
            assert "only_there" in results[1].message

    # ---- deaths ------------------------------------------------------------------------------------------------------

    @contract(12, 13)
    def test_items_that_end_their_process_cost_themselves_and_are_named(self, make_engine: Callable[[], Engine]) -> None:
        """Where items run in the caller's process they end that, as in the loop."""
        engine, ways = make_engine(), list(DEATHS)

        def call(engine: Engine, *deadly: str) -> Any:
            def fn(x: int) -> int:
                if x % 5 == 2 and x // 5 < len(deadly):
                    DEATHS[deadly[x // 5]][0]()
                return x

            return parallel_map(fn, range(20), engine=engine, on_error="collect")

        if engine.info.takes_objects:
            assert codes_of_callers(make_engine, call) == {way: code for way, (_, code, _) in DEATHS.items()}
            return
        results = call(engine, *ways)
        assert [x for x in results if not isinstance(x, Failure)] == [x for x in range(20) if x % 5 != 2]
        assert [failure.index for failure in results.failures] == [2, 7, 12, 17]
        assert all(isinstance(failure.error, WorkerLost) for failure in results.failures)
        told = zip(DEATHS.values(), results.failures, strict=True)
        assert [word in failure.message for (_, _, word), failure in told] == [True] * 4

    @contract(12)
    def test_the_one_item_that_always_kills_its_worker_is_found_among_20(self, make_engine: Callable[[], Engine]) -> None:
        def fragile(x: int) -> int:
            if x == 13:
                os.kill(os.getpid(), signal.SIGKILL)
            return x

        engine, begin = make_engine(), time.monotonic()
        if engine.info.takes_objects:
            codes = codes_of_callers(make_engine, lambda engine, way: parallel_map(fragile, range(20), engine=engine))
            assert set(codes.values()) == {-signal.SIGKILL}
            return
        results = parallel_map(fragile, range(20), engine=engine, on_error="collect")
        assert time.monotonic() - begin < FOUND_S
        assert [x for x in results if not isinstance(x, Failure)] == [x for x in range(20) if x != 13]
        (failure,) = results.failures
        assert (failure.index, type(failure.error), "SIGKILL" in failure.message) == (13, WorkerLost, True)

    @contract(11, 23)
    def test_an_item_that_kills_its_worker_once_runs_again_with_what_all_items_share(
        self, make_engine: Callable[[], Engine], tmp_path: Path
    ) -> None:
        shared = np.arange(2 << 20)  # 16 MiB, which the worker takes along

        def once(x: int) -> int:
            with open(tmp_path / f"starts-{x}", "a") as file:
                file.write("+")
            if x == 3 and (tmp_path / "starts-3").read_text() == "+":
                os.kill(os.getpid(), signal.SIGKILL)
            return int(shared[x])

        engine = make_engine()
        if engine.info.takes_objects:
            codes = codes_of_callers(make_engine, lambda engine, way: parallel_map(once, range(10), engine=engine))
            assert list(codes.values()) == [-signal.SIGKILL, 0, 0, 0]  # the next call has what the first one left
            return
        results = parallel_map(once, range(10), engine=engine, on_error="collect")
        assert results == list(range(10))
        assert results.report.n_workers_lost == 1
        assert (tmp_path / "starts-3").read_text() == "++"

    @contract(19)
    def test_an_item_that_takes_too_long_costs_one_item(self, make_engine: Callable[[], Engine]) -> None:
        def wait(x: int) -> int:
            time.sleep(60 if x == 2 else 0)
            return x

        engine, begin = make_engine(), time.monotonic()
        if "timeout" not in engine.info.honours:
            with pytest.raises(UnsupportedOption, match="timeout"):
                parallel_map(wait, range(6), timeout=0.5, engine=engine)
            return
        results = parallel_map(wait, range(6), timeout=0.5, on_error="collect", engine=engine)
        assert [failure.index for failure in results.failures] == [2]
        assert isinstance(results.failures[0].error, ItemTimeout)
        assert [results[x] for x in (0, 1, 3, 4, 5)] == [0, 1, 3, 4, 5]
        assert time.monotonic() - begin < FOUND_S
