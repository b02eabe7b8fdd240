"""The command line: one file per command, the library's own words for its options.

    map.py         fourfold map MODULE:FUNCTION INPUT… -o OUT
    head.py        fourfold head, describe INPUT…   predict.py  fourfold predict MODEL INPUT… -o OUT
    fit.py         fourfold fit MODULE:ESTIMATOR INPUT… -o MODEL
    tune.py        fourfold tune MODULE:OBJECTIVE --n-trials N; fourfold tune MODULE:ESTIMATOR --space MODULE:SPACE INPUT…
    launch.py      fourfold launch SCRIPT.py|MODULE:FUNCTION --world-size N
    runs.py        fourfold runs [FOLDER]        show.py    fourfold show RUN
    resume.py      fourfold resume RUN, fourfold rerun RUN --failed
    replay.py      fourfold replay RUN --item N  clean.py   fourfold clean [FOLDER]
    trust.py       fourfold trust RUN
    doctor.py      fourfold doctor
    demo.py        fourfold demo      (demo_data.py its tables, demo_flights.py its function, its steps demo_steps.py,
                                      demo_tune.py, demo_train.py)
    bench.py       fourfold bench
    status.py      fourfold status PID
    batches.py     a dataset into a folder, for map --batch and predict
    storage.py     --storage-option KEY=VALUE -> options of a file system
    target.py      MODULE:FUNCTION -> the function
    exits.py       exit codes; a known error is one line
    typed.py       options in errors as they are typed here: --overwrite, and not overwrite=True

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
from fourfold.cli.clean import clean_command
from fourfold.cli.demo import demo_command
from fourfold.cli.doctor import doctor_command
from fourfold.cli.exits import Terminated, code_of
from fourfold.cli.fit import fit_command
from fourfold.cli.head import describe_command, head_command
from fourfold.cli.launch import launch_command
from fourfold.cli.map import map_command
from fourfold.cli.predict import predict_command
from fourfold.cli.replay import replay_command
from fourfold.cli.resume import rerun_command, resume_command
from fourfold.cli.runs import runs_command
from fourfold.cli.show import show_command
from fourfold.cli.status import status_command
from fourfold.cli.trust import trust_command
from fourfold.cli.tune import tune_command
from fourfold.cli.typed import begin

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
    callback=begin,
)
app.command("map")(map_command)
app.command("head")(head_command)
app.command("describe")(describe_command)
app.command("fit")(fit_command)
app.command("predict")(predict_command)
app.command("tune")(tune_command)
app.command("launch", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(launch_command)
app.command("runs")(runs_command)
app.command("show")(show_command)
app.command("resume")(resume_command)
app.command("rerun")(rerun_command)
app.command("replay")(replay_command)
app.command("trust")(trust_command)
app.command("clean")(clean_command)
app.command("doctor")(doctor_command)
app.command("status")(status_command)
app.command("demo")(demo_command)
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench_command)


def main() -> NoReturn:
    """Run the command line on `sys.argv` and exit with its code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
            signal.signal(number, _leave)
    sys.unraisablehook = _leave_again
    try:
        app(prog_name="fourfold")
    except KeyboardInterrupt as exc:
        sys.exit(code_of(exc))
    sys.exit(0)


def _leave(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(signal_number)


def _leave_again(unraisable: sys.UnraisableHookArgs) -> None:
    """The signal came while a destructor ran, where Python drops exceptions: ask once more, a moment later."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        interrupt = unraisable.exc_value
        number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
        threading.Timer(RETRY_S, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(unraisable)
