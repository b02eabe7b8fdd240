"""The loop or workers? Decided from what the loop itself showed. Pure arithmetic: the caller measures.

A run with `engine="auto"` starts as the loop. From time to time the rest of the work is priced both ways:

    loop      left * item
    workers   start + max(left * (item + carry) / cores, left * carry_driver)

where `item` is the time of one item, and `carry` the time to pickle, move and unpickle it and its result. `start` has in it
what workers must import and load: what is imported once for all of them keeps one core from items, while the caller goes on
computing on another; what each of them loads keeps all cores from items. Workers are chosen when they save at least MARGIN of
the loop's time for what they would take over, and more than their start can cost.
"""

from typing import NamedTuple

from fourfold.system.imports import Load

NO_LOAD = Load()

COLD_START_S = 0.15
"""Processor seconds to import what workers need, start the server of workers and fork the first ones, all of them not spent
on items. Smaller: short loops pay for workers that come too late. Larger: medium loops stay (benchmarks/constants.py)."""

WARM_START_S = 0.01
"""The same when workers are there already: one message to each, and the function unpickled."""

MARGIN = 0.25
"""Least share of the loop's time that workers must save, of that part of it which they would take over. Smaller: a wrong
estimate makes it slower than the loop."""

MOVE_BYTES_PER_S = 1.5e9
"""How fast large buffers move into shared memory, be it once in each direction (benchmarks/constants.py)."""

HANDLE_S = 1e-7
"""Seconds per item on each side for lists and copies, besides pickling: what no-op items take on processes beyond the loop.
Smaller: items of less than a microsecond look as if workers could help."""

UNPICKLE_RATIO = 1.0
"""Time to unpickle over time to pickle, for plain objects. Not measured beyond a few types."""


class Carriage(NamedTuple):
    """What it costs to carry one item to a worker and its result back, on each side, in seconds."""

    driver_s: float
    worker_s: float


FREE = Carriage(0.0, 0.0)


class Work(NamedTuple):
    """What is left to do.

    Attributes:
        left: Items.
        item_s: Wall time of one item in the loop.
        cores_busy: Processor time over wall time of the loop, with the time in which it waited for a core: above 1 when items
            use threads of their own.
        carriage: Of one item.
    """

    left: float
    item_s: float
    cores_busy: float
    carriage: Carriage


class Crew(NamedTuple):
    """Who would do it.

    Attributes:
        workers: How many there would be.
        cores: How many cores this process may use; less where others are on them.
        is_there: All of these workers are there already.
    """

    workers: int
    cores: float
    is_there: bool


class Prices(NamedTuple):
    """Both ways to do the rest, in seconds.

    Attributes:
        loop_s: In the loop.
        workers_s: With workers.
        start_s: Of this, what their start takes from items.
        handed_s: Of the loop, what the caller would not have done itself before workers have imported what they need.
    """

    loop_s: float
    workers_s: float
    start_s: float
    handed_s: float

    @property
    def workers_pay(self) -> bool:
        """Whether to change over to workers."""
        saved = self.loop_s - self.workers_s
        return saved > MARGIN * self.handed_s and saved > self.start_s


def carriage(pickle_s: float, buffer_bytes: float) -> Carriage:
    """Price the carriage of one item and its result from its measured pickling time and its large buffers."""
    move = buffer_bytes / MOVE_BYTES_PER_S
    each_side = pickle_s * (1 + UNPICKLE_RATIO) / 2
    return Carriage(driver_s=HANDLE_S + each_side + move, worker_s=HANDLE_S + each_side + move / 2)


def price(work: Work, crew: Crew, load: Load = NO_LOAD) -> Prices:
    """Price the items that are left both ways, where workers have to load so much first."""
    at_once = min(crew.workers, crew.cores)
    # All of them load, and only so many compute at once.
    start_s = (WARM_START_S if crew.is_there else COLD_START_S) + load.each_s * crew.workers / at_once + load.waiting_s
    busy = min(work.cores_busy, 1.0) if work.cores_busy <= 1.1 else work.cores_busy
    waiting = work.item_s * max(0.0, 1 - busy)
    computing = work.item_s * busy
    carry = work.carriage
    each = computing / at_once + waiting / crew.workers + (carry.worker_s + carry.driver_s) / at_once
    loop_s = work.left * work.item_s
    # No risk beyond that: meanwhile the caller goes on, and may come to the end.
    importing_s = load.once_s * (1 - 1 / at_once)
    workers_s = start_s + importing_s + work.left * max(each, carry.driver_s)
    return Prices(loop_s, workers_s, start_s, handed_s=max(0.0, loop_s - load.once_s))


def least_start_s(any_warm: bool) -> float:
    """What starting workers costs at least: when the whole rest takes less, nothing else needs to be known."""
    return WARM_START_S if any_warm else COLD_START_S


def seconds(value: float) -> str:
    """A duration for people: "0.4 ms", "12 s"."""
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if value < limit:
            return f"{value * scale:.3g} {unit}"
    return f"{value / 3600:.3g} h"


def size(n_bytes: float) -> str:
    """Bytes for people: "300 MB", "1.2 GB"."""
    for limit, scale, unit in ((1e3, 1, "bytes"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if n_bytes < limit:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes / 1e12:.3g} TB"
