"""Which tickets go into one job: free slots are filled at once, and later a job has as many as make it worth its start."""

import pytest

from fourfold.distribute.bundles import AHEAD, Bundles
from fourfold.records import Ticket


def bundles_with(count: int, job_s: float = 0.1, ticket_s: float | None = None) -> Bundles:
    bundles = Bundles(job_s)
    bundles.add([Ticket(id, "program", None, 1) for id in range(count)])
    if ticket_s is not None:
        bundles.learn(ticket_s)
    return bundles


def started(bundles: Bundles, slots: int) -> list[list[int]]:
    """The ids of the tickets of all jobs that start now."""
    jobs = []
    while tickets := bundles.next(slots):
        jobs.append([ticket.id for ticket in tickets])
    return jobs


def test_free_slots_are_filled_in_order():
    jobs = started(bundles_with(3), slots=4)
    assert [id for job in jobs for id in job] == [0, 1, 2]


@pytest.mark.parametrize("slots", [1, 2, 16, 10_000])
def test_no_more_is_in_jobs_than_keeps_the_slots_busy(slots):
    bundles = bundles_with(5 * slots, ticket_s=1.0)
    started(bundles, slots)
    assert slots <= bundles.n_flying <= AHEAD * slots + bundles.size(slots)


def test_ten_thousand_slots_start_few_jobs():
    assert len(started(bundles_with(10_000), slots=10_000)) <= 8
    jobs = started(bundles_with(20_000, ticket_s=10.0), slots=10_000)
    assert len(jobs) <= 2 * 10.0 / 0.1  # as many as the driver can start while tickets run


def test_long_tickets_have_jobs_of_their_own():
    assert bundles_with(4, ticket_s=60.0).size(slots=16) == 1


def test_what_waits_behind_busy_slots_waits_for_a_worthy_job():
    bundles = bundles_with(2, ticket_s=0.1)
    assert started(bundles, slots=2) == [[0, 1]]
    bundles.add([Ticket(2, "program", None, 1)])
    assert bundles.next(2) == []
    bundles.add([Ticket(3, "program", None, 1)])
    assert [ticket.id for ticket in bundles.next(2)] == [2, 3]


def test_what_ended_makes_room():
    bundles = bundles_with(4, ticket_s=60.0)
    assert started(bundles, slots=1) == [[0], [1]]
    bundles.ended(1)
    assert started(bundles, slots=1) == [[2]]


def test_only_what_waits_is_taken_back():
    bundles = bundles_with(6, ticket_s=60.0)
    started(bundles, slots=1)
    assert [ticket.id for ticket in bundles.take_back([0, 3, 5])] == [3, 5]
    assert [ticket.id for ticket in bundles.take_back(None)] == [2, 4]
    assert bundles.next(100) == []
