"""`fourfold launch`: a script or a function in several processes that talk to each other."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from fourfold.cli.exits import TracebackOption, one_line, one_line_errors
from fourfold.errors import GangFailed, RemoteTraceback


def launch_command(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="SCRIPT.py|MODULE:FUNCTION", help="What runs in each process.")],
    world_size: Annotated[int, typer.Option("--world-size", "-n", help="How many processes.")],
    max_restarts: Annotated[int, typer.Option(help="How often all start again after a failure.")] = 0,
    checkpoint: Annotated[str | None, typer.Option(metavar="FOLDER", help="For what the next start goes on from.")] = None,
    engine: Annotated[str, typer.Option(help="processes, spark, ray, or an address.")] = "processes",
    timeout: Annotated[float | None, typer.Option(help="Seconds for all.")] = None,
    log_dir: Annotated[str | None, typer.Option(metavar="FOLDER", help="For a log of each rank: rank-0.log, …")] = None,
    progress: Annotated[bool, typer.Option(help="Show the lines that ranks print.")] = True,
    show_traceback: TracebackOption = False,
) -> None:
    """Start processes that talk to each other, as torchrun does: all of them, or none; when one fails, all end.

    A script runs as __main__, with the arguments behind it; a function is called with them, as texts. Options of the script
    that have the name of one here go behind --.

    Example: fourfold launch train.py --world-size 2 --max-restarts 3 --checkpoint saved -- --timeout 5
    """
    options = {
        "max_restarts": max_restarts,
        "checkpoint": checkpoint,
        "engine": engine,
        "timeout": timeout,
        "log_dir": log_dir,
        "progress": progress,
    }
    with one_line_errors(show_traceback, "interrupted, and all ranks have ended"):
        try:
            _launch(target, context.args, world_size, options)
        except Exception as error:
            if progress:  # they were shown
                notes = getattr(error, "__notes__", [])
                notes[:] = [note for note in notes if not note.startswith("fourfold: the last lines of rank")]
            if isinstance(error.__cause__, RemoteTraceback) and not show_traceback:
                print(error.__cause__.text, file=sys.stderr, end="")
                raise GangFailed(one_line(error)) from error
            raise


def _launch(target: str, arguments: list[str], world_size: int, options: dict[str, Any]) -> None:
    from fourfold.patterns.gang import launch, launch_script
    from fourfold.shown import safe_repr

    if target.endswith(".py") or os.path.isfile(target):
        launch_script(target, arguments, world_size, **options)
        return
    from fourfold.cli.target import load_function

    for rank, value in enumerate(launch(load_function(target), world_size, tuple(arguments), **options)):
        if value is not None:
            print(f"rank {rank} returned {safe_repr(value)}")
