"""What a chunk has finished, kept as it comes: the death of its worker cannot undo it.

    items   | 0 | 1 |   2   | 3 | 4 | ...         Each time all that has finished since the last time is pickled,
    kept            ^ 0, 1    ^ 2       ^ 3, 4    as the result of a chunk of its own, and handed to the engine.

It takes a fixed share of the time at most: after each time, so much of it passes that what the last one took is that share. So
slow items are kept one by one, quick ones many at once, and results so large that copying them would take longer are not: they
come with the end of the chunk.
"""

import pickle
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from fourfold.records import Buffer, Cell, Chunk, ChunkResult, Parcel, Trouble

SHARE = 0.005
"""Share of a worker's time that keeping may take. Smaller: more of the last items before a death run again: those of the last
COST_S / SHARE at least. Larger: every chunk pays more for a death that is rare."""

COST_S = 20e-6
"""Seconds that it takes to keep one small result: 5 µs when all is in the processor's cache, and 20 to 100 µs after items that
fill it (benchmarks/constants.py). Smaller: more is spent before it was measured. Larger: quick items are kept later."""

BYTE_S = 1e-9
"""Seconds that it takes to copy one byte into memory that is new (benchmarks/constants.py)."""

GROW_S = 10 * COST_S
"""Seconds that keeping twice as many items may be expected to take although so much time has not passed: what it takes for
any number of items is shared by more of them then. Smaller: where that is dear, quick items are never caught up with.
Larger: what is dear for each item is kept later, and then much at once. Not measured."""

NEVER = float("inf")
"""When results are kept that nobody keeps."""


class SoFar(NamedTuple):
    """How far a chunk has come: `finished` ends with one entry for each of its items that ran, from `first` on."""

    first: int
    finished: list[Any]
    troubles: list[Trouble]


Pack = Callable[[ChunkResult, Chunk], Parcel]
"""Makes a parcel of a result of some items, and of the chunk that they would be."""


class Price:
    """What keeping takes in one worker, from chunk to chunk.

    Attributes:
        n_items: How many were tried last.
        cost_s: What that took. A longer time is believed when it comes twice in a row: once, somebody else had the processor,
            or it was the first of its kind.
        due: When to try again, by `time.perf_counter`.
    """

    __slots__ = ("_last_s", "cost_s", "due", "n_items")

    def __init__(self) -> None:
        self.n_items, self.cost_s, self.due = 1, COST_S, 0.0
        self._last_s = 0.0

    def n_next(self, n_waiting: int, waited_s: float) -> int:
        """How many of those that wait to try next: twice as many as the last time, if there is time for that."""
        is_time_for_more = 2 * self.cost_s <= max(GROW_S, SHARE * waited_s)
        return min(n_waiting, (1 + is_time_for_more) * self.n_items)

    def learn(self, n_items: int, elapsed_s: float, least_s: float, now: float) -> None:
        """To try so many took so long until now, and takes, or would take, `least_s` at least."""
        self.n_items, self.cost_s = n_items, max(least_s, min(elapsed_s, self._last_s))
        self._last_s, self.due = elapsed_s, now + self.cost_s / SHARE


class Keep:
    """Keeps the results of one chunk.

    Args:
        chunk: The chunk.
        cell: The engine's, which can keep.
        price: What it takes.
        pack: For results that do not simply travel.

    Attributes:
        n_kept: Items whose results are kept.
        due: When to call `take` next, by `time.perf_counter`.
    """

    def __init__(self, chunk: Chunk, cell: Cell, price: Price, pack: Pack) -> None:
        self._chunk, self._cell, self._price, self._pack = chunk, cell, price, pack
        self.n_kept = 0
        self._tried = self._ran_until = time.perf_counter()
        self.due = max(price.due, self._tried + COST_S / SHARE)

    def take(self, at: int, so_far: SoFar) -> None:
        """Keep the results of the oldest items that are not kept and have finished, as those before `at` have."""
        begin, n_waiting = time.perf_counter(), at - self.n_kept
        n_items = self._price.n_next(n_waiting, begin - self._tried)
        self._cell.mark(self.n_kept, n_items)  # whoever dies of being pickled is one of them
        copy_s, is_full = 0.0, False
        try:
            ran_s = (begin - self._ran_until) * n_items / n_waiting
            head, buffers = self._pickled(self.n_kept + n_items, so_far, ran_s)
            copy_s = BYTE_S * sum(map(len, buffers)) if buffers else 0.0
            if copy_s <= SHARE * (begin - self._tried):  # else later
                is_full = not self._put(head, buffers)
                if not is_full:
                    self.n_kept, self._ran_until = self.n_kept + n_items, self._ran_until + ran_s
        except BaseException:  # the end of the chunk will tell which item is to blame
            pass
        self._tried = time.perf_counter()
        self._price.learn(n_items, self._tried - begin, COST_S + copy_s, self._tried)
        self.due = NEVER if is_full else self._price.due

    def _put(self, head: Buffer, buffers: tuple[Buffer, ...]) -> bool:
        keep = self._cell.keep
        assert keep is not None
        return keep(head, buffers)

    def _pickled(self, end: int, so_far: SoFar, elapsed_s: float) -> tuple[Buffer, tuple[Buffer, ...]]:
        """Head and buffers of the result of the items that are not kept, up to `end`."""
        first = self.n_kept
        values = so_far.finished[so_far.first + first : so_far.first + end]
        troubles = so_far.troubles
        if not troubles or troubles[-1].offset < first:
            beside: list[pickle.PickleBuffer] = []
            try:
                head = pickle.dumps((end - first, values, (), elapsed_s), 5, buffer_callback=beside.append)
                return head, tuple([each.raw() for each in beside]) if beside else ()
            except Exception:
                pass  # by value, then
        troubles = [each._replace(offset=each.offset - first) for each in troubles if first <= each.offset < end]
        chunk = Chunk(self._chunk.start + first, self._chunk.items[first:end])
        return self._pack(ChunkResult(end - first, values, troubles, elapsed_s), chunk)
