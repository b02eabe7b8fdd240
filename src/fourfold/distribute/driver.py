"""The loop that does what the schedule says: takes items, submits chunks, gives out settled segments.

    source --take--> chunk --pack--> ticket --submit--> engine --wait--> outcome --read--> segments, failures
                       ^                                                     |
                       └------------------- schedule.step(event) <-----------┘

It runs in the caller's thread, as a generator: items are pulled, and results given out, by that thread only.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from fourfold.distribute.blame import DOUBT_S
from fourfold.distribute.events import (
    Action,
    Cancel,
    DoubtOver,
    GraceOver,
    Settle,
    Slots,
    Stop,
    Submit,
    Take,
    Taken,
)
from fourfold.distribute.inbox import Inbox, Judge
from fourfold.distribute.lane import Lane
from fourfold.distribute.memory import MemoryWatch
from fourfold.distribute.schedule import Schedule
from fourfold.errors import EngineError, NotPicklable
from fourfold.records import Chunk, ChunkResult, Kind, Segment, Ticket
from fourfold.system.interrupts import ECHO_S, Shield, deaf_for

GRACE_S = 2.0
"""Seconds that a run which is stopped by a failure waits for earlier items still running: one of them may fail as well, and
the loop would have met that one first. Smaller: the error may differ from the loop's. Larger: errors come later."""

DEATH_S = 0.5
"""Seconds in which workers that are ended when a run is must be gone, so that what they have finished is recorded. Smaller: on
a busy machine it runs again. Larger: Ctrl-C takes longer when one does not go. Not measured: they take some milliseconds."""

PATIENCE_S = 0.25
"""Seconds between looks at progress and patience while nothing arrives. Not measured; only the bar depends on it, and how soon
the first Ctrl-C is answered."""


class Items(Protocol):
    """Where items come from."""

    def take(self, count: int, *, copy: bool) -> Chunk | None:
        """The next items, None when there are none left; `copy`: the chunk must not depend on the user's list."""


