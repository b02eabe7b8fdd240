"""The loop, as an engine: tickets run in the caller's thread, one per `wait`."""

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from fourfold.distribute.engine import NO_NEED, EngineInfo, Runnable
from fourfold.records import Kind, Need, Outcome, Ticket
from fourfold.system.imports import MODULE_S
from fourfold.system.machine import waited_for_a_core_s


def _clock() -> float:
    """Seconds that go on while this thread computes or waits for a file, and not while others are on its core.

    On a busy machine an import takes ten times as long as it computes: that would look like a model that is slow to load.
    """
    return time.perf_counter() - waited_for_a_core_s()


class _OwnCell:
    """Nobody else can look, and nobody else can stop it.

    Args:
        slice_s: None, or the seconds after which a chunk ends at the next boundary between blocks.
    """

    inline = True
    keep = None

    def __init__(self, slice_s: float | None) -> None:
        self.whole = slice_s is None
        self._slice_s, self._until, self._has_run = slice_s or 0.0, 0.0, False

    def begin(self) -> None:
        """A chunk starts."""
        if not self.whole:
            self._until, self._has_run = time.monotonic() + self._slice_s, False

    def mark(self, offset: int, count: int) -> None:
        """Nobody reads it; but each chunk gets something done."""
        self._has_run = True

    def stopped(self) -> bool:
        """Only the caller could stop it, and the caller is busy running it; but its time may be over."""
        return not self.whole and self._has_run and time.monotonic() > self._until


class ThisThread:
    """Runs tickets in the caller's thread.

    Args:
        describe: Makes a payload of an exception that escaped from a program.
        slice_s: None, or the seconds after which a chunk gives back what has not begun, so that what ended can be recorded.
    """

    info = EngineInfo(
        name="serial",
        takes_objects=True,
        honours=frozenset({"idempotent", "threads_per_worker"}),
        inline=True,
        kills="no",
    )

    def __init__(self, describe: Callable[[BaseException], Any], slice_s: float | None = None) -> None:
        self._describe = describe
        self._queue: deque[Ticket] = deque()
        self._programs: dict[str, Any] = {}
        self._prepared: dict[str, Runnable] = {}
        self._cell = _OwnCell(slice_s)
        self._cancelled: list[Outcome] = []
        self.prepared_s = self.prepared_waiting_s = 0.0
        """Processor seconds that it took to prepare the program, besides what was imported for that, and seconds in which that
        waited for something else than a core."""

    def open(self) -> None:
        """Nothing to start."""

    def slots(self) -> int:
        """One: the caller."""
        return 1

    def put(self, key: str, program: Any, need: Need = NO_NEED) -> None:
        """Keep the program; its first ticket prepares it."""
        self._programs[key] = program

    def drop(self, key: str) -> None:
        """Forget the program."""
        self._programs.pop(key, None)
        self._prepared.pop(key, None)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue the tickets for `wait`."""
        self._queue.extend(tickets)

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Run one ticket, whatever the timeout."""
        if self._cancelled:
            cancelled, self._cancelled = self._cancelled, []
            return cancelled
        if not self._queue:
            return []
        ticket = self._queue.popleft()
        try:
            run = self._prepared.get(ticket.program)
            if run is None:
                run = self._prepared[ticket.program] = self._prepare(ticket.program)
            self._cell.begin()
            kind, data = run(ticket.payload, self._cell)
        except Exception as error:
            kind, data = Kind.BAD_PROGRAM, self._describe(error)
        return [Outcome(ticket.id, kind, data, worker="this thread")]

    def _prepare(self, key: str) -> Runnable:
        began, began_cpu, n_modules = _clock(), time.process_time(), len(sys.modules)
        run: Runnable = self._programs[key].prepare()
        took_s, cpu_s = _clock() - began, time.process_time() - began_cpu
        importing_s = (len(sys.modules) - n_modules) * MODULE_S
        self.prepared_s = max(0.0, min(took_s, cpu_s) - importing_s)
        self.prepared_waiting_s = max(0.0, took_s - cpu_s)
        return run

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """End tickets that wait; none is running while the caller calls."""
        for ticket in list(self._queue):
            if ids is None or ticket.id in ids:
                self._queue.remove(ticket)
                self._cancelled.append(Outcome(ticket.id, Kind.CANCELLED))

    def close(self) -> None:
        """Forget everything."""
        self._queue.clear()
        self._cancelled.clear()
        self._programs.clear()
        self._prepared.clear()
