"""Trials that wait and go on: `ff.optimize` under `ff.ASHA`."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import fourfold as ff
from fourfold.workloads.tune import checkpoints
from fourfold.workloads.tune.checkpoints import Checkpoints

optuna.logging.set_verbosity(optuna.logging.ERROR)

STEPS = 9


def curve(trial: Any, step: int) -> float:
    """What is learned, the better the nearer x is to 1; 0.3 of it at the first step, and more at each."""
    x: float = trial.suggest_float("x", 0, 1)
    return x * (1 - 0.7 * 0.6**step)


def learned(trial: Any) -> float:
    """Goes on where it has stopped, and says at which steps it was anew."""
    state = trial.restore({"step": 0, "starts": []})
    state["starts"].append(state["step"])
    trial.set_user_attr("starts", state["starts"])
    for step in range(state["step"], STEPS):
        trial.report(curve(trial, step), step)
        trial.checkpoint({**state, "step": step + 1})
        if trial.should_prune():
            raise optuna.TrialPruned
    return curve(trial, STEPS)


def without_checkpoints(trial: Any) -> float:
    for step in range(STEPS):
        trial.report(curve(trial, step), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return curve(trial, STEPS)


def searched(objective: Callable[[Any], float] = learned, n_trials: int = 27, **options: Any) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(3)
    return ff.optimize(
        objective, n_trials=n_trials, direction="maximize", sampler=sampler, pruner=ff.ASHA(1, STEPS), **options
    )


def n_steps(study: optuna.Study) -> int:
    return sum(len(trial.intermediate_values) for trial in study.trials)


@pytest.mark.parametrize("options", [{"engine": "serial"}, {"engine": "threads", "workers": 2}, {"workers": 2}])
def test_trials_that_wait_go_on_from_their_checkpoints_and_the_best_one_comes_to_the_end(options: dict[str, Any]) -> None:
    study = searched(**options)
    states = [trial.state.name for trial in study.trials]
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert len(states) == 27
    assert study.best_params["x"] == max(trial.params["x"] for trial in study.trials)
    assert n_steps(study) < 27 * STEPS / 2
    assert study.report.n_items == 27  # those that wait for ever are of this call as well
    starts = [trial.user_attrs["starts"] for trial in study.trials if "starts" in trial.user_attrs]
    assert any(len(each) > 1 and each == sorted(each) for each in starts)  # one has waited, and did no step twice
    assert all(trial.value == pytest.approx(curve_of(trial)) for trial in study.trials if trial.state.name == "PRUNED")


def curve_of(trial: optuna.trial.FrozenTrial) -> float:
    assert trial.last_step is not None
    return float(trial.params["x"]) * (1 - 0.7 * 0.6**trial.last_step)


def test_with_one_worker_the_same_trials_go_on_every_time() -> None:
    tables = [
        [(trial.params, trial.value, trial.state) for trial in searched(workers=workers, engine=engine).trials]
        for workers, engine in ((1, "serial"), (1, "processes"))
    ]
    assert tables[0] == tables[1]


def test_without_checkpoints_trials_stop_for_good_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    study = searched(without_checkpoints, engine="serial")
    assert n_steps(study) < 27 * STEPS / 2
    assert study.report.n_items == 27  # those that wait for ever are of this call as well
    assert len([line for line in caplog.messages if "trial.checkpoint" in line]) == 1


@pytest.mark.parametrize("options", [{"engine": "serial"}, {"workers": 2}])
def test_an_objective_that_reports_nothing_is_told_of_once(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    searched(lambda trial: trial.suggest_float("x", 0, 1), 6, **options)
    (line,) = (line for line in caplog.messages if "trial.report(value, step)" in line)
    assert line.endswith(
        "has ended and has reported nothing: ASHA compares what trials give trial.report(value, step), and stops none without"
    )


def test_a_sampler_that_learns_is_asked_whenever_a_worker_is_free() -> None:
    study = ff.optimize(
        learned,
        n_trials=20,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=1),
        pruner=ff.Hyperband(1, STEPS),
        workers=2,
    )
    assert len(study.trials) == 20
    assert not [trial for trial in study.trials if trial.state.name not in ("COMPLETE", "PRUNED")]


KILLED = """
import os, signal, sys
from tests_of_asha import searched
import optuna

class Counted:
    n = 0

def after(study, trial):
    Counted.n += 1
    if Counted.n == 3:
        os.kill(os.getpid(), signal.SIGKILL)

