"""`fourfold resume` and `fourfold rerun`: the command that began a run, once more."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourfold.addresses import without_secrets
from fourfold.cli.exits import TracebackOption, one_line_errors, say
from fourfold.errors import OptionError, RunError, RunInUse

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

    What is recorded is not computed again. RUN may be the folder of a fit, with all its passes. A run of a notebook or of an
    interactive session has no command: make the same call there.
    """
    with one_line_errors(show_traceback):
        from fourfold.runs.story import open_run
        from fourfold.runs.upkeep import change
        from fourfold.workloads.fit.recorded import passes_in

        passes = passes_in(Path(run))
        folders = passes or [open_run(run)]
        stories = [_idle(folder) for folder in folders]
        story = replace(stories[0], folder=run)
        if story.state == "done" and not passes and not accept_changes:
            raise OptionError(
                f"{run} is done: there is nothing to go on with (`fourfold rerun {run} --failed` runs failed items)"
            )
        if accept_changes:
            for folder in folders:
                change(folder, accept_changes=True)
            say(f"{run}: what was recorded is kept, whatever has changed")
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
        say(f"{change(folder, accept_changes=accept_changes, forget_failures=True)} failed items of {run} run again")
        _type_again(story)


def _idle(folder: Path) -> Story:
    from fourfold.runs.place import check_trusted
    from fourfold.runs.seal import load_key
    from fourfold.runs.story import check_command, story_of

    check_trusted(folder)
    check_command(folder, load_key())  # it is about to be run
    story = story_of(folder)
    if story.state == "running":
        raise RunInUse(f"process {story.driver_pid} works on {folder} right now")
    return story


def why_not_again(story: Story) -> str:
    """Why the command of a run cannot be typed again; "" when it can."""
    command = story.command[1:]
    interpreter = list(itertools.takewhile(lambda word: word.startswith("-") and word not in ("-c", "-m", "-"), command))
    rest = command[len(interpreter) :]
    if not rest or rest[0] == "-" or "-i" in interpreter or any("ipykernel" in word for word in rest[:2]):
        return "in an interactive session"
    if is_map_command(story.command) and "-" in rest:
        return "from standard input, which is gone"
    if kept_out := _kept_out(rest):
        return f"with {' and '.join(kept_out)}, and no run keeps such values"
    return "" if os.path.isdir(story.working_folder) else f"in {story.working_folder}, which is gone"


def _type_again(story: Story) -> None:
    """Raise RunError, which says what to type, where we cannot."""
    why_not = why_not_again(story)
    if why_not:
        raise RunError(f"{story.folder} was made {why_not}: {_what_to_do(story)}")
    command = _command_again(story)
    say(f"in {story.working_folder}: {without_secrets(shlex.join(command))}")
    os.chdir(story.working_folder)
    sys.stdout.flush()
    os.execv(command[0], command)


def _command_again(story: Story) -> list[str]:
    """The command of a run: of one that is done, the output is there, and is replaced by one with the failed items in it."""
    is_refused = is_map_command(story.command) and story.state == "done" and "--overwrite" not in story.command
    return [*story.command, *(["--overwrite"] if is_refused else [])]


def _kept_out(words: list[str]) -> list[str]:
    """The options of a command whose values were not recorded, as they are typed."""
    found = []
    for before, word in itertools.pairwise(["", *words]):
        if word.endswith("=…"):
            option, _, key = word.rpartition("=…")[0].partition("=") if word.startswith("--") else (before, "", word[:-2])
            found.append(f"{option} {key}=…")
    return found


def _what_to_do(story: Story) -> str:
    words = own_words(_command_again(story))
    if not words:
        return f"now make the same call again, with run={story.folder!r}"
    has_secrets = bool(_kept_out(words))
    first = "" if os.path.isdir(story.working_folder) else "make that folder again, and "
    what = (
        f"{first}type its command again, {'with the values in place of …, ' if has_secrets else ''}in {story.working_folder}"
    )
    hint = ". A value that is the name of a variable, KEY=$NAME, need not be typed again" if has_secrets else ""
    return f"{what}: {without_secrets(shlex.join(words))}{hint}"


def own_words(command: list[str]) -> list[str]:
    """A command as somebody types it, `fourfold …`, however it was started; nothing when it is another program."""
    for at, word in enumerate(command[1:], 1):
        if os.path.basename(word) == "fourfold":
            return ["fourfold", *command[at + 1 :]]
        if not word.startswith("-") and command[at - 1] not in ("-X", "-W"):  # the program, and no option of Python
            break
    return []


def is_map_command(command: list[str]) -> bool:
    """Whether it is `fourfold map …`, however it was started."""
    return own_words(command)[:2] == ["fourfold", "map"]
