"""A process of somebody else's cluster, as a place for worker processes of our own.

    a task of the cluster ──order──> site ──ticket──> worker process (worker.py)
                          <──reply──      <─outcome──

Items do not run in the cluster's own process. So one that crashes, hangs or takes too much memory is found and ended there as
it is on one machine, and the cluster, which would run its neighbours again or give them up, never hears of it.
"""

import atexit
import contextlib
import os
import pickle
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from fourfold.distribute.cargo import remove_unused
from fourfold.distribute.engines.on_processes.engine import Processes
from fourfold.distribute.engines.on_processes.pool import POOL
from fourfold.errors import EngineError
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket
from fourfold.system.devices import VARIABLE, devices_for

IDLE_S = 60.0
"""Seconds without an order after which the worker process of a site ends. Smaller: the next call on this cluster starts it
anew, some 0.2 s. Larger: memory of a cluster that others use is held."""

GPU_IDLE_S = 5.0
"""... of a worker process that had a GPU: the cluster may have given that to somebody else meanwhile. Smaller: models are
loaded again after a pause between chunks. Larger: the next owner finds its memory taken."""

SWEEP_S = 2.5
"""Seconds between looks for such worker processes, while there are idle ones. Not measured."""

SAID_BYTES = 4 << 20
"""Bytes of what items print that one ticket brings back. Smaller: more is lost. Larger: more for the driver to hold."""

STOPS_KEPT = 10_000
"""Orders to end that may not have come here. Fewer: one that was to end runs. More: memory, of some 100 bytes each."""

LOOK_S = 0.1
"""Seconds between looks at whether a ticket should end. Shorter: the process beside the worker takes more of its core (1 % at
0.02 s). Longer: cancelling takes longer."""


class Site:
    """One worker process, and the program that it has.

    Args:
        home: Where code that travels along lies, and which devices there are: what a process has imported from one place, or
            has set up for one device, it keeps. So another home has a process of its own.
        idle_s: Seconds without an order after which it ends.
    """

    def __init__(self, home: tuple[str, str], idle_s: float) -> None:
        self.home, self.idle_s = home, idle_s
        self._said: list[tuple[Any, ...]] = []
        self._said_bytes = 0
        self._processes = Processes(1, self._hear)
        self._program = ""
        self.idle_since = 0.0

    def has(self, program: str) -> bool:
        """Whether a ticket of this program can start at once."""
        return self._program == program

    def load(self, program: str, fetch: Callable[[], Parcel], need: Need) -> None:
        """Give the worker another program."""
        self._processes.open()
        self._processes.drop(self._program)
        self._program = ""
        self._processes.put(program, _made_at_home(fetch(), self.home, need.gpus), need)
        self._program = program

    def run(self, ticket: Ticket, name: str) -> Outcome:
        """Run one ticket to its end, or until its order should end."""
        self._said.clear()
        self._said_bytes = 0
        self._processes.submit([ticket])
        was = ""
        while True:
            for outcome in self._processes.wait(LOOK_S):
                if outcome.id == ticket.id or outcome.kind is Kind.ENGINE_DOWN:
                    return outcome._replace(id=ticket.id, said=tuple(self._said))
            now = _stops.get(name, "")
            if now and now != was:
                self._processes.cancel([ticket.id], hard=now == "hard")
                _running[name] = was = now

    def _hear(self, record: tuple[Any, ...]) -> None:
        """What it prints waits for the end of the ticket: a task of a cluster can say nothing before."""
        size = sum(len(each) for each in record if isinstance(each, str | bytes))
        if self._said_bytes + size <= SAID_BYTES:
            self._said.append(record)
        elif self._said_bytes <= SAID_BYTES:
            self._said.append(("print", None, "stderr", f"fourfold: more than {SAID_BYTES >> 20} MiB in one chunk: cut", True))
        self._said_bytes += size

    def close(self) -> None:
        """End the worker: somebody else in this process may not have what it has imported."""
        self._processes.dismiss()


_lock = threading.Lock()
_idle: list[Site] = []
_n_busy = 0
_homes_seen: list[str] = []
"""The first home that was used here: those that nobody uses any more were looked for then."""
_sweeper: threading.Timer | None = None
_running: dict[str, str] = {}
"""Orders that run here: how they know that they should end, "" when they do not."""
_stops: dict[str, str] = {}
"""Orders that should end: "soft" or "hard", by their names."""


def run(order: bytes, payload: Any, fetch: Callable[[], Any], cargo: str) -> dict[str, Any]:
    """Run one ticket in a worker process of this machine.

    Args:
        order: What `fourfold.distribute.orders.Orders.order` made.
        payload: The head of the chunk's parcel, and its buffers.
        fetch: Returns head and buffers of the program, when this process does not have it.
        cargo: The folder of what travels along; "" when nothing does.

    Returns:
        What `fourfold.distribute.orders.Orders.outcome` reads.
    """
    if cargo and not _homes_seen:
        _homes_seen.append(cargo)
        remove_unused()
    need = Need(*pickle.loads(order)[2])
    where = f"on {socket.gethostname()}"
    try:
        with devices_for(need.gpus, [site.home[1] for site in list(_idle)]) as devices:
            return _run(order, payload, fetch, (cargo, devices), where)
    except EngineError as error:
        return _reply(Outcome(0, Kind.ENGINE_DOWN, reason=f"{error} ({where})", worker=where))


