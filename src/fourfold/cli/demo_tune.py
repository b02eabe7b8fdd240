"""The tuning of the demo: a search over the pipeline of flights, by Optuna one trial after the other, and by fourfold.

features/ ──sample of those to learn from──┬─ half: each trial fits its pipeline     study.optimize
                                           └─ half: and is judged by the AUC here    ff.optimize
                                                       the same trials? ──> Settings ──> demo_train
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourfold.cli.demo_train import CATEGORIES, SAME, UNTUNED, Settings, auc, model, timed, without_warnings

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from fourfold.workloads.dataset import Dataset

SHARE = 0.07
"""Of the flights to learn from that the search looks at. More: better chosen, and slower."""

N_TRIALS = 10
"""Fewer: a worse choice. More: slower; the demo is to be quick."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A search, both ways.

    Attributes:
        n_learned, n_judged: Flights that each trial is fitted to, and judged on.
        theirs_s, ours_s: Seconds of Optuna and of fourfold.
        difference: By how much the AUC of a trial differs at most between the two.
        study: The one of fourfold; its trial 0 is the pipeline as it is without a search.
    """

    n_learned: int
    n_judged: int
    theirs_s: float
    ours_s: float
    difference: float
    study: optuna.Study

    @property
    def settings(self) -> Settings:
        """The best."""
        return Settings(**self.study.best_params)


class Objective:
    """How well a pipeline tells late flights from others. Called with a trial.

    Args:
        learned: Flights that it is fitted to.
        judged: Others.
    """

    def __init__(self, learned: pd.DataFrame, judged: pd.DataFrame) -> None:
        self._learned, self._judged = learned, judged

    def __call__(self, trial: Any) -> float:
        """The AUC of a trial's settings."""
        from threadpoolctl import threadpool_limits

        from fourfold.cli.demo_flights import TARGET

        settings = Settings(
            bins=trial.suggest_categorical("bins", [0, 4, 8]),
            rare=trial.suggest_float("rare", 1e-3, 2e-2, log=True),
            penalty=trial.suggest_float("penalty", 1e-5, 1e-3, log=True),
        )
        with without_warnings(), threadpool_limits(1):  # of so few rows: on a busy machine more would wait for each other
            fitted = model(len(self._learned), settings).fit(self._learned.drop(columns=TARGET), self._learned[TARGET])
            return auc(self._judged, fitted.predict_proba(self._judged.drop(columns=TARGET))[:, 1])


def tune(train: Dataset, options: dict[str, Any]) -> Tuned:
    """Search both ways.

    Args:
        train: Flights to learn from.
        options: Of fourfold.

    Raises:
        Bug: The trials differ.
    """
    from fourfold.cli.demo_flights import FEATURES, TARGET
    from fourfold.workloads.tune.optimizing import optimize

    columns = [*FEATURES, *CATEGORIES, TARGET]
    halves = train.select(columns).sample(SHARE, seed=1).split(0.5, seed=2)
    learned, judged = (half.to_pandas(engine="serial") for half in halves)
    with without_log():
        quiet = {"progress": False, **options}  # it takes seconds, and is told in a line
        objective, theirs, ours = Objective(learned, judged), _study(), _study()
        _, theirs_s = timed(lambda: theirs.optimize(objective, N_TRIALS))
        _, ours_s = timed(lambda: optimize(objective, n_trials=N_TRIALS, study=ours, **quiet))
    return Tuned(len(learned), len(judged), theirs_s, ours_s, differ(theirs, ours), ours)


def _study() -> optuna.Study:
    """A random search, which draws the same in both ways, and begins with what one would write without it."""
    import optuna

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.enqueue_trial(UNTUNED._asdict())
    return study


@contextmanager
def without_log() -> Iterator[None]:
    """A block in which Optuna says nothing of each trial: the best are printed."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def differ(theirs: optuna.Study, ours: optuna.Study) -> float:
    """By how much the AUC of a trial differs at most.

    Raises:
        Bug: They have drawn other parameters, or it is more than SAME.
    """
    from fourfold.errors import Bug

    for one, other in zip(theirs.trials, ours.trials, strict=True):
        if one.params != other.params:
            raise Bug(f"trial {one.number} has {one.params} in Optuna and {other.params} in fourfold; please report this")
    most: float = max(abs(one.values[0] - other.values[0]) for one, other in zip(theirs.trials, ours.trials, strict=True))
    if not most <= SAME:
        raise Bug(f"fourfold and Optuna say AUCs that differ by {most:.2g}; please report this")
    return most
