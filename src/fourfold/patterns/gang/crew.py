"""The ranks of one machine: all start, or none runs; they are watched, and stopped together.

    driver ──program, "go"──> rank 0 ... rank n       each in a session of its own: Ctrl-C reaches the driver only
       │   <──pipes, answer──
       └──process ids──> guard                        kills them when the driver is gone

No thread: one loop reads what the ranks print, and looks who has ended.
"""

import contextlib
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import fourfold.system.seams as seams
from fourfold.distribute.engines.on_processes import family
from fourfold.distribute.engines.on_processes.starts import time_scale
from fourfold.errors import GangTimeout, WorkerStartFailed
from fourfold.patterns.gang import guard, member
from fourfold.patterns.gang.ends import End, died
from fourfold.patterns.gang.logs import Log
from fourfold.system.interrupts import Shield
from fourfold.system.machine import catches

START_S = 60.0
"""Seconds (times FOURFOLD_TIME_SCALE) until all ranks must be there. Shorter: a busy machine fails. Not measured."""

GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL for ranks that are stopped. Shorter: a handler that saves something is cut. Longer: a
rank that ignores it holds up the error, or the next start."""

LOOK_S = 0.05
"""Seconds between looks who has ended. Shorter: more of a core. Longer: a failure is seen later. Not measured."""

STACKS_S = 0.5
"""Seconds in which ranks that hang say where. Not measured: a stack takes a millisecond when the process runs at all."""

DYING_S = 5.0
"""Seconds in which a rank must have ended whose files the kernel is closing. Others see its sockets close before this process
can see it dead: on a busy machine long before. Shorter: what they say of it counts as the first failure."""

PF_EXITING = 0x4
"""The kernel's flag of a process that it is ending."""

READ_BYTES = 1 << 16

DRAINS = 64
"""Pieces that are read of a dead rank's pipe: more than a pipe holds. What it has started may write for ever."""


class Rank:
    """One rank of this machine."""

    def __init__(self, number: int, log: Log) -> None:
        self.number, self.log = number, log
        self.answer = tempfile.TemporaryFile()  # noqa: SIM115
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.pipes: dict[str, IO[bytes]] = {}
        self.is_ready = False
        self.end: End | None = None
        self.is_dead = False
        self._answer: tuple[str, float, Any] | None = None

    def answered(self) -> tuple[str, float, Any] | None:
        """What it has left, once that is whole. It is read once: a rank that has left much may take long to end."""
        if self._answer is None:
            self._answer = self._read_answer()
        return self._answer

    def _read_answer(self) -> tuple[str, float, Any] | None:
        fd = self.answer.fileno()
        head = os.pread(fd, member.SIZE.size, 0)
        if len(head) < member.SIZE.size or head == bytes(member.SIZE.size):
            return None
        (size,) = member.SIZE.unpack(head)
        self.answer.seek(member.SIZE.size)
        kind, when, data = pickle.loads(self.answer.read(size))
        return kind, when, data

    def signal(self, number: int) -> None:
        """Send a signal to it and all that is in its group, while it is not reaped."""
        if self.process is not None and not self.is_dead:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)


