"""What is said of trials: in the report of a call, and in Optuna's log."""

import logging

import optuna
from optuna.trial import FrozenTrial, TrialState

from fourfold.distribute.verdict import seconds as in_words
from fourfold.records import Report
from fourfold.workloads.tune import states
from fourfold.workloads.tune.desk import Desk


class Trials:
    """What progress shows: trials that have ended, and not tickets, many of which may find none."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def finished(self) -> int:
        return self._desk.book.n_ended

    @property
    def failures(self) -> int:
        return len(self._desk.failures)


def of_trials(report: Report, desk: Desk) -> Report:
    """The report of a call whose items are tickets, of the trials that these have run."""
    busy_s = max(0.0, report.busy_s - desk.waited_s)
    n_trials = desk.book.n_ended + sum(each.is_paused for each in desk.open.values())
    verdict = report.verdict.replace(
        f"{report.n_items} items with {in_words(report.busy_s)}", f"{n_trials} trials with {in_words(busy_s)}"
    )
    if report.elapsed_s:
        before, after = (f"{each / report.elapsed_s:.2f} times as fast as its " for each in (report.busy_s, busy_s))
        verdict = verdict.replace(f"{before}items", f"{after}trials")
    if not n_trials and not desk.failures and desk.error is None:
        verdict = desk.why_idle or verdict
    told = {
        "verdict": verdict,
        "n_items": n_trials,
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
        if log.isEnabledFor(logging.INFO):
            told = "Trial %d finished with value %s and parameters %s%s"
            log.info(told, trial.number, found, trial.params, _best_of(study))
    elif trial.state == TrialState.PRUNED:
        log.info("Trial %d pruned", trial.number)
    else:
        why = trial.system_attrs.get(states.ERROR, "")
        log.warning("Trial %d %s: %s; parameters %s", trial.number, trial.system_attrs.get(states.STATE), why, trial.params)


def _best_of(study: optuna.Study) -> str:
    if len(study.directions) > 1:
        return ""
    try:
        best = study.best_trial
    except ValueError:  # none keeps its constraints
        return ""
    return f". Best is trial {best.number} with value {best.value}"
