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

from fourfold.distribute.engine import NO_NEED, EngineInfo, Runnable
from fourfold.distribute.faults import BOOTS, Faults
from fourfold.records import Chunk, ChunkResult, Kind, Need, Outcome, Ticket, Trouble

NO_FAULTS = Faults()


class _Cell:
    """Nobody looks and nobody stops it: a chunk is cut before it runs to what there was time for."""

    inline = whole = False
    keep = None

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
    failed_boots: int = 0
    is_spoiled: bool = False


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
        faults: What goes wrong at random.
        kills: Whether an item always kills its worker.
        timeout_s: None, or the virtual seconds that an item may run.
        item_bytes: Maps an item to the memory that it takes while it runs.
        memory_bytes: All the memory there is: when items that run at once take more, one of their workers is killed.
        evenly: All items last as long as the first of their chunk: saves time in large plans.

    Attributes:
        now: The virtual time, in seconds.
        busy_s: Sum over workers of the time spent in items.
        deaths: How many workers have died.
        tied: The items whose time was over in the tick in which they ended.
        is_down: No worker is left and none can be started.
    """

    info = EngineInfo(name="simulated", takes_objects=True, honours=frozenset({"idempotent"}), kills="no")

    def __init__(
        self,
        workers: int,
        seconds: Callable[[Any], float],
        *,
        seed: int = 0,
        message_s: float = 0.0,
        boot_s: float = 0.0,
        faults: Faults = NO_FAULTS,
        kills: Callable[[Any], bool] | None = None,
        timeout_s: float | None = None,
        item_bytes: Callable[[Any], int] = lambda item: 0,
        memory_bytes: int | None = None,
        evenly: bool = False,
    ) -> None:
        self.now = 0.0
        self.busy_s = 0.0
        self.deaths = 0
        self.tied: set[Any] = set()
        self.is_down = False
        self._seconds, self._evenly = seconds, evenly
        self._message_s, self._boot_s = message_s, boot_s
        self._faults, self._kills, self._timeout_s = faults, kills, timeout_s
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

    def put(self, key: str, program: Any, need: Need = NO_NEED) -> None:
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
            if self.is_down:
                self._outcomes.append(_down(ticket.id))
                continue
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
            if load == len(worker.tickets) and worker.failed_boots < BOOTS:
                return worker

    def _start(self, worker: _Worker) -> None:
        ticket: Ticket = worker.tickets[0]
        chunk: Chunk = ticket.payload
        begin = max(self.now, worker.free_at)
        if ticket.fresh:
            begin, worker.is_spoiled = begin + self._boot_s, False
        dies_at = 0 if worker.is_spoiled else self._death(chunk)
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
        done = len(chunk.items)
        if dies_at is None and done > 1 and self._happens(self._faults.cut):
            done = self._random.randrange(1, done)
        flight = _Flight(ticket, worker, begin, begin + lasts, done, dies_at)
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
        if self._happens(self._faults.death):
            return self._random.randrange(len(chunk.items))
        return None

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self._random.random() < rate

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
        while not self._outcomes and self._events and (until is None or self._events[0][0] <= max(self.now, until)):
            when, _, what = heapq.heappop(self._events)
            if isinstance(what, Outcome):
                self.now = max(self.now, when)
                self._outcomes.append(what)
            elif isinstance(what, _Flight):
                if self._flights.get(what.ticket.id) is not what or when < what.end:
                    continue
                self.now = max(self.now, when) + self._message_s / 2
                self._finish(what)
            else:
                self.now = max(self.now, when)
                self._boot(what)
                break
        else:
            if until is not None and not self._outcomes:
                self.now = max(self.now, until)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _boot(self, worker: _Worker) -> None:
        """A worker has started, or tries again, or is given up."""
        if not self._happens(self._faults.boot):
            worker.failed_boots = 0
            self._booting -= 1
            if worker.tickets:
                self._start(worker)
            return
        worker.failed_boots += 1
        for ticket in worker.tickets:
            self._flights.pop(ticket.id, None)  # it was to begin now
        if worker.failed_boots < BOOTS:
            worker.free_at = self.now + self._boot_s
            self._at(worker.free_at, worker)
            return
        self.is_down = all(one.failed_boots >= BOOTS for one in self._workers)
        for ticket in worker.tickets:
            self._outcomes.append(_down(ticket.id) if self.is_down else Outcome(ticket.id, Kind.COLLATERAL))
        worker.tickets.clear()
        if self.is_down and not self._outcomes:
            self._outcomes.append(_down(-1))

    def _finish(self, flight: _Flight) -> None:
        worker, ticket, faults = flight.worker, flight.ticket, self._faults
        del self._flights[ticket.id]
        if flight.dies_at is None and self._happens(faults.dies_before):
            self._die(worker)  # with this ticket among those that waited
            self._outcomes.append(Outcome(-1, Kind.LOST, reason="a simulated death before a ticket"))
            return
        worker.tickets.popleft()
        self.busy_s += flight.end - flight.begin
        worker.free_at = flight.end
        if flight.dies_at is not None:
            _, data = self._run(
                ticket, flight.dies_at
            )  # these items have had their effects, whether somebody hears of them or not
            self._die(worker)
            self._tell(self._lost(flight, flight.dies_at, data))
            return
        outcome = self._outcome(flight)
        if flight.done and self._happens(faults.dies_after):
            self._die(worker)
            self._at(self.now + self._delay(), self._lost(flight, flight.done - 1, outcome.data))
        elif flight.done and self._happens(faults.tie):
            self._die(worker)
            self.tied.add(ticket.payload.items[flight.done - 1])
            expired = Outcome(ticket.id, Kind.EXPIRED, running=(flight.done - 1, 1), reason="took too long, just so")
            self._outcomes += self._random.sample([outcome, expired], 2)
        else:
            self._tell(outcome)
            worker.is_spoiled = self._happens(faults.spoils)
            heapq.heappush(self._by_load, (len(worker.tickets), worker.number))
            if worker.tickets:
                self._start(worker)

    def _outcome(self, flight: _Flight) -> Outcome:
        """Run its items; returns what is to be told of them."""
        kind, data = self._run(flight.ticket, flight.done)
        if isinstance(data, ChunkResult):
            elapsed_s = flight.end - flight.begin
            if self._happens(self._faults.skewed):
                elapsed_s = self._random.choice([0.0, 1e6])
            data = data._replace(elapsed_s=elapsed_s)
        return Outcome(flight.ticket.id, kind, data, worker=f"simulated worker {flight.worker.number}")

    def _lost(self, flight: _Flight, at: int, data: Any) -> Outcome:
        """What is told of a worker that died on the item at the offset `at`; `data` has what had finished."""
        kind, reason = (Kind.EXPIRED, "took too long") if flight.expired else (Kind.LOST, "a simulated death")
        is_marked = flight.expired or not self._happens(self._faults.unmarked)
        running = (at, 1) if is_marked else None
        return Outcome(
            flight.ticket.id,
            kind,
            running=running,
            reason=reason,
            out_of_memory=flight.out_of_memory,
            kept=self._kept(data),
            was_sent=self._happens(self._faults.sent),
        )

    def _kept(self, data: Any) -> tuple[ChunkResult, ...]:
        """Some of the first items of a result, in one part or two."""
        if not isinstance(data, ChunkResult) or not self._happens(self._faults.keeps):
            return ()
        ends = sorted({self._random.randint(0, data.done) for _ in range(2)} - {0})
        return tuple(_part(data, begin, end) for begin, end in zip([0, *ends], ends, strict=False))

    def _tell(self, outcome: Outcome) -> None:
        """Let the driver know: now, late, and now and then once more."""
        if self._happens(self._faults.late):
            self._at(self.now + self._delay(), outcome)
        else:
            self._outcomes.append(outcome)
        if self._happens(self._faults.twice):
            if self._random.random() < 0.5:
                self._outcomes.append(outcome)
            else:
                self._at(self.now + self._delay(), outcome)

    def _delay(self) -> float:
        """Seconds, of any order of magnitude: before or after what others do meanwhile."""
        return float(10 ** self._random.uniform(-6, 1))

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
        worker.is_spoiled = False
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
        end, n_done = flight.begin, 0
        items = flight.ticket.payload.items
        while n_done < len(items) and end < self.now:
            if n_done == flight.dies_at:
                return  # it is on the item that it dies of
            end += self._seconds(items[n_done])
            n_done += 1
        if n_done == len(items):
            return
        flight.done, flight.dies_at, flight.expired = min(flight.done, n_done), None, False
        flight.end = max(end, self.now)
        self._at(flight.end, flight)

    def close(self) -> None:
        """Forget everything but the time. Workers boot again when it is opened again."""
        for forgotten in (self._events, self._flights, self._programs, self._prepared, self._outcomes):
            forgotten.clear()
        for worker in self._workers:
            worker.tickets.clear()
            worker.failed_boots, worker.is_spoiled = 0, False
        self._by_load = [(0, worker.number) for worker in self._workers]
        self._booting, self.is_down = len(self._workers), False


def _part(result: ChunkResult, begin: int, end: int) -> ChunkResult:
    """The items `[begin, end)` of a result, as that of a chunk of their own."""
    troubles = [each._replace(offset=each.offset - begin) for each in result.troubles if begin <= each.offset < end]
    return ChunkResult(end - begin, result.values[begin:end], troubles, result.elapsed_s * (end - begin) / result.done)


def _down(id: int) -> Outcome:
    return Outcome(id, Kind.ENGINE_DOWN, reason="no simulated worker can be started")
