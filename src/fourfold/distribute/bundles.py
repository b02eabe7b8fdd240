"""Which tickets go into which job, for engines that start jobs of several tasks: it costs much to start one.

    waiting  t7 t8 t9 ...        next(slots) takes a bundle: all at once while slots are free,
    flying   [t1 t2 t3] [t4 t5 t6]                          later as many as make a job worth its start

Pure: no clock and no thread. The engine on Spark runs it, and benchmarks/scale.py with ten thousand slots.
"""

import math
from collections import deque
from collections.abc import Collection

from fourfold.records import Ticket

AHEAD = 2
"""Tickets in jobs, for each slot: while one runs the next job is started. Fewer: slots idle while jobs start. More: what is
cancelled has gone too far to be taken back."""

FIRST_JOBS = 8
"""Jobs among which the first tickets are divided, while nobody knows how long one takes. Fewer: one slow ticket keeps the
outcomes of more of them. More: the start takes longer."""


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
        self._ticket_s: float | None = None

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
        n_free, size = slots - self.n_flying, self.size(slots)
        is_worth_it = len(self._waiting) >= size and self.n_flying < AHEAD * slots
        if not self._waiting or (n_free <= 0 and not is_worth_it):
            return []
        count = min(size, len(self._waiting), n_free if n_free > 1 else size)
        self.n_flying += count
        return [self._waiting.popleft() for _ in range(count)]

    def ended(self, n_tickets: int) -> None:
        """A job of so many tickets is over."""
        self.n_flying -= n_tickets

    def learn(self, ticket_s: float) -> None:
        """A ticket took so long."""
        self._ticket_s = ticket_s if self._ticket_s is None else (self._ticket_s + ticket_s) / 2

    def size(self, slots: int) -> int:
        """How many tickets a job should have.

        The driver starts at most 1 / `job_s` jobs per second, and the slots end `slots / ticket_s` tickets per second. A
        job comes back when its slowest ticket has, so it has no more than that asks for, twice over, and at most the slots.
        """
        if self._ticket_s is None:
            return max(1, slots // FIRST_JOBS)
        return max(1, min(slots, math.ceil(2 * slots * self._job_s / max(self._ticket_s, 1e-6))))
