"""The loop that does what the schedule says: takes items, submits chunks, gives out settled segments.

    source --take--> chunk --pack--> ticket --submit--> engine --wait--> outcome --read--> segments, failures
                       ^                                                     |
                       └------------------- schedule.step(event) <-----------┘

It runs in the caller's thread, as a generator: items are pulled, and results given out, by that thread only.
"""

import contextlib
import os
import time
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

from fourfold.distribute.blame import DOUBT_S
from fourfold.distribute.engine import NO_NEED, Engine, LoadingEngine
from fourfold.distribute.events import (
    Action,
    Cancel,
    Died,
    DoubtOver,
    Event,
    Finished,
    GraceOver,
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
from fourfold.distribute.memory import MemoryWatch
from fourfold.distribute.schedule import Schedule
from fourfold.distribute.sizes import SERVICE_S
from fourfold.errors import EngineError, NotPicklable
from fourfold.interrupts import ECHO_S, Shield, deaf_for
from fourfold.records import Chunk, ChunkResult, Kind, Need, Outcome, Segment, Ticket, Trouble

GRACE_S = 2.0
"""Seconds that a run which is stopped by a failure waits for earlier items still running: one of them may fail as well, and
the loop would have met that one first. Smaller: the error may differ from the loop's. Larger: errors come later."""

DEATH_S = 0.5
"""Seconds in which workers that are ended when a run is must be gone, so that what they have finished is recorded. Smaller: on
a busy machine it runs again. Larger: Ctrl-C takes longer when one does not go. Not measured: they take some milliseconds."""

PATIENCE_S = 0.25
"""Seconds between looks at progress and patience while nothing arrives. Not measured; only the bar depends on it, and how soon
the first Ctrl-C is answered."""

DISPATCHES = 20
"""A chunk should last so many times as long as it takes to start one. Smaller: more of the time goes into starting. Larger: a
longer tail, later first results."""

LOOP_TARGET_S = 0.01
"""Seconds of a chunk while the caller itself computes. Smaller: more time between chunks (about 30 µs each). Larger: workers
that are ready wait longer, and more results are held before they are streamed."""


class Items(Protocol):
    """Where items come from."""

    def take(self, count: int, *, copy: bool) -> Chunk | None:
        """The next items, None when there are none left; `copy`: the chunk must not depend on the user's list."""


class Codec(Protocol):
    """How chunks become payloads of one engine, and its payloads results."""

    def pack(self, chunk: Chunk) -> tuple[Any, int]:
        """The payload of a chunk, and its size in bytes."""

    def unpack(self, payload: Any) -> tuple[ChunkResult, int]:
        """The result in a payload, and its size in bytes."""

    def misfit(self, chunk: Chunk, error: BaseException) -> Trouble:
        """The trouble of a chunk of one item, which raised `error` when it was packed or its result was unpacked."""

    def killed(self, chunk: Chunk, kind: str, reason: str, evidence: str) -> Trouble:
        """The trouble of a chunk of one item, whose worker died while it ran it.

        `kind`: "crashed"; "timed out", when it was ended for that; "out of memory"; or "indeterminate", when it must not run
        again to see whether it is to blame.
        """

    def unloaded(self, chunk: Chunk, payload: Any) -> Trouble:
        """The trouble of a chunk of one item, which its worker could not load."""

    def trouble(self, payload: Any) -> Trouble:
        """The trouble in the payload of an outcome that is not DONE."""


class Judge(Protocol):
    """Knows what to do about items that failed. It keeps the failures."""

    def may_retry(self, trouble: Trouble) -> bool:
        """Whether the item may be run again for this."""

    def failed(self, index: int, item: Any, trouble: Trouble, attempts: int, worker: str) -> list[Any]:
        """Note a final failure; returns what stands in the item's place: one value, or nothing."""


class ProgramFailed(Exception):
    """The program itself failed in a worker: no item is to blame. `trouble` says why."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message)
        self.trouble = trouble


class Lane:
    """An engine, the codec that speaks to it, and what makes the program that it runs.

    `hear` gets what workers said, where an engine brings that with its outcomes. `target_s` is how long a chunk should take
    here; None: as long as suits the engine. At most `most` workers are used.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        program: Callable[[], Any],
        need: Need = NO_NEED,
        hear: Callable[[tuple[Any, ...]], None] | None = None,
        target_s: float | None = None,
        most: int | None = None,
    ) -> None:
        self._most = most
        self.engine, self.codec, self.program, self.need, self._hear = engine, codec, program, need, hear
        info = engine.info
        usual_s = LOOP_TARGET_S if info.inline else max(SERVICE_S, DISPATCHES * info.dispatch_s)
        self.target_s = usual_s if target_s is None else target_s
        self.holds_s = info.dispatch_s if info.kills == "bundle" else 0.0
        """Seconds for which tickets may be held, to be submitted together: an engine of bundles would start a job for each."""
        self._is_open = False

    def open(self) -> None:
        """Open the engine and give it the program."""
        program = self.program()
        self._is_open = True
        self.engine.open()
        self.engine.put("program", program, self.need)

    def slots(self) -> int:
        """How many tickets to run at once now."""
        slots = self.engine.slots()
        return slots if self._most is None else min(slots, self._most)

    def is_capped(self) -> bool:
        """Whether the engine would run more at once than it may: a ticket too many would not wait there."""
        return self._most is not None and self.engine.slots() > self._most

    def is_loaded(self) -> bool:
        """Whether a worker has loaded the program, where the engine lets workers do so before they have a ticket."""
        return not self.engine.info.loads_ahead or cast(LoadingEngine, self.engine).load()

    def hear(self, said: Sequence[tuple[Any, ...]]) -> None:
        """Pass on what a worker said."""
        if self._hear is not None:
            for record in said:
                self._hear(record)

    def close(self) -> None:
        """Give everything back."""
        if self._is_open:
            self._is_open = False
            self.engine.close()


