"""How many rows a model takes at once: found out from a clock that these tests turn themselves."""

import random
import types
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from fourfold.workloads import batching
from fourfold.workloads.batching import FIRST_ROWS, MOST_ROWS, BatchSize

TABLE = pa.table({"row": np.arange(4 * MOST_ROWS)})


@pytest.fixture
def sizes_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """The sizes of the calls that a table takes, when a call of so many rows takes so long."""
    now, waited = [0.0], [0.0]
    monkeypatch.setattr(batching, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(batching, "waited_for_a_core_s", lambda: waited[0])

    def sizes(size: BatchSize, seconds: Callable[[int, int], float], n_rows: int = TABLE.num_rows) -> list[int]:
        called: list[int] = []

        def call(table: pa.Table) -> int:
            now[0] += seconds(table.num_rows, len(called))
            called.append(table.num_rows)
            return table.num_rows

        assert sum(size.run(call, TABLE.slice(0, n_rows))) == n_rows
        return called

    return sizes


def overhead(rows: int, _: int) -> float:
    """As most models: something for a call, and something for each row."""
    return 0.02 + rows * 1e-5


def cache(rows: int, _: int) -> float:
    """More than 1,024 rows at once are slow."""
    return 0.001 + rows * (1e-5 if rows <= 1024 else 3e-5)


def test_it_grows_while_that_makes_rows_faster(sizes_of: Callable[..., list[int]]) -> None:
    size = BatchSize(None)
    called = sizes_of(size, overhead)
    assert called[:2] == [FIRST_ROWS, 2 * FIRST_ROWS]
    assert size.rows >= 16384
    assert max(called) <= MOST_ROWS


def test_where_calls_are_dear_it_grows_by_more_than_to_the_double(sizes_of: Callable[..., list[int]]) -> None:
    assert sizes_of(BatchSize(None), overhead)[:4] == [FIRST_ROWS, 2 * FIRST_ROWS, 32 * FIRST_ROWS, 512 * FIRST_ROWS]


def test_where_rows_are_dear_it_grows_to_the_double(sizes_of: Callable[..., list[int]]) -> None:
    called = sizes_of(BatchSize(None), lambda rows, _: 0.0005 + rows * 2e-5)
    assert called[:3] == [FIRST_ROWS, 2 * FIRST_ROWS, 4 * FIRST_ROWS]


def test_a_large_step_to_a_size_that_is_slower_than_foreseen_is_taken_back(sizes_of: Callable[..., list[int]]) -> None:
    size = BatchSize(None)
    called = sizes_of(size, lambda rows, _: 0.001 + rows * (5e-6 if rows <= 512 else 1.5e-5))
    assert called[:6] == [FIRST_ROWS, 128, 2048, 256, 512, 1024]
    assert called.count(2048) == 1
    assert called.count(512) > 5 * called.count(1024)


def test_it_grows_to_all_rows_of_a_table_that_has_fewer_than_the_double(sizes_of: Callable[..., list[int]]) -> None:
    size = BatchSize(None)
    called = [rows for _ in range(8) for rows in sizes_of(size, overhead, 1250)]
    assert size.rows == 1250
    assert called[-5:] == [1250] * 5


def test_it_goes_back_from_a_size_that_is_slower_and_seldom_tries_it_again(sizes_of: Callable[..., list[int]]) -> None:
    size = BatchSize(None)
    called = sizes_of(size, cache)
    assert size.rows in (1024, 2048)  # which is being tried
    assert max(called) == 2048
    assert called.count(1024) > 5 * called.count(2048)


def test_a_small_rest_is_no_call_of_its_own(sizes_of: Callable[..., list[int]]) -> None:
    size = BatchSize(None)
    size.rows = 8192  # as it stands while tables of 10,000 rows come, which is what Spark gives
    assert sizes_of(size, overhead, 10_000) == [10_000]
    size.rows = 4096
    assert sizes_of(size, overhead, 10_000)[0] == 4096
    size = BatchSize(100)
    assert sizes_of(size, overhead, 120) == [100, 20], "what the user asks for is the most"
    size = BatchSize(None)
    size.rows = size._most = 100  # memory ran out above
    assert sizes_of(size, overhead, 120) == [100, 20]


def test_a_call_that_waited_for_a_core_does_not_keep_it_small(sizes_of: Callable[..., list[int]]) -> None:
    size = BatchSize(None)
    called = sizes_of(size, lambda rows, at: overhead(rows, at) + (1.0 if at in (2, 4) else 0.0))
    assert size.rows >= 16384
    assert len(called) < 50


def test_a_machine_that_was_busy_for_a_while_does_not_keep_it_small(sizes_of: Callable[..., list[int]]) -> None:
    size = BatchSize(None)
    called = sizes_of(size, lambda rows, at: overhead(rows, at) * (9 if 2 <= at < 20 else 1))
    assert called[6] <= 4 * FIRST_ROWS  # it did while that lasted
    assert size.rows >= 16384


@pytest.mark.parametrize("seed", range(20))
def test_a_machine_that_is_always_busy_does_not_keep_it_small(seed: int, sizes_of: Callable[..., list[int]]) -> None:
    size, luck = BatchSize(None), random.Random(seed)
    called = sizes_of(size, lambda rows, at: overhead(rows, at) * luck.uniform(1, 5))
    assert size.rows >= 2048  # of that size a call is half rows, half the price of a call
    assert len(called) < 500


def test_time_in_which_others_were_on_the_core_counts_for_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = [0.0], [0.0]
    monkeypatch.setattr(batching, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(batching, "waited_for_a_core_s", lambda: waited[0])
    size = BatchSize(None)

    def call(table: pa.Table) -> None:
        others_s = 0.3 if table.num_rows == 2 * FIRST_ROWS else 0.0
        now[0] += overhead(table.num_rows, 0) + others_s
        waited[0] += others_s

    size.run(call, TABLE)
    assert size.rows >= 16384


def test_a_number_stays_that_number(sizes_of: Callable[..., list[int]]) -> None:
    assert sizes_of(BatchSize(100), overhead, 450) == [100, 100, 100, 100, 50]
    assert set(sizes_of(BatchSize(100), overhead, 20_000)) == {100}


def test_what_did_not_fit_into_memory_is_not_tried_again(sizes_of: Callable[..., list[int]]) -> None:
    size, refused = BatchSize(None), []

    def seconds(rows: int, at: int) -> float:
        if rows > 500:
            refused.append(rows)
            raise MemoryError
        return overhead(rows, at)

    called = sizes_of(size, seconds)
    assert refused == [2048, 512]  # a large step, and after that the double
    assert size.rows == 256
    assert max(called) == 256
