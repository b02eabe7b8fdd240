"""Looks at memory now and then, and tells the schedule for how many items there is room.

    free - reserve + what workers hold beyond new ones
    --------------------------------------------------  =  items at once
              what a worker with an item takes

What is free is that of the machine or of the tightest cgroup, whatever takes it.
"""

import time
from collections.abc import Callable
from typing import NamedTuple, cast

from fourfold.distribute.engine import Engine, MeasuringEngine, MemoryUse
from fourfold.distribute.events import MemoryRoom
from fourfold.distribute.verdict import size
from fourfold.system.machine import FreeMemory, MemoryReader

LOOK_S = 0.2
"""Seconds between two looks. Smaller: more of the driver's time. Larger: what fills memory faster than that is met by the
kernel instead: items may take RESERVE of all memory in that time."""

LOOK_SHARE = 0.0005
"""Share of the driver's time that looks may take: with many workers, or files that are slow to read, they become rarer."""

RESERVE = 0.05
"""Share of all memory that is left to others: the driver, which takes in results, and the caches of files. Smaller: the kernel
steps in before items stop being handed out. Larger: workers idle that could run. Not measured."""

RESERVE_BYTES = 2 << 30
"""Bytes that are enough in reserve, however much there is. Not measured."""

RESERVE_OF_FREE = 0.5
"""Share of what is free that may be held in reserve. Larger: where others have nearly filled the machine, even items that take
next to nothing run one by one. Smaller: less is left to others there. Not measured."""

SHORT = 0.5
"""Share of the reserve below which one running item is stopped, to be run again later, as GNU parallel does at half of what
--memfree says. Smaller: the kernel comes first, and takes any process. Larger: work is lost that would have ended."""


class Scarcity(NamedTuple):
    """What was seen when the fewest items had room."""

    n_items: int
    item_bytes: int
    free_bytes: int


class MemoryWatch:
    """Measures for one run; the schedule decides.

    Args:
        read_free: Tells what is free, or None where nobody knows.
    """

    def __init__(self, read_free: Callable[[], FreeMemory | None] | None = None) -> None:
        self._read_free = read_free
        self._next: float | None = None
        self._was_scarce = False
        self.use = MemoryUse(0, 0, 0, 0)
        self.scarcest: Scarcity | None = None

    def look(self, engine: Engine, slots: int) -> MemoryRoom | None:
        """What to tell the schedule now; mostly nothing, since it is not time yet or memory is plenty."""
        if not engine.info.measures_memory:
            return None
        now = time.monotonic()
        if self._next is None:
            self._next = now + LOOK_S  # short runs need not pay for it
        if now < self._next:
            return None
        room = self._room(cast(MeasuringEngine, engine), slots)
        took = time.monotonic() - now
        self._next = now + max(LOOK_S, took / LOOK_SHARE)
        # Once it was scarce, the schedule goes back to all workers step by step, with each look that finds plenty.
        self._was_scarce = self._was_scarce or (room is not None and (room.n_items < slots or room.short))
        return room if self._was_scarce else None

    def _free(self) -> FreeMemory | None:
        if self._read_free is None:
            self._read_free = MemoryReader().read
        return self._read_free()

    def what_is_known(self) -> str:
        """For the message of an item that died of memory: what items took, and what there is."""
        free = self._free()
        known = [f"items before it took up to {size(self.use.top_bytes)} each"] if self.use.top_bytes else []
        if free is not None:
            known.append(f"there are {size(free.limit_bytes)} for all workers together")
        return f" ({', and '.join(known)})" if known else ""

    def last_look(self, engine: Engine) -> None:
        """The run is over: note what it took."""
        if engine.info.measures_memory:
            self.use = cast(MeasuringEngine, engine).memory(live=False)

    def _room(self, engine: MeasuringEngine, slots: int) -> MemoryRoom | None:
        free = self._free()
        if free is None:
            return None
        reserve = min(RESERVE * free.limit_bytes, RESERVE_BYTES)
        room_bytes = free.free_bytes - min(reserve, RESERVE_OF_FREE * free.free_bytes)
        self.use = engine.memory(live=False)
        if not self.use.item_bytes or room_bytes < (slots + 1) * self.use.item_bytes:
            self.use = engine.memory(live=True)
        item = max(1, self.use.item_bytes)
        n_items = int((room_bytes + self.use.held_bytes) // item)
        short = free.free_bytes < min(SHORT * reserve, item)
        if n_items < slots and (self.scarcest is None or n_items < self.scarcest.n_items):
            self.scarcest = Scarcity(n_items, item, free.free_bytes)
        return MemoryRoom(n_items, short)
