"""Trials of random and quasi-random search that run while the first one does: right or withdrawn, and nothing between."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import trials
from optuna.samplers import QMCSampler, RandomSampler
from trials import of_optuna, table

import fourfold as ff
from fourfold.records import Failure
from fourfold.runs.story import open_run
from fourfold.workloads.tune import ahead, states
from fourfold.workloads.tune.ahead import Guess
from fourfold.workloads.tune.answers import Answers
from fourfold.workloads.tune.asking import NotYet, Withdrawn
from fourfold.workloads.tune.checkpoints import Checkpoints
from fourfold.workloads.tune.desk import Desk
from fourfold.workloads.tune.proposing import way_of
from fourfold.workloads.tune.quiet import COMPUTES_S
from fourfold.workloads.tune.told import trials_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

quiet = trials.quiet

WAIT_S = 30.0


def wait_for(path: Path) -> None:
    """A worker waits until another one has made a file."""
    for _ in range(int(WAIT_S * 100)):
        if path.exists():
            return
        threading.Event().wait(0.01)
    raise TimeoutError(f"nobody has made {path}")


def compute() -> None:
    """So long that nobody believes that another parameter comes."""
    began = time.thread_time()
    while time.thread_time() < began + 2 * COMPUTES_S:
        pass


def n_runs(folder: Path, number: int) -> int:
    """How often a trial was run, with this time."""
    found = len(list(folder.glob(f"{number}.*"))) + 1
    (folder / f"{number}.{found}").touch()
    return found


def space(trial: Any) -> float:
    """Without the waiting, what the trials below do."""
    return float(trial.suggest_float("x", -10, 10) + trial.suggest_int("k", 1, 5))


def held_up(trial: Any, path: Path) -> float:
    """The same, but for the first trial, which then waits until another one has made a file."""
    value = space(trial)
    if trial.number == 0:
        compute()
        wait_for(path)
    return value


def late(trial: Any) -> float:
    return float(trial.suggest_float("x", -10, 10) + trial.suggest_float("y", 0, 1))


@pytest.mark.parametrize("n_workers", [2, 8])
@pytest.mark.parametrize("make", [lambda: RandomSampler(3), lambda: QMCSampler(seed=3)], ids=["random", "quasi-random"])
def test_all_workers_run_trials_while_the_first_one_runs(tmp_path: Path, make: Any, n_workers: int) -> None:
    def fn(trial: Any) -> float:
        value = space(trial)
        (tmp_path / str(trial.number)).touch()
        if trial.number == 0:
            compute()
            for other in range(1, n_workers):
                wait_for(tmp_path / str(other))
        return value

    found = ff.optimize(fn, n_trials=20, sampler=make(), workers=n_workers)
    assert table(found) == table(ff.optimize(space, n_trials=20, sampler=make(), engine="serial"))
    assert {each.system_attrs[states.ATTEMPTS] for each in found.trials} == {1}
    first, others = found.trials[0], found.trials[1:n_workers]
    assert all(each.datetime_start < first.datetime_complete for each in others), "they have begun when they have begun"


@pytest.mark.parametrize("wrong", ["goes on", "raises", "dies", "dies again and again"])
def test_a_parameter_that_the_first_trial_asks_for_late_leaves_nothing_of_the_wrong_draws(
    tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()

    def fn(trial: Any) -> float:
        run, x = n_runs(runs, trial.number), trial.suggest_float("x", -10, 10)
        if trial.number == 0:
            compute()
            wait_for(runs / ("1.2" if wrong == "dies again and again" else "1.1"))
        elif trial.number == 1 and run == 1 and wrong == "raises":
            raise KeyError("of a wrong draw")
        elif trial.number == 1 and run <= {"dies": 1, "dies again and again": 2}.get(wrong, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        elif trial.number == 1:
            trial.set_user_attr("run", run)
        return float(x + trial.suggest_float("y", 0, 1))

    told: list[int] = []
    study = optuna.create_study(sampler=RandomSampler(3))
    ff.optimize(
        fn, n_trials=6, study=study, workers=2, run=tmp_path / "run", callbacks=[lambda s, trial: told.append(trial.number)]
    )
    assert table(study) == of_optuna(late, 6, RandomSampler(3))
    assert sorted(told) == list(range(6))
    assert study.failures == []  # type: ignore[attr-defined]
    assert {each.system_attrs[states.STATE] for each in study.trials} == {states.COMPLETE}
    kept = trials_of(open_run(str(tmp_path / "run"))).trials
    assert [each.params for each in kept] == [each.params for each in study.trials]
    assert study.trials[1].user_attrs["run"] == (3 if wrong == "dies again and again" else study.trials[1].user_attrs["run"])
    assert study.trials[1].user_attrs["run"] >= 2, "it has run twice"
    assert ["trial 0 has asked for 'y'" in each for each in caplog.messages].count(True) == 1


def test_a_trial_that_fails_while_the_first_one_runs_is_told_when_that_has_ended(tmp_path: Path) -> None:
    def fn(trial: Any) -> float:
        value = held_up(trial, tmp_path / "1")
        if trial.number == 1:
            (tmp_path / "1").touch()
            raise KeyError("no such column")
        return value

    study = optuna.create_study(sampler=RandomSampler(3))
    with pytest.raises(KeyError, match="no such column") as caught:
        ff.optimize(fn, n_trials=100, study=study, workers=2)
    assert [each.system_attrs[states.STATE] for each in study.trials[:2]] == [states.COMPLETE, states.FAILED]
    assert caught.value.__notes__[0].startswith(f"fourfold: trial 1 with {study.trials[1].params} (attempt 1, worker ")
    assert [each.index for each in study.failures] == [1]  # type: ignore[attr-defined]


def test_a_trial_that_crashes_while_the_first_one_runs_has_its_state_and_its_parameters(tmp_path: Path) -> None:
    def fn(trial: Any) -> float:
        value = held_up(trial, tmp_path / "1.2")
        if trial.number == 1:
            n_runs(tmp_path, 1)
            os._exit(3)
        return value

    found = ff.optimize(fn, n_trials=5, sampler=RandomSampler(3), workers=2)
    expected = of_optuna(space, 5, RandomSampler(3))
    assert [each.params for each in found.trials] == [row[1] for row in expected]
    assert [each.system_attrs[states.STATE] for each in found.trials] == [
        states.COMPLETE, states.CRASHED, *[states.COMPLETE] * 3
    ]  # fmt: skip
    assert [(each.index, each.attempts) for each in found.failures] == [(1, 2)]


def test_a_trial_that_the_study_does_not_have_yet_waits_with_its_reports_and_not_in_vain(tmp_path: Path) -> None:
    def fn(trial: Any) -> float:
        value = held_up(trial, tmp_path / "1")
        if trial.number == 1:
            (tmp_path / "1").touch()
        trial.report(value, 0)
        assert not trial.should_prune()
        assert trial.params["x"] + trial.params["k"] == value
        trial.set_user_attr("told", [each.number for each in trial.study.get_trials() if each.state.name == "COMPLETE"])
        return value

    found = ff.optimize(fn, n_trials=4, sampler=RandomSampler(3), workers=2)
    assert [each.intermediate_values for each in found.trials] == [{0: each.value} for each in found.trials]
    assert found.trials[1].user_attrs["told"][:1] == [0]


# ---- the desk --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(sampler=RandomSampler(3))


@pytest.fixture
def desk(study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(ahead, "QUIET_S", 0.0)
    monkeypatch.setattr(ahead, "QUIET_TIMES", 0.0)
    found = Desk(study, way_of(study.sampler, "batch", 1), 4, None, Checkpoints(str(tmp_path)), 0, wait_s=0.01)
    yield found
    found.close()


def first_and_guess(desk: Desk) -> tuple[Answers, Guess]:
    """The first trial, which has asked for x, runs for ticket 0, and the second one for ticket 1."""
    answers = Answers(desk)
    assert desk.job(0) is not None
    assert desk.job(1) is None, "the first one has asked for nothing"
    answers.handle("suggest", (0, "suggest_float", ("x", 0, 1), {}))
    guess = desk.job(1)
    assert isinstance(guess, Guess)
    return answers, guess


def test_the_study_has_a_trial_not_before_it_is_sure_what_it_draws(desk: Desk) -> None:
    answers, guess = first_and_guess(desk)
    answers.handle("suggested", (guess.key, "suggest_float", ("x", 0, 1), {}))
    assert answers.handle("report", (guess.key, 1.0, 0)) is NotYet
    assert len(desk.study.trials) == 1
    answers.handle("end", (0, "value", 1.0))
    assert desk.study.trials[1].params == {"x": guess.given["x"][2]}
    assert answers.handle("report", (guess.key, 1.0, 0)) is None
    answers.handle("end", (guess.key, "value", 2.0))
    assert [each.value for each in desk.study.trials] == [1.0, 2.0]


def test_what_is_not_foretold_waits_for_the_first_trial(desk: Desk) -> None:
    answers, guess = first_and_guess(desk)
    ask = ("suggest", (guess.key, "suggest_float", ("beside", 0, 1), {}))
    assert answers.handle(*ask) is NotYet
    answers.handle("end", (0, "value", 1.0))
    assert answers.handle(*ask) == desk.study.trials[1].params["beside"]


def test_the_first_trial_may_ask_again_for_what_it_has(desk: Desk) -> None:
    answers, guess = first_and_guess(desk)
    answers.handle("suggest", (0, "suggest_float", ("x", 0, 1), {}))
    answers.handle("end", (0, "value", 1.0))
    assert desk.job(1) is desk.open[1], "it is the same trial, for who has died and asks again"
    answers.handle("end", (guess.key, "value", 1.0))


def test_after_a_wrong_guess_there_is_no_other(desk: Desk) -> None:
    answers, guess = first_and_guess(desk)
    answers.handle("suggest", (0, "suggest_float", ("y", 0, 1), {}))
    for what in (("suggested", "suggest_float", ("x", 0, 1), {}), ("end", "value", 1.0), ("study", "stop", ())):
        with pytest.raises(Withdrawn):
            answers.handle(what[0], (guess.key, *what[1:]))
    assert desk.job(1) is None
    answers.handle("end", (0, "value", 1.0))
    here = desk.job(1)
    assert here is desk.open[1]
    assert here.attempts == 1


@pytest.mark.parametrize("how", ["hung up", "again", "undelivered"])
def test_when_nobody_runs_the_first_trial_the_others_make_room_for_it(desk: Desk, how: str) -> None:
    desk._retries = 1
    answers, guess = first_and_guess(desk)
    if how == "hung up":
        desk.hung_up(0)
    elif how == "again":
        assert answers.handle("again", (0,))
    else:
        desk.undelivered(0, 1)
    with pytest.raises(Withdrawn):
        answers.handle("end", (guess.key, "value", 1.0))
    assert desk.job(0 if how == "hung up" else 1) is desk.open[0]


def test_a_guess_that_was_not_delivered_is_somebody_elses(desk: Desk) -> None:
    answers, guess = first_and_guess(desk)
    desk.undelivered(1, 1)
    assert desk.job(2) is guess
    desk.undelivered(1, 1)
    answers.handle("end", (0, "value", 1.0))
    assert (desk.open[1].ticket, desk.open[1].attempts) == (2, 1)


def test_a_guess_that_nobody_runs_is_a_trial_for_the_next_one(desk: Desk) -> None:
    answers, _ = first_and_guess(desk)
    desk.undelivered(1, 1)
    answers.handle("end", (0, "value", 1.0))
    found = desk.job(1)
    assert found is desk.open[1]
    assert found.attempts == 1


def test_a_trial_that_somebody_else_has_made_meanwhile_makes_a_guess_wrong(desk: Desk) -> None:
    answers, guess = first_and_guess(desk)
    desk.study.ask()
    answers.handle("end", (0, "value", 1.0))
    with pytest.raises(Withdrawn):
        answers.handle("end", (guess.key, "value", 2.0))
    assert desk.job(1) is desk.open[2]


def test_a_trial_that_was_enqueued_is_not_foretold(desk: Desk) -> None:
    answers = Answers(desk)
    desk.job(0)
    answers.handle("suggest", (0, "suggest_float", ("x", 0, 1), {}))
    desk.study.enqueue_trial({"x": 0.5})
    assert desk.job(1) is None


def test_there_are_no_more_guesses_than_trials(desk: Desk) -> None:
    first_and_guess(desk)
    assert [type(desk.job(ticket)) for ticket in (2, 3)] == [Guess, Guess]
    assert desk.job(4) is None
    assert not desk.may_have_more


def test_of_a_guess_nothing_is_left_when_the_call_ends_before_the_first_trial(desk: Desk) -> None:
    answers, guess = first_and_guess(desk)
    desk.failed(Failure(1, "crashed", RuntimeError("killed"), "RuntimeError", "killed", "", ""), lambda error: False)
    desk.close()
    with pytest.raises(Withdrawn):
        answers.handle("end", (guess.key, "value", 1.0))
    assert [each.system_attrs[states.STATE] for each in desk.study.trials] == [states.UNFINISHED]
    assert (desk.failures, desk.error) == ([], None)


def test_a_study_that_others_have_filled_meanwhile_gets_no_trial_of_a_guess(desk: Desk) -> None:
    answers, guess = first_and_guess(desk)
    desk.book.mark = {}  # others see it
    for _ in range(3):
        desk.study.add_trial(optuna.trial.create_trial(value=1.0))
    answers.handle("end", (0, "value", 1.0))
    with pytest.raises(Withdrawn):
        answers.handle("end", (guess.key, "value", 2.0))
    assert len(desk.study.trials) == 4


def test_what_was_foretold_without_a_guess_displaces_none(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(desk)
    desk.job(0)
    answers.handle("suggest", (0, "suggest_float", ("x", 0, 1), {}))
    with monkeypatch.context() as nobody_can_say:
        nobody_can_say.setattr("fourfold.workloads.tune.proposing.domains", lambda drawn: {})
        answers.handle("quiet", (0,))
        assert desk.job(1) is None
    guess = desk.job(1)
    assert isinstance(guess, Guess)
    answers.handle("end", (0, "value", 1.0))
    answers.handle("end", (guess.key, "value", 2.0))
    assert [each.state.name for each in desk.study.trials] == ["COMPLETE"] * 2


@pytest.mark.parametrize("make", [lambda: RandomSampler(3), lambda: QMCSampler(seed=3)], ids=["random", "quasi-random"])
def test_a_first_trial_that_a_killed_driver_has_left_draws_the_rest_as_it_would_have(make: Any) -> None:
    study = optuna.create_study(sampler=make())
    whole = study.ask()
    wanted = [whole.suggest_float(name, 0, 1) for name in "xy"]
    study = optuna.create_study()
    way = way_of(make(), "batch", 1)
    trial = study.ask()
    study.sampler = way.proposed(trial)
    assert trial.suggest_float("x", 0, 1) == wanted[0]
    later = way_of(make(), "batch", 1)
    again = optuna.Trial(study, trial._trial_id)
    study.sampler = later.proposed(again)
    assert [again.suggest_float(name, 0, 1) for name in "xy"] == wanted
