"""The driver's side of one worker."""

import contextlib
import os
import resource
import select
import signal
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from fourfold.distribute.engines.on_processes import channel, segments
from fourfold.distribute.engines.on_processes import obituary as obituaries
from fourfold.distribute.engines.on_processes.expiry import Expiry
from fourfold.distribute.engines.on_processes.gauge import private_bytes
from fourfold.distribute.engines.on_processes.kept import read as read_kept
from fourfold.distribute.engines.on_processes.obituary import Obituary, OutOfMemoryKills
from fourfold.distribute.engines.on_processes.page import (
    BEGAN_NS,
    COUNT,
    ENDED,
    ERRNO,
    EXPIRED,
    FIRST,
    PAGE_BYTES,
    PEAK_BYTES,
    PID,
    PRIVATE_BYTES,
    STACK_AT,
    STATUS,
    STOP,
    STOPS,
    TICKET,
    TOP_BYTES,
    Page,
)
from fourfold.distribute.engines.on_processes.segments import Owner, Place
from fourfold.distribute.verdict import size
from fourfold.distribute.watch import Doing, Work
from fourfold.errors import EngineError
from fourfold.records import Kind, Outcome, Parcel, Ticket

HANDOVER_BYTES = 1 << 20
"""Results from this size on stay in the memory that the worker wrote, mapped; smaller ones are copied out of it. Smaller: more
mappings and descriptors. Larger: more copies into fresh memory. Not measured for other sizes."""

HANDOVERS = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
"""Mapped results that may live at once: each holds a descriptor of this process. Those beyond are copied."""

OVERSIZE = 1.05
"""Times `memory=` that a worker may have before it is killed. Smaller: an allocation that would have failed in the worker,
with a MemoryError of its own, ends it instead. Larger: the limit is less of one."""

_handovers: set[int] = set()
"""A key for each mapped result that lives."""

_forked: set[int] = set()
"""Those of them that a fork of this process sees as well. Nobody tells when it has let go: their memory is not used again."""