searched(workers=1, engine="serial", run=sys.argv[1], callbacks=[after])
"""


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("make", [optuna.samplers.RandomSampler, optuna.samplers.QMCSampler])
def test_a_call_that_goes_on_while_its_first_trial_waits_draws_what_it_would_have_drawn(tmp_path: Path, make: Any) -> None:
    must_stop = tmp_path / "must-stop"

    def fn(trial: Any) -> float:
        if must_stop.exists() and trial.number == 2:
            raise KeyboardInterrupt
        return learned(trial)

    def call(**options: Any) -> list[Any]:
        sampler, pruner = make(seed=3), ff.ASHA(1, STEPS)
        found = ff.optimize(fn, n_trials=9, direction="maximize", sampler=sampler, pruner=pruner, engine="serial", **options)
        return [(each.params, each.values, each.state) for each in found.trials]

    never_stopped = call()
    must_stop.touch()
    with pytest.raises(KeyboardInterrupt):
        call(run=tmp_path / "run")
    must_stop.unlink()
    assert call(run=tmp_path / "run") == never_stopped


@pytest.mark.parametrize("make", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
@pytest.mark.parametrize("at", [0, 5])
def test_a_trial_that_was_under_way_goes_on_with_its_own_parameters_and_all_its_reports(
    tmp_path: Path, make: Any, at: int
) -> None:
    must_stop = tmp_path / "must-stop"
    must_stop.touch()

    def fn(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        first, of = trial.restore((0, x))
        assert of == x, "it goes on from what another one has learned"
        for step in range(first, STEPS):
            trial.report(x - 1 / (step + 1), step)
            trial.checkpoint((step + 1, x))
            if must_stop.exists() and trial.number == at:
                raise KeyboardInterrupt
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(x)

    def call() -> optuna.Study:
        sampler, run = make(seed=3), tmp_path / "run"
        return ff.optimize(fn, n_trials=9, sampler=sampler, pruner=ff.ASHA(1, STEPS), engine="serial", run=run)

    with pytest.raises(KeyboardInterrupt):
        call()
    must_stop.unlink()
    found = call()
    assert all(list(each.intermediate_values) == list(range(len(each.intermediate_values))) for each in found.trials)
    assert all(each.intermediate_values for each in found.trials)
    assert {each.state.name for each in found.trials} == {"COMPLETE", "PRUNED"}


def test_a_killed_driver_finds_the_trials_that_wait_and_their_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "tests_of_asha.py").write_text(Path(__file__).read_text())
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run")], env={**os.environ, "PYTHONPATH": path}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    script = "import sys; from tests_of_asha import *; s = searched(workers=1, engine='serial', run=sys.argv[1]); "
    script += "print([t.state.name for t in s.trials].count('COMPLETE'), n_steps(s), s.best_params['x'])"
    again = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], env={**os.environ, "PYTHONPATH": path}, capture_output=True
    )
    assert again.returncode == 0, again.stderr.decode()
    n_complete, steps, x = again.stdout.split()
    whole = searched(workers=1, engine="serial")
    assert float(x) == whole.best_params["x"]
    assert int(n_complete) >= 1
    assert int(steps) < 27 * STEPS / 2


KEEPS = """
import sys
from fourfold.workloads.tune.checkpoints import Checkpoints
Checkpoints(None).put(0, b"model")
print("kept", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_what_trials_of_a_killed_driver_have_kept_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(checkpoints, "UNHELD_S", 0.0)
    there = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", KEEPS]
    with subprocess.Popen(command, env=there, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"kept\n"
        (theirs,) = tmp_path.glob("fourfold-checkpoints-*")
        ours = Checkpoints(None)
        ours.put(1, b"ours")
        assert theirs.is_dir(), "its driver is at work"
        ours.close()
        other.kill()
    ours = Checkpoints(None)
    ours.put(1, b"ours")
    assert not theirs.exists()
    ours.close()
    assert [*tmp_path.iterdir()] == []


def test_who_comes_with_a_checkpoint_when_the_call_is_over_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = Checkpoints(None)
    ours.close()
    with pytest.raises(FileNotFoundError, match="the call is over"):
        ours.put(1, b"late")
    assert [*tmp_path.iterdir()] == []


def test_first_checkpoints_that_come_at_once_are_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "remove_unheld", lambda *_: threading.Event().wait(0.05))  # a folder takes its time
    kept, together = Checkpoints(None), threading.Barrier(8)

    def put(number: int) -> None:
        together.wait(20)
        kept.put(number, b"here")

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    try:
        assert kept.numbers() == list(range(8))
    finally:
        kept.close()
