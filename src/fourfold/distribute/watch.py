"""Says where the workers of a run are: in the log when one takes very long, on stderr when somebody asks by SIGUSR1.

kill -USR1 PID
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from types import FrameType
from typing import Any, NamedTuple, TypeVar

STALL_S = 60.0
"""Seconds of one block, from which on it is told that it may hang. Smaller: long items are told of. Larger: who waits for an
item that hangs is told later. Not measured."""

STALL_TIMES = 20
"""... and so many times as long as the longest block so far. Smaller: items of very different length are told of."""

FRAMES = 40
"""Lines of a stack that a message has. Fewer: the caller of interest may be missing. More: messages that nobody reads."""

_OURS = os.path.dirname(os.path.dirname(__file__))


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


Worker = TypeVar("Worker")


class Stall(NamedTuple):
    """Work that has gone on for `elapsed_s`, and none before it for more than `longest_s`."""

    work: Work
    elapsed_s: float
    longest_s: float


class Stalls:
    """Finds workers that have been at the same block for much longer than any before, and each such block once."""

    def __init__(self) -> None:
        self._longest_s = self._look_at = 0.0
        self._told: dict[Any, Work] = {}

    def is_time_to_look(self) -> bool:
        """Whether it is; the next time is a while later."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + STALL_S / 10
        return True

    def among(self, looked: Iterable[tuple[Worker, Work | None]], longest_s: float) -> Iterator[tuple[Worker, Stall]]:
        """Those of these workers that nobody was told of yet.

        Args:
            looked: Each worker, and what it is at.
            longest_s: How long the longest block took that has ended.
        """
        self._longest_s = max(self._longest_s, longest_s)
        limit_s, now = max(STALL_S, STALL_TIMES * self._longest_s), time.monotonic()
        for worker, work in looked:
            if work is not None and now - work.began_s > limit_s and self._told.get(worker) != work:
                self._told[worker] = work
                yield worker, Stall(work, now - work.began_s, self._longest_s)

    def forget(self, worker: Any) -> None:
        """It is gone."""
        self._told.pop(worker, None)


Where = Callable[[], Sequence[tuple[str, Work | None, str]]]
"""Looks at all workers: the name, the work, and the Python stack of each."""


class Watch:
    """The words for one run.

    Args:
        name: The function's, or the class's.
        builds: Workers build an instance of the class first.
        index_of: The input index of the item at an offset of a ticket; None when the ticket has just ended.
        advice: What to do about an item that hangs.
    """

    def __init__(
        self,
        name: str,
        builds: bool,
        index_of: Callable[[int, int], int | None],
        advice: str,
    ) -> None:
        self._name, self._builds, self._index_of, self._advice = name, builds, index_of, advice
        self._told: set[int | None] = set()
        self._where: Where | None = None

    def stalled(self, stall: Stall, stack: str) -> None:
        """Log that a worker takes very long, once for each item."""
        work, elapsed_s, longest_s = stall
        index = self._index_of(work.ticket, work.first)
        if work.doing is Doing.RUNS:
            if index is None or index in self._told:
                return
            self._told.add(index)
        import logging

        before = f", and none before it took more than {longest_s:.1f} s" if longest_s >= 0.1 else ""
        advice = self._advice
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
"""Those of all runs on processes and threads that go on."""


def trimmed(text: str) -> str:
    """The frames of a stack down to the user's first one: ours below it help nobody, nor do those of an import."""
    frames = [
        line for line in text.splitlines() if line.startswith(('  File "', "  ...")) and '"<frozen importlib' not in line
    ]
    end = len(frames)
    while end and _is_ours(frames[end - 1]):
        end -= 1
    frames = frames[: end or len(frames)]
    if len(frames) > FRAMES:
        frames = [*frames[:FRAMES], f"  ... and {len(frames) - FRAMES} more"]
    return "\n".join(frames)


def _is_ours(line: str) -> bool:
    return line.startswith((f'  File "{_OURS}/', '  File "<string>"'))


def _answer(signal_number: int, frame: FrameType | None) -> None:
    """Say where all are. The main thread may be in the middle of a print: so not by `sys.stderr`."""
    import traceback

    lines = [f"fourfold: process {os.getpid()} was asked where it is", *(line for watch in _watches for line in watch.lines())]
    own = [line for entry in reversed(traceback.format_stack(frame)) for line in entry.rstrip().splitlines()]
    data = "\n".join([*lines, "this process, most recent call first:", *own, ""]).encode("utf-8", "replace")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]
