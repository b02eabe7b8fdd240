"""`fourfold tune --status RUN` and `--export RUN -o FILE`: the trials of a recorded run, also while it goes on."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fourfold.cli.exits import say
from fourfold.cli.tune_board import Board, print_json
from fourfold.errors import OptionError

if TYPE_CHECKING:
    from fourfold.workloads.tune.told import RunOfTrials, Told

RUNNING_NAMED = 10
"""Numbers of running trials that are printed. More: the reader counts. --json has all."""


def show_status(run: str, as_json: bool) -> None:
    """Print the states of a run's trials, the best of them, and which ones run."""
    from fourfold.cli.runs import as_dict
    from fourfold.runs.story import open_run
    from fourfold.workloads.tune.told import trials_of

    found = trials_of(open_run(run))
    story, board = found.story, board_of(found)
    if as_json:
        about = {key: value for key, value in as_dict(story).items() if key in ("folder", "name", "state", "options")}
        print_json({**about, "running": found.running, **board.as_json()})
        return
    who = f" (process {story.driver_pid})" if story.driver_pid else ""
    print(f"{story.name}: {story.state}{who}, {board.counted()}")
    if found.running:
        more = f" and {len(found.running) - RUNNING_NAMED} more" if len(found.running) > RUNNING_NAMED else ""
        print(f"running: {', '.join(map(str, found.running[:RUNNING_NAMED]))}{more}")
    board.print()
    board.tell_failures()
    if story.is_open and story.state != "running":
        print(f"go on: fourfold resume {shlex.quote(run)}")


def board_of(found: RunOfTrials) -> Board:
    """What is shown of a run."""
    board = Board(found.directions, found.story.total)
    for trial in found.trials:
        board.add(trial)
    return board


def export(run: str, output: str | None, overwrite: bool) -> None:
    """Write the trials of a run into a file."""
    from fourfold.runs.story import open_run
    from fourfold.workloads.tune.told import trials_of

    if output is None:
        raise OptionError("--export needs -o FILE: a .parquet, .csv or .jsonl")
    check_free(output, overwrite)
    found = trials_of(open_run(run))
    write_trials(found.trials, len(found.directions), output)
    told = ", and it is going on" if found.story.state == "running" else ""
    say(f"{output}: {len(found.trials):,} trials written{told}")


def check_free(output: str, overwrite: bool) -> None:
    """Whether a file of trials can be written there.

    Raises:
        OptionError: It cannot.
    """
    from fourfold.aggregate.sinks import SINK_OF_EXTENSION

    if os.path.splitext(output)[1].lower() not in SINK_OF_EXTENSION:
        raise OptionError(f"{output} is to end with one of {' '.join(SINK_OF_EXTENSION)}: that says how trials are written")
    if os.path.isdir(output) or (os.path.exists(output) and not overwrite):
        raise OptionError(f"{output} is there already: choose another name, or overwrite=True")


def write_trials(trials: Sequence[Told], n_values: int, output: str) -> None:
    """Write a row for each trial; the file appears whole or not at all."""
    from fourfold.aggregate.sinks import open_sink

    sink = open_sink(output)
    try:
        for index, row in enumerate(rows_of(trials, n_values)):
            sink.write(index, row)
        sink.finish()
        sink.publish()
    finally:
        sink.discard()
    if sink.n_nulled:
        say(f"{sink.n_nulled:,} numbers were NaN or infinite, which JSON cannot hold: they are null in {output}")


def rows_of(trials: Sequence[Told], n_values: int) -> list[dict[str, Any]]:
    """Trials as rows with the same columns, which are called as in `Study.trials_dataframe` of Optuna."""
    values = ["value"] if n_values == 1 else [f"values_{at}" for at in range(n_values)]
    params = _columns([each.params for each in trials], "params_")
    attrs = _columns([each.user_attrs for each in trials], "user_attrs_")
    return [
        {
            "number": each.number,
            "state": each.state,
            **dict(zip(values, map(float, each.values) if each.values else [None] * n_values, strict=True)),
            **params[at],
            **attrs[at],
            "datetime_start": each.started,
            "datetime_complete": each.ended,
            "duration_s": (each.ended - each.started).total_seconds() if each.started and each.ended else None,
            "attempts": each.attempts,
            "n_reports": each.n_reports,
            "error": each.error,
        }
        for at, each in enumerate(trials)
    ]


def _columns(found: Sequence[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """The same names in all of them; a column of several types, or of lists and other objects, becomes text."""
    names = list(dict.fromkeys(name for each in found for name in each))
    rows: list[dict[str, Any]] = [{} for _ in found]
    for name in names:
        cells = [each.get(name) for each in found]
        kinds = {type(cell) for cell in cells if cell is not None}
        is_plain = len(kinds) <= 1 and kinds <= {int, float, str, bool}
        if kinds == {int, float}:
            is_plain, cells = True, [None if cell is None else float(cell) for cell in cells]
        for row, cell in zip(rows, cells, strict=True):
            row[prefix + name] = cell if is_plain or cell is None else _as_text(cell)
    return rows


def _as_text(cell: Any) -> str:
    return cell if isinstance(cell, str) else json.dumps(cell, default=str)
