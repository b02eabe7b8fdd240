"""`fourfold runs`: the recorded runs in a folder, a line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors

if TYPE_CHECKING:
    from fourfold.runs.story import Story


def runs_command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to look, and below.")] = ".",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    show_traceback: TracebackOption = False,
) -> None:
    """List the runs that are recorded in a folder (run=FOLDER, --run FOLDER)."""
    with one_line_errors(show_traceback):
        from fourfold.errors import OptionError
        from fourfold.runs.story import find_runs, story_of

        if not Path(folder).is_dir():
            raise OptionError(f"{folder} is no folder")
        stories = [story_of(run) for run in find_runs(Path(folder))]
        if as_json:
            print(json.dumps([as_dict(story) for story in stories], indent=2))
        elif not stories:
            print(f"no runs in {folder}")
        else:
            width = max(len(story.folder) for story in stories)
            for story in stories:
                print(f"{story.folder:<{width}}  {story.state:<11}  {progress_of(story):<24}  {story.name}")


def progress_of(story: Story) -> str:
    """How far it is, as in 617 of 2,000 items, 3 failed."""
    text = f"{story.n_done + story.n_failed:,}"
    text += f" of {story.total:,} items" if story.total is not None else " items"
    return text + (f", {story.n_failed:,} failed" if story.n_failed else "")


def as_dict(story: Story) -> dict[str, Any]:
    """The story as JSON has it."""
    from dataclasses import asdict

    return asdict(story)
