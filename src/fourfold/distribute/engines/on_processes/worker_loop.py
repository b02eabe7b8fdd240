"""The loop of one worker: receive, run, reply.

Messages in:   ("program", key, place) ("drop", key) ("ticket", id, key, place) ("freed", [ids]) ("forget", [ids])
               ("rest",) ("stop",)
Messages out:  ("ready", pid) ("done", id, kind, place, kept) ("freed", id) ("forget", [ids]) ("say", record)

A segment that the driver wrote is free again with the ticket's reply; unless something that the function keeps still looks
into it (`kept`): then the driver never writes it again.
"""

import gc
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from fourfold.distribute.engine import Runnable
from fourfold.distribute.engines.on_processes import channel, segments
from fourfold.distribute.engines.on_processes.page import Page, PageCell
from fourfold.distribute.engines.on_processes.segments import Place, Reader, Writer
from fourfold.records import Kind, Parcel

IDLE_S = 300.0
"""Seconds after which a worker that no run holds ends. Smaller: runs pay for new workers. Larger: memory is held."""


def watch_driver(end: socket.socket, driver_pidfd: int) -> None:
    """Start a thread that ends this process, and all it started, when the driver is gone."""

    def watch() -> None:
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
        flush: Called after each ticket, before its reply.
    """

    def __init__(
        self,
        end: socket.socket,
        page: Page,
        *,
        load: Callable[[Parcel], Runnable],
        describe: Callable[[BaseException], Parcel],
        flush: Callable[[], None],
    ) -> None:
        self._end, self._cell = end, PageCell(page)
        self._load, self._describe, self._flush = load, describe, flush
        self._programs: dict[str, tuple[Runnable | None, Parcel | None]] = {}
        self._shared, self._items, self._results = Reader(readonly=True), Reader(), Writer()
        self._send_lock = threading.Lock()

    def send(self, *message: Any, fds: tuple[int, ...] = ()) -> None:
        """Send one message; threads of the user's code may print at the same time."""
        with self._send_lock:
            channel.send(self._end, message, fds)

    def serve(self) -> None:
        """Serve until the driver says stop or is gone."""
        self.send("ready", os.getpid())
        resting = False
        while True:
            self._end.settimeout(IDLE_S if resting else None)
            try:
                received = channel.receive(self._end)
            except TimeoutError:
                return
            if received is None:
                return
            (what, *rest), fds = received
            resting = what == "rest"
            match what:
                case "ticket":
                    self._ticket(fds, *rest)
                case "program":
                    self._program(fds, *rest)
                case "drop":
                    self._programs.pop(rest[0], None)
                    self._shared.close()
                    gc.collect()
                case "freed":
                    for id in rest[0]:
                        forget = self._results.release(id)
                        if forget:
                            self.send("forget", forget)
                case "forget":
                    self._items.forget(rest[0])
                case "rest":
                    self._results.trim(0)
                case "stop":
                    return

    def _program(self, fds: list[int], key: str, place: tuple[Any, ...]) -> None:
        try:
            parcel = segments.read(self._shared.view(Place(*place), fds))
            self._programs[key] = (self._load(parcel), None)
        except BaseException as error:
            self._programs[key] = (None, self._describe(error))

    def _ticket(self, fds: list[int], id: int, key: str, place: tuple[Any, ...]) -> None:
        view = self._items.view(Place(*place), fds)
        self._cell.begin(id)
        if self._cell.stopped():
            self._cell.end()
            self.send("done", id, int(Kind.CANCELLED), None, False)
            return
        run, broken = self._programs[key]
        parcel = segments.read(view)
        if run is None:
            kind, data = Kind.BAD_PROGRAM, broken
        else:
            kind, data = self._run(run, parcel)
        assert data is not None
        self._flush()
        answer, new = self._results.write(data, channel.INLINE_BYTES)
        data = None
        kept = _still_used(parcel)
        self.send("done", id, int(kind), tuple(answer), kept, fds=(new.fd,) if new is not None else ())
        if new is not None:
            new.close_fd()
        self._cell.end()

    def _run(self, run: Runnable, parcel: Parcel) -> tuple[Kind, Parcel]:
        try:
            return run(parcel, self._cell)
        except BaseException as error:
            return Kind.BAD_PROGRAM, self._describe(error)


def _still_used(parcel: Parcel) -> bool:
    """Let go of a parcel's views; True when an object that lives on uses one."""
    kept = False
    for view in (parcel.head, *parcel.buffers):
        try:
            view.release()  # type: ignore[union-attr]
        except BufferError:
            kept = True
    return kept
