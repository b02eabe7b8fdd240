"""What comes back: outcomes become events for the schedule, and segments for the user.

Here is known which items are in flight, which came back unfinished, and why each last failed.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from fourfold.distribute.events import Died, Event, Finished, Partly, Unreadable, Unstarted
from fourfold.distribute.lane import Lane
from fourfold.distribute.memory import MemoryWatch
from fourfold.distribute.returned import Returned, cut
from fourfold.distribute.schedule import Schedule
from fourfold.errors import EngineError
from fourfold.records import Chunk, ChunkResult, Kind, Outcome, Segment, Trouble


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


class Inbox:
    """What has come back of one run, and what is still to come.

    Args:
        lane: Where chunks run; another one after a change.
        schedule: Only asked, never told.
        judge: Keeps failures.
        memory: Knows why memory ran out.
        absent: None, or chunks come back folded.
        record: None, or told of each segment of values as soon as it is there.

    Attributes:
        flying: The chunk of each ticket in flight; `sizes`: how many bytes each took there.
        returned: Items that came back unfinished.
        last: By position, of items that failed: index, item, trouble, worker.
        events: For the schedule, in the order in which they came.
        ready: Segments to be given out.
        on_done: None, or told of each chunk that was done, and its result.
        last_loss: What the last worker died of; `last_evidence`: what it left.
    """

    def __init__(
        self,
        lane: Lane,
        schedule: Schedule,
        judge: Judge,
        memory: MemoryWatch,
        absent: Callable[[int], Any] | None,
        record: Callable[[Segment], None] | None,
    ) -> None:
        self.lane, self._schedule, self._judge, self._memory = lane, schedule, judge, memory
        self._absent, self._record = absent, record
        self.flying: dict[int, Chunk] = {}
        self.sizes: dict[int, int] = {}
        self.returned = Returned()
        self.last: dict[int, tuple[int, Any, Trouble, str]] = {}
        self.events: list[Event] = []
        self.ready: deque[Segment] = deque()
        self.on_done: Callable[[Chunk, ChunkResult], None] | None = None
        self.returned_bytes = 0
        self.last_loss = self.last_evidence = ""

    def settle(self, position: int, attempts: int) -> None:
        """The failure of this item is final."""
        index, item, trouble, worker = self.last.pop(position)
        self.returned.drop(position)
        values = self._judge.failed(index, item, trouble, attempts, worker)
        if self._absent is not None:
            values = [self._absent(index)]
        self.ready.append(Segment(position, 1, values))

    def unreadable(self, id: int, error: BaseException) -> None:
        """A chunk cannot be packed, or its result cannot be unpacked."""
        chunk = self.flying.pop(id)
        if len(chunk.items) == 1:
            self.last[chunk.start] = (chunk.index_of(0), chunk.items[0], self.lane.codec.misfit(chunk, error), "")
        else:
            self.returned.put(chunk)
        self.events.append(Unreadable(id))

    def hear(self, outcome: Outcome) -> None:
        """Take in what became of a ticket.

        Raises:
            ProgramFailed: See there.
            EngineError: The engine has no worker left and can start none.
        """
        if outcome.id >= 0 and outcome.id not in self.flying and outcome.kind not in (Kind.BAD_PROGRAM, Kind.ENGINE_DOWN):
            return  # its ticket has ended: the first that is told of a ticket holds
        if outcome.said:
            self.lane.hear(outcome.said)
        sent_bytes = self.sizes.pop(outcome.id, 0)
        match outcome.kind:
            case Kind.DONE:
                self._done(outcome, sent_bytes)
            case Kind.BAD_PROGRAM:
                raise ProgramFailed(self.lane.codec.trouble(outcome.data))
            case Kind.ENGINE_DOWN:
                raise EngineError(outcome.reason)
            case Kind.COLLATERAL | Kind.CANCELLED:
                self.returned.put(self.flying.pop(outcome.id))
                self.events.append(Unstarted(outcome.id))
            case Kind.BAD_TICKET:
                chunk = self.flying.pop(outcome.id)
                if len(chunk.items) == 1:
                    trouble = self.lane.codec.unloaded(chunk, outcome.data)
                    self.last[chunk.start] = (chunk.index_of(0), chunk.items[0], trouble, outcome.worker)
                else:
                    self.returned.put(chunk)
                self.events.append(Unreadable(outcome.id))
            case Kind.LOST | Kind.EXPIRED:
                self._lost(outcome)

    def _done(self, outcome: Outcome, sent_bytes: int) -> None:
        chunk = self.flying[outcome.id]
        try:
            result, size_bytes = self.lane.codec.unpack(outcome.data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.unreadable(outcome.id, error)
            return
        del self.flying[outcome.id]
        self.returned_bytes += size_bytes
        if result.done < len(chunk.items):
            self.returned.put(chunk, result.done)
        failed = self._take_in(chunk, result, outcome.worker)
        larger_bytes = max(sent_bytes * result.done // len(chunk.items), size_bytes)
        self.events.append(Finished(outcome.id, result.done, failed, result.elapsed_s, larger_bytes))
        if self.on_done is not None:
            self.on_done(chunk, result)

    def _take_in(self, chunk: Chunk, result: ChunkResult, worker: str) -> list[tuple[int, bool]]:
        """Give out the values; returns the offsets of the items that failed, and whether they may be tried again."""
        failed = []
        for trouble in result.troubles:
            position = chunk.start + trouble.offset
            offset = trouble.offset
            self.last[position] = (chunk.index_of(offset), chunk.items[offset], trouble, worker)
            may_retry = self._judge.may_retry(trouble)
            if may_retry:
                self.returned.put(chunk, trouble.offset, 1)
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
        self.ready.extend(segments)
        if self._record is not None:
            for segment in segments:
                self._record(segment)

    def take_kept(self, outcome: Outcome) -> tuple[Chunk | None, int]:
        """Take in what outlived the worker of a ticket.

        Returns:
            The rest of its chunk, None when nothing is left, and how many items came before it.
        """
        whole = chunk = self.flying.pop(outcome.id)
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
            self.events.append(kind(outcome.id, result.done, failed, result.elapsed_s, size_bytes))
            if not is_rest:
                return None, len(whole.items)
            chunk = cut(chunk, result.done, len(chunk.items) - result.done)
        return chunk, len(whole.items) - len(chunk.items)

    def _lost(self, outcome: Outcome) -> None:
        expired = outcome.kind is Kind.EXPIRED
        reason = outcome.reason
        if not self._schedule.stopping:  # after that, workers die of our own hand
            self.last_loss, self.last_evidence = reason, outcome.evidence
        if outcome.out_of_memory:
            reason += self._memory.what_is_known()
        chunk, n_kept = self.take_kept(outcome) if outcome.id in self.flying else (None, 0)
        if chunk is None:
            self.events.append(Died(None, 0, 0, expired, outcome.out_of_memory, time.monotonic()))
            return
        kind = "crashed" if self._schedule.rules.rerun_after_loss else "indeterminate"
        kind = "timed out" if expired else "out of memory" if outcome.out_of_memory else kind
        first, count = outcome.running or (n_kept, len(chunk.items))
        end = min(first + count - n_kept, len(chunk.items))  # it may have died between noting the one and the other
        first = max(0, first - n_kept)
        count = max(0, end - first)
        for offset in range(first, first + count):
            one = cut(chunk, offset, 1)
            trouble = self.lane.codec.killed(one, kind, reason, outcome.evidence)
            self.last[chunk.start + offset] = (chunk.index_of(offset), one.items[0], trouble, outcome.worker)
        self.returned.put(chunk)
        told = Died(outcome.id, first, count, expired, outcome.out_of_memory, time.monotonic(), outcome.was_sent)
        self.events.append(told)
