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
from fourfold.testing.rig import PATIENCE_S, Fixtures, Gate, Rig, await_end, await_text, stop_at
from fourfold.testing.rows import contract

KILLED_S = 10.0
"""Seconds in which the process of an item that never ends must be gone after a hard cancel."""


class Ends(Fixtures):
    """What is cancelled or closed ends, and nothing else does."""

    @contract(16)
    def test_a_ticket_that_is_cancelled_before_it_starts_never_runs(self, rig: Rig, tmp_path: Path) -> None:
        rig.put(lambda path: open(path, "w").close())
        paths = [str(tmp_path / f"{number}") for number in range(3)]
        ids = rig.submit(*[[path] for path in paths])
        rig.engine.cancel(ids)
        ran = [os.path.exists(path) for path in paths if rig.outcomes_of(ids)]
        # Those which had started by then are done, or ended between items.
        assert [kind is not Kind.CANCELLED or not ran[number] for number, kind in enumerate(rig.kinds(ids))] == [True] * 3

    @contract(16)
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

    @contract(17)
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

    @contract(16)
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

    @contract(18)
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

    @contract(18)
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

    @contract(18)
    @pytest.mark.usefixtures("beside")
    def test_a_hard_cancel_ends_an_item_that_never_ends_or_gives_it_up(
        self, rig: Rig, gates: Callable[[int], list[Gate]], tmp_path: Path
    ) -> None:
        """Its process is gone where the engine kills; else it goes on, and what comes of it is told to nobody."""
        is_killed, note = rig.engine.info.kills != "no", tmp_path / "note"

        def run_for_ever(path: str) -> None:
            note.write_text(str(os.getpid()))
            stop_at(path)
            while is_killed:
                pass
            note.write_text("ended")

        (gate,) = gates(1)
        rig.put(run_for_ever, "endless")
        rig.put(abs, "sound")
        rig.await_slots()
        ids = rig.submit([gate.path], key="endless")
        gate.await_arrival()
        pid = int(note.read_text())
        if is_killed:
            gate.open()
        rig.engine.cancel(ids, hard=True)
        assert rig.kinds(ids) == [Kind.LOST]
        if is_killed:
            await_end(pid, KILLED_S)
        slots = rig.await_slots()
        assert [result.values for result in rig.run(*[[-1]] * 2 * slots, key="sound")] == [[1]] * 2 * slots
        if not is_killed:
            gate.open()
            await_text(note, "ended")
            rig.run([-1], key="sound")
        assert [outcome.kind for outcome in rig.outcomes if outcome.id in ids] == [Kind.LOST]

    @contract(18)
    def test_a_hard_cancel_leaves_tickets_that_nobody_has_begun_undone(self, rig: Rig, tmp_path: Path) -> None:
        rig.put(lambda path: open(path, "w").close())
        paths = [tmp_path / f"{number}" for number in range(5)]
        ids = rig.submit(*[[str(path)] for path in paths])
        rig.engine.cancel(hard=True)
        kinds = rig.kinds(ids)
        assert set(kinds) <= {Kind.CANCELLED, Kind.LOST, Kind.DONE}
        assert not any(path.exists() for path, kind in zip(paths, kinds, strict=True) if kind is Kind.CANCELLED)
        if rig.engine.info.inline:
            assert kinds == [Kind.CANCELLED] * 5
        after = tmp_path / "after"
        rig.run([str(after)])
        assert after.exists()

    # ---- opening and closing -----------------------------------------------------------------------------------------

    @contract(34)
    def test_close_and_open_may_come_twice(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        engine.open()
        engine.open()
        engine.close()
        engine.close()

    @contract(34)
    def test_close_may_come_without_open(self, make_engine: Callable[[], Engine]) -> None:
        make_engine().close()

    @contract(34)
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

    @contract(34)
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

    @contract(34)
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

    @contract(31)
    def test_two_engines_at_once_in_two_threads_do_not_mix(self, make_engine: Callable[[], Engine]) -> None:
        both_run = threading.Barrier(2)
        found: dict[int, list[list[int]]] = {}

        def use(number: int) -> None:
            with Rig(make_engine()) as rig:
                rig.put(lambda x: x * 2 + number)
                both_run.wait(PATIENCE_S)
                found[number] = [result.values for result in rig.run(*[[x] for x in range(20)])]

        threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert found == {number: [[x * 2 + number] for x in range(20)] for number in range(2)}
