"""The loop of one worker: receive, run, reply.

Messages in:   ("program", key, place) ("drop", key, number) ("ticket", id, key, place) ("freed", [ids]) ("rest",)
               ("limit", memory_bytes) ("stay",)
Messages out:  ("ready", pid, modules) ("loaded", key, why_not) ("done", id, kind, place, kept) ("dropped", number, kept)
               ("say", record) ("outgrown", bytes)

A message whose place is in a segment brings the segment's descriptor. The driver's segment is free again with the ticket's
reply, unless something that the function keeps still looks into it (`kept`): then it is never written again. The worker's is
free again when the driver says "freed".
"""

import gc
import mmap
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fourfold.distribute.engine import Runnable
from fourfold.distribute.engines.on_processes import channel, segments
from fourfold.distribute.engines.on_processes.cell import PageCell
from fourfold.distribute.engines.on_processes.gauge import Gauge
from fourfold.distribute.engines.on_processes.limit import MemoryLimit
from fourfold.distribute.engines.on_processes.page import Page
from fourfold.distribute.engines.on_processes.segments import Owner, Place
from fourfold.records import Kind, Parcel

LET_GO_S = 10.0
"""Seconds after which a worker that no run holds lets go of the memory that it keeps for results. Smaller: the next run pays
for fresh memory. Larger: memory is held. Not measured."""

IDLE_S = 300.0
"""Seconds after which a worker that no run holds ends. Smaller: runs pay for new workers. Larger: memory is held."""


def watch_driver(end: socket.socket, driver_pidfd: int) -> None:
    """Start a thread that ends this process, and all it started, when the driver is gone."""

    def watch() -> None:
        # Who asks for a stack wants that of the items: while C code of theirs blocks signals, this thread must not answer.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        poll = select.poll()
        poll.register(end, 0)  # POLLHUP is always reported
        if driver_pidfd >= 0:
            poll.register(driver_pidfd, select.POLLIN)
        while True:
            if poll.poll():
                os.killpg(0, 9)

    threading.Thread(target=watch, name="fourfold-watch-driver", daemon=True).start()


class WorkerLoop:
    """Serves one driver over one channel.

    Args:
        end: The channel.
        page: The control page.
        load: Makes a runnable of a program's parcel; it may raise.
        describe: Makes a parcel of an exception.
        in_words: Says in a line what the exception is.
        inherited: Modules that were imported for all workers.
        flush: Called after each ticket, before its reply.
    """

    def __init__(
        self,
        end: socket.socket,
        page: Page,
        *,
        load: Callable[[Parcel], Runnable],
        describe: Callable[[BaseException], Parcel],
        in_words: Callable[[BaseException], str],
        flush: Callable[[], None],
        inherited: Sequence[str] = (),
    ) -> None:
        self._end, self._cell, self._page, self._inherited = end, PageCell(page), page, tuple(inherited)
        self._load, self._describe, self._in_words, self._flush = load, describe, in_words, flush
        self._programs: dict[str, tuple[Runnable | None, Parcel | None]] = {}
        self._mappings: dict[str, mmap.mmap] = {}
        self._results = Owner()
        self._send_lock = threading.Lock()
        self._pid = os.getpid()
        os.register_at_fork(after_in_child=self._cell.leave)
        self._limit = MemoryLimit(0)
        self._outgrown = False

    def send(self, *message: Any, fds: tuple[int, ...] = ()) -> None:
        """Send one message; threads of the user's code may print at the same time."""
        try:
            with self._send_lock:
                channel.send(self._end, message, fds)
        except ConnectionError:
            os.killpg(0, 9)  # the driver is gone, and the watcher was slower to see it

    def serve(self) -> None:
        """Serve until the driver says stop or is gone."""
        self._gauge = Gauge(self._page, self._retire)
        self.send("ready", os.getpid(), self._inherited)
        patience: float | None = None
        while True:
            self._end.settimeout(patience)
            try:
                received = channel.receive(self._end)
            except TimeoutError:
                if patience == IDLE_S:
                    return
                # Results that the driver still looks at live on in its own mapping.
                self._results.close()
                self._cell.rest()
                gc.collect()
                patience = IDLE_S
                continue
            if received is None:
                return
            (what, *rest), fds = received
            patience = LET_GO_S if what == "rest" else None
            if what == "rest":
                if self._outgrown:
                    return  # the next run wants another one
                self._gauge.new_run()
            match what:
                case "ticket":
                    self._ticket(fds, *rest)
                    self._gauge.between_chunks()
                case "program":
                    self._program(fds, *rest)
                case "drop":
                    self._drop(*rest)
                case "freed":
                    for id in rest[0]:
                        self._results.release(id)
                case "stay":
                    self._outgrown = False
                    self._gauge.new_run()
                case "limit":
                    self._gauge.limit_bytes = rest[0]
                    self._limit = MemoryLimit(rest[0])

    def _program(self, fds: list[int], key: str, place: tuple[Any, ...]) -> None:
        self._cell.begin_program()
        why_not = ""
        try:
            parcel, mapping = segments.open_readonly(Place(*place), *fds)
            if mapping is not None:
                self._mappings[key] = mapping
            self._gauge.new_run()
            run = self._load(parcel)
            self._limit.check()
            self._programs[key] = (run, None)
        except BaseException as error:
            self._programs[key] = (None, self._describe(error))
            why_not = self._in_words(error)
        self.send("loaded", key, why_not)

    def _retire(self, grown_bytes: int) -> None:
        """Ask to be replaced, and start nothing any more until the driver has decided."""
        self._outgrown = True
        self.send("outgrown", grown_bytes)

    def _drop(self, key: str, number: int) -> None:
        self._programs.pop(key, None)
        mapping = self._mappings.pop(key, None)
        self.send("dropped", number, segments.is_looked_at(mapping))

    def _ticket(self, fds: list[int], id: int, key: str, place: tuple[Any, ...]) -> None:
        parcel, mapping = segments.open_shared(Place(*place), *fds)
        self._cell.begin(id)
        if self._cell.stopped() or self._outgrown:
            self._cell.end()
            self.send("done", id, int(Kind.CANCELLED), None, False)
            return
        run, broken = self._programs[key]
        kind, data = (Kind.BAD_PROGRAM, broken) if run is None else self._run(run, parcel)
        assert data is not None
        if os.getpid() != self._pid:
            os._exit(0)  # an item forked, and this is the child that came back: the parent answers
        self._cell.end_if_expired()
        self._gauge.end_of_chunk()
        self._flush()
        answer, fd = self._results.write(data, channel.INLINE_BYTES)
        del data, parcel
        kept = segments.is_looked_at(mapping)
        self.send("done", id, int(kind), tuple(answer), kept, fds=(fd,) if fd >= 0 else ())
        self._cell.end()

    def _run(self, run: Runnable, parcel: Parcel) -> tuple[Kind, Parcel]:
        try:
            with self._limit:
                return run(parcel, self._cell)
        except BaseException as error:
            return Kind.BAD_PROGRAM, self._describe(error)
