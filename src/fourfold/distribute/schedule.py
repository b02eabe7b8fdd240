"""Every decision about chunks: how big, when, again or not, who is to blame, when to stop.

A pure state machine: `step(event)` returns the actions to take. No clock, no thread, no input or output; times come with
the events. So the same code runs real jobs, the simulation of faults, and the plan for 10,000 workers.

    Slots       the engine has so many workers now          Take     take the next items, then say Taken
    Taken       so many items were taken, or none are left  Submit   run the items [start, start + count)
    Finished    a ticket ended; these items failed          Settle   this item's failure is final
    Unstarted   a ticket ended before it did anything       Cancel   end these tickets
    Unreadable  a ticket could not cross the boundary       Stop     no more: nothing is left to wait for
    Died        a worker died with a ticket, or idle
    GraceOver   stopping has taken long enough

A position numbers an item in the order in which it is handed out. At any step each position below `taken` is in exactly
one state: waiting in `_again`, in flight, or settled (checked by `validate`).
"""

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fourfold.errors import Bug

SERVICE_S = 0.05
"""Seconds that a chunk should take. Smaller: more messages (about MESSAGE_S of the driver's time each). Larger: a longer
tail, later first results. At 50 ms two busy workers cost the driver 0.6 % of a core (benchmarks/constants.py)."""

MESSAGE_S = 150e-6
"""Seconds of the driver's time per chunk, out and back (benchmarks/constants.py). It bounds how many workers one driver can
feed: a chunk must last long enough for the driver to serve all the others, twice over."""

FLOOR_S = 0.002
"""Seconds below which no chunk is cut smaller at the end. Smaller: messages eat the gain. Larger: a worse tail."""

TAIL = 3
"""At the end a chunk is at most 1 / (TAIL * workers) of what is left. Smaller: a worker may be left alone with a large last
chunk. Larger: more messages."""

GROWTH = 16
"""A chunk has at most so many times the items of the largest one that came back. Smaller: more rounds until chunks have the
right size. Larger: one lucky fast item can make a huge chunk of slow ones."""

PREFETCH_BELOW_S = 0.1
"""Each worker has a second chunk waiting when chunks are expected to take less than this. Smaller: workers idle for a
message's round trip between chunks. Larger: a chunk may wait behind a slow one while other workers idle."""

CHUNK_BYTES = 16 << 20
"""Bytes that a chunk should have at most, in or out. Larger: more memory in flight, and out of the processor's cache."""

CHUNK_ITEMS = 1 << 16
"""Items that a chunk should have at most. Smaller: more messages for items that take next to no time. Larger: more memory in
flight, since small objects take ten times the bytes of their pickle: over 10 M no-op items the driver grew by 34 MB, and by
67 MB with twice as many items per chunk (benchmarks/p9_driver_memory.py)."""

AHEAD = 4
"""How many windows of chunks an ordered, bounded run may be ahead of its slowest chunk."""

FRACTION_OF = 1000
"""Items of which a fraction of failures is allowed while nobody knows how many there will be. Fewer: a few failures at the
start end the run. More: a function that always fails is run more often."""

CRASHES_ALLOWED = 2
"""An item is blamed when its worker died this often while it ran the item alone. Once could be an outsider's kill."""

HOPELESS = 50
"""Workers that may die while not one item has ever ended; each item dies twice. Smaller: fewer bad items at the beginning end
a run that could go on. Larger: a function that never works is tried for longer, at some 5 ms for each death."""

IN_A_ROW = 10
"""Workers that may die in a row with nothing settled in between, for runs on few workers; for others it is 4 each. Smaller:
deadly items that are neighbours end a run, though each would be found: they took up to 8 deaths on two workers, and 10 on
five (simulated, in random order). Larger: workers that die before they have run anything are started more often."""


class Slots(NamedTuple):
    """The engine has `n_slots` workers now. `prefetch`: a chunk more for each may wait near it. Chunks aim at `target_s`."""

    n_slots: int
    prefetch: bool = True
    target_s: float = SERVICE_S


class Taken(NamedTuple):
    """`n_items` items were taken, which took `elapsed_s`; no more are there when `exhausted`."""

    n_items: int
    exhausted: bool
    elapsed_s: float = 0.0


