"""The answer under a call: the bits of the loop, each item once, and what items share held once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fourfold.compose import imap, reduce
from fourfold.compose import map as parallel_map
from fourfold.distribute.engine import Engine
from fourfold.execute.current import rng
from fourfold.records import Failure
from fourfold.runs.story import story_of
from fourfold.testing.chaos import Chaos
from fourfold.testing.rig import Fixtures
from fourfold.testing.rows import contract

TABLE_BYTES = 128 << 20

GROWTH_BYTES = 64 << 20
"""Bytes by which a worker may grow while it runs 50 tickets: much less than a copy of the table."""

HELD_BYTES = 2 * TABLE_BYTES + (256 << 20)
"""Bytes of a worker with the table: it, a copy in passing, and a Python with NumPy."""


class Answers(Fixtures):
    """Answers of calls."""

    @contract(40)
    @pytest.mark.parametrize("chunk", ["auto", 7, 64])
    def test_seeded_streams_and_reductions_have_the_bits_of_the_loop(
        self, make_engine: Callable[[], Engine], chunk: Any
    ) -> None:
        engine = make_engine()
        has_own_globals = not engine.info.shares_globals

        def draw(item: float) -> tuple[float, float]:
            return item * float(rng().normal()), float(np.random.random()) if has_own_globals else 0.0

        def add(one: Any, other: Any) -> tuple[float, float]:
            return one[0] + other[0], one[1] + other[1]

        items = [0.1 * x for x in range(100)]
        expected = parallel_map(draw, items, seed=40, engine="serial")
        assert list(imap(draw, iter(items), seed=40, engine=engine, chunk=chunk)) == list(expected)
        if chunk == "auto":
            unordered = imap(draw, items, seed=40, engine=engine, ordered=False)
            assert sorted(unordered) == sorted(expected)
        total = reduce(add, items, draw, seed=40, engine="serial")
        assert reduce(add, items, draw, seed=40, engine=engine, chunk=chunk) == total

    @contract(22)
    def test_what_items_share_is_sent_once_and_held_once(self, make_engine: Callable[[], Engine], tmp_path: Path) -> None:
        class Look:
            def __init__(self, table: Any, log: Path) -> None:
                self.table = table
                with open(log, "a") as file:
                    file.write("built\n")

            def __call__(self, x: int) -> tuple[int, int, int]:
                with open("/proc/self/statm") as file:
                    held_bytes = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
                return int(self.table[x << 10]), os.getpid(), held_bytes

        engine, log, look = make_engine(), tmp_path / "built", cast("Callable[..., Any]", Look)
        results = parallel_map(look, range(50), init=(np.arange(TABLE_BYTES // 8), log), chunk=1, engine=engine)
        assert [value for value, _, _ in results] == [x << 10 for x in range(50)]
        assert len(log.read_text().splitlines()) <= 2 * results.report.workers
        assert results.report.sent_bytes < 1 << 20
        for worker in {pid for _, pid, _ in results}:
            held = [held_bytes for _, pid, held_bytes in results if pid == worker]
            assert max(held) - min(held) < GROWTH_BYTES
            assert engine.info.takes_objects or max(held) < HELD_BYTES

    # ---- each item once ----------------------------------------------------------------------------------------------

    @contract(32)
    def test_outcomes_that_come_late_twice_and_in_any_order_change_nothing(self, make_engine: Callable[[], Engine]) -> None:
        def fn(x: int) -> float:
            if x % 10 == 3:
                raise ValueError(x)
            return x / 7

        items = range(60)
        expected = [x / 7 for x in items if x % 10 != 3]
        total = reduce(lambda a, b: a + b, items, fn, engine="serial", on_error="skip")
        for seed in range(1 if make_engine().info.dispatch_s > 0.01 else 3):
            engine = Chaos(make_engine(), seed)
            results = parallel_map(fn, items, engine=engine, chunk=2, on_error="collect")
            assert [value for value in results if not isinstance(value, Failure)] == expected
            assert [failure.index for failure in results.failures] == [x for x in items if x % 10 == 3]
            assert list(imap(fn, items, engine=engine, chunk=3, on_error="skip")) == expected
            assert reduce(lambda a, b: a + b, items, fn, engine=engine, chunk=5, on_error="skip") == total
            assert engine.n_twice > 0 < engine.n_late

    @contract(11, 12, 32, 33)
    def test_a_record_has_each_item_once_whatever_happens_to_workers_and_outcomes(
        self, make_engine: Callable[[], Engine], tmp_path: Path
    ) -> None:
        may_die, run = not make_engine().info.takes_objects, tmp_path / "run"

        def fn(x: int) -> int:
            with open(tmp_path / f"starts-{x}", "a") as file:
                file.write("+")
            if may_die and (x == 30 or (x == 13 and (tmp_path / "starts-13").read_text() == "+")):
                os._exit(9)
            return x * 3

        engine = Chaos(make_engine(), seed=33)
        results = parallel_map(fn, range(50), engine=engine, chunk=4, run=str(run), on_error="collect")
        expected = [x * 3 for x in range(50) if not (may_die and x == 30)]
        assert [value for value in results if not isinstance(value, Failure)] == expected
        story = story_of(run)
        assert (story.n_done, story.n_failed) == (len(expected), len(results.failures))
        n_starts = sum(len(path.read_text()) for path in tmp_path.glob("starts-*"))
        again = parallel_map(fn, range(50), engine="serial", run=str(run), on_error="collect")
        assert [value for value in again if not isinstance(value, Failure)] == expected
        assert again.report.n_recorded == 50
        assert sum(len(path.read_text()) for path in tmp_path.glob("starts-*")) == n_starts
