"""What goes wrong in a trial of `ff.optimize`: each has its own state in the study, the others run on, and none is left running."""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import trials
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from running import is_in_time

import fourfold as ff
from fourfold.errors import ItemTimeout, WorkerLost
from fourfold.records import Failure
from fourfold.workloads.tune import states
from fourfold.workloads.tune.checkpoints import Checkpoints
from fourfold.workloads.tune.desk import Desk
from fourfold.workloads.tune.opened import End
from fourfold.workloads.tune.proposing import way_of

quiet = trials.quiet


def states_of(study: optuna.Study) -> list[str]:
    assert all(each.state.is_finished() for each in study.trials)
    return [each.system_attrs[states.STATE] for each in study.trials]


def turns_up_once(path: Path | str) -> bool:
    """Whether nobody has called this with the path before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die(trial: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def loop(trial: Any) -> Any:
    while True:
        pass


def out_of_memory(trial: Any) -> Any:
    raise MemoryError


def fail(trial: Any) -> Any:
    raise KeyError("x")


class Odd(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("odd")
        self.lock = threading.Lock()


def odd(trial: Any) -> Any:
    raise Odd


def prune(trial: Any) -> Any:
    raise optuna.TrialPruned


BAD: list[tuple[str, Any]] = [
    (states.CRASHED, lambda trial: os._exit(3)),
    (states.CRASHED, lambda trial: ctypes.string_at(0)),
    (states.CRASHED, die),
    (states.OUT_OF_MEMORY, out_of_memory),
    (states.TIMED_OUT, loop),
    (states.INVALID, lambda trial: math.nan),
    (states.INVALID, lambda trial: None),
    (states.INVALID, lambda trial: lambda: 1),
    (states.INVALID, lambda trial: "many"),
    (states.INVALID, lambda trial: [1.0, 2.0]),
    (states.FAILED, fail),
    (states.FAILED, odd),
    (states.FAILED, lambda trial: sys.exit(4)),
    (states.PRUNED, prune),
]


@pytest.mark.slow
def test_whatever_a_trial_does_has_a_state_of_its_own() -> None:
    bad = BAD

    def fn(trial: Any) -> Any:
        x = trial.suggest_float("x", 0, 1)
        return x if trial.number % 2 == 0 else bad[trial.number // 2][1](trial)

    found = ff.optimize(
        fn, n_trials=2 * len(BAD), sampler=RandomSampler(0), workers=2, trial_timeout=1.0, catch=(Exception, SystemExit)
    )
    assert states_of(found)[1::2] == [state for state, _ in BAD]
    assert set(states_of(found)[::2]) == {states.COMPLETE}
    failures = {each.index: each for each in found.failures}
    assert sorted(failures) == [2 * at + 1 for at, (state, _) in enumerate(BAD) if state != states.PRUNED]
    for number, failure in failures.items():
        trial = found.trials[number]
        assert trial.state.name == "FAIL"
        assert failure.item == f"trial {number} with {trial.params}"
        assert trial.system_attrs[states.ERROR]
    assert isinstance(failures[1].error, WorkerLost)
    assert isinstance(failures[9].error, ItemTimeout)
    assert "nan" in failures[11].message
    assert "2 values, and the study has 1 directions" in failures[19].message
    assert failures[1].attempts == found.trials[1].system_attrs[states.ATTEMPTS] == 2


def test_an_exception_that_is_not_caught_ends_the_call_and_speaks_of_the_trial() -> None:
    study = optuna.create_study(sampler=RandomSampler(0))

    def fn(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number == 3:
            raise KeyError("no such column")
        return x

    with pytest.raises(KeyError, match="no such column") as caught:
        ff.optimize(fn, n_trials=1000, study=study, workers=2, catch=(ValueError,))
    assert 4 <= len(study.trials) < 30
    assert states_of(study)[:4] == [states.COMPLETE] * 3 + [states.FAILED]
    assert set(states_of(study)[4:]) <= {states.COMPLETE, states.UNFINISHED}
    (note,) = caught.value.__notes__
    assert note.startswith(f"fourfold: trial 3 with {study.trials[3].params} (attempt 1, worker ")
    assert [each.index for each in study.failures] == [3]
    before = len(study.trials)
    found = ff.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=before + 2, study=study, workers=2)
    assert len([each for each in states_of(found) if each != states.UNFINISHED]) == before + 2


def test_a_trial_that_raises_runs_again_as_often_as_it_may(tmp_path: Path) -> None:
    def fn(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, 0)
        if trial.number >= 2 and turns_up_once(tmp_path / str(trial.number)):
            raise ConnectionError
        return x

    found = ff.optimize(fn, n_trials=4, sampler=RandomSampler(0), workers=2, retries=1)
    assert states_of(found) == [states.COMPLETE] * 4
    assert [each.system_attrs[states.ATTEMPTS] for each in found.trials] == [1, 1, 2, 2]
    assert (found.failures, found.report.n_retries) == ([], 2)
    plain = ff.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=4, sampler=RandomSampler(0), engine="serial")
    assert [each.value for each in found.trials] == [each.value for each in plain.trials]


def test_a_trial_whose_worker_has_died_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def fn(trial: Any) -> float:
        state = trial.restore({"steps": []})
        for step in range(len(state["steps"]), 6):
            state["steps"].append((step, os.getpid()))
            trial.checkpoint(state)
            trial.report(step, step)
            if step == 3 and trial.number == 1 and turns_up_once(tmp_path / "died"):
                os.kill(os.getpid(), signal.SIGKILL)
        trial.set_user_attr("pids", [pid for _, pid in state["steps"]])
        return float(len(state["steps"]))

    found = ff.optimize(fn, n_trials=3, sampler=RandomSampler(0), workers=2)
    assert states_of(found) == [states.COMPLETE] * 3
    assert found.trials[1].values == [6.0]
    assert found.trials[1].intermediate_values == {step: float(step) for step in range(6)}
    pids = found.trials[1].user_attrs["pids"]
    assert len(set(pids[:4])) == 1
    assert pids[3] not in pids[4:]


@pytest.mark.slow
def test_of_200_trials_with_a_worker_killed_at_every_20th_all_end(tmp_path: Path) -> None:
    def fn(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number % 20 == 19 and turns_up_once(tmp_path / f"{trial.number}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    found = ff.optimize(fn, n_trials=200, sampler=RandomSampler(0), workers=2)
    assert states_of(found) == [states.COMPLETE] * 200
    assert [each.number for each in found.trials] == list(range(200))
    assert [each.number for each in found.trials if each.system_attrs[states.ATTEMPTS] == 2] == list(range(19, 200, 20))
    assert found.failures == []
    plain = ff.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=200, sampler=RandomSampler(0), engine="serial")
    assert [each.value for each in found.trials] == [each.value for each in plain.trials]


def test_a_worker_that_is_killed_when_its_trial_has_ended_takes_no_trial_along(tmp_path: Path) -> None:
    def fn(trial: Any) -> float:
        if trial.number % 3 == 1 and turns_up_once(tmp_path / str(trial.number)):
            threading.Timer(0.001 * trial.number, die, [None]).start()
        return trial.suggest_float("x", 0, 1)

    found = ff.optimize(fn, n_trials=20, sampler=RandomSampler(0), workers=2)
    assert states_of(found) == [states.COMPLETE] * 20
    plain = ff.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=20, sampler=RandomSampler(0), engine="serial")
    assert [each.value for each in found.trials] == [each.value for each in plain.trials]


def test_a_ticket_that_waits_for_a_trial_whose_worker_has_died_is_given_back_soon(tmp_path: Path) -> None:
    """What runs that trial again may have no place before: all of them would wait for each other."""
    study = optuna.create_study(sampler=TPESampler(seed=0))
    desk = Desk(study, way_of(study.sampler, "batch", 2), 40, None, Checkpoints(str(tmp_path)), 0, wait_s=60)
    for ticket in (0, 1):
        assert desk.job(ticket) is not None
    desk.ended(0, End(states.COMPLETE, [1.0]))
    desk.hung_up(1)
    began = time.monotonic()
    assert desk.job(2) is None
    assert desk.job(3) is None
    assert is_in_time(time.monotonic() - began, 10)
    again = desk.job(1)
    assert again is not None
    assert (again.trial.number, again.attempts, desk._orphans) == (1, 2, set())
    desk.close()


@pytest.mark.slow
def test_a_worker_that_waits_for_a_trial_does_not_use_up_its_time(tmp_path: Path) -> None:
    """The other one of its batch runs twice, together longer than each trial may."""

    def fn(trial: Any) -> float:
        if trial.number == 0:
            threading.Event().wait(0.9)
            if turns_up_once(tmp_path / "raised"):
                raise ConnectionError
        trial.set_user_attr("pid", os.getpid())
        return trial.suggest_float("x", 0, 1)

    options: Any = {"sampler": TPESampler(seed=0), "batch_size": 2, "workers": 2, "trial_timeout": 1.5, "retries": 1}
    found = ff.optimize(fn, n_trials=20, **options)
    assert states_of(found) == [states.COMPLETE] * 20
    assert len({each.user_attrs["pid"] for each in found.trials}) <= 2, "none was stopped"
    assert found.report.n_retries == 1


class Fragile(BaseSampler):
    """Fails at its third trial."""

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        if trial.number == 3:
            raise RuntimeError("no more")
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return 0.5


class FragileAfter(Fragile):
    """Fails when its third trial is told."""

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return {}

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        if trial.number == 3:
            raise RuntimeError("no more")


class FragileBefore(Fragile):
    """Fails when its third trial is made."""

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return {}

    def before_trial(self, study: Any, trial: Any) -> None:
        if trial.number == 3:
            raise RuntimeError("no more")


@pytest.mark.parametrize("kind", [Fragile, FragileAfter, FragileBefore])
def test_a_sampler_that_fails_ends_the_call_and_leaves_no_trial_running(kind: Any) -> None:
    study = optuna.create_study(sampler=kind())
    with pytest.raises(RuntimeError, match="no more"):
        ff.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=20, study=study, workers=2, batch_size=2)
    assert 3 <= len(study.trials) < 20
    assert all(each.state.is_finished() for each in study.trials)


class DiesAtOnce:
    """Nobody can be built of it."""

    def __init__(self) -> None:
        os._exit(5)

    def __call__(self, trial: Any) -> float:
        return 0.0


@pytest.mark.slow
def test_workers_that_die_before_they_have_a_trial_end_the_call() -> None:
    study = optuna.create_study()
    with pytest.raises(ff.FourfoldError, match=r"exited with code 5|died"):
        ff.optimize(DiesAtOnce, n_trials=5, study=study, workers=2)
    assert study.trials == []


def test_an_objective_may_report_from_threads_and_forked_processes() -> None:
    def report(trial: Any, step: int) -> None:
        trial.report(step * 10.0, step)

    def fn(trial: Any) -> float:
        threads = [threading.Thread(target=report, args=(trial, step)) for step in range(8)]
        processes = [multiprocessing.get_context("fork").Process(target=report, args=(trial, step)) for step in (8, 9)]
        for each in (*threads, *processes):
            each.start()
        for each in (*threads, *processes):
            each.join(10)
        return trial.suggest_float("x", 0, 1)

    found = ff.optimize(fn, n_trials=3, sampler=RandomSampler(0), workers=2)
    for trial in found.trials:
        assert trial.intermediate_values == {step: step * 10.0 for step in range(10)}


def test_what_optuna_refuses_is_raised_in_the_objective() -> None:
    def fn(trial: Any) -> float:
        trial.suggest_float("x", 0, 1)
        with pytest.raises(ValueError, match=r"incompatible|Cannot"):
            trial.suggest_categorical("x", ["a"])
        with pytest.raises(TypeError):
            trial.report("much", 0)
        with pytest.raises(AttributeError, match="It has: best_params"):
            trial.study.enqueue_trial({})
        return 1.0

    assert states_of(ff.optimize(fn, n_trials=2, sampler=RandomSampler(0), workers=2)) == [states.COMPLETE] * 2


def test_the_failures_of_a_study_are_records() -> None:
    found = ff.optimize(fail, n_trials=1, engine="serial", catch=KeyError)
    (failure,) = found.failures
    assert isinstance(failure, Failure)
    assert failure.error_type == "KeyError"
    assert failure.place.endswith("in fail")
