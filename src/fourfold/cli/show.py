"""`fourfold show`: one recorded run, with its failures grouped by type and line."""

from __future__ import annotations

import json
import os
import shlex
import time
from typing import Annotated, Any

import typer

from fourfold.addresses import without_secrets
from fourfold.cli.exits import TracebackOption, one_line_errors, printable

GROUPS_SHOWN = 10
"""Groups of failures that are printed. More: the reader scrolls. --json has all."""

EVENTS_SHOWN = 10


def show_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Show one run: how far it is, what failed and where, and what to type next. Nothing of it is unpickled."""
    with one_line_errors(show_traceback):
        from dataclasses import asdict

        import fourfold.shown as shown
        from fourfold.aggregate.kinds import groups
        from fourfold.runs.story import events_of, failures_of, open_run, story_of

        folder = open_run(run)
        story, failures, events = story_of(folder), failures_of(folder), events_of(folder)
        grouped = groups(failures)
        shown.obey(os.environ.get(shown.VARIABLE))
        if shown.key():  # also of a run that was recorded with its items shown
            failures = [each._replace(shown=shown.hidden(each.shown)) for each in failures]
        if as_json:
            listed = [
                {key: value for key, value in each._asdict().items() if key not in ("digest", "value")} for each in failures
            ]
            told = [{"at": at, "kind": kind, **data} for at, kind, data in events]
            command = [without_secrets(word) for word in story.command]
            print(json.dumps({**asdict(story), "command": command, "failures": listed, "events": told}, indent=2))
            return
        from fourfold.cli.runs import progress_of

        who = f" (process {story.driver_pid})" if story.driver_pid else ""
        print(f"{printable(story.name)}: {story.state}{who}, {progress_of(story)}")
        print(f"began {_when(story.created_at)}, last seen {_when(story.updated_at)}")
        if story.options:
            print("options: " + ", ".join(f"{name}={value}" for name, value in story.options.items()))
        if story.command:
            print(f"command: {without_secrets(shlex.join(story.command))}")
        if story.kind == "optimize":
            print(f"its trials, also while it runs: fourfold tune --status {shlex.quote(run)}")
        for group in grouped[:GROUPS_SHOWN]:
            print(f"\n{describe_group(group)}")
            print(f"  see it again: fourfold replay {shlex.quote(run)} --item {group[0].item}")
        if len(grouped) > GROUPS_SHOWN:
            print(f"\nand {len(grouped) - GROUPS_SHOWN} other kinds of failures (--json has all)")
        if events:
            print()
        for at, kind, data in events[-EVENTS_SHOWN:]:
            more = ", ".join(f"{key} {value}" for key, value in data.items())
            print(f"{_when(at)}  {kind}" + (f" ({more})" if more else ""))
        if story.state in ("died", "interrupted", "stopped", "failed"):
            print(f"\ngo on: fourfold resume {shlex.quote(run)}")
        if failures and story.state == "done":
            print(f"\nrun the failed items again: fourfold rerun {shlex.quote(run)} --failed")


def describe_group(group: list[Any]) -> str:
    """One kind of failure: "12 items: ValueError at features.py:12 in score, first item 617: no price"."""
    first = group[0]
    index = first.item if isinstance(first.item, int) else first.index
    count = f"{len(group):,} items" if len(group) > 1 else "1 item"
    place = f" at {first.place}" if first.place else ""
    which = f"the first is item {index}" if len(group) > 1 else f"item {index}"
    return f"{count}: {first.error_type}{place}; {which}: {printable(' '.join(first.message.split())[:200])}"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
