"""Tasks of a cluster that stay: they are asked again and again, without a job for each question.

here     listens <── connects, and both prove that they have the key ── member     a task of one job, in a slot
           question, numbers ──────────────────────────────────────────> an answer for each number
           the end of the line ────────────────────────────────────────> it ends, and so does the job

Whatever happens to one of them ends all: who asks goes on with a job for each question, as if there were none. So it is when
nobody has asked for a while: they hold slots, and whoever waits for one may be who is to ask next.
"""

import contextlib
import hmac
import pickle
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fourfold.errors import EngineError

START_S = 10.0
"""Seconds until the first member must have come. Shorter: a cluster that is slow has none. Longer: one that is busy with other
jobs, or that cannot reach this machine, keeps a fit waiting, once. Not measured."""

OTHERS_S = 3.0
"""... and after it the others: with those that are there it goes on."""

PROOF_S = 2.0
"""Seconds that a member has to prove itself. Not measured: it takes one exchange of a few bytes."""

CLOSE_S = 5.0
"""Seconds that the job has to end, before it is left to the cluster: members may be in the middle of an answer."""

IDLE_S = 5.0
"""Seconds without a question after which they are let go. Shorter: a fit that computes here between two passes has none for
the rest. Longer: a job that is run between two passes, and all others, wait so long for the slots of tasks that do nothing.
Not measured."""

TELL_S = 1.0
"""Seconds that a job has to say why its members are gone. Not measured."""

SILENT_S, PROBES = 10, 3
"""Seconds of silence after which it is asked whether a machine is there, and how often. For as long as all that takes, a
question may wait until a machine says that it has it: by default that would be a quarter of an hour."""

Question = Callable[[int], bytes]


class MembersLost(Exception):
    """One of them is gone, could not answer, or none has come."""


class Invitation(NamedTuple):
    """Where a member connects to, and the key that both must have."""

    host: str
    port: int
    key: bytes


class Members:
    """Those of one job, from the side of who asks.

    Args:
        start: Runs the job of so many tasks, each of which calls `serve`, and returns when it has ended. Called on a thread.
            An EngineError of it ends all: who has called the job off wants no other one.
        n_members: How many.
        host: Under which address members find this machine.
        bind: At which address it listens.

    Raises:
        MembersLost: None has come.
        EngineError: See `start`.
    """

    def __init__(self, start: Callable[[Invitation, int], Any], n_members: int, host: str, bind: str) -> None:
        key = secrets.token_bytes(32)
        self._lines: list[socket.socket] = []
        self._numbers: list[list[int]] = []
        self._asked_at: float | None = None
        """When the last answer came; None while they are asked."""
        self._is_over = threading.Event()
        self._watch = threading.Thread(target=self._hang_up_when_idle, daemon=True)
        with socket.create_server((bind, 0), backlog=n_members) as server:
            invitation = Invitation(host, server.getsockname()[1], key)
            self._job_error: Exception | None = None
            self._job = threading.Thread(target=self._run, args=(start, invitation, n_members), daemon=True)
            self._job.start()
            try:
                self._await(server, key, n_members)
            except BaseException:
                self.close()
                raise

    def _await(self, server: socket.socket, key: bytes, n_members: int) -> None:
        until = time.monotonic() + START_S
        while len(self._lines) < n_members and (left_s := until - time.monotonic()) > 0 and self._job.is_alive():
            server.settimeout(min(left_s, 0.1))
            with contextlib.suppress(TimeoutError):
                line, _ = server.accept()
                if _has_key(line, key, first=True):
                    _notice_silence(line, asks=True)
                    until = time.monotonic() + OTHERS_S if not self._lines else until
                    self._lines.append(line)
                else:
                    line.close()
        if not self._lines:
            raise self._lost("none has come")
        self._asked_at = time.monotonic()
        self._watch.start()

    def _hang_up_when_idle(self) -> None:
        while not self._is_over.wait(IDLE_S / 4):
            asked_at = self._asked_at
            if asked_at is not None and time.monotonic() - asked_at > IDLE_S:
                _hang_up(self._lines)
                return

    def _run(self, start: Callable[[Invitation, int], Any], *args: Any) -> None:
        try:
            start(*args)
        except Exception as error:
            self._job_error = error

    def _lost(self, why: str) -> Exception:
        """What to raise when members are gone: with them the job ends, and tells why."""
        self._job.join(TELL_S)
        return self._job_error if isinstance(self._job_error, EngineError) else MembersLost(why)

    def share(self, numbers: Sequence[int], is_there: Question) -> None:
        """Give each number to a member that can answer for it, evenly.

        Raises:
            MembersLost: Nobody can answer for one of them.
            EngineError: See the class.
        """
        able = self._asked([numbers] * len(self._lines), is_there)
        self._numbers = [[] for _ in self._lines]
        for place, number in enumerate(numbers):
            at = min((at for at, each in enumerate(able) if each[place]), key=lambda at: len(self._numbers[at]), default=None)
            if at is None:
                raise MembersLost(f"nobody can answer for {number}")
            self._numbers[at].append(number)

    def ask(self, question: Question) -> list[bytes]:
        """The answers, in the order of numbers.

        Raises:
            MembersLost: See the class.
            EngineError: Likewise.
        """
        answers: dict[int, bytes] = {}
        for numbers, found in zip(self._numbers, self._asked(self._numbers, question), strict=True):
            answers |= zip(numbers, found, strict=True)
        return [answers[number] for number in sorted(answers)]

    def _asked(self, numbers: Sequence[Sequence[int]], question: Question) -> list[list[bytes]]:
        import cloudpickle

        packed = bytes(cloudpickle.dumps(question, protocol=5))
        self._asked_at = None
        try:
            for line, each in zip(self._lines, numbers, strict=True):
                _send(line, pickle.dumps((packed, list(each))))
            found = [pickle.loads(_received(line)) for line in self._lines]
        except (OSError, EOFError) as error:
            raise self._lost(str(error)) from error
        self._asked_at = time.monotonic()
        if not self._job.is_alive():  # its tasks may not have heard of it yet
            raise self._lost("their job has ended")
        if None in found:
            raise MembersLost("one could not answer")  # a job tells why, as jobs do
        return found

    def close(self) -> None:
        """They end, and the job with them; where none has come, it ends when its tasks find that nobody waits."""
        self._is_over.set()
        lines, self._lines = self._lines, []
        _hang_up(lines)
        for line in lines:
            line.close()
        if lines:
            self._job.join(CLOSE_S)


