"""Which process has a trial: a study in a database may have several drivers at once, and outlives them.

Each trial that is begun in such a study bears a mark, the process that has it. A driver that is killed leaves its trials
running: the next call on that study sees by the mark that nobody has them any more. What others have it leaves alone.
"""

import contextlib
import datetime
import logging
import secrets
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from fourfold.data.writers import Writer, writer_of_this_process
from fourfold.workloads.tune import states
from fourfold.workloads.tune.opened import begun_at

Mark = dict[str, Any]
"""A `Writer` as JSON, and the id of its call. Its run is the id of a recorded one, which one process has open at a time."""

NAMED = 10
"""Trials that a message names by their numbers."""


_calls: set[str] = set()
"""The calls that this process works on."""


@contextlib.contextmanager
def marking(study: optuna.Study, run: str | None) -> Iterator[Mark | None]:
    """A block of a call: gives what its trials bear; None where no other process sees the study.

    Args:
        study: What is optimised.
        run: The id of the recorded run, None without one.
    """
    if isinstance(study._storage, InMemoryStorage):
        yield None
        return
    call = secrets.token_hex(8)
    _calls.add(call)
    try:
        yield {**writer_of_this_process(None)._replace(run=run)._asdict(), "call": call}
    finally:
        _calls.discard(call)


def begun(study: optuna.Study, mark: Mark | None, started: datetime.datetime | None) -> int:
    """Make a trial that runs, with its mark in one step: killed between two, it would run for ever. Returns its id.

    Args:
        study: That is to have it.
        mark: What it bears.
        started: When it began; None for now.
    """
    if mark is None and started is None:
        return study._storage.create_new_trial(study._study_id)
    attrs = {} if mark is None else {states.DRIVER: mark}
    return study._storage.create_new_trial(study._study_id, begun_at(started or datetime.datetime.now(), attrs))


def is_of_run(trial: FrozenTrial, run: str) -> bool:
    """Whether a trial was begun by a call that recorded this run."""
    writer = _writer_of(trial)
    return writer is not None and writer.run == run


def end_lost(study: optuna.Study, run: str | None) -> None:
    """Tell a study of trials that run, and whose drivers are dead; say which ones nobody here can know of.

    Args:
        study: What is optimised.
        run: The recorded run of this call, whose own trials go on.
    """
    if isinstance(study._storage, InMemoryStorage):
        return
    lost, elsewhere = [], []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        writer = _writer_of(trial)
        if writer is not None and writer.run is not None and writer.run == run:
            continue
        if writer is None or not (writer.is_here() and writer.began != -1):
            elsewhere.append(trial)
        elif _is_lost(trial, writer) and _end(study, trial, writer):
            lost.append(trial.number)
    log = logging.getLogger("fourfold")
    if lost:
        log.warning("%s of study %r had a driver that is gone: told as unfinished", _named(lost), study.study_name)
    if elsewhere:
        log.warning(
            "%s of study %r: on another machine, or not of fourfold (%s), so nobody here knows whether somebody has them. "
            "They are left, and counted. If they are lost: study.tell(NUMBER, state=optuna.trial.TrialState.FAIL)",
            _named([each.number for each in elsewhere]),
            study.study_name,
            ", ".join(sorted({_host_of(each) for each in elsewhere})),
        )


def _end(study: optuna.Study, trial: FrozenTrial, writer: Writer) -> bool:
    """Whether this process has told of it: two that begin at once both see it."""
    storage, trial_id = study._storage, trial._trial_id
    try:
        storage.set_trial_system_attr(trial_id, states.STATE, states.UNFINISHED)
        storage.set_trial_system_attr(trial_id, states.ERROR, f"its driver, process {writer.pid}, has ended without it")
        storage.set_trial_state_values(trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    return True


def _is_lost(trial: FrozenTrial, writer: Writer) -> bool:
    """Whether nobody has it any more: its process is gone, or has ended its call and could not tell the study."""
    return writer.is_dead() or (writer.is_this_process() and trial.system_attrs[states.DRIVER].get("call") not in _calls)


def _writer_of(trial: FrozenTrial) -> Writer | None:
    try:
        mark = trial.system_attrs[states.DRIVER]
        return Writer(**{name: mark[name] for name in Writer._fields})
    except (KeyError, TypeError):
        return None


def _host_of(trial: FrozenTrial) -> str:
    writer = _writer_of(trial)
    return "unknown" if writer is None else f"process {writer.pid} of {writer.machine.partition(' ')[0]}"


def _named(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:NAMED])) + (" …" if len(numbers) > NAMED else "")
    return f"{len(numbers)} running trials ({shown})" if len(numbers) > 1 else f"running trial {shown}"
