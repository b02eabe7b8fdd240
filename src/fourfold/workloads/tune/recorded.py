"""The trials of a call with `run=`: each is recorded when it has ended, and the same call finds it again.

The study may live in memory: what is recorded makes it anew, number by number. Trials that had begun and not ended begin again
under their own numbers.
"""

import contextlib
import datetime
import json
import math
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from fourfold.execute.pickling import dump, dump_by_name, load
from fourfold.execute.troubles import pickled, unpickled
from fourfold.options import Settings
from fourfold.runs.place import create_private
from fourfold.runs.recording import Carriage, Recording, Subject
from fourfold.runs.seal import CHECKPOINT
from fourfold.workloads.tune import states
from fourfold.workloads.tune.desk import Desk
from fourfold.workloads.tune.drawing import Drawn
from fourfold.workloads.tune.drivers import is_of_run
from fourfold.workloads.tune.opened import End, Ended, first_of
from fourfold.workloads.tune.proposing import Way
from fourfold.workloads.tune.resumed import go_on

KIND = "optimize"
"""Of a run of trials."""

PAUSED = "paused"

RUNNING = "running"
"""The file of the run that has the numbers of the trials that run now."""

Kept = dict[str, Any]
"""What is recorded of a trial: builtins only."""


class RecordedTrials:
    """The open folder of `run=`.

    Args:
        path: The folder.
        objective: What is optimised.
        study: What it is optimised in.
        settings: Of the call.

    Attributes:
        path: The folder.
        id: Of the run: its trials bear it in a study that outlives this process.

    Raises:
        RunError: The folder cannot be used, or was recorded by something else.
    """

    def __init__(self, path: str, objective: Callable[..., Any], name: str, study: optuna.Study, settings: Settings) -> None:
        parts: dict[str, Any] = {"function": objective}
        parts |= {"init": settings.init} if settings.init else {}
        parts |= {"seed": settings.seed} if settings.seed is not None else {}
        beside = {
            "directions": tuple(each.name for each in study.directions),
            "sampler": type(study.sampler).__name__,
            "pruner": type(study.pruner).__name__,
        }
        shown = {
            "direction": ", ".join(each.name.lower() for each in study.directions),
            "sampler": type(study.sampler).__name__,
            "pruner": type(study.pruner).__name__,
        }
        shown |= {"trial_timeout": f"{settings.timeout:g}"} if settings.timeout is not None else {}
        subject = Subject(name, KIND, parts, {**parts, **beside}, shown, repeatable=True, failures_stand=True)
        self.path, self._study = path, study
        self._recording = Recording(path, subject, Carriage(dump, dump_by_name, load, pickled, unpickled))
        self._recording.begin()
        self._lock = threading.Lock()
        self._running, self._running_bytes = _opened(self._recording.folder / RUNNING), 0
        facts = self._recording.journal.facts()
        self._first = int(facts.get("first_trial", first_of(study)))
        self.id = str(facts.get("trials_id") or secrets.token_hex(8))
        self._recording.journal.tell(first_trial=self._first, trials_id=self.id)
        self._recording.journal.commit()  # before a trial bears it

    def seal(self, number: int, data: bytes) -> str:
        """Of a checkpoint."""
        seal = self._recording.journal.seals.begin(CHECKPOINT, number)
        seal.update(data)
        return seal.hexdigest()

    @property
    def first(self) -> int:
        """The number of the first trial that was recorded, or will be."""
        return self._first

    def bring_back(self, desk: Desk, way: Way, n_trials: int | None) -> None:
        """Bring the study to where the record ends.

        Of a batch that has not ended whole, those that have are told with the others.
        """
        if n_trials is not None:
            self._recording.tell_total(max(0, n_trials - self._first))
        found: dict[int, Kept] = dict(self._recording.values_so_far())
        trials = {each.number: each for each in desk.study.get_trials(deepcopy=False)}
        there = {number: each for number, each in trials.items() if each.state != TrialState.WAITING}
        begun = [number for number in desk.checkpoints.numbers() if n_trials is None or number < n_trials]
        running = {number for number, each in there.items() if each.state == TrialState.RUNNING}
        own = {number for number in running if is_of_run(there[number], self.id)}
        of_others = running - own
        last = max([*found, *there, *begun], default=-1)
        if last < self._first or not (found or begun or own):
            return
        size = way.batch_size or 1
        n_whole = end = self._first
        while all(number in found for number in range(n_whole, n_whole + size)):
            n_whole += size
        while end <= last:
            end += size
        for number in range(self._first, end if n_trials is None else max(last + 1, min(end, n_trials))):
            if number in of_others:
                continue
            kept = found.get(number)
            is_told = size == 1 or number < n_whole
            trial, ended = (None, None) if kept is None else (_trial_of(number, kept), _end_of(kept))
            way.learn(_drawn(kept))
            if number in there and there[number].state.is_finished():
                _pass_by(way, desk.study, there[number], kept)
            elif trial is not None and ended is not None and is_told:
                way.past(number, "fixed_params" in trial.system_attrs, _drawn(kept))
            go_on(desk, number, trials.get(number), trial, ended, is_told)
            for key, value in (kept["study_attrs"] if kept is not None else {}).items():
                desk.study._storage.set_study_system_attr(desk.study._study_id, key, value)

    def keep(self, ended: Ended, way: Way) -> None:
        """A trial has ended, or waits to go on."""
        trial, end, study_attrs = ended
        kept: Kept = {
            "state": PAUSED if end is None else end.state,
            "values": None if end is None else end.values,
            "params": dict(trial.params),
            "distributions": {name: distribution_to_json(each) for name, each in trial.distributions.items()},
            "reports": dict(trial.intermediate_values),
            "user_attrs": dict(trial.user_attrs),
            "system_attrs": dict(trial.system_attrs),
            "started": trial.datetime_start,
            "ended": self._study._storage.get_trial(trial._trial_id).datetime_complete or datetime.datetime.now(),
            "drawn": [(name, distribution_to_json(each)) for name, each in way.drawn_by(trial.number)],
            "study_attrs": study_attrs,
        }
        self._recording.add(trial.number, [kept])

    def beat(self) -> None:
        """What is recorded outlives this process."""
        self._recording.beat(True)

    def running(self, numbers: list[int]) -> None:
        """These trials run now: whoever looks at the run is told so. Called by whichever thread has begun or ended one."""
        data = json.dumps(numbers).encode()
        with self._lock, contextlib.suppress(OSError):  # no room, or all is over: nobody needs it to go on
            os.pwrite(self._running, data.ljust(self._running_bytes), 0)  # in one piece, over what was there
            self._running_bytes = len(data)

    def close(self, state: str) -> None:
        """The call has ended: "done", "failed" or "interrupted"."""
        with self._lock:
            os.close(self._running)
            self._running = -1
        (self._recording.folder / RUNNING).unlink(missing_ok=True)
        self._recording.close(state)


