"""Cancelling, opening and closing."""

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fourfold.distribute.engine import Engine
from fourfold.records import Kind
from fourfold.testing.rig import PATIENCE_S, Fixtures, Gate, Rig, stop_at


class Ends(Fixtures):
    """What is cancelled or closed ends, and nothing else does."""

    def test_a_ticket_that_is_cancelled_before_it_starts_never_runs(self, rig: Rig, tmp_path: Path) -> None:
        rig.put(lambda path: open(path, "w").close())
        paths = [str(tmp_path / f"{number}") for number in range(3)]
        ids = rig.submit(*[[path] for path in paths])
        rig.engine.cancel(ids)
        ran = [os.path.exists(path) for path in paths if rig.outcomes_of(ids)]
        # Those which had started by then are done, or ended between items.
        assert [kind is not Kind.CANCELLED or not ran[number] for number, kind in enumerate(rig.kinds(ids))] == [True] * 3

    @pytest.mark.usefixtures("beside")
    def test_tickets_that_wait_behind_running_ones_never_run_once_cancelled(
        self, rig: Rig, gates: Callable[[int], list[Gate]], tmp_path: Path
    ) -> None:
        def pass_and_mark(item: tuple[str, str]) -> None:
            stop_at(item[0])
            if item[1]:
                open(item[1], "w").close()

        rig.put(pass_and_mark)
        closed = gates(rig.await_slots(2))
        running = rig.submit(*[[(gate.path, "")] for gate in closed])
        for gate in closed:
            gate.await_arrival()
        marks = [str(tmp_path / f"mark-{number}") for number in range(20)]
        waiting = rig.submit(*[[("", mark)] for mark in marks])
        rig.engine.cancel(waiting)
        for gate in closed:
            gate.open()
        kinds = rig.kinds(waiting)
        n_late = len(closed) if rig.engine.info.kills == "bundle" else 0  # those have gone too far to be taken back
        assert kinds.count(Kind.CANCELLED) >= 20 - n_late
        assert rig.kinds(running) == [Kind.DONE] * len(closed)
        assert [os.path.exists(mark) for mark in marks] == [kind is Kind.DONE for kind in kinds]

    @pytest.mark.usefixtures("beside")
    def test_a_running_ticket_that_is_cancelled_ends_after_the_item_that_it_is_on(
        self, rig: Rig, gates: Callable[[int], list[Gate]]
    ) -> None:
        rig.put(stop_at)
        rig.await_slots()
        (gate,) = gates(1)
        ids = rig.submit([gate.path, "", "", ""])
        gate.await_arrival()
        rig.engine.cancel(ids)
        gate.open()
        (outcome,) = rig.outcomes_of(ids)
        info = rig.engine.info
        if info.knows_started:
            assert rig.result(outcome).done == (1 if info.stops_items else 4)
        else:  # it may end before it hears of that, and be called cancelled though it ran
            assert outcome.kind is Kind.CANCELLED or 1 <= rig.result(outcome).done <= 4

    @pytest.mark.usefixtures("beside")
    def test_only_the_tickets_that_are_named_are_cancelled(self, rig: Rig, gates: Callable[[int], list[Gate]]) -> None:
        rig.put(stop_at)
        closed = gates(rig.await_slots(2))
        rig.submit(*[[gate.path] for gate in closed])
        for gate in closed:
            gate.await_arrival()
        stays, goes = rig.submit([""], [""])
        rig.engine.cancel([goes])
        for gate in closed:
            gate.open()
        if rig.engine.info.kills == "bundle":
            assert rig.kinds([stays]) == [Kind.DONE]
        else:
            assert rig.kinds([stays, goes]) == [Kind.DONE, Kind.CANCELLED]

    @pytest.mark.usefixtures("beside")
    def test_a_hard_cancel_gives_up_an_item_that_does_not_end(self, rig: Rig, gates: Callable[[int], list[Gate]]) -> None:
        rig.put(stop_at)
        rig.await_slots()
        (gate,) = gates(1)
        ids = rig.submit([gate.path])
        gate.await_arrival()
        rig.engine.cancel(hard=True)
        assert rig.kinds(ids) == [Kind.LOST]
        (after,) = rig.run([""])  # and the engine goes on
        assert after.done == 1
        gate.open()

    @pytest.mark.usefixtures("beside")
    def test_a_hard_cancel_tells_waiting_tickets_that_they_never_started(
        self, rig: Rig, gates: Callable[[int], list[Gate]]
    ) -> None:
        rig.put(stop_at)
        closed = gates(rig.await_slots(2))
        running = rig.submit(*[[gate.path] for gate in closed])
        for gate in closed:
            gate.await_arrival()
        waiting = rig.submit(*[[""] for _ in range(10)])
        rig.engine.cancel(hard=True)
        assert rig.kinds(running) == [Kind.LOST] * len(closed)
        if rig.engine.info.knows_started:
            assert rig.kinds(waiting) == [Kind.CANCELLED] * 10
        else:  # some may have run in the place of those that were ended
            assert set(rig.kinds(waiting)) <= {Kind.CANCELLED, Kind.LOST, Kind.DONE}
        for gate in closed:
            gate.open()

    def test_a_hard_cancel_ends_an_item_that_never_ends(self, rig: Rig, gates: Callable[[int], list[Gate]]) -> None:
        if rig.engine.info.kills == "no":
            pytest.skip("this engine cannot end an item from outside")

        def run_for_ever(path: str) -> None:
            stop_at(path)
            while True:
                pass

        (gate,) = gates(1)
        rig.put(run_for_ever, "endless")
        rig.put(abs, "sound")
        rig.await_slots()
        ids = rig.submit([gate.path], key="endless")
        gate.await_arrival()
        gate.open()
        rig.engine.cancel(ids, hard=True)
        assert rig.kinds(ids) == [Kind.LOST]
        assert rig.run([-1], key="sound")[0].values == [1]

    # ---- opening and closing -----------------------------------------------------------------------------------------

    def test_close_and_open_may_come_twice(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        engine.open()
        engine.open()
        engine.close()
        engine.close()

    def test_close_may_come_without_open(self, make_engine: Callable[[], Engine]) -> None:
        make_engine().close()

    def test_an_engine_that_was_closed_in_the_middle_can_be_opened_again(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        with Rig(engine) as rig:
            rig.put(lambda x: x)
            rig.submit(*[[number] for number in range(20)])
            rig.engine.cancel([15, 16])
        with Rig(engine) as rig:
            rig.put(lambda x: -x)
            ids = rig.submit(*[[number] for number in range(10)])
            assert [rig.result(outcome).values for outcome in rig.outcomes_of(ids)] == [[-number] for number in range(10)]
            rig.wait(0)
            assert Counter(outcome.id for outcome in rig.outcomes) == Counter(ids)

    @pytest.mark.usefixtures("beside")
    def test_close_does_not_wait_for_ever_for_an_item(
        self, make_engine: Callable[[], Engine], gates: Callable[[int], list[Gate]]
    ) -> None:
        (gate,) = gates(1)
        with Rig(make_engine()) as rig:
            rig.put(stop_at)
            rig.await_slots()
            rig.submit([gate.path])
            gate.await_arrival()
        gate.open()

    def test_what_is_held_after_close_does_not_grow(self, make_engine: Callable[[], Engine]) -> None:
        process = psutil.Process()
        held = []
        for _ in range(4):
            with Rig(make_engine()) as rig:
                rig.put(lambda x: x)
                rig.run(*[[b"x" * 100_000] for _ in range(6)])
            held.append((process.num_fds(), threading.active_count(), len(process.children(recursive=True))))
        # A cluster starts and ends threads and processes of its own as it likes.
        slack = 3 if make_engine().info.elsewhere else 0
        assert all(last <= early + slack for last, early in zip(held[-1], held[1], strict=True)), held

    def test_two_engines_at_once_in_two_threads_do_not_mix(self, make_engine: Callable[[], Engine]) -> None:
        both_run = threading.Barrier(2)
        found: dict[int, list[list[int]]] = {}

        def use(number: int) -> None:
            with Rig(make_engine()) as rig:
                rig.put(lambda x: x * 2 + number)
                both_run.wait(PATIENCE_S)
                found[number] = [result.values for result in rig.run(*[[x] for x in range(50)])]

        threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert found == {number: [[x * 2 + number] for x in range(50)] for number in range(2)}
