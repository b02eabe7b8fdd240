"""The schedule, event by event. What it does under thousands of seeds is in test_simulation.py."""

import random
import time
from collections import deque
from typing import Any

import pytest

from fourfold.aggregate.order import InOrder
from fourfold.distribute.admission import CALM
from fourfold.distribute.blame import CRASHES_ALLOWED, WITNESSES
from fourfold.distribute.events import (
    Cancel,
    Died,
    DoubtOver,
    Finished,
    MemoryRoom,
    Partly,
    Settle,
    Slots,
    Stop,
    Submit,
    Take,
    Taken,
    Unreadable,
    Unstarted,
)
from fourfold.distribute.schedule import HALVED_ABOVE, Rules, Schedule
from fourfold.errors import Bug


def step(schedule: Schedule, *events: Any) -> list[Any]:
    actions: list[Any] = []
    for event in events:
        actions += schedule.step(event)
    return actions


def test_the_first_chunk_is_one_item_and_chunks_grow_towards_the_service_time() -> None:
    schedule = Schedule(Rules(total=100_000))
    assert step(schedule, Slots(1, prefetch=False)) == [Take(1)]
    assert step(schedule, Taken(1, False)) == [Submit(0, 0, 1)]
    (take,) = step(schedule, Finished(0, 1, elapsed_s=0.001))
    assert take == Take(16)
    step(schedule, Taken(16, False))
    assert step(schedule, Finished(1, 16, elapsed_s=0.016)) == [Take(50)]


def test_fast_chunks_are_prefetched_and_slow_ones_are_not() -> None:
    schedule = Schedule(Rules(total=1000, chunk=1))
    step(schedule, Slots(1), Taken(1, False))
    actions = step(schedule, Finished(0, 1, elapsed_s=0.001))
    actions += step(schedule, Taken(1, False), Taken(1, False))
    assert [type(action) for action in actions] == [Take, Submit, Take, Submit]
    slow = Schedule(Rules(total=1000, chunk=1))
    step(slow, Slots(1), Taken(1, False))
    step(slow, Finished(0, 1, elapsed_s=10.0))
    assert [type(action) for action in step(slow, Taken(1, False))] == [Submit]


def test_a_chunk_is_bounded_in_bytes() -> None:
    schedule = Schedule(Rules(total=1000))
    step(schedule, Slots(1, prefetch=False), Taken(1, False))
    (take,) = step(schedule, Finished(0, 1, elapsed_s=1e-4, size_bytes=4 << 20))
    assert take == Take(4)


@pytest.mark.parametrize(
    ("rules", "most"),
    [
        (Rules(total=10**7), 1 << 18),  # a list whose values make another list
        (Rules(total=10**7, bounded=True), 1 << 16),  # a stream: values are let go
        (Rules(), 1 << 16),  # a generator: items are in memory as chunks only
    ],
)
def test_a_chunk_of_items_that_take_no_time_is_bounded_in_items(rules: Rules, most: int) -> None:
    schedule = Schedule(rules)
    take = step(schedule, Slots(1, prefetch=False))[0]
    for id in range(7):
        step(schedule, Taken(take.n_items, False))
        (take,) = step(schedule, Finished(id, take.n_items, elapsed_s=take.n_items * 1e-9))
    assert take == Take(most)


def test_the_tail_is_cut_small() -> None:
    schedule = Schedule(Rules(total=200))
    step(schedule, Slots(4), Taken(1, False), Taken(1, False), Taken(1, False), Taken(1, False))
    sizes = []
    at = 4
    for id in range(4):
        for action in step(schedule, Finished(id, 1, elapsed_s=0.004)):
            while isinstance(action, Take) and at < 200:
                got = min(action.n_items, 200 - at)
                at += got
                sizes.append(got)
                action = next((a for a in step(schedule, Taken(got, False)) if isinstance(a, Take)), None)
    assert sizes[0] <= 200 / 12 + 1
    assert sizes == sorted(sizes, reverse=True)


