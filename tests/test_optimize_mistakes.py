"""What a newcomer gets wrong in a call of `ff.optimize` is said in a sentence, before a trial runs."""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler

import fourfold as ff
from fourfold.errors import MissingExtra, OptionError, OptionTypeError, UnknownOption

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def objective(trial: Any) -> float:
    raise AssertionError("no trial is to run")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_jobs": 2}, UnknownOption, "workers= says how many"),
        ({"storage": "sqlite:///x.db"}, UnknownOption, r"hand it over as study="),
        ({"direction": "max"}, OptionError, r"direction='max' is not known\. Choices: \"minimize\""),
        ({"direction": ["minimize", "maximize"]}, OptionTypeError, "directions="),
        ({"directions": "minimize"}, OptionTypeError, "must be a list"),
        ({"direction": "minimize", "directions": ["minimize"]}, OptionError, "both given"),
        ({"sampler": TPESampler}, OptionTypeError, r"a class; an instance is needed: TPESampler\(…\)"),
        ({"pruner": "asha"}, OptionTypeError, "must be a pruner of Optuna"),
        ({"pruner": RandomSampler(0)}, OptionTypeError, "must be a pruner of Optuna"),
        ({"catch": "ValueError"}, OptionTypeError, "a class of exceptions"),
        ({"catch": [ValueError("x")]}, OptionTypeError, "a class of exceptions"),
        ({"callbacks": print}, OptionTypeError, "a list of functions"),
    ],
)
def test_an_argument_that_cannot_be_used_is_said_before_anything_runs(options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        ff.optimize(objective, n_trials=1, **options)


async def awaited(trial: Any) -> float:
    return 0.0


def decorated(fn: Any) -> Any:
    return functools.wraps(fn)(lambda trial: fn(trial, [1, 2]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: 1.0, "one argument, the trial, and takes"),
        (lambda trial, data: 1.0, "functools.partial"),
        (lambda trial, *, data: 1.0, "missing a required argument: 'data'|missing a required keyword-only argument: 'data'"),
        (awaited, "use def, not async def"),
        (ThreadPoolExecutor, "is a class without __call__"),
        (0.3, "without calling it"),
    ],
)
def test_an_objective_that_cannot_be_called_with_a_trial_is_refused_before_any_runs(wrong: Any, words: str) -> None:
    with pytest.raises(OptionTypeError, match=words):
        ff.optimize(wrong, n_trials=1)


@pytest.mark.parametrize(
    "fn",
    [
        functools.partial(lambda trial, data: trial.suggest_float("x", 0, 1), data=[1]),
        decorated(lambda trial, data: trial.suggest_float("x", 0, 1)),
        lambda trial, scale=2: scale * trial.suggest_float("x", 0, 1),
        lambda *all_of_them: all_of_them[0].suggest_float("x", 0, 1),
    ],
)
def test_an_objective_may_have_other_arguments_that_are_filled(fn: Any) -> None:
    assert ff.optimize(fn, n_trials=1, engine="serial").trials[0].state.name == "COMPLETE"


@pytest.mark.parametrize(("sampler", "package"), [("CmaEsSampler", "cmaes"), ("GPSampler", "torch")])
def test_the_package_that_a_sampler_needs_is_asked_for_before_the_first_trial(
    sampler: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourfold.workloads.tune.checked.find_spec", lambda name: None)
    study = optuna.create_study(sampler=getattr(optuna.samplers, sampler)())
    with pytest.raises(MissingExtra, match=f"pip install {package}"):
        ff.optimize(objective, n_trials=20, study=study)
    assert study.trials == []
