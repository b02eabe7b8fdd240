"""The driver's side of one worker."""

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fourfold.distribute.engines.on_processes import channel, segments
from fourfold.distribute.engines.on_processes import obituary as obituaries
from fourfold.distribute.engines.on_processes.expiry import Expiry, Overdue, mark_if_overdue
from fourfold.distribute.engines.on_processes.fates import Death, fates
from fourfold.distribute.engines.on_processes.gauge import private_bytes
from fourfold.distribute.engines.on_processes.handover import open_result
from fourfold.distribute.engines.on_processes.line import Line
from fourfold.distribute.engines.on_processes.obituary import Obituary, OutOfMemoryKills
from fourfold.distribute.engines.on_processes.page import (
    ENDED,
    ERRNO,
    PAGE_BYTES,
    PEAK_BYTES,
    PID,
    PRIVATE_BYTES,
    STACK_AT,
    STATUS,
    TICKET,
    TOP_BYTES,
    Page,
)
from fourfold.distribute.engines.on_processes.program import SharedProgram
from fourfold.distribute.engines.on_processes.segments import Owner, Place
from fourfold.distribute.verdict import size
from fourfold.distribute.watch import Doing, Work
from fourfold.records import Kind, Outcome, Ticket

OVERSIZE = 1.05
"""Times `memory=` that a worker may have before it is killed. Smaller: an allocation that would have failed in the worker,
with a MemoryError of its own, ends it instead. Larger: the limit is less of one."""