class Finished(NamedTuple):
    """A ticket ended: its first `done` items ran. `failed` has (offset, may be tried again) of those without a value."""

    id: int
    done: int
    failed: Sequence[tuple[int, bool]] = ()
    elapsed_s: float = 0.0
    size_bytes: int = 0


class Unstarted(NamedTuple):
    """A ticket ended before any of its items started."""

    id: int


class Unreadable(NamedTuple):
    """A ticket or its result could not be read at the other side; one of its items is to blame."""

    id: int


class Died(NamedTuple):
    """A worker died. With a ticket: it was running the items [first, first + n_items) of it, those before had ended.

    `expired`: it was ended, because one of these items ran longer than the run allows.
    """

    id: int | None = None
    first: int = 0
    n_items: int = 0
    expired: bool = False


class GraceOver(NamedTuple):
    """The time that a stopping run waits for the tickets before the failed one is over."""


Event = Slots | Taken | Finished | Unstarted | Unreadable | Died | GraceOver


class Take(NamedTuple):
    """Take up to `n_items` items from the source, then step with Taken at once."""

    n_items: int


class Submit(NamedTuple):
    """Run the items [start, start + n_items) as ticket `id`."""

    id: int
    start: int
    n_items: int


class Settle(NamedTuple):
    """The failure that the item last had, in its attempt number `attempts`, is final."""

    position: int
    attempts: int


class Cancel(NamedTuple):
    """End these tickets."""

    ids: tuple[int, ...]
    hard: bool


class Stop(NamedTuple):
    """All is settled, or the run was stopped and nothing is in flight: `reason` is "", "failed", "too many" or "dying"."""

    reason: str


