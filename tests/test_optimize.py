"""`ff.optimize` is `study.optimize` with processes: the same trials, whoever runs them, and all that Optuna can do with a study."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler, GridSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler

import fourfold as ff
from fourfold.errors import NotPicklable, OptionError, OptionTypeError

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

WORKERS = [{"engine": "serial"}, {"workers": 1}, {"workers": 2}, {"workers": 8}]

GRID = {"x": [1.0, 2.0, 3.0], "k": [1, 2, 3], "c": ["a", "b"]}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Any:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(before)


has_constraints = hasattr(optuna.trial.BaseTrial, "set_constraint")
"""Since Optuna 5."""


def objective(trial: Any) -> float:
    x, k = trial.suggest_float("x", -10, 10), trial.suggest_int("k", 1, 5)
    return (x - 2) ** 2 + k + (trial.suggest_categorical("c", ["a", "b"]) == "a")


def conditional(trial: Any) -> float:
    if trial.suggest_categorical("c", ["a", "b"]) == "a":
        return trial.suggest_float("x", -10, 10) ** 2
    return trial.suggest_float("y", 0, 1) + trial.suggest_int("k", 1, 5)


def table(study: optuna.Study) -> list[Any]:
    return [(each.number, each.params, each.values, each.state.name, each.intermediate_values) for each in study.trials]


def of_optuna(fn: Any, n_trials: int, sampler: BaseSampler, **options: Any) -> list[Any]:
    study = optuna.create_study(sampler=sampler, **options)
    study.optimize(fn, n_trials=n_trials)
    return table(study)


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


def test_numbers_of_a_trial_follow_from_its_number() -> None:
    def draw(trial: Any) -> float:
        return float(ff.rng().random() + np.random.rand())

    tables = [table(ff.optimize(draw, n_trials=6, seed=5, **each)) for each in WORKERS]
    assert tables[1:] == tables[:1] * 3
    assert len({row[2][0] for row in tables[0]}) == 6
    assert table(ff.optimize(draw, n_trials=6, seed=6, engine="serial")) != tables[0]


# ---- what a study can ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_constraints, reason="this Optuna has no Trial.set_constraint")
def test_several_directions_and_constraints() -> None:
    def fn(trial: Any) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 5)
        trial.set_constraint("over", x - 2)
        assert trial.constraints == {"over": x - 2}
        return x**2, (x - 3) ** 2

    sampler = NSGAIISampler(seed=2, population_size=4)
    found = ff.optimize(fn, n_trials=12, directions=["minimize", "minimize"], sampler=sampler, workers=2)
    assert {len(each.values) for each in found.trials} == {2}
    assert found.best_trials
    assert all(each.params["x"] <= 2 for each in found.best_trials)


def test_enqueued_trials_run_first_and_user_attributes_arrive() -> None:
    def fn(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 5)
        trial.set_user_attr("twice", [x * 2])
        assert trial.user_attrs == {"twice": [x * 2]}
        assert trial.params == {"x": x}
        return x

    study = optuna.create_study(sampler=RandomSampler(0))
    study.enqueue_trial({"x": 1.25})
    study.enqueue_trial({"x": 2.5})
    found = ff.optimize(fn, n_trials=6, study=study, workers=2)
    assert found is study
    assert [each.params["x"] for each in found.trials[:2]] == [1.25, 2.5]
    assert [each.user_attrs["twice"] for each in found.trials] == [[each.value * 2] for each in found.trials]
    assert len(found.trials) == 6


def test_n_trials_is_how_many_the_study_has_in_the_end() -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0))
    study.optimize(objective, n_trials=5)
    before = table(study)
    assert len(ff.optimize(objective, n_trials=8, study=study, workers=2).trials) == 8
    assert len(ff.optimize(objective, n_trials=8, study=study, workers=2).trials) == 8
    assert len(ff.optimize(objective, n_trials=12, study=study, workers=2).trials) == 12
    assert table(study)[:5] == before


def test_callbacks_are_told_of_each_trial_and_may_stop_the_study() -> None:
    told: list[int] = []

    def callback(study: optuna.Study, trial: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append(trial.number)
        if len(told) == 4:
            study.stop()

    found = ff.optimize(objective, n_trials=1000, sampler=RandomSampler(0), callbacks=[callback], workers=2)
    assert 4 <= len(found.trials) < 100
    assert sorted(told) == [each.number for each in found.trials if each.state.name == "COMPLETE"]
    assert not [each for each in found.trials if each.state.name == "RUNNING"]


@pytest.mark.parametrize("options", WORKERS[:3], ids=str)
def test_an_objective_may_stop_its_study_and_ask_it(options: Any) -> None:
    def fn(trial: Any) -> float:
        if trial.number == 3:
            assert trial.study.best_value == min(each.value for each in trial.study.trials if each.value is not None)
            assert trial.study.direction.name == "MINIMIZE"
            trial.study.set_user_attr("stopped", trial.study.study_name)
            trial.study.stop()
        return trial.suggest_float("x", 0, 1)

    found = ff.optimize(fn, n_trials=1000, sampler=RandomSampler(0), **options)
    assert 4 <= len(found.trials) < 100
    assert found.user_attrs["stopped"] == found.study_name


def test_after_its_time_no_trial_is_begun() -> None:
    done = threading.Event()

    def fn(trial: Any) -> float:
        done.wait(0.02)
        return trial.suggest_float("x", 0, 1)

    found = ff.optimize(fn, timeout=0.3, sampler=RandomSampler(0), engine="threads", workers=2)
    assert 2 <= len([each for each in found.trials if each.state.name == "COMPLETE"]) <= 40
    assert all(each.state.is_finished() for each in found.trials)


def curve(trial: Any) -> float:
    height = trial.suggest_float("height", 0, 1)
    for step in range(9):
        trial.report(height * min(step + 1, 8 - step), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return height * 4


PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=3),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9),
    "patient": lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(n_startup_trials=3), patience=1),
}


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS.keys())
def test_pruners_of_optuna_work_across_processes(make: Any) -> None:
    def study() -> optuna.Study:
        sampler = TPESampler(seed=0)
        return optuna.create_study(study_name="curve", sampler=sampler, pruner=make(), direction="maximize")

    (theirs := study()).optimize(curve, n_trials=20)
    assert table(ff.optimize(curve, n_trials=20, study=study(), workers=1)) == table(theirs)
    both = ff.optimize(curve, n_trials=20, sampler=RandomSampler(0), pruner=make(), direction="maximize", workers=2)
    assert {each.state.name for each in both.trials} == {"COMPLETE", "PRUNED"}


def test_optuna_shows_and_explains_the_study() -> None:
    found = ff.optimize(objective, n_trials=30, sampler=RandomSampler(0), workers=2)
    assert set(optuna.importance.get_param_importances(found)) == {"x", "k", "c"}
    frame = found.trials_dataframe()
    assert len(frame) == 30
    assert list(frame["system_attrs_fourfold:state"].unique()) == ["complete"]
    pytest.importorskip("matplotlib", reason="Optuna's pictures need it")
    optuna.visualization.matplotlib.plot_optimization_history(found)


def test_the_report_counts_trials() -> None:
    found = ff.optimize(objective, n_trials=7, sampler=TPESampler(seed=0), batch_size=2, workers=2)
    assert (found.report.n_items, found.report.n_failures, found.failures) == (7, 0, [])
    assert found.report.verdict.startswith("2 processes, as asked: 7 trials with ")


# ---- objectives ----------------------------------------------------------------------------------------------------------


class Model:
    """Built once per worker."""

    def __init__(self, shift: float) -> None:
        self.shift, self.n_calls = shift, 0

    def __call__(self, trial: Any) -> float:
        self.n_calls += 1
        trial.set_user_attr("of", (os.getpid(), self.n_calls))
        return trial.suggest_float("x", 0, 1) + self.shift


def test_a_class_is_built_once_in_each_worker() -> None:
    found = ff.optimize(Model, n_trials=12, init=(100.0,), sampler=RandomSampler(0), workers=2)
    assert all(100 <= each.value <= 101 for each in found.trials)
    calls = [each.user_attrs["of"] for each in found.trials]
    for pid in {pid for pid, _ in calls}:
        assert sorted(n for each, n in calls if each == pid) == list(range(1, 1 + sum(each == pid for each, _ in calls)))
        assert pid != os.getpid()


def test_what_cannot_travel_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(NotPicklable, match=r"lock"):
        ff.optimize(lambda trial: float(lock.locked()), n_trials=2, workers=2)


def test_inside_an_item_trials_run_one_after_the_other() -> None:
    def item(seed: int) -> tuple[int, list[Any]]:
        return os.getpid(), table(ff.optimize(objective, n_trials=3, sampler=RandomSampler(seed)))

    for at, (pid, found) in enumerate(ff.map(item, range(2), engine="processes", workers=2)):
        assert found == of_optuna(objective, 3, RandomSampler(at))
        assert pid != os.getpid()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, OptionError, "n_trials= is missing"),
        ({"n_trials": 0}, OptionError, "n_trials"),
        ({"n_trials": 1, "mode": "fast"}, OptionError, 'Choices: "batch", "async"'),
        ({"n_trials": 1, "batch_size": 0}, OptionError, "batch_size"),
        ({"n_trials": 1, "chunk": 2}, OptionError, "each trial travels alone"),
        ({"n_trials": 1, "on_error": "skip"}, OptionError, "catch="),
        ({"n_trials": 1, "study": 3}, OptionTypeError, "must be a study of Optuna"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_runs(options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        ff.optimize(objective, **options)


def test_a_study_keeps_its_own_sampler() -> None:
    with pytest.raises(OptionError, match=r"sampler= and study= were both given"):
        ff.optimize(objective, n_trials=1, study=optuna.create_study(), sampler=RandomSampler(0))
