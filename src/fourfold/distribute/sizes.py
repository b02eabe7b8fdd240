"""How many items a chunk has, and how many chunks are in flight: learned from what chunks took."""

import itertools
from collections.abc import Sequence

from fourfold.distribute.bundles import MOST, worth_s

SERVICE_S = 0.05
"""Seconds that a chunk should take. Smaller: more messages (about MESSAGE_S of the driver's time each). Larger: a longer
tail, later first results. At 50 ms two busy workers cost the driver 0.6 % of a core (benchmarks/constants.py)."""

MESSAGE_S = 150e-6
"""Seconds of the driver's time per chunk, out and back (benchmarks/constants.py). It bounds how many workers one driver can
feed: a chunk must last long enough for the driver to serve all the others, twice over."""

FLOOR_S = 0.002
"""Seconds below which no chunk is cut smaller at the end. Smaller: messages eat the gain. Larger: a worse tail."""

FLOOR_DISPATCHES = 4
"""... nor below so many times as long as it takes to start one. Smaller: at the end more time goes into starting than into
items. Larger: a worse tail."""

TAIL = 3
"""At the end a chunk is at most 1 / (TAIL * workers) of what is left. Smaller: a worker may be left alone with a large last
chunk. Larger: more messages."""

GROWTH = 16
"""A chunk has at most so many times the items of the largest one that came back. Smaller: more rounds until chunks have the
right size. Larger: one lucky fast item can make a huge chunk of slow ones."""

PREFETCH_BELOW_S = 0.1
"""Each worker has a second chunk waiting when chunks are expected to take less than this. Smaller: workers idle for a
message's round trip between chunks. Larger: a chunk may wait behind a slow one while other workers idle."""

PREFETCH_TIMES = 100
"""... or less than so many times as long as it takes to start one: then idle workers cost at most 1 % of the time."""

END_CHUNKS = 2
"""Where chunks start in jobs, all that is left is handed out at once when it is so many chunks for each worker. Smaller: more
jobs for the small chunks of the end. Larger: more comes back only with the last of them."""

END_TICKETS = 16
"""... as so many tickets for each worker at most. Not measured: sizes at the end give six to eight."""

CHUNK_BYTES = 16 << 20
"""Bytes that a chunk should have at most, in or out. Larger: more memory in flight, and out of the processor's cache."""

CHUNK_ITEMS = 1 << 16
"""Items that a chunk should have at most. Smaller: more messages for items that take next to no time. Larger: more memory in
flight, since small objects take ten times the bytes of their pickle: over 10 M no-op items the driver grew by 34 MB, and by
67 MB with twice as many items per chunk (benchmarks/p9_driver_memory.py)."""

HELD_CHUNK_ITEMS = 1 << 18
"""... where the items are in memory anyway, and their values will be. Smaller: more chunks of a loop over items that take next
to no time, at 0.1 ms each after so much else: 3 % of a million times `x + 1`. Larger: the last ones wait for each other."""


