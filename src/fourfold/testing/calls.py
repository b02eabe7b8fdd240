"""Under a call: what a user sees is what the loop gives."""

import ctypes
import functools
import itertools
import os
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest

from fourfold.compose import imap
from fourfold.compose import map as parallel_map
from fourfold.distribute.engine import Engine
from fourfold.records import Failure
from fourfold.testing.rig import PATIENCE_S, Fixtures


class Calls(Fixtures):
    """`fourfold.map` on the engine."""

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
    @pytest.mark.parametrize("chunk", ["auto", 1, 7])
    def test_a_map_gives_what_the_loop_gives(self, make_engine: Callable[[], Engine], count: int, chunk: Any) -> None:
        engine = make_engine()
        if engine.info.dispatch_s and chunk == 1:
            count = min(count, 50)  # a thousand jobs of a cluster take a minute
        items = [number / 7 for number in range(count)]
        assert parallel_map(lambda x: x**0.5, items, engine=engine, chunk=chunk) == [x**0.5 for x in items]

    def test_two_maps_may_use_one_engine_one_after_the_other(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        with pytest.raises(ZeroDivisionError):
            parallel_map(lambda x: 1 // x, range(50), engine=engine, chunk=1)
        assert parallel_map(lambda x: x + 1, range(50), engine=engine, chunk=1) == list(range(1, 51))

    def test_a_failed_item_is_raised_with_its_own_type_and_its_index(self, make_engine: Callable[[], Engine]) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            parallel_map(lambda x: 1 // (x - 5), range(20), engine=make_engine())
        assert any("item 5 " in note for note in caught.value.__notes__)

    def test_an_exception_that_cannot_travel_keeps_its_name_and_message(self, make_engine: Callable[[], Engine]) -> None:
        class Awkward(Exception):
            def __init__(self, needed: str, also_needed: int) -> None:
                super().__init__(f"{needed} {also_needed}")

        def fail(item: int) -> None:
            raise Awkward("code", item)

        results = parallel_map(fail, [7], engine=make_engine(), on_error="collect")
        assert results[0].error_type.endswith("Awkward")
        assert results[0].message == "code 7"

    def test_a_nested_map_runs_serially(self, make_engine: Callable[[], Engine]) -> None:
        def nested(x: int) -> tuple[list[int], str]:
            from fourfold.compose import map as inner

            results = inner(abs, [-x], engine="processes", workers=2)
            return list(results), results.report.engine

        results = parallel_map(nested, range(4), engine=make_engine(), chunk=1)
        assert results == [([x], "serial") for x in range(4)]

    def test_items_are_pulled_only_as_far_as_they_are_needed(self, make_engine: Callable[[], Engine]) -> None:
        pulled = itertools.count()
        stream = imap(lambda x: x, (next(pulled) for _ in itertools.repeat(None)), engine=make_engine(), chunk=1)
        assert [next(stream) for _ in range(30)] == list(range(30))
        stream.close()
        assert next(pulled) < 300

    def test_a_large_result_comes_whole(self, make_engine: Callable[[], Engine]) -> None:
        (result,) = parallel_map(lambda size: b"x" * size, [16 << 20], engine=make_engine())
        assert len(result) == 16 << 20

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

    def test_a_failure_has_the_traceback_of_where_it_was_raised(self, make_engine: Callable[[], Engine]) -> None:
        def divide_by_nothing(x: int) -> float:
            return x / 0

        results = parallel_map(divide_by_nothing, [1], engine=make_engine(), on_error="collect")
        assert "in divide_by_nothing" in results[0].traceback

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

    def test_a_value_that_cannot_travel_costs_one_item_and_is_named(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        results = parallel_map(lambda x: threading.Lock() if x == 1 else x, range(3), engine=engine, on_error="collect")
        assert [results[0], results[2]] == [0, 2]
        if not engine.info.takes_objects:
            assert results[1].error_type.endswith("NotPicklable")
            assert "lock" in results[1].message

    def test_a_value_whose_class_is_not_here_costs_one_item_and_is_named(self, make_engine: Callable[[], Engine]) -> None:
        def make(x: int) -> Any:
            if x != 1:
                return x
            import sys

            module = sys.modules["only_there"] = types.ModuleType("only_there")
            thing = module.Thing = type("Thing", (), {"__module__": "only_there"})  # type: ignore[attr-defined]
            return thing()

        engine = make_engine()
        if engine.info.takes_objects:
            pytest.skip("values of this engine do not travel")
        results = parallel_map(make, range(3), engine=engine, on_error="collect")
        assert [results[0], results[2]] == [0, 2]
        assert "only_there" in results[1].message

    @pytest.mark.parametrize("way", ["os._exit", "abort", "segmentation fault"])
    def test_an_item_that_ends_its_process_costs_one_item(self, make_engine: Callable[[], Engine], way: str) -> None:
        def die(x: int) -> int:
            if x == 2:
                if way == "os._exit":
                    os._exit(3)
                elif way == "abort":
                    os.abort()
                ctypes.string_at(0)
            return x

        engine = make_engine()
        if engine.info.kills == "no":
            pytest.skip("items of this engine run in the caller's process")
        results = parallel_map(die, range(6), engine=engine, on_error="collect")
        assert [failure.index for failure in results.failures] == [2]
        assert [x for x in results if not isinstance(x, Failure)] == [0, 1, 3, 4, 5]
        assert {"os._exit": "exited with code 3", "abort": "SIGABRT"}.get(way, "SIGSEGV") in results.failures[0].message

    def test_items_that_take_a_millisecond_all_come(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        count = 2000 if engine.info.dispatch_s < 0.01 else 200  # of a chunk each

        def work(x: int) -> int:
            time.sleep(0.001)
            return x

        assert parallel_map(work, range(count), engine=engine, chunk=1) == list(range(count))

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
