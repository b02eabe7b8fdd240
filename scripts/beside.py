"""Runs commands beside each other, and keeps what they print apart.

    lane 1   part ─> part ─> part      a lane is a thread: it runs its parts one after the other
    lane 2   part ─> part              what comes next is asked for when the one before has ended

Each part is a process in a session of its own, with a folder of its own for temporary files. All that it starts has its mark
in the environment: so who is left when it has ended is found, and ended, wherever it is in the tree of processes.
"""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MARK = "FOURFOLD_PART"

GRACE_S = 30.0
"""Seconds that a part has to end in good order after Ctrl-C: tests stop their clusters. Shorter: these leave files behind."""

SETTLE_S = 15.0
"""Seconds in which those who are left when a part has ended may still end by themselves, and then after a kill. Shorter: on a
busy machine, a part fails for processes that were about to end. Longer: who stays for good is told of later. Not measured."""

LOOK_S = 0.1
"""Seconds between looks at who has ended. Not measured."""


@dataclass(frozen=True)
class Part:
    """A command with a name.

    Attributes:
        name: How it is called in what is printed.
        command: What runs.
        again: What is added to the command to run once more what has failed in it; nothing: a second time would say the same.
    """

    name: str
    command: Sequence[str]
    again: Sequence[str] = ()


class Lanes:
    """Runs lanes of parts.

    Args:
        lanes: The parts of each lane.
        out: Where what a part has printed goes, in one piece, when it has ended.
    """

    def __init__(self, lanes: Sequence[Iterable[Part]], out: IO[str] = sys.stdout) -> None:
        self._lanes, self._out = lanes, out
        self._printing = threading.Lock()
        self._stopped = threading.Event()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._interrupted: set[str] = set()
        self._n_begun = 0
        self._errors: list[BaseException] = []
        self._over: list[Iterable[Part]] = []
        self.ended: list[Part] = []
        self.failed: list[Part] = []
        """Parts that did not end with code 0."""
        self.untidy: list[Part] = []
        """Parts that left processes behind, whatever their code."""

    def run(self) -> None:
        """Run all parts to their ends.

        Raises:
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; all parts have ended by then.
            BaseException: What a lane raised instead of its next part; the others have run to their ends.
        """
        with interrupted_by(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            try:
                for lane in self._lanes:
                    thread = threading.Thread(target=self._run_lane, args=(lane,))
                    self._n_begun += 1
                    thread.start()
                self._await_lanes()
            except BaseException:
                self._stop()
                raise
        for error in self._errors:
            raise error

    def _run_lane(self, parts: Iterable[Part]) -> None:
        try:
            for part in parts:
                if self._stopped.is_set():
                    break
                self._run_part(part)
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._over.append(parts)

    def _await_lanes(self, patience_s: float = math.inf) -> None:
        """Wait until all lanes have ended. Not by `join`: when that is interrupted, the thread counts as ended (bpo-45274)."""
        deadline = time.monotonic() + patience_s
        while len(self._over) < self._n_begun and time.monotonic() < deadline:
            if self._stopped.is_set():
                self._interrupt_all()
            time.sleep(LOOK_S)

    def _interrupt_all(self) -> None:
        """Interrupt each part, once. One that was about to start when all was stopped comes later: look again."""
        for mark, process in list(self._running.items()):
            if mark not in self._interrupted:
                self._interrupted.add(mark)
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)

    def _run_part(self, part: Part) -> None:
        """Run it to its end, and note what is wrong with it."""
        mark, began = uuid.uuid4().hex, time.monotonic()
        folder = tempfile.mkdtemp(prefix="p-")  # a short name: sockets lie there, too
        self._say(f"{part.name}: started\n")
        with tempfile.TemporaryFile() as log:
            code = self._run_command(part.command, {"TMPDIR": folder, MARK: mark}, log)
            left = end_all(mark, SETTLE_S)
            self._running.pop(mark, None)
            shutil.rmtree(folder, ignore_errors=True)
            log.seek(0)
            said = log.read().decode(errors="replace")
        self.ended.append(part)
        if code:
            self.failed.append(part)
        if left:
            self.untidy.append(part)
        ended = f"ended with code {code}" if code else "left processes behind" if left else "passed"
        lines = [f"==== {part.name} {ended} after {time.monotonic() - began:.0f} s. It said:\n", said]
        self._say("".join([*lines, *(f"{part.name} left this behind, ended now: {line}\n" for line in left)]))

    def _run_command(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> int:
        try:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"{error}\n".encode())
            return 127
        self._running[environment[MARK]] = process
        return process.wait()

    def _say(self, text: str) -> None:
        with self._printing:
            self._out.write(text)
            self._out.flush()

    def _stop(self) -> None:
        """End what runs: in good order, and when that takes too long, or at a second Ctrl-C, at once."""
        self._stopped.set()
        with contextlib.suppress(KeyboardInterrupt):
            self._await_lanes(GRACE_S)
        while len(self._over) < self._n_begun:
            for mark in list(self._running):
                end_all(mark, 0.0)
            time.sleep(LOOK_S)


@contextlib.contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """These signals are Ctrl-C here, and what starts here hears them: who is started in the background may be deaf to some."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_all(mark: str, patience_s: float) -> list[str]:
    """Wait until nobody with this mark is there, and then end those who are; returns their command lines."""
    deadline = time.monotonic() + patience_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    lines = [f"{pid} {_command_of(pid)}" for pid in left]
    deadline = time.monotonic() + SETTLE_S
    while left and time.monotonic() < deadline:  # they may start others meanwhile
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_S)
        left = marked(mark)
    return lines


def marked(mark: str) -> list[int]:
    """The processes with this mark that still run."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                if wanted in (entry / "environ").read_bytes().split(b"\0"):  # empty when it is a zombie
                    found.append(int(entry.name))
    return found


def _command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return ""
