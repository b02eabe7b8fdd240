"""Every decision about chunks: when, again or not, who is to blame, when to stop.

A pure state machine: `step(event)` returns the actions to take. No clock, no thread, no input or output; times come with
the events. So the same code runs real jobs, the simulation of faults, and the plan for 10,000 workers. Events and actions
are in events.py, sizes in sizes.py.

A position numbers an item in the order in which it is handed out. At any step each position below `taken` is in exactly
one state: waiting in `_again` or `_alone`, in flight, in doubt, or settled (checked by `validate`).
"""

import heapq
from collections import deque
from collections.abc import Sequence

from fourfold.distribute.admission import OOM_ALLOWED, Admission
from fourfold.distribute.blame import CRASHES_ALLOWED, WITNESSES, Blame
from fourfold.distribute.events import (
    Action,
    Cancel,
    Died,
    DoubtOver,
    Event,
    Finished,
    GraceOver,
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
from fourfold.distribute.respawn import Respawn
from fourfold.distribute.sizes import CHUNK_ITEMS, HELD_CHUNK_ITEMS, Sizes
from fourfold.errors import Bug
from fourfold.fixed import Fixed

AHEAD = 4
"""How many windows of chunks an ordered, bounded run may be ahead of its slowest chunk."""

FRACTION_OF = 1000
"""Items of which a fraction of failures is allowed while nobody knows how many there will be. Fewer: a few failures at the
start end the run. More: a function that always fails is run more often."""

HOPELESS = 50
"""Workers that may die while not one item has ever ended; each item dies two or three times. Smaller: fewer bad items at the
beginning end a run that could go on. Larger: a function that never works is tried for longer, at some 5 ms for each death."""

IN_A_ROW = 10
"""Workers that may die in a row with nothing settled in between, for runs on few workers; for others it is 4 each. Smaller:
deadly items that are neighbours end a run, though each would be found: they took up to 8 deaths on two workers, and 10 on
five (simulated, in random order). Larger: workers that die before they have run anything are started more often."""


HALVED_ABOVE = 16
"""Suspects of one death above which they run again in halves, and not one by one: an engine may not know which item of a
ticket was running. Smaller: a bad item takes more workers along, one for each halving. Larger: more tickets."""


class Rules(Fixed):
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
        n_before: Items that an earlier call has done, or that failed there.
        failures_before: Those of them that failed.
    """

    total: int | None = None
    chunk: int | None = None
    costs: Sequence[float] | None = None
    retries: int = 0
    stop_at_failure: bool = True
    max_failures: int | float | None = None
    bounded: bool = False
    rerun_after_loss: bool = True
    n_before: int = 0
    failures_before: int = 0


class _Flight:
    """A ticket in flight. `alone`: no other is; `single`: it was sent with one item."""

    __slots__ = ("alone", "count", "single", "start")

    def __init__(self, start: int, count: int, alone: bool) -> None:
        self.start, self.count, self.alone, self.single = start, count, alone, count == 1


class Tally:
    """What has happened so far, for the report and for progress."""

    def __init__(self) -> None:
        self.chunks = self.finished = self.failures = self.retries = 0
        self.deaths = self.deaths_in_a_row = self.memory_deaths = 0
        self.busy_s = 0.0
        self.memory_slots: int | None = None
        """The fewest workers that had something to do for want of memory; None when all had."""


class Schedule:
    """The state machine of one run. `step` is its only way in."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.tally = Tally()
        self.slots = self.most_slots = self.taken = 0
        self.exhausted = False
        self.stopping = ""
        is_held = rules.total is not None and not rules.bounded
        self._sizes = Sizes(rules.chunk, rules.costs, HELD_CHUNK_ITEMS if is_held else CHUNK_ITEMS)
        self._admission = Admission()
        self._next_id = self._asked = 0
        self._flights: dict[int, _Flight] = {}
        self._n_alone = 0
        """Flights that have all workers to themselves: never more than one."""
        self._open: set[int] = set()
        self._starts: list[int] = []
        self._again: deque[tuple[int, int]] = deque()
        self._alone: deque[int] = deque()
        self._evicted: set[int] = set()
        self._raised: dict[int, int] = {}
        self._blame = Blame()
        self._respawn = Respawn()
        self._halvings = 0
        """Deaths in a row that the search for one item may take, among the most suspects that one death has had."""
        self._starved: dict[int, tuple[int, int]] = {}
        """Deaths of memory by position: all, and those while the item ran alone."""
        self._failed_at: int | None = None
        self._cancelled = self._any_ended = self._ended = False

    def step(self, event: Event) -> list[Action]:
        """Take one event into the state and return what to do now."""
        if self._ended:
            raise Bug(f"the schedule has ended, and then came {event}")
        actions: list[Action] = []
        match event:
            case Slots(count, prefetch, target_s, dispatch_s, in_jobs):
                self.slots = self._sizes.slots = count
                self._sizes.prefetch, self._sizes.target_s = prefetch, target_s
                self._sizes.dispatch_s, self._sizes.in_jobs = dispatch_s, in_jobs
                self.most_slots = max(count, self.most_slots)
            case Taken():
                self._take(event, actions)
            case Finished():
                self._finish(event, actions)
            case Partly():
                self._finish_part(event, actions)
            case Unstarted(id):
                self._put_back(self._land(id))
            case Unreadable(id):
                self._split(id, actions)
            case Died():
                self._bury(event, actions)
            case MemoryRoom():
                self._look_at_memory(event, actions)
            case DoubtOver():
                self._judge_all(actions)
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
            self._sizes.learn_taking(event.n_items, event.elapsed_s)
            self._submit(self.taken, event.n_items, actions)
            self.taken += event.n_items

    def _finish(self, event: Finished, actions: list[Action]) -> None:
        flight = self._land(event.id)
        done = event.done
        if done:
            self.tally.chunks += 1
            self._admission.calm(self.slots)
            self._learn(flight.start, event)
        elif flight.alone:
            self._put_back(flight)
            return
        if done < flight.count:
            self._repeat(flight.start + done, flight.count - done)
        self._settle_failed(flight.start, event, actions)

    def _finish_part(self, event: Partly, actions: list[Action]) -> None:
        """The rest of the ticket is in flight until it is told what became of it."""
        flight = self._flights[event.id]
        start = flight.start
        self._learn(start, event)
        flight.start, flight.count = start + event.done, flight.count - event.done
        if self.rules.bounded:
            self._open.remove(start)
            self._open.add(flight.start)
            heapq.heappush(self._starts, flight.start)
        self._settle_failed(start, event, actions)

    def _learn(self, start: int, event: Finished | Partly) -> None:
        """Items from `start` on have ended, well or not."""
        self._any_ended = True
        self._sizes.learn(start, event.done, event.elapsed_s)
        if event.size_bytes:
            self._sizes.learn_bytes(event.size_bytes / event.done)
        self.tally.busy_s += event.elapsed_s
        self.tally.finished += event.done
        self.tally.deaths_in_a_row = 0
        self._respawn.item_ended()
        self._blame.end_well(range(start, start + event.done))

    def _settle_failed(self, start: int, event: Finished | Partly, actions: list[Action]) -> None:
        """Those that raised run again, or their failure is final."""
        for offset, may_retry in event.failed:
            position = start + offset
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
        if event.id in self._evicted:
            self._put_back(self._land(event.id))
            return
        if not event.expired:
            self.tally.deaths += 1
            # Items that ended before the one it died on are work that got done.
            self.tally.deaths_in_a_row = 1 if event.first else self.tally.deaths_in_a_row + 1
            self._any_ended = self._any_ended or event.first > 0
            if event.first:
                self._respawn.item_ended()
            self._respawn.died(event.at_s)
        if event.id is None:
            self._blame.absolve()
        else:
            flight = self._land(event.id)
            if self._failed_at == -1:
                return  # the run is given up, and its workers with it: no item is to blame
            if event.out_of_memory:
                self._starve(flight, event, actions)
                return
            first, count = flight.start + event.first, event.n_items
            behind = first + count
            self._repeat(behind, flight.start + flight.count - behind)
            if self.rules.rerun_after_loss:
                self._repeat(flight.start, event.first)
                suspects = range(first, first + count)
            else:
                suspects = range(flight.start, first + count)
            if event.expired and count == 1:  # the mark names the item: no doubt is left, whoever else is in its chunk
                self._condemn(first, 1, actions)
                suspects = range(suspects.start, first)
            if not suspects and not event.expired:
                self._blame.absolve()
            self._suspect(suspects, flight.single, event.was_sent, actions)
        self._stop_if_dying()

    def _suspect(self, suspects: range, alone: bool, was_sent: bool, actions: list[Action]) -> None:
        """One of these is to blame, or nobody: run them again, fewer at once, until one has died often enough alone."""
        if not self.rules.rerun_after_loss:
            for position in suspects:
                self._condemn(position, 1, actions)
        elif len(suspects) > HALVED_ABOVE:
            self._halvings = max(self._halvings, len(suspects).bit_length())
            half = len(suspects) // 2
            self._repeat(suspects.start + half, len(suspects) - half)
            self._repeat(suspects.start, half)
        elif len(suspects) == 1:
            self._suspect_one(suspects.start, alone, was_sent)
        else:
            # At once: many of them later, one after the other, would look like workers that always die.
            self._again.extendleft((position, 1) for position in reversed(suspects))

    def _suspect_one(self, position: int, alone: bool, was_sent: bool) -> None:
        # A death that may be a neighbour's fault is no attempt: only deaths alone are counted.
        crashes = self._blame.hit(position, alone=alone, was_sent=was_sent)
        if crashes >= CRASHES_ALLOWED:
            self.tally.deaths_in_a_row = 0  # these have a limit of their own
        if crashes > CRASHES_ALLOWED:
            self._respawn.take_back()
        if not alone or not self._blame.is_enough(position):
            self._repeat(position, 1)
        else:
            self._blame.doubt(position, self._n_witnesses())

    def _condemn(self, position: int, attempts: int, actions: list[Action]) -> None:
        """This item's worker died, or was ended, and it is to blame."""
        self._blame.forget(position)
        actions.append(Settle(position, attempts))
        self.tally.finished += 1
        self.tally.deaths_in_a_row = 0
        self._count_failure(position)

    def _n_witnesses(self) -> int:
        """Tickets that have ended or died: what they tell of outsiders is known."""
        return self.tally.chunks + self.tally.deaths

    def has_doubts(self) -> bool:
        """Whether an item waits to be judged; after DOUBT_S the schedule is to be told DoubtOver."""
        return self._blame.has_doubts()

    def _judge_all(self, actions: list[Action]) -> None:
        while self.has_doubts():
            self._judge(actions)

    def _judge(self, actions: list[Action]) -> None:
        """Blame the item that has waited for longest, or let it run again if by now its deaths look like an outsider's."""
        position = self._blame.next()
        if self._blame.is_to_blame(position) or not self._may_go_on(position):
            self._condemn(position, self._blame.crashes(position), actions)
        else:
            self._repeat(position, 1)

    def _stop_if_dying(self) -> None:
        is_hopeless = not self._any_ended and self.tally.deaths > max(HOPELESS, 4 * self.most_slots)
        is_endless = self._respawn.is_endless(self.most_slots, self._halvings, any_ended=self._any_ended)
        if is_hopeless or is_endless or self.tally.deaths_in_a_row > max(IN_A_ROW, 4 * self.most_slots) + self._halvings:
            self._stop("dying", -1)

    def _starve(self, flight: _Flight, event: Died, actions: list[Action]) -> None:
        """Memory ran out on one of these items, or on a neighbour: each of them runs again, with all memory to itself."""
        self.tally.memory_deaths += 1
        if not flight.alone and not self._alone:  # what dies together with others is one lesson
            self._admission.halve(min(len(self._flights) + 1, self._admission.limit(self.slots)))
        first, behind = flight.start + event.first, flight.start + event.first + event.n_items
        self._repeat(behind, flight.start + flight.count - behind)
        if self.rules.rerun_after_loss:
            self._repeat(flight.start, event.first)
        again = []
        for position in range(first if self.rules.rerun_after_loss else flight.start, behind):
            deaths, alone = self._starved.pop(position, (0, 0))
            deaths, alone = deaths + 1, alone + flight.alone
            if not self.rules.rerun_after_loss or alone >= OOM_ALLOWED:
                actions.append(Settle(position, deaths))
                self.tally.finished += 1
                self.tally.deaths_in_a_row = 0
                self._count_failure(position)
            else:
                self._starved[position] = deaths, alone
                again.append(position)
        self._alone.extendleft(reversed(again))
        self._recall(0 if again else self._limit(), actions)
        self._stop_if_dying()

    def _look_at_memory(self, event: MemoryRoom, actions: list[Action]) -> None:
        before, running = self._limit(), len(self._flights) - len(self._evicted)
        self._admission.look(min(event.n_items, running - 1) if event.short else event.n_items, self.slots)
        if self.stopping:
            return
        if self._limit() < before:
            self._recall(self._limit(), actions)
        if event.short and running > 1 and self.rules.rerun_after_loss:
            # The youngest has done the least. It comes back as a ticket that never started, whatever its engine says of it.
            youngest = max(self._flights.keys() - self._evicted)
            self._evicted.add(youngest)
            actions.append(Cancel((youngest,), hard=True))

    def _recall(self, n_left: int, actions: list[Action]) -> None:
        """Ask all flights to end early, between items, but the oldest `n_left`."""
        surplus = tuple(sorted(self._flights)[n_left:])
        if surplus and not self.stopping:
            actions.append(Cancel(surplus, hard=False))

    def _count_failure(self, position: int) -> None:
        self.tally.failures += 1
        if self.rules.stop_at_failure:
            self._stop("failed", position)
        if self._too_many():
            self._stop("too many", -1)

    def _too_many(self) -> bool:
        limit = self.rules.max_failures
        if isinstance(limit, float):
            n_items = self.taken if self.exhausted else max(self.taken, self.rules.total or FRACTION_OF)
            limit *= n_items + self.rules.n_before
        return limit is not None and self.tally.failures + self.rules.failures_before > limit

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
        self._hand_out(actions)
        while self.has_doubts() and not self.stopping and self._is_time_to_judge():
            self._judge(actions)
            self._hand_out(actions)
        if self.stopping:
            self._wind_down(actions)
        elif self.exhausted and not (self._flights or self._again or self._alone or self.has_doubts()):
            self._end("too many" if self._too_many() else "", actions)

    def _hand_out(self, actions: list[Action]) -> None:
        if self.stopping or self._runs_alone(actions):
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

    def _is_time_to_judge(self) -> bool:
        """Whether the witnesses have been heard, or a worker has nothing else to do."""
        if self._n_witnesses() - self._blame.waits_since() >= WITNESSES:
            return True
        is_idle = len(self._flights) < self.slots and not self._asked and not self._again
        return is_idle and (self.exhausted or self._too_far_ahead())

    def _wind_down(self, actions: list[Action]) -> None:
        assert self._failed_at is not None
        self._judge_all(actions)
        before = self._failed_at
        self._again = deque((start, min(count, before - start)) for start, count in self._again if start < before)
        self._alone = deque(position for position in self._alone if position < before)
        if not self._runs_alone(actions):
            limit = self._limit()
            while self._again and (limit >= self.slots or len(self._flights) < limit):
                self._submit(*self._again.popleft(), actions)
        if not self._cancelled:
            self._cancelled = True
            late = tuple(id for id, flight in self._flights.items() if flight.start >= before)
            if late:
                actions.append(Cancel(late, hard=before < 0))
        if not self._flights and not self._alone and not self._again:
            self._end(self.stopping, actions)

    def _runs_alone(self, actions: list[Action]) -> bool:
        """Whether nothing may be handed out, since an item runs alone or is about to."""
        if self._alone and self.slots and not self._flights and not self._asked:
            self._submit(self._alone.popleft(), 1, actions, alone=True)
            return True
        return bool(self._alone) or self._n_alone > 0

    def _end(self, reason: str, actions: list[Action]) -> None:
        self._ended = True
        actions.append(Stop(reason))

    def _submit(self, start: int, count: int, actions: list[Action], alone: bool = False) -> None:
        self._flights[self._next_id] = _Flight(start, count, alone)
        self._n_alone += alone
        if self.rules.bounded:
            self._open.add(start)
            heapq.heappush(self._starts, start)
        # What another item has done to a worker must not look like the fault of this one.
        fresh = count == 1 and self._blame.is_suspected(start)
        actions.append(Submit(self._next_id, start, count, fresh))
        self._next_id += 1

    def _land(self, id: int) -> _Flight:
        flight = self._flights.pop(id)
        self._n_alone -= flight.alone
        self._open.discard(flight.start)
        self._evicted.discard(id)
        return flight

    def _put_back(self, flight: _Flight) -> None:
        """It did nothing, and that is no attempt."""
        if flight.alone:
            self._alone.appendleft(flight.start)
        else:
            self._repeat(flight.start, flight.count)

    def _repeat(self, start: int, count: int) -> None:
        if count > 0:
            self._again.appendleft((start, count))

    def _limit(self) -> int:
        """How many workers may have something to do, as memory allows."""
        limit = self._admission.limit(self.slots)
        if limit < self.slots:
            least = self.tally.memory_slots
            self.tally.memory_slots = limit if least is None else min(least, limit)
        return limit

    def _window(self) -> int:
        """How many tickets to have in flight. Where not all workers may run, none waits beside one."""
        limit = self._limit()
        return limit if limit < self.slots else self._sizes.window(self._left())

    def _left(self) -> int | None:
        """Items that are not handed out yet, when the total is known."""
        if self.exhausted:
            return sum(count for _, count in self._again) + len(self._alone)
        return None if self.rules.total is None else max(0, self.rules.total - self.taken)

    def _size(self, start: int, count: int | None) -> int:
        return self._sizes.size(start, count, self._left() if count is None else None)

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
        lowest = min([lowest, *self._alone, *self._blame.doubted()])
        return self.taken - lowest > AHEAD * 2 * self.slots * max(1, self._size(self.taken, None))

    # ---- for tests ---------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Check what must hold after every step.

        Raises:
            Bug: An invariant is broken.
        """
        single = [*self._alone, *self._blame.doubted()]
        held = sorted([(f.start, f.count) for f in self._flights.values()] + list(self._again) + [(p, 1) for p in single])
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
        n_alone = sum(flight.alone for flight in self._flights.values())
        if n_alone != self._n_alone:
            raise Bug(f"{n_alone} flights run alone, and {self._n_alone} are counted")
        if len(self._flights) > 1 and n_alone:
            raise Bug(f"an item that must run alone does not: {self._flights}")
        if any(alone >= OOM_ALLOWED for _, alone in self._starved.values()):
            raise Bug(f"an item that died of memory while it ran alone is not settled: {self._starved}")
        if self._ended and (self._flights or single or (self._again and not self.stopping)):
            raise Bug("the run ended with items open")