def test_costly_items_come_first_and_alone() -> None:
    schedule = Schedule(Rules(total=6, costs=[100.0, 50.0, 1.0, 1.0, 1.0, 1.0]))
    assert step(schedule, Slots(1, prefetch=False)) == [Take(1)]
    step(schedule, Taken(1, False))
    assert step(schedule, Finished(0, 1, elapsed_s=1.0)) == [Take(1)]
    step(schedule, Taken(1, False))
    assert step(schedule, Finished(1, 1, elapsed_s=0.5)) == [Take(1)]  # 10 ms each: 1 fits into a third of 50 ms


def test_an_unfinished_rest_is_run_again() -> None:
    schedule = Schedule(Rules(total=10, chunk=10))
    step(schedule, Slots(1), Taken(10, False))
    assert Submit(1, 4, 6) in step(schedule, Finished(0, 4))


def test_a_retry_is_an_attempt_and_the_last_one_is_final() -> None:
    schedule = Schedule(Rules(total=1, retries=1))
    step(schedule, Slots(1), Taken(1, False), Taken(0, True))
    assert step(schedule, Finished(0, 1, [(0, True)])) == [Submit(1, 0, 1)]
    assert step(schedule, Finished(1, 1, [(0, True)])) == [Settle(0, 2), Stop("failed")]


def test_a_death_with_several_suspects_runs_each_of_them_alone_and_blames_nobody_yet() -> None:
    schedule = Schedule(Rules(total=8, chunk=8, stop_at_failure=False))
    step(schedule, Slots(4), Taken(8, False), Taken(0, True))
    actions = step(schedule, Died(0, first=2, n_items=2))
    assert not any(isinstance(action, Settle) for action in actions)
    assert {(a.start, a.n_items) for a in actions if isinstance(a, Submit)} == {(0, 2), (2, 1), (3, 1), (4, 4)}


def test_an_item_is_blamed_when_it_killed_its_worker_twice_alone() -> None:
    schedule = Schedule(Rules(total=1, stop_at_failure=False))
    step(schedule, Slots(1), Taken(1, False), Taken(0, True))
    assert step(schedule, Died(0, 0, 1)) == [Submit(1, 0, 1, fresh=True)]
    assert step(schedule, Died(1, 0, 1)) == [Settle(0, 2), Stop("")]


def test_suspects_of_one_death_run_alone_and_only_the_one_that_dies_again_in_a_fresh_worker() -> None:
    schedule = Schedule(Rules(total=2, chunk=2, stop_at_failure=False))
    step(schedule, Slots(2), Taken(2, False), Taken(0, True))
    assert step(schedule, Died(0, first=0, n_items=2)) == [Submit(1, 0, 1), Submit(2, 1, 1)]
    assert step(schedule, Finished(1, 1)) == []
    assert step(schedule, Died(2, 0, 1)) == [Submit(3, 1, 1, fresh=True)]


def test_a_death_among_neighbours_does_not_count_against_an_item() -> None:
    schedule = Schedule(Rules(total=2, chunk=2, stop_at_failure=False))
    step(schedule, Slots(1), Taken(2, False), Taken(0, True))
    step(schedule, Died(0, first=0, n_items=2))
    actions = step(schedule, Died(1, 0, 1))
    assert not any(isinstance(action, Settle) for action in actions), "it has died alone only once"


def test_what_may_have_had_effects_is_not_run_again_when_it_must_not() -> None:
    schedule = Schedule(Rules(total=4, chunk=4, stop_at_failure=False, rerun_after_loss=False))
    step(schedule, Slots(1), Taken(4, False), Taken(0, True))
    actions = step(schedule, Died(0, first=1, n_items=1))
    assert [a.position for a in actions if isinstance(a, Settle)] == [0, 1]
    assert Submit(1, 2, 2) in actions


