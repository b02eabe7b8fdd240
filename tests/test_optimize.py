"""`ff.optimize` is `study.optimize` with processes: the same trials, whoever runs them, and all that Optuna can do with a study."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import trials
from optuna.samplers import BaseSampler, GridSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from trials import WORKERS, objective, of_optuna, table

import fourfold as ff

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

quiet = trials.quiet

GRID = {"x": [1.0, 2.0, 3.0], "k": [1, 2, 3], "c": ["a", "b"]}


def conditional(trial: Any) -> float:
    if trial.suggest_categorical("c", ["a", "b"]) == "a":
        return trial.suggest_float("x", -10, 10) ** 2
    return trial.suggest_float("y", 0, 1) + trial.suggest_int("k", 1, 5)


# ---- the same trials ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [*WORKERS, {"engine": "threads", "workers": 2}], ids=str)
def test_random_search_has_the_trials_of_optuna(options: Any) -> None:
    found = ff.optimize(objective, n_trials=20, sampler=RandomSampler(3), **options)
    assert table(found) == of_optuna(objective, 20, RandomSampler(3))


@pytest.mark.parametrize("options", [{"engine": "serial", "batch_size": 1}, {"workers": 1}], ids=str)
def test_tpe_one_by_one_has_the_trials_of_optuna(options: Any) -> None:
    found = ff.optimize(objective, n_trials=20, sampler=TPESampler(seed=3), **options)
    assert table(found) == of_optuna(objective, 20, TPESampler(seed=3))


SAMPLERS = {
    "grid": lambda: GridSampler(GRID, seed=1),
    "quasi-random": lambda: QMCSampler(seed=1),
    "TPE": lambda: TPESampler(seed=1, n_startup_trials=6),
    "TPE of several": lambda: TPESampler(seed=1, n_startup_trials=6, multivariate=True),
    "genetic": lambda: NSGAIISampler(seed=1, population_size=6),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_any_number_of_workers_draws_the_same_trials(make: Any) -> None:
    tables = [table(ff.optimize(objective, n_trials=18, sampler=make(), batch_size=4, **each)) for each in WORKERS]
    assert tables[1:] == tables[:1] * 3
    assert len({repr(row[1]) for row in tables[0]}) >= 12, "each trial draws for itself"


def test_grid_search_has_the_trials_of_optuna() -> None:
    found = ff.optimize(objective, n_trials=18, sampler=GridSampler(GRID, seed=1), workers=2)
    assert sorted(table(found), key=repr) == sorted(of_optuna(objective, 18, GridSampler(GRID, seed=1)), key=repr)


def test_a_grid_ends_when_all_of_it_was_tried() -> None:
    found = ff.optimize(objective, n_trials=100, sampler=GridSampler(GRID, seed=1), workers=2)
    complete = [each for each in found.trials if each.state.name == "COMPLETE"]
    assert len({repr(each.params) for each in complete}) == 18
    assert len(found.trials) == 18


def test_enqueued_trials_are_of_the_batches_that_they_are_of_in_a_recorded_run(tmp_path: Path) -> None:
    def call(**options: Any) -> list[Any]:
        study = optuna.create_study(sampler=TPESampler(seed=3, n_startup_trials=2))
        for x in (1.0, 2.0, 3.0):
            study.enqueue_trial({"x": x})
        ff.optimize(
            lambda t: t.suggest_float("x", -10, 10) ** 2, n_trials=9, study=study, batch_size=2, engine="serial", **options
        )
        return table(study)

    assert call() == call(run=tmp_path / "run")


def test_a_long_trial_holds_up_no_other_and_no_callback() -> None:
    are_told = threading.Event()

    def fn(trial: Any) -> float:
        if trial.number == 1:
            assert are_told.wait(20), "others wait for this one"
        return float(trial.suggest_float("x", 0, 1))

    def tell(study: optuna.Study, trial: Any) -> None:
        if trial.number == 50:
            are_told.set()

    found = ff.optimize(fn, n_trials=60, sampler=RandomSampler(0), engine="threads", workers=2, callbacks=[tell])
    assert len(found.trials) == 60


@pytest.mark.parametrize(
    "make",
    [lambda: RandomSampler(3), lambda: TPESampler(seed=3), lambda: QMCSampler(seed=3)],
    ids=["random", "TPE", "quasi-random"],
)
def test_where_a_trial_asks_for_others_than_the_first_one_workers_make_no_difference(make: Any) -> None:
    tables = [table(ff.optimize(conditional, n_trials=16, sampler=make(), batch_size=4, **each)) for each in WORKERS]
    assert tables[1:] == tables[:1] * 3


class OfAUser(BaseSampler):
    """Remembers what it has drawn."""

    def __init__(self) -> None:
        self.random, self.drawn = np.random.RandomState(0), []

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return {"x": optuna.distributions.FloatDistribution(0, 1)}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        self.drawn.append(self.random.rand())
        return {"x": self.drawn[-1]}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise NotImplementedError


def test_a_sampler_of_the_user_is_asked_itself_and_no_copy_of_it() -> None:
    tables = []
    for options in WORKERS:
        sampler = OfAUser()
        found = ff.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=8, sampler=sampler, batch_size=4, **options)
        assert found.user_attrs["fourfold:mode"].startswith("batch of 4, as far as")
        assert [each.params["x"] for each in found.trials] == sampler.drawn == list(np.random.RandomState(0).rand(8))
        tables.append(table(found))
    assert tables[1:] == tables[:1] * 3


def test_the_study_says_how_its_trials_were_proposed() -> None:
    def way_of(**options: Any) -> str:
        found: str = ff.optimize(objective, n_trials=1, engine="serial", **options).user_attrs["fourfold:mode"]
        return found

    assert way_of(sampler=RandomSampler(0), mode="async").startswith("in order")
    assert way_of(batch_size=1) == "one by one"
    assert way_of(batch_size=3) == "batch of 3"
    assert way_of(mode="async").startswith("async: trials depend on which workers are faster")


def test_async_no_trial_waits_for_a_long_one(tmp_path: Path) -> None:
    """The first one ends when the sixth has begun, which in batches of two would be never."""

    def fn(trial: Any) -> float:
        (tmp_path / str(trial.number)).touch()
        while trial.number == 0 and not (tmp_path / "5").exists():
            threading.Event().wait(0.01)
        return trial.suggest_float("x", 0, 1)

    found = ff.optimize(fn, n_trials=8, sampler=TPESampler(seed=0), mode="async", workers=2, trial_timeout=30)
    assert [each.state.name for each in found.trials] == ["COMPLETE"] * 8


def test_numbers_of_a_trial_follow_from_its_number() -> None:
    def draw(trial: Any) -> float:
        return float(ff.rng().random() + np.random.rand())

    tables = [table(ff.optimize(draw, n_trials=6, seed=5, **each)) for each in WORKERS]
    assert tables[1:] == tables[:1] * 3
    assert len({row[2][0] for row in tables[0]}) == 6
    assert table(ff.optimize(draw, n_trials=6, seed=6, engine="serial")) != tables[0]
