"""How much memory a worker has, measured between chunks and never between items.

What counts is private memory: the pages that would be free if the worker were gone. Segments, through which items and results
travel, are shared, and what they take is seen in the free memory of the machine.

    statm         resident - shared = private now          2 µs to read, 4 µs more to open and close
    ru_maxrss     the most that was ever resident          1 µs
    clear_refs    "5" sets that back to what is now        1 µs, as opened for writing by any process for itself

Less what is shared at the end, the second gives the peak of a chunk also when the item has freed everything by then. Where
`clear_refs` cannot be written, peaks are those since the worker began: too high rather than too low.
"""

import gc
import os
import resource
import time
from collections.abc import Callable

from fourfold.distribute.engines.on_processes.page import PEAK_BYTES, PRIVATE_BYTES, TOP_BYTES, Page

MEASURE_S = 0.04
"""Seconds between two measurements of a worker, at least. They take 30 µs. Smaller: more than a thousandth of the time of
short chunks. Larger: the schedule learns later what items need."""

RECYCLE_BYTES = 300_000_000
"""Private memory by which a worker may grow from its first chunk to a later one, as seen between chunks; loky's figure.
Smaller: workers with caches are replaced for nothing. Larger: leaks take more memory. Half of what items need at their peak is
always allowed, since malloc keeps some of it."""

GROWN_SHARE = 0.1
"""Share of `memory=` by which a worker must have grown to be replaced because its next chunk may not fit. Smaller: workers
whose items hardly fit are replaced for nothing. Larger: an item fails for what others have left behind. Not measured."""

GARBAGE_BYTES = 100_000_000
"""Private memory from which on garbage is collected before a run's level is taken. Smaller: runs of small workers pay for it,
some milliseconds each. Larger: garbage of an earlier run lets a worker keep so much more."""

SHRINK = 8
"""The peak that is told falls by 1 / SHRINK of the way to a lower one with each measurement. Smaller: an item as large as the
last large one comes as a surprise. Larger: one large item slows the rest down for longer. Not measured."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


def private_bytes(pid: int | str = "self") -> tuple[int, int]:
    """The private and the shared resident bytes of a process; zeros when it is gone or nobody says."""
    try:
        fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _, resident, shared, *_ = os.read(fd, 200).split()
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return 0, 0
    return (int(resident) - int(shared)) * _PAGE, int(shared) * _PAGE


def data_bytes() -> int:
    """What RLIMIT_DATA counts of this process: memory that it may write to and shares with nobody, touched or not."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[5]) * _PAGE
    except (OSError, IndexError):
        return 0


class Gauge:
    """Measures the worker that it lives in, and publishes on its page.

    Args:
        page: The control page.
        outgrown: Called once with the bytes by which the worker has grown for good.
    """

    def __init__(self, page: Page, outgrown: Callable[[int], None]) -> None:
        self._fields, self._outgrown = page.fields, outgrown
        self.limit_bytes = 0
        self._level: int | None = None
        self._measured = False
        self._private = self._step = 0
        self._next = 0.0
        self._forget_peak(private_bytes()[0])

    def new_run(self) -> None:
        """Another program was loaded: what items of the last one took says nothing."""
        self._level = None
        self._step = 0
        self._next = 0.0
        self._fields[PEAK_BYTES] = self._fields[TOP_BYTES] = 0
        self._forget_peak(private_bytes()[0])

    def end_of_chunk(self) -> None:
        """A chunk has run, and its items and results are still there: publish the peak."""
        # Under a limit each chunk counts: the next one may not fit any more.
        self._measured = bool(self.limit_bytes) or time.monotonic() >= self._next
        if not self._measured:
            return
        fields = self._fields
        private, shared = private_bytes()
        if not private:  # nobody says: not on Linux
            return
        peak = max(private, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - shared)
        fields[PEAK_BYTES] = max(peak, fields[PEAK_BYTES] - (fields[PEAK_BYTES] - peak) // SHRINK)
        fields[TOP_BYTES] = max(peak, fields[TOP_BYTES])
        if self._level is not None:  # the first chunk imports things
            self._step = max(self._step, peak - self._private)

    def between_chunks(self) -> None:
        """The chunk is gone: see what has stayed."""
        if not self._measured:
            return
        private = private_bytes()[0]
        if self._level is None:
            if private > GARBAGE_BYTES:
                gc.collect()  # what the last run has left in cycles would hide as much of what this one keeps
                private = private_bytes()[0]
            self._level = private
        elif self._is_too_much(private):
            gc.collect()
            private = private_bytes()[0]
            if self._is_too_much(private):
                self._outgrown(private - self._level)
        self._forget_peak(private)
        self._next = time.monotonic() + MEASURE_S

    def _is_too_much(self, private: int) -> bool:
        assert self._level is not None
        grown, limit = private - self._level, self.limit_bytes
        if limit and grown > GROWN_SHARE * limit and private + self._step > limit:
            return True
        return grown > max(RECYCLE_BYTES, (self._fields[TOP_BYTES] - private) // 2)

    def _forget_peak(self, private: int) -> None:
        self._fields[PRIVATE_BYTES] = self._private = private
        try:
            fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"5")
            finally:
                os.close(fd)
        except OSError:
            pass
