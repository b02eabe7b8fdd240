"""Tickets and their outcomes, items that fail, and programs."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.records import Kind
from fourfold.testing.rig import Fixtures, Gate, Rig, stop_at
from fourfold.testing.rows import contract


class Tickets(Fixtures):
    """Each ticket has one outcome, whatever happens to its items."""

    @contract(1)
    def test_each_of_200_tickets_has_exactly_one_outcome_with_its_own_values(self, rig: Rig) -> None:
        rig.put(lambda x: x * x)
        chunks = [range(number, number + 1 + number % 3) for number in range(200)]
        ids = rig.submit(*chunks)
        results = [rig.result(outcome) for outcome in rig.outcomes_of(ids)]
        assert [result.values for result in results] == [[x * x for x in chunk] for chunk in chunks]
        rig.wait(0)
        assert Counter(outcome.id for outcome in rig.outcomes) == Counter(ids)

    def test_a_result_says_how_many_items_ran_and_how_long(self, rig: Rig) -> None:
        rig.put(lambda x: x)
        (result,) = rig.run("abc")
        assert result.done == 3
        assert result.elapsed_s > 0

    @contract(2)
    @pytest.mark.usefixtures("beside")
    def test_a_fast_ticket_is_told_while_a_slow_one_runs(self, rig: Rig, gates: Callable[[int], list[Gate]]) -> None:
        rig.put(stop_at)
        rig.await_slots(2)
        (gate,) = gates(1)
        (slow,) = rig.submit([gate.path])
        gate.await_arrival()
        (fast,) = rig.submit([""])
        rig.outcomes_of([fast])
        gate.open()
        rig.outcomes_of([slow])
        assert [outcome.id for outcome in rig.outcomes] == [fast, slow]

    @pytest.mark.usefixtures("beside")
    def test_as_many_tickets_run_at_once_as_there_are_slots(self, rig: Rig, gates: Callable[[int], list[Gate]]) -> None:
        rig.put(stop_at)
        closed = gates(rig.await_slots(2))
        ids = rig.submit(*[[gate.path] for gate in closed])
        for gate in closed:
            gate.await_arrival()
        for gate in closed:
            gate.open()
        assert rig.kinds(ids) == [Kind.DONE] * len(closed)

    @pytest.mark.usefixtures("beside")
    @pytest.mark.parametrize("timeout", [0, 0.01])
    def test_wait_returns_in_time_though_an_item_runs(
        self, rig: Rig, gates: Callable[[int], list[Gate]], timeout: float
    ) -> None:
        rig.put(stop_at)
        rig.await_slots()
        (gate,) = gates(1)
        ids = rig.submit([gate.path])
        gate.await_arrival()
        rig.wait(0)  # it may tell once of a slot that came meanwhile
        assert rig.wait(timeout) == []
        gate.open()
        assert rig.kinds(ids) == [Kind.DONE]

    def test_wait_of_0_returns_at_once_when_nothing_was_submitted(self, rig: Rig) -> None:
        assert rig.wait(0) == []

    def test_a_worker_is_ready_soon(self, rig: Rig) -> None:
        assert rig.await_slots() >= 1

    # ---- items that fail ---------------------------------------------------------------------------------------------

    @contract(4)
    def test_an_item_that_raises_leaves_its_neighbours_their_values_and_their_worker(self, rig: Rig) -> None:
        rig.put(lambda x: (1 // x, os.getpid()))
        (result,) = rig.run([1, 0, 1])
        before, nothing, after = result.values
        assert (before[0], nothing, after[0]) == (1, None, 1)
        assert before[1] == after[1]
        (trouble,) = result.troubles
        assert (trouble.offset, trouble.error_type) == (1, "ZeroDivisionError")
        assert "by zero" in trouble.message

    @contract(4)
    def test_the_worker_of_an_item_that_raised_runs_the_next_tickets(self, rig: Rig) -> None:
        rig.put(lambda x: os.getpid() if x else 1 // x)
        rig.await_slots()
        n_workers = 2 * max(rig.engine.slots(), 1)  # of a cluster, others may have come meanwhile
        results = rig.run(*[[1, 0] for _ in range(10 * n_workers)])
        assert len({result.values[0] for result in results}) <= n_workers

    @contract(6)
    def test_an_item_that_exits_is_a_failed_item_and_no_dead_worker(self, rig: Rig) -> None:
        def leave(x: int) -> int:
            if x == 1:
                raise SystemExit(3)
            return os.getpid()

        rig.put(leave)
        (result,) = rig.run([0, 1, 2])
        assert result.values[0] == result.values[2]
        assert [trouble.error_type for trouble in result.troubles] == ["SystemExit"]

    # ---- programs ----------------------------------------------------------------------------------------------------

    def test_each_ticket_runs_the_program_that_it_names(self, rig: Rig) -> None:
        rig.put(lambda x: x + 1, "add")
        rig.put(lambda x: x * 10, "multiply")
        chunk = [1, 2]
        assert [rig.run(chunk, key=key)[0].values for key in ["add", "multiply", "add"]] == [[2, 3], [10, 20], [2, 3]]

    def test_a_program_that_was_dropped_leaves_the_others(self, rig: Rig) -> None:
        rig.put(lambda x: x + 1, "first")
        rig.put(lambda x: x - 1, "second")
        rig.run([1], key="first")
        rig.engine.drop("first")
        assert rig.run([1], key="second")[0].values == [0]

    def test_a_worker_prepares_a_program_once(self, rig: Rig, tmp_path: Path) -> None:
        class Counting:
            def __init__(self, path: str) -> None:
                with open(path, "a") as file:
                    file.write("built\n")

            def __call__(self, item: int) -> int:
                return item

        log = tmp_path / "built"
        rig.put(Counting, init=(str(log),))
        slots = rig.await_slots()
        rig.run(*[[number] for number in range(30)])
        assert 1 <= len(log.read_text().splitlines()) <= max(slots, rig.engine.slots())

    def test_a_program_that_cannot_be_built_is_told_and_others_run(self, rig: Rig) -> None:
        class Broken:
            def __init__(self) -> None:
                raise ValueError("no such model")

            def __call__(self, item: int) -> int:
                return item

        rig.put(Broken, "broken")
        rig.put(abs, "sound")
        (outcome,) = rig.outcomes_of(rig.submit([1], key="broken"))
        assert outcome.kind is Kind.BAD_PROGRAM
        assert "no such model" in rig.trouble(outcome).message
        assert rig.run([-1], key="sound")[0].values == [1]

    def test_a_program_that_cannot_be_loaded_is_told_and_others_run(self, rig: Rig) -> None:
        class Unloadable:
            def __setstate__(self, state: object) -> None:
                raise ValueError("made for another version")

        poison = Unloadable()
        poison.__dict__["state"] = 1
        rig.put(lambda item: poison, "broken")
        rig.put(abs, "sound")
        (outcome,) = rig.outcomes_of(rig.submit([1], key="broken"))
        if rig.engine.info.takes_objects:  # as it is: nothing is loaded
            assert rig.result(outcome).values == [poison]
            return
        assert outcome.kind is Kind.BAD_PROGRAM
        assert "made for another version" in rig.trouble(outcome).message
        assert rig.run([-1], key="sound")[0].values == [1]
