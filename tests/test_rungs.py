"""Which trials go on: the state machine against a count by hand, and its promises one by one."""

import math
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from fourfold.errors import Bug, OptionError, OptionTypeError
from fourfold.workloads.tune.rungs import Decision, Rungs, bracket_of, n_brackets, resources, shares

GO_ON, PAUSE = Decision.GO_ON, Decision.PAUSE
VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.5, math.nan, math.inf, -math.inf]) | st.floats(-3, 3)


def stopped(rungs: Rungs, values: list[float], step: int = 0) -> list[Decision]:
    """Trials 0, 1, … report one after the other and stop when they are told to."""
    decisions = [rungs.report(number, step, value) for number, value in enumerate(values)]
    for number, decision in enumerate(decisions):
        if decision is PAUSE:
            rungs.pause(number)
    return decisions


# ---- against a count by hand


class CountedByHand(RuleBasedStateMachine):
    """Every list of a rung is sorted anew at each question."""

    factor, levels = 3, (1, 3, 9)

    def __init__(self) -> None:
        super().__init__()
        self.rungs, self.again = Rungs(1, 27, self.factor), Rungs(1, 27, self.factor)
        self.values: list[dict[int, float]] = [{} for _ in self.levels]
        self.had: list[int] = []
        self.last: list[float] = []
        self.at: list[int] = []
        self.passed: list[tuple[int, int]] = []
        self.told: set[int] = set()
        self.waiting: set[int] = set()
        self.running: list[int] = []

    def best(self, level: int, is_last: bool = False) -> list[int]:
        """Those who may go on from a rung."""
        values = self.values[level]
        order = sorted(values, key=lambda number: (math.isnan(values[number]), -values[number]))
        n_passing = max(len(order) // self.factor, 1 if is_last else 0)
        return [number for number in order[:n_passing] if not math.isnan(values[number])]

    def climb(self, number: int, is_last: bool = False) -> Decision:
        while self.at[number] < len(self.levels) and self.had[number] >= self.levels[self.at[number]]:
            self.values[self.at[number]].setdefault(number, self.last[number])
            if number not in self.best(self.at[number], is_last):
                return PAUSE
            self.passed.append((self.at[number], number))
            self.at[number] += 1
        return GO_ON

    def promoted(self, is_last: bool) -> int | None:
        while True:
            found = [
                number
                for level in (2, 1, 0)
                for number in self.best(level, is_last)[:1] + self.best(level)
                if number in self.waiting and self.at[number] == level
            ]
            if not found:
                return None
            number = found[0]
            self.waiting.discard(number)
            self.passed.append((self.at[number], number))
            self.at[number] += 1
            if self.climb(number, is_last) is GO_ON:
                return number
            self.waiting.add(number)

    def reports(self, number: int, resource: int, value: float) -> None:
        self.had[number], self.last[number] = resource, value
        expected = self.climb(number)
        assert self.rungs.report(number, resource - 1, value) is expected
        assert self.again.report(number, resource - 1, value) is expected
        self.told.discard(number)
        if expected is PAUSE:
            self.told.add(number)

    def runs(self, data: st.DataObject, among: list[int]) -> int:
        return data.draw(st.sampled_from(sorted(among)))

    @rule(value=VALUES, resource=st.sampled_from([1, 1, 1, 2, 4, 9]))
    def a_new_trial_reports(self, value: float, resource: int) -> None:
        number = len(self.had)
        for each in (self.had, self.at):
            each.append(0)
        self.last.append(math.nan)
        self.running.append(number)
        self.reports(number, resource, value)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), value=VALUES, steps=st.integers(1, 9))
    def a_trial_reports_again(self, data: st.DataObject, value: float, steps: int) -> None:
        number = self.runs(data, self.running)
        self.reports(number, self.had[number] + steps, value)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), value=VALUES)
    def a_trial_begins_again_since_its_worker_has_died(self, data: st.DataObject, value: float) -> None:
        self.reports(self.runs(data, self.running), 1, value)

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def a_trial_stops_as_it_was_told(self, data: st.DataObject) -> None:
        number = self.runs(data, list(self.told))
        self.told.discard(number)
        self.running.remove(number)
        self.waiting.add(number)
        self.rungs.pause(number)
        self.again.pause(number)

    @rule(is_last=st.booleans())
    def a_worker_is_free(self, is_last: bool) -> None:
        if not is_last:
            any_best = any(n in self.waiting and self.at[n] == level for level in (0, 1, 2) for n in self.best(level))
            assert self.rungs.has_promotable == any_best
        expected = self.promoted(is_last)
        assert self.rungs.promotable(is_last) == expected
        assert self.again.promotable(is_last) == expected
        if expected is not None:
            self.running.append(expected)

    @precondition(lambda self: self.had)
    @rule(data=st.data(), has_failed=st.booleans())
    def a_trial_is_over(self, data: st.DataObject, has_failed: bool) -> None:
        number = self.runs(data, list(range(len(self.had))))
        for rungs in (self.rungs, self.again):
            rungs.fail(number) if has_failed else rungs.end(number)
        for values in self.values if has_failed else ():
            if number in values:
                values[number] = math.nan
        self.told.discard(number)
        self.waiting.discard(number)
        if number in self.running:
            self.running.remove(number)

    @invariant()
    def the_same_trials_wait(self) -> None:
        assert set(self.rungs.paused) == self.waiting
        assert len(self.rungs.paused) == len(self.waiting)

    @invariant()
    def no_trial_passes_a_rung_twice(self) -> None:
        assert len(set(self.passed)) == len(self.passed)


