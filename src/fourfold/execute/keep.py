"""What a chunk has finished, kept as it comes: the death of its worker cannot undo it.

    items   | 0 | 1 |   2   | 3 | 4 | ...         Each time all that has finished since the last time is pickled,
    kept            ^ 0, 1    ^ 2       ^ 3, 4    as the result of a chunk of its own, and handed to the engine.

It takes a fixed share of the time at most. So slow items are kept one by one, quick ones many at once, and results so large
that copying them would take longer are not: they come with the end of the chunk.
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

PICKLED_BYTE_S = 50e-9
"""Seconds that pickling one byte takes at most, of objects that have few of them. A longer time is believed when it comes
twice in a row: once, somebody else had the processor. Not measured."""


class SoFar(NamedTuple):
    """How far a chunk has come: `finished` ends with one entry for each of its items that ran, from `first` on."""

    first: int
    finished: list[Any]
    troubles: list[Trouble]


Pack = Callable[[ChunkResult, Chunk], Parcel]
"""Makes a parcel of a result of some items, and of the chunk that they would be."""


class Price:
    """What keeping takes in one worker, from chunk to chunk: COST_S, and so many seconds for each item."""

    __slots__ = ("_last_s", "each_s")

    def __init__(self) -> None:
        self.each_s = self._last_s = 0.0

    def learn(self, n_items: int, elapsed_s: float, likely_s: float) -> None:
        """It took so long for so many items, and hardly takes longer than `likely_s`."""
        believed_s = min(elapsed_s, max(self._last_s, likely_s))
        self.each_s, self._last_s = max(0.0, believed_s - COST_S) / n_items, elapsed_s


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
        self._since = time.perf_counter()
        self.due = self._since + COST_S / SHARE

    def take(self, at: int, so_far: SoFar) -> None:
        """Keep the results of the items that finished since the last time, unless that is too dear; those before `at` have."""
        begin = now = time.perf_counter()
        due = self._since + (COST_S + self._price.each_s * (at - self.n_kept)) / SHARE
        if begin >= due:
            due, now = self._keep(at, so_far, begin)
        self.due = max(due, now + COST_S / SHARE)

    def _keep(self, at: int, so_far: SoFar, begin: float) -> tuple[float, float]:
        """Returns when it would have been time for results as large as these are, and the time."""
        keep, first = self._cell.keep, self.n_kept
        assert keep is not None
        self._cell.mark(first, at - first)  # whoever dies of being pickled is one of them
        due, likely_s = 0.0, 2 * COST_S
        try:
            head, buffers = self._pickled(first, at, so_far, begin - self._since)
            copy_s = BYTE_S * sum(map(len, buffers)) if buffers else 0.0
            likely_s += copy_s + len(head) * PICKLED_BYTE_S
            due = self._since + (COST_S + copy_s) / SHARE
            if begin >= due and keep(head, buffers):
                self.n_kept, self._since = at, begin
        except BaseException:  # the end of the chunk will tell which item is to blame
            pass
        now = time.perf_counter()
        self._price.learn(at - first, now - begin, likely_s)
        return due, now

    def _pickled(self, first: int, at: int, so_far: SoFar, elapsed_s: float) -> tuple[Buffer, tuple[Buffer, ...]]:
        """Head and buffers of the result of the items `[first, at)`."""
        values = so_far.finished[so_far.first + first : so_far.first + at]
        troubles = so_far.troubles
        if not troubles or troubles[-1].offset < first:
            beside: list[pickle.PickleBuffer] = []
            try:
                head = pickle.dumps((at - first, values, (), elapsed_s), 5, buffer_callback=beside.append)
                return head, tuple([each.raw() for each in beside]) if beside else ()
            except Exception:
                pass  # by value, then
        troubles = [each._replace(offset=each.offset - first) for each in troubles if each.offset >= first]
        chunk = Chunk(self._chunk.start + first, self._chunk.items[first:at])
        return self._pack(ChunkResult(at - first, values, troubles, elapsed_s), chunk)
