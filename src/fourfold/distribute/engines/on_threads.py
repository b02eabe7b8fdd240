"""Threads of this process: nothing is pickled, and functions that release the GIL (NumPy, files, network) overlap.

    caller --submit--> _todo (SimpleQueue) --> thread 0, 1, ... --> _outcomes (SimpleQueue) --wait--> caller

A thread cannot be stopped from outside. A hard cancel gives its ticket up: the outcome is LOST at once, another thread
takes the place, and what the old one brings later is dropped. Threads know tickets by their cells, not by their ids: one
that was given up may end when the engine is open again and the same ids run anew.
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import fourfold.system.machine as machine
from fourfold.distribute.engine import NO_NEED, EngineInfo, Runnable
from fourfold.distribute.watch import Doing, Stalls, Watch, Work, trimmed
from fourfold.records import Kind, Need, Outcome, Ticket
from fourfold.system.interrupts import Shield


class _Cell:
    """Tells one ticket to stop, and others where it is: a thread does not die alone, but it may hang."""

    inline = whole = False
    keep = None

    def __init__(self, id: int) -> None:
        self._id = id
        self.stop = False
        self._worker, self.thread = "", 0
        self._block: tuple[Doing, float, int, int] | None = None
        self.longest_s = 0.0

    def begin(self, worker: str, is_prepared: bool) -> None:
        """It runs in this thread from now on."""
        self._worker, self.thread = worker, threading.get_ident()
        doing = Doing.LOADS_ITEMS if is_prepared else Doing.LOADS_FUNCTION
        self._block = doing, time.monotonic(), 0, 0

    def mark(self, offset: int, count: int) -> None:
        """The items `[offset, offset + count)` start."""
        now = time.monotonic()
        if self._block is not None and self._block[0] is Doing.RUNS:
            self.longest_s = max(self.longest_s, now - self._block[1])
        self._block = Doing.RUNS, now, offset, count

    def work(self) -> Work | None:
        """What it is at; None when it has not begun."""
        block = self._block
        return None if block is None else Work(self._worker, block[0], block[1], self._id, block[2], block[3])

    def stopped(self) -> bool:
        """Whether the ticket was cancelled."""
        return self.stop


class Threads:
    """Runs tickets in threads of this process.

    Args:
        workers: How many threads.
        describe: Makes a payload of an exception that escaped from a program.
        watch: None, or what says where the threads are, when they take very long or somebody asks.
    """

    info = EngineInfo(
        name="threads",
        takes_objects=True,
        honours=frozenset({"idempotent", "threads_per_worker"}),
        shares_globals=True,
        kills="no",
    )

    def __init__(self, workers: int, describe: Callable[[BaseException], Any], watch: Watch | None = None) -> None:
        self._workers, self._describe, self._watch = workers, describe, watch
        self._stalls = Stalls()
        self._longest_s = 0.0
        self._todo: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._programs: dict[str, Any] = {}
        self._cells: dict[int, _Cell] = {}
        self._running: set[_Cell] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        """Start the threads."""
        with Shield():  # who closes joins all that are noted
            if self._watch is not None and not self._threads:
                self._watch.open(self._where)
            while len(self._threads) < self._workers:
                self._start_thread()

    def _start_thread(self) -> None:
        number = len(self._threads)
        thread = threading.Thread(target=self._work, args=(number, self._todo), name=f"fourfold-{number}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def slots(self) -> int:
        """As many as there are threads."""
        return self._workers

    def put(self, key: str, program: Any, need: Need = NO_NEED) -> None:
        """Keep the program; each thread prepares it once."""
        self._programs[key] = program

    def drop(self, key: str) -> None:
        """Forget the program."""
        self._programs.pop(key, None)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue tickets for the threads."""
        for ticket in tickets:
            with self._lock:
                self._cells[ticket.id] = _Cell(ticket.id)
            self._todo.put(ticket)

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Return the outcomes that are there, or wait for one."""
        if self._watch is not None and self._stalls.is_time_to_look():
            for cell, stall in self._stalls.among([(cell, cell.work()) for cell in self._at_work()], self._longest_s):
                self._watch.stalled(stall, _stack(cell.thread))
        outcomes = []
        try:
            outcomes.append(self._outcomes.get(timeout=timeout) if timeout != 0 else self._outcomes.get_nowait())
            while True:
                outcomes.append(self._outcomes.get_nowait())
        except queue.Empty:
            return outcomes

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Waiting tickets never start; running ones end between items, or are given up when `hard`."""
        with self._lock:
            for id, cell in list(self._cells.items()):
                if ids is not None and id not in ids:
                    continue
                cell.stop = True
                if hard:
                    del self._cells[id]
                    self._outcomes.put(Outcome(id, Kind.CANCELLED if cell not in self._running else Kind.LOST))
                    if cell in self._running:
                        self._start_thread()

    def _at_work(self) -> list[_Cell]:
        with self._lock:
            return list(self._running)

    def _where(self) -> list[tuple[str, Work | None, str]]:
        """The threads that do something, with what, and their stacks. Called by a handler: the lock may be held below it."""
        found = [(cell, cell.work()) for cell in self._running.copy()]
        return [(work.worker, work, _stack(cell.thread)) for cell, work in found if work is not None]

    def close(self) -> None:
        """End the threads; one that is still in an item ends after it, on its own."""
        if self._watch is not None:
            self._watch.close()
        self.cancel(hard=True)
        for _ in self._threads:
            self._todo.put(None)
        with self._lock:
            busy = len(self._running)
        if not busy:
            for thread in self._threads:
                thread.join()
        self._threads.clear()
        self._programs.clear()
        self._todo, self._outcomes = queue.SimpleQueue(), queue.SimpleQueue()

    # ---- in the threads ----------------------------------------------------------------------------------------------

    def _work(self, number: int, todo: "queue.SimpleQueue[Ticket | None]") -> None:
        prepared: dict[str, Runnable] = {}
        machine.limit_this_thread()
        while (ticket := todo.get()) is not None:
            with self._lock:
                cell = self._cells.get(ticket.id)
                if cell is None:
                    continue
                if cell.stop:
                    del self._cells[ticket.id]
                    self._outcomes.put(Outcome(ticket.id, Kind.CANCELLED))
                    continue
                self._running.add(cell)
            outcome = self._run(ticket, cell, prepared, f"thread {number}")
            with self._lock:
                self._running.discard(cell)
                self._stalls.forget(cell)
                self._longest_s = max(self._longest_s, cell.longest_s)
                if self._cells.get(ticket.id) is not cell:
                    return  # given up: another thread has taken the place
                del self._cells[ticket.id]
                self._outcomes.put(outcome)
            del ticket, outcome

    def _run(self, ticket: Ticket, cell: _Cell, prepared: dict[str, Runnable], worker: str) -> Outcome:
        try:
            run = prepared.get(ticket.program)
            cell.begin(worker, run is not None)
            if run is None:
                run = prepared[ticket.program] = self._programs[ticket.program].prepare()
            kind, data = run(ticket.payload, cell)
        except BaseException as error:
            return Outcome(ticket.id, Kind.BAD_PROGRAM, self._describe(error), worker=worker)
        return Outcome(ticket.id, kind, data, worker=worker)


def _stack(thread: int) -> str:
    """Where a thread is, most recent call first, in the words of faulthandler."""
    frame, lines = sys._current_frames().get(thread), []
    while frame is not None and frame.f_code is not Threads._work.__code__:
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        frame = frame.f_back
    return trimmed("\n".join(lines))