@pytest.mark.slow
def test_rungs_decide_as_a_count_by_hand_does_and_the_same_calls_have_the_same_answers() -> None:
    run_state_machine_as_test(CountedByHand, settings=settings(max_examples=50, stateful_step_count=30, deadline=None))


# ---- its promises


def test_a_trial_goes_on_at_once_when_it_is_in_the_best_third() -> None:
    assert stopped(Rungs(1, 9, 3), [0.1, 0.2, 0.3]) == [PAUSE, PAUSE, GO_ON]


def test_between_rungs_and_above_the_last_one_a_trial_goes_on() -> None:
    rungs = Rungs(2, 9, 3)
    stopped(rungs, [0.0] * 9, step=1)
    assert [rungs.report(9, step, -1.0) for step in (0, 6, 7, 8, 99)] == [GO_ON, PAUSE, PAUSE, PAUSE, PAUSE]
    assert [rungs.report(10, step, 1.0) for step in (0, 1, 2, 3, 4)] == [GO_ON] * 5
    assert Rungs(1, 2, 2).report(0, 1, 0.0) is PAUSE


def test_a_trial_that_waits_is_continued_when_others_that_are_worse_have_come() -> None:
    rungs = Rungs(1, 9, 3)
    assert stopped(rungs, [0.5]) == [PAUSE]
    assert rungs.report(1, 0, 0.4) is PAUSE
    assert rungs.promotable() is None
    assert rungs.report(2, 0, 0.3) is PAUSE
    assert rungs.has_promotable
    assert rungs.promotable() == 0
    assert not rungs.has_promotable
    assert rungs.promotable() is None


def test_no_trial_is_continued_before_it_has_stopped() -> None:
    rungs = Rungs(1, 9, 3)
    for number in range(3):
        rungs.report(number, 0, -number)
    assert rungs.promotable() is None
    rungs.pause(0)
    assert rungs.promotable() == 0


def test_the_highest_rung_comes_first() -> None:
    rungs = Rungs(1, 27, 3)
    assert stopped(rungs, [-float(number) for number in range(9)]) == [PAUSE] * 9
    assert [rungs.promotable() for _ in range(4)] == [0, 1, 2, None]
    for number in (0, 1, 2):
        assert rungs.report(number, 2, -number) is PAUSE
        rungs.pause(number)
    for number in (9, 10, 11):
        assert rungs.report(number, 0, -number) is PAUSE
    assert [rungs.promotable() for _ in range(3)] == [0, 3, None]


def test_of_equal_values_those_that_came_first_go_on() -> None:
    rungs = Rungs(1, 9, 3)
    stopped(rungs, [0.5] * 6)
    assert [rungs.promotable() for _ in range(3)] == [0, 1, None]


def test_nan_is_the_worst_and_never_goes_on() -> None:
    rungs = Rungs(1, 9, 3)
    assert stopped(rungs, [math.nan, math.nan, -math.inf]) == [PAUSE, PAUSE, GO_ON]
    nothing_else = Rungs(1, 9, 3)
    stopped(nothing_else, [math.nan] * 9)
    assert nothing_else.promotable() is None
    assert nothing_else.promotable(is_last=True) is None


