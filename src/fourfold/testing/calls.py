"""Under a call: what a user sees is what the loop gives."""

import functools
import itertools
import os
import random
import sys
import threading
import time
import types
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fourfold.compose import imap
from fourfold.compose import map as parallel_map
from fourfold.distribute.engine import Engine
from fourfold.distribute.schedule import AHEAD
from fourfold.errors import EngineError, UnsupportedOption
from fourfold.testing.rig import PATIENCE_S, Fixtures, Gate, stop_at
from fourfold.testing.rows import contract

LIMITS = (16 << 10, 64 << 10, 100 << 10, 1 << 20, 4 << 20)
"""Bytes at which what engines carry takes another way: a pipe or a shared segment, within a message or stored beside it.
Closures of Spark end at 64 KiB, arguments of Ray at 100 KiB, messages of Spark Connect at 4 MiB."""

TOLD_S = 15.0
"""Seconds in which an engine must say that it can never do what is asked."""


class Calls(Fixtures):
    """`fourfold.map` on the engine."""

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
    @pytest.mark.parametrize("chunk", ["auto", 1, 7])
    def test_a_map_gives_what_the_loop_gives(self, make_engine: Callable[[], Engine], count: int, chunk: Any) -> None:
        engine = make_engine()
        if engine.info.dispatch_s and chunk != "auto":
            count = min(count, 50 * chunk)  # a thousand jobs of a cluster take a minute
        items = [number / 7 for number in range(count)]
        assert parallel_map(lambda x: x**0.5, items, engine=engine, chunk=chunk) == [x**0.5 for x in items]

    def test_two_maps_may_use_one_engine_one_after_the_other(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        with pytest.raises(ZeroDivisionError):
            parallel_map(lambda x: 1 // x, range(20), engine=engine, chunk=1)
        assert parallel_map(lambda x: x + 1, range(20), engine=engine, chunk=1) == list(range(1, 21))

    @contract(3)
    def test_items_are_pulled_only_as_far_as_they_are_needed(self, make_engine: Callable[[], Engine]) -> None:
        engine, n_pulled = make_engine(), 0
        slow_s = 0.2 + 10 * engine.info.dispatch_s  # meanwhile, nobody takes any

        def endless() -> Iterator[int]:
            nonlocal n_pulled
            while True:
                n_pulled += 1
                yield n_pulled - 1

        def begin_slowly(x: int) -> int:
            time.sleep(0.0 if x else slow_s)
            return x

        stream = imap(begin_slowly, endless(), engine=engine, chunk=1)
        most_ahead = 0
        for item in range(60):
            assert next(stream) == item
            most_ahead = max(most_ahead, n_pulled - item)
        stream.close()
        window = AHEAD * 2 * stream.report.workers + 1
        assert most_ahead <= 2 * window  # so many may be in flight, and so many have come back at once

    @contract(10)
    @pytest.mark.parametrize("kind", ["lambda", "closure", "partial", "bound method", "builtin"])
    def test_functions_of_every_kind_travel(self, make_engine: Callable[[], Engine], kind: str) -> None:
        offset = 1

        class Adder:
            def add(self, x: int) -> int:
                return x + offset

        def add(x: int, y: int) -> int:
            return x + y

        functions: dict[str, Callable[[int], int]] = {
            "lambda": lambda x: x + 1,
            "closure": lambda x: x + offset,
            "partial": functools.partial(add, 1),
            "bound method": Adder().add,
            "builtin": (1).__add__,
        }
        assert parallel_map(functions[kind], range(3), engine=make_engine(), chunk=1) == [1, 2, 3]

    @contract(9)
    def test_a_function_of_a_module_that_workers_do_not_have_is_one_clear_error(
        self, make_engine: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = types.ModuleType("only_the_driver_has_it")
        double = types.FunctionType((lambda x: 2 * x).__code__, module.__dict__, "double")
        double.__module__, double.__qualname__ = module.__name__, "double"
        module.double = double  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        engine = make_engine()
        if engine.info.takes_objects:  # workers have what the driver has
            assert parallel_map(module.double, range(3), engine=engine) == [0, 2, 4]
            return
        with pytest.raises(ModuleNotFoundError, match="only_the_driver_has_it") as caught:
            parallel_map(module.double, range(3), engine=engine)
        assert any("ship=" in note for note in getattr(caught.value, "__notes__", ())) == engine.info.elsewhere

    @contract(24)
    def test_items_arrive_whole_on_both_sides_of_each_limit(self, make_engine: Callable[[], Engine]) -> None:
        draw = random.Random(24).randbytes
        sizes = [size for limit in LIMITS for size in (limit - 2048, limit + 1)]
        items: list[Any] = [draw(size) for size in sizes]
        items += [np.frombuffer(item, np.uint8) for item in items]
        results = parallel_map(lambda item: (len(item), zlib.crc32(item)), items, engine=make_engine(), chunk=1)
        assert results == [(len(item), zlib.crc32(item)) for item in items]

    @contract(25)
    def test_a_large_result_comes_whole(self, make_engine: Callable[[], Engine]) -> None:
        (result,) = parallel_map(lambda size: np.arange(size), [8 << 20], engine=make_engine())  # 64 MiB
        assert np.array_equal(result, np.arange(8 << 20))

    @contract(26)
    def test_items_that_take_a_millisecond_all_come(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        # Of a chunk each. Where nothing travels, and where each start takes long, fewer tell as much.
        has_few = engine.info.takes_objects or engine.info.dispatch_s > 0
        count = 100 if engine.info.dispatch_s > 0.01 else 500 if has_few else 2000

        def work(x: int) -> int:
            time.sleep(0.001)
            return x

        assert parallel_map(work, range(count), engine=engine, chunk=1) == list(range(count))

    @contract(27, 28)
    def test_a_need_that_nobody_can_meet_is_told_in_seconds(self, make_engine: Callable[[], Engine]) -> None:
        engine, begin = make_engine(), time.monotonic()
        expected = EngineError if "gpus" in engine.info.honours else UnsupportedOption
        with pytest.raises(expected, match=r"(?i)gpu"):
            parallel_map(abs, [1], gpus=64, engine=engine)
        assert time.monotonic() - begin < TOLD_S

    @contract(29)
    @pytest.mark.parametrize("wanted", [1, 2])
    def test_numerical_libraries_have_as_many_threads_as_they_are_given(
        self, make_engine: Callable[[], Engine], wanted: int
    ) -> None:
        def threads(x: int) -> tuple[str, list[int]]:
            import threadpoolctl

            np.ones((10, 10)) @ np.ones((10, 10))
            return os.environ.get("OMP_NUM_THREADS", ""), [each["num_threads"] for each in threadpoolctl.threadpool_info()]

        engine = make_engine()
        if "threads_per_worker" not in engine.info.honours:
            with pytest.raises(UnsupportedOption, match="threads_per_worker"):
                parallel_map(threads, [0], engine=engine, threads_per_worker=wanted)
            return
        ((variable, found),) = parallel_map(threads, [0], engine=engine, threads_per_worker=wanted)
        assert found
        assert all(each <= wanted for each in found)
        if not engine.info.takes_objects:  # else the environment is that of the caller
            assert variable == str(wanted)

    # ---- calls within calls, and beside each other -------------------------------------------------------------------

    @contract(30)
    def test_a_nested_map_runs_serially(self, make_engine: Callable[[], Engine]) -> None:
        def nested(x: int) -> tuple[list[int], str]:
            from fourfold.compose import map as inner

            results = inner(abs, [-x], engine="processes", workers=2)
            return list(results), results.report.engine

        results = parallel_map(nested, range(4), engine=make_engine(), chunk=1)
        assert results == [([x], "serial") for x in range(4)]

    @contract(30)
    def test_joblib_inside_an_item_starts_nobody_where_workers_are_processes(
        self, make_engine: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("joblib")
        monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
        engine = make_engine()
        # In the caller's process it does what it does in any loop; its own processes would outlive the test.
        backend = "threading" if engine.info.takes_objects else "loky"

        def nested(x: int) -> tuple[list[int], int]:
            import joblib

            with joblib.parallel_config(backend=backend):
                found = joblib.Parallel(n_jobs=-1)(joblib.delayed(lambda y: (y * x, os.getpid()))(y) for y in range(8))
            return [value for value, _ in found], len({pid for _, pid in found} - {os.getpid()})

        results = parallel_map(nested, range(4), engine=engine, chunk=1)
        assert results == [([y * x for y in range(8)], 0) for x in range(4)]

    @contract(31)
    def test_two_maps_at_once_do_not_mix(self, make_engine: Callable[[], Engine]) -> None:
        found: dict[int, list[int]] = {}

        def use(number: int) -> None:
            found[number] = list(parallel_map(lambda x: x * 10 + number, range(100), engine=make_engine(), chunk=7))

        threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert found == {number: [x * 10 + number for x in range(100)] for number in range(2)}

    @contract(31)
    def test_a_call_that_is_given_up_leaves_another_one_beside_it_whole(
        self, make_engine: Callable[[], Engine], gates: Callable[[int], list[Gate]]
    ) -> None:
        engine = make_engine()
        # One engine for both, where one object may serve calls that overlap.
        other_engine = engine if hasattr(engine, "for_another_call") else make_engine()
        (gate,) = gates(1)
        found: list[int] = []

        def work(item: tuple[int, str]) -> int:
            stop_at(item[1])
            return item[0] * 2

        items = [(x, gate.path if x == 5 else "") for x in range(20)]
        other = threading.Thread(target=lambda: found.extend(parallel_map(work, items, engine=other_engine, chunk=1)))
        stream = imap(lambda x: x + 1, itertools.count(), engine=engine, chunk=1)
        assert next(stream) == 1
        other.start()
        gate.await_arrival()
        stream.close()
        gate.open()
        other.join(PATIENCE_S)
        assert found == [x * 2 for x in range(20)]
