"""`fourfold replay`: one failed item again, here, where a debugger can look."""

from __future__ import annotations

import faulthandler
import traceback
from typing import Annotated

import typer

from fourfold.cli.exits import ERROR, TracebackOption, one_line_errors, printable, say


def replay_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    item: Annotated[int, typer.Option("--item", metavar="N", help="Its index in the input.", show_default=False)],
    pdb: Annotated[bool, typer.Option("--pdb", help="Stop in the debugger where it raises.")] = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Run one failed item of a run again, in this process: same item, same seed, same folder and import path.

    An item that crashes its process crashes this one: its Python stack is printed first.
    """
    with one_line_errors(show_traceback):
        from fourfold.execute.troubles import safe_repr
        from fourfold.replay import prepare_replay

        run_item, failed = prepare_replay(run, item)
        message = printable(" ".join(failed.message.split())[:200])
        say(f"item {item} is {printable(failed.shown)}; it failed with {failed.error_type}: {message}")
        faulthandler.enable()
        try:
            value = run_item()
        except Exception as error:
            # Our own frames tell the user nothing.
            frames = error.__traceback__
            while frames is not None and frames.tb_next is not None and _is_ours(frames.tb_frame.f_code.co_filename):
                frames = frames.tb_next
            traceback.print_exception(type(error), error, frames)
            if pdb:
                import pdb as debugger

                debugger.post_mortem(frames)
            raise SystemExit(ERROR) from None
        say(f"this time it returned {safe_repr(value)}")


def _is_ours(filename: str) -> bool:
    return filename.startswith(__file__.rpartition("cli")[0])