def test_a_trial_that_has_ended_is_not_continued_and_others_are_still_compared_with_it() -> None:
    rungs = Rungs(1, 9, 3)
    stopped(rungs, [0.9, 0.8])
    rungs.end(0)
    rungs.report(2, 0, 0.1)
    assert rungs.promotable() is None
    assert rungs.paused == [1]


def test_a_trial_that_has_failed_makes_room_for_the_next_one() -> None:
    rungs = Rungs(1, 9, 3)
    assert stopped(rungs, [0.1, 0.2, 0.9]) == [PAUSE, PAUSE, GO_ON]
    rungs.fail(2)
    assert rungs.promotable() == 1
    rungs.fail(77)  # it has never reported


def test_a_trial_that_runs_again_from_its_beginning_keeps_its_place() -> None:
    rungs = Rungs(1, 9, 3)
    stopped(rungs, [0.1, 0.2, 0.9])
    assert rungs.report(2, 0, 0.0) is GO_ON, "it had passed this rung"
    assert rungs.report(2, 1, 0.0) is GO_ON
    assert rungs.report(2, 2, 0.0) is PAUSE


def test_a_trial_that_goes_on_though_it_was_told_to_stop_is_told_again_until_it_is_among_the_best() -> None:
    rungs = Rungs(1, 9, 3)
    assert [rungs.report(0, step, 0.5) for step in (0, 1)] == [PAUSE, PAUSE]
    stopped(rungs, [math.nan, 0.1, 0.2])
    assert rungs.report(0, 1, 0.5) is GO_ON


def test_a_trial_that_reports_waits_no_more() -> None:
    rungs = Rungs(1, 9, 3)
    stopped(rungs, [0.3, 0.2])
    assert rungs.report(0, 1, 0.3) is PAUSE
    assert rungs.paused == [1]
    rungs.report(2, 0, 0.1)
    assert rungs.promotable() is None
    assert rungs.report(0, 1, 0.3) is GO_ON


def test_a_trial_that_reports_seldom_is_compared_at_each_rung_that_it_has_come_to() -> None:
    rungs = Rungs(1, 27, 3)
    assert [rungs.report(number, 4, value) for number, value in enumerate([0.1, 0.2, 0.9])] == [PAUSE] * 3
    rungs.pause(2)
    assert rungs.promotable() is None, "it is the best at the lowest rung, and the only one at the next"
    assert rungs.promotable(is_last=True) == 2


def test_the_last_time_the_best_goes_on_though_it_is_alone() -> None:
    rungs = Rungs(1, 9, 3)
    assert stopped(rungs, [0.1, 0.2]) == [PAUSE, PAUSE]
    assert rungs.promotable() is None
    assert rungs.promotable(is_last=True) == 1
    assert rungs.promotable(is_last=True) is None
    assert rungs.report(1, 2, 0.2) is PAUSE
    rungs.pause(1)
    assert rungs.promotable(is_last=True) == 1
    assert rungs.report(1, 8, 0.2) is GO_ON


def test_trials_of_an_earlier_call_are_recalled_as_they_were() -> None:
    """Those that are over, that wait, that had failed, that were told nothing yet: what comes then is the same as without it."""
    reports: dict[int, dict[int, float]] = {}
    before, after = Rungs(1, 27, 3), Rungs(1, 27, 3)

    def report(number: int, step: int, value: float) -> Decision:
        reports.setdefault(number, {})[step] = value
        return before.report(number, step, value)

    for number, value in enumerate([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, math.nan]):
        assert report(number, 0, value) is PAUSE
        before.pause(number)
    assert [before.promotable() for _ in range(3)] == [0, 1, 2]
    assert report(0, 1, 0.9) is GO_ON
    for number in (0, 1):
        assert report(number, 2, number) is PAUSE
        before.pause(number)
    before.fail(2)
    for number, values in reports.items():
        after.recall(number, values, waits=number in before.paused)
    after.fail(2)
    after.recall(10, {})
    assert after.paused == before.paused == [1, 0, 3, 4, 5, 6, 7, 8, 9]
    for rungs in (before, after):
        assert rungs.promotable() == 3
        assert [rungs.report(number, 0, value) for number, value in ((11, 5.0), (12, 0.0))] == [GO_ON, PAUSE]
        assert rungs.report(11, 2, 0.5) is PAUSE
        assert rungs.promotable() == 1


