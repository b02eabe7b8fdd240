"""ff.ASHA and ff.Hyperband: what they find in simulated studies, and what they stop in Optuna's own."""

import math
import pickle
from collections.abc import Callable
from functools import lru_cache

import optuna
import pytest
from curves import MAX_RESOURCE, Curves, halve_in_step, run_with_workers
from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState

import fourfold as ff
from fourfold.workloads.tune.rungs import resources

optuna.logging.set_verbosity(optuna.logging.WARNING)

SEEDS, BUDGET, MIN_RESOURCE, FACTOR = 100, 0.25, 3, 3


@lru_cache
def studies() -> list[Curves]:
    return [Curves(seed) for seed in range(SEEDS)]


def ended(curves: Curves, pruner: ff.ASHA, workers: int):
    return run_with_workers(curves, pruner.rungs(), resources(MIN_RESOURCE, MAX_RESOURCE, FACTOR), workers)


# ---- what it finds


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_asha_keeps_the_true_best_for_a_quarter_of_the_budget(workers: int) -> None:
    """Curves cross and are noisy: halving in step, the control, loses some too."""
    found = [(curves.best, ended(curves, ff.ASHA(MIN_RESOURCE, MAX_RESOURCE, FACTOR), workers)) for curves in studies()]
    assert max(each.used for _, each in found) <= BUDGET
    n_kept = sum(best == each.found for best, each in found)
    assert n_kept >= 0.95 * SEEDS
    n_kept_in_step = sum(curves.best == halve_in_step(curves, MIN_RESOURCE, FACTOR).found for curves in studies())
    assert 0.85 * SEEDS <= n_kept_in_step <= n_kept


def test_the_same_study_with_as_many_workers_runs_the_same_way() -> None:
    first, again = (ended(Curves(5), ff.ASHA(MIN_RESOURCE, MAX_RESOURCE, FACTOR), 8).log for _ in range(2))
    assert first == again
    assert len({number for number, *_ in first}) == Curves(5).n_trials


@pytest.mark.parametrize("n_trials", [1, 2, 3, 4, 10, 25])
def test_of_a_short_study_one_trial_comes_to_its_end(n_trials: int) -> None:
    curves = Curves(0, n_trials)
    assert 0 <= ended(curves, ff.ASHA(MIN_RESOURCE, MAX_RESOURCE, FACTOR), 2).found < n_trials


def test_hyperband_has_complete_trials_of_each_bracket_and_saves_less() -> None:
    curves = Curves(1)
    hyperband = ended(curves, ff.Hyperband(MIN_RESOURCE, MAX_RESOURCE, FACTOR), 2)
    assert ended(curves, ff.ASHA(MIN_RESOURCE, MAX_RESOURCE, FACTOR), 2).used < hyperband.used < 0.5
    assert hyperband.found == curves.best


# ---- what it stops in study.optimize