class Sizes:
    """What has been learned of items, and the sizes that follow from it.

    Attributes:
        chunk: Items per chunk, or None to measure.
        costs: Relative cost by position, or None.
        most: Items that a chunk has at most.
        slots: The workers that there are now.
        prefetch: A chunk more for each may wait near it.
        target_s: Seconds that a chunk should take.
        dispatch_s: Seconds until a chunk that is submitted to an idle worker starts there.
        in_jobs: Many chunks that are submitted together are as cheap as one, and come back together.
    """

    def __init__(self, chunk: int | None = None, costs: Sequence[float] | None = None, most: int = CHUNK_ITEMS) -> None:
        self.chunk, self.costs, self.most = chunk, costs, most
        self.slots, self.prefetch, self.target_s, self.dispatch_s = 0, True, SERVICE_S, 0.0
        self.in_jobs = False
        self._costs_left = [*itertools.accumulate(reversed(costs), initial=0.0)][::-1] if costs is not None else []
        self._take_s = self._item_bytes = 0.0
        self._took = self._learned_from = self._largest = 0
        self._item_s: float | None = None
        self._cost_s: float | None = None

    # ---- what was seen -----------------------------------------------------------------------------------------------

    def learn_taking(self, n_items: int, elapsed_s: float) -> None:
        """To take so many items from the source took so long."""
        each = elapsed_s / n_items
        newest = _share(n_items, self._took)
        self._took = n_items
        self._take_s = max(each, self._take_s + newest * (each - self._take_s))

    def learn(self, start: int, done: int, elapsed_s: float) -> None:
        """The `done` items from `start` on took so long."""
        newest = _share(done, self._learned_from)
        self._learned_from = done
        self._largest = max(self._largest, done)
        each = elapsed_s / done
        self._item_s = each if self._item_s is None else self._item_s + newest * (each - self._item_s)
        if self.costs is not None:
            cost = sum(self.costs[start : start + done])
            if cost > 0:
                rate = elapsed_s / cost
                self._cost_s = rate if self._cost_s is None else self._cost_s + newest * (rate - self._cost_s)

    def learn_bytes(self, each: float) -> None:
        """An item has so many bytes, in or out."""
        self._item_bytes = max(each, (self._item_bytes + each) / 2)

    # ---- what follows ------------------------------------------------------------------------------------------------

    def window(self, left: int | None) -> int:
        """How many tickets to have in flight; `left`: items not handed out yet, when known."""
        if self.in_jobs and self.prefetch and self._is_the_end(left):
            return END_TICKETS * self.slots
        expected = self._expected_s() if self.prefetch else None
        if self.in_jobs and expected is not None and expected < self.target_s / 2:
            if self.chunk is None:
                return self.slots  # they grow: the next ones would all be in the job of these
            return max(2 * self.slots, min(2 * MOST, int(2 * worth_s(self.slots, self.dispatch_s) / max(expected, 1e-9))))
        if expected is None or expected > max(PREFETCH_BELOW_S, 4 * self.slots * MESSAGE_S, PREFETCH_TIMES * self.dispatch_s):
            return self.slots
        if left is not None and left < self.slots * self._largest and self._largest > 1 and expected > FLOOR_S:
            return self.slots
        return 2 * self.slots

    def _is_the_end(self, left: int | None) -> bool:
        if self._item_s is None or left is None or self.chunk is not None:
            return False
        return left * self._item_s <= END_CHUNKS * self.slots * self.target_s

    def _expected_s(self) -> float | None:
        """Seconds that the next chunk of usual size will take."""
        if self._item_s is None:
            return None
        if self.chunk is not None:
            return self._item_s * self.chunk
        return max(self._item_s, min(self.target_s, self._item_s * self._largest))

    def size(self, start: int, count: int | None, left: int | None) -> int:
        """How many items the chunk at `start` should have.

        Args:
            start: Its first position.
            count: None for new items; or how many that came back lie there.
            left: Items not handed out yet, when known.
        """
        if self.chunk is not None:
            return self.chunk
        if self._item_s is None:
            return 1
        if self.costs is not None:
            return self._size_by_cost(self.costs, start, count)
        floor_s = max(FLOOR_S, self.slots * MESSAGE_S, FLOOR_DISPATCHES * self.dispatch_s)
        target_s = max(self.target_s, 2 * floor_s)
        size = target_s / max(self._item_s, 1e-9)
        left = count if count is not None else left
        if left is not None and self.prefetch:  # one who works alone leaves nobody waiting at the end
            size = min(size, max(left / (TAIL * self.slots), floor_s / max(self._item_s, 1e-9)))
        if self._item_bytes:
            size = min(size, CHUNK_BYTES / self._item_bytes)
        if count is None and self._take_s:
            # While a slow source is read for a window of chunks nothing is given out, and workers may wait.
            size = min(size, max(FLOOR_S, self.target_s / (2 * self.slots)) / self._take_s)
        return max(1, min(int(size), GROWTH * self._largest, self.most))

    def _size_by_cost(self, costs: Sequence[float], start: int, count: int | None) -> int:
        target_s = max(self.target_s, 2 * self.slots * MESSAGE_S)
        if count is not None:
            target_s /= TAIL
        else:
            left_s = self._costs_left[start] * (self._cost_s or 0.0)
            target_s = min(target_s, max(left_s / (TAIL * self.slots), FLOOR_S, self.slots * MESSAGE_S))
        end = len(costs) if count is None else start + count
        size, sum_s = 0, 0.0
        limit = max(1, min(GROWTH * self._largest, self.most))
        if self._item_bytes:
            limit = max(1, min(limit, int(CHUNK_BYTES / self._item_bytes)))
        while start + size < end and size < limit:
            sum_s += costs[start + size] * (self._cost_s or 0.0)
            if size and sum_s > target_s:
                break
            size += 1
        return max(1, size)


def _share(newest: int, before: int) -> float:
    """The weight of a new average, by its items over those before.

    The first chunks are small and slow, since nothing is in the cache yet, and each is much larger than the one before.
    """
    return max(0.5, newest / (newest + before))
