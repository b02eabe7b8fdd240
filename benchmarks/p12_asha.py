"""ASHA: how soon a search that stops bad trials early is as good as random search at its end, on a real network.

    random search   all trials to their last epoch                          its time, and the best score that it has found
    ASHA            the same draws, bad ones stopped, and more of them      until a trial of it has ended with that score

A time for each seed, one after the other in turns; a search that has not got there after `PATIENCE` times as many trials has
lost that seed.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import optuna
from fourfolds import start_workers
from measure import usable_cores
from optuna.trial import TrialState
from rows import FOURFOLD, Row

import fourfold as ff

BAR = 0.40
N_SEEDS, N_TRIALS, N_EPOCHS = 10, 40, 27

# Epochs before a trial is judged. Less is not possible; more: bad trials cost more. After one, a rate that learns is told from
# one that does not.
MIN_EPOCHS = 1

# Seeds of which Optuna's own pruner has its turn, for orientation: its threads and those of BLAS are slow together.
SEEDS_OF_OPTUNA = 3

# Times as many trials as random search has. Less: unlucky seeds are lost that would have got there; more: they take longer.
PATIENCE = 4

# Rows of a step of a network. Smaller: epochs take longer, and learn more.
BATCH = 64

OURS, OPTUNA = "ff.ASHA", "Optuna SuccessiveHalvingPruner"


@dataclass(frozen=True)
class Search:
    """What came of one search: its seconds, its best score, the epochs of all its trials."""

    elapsed_s: float
    best: float
    n_epochs: int


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """A seed is a round; of these there are as many as the bar says, whatever `rounds` says of other promises."""
    n_seeds, n_trials, n_epochs = (2, 6, 9) if is_quick else (N_SEEDS, N_TRIALS, N_EPOCHS)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("fourfold").setLevel(logging.ERROR)
    workers = usable_cores()
    start_workers(workers)
    objective = training(n_epochs)
    search(objective, 0, 2 * workers, workers)  # scikit-learn is imported in all workers
    laps: dict[str, list[float]] = {"random search": [], OURS: [], OPTUNA: []}
    shares: list[float] = []
    for seed in range(n_seeds):
        random = search(objective, seed, n_trials, workers)
        asha = search(objective, seed, PATIENCE * n_trials, workers, ff.ASHA(MIN_EPOCHS, n_epochs), random.best)
        laps["random search"].append(random.elapsed_s)
        laps[OURS].append(asha.elapsed_s if asha.best >= random.best else math.inf)
        if seed < SEEDS_OF_OPTUNA:
            theirs = of_optuna(objective, seed, PATIENCE * n_trials, workers, random.best)
            laps[OPTUNA].append(theirs.elapsed_s if theirs.best >= random.best else math.inf)
        shares.append(asha.n_epochs / random.n_epochs)
    case = f"{n_trials} networks of {n_epochs} epochs on digits, {workers} workers: until as good as random search"
    return [judged(case, OURS, laps, shares, BAR), judged(case, OPTUNA, laps, [], None)]


def judged(case: str, name: str, laps: dict[str, list[float]], shares: list[float], bar: float | None) -> Row:
    """The median over the seeds of its time over that of random search."""
    ratios = [ours / all_s for ours, all_s in zip(laps[name], laps["random search"], strict=False)]
    figure, n_lost = statistics.median(ratios), sum(map(math.isinf, ratios))
    note = f"{n_lost} of {len(ratios)} seeds lost"
    if shares:
        note += f"; {statistics.median(shares):.2f} of its epochs"
    seconds = {each: [s for s in of if math.isfinite(s)] for each, of in laps.items()}  # the note has those that were lost
    return Row(
        "ASHA",
        f"{case} ({name})",
        figure if math.isfinite(figure) else None,
        "× random search",
        bar,
        None if bar is None else figure <= bar,
        fourfold_s=statistics.median(laps[name]) if name == OURS and math.isfinite(figure) else None,
        peer="random search",
        peer_s=statistics.median(laps["random search"]),
        note=note,
        laps_s=seconds,
        settings={FOURFOLD: name},
    )


@lru_cache
def digits() -> tuple[np.ndarray, ...]:
    """Rows to learn from and rows to judge by."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    return tuple(train_test_split(X / 16.0, y, test_size=0.4, random_state=0, stratify=y))


def training(n_epochs: int) -> Callable[[Any], float]:
    """The objective: a network trained epoch by epoch, which keeps itself for later."""

    def objective(trial: Any) -> float:
        from sklearn.neural_network import MLPClassifier

        X_train, X_test, y_train, y_test = digits()
        model = MLPClassifier(
            hidden_layer_sizes=(trial.suggest_int("width", 4, 256, log=True),) * trial.suggest_int("depth", 1, 3),
            learning_rate_init=trial.suggest_float("rate", 1e-5, 1e-1, log=True),
            alpha=trial.suggest_float("alpha", 1e-6, 1e1, log=True),
            activation=trial.suggest_categorical("activation", ["relu", "tanh", "logistic"]),
            batch_size=BATCH,
            random_state=0,
        )
        epoch, score = 0, 0.0
        if hasattr(trial, "restore"):  # a trial of Optuna has none
            epoch, model = trial.restore((epoch, model))
        while epoch < n_epochs:
            model.partial_fit(X_train, y_train, classes=np.arange(10))
            score = float(model.score(X_test, y_test))
            trial.report(score, epoch)
            epoch += 1
            if hasattr(trial, "checkpoint") and epoch in keeps(n_epochs):
                trial.checkpoint((epoch, model))
            if trial.should_prune():
                raise optuna.TrialPruned
        return score

    return objective


def keeps(n_epochs: int) -> set[int]:
    """After these epochs a trial may have to wait."""
    return {MIN_EPOCHS * 3**at for at in range(20) if MIN_EPOCHS * 3**at < n_epochs}


class Until:
    """Ends a study when a trial of it has ended with that score, and knows when."""

    def __init__(self, target: float) -> None:
        self.target, self.at_s = target, math.inf

    def __call__(self, study: optuna.Study, trial: Any) -> None:
        if trial.state == TrialState.COMPLETE and trial.value >= self.target:
            self.at_s = min(self.at_s, time.perf_counter())
            study.stop()


def search(
    objective: Callable[[Any], float], seed: int, n_trials: int, workers: int, pruner: Any = None, target: float = math.inf
) -> Search:
    """By `ff.optimize`, to its end or until it is as good as that."""
    until, began = Until(target), time.perf_counter()
    study = ff.optimize(
        objective,
        n_trials=n_trials,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed),
        pruner=pruner or optuna.pruners.NopPruner(),
        callbacks=[until],
        mode="async",
        workers=workers,
        progress=False,
    )
    return ended(study, began, until)


def of_optuna(objective: Callable[[Any], float], seed: int, n_trials: int, workers: int, target: float) -> Search:
    """By `study.optimize`, whose workers are threads and whose pruner stops for good."""
    until, began = Until(target), time.perf_counter()
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(MIN_EPOCHS, reduction_factor=3),
    )
    study.optimize(objective, n_trials=n_trials, n_jobs=workers, callbacks=[until])
    return ended(study, began, until)


def ended(study: optuna.Study, began: float, until: Until) -> Search:
    """Its time is that of the trial that was good enough, if there was one."""
    elapsed_s = min(until.at_s, time.perf_counter()) - began
    n_epochs = sum(len(trial.intermediate_values) for trial in study.trials)
    values = [trial.value for trial in study.trials if trial.state == TrialState.COMPLETE]
    return Search(elapsed_s, max(values, default=-math.inf), n_epochs)
