"""Objectives and studies of Optuna for tests of tuning."""

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler

WORKERS: list[dict[str, Any]] = [{"engine": "serial"}, {"workers": 1}, {"workers": 2}, {"workers": 8}]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Optuna says nothing."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(before)


def objective(trial: Any) -> float:
    """Three parameters."""
    x, k = trial.suggest_float("x", -10, 10), trial.suggest_int("k", 1, 5)
    return (x - 2) ** 2 + k + (trial.suggest_categorical("c", ["a", "b"]) == "a")


def table(study: optuna.Study) -> list[Any]:
    """What two equal studies have in common."""
    return [(each.number, each.params, each.values, each.state.name, each.intermediate_values) for each in study.trials]


def of_optuna(fn: Any, n_trials: int, sampler: BaseSampler, **options: Any) -> list[Any]:
    """The table of Optuna itself."""
    study = optuna.create_study(sampler=sampler, **options)
    study.optimize(fn, n_trials=n_trials)
    return table(study)
