"""A thousand simulated runs of each kind with faults: each ends, gives each item exactly one outcome, and blames only the guilty.

A run that fails says its seed, and `pytest --ff-seed=N` runs it again, alone. FOURFOLD_SEEDS=200000 looks for rarer ones.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from simulation import Case, Cut, judge, judge_cut

from fourfold.distribute.blame import CRASHES_ALLOWED
from fourfold.distribute.schedule import HALVED_ABOVE

SEEDS = int(os.environ.get("FOURFOLD_SEEDS", "1000"))
"""Runs of each kind. Fewer: rare orders of events are not met: of the bugs of test_simulated_bugs.py, one is met by the 508th run
first, and all others by the 261st. More: time, about 4 ms each."""

PARTS = max(20, SEEDS // 2000)
"""Tests among which the runs are divided. Fewer: one takes over a second. More: more lines."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" not in metafunc.fixturenames:
        return
    alone = metafunc.config.getoption("--ff-seed")
    parts = [range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS) for part in range(PARTS)]
    if alone is not None:
        parts = [range(alone, alone + 1)]
    metafunc.parametrize("seeds", parts, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")


@contextmanager
def named(seed: int) -> Iterator[None]:
    """What fails in this block says how to see it again."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed {seed}: `pytest --ff-seed={seed}` runs it alone")
        raise


def each(seeds: range, check: Callable[[int], object]) -> None:
    for seed in seeds:
        with named(seed):
            check(seed)


def test_without_faults_every_item_comes_back_once_with_its_value(seeds: range) -> None:
    def check(seed: int) -> None:
        case = Case(seed, faults=False)
        ran = judge(case)
        assert ran is not None
        assert ran.values == {i: [i * i] for i in range(case.n)}
        assert ran.reason == ""

    each(seeds, check)


def test_with_faults_each_item_has_exactly_one_outcome_and_only_the_guilty_are_blamed(seeds: range) -> None:
    each(seeds, lambda seed: judge(Case(seed, faults=True)))


def test_deadly_items_are_found_where_nobody_knows_which_one_ran_and_all_others_end_well() -> None:
    def check(seed: int) -> None:
        case = Case.blind(seed)
        ran = judge(case)
        assert ran is not None
        assert {failure.index for failure in ran.failures.all} == case.poison
        n_deaths = (case.n // HALVED_ABOVE).bit_length() + 1 + CRASHES_ALLOWED
        assert ran.engine.deaths <= n_deaths * len(case.poison)
        assert ran.reason == ""

    each(range(min(300, SEEDS)), check)


def test_a_run_that_is_ended_from_outside_at_any_step_tells_why_and_leaves_its_engine_closed(seeds: range) -> None:
    n_cut = 0

    def check(seed: int) -> None:
        nonlocal n_cut
        n_cut += judge_cut(Case(seed, faults=True), Cut(seed))

    each(seeds, check)
    assert n_cut > len(seeds) // 8 or len(seeds) == 1, "hardly any run was ended"


def test_the_first_failure_in_input_order_is_the_one_that_is_reported_whatever_ends_first() -> None:
    for seed in range(300):
        pick = random.Random(seed)
        case = Case(seed, faults=False)
        case.with_cost = False
        case.fails = {i for i in range(case.n) if pick.random() < 0.05}
        case.seconds = [min(second, 0.01) for second in case.seconds]  # within the grace
        if not case.fails:
            continue
        with named(seed):
            ran = judge(case)
            assert ran is not None
            assert min(failure.index for failure in ran.failures.all) == min(case.fails)
