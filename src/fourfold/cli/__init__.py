"""The command line: one file per command, the library's own words for its options.

    map.py         fourfold map MODULE:FUNCTION INPUT… -o OUT
    doctor.py      fourfold doctor
    demo.py        fourfold demo      (demo_flights.py its function, demo_data.py its items)
    bench.py       fourfold bench
    status.py      fourfold status PID
    target.py      MODULE:FUNCTION -> the function
    exits.py       exit codes; a known error is one line

This file and the top of each command import typer and nothing heavier: help must be there at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import typer

from fourfold.cli.bench import bench_command
from fourfold.cli.demo import demo_command
from fourfold.cli.doctor import doctor_command
from fourfold.cli.exits import INTERRUPTED, TERMINATED, Terminated
from fourfold.cli.map import map_command
from fourfold.cli.status import status_command

RETRY_S = 0.01
"""Seconds until a signal is sent again that came while a destructor ran. Not measured."""

app = typer.Typer(
    name="fourfold",
    help="Run any Python function over any items on all cores, never slower than the loop.",
    epilog="Exit codes: 0 all done, 1 error, 2 usage, 3 done but some items failed (listed), 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("map")(map_command)
app.command("doctor")(doctor_command)
app.command("status")(status_command)
app.command("demo")(demo_command)
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench_command)


def main() -> NoReturn:
    """Run the command line on `sys.argv` and exit with its code."""
    signal.signal(signal.SIGTERM, _leave)
    sys.unraisablehook = _leave_again
    try:
        app(prog_name="fourfold")
    except KeyboardInterrupt as exc:
        sys.exit(TERMINATED if isinstance(exc, Terminated) else INTERRUPTED)
    sys.exit(0)


def _leave(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _leave_again(unraisable: sys.UnraisableHookArgs) -> None:
    """The signal came while a destructor ran, where Python drops exceptions: ask once more, a moment later."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        number = signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT
        threading.Timer(RETRY_S, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(unraisable)