def test_what_outlived_its_worker_is_done_and_only_the_rest_of_its_ticket_runs_again() -> None:
    schedule = Schedule(Rules(total=8, chunk=8, stop_at_failure=False, bounded=True))
    step(schedule, Slots(4), Taken(8, False), Taken(0, True))
    assert step(schedule, Partly(0, 2), Partly(0, 1, [(0, False)])) == [Settle(2, 1)]
    actions = step(schedule, Died(0, first=1, n_items=1))
    assert {(a.start, a.n_items) for a in actions if isinstance(a, Submit)} == {(3, 1), (4, 1), (5, 3)}
    assert (schedule.tally.finished, schedule.tally.failures, schedule.tally.deaths) == (3, 1, 1)
    schedule.validate()


def test_what_outlived_its_worker_is_not_told_of_as_one_that_must_not_run_again() -> None:
    schedule = Schedule(Rules(total=6, chunk=6, stop_at_failure=False, rerun_after_loss=False))
    step(schedule, Slots(1), Taken(6, False), Taken(0, True))
    actions = step(schedule, Partly(0, 2), Died(0, first=1, n_items=1))
    assert [a.position for a in actions if isinstance(a, Settle)] == [2, 3]
    assert Submit(1, 4, 2) in actions


def test_a_death_between_two_items_is_nobodys_fault() -> None:
    schedule = Schedule(Rules(total=8, chunk=8, stop_at_failure=False))
    step(schedule, Slots(1), Taken(8, False), Taken(0, True))
    assert step(schedule, Partly(0, 3), Died(0)) == [Submit(1, 3, 5)]
    assert schedule._blame.allowed() == CRASHES_ALLOWED + 1


def test_a_death_among_neighbours_that_outlived_it_does_not_count_against_an_item() -> None:
    schedule = Schedule(Rules(total=2, chunk=2, stop_at_failure=False))
    step(schedule, Slots(1), Taken(2, False), Taken(0, True))
    assert step(schedule, Partly(0, 1), Died(0, 0, 1)) == [Submit(1, 1, 1, fresh=True)]
    assert step(schedule, Died(1, 0, 1)) == [Submit(2, 1, 1, fresh=True)], "it has died alone only once"
    assert step(schedule, Died(2, 0, 1)) == [Settle(1, 2), Stop("")]


def test_workers_that_die_again_and_again_end_the_run() -> None:
    schedule = Schedule(Rules(total=1))
    step(schedule, Slots(1), Taken(1, False))
    ends: list[Any] = []
    for _ in range(20):
        if ends:
            break
        ends = [action for action in step(schedule, Died()) if isinstance(action, Cancel)]
    assert schedule.stopping == "dying"


def die_on_and_on(workers: int, each_s: float, n_well: int = 0, was_sent: bool = False) -> tuple[float, int, int]:
    """All items kill their workers, after so many that end well: when the run ends, counted from then, with how many deaths.

    Also how many items were blamed until then.
    """
    schedule = Schedule(Rules(total=10_000, chunk=1, stop_at_failure=False))
    now = 0.0
    events: list[Any] = [Slots(workers)]
    flying: list[tuple[int, int]] = []
    n_blamed = 0
    while True:
        for action in schedule.step(events.pop(0)):
            match action:
                case Take(count):
                    events.insert(0, Taken(count, exhausted=False))
                case Submit(id, start, _):
                    flying.append((id, start))
                case Settle():
                    n_blamed += 1
                case Stop(reason):
                    assert reason == "dying"
                    return now, schedule.tally.deaths, n_blamed
            if schedule.stopping:
                return now, schedule.tally.deaths, n_blamed
        if not events:
            running, flying = sorted(flying)[:workers], sorted(flying)[workers:]
            is_well = running[0][1] < n_well
            now = 0.0 if is_well else now + each_s
            events = [
                Finished(id, 1, (), 0.01) if start < n_well else Died(id, 0, 1, at_s=now, was_sent=was_sent)
                for id, start in running
            ]


