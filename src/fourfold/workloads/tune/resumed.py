"""Trials of an earlier call find their places at the desk again."""

import optuna
from optuna.trial import FrozenTrial, TrialState

from fourfold.workloads.tune import states
from fourfold.workloads.tune.desk import Desk
from fourfold.workloads.tune.opened import End, Open


def go_on(desk: Desk, number: int, left: FrozenTrial | None, kept: FrozenTrial | None, end: End | None, is_told: bool) -> None:
    """Go on from a trial of an earlier call.

    Args:
        desk: Where it is served.
        number: Of the trial. They come in order.
        left: As it is in the study; None when it is not there.
        kept: As it was; None when nobody knows: it begins again.
        end: How it ended; None when it has not.
        is_told: The study is told of it at once, and not with its batch.
    """
    is_over = left is not None and left.state.is_finished()
    if kept is None and left is None and not desk.way.draws_again:
        desk.checkpoints.drop(number)  # it would go on with other parameters
    reports, waits = _reports(desk, number, left, kept), kept is not None and end is None
    if desk.rungs is not None and (kept is not None or reports):
        heard = {step: desk.sign * value for step, value in reports.items()}
        waits = desk.rungs.recall(number, heard, waits=end is None and not is_over) or waits
        if end is not None and end.state not in (states.COMPLETE, states.PRUNED):
            desk.rungs.fail(number)
    if is_over:  # the study has outlived its driver
        return
    if left is None and kept is not None and end is not None and is_told:
        desk.study.add_trial(kept)
        desk.book.n_begun += 1
        return
    here = _running(desk, left) if left is not None and left.state == TrialState.RUNNING else desk.book.begin()
    if kept is not None:
        _fill(desk, here, kept)
    if end is None:
        _say_again(desk, here, reports)
    if waits and kept is None and desk.rungs is not None and desk.way.waits_for_first:  # what it draws others must know
        desk.rungs.end(number)
        waits = False
    if not is_told:
        desk.batch.append(number)
    if end is not None:
        here.end = end
        desk.going.discard(number)
        if is_told:
            desk.book.tell(number)
    elif waits and desk.rungs is not None:
        here.is_paused = True
        desk.way.ended(number)  # it has drawn what others wait for
        desk.going.discard(number)
    else:
        desk.ready.append(number)


def _running(desk: Desk, left: FrozenTrial) -> Open:
    """A trial that a driver has left in a study which outlived it: it begins again, with what it had drawn."""
    trial = optuna.Trial(desk.study, left._trial_id)
    desk.study._storage.set_trial_system_attr(left._trial_id, states.DRIVER, desk.book.mark)
    here = desk.book.take_up(trial, desk.way.proposed(trial))
    if "fixed_params" not in left.system_attrs:  # else it was enqueued, perhaps with some
        here.first_attrs, here.user_attrs = {}, {}
    here.reported_steps = set(left.intermediate_values)
    here.attempts = int(left.system_attrs.get(states.ATTEMPTS, 0))
    return here


def _reports(desk: Desk, number: int, left: FrozenTrial | None, kept: FrozenTrial | None) -> dict[int, float]:
    """What it had reported when it was recorded, and before what it goes on from."""
    found = dict(kept.intermediate_values) if kept is not None else {}
    if desk.checkpoints.has(number):
        found |= desk.checkpoints.reports(number)
        found |= left.intermediate_values if left is not None else {}
    return found


def _say_again(desk: Desk, here: Open, reports: dict[int, float]) -> None:
    storage, trial_id = desk.study._storage, here.trial._trial_id
    has = storage.get_trial(trial_id).intermediate_values
    for step in sorted(reports.keys() - has.keys()):
        storage.set_trial_intermediate_value(trial_id, step, reports[step])
    here.reported_steps = {*has, *reports}
    if reports:
        here.attempts = max(1, here.attempts)  # it has begun before, and goes on


def _fill(desk: Desk, here: Open, kept: FrozenTrial) -> None:
    storage, trial_id = desk.study._storage, here.trial._trial_id
    has = storage.get_trial(trial_id)
    for name, value in kept.params.items():
        if name not in has.params:
            distribution = kept.distributions[name]
            storage.set_trial_param(trial_id, name, distribution.to_internal_repr(value), distribution)
    for step, value in kept.intermediate_values.items():
        if step not in has.intermediate_values:
            storage.set_trial_intermediate_value(trial_id, step, value)
    for key, value in kept.user_attrs.items():
        storage.set_trial_user_attr(trial_id, key, value)
    for key, value in kept.system_attrs.items():
        if key != states.DRIVER:  # it has another one now
            storage.set_trial_system_attr(trial_id, key, value)
    here.trial._cached_frozen_trial = storage.get_trial(trial_id)  # else it would draw anew what it has drawn
    here.reported_steps = set(kept.intermediate_values)
    here.attempts = int(kept.system_attrs.get(states.ATTEMPTS, 0))