def serve(invitation: Invitation) -> None:
    """What a member does, in a task: it answers until nobody asks any more."""
    try:
        line = socket.create_connection((invitation.host, invitation.port), START_S)
    except OSError:  # nobody waits any more, or there is no way
        return
    with line, contextlib.suppress(OSError, EOFError):
        if _has_key(line, invitation.key, first=False):
            _notice_silence(line, asks=False)
            while True:
                packed, numbers = pickle.loads(_received(line))
                _send(line, pickle.dumps(_answers(packed, numbers)))


def _answers(packed: bytes, numbers: Sequence[int]) -> list[bytes] | None:
    try:
        question = pickle.loads(packed)
        return [question(number) for number in numbers]
    except Exception:
        return None


def _hang_up(lines: Sequence[socket.socket]) -> None:
    for line in lines:
        with contextlib.suppress(OSError):  # it has ended already
            line.shutdown(socket.SHUT_RDWR)  # a child of this process may have inherited it, and closes nothing


# ---- the line --------------------------------------------------------------------------------------------------------


def _has_key(line: socket.socket, key: bytes, first: bool) -> bool:
    """Whether who is at the other end has the key, which is told to nobody; and let them know the same of us."""
    until = time.monotonic() + PROOF_S
    mine, side = secrets.token_bytes(32), (b"here", b"member")
    try:
        line.settimeout(PROOF_S)
        _send(line, mine)
        theirs = _received(line, most=32, until=until)
        _send(line, hmac.digest(key, side[not first] + theirs, "sha256"))
        is_right = hmac.compare_digest(_received(line, most=32, until=until), hmac.digest(key, side[first] + mine, "sha256"))
    except (OSError, EOFError):
        return False
    line.settimeout(None)
    return is_right


def _notice_silence(line: socket.socket, asks: bool) -> None:
    """A machine that has lost its power says nothing: the kernel asks for it.

    Args:
        line: To the other one.
        asks: This is who asks. An answer may have to wait, while others are read, but a member takes each question at once.
    """
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENT_S), ("TCP_KEEPINTVL", SILENT_S), ("TCP_KEEPCNT", PROBES)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if asks and hasattr(socket, "TCP_USER_TIMEOUT"):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * (1 + PROBES) * 1000)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _send(line: socket.socket, data: bytes) -> None:
    line.sendall(len(data).to_bytes(8, "little") + data)


def _received(line: socket.socket, most: int | None = None, until: float | None = None) -> bytes:
    size = int.from_bytes(_exactly(line, 8, until), "little")
    if most is not None and size > most:
        raise EOFError("that is no member")
    return _exactly(line, size, until)


def _exactly(line: socket.socket, size: int, until: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        if until is not None:
            line.settimeout(max(until - time.monotonic(), 0.001))
        part = line.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError("the line has ended")
        data += part
    return bytes(data)