def _run(order: bytes, payload: Any, fetch: Callable[[], Any], home: tuple[str, str], where: str) -> dict[str, Any]:
    name, program, need, n_items, fresh = pickle.loads(order)
    program += home[1]
    need = Need(*need)
    site = _take(program, home, GPU_IDLE_S if need.gpus else IDLE_S)
    is_sound = False
    try:
        if name in _stops:
            is_sound = True
            return _reply(Outcome(0, Kind.CANCELLED))
        try:
            if not site.has(program):
                site.load(program, lambda: _parcel(fetch()), need)
            _running[name] = ""
            outcome = site.run(Ticket(0, program, _parcel(payload), n_items, fresh), name)
        except EngineError as error:
            outcome = Outcome(0, Kind.ENGINE_DOWN, reason=str(error))
        is_sound = outcome.kind is not Kind.ENGINE_DOWN
        reason = outcome.reason and f"{outcome.reason} ({where})"
        return _reply(outcome._replace(reason=reason, worker=f"{outcome.worker} {where}"))
    finally:
        _running.pop(name, None)
        _stops.pop(name, None)
        _give_back(site if is_sound else _renewed(site))


def _reply(outcome: Outcome) -> dict[str, Any]:
    """What is known of a ticket, by names, without the types of this library: the driver knows which ticket it was."""
    data = outcome.data
    if data is not None:
        data = (bytes(data.head), *(pickle.PickleBuffer(buffer) for buffer in data.buffers))
    kept = tuple((bytes(each.head), *map(bytearray, each.buffers)) for each in outcome.kept)
    reply = outcome._replace(kind=int(outcome.kind), data=data, kept=kept)._asdict()  # type: ignore[arg-type]
    del reply["id"]
    return reply


def stop(name: str, how: str) -> None:
    """End an order of this process between items ("soft"), or with its worker ("hard"). Called by another thread.

    It may not have come yet, or never come here.
    """
    while len(_stops) > STOPS_KEPT:
        _stops.pop(next(iter(_stops)), None)
    _stops[name] = how


def know(names: list[str]) -> bool:
    """Whether those of these orders that run here know that they should end; one that was forgotten never will."""
    wishes = [(name, _stops.get(name)) for name in names]
    return all(how is None or _running.get(name, how) == how for name, how in wishes)


def _renewed(site: Site) -> Site:
    """Another one in place of one that is in nobody knows what state."""
    with contextlib.suppress(Exception):
        site.close()
    return Site(site.home, site.idle_s)


def _made_at_home(program: Parcel, home: tuple[str, str], gpus: int) -> Parcel:
    """The program with the import path and the environment of this process, which may have changed since its worker began.

    With GPUs it sees its own ones only. Of several cargoes on the path, which orders in other threads have put there, it has
    its own.
    """
    setup, head = pickle.loads(program.head)
    cargo, devices = home
    others = os.path.join(tempfile.gettempdir(), f"fourfold-{os.getuid()}-")
    path = [entry for entry in sys.path if isinstance(entry, str) and not entry.startswith(others)]
    seen = {VARIABLE: devices} if gpus and devices else {}
    setup |= {"path": [cargo, *path] if cargo else path, "environment": dict(os.environ) | seen}
    return Parcel(pickle.dumps((setup, head)), program.buffers)


def _parcel(parts: Any) -> Parcel:
    head, *buffers = parts
    return Parcel(head, tuple(memoryview(buffer) for buffer in buffers))


def _take(program: str, home: tuple[str, str], idle_s: float) -> Site:
    global _n_busy
    with _lock:
        _n_busy += 1
        found = next((site for site in _idle if site.has(program)), None)
        found = found or next((site for site in _idle if site.home == home), None)
        if found is not None:
            _idle.remove(found)
            return found
        stranger = _idle.pop(0) if _idle else None
    if stranger is not None:
        stranger.close()
    return Site(home, idle_s)


def _give_back(site: Site) -> None:
    global _n_busy
    site.idle_since = time.monotonic()
    with _lock:
        _n_busy -= 1
        _idle.append(site)
        _sweep_later()


def _sweep_later() -> None:
    global _sweeper
    if _sweeper is None:
        _sweeper = threading.Timer(SWEEP_S, _sweep)
        _sweeper.name, _sweeper.daemon = "fourfold-sweep", True
        _sweeper.start()


def _sweep() -> None:
    global _sweeper
    with _lock:
        _sweeper = None
        old = [site for site in _idle if time.monotonic() - site.idle_since >= site.idle_s]
        _end(old)
        if _idle:
            _sweep_later()


def _end(sites: list[Site]) -> None:
    for site in sites:
        _idle.remove(site)
        site.close()
    if not _idle and not _n_busy:
        POOL.close_unless_lent()  # this process may be a driver too


def close() -> None:
    """End the worker processes of this process that have nothing to do."""
    with _lock:
        _end(list(_idle))


atexit.register(close)
