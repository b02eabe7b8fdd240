"""Tasks that stay, with threads in the place of a cluster's tasks."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fourfold.data import staying
from fourfold.data.frame_kinds import OnSpark
from fourfold.data.staying import Invitation, Members, MembersLost, serve

PATIENCE_S = 20.0


def job_of(*members: Callable[[Invitation], Any]) -> Callable[[Invitation, int], None]:
    """A job whose tasks are these, each on a thread."""

    def start(invitation: Invitation, n_members: int) -> None:
        threads = [threading.Thread(target=member, args=(invitation,)) for member in members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)

    return start


def invited(*members: Callable[[Invitation], Any]) -> Members:
    return Members(job_of(*members), len(members), "127.0.0.1", "127.0.0.1")


def on_thread(number: int) -> bytes:
    return f"{number} {threading.get_ident()}".encode()


def always(number: int) -> bytes:
    return b"1"


def test_each_number_is_answered_by_one_member_and_answers_are_in_order() -> None:
    members = invited(serve, serve)
    members.share(range(5), always)
    for _ in range(3):
        answers = [each.decode().split() for each in members.ask(on_thread)]
        assert [int(number) for number, _ in answers] == list(range(5))
        of_each = [[number for number, of in answers if of == thread] for thread in {of for _, of in answers}]
        assert sorted(map(len, of_each)) == [2, 3]
    members.close()
    assert not members._job.is_alive(), "the job ends with the lines"


def test_what_nobody_can_answer_for_is_told() -> None:
    members = invited(serve)
    with pytest.raises(MembersLost, match="nobody can answer for 2"):
        members.share(range(4), lambda number: b"" if number == 2 else b"1")
    members.close()


def test_a_member_that_raises_ends_it() -> None:
    members = invited(serve, serve)
    members.share(range(4), always)
    with pytest.raises(MembersLost, match="could not answer"):
        members.ask(lambda number: b"%d" % (1 // (number - 2)))
    members.close()


KILLED = """
import sys
from fourfold.data.staying import Invitation, serve
serve(Invitation(sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])))
"""


def test_a_member_that_is_killed_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staying, "OTHERS_S", PATIENCE_S)  # a process takes a while to start

    def in_a_process(invitation: Invitation) -> None:
        given = [invitation.host, str(invitation.port), invitation.key.hex()]
        subprocess.run([sys.executable, "-c", KILLED, *given], timeout=PATIENCE_S)

    members = invited(serve, in_a_process)
    members.share(range(4), lambda number: b"1")  # by value: there is no such module in that process
    here = os.getpid()

    def die(number: int) -> bytes:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return b"1"

    with pytest.raises(MembersLost):
        members.ask(die)
    members.close()
    assert not members._job.is_alive()


def test_a_stranger_is_not_admitted_and_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staying, "OTHERS_S", 0.5)  # so long it waits for those who are never admitted
    said = []

    def without_key(invitation: Invitation) -> None:
        serve(invitation._replace(key=bytes(32)))
        said.append("ended")

    def says_nothing(invitation: Invitation) -> None:
        socket.create_connection((invitation.host, invitation.port), PATIENCE_S).close()

    members = invited(without_key, says_nothing, serve)
    members.share(range(2), always)
    assert len(members._lines) == 1
    members.close()
    assert said == ["ended"]


def test_a_member_answers_nobody_without_the_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        member = threading.Thread(target=serve, args=(Invitation("127.0.0.1", server.getsockname()[1], b"k" * 32),))
        member.start()
        line, _ = server.accept()
        with line:
            assert not staying._has_key(line, b"other", first=True)
        member.join(PATIENCE_S)
        assert not member.is_alive()


def test_where_the_job_has_ended_nobody_is_waited_for() -> None:
    def fails(invitation: Invitation, n_members: int) -> None:
        raise RuntimeError("no such cluster")

    with pytest.raises(MembersLost, match="none has come"):
        Members(fails, 2, "127.0.0.1", "127.0.0.1")


def test_members_end_though_a_child_of_this_process_has_inherited_their_lines() -> None:
    members = invited(serve, serve)
    inherited = [line.dup() for line in members._lines]  # what a fork leaves in the child
    try:
        members.close()
        assert not members._job.is_alive(), "they would hold their slots as long as the child lives"
    finally:
        for line in inherited:
            line.close()


def test_members_whom_nobody_asks_give_their_slots_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staying, "IDLE_S", 0.1)
    members = invited(serve, serve)
    members.share(range(2), always)
    members._job.join(PATIENCE_S)
    assert not members._job.is_alive(), "what is done between two passes may be a job that waits for them"
    with pytest.raises(MembersLost):
        members.ask(always)
    members.close()


ASKED: list[Members] = []


class AfterLooks:
    """In the place of the event: it is over after three looks."""

    n_looks = 0

    def wait(self, timeout: float) -> bool:
        self.n_looks += 1
        return self.n_looks > 3


def takes_long(number: int) -> bytes:
    members: Any = ASKED.pop()
    ends, members._is_over = members._is_over, AfterLooks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staying, "IDLE_S", 0.0)
        members._hang_up_when_idle()
        is_answered = members._is_over.n_looks > 3
    members._is_over = ends
    return b"1" if is_answered else b""


def test_members_who_take_long_to_answer_are_not_idle() -> None:
    members = invited(serve)
    members.share([0], always)
    ASKED.append(members)
    assert members.ask(takes_long) == [b"1"]
    members.close()


def test_who_sends_byte_by_byte_has_no_more_time_than_others_to_prove_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staying, "PROOF_S", 0.2)
    here, there = socket.socketpair()
    ended, told = threading.Event(), []

    def trickle() -> None:
        for byte in (32).to_bytes(8, "little") + bytes(32):
            there.sendall(bytes([byte]))
            if ended.wait(0.1):
                return

    def asks() -> None:
        told.append(staying._has_key(here, b"key", first=True))
        ended.set()

    threads = [threading.Thread(target=each) for each in (trickle, asks)]
    with here, there:
        for each in threads:
            each.start()
        assert ended.wait(2.0)
        for each in threads:
            each.join(PATIENCE_S)
    assert told == [False]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="a setting of Linux")
def test_a_machine_that_says_nothing_is_noticed_on_both_sides_and_also_by_who_waits_for_it_to_take_a_question() -> None:
    seen = []

    def noticing(line: socket.socket, asks: bool) -> None:
        notice(line, asks)
        seen.append([asks, *(line.getsockopt(*each) for each in options)])

    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)]
    notice = staying._notice_silence
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staying, "_notice_silence", noticing)
        members = invited(serve)
        members.share([0], always)
        members.close()
    assert sorted(seen) == [[False, 1, 0], [True, 1, 40_000]]


@pytest.mark.parametrize(
    "name", ["spark.network.crypto.enabled", "spark.authenticate.enableSaslEncryption", "spark.speculation"]
)
@pytest.mark.parametrize("value", ["true", "True"])  # as Spark takes both
def test_no_tasks_of_spark_stay_where_it_encrypts_what_it_sends_or_starts_tasks_twice(name: str, value: str) -> None:
    begun: list[Any] = []
    context = SimpleNamespace(
        getConf=lambda: {name: value}, parallelize=lambda *given: begun.append(given), defaultParallelism=1
    )
    frame: Any = SimpleNamespace(sparkSession=SimpleNamespace(sparkContext=context))
    assert OnSpark().members(frame, 1) is None
    assert not begun


@pytest.mark.parametrize("n_slots", [1, 3, None])
def test_no_more_tasks_of_spark_stay_than_run_at_once(n_slots: int | None) -> None:
    profiles = SimpleNamespace(defaultResourceProfile=lambda: "default")
    spark = SimpleNamespace(resourceProfileManager=lambda: profiles, maxNumConcurrentTasks={"default": n_slots}.__getitem__)
    tasks: list[threading.Thread] = []

    class Rows:
        def __init__(self, numbers: range, n_tasks: int) -> None:
            assert len(numbers) == n_tasks
            tasks.extend(threading.Thread(target=self.run, args=(number,)) for number in numbers)

        def run(self, number: int) -> None:
            self.each(number)

        def foreach(self, each: Callable[[int], Any]) -> None:
            self.each = each
            for task in tasks:
                task.start()
            for task in tasks:
                task.join(PATIENCE_S)

    context = SimpleNamespace(
        getConf=dict,
        parallelize=Rows,
        defaultParallelism=2,
        _jsc=SimpleNamespace(sc=lambda: None if n_slots is None else spark),
    )
    members = OnSpark().members(SimpleNamespace(sparkSession=SimpleNamespace(sparkContext=context)), 8)
    assert members is not None
    members.close()
    assert len(tasks) == (n_slots or 2)
