"""The engine on Dask, without a cluster: what becomes of workers that die in a bad moment."""

from types import SimpleNamespace
from typing import Any

import pytest

from fourfold.distribute.engines.on_dask import cluster
from fourfold.engines import Dask
from fourfold.records import Kind


@pytest.fixture(autouse=True)
def dask_is_here() -> None:
    pytest.importorskip("distributed")


class Client:
    """A client of a scheduler that asks workers, some of which have died, to store something."""

    def __init__(self, *answers: Any) -> None:
        self.status, self._answers = "running", [*answers]

    def scatter(self, data: list[Any], **options: Any) -> list[Any]:
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return [answer]


def lost() -> Any:
    """A task of which Dask has lost what it needs."""
    return SimpleNamespace(status="cancelled")


def engine_with(*tasks: Any) -> Dask:
    """An engine in whose cluster these tasks are, by numbers from 0."""
    engine = Dask(client=Client())
    engine.connection.client = engine.connection._given
    engine._flying = {id: (task, f"name-{id}") for id, task in enumerate(tasks)}
    return engine


def kinds(engine: Dask, *arrived: tuple[int, Any]) -> list[Kind]:
    return [outcome.kind for id, task in arrived for outcome in engine._outcome(id, task)]


def test_of_tasks_that_are_lost_together_the_last_one_that_is_heard_of_was_not_alone_either() -> None:
    tasks = [lost(), lost(), lost()]
    assert kinds(engine_with(*tasks), *enumerate(tasks)) == [Kind.COLLATERAL] * 3


def test_a_task_that_is_lost_while_no_other_is_there_has_lost_its_worker() -> None:
    task = lost()
    assert kinds(engine_with(task), (0, task)) == [Kind.LOST]


def test_a_worker_that_died_unnoticed_is_asked_to_store_something_once_or_more_and_then_another_one_is() -> None:
    engine = engine_with()
    engine.connection.client = Client(ConnectionResetError("it is gone"), OSError("not noticed yet"), "stored")
    assert engine.connection.scatter(b"data") == "stored"


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