@pytest.mark.fault("F15")
@pytest.mark.parametrize("n_well", [0, 20])
@pytest.mark.parametrize("workers", [1, 2, 8, 64])
@pytest.mark.parametrize("each_s", [0.01, 0.1, 0.5, 1.0, 1.6])
@pytest.mark.parametrize("was_sent", [False, True])
def test_workers_that_die_on_and_on_end_the_run_within_ten_seconds(
    workers: int, each_s: float, n_well: int, was_sent: bool
) -> None:
    ends_s, n_deaths, _ = die_on_and_on(workers, each_s, n_well, was_sent)
    assert ends_s <= 10.0 + (3 if was_sent else 2) * each_s
    assert n_deaths > max(3, 2 * workers)


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("was_sent", [False, True])
def test_workers_that_take_four_seconds_to_die_end_it_later_but_do(workers: int, was_sent: bool) -> None:
    ends_s, _, n_blamed = die_on_and_on(workers, 4.0, was_sent=was_sent)
    assert ends_s <= 12.0
    assert n_blamed <= 2 * workers


@pytest.mark.parametrize("was_sent", [False, True])
@pytest.mark.parametrize("each_s", [1.2, 2.4])
def test_two_deadly_items_at_the_beginning_are_no_reason_to_give_up_however_long_they_take(
    each_s: float, was_sent: bool
) -> None:
    schedule = Schedule(Rules(total=5, chunk=1, stop_at_failure=False))
    now, blamed = 0.0, []
    events: list[Any] = [Slots(1, prefetch=False)]
    while True:
        actions = schedule.step(events.pop(0))
        blamed += settled(actions)
        if any(isinstance(action, Stop) for action in actions):
            break
        if any(isinstance(action, Take) for action in actions):
            events.insert(0, Taken(1, False) if schedule.taken < 5 else Taken(0, True))
        if not events:
            now += each_s
            ((id, flight),) = schedule._flights.items()
            dies = flight.start < 2
            events = [Died(id, 0, 1, at_s=now, was_sent=was_sent) if dies else Finished(id, 1, (), 0.01), DoubtOver()]
    assert (schedule.stopping, [position for position, _ in blamed]) == ("", [0, 1])


@pytest.mark.fault("F13")
@pytest.mark.parametrize("chunk", [1, 7, 50])
@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_deadly_items_in_a_row_are_found_one_by_one_whoever_dies_first(workers: int, chunk: int) -> None:
    deadly = range(35, 55)
    for seed in range(20):
        pick = random.Random(seed)
        schedule = Schedule(Rules(total=400, chunk=chunk, stop_at_failure=False))
        events: list[Any] = [Slots(workers)]
        flying: dict[int, range] = {}
        settled: list[int] = []
        reason = None
        while reason is None:
            for action in schedule.step(events.pop(0)):
                match action:
                    case Take(count):
                        taken = min(count, 400 - schedule.taken)
                        events.insert(0, Taken(taken, exhausted=not taken))
                    case Submit(id, start, count):
                        flying[id] = range(start, start + count)
                    case Settle(position, _):
                        settled.append(position)
                    case Stop(why):
                        reason = why
            if not events and reason is None:
                id = pick.choice(sorted(flying)[:workers])  # the others wait behind these
                items = flying.pop(id)
                first = next((offset for offset, item in enumerate(items) if item in deadly), None)
                events.append(Finished(id, len(items), (), 0.001 * len(items)) if first is None else Died(id, first, 1))
        assert (reason, sorted(settled)) == ("", list(deadly))


def in_doubt() -> Schedule:
    """Item 0 has died alone as often as it may, of a thousand; tickets 2 and 3 are in flight, and nothing has ended."""
    schedule = Schedule(Rules(total=1000, chunk=1, stop_at_failure=False))
    step(schedule, Slots(2), Taken(1, False), Taken(1, False), Died(0, 0, 1), Died(2, 0, 1), Taken(1, False))
    assert list(schedule._blame.doubted()) == [0]
    return schedule


def settled(actions: list[Any]) -> list[tuple[int, int]]:
    return [(action.position, action.attempts) for action in actions if isinstance(action, Settle)]


