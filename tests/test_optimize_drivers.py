"""A study in a database may have several drivers, and outlive them: who has a trial is known, and what nobody has is told of."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import trials
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

import fourfold as ff
from fourfold.data.writers import writer_of_this_process
from fourfold.workloads.tune import drivers, states

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # nobody but this thread touches what they have
]

quiet = trials.quiet


def forked(fn: Callable[[], Any]) -> int:
    """Run something in a process of its own, which has imported all this; returns its exit code."""
    child = multiprocessing.get_context("fork").Process(target=fn)
    child.start()
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def study_in(folder: Path) -> Iterator[optuna.Study]:
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    yield optuna.create_study(study_name="s", storage=storage, sampler=RandomSampler(0), load_if_exists=True)


def fn(trial: Any) -> float:
    return float(trial.suggest_float("x", 0, 1))


def states_of(study: optuna.Study) -> list[Any]:
    return [(each.state.name, each.system_attrs.get(states.STATE)) for each in study.trials]


def test_what_a_killed_driver_has_left_running_the_next_call_tells_as_unfinished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def killed() -> None:
        with study_in(tmp_path) as study:
            ff.optimize(lambda trial: fn(trial) if trial.number < 2 else die(), n_trials=4, study=study, engine="serial")

    assert forked(killed) == -signal.SIGKILL
    with study_in(tmp_path) as study:
        assert states_of(study) == [("COMPLETE", "complete")] * 2 + [("RUNNING", None)]
        ff.optimize(fn, n_trials=4, study=study, engine="serial")
        assert states_of(study) == [("COMPLETE", "complete")] * 2 + [("FAIL", "unfinished")] + [("COMPLETE", "complete")] * 2
        assert study.trials[2].system_attrs[states.ERROR].endswith("has ended without it")
    assert [line for line in caplog.messages if line.startswith("running trial 2 of study 's' had a driver that is gone")]


def test_a_trial_that_ran_when_its_driver_was_killed_begins_anew_under_its_number_even_if_nothing_was_recorded(
    tmp_path: Path,
) -> None:
    def dies_once(trial: Any) -> float:
        seen = dict(trial.user_attrs)
        trial.set_user_attr("at", 1)
        trial.set_user_attr("seen", seen)
        if not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            die()
        return fn(trial)

    def call() -> None:
        with study_in(tmp_path) as study:
            ff.optimize(dies_once, n_trials=3, study=study, engine="serial", run=tmp_path / "run")

    assert forked(call) == -signal.SIGKILL
    call()
    with study_in(tmp_path) as study:
        assert states_of(study) == [("COMPLETE", "complete")] * 3
        assert study.trials[0].system_attrs[states.ATTEMPTS] == 2
        assert [each.user_attrs["seen"] for each in study.trials] == [{}] * 3  # not what the first attempt had set


def test_what_a_living_process_has_is_left_to_it(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    has_begun, may_end = fork.Event(), fork.Event()

    def waits(trial: Any) -> float:
        has_begun.set()
        assert may_end.wait(60)
        return fn(trial)

    def other() -> None:
        with study_in(tmp_path) as study:
            ff.optimize(waits, n_trials=1, study=study, engine="serial")

    (process := fork.Process(target=other)).start()
    assert has_begun.wait(60)
    with study_in(tmp_path) as study:
        ff.optimize(fn, n_trials=2, study=study, engine="serial")
        for n_trials in (3, 4):  # it goes on from its record, and there too
            ff.optimize(fn, n_trials=n_trials, study=study, engine="serial", run=tmp_path / "run")
            assert [each.state.name for each in study.trials] == ["RUNNING"] + ["COMPLETE"] * (n_trials - 1)
        may_end.set()
        process.join(60)
        assert process.exitcode == 0
        assert study.trials[0].state == TrialState.COMPLETE


def test_a_run_leaves_a_trial_to_another_process_that_began_among_its_own(tmp_path: Path) -> None:
    with study_in(tmp_path) as study:

        def another(study: optuna.Study, trial: Any) -> None:
            if trial.number == 1:
                study.add_trial(running({**writer_of_this_process(None)._asdict(), "machine": "far 1 2"}))

        for n_trials in (4, 6):
            ff.optimize(fn, n_trials=n_trials, study=study, engine="serial", run=tmp_path / "run", callbacks=[another])
            assert [each.state.name for each in study.trials] == [
                *("COMPLETE", "COMPLETE", "RUNNING"),
                *["COMPLETE"] * (n_trials - 3),
            ]


@pytest.mark.slow
def test_with_workers_killed_and_calls_interrupted_no_trial_of_a_database_is_lost_left_or_told_twice(tmp_path: Path) -> None:
    told: list[int] = []

    def deadly(trial: Any) -> float:
        x = fn(trial)
        if trial.number % 6 == 5 and not (tmp_path / str(trial.number)).exists():
            (tmp_path / str(trial.number)).touch()
            die()
        return x

    def callback(study: optuna.Study, trial: Any) -> None:
        told.append(trial.number)
        if len(told) in (5, 11):
            signal.raise_signal(signal.SIGINT)

    with study_in(tmp_path) as study:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                ff.optimize(deadly, n_trials=20, study=study, workers=2, callbacks=[callback])
            assert all(each.state.is_finished() for each in study.trials)
        ff.optimize(deadly, n_trials=20, study=study, workers=2, callbacks=[callback])
        assert [each[1] for each in states_of(study) if each[1] != "unfinished"] == ["complete"] * 20
        assert [each.number for each in study.trials] == list(range(len(study.trials)))
    assert len(set(told)) == len(told)


def running(mark: Any) -> Any:
    return create_trial(state=TrialState.RUNNING, system_attrs={} if mark is None else {states.DRIVER: mark})


def test_trials_of_another_machine_and_of_nobody_we_know_are_left_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = {**writer_of_this_process(None)._asdict(), "call": "an earlier one"}
    with study_in(tmp_path) as study:
        for mark in ({**here, "machine": "far 1 2"}, None, {"odd": 1}, here, {**here, "began": here["began"] - 1}):
            study.add_trial(running(mark))
        ff.optimize(fn, n_trials=4, study=study, engine="serial")
        assert [each.state.name for each in study.trials] == ["RUNNING"] * 3 + ["FAIL"] * 2 + ["COMPLETE"]
    (left,) = (line for line in caplog.messages if "nobody here knows" in line)
    assert left.startswith("3 running trials (0, 1, 2) of study 's': on another machine, or not of fourfold (process ")
    assert "of far" in left
    assert "unknown" in left


def test_what_another_call_of_this_process_has_is_left_to_it(tmp_path: Path) -> None:
    def outer(trial: Any) -> float:
        if trial.number == 0:
            ff.optimize(fn, n_trials=2, study=study, engine="serial")
            assert [each.state.name for each in study.trials] == ["RUNNING", "COMPLETE"]
        return float(trial.suggest_float("x", 0, 1))

    with study_in(tmp_path) as study:
        ff.optimize(outer, n_trials=2, study=study, engine="threads", workers=1)
        assert [each.state.name for each in study.trials] == ["COMPLETE", "COMPLETE"]  # n_trials is the total: nothing is left


@pytest.mark.parametrize("batch_size", [1, 4])
def test_n_trials_is_the_total_with_those_that_other_processes_begin_meanwhile(tmp_path: Path, batch_size: int) -> None:
    with study_in(tmp_path) as study, study_in(tmp_path) as other:

        def another(study: optuna.Study, trial: Any) -> None:
            if len(other.trials) < 20:
                other.add_trials([create_trial(value=1.0)] * 3)

        study.sampler = optuna.samplers.TPESampler(seed=0)
        ff.optimize(fn, n_trials=20, study=study, callbacks=[another], batch_size=batch_size, engine="serial")
        assert 20 <= len(study.trials) <= 22  # the last three of the other may begin when there is room for one
        assert sum("x" in each.params for each in study.trials) <= (5 if batch_size == 1 else 12)


def test_trials_of_a_study_in_memory_bear_no_mark_and_others_one(tmp_path: Path) -> None:
    assert states.DRIVER not in ff.optimize(fn, n_trials=1, engine="serial").trials[0].system_attrs
    with study_in(tmp_path) as study:
        study.enqueue_trial({"x": 0.5})
        marks = [each.system_attrs[states.DRIVER] for each in ff.optimize(fn, n_trials=2, study=study, engine="serial").trials]
        assert [each["pid"] for each in marks] == [os.getpid()] * 2
        assert marks[0]["call"] == marks[1]["call"]
    assert not drivers._calls


# ---- user attributes -----------------------------------------------------------------------------------------------------


def test_a_trial_that_is_tried_again_has_the_user_attributes_of_its_checkpoint(tmp_path: Path) -> None:
    def goes_wrong_twice(trial: Any) -> float:
        seen = dict(trial.user_attrs)
        trial.set_user_attr("n", seen.get("n", 0) + 1)
        if seen.get("n", 0) == 1:
            trial.set_user_attr("seen", seen)
            return 1.0
        if trial.restore() is None and not (tmp_path / "first").exists():
            (tmp_path / "first").touch()
            raise ConnectionError  # before its checkpoint: it begins anew
        trial.checkpoint("there")
        trial.set_user_attr("n", 100)
        raise ConnectionError

    study = optuna.create_study()
    study.enqueue_trial({}, user_attrs={"of": "the user"})
    ff.optimize(goes_wrong_twice, n_trials=1, study=study, engine="serial", retries=2)
    assert study.trials[0].user_attrs == {"of": "the user", "n": 2, "seen": {"of": "the user", "n": 1}}


def test_user_attributes_of_a_checkpoint_outlive_the_driver(tmp_path: Path) -> None:
    def dies_once(trial: Any) -> float:
        done, seen = trial.restore(0), dict(trial.user_attrs)
        for step in range(done, 4):
            trial.set_user_attr("step", step)
            trial.checkpoint(step + 1)
            if step == 2 and not (tmp_path / "killed").exists():
                trial.set_user_attr("after", True)
                (tmp_path / "killed").touch()
                die()
        trial.set_user_attr("seen", seen)
        return fn(trial)

    def call() -> optuna.Study:
        return ff.optimize(dies_once, n_trials=1, sampler=RandomSampler(0), engine="serial", run=tmp_path / "run")

    assert forked(call) == -signal.SIGKILL
    assert call().trials[0].user_attrs == {"step": 3, "seen": {"step": 2}}
