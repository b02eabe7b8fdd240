"""`ff.optimize(…, run=FOLDER)`: a killed driver costs no trial that had ended, and the same call makes the same study."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import trials
from optuna.samplers import QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from running import run_script, started

import fourfold as ff
from fourfold.cli.replay import _trial
from fourfold.errors import RunError
from fourfold.workloads.tune import states
from fourfold.workloads.tune.book import Book

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

QUICK = """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def leave_it_to_the_kernel(connection, record):  # a process is killed here, and the machine is not
        connection.execute("PRAGMA synchronous=OFF")
"""

SCRIPT = """
    import json, os, signal, sys, warnings
    import optuna
    import fourfold as ff

    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage, kind, n_trials, kill_at, file = sys.argv[1:]

    def objective(trial):
        x, k = trial.suggest_float("x", -10, 10), trial.suggest_int("k", 0, 5)
        trial.set_user_attr("twice", 2 * x)
        trial.report(x, 0)
        return x + k

    SAMPLERS = {
        "random": lambda: optuna.samplers.RandomSampler(5),
        "TPE": lambda: optuna.samplers.TPESampler(seed=5),
        "quasi-random": lambda: optuna.samplers.QMCSampler(seed=5),
    }

    def rows(trials):
        with open(file, "w") as out:
            json.dump([[t.number, t.params, t.values, t.state.name, t.user_attrs, t.intermediate_values, str(t.datetime_start)]
                       for t in sorted(trials, key=lambda each: each.number)], out)

    told = []

    def kill(study, trial):
        told.append(trial)
        if len(told) == int(kill_at):
            rows(told)
            os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        url = None if storage == "memory" else f"sqlite:///{storage}"
        study = optuna.create_study(study_name="s", storage=url, sampler=SAMPLERS[kind](), load_if_exists=True)
        found = ff.optimize(objective, n_trials=int(n_trials), study=study, workers=2, batch_size=4, callbacks=[kill], run="run")
        assert len(found.trials) == int(n_trials), len(found.trials)
        assert all(t.state.name == "COMPLETE" for t in found.trials)
        rows(found.trials)
        print(found.report.n_items)