class SharedProgram:
    """A program laid out once for all workers of a run, in memory that is written again when all have let go of it.

    Args:
        parcel: The program.
        owner: Owns the memory.
        number: Names the program in messages.
        lock: Held while the owner is changed; runs in several threads share it.
    """

    def __init__(self, parcel: Parcel, owner: Owner, number: int, lock: AbstractContextManager[Any]) -> None:
        self.number = number
        self._owner, self._lock = owner, lock
        self.place, self.fd = owner.write(parcel, channel.INLINE_BYTES)
        self._holders: set[Worker] = set()
        self._over = self._spoiled = False

    def given(self, worker: "Worker") -> None:
        """The worker has it."""
        self._holders.add(worker)

    def returned(self, worker: "Worker", kept: bool) -> None:
        """The worker has let go of it, or is dead; `kept`: something there looks at it for good."""
        self._holders.discard(worker)
        self._spoiled = self._spoiled or kept
        self._settle()

    def close(self) -> None:
        """The run is over."""
        self._over = True
        self._settle()

    def _settle(self) -> None:
        if self._over and not self._holders:
            with self._lock:
                if self._spoiled:
                    self._owner.abandon(self.place.segment)
                else:
                    self._owner.release(self.place.segment)


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
        self.template_pid = template_pid
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
        self.hung_up = False
        self.garbled = False
        """It said what is no message."""
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
        self._expired: tuple[int, ...] | None = None
        self._expiry: Expiry | None = None
        self._expired_reason = ""
        self._programs: dict[str, SharedProgram] = {}
        self._n_loading = 0
        """Programs that it was sent, and has not loaded yet."""
        self.imports: frozenset[str] = frozenset()
        """Modules that were imported before it was forked, or with a program."""
        self._dropped: dict[int, SharedProgram] = {}
        self._items = Owner()
        self._freed: deque[int] = deque()
        self._outbox: deque[tuple[channel.Message, int]] = deque()

    @property
    def name(self) -> str:
        """For messages: "worker 3 (pid 4711)"."""
        return f"worker {self.number} (pid {self.pid})" if self.pid else f"worker {self.number}"

    @property
    def has_failed_to_start(self) -> bool:
        """Whether it was ended because it took too long to start."""
        return self._start_failure is not None

    # ---- to the worker -----------------------------------------------------------------------------------------------

    def give(self, ticket: Ticket, program: "SharedProgram") -> None:
        """Send a ticket, and before it the program when this worker does not have it yet.

        Raises:
            OSError: There is no memory for the payload, or no open file is left; the worker does not have the ticket.
        """
        self.load(ticket.program, program)
        self._send_freed()
        place, fd = self._items.write(ticket.payload, channel.INLINE_BYTES)
        try:
            self._send(("ticket", ticket.id, ticket.program, tuple(place)), fd)
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
            self._send(("program", key, tuple(program.place)), program.fd)
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
        if program is not None:
            self._dropped[program.number] = program
            self._send(("drop", key, program.number))

    def limit(self, limit_bytes: int) -> None:
        """The private bytes that it may have from now on while it loads programs and runs items; 0: as many as there are."""
        if limit_bytes != self._limit_bytes:
            self._limit_bytes = limit_bytes
            self._send(("limit", limit_bytes))

    def stay(self) -> None:
        """There is nobody to replace it, although it has grown."""
        self.outgrown_bytes = 0
        self._send(("stay",))

    def rest(self, keep_bytes: int = 0) -> None:
        """No run holds this worker now. It keeps memory for the items of the next one, up to `keep_bytes`."""
        self._served = False
        self._items.trim(keep_bytes)
        self._send_freed()
        self._send(("rest",))

    def _send_freed(self) -> None:
        """Tell the worker which of its segments nobody looks at any more."""
        freed = []
        while self._freed:  # results may be let go in any thread, at any time
            freed.append(self._freed.popleft())
        for begin in range(0, len(freed), 1000):
            self._send(("freed", freed[begin : begin + 1000]))

    def stop_ticket(self, id: int) -> None:
        """Ask it to end a ticket at the next boundary between items."""
        fields = self.page.fields
        for number in range(STOPS):
            if fields[STOP + number] in (0, id + 1):
                fields[STOP + number] = id + 1
                return

    def _send(self, message: channel.Message, fd: int = -1) -> None:
        """Send a message with a descriptor, now or when the worker reads again."""
        if self._outbox or not self._send_now(message, fd):
            self._outbox.append((message, os.dup(fd) if fd >= 0 else -1))  # its owner may close it before that

    def _send_now(self, message: channel.Message, fd: int) -> bool:
        """False when the worker has not read for so long that its buffer is full."""
        try:
            channel.send(self.end, message, (fd,) if fd >= 0 else (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # it is gone, or the system has no room for this message: the worker would wait for it for ever
            self.hung_up = True
            with contextlib.suppress(OSError):
                self.end.shutdown(socket.SHUT_RDWR)  # now poll() tells that it must be replaced
        return True

    def flush(self) -> bool:
        """Send what waits; False when some of it still has to."""
        while self._outbox:
            message, fd = self._outbox[0]
            if not self._send_now(message, fd):
                return False
            self._outbox.popleft()
            if fd >= 0:
                os.close(fd)
        return True

    # ---- from the worker ---------------------------------------------------------------------------------------------

    def hear(self) -> list[Outcome]:
        """Take in all messages that are there. Sets `ready`, `hung_up` and `said`."""
        outcomes: list[Outcome] = []
        while not self.gone:  # also when it hung up: its last words may be there still
            try:
                received = channel.receive(self.end, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except channel.Garbled:
                self.garbled, received = True, None
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
                    self._know_pid(rest[0])
                    self.ready = True
                    self.base_bytes = self.page.fields[PRIVATE_BYTES]
                case "loaded":
                    self._n_loading -= 1
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
        self._unstop(ticket)
        if answer is None:
            return Outcome(ticket, Kind(kind), worker=self.name)
        return Outcome(ticket, Kind(kind), self._open(Place(*answer), fds), worker=self.name)

    def _open(self, place: Place, fds: list[int]) -> Parcel:
        """The parcel of a result. Its segment is free again when it is copied, or when nobody looks at it any more."""
        if place.inline is not None:
            return segments.open_inline(place)
        if not fds:
            raise EngineError("a result could not be received: this process has no open file left. Raise `ulimit -n`")
        if place.used_bytes < HANDOVER_BYTES or len(_handovers) >= HANDOVERS:
            parcel = segments.open_copy(place, fds[0])
            self._freed.append(place.segment)
            return parcel
        try:
            parcel, mapping = segments.open_private(place, fds[0])
        except OSError as error:
            raise EngineError(
                f"a result of {size(place.used_bytes)} could not be received: {error}. Let items return less, or use imap()"
            ) from error
        key = id(mapping)
        _handovers.add(key)
        weakref.finalize(mapping, _let_go, key, self._freed, place.segment).atexit = False
        return parcel

    def _unstop(self, id: int) -> None:
        """The ticket has ended: the others to stop move up. The worker always finds them, and looks on from the first only."""
        fields = self.page.fields
        others = [stop for stop in fields[STOP : STOP + STOPS].tolist() if stop not in (0, id + 1)]
        for number in range(STOPS):
            fields[STOP + number] = others[number] if number < len(others) else 0

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
        self.hung_up = True
        with contextlib.suppress(OSError):  # it may be one that cannot be killed now
            self.end.shutdown(socket.SHUT_RDWR)

    def expire(self, timeout_s: float) -> float:
        """End it, with all that it started, when the block of items that it is on has run for longer than `timeout_s`.

        Returns the seconds until this must be called again, if the worker goes on as it is.
        """
        if self._expiry is not None:
            if not self.flights:  # it came to its end after all
                self.kill()
            return self._expiry.step()
        on = self._running()
        if on is None:
            return timeout_s
        left = max(on[-1] / 1e9, self.heard_at) + timeout_s - time.monotonic()
        # It may have gone on to another item while we looked.
        if left > 0 or self._running() != on:
            return max(left, 0.0)
        self.page.fields[EXPIRED] = on[-1]
        if self._running() != on:  # it has gone on: from here on it cannot, if it has not
            return 0.0
        self._expired = on
        self._expired_reason = f"ran longer than timeout={timeout_s:g} seconds; {self.name} was stopped"
        self._expiry = Expiry(self.pid, self.pidfd, self.page, self.kill)
        return self._expiry.step()

    @property
    def is_ending(self) -> bool:
        """Whether its item has run out of time: it gets nothing more."""
        return self._expiry is not None

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

    def kill_when_larger(self, memory: int) -> None:
        """Kill it, with all that it started, when it runs items and has clearly more private memory than `memory`."""
        has = private_bytes(self.pid)[0] if self._running() and not self.oversize else 0
        if has > OVERSIZE * memory:
            self.oversize = f"{self.name} had {size(has)} of private memory, more than memory={memory}, and was stopped"
            self.kill()

    def _running(self) -> tuple[int, ...] | None:
        """The ticket, block and beginning of what it runs now, or None."""
        fields = self.page.fields
        on = tuple(int(fields[number]) for number in (TICKET, FIRST, COUNT, BEGAN_NS))
        return on if on[0] else None

    def is_fit(self) -> bool:
        """Whether it may get another ticket."""
        is_kept = self._alone in self.flights
        return self.ready and not (self.hung_up or self.outgrown_bytes or self.is_ending or is_kept)

    def runs_another_than(self, id: int) -> bool:
        """Whether it is on another ticket now."""
        return int(self.page.fields[TICKET]) not in (0, id + 1)

    def look(self) -> Work | None:
        """What it is doing now; None when it has nothing to do, or is not ready."""
        if not self.flights or not self.ready:
            return None
        fields = self.page.fields
        id, first, count, began = (int(fields[number]) for number in (TICKET, FIRST, COUNT, BEGAN_NS))
        if self.is_loading():
            return Work(self.name, Doing.LOADS_FUNCTION, self._since)
        if not id:  # it is between two tickets
            return None
        return Work(self.name, Doing.RUNS if count else Doing.LOADS_ITEMS, began / 1e9, id - 1, first, count)

    def is_loading(self) -> bool:
        """Whether it has tickets, and has not begun with the first one since it has the function."""
        return bool(self.flights) and not self.page.fields[TICKET] and not self.has_begun

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
            when = obituaries.BETWEEN_ITEMS
        self.obituary = obituary = self._start_failure or obituaries.write(
            self.name, self.page, when, kills if self._expired is None else None, self.is_watched
        )
        reason = obituary.reason
        if self.garbled:
            reason = f"{self.name} was stopped, since something in it wrote into the socket on which it talks to this process"
        fields = self.page.fields
        for id in self.flights:
            if fields[TICKET] == id + 1:
                # No count: it died before the first item, unpickling them. Any of them may be to blame.
                running = (int(fields[FIRST]), int(fields[COUNT])) if fields[COUNT] else None
                kind = Kind.LOST
                if self._expired is not None:
                    # It may have ended the item before it heard that it must end: then it died on an innocent one.
                    if self._expired == self._running():
                        kind, reason = Kind.EXPIRED, self._expired_reason
                    else:
                        reason = f"{self.name} was stopped: the item before this one {self._expired_reason}"
                starved = bool(self.oversize) and kind is Kind.LOST
                stack = self._expiry.stack if self._expiry is not None and kind is Kind.EXPIRED else ""
                outcomes.append(
                    Outcome(
                        id,
                        kind,
                        running=running,
                        reason=self.oversize if starved else reason,
                        worker=self.name,
                        evidence=obituaries.with_stack(stack, obituary.evidence),
                        out_of_memory=starved or obituary.out_of_memory,
                        kept=read_kept(self.page),
                    )
                )
            else:
                stopped = id + 1 in fields[STOP : STOP + STOPS].tolist()
                outcomes.append(Outcome(id, Kind.CANCELLED if stopped else Kind.COLLATERAL, worker=self.name))
        self.flights.clear()
        self.close()
        return outcomes

    def close(self) -> None:
        """Free the driver's side."""
        if not self.gone:
            self.gone = True
            self.flights.clear()
            self.end.close()
            if self.pidfd >= 0:
                os.close(self.pidfd)
            for _, fd in self._outbox:
                if fd >= 0:
                    os.close(fd)
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


def _let_go(key: int, freed: "deque[int]", segment: int) -> None:
    _handovers.discard(key)
    if key in _forked:
        _forked.discard(key)
    else:
        freed.append(segment)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: _forked.update(_handovers))
