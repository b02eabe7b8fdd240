"""`fourfold status`: ask a running process where its workers are."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors
from fourfold.errors import OptionError

TEMPLATE = "on_processes.template"
"""What stands in the command line of the process that starts workers."""


def status_command(
    pid: Annotated[int, typer.Argument(metavar="PID", help="Process that runs fourfold on worker processes.")],
    traceback: TracebackOption = False,
) -> None:
    """Ask a running process where its workers are: it prints items, times and stacks on its own stderr."""
    with one_line_errors(traceback):
        _check_listens(pid)
        os.kill(pid, signal.SIGUSR1)
        print(f"process {pid} prints on its stderr where its workers are")


def _check_listens(pid: int) -> None:
    """Make sure that the signal is understood: others would die of it.

    Raises:
        OptionError: The process does not run fourfold on workers now, or is not ours.
    """
    import psutil

    from fourfold.system.machine import catches

    try:
        children = psutil.Process(pid).children()
        drives = any(TEMPLATE in " ".join(child.cmdline()) for child in children)
    except psutil.NoSuchProcess:
        raise OptionError(f"there is no process {pid}") from None
    except psutil.AccessDenied:
        raise OptionError(f"process {pid} belongs to somebody else") from None
    if not drives:
        raise OptionError(f"process {pid} has no workers of fourfold")
    if not catches(pid, signal.SIGUSR1):
        raise OptionError(
            f"process {pid} does not listen for SIGUSR1 now: nothing runs on its workers, or not in its main thread"
        )