"""


quiet = trials.quiet


def kill_and_go_on(folder: Path, storage: str, kind: str, n_trials: int, kill_at: int) -> tuple[list[Any], list[Any], int]:
    """What was there at the kill, what is there at the end, and how many trials the second call ran."""
    script = SCRIPT if storage == "memory" else QUICK + SCRIPT
    killed = run_script(script, storage, kind, str(n_trials), str(kill_at), "before.json", folder=folder)
    assert (killed.code, killed.survivors) == (-signal.SIGKILL, []), killed.stderr
    ended = run_script(script, storage, kind, str(n_trials), "0", "after.json", folder=folder)
    assert ended.code == 0, ended.stderr
    before, after = (json.loads((folder / name).read_text()) for name in ("before.json", "after.json"))
    return before, after, int(ended.stdout)


def never_killed(kind: str, n_trials: int) -> list[Any]:
    sampler = {"random": RandomSampler(5), "TPE": TPESampler(seed=5), "quasi-random": QMCSampler(seed=5)}[kind]

    def objective(trial: Any) -> float:
        x, k = trial.suggest_float("x", -10, 10), trial.suggest_int("k", 0, 5)
        return float(x + k)

    found = ff.optimize(objective, n_trials=n_trials, sampler=sampler, engine="serial", batch_size=4)
    return [[each.number, each.params, each.values] for each in found.trials]


@pytest.mark.slow
def test_of_200_trials_whose_driver_is_killed_at_100_the_first_100_stay_as_they_are(tmp_path: Path) -> None:
    before, after, n_run = kill_and_go_on(tmp_path, "memory", "random", 200, 100)
    assert (len(before), len(after)) == (100, 200)
    assert json.dumps([after[number] for number, *_ in before]) == json.dumps(before)  # two workers: 101 may end before 100
    assert n_run <= 100
    assert [row[:3] for row in after] == never_killed("random", 200)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "storage"), [("TPE", "memory"), ("random", "study.db"), ("quasi-random", "study.db")])
def test_the_same_call_makes_the_study_that_it_would_have_been(tmp_path: Path, storage: str, kind: str) -> None:
    before, after, _ = kill_and_go_on(tmp_path, storage, kind, 16, 6)
    assert [row[:3] for row in after] == never_killed(kind, 16)
    assert [row for row in after if row[0] in {each[0] for each in before}] == before


def test_a_run_that_is_done_is_not_done_again_and_one_with_more_trials_goes_on(tmp_path: Path) -> None:
    def call(n_trials: int) -> optuna.Study:
        return ff.optimize(
            lambda t: t.suggest_float("x", 0, 1), n_trials=n_trials, sampler=RandomSampler(1), workers=2, run=tmp_path / "run"
        )

    first, again, more = call(6), call(6), call(10)
    assert [each.report.n_items for each in (first, again, more)] == [6, 0, 4]
    assert again.trials == first.trials
    assert more.trials[:6] == first.trials
    plain = ff.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=10, sampler=RandomSampler(1), engine="serial")
    assert [each.params for each in more.trials] == [each.params for each in plain.trials]


def test_what_failed_stays_failed_with_its_error(tmp_path: Path) -> None:
    def fn(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number == 1:
            raise ValueError("bad")
        if trial.number == 2:
            raise optuna.TrialPruned
        return float(x)

    def call() -> optuna.Study:
        return ff.optimize(fn, n_trials=4, sampler=RandomSampler(1), engine="serial", catch=ValueError, run=tmp_path / "run")

    first, again = call(), call()
    assert again.trials == first.trials
    assert [each.state for each in again.trials] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.PRUNED,
        TrialState.COMPLETE,
    ]
    assert again.trials[1].system_attrs[states.ERROR] == "ValueError: bad"


def test_trials_that_wait_when_a_call_fails_are_over_in_its_study_and_the_next_call_goes_on_without_them(
    tmp_path: Path,
) -> None:
    must_fail = tmp_path / "must-fail"
    must_fail.touch()

    def fn(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        for step in range(trial.restore(0), 9):
            trial.report(x, step)
            trial.checkpoint(step + 1)
            if trial.should_prune():
                raise optuna.TrialPruned
        if must_fail.exists():
            raise ValueError("bad")
        return float(x)

    study = optuna.create_study(sampler=RandomSampler(0), pruner=ff.ASHA(1, 9))
    options: Any = {"n_trials": 9, "study": study, "engine": "serial", "run": tmp_path / "run"}
    with pytest.raises(ValueError, match="bad"):
        ff.optimize(fn, **options)
    must_fail.unlink()
    ff.optimize(fn, **options)
    assert len(study.trials) == 9
    assert TrialState.COMPLETE in {each.state for each in study.trials}
    assert all(each.state.is_finished() for each in study.trials)


def loops(trial: Any) -> float:
    trial.suggest_float("x", 0, 1)
    while True:
        pass


def test_a_trial_that_took_too_long_is_replayed_with_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("path", "argv"):
        monkeypatch.setattr(sys, name, list(getattr(sys, name)))
    monkeypatch.chdir(tmp_path)
    ff.optimize(loops, 1, sampler=RandomSampler(1), workers=1, trial_timeout=0.25, run="run")
    _, timeout_s = _trial("run", 0)
    assert timeout_s == 0.25
    assert "it is stopped after 0.25 s here as well" in capsys.readouterr().err


def test_another_objective_is_refused(tmp_path: Path) -> None:
    options: Any = {"n_trials": 2, "sampler": RandomSampler(1), "engine": "serial", "run": tmp_path / "run"}
    ff.optimize(lambda t: t.suggest_float("x", 0, 1), **options)
    with pytest.raises(RunError, match=r"was recorded by something else: .* has other constants"):
        ff.optimize(lambda t: t.suggest_float("x", 0, 2), **options)


def test_each_call_of_a_block_has_a_folder_of_its_own(tmp_path: Path) -> None:
    def block() -> list[Any]:
        with ff.using(run=str(tmp_path / "run"), engine="serial"):
            first = ff.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=3, sampler=RandomSampler(1))
            second = ff.optimize(lambda t: t.suggest_float("y", 0, 1), n_trials=2, sampler=RandomSampler(1))
        return [first.report.n_items, second.report.n_items, len(first.trials), len(second.trials)]

    assert block() == [3, 2, 3, 2]
    assert block() == [0, 0, 3, 2]
    assert {each.name for each in (tmp_path / "run").iterdir()} >= {"1", "2"}


INTERRUPTED = """
    import sys, time
    import optuna
    import fourfold as ff

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        if trial.number >= 2:
            open(f"busy-{trial.number % 2}", "w").close()
            time.sleep(60)
        return x

    if __name__ == "__main__":
        study = optuna.create_study(study_name="s", storage="sqlite:///study.db", sampler=optuna.samplers.RandomSampler(1))
        ff.optimize(objective, n_trials=20, study=study, workers=2)
"""


@pytest.mark.slow
def test_ctrl_c_leaves_no_trial_running_in_a_storage(tmp_path: Path) -> None:
    for name in ("busy-0", "busy-1"):
        os.mkfifo(tmp_path / name)
    with started(QUICK + INTERRUPTED, folder=tmp_path) as script:
        for name in ("busy-0", "busy-1"):
            with open(tmp_path / name) as pipe:
                pipe.read()
        script.interrupt()
        ended = script.end()
    assert (ended.code, ended.survivors) == (-signal.SIGINT, []), ended.stderr
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db")
    assert [each.state.name for each in study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    assert {each.system_attrs[states.STATE] for each in study.trials[2:]} == {states.UNFINISHED}
    study._storage.remove_session()
    study._storage._backend.engine.dispose()


def test_ctrl_c_while_a_trial_is_recorded_does_not_lose_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Book.newly_ended

    def take_and_interrupt(desk: Book) -> Any:
        found = take(desk)
        if found:
            monkeypatch.undo()
            signal.raise_signal(signal.SIGINT)
        return found

    def trials() -> optuna.Study:
        return ff.optimize(
            lambda trial: trial.suggest_float("x", 0, 1),
            n_trials=3,
            sampler=RandomSampler(0),
            engine="serial",
            run=tmp_path / "run",
        )

    monkeypatch.setattr(Book, "newly_ended", take_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        trials()
    assert trials().report.n_items == 2
