"""`fourfold trust`: a run that was recorded with another key becomes one's own."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors, say


def trust_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    show_traceback: TracebackOption = False,
) -> None:
    """Seal a run with your own key: one that another machine or home folder of yours has recorded. Nothing is unpickled.

    From then on resume and replay run its command and unpickle what it holds, which may do anything: look at it first,
    with `fourfold show RUN`, and trust only what you have recorded yourself.
    """
    with one_line_errors(show_traceback):
        from fourfold.runs.story import open_run
        from fourfold.runs.upkeep import trust

        n_parcels, name = trust(open_run(run))
        say(f"{shlex.quote(run)}: {n_parcels:,} parcels, the command and the function are sealed with your key ({name})")
