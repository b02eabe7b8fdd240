"""`fourfold clean`: what dead runs have left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors, say


def clean_command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to look, and below.")] = ".",
    show_traceback: TracebackOption = False,
) -> None:
    """Remove what dead runs have left in a folder: half-written outputs, and values that no journal knows.

    And, from the folder for temporary files, code that calls on a cluster have unpacked on this machine and no worker uses.
    What is in use is locked and stays, and so does everything that is recorded. Workers and shared memory need no
    cleaning: they end with their driver.
    """
    with one_line_errors(show_traceback):
        from fourfold.distribute.cargo import remove_unused
        from fourfold.errors import OptionError
        from fourfold.runs.upkeep import sweep

        if not Path(folder).is_dir():
            raise OptionError(f"{folder} is no folder")
        files, homes = sweep(Path(folder)), remove_unused(0.0)
        for path in (*files, *homes):
            print(path)
        say(f"{len(files)} files removed" if files else f"nothing to clean in {folder}")
        if homes:
            say(f"{len(homes)} folders of unpacked code removed in {Path(homes[0]).parent}")
