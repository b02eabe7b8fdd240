"""The engine on Dask, without a cluster: what becomes of workers that die in a bad moment."""

import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fourfold.distribute.engines.on_dask import cluster
from fourfold.distribute.engines.on_dask import engine as on_dask_engine
from fourfold.distribute.engines.on_dask.flight import Flight
from fourfold.distribute.orders import Orders
from fourfold.engines import Dask
from fourfold.errors import EngineError
from fourfold.records import Kind, Parcel, Ticket
from fourfold.version import VERSION


@pytest.fixture(autouse=True)
def dask_is_here() -> None:
    pytest.importorskip("distributed")


class Task:
    """A future of Dask, of which the test says what becomes of it."""

    def __init__(self, status: str = "pending") -> None:
        self.status, self._tell = status, lambda future: None

    def add_done_callback(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell

    def end(self, status: str, result: Any = None) -> None:
        self.status, self._result = status, result
        self._tell(self)

    def exception(self) -> BaseException:
        return self._error

    def result(self, timeout: float | None = None) -> Any:
        return self._result


class Client:
    """A client of a scheduler with one worker, which keeps whatever it is asked to, unless it has other answers.

    Attributes:
        sent: The tasks, in order; `n_stores`: how often something was to be stored.
    """

    def __init__(self, *answers: BaseException | str) -> None:
        self.status, self.workers = "running", {"tcp://worker": {"nthreads": 1}}
        self.scheduler = None
        self.sent: list[Task] = []
        self.n_stores = 0
        self._answers = [*answers]

    def scatter(self, data: list[Any], **options: Any) -> list[Any]:
        self.n_stores += 1
        answer = self._answers.pop(0) if self._answers else ""
        if isinstance(answer, BaseException):
            raise answer
        return [Task("finished") for _ in data]

    def submit(self, *work: Any, **options: Any) -> Task:
        self.sent.append(Task())
        return self.sent[-1]

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": self.workers}


def lost() -> Any:
    """A task of which Dask has lost what it needs."""
    return SimpleNamespace(status="cancelled")


DONE = {"kind": int(Kind.DONE), "data": (b"",)}
"""What a task returns."""


def engine_with(*tasks: Any, client: Client | None = None) -> Dask:
    """An engine that has put its program, in whose cluster these tasks are, by numbers from 0."""
    engine = Dask(client=client or Client())
    engine.connection.client = engine.connection._given
    engine.connection._orders = Orders(VERSION, ())
    engine.put("program", Parcel(b"program"))
    program = engine._programs["program"]
    engine._flying = {id: Flight(task, f"name-{id}", "program", program, None) for id, task in enumerate(tasks)}
    return engine


def tickets(*ids: int) -> list[Ticket]:
    return [Ticket(id, "program", Parcel(b"items"), 1) for id in ids]


def kinds(engine: Dask, *arrived: tuple[int, Any]) -> list[Kind]:
    return [outcome.kind for id, task in arrived for outcome in engine._outcome(id, task)]


def told(engine: Dask) -> list[tuple[int, Kind]]:
    return [(outcome.id, outcome.kind) for outcome in engine.wait(0)]


def test_of_tasks_that_are_lost_together_the_last_one_that_is_heard_of_was_not_alone_either() -> None:
    tasks = [lost(), lost(), lost()]
    assert kinds(engine_with(*tasks), *enumerate(tasks)) == [Kind.COLLATERAL] * 3


def test_a_task_that_is_lost_while_no_other_is_there_has_lost_its_worker() -> None:
    task = lost()
    assert kinds(engine_with(task), (0, task)) == [Kind.LOST]


def after_two_losses_together() -> tuple[Client, Dask]:
    """An engine whose tickets were lost two at a time, and that twice."""
    client = Client()
    engine = engine_with(client=client)
    for ids in ((0, 1), (2, 3)):
        engine.submit(tickets(*ids))
        for task in client.sent[-2:]:
            task.end("cancelled")
        assert told(engine) == [(id, Kind.COLLATERAL) for id in ids]
    return client, engine


def test_two_items_that_are_lost_together_again_run_one_by_one_and_each_is_found() -> None:
    client, engine = after_two_losses_together()
    engine.submit(tickets(4, 5))
    assert len(client.sent) == 5, "the other one waits"
    client.sent[-1].end("cancelled")
    assert told(engine) == [(4, Kind.LOST)]
    assert len(client.sent) == 6
    client.sent[-1].end("cancelled")
    assert told(engine) == [(5, Kind.LOST)]


def test_those_that_were_lost_together_again_for_no_fault_of_theirs_run_one_by_one_and_the_next_ones_together() -> None:
    client, engine = after_two_losses_together()
    engine.submit(tickets(4, 5, 6, 7))
    for id in (4, 5):
        assert len(client.sent) == id + 1
        client.sent[-1].end("finished", DONE)
        assert told(engine) == [(id, Kind.DONE)]
    assert len(client.sent) == 8


def test_a_ticket_that_waits_to_run_alone_never_starts_once_cancelled() -> None:
    client = Client()
    engine = engine_with(client=client)
    engine._n_alone = 2
    engine.submit(tickets(0, 1))
    engine.cancel([1])
    assert told(engine) == [(1, Kind.CANCELLED)]
    client.sent[-1].end("finished", DONE)
    assert told(engine) == [(0, Kind.DONE)]
    assert len(client.sent) == 1


def given_up(task: Task) -> None:
    """Dask has seen the workers of this task die more often than it allows."""
    from distributed.scheduler import KilledWorker

    worker = SimpleNamespace(address="tcp://127.0.0.1:1")
    task._error = KilledWorker("task", worker, 3)
    task.end("error")


def test_a_task_that_is_given_up_with_its_workers_is_blamed_where_it_was_the_only_one() -> None:
    client = Client()
    engine = engine_with(client=client)
    engine.submit(tickets(0))
    given_up(client.sent[-1])
    assert told(engine) == [(0, Kind.LOST)]


def test_of_tasks_that_are_given_up_together_none_is_blamed_before_it_was_alone() -> None:
    client = Client()
    engine = engine_with(client=client)
    engine.submit(tickets(0, 1, 2))
    for task in client.sent[:2]:
        given_up(task)
    assert told(engine) == [(0, Kind.COLLATERAL), (1, Kind.COLLATERAL)]
    engine.submit(tickets(3, 4))
    assert len(client.sent) == 3, "what was there when they died is still on its way"
    client.sent[2].end("finished", DONE)
    assert told(engine) == [(2, Kind.DONE)]
    assert len(client.sent) == 4, "the other one waits"
    given_up(client.sent[3])
    assert told(engine) == [(3, Kind.LOST)]
    client.sent[4].end("finished", DONE)
    assert told(engine) == [(4, Kind.DONE)]
    engine.submit(tickets(5, 6))
    assert len(client.sent) == 7, "those that come after them go together"


def test_a_cluster_on_which_all_tasks_are_given_up_together_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    engine = engine_with(client=client)
    monkeypatch.setattr(on_dask_engine, "UNDONE_IN_A_ROW", 3)
    engine.submit(tickets(*range(4)))
    for task in client.sent[:4]:
        given_up(task)
    assert [kind for _, kind in told(engine)] == [Kind.COLLATERAL] * 3 + [Kind.ENGINE_DOWN]


def test_a_task_whose_function_was_lost_before_it_was_sent_has_lost_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    engine = engine_with(client=client)
    engine._programs["program"].place[0].status = "cancelled"
    engine.submit(tickets(0))
    client._answers = [TimeoutError("No valid workers found")]
    client.sent[-1].end("cancelled")
    assert told(engine) == [(0, Kind.COLLATERAL)]
    engine.submit(tickets(1))
    client._answers = [TimeoutError("No valid workers found")]
    client.sent[-1].end("cancelled")
    monkeypatch.setattr(on_dask_engine, "PROBE_S", -1.0)
    assert told(engine) == [(1, Kind.ENGINE_DOWN)]


def test_what_a_lost_task_needed_is_stored_again_also_when_its_loss_is_not_known_yet() -> None:
    client = Client()
    engine = engine_with(client=client)
    before = engine._programs["program"].place
    engine.submit(tickets(0, 1))
    for task in client.sent:
        task.end("cancelled")
    told(engine)
    assert engine._programs["program"].place is not before
    assert client.n_stores == 2, "once for all that were lost with it"


def test_of_tasks_that_are_lost_with_the_last_worker_one_waits_for_another_worker_which_is_asked_for() -> None:
    client = Client()
    engine = engine_with(client=client)
    engine.submit(tickets(*range(8)))
    client._answers = [TimeoutError("No valid workers found")] * 8
    for task in client.sent:
        task.end("cancelled")
    assert told(engine) == [(id, Kind.COLLATERAL) for id in range(8)]
    assert client.n_stores == 2, "one for the call, and one that failed"
    assert len(client.sent) == 9, "a cluster starts workers for a task"


def test_a_call_stores_its_program_and_the_function_of_a_task_at_once_and_keeps_neither() -> None:
    client = Client()
    engine = engine_with(client=client)
    assert client.n_stores == 1
    assert len(engine._programs["program"].place) == 2
    places = [weakref.ref(future) for future in engine._programs["program"].place]
    engine.drop("program")
    assert [place() for place in places] == [None, None]


class Empty(Client):
    """A client of a scheduler that has no worker, and starts one for a task."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__()
        self.workers, self._found = {}, found

    def submit(self, *work: Any, **options: Any) -> Task:
        task = super().submit(*work, **options)
        task.end("finished", self._found)
        self.workers["tcp://new"] = {"nthreads": 1}
        return task

    def scatter(self, data: list[Any], **options: Any) -> list[Any]:
        if not self.workers:
            raise TimeoutError("No valid workers found")
        return super().scatter(data, **options)


FOUND = {"python": sys.version_info[:3], "executable": sys.executable, "fourfold": VERSION, "cloudpickle": "3"}


def test_a_call_on_a_cluster_that_has_scaled_to_no_worker_has_one_started() -> None:
    client = Empty(FOUND)
    engine = Dask(client=client)
    for n_probes in (1, 2):
        engine.open()
        engine.put("program", Parcel(b"program"))
        assert engine.slots() == 1
        assert len(client.sent) == n_probes
        engine.drop("program")
        client.workers.clear()


def test_what_travels_along_is_stored_again_where_a_new_worker_was_started_for_it(tmp_path: Path) -> None:
    client = Empty(FOUND)
    (tmp_path / "words.txt").write_text("here")
    engine = Dask(client=client, ship=[str(tmp_path)])
    engine.open()
    engine.connection.cargo.status = "cancelled"
    client.workers.clear()
    engine.open()
    assert engine.connection.cargo.status == "finished"


def test_what_travels_along_and_cannot_be_stored_again_opens_the_connection_anew(tmp_path: Path) -> None:
    client = Empty(FOUND)
    (tmp_path / "words.txt").write_text("here")
    engine = Dask(client=client, ship=[str(tmp_path)])
    engine.open()
    engine.connection.cargo.status = "cancelled"
    client._answers = [ValueError("not now")]
    engine.open()
    assert engine.connection.cargo.status == "finished"
    assert engine.connection.generation == 2
    engine.connection.cargo.status = "cancelled"
    client._answers = [ValueError("not now"), ValueError("never")]
    with pytest.raises(EngineError, match="never"):
        engine.open()


def test_that_no_worker_is_there_is_waited_for_once() -> None:
    engine = engine_with(client=Client())
    engine.connection.client = client = Client(TimeoutError("No valid workers found"))
    with pytest.raises(TimeoutError):
        engine.connection.scatter(b"data")
    assert client.n_stores == 1


def test_a_worker_that_died_unnoticed_is_asked_to_store_something_once_or_more_and_then_another_one_is() -> None:
    engine = engine_with()
    engine.connection.client = Client(ConnectionResetError("it is gone"), OSError("not noticed yet"), "stored")
    assert len(engine.connection.scatter(b"data")) == 1
    assert engine.connection.client.n_stores == 3


def test_what_cannot_be_stored_is_told_when_the_time_is_over_and_at_once_when_the_scheduler_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_with()
    engine.connection.client = client = Client(OSError("gone"), "never")
    client.status = "closed"
    with pytest.raises(OSError, match="gone"):
        engine.connection.scatter(b"data")
    monkeypatch.setattr(cluster, "NOTICE_S", 0.0)
    engine.connection.client = Client(OSError("full"), OSError("full"), OSError("full"))
    with pytest.raises(OSError, match="full"):
        engine.connection.scatter(b"data")
