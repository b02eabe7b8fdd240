"""`engine="auto"`: watches the loop, and says when to change over to workers."""

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from fourfold.distribute.lane import Lane
from fourfold.distribute.verdict import (
    COLD_START_S,
    FREE,
    NO_LOAD,
    Carriage,
    Crew,
    Prices,
    Work,
    carriage,
    least_start_s,
    price,
    seconds,
)
from fourfold.errors import NotPicklable
from fourfold.records import Chunk, ChunkResult
from fourfold.system.imports import MODULE_S, Load
from fourfold.system.machine import waited_for_a_core_s

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


IMPORTING = 2.0
"""Times MODULE_S that each module is charged which a chunk has imported. Smaller: what the first item imported counts as work
of all the others, and workers start for it. Larger: a chunk that has done both is looked at in vain."""


CROWDED = 0.8
"""Share of the time that the loop had a core when it could use one, below which the machine counts as busy with others: then
workers would share with the loop what it has. Smaller: they start on a busy machine, and gain nothing. Larger: they do not
start for somebody's short job. Not measured."""


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
        load: Tells what workers have to do first. It pickles the function, which must travel too.
        lane: Makes the lane of the workers.
    """

    def __init__(
        self,
        total: int | None,
        workers: Callable[[], int],
        cores: Callable[[], int],
        warm: Callable[[], int],
        weigh: Callable[[Any, int], Weight],
        load: Callable[[], Load],
        lane: Callable[[], Lane],
    ) -> None:
        self._total, self._workers, self._cores, self._warm = total, workers, cores, warm
        self._weigh, self._load, self._lane = weigh, load, lane
        self._done = self._timed = 0
        self._busy_s, self._n_modules = 0.0, 0
        self._began_wall = self._began_cpu = self._began_waiting = 0.0
        self._next_look_s = FIRST_LOOK_S
        self._share = 1.0
        """Of the time in which the loop could have computed, that in which it had a core."""
        self._hopeless = False
        self._carried: tuple[Carriage, Load] | None = None
        self.why = "it was over before workers could have helped"

    def begin(self) -> None:
        """The loop begins now, in this thread."""
        self._n_modules = len(sys.modules)
        self._began_wall, self._began_cpu = time.perf_counter(), time.process_time()
        self._began_waiting = waited_for_a_core_s()

    def __call__(self, chunk: Chunk, result: ChunkResult) -> Lane | None:
        """Look at a chunk that the loop has run; returns the lane to change over to, or None."""
        try:
            return self._look(chunk, result)
        finally:
            self._n_modules = len(sys.modules)  # what it takes to look is none of the user's

    def _look(self, chunk: Chunk, result: ChunkResult) -> Lane | None:
        self._done += result.done
        elapsed_s = result.elapsed_s - self._importing_s()
        if elapsed_s <= 0:
            return None  # it tells nothing of the items behind it
        self._timed += result.done
        self._busy_s += elapsed_s
        if self._hopeless or self._busy_s < self._next_look_s or not result.done:
            return None
        self._next_look_s = LOOK_AGAIN * self._busy_s
        # As many items again as there were, when nobody knows.
        left = max(0, self._total - self._done) if self._total is not None else self._done
        item_s = min(self._busy_s / self._timed, elapsed_s / result.done)
        if left * item_s <= least_start_s(any_warm=self._warm() > 0):
            # Before anything else is looked at: to read how many cores there are takes time, the first time.
            if left:
                self.why = f"the {left} left would take {seconds(left * item_s)}, less than the start of workers"
            return None
        if self._workers() < 2 or self._cores() < 2:
            self._hopeless, self.why = True, f"there is only {min(self._workers(), self._cores())} worker for it"
            return None
        free = self._price(left, item_s, FREE, NO_LOAD)
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
            cost, complete = self._weigh_sample(chunk, result)
            self._carried = (cost, self._load())
        except NotPicklable as error:
            self._hopeless, self.why = True, f"cannot send the work to other processes: {error}"
            return None
        prices = self._price(left, item_s, *self._carried)
        if not prices.workers_pay:
            self.why = self._not_worth(left, item_s, prices)
            return None
        if not complete:
            return None
        return self._lane()

    def failed(self, error: Exception) -> None:
        """The lane could not be started: stay the loop for good."""
        self._hopeless, self.why = True, f"workers cannot start: {error}"

    def _importing_s(self) -> float:
        """What was imported since the last chunk has taken, at most: the first items of a program import what all need."""
        return max(0, len(sys.modules) - self._n_modules) * IMPORTING * MODULE_S

    def _price(self, left: int, item_s: float, cost: Carriage, load: Load) -> Prices:
        wall = max(time.perf_counter() - self._began_wall, 1e-9)
        cpu = max(time.process_time() - self._began_cpu, 1e-9)
        waited = max(0.0, waited_for_a_core_s() - self._began_waiting)
        self._share = cpu / (cpu + waited)
        workers, cores = self._workers(), self._cores() * (self._share if self._share < CROWDED else 1.0)
        crew = Crew(workers, max(1.0, cores), is_there=self._warm() >= workers)
        return price(Work(left, item_s, (cpu + waited) / wall, cost), crew, load)

    def _weigh_sample(self, chunk: Chunk, result: ChunkResult) -> tuple[Carriage, bool]:
        """The carriage of an average item of the chunk, and whether all of the sample was weighed."""
        limit = max(4096, int(SAMPLE_SHARE * self._busy_s * PICKLE_BYTES_PER_S))
        n = min(result.done, SAMPLE_ITEMS)
        first = len(result.values) - result.done if len(result.values) > result.done else 0
        items, values = list(chunk.items[:n]), list(result.values[first : first + n])
        nothing, there, back = (self._weigh(sample, limit) for sample in ([], items, values))
        pickle_s = max(0.0, there.pickle_s + back.pickle_s - 2 * nothing.pickle_s) / n
        buffer_bytes = (there.buffer_bytes + back.buffer_bytes) / n
        return carriage(pickle_s, buffer_bytes), there.complete and back.complete

    def _not_worth(self, left: int, item_s: float, prices: Prices) -> str:
        return (
            f"an item takes {seconds(item_s)}, and the {left} left {seconds(prices.loop_s)} in the loop "
            f"but about {seconds(prices.workers_s)} with {self._workers()} workers{self._load_words()}{self._crowd_words()}"
            f"{_why_too_little(prices)}"
        )

    def _crowd_words(self) -> str:
        """That others use the cores, where they do."""
        if self._share >= CROWDED:
            return ""
        return f"; other programs are on the cores, {1 - self._share:.0%} of the time that this one could use"

    def _load_words(self) -> str:
        """What new workers would have to do first, where that is much."""
        load = self._carried[1] if self._carried is not None else NO_LOAD
        load_s = load.once_s + load.each_s + load.waiting_s
        if load_s < COLD_START_S:
            return ""
        what = f"import {', '.join(load.packages)}" if load.packages else "load the function"
        return f", which have to {what} first: {seconds(load_s)}"


def _why_too_little(prices: Prices) -> str:
    """Why workers do not pay although they would be faster; "" when they would not be."""
    saved_s = prices.loop_s - prices.workers_s
    if saved_s <= 0:
        return ""
    if saved_s > prices.start_s:
        return f"; the {seconds(saved_s)} saved are too little to be sure of"
    return f"; the {seconds(saved_s)} saved are less than the {seconds(prices.start_s)} that their start takes from items"
