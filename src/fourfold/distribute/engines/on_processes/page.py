"""The control page of one worker: some numbers in memory that the driver, the template and the worker share.

Each field has one writer. The page outlives the worker, so the driver can read where it was when it died.

The page is the beginning of a file without a name. Behind it lie results (kept.py) between two texts, for people:

    | fields | the last that it wrote to fd 2, by the template | what it has finished | where it is, as faulthandler wrote it
    0        WORDS_AT                                          KEPT_AT                STACK_AT

Only the last one has no end: each process that an item has forked may add to it when it crashes.
"""

import mmap
import os
from typing import NamedTuple

PAGE_BYTES = 4096

WORDS_AT = PAGE_BYTES
WORDS_BYTES = 1 << 16
"""Bytes of a dead worker's stderr that are kept. Fewer: what it said before it died may be cut off. More: memory of the
template, which keeps as much for each worker that writes. Not measured."""

KEPT_AT = 1 << 17
"""Where results begin in the file: behind that text, and where a mapping may begin on any machine."""

ROOM_BYTES = 16 << 20
"""Bytes of results of one chunk that are kept. Fewer: what a chunk finishes later runs again after a death. More: memory of
each worker whose results are that large. SHARE (execute/keep.py) allows some 2.5 MB in the half second of a chunk; chunks
on clusters may last longer."""

STACK_AT = KEPT_AT + ROOM_BYTES
STACK_BYTES = 1 << 16
"""Bytes of stacks that are read, the last ones. Python prints a hundred frames at most, and so one always fits."""

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

KEPT = 18
"""Written by the worker: how many bytes of results of the ticket that runs there are."""


class Block(NamedTuple):
    """Items [first, first + n_items) of a ticket, and when they began; no items: it loads them still."""

    ticket: int
    first: int
    n_items: int
    began_ns: int


class Page:
    """The fields as a list of numbers, and the texts behind them. The caller keeps `fd`."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self.fields = memoryview(self._map).cast("q")
        self.fd = os.dup(fd)
        """Shares its position with those of the other processes: where the next line of the stack goes."""

    def block(self) -> Block | None:
        """What the worker runs now."""
        fields = self.fields
        ticket = fields[TICKET]
        return Block(ticket - 1, fields[FIRST], fields[COUNT], fields[BEGAN_NS]) if ticket else None

    def stop(self, id: int) -> None:
        """Ask the worker to end a ticket at the next boundary between items."""
        fields = self.fields
        for number in range(STOPS):
            if fields[STOP + number] in (0, id + 1):
                fields[STOP + number] = id + 1
                return

    def is_to_stop(self, id: int) -> bool:
        """Whether that was asked of this ticket."""
        return id + 1 in self.fields[STOP : STOP + STOPS].tolist()

    def forget_stop(self, id: int) -> None:
        """The ticket has ended: the others to stop move up. The worker always finds them, and looks on from the first only."""
        fields = self.fields
        if not fields[STOP]:  # as a rule there are none
            return
        others = [stop for stop in fields[STOP : STOP + STOPS].tolist() if stop not in (0, id + 1)]
        for number in range(STOPS):
            fields[STOP + number] = others[number] if number < len(others) else 0

    def clear_stack(self) -> None:
        """The next line of a stack is the first."""
        if os.fstat(self.fd).st_size > STACK_AT:
            os.ftruncate(self.fd, STACK_AT)
        os.lseek(self.fd, STACK_AT, os.SEEK_SET)

    def stack(self) -> str:
        """What Python has written about where the worker is."""
        begin = max(STACK_AT, os.fstat(self.fd).st_size - STACK_BYTES)
        return _text(os.pread(self.fd, STACK_BYTES, begin))

    def keep_words(self, words: bytes) -> None:
        """Keep what the worker wrote to fd 2 last."""
        os.pwrite(self.fd, words[-WORDS_BYTES:], WORDS_AT)  # results lie behind them

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
