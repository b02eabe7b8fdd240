"""What is said of trials: in the report of a call, and in Optuna's log."""

import logging

import optuna
from optuna.trial import FrozenTrial, TrialState

from fourfold.distribute.verdict import seconds as in_words
from fourfold.records import Report
from fourfold.workloads.tune import states
from fourfold.workloads.tune.desk import Desk


def of_trials(report: Report, desk: Desk, n_trials: int | None) -> Report:
    """The report of a call whose items are tickets, of the trials that these have run."""
    busy_s = max(0.0, report.busy_s - desk.waited_s)
    verdict = report.verdict.replace(
        f"{report.n_items} items with {in_words(report.busy_s)}", f"{desk.n_ended} trials with {in_words(busy_s)}"
    )
    if report.elapsed_s:
        before, after = (f"{each / report.elapsed_s:.2f} times as fast as its " for each in (report.busy_s, busy_s))
        verdict = verdict.replace(f"{before}items", f"{after}trials")
    n_there = len(desk.study.get_trials(deepcopy=False))
    if not desk.n_ended and n_trials is not None and n_there >= n_trials:
        verdict = (
            f"nothing was left to run: the study has {n_there} trials, and n_trials={n_trials} is how many it has in the end"
        )
    told = {
        "verdict": verdict,
        "n_items": desk.n_ended,
        "n_failures": len(desk.failures),
        "busy_s": busy_s,
        "n_retries": desk.n_retries,
    }
    return Report(**{**vars(report), **told})


def log_end(study: optuna.Study, trial: FrozenTrial) -> None:
    """Say what has become of a trial, in Optuna's log."""
    log = logging.getLogger("optuna.fourfold")
    if trial.state == TrialState.COMPLETE:
        found = trial.values[0] if len(trial.values) == 1 else trial.values
        log.info("Trial %d finished with value %s and parameters %s", trial.number, found, trial.params)
    elif trial.state == TrialState.PRUNED:
        log.info("Trial %d pruned", trial.number)
    else:
        why = trial.system_attrs.get(states.ERROR, "")
        log.warning("Trial %d %s: %s; parameters %s", trial.number, trial.system_attrs.get(states.STATE), why, trial.params)
