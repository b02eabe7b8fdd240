"""The worker's side of its control page while it runs a ticket: where it is, whether to stop, what it has finished."""

import math
import os
import signal
import time

from fourfold.distribute.engines.on_processes.kept import Room
from fourfold.distribute.engines.on_processes.page import (
    BEGAN_NS,
    COUNT,
    EXPIRED,
    FIRST,
    LONGEST_NS,
    STOP,
    STOPS,
    TICKET,
    Page,
)

SLICE_S = 0.5
"""Seconds after which a chunk ends at the next boundary between items: what has finished goes to the driver, where a death
cannot undo it, and the rest comes back. Smaller: more messages, and items that travel twice. Larger: a death costs more.
Not measured."""

LOADS = 20
"""A chunk runs at least so many times as long as it took to load before it is cut for SLICE_S. Smaller: large items that
travel twice cost more than a death would. Not measured."""


class PageCell:
    """What execute/ calls a cell."""

    inline = whole = False

    def __init__(self, page: Page) -> None:
        self._fields = page.fields
        self._room = Room(page)
        self.keep = self._room.put if self._room.is_there else None
        self._id = 0
        self._began = self._until = self._marked = 0.0
        self._block_ns = 0
        self._longest = 0.0

    def begin(self, id: int) -> None:
        """The ticket `id` starts."""
        self._id = id + 1
        self._until = self._marked = 0.0
        self._began = time.monotonic()
        self._fields[FIRST], self._fields[COUNT] = 0, 0
        self._room.empty()
        self._fields[BEGAN_NS] = self._block_ns = int(self._began * 1e9)
        self._fields[TICKET] = id + 1

    def uncut(self) -> "PageCell":
        """The ticket that has begun is not cut for SLICE_S: who waits for it wants it whole, or not at all."""
        self._until = math.inf
        return self

    def end(self) -> None:
        """No ticket runs."""
        self._block_ns = 0
        self._fields[TICKET] = 0

    def leave(self) -> None:
        """In the child of an item that forked: when the child comes back, it ends its ticket without a mark on the page."""
        self._fields = memoryview(bytearray(self._fields)).cast("q")
        self._room.leave()
        self._until = 1e-9  # for as long as a ticket may run

    def begin_program(self) -> None:
        """A program came: how long blocks take begins anew."""
        self._longest = 0.0
        self._fields[LONGEST_NS] = 0

    def mark(self, offset: int, count: int) -> None:
        """The items `[offset, offset + count)` start."""
        self.end_if_expired()
        fields = self._fields
        now = time.monotonic()
        if not self._until:
            self._until = now + max(SLICE_S, LOADS * (now - self._began))
        if self._marked and now - self._marked > self._longest:
            self._longest = now - self._marked
            fields[LONGEST_NS] = int(self._longest * 1e9)
        self._marked = now
        # The driver may look in between: a block that looks younger than it is does no harm, one that looks older would.
        fields[BEGAN_NS] = self._block_ns = int(now * 1e9)
        fields[FIRST] = offset
        fields[COUNT] = count

    def rest(self) -> None:
        """No run holds this worker, and none has for some time: give memory back."""
        self._room.let_go()

    def end_if_expired(self) -> None:
        """End this process, when the time of the block that it was on is over: that it has ended after all is too late."""
        if self._fields[EXPIRED] == self._block_ns and self._block_ns:
            os.killpg(0, signal.SIGKILL)

    def stopped(self) -> bool:
        """Whether the driver asked to end this ticket, or it has run for so long that what is done had better be sent."""
        if self._until and time.monotonic() > self._until:
            return True
        fields = self._fields
        return fields[STOP] != 0 and self._id in fields[STOP : STOP + STOPS].tolist()