class Driver:
    """One run.

    Args:
        source: The items.
        schedule: The decisions.
        lane: Where chunks run.
        judge: Keeps failures.
        absent: None, or chunks come back folded and this gives the partial result of a failed item.
        choose: Called between chunks while `lane` is the loop of `engine="auto"`, with the chunk and the result that just
            came; returns a lane to change over to as soon as it has a worker, or None to stay.
        lane_failed: Told why the lane that `choose` returned could not be started.
        beat: Called after each wait, and before results are given out, for progress and the record: with True when what is
            recorded must outlive this process from now on.
        starting: None, or told of each chunk before it is submitted: its items may have effects from then on.
        not_started: Told, when the run ends early, of those of these chunks of which nothing has run.
        record: None, or told of each segment of values as soon as it is there. Then also, when the run is ended from outside,
            up to GRACE_S is waited for what runs.
        memory: Looks at memory.
    """

    def __init__(
        self,
        source: Items,
        schedule: Schedule,
        lane: Lane,
        judge: Judge,
        *,
        absent: Callable[[int], Any] | None = None,
        choose: Callable[[Chunk, ChunkResult], Lane | None] | None = None,
        lane_failed: Callable[[Exception], None] | None = None,
        beat: Callable[[bool], None] | None = None,
        starting: Callable[[Chunk], None] | None = None,
        not_started: Callable[[Chunk], None] | None = None,
        record: Callable[[Segment], None] | None = None,
        memory: MemoryWatch | None = None,
    ) -> None:
        self.source, self.schedule, self.lane, self.judge = source, schedule, lane, judge
        self._choose, self._lane_failed, self._beat = choose, lane_failed, beat
        self._starting, self._not_started, self._record = starting, not_started, record
        self.memory = memory or MemoryWatch()
        self.inbox = Inbox(lane, schedule, judge, self.memory, absent, record)
        if choose is not None:
            self.inbox.on_done = self._note_done
        self._next_lane: Lane | None = None
        self._taken: Chunk | None = None
        self._source_error: Exception | None = None
        self._shield = Shield()
        self._held: list[Ticket] = []
        self._held_since = 0.0
        self._slots, self._prefetch = 0, True
        self._end: Stop | None = None
        self._give_up_at: float | None = None
        self._judge_at: float | None = None
        self._ends_at: float | None = None
        self._pid = os.getpid()
        self._is_closed = False
        self._since_choice: tuple[Chunk, ChunkResult] | None = None
        self.most_slots = self.sent_bytes = 0
        self.n_looped = 0
        """Items that the loop of `engine="auto"` has run."""

    def run(self) -> Iterator[Segment]:
        """Run to the end; yields segments of settled positions, each position once, in any order.

        Raises:
            ProgramFailed: See there.
            EngineError: The engine has no worker left and can start none.
            Exception: Whatever the source raises.
        """
        try:
            self.lane.open()
            with self._shielded():
                self._hand_out()
            while True:
                while self.inbox.ready:
                    yield self.inbox.ready.popleft()
                if self._end is not None:
                    break
                self._step()
            self._note_what_may_not_run_twice()
            if self._source_error is not None and not self.reason:
                raise self._source_error
        except BaseException as error:
            try:
                # Nothing stands before this try: a call is where Python looks whether there was another Ctrl-C.
                try:
                    self._wind_up(isinstance(error, KeyboardInterrupt))
                except KeyboardInterrupt:
                    is_echo = isinstance(error, KeyboardInterrupt)
                    if not is_echo or (self._ends_at is not None and time.monotonic() > self._ends_at + ECHO_S):
                        raise
                    self._wind_up(is_interrupted=True)  # it was the echo, before anybody was deaf to it
            finally:
                if isinstance(error, KeyboardInterrupt) and self.inbox.flying and self._record is not None:
                    self.lane.engine.cancel(hard=True)
            raise
        finally:
            try:
                with self._shield:
                    self._close()
            finally:
                self._close()  # an interrupt may have come before the shield was up

    def _close(self) -> None:
        """Give all back; nothing when that was done."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.memory.last_look(self.lane.engine)
        finally:
            self.lane.close()
            if self._next_lane is not None:
                self._next_lane.close()

    def _is_free(self) -> bool:
        """Whether it is a loop whose results nobody records: it has nothing to note, and ends at once."""
        return self.lane.engine.info.inline and self._record is None

    def _shielded(self) -> contextlib.AbstractContextManager[None]:
        """Where a driver notes what it does, no interrupt comes between."""
        return contextlib.nullcontext() if self._is_free() else self._shield

    def _step(self) -> None:
        """Wait for outcomes and act on them: what is given out afterwards is recorded, and workers have their next chunks."""
        if was_free := self._is_free():
            self._await()
            self._consider()
        with self._shielded():
            if not was_free:
                self._await()
                self._consider()
            if self._beat is not None:  # before the next items are taken: that may take for ever
                self._beat(False)
            self._hand_out()

    def _hand_out(self) -> None:
        """Do all that can be done now."""
        self._look_at_slots()
        room = self.memory.look(self.lane.engine, self._slots)
        if room is not None:
            self.inbox.events.append(room)
        self._settle_events()
        if self._beat is not None:
            # Who takes results one by one may keep us waiting for as long as it likes; and what may not run twice is not lost.
            self._beat(bool(self.inbox.ready) and (self.schedule.rules.bounded or self._starting is not None))

    def _wind_up(self, is_interrupted: bool) -> None:
        """The run is ended from outside. A second Ctrl-C ends at once what still runs."""
        if self._record is None or os.getpid() != self._pid:
            return
        self._ends_at = self._ends_at or self._shield.heard_at or time.monotonic()
        echo_s = self._ends_at + ECHO_S - time.monotonic()
        deaf = deaf_for(echo_s) if is_interrupted else contextlib.nullcontext()
        with deaf, contextlib.suppress(Exception):  # what ended the run is the one to tell
            while self._held:
                self.inbox.returned.put(self.inbox.flying.pop(self._held.pop().id))
            try:
                self._await_the_running()
            finally:
                self._note_what_may_not_run_twice()

    def _await_the_running(self) -> None:
        engine, deadline = self.lane.engine, time.monotonic() + GRACE_S
        engine.cancel()
        while self.inbox.flying and (left := deadline - time.monotonic()) > 0:
            for outcome in engine.wait(left):
                if outcome.kind is Kind.ENGINE_DOWN:
                    return
                self.inbox.hear(outcome)
            if self._beat is not None:
                self._beat(True)
            if engine.info.inline:
                return  # what it was on was ended by what ends the run; only what it had not begun is told of
        if self.inbox.flying and engine.info.kills == "ticket" and not engine.info.elsewhere:
            self._take_what_outlives_its_worker()

    def _take_what_outlives_its_worker(self) -> None:
        """End the items that do not end by themselves, and record what has finished before them in their chunks."""
        engine, deadline = self.lane.engine, time.monotonic() + DEATH_S
        engine.cancel(hard=True)
        while self.inbox.flying and (left := deadline - time.monotonic()) > 0:
            for outcome in engine.wait(left):
                if outcome.kind is Kind.ENGINE_DOWN:
                    return
                if outcome.kept and outcome.id in self.inbox.flying:
                    self.inbox.take_kept(outcome)
                elif outcome.kind is Kind.DONE:
                    self.inbox.hear(outcome)
                else:
                    self.inbox.flying.pop(outcome.id, None)  # nobody is to blame for what is ended here
        if self._beat is not None:
            self._beat(True)

    def _note_what_may_not_run_twice(self) -> None:
        """What has failed since the schedule was asked last, and what was handed out and never began."""
        if self._starting is None or self._not_started is None:
            return
        for position, (index, item, trouble, worker) in self.inbox.last.items():
            self.inbox.returned.drop(position)
            self.judge.failed(index, item, trouble, 1, worker)
        self.inbox.last.clear()
        for chunk in self.inbox.returned.take_all():
            self._not_started(chunk)

    def ready(self) -> list[Segment]:
        """The segments that were not given out yet."""
        return list(self.inbox.ready)

    @property
    def reason(self) -> str:
        """Why the run ended: "" when all is done."""
        return self._end.reason if self._end is not None else ""

    def index_of(self, ticket: int, offset: int) -> int | None:
        """The input index of the item at an offset of a ticket; None when the ticket has ended."""
        chunk = self.inbox.flying.get(ticket)
        return chunk.index_of(offset) if chunk is not None and offset < len(chunk.items) else None

    # ---- which lane, and how wide ------------------------------------------------------------------------------------

    def _look_at_slots(self) -> None:
        slots = self.lane.slots()
        prefetch = not self.lane.engine.info.inline and not self.lane.is_capped()
        if (slots, prefetch) != (self._slots, self._prefetch):
            self._slots, self._prefetch = slots, prefetch
            self.most_slots = max(slots, self.most_slots)
            info = self.lane.engine.info
            self.inbox.events.append(Slots(slots, prefetch, self.lane.target_s, info.dispatch_s, info.kills == "bundle"))

    def change_over(self, lane: Lane) -> None:
        """Run on this lane from now on; nothing may be under way on the one before."""
        self.lane = self.inbox.lane = lane
        self._slots = 0

    def _note_done(self, chunk: Chunk, result: ChunkResult) -> None:
        self._since_choice = (chunk, result)
        self.n_looped += result.done

    def _consider(self) -> None:
        """Stay the loop, start workers, or change over to them."""
        if self._choose is None or self._since_choice is None or self.schedule.stopping:
            return
        (chunk, result), self._since_choice = self._since_choice, None
        try:
            if self._next_lane is None:
                self._next_lane = self._choose(chunk, result)
                if self._next_lane is not None:
                    self._next_lane.open()
            if self._next_lane is not None:
                for outcome in self._next_lane.engine.wait(0):
                    if outcome.kind is Kind.ENGINE_DOWN:
                        raise EngineError(outcome.reason)
                if self._next_lane.is_loaded() and self._next_lane.engine.slots() and not self.inbox.flying:
                    self.lane.close()
                    self.change_over(self._next_lane)
                    self._next_lane = self._choose = self.inbox.on_done = None
        except (EngineError, NotPicklable) as error:
            assert self._lane_failed is not None
            self._lane_failed(error)
            if self._next_lane is not None:
                self._next_lane.close()
            self._next_lane = self._choose = self.inbox.on_done = None

    # ---- events to actions -------------------------------------------------------------------------------------------

    def _settle_events(self) -> None:
        """Step the schedule until no event is left."""
        while self.inbox.events and self._end is None:
            events, self.inbox.events = self.inbox.events, []
            for event in events:
                for action in self.schedule.step(event) if self._end is None else ():
                    self._act(action)
            if self._held and time.monotonic() >= self._held_since + self.lane.holds_s:
                self._let_go()
        if self._held:
            self._let_go()
        if self.schedule.stopping and self._give_up_at is None:
            self._give_up_at = time.monotonic() + GRACE_S
        if not self.schedule.has_doubts():
            self._judge_at = None
        elif self._judge_at is None:
            self._judge_at = time.monotonic() + DOUBT_S

    def _let_go(self) -> None:
        tickets, self._held = self._held, []
        self.lane.engine.submit(tickets)

    def _act(self, action: Action) -> None:
        match action:
            case Take(count):
                self._take(count)
            case Submit():
                self._submit(action)
            case Settle(position, attempts):
                self.inbox.settle(position, attempts)
            case Cancel(ids, hard):
                self._let_go()  # it may speak of one of these
                self.lane.engine.cancel(ids, hard=hard)
            case Stop():
                self._end = action

    def _take(self, count: int) -> None:
        begin = time.perf_counter()
        try:
            at_once = self.lane.engine.info.inline and not self.schedule.rules.bounded
            with self._shield.lifted():
                self._taken = chunk = self.source.take(count, copy=not at_once)
        except Exception as error:
            # It ends the run, but after the items before it, as in the loop: one of them may fail first.
            self._taken, self._source_error = None, error
            chunk = None
        if chunk is None:
            self.inbox.events.append(Taken(0, exhausted=True))
            return
        # A source that says its length too small must still be read to its end: only an empty take is the end.
        elapsed = time.perf_counter() - begin
        self.inbox.events.append(Taken(len(chunk.items), exhausted=False, elapsed_s=elapsed))

    def _submit(self, order: Submit) -> None:
        id, start, count, fresh = order
        chunk, self._taken = self._taken, None
        if chunk is None or chunk.start != start:
            self._taken = chunk
            chunk = self.inbox.returned.take(start, count)
        if self._starting is not None:
            try:
                self._starting(chunk)
            except BaseException:
                self.inbox.returned.put(chunk)  # it does not start
                raise
        self.inbox.flying[id] = chunk
        try:
            payload, size_bytes = self.lane.codec.pack(chunk)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.inbox.unreadable(id, error)
            return
        self.sent_bytes += size_bytes
        self.inbox.sizes[id] = size_bytes
        if not self._held:
            self._held_since = time.monotonic()
        self._held.append(Ticket(id, "program", payload, count, fresh))

    def _await(self) -> None:
        timeout = PATIENCE_S
        for deadline in (self._give_up_at, self._judge_at):
            if deadline is not None:
                timeout = min(timeout, max(0.0, deadline - time.monotonic()))
        with self._shield.lifted() if self.lane.engine.info.inline else contextlib.nullcontext():
            outcomes = self.lane.engine.wait(timeout)
        for outcome in outcomes:
            self.inbox.hear(outcome)
        if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
            self._give_up_at = float("inf")
            self.inbox.events.append(GraceOver())
        if self._judge_at is not None and time.monotonic() >= self._judge_at:
            self._judge_at = None
            self.inbox.events.append(DoubtOver())
