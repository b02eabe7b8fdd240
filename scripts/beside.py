"""Runs commands beside each other, and keeps what they print apart.

    lane 1   part ─> part ─> part      a lane is a thread: it runs its parts one after the other
    lane 2   part ─> part

Each part is a process in a session of its own, with a folder of its own for temporary files. All that it starts has its mark
in the environment: so who is left when it has ended is found, and ended, wherever it is in the tree of processes.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MARK = "FOURFOLD_PART"

GRACE_S = 30.0
"""Seconds that a part has to end in good order after Ctrl-C: tests stop their clusters. Shorter: these leave files behind."""

SETTLE_S = 5.0
"""Seconds in which those who are left when a part has ended may still end by themselves, and then after a kill."""

LOOK_S = 0.1
"""Seconds between looks for processes that must end. Not measured."""


@dataclass(frozen=True)
class Part:
    """A command with a name."""

    name: str
    command: Sequence[str]


class Lanes:
    """Runs lanes of parts.

    Args:
        lanes: The parts of each lane.
        out: Where what a part has printed goes, in one piece, when it has ended.
    """

    def __init__(self, lanes: Sequence[Sequence[Part]], out: IO[str] = sys.stdout) -> None:
        self._lanes, self._out = lanes, out
        self._printing = threading.Lock()
        self._stopped = threading.Event()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.failed: list[str] = []
        """The names of parts that ended with another code than 0."""

    def run(self) -> None:
        """Run all parts to their ends.

        Raises:
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; all parts have ended by then.
        """
        threads = [threading.Thread(target=self._run_lane, args=(lane,)) for lane in self._lanes]
        with interrupted_by(signal.SIGTERM, signal.SIGHUP):
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            except BaseException:
                self._stop(threads)
                raise

    def _run_lane(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if not self._stopped.is_set():
                self._run_part(part)

    def _run_part(self, part: Part) -> None:
        mark, began = uuid.uuid4().hex, time.monotonic()
        folder = tempfile.mkdtemp(prefix="p-")  # a short name: sockets lie there, too
        self._say(f"{part.name}: started\n")
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                part.command,
                env={**os.environ, "TMPDIR": folder, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running[mark] = process
            code = process.wait()
            left = end_all(mark, SETTLE_S)
            del self._running[mark]
            shutil.rmtree(folder, ignore_errors=True)
            if code:
                self.failed.append(part.name)
            log.seek(0)
            said = log.read().decode(errors="replace")
        ended = f"ended with code {code}" if code else "passed"
        lines = [f"==== {part.name} {ended} after {time.monotonic() - began:.0f} s. It said:\n", said]
        self._say("".join([*lines, *(f"{part.name} left this behind, ended now: {line}\n" for line in left)]))

    def _say(self, text: str) -> None:
        with self._printing:
            self._out.write(text)
            self._out.flush()

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        """End what runs: in good order, and when that takes too long, or at a second Ctrl-C, at once."""
        self._stopped.set()
        with contextlib.suppress(KeyboardInterrupt):
            for process in list(self._running.values()):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + GRACE_S
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, deadline - time.monotonic()))
        for mark in list(self._running):
            end_all(mark, 0.0)
        for thread in threads:
            if thread.ident is not None:
                thread.join()


@contextlib.contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """These signals are Ctrl-C here."""
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
