"""A cluster that is started here lives below a process of its own: its keeper.

    driver ──pipe──> keeper ──> the cluster's processes      in a session that no terminal has

So the driver alone hears Ctrl-C. When the pipe breaks the driver has ended, however it ended: the keeper ends the cluster,
and then whatever is left in its session.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn, TextIO

from fourfold.errors import EngineError

START_S = 120.0
"""Seconds until a cluster of this machine that is not up counts as unable to start. Not measured on a slow disk."""

END_S = 5.0
"""Seconds that a cluster has to end in good order. Shorter: files of its own may stay. Longer: so does the driver."""

LOOK_S = 1.0
"""Seconds between looks whether the driver lives, for a pipe that a fork of the driver holds open. Not measured."""


class Keeper:
    """Starts a cluster and holds on to it until `close`, or until this process ends.

    Args:
        module: Has `start_here(count)`, which starts the cluster and returns its address and what ends it.
        count: Of workers.

    Raises:
        EngineError: It did not start.
    """

    def __init__(self, module: str, count: int) -> None:
        code = (
            f"import sys; sys.path[:] = {[entry for entry in sys.path if isinstance(entry, str)]!r}\n"
            f"from {__name__} import main; main({module!r}, {count}, {os.getpid()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self.address = self._hear()
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    def _hear(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        if not ready:
            raise EngineError(f"it was not up after {START_S:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"the process that starts it ended with code {self._process.wait()}")
        said = json.loads(line)
        if "error" in said:
            raise EngineError(said["error"])
        return str(said["address"])

    def is_alive(self) -> bool:
        """Whether it is there still. Its cluster does not outlive it for long."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the cluster, and wait until it has ended."""
        self._process.terminate()  # a fork of this process may hold the pipe open
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(2 * END_S)
        except subprocess.TimeoutExpired:
            _kill_session(self._process.pid)
            self._process.wait()


def main(module: str, count: int, driver: int) -> NoReturn:
    """The keeper's own life."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        try:
            address, end = import_module(module).start_here(count)
        except Exception as error:
            _say(answers, error=f"{type(error).__name__}: {error}")
        else:
            with contextlib.suppress(SystemExit):
                _say(answers, address=address)
                _await_the_end_of(driver)
            _end_in_time(end)
    finally:
        _kill_session(os.getpid())
        os._exit(0)  # threads of libraries may hang


def _say(answers: TextIO, **facts: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(facts), file=answers, flush=True)


def _await_the_end_of(driver: int) -> None:
    """Returns when the driver lets go of the pipe, or is gone: nothing is ever written to it."""
    while os.getppid() == driver:
        ready, _, _ = select.select([0], [], [], LOOK_S)
        if ready:
            return


def _end_in_time(end: Callable[[], object]) -> None:
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(END_S)


def _kill_session(leader: int) -> None:
    """Kill all of a session but its leader, when that is this process. What they start meanwhile is killed as well."""
    deadline = time.monotonic() + END_S
    while (left := _session(leader)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _session(leader: int) -> list[int]:
    found = []
    for name in os.listdir("/proc") if Path("/proc").is_dir() else ():
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.getsid(int(name)) == leader and not _is_dead(int(name)):
                    found.append(int(name))
    return found


def _is_dead(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
