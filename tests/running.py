"""Runs scripts as users do, in a Python process of their own, and sees who is still there when they have ended.

Everything that a script starts inherits a mark in its environment, so that survivors are found whoever their parent is now.
"""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

SURVIVE_S = 2.0
"""Seconds in which everybody must be gone after the end of the driver: promise R8."""

SCALE = float(os.environ.get("FOURFOLD_TIME_SCALE", "1"))
"""Multiplies what tests wait at most, on machines that are slow, or busy with other work."""

LATE: list[str] = []
"""What took longer, in the test that runs, than it may on a machine that does nothing else. conftest.py looks: such a test runs once
more, alone."""

MARK = "FOURFOLD_TEST_MARK"


def is_in_time(elapsed_s: float, bound_s: float) -> bool:
    """Whether it took no longer than it may here: `bound_s` on a machine that does nothing else."""
    if elapsed_s > bound_s:
        LATE.append(f"{elapsed_s:.1f} s, and {bound_s:g} s are allowed")
    return elapsed_s <= bound_s * SCALE


class Ended(NamedTuple):
    """What a script did, and the processes that outlived it by more than SURVIVE_S."""

    code: int
    stdout: str
    stderr: str
    survivors: list[str]


def run_script(text: str, *arguments: str, folder: Path, how: str = "file", python: tuple[str, ...] = (), **env: str) -> Ended:
    """Run a script to its end.

    Args:
        text: The script; its indentation is removed.
        *arguments: For its `sys.argv`.
        folder: Where it runs; with how="file" the script is written there.
        how: "file" is `python script.py`, "-c" is `python -c TEXT`, "-" is `python - < TEXT`.
        python: Arguments of the interpreter.
        **env: Environment variables, over this process's own.
    """
    with started(text, *arguments, folder=folder, how=how, python=python, **env) as script:
        return script.end()


@contextmanager
def started(
    text: str, *arguments: str, folder: Path, how: str = "file", python: tuple[str, ...] = (), **env: str
) -> Iterator["Script"]:
    """Start a script as `run_script` does, and leave it running; it and all it started is killed at the end of the block."""
    text = textwrap.dedent(text)
    command = [sys.executable, *python]
    if how == "file":
        path = folder / "script.py"
        path.write_text(text)
        command.append(str(path))
    else:
        command += [how, text] if how == "-c" else [how]
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env={"PYTHONFAULTHANDLER": "1", **os.environ, MARK: mark, **env},  # should it hang: see _where_all_are
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # as a shell does it: Ctrl-C at a terminal reaches the group
    )
    script = Script(process, mark, text if how == "-" else "")
    try:
        yield script
    finally:
        script.kill_all()


class Script:
    """A script that was started."""

    def __init__(self, process: "subprocess.Popen[str]", mark: str, stdin: str) -> None:
        self.process, self._mark, self._stdin = process, mark, stdin

    def read_line(self) -> str:
        """The next line that it prints; waits for it."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def interrupt(self) -> None:
        """As Ctrl-C does, for a process whose terminal sends it to nobody else."""
        self.process.send_signal(signal.SIGINT)

    def end(self, timeout: float = 60.0, survive_s: float = SURVIVE_S) -> Ended:
        """Wait for its end, and then for the end of those it left behind."""
        # Whoever holds the pipes open would keep communicate() waiting: a survivor is a failure too.
        try:
            stdout, stderr = self.process.communicate(self._stdin or None, timeout=timeout * SCALE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the script has not ended after {timeout * SCALE:g} s. {self._where_all_are()}") from None
        return Ended(self.process.returncode, stdout, stderr, self.survivors(survive_s))

    def _where_all_are(self) -> str:
        """The stacks of the script and of all that it has started; it ends of that."""
        others = [each for each in self._family() if each.pid != self.process.pid]
        said = [f"{_line(each)} is here:\n{stack_of_worker(each.pid) or '  (it does not say)'}\n" for each in others]
        self.process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER: it prints the stacks of all its threads
        for each in others:
            with contextlib.suppress(psutil.Error):
                each.kill()
        stdout, stderr = self.process.communicate(timeout=10)
        return "\n".join(["It and those that it has started are here:", *said, stdout, stderr])

    def survivors(self, survive_s: float = SURVIVE_S) -> list[str]:
        """Those who are still there `survive_s` from now, although the script has ended."""
        began = time.monotonic()
        while (left := self._family()) and time.monotonic() - began < survive_s * SCALE:
            psutil.wait_procs(left, timeout=0.05)
        if not left:
            is_in_time(time.monotonic() - began, survive_s)
        return [_line(process) for process in left]

    def _family(self) -> list[psutil.Process]:
        wanted = f"{MARK}={self._mark}".encode()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                    found.append(process)
        return [process for process in found if _is_alive(process)]

    def kill_all(self) -> None:
        """Kill it and all who bear its mark."""
        family = self._family()
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=SURVIVE_S)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def stack_of_worker(pid: int) -> str:
    """The Python stack of a worker, asked as its driver asks it; "" when it does not say, or is no worker."""
    from fourfold.distribute.engines.on_processes import page, stacks
    from fourfold.system import machine

    if not machine.catches(pid, stacks.ASK):
        return ""
    os.kill(pid, stacks.ASK)
    deadline = time.monotonic() + 10 * stacks.ANSWER_S
    while time.monotonic() < deadline:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "fourfold" in os.readlink(entry):  # the file of its control page has it
                    with open(entry, "rb") as file:
                        file.seek(page.STACK_AT)
                        text = file.read(page.STACK_BYTES).replace(b"\0", b"").decode(errors="replace")
                    if "most recent call first" in text:
                        return text
        time.sleep(0.01)
    return ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid}: {' '.join(process.cmdline())}"
    return f"{process.pid}"


def until(is_true: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    """Wait until something that nobody can tell us about is true; fail loudly when it does not become true."""
    deadline = time.monotonic() + timeout * SCALE
    while not is_true():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain: {what}"
        time.sleep(0.005)