def next_ends(schedule: Schedule) -> list[Any]:
    """The oldest ticket ends well, and items are taken for those that are asked for."""
    actions = step(schedule, Finished(min(schedule._flights), 1, elapsed_s=1.0))
    while any(isinstance(action, Take) for action in actions[-1:]):
        actions += step(schedule, Taken(1, False))
    return actions


def test_an_item_that_died_often_enough_is_blamed_when_its_witnesses_have_ended_and_does_not_run_meanwhile() -> None:
    schedule = in_doubt()
    for _ in range(WITNESSES - 1):
        actions = next_ends(schedule)
        assert settled(actions) == []
        assert (0, 1) not in flying(actions)
    assert settled(next_ends(schedule)) == [(0, CRASHES_ALLOWED)]


def test_an_item_in_doubt_runs_again_when_others_prove_to_have_died_of_outsiders() -> None:
    schedule = in_doubt()
    victim = min(schedule._flights)
    start = schedule._flights[victim].start
    assert (start, 1) in flying(step(schedule, Died(victim, 0, 1)))
    again = next(id for id, flight in schedule._flights.items() if flight.start == start)
    actions = step(schedule, Finished(again, 1, elapsed_s=1.0), DoubtOver(), Slots(2))
    assert settled(actions) == []
    assert schedule._again[0] == (0, 1) or (0, 1) in flying(actions)


def test_an_item_in_doubt_is_blamed_when_the_time_for_it_is_over() -> None:
    assert settled(step(in_doubt(), DoubtOver())) == [(0, CRASHES_ALLOWED)]


@pytest.mark.parametrize("was_sent", [True, False])
def test_an_item_whose_workers_were_all_killed_by_signals_runs_once_more_after_its_witnesses(was_sent: bool) -> None:
    schedule = Schedule(Rules(total=1000, chunk=1, stop_at_failure=False))

    def after(event: Any) -> list[Any]:
        actions = step(schedule, event)
        while any(isinstance(action, Take) for action in actions[-1:]):
            actions += step(schedule, Taken(1, False))
        return actions

    def dies(was_sent: bool) -> list[Any]:
        (last,) = (id for id, flight in schedule._flights.items() if flight.start == 0)
        return after(Died(last, 0, 1, was_sent=was_sent))

    after(Slots(2))
    for _ in range(CRASHES_ALLOWED):
        assert settled(dies(was_sent=True)) == []
    assert settled(after(DoubtOver())) == [], "who killed it may have gone"
    next_ends(schedule)
    assert settled(dies(was_sent)) == []
    assert settled(after(DoubtOver())) == [(0, CRASHES_ALLOWED + 1)]


def test_an_item_in_doubt_is_blamed_when_a_worker_has_nothing_else_to_do() -> None:
    schedule = in_doubt()
    step(schedule, Taken(0, exhausted=True))
    actions: list[Any] = []
    while len(schedule._flights) == 2:
        actions += step(schedule, Finished(min(schedule._flights), 1, elapsed_s=1.0))
    assert settled(actions) == [(0, CRASHES_ALLOWED)]


def test_a_failure_of_a_later_item_does_not_hide_that_of_one_in_doubt() -> None:
    schedule = Schedule(Rules(total=1000, chunk=1))
    step(schedule, Slots(2), Taken(1, False), Taken(1, False), Died(0, 0, 1), Died(2, 0, 1), Taken(1, False))
    actions = step(schedule, Finished(1, 1, [(0, False)], elapsed_s=1.0))
    assert settled(actions) == [(1, 1), (0, CRASHES_ALLOWED)]


def test_an_item_in_doubt_is_told_of_when_the_run_is_given_up_before_it_could_run_once_more() -> None:
    schedule = Schedule(Rules(total=1000, chunk=1, stop_at_failure=False, max_failures=0))
    step(schedule, Slots(2), Taken(1, False), Taken(1, False))
    step(schedule, Died(0, 0, 1, was_sent=True), Died(2, 0, 1, was_sent=True), Taken(1, False))
    actions = step(schedule, Finished(1, 1, [(0, False)], elapsed_s=1.0))
    assert settled(actions) == [(1, 1), (0, CRASHES_ALLOWED)]


