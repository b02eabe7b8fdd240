"""`engine="auto"`: watches the loop, and says when to change over to workers."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from fourfold.distribute.lane import Lane
from fourfold.distribute.verdict import (
    MOVE_BYTES_PER_S,
    Carriage,
    Prices,
    carriage,
    least_start_s,
    price,
    seconds,
)
from fourfold.errors import NotPicklable
from fourfold.records import Chunk, ChunkResult

FIRST_LOOK_S = 0.002
"""Seconds of the loop before the first look at prices. Smaller: short loops pay for looking. Larger: workers come later."""

LOOK_AGAIN = 1.5
"""The loop goes on until it has taken this many times as long as at the last look. Smaller: more time spent looking."""

STAKE = 0.1
"""Share of the loop's time so far that starting workers may cost while nobody knows how many items are left: there may be
none. Smaller: workers come later for generators. Larger: with a generator that ends soon it is slower than the loop.
The bar of P1 allows a tenth."""

SAMPLE_SHARE = 0.02
"""Share of the loop's time so far that weighing items may take."""

SAMPLE_ITEMS = 256
"""Items that are weighed, at most. Fewer: the fixed cost of pickling anything hides that of an item. Not measured."""

PICKLE_BYTES_PER_S = 1e8
"""A slow guess of the speed of pickling, to know how many bytes the share above allows. Not measured."""


class Weight(Protocol):
    """What weighing an object finds."""

    @property
    def pickle_s(self) -> float: ...
    @property
    def buffer_bytes(self) -> int: ...
    @property
    def stream_bytes(self) -> int: ...
    @property
    def complete(self) -> bool: ...


class Chooser:
    """Decides between chunks of the loop. It is a `choose` of the driver.

    Args:
        total: How many items, when known.
        workers: Tells how many there would be.
        cores: Tells how many cores there are.
        warm: Tells how many workers are ready already.
        weigh: Pickles an object without keeping the bytes, up to a limit of them.
        fn: The function, which must travel too.
        lane: Makes the lane of the workers.
    """

    def __init__(
        self,
        total: int | None,
        workers: Callable[[], int],
        cores: Callable[[], int],
        warm: Callable[[], int],
        weigh: Callable[[Any, int], Weight],
        fn: Any,
        lane: Callable[[], Lane],
    ) -> None:
        self._total, self._workers, self._cores, self._warm = total, workers, cores, warm
        self._weigh, self._fn, self._lane = weigh, fn, lane
        self._done, self._busy_s = 0, 0.0
        self._began_wall, self._began_cpu = time.perf_counter(), time.process_time()
        self._next_look_s = FIRST_LOOK_S
        self._hopeless = False
        self._carried: tuple[Carriage, float] | None = None
        self.why = "it was over before workers could have helped"

    def __call__(self, chunk: Chunk, result: ChunkResult) -> Lane | None:
        """Look at a chunk that the loop has run; returns the lane to change over to, or None."""
        self._done += result.done
        self._busy_s += result.elapsed_s
        if self._hopeless or self._busy_s < self._next_look_s or not result.done:
            return None
        self._next_look_s = LOOK_AGAIN * self._busy_s
        # As many items again as there were, when nobody knows.
        left = max(0, self._total - self._done) if self._total is not None else self._done
        item_s = min(self._busy_s / self._done, result.elapsed_s / result.done)
        if left * item_s <= least_start_s(any_warm=self._warm() > 0):
            # Before anything else is looked at: to read how many cores there are takes time, the first time.
            if left:
                self.why = f"the {left} items left take {seconds(left * item_s)}, less than the start of workers"
            return None
        if self._workers() < 2 or self._cores() < 2:
            self._hopeless, self.why = True, f"there is only {min(self._workers(), self._cores())} worker for it"
            return None
        free = self._price(left, item_s, Carriage(0.0, 0.0), 0.0)
        if not free.workers_pay:
            self.why = self._not_worth(left, item_s, free)
            return None
        if self._total is None and free.start_s > STAKE * self._busy_s:
            self.why = (
                f"nobody knew how many items were left, and {seconds(self._busy_s)} of work were no reason to start workers"
            )
            return None
        if self._carried is not None and not self._price(left, item_s, *self._carried).workers_pay:
            return None
        try:
            cost, start_s, complete = self._weigh_sample(chunk, result)
            self._carried = (cost, start_s)
        except NotPicklable as error:
            self._hopeless, self.why = True, f"cannot send the work to other processes: {error}"
            return None
        prices = self._price(left, item_s, cost, start_s)
        if not prices.workers_pay:
            self.why = self._not_worth(left, item_s, prices)
            return None
        if not complete:
            return None
        return self._lane()

    def failed(self, error: Exception) -> None:
        """The lane could not be started: stay the loop for good."""
        self._hopeless, self.why = True, f"workers cannot start: {error}"

    def _price(self, left: int, item_s: float, cost: Carriage, extra_s: float) -> Prices:
        wall = max(time.perf_counter() - self._began_wall, 1e-9)
        cores_busy = (time.process_time() - self._began_cpu) / wall
        workers = self._workers()
        warm = self._warm() >= workers
        prices = price(left, item_s, cores_busy, cost, workers, self._cores(), warm)
        return prices._replace(workers_s=prices.workers_s + extra_s)

    def _weigh_sample(self, chunk: Chunk, result: ChunkResult) -> tuple[Carriage, float, bool]:
        """The carriage of an average item of the chunk; the time that the function itself takes to travel."""
        limit = max(4096, int(SAMPLE_SHARE * self._busy_s * PICKLE_BYTES_PER_S))
        n = min(result.done, SAMPLE_ITEMS)
        first = len(result.values) - result.done if len(result.values) > result.done else 0
        items, values = list(chunk.items[:n]), list(result.values[first : first + n])
        nothing, there, back = (self._weigh(sample, limit) for sample in ([], items, values))
        pickle_s = max(0.0, there.pickle_s + back.pickle_s - 2 * nothing.pickle_s) / n
        buffer_bytes = (there.buffer_bytes + back.buffer_bytes) / n
        function = self._weigh(self._fn, 1 << 30)
        function_s = function.pickle_s + (function.buffer_bytes + function.stream_bytes) / MOVE_BYTES_PER_S
        return carriage(pickle_s, buffer_bytes), function_s, there.complete and back.complete

    def _not_worth(self, left: int, item_s: float, prices: Prices) -> str:
        return (
            f"an item takes {seconds(item_s)}, and the {left} left {seconds(prices.loop_s)} in the loop "
            f"but about {seconds(prices.workers_s)} with {self._workers()} workers"
        )
