"""Which tickets go into which job, for engines that start jobs of several tasks: it costs much to start one.

    waiting  t7 t8 t9 ...        next(slots) takes a bundle: some at once while slots are free,
    flying   [t1 t2 t3] [t4 t5 t6]                          later as many as make a job worth its start

Pure: no clock and no thread. The engine on Spark runs it, and benchmarks/scale.py with ten thousand slots.
"""

from collections import deque
from collections.abc import Collection

from fourfold.records import Ticket

FIRST_JOBS = 8
"""Jobs among which the first tickets are divided, while nobody knows how long one takes. Fewer: one slow ticket keeps the
outcomes of more of them. More: the start takes longer."""

WORTH = 40
"""A job has so many times the work that it takes to start it. Less: jobs take more of the driver's processor, on which workers
may run as well (on Spark in one process of two cores a job took 0.1 s of it). More: more comes back at once, and later."""

LONG = 10
"""... or, when they take so many times as long as it takes to start it, one ticket for each slot: with more, slots that have
ended theirs wait for the last of the job, since the driver hears of all together. Lower: more jobs. Higher: more waiting."""

AHEAD = 2
"""When more tickets wait than so many for each slot, and they get smaller, it is the end: all go into one job, whose long
tasks start first. Between two jobs the order is not certain. Not more than the window of the schedule, or jobs are too large
in the middle too."""

MOST = 1000
"""Tickets of a job at most, when there are fewer slots. Not measured."""


def worth_s(slots: int, job_s: float) -> float:
    """Seconds of work that are worth a job.

    The driver starts at most 1 / `job_s` jobs per second, and they should keep all slots busy, twice over: so a job has at
    least the work of all slots for 2 * `job_s`.
    """
    return max(2 * slots, WORTH) * job_s


class Bundles:
    """Tickets that wait for a job, and how many the next job takes.

    Args:
        job_s: Seconds that it takes to start a job.
    """

    def __init__(self, job_s: float) -> None:
        self.n_flying = 0
        """Tickets in jobs."""
        self._waiting: deque[Ticket] = deque()
        self._job_s = job_s
        self._item_s: float | None = None

    def add(self, tickets: Collection[Ticket]) -> None:
        """These wait."""
        self._waiting.extend(tickets)

    def take_back(self, ids: Collection[int] | None) -> list[Ticket]:
        """Those of them (None: all) that still wait do so no longer."""
        taken = [ticket for ticket in self._waiting if ids is None or ticket.id in ids]
        if taken:
            gone = {ticket.id for ticket in taken}
            self._waiting = deque(ticket for ticket in self._waiting if ticket.id not in gone)
        return taken

    def next(self, slots: int) -> list[Ticket]:
        """The tickets of a job to start now; none when it is better to wait for more, or for jobs that run."""
        count, is_worth_it = self._next_job(slots)
        if self.n_flying >= slots and not is_worth_it:
            return []
        self.n_flying += count
        return [self._waiting.popleft() for _ in range(count)]

    def _next_job(self, slots: int) -> tuple[int, bool]:
        """How many of those that wait make a job, and whether they are enough for one."""
        if self._item_s is None:
            return min(max(1, slots // FIRST_JOBS), len(self._waiting)), False
        most = max(MOST, slots)
        if len(self._waiting) > AHEAD * slots and self._waiting[-1].n_items < self._waiting[0].n_items:
            return min(len(self._waiting), most), True
        enough_s = worth_s(slots, self._job_s)
        work_s, n_enough = 0.0, 0
        for count, ticket in enumerate(self._waiting, 1):
            work_s += ticket.n_items * self._item_s
            if not n_enough and (work_s >= enough_s or count >= most):
                n_enough = count
            if count >= slots and work_s >= LONG * count * self._job_s:
                return n_enough or count, True
            if work_s >= 2 * enough_s:  # and for another job
                return n_enough, True
        return min(len(self._waiting), most), n_enough > 0

    def ended(self, n_tickets: int) -> None:
        """A job of so many tickets is over."""
        self.n_flying -= n_tickets

    def learn(self, ticket_s: float, n_items: int) -> None:
        """A ticket of so many items took so long."""
        item_s = ticket_s / max(1, n_items)
        self._item_s = item_s if self._item_s is None else (self._item_s + item_s) / 2
