"""The line between trials and the desk, and the desk itself: what happens when one of both sides goes, at any moment."""

import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import GridSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from fourfold.errors import EngineError
from fourfold.records import Failure
from fourfold.workloads.tune import book, line, states
from fourfold.workloads.tune import desk as desk_module
from fourfold.workloads.tune.answers import Answers
from fourfold.workloads.tune.asha import ASHA
from fourfold.workloads.tune.asking import Job
from fourfold.workloads.tune.checkpoints import Checkpoints
from fourfold.workloads.tune.desk import LOST_IN_A_ROW, Desk
from fourfold.workloads.tune.line import Here, Served, There
from fourfold.workloads.tune.proposing import way_of
from fourfold.workloads.tune.trial import Trial

WAIT_S = 20.0


class Peer:
    """What a line leads to here: it notes all that it is told."""

    def __init__(self) -> None:
        self.said: queue.Queue[Any] = queue.Queue()
        self.may_go_on = threading.Event()

    def handle(self, what: str, args: tuple[Any, ...]) -> Any:
        self.said.put((what, *args))
        if what == "job":
            assert self.may_go_on.wait(WAIT_S)
            return "a trial"
        if what == "fail":
            raise args[0]
        return args

    def served(self) -> Served:
        hung_up = lambda ticket: self.said.put(("hung up", ticket))  # noqa: E731
        return Served(self.handle, hung_up, lambda ticket, job: self.said.put(("undelivered", ticket, job)))

    def next(self) -> Any:
        return self.said.get(timeout=WAIT_S)


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture(params=[None, "127.0.0.1"], ids=["here", "network"])
def here(request: Any, peer: Peer) -> Iterator[Here]:
    found = Here(peer.served(), lambda: request.param)
    yield found
    found.close()


def there(here: Here) -> There:
    kind, args = here.__reduce__()
    found: There = kind(*args)
    return found


def test_what_is_asked_is_answered_and_what_is_raised_is_raised(here: Here, peer: Peer) -> None:
    with there(here).opened(3) as ask:
        assert ask("sum", 1, "a") == (1, "a")
        with pytest.raises(KeyError, match="k"):
            ask("fail", KeyError("k"))
        assert ask("sum", 2) == (2,)


def test_what_is_said_is_done_in_its_turn_and_what_that_raised_is_raised_by_the_next_question(here: Here, peer: Peer) -> None:
    with there(here).opened(3) as ask:
        ask.say("sum", 1)
        ask.say("fail", KeyError("k"))
        with pytest.raises(KeyError, match="k"):
            ask("sum", 2)
        assert ask("sum", 3) == (3,)
    assert [peer.next()[0] for _ in range(3)] == ["sum", "fail", "sum"]