def _drawn(kept: Kept | None) -> Drawn:
    return [(name, json_to_distribution(text)) for name, text in kept["drawn"]] if kept is not None else []


def _pass_by(way: Way, study: optuna.Study, trial: FrozenTrial, kept: Kept | None) -> None:
    """A trial that has ended in a study which outlived its driver, recorded or not: what it drew is drawn."""
    way.past(trial.number, "fixed_params" in trial.system_attrs, _drawn(kept) or list(trial.distributions.items()))
    if way.counts and kept is None:
        way.proposed(optuna.Trial(study, trial._trial_id))


def _opened(path: Path) -> int:
    path.unlink(missing_ok=True)  # of a driver that was killed
    return create_private(path)


def _trial_of(number: int, kept: Kept) -> FrozenTrial:
    values = kept["values"]
    state = {states.COMPLETE: TrialState.COMPLETE, states.PRUNED: TrialState.PRUNED}.get(kept["state"], TrialState.FAIL)
    if state == TrialState.PRUNED and kept["reports"]:  # as `Study.tell` has it
        last = kept["reports"][max(kept["reports"])]
        values = None if math.isnan(last) else [last]
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=values,
        datetime_start=kept["started"],
        datetime_complete=kept["ended"],
        params=kept["params"],
        distributions={name: json_to_distribution(text) for name, text in kept["distributions"].items()},
        user_attrs=kept["user_attrs"],
        system_attrs=kept["system_attrs"],
        intermediate_values=kept["reports"],
        trial_id=number,
    )


def _end_of(kept: Kept) -> End | None:
    return None if kept["state"] == PAUSED else End(kept["state"], kept["values"], kept["system_attrs"].get(states.ERROR, ""))
