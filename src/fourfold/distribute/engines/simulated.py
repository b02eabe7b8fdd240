"""Workers that exist only on paper, under a virtual clock: for the plan of a cluster, and for faults by the thousand.

Items really run (in the caller, when their virtual time is over), so answers can be checked; time is what `seconds` says it
is. The driver's own time is modelled too: it is one person who handles one message after the other.

    driver    | submit | submit | .......... | outcome | submit | ...          each costs message_s / 2
    worker 0           |== ticket ==|== ticket ==|
    worker 1                    |==== ticket ====|
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from fourfold.distribute.engine import EngineInfo, Runnable
from fourfold.records import Chunk, ChunkResult, Kind, Outcome, Ticket, Trouble


class _Cell:
    """Nobody looks and nobody stops it: a chunk is cut before it runs to what there was time for."""

    inline = whole = False

    def mark(self, offset: int, count: int) -> None:
        """The items `[offset, offset + count)` start."""

    def stopped(self) -> bool:
        """Never."""
        return False


@dataclass(slots=True)
class _Worker:
    number: int
    free_at: float = 0.0
    tickets: deque[Ticket] = field(default_factory=deque)


@dataclass(slots=True)
class _Flight:
    ticket: Ticket
    worker: _Worker
    begin: float
    end: float
    done: int
    dies_at: int | None
    expired: bool = False
    out_of_memory: bool = False


class Simulated:
    """An engine with a virtual clock. All is decided by its arguments and the seed.

    Args:
        workers: How many.
        seconds: Maps an item to its virtual duration.
        seed: For the faults.
        message_s: Driver's time per ticket, out and back.
        boot_s: Time until a worker is ready, at the start and after a death.
        death_rate: Probability that a worker dies during a ticket, at a random item.
        kills: Whether an item always kills its worker.
        timeout_s: None, or the virtual seconds that an item may run.
        item_bytes: Maps an item to the memory that it takes while it runs.
        memory_bytes: All the memory there is: when items that run at once take more, one of their workers is killed.
        evenly: All items last as long as the first of their chunk: saves time in large plans.

    Attributes:
        now: The virtual time, in seconds.
        busy_s: Sum over workers of the time spent in items.
        deaths: How many workers have died.
    """

    info = EngineInfo(name="simulated", takes_objects=True, honours=frozenset({"idempotent"}))

    def __init__(
        self,
        workers: int,
        seconds: Callable[[Any], float],
        *,
        seed: int = 0,
        message_s: float = 0.0,
        boot_s: float = 0.0,
        death_rate: float = 0.0,
        kills: Callable[[Any], bool] | None = None,
        timeout_s: float | None = None,
        item_bytes: Callable[[Any], int] = lambda item: 0,
        memory_bytes: int | None = None,
        evenly: bool = False,
    ) -> None:
        self.now = 0.0
        self.busy_s = 0.0
        self.deaths = 0
        self._seconds, self._evenly = seconds, evenly
        self._message_s, self._boot_s = message_s, boot_s
        self._death_rate, self._kills, self._timeout_s = death_rate, kills, timeout_s
        self._item_bytes, self._memory_bytes = item_bytes, memory_bytes
        self._random = random.Random(seed)
        self._programs: dict[str, Any] = {}
        self._prepared: dict[str, Runnable] = {}
        self._workers = [_Worker(number, free_at=boot_s) for number in range(workers)]
        self._booting = workers
        self._events: list[tuple[float, int, Any]] = []
        self._sequence = 0
        self._flights: dict[int, _Flight] = {}
        self._by_load = [(0, number) for number in range(workers)]
        self._outcomes: list[Outcome] = []

    def open(self) -> None:
        """Workers begin to boot."""
        if self._booting and not self._events:
            for worker in self._workers:
                worker.free_at = self.now + self._boot_s
                self._at(worker.free_at, worker)

    def slots(self) -> int:
        """The workers that are ready at this virtual moment."""
        return len(self._workers) - self._booting

    def put(self, key: str, program: Any) -> None:
        """Keep the program; its first ticket prepares it, once for all."""
        self._programs[key] = program

    def drop(self, key: str) -> None:
        """Forget the program."""
        self._programs.pop(key, None)
        self._prepared.pop(key, None)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Each ticket goes to the worker with the fewest, and takes the driver half a message's time."""
        for ticket in tickets:
            self.now += self._message_s / 2
            worker = self._least_loaded()
            worker.tickets.append(ticket)
            heapq.heappush(self._by_load, (len(worker.tickets), worker.number))
            if len(worker.tickets) == 1:
                self._start(worker)

    def _least_loaded(self) -> _Worker:
        # Entries go stale when a load changes; each change pushes a fresh one.
        while True:
            load, number = heapq.heappop(self._by_load)
            worker = self._workers[number]
            if load == len(worker.tickets):
                return worker

    def _start(self, worker: _Worker) -> None:
        ticket: Ticket = worker.tickets[0]
        chunk: Chunk = ticket.payload
        begin = max(self.now, worker.free_at)
        dies_at = self._death(chunk)
        n_lived = len(chunk.items) if dies_at is None else dies_at
        slow_at = self._slow(chunk, n_lived)
        if slow_at is not None:
            assert self._timeout_s is not None
            lasts = sum(map(self._seconds, chunk.items[:slow_at])) + self._timeout_s
            flight = _Flight(ticket, worker, begin, begin + lasts, len(chunk.items), slow_at, expired=True)
            self._flights[ticket.id] = flight
            self._at(flight.end, flight)
            return
        n_items = len(chunk.items) if dies_at is None else dies_at + 1
        lasts = self._seconds(chunk.items[0]) * n_items if self._evenly else sum(map(self._seconds, chunk.items[:n_items]))
        flight = _Flight(ticket, worker, begin, begin + lasts, len(chunk.items), dies_at)
        self._flights[ticket.id] = flight
        self._at(flight.end, flight)
        while self._memory_bytes is not None and sum(map(self._needs, self._flights.values())) > self._memory_bytes:
            self._kill_for_memory(self._random.choice(list(self._flights.values())))

    def _needs(self, flight: _Flight) -> int:
        return 0 if flight.out_of_memory else max(map(self._item_bytes, flight.ticket.payload.items))

    def _kill_for_memory(self, flight: _Flight) -> None:
        """End it now, on its largest item."""
        items = flight.ticket.payload.items
        flight.dies_at = max(range(len(items)), key=lambda offset: self._item_bytes(items[offset]))
        flight.out_of_memory, flight.expired = True, False
        flight.end = max(self.now, flight.begin)
        self._at(flight.end, flight)

    def _death(self, chunk: Chunk) -> int | None:
        if self._kills is not None:
            for offset, item in enumerate(chunk.items):
                if self._kills(item):
                    return offset
        if self._death_rate and self._random.random() < self._death_rate:
            return self._random.randrange(len(chunk.items))
        return None

    def _slow(self, chunk: Chunk, stop: int) -> int | None:
        """The first item before `stop` that takes too long."""
        if self._timeout_s is None:
            return None
        return next((offset for offset in range(stop) if self._seconds(chunk.items[offset]) > self._timeout_s), None)

    def _at(self, when: float, what: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, what))

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Let virtual time pass until something happens; the timeout is virtual as well."""
        until = None if timeout is None else self.now + timeout
        while not self._outcomes and self._events and (until is None or self._events[0][0] <= until or timeout != 0):
            when, _, what = heapq.heappop(self._events)
            if isinstance(what, _Flight):
                if self._flights.get(what.ticket.id) is not what or when < what.end:
                    continue
                self.now = max(self.now, when) + self._message_s / 2
                self._finish(what)
            else:
                self.now = max(self.now, when)
                self._booting -= 1
                if what.tickets:
                    self._start(what)
                break
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _finish(self, flight: _Flight) -> None:
        worker, ticket = flight.worker, flight.ticket
        del self._flights[ticket.id]
        worker.tickets.popleft()
        self.busy_s += flight.end - flight.begin
        worker.free_at = flight.end
        if flight.dies_at is not None:
            self._die(worker)
            kind, reason = (Kind.EXPIRED, "took too long") if flight.expired else (Kind.LOST, "a simulated death")
            running, starved = (flight.dies_at, 1), flight.out_of_memory
            self._outcomes.append(Outcome(ticket.id, kind, running=running, reason=reason, out_of_memory=starved))
            return
        kind, data = self._run(ticket, flight.done)
        if isinstance(data, ChunkResult):
            data = data._replace(elapsed_s=flight.end - flight.begin)
        self._outcomes.append(Outcome(ticket.id, kind, data, worker=f"simulated worker {worker.number}"))
        heapq.heappush(self._by_load, (len(worker.tickets), worker.number))
        if worker.tickets:
            self._start(worker)

    def _run(self, ticket: Ticket, done: int) -> tuple[Kind, Any]:
        chunk: Chunk = ticket.payload
        if done < len(chunk.items):
            chunk = chunk._replace(items=chunk.items[:done])
        try:
            if ticket.program not in self._prepared:
                self._prepared[ticket.program] = self._programs[ticket.program].prepare()
            return self._prepared[ticket.program](chunk, _Cell())
        except Exception as error:
            return Kind.BAD_PROGRAM, Trouble(0, "raised", error, type(error).__name__, str(error), "", "")

    def _die(self, worker: _Worker) -> None:
        """Its waiting tickets come back, and another worker boots in its place."""
        self.deaths += 1
        for ticket in worker.tickets:
            self._outcomes.append(Outcome(ticket.id, Kind.COLLATERAL))
        worker.tickets.clear()
        worker.free_at = self.now + self._boot_s
        heapq.heappush(self._by_load, (0, worker.number))
        self._booting += 1
        self._at(worker.free_at, worker)

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Waiting tickets never start; running ones end after the item that they are on, or with their worker when `hard`."""
        for worker in self._workers:
            for ticket in list(worker.tickets)[::-1]:
                if ids is not None and ticket.id not in ids:
                    continue
                flight = self._flights.get(ticket.id)
                if flight is None:
                    worker.tickets.remove(ticket)
                    heapq.heappush(self._by_load, (len(worker.tickets), worker.number))
                    self._outcomes.append(Outcome(ticket.id, Kind.CANCELLED))
                elif hard:
                    del self._flights[ticket.id]
                    worker.tickets.remove(ticket)
                    self._outcomes.append(Outcome(ticket.id, Kind.LOST, running=(0, 1), reason="cancelled"))
                    self._die(worker)
                else:
                    self._shorten(flight)

    def _shorten(self, flight: _Flight) -> None:
        """End a flight at the boundary after the item that it is on now."""
        if flight.out_of_memory:
            return  # it is dead, and that is all that there is to hear of it
        end = flight.begin
        for offset, item in enumerate(flight.ticket.payload.items[: flight.done]):  # it may have been shortened before
            if end >= self.now or offset == flight.dies_at:
                break
            end += self._seconds(item)
            flight.done = offset + 1
        else:
            return
        if flight.dies_at is not None and flight.dies_at >= flight.done:
            flight.dies_at = None
        flight.end = max(end, self.now)
        self._at(flight.end, flight)

    def close(self) -> None:
        """Forget everything but the time. Workers boot again when it is opened again."""
        for forgotten in (self._events, self._flights, self._programs, self._prepared, self._outcomes):
            forgotten.clear()
        for worker in self._workers:
            worker.tickets.clear()
        self._by_load = [(0, worker.number) for worker in self._workers]
        self._booting = len(self._workers)
