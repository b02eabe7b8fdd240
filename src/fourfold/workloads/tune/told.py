"""Trials as people read them: of a study, or of a recorded run that may still be going on."""

import datetime
import json
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from fourfold.errors import OptionError
from fourfold.execute.pickling import load
from fourfold.runs.place import check_trusted
from fourfold.runs.seal import load_key
from fourfold.runs.story import Story, read_values, story_of
from fourfold.workloads.tune import states
from fourfold.workloads.tune.recorded import KIND, RUNNING, Kept

OF_OPTUNA = {
    TrialState.COMPLETE: states.COMPLETE,
    TrialState.PRUNED: states.PRUNED,
    TrialState.FAIL: states.FAILED,
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
"""The state of a trial that `ff.optimize` has said nothing of."""


class Told(NamedTuple):
    """A trial that has ended, or waits at a rung.

    Attributes:
        number: Of the trial.
        state: One of the words of `fourfold.workloads.tune.states`, or "paused".
        values: None where it has none.
        params: What it has drawn.
        user_attrs: Of the user.
        n_reports: Intermediate values.
        attempts: How often it was begun.
        error: Why it has no value.
        started, ended: When.
    """

    number: int
    state: str
    values: list[float] | None
    params: dict[str, Any]
    user_attrs: dict[str, Any]
    n_reports: int
    attempts: int
    error: str
    started: datetime.datetime | None
    ended: datetime.datetime | None


class RunOfTrials(NamedTuple):
    """A recorded run.

    Attributes:
        story: As of any run.
        directions: "minimize" or "maximize", for each value.
        trials: In the order of their numbers.
        running: Numbers of trials that run now; empty when the driver is gone.
    """

    story: Story
    directions: list[str]
    trials: list[Told]
    running: list[int]


def told_of(trial: FrozenTrial) -> Told:
    """A trial of a study."""
    attrs = trial.system_attrs
    return Told(
        trial.number,
        attrs.get(states.STATE, OF_OPTUNA[trial.state]),
        list(trial.values) if trial.values is not None else None,
        dict(trial.params),
        dict(trial.user_attrs),
        len(trial.intermediate_values),
        attrs.get(states.ATTEMPTS, 1),
        attrs.get(states.ERROR, ""),
        trial.datetime_start,
        trial.datetime_complete,
    )


def trials_of(folder: Path) -> RunOfTrials:
    """Read the trials of a recorded run, whether it has ended or not.

    Raises:
        OptionError: What was recorded there are no trials.
        UntrustedRun: It was recorded with another key: nothing of it is unpickled.
        JournalError: It cannot be read.
    """
    story = story_of(folder)
    if story.kind != KIND:
        raise OptionError(f"{folder} is a run of {story.name}, and not of trials: `fourfold show {folder}` tells of it")
    check_trusted(folder)
    found: dict[int, Told] = {}
    for first, parcel in read_values(folder, load_key()):
        for number, kept in enumerate(load(parcel), first):
            found[number] = _told_of_kept(number, kept)
    running = _running(folder / RUNNING) if story.state == "running" else []
    directions = story.options.get("direction", "minimize").split(", ")
    return RunOfTrials(story, directions, [found[number] for number in sorted(found)], running)


def _running(path: Path) -> list[int]:
    try:
        return [int(number) for number in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):  # nothing runs yet, or half of it was read
        return []


def _told_of_kept(number: int, kept: Kept) -> Told:
    attrs = kept["system_attrs"]
    return Told(
        number,
        kept["state"],
        kept["values"],
        kept["params"],
        kept["user_attrs"],
        len(kept["reports"]),
        attrs.get(states.ATTEMPTS, 1),
        attrs.get(states.ERROR, ""),
        kept["started"],
        kept["ended"],
    )
