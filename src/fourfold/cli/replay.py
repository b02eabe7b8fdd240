"""`fourfold replay`: one failed item again, here, where a debugger can look."""

from __future__ import annotations

import faulthandler
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Any

import typer

from fourfold.cli.exits import ERROR, Terminated, TracebackOption, code_of, one_line_errors, printable, say


def replay_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    item: Annotated[
        int, typer.Option("--item", metavar="N", help="Its index in the input; or the number of a trial.", show_default=False)
    ],
    pdb: Annotated[
        bool, typer.Option("--pdb", help="Stop in the debugger where it raises, or where Ctrl-C meets it.")
    ] = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Run one failed item of a run again, in this process: same item, seed, folder, import path and arguments.

    Environment variables are those of your shell. An item that crashes its process crashes this one: its Python stack is
    printed first. One that had timed out is stopped after the same time. Of a run of trials any one runs again, with the
    parameters that it had.
    """
    with one_line_errors(show_traceback):
        from fourfold.execute.troubles import safe_repr
        from fourfold.replay import stopped_after
        from fourfold.runs.story import open_run, story_of

        prepare = _trial if story_of(open_run(run)).kind == "optimize" else _item
        run_item, timeout_s = prepare(run, item)
        faulthandler.enable()
        try:
            with stopped_after(timeout_s):
                value = run_item()
        except BaseException as error:  # sys.exit() too, and Ctrl-C: the question is where
            _show(error, pdb)
            raise SystemExit(code_of(error) if isinstance(error, KeyboardInterrupt) else ERROR) from None
        say(f"this time it returned {safe_repr(value)}")


def _item(run: str, item: int) -> tuple[Callable[[], Any], float | None]:
    from fourfold.replay import prepare_replay

    run_item, failed, timeout_s = prepare_replay(run, item)
    message = printable(" ".join(failed.message.split())[:200])
    say(f"item {item} is {printable(failed.shown)}; it failed with {failed.error_type}: {message}")
    _say_limit(timeout_s)
    return run_item, timeout_s


def _trial(run: str, number: int) -> tuple[Callable[[], Any], float | None]:
    from fourfold.cli.tune_board import in_words, values_of
    from fourfold.workloads.tune.again import prepare_trial

    run_trial, told, timeout_s = prepare_trial(run, number)
    found = f" with {values_of(told)}" if told.values else f": {printable(told.error)}" if told.error else ""
    say(f"trial {number} had {in_words(told.params) or 'no parameters'}; it was {told.state}{found}")
    _say_limit(timeout_s)
    return run_trial, timeout_s


def _say_limit(timeout_s: float | None) -> None:
    if timeout_s is not None:
        say(f"it is stopped after {timeout_s:g} s here as well")


def _show(error: BaseException, pdb: bool) -> None:
    """Print where it was raised, and go there."""
    frames = error.__traceback__
    # Our own frames tell the user nothing: those above the item's, and the handler that ended it when its time was over.
    while frames is not None and frames.tb_next is not None and _is_ours(frames):
        frames = frames.tb_next
    last = frames
    while last is not None and last.tb_next is not None:
        if last.tb_next.tb_next is None and _is_ours(last.tb_next):
            last.tb_next = None
        last = last.tb_next
    traceback.print_exception(type(error), error, frames)
    if pdb and not isinstance(error, Terminated):
        import pdb as debugger

        debugger.post_mortem(frames)


def _is_ours(entry: TracebackType) -> bool:
    return entry.tb_frame.f_code.co_filename.startswith(__file__.rpartition("cli")[0])
