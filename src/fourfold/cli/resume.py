"""`fourfold resume` and `fourfold rerun`: the command that began a run, once more."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors, say
from fourfold.errors import OptionError, RunInUse

if TYPE_CHECKING:
    from fourfold.runs.story import Story

AcceptOption = Annotated[
    bool, typer.Option("--accept-changes", help="Keep what was recorded, although the function has changed since.")
]

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)]


def resume_command(
    run: RunArgument,
    accept_changes: AcceptOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Go on with a run that was interrupted, failed or died: type its command again, in its folder.

    What is recorded is not computed again. A run of a notebook or of an interactive session has no command: make
    the same call there.
    """
    with one_line_errors(show_traceback):
        from fourfold.runs.story import open_run
        from fourfold.runs.upkeep import change

        folder = open_run(run)
        story = _idle(folder)
        if story.state == "done" and not accept_changes:
            raise OptionError(
                f"{run} is done: there is nothing to go on with (`fourfold rerun {run} --failed` runs failed items)"
            )
        check_command(story)
        if accept_changes:
            change(folder, accept_changes=True)
        _type_again(story)


def rerun_command(
    run: RunArgument,
    failed: Annotated[bool, typer.Option("--failed", help="The failed items, which are forgotten first.")] = False,
    accept_changes: AcceptOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Run the failed items of a run again. The others keep their values."""
    with one_line_errors(show_traceback):
        from fourfold.runs.story import open_run
        from fourfold.runs.upkeep import change

        if not failed:
            raise OptionError("say which items: --failed")
        folder = open_run(run)
        story = _idle(folder)
        if not story.n_failed:
            raise OptionError(f"no item of {run} has failed")
        check_command(story)
        say(f"{change(folder, accept_changes=accept_changes, forget_failures=True)} failed items of {run} run again")
        _type_again(story)


def _idle(folder: Path) -> Story:
    from fourfold.runs.place import check_trusted
    from fourfold.runs.story import story_of

    check_trusted(folder)  # its command is about to be run
    story = story_of(folder)
    if story.state == "running":
        raise RunInUse(f"process {story.driver_pid} works on {folder} right now")
    return story


def check_command(story: Story) -> None:
    """Whether the command of a run makes the same call again.

    Raises:
        OptionError: It was no script.
    """
    arguments = story.command[1:]
    interactive = not arguments or arguments[0] == "-" or "-i" in arguments or any("ipykernel" in each for each in arguments)
    if interactive or not os.path.isdir(story.working_folder):
        where = "in an interactive session" if interactive else f"in {story.working_folder}, which is gone"
        raise OptionError(f"{story.folder} was made {where}: make the same call again with run={story.folder!r}")


def _type_again(story: Story) -> NoReturn:
    command = [*story.command]
    if is_map_command(command) and story.state == "done" and "--overwrite" not in command:
        command.append("--overwrite")  # its output is there, and is to be replaced by one with the failed items in it
    say(f"in {story.working_folder}: {shlex.join(command)}")
    os.chdir(story.working_folder)
    sys.stdout.flush()
    os.execv(command[0], command)


def is_map_command(command: list[str]) -> bool:
    """Whether it is `fourfold map …`, however it was started."""
    words = [os.path.basename(word) for word in command]
    return any(words[at : at + 2] == ["fourfold", "map"] for at in range(len(words)))
