"""The control page of one worker: some numbers in memory that the driver, the template and the worker share.

Each field has one writer. The page outlives the worker, so the driver can read where it was when it died.

The page is the beginning of a file without a name, and behind it lie two texts, for people:

    | fields | where it is, as the worker's faulthandler wrote it | the last that it wrote to fd 2, as the template keeps it |
    0        STACK_AT                                             WORDS_AT
"""

import math
import mmap
import os
import signal
import time

PAGE_BYTES = 4096

STACK_AT = PAGE_BYTES
WORDS_AT = STACK_AT + (1 << 16)
"""Where the texts begin in the file. Python prints a hundred frames at most, and so the first one never reaches the second."""

WORDS_BYTES = 1 << 16
"""Bytes of a dead worker's stderr that are kept. Fewer: what it said before it died may be cut off. More: memory of the
template, which keeps as much for each worker that writes. Not measured."""

SLICE_S = 0.5
"""Seconds after which a chunk ends at the next boundary between items: what has finished goes to the driver, where a death
cannot undo it, and the rest comes back. Smaller: more messages, and items that travel twice. Larger: a death costs more.
Not measured."""

LOADS = 20
"""A chunk runs at least so many times as long as it took to load before it is cut for SLICE_S. Smaller: large items that
travel twice cost more than a death would. Not measured."""

TICKET, FIRST, COUNT = 0, 1, 2
"""Written by the worker: 1 + the id of the ticket that runs (0: none), and the block of its items that is running."""

STOP = 3
STOPS = 4
"""Written by the driver: 1 + the ids of tickets to end at the next boundary between items, up to STOPS of them."""

BEGAN_NS = 7
"""Written by the worker: when that block began, by the monotonic clock that all processes share."""

PRIVATE_BYTES, PEAK_BYTES, TOP_BYTES = 11, 12, 13
"""Written by the worker (gauge.py): its private memory between chunks, the most that it had lately, and in this run."""

STATUS, ERRNO = 8, 9
"""Written by the template: 1 + the wait status of the worker when it is dead; the errno when it could not be forked."""

PEAK_KB = 10
"""Written by the template before STATUS: the most memory that the dead worker had, in KiB."""

LONGEST_NS = 14
"""Written by the worker: how long the longest block took since it got its newest program."""

EXPIRED = 16
"""Written by the driver: when the block began whose time is over (as BEGAN_NS has it); 0: none. The worker ends with it."""

ENDED = 17
"""Written by the driver: 1 when it has killed the worker. All that the worker has started is to end then."""

PID = 15
"""Written by the template: the worker's process id, as soon as it is forked."""


class Page:
    """The fields as a list of numbers, and the texts behind them. The caller keeps `fd`."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self.fields = memoryview(self._map).cast("q")
        self.fd = os.dup(fd)
        """Shares its position with those of the other processes: where the next line of the stack goes."""

    def clear_stack(self) -> None:
        """The next line of a stack is the first."""
        os.ftruncate(self.fd, STACK_AT)
        os.lseek(self.fd, STACK_AT, os.SEEK_SET)

    def stack(self) -> str:
        """What Python has written about where the worker is."""
        return _text(os.pread(self.fd, WORDS_AT - STACK_AT, STACK_AT))

    def keep_words(self, words: bytes) -> None:
        """Keep what the worker wrote to fd 2 last."""
        os.pwrite(self.fd, words, WORDS_AT)

    def words(self) -> str:
        """The last that the dead worker wrote to fd 2."""
        return _text(os.pread(self.fd, WORDS_BYTES, WORDS_AT))

    def close_texts(self) -> None:
        """Let go of the file; the fields stay."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Let go of all."""
        self.close_texts()
        self.fields.release()
        self._map.close()


def _text(data: bytes) -> str:
    return data.replace(b"\0", b"").decode("utf-8", "replace").strip("\n")


class PageCell:
    """The worker's side of the page while it runs a ticket: what execute/ calls a cell."""

    inline = whole = False

    def __init__(self, page: Page) -> None:
        self._fields = page.fields
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
