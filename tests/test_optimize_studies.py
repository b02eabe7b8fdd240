"""What a study of Optuna can, one of `ff.optimize` can: callbacks, pruners, several directions, objectives of all kinds."""

import importlib
import os
import sys
import threading
from typing import Any

import optuna
import pytest
import trials
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.visualization._intermediate_values import _get_intermediate_plot_info
from optuna.visualization._optimization_history import _get_optimization_history_info_list
from optuna.visualization._slice import _get_slice_plot_info
from optuna.visualization._timeline import _get_timeline_info
from trials import WORKERS, objective, of_optuna, table

import fourfold as ff
from fourfold.errors import MissingExtra, NotPicklable, OptionError, OptionTypeError

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

quiet = trials.quiet

has_constraints = hasattr(optuna.trial.BaseTrial, "set_constraint")
"""Since Optuna 5."""


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
            best = trial.study.best_value
            assert best >= min(each.value for each in trial.study.trials if each.value is not None)  # another may end between
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
    shown = _get_optimization_history_info_list(found, None, "value", False)[0].values_info.values
    assert shown == [each.value for each in found.trials]
    assert {each.param_name for each in _get_slice_plot_info(found, None, None, "value").subplots} == {"x", "k", "c"}
    assert len(_get_intermediate_plot_info(found).trial_infos) == 0
    assert len(_get_timeline_info(found).bars) == 30


def test_the_report_counts_trials() -> None:
    found = ff.optimize(objective, n_trials=7, sampler=TPESampler(seed=0), batch_size=2, workers=2)
    assert (found.report.n_items, found.report.n_failures, found.failures) == (7, 0, [])
    assert found.report.verdict.startswith("2 processes, as asked: 7 trials with ")


def test_a_study_that_has_its_trials_already_is_told_so() -> None:
    (study := optuna.create_study(sampler=RandomSampler(0))).optimize(objective, n_trials=5)
    found = ff.optimize(objective, n_trials=3, study=study, workers=1)
    assert len(found.trials) == 5
    assert (
        found.report.verdict == "nothing was left to run: the study has 5 trials, and n_trials=3 is how many it has in the end"
    )


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


def test_without_optuna_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fourfold.workloads.tune.optimizing")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"tuning needs optuna, which is not installed: pip install 'fourfold\[ml\]'"):
        importlib.import_module("fourfold.workloads.tune.optimizing")
