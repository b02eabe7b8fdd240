"""Says where the workers of a run are: in the log when one takes very long, on stderr when somebody asks by SIGUSR1.

kill -USR1 PID
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from types import FrameType
from typing import NamedTuple


class Doing(Enum):
    """What a worker is at."""

    LOADS_FUNCTION = 0
    LOADS_ITEMS = 1
    RUNS = 2


class Work(NamedTuple):
    """What a worker is at since `began_s`, by the monotonic clock: the items `[first, first + n_items)` of a ticket."""

    worker: str
    doing: Doing
    began_s: float
    ticket: int = -1
    first: int = 0
    n_items: int = 0


Where = Callable[[], Sequence[tuple[str, Work | None, str]]]
"""Looks at all workers: the name, the work, and the Python stack of each."""


class Watch:
    """The words for one run.

    Args:
        name: The function's, or the class's.
        builds: Workers build an instance of the class first.
        index_of: The input index of the item at an offset of a ticket; None when the ticket has just ended.
    """

    def __init__(self, name: str, builds: bool, index_of: Callable[[int, int], int | None]) -> None:
        self._name, self._builds, self._index_of = name, builds, index_of
        self._told: set[int | None] = set()
        self._where: Where | None = None

    def stalled(self, work: Work, elapsed_s: float, longest_s: float, stack: str) -> None:
        """Log that a worker takes very long, once for each item."""
        index = self._index_of(work.ticket, work.first)
        if work.doing is Doing.RUNS:
            if index is None or index in self._told:
                return
            self._told.add(index)
        import logging

        before = f", and none before it took more than {longest_s:.1f} s" if longest_s >= 0.1 else ""
        advice = "timeout= stops what takes too long"
        if work.doing is Doing.LOADS_FUNCTION:
            advice = "timeout= is for items and does not stop this"
        where = f"It is here, most recent call first:\n{stack}" if stack else "It does not say where it is: it may be frozen."
        logging.getLogger("fourfold").warning(
            "%s %s for %.0f s%s. If it hangs: %s. %s", work.worker, self._doing(work), elapsed_s, before, advice, where
        )

    def starts_slowly(self, who: str, elapsed_s: float, limit_s: float, evidence: str, is_frozen: bool) -> None:
        """Log that a worker, or what starts workers, takes very long to start."""
        import logging

        where = "It is frozen (SIGSTOP): `kill -CONT` wakes it." if is_frozen else evidence or "It says nothing."
        logging.getLogger("fourfold").warning(
            "%s has been starting for %.1f s; after %g s it is stopped. %s", who, elapsed_s, limit_s, where
        )

    def _doing(self, work: Work) -> str:
        if work.doing is Doing.LOADS_FUNCTION:
            return f"has been building {self._name}(...)" if self._builds else f"has been loading {self._name}"
        index = self._index_of(work.ticket, work.first)
        if work.doing is Doing.LOADS_ITEMS:
            return f"has been loading item {index} of {self._name}, or those behind it,"
        items = f"item {index}" if work.n_items == 1 else f"item {index} or one of the {work.n_items - 1} behind it"
        return f"has run {items} of {self._name}"

    # ---- when somebody asks ------------------------------------------------------------------------------------------

    def open(self, where: Where) -> None:
        """From now on SIGUSR1 to this process is answered, if nobody else wants it, and this is the main thread."""
        self._where = where
        _watches.append(self)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, _answer)

    def close(self) -> None:
        """The run is over."""
        with contextlib.suppress(ValueError):
            _watches.remove(self)
        is_main = threading.current_thread() is threading.main_thread()
        if not _watches and is_main and signal.getsignal(signal.SIGUSR1) is _answer:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def lines(self) -> list[str]:
        """Where each worker is now."""
        assert self._where is not None
        looked, now = self._where(), time.monotonic()
        lines = [f"{len(looked)} workers are ready for {self._name}:"]
        for worker, work, stack in looked:
            if work is None:
                lines.append(f"{worker} waits")
            else:
                lines.append(
                    f"{worker} {self._doing(work)} for {now - work.began_s:.1f} s" + (":" if stack else ", and is silent")
                )
                lines += stack.splitlines()
        return lines


_watches: list[Watch] = []
"""Those of all runs on processes that go on."""


def _answer(signal_number: int, frame: FrameType | None) -> None:
    """Say where all are. The main thread may be in the middle of a print: so not by `sys.stderr`."""
    import traceback

    lines = [f"fourfold: process {os.getpid()} was asked where it is", *(line for watch in _watches for line in watch.lines())]
    own = [line for entry in reversed(traceback.format_stack(frame)) for line in entry.rstrip().splitlines()]
    data = "\n".join([*lines, "this process, most recent call first:", *own, ""]).encode("utf-8", "replace")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]