def optimized(
    pruner: BasePruner, curves: Curves, first_step: int = 0, direction: str = "maximize", n_steps: int = MAX_RESOURCE - 1
) -> list[FrozenTrial]:
    """A study of Optuna whose trials are these curves."""
    sign = 1.0 if direction == "maximize" else -1.0

    def objective(trial: optuna.Trial) -> float:
        for resource in range(1, n_steps + 1):
            trial.report(sign * curves.value(trial.number, resource), resource - 1 + first_step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return sign * curves.value(trial.number, n_steps)

    study = optuna.create_study(direction=direction, pruner=pruner)
    study.optimize(objective, n_trials=curves.n_trials)
    return study.trials


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_in_study_optimize_the_same_trials_are_stopped_at_the_same_steps_as_by_optunas_own(direction: str) -> None:
    """Optuna counts a step 1 as a resource of 1, and so its trials begin with step 1."""
    for seed in (0, 1):
        curves = Curves(seed, 30)
        theirs = optimized(SuccessiveHalvingPruner(1, FACTOR), curves, 1, direction)
        ours = optimized(ff.ASHA(1, MAX_RESOURCE, FACTOR), curves, 0, direction)
        assert [each.state for each in ours] == [each.state for each in theirs]
        assert [each.last_step + 1 for each in ours] == [each.last_step for each in theirs]
        assert len({each.last_step for each in ours}) >= 3, "stopped at several rungs"


def stops(objective: Callable[[optuna.Trial], float], n_trials: int, pruner: BasePruner) -> list[TrialState]:
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.optimize(objective, n_trials=n_trials, catch=(ZeroDivisionError,))
    return [each.state for each in study.trials]


def one_report(values: list[float], fails: tuple[int, ...] = ()) -> Callable[[optuna.Trial], float]:
    def objective(trial: optuna.Trial) -> float:
        assert not trial.should_prune(), "nothing is reported"
        trial.report(values[trial.number], 0)
        if trial.number in fails:
            raise ZeroDivisionError
        if trial.should_prune():
            raise optuna.TrialPruned
        return values[trial.number]

    return objective


def test_in_study_optimize_nan_stops_and_a_tie_stops_who_came_later() -> None:
    pruned, complete = TrialState.PRUNED, TrialState.COMPLETE
    assert stops(one_report([math.nan, 0.0, 0.0, 0.1]), 4, ff.ASHA(1, 9)) == [pruned, complete, pruned, complete]


def test_in_study_optimize_of_equal_trials_the_one_that_began_first_goes_on_whenever_it_comes() -> None:
    study = optuna.create_study(direction="maximize", pruner=ff.ASHA(1, 9))
    first, other = study.ask(), study.ask()
    for trial in (other, first):
        trial.report(0.5, 0)
        assert not trial.should_prune()


def test_in_study_optimize_a_failed_trial_stands_in_nobodys_way() -> None:
    found = stops(one_report([0.9, 0.1, 0.2], fails=(0,)), 3, ff.ASHA(1, 9))
    assert found == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_in_study_optimize_a_trial_that_has_passed_a_rung_is_not_asked_there_again() -> None:
    study = optuna.create_study(direction="maximize", pruner=ff.ASHA(1, 9))
    first, other = study.ask(), study.ask()
    first.report(0.5, 0)
    assert not first.should_prune()
    other.report(0.9, 0)
    assert not other.should_prune()
    first.report(0.5, 1)
    assert not first.should_prune()
    first.report(0.5, 2)
    other.report(0.9, 2)
    assert first.should_prune()
    assert not other.should_prune()


def test_in_study_optimize_hyperband_compares_trials_of_one_bracket_only() -> None:
    """Of its two brackets, one has a rung at 1, and one, of the trials 1, 3, 6, 8, …, stops none."""
    unstopped = [1, 3, 6, 8, 11, 13, 16, 18]
    falling = [100.0 if number in unstopped else -float(number) for number in range(20)]
    states = stops(one_report(falling), 20, ff.Hyperband(1, 3, 3))
    assert [number for number, state in enumerate(states) if state is TrialState.COMPLETE] == [0, *unstopped]
    rising = [100.0 if number in unstopped else float(number) for number in range(20)]
    assert set(stops(one_report(rising), 20, ff.Hyperband(1, 3, 3))) == {TrialState.COMPLETE}


# ---- as objects


def test_a_missing_max_resource_is_asked_for_by_name() -> None:
    for made in (ff.ASHA, ff.Hyperband):
        with pytest.raises(ff.errors.OptionTypeError, match=rf"max_resource is missing: .* {made.__name__}\(1, 81\)"):
            made()
    with pytest.raises(ff.errors.OptionError, match="max_resource=4 must be greater than min_resource=5"):
        ff.Hyperband(5, 4)


def test_pruners_can_be_pickled_and_say_how_they_were_made() -> None:
    for made in (ff.ASHA(2, 50, 4), ff.Hyperband(2, 50, 4)):
        again = pickle.loads(pickle.dumps(made))
        assert repr(again) == repr(made) == f"{type(made).__name__}(min_resource=2, max_resource=50, reduction_factor=4)"
        assert isinstance(again, optuna.pruners.BasePruner)