Action = Take | Submit | Settle | Cancel | Stop


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user asked for, as far as the schedule must know.

    Attributes:
        total: How many items, when known (a hint).
        chunk: Items per chunk, or None to measure.
        costs: Relative cost by position, or None.
        retries: How often an item that raised runs again.
        stop_at_failure: The first final failure ends the run.
        max_failures: Past this count (int) or fraction of `total` (float) the run ends.
        bounded: Do not run ahead of the slowest chunk by more than AHEAD windows (ordered streaming).
        rerun_after_loss: False: what may have had effects in a dead worker is blamed, not run again.
    """

    total: int | None = None
    chunk: int | None = None
    costs: Sequence[float] | None = None
    retries: int = 0
    stop_at_failure: bool = True
    max_failures: int | float | None = None
    bounded: bool = False
    rerun_after_loss: bool = True


@dataclass(slots=True)
class _Flight:
    """A ticket in flight."""

    start: int
    count: int


@dataclass(slots=True)
class Tally:
    """What has happened so far, for the report and for progress."""

    chunks: int = 0
    finished: int = 0
    failures: int = 0
    retries: int = 0
    deaths: int = 0
    busy_s: float = 0.0
    deaths_in_a_row: int = 0


@dataclass(slots=True)
class Schedule:
    """The state machine of one run. `step` is its only way in."""

    rules: Rules
    target_s: float = SERVICE_S
    slots: int = 0
    most_slots: int = 0
    prefetch: bool = True
    taken: int = 0
    exhausted: bool = False
    tally: Tally = field(default_factory=Tally)
    stopping: str = ""
    _next_id: int = 0
    _asked: int = 0
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _costs_left: list[float] = field(default_factory=list)
    _open: set[int] = field(default_factory=set)
    _starts: list[int] = field(default_factory=list)
    _again: deque[tuple[int, int]] = field(default_factory=deque)
    _raised: dict[int, int] = field(default_factory=dict)
    _crashed: dict[int, int] = field(default_factory=dict)
    _take_s: float = 0.0
    _took: int = 0
    _item_s: float | None = None
    _learned_from: int = 0
    _cost_s: float | None = None
    _item_bytes: float = 0.0
    _largest: int = 0
    _failed_at: int | None = None
    _cancelled: bool = False
    _any_ended: bool = False
    _ended: bool = False

    def __post_init__(self) -> None:
        if self.rules.costs is not None:
            self._costs_left = [*itertools.accumulate(reversed(self.rules.costs), initial=0.0)][::-1]

    def step(self, event: Event) -> list[Action]:
        """Take one event into the state and return what to do now."""
        if self._ended:
            raise Bug(f"the schedule has ended, and then came {event}")
        actions: list[Action] = []
        match event:
            case Slots(count, prefetch, target_s):
                self.slots, self.prefetch, self.target_s = count, prefetch, target_s
                self.most_slots = max(count, self.most_slots)
            case Taken():
                self._take(event, actions)
            case Finished():
                self._finish(event, actions)
            case Unstarted(id):
                flight = self._land(id)
                self._repeat(flight.start, flight.count)
            case Unreadable(id):
                self._split(id, actions)
            case Died():
                self._bury(event, actions)
            case GraceOver():
                self._failed_at = -1
                self._cancelled = False
        self._go_on(actions)
        return actions

    # ---- events ------------------------------------------------------------------------------------------------------

    def _take(self, event: Taken, actions: list[Action]) -> None:
        self._asked = 0
        self.exhausted = self.exhausted or event.exhausted
        if event.n_items:
            each = event.elapsed_s / event.n_items
            newest = _share(event.n_items, self._took)
            self._took = event.n_items
            self._take_s = max(each, self._take_s + newest * (each - self._take_s))
            self._submit(self.taken, event.n_items, actions)
            self.taken += event.n_items

    def _finish(self, event: Finished, actions: list[Action]) -> None:
        flight = self._land(event.id)
        done = event.done
        if done:
            self._any_ended = True
            self._learn(flight.start, done, event.elapsed_s)
            if event.size_bytes:
                self._learn_bytes(event.size_bytes / done)
            self.tally.chunks += 1
            self.tally.busy_s += event.elapsed_s
            self.tally.finished += done
            self.tally.deaths_in_a_row = 0
        if done < flight.count:
            self._repeat(flight.start + done, flight.count - done)
        for offset, may_retry in event.failed:
            position = flight.start + offset
            attempts = self._raised.pop(position, 0) + 1
            if may_retry and attempts <= self.rules.retries and self._may_go_on(position):
                self._raised[position] = attempts
                self.tally.finished -= 1
                self.tally.retries += 1
                self._again.append((position, 1))
            else:
                actions.append(Settle(position, attempts))
                self._count_failure(position)

    def _may_go_on(self, position: int) -> bool:
        """Whether the item may run again: a stopping run still waits for those before the one that failed."""
        return self._failed_at is None or position < self._failed_at

    def _split(self, id: int, actions: list[Action]) -> None:
        flight = self._land(id)
        half = flight.count // 2
        if half:
            self._repeat(flight.start + half, flight.count - half)
            self._repeat(flight.start, half)
        else:
            actions.append(Settle(flight.start, 1))
            self.tally.finished += 1
            self._count_failure(flight.start)

    def _bury(self, event: Died, actions: list[Action]) -> None:
        if not event.expired:
            self.tally.deaths += 1
            # Items that ended before the one it died on are work that got done.
            self.tally.deaths_in_a_row = 1 if event.first else self.tally.deaths_in_a_row + 1
            self._any_ended = self._any_ended or event.first > 0
        if event.id is not None:
            flight = self._land(event.id)
            if self._failed_at == -1:
                return  # the run is given up, and its workers with it: no item is to blame
            first, count = flight.start + event.first, event.n_items
            behind = first + count
            self._repeat(behind, flight.start + flight.count - behind)
            if self.rules.rerun_after_loss:
                self._repeat(flight.start, event.first)
                suspects = range(first, first + count)
            else:
                suspects = range(flight.start, first + count)
            again = []
            if event.expired and count == 1:  # the mark names the item: no doubt is left, whoever else is in its chunk
                actions.append(Settle(first, 1))
                self.tally.finished += 1
                self.tally.deaths_in_a_row = 0
                self._count_failure(first)
                suspects = range(suspects.start, first)
            for position in suspects:
                crashes = self._crashed.pop(position, 0) + 1
                alone = flight.count == 1
                if not self.rules.rerun_after_loss or (alone and crashes >= CRASHES_ALLOWED):
                    actions.append(Settle(position, crashes))
                    self.tally.finished += 1
                    self.tally.deaths_in_a_row = 0
                    self._count_failure(position)
                else:
                    # A death that may be a neighbour's fault is no attempt: only deaths alone are counted.
                    if alone:
                        self._crashed[position] = crashes
                    again.append((position, 1))
            # Suspects are tried at once: many of them later, one after the other, would look like workers that always die.
            self._again.extendleft(reversed(again))
        is_hopeless = not self._any_ended and self.tally.deaths > max(HOPELESS, 4 * self.most_slots)
        if is_hopeless or self.tally.deaths_in_a_row > max(IN_A_ROW, 4 * self.most_slots):
            self._stop("dying", -1)

    def _count_failure(self, position: int) -> None:
        self.tally.failures += 1
        if self.rules.stop_at_failure:
            self._stop("failed", position)
        if self._too_many():
            self._stop("too many", -1)

    def _too_many(self) -> bool:
        limit = self.rules.max_failures
        if isinstance(limit, float):
            limit *= self.taken if self.exhausted else max(self.taken, self.rules.total or FRACTION_OF)
        return limit is not None and self.tally.failures > limit

    def _stop(self, reason: str, position: int) -> None:
        """Stop handing out.

        Tickets with positions before `position` may still end: one of them may fail as well, and the loop would have met
        that failure first.
        """
        self.stopping = self.stopping or reason
        if self._failed_at is None or position < self._failed_at:
            self._failed_at = position
            self._cancelled = False

    # ---- what to do now ----------------------------------------------------------------------------------------------

    def _go_on(self, actions: list[Action]) -> None:
        if self.stopping:
            self._wind_down(actions)
            return
        while self.slots and not self._asked and len(self._flights) < self._window():
            if self._again:
                start, count = self._again.popleft()
                size = min(count, self._size(start, count))
                if size < count:
                    self._again.appendleft((start + size, count - size))
                self._submit(start, size, actions)
            elif not self.exhausted and not self._too_far_ahead():
                self._asked = self._size(self.taken, None)
                actions.append(Take(self._asked))
            else:
                break
        if self.exhausted and not self._flights and not self._again:
            self._end("too many" if self._too_many() else "", actions)

    def _wind_down(self, actions: list[Action]) -> None:
        assert self._failed_at is not None
        before = self._failed_at
        if before >= 0:
            earlier = [(start, count) for start, count in self._again if start < before]
            self._again.clear()
            for start, count in earlier:
                self._submit(start, min(count, before - start), actions)
        else:
            self._again.clear()
        if not self._cancelled:
            self._cancelled = True
            late = tuple(id for id, flight in self._flights.items() if flight.start >= before)
            if late:
                actions.append(Cancel(late, hard=before < 0))
        if not self._flights:
            self._end(self.stopping, actions)

    def _end(self, reason: str, actions: list[Action]) -> None:
        self._ended = True
        actions.append(Stop(reason))

    def _submit(self, start: int, count: int, actions: list[Action]) -> None:
        self._flights[self._next_id] = _Flight(start, count)
        if self.rules.bounded:
            self._open.add(start)
            heapq.heappush(self._starts, start)
        actions.append(Submit(self._next_id, start, count))
        self._next_id += 1

    def _land(self, id: int) -> _Flight:
        flight = self._flights.pop(id)
        self._open.discard(flight.start)
        return flight

    def _repeat(self, start: int, count: int) -> None:
        if count > 0:
            self._again.appendleft((start, count))

    # ---- sizes -------------------------------------------------------------------------------------------------------

    def _window(self) -> int:
        """How many tickets to have in flight."""
        expected = self._expected_s() if self.prefetch else None
        if expected is None or expected > max(PREFETCH_BELOW_S, 4 * self.slots * MESSAGE_S):
            return self.slots
        left = self._left()
        if left is not None and left < self.slots * self._largest and self._largest > 1 and expected > FLOOR_S:
            return self.slots
        return 2 * self.slots

    def _expected_s(self) -> float | None:
        """Seconds that the next chunk of usual size will take."""
        if self._item_s is None:
            return None
        if self.rules.chunk is not None:
            return self._item_s * self.rules.chunk
        return max(self._item_s, min(self.target_s, self._item_s * self._largest))

    def _left(self) -> int | None:
        """Items that are not handed out yet, when the total is known."""
        if self.exhausted:
            return sum(count for _, count in self._again)
        return None if self.rules.total is None else max(0, self.rules.total - self.taken)

    def _size(self, start: int, count: int | None) -> int:
        """How many items the chunk at `start` should have."""
        if self.rules.chunk is not None:
            return self.rules.chunk
        if self._item_s is None:
            return 1
        if self.rules.costs is not None:
            return self._size_by_cost(start, count)
        floor_s = max(FLOOR_S, self.slots * MESSAGE_S)
        target_s = max(self.target_s, 2 * floor_s)
        size = target_s / max(self._item_s, 1e-9)
        left = count if count is not None else self._left()
        if left is not None and self.prefetch:  # one who works alone leaves nobody waiting at the end
            size = min(size, max(left / (TAIL * self.slots), floor_s / max(self._item_s, 1e-9)))
        if self._item_bytes:
            size = min(size, CHUNK_BYTES / self._item_bytes)
        if count is None and self._take_s:
            # While a slow source is read for a window of chunks nothing is given out, and workers may wait.
            size = min(size, max(FLOOR_S, self.target_s / (2 * self.slots)) / self._take_s)
        return max(1, min(int(size), GROWTH * self._largest, CHUNK_ITEMS))

    def _size_by_cost(self, start: int, count: int | None) -> int:
        costs = self.rules.costs
        assert costs is not None
        target_s = max(self.target_s, 2 * self.slots * MESSAGE_S)
        if count is not None:
            target_s /= TAIL
        else:
            left_s = self._costs_left[start] * (self._cost_s or 0.0)
            target_s = min(target_s, max(left_s / (TAIL * self.slots), FLOOR_S, self.slots * MESSAGE_S))
        end = len(costs) if count is None else start + count
        size, sum_s = 0, 0.0
        limit = max(1, min(GROWTH * self._largest, CHUNK_ITEMS))
        if self._item_bytes:
            limit = max(1, min(limit, int(CHUNK_BYTES / self._item_bytes)))
        while start + size < end and size < limit:
            sum_s += costs[start + size] * (self._cost_s or 0.0)
            if size and sum_s > target_s:
                break
            size += 1
        return max(1, size)

    def _learn(self, start: int, done: int, elapsed_s: float) -> None:
        newest = _share(done, self._learned_from)
        self._learned_from = done
        self._largest = max(self._largest, done)
        each = elapsed_s / done
        self._item_s = each if self._item_s is None else self._item_s + newest * (each - self._item_s)
        if self.rules.costs is not None:
            cost = sum(self.rules.costs[start : start + done])
            if cost > 0:
                rate = elapsed_s / cost
                self._cost_s = rate if self._cost_s is None else self._cost_s + newest * (rate - self._cost_s)

    def _learn_bytes(self, each: float) -> None:
        self._item_bytes = max(each, (self._item_bytes + each) / 2)

    def _too_far_ahead(self) -> bool:
        if not self.rules.bounded:
            return False
        if not self._flights:
            self._starts.clear()
            return False
        while self._starts[0] not in self._open:
            heapq.heappop(self._starts)
        lowest = self._starts[0]
        if self._again:
            lowest = min(lowest, min(start for start, _ in self._again))
        return self.taken - lowest > AHEAD * 2 * self.slots * max(1, self._size(self.taken, None))

    # ---- for tests ---------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Check what must hold after every step.

        Raises:
            Bug: An invariant is broken.
        """
        held = sorted([(f.start, f.count) for f in self._flights.values()] + list(self._again))
        end = 0
        for start, count in held:
            if start < end or count < 1:
                raise Bug(f"position {start} is in two places, or a range is empty: {held}")
            end = start + count
        open_count = sum(count for _, count in held)
        if not self.stopping and open_count + self.tally.finished != self.taken:
            raise Bug(f"{self.taken} taken, but {open_count} open and {self.tally.finished} settled")
        if end > self.taken:
            raise Bug(f"position {end - 1} is open and was never taken")
        if any(count > self.rules.retries for count in self._raised.values()):
            raise Bug(f"an item has more attempts than it may: {self._raised}")
        if self.rules.bounded and self._open != {flight.start for flight in self._flights.values()}:
            raise Bug(f"the starts in flight are {self._open}, not those of {self._flights}")
        if self._ended and (self._flights or (self._again and not self.stopping)):
            raise Bug("the run ended with items open")


def _share(newest: int, before: int) -> float:
    """The weight of a new average, by its items over those before.

    The first chunks are small and slow, since nothing is in the cache yet, and each is much larger than the one before.
    """
    return max(0.5, newest / (newest + before))
