"""The engine: each ticket is a task of Dask."""

import contextlib
import operator
import queue
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fourfold.distribute.connection import PROBE_S, OnConnection, first_line, parts_as_bytes
from fourfold.distribute.engine import NO_NEED, EngineInfo
from fourfold.distribute.engines.on_dask.cluster import Cluster
from fourfold.distribute.engines.on_dask.flight import Flight, is_lost_data
from fourfold.distribute.engines.on_dask.stop import stop
from fourfold.distribute.engines.on_dask.task import make_task
from fourfold.distribute.orders import Stored
from fourfold.errors import EngineError
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket

UNDONE_IN_A_ROW = 100
"""Tasks in a row whose data Dask has lost, after which the cluster counts as unusable: when a worker dies, all that waited for
what it held are lost together. Fewer: that ends a run. More: what cannot work is tried for longer."""

CAPACITY_S = 2.0
"""Seconds for which a look at the size of the cluster holds. Smaller: more questions. Larger: new machines idle longer."""

IDLE_S = 0.05
"""Seconds that `wait` sleeps when nothing is in flight. Not measured."""


class Dask(OnConnection):
    """Runs tickets as tasks of a Dask cluster.

    Args:
        address: Of the scheduler, "tcp://host:port" or "tls://host:port"; None: a cluster of this machine that is started
            here and ends with this process.
        client: A client of yours, instead of an address. It is used and never closed.
        slots: The most tasks at once; None: as many as the cluster has threads.
        ship: What workers need of your own code: modules, wheels, archives, folders or files, put first on their import path.
        resources: What each task takes of the abstract resources that your workers were started with.
    """

    connection: Cluster
    info = EngineInfo(
        name="dask",
        takes_objects=False,
        honours=frozenset({"threads_per_worker", "timeout", "memory", "gpus"}),
        elsewhere=True,
        # A chunk costs 11 ms of CPU in client, scheduler and worker (a task by hand 4), and until it starts a worker idles for
        # 8 ms, or 20 where others are on the cores.
        dispatch_s=0.04,
        engine_reruns=True,
    )

    def __init__(
        self,
        address: str | None = None,
        *,
        client: Any = None,
        slots: int | None = None,
        ship: Sequence[Any] = (),
        resources: Mapping[str, float] | None = None,
    ) -> None:
        self.connection, self.most = Cluster(address, client, slots, ship, resources), slots
        self._start()

    def _start(self) -> None:
        self._programs: dict[str, Stored] = {}
        self._contents: dict[str, tuple[Any, tuple[bytes, ...]]] = {}
        self._flying: dict[int, Flight] = {}
        self._held: deque[Ticket] = deque()
        self._cancelled: list[Outcome] = []
        self._in_company: set[int] = set()
        self._n_alone = 0
        """Tickets that are sent one at a time: so many were lost together, and not for the first time."""
        self._was_lost = self._cannot_store = False
        self._cannot_since = 0.0
        self._asked: Any = None
        self._arrived: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._room, self._room_at = 0, 0.0
        self._need = NO_NEED
        self._n_undone = 0

    # ---- tickets -----------------------------------------------------------------------------------------------------

    def slots(self) -> int:
        """As many tasks as the cluster has threads for, and resources."""
        client = self.connection.client
        if client is None:
            return 0
        now = time.monotonic()
        if now >= self._room_at and client.status == "running":
            wants = self._wants()
            with contextlib.suppress(Exception):  # the next outcome tells what has become of the cluster
                room = 0
                for worker in client.scheduler_info(n_workers=-1)["workers"].values():
                    has = worker.get("resources") or {}
                    room += (
                        min(worker["nthreads"], *(int(has.get(name, 0) / each) for name, each in wants.items()))
                        if wants
                        else worker["nthreads"]
                    )
                self._room = room
                self._room_at = now + CAPACITY_S
        return self._room

    def _wants(self) -> dict[str, float]:
        return {**self.connection.resources, **({"GPU": float(self._need.gpus)} if self._need.gpus else {})}

    def put(self, key: str, program: Parcel, need: Need = NO_NEED) -> None:
        """Store the program, and the function of a task, in the memory of a worker; others take them from there.

        Carried by each task, the function would be pickled in the client and in the scheduler, and unpickled in the scheduler
        and the worker, each time: 3 of 15 ms of CPU for a chunk. It is stored for each call and let go with it, since a
        cluster that may shrink keeps each worker that holds something.

        Raises:
            EngineError: No worker has what its items need.
        """
        self._need, self._room_at = need, 0.0
        self._contents[key] = make_task(self.connection.orders.entry), parts_as_bytes(program)
        try:
            place = self.connection.store(*self._contents[key])
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"Dask cannot store {program.size_bytes} bytes of the function: {type(error).__name__}: {error}"
            ) from error
        self._programs[key] = Stored(self.connection.orders.key_of(program, need), place, need)
        if not self.slots() and self._wants():
            raise EngineError(
                f"no worker of the Dask cluster has the resources {self._wants()}: start them with `dask worker --resources`"
            )

    def drop(self, key: str) -> None:
        """Forget the program."""
        self._programs.pop(key, None)
        self._contents.pop(key, None)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """One Dask task for each.

        Raises:
            EngineError: Dask cannot take it.
        """
        self._held.extend(tickets)
        self._go_on()

    def _go_on(self) -> None:
        """Send what is held; one by one, where several were lost together again and one of them may be the reason."""
        try:
            while self._held and not (self._n_alone and self._flying):
                self._send(self._held.popleft())
        except Exception as error:
            raise EngineError(f"Dask cannot take a chunk: {first_line(error)}") from error

    def _send(self, ticket: Ticket) -> None:
        there, orders = self.connection, self.connection.orders
        program, cargo = self._programs[ticket.program], there.cargo
        name, order = orders.order(ticket, program)
        # By the first word of its name Dask expects a task to take as long as those before it, and lets it wait behind
        # another one where that is short: so each function has a word of its own.
        name_there = f"fourfold_{program.key[:8]}-{name}"
        task, contents = program.place
        work = (orders.version, there.cargo_name, cargo, order, parts_as_bytes(ticket.payload), contents)
        was_whole = all(each is None or each.status == "finished" for each in (task, contents, cargo))
        future = there.client.submit(
            operator.call, task, *work, key=name_there, pure=False, retries=0, resources=self._wants() or None
        )
        self._flying[ticket.id] = Flight(
            future, name, ticket.program, program, cargo, was_whole, self._was_lost, self._n_alone > 0
        )
        arrived, id = self._arrived, ticket.id
        future.add_done_callback(lambda future, id=id, arrived=arrived: arrived.put((id, future)))

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Return what has come, or wait for the first."""
        outcomes, self._cancelled = self._cancelled, []
        if not self._flying and not outcomes:
            time.sleep(IDLE_S if timeout is None else min(timeout, IDLE_S))
            return []
        self._cannot_store = False
        try:
            arrived = self._arrived.get_nowait() if timeout == 0 or outcomes else self._arrived.get(timeout=timeout)
            while True:
                outcomes += self._outcome(*arrived)
                arrived = self._arrived.get_nowait()
        except queue.Empty:
            self._go_on()
            return outcomes

    def _outcome(self, id: int, future: Any) -> list[Outcome]:
        from distributed.scheduler import KilledWorker

        flight = self._flying.get(id)
        if flight is None or flight.future is not future:
            return []
        del self._flying[id]
        had_company = id in self._in_company
        self._in_company.discard(id)
        if future.status == "finished":
            with contextlib.suppress(Exception):
                outcome = self.connection.orders.outcome(id, future.result())
                self._n_undone = 0
                self._n_alone -= flight.alone
                return [outcome]
        if self.connection.client.status != "running":
            return [Outcome(id, Kind.ENGINE_DOWN, reason="the Dask scheduler is gone")]
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker):
            return [self._given_up(id, flight, had_company, error.last_worker.address)]
        if error is not None and not is_lost_data(error):
            return [Outcome(id, Kind.ENGINE_DOWN, reason=f"a worker of Dask cannot run fourfold: {error!r}")]
        return [self._lost(id, flight, had_company)]

    def _given_up(self, id: int, flight: Flight, had_company: bool, address: str) -> Outcome:
        """Dask has seen its workers die more often than it allows.

        It gives up all that were on the last one, also what only waited there: each runs alone before it is blamed.
        """
        was_alone = not self._flying and not had_company
        self._in_company.update(self._flying)
        self._n_alone -= flight.alone
        if was_alone:
            return Outcome(id, Kind.LOST, reason=f"Dask lost {address} and others with this task")
        self._n_alone += 1
        return self._undone(id)

    def _undone(self, id: int) -> Outcome:
        """It is to be run again, unless that was so too often."""
        self._n_undone += 1
        if self._n_undone > UNDONE_IN_A_ROW:
            reason = "Dask lost the function or its results again and again: does it fit into the memory of a worker?"
            return Outcome(id, Kind.ENGINE_DOWN, reason=reason)
        return Outcome(id, Kind.COLLATERAL)

    def _lost(self, id: int, flight: Flight, had_company: bool) -> Outcome:
        """What Dask had for this ticket went with a worker."""
        self._store_again(flight)
        if not flight.was_whole:
            if self._cannot_since and time.monotonic() - self._cannot_since > PROBE_S:
                reason = "the Dask cluster has lost the workers that kept the function, and no other one keeps it"
                return Outcome(id, Kind.ENGINE_DOWN, reason=reason)
            return Outcome(id, Kind.COLLATERAL)
        was_alone = not self._flying and not had_company
        self._in_company.update(self._flying)  # what they lost together is heard of one by one, and the last one was not alone
        undone = self._undone(id)
        if was_alone and undone.kind is Kind.COLLATERAL:
            # Nobody else can have been too much for the worker. Told of as undone, it would take one worker after the other.
            reason = "Dask lost the worker that ran it: was its result too large for --memory-limit?"
            return Outcome(id, Kind.LOST, reason=reason)
        if flight.is_later and not flight.alone:
            self._n_alone += 1
        return undone

    def _store_again(self, flight: Flight) -> None:
        """What was stored on a worker that is gone is gone: Dask does not make it anew.

        Whatever is said of it: word of its loss may come later than that of the task. When no worker is there to keep it, the
        next ticket that comes back tries again, but none that comes with this one: each would wait as long.
        """
        there, key = self.connection, flight.key
        if self._cannot_store:
            return
        try:
            if flight.program is self._programs.get(key):
                self._programs[key] = flight.program._replace(place=there.scatter(*self._contents[key]))
                self._was_lost = True
            if flight.cargo is not None and flight.cargo is there.cargo:
                (there.cargo,) = there.scatter(there.orders.cargo)
        except Exception:
            self._cannot_store, self._cannot_since = True, self._cannot_since or time.monotonic()
            with contextlib.suppress(Exception):
                self._asked = self._asked or there.ask(there.orders)
        else:
            self._cannot_since, self._asked = 0.0, None

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Tell the workers to end these orders: between items, or with the process that runs them when `hard`."""
        held, self._held = self._held, deque()
        for ticket in held:
            if ids is None or ticket.id in ids:
                self._cancelled.append(Outcome(ticket.id, Kind.CANCELLED))
            else:
                self._held.append(ticket)
        names = [flight.name for id, flight in self._flying.items() if ids is None or id in ids]
        if names:
            stop(self.connection.client, names, hard=hard)

    def close(self) -> None:
        """Cancel what runs, and free what is stored. The connection stays for the next call."""
        with contextlib.suppress(Exception):
            if self._flying:
                self.cancel(hard=True)
                self.connection.client.cancel([flight.future for flight in self._flying.values()], force=True)
        self._flying.clear()
        self._held.clear()
        self._cancelled.clear()
        self._in_company.clear()
        self._arrived = queue.SimpleQueue()
        self._programs.clear()
        self._contents.clear()
        self._asked = None
