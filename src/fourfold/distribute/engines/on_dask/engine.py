"""The engine: each ticket is a task of Dask."""

import contextlib
import operator
import queue
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fourfold.distribute.connection import OnConnection, first_line, parts_as_bytes
from fourfold.distribute.engine import NO_NEED, EngineInfo
from fourfold.distribute.engines.on_dask.cluster import Cluster
from fourfold.distribute.engines.on_dask.stop import stop
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
        self._contents: dict[str, tuple[bytes, ...]] = {}
        self._flying: dict[int, tuple[Any, str]] = {}
        self._in_company: set[int] = set()
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
        """Store the program in the memory of one worker; others take it from there.

        Raises:
            EngineError: No worker has what its items need.
        """
        self._need, self._room_at = need, 0.0
        self._contents[key] = parts_as_bytes(program)
        try:
            place = self.connection.scatter(self._contents[key])
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
        try:
            self._submit(tickets)
        except Exception as error:
            raise EngineError(f"Dask cannot take a chunk: {first_line(error)}") from error

    def _submit(self, tickets: Sequence[Ticket]) -> None:
        there, orders = self.connection, self.connection.orders
        for ticket in tickets:
            program = self._programs[ticket.program]
            name, order = orders.order(ticket, program)
            # By the first word of its name Dask expects a task to take as long as those before it, and lets it wait behind
            # another one where that is short: so each function has a word of its own.
            name_there = f"fourfold_{program.key[:8]}-{name}"
            payload = parts_as_bytes(ticket.payload)
            work = (orders.version, there.cargo_name, there.cargo, order, payload, program.place)
            future = there.client.submit(
                operator.call, there.task, *work, key=name_there, pure=False, retries=0, resources=self._wants() or None
            )
            self._flying[ticket.id] = (future, name)
            arrived, id = self._arrived, ticket.id
            future.add_done_callback(lambda future, id=id, arrived=arrived: arrived.put((id, future)))

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Return what has come, or wait for the first."""
        if not self._flying:
            time.sleep(IDLE_S if timeout is None else min(timeout, IDLE_S))
            return []
        outcomes = []
        try:
            arrived = self._arrived.get(timeout=timeout) if timeout != 0 else self._arrived.get_nowait()
            while True:
                outcomes += self._outcome(*arrived)
                arrived = self._arrived.get_nowait()
        except queue.Empty:
            return outcomes

    def _outcome(self, id: int, future: Any) -> list[Outcome]:
        from distributed.scheduler import KilledWorker

        flying = self._flying.get(id)
        if flying is None or flying[0] is not future:
            return []
        del self._flying[id]
        had_company = id in self._in_company
        self._in_company.discard(id)
        if future.status == "finished":
            with contextlib.suppress(Exception):
                outcome = self.connection.orders.outcome(id, future.result())
                self._n_undone = 0
                return [outcome]
        if self.connection.client.status != "running":
            return [Outcome(id, Kind.ENGINE_DOWN, reason="the Dask scheduler is gone")]
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker):
            return [Outcome(id, Kind.LOST, reason=f"Dask lost {error.last_worker.address} and others with this task")]
        if error is not None and not _lost_data(error):
            return [Outcome(id, Kind.ENGINE_DOWN, reason=f"a worker of Dask cannot run fourfold: {error!r}")]
        was_alone = not self._flying and not had_company
        self._in_company.update(self._flying)  # what they lost together is heard of one by one, and the last one was not alone
        self._n_undone += 1
        if self._n_undone > UNDONE_IN_A_ROW:
            reason = "Dask lost the function or its results again and again: does it fit into the memory of a worker?"
            return [Outcome(id, Kind.ENGINE_DOWN, reason=reason)]
        with contextlib.suppress(Exception):  # when no worker is there to keep it, the next one that comes back tries again
            self._store_again()
        if was_alone:
            # Nobody else can have been too much for the worker. Told of as undone, it would take one worker after the other.
            reason = "Dask lost the worker that ran it: was its result too large for --memory-limit?"
            return [Outcome(id, Kind.LOST, reason=reason)]
        return [Outcome(id, Kind.COLLATERAL)]

    def _store_again(self) -> None:
        """What was stored on a worker that is gone is gone: Dask does not make it anew."""
        for key, program in self._programs.items():
            if program.place.status != "finished":
                self._programs[key] = program._replace(place=self.connection.scatter(self._contents[key]))
        self.connection.restore()

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Tell the workers to end these orders: between items, or with the process that runs them when `hard`."""
        names = [name for id, (_, name) in self._flying.items() if ids is None or id in ids]
        if names:
            stop(self.connection.client, names, hard=hard)

    def close(self) -> None:
        """Cancel what runs, and free what is stored. The connection stays for the next call."""
        with contextlib.suppress(Exception):
            if self._flying:
                self.cancel(hard=True)
                self.connection.client.cancel([future for future, _ in self._flying.values()], force=True)
        self._flying.clear()
        self._in_company.clear()
        self._arrived = queue.SimpleQueue()
        self._programs.clear()
        self._contents.clear()


def _lost_data(error: BaseException) -> bool:
    return type(error).__name__ in ("FutureCancelledError", "CancelledError", "FuturesCancelledError")