class _Returned:
    """Items that came back unfinished, until they are submitted again: disjoint intervals of positions."""

    def __init__(self) -> None:
        self._intervals: dict[int, tuple[Chunk, int]] = {}
        self._starts: list[int] = []

    def put(self, chunk: Chunk, first: int = 0, count: int | None = None) -> None:
        """Keep the `count` items of the chunk from offset `first` on."""
        count = len(chunk.items) - first if count is None else count
        if count:
            start = chunk.start + first
            self._intervals[start] = (chunk, count)
            insort(self._starts, start)

    def take(self, start: int, count: int) -> Chunk:
        """Take out the items `[start, start + count)`, which lie in one interval."""
        begin = self._starts.pop(bisect_right(self._starts, start) - 1)
        chunk, length = self._intervals.pop(begin)
        self.put(chunk, begin - chunk.start, start - begin)
        self.put(chunk, start + count - chunk.start, begin + length - start - count)
        return cut(chunk, start - chunk.start, count)

    def take_all(self) -> list[Chunk]:
        """Take out what is here."""
        return [self.take(start, self._intervals[start][1]) for start in list(self._starts)]

    def drop(self, position: int) -> None:
        """Forget one item, if it is here."""
        if position in self._intervals:
            self.take(position, 1)


def cut(chunk: Chunk, first: int, count: int) -> Chunk:
    """The part of a chunk with the `count` items from offset `first` on."""
    if first == 0 and count == len(chunk.items):
        return chunk
    indices = chunk.indices[first : first + count] if chunk.indices is not None else None
    return Chunk(chunk.start + first, chunk.items[first : first + count], indices)


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
        self._absent, self._choose, self._lane_failed, self._beat = absent, choose, lane_failed, beat
        self._starting, self._not_started, self._record = starting, not_started, record
        self.memory = memory or MemoryWatch()
        self._next_lane: Lane | None = None
        self._taken: Chunk | None = None
        self._source_error: Exception | None = None
        self._shield = Shield()
        self._held: list[Ticket] = []
        self._held_since = 0.0
        self._flying: dict[int, Chunk] = {}
        self._sizes: dict[int, int] = {}
        self._returned = _Returned()
        self._last: dict[int, tuple[int, Any, Trouble, str]] = {}
        self._events: list[Event] = []
        self._ready: deque[Segment] = deque()
        self._slots, self._prefetch = 0, True
        self._end: Stop | None = None
        self._give_up_at: float | None = None
        self._judge_at: float | None = None
        self._ends_at: float | None = None
        self._pid = os.getpid()
        self._is_closed = False
        self._since_choice: tuple[Chunk, ChunkResult] | None = None
        self.last_loss = self.last_evidence = ""
        self.most_slots = 0
        self.sent_bytes = self.returned_bytes = 0
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
                while self._ready:
                    yield self._ready.popleft()
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
                if isinstance(error, KeyboardInterrupt) and self._flying and self._record is not None:
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
            self._events.append(room)
        self._settle_events()
        if self._beat is not None:
            # Who takes results one by one may keep us waiting for as long as it likes; and what may not run twice is not lost.
            self._beat(bool(self._ready) and (self.schedule.rules.bounded or self._starting is not None))

    def _wind_up(self, is_interrupted: bool) -> None:
        """The run is ended from outside. A second Ctrl-C ends at once what still runs."""
        if self._record is None or os.getpid() != self._pid:
            return
        self._ends_at = self._ends_at or self._shield.heard_at or time.monotonic()
        echo_s = self._ends_at + ECHO_S - time.monotonic()
        deaf = deaf_for(echo_s) if is_interrupted else contextlib.nullcontext()
        with deaf, contextlib.suppress(Exception):  # what ended the run is the one to tell
            while self._held:
                self._returned.put(self._flying.pop(self._held.pop().id))
            try:
                self._await_the_running()
            finally:
                self._note_what_may_not_run_twice()

    def _await_the_running(self) -> None:
        engine, deadline = self.lane.engine, time.monotonic() + GRACE_S
        engine.cancel()
        while self._flying and (left := deadline - time.monotonic()) > 0:
            for outcome in engine.wait(left):
                if outcome.kind is Kind.ENGINE_DOWN:
                    return
                self._hear(outcome)
            if self._beat is not None:
                self._beat(True)
            if engine.info.inline:
                return  # what it was on was ended by what ends the run; only what it had not begun is told of
        if self._flying and engine.info.kills == "ticket" and not engine.info.elsewhere:
            self._take_what_outlives_its_worker()

    def _take_what_outlives_its_worker(self) -> None:
        """End the items that do not end by themselves, and record what has finished before them in their chunks."""
        engine, deadline = self.lane.engine, time.monotonic() + DEATH_S
        engine.cancel(hard=True)
        while self._flying and (left := deadline - time.monotonic()) > 0:
            for outcome in engine.wait(left):
                if outcome.kind is Kind.ENGINE_DOWN:
                    return
                if outcome.kept and outcome.id in self._flying:
                    self._take_kept(outcome)
                elif outcome.kind is Kind.DONE:
                    self._hear(outcome)
                else:
                    self._flying.pop(outcome.id, None)  # nobody is to blame for what is ended here
        if self._beat is not None:
            self._beat(True)

    def _note_what_may_not_run_twice(self) -> None:
        """What has failed since the schedule was asked last, and what was handed out and never began."""
        if self._starting is None or self._not_started is None:
            return
        for position, (index, item, trouble, worker) in self._last.items():
            self._returned.drop(position)
            self.judge.failed(index, item, trouble, 1, worker)
        self._last.clear()
        for chunk in self._returned.take_all():
            self._not_started(chunk)

    def ready(self) -> list[Segment]:
        """The segments that were not given out yet."""
        return list(self._ready)

    @property
    def reason(self) -> str:
        """Why the run ended: "" when all is done."""
        return self._end.reason if self._end is not None else ""

    def index_of(self, ticket: int, offset: int) -> int | None:
        """The input index of the item at an offset of a ticket; None when the ticket has ended."""
        chunk = self._flying.get(ticket)
        return chunk.index_of(offset) if chunk is not None and offset < len(chunk.items) else None

    # ---- which lane, and how wide ------------------------------------------------------------------------------------

    def _look_at_slots(self) -> None:
        slots = self.lane.slots()
        prefetch = not self.lane.engine.info.inline and not self.lane.is_capped()
        if (slots, prefetch) != (self._slots, self._prefetch):
            self._slots, self._prefetch = slots, prefetch
            self.most_slots = max(slots, self.most_slots)
            info = self.lane.engine.info
            self._events.append(Slots(slots, prefetch, self.lane.target_s, info.dispatch_s, info.kills == "bundle"))

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
                if self._next_lane.is_loaded() and self._next_lane.engine.slots() and not self._flying:
                    self.lane.close()
                    self.lane, self._next_lane, self._choose = self._next_lane, None, None
                    self._slots = 0
        except (EngineError, NotPicklable) as error:
            assert self._lane_failed is not None
            self._lane_failed(error)
            if self._next_lane is not None:
                self._next_lane.close()
            self._next_lane = self._choose = None

    # ---- events to actions -------------------------------------------------------------------------------------------

    def _settle_events(self) -> None:
        """Step the schedule until no event is left."""
        while self._events and self._end is None:
            events, self._events = self._events, []
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
                index, item, trouble, worker = self._last.pop(position)
                self._returned.drop(position)
                values = self.judge.failed(index, item, trouble, attempts, worker)
                if self._absent is not None:
                    values = [self._absent(index)]
                self._ready.append(Segment(position, 1, values))
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
            self._events.append(Taken(0, exhausted=True))
            return
        # A source that says its length too small must still be read to its end: only an empty take is the end.
        elapsed = time.perf_counter() - begin
        self._events.append(Taken(len(chunk.items), exhausted=False, elapsed_s=elapsed))

    def _submit(self, order: Submit) -> None:
        id, start, count, fresh = order
        chunk, self._taken = self._taken, None
        if chunk is None or chunk.start != start:
            self._taken = chunk
            chunk = self._returned.take(start, count)
        if self._starting is not None:
            try:
                self._starting(chunk)
            except BaseException:
                self._returned.put(chunk)  # it does not start
                raise
        self._flying[id] = chunk
        try:
            payload, size_bytes = self.lane.codec.pack(chunk)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._unreadable(id, error)
            return
        self.sent_bytes += size_bytes
        self._sizes[id] = size_bytes
        if not self._held:
            self._held_since = time.monotonic()
        self._held.append(Ticket(id, "program", payload, count, fresh))

    def _unreadable(self, id: int, error: BaseException) -> None:
        """A chunk cannot be packed, or its result cannot be unpacked."""
        chunk = self._flying.pop(id)
        if len(chunk.items) == 1:
            self._last[chunk.start] = (chunk.index_of(0), chunk.items[0], self.lane.codec.misfit(chunk, error), "")
        else:
            self._returned.put(chunk)
        self._events.append(Unreadable(id))

    # ---- outcomes to events ------------------------------------------------------------------------------------------

    def _await(self) -> None:
        timeout = PATIENCE_S
        for deadline in (self._give_up_at, self._judge_at):
            if deadline is not None:
                timeout = min(timeout, max(0.0, deadline - time.monotonic()))
        with self._shield.lifted() if self.lane.engine.info.inline else contextlib.nullcontext():
            outcomes = self.lane.engine.wait(timeout)
        for outcome in outcomes:
            self._hear(outcome)
        if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
            self._give_up_at = float("inf")
            self._events.append(GraceOver())
        if self._judge_at is not None and time.monotonic() >= self._judge_at:
            self._judge_at = None
            self._events.append(DoubtOver())

    def _hear(self, outcome: Outcome) -> None:
        if outcome.id >= 0 and outcome.id not in self._flying and outcome.kind not in (Kind.BAD_PROGRAM, Kind.ENGINE_DOWN):
            return  # its ticket has ended: the first that is told of a ticket holds
        if outcome.said:
            self.lane.hear(outcome.said)
        sent_bytes = self._sizes.pop(outcome.id, 0)
        match outcome.kind:
            case Kind.DONE:
                self._done(outcome, sent_bytes)
            case Kind.BAD_PROGRAM:
                raise ProgramFailed(self.lane.codec.trouble(outcome.data))
            case Kind.ENGINE_DOWN:
                raise EngineError(outcome.reason)
            case Kind.COLLATERAL | Kind.CANCELLED:
                self._returned.put(self._flying.pop(outcome.id))
                self._events.append(Unstarted(outcome.id))
            case Kind.BAD_TICKET:
                chunk = self._flying.pop(outcome.id)
                if len(chunk.items) == 1:
                    trouble = self.lane.codec.unloaded(chunk, outcome.data)
                    self._last[chunk.start] = (chunk.index_of(0), chunk.items[0], trouble, outcome.worker)
                else:
                    self._returned.put(chunk)
                self._events.append(Unreadable(outcome.id))
            case Kind.LOST | Kind.EXPIRED:
                self._lost(outcome)

    def _done(self, outcome: Outcome, sent_bytes: int) -> None:
        chunk = self._flying[outcome.id]
        try:
            result, size_bytes = self.lane.codec.unpack(outcome.data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._unreadable(outcome.id, error)
            return
        del self._flying[outcome.id]
        self.returned_bytes += size_bytes
        if result.done < len(chunk.items):
            self._returned.put(chunk, result.done)
        failed = self._take_in(chunk, result, outcome.worker)
        larger_bytes = max(sent_bytes * result.done // len(chunk.items), size_bytes)
        self._events.append(Finished(outcome.id, result.done, failed, result.elapsed_s, larger_bytes))
        if self._choose is not None:
            self._since_choice = (chunk, result)
            self.n_looped += result.done

    def _take_in(self, chunk: Chunk, result: ChunkResult, worker: str) -> list[tuple[int, bool]]:
        """Give out the values; returns the offsets of the items that failed, and whether they may be tried again."""
        failed = []
        for trouble in result.troubles:
            position = chunk.start + trouble.offset
            offset = trouble.offset
            self._last[position] = (chunk.index_of(offset), chunk.items[offset], trouble, worker)
            may_retry = self.judge.may_retry(trouble)
            if may_retry:
                self._returned.put(chunk, trouble.offset, 1)
            failed.append((trouble.offset, may_retry))
        if result.done:  # it may have been cancelled before its first item
            self._give(chunk, result)
        return failed

    def _give(self, chunk: Chunk, result: ChunkResult) -> None:
        """Make segments of the values, which leave out the failed items: those come when they are settled."""
        if self._absent is not None:
            holes = tuple(trouble.offset for trouble in result.troubles)
            segments = [Segment(chunk.start, result.done - len(holes), result.values, holes)]
        elif not result.troubles:
            segments = [Segment(chunk.start, result.done, result.values)]
        else:
            segments, begin = [], 0
            for hole in [*(trouble.offset for trouble in result.troubles), result.done]:
                if hole > begin:
                    segments.append(Segment(chunk.start + begin, hole - begin, result.values[begin:hole]))
                begin = hole + 1
        self._ready.extend(segments)
        if self._record is not None:
            for segment in segments:
                self._record(segment)

    def _take_kept(self, outcome: Outcome) -> tuple[Chunk | None, int]:
        """Take in what outlived the worker of a ticket.

        Returns:
            The rest of its chunk, None when nothing is left, and how many items came before it.
        """
        whole = chunk = self._flying.pop(outcome.id)
        for payload in outcome.kept:
            try:
                result, size_bytes = self.lane.codec.unpack(payload)
            except KeyboardInterrupt:
                raise
            except BaseException:
                break  # with the rest, then
            failed = self._take_in(cut(chunk, 0, result.done), result, outcome.worker)
            self.returned_bytes += size_bytes
            is_rest = result.done < len(chunk.items)
            kind = Partly if is_rest else Finished
            self._events.append(kind(outcome.id, result.done, failed, result.elapsed_s, size_bytes))
            if not is_rest:
                return None, len(whole.items)
            chunk = cut(chunk, result.done, len(chunk.items) - result.done)
        return chunk, len(whole.items) - len(chunk.items)

    def _lost(self, outcome: Outcome) -> None:
        expired = outcome.kind is Kind.EXPIRED
        reason = outcome.reason
        if not self.schedule.stopping:  # after that, workers die of our own hand
            self.last_loss, self.last_evidence = reason, outcome.evidence
        if outcome.out_of_memory:
            reason += self.memory.what_is_known()
        chunk, n_kept = self._take_kept(outcome) if outcome.id in self._flying else (None, 0)
        if chunk is None:
            self._events.append(Died(None, 0, 0, expired, outcome.out_of_memory, time.monotonic()))
            return
        kind = "crashed" if self.schedule.rules.rerun_after_loss else "indeterminate"
        kind = "timed out" if expired else "out of memory" if outcome.out_of_memory else kind
        first, count = outcome.running or (n_kept, len(chunk.items))
        end = min(first + count - n_kept, len(chunk.items))  # it may have died between noting the one and the other
        first = max(0, first - n_kept)
        count = max(0, end - first)
        for offset in range(first, first + count):
            one = cut(chunk, offset, 1)
            trouble = self.lane.codec.killed(one, kind, reason, outcome.evidence)
            self._last[chunk.start + offset] = (chunk.index_of(offset), one.items[0], trouble, outcome.worker)
        self._returned.put(chunk)
        self._events.append(Died(outcome.id, first, count, expired, outcome.out_of_memory, time.monotonic()))
