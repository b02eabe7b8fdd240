"""`fourfold runs`: the recorded runs in a folder, a line each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli.exits import ERROR, TracebackOption, one_line, one_line_errors, say_left_out

if TYPE_CHECKING:
    from fourfold.runs.story import Story


def runs_command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to look, and below.")] = ".",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    show_traceback: TracebackOption = False,
) -> None:
    """List the runs that are recorded in a folder (run=FOLDER, --run FOLDER).

    What cannot be read is named after them, with its reason, and the exit code is 1.
    """
    with one_line_errors(show_traceback):
        from fourfold.errors import OptionError
        from fourfold.runs.story import find_runs, story_of

        if not Path(folder).is_dir():
            raise OptionError(f"{folder} is no folder")
        found: list[tuple[str, Story | Exception]] = []

        def read(run: Path) -> Story | Exception:
            try:
                story = story_of(run)
                progress_of(story)  # a journal that somebody else made may have anything for a number
            except Exception as error:
                return error
            return story

        for run in find_runs(Path(folder), lambda error: found.append((str(error.filename), error))):
            found.append((str(run), read(run)))
        _print(found, folder, as_json)


def _print(found: list[tuple[str, Story | Exception]], folder: str, as_json: bool) -> None:
    """Print the runs, and then what could not be read, with its reason.

    Raises:
        SystemExit: Something could not be read.
    """
    stories = [story for _, story in found if not isinstance(story, Exception)]
    unread = [(path, error) for path, error in found if isinstance(error, Exception)]
    if as_json:
        errors = [{"folder": path, "error": one_line(error)} for path, error in unread]
        print(json.dumps([*map(as_dict, stories), *errors], indent=2))
    elif not found:
        print(f"no runs in {folder}")
    width = max((len(story.folder) for story in stories), default=0)
    for story in stories if not as_json else ():
        print(f"{story.folder:<{width}}  {story.state:<11}  {progress_of(story):<24}  {story.name}")
    sys.stdout.flush()
    for path, error in unread:
        say_left_out(path, error)
    if unread:
        raise SystemExit(ERROR)


def progress_of(story: Story) -> str:
    """How far it is, as in 617 of 2,000 items, 3 failed."""
    what = "trials" if story.kind == "optimize" else "items"
    text = f"{story.n_done + story.n_failed:,}"
    text += f" of {story.total:,} {what}" if story.total is not None else f" {what}"
    return text + (f", {story.n_failed:,} failed" if story.n_failed else "")


def as_dict(story: Story) -> dict[str, Any]:
    """The story as JSON has it."""
    from dataclasses import asdict

    return asdict(story)
