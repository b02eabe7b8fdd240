"""Which tickets go into one job: free slots are filled at once, and later a job has as many as make it worth its start."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from fourfold.aggregate.failures import Failures
from fourfold.distribute.bundles import Bundles
from fourfold.distribute.driver import Driver
from fourfold.distribute.engine import EngineInfo
from fourfold.distribute.engines.simulated import Simulated
from fourfold.distribute.lane import Lane
from fourfold.distribute.schedule import Rules, Schedule
from fourfold.distribute.sizes import Sizes
from fourfold.divide.source import Source
from fourfold.execute.objects import ObjectCodec
from fourfold.records import ChunkResult, Kind, Ticket


def bundles_with(count: int, job_s: float = 0.1, ticket_s: float | None = None) -> Bundles:
    bundles = Bundles(job_s)
    bundles.add([Ticket(id, "program", None, 1) for id in range(count)])
    if ticket_s is not None:
        bundles.learn(ticket_s, 1)
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
def test_jobs_keep_all_slots_busy(slots):
    bundles = bundles_with(5 * slots, ticket_s=1.0)
    started(bundles, slots)
    assert bundles.n_flying >= slots


def test_ten_thousand_slots_start_few_jobs():
    assert len(started(bundles_with(10_000), slots=10_000)) <= 8
    jobs = started(bundles_with(20_000, ticket_s=10.0), slots=10_000)
    assert 20_000 / len(jobs) * 10.0 >= 2 * 0.1 * 10_000  # each has the work of all slots for two starts


def test_long_tickets_have_jobs_of_their_own():
    assert started(bundles_with(4, ticket_s=60.0), slots=16) == [[0], [1], [2], [3]]


def test_while_nobody_knows_how_long_they_take_only_free_slots_get_one():
    assert started(bundles_with(20), slots=2) == [[0], [1]]


def test_short_tickets_share_a_job():
    assert started(bundles_with(20, ticket_s=0.5), slots=10) == [[*range(8)], [*range(8, 20)]]  # too few for a third


def test_the_end_is_one_job():
    bundles = bundles_with(20, ticket_s=5.0)
    bundles.add([Ticket(20, "program", None, 0)])
    assert started(bundles, slots=10) == [[*range(21)]]


def test_many_tickets_of_one_size_are_not_the_end():
    """Of a call with a size of chunk that the user gave: the next job is there when one ends."""
    jobs = started(bundles_with(1700, ticket_s=0.005), slots=2)
    assert [len(job) for job in jobs] == [801, 899]
    jobs = started(bundles_with(2500, ticket_s=1e-6), slots=2)
    assert [len(job) for job in jobs] == [1000, 1000]


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_no_slot_waits_for_the_last_long_ticket_of_a_job(slots):
    """Three tickets of two seconds on two slots would leave one idle for two seconds: all outcomes of a job come together."""
    jobs = started(bundles_with(2 * slots, ticket_s=1.9), slots)
    assert len(jobs) >= 2
    assert all(len(job) <= slots for job in jobs)


def test_what_waits_behind_busy_slots_waits_for_a_worthy_job():
    bundles = bundles_with(2, ticket_s=0.5)
    assert started(bundles, slots=2) == [[0, 1]]
    bundles.add([Ticket(2, "program", None, 1)])
    assert bundles.next(2) == []
    bundles.add([Ticket(3, "program", None, 7)])  # seven times as many items
    assert [ticket.id for ticket in bundles.next(2)] == [2, 3]


def test_what_ended_makes_room():
    bundles = bundles_with(3, ticket_s=0.5)
    assert started(bundles, slots=1) == [[0, 1, 2]]
    bundles.add([Ticket(3, "program", None, 1)])
    assert started(bundles, slots=1) == []
    bundles.ended(3)
    assert started(bundles, slots=1) == [[3]]


def test_only_what_waits_is_taken_back():
    bundles = bundles_with(6)
    assert [ticket.id for ticket in bundles.take_back([0, 3, 5])] == [0, 3, 5]
    assert [ticket.id for ticket in bundles.take_back(None)] == [1, 2, 4]
    assert bundles.next(100) == []


def test_the_end_is_handed_out_at_once_where_chunks_start_in_jobs():
    def window(left: int, in_jobs: bool) -> int:
        sizes = Sizes()
        sizes.slots, sizes.target_s, sizes.dispatch_s, sizes.in_jobs = 2, 2.0, 0.1, in_jobs
        sizes.learn(0, 100, 10.0)
        return sizes.window(left)

    assert window(left=1000, in_jobs=True) == window(left=1000, in_jobs=False) == 4
    assert window(left=70, in_jobs=True) > 16
    assert window(left=70, in_jobs=False) <= 4


def test_as_many_small_chunks_as_make_two_jobs_are_in_flight_where_their_size_is_given():
    def window(item_s: float, chunk: int | None) -> int:
        sizes = Sizes(chunk)
        sizes.slots, sizes.target_s, sizes.dispatch_s, sizes.in_jobs = 2, 2.0, 0.1, True
        sizes.learn(0, 1, item_s)
        return sizes.window(100_000)

    assert window(0.005, chunk=None) == 2  # the next ones will be larger
    assert window(0.005, chunk=1) == 1600
    assert window(0.005, chunk=20) == 80
    assert window(0.0, chunk=20) == 2000
    assert window(5.0, chunk=1) == 4


def test_the_end_waits_where_nothing_may_wait_beside_a_worker():
    """Of a call that may use fewer workers than the engine has: all that is handed out runs at once."""
    sizes = Sizes()
    sizes.slots, sizes.target_s, sizes.dispatch_s, sizes.in_jobs, sizes.prefetch = 2, 2.0, 0.1, True, False
    sizes.learn(0, 100, 10.0)
    assert sizes.window(70) == 2


class Batches(Simulated):
    """An engine of bundles, that notes how many tickets are submitted together."""

    def __init__(self, workers: int, job_s: float) -> None:
        super().__init__(workers, lambda item: 1.0)
        self.info = EngineInfo("batches", takes_objects=True, honours=frozenset(), kills="bundle", dispatch_s=job_s)
        self.submitted: list[int] = []

    def slots(self) -> int:
        return 50

    def submit(self, tickets: Sequence[Ticket]) -> None:
        self.submitted.append(len(tickets))
        super().submit(tickets)


class Same:
    def prepare(self) -> Any:
        return lambda chunk, cell: (Kind.DONE, ChunkResult(len(chunk.items), list(chunk.items), [], 1.0))


def drive(engine: Batches, items: Iterable[int]) -> list[int]:
    failures = Failures("same", "raise", (), lambda data: None)
    driver = Driver(Source(items), Schedule(Rules(total=None, chunk=1)), Lane(engine, ObjectCodec(), Same), failures)
    return sorted(segment.values[0] for segment in driver.run())


def test_the_tickets_for_all_free_slots_are_submitted_together():
    engine = Batches(50, job_s=60.0)
    assert drive(engine, range(400)) == [*range(400)]
    assert engine.submitted[0] == 50


def test_a_slow_source_is_not_waited_for_longer_than_a_job_takes_to_start():
    def slow() -> Iterator[int]:
        for item in range(50):
            time.sleep(0.005)
            yield item

    engine = Batches(50, job_s=0.02)
    assert drive(engine, slow()) == [*range(50)]
    assert 1 < max(engine.submitted) < 25
