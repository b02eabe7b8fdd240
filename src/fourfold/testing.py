"""The tests that every engine passes, for engines of your own.

    import pytest
    from fourfold.testing import EngineContract

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def make_engine(self):
            return lambda: MyEngine(workers=2)

It needs pytest, and engines whose workers are on this machine: items and tests meet at named pipes and files.
"""

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from fourfold.call import Call
from fourfold.compose import imap
from fourfold.compose import map as parallel_map
from fourfold.distribute.driver import Codec
from fourfold.distribute.engine import Engine
from fourfold.execute.objects import ObjectCodec
from fourfold.execute.parcels import ParcelCodec
from fourfold.options import resolve
from fourfold.records import Chunk, ChunkResult, Kind, Outcome, Ticket, Trouble

PATIENCE_S = 60.0
"""Seconds until a test gives an engine up. Smaller: fails on a busy machine. Larger: a broken engine is told later."""


class Rig:
    """An engine with what a driver puts around it: chunks in, results out, each outcome noted."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._codec: Codec = ObjectCodec() if engine.info.takes_objects else ParcelCodec()
        self._ids = itertools.count()
        self._submitted: set[int] = set()
        self.outcomes: list[Outcome] = []
        """All that came so far, in the order in which they came."""

    def __enter__(self) -> Self:
        self.engine.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.engine.close()

    def put(self, fn: Callable[..., Any], key: str = "program", init: tuple[Any, ...] = ()) -> None:
        """Give the engine the program that runs `fn`, made as every call makes it."""
        call = Call(fn, (), resolve({"engine": self.engine, "init": init}))
        self.engine.put(key, call._lane.program())

    def submit(self, *chunks: Sequence[Any], key: str = "program") -> list[int]:
        """Submit one ticket for each chunk, all at once; returns their ids."""
        tickets = []
        for items in chunks:
            payload, _ = self._codec.pack(Chunk(0, items))
            tickets.append(Ticket(next(self._ids), key, payload, len(items)))
        ids = [ticket.id for ticket in tickets]
        self._submitted.update(ids)
        self.engine.submit(tickets)
        return ids

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Wait once; returns what came of tickets. Id -1 tells of an idle worker's death, and is no ticket's."""
        came = [outcome for outcome in self.engine.wait(timeout) if outcome.id >= 0]
        self.outcomes += came
        return came

    def outcomes_of(self, ids: Collection[int]) -> list[Outcome]:
        """Wait until all these tickets have an outcome; returns them in the order of `ids`."""
        deadline = time.monotonic() + PATIENCE_S
        while missing := set(ids) - {outcome.id for outcome in self.outcomes}:
            assert time.monotonic() < deadline, f"no outcome of the tickets {sorted(missing)} in {PATIENCE_S} s"
            self.wait(0.1)
        found = {outcome.id: outcome for outcome in self.outcomes}
        return [found[id] for id in ids]

    def run(self, *chunks: Sequence[Any], key: str = "program") -> list[ChunkResult]:
        """Run chunks, all of which must be done."""
        return [self.result(outcome) for outcome in self.outcomes_of(self.submit(*chunks, key=key))]

    def result(self, outcome: Outcome) -> ChunkResult:
        """The result in an outcome, which must be DONE."""
        assert outcome.kind is Kind.DONE, outcome
        result, _ = self._codec.unpack(outcome.data)
        return result

    def trouble(self, outcome: Outcome) -> Trouble:
        """What an outcome BAD_PROGRAM or BAD_TICKET tells."""
        return self._codec.trouble(outcome.data)

    def await_slots(self, count: int = 1) -> int:
        """Wait until so many tickets can run at once; returns how many can."""
        deadline = time.monotonic() + PATIENCE_S
        while (slots := self.engine.slots()) < count:
            assert time.monotonic() < deadline, f"{slots} slots and not {count} in {PATIENCE_S} s"
            self.wait(0.1)
        return slots

    def kinds(self, ids: Collection[int]) -> list[Kind]:
        """What became of these tickets."""
        return [outcome.kind for outcome in self.outcomes_of(ids)]


class Gate:
    """Items stop at it, wherever they run, until the test opens it. A pipe with a name: nobody polls, nobody sleeps."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = -1

    def await_arrival(self) -> None:
        """Wait until an item stands at the gate."""
        self._fd = os.open(self.path, os.O_WRONLY)

    def open(self) -> None:
        """Let the item go on."""
        os.close(self._fd)


def _travelling() -> Callable[[str], None]:
    # A function inside a function travels by value: workers need not import this module, and pytest with it.
    def stop_at(path: str) -> None:
        """Stop at the gate of this path; an empty one is no gate."""
        if path:
            with open(path) as pipe:
                pipe.read()

    return stop_at


stop_at = _travelling()


class EngineContract:
    """What holds for every engine, and what its `info` says of it. Override `make_engine`."""

    @pytest.fixture
    def make_engine(self) -> Callable[[], Engine]:
        """Makes an engine of two workers or more, where it can have them. Each call makes another one."""
        raise NotImplementedError("override make_engine")

    @pytest.fixture
    def rig(self, make_engine: Callable[[], Engine]) -> Iterator[Rig]:
        """One open engine."""
        with Rig(make_engine()) as rig:
            yield rig

    @pytest.fixture
    def gates(self, tmp_path: Path) -> Callable[[int], list[Gate]]:
        """Makes gates."""
        return lambda count: [Gate(tmp_path / f"gate-{number}") for number in range(count)]

    @pytest.fixture
    def beside(self, make_engine: Callable[[], Engine]) -> None:
        """For tests of what happens while items run."""
        if make_engine().info.inline:
            pytest.skip("this engine runs items inside wait: nothing happens beside them")

    # ---- tickets and outcomes ----------------------------------------------------------------------------------------

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

    def test_an_item_that_raises_leaves_its_neighbours_their_values(self, rig: Rig) -> None:
        rig.put(lambda x: 1 // x)
        (result,) = rig.run([1, 0, 1])
        assert result.values == [1, None, 1]
        assert [(trouble.offset, trouble.error_type) for trouble in result.troubles] == [(1, "ZeroDivisionError")]

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
        if rig.engine.info.takes_objects:
            pytest.skip("this engine takes programs as they are: nothing is loaded")

        class Unloadable:
            def __setstate__(self, state: object) -> None:
                raise ValueError("made for another version")

        poison = Unloadable()
        poison.__dict__["state"] = 1
        rig.put(lambda item: poison, "broken")
        rig.put(abs, "sound")
        (outcome,) = rig.outcomes_of(rig.submit([1], key="broken"))
        assert outcome.kind is Kind.BAD_PROGRAM
        assert "made for another version" in rig.trouble(outcome).message
        assert rig.run([-1], key="sound")[0].values == [1]

    # ---- cancelling --------------------------------------------------------------------------------------------------

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

    # ---- under a call ------------------------------------------------------------------------------------------------

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
