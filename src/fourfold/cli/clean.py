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

    What a living run uses is locked and stays, and so does everything that is recorded. Workers and shared memory need no
    cleaning: they end with their driver.
    """
    with one_line_errors(show_traceback):
        from fourfold.errors import OptionError
        from fourfold.runs.upkeep import sweep

        if not Path(folder).is_dir():
            raise OptionError(f"{folder} is no folder")
        removed = sweep(Path(folder))
        for path in removed:
            print(path)
        say(f"{len(removed)} files removed" if removed else f"nothing to clean in {folder}")