class Crew:
    """Starts ranks, and ends them with the block.

    Args:
        program: Pickled, for all.
        environments: The variables of each rank.
        logs: One for each, with its number.
    """

    def __init__(self, program: bytes, environments: Sequence[Mapping[str, str]], logs: Mapping[int, Log]) -> None:
        self._environments = environments
        self._selector = selectors.DefaultSelector()
        self._program = tempfile.TemporaryFile()  # noqa: SIM115
        self._program.write(program)
        self._program.flush()
        self.ranks = [Rank(number, log) for number, log in logs.items()]
        self._mark = family.new_mark()
        self._guard: subprocess.Popen[bytes] | None = None
        self._shield = Shield()
        self._is_over = False

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- starting ----------------------------------------------------------------------------------------------------

    def start(self, deadline: float | None = None) -> None:
        """Start all ranks, which wait for `go`; when one cannot start, none runs.

        Raises:
            WorkerStartFailed: One could not.
            GangTimeout: `deadline` (of `time.monotonic`) has come before all were there.
        """
        try:
            with self._shield:  # a process that was started and not noted would be nobody's
                self._guard = _python(guard, f"{os.getpid()}, {self._mark}", stdin=subprocess.PIPE, env=os.environ)
            for rank, environment in zip(self.ranks, self._environments, strict=True):
                seams.hit("gang.start")
                with self._shield:
                    self._spawn(rank, environment)
        except OSError as error:
            n_started = sum(rank.process is not None for rank in self.ranks)
            raise WorkerStartFailed(
                f"{n_started} of {len(self.ranks)} ranks could be started, and then: {error}. None of them runs now. Take a "
                "smaller world_size, or raise the limits of this user (ulimit -u, ulimit -n)"
            ) from error
        assert self._guard.stdin is not None
        pids = "".join(f"{rank.process.pid}\n" for rank in self.ranks if rank.process is not None)
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(pids.encode())
            self._guard.stdin.flush()
        self._await_all(deadline)

    def go(self) -> None:
        """All are there: let their functions run."""
        for rank in self.ranks:
            assert rank.channel is not None
            with contextlib.suppress(OSError):  # it has died meanwhile: who watches sees that
                rank.channel.sendall(member.GO)

    def _spawn(self, rank: Rank, environment: Mapping[str, str]) -> None:
        ours, its = socket.socketpair()
        its.setblocking(True)  # a rank waits, whatever socket.setdefaulttimeout() says here
        with its:
            rank.channel = ours
            fds = self._program.fileno(), rank.answer.fileno(), its.fileno()
            arguments = ", ".join(map(str, (*fds, self._mark)))
            rank.process = _python(
                member,
                arguments,
                env=environment,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        assert rank.process.stdout is not None
        assert rank.process.stderr is not None
        for name, pipe in (("stdout", rank.process.stdout), ("stderr", rank.process.stderr)):
            rank.pipes[name] = pipe
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, lambda rank=rank, name=name: self._read(rank, name))
        ours.setblocking(False)
        self._selector.register(ours, selectors.EVENT_READ, lambda rank=rank: self._hear(rank))

    def _hear(self, rank: Rank) -> None:
        assert rank.channel is not None
        with contextlib.suppress(OSError):
            rank.is_ready = rank.is_ready or rank.channel.recv(1) == member.READY
        self._selector.unregister(rank.channel)

    def _await_all(self, until: float | None) -> None:
        deadline = time.monotonic() + START_S * time_scale()
        while not all(rank.is_ready for rank in self.ranks):
            self._turn(LOOK_S)
            late = [rank for rank in self.ranks if not rank.is_ready]
            dead = [rank for rank in late if self._look(rank)]
            if late and until is not None and time.monotonic() > until:
                raise GangTimeout(f"{len(late)} of {len(self.ranks)} ranks had not even started", rank=late[0].number)
            if dead or (late and time.monotonic() > deadline):
                which = (dead or late)[0]
                why = which.end.how if which.end is not None else f"was not there after {START_S * time_scale():g} s"
                words = which.log.words()
                raise WorkerStartFailed(
                    f"rank {which.number} {why}: none of the ranks runs now" + (f". It said: {words}" if words else "")
                )

    # ---- watching ----------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> bool:
        """Take in what comes for so long; returns whether all ranks have ended, or one has failed."""
        until = time.monotonic() + seconds
        while True:
            self._turn(max(0.0, min(LOOK_S, until - time.monotonic())))
            ended = [self._look(rank) for rank in self.ranks]
            if all(ended) or any(rank.end is not None and rank.end.failed for rank in self.ranks):
                return True
            if time.monotonic() >= until:
                return False

    def await_end(self, deadline: float | None) -> list[End]:
        """Watch the ranks until all have ended or one has failed; then all are stopped.

        Raises:
            GangTimeout: `deadline` (of `time.monotonic`) has come before that.
        """
        while not self.wait(60.0 if deadline is None else max(0.0, min(60.0, deadline - time.monotonic()))):
            if deadline is not None and time.monotonic() >= deadline:
                raise self._late()
        return self.ends()

    def ends(self) -> list[End]:
        """How the ranks have ended, all that are still there being stopped first."""
        for rank in self.ranks:  # those that have failed too, but have not ended yet
            until = time.monotonic() + DYING_S
            while not self._look(rank) and _is_dying(rank) and time.monotonic() < until:
                self._turn(0.01)
        self.stop()
        return [rank.end or End(rank.number, "stopped", words=rank.log.words()) for rank in self.ranks]

    def _late(self) -> GangTimeout:
        """The error for ranks that take too long; they say where they are."""
        late = [rank for rank in self.ranks if rank.end is None]
        for rank in late:
            if rank.process is not None and catches(rank.process.pid, signal.SIGUSR1):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank.process.pid, signal.SIGUSR1)
        until = time.monotonic() + STACKS_S
        while time.monotonic() < until:
            self._turn(LOOK_S)
        numbers = ", ".join(str(rank.number) for rank in late)
        error = GangTimeout(f"{len(late)} of {len(self.ranks)} ranks had not ended in time: {numbers}", rank=late[0].number)
        for rank in late[:3]:
            if words := rank.log.words():
                error.add_note(f"fourfold: the last lines of rank {rank.number}:\n{words}")
        return error

    def _turn(self, seconds: float) -> None:
        """Read what is there, or wait for it so long."""
        if not self._selector.get_map():
            time.sleep(seconds)
        for key, _ in self._selector.select(seconds) if self._selector.get_map() else ():
            take: Callable[[], object] = key.data
            take()

    def _read(self, rank: Rank, name: str) -> bool:
        """Take in a piece of what it prints; False when there is none."""
        pipe = rank.pipes.get(name)
        if pipe is None:
            return False
        try:
            data = os.read(pipe.fileno(), READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(pipe)
            pipe.close()
            del rank.pipes[name]
            return False
        rank.log.take(name, data)
        return True

    def _look(self, rank: Rank) -> bool:
        """Note how it has ended, if it has; returns whether it has."""
        if rank.end is None and rank.process is not None:
            found = rank.answered()
            if found is not None and found[0] != "value":
                self._drain(rank)
                rank.log.note(str(found[2][3]))
                rank.end = End(rank.number, *found, words=rank.log.words())
        return self._reap(rank)

    def _reap(self, rank: Rank) -> bool:
        process = rank.process
        if process is None or rank.is_dead:
            return rank.is_dead
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        rank.signal(signal.SIGKILL)  # until it is reaped its number is nobody else's: what is left of its group is its own
        status = process.wait()
        rank.is_dead = True
        self._drain(rank)
        found = rank.answered()
        if rank.end is not None:
            pass
        elif found is not None and (found[0] != "value" or status == 0):
            rank.end = End(rank.number, *found, words=rank.log.words())
        else:
            rank.end = died(rank.number, _how(status), rank.log.words(), found is not None)
        return True

    def _drain(self, rank: Rank) -> None:
        for name in list(rank.pipes):
            for _ in range(DRAINS):
                if not self._read(rank, name):
                    break

    # ---- stopping ----------------------------------------------------------------------------------------------------

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End all ranks that are there: SIGTERM, and SIGKILL for those that are there after the grace."""
        left = [rank for rank in self.ranks if rank.process is not None and not self._reap(rank)]
        kept = {rank.number: rank.end for rank in left}
        try:
            for rank in left:
                rank.signal(signal.SIGTERM)
            until = time.monotonic() + grace_s
            while time.monotonic() < until:
                if all(self._reap(rank) for rank in left):
                    break
                self._turn(0.01)
        finally:
            self._kill(left)
            for rank in left:
                rank.end = kept[rank.number]  # how it ended once it was to end says nothing

    def _kill(self, ranks: Sequence[Rank]) -> None:
        for rank in ranks:
            rank.signal(signal.SIGKILL)
        for rank in ranks:
            if rank.process is not None:
                if not rank.is_dead:
                    os.waitid(os.P_PID, rank.process.pid, os.WEXITED | os.WNOWAIT)
                self._reap(rank)
        if ranks or any(rank.end is not None and rank.end.failed for rank in self.ranks):
            family.end({self._mark})  # what they have started in sessions of its own

    def close(self) -> None:
        """Nothing of it is left: no process, no file."""
        if self._is_over:
            return
        self._is_over = True
        try:
            self.stop()
        finally:
            if self._guard is not None:
                self._guard.kill()
                self._guard.wait()
                assert self._guard.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    self._guard.stdin.close()
            for rank in self.ranks:
                for each in (*rank.pipes.values(), rank.channel, rank.answer):
                    if each is not None:
                        each.close()
                rank.log.close()
            self._program.close()
            self._selector.close()


def _python(module: Any, arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Start `main(arguments)` of a module of ours in a fresh Python, with the import path of this one."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    code = (
        f"import os, sys; sys.path[:] = {path!r}\n"
        "os.environ['FOURFOLD_ROLE'] = 'worker'  # so that fourfold loads no more than it must\n"
        f"from {module.__name__} import main; del os.environ['FOURFOLD_ROLE']; main({arguments})"
    )
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **options)


def _is_dying(rank: Rank) -> bool:
    """Whether the kernel is ending the process, which counts as alive still."""
    try:
        with open(f"/proc/{rank.process.pid if rank.process is not None else 0}/stat", "rb") as file:
            return bool(int(file.read().rpartition(b")")[2].split()[6]) & PF_EXITING)
    except (OSError, IndexError, ValueError):
        return False


def _how(status: int) -> str:
    """The end of a process in words, by its return code."""
    if status >= 0:
        return f"ended with code {status} (os._exit, or exit() in C code)"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = f"signal {-status}"
    return f"was killed by {name}"