class Worker:
    """One worker process: what it was sent, and what it says.

    Args:
        number: For names in messages.
        end: The driver's end of the channel.
        page: The control page.
        is_watched: Whether the template that forked it lives: it notes how the worker dies, and reads its fd 2.
        template_pid: That template's process id.
    """

    def __init__(
        self, number: int, end: socket.socket, page: Page, is_watched: Callable[[], bool], template_pid: int = 0
    ) -> None:
        self.number, self.end, self.page, self.is_watched = number, end, page, is_watched
        self.line, self.template_pid = Line(end), template_pid
        self.born_at = time.monotonic()
        """When it was ordered."""
        self._start_failure: Obituary | None = None
        self.pid = 0
        self.pidfd = -1
        self.ready = False
        self.gone = False
        self.flights: dict[int, int] = {}
        """Tickets that this worker has, oldest first, with the segment that each one's payload lies in."""
        self.said: list[tuple[Any, ...]] = []
        """What it printed, logged and warned, until somebody reads it."""
        self.heard_at = 0.0
        """When the driver, back from elsewhere, found words of this worker: until then it may have waited to be heard."""
        self.outgrown_bytes = 0
        """What it has grown by for good, when that is too much: it is to be replaced."""
        self._served = False
        self.is_new = True
        """It has never had a ticket."""
        self._alone: int | None = None
        self.base_bytes = 0
        """Its private memory when it was new."""
        self.is_given_up = False
        """It was killed because its tickets were to end at once: nobody is to hear that it has died."""
        self._limit_bytes = 0
        self.oversize = ""
        """Why it was killed, when that was for its size."""
        self.obituary: Obituary | None = None
        """How it died, once it is buried."""
        self._since = 0.0
        """When it got its oldest ticket, or ended one."""
        self.has_begun = False
        """It has ended a ticket of the program that it got last."""
        self._overdue: Overdue | None = None
        self._programs: dict[str, SharedProgram] = {}
        self._n_loading = 0
        """Programs that it was sent, and has not loaded yet."""
        self.not_loaded: dict[str, str] = {}
        """Programs that raised when it loaded them, and what."""
        self.inherited: frozenset[str] = frozenset()
        """Modules that were imported for it before it was forked, as it says itself when it is ready."""
        self.imports: frozenset[str] = frozenset()
        """These, and those that it has imported with programs."""
        self._dropped: dict[int, SharedProgram] = {}
        self._items = Owner()
        self._freed: deque[int] = deque()

    @property
    def name(self) -> str:
        """For messages: "worker 3 (pid 4711)"."""
        return f"worker {self.number} (pid {self.pid})" if self.pid else f"worker {self.number}"

    @property
    def has_failed_to_start(self) -> bool:
        """Whether it was ended because it took too long to start."""
        return self._start_failure is not None

    # ---- to the worker -----------------------------------------------------------------------------------------------

    def give(self, ticket: Ticket, program: SharedProgram) -> None:
        """Send a ticket, and before it the program when this worker does not have it yet.

        Raises:
            OSError: There is no memory for the payload, or no open file is left; the worker does not have the ticket.
        """
        self.load(ticket.program, program)
        self._send_freed()
        place, fd = self._items.write(ticket.payload, channel.INLINE_BYTES)
        try:
            self.line.send(("ticket", ticket.id, ticket.program, tuple(place)), fd)
        except OSError:
            self._items.release(place.segment)
            raise
        if not self.flights:
            self._since = time.monotonic()
        self.flights[ticket.id] = place.segment
        self._served, self.is_new = True, False
        if ticket.fresh:
            self._alone = ticket.id

    def load(self, key: str, program: "SharedProgram") -> None:
        """Send a program, when this worker does not have it yet."""
        if key not in self._programs:
            self.line.send(("program", key, tuple(program.place)), program.fd)
            self._programs[key] = program
            self._n_loading += 1
            program.given(self)

    @property
    def has_loaded(self) -> bool:
        """Whether it has loaded all programs that it was sent, or failed to."""
        return not self._n_loading

    def drop(self, key: str) -> None:
        """The worker may forget this program."""
        program = self._programs.pop(key, None)
        self.has_begun = False
        self.not_loaded.pop(key, None)
        if program is not None:
            self._dropped[program.number] = program
            self.line.send(("drop", key, program.number))

    def limit(self, limit_bytes: int) -> None:
        """The private bytes that it may have from now on while it loads programs and runs items; 0: as many as there are."""
        if limit_bytes != self._limit_bytes:
            self._limit_bytes = limit_bytes
            self.line.send(("limit", limit_bytes))

    def stay(self) -> None:
        """There is nobody to replace it, although it has grown."""
        self.outgrown_bytes = 0
        self.line.send(("stay",))

    def rest(self, keep_bytes: int = 0) -> None:
        """No run holds this worker now. It keeps memory for the items of the next one, up to `keep_bytes`."""
        self._served = False
        self._items.trim(keep_bytes)
        self._send_freed()
        self.line.send(("rest",))

    def _send_freed(self) -> None:
        """Tell the worker which of its segments nobody looks at any more."""
        freed = []
        while self._freed:  # results may be let go in any thread, at any time
            freed.append(self._freed.popleft())
        for begin in range(0, len(freed), 1000):
            self.line.send(("freed", freed[begin : begin + 1000]))

    # ---- from the worker ---------------------------------------------------------------------------------------------

    def hear(self) -> list[Outcome]:
        """Take in all messages that are there. Sets `ready` and `said`."""
        outcomes: list[Outcome] = []
        # Also when it hung up: its last words may be there still.
        while not self.gone and (received := self.line.receive()) is not None:
            (what, *rest), fds = received
            match what:
                case "done":
                    outcomes.append(self._done(fds, *rest))
                case "ready":
                    self._know_pid(rest[0])
                    self.ready = True
                    self.imports = self.inherited = frozenset(rest[1])
                    self.base_bytes = self.page.fields[PRIVATE_BYTES]
                case "loaded":
                    self._n_loading -= 1
                    if rest[1] and rest[0] in self._programs:
                        self.not_loaded[rest[0]] = rest[1]
                case "dropped":
                    self._dropped.pop(rest[0]).returned(self, rest[1])
                case "outgrown":
                    self.outgrown_bytes = rest[0]
                case "say":
                    self.said.append(rest[0])
        return outcomes

    def has_spoken(self) -> bool:
        """Whether there is something to hear."""
        poll = select.poll()
        poll.register(self.end, select.POLLIN)
        return bool(poll.poll(0))

    def is_forked(self) -> bool:
        """Whether the template has done what it was ordered to do, or said why it cannot."""
        if not self.pid and self.page.fields[PID]:
            self._know_pid(int(self.page.fields[PID]))
        return bool(self.pid or self.page.fields[ERRNO])

    def _know_pid(self, pid: int) -> None:
        self.pid = pid
        if self.pidfd < 0 and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # dead already, or no open file is left: its channel tells too
                self.pidfd = os.pidfd_open(pid)

    def _done(self, fds: list[int], ticket: int, kind: int, answer: tuple[Any, ...] | None, kept: bool) -> Outcome:
        used = self.flights.pop(ticket)
        self.has_begun = True
        self._since = time.monotonic()
        if kept:
            self._items.abandon(used)
        else:
            self._items.release(used)
        self.page.forget_stop(ticket)
        if answer is None:
            return Outcome(ticket, Kind(kind), worker=self.name)
        return Outcome(ticket, Kind(kind), open_result(Place(*answer), fds, self._freed), worker=self.name)

    # ---- what it does ------------------------------------------------------------------------------------------------

    def is_fit(self) -> bool:
        """Whether it may get another ticket."""
        is_kept = self._alone in self.flights
        return self.ready and not (self.line.hung_up or self.outgrown_bytes or self.is_ending or is_kept)

    def runs_another_than(self, id: int) -> bool:
        """Whether it is on another ticket now."""
        return int(self.page.fields[TICKET]) not in (0, id + 1)

    def look(self) -> Work | None:
        """What it is doing now; None when it has nothing to do, or is not ready."""
        if not self.flights or not self.ready:
            return None
        on = self.page.block()
        if self.is_loading():
            return Work(self.name, Doing.LOADS_FUNCTION, self._since)
        if on is None:  # it is between two tickets
            return None
        doing = Doing.RUNS if on.n_items else Doing.LOADS_ITEMS
        return Work(self.name, doing, on.began_ns / 1e9, on.ticket, on.first, on.n_items)

    def is_loading(self) -> bool:
        """Whether it has tickets, and has not begun with the first one since it has the function."""
        return bool(self.flights) and not self.page.fields[TICKET] and not self.has_begun

    # ---- its memory --------------------------------------------------------------------------------------------------

    def private_bytes(self, live: bool) -> int:
        """Its private memory beyond that of a new worker: between its last chunks, or now."""
        private = private_bytes(self.pid)[0] if live and self.pid else self.page.fields[PRIVATE_BYTES]
        return max(0, private - self.base_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most that it has had lately beyond that, in the chunks of this run."""
        return max(0, self.page.fields[PEAK_BYTES] - self.base_bytes) if self._served else 0

    @property
    def top_bytes(self) -> int:
        """The most that it has had in this run beyond that."""
        return max(0, self.page.fields[TOP_BYTES] - self.base_bytes) if self._served else 0

    # ---- its end -----------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill it with all the processes that it started."""
        if self.is_forked() and self.pid and not self.is_dead():
            self.page.fields[ENDED] = 1
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def fail_to_start(self, reason: str, evidence: str) -> None:
        """It has been starting for too long: end it. Whoever waits for its end hears of it."""
        self._start_failure = Obituary(reason, evidence)
        self.kill()
        self.line.hang_up()  # it may be one that cannot be killed now

    def expire(self, timeout_s: float) -> float:
        """End it, with all that it started, when the block of items that it is on has run for longer than `timeout_s`.

        Returns the seconds until this must be called again, if the worker goes on as it is.
        """
        if self._overdue is not None:
            if not self.flights:  # it came to its end after all
                self.kill()
            return self._overdue.expiry.step()
        block, left_s = mark_if_overdue(self.page, timeout_s, self.heard_at)
        if block is None:
            return left_s
        expiry = Expiry(self.pid, self.pidfd, self.page, self.kill)
        reason = f"ran longer than timeout={timeout_s:g} seconds; {self.name} was stopped"
        self._overdue = Overdue(block, reason, expiry)
        return expiry.step()

    @property
    def is_ending(self) -> bool:
        """Whether its item has run out of time: it gets nothing more."""
        return self._overdue is not None

    def kill_when_larger(self, memory: int) -> None:
        """Kill it, with all that it started, when it runs items and has clearly more private memory than `memory`."""
        has = private_bytes(self.pid)[0] if self.page.block() and not self.oversize else 0
        if has > OVERSIZE * memory:
            self.oversize = f"{self.name} had {size(has)} of private memory, more than memory={memory}, and was stopped"
            self.kill()

    def is_dead(self) -> bool:
        """Whether it has ended, by the template's note or the kernel's word."""
        if self.page.fields[STATUS]:
            return True
        if self.pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def bury(self, kills: OutOfMemoryKills | None) -> list[Outcome]:
        """It is dead: hear its last words, and say what became of its tickets. Frees everything but `obituary`."""
        outcomes = self.hear()
        self.kill()  # when only its channel is broken
        when = obituaries.BEFORE_READY if not self.ready else obituaries.LOADING if self.is_loading() else ""
        if self.ready and not self.flights:
            when = obituaries.BETWEEN_ITEMS if self.has_loaded else obituaries.LOADING
        self.obituary = obituary = self._start_failure or obituaries.write(
            self.name, self.page, when, kills if self._overdue is None else None, self.is_watched
        )
        if self.line.garbled:
            reason = f"{self.name} was stopped, since something in it wrote into the socket on which it talks to this process"
            obituary = obituary._replace(reason=reason, was_sent=False)
        outcomes += fates(self.flights, Death(self.name, self.page, obituary, self._overdue, self.oversize))
        self.flights.clear()
        self.close()
        return outcomes

    def close(self) -> None:
        """Free the driver's side."""
        if not self.gone:
            self.gone = True
            self.flights.clear()
            self.line.close()
            if self.pidfd >= 0:
                os.close(self.pidfd)
            self.page.close_texts()
            self._items.close()
            for program in [*self._programs.values(), *self._dropped.values()]:
                program.returned(self, kept=False)
            # The fields go with this object: at the exit of the driver another thread may still read it.


def new_worker(number: int, is_watched: Callable[[], bool], template_pid: int = 0) -> tuple[Worker, socket.socket, int]:
    """Make the driver's side of a worker; returns it with the channel end and page descriptor for the other side.

    Raises:
        OSError: There are no descriptors left.
    """
    ours, theirs = channel.pair()
    page_fd = -1
    try:
        page_fd = segments.new_file(PAGE_BYTES)
        os.ftruncate(page_fd, PAGE_BYTES)
        os.lseek(page_fd, STACK_AT, os.SEEK_SET)
        return Worker(number, ours, Page(page_fd), is_watched, template_pid), theirs, page_fd
    except OSError:
        ours.close()
        theirs.close()
        if page_fd >= 0:
            os.close(page_fd)
        raise