def test_a_trial_that_ran_when_the_call_was_killed_is_told_at_its_rung_as_if_it_had_just_come() -> None:
    rungs = Rungs(1, 9, 3)
    rungs.recall(0, {0: 0.1})
    rungs.recall(1, {0: 0.5, 1: 0.5})
    assert rungs.paused == []
    assert rungs.report(0, 1, 0.1) is PAUSE
    assert rungs.report(1, 1, 0.5) is GO_ON, "it had passed the rung at 1"


def test_only_who_was_told_to_pause_may_wait() -> None:
    rungs = Rungs(1, 2, 3)
    stopped(rungs, [0.1, 0.2, 0.3])
    for number in (2, 3):  # one has passed the only rung, one has not reported
        with pytest.raises(Bug, match=f"trial {number} was not told to pause"):
            rungs.pause(number)
    assert rungs.report(4, 0, 0.0) is PAUSE
    rungs.pause(4)
    assert rungs.paused == [1, 0, 4]


def test_of_trials_in_no_order_little_more_than_a_third_passes() -> None:
    passed = []
    for seed in range(20):
        rng, rungs = random.Random(seed), Rungs(1, 9, 3)
        n_passed = 0
        for number in range(400):
            if rungs.report(number, 0, rng.random()) is GO_ON:
                n_passed += 1
            else:
                rungs.pause(number)
            n_passed += rungs.promotable() is not None
        passed.append(n_passed / 400)
    assert min(passed) >= 400 // 3 / 400
    assert max(passed) <= 1 / 3 + 1.5 / math.sqrt(400), "mistakes grow as the square root of the number of trials"


# ---- the resources and brackets


def test_rungs_end_below_the_highest_resource() -> None:
    assert resources(1, 81, 3) == [1, 3, 9, 27]
    assert resources(1, 82, 3) == [1, 3, 9, 27, 81]
    assert resources(5, 100, 4) == [5, 20, 80]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ((0, 9, 3), OptionError, "min_resource=0 must be at least 1"),
        ((1, 9, 1), OptionError, "reduction_factor=1 must be at least 2"),
        ((9, 9, 3), OptionError, "max_resource=9 must be greater than min_resource=9: nothing could be stopped"),
        ((1.5, 9, 3), OptionTypeError, "min_resource=1.5 must be a whole number, not float"),
        ((1, "auto", 3), OptionTypeError, "max_resource='auto' must be a whole number, not str"),
        ((1, 9, 3.0), OptionTypeError, "reduction_factor=3.0 must be a whole number, not float"),
    ],
)
def test_resources_that_cannot_be_are_refused_by_name(given: tuple, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        Rungs(*given)


def test_brackets_are_as_in_the_paper_on_hyperband() -> None:
    """Its table 1: R = 81, η = 3."""
    assert n_brackets(1, 81, 3) == 5
    assert shares(5, 3) == [81, 34, 15, 8, 5]
    assert n_brackets(1, 243, 3) == 6, "the logarithm of floats says 4.999"


def test_each_round_of_trials_has_its_share_of_every_bracket_and_so_has_each_part_of_it() -> None:
    parts = shares(5, 3)
    total = sum(parts)
    for first in (0, total, 5 * total):
        found = [bracket_of(first + number, parts) for number in range(total)]
        assert [found.count(bracket) for bracket in range(5)] == parts
        for bracket, part in enumerate(parts):
            assert abs(found[:30].count(bracket) - 30 * part / total) < 1.5


def test_trials_are_compared_within_their_bracket_and_the_last_bracket_stops_none() -> None:
    rungs = Rungs(1, 9, 3, n_brackets=n_brackets(1, 9, 3))
    parts = shares(3, 3)
    of = [[number for number in range(60) if bracket_of(number, parts) == bracket] for bracket in range(3)]
    assert [rungs.report(number, 0, 0.0) for number in of[0][:3]] == [PAUSE] * 3
    assert rungs.report(of[1][0], 0, 9.0) is GO_ON
    assert [rungs.report(number, 2, 9.0) for number in of[1][:3]] == [PAUSE] * 3
    assert {rungs.report(number, step, -1.0) for number in of[2] for step in range(9)} == {GO_ON}
    for number in (of[0][0], of[1][0]):
        rungs.pause(number)
    assert [rungs.promotable() for _ in range(3)] == [of[1][0], of[0][0], None]
