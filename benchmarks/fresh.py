"""A call in a fresh interpreter: both sides of it.

    caller: in_fresh_process("p2_items_of_1_ms", "cold", workers=2)
              |  starts  python fresh.py p2_items_of_1_ms cold '{"workers": 2}'
              |                 imports the module, calls the function, prints its answer on one marked line
    caller: <-+  the answer, from JSON

Used for cold figures (nothing started, nothing cached) and to keep promises apart: each promise is measured
in a process of its own, so that one which crashes or hangs costs its own rows only.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Lap

# Starts the line that carries the answer; peers print to the same stream.
ANSWER_MARK = "fourfold-benchmark-answer "

# Seconds one fresh interpreter may take for one lap. Smaller: a slow machine fails; larger: a hang costs
# more.
LAP_TIMEOUT_S = 120.0


class FreshProcessFailed(Exception):
    """The fresh interpreter ended without an answer; the message carries the end of what it printed."""


def in_fresh_process(module: str, function: str, *, timeout_s: float = LAP_TIMEOUT_S, **arguments: Any) -> Any:
    """Calls `module.function(**arguments)` in a new interpreter and returns its answer.

    Args:
        module: A module of this folder.
        function: A function there; arguments and answer pass as JSON.
        timeout_s: Seconds after which the process and everything it started is killed.
        arguments: Keyword arguments of the function.

    Raises:
        FreshProcessFailed: It ended without an answer, or took longer.
    """
    command = [sys.executable, str(Path(__file__).resolve()), module, function, json.dumps(arguments)]
    # A file, not a pipe: a process left behind by a peer would hold the pipe open and stop us here.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            status: int | str = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = f"none after {timeout_s:g} s"
        finally:
            _kill_family(process)
        output.seek(0)
        lines = output.read().splitlines()
    answers = [line.removeprefix(ANSWER_MARK) for line in lines if line.startswith(ANSWER_MARK)]
    if status != 0 or not answers:
        tail = "\n".join(lines[-40:])
        raise FreshProcessFailed(f"{module}.{function} ended with status {status}; it printed:\n{tail}")
    return json.loads(answers[-1])


def fresh_lap(module: str, function: str, **arguments: Any) -> Callable[[], Lap]:
    """A contestant's call that takes its lap in a fresh interpreter: the cold figure.

    The function there times its own call, so that starting Python and making the data are not in it.
    """
    return lambda: Lap(**in_fresh_process(module, function, **arguments))


def _kill_family(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that is still running, with everything it started."""
    if process.poll() is not None:
        return
    import psutil  # here: the fresh side must not find it imported

    parent = psutil.Process(process.pid)
    for member in [*parent.children(recursive=True), parent]:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def main() -> None:
    """Runs the call that the command line names and prints its answer on one marked line."""
    module, function, arguments = sys.argv[1:4]
    answer = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print("\n" + ANSWER_MARK + json.dumps(answer, default=dataclasses.asdict), flush=True)


if __name__ == "__main__":
    main()
