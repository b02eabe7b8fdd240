"""The driver's side of one worker."""

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from typing import Any

from fourfold.distribute.engines.on_processes import channel, segments
from fourfold.distribute.engines.on_processes.page import COUNT, ERRNO, FIRST, PAGE_BYTES, STATUS, STOP, STOPS, TICKET, Page
from fourfold.distribute.engines.on_processes.segments import Place, Reader, Segment, Writer
from fourfold.records import Kind, Outcome, Parcel, Ticket

OBITUARY_S = 1.0
"""Seconds to wait for the template to note how a worker died. Smaller: a cause may be missing from the message."""


class SharedProgram:
    """A program laid out once, for all workers of a run."""

    def __init__(self, parcel: Parcel) -> None:
        self._writer = Writer()
        place, self._segment = self._writer.write(parcel, channel.INLINE_BYTES)
        self.place = place

    @property
    def fd(self) -> int:
        """The descriptor that goes with the place; -1 when the message itself has all."""
        return -1 if self._segment is None else self._segment.fd

    def close(self) -> None:
        """Let go of the memory; workers that have it mapped keep it until they drop the program."""
        self._writer.close()


class Worker:
    """One worker process: what it was sent, and what it says.

    Args:
        number: For names in messages.
        end: The driver's end of the channel.
        page: The control page.
    """

    def __init__(self, number: int, end: socket.socket, page: Page) -> None:
        self.number, self.end, self.page = number, end, page
        self.pid = 0
        self.pidfd = -1
        self.ready = False
        self.gone = False
        self.flights: dict[int, int] = {}
        """Tickets that this worker has, oldest first, with the segment that each one's payload lies in."""
        self.said: list[tuple[Any, ...]] = []
        """What it printed, logged and warned, until somebody reads it."""
        self.hung_up = False
        self._programs: set[str] = set()
        self._items, self._results = Writer(), Reader()
        self._outbox: deque[tuple[channel.Message, int, Segment | None]] = deque()

    @property
    def name(self) -> str:
        """For messages: "worker 3 (pid 4711)"."""
        return f"worker {self.number} (pid {self.pid})"

    # ---- to the worker -----------------------------------------------------------------------------------------------

    def give(self, ticket: Ticket, program: "SharedProgram") -> None:
        """Send a ticket, and before it the program when this worker does not have it yet.

        Raises:
            OSError: There is no memory for the payload.
        """
        if ticket.program not in self._programs:
            self._programs.add(ticket.program)
            self._send(("program", ticket.program, tuple(program.place)), program.fd)
        place, new = self._items.write(ticket.payload, channel.INLINE_BYTES)
        self.flights[ticket.id] = place.segment
        self._send(("ticket", ticket.id, ticket.program, tuple(place)), -1, new)

    def drop(self, key: str) -> None:
        """The worker may forget this program."""
        if key in self._programs:
            self._programs.discard(key)
            self._send(("drop", key))

    def rest(self) -> None:
        """No run holds this worker now."""
        forget = self._items.trim(0)
        if forget:
            self._send(("forget", forget))
        self._send(("rest",))

    def stop_ticket(self, id: int) -> None:
        """Ask it to end a ticket at the next boundary between items."""
        fields = self.page.fields
        for number in range(STOPS):
            if fields[STOP + number] in (0, id + 1):
                fields[STOP + number] = id + 1
                break
        if fields[STOP] == 0:
            fields[STOP] = id + 1

    def _send(self, message: channel.Message, fd: int = -1, new: Segment | None = None) -> None:
        """Send a message with the descriptor `fd`, or with that of a new segment, which is closed then."""
        self._outbox.append((message, fd if new is None else new.fd, new))
        self.flush()

    def flush(self) -> bool:
        """Send what waits; False when the worker has not read for so long that its buffer is full."""
        while self._outbox:
            message, fd, new = self._outbox[0]
            try:
                channel.send(self.end, message, (fd,) if fd >= 0 else (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                self.hung_up = True
                return True
            self._outbox.popleft()
            if new is not None:
                new.close_fd()
        return True

    # ---- from the worker ---------------------------------------------------------------------------------------------

    def hear(self) -> list[Outcome]:
        """Take in all messages that are there. Sets `ready`, `hung_up` and `said`."""
        outcomes: list[Outcome] = []
        while not self.hung_up:
            try:
                received = channel.receive(self.end, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                received = None
            if received is None:
                self.hung_up = True
                break
            (what, *rest), fds = received
            match what:
                case "done":
                    outcomes.append(self._done(fds, *rest))
                case "ready":
                    self.pid = rest[0]
                    self.ready = True
                    if hasattr(os, "pidfd_open"):
                        with contextlib.suppress(ProcessLookupError):
                            self.pidfd = os.pidfd_open(self.pid)
                case "forget":
                    self._results.forget(rest[0])
                case "say":
                    self.said.append(rest[0])
        return outcomes

    def _done(self, fds: list[int], id: int, kind: int, answer: tuple[Any, ...] | None, kept: bool) -> Outcome:
        used = self.flights.pop(id)
        if kept:
            self._items.abandon(used)
            self._send(("forget", [used]))
        elif forget := self._items.release(used):
            self._send(("forget", forget))
        fields = self.page.fields
        for number in range(STOPS):
            if fields[STOP + number] == id + 1:
                fields[STOP + number] = 0
        if answer is None:
            return Outcome(id, Kind(kind), worker=self.name)
        place = Place(*answer)
        data = _copy(segments.read(self._results.view(place, fds)))
        if place.segment >= 0:
            self._send(("freed", [place.segment]))
        return Outcome(id, Kind(kind), data, worker=self.name)

    # ---- its end -----------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill it with all the processes that it started."""
        if self.pid and not self.is_dead():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def is_dead(self) -> bool:
        """Whether it has ended, by the template's note or the kernel's word."""
        if self.page.fields[STATUS]:
            return True
        if self.pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def bury(self) -> list[Outcome]:
        """It is dead: hear its last words, and say what became of its tickets. Frees everything."""
        outcomes = self.hear()
        self.kill()  # when only its channel is broken, and for the processes that it leaves behind
        reason = self._cause()
        fields = self.page.fields
        for id in self.flights:
            if fields[TICKET] == id + 1:
                running = (int(fields[FIRST]), int(fields[COUNT]))
                outcomes.append(Outcome(id, Kind.LOST, running=running, reason=reason, worker=self.name))
            else:
                outcomes.append(Outcome(id, Kind.COLLATERAL, worker=self.name))
        self.flights.clear()
        self.close()
        return outcomes

    def _cause(self) -> str:
        """How it died, in words. Waits for the template's note."""
        deadline = time.monotonic() + OBITUARY_S
        fields = self.page.fields
        while not fields[STATUS] and not fields[ERRNO] and time.monotonic() < deadline:
            time.sleep(0.001)
        if fields[ERRNO]:
            return f"could not be forked: {os.strerror(int(fields[ERRNO]))}"
        if not fields[STATUS]:
            return f"{self.name} vanished without a trace"
        status = int(fields[STATUS]) - 1
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            hint = ", often the kernel's answer to too little memory" if number == signal.SIGKILL else ""
            return f"{self.name} was killed by {signal.Signals(number).name}{hint}"
        return f"{self.name} exited with code {os.waitstatus_to_exitcode(status)}"

    def close(self) -> None:
        """Free the driver's side."""
        if not self.gone:
            self.gone = True
            self.end.close()
            if self.pidfd >= 0:
                os.close(self.pidfd)
            for _, _, new in self._outbox:
                if new is not None:
                    new.close_fd()
            self._items.close()
            self._results.close()
            self.page.close()


def new_worker(number: int) -> tuple[Worker, socket.socket, int]:
    """Make the driver's side of a worker; returns it with the channel end and page descriptor for the other side.

    Raises:
        OSError: There are no descriptors left.
    """
    ours, theirs = channel.pair()
    try:
        page_fd = segments.new_file(PAGE_BYTES)
    except OSError:
        ours.close()
        theirs.close()
        raise
    return Worker(number, ours, Page(page_fd)), theirs, page_fd


def _copy(parcel: Parcel) -> Parcel:
    """A parcel in this process's own memory, writable, so that the segment can be used again."""
    return Parcel(bytes(parcel.head), tuple(bytearray(buffer) for buffer in parcel.buffers))