def search(n_items: int, poison: set[int], workers: int, seed: int, chunk: int | None) -> tuple[str, list[int], int, int]:
    """Run items on an engine that does not know which one killed: the reason, who is blamed, tickets and deaths."""
    pick = random.Random(seed)
    schedule = Schedule(Rules(total=n_items, chunk=chunk, stop_at_failure=False))
    events: list[Any] = [Slots(workers)]
    flights: dict[int, range] = {}
    blamed: list[int] = []
    n_tickets = 0
    done: set[int] = set()
    while True:
        for action in schedule.step(events.pop(0)):
            match action:
                case Take(count):
                    taken = min(count, n_items - schedule.taken)
                    events.insert(0, Taken(taken, exhausted=not taken))
                case Submit(id, start, count):
                    flights[id] = range(start, start + count)
                    n_tickets += 1
                case Settle(position, _):
                    blamed.append(position)
                case Stop(reason):
                    assert reason or done == set(range(n_items)) - poison
                    return reason, sorted(blamed), n_tickets, schedule.tally.deaths
        schedule.validate()
        if not events:
            id = pick.choice(sorted(flights)[:workers])  # the others wait behind these
            items = flights.pop(id)
            if poison.isdisjoint(items):
                done.update(items)
                events.append(Finished(id, len(items), (), 1e-5 * len(items)))
            else:
                events.append(Died(id, 0, len(items)))


