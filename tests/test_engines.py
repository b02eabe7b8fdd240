"""The contract of engines, held by each engine that fourfold brings along."""

import os
import signal
from collections.abc import Callable

import pytest
from running import until

from fourfold.distribute.engine import Engine
from fourfold.distribute.engines.on_processes.engine import Processes
from fourfold.distribute.engines.on_this_thread import ThisThread
from fourfold.distribute.engines.on_threads import Threads
from fourfold.distribute.engines.simulated import Simulated
from fourfold.execute.troubles import describe
from fourfold.records import Kind, Outcome, Trouble
from fourfold.testing import EngineContract, Gate, Rig, stop_at


def as_trouble(error: BaseException) -> Trouble:
    return describe(error, 0, None)


class TestThisThread(EngineContract):
    @pytest.fixture
    def make_engine(self) -> Callable[[], Engine]:
        return lambda: ThisThread(as_trouble)


class TestThreads(EngineContract):
    @pytest.fixture
    def make_engine(self) -> Callable[[], Engine]:
        return lambda: Threads(2, as_trouble)


class TestProcesses(EngineContract):
    @pytest.fixture
    def make_engine(self) -> Callable[[], Engine]:
        return lambda: Processes(2, lambda record: None)

    def test_a_worker_that_dies_tells_which_item_it_was_on(self, rig: Rig) -> None:
        rig.put(lambda x: os._exit(7) if x == 3 else x)
        rig.await_slots(2)
        (outcome,) = rig.outcomes_of(rig.submit([0, 1, 2, 3, 4]))
        assert outcome.kind is Kind.LOST
        assert outcome.running is not None
        first, count = outcome.running  # fast items run in small blocks: the mark names one of those
        assert first <= 3 < first + count
        assert "exited with code 7" in outcome.reason

    def test_what_waited_at_a_worker_that_dies_is_no_ones_fault(self, rig: Rig, gates: Callable[[int], list[Gate]]) -> None:
        rig.put(lambda path: (stop_at(path), os._exit(7)))
        closed = gates(rig.await_slots(2))
        running = rig.submit(*[[gate.path] for gate in closed])
        for gate in closed:
            gate.await_arrival()
        waiting = rig.submit(*[[gate.path] for gate in closed])
        for gate in closed:
            gate.open()
        assert rig.kinds(running) == [Kind.LOST] * len(closed)
        assert rig.kinds(waiting) == [Kind.COLLATERAL] * len(closed)

    def test_the_death_of_an_idle_worker_is_told_without_a_ticket(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        with Rig(engine) as rig:
            rig.put(lambda x: os.getpid())
            rig.await_slots(2)
            (result,) = rig.run([0])
            os.kill(result.values[0], signal.SIGKILL)
            told: list[Outcome] = []
            until(lambda: told.extend(engine.wait(0.1)) or told, "the death is told")
            assert [(outcome.id, outcome.kind) for outcome in told] == [(-1, Kind.LOST)]
            rig.await_slots(2)


class TestSimulated(EngineContract):
    @pytest.fixture
    def beside(self) -> None:
        pytest.skip("not applicable: this engine runs items inside wait, and nothing happens beside them")

    @pytest.fixture
    def make_engine(self) -> Callable[[], Engine]:
        return lambda: Simulated(2, lambda item: 0.001)