class Alone:
    """The way to a desk that nobody is at: it notes what it is told."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.said: list[Any] = []

    def __call__(self, what: str, *args: Any) -> Any:
        self.asked.append((what, *args))
        return "the desk's"

    def say(self, what: str, *args: Any) -> None:
        self.said.append((what, *args))


def test_a_trial_asks_for_no_value_that_has_come_with_it() -> None:
    given: Any = {"x": ("suggest_float", (0, 1, None, False), 0.5), "c": ("suggest_categorical", ("a", "b"), "b")}
    ask = Alone()
    trial = Trial(ask, Job(3, None, ("MINIMIZE",), "s", 1, given))
    assert (trial.suggest_float("x", 0, 1), trial.suggest_categorical("c", ["a", "b"])) == (0.5, "b")
    assert [each[:3] for each in ask.said] == [("suggested", 3, "suggest_float"), ("suggested", 3, "suggest_categorical")]
    assert ask.asked == []
    assert trial.suggest_float("x", 0, 2) == trial.suggest_int("x", 0, 1) == trial.suggest_float("y", 0, 1) == "the desk's"
    assert len(ask.asked) == 3


class Never:
    """Can be pickled and not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class NeverBack(Exception):
    """Holds what cannot be unpickled: with tblib, which Dask brings along, a wrong number of arguments would not do."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("of two")
        self.never = Never()


def test_an_exception_that_cannot_travel_comes_as_its_text(here: Here, peer: Peer) -> None:
    def raises(what: str, args: tuple[Any, ...]) -> Any:
        raise NeverBack(1, 2)

    here._served = Served(raises, print, print)
    with there(here).opened(0) as ask, pytest.raises(RuntimeError, match="NeverBack: of two"):
        ask("sum")


def test_who_ends_before_its_trial_has_hung_up(here: Here, peer: Peer) -> None:
    peer.may_go_on.set()
    wire = line.Wire(*here.__reduce__()[1])
    assert wire.ask(7, "job", (7,)) == "a trial"
    wire._connection.close()
    assert [peer.next(), peer.next()] == [("job", 7), ("hung up", 7)]
    wire = line.Wire(*here.__reduce__()[1])
    wire.ask(8, "job", (8,))
    wire.ask(8, "end", (8,))
    wire._connection.close()
    wire = line.Wire(*here.__reduce__()[1])
    wire.ask(9, "sum", ())
    assert [peer.next(), peer.next(), peer.next()] == [("job", 8), ("end", 8), ("sum",)]


def ask_in_vain(wire: line.Wire) -> None:
    with pytest.raises(EngineError):
        wire.ask(7, "job", (7,))


def test_a_trial_for_somebody_who_has_died_meanwhile_is_given_back(peer: Peer) -> None:
    here = Here(peer.served(), lambda: None)
    try:
        wire = line.Wire(*here.__reduce__()[1])
        asks = threading.Thread(target=ask_in_vain, args=(wire,))
        asks.start()
        assert peer.next() == ("job", 7)
        with socket.socket(fileno=os.dup(wire._connection.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)
        asks.join(WAIT_S)
        peer.may_go_on.set()
        assert peer.next() == ("undelivered", 7, "a trial")
    finally:
        here.close()


def test_an_exception_from_outside_leaves_no_answer_for_the_next_one(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    far = there(here)
    with far.opened(0) as ask:
        wire = far._of_thread.wire
        with monkeypatch.context() as patch:
            patch.setattr(wire, "_connection", Interrupted(wire._connection))
            with pytest.raises(KeyboardInterrupt):
                ask("sum", 1)
        with pytest.raises(EngineError, match="over"):
            ask("sum", 2)
    with far.opened(1) as ask:
        assert ask("sum", 3) == (3,)


class Interrupted:
    """A connection at which Ctrl-C comes between question and answer."""

    def __init__(self, connection: Any) -> None:
        self.send_bytes = connection.send_bytes

    def recv_bytes(self) -> bytes:
        raise KeyboardInterrupt


def test_who_does_not_know_the_key_gets_nothing_unpickled(here: Here, peer: Peer, caplog: Any, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    address, key = here.__reduce__()[1]
    with pytest.raises(Exception, match=r"digest|hung up|reset|answer") as caught:
        line.Wire(address, bytes(32))
    connection = Client(address) if not isinstance(address, tuple) else line._connected(address)
    connection.send_bytes(b"\x80\x04.")
    connection.close()
    assert peer.said.empty()
    said = [*caplog.messages, *capfd.readouterr(), repr(caught.value), repr(there(here)), repr(here)]
    assert all(each not in text for text in said for each in (key.hex(), repr(key)[2:20]))


def test_a_driver_that_cannot_be_reached_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(EngineError, match=rf"cannot reach the driver at 127.0.0.1:{port}: .*must be able to open"):
        There(("127.0.0.1", port), b"").opened(0).__enter__()


def test_somebody_else_at_the_drivers_address_who_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "PROOF_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        ends = There(proxy.getsockname(), b"key")
        with (
            pytest.raises(EngineError, match=r"somebody is there and has said nothing for 0.1 s, such as a proxy"),
            ends.opened(0),
        ):
            pass


def test_a_default_timeout_of_sockets_is_none_of_the_line(here: Here) -> None:
    socket.setdefaulttimeout(WAIT_S)
    try:
        with there(here).opened(3) as ask:
            assert ask("sum", 1) == (1,)
    finally:
        socket.setdefaulttimeout(None)


def test_when_the_line_closes_who_waits_is_told(peer: Peer) -> None:
    here = Here(peer.served(), lambda: None)
    far = there(here)
    with far.opened(0) as ask:
        ask("sum")
        here.close()
        with pytest.raises(EngineError, match=r"the driver has hung up: the call of ff\.optimize is over"):
            ask("sum")


# ---- the desk --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study = optuna.create_study(sampler=RandomSampler(0))
    found = Desk(study, way_of(study.sampler, "batch", 1), 4, None, Checkpoints(str(tmp_path)), 0, wait_s=WAIT_S)
    yield found
    found.close()
    optuna.logging.set_verbosity(before)


def test_of_a_ticket_that_asks_again_only_the_last_one_gets_a_trial(desk: Desk) -> None:
    first = desk.job(0)
    assert first is not None
    answers: queue.Queue[Any] = queue.Queue()
    waiting = threading.Thread(target=lambda: answers.put(desk.job(1)))
    waiting.start()
    while 1 not in desk._waits:
        assert waiting.is_alive()
    asked_before = desk._waits[1]
    again = threading.Thread(target=lambda: answers.put(desk.job(1)))
    again.start()
    while desk._waits.get(1) is asked_before:
        assert again.is_alive()
    Answers(desk).end(0, "value", 1.0)
    found = [answers.get(timeout=WAIT_S) for _ in range(2)]
    waiting.join(WAIT_S), again.join(WAIT_S)
    (second,) = (each for each in found if each is not None)
    assert second.trial.number == 1
    assert set(desk.open) == {1}


def test_a_ticket_that_failed_while_it_waited_gets_no_trial_any_more(desk: Desk) -> None:
    desk.job(0)
    answers: queue.Queue[Any] = queue.Queue()
    waiting = threading.Thread(target=lambda: answers.put(desk.job(1)))
    waiting.start()
    while 1 not in desk._waits:
        assert waiting.is_alive()
    desk.failed(failure_of(1), lambda error: False)
    assert answers.get(timeout=WAIT_S) is None
    waiting.join(WAIT_S)
    assert desk.error is None


def test_what_a_dead_worker_had_asked_for_begins_no_trial_when_its_ticket_has_failed(desk: Desk) -> None:
    desk.failed(failure_of(0), lambda error: False)
    assert desk.job(0) is None, "nobody is there to run it"
    assert desk.job(1) is not None


def test_a_trial_that_was_not_delivered_runs_elsewhere_and_has_not_begun(desk: Desk) -> None:
    first = desk.job(0)
    assert first is not None
    desk.undelivered(0, first.attempts)
    again = desk.job(5)
    assert again is first
    assert again.attempts == 1
    desk.undelivered(0, 1)
    assert not desk.ready, "it is not that ticket's any more"


def test_what_a_late_worker_says_of_a_trial_that_is_over_does_not_count(desk: Desk) -> None:
    answers = Answers(desk)
    desk.job(0)
    answers.end(0, "value", 1.0)
    for call in (lambda: answers.end(0, "value", 2.0), lambda: answers.report(0, 1.0, 0)):
        with pytest.raises(ValueError, match="trial 0 is over"):
            call()
    desk.failed(failure_of(0), lambda error: False)
    assert (desk.error, desk.failures) == (None, [])
    assert desk.study.trials[0].values == [1.0]


def test_of_a_grid_no_point_is_begun_twice_while_the_last_ones_run(tmp_path: Path) -> None:
    study = optuna.create_study(sampler=GridSampler({"x": [1, 2]}))
    desk = Desk(study, way_of(study.sampler, "batch", 1), 9, None, Checkpoints(str(tmp_path)), 0, wait_s=0)
    assert (desk.job(0), desk.job(1)) != (None, None)
    assert desk.job(2) is None
    assert not desk.may_have_more
    study.enqueue_trial({"x": 3})
    assert desk.job(3) is not None, "it is no point of the grid"
    desk.close()
    assert [each.state for each in study.trials] == [TrialState.FAIL] * 3


def test_a_batch_has_its_size_where_another_process_makes_trials_too(tmp_path: Path) -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0))
    begins = optuna.Study._pop_waiting_trial_id

    class Shared(optuna.Study):
        def _pop_waiting_trial_id(self) -> int | None:
            self._storage.create_new_trial(self._study_id)
            return begins(self)

    study.__class__ = Shared
    desk = Desk(study, way_of(study.sampler, "batch", 2), 40, None, Checkpoints(str(tmp_path)), 1, wait_s=0)
    assert desk.job(0) is not None
    assert desk.batch == [1, 3]
    desk.close()


def test_a_trial_that_is_to_go_on_and_does_not_is_pruned_like_those_that_wait(tmp_path: Path) -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0), pruner=ASHA(1, 9))
    desk = Desk(study, way_of(study.sampler, "async", 1), 3, None, Checkpoints(str(tmp_path)), 0, wait_s=0)
    answers = Answers(desk)
    for number in range(3):
        assert desk.job(number) is not None
        answers.checkpoint(number, b"")
        answers.report(number, float(number), 0)
    for number in range(3):
        if answers.should_prune(number):
            answers.end(number, "pruned", "")
    assert desk.may_have_more
    assert desk.ready
    desk.close()
    assert TrialState.FAIL not in {each.state for each in study.trials}


@pytest.mark.parametrize("at", ["before", "after"])
def test_ctrl_c_while_a_trial_is_told_leaves_it_not_running(desk: Desk, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    desk.job(0)
    tell = book._tell_with_warning

    def interrupted(*args: Any, **named: Any) -> None:
        monkeypatch.undo()
        if at == "after":
            tell(*args, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(book, "_tell_with_warning", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Answers(desk).end(0, "value", 1.0)
    desk.close()
    assert [(each.state, each.values) for each in desk.study.trials] == [(TrialState.COMPLETE, [1.0])]


def test_ctrl_c_while_the_storage_makes_a_trial_leaves_it_not_running(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    make = desk.study._storage.create_new_trial

    def interrupted(*args: Any) -> int:
        number = make(*args)
        signal.raise_signal(signal.SIGINT)
        return number

    monkeypatch.setattr(desk.study._storage, "create_new_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        desk.job(0)
    desk.close()
    assert [each.state for each in desk.study.trials] == [TrialState.FAIL]


def test_what_a_dead_worker_had_said_is_heard_before_its_trial_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "CUT_S", WAIT_S)
    desk.job(0)
    fails = threading.Thread(target=lambda: desk.failed(failure_of(0), lambda error: False))
    fails.start()
    while 0 not in desk._over:
        assert fails.is_alive()
    Answers(desk).handle("suggested", (0, "suggest_float", ("x", 0, 1), {}))
    desk.hung_up(0)
    fails.join(WAIT_S)
    (trial,) = desk.study.trials
    assert list(trial.params) == ["x"]
    assert desk.failures[0].item == f"trial 0 with {trial.params}"


def test_after_the_end_nobody_gets_a_trial(desk: Desk) -> None:
    desk.job(0)
    desk.close(is_done=False)
    assert desk.job(1) is None
    assert [each.system_attrs[states.STATE] for each in desk.study.trials] == [states.UNFINISHED]


def test_workers_that_die_again_and_again_without_a_trial_end_the_call(desk: Desk) -> None:
    for ticket in range(LOST_IN_A_ROW):
        assert desk.error is None
        desk.failed(failure_of(ticket), lambda error: False)
    assert desk.error is not None


def failure_of(ticket: int) -> Failure:
    return Failure(ticket, "crashed", RuntimeError("killed"), "RuntimeError", "killed", "", "")