@pytest.mark.fault("F13")
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_deadly_item_among_thousands_is_found_by_halves_when_nobody_knows_which_one_ran(workers: int) -> None:
    n_halvings = (4000 // HALVED_ABOVE).bit_length()
    for seed in range(30):
        deadly = random.Random(seed).randrange(4000)
        reason, blamed, n_tickets, n_deaths = search(4000, {deadly}, workers, seed, chunk=4000)
        assert (reason, blamed) == ("", [deadly])
        assert n_deaths <= 1 + n_halvings + CRASHES_ALLOWED
        assert n_tickets <= 1 + 2 * n_halvings + HALVED_ABOVE + CRASHES_ALLOWED


@pytest.mark.fault("F13")
@pytest.mark.parametrize("chunk", [None, 300, 4000, 1 << 16])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_several_deadly_items_among_thousands_end_no_run_when_nobody_knows_which_one_ran(workers: int, chunk: int) -> None:
    n_items = chunk or 4000
    for seed in range(5):
        deadly = set(random.Random(seed).sample(range(n_items), 1 + seed % 4))
        assert search(n_items, deadly, workers, seed, chunk)[:2] == ("", sorted(deadly))


def test_the_search_by_halves_ends_no_run_when_each_first_half_kills() -> None:
    assert search(1 << 16, {0}, workers=1, seed=0, chunk=1 << 16)[:2] == ("", [0])


def test_an_unreadable_chunk_is_halved_until_one_item_is_left() -> None:
    schedule = Schedule(Rules(total=4, chunk=4, stop_at_failure=False))
    step(schedule, Slots(8), Taken(4, False), Taken(0, True))
    assert step(schedule, Unreadable(0)) == [Submit(1, 0, 2), Submit(2, 2, 2)]
    assert step(schedule, Unreadable(1)) == [Submit(3, 0, 1), Submit(4, 1, 1)]
    assert step(schedule, Unreadable(3)) == [Settle(0, 1)]


def test_a_ticket_that_did_not_start_is_no_attempt() -> None:
    schedule = Schedule(Rules(total=1))
    step(schedule, Slots(1), Taken(1, False), Taken(0, True))
    assert step(schedule, Unstarted(0)) == [Submit(1, 0, 1)]
    assert schedule.tally.retries == 0


def test_nothing_may_come_after_the_end() -> None:
    schedule = Schedule(Rules(total=0))
    assert step(schedule, Slots(1)) == [Take(1)]
    assert step(schedule, Taken(0, True)) == [Stop("")]
    with pytest.raises(Bug, match="ended"):
        schedule.step(Slots(2))


def test_the_invariants_see_an_item_in_two_places() -> None:
    schedule = Schedule(Rules(total=4, chunk=2))
    step(schedule, Slots(1), Taken(2, False))
    schedule._again.append((0, 1))
    with pytest.raises(Bug, match="two places"):
        schedule.validate()


def flying(actions: list[Any]) -> list[tuple[int, int]]:
    return [(action.start, action.n_items) for action in actions if isinstance(action, Submit)]


def four_in_flight(**rules: Any) -> Schedule:
    """Tickets 0 to 3, one item each, of eight that are slow enough not to be sent ahead."""
    schedule = Schedule(Rules(total=8, chunk=1, stop_at_failure=False, **rules))
    step(schedule, Slots(4), *[Taken(1, False)] * 4)
    return schedule


def test_an_item_that_died_of_memory_runs_again_when_nothing_else_runs() -> None:
    schedule = four_in_flight()
    assert step(schedule, Died(1, 0, 1, out_of_memory=True)) == [Cancel((0, 2, 3), hard=False)]
    assert step(schedule, Finished(0, 1, elapsed_s=1.0), Unstarted(2)) == []
    assert step(schedule, Finished(3, 1, elapsed_s=1.0)) == [Submit(4, 1, 1)]
    assert flying(step(schedule, Slots(4))) == [], "nothing beside it"
    assert step(schedule, Finished(4, 1, elapsed_s=1.0))[0] == Submit(5, 2, 1)


def test_an_item_is_blamed_when_it_died_of_memory_alone_and_its_crashes_do_not_count() -> None:
    schedule = Schedule(Rules(total=1, stop_at_failure=False))
    step(schedule, Slots(1), Taken(1, False), Taken(0, True))
    assert step(schedule, Died(0, 0, 1)) == [Submit(1, 0, 1, fresh=True)]
    assert step(schedule, Died(1, 0, 1, out_of_memory=True)) == [Submit(2, 0, 1, fresh=True)]
    assert step(schedule, Died(2, 0, 1, out_of_memory=True)) == [Settle(0, 2), Stop("")]


def test_an_item_that_fails_once_for_each_cause_succeeds() -> None:
    schedule = Schedule(Rules(total=1, retries=1))
    step(schedule, Slots(1), Taken(1, False), Taken(0, True))
    assert step(schedule, Finished(0, 1, [(0, True)])) == [Submit(1, 0, 1)]
    assert step(schedule, Died(1, 0, 1)) == [Submit(2, 0, 1, fresh=True)]
    assert step(schedule, Died(2, 0, 1, out_of_memory=True)) == [Submit(3, 0, 1, fresh=True)]
    assert step(schedule, Finished(3, 1)) == [Stop("")]


def test_a_death_of_memory_halves_the_workers_until_enough_tickets_have_ended_well() -> None:
    schedule = four_in_flight()
    step(schedule, Died(3, 0, 1, out_of_memory=True), *[Finished(id, 1, elapsed_s=1.0) for id in range(3)])
    actions = step(schedule, Finished(4, 1, elapsed_s=1.0), Taken(1, False), Taken(1, False))
    assert flying(actions) == [(4, 1), (5, 1)], "two of four workers"
    assert schedule.tally.memory_slots == 2
    for id in range(5, 5 + 2 * CALM - 4):
        assert schedule._limit() == 2
        step(schedule, Finished(id, 1, elapsed_s=1.0), Taken(1, False))
    assert schedule._limit() == 3


def test_what_must_not_run_twice_is_blamed_at_its_first_death_of_memory() -> None:
    schedule = Schedule(Rules(total=4, chunk=4, stop_at_failure=False, rerun_after_loss=False))
    step(schedule, Slots(4), Taken(4, False), Taken(0, True))
    actions = step(schedule, Died(0, first=1, n_items=1, out_of_memory=True))
    assert [a.position for a in actions if isinstance(a, Settle)] == [0, 1]
    assert Submit(1, 2, 2) in actions


def test_fewer_items_run_when_memory_has_room_for_fewer_and_never_none() -> None:
    schedule = four_in_flight()
    assert step(schedule, MemoryRoom(2)) == [Cancel((2, 3), hard=False)]
    assert step(schedule, Finished(3, 1, elapsed_s=1.0), Unstarted(2)) == []
    assert step(schedule, MemoryRoom(0)) == [Cancel((1,), hard=False)]
    assert step(schedule, Finished(0, 1, elapsed_s=1.0)) == []
    assert flying(step(schedule, Finished(1, 1, elapsed_s=1.0))) == [(2, 1)], "one runs whatever there is"


def test_more_items_run_again_only_when_there_is_room_for_one_more_than_that() -> None:
    schedule = four_in_flight()
    step(schedule, MemoryRoom(1))
    step(schedule, MemoryRoom(2))
    assert schedule._limit() == 1, "as much as it takes, and nothing in hand"
    step(schedule, MemoryRoom(3))
    assert schedule._limit() == 2
    step(schedule, MemoryRoom(100), MemoryRoom(100))
    assert schedule._limit() == 4


def test_when_memory_is_nearly_gone_the_youngest_is_stopped_and_nobody_is_blamed() -> None:
    schedule = four_in_flight()
    assert step(schedule, MemoryRoom(4, short=True)) == [Cancel((3,), hard=False), Cancel((3,), hard=True)]
    assert flying(step(schedule, Died(3, 0, 1))) == []
    assert schedule.tally.deaths == 0
    assert flying(step(schedule, Finished(0, 1, elapsed_s=1.0))) == [(3, 1)]
    assert step(schedule, Died(4, 0, 1)) == [Submit(5, 3, 1, fresh=True)], "its first death"


def test_one_after_the_other_is_stopped_while_memory_is_nearly_gone_and_the_oldest_never() -> None:
    schedule = four_in_flight()
    step(schedule, MemoryRoom(1))
    stopped = [step(schedule, MemoryRoom(1, short=True)) for _ in range(5)]
    assert stopped == [[Cancel((id,), hard=True)] for id in (3, 2, 1)] + [[], []]


def test_nothing_is_stopped_for_memory_that_must_not_run_twice_or_runs_alone() -> None:
    schedule = four_in_flight(rerun_after_loss=False)
    assert not any(action.hard for action in step(schedule, MemoryRoom(4, short=True)))
    single = Schedule(Rules(total=8, chunk=1))
    step(single, Slots(1), Taken(1, False))
    assert step(single, MemoryRoom(0, short=True)) == []


def test_the_invariants_see_a_ticket_beside_one_that_must_be_alone() -> None:
    schedule = four_in_flight()
    schedule._flights[0].alone = True
    with pytest.raises(Bug, match="alone"):
        schedule.validate()


def test_segments_leave_in_order() -> None:
    from fourfold.records import Segment

    order = InOrder()
    assert list(order.push(Segment(2, 1, ["c"]))) == []
    assert [s.values for s in order.push(Segment(0, 2, ["a", "b"]))] == [["a", "b"], ["c"]]


def seconds_per_decision(n_workers: int, n_steps: int) -> float:
    """Of a run with so many chunks in flight, each of which ends and makes room for the next."""
    schedule = Schedule(Rules(chunk=1))
    ids: deque[int] = deque()
    assert schedule.step(Slots(n_workers)) == [Take(1)]
    while len(ids) < n_workers:
        ids += [action.id for action in schedule.step(Taken(1, False)) if isinstance(action, Submit)]
    begin = time.process_time()
    for _ in range(n_steps):
        schedule.step(Finished(ids.popleft(), 1, (), 0.1))
        ids += [action.id for action in schedule.step(Taken(1, False)) if isinstance(action, Submit)]
    return (time.process_time() - begin) / n_steps


def test_a_decision_takes_as_long_for_ten_thousand_workers_as_for_ten() -> None:
    few = min(seconds_per_decision(10, 500) for _ in range(3))
    many = min(seconds_per_decision(10_000, 500) for _ in range(3))
    assert many < 10 * few
