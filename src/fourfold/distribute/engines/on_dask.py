"""Dask as an engine: a ticket is a Dask task, and its items run in a worker process beside Dask's own.

Dask cannot stop a task that runs. Here it need not: the order is told to end, and the site ends it.
"""

import atexit
import contextlib
import os
import queue
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fourfold.distribute.engine import NO_NEED, EngineInfo
from fourfold.distribute.orders import Orders, Stored
from fourfold.errors import EngineError
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket
from fourfold.version import VERSION

CONNECT_S = 10.0
"""Seconds until a scheduler that does not answer counts as not there. Smaller: a slow one is refused. Larger: a wrong address
is told later."""

PROBE_S = 120.0
"""Seconds until a cluster that runs no task counts as full, or unable. It may have to start a machine. Not measured."""

UNDONE_IN_A_ROW = 100
"""Tasks in a row whose data Dask has lost, after which the cluster counts as unusable: when a worker dies, all that waited for
what it held are lost together. Fewer: that ends a run. More: what cannot work is tried for longer."""

CAPACITY_S = 2.0
"""Seconds for which a look at the size of the cluster holds. Smaller: more questions. Larger: new machines idle longer."""

IDLE_S = 0.05
"""Seconds that `wait` sleeps when nothing is in flight. Not measured."""


class Dask:
    """Runs tickets as tasks of a Dask cluster.

    Args:
        address: Of the scheduler, "tcp://host:port"; None: a cluster of this machine that is started here and ends with this
            process.
        client: A client of yours, instead of an address. It is used and never closed.
        slots: The most tasks at once; None: as many as the cluster has threads.
        ship: What workers need of your own code: modules, wheels, archives, folders or files, put first on their import path.
        resources: What each task takes of the abstract resources that your workers were started with.
    """

    info = EngineInfo(
        name="dask",
        takes_objects=False,
        honours=frozenset({"threads_per_worker", "timeout", "memory", "gpus"}),
        elsewhere=True,
        dispatch_s=0.005,
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
        self._address, self._given, self.most, self._ship = address, client, slots, ship
        self._resources = dict(resources or {})
        self._client: Any = None
        self._cluster: Any = None
        self._orders: Orders | None = None
        self._task: Any = None
        self._cargo: Any = None
        self._programs: dict[str, Stored] = {}
        self._parts: dict[str, tuple[Any, ...]] = {}
        self._flying: dict[int, tuple[Any, str]] = {}
        self._arrived: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._outcomes: list[Outcome] = []
        self._capacity, self._capacity_at = 0, 0.0
        self._need = NO_NEED
        self._is_open = False
        self._pid = 0
        self._n_undone = 0

    # ---- the connection ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, or start a cluster of this machine; prove on one worker that functions can travel there.

        Raises:
            EngineError: There is no scheduler there.
            VersionMismatch: Its Python, or its fourfold, is another one.
        """
        if self._is_open and self._client.status == "running":
            return
        self._is_open = False
        if self._client is not None and self._client is not self._given:
            with contextlib.suppress(Exception):
                self._client.close()
        if self._cluster is not None:  # ours, and gone
            self._cluster.close()
            self._cluster = None
        self._client = self._given if self._given is not None else self._connect()
        self._orders = orders = Orders(VERSION, self._ship)
        self._task = _make_task(orders.entry)
        orders.check(self._probe(), "the Dask cluster")
        self._cargo = self._scatter(orders.cargo) if orders.cargo else None
        self._is_open = True

    def for_another_call(self) -> "Dask":
        """An engine on the same connection: calls may overlap, and an engine is for one at a time."""
        return Dask(client=self._client, ship=self._ship, resources=self._resources)

    def _connect(self) -> Any:
        import distributed as untyped
        from distributed.deploy import subprocess as untyped_too

        distributed: Any = untyped
        subprocess: Any = untyped_too
        address = self._address
        try:
            if address is None:
                from fourfold.machine import cores

                n_workers = self.most or cores().n_cores
                # Processes that import nothing of the user's script: it needs no guard.
                self._cluster = subprocess.SubprocessCluster(
                    host="127.0.0.1", n_workers=n_workers, threads_per_worker=1, dashboard_address=None
                )
                address = self._cluster.scheduler_address
            client = distributed.Client(address, set_as_default=False, timeout=CONNECT_S)
        except (OSError, TimeoutError, ValueError) as error:
            raise EngineError(
                f"no Dask scheduler at {address}: {type(error).__name__}: {error}. Check the address, or use "
                'engine="dask" to start a cluster of this machine'
            ) from error
        self._pid = os.getpid()
        atexit.register(self.shutdown)
        return client

    def _probe(self) -> dict[str, Any]:
        assert self._orders is not None
        future = self._client.submit(self._task, self._orders.version, "", None, pure=False, resources=self._resources or None)
        try:
            found: dict[str, Any] = future.result(timeout=PROBE_S)
        except Exception as error:
            self._client.cancel([future], force=True)
            raise EngineError(f"the Dask cluster runs no task: {type(error).__name__}: {error}") from error
        return found

    def _scatter(self, data: Any) -> Any:
        return self._client.scatter([data], hash=False, broadcast=False)[0]

    def shutdown(self) -> None:
        """Leave the scheduler; end the cluster, when this engine has started it. Called when this process ends."""
        if self._pid not in (0, os.getpid()):
            return  # a fork
        self.close()
        self._is_open = False
        atexit.unregister(self.shutdown)
        self._cargo = self._orders = None
        client, self._client = self._client, None
        if client is not None and client is not self._given:
            client.close()
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def __enter__(self) -> "Dask":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    # ---- tickets -----------------------------------------------------------------------------------------------------

    def slots(self) -> int:
        """As many tasks as the cluster has threads for, and resources."""
        if self._client is None:
            return 0
        now = time.monotonic()
        if now >= self._capacity_at and self._client.status == "running":
            wants = self._wants()
            with contextlib.suppress(Exception):  # the next outcome tells what has become of the cluster
                room = 0
                for worker in self._client.scheduler_info(n_workers=-1)["workers"].values():
                    has = worker.get("resources") or {}
                    room += (
                        min(worker["nthreads"], *(int(has.get(name, 0) / each) for name, each in wants.items()))
                        if wants
                        else worker["nthreads"]
                    )
                self._capacity = room
                self._capacity_at = now + CAPACITY_S
        return self._capacity

    def _wants(self) -> dict[str, float]:
        return {**self._resources, **({"GPU": float(self._need.gpus)} if self._need.gpus else {})}

    def put(self, key: str, program: Parcel, need: Need = NO_NEED) -> None:
        """Store the program in the memory of one worker; others take it from there.

        Raises:
            EngineError: No worker has what its items need.
        """
        assert self._orders is not None
        self._need, self._capacity_at = need, 0.0
        self._parts[key] = (bytes(program.head), *(bytes(buffer) for buffer in program.buffers))
        try:
            place = self._scatter(self._parts[key])
        except Exception as error:
            raise EngineError(
                f"Dask cannot store {program.size_bytes} bytes of the function: {type(error).__name__}: {error}"
            ) from error
        self._programs[key] = Stored(self._orders.key_of(program, need), place, need)
        if not self.slots() and self._wants():
            raise EngineError(
                f"no worker of the Dask cluster has the resources {self._wants()}: start them with `dask worker --resources`"
            )

    def drop(self, key: str) -> None:
        """Forget the program."""
        self._programs.pop(key, None)
        self._parts.pop(key, None)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """One Dask task for each."""
        assert self._orders is not None
        for ticket in tickets:
            program = self._programs[ticket.program]
            name, order = self._orders.order(ticket, program)
            payload = (bytes(ticket.payload.head), *(bytes(buffer) for buffer in ticket.payload.buffers))
            work = (self._orders.version, self._orders.cargo_name, self._cargo, order, payload, program.place)
            future = self._client.submit(
                self._task, *work, key=f"fourfold-{name}", pure=False, retries=0, resources=self._wants() or None
            )
            self._flying[ticket.id] = (future, name)
            arrived, id = self._arrived, ticket.id
            future.add_done_callback(lambda future, id=id, arrived=arrived: arrived.put((id, future)))

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Return what has come, or wait for the first."""
        if self._outcomes or not self._flying:
            if not self._outcomes and timeout != 0:
                time.sleep(IDLE_S if timeout is None else min(timeout, IDLE_S))
            outcomes, self._outcomes = self._outcomes, []
            return outcomes
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

        assert self._orders is not None
        flying = self._flying.get(id)
        if flying is None or flying[0] is not future:
            return []
        del self._flying[id]
        if future.status == "finished":
            with contextlib.suppress(Exception):
                outcome = self._orders.outcome(id, future.result())
                self._n_undone = 0
                return [outcome]
        if self._client.status != "running":
            return [Outcome(id, Kind.ENGINE_DOWN, reason="the Dask scheduler is gone")]
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker):
            return [Outcome(id, Kind.LOST, reason=f"Dask lost {error.last_worker.address} and others with this task")]
        if error is not None and not _lost_data(error):
            return [Outcome(id, Kind.ENGINE_DOWN, reason=f"a worker of Dask cannot run fourfold: {error!r}")]
        self._n_undone += 1
        if self._n_undone > UNDONE_IN_A_ROW:
            reason = "Dask lost the function or its results again and again: does it fit into the memory of a worker?"
            return [Outcome(id, Kind.ENGINE_DOWN, reason=reason)]
        if any(program.place.status != "finished" for program in self._programs.values()):
            self._store_again()
        return [Outcome(id, Kind.COLLATERAL)]

    def _store_again(self) -> None:
        """What was stored on a worker that is gone is gone: Dask does not make it anew."""
        assert self._orders is not None
        for key, program in self._programs.items():
            self._programs[key] = program._replace(place=self._scatter(self._parts[key]))
        if self._orders.cargo:
            self._cargo = self._scatter(self._orders.cargo)

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Tell the workers to end these orders: between items, or with the process that runs them when `hard`."""
        names = [name for id, (_, name) in self._flying.items() if ids is None or id in ids]
        if names:
            with contextlib.suppress(Exception):
                self._client.run(_stop, names, "hard" if hard else "soft")

    def close(self) -> None:
        """Cancel what runs, and free what is stored. The connection stays for the next call."""
        with contextlib.suppress(Exception):
            if self._flying:
                self.cancel(hard=True)
                self._client.cancel([future for future, _ in self._flying.values()], force=True)
        self._flying.clear()
        self._arrived = queue.SimpleQueue()
        self._outcomes.clear()
        self._programs.clear()
        self._parts.clear()


def _make_task(entry: Callable[..., Any]) -> Callable[..., Any]:
    def fourfold_chunk(version: str, cargo: str, cargo_bytes: Any, *work: Any) -> Any:
        if not work:
            return entry(version, cargo, None)
        order, payload, program = work
        reply = entry(version, cargo, lambda: cargo_bytes, order, payload, lambda: program)
        if isinstance(reply, str) or reply[1] is None:
            return reply
        # Dask pickles some results by protocol 4, which has no buffers.
        return (reply[0], tuple(bytes(memoryview(part)) for part in reply[1]), *reply[2:])

    return fourfold_chunk


async def _stop(names: list[str], how: str) -> None:
    """On a worker: end these orders, and come back when those that run know it."""
    import asyncio
    from importlib import import_module

    site = import_module("fourfold.site")
    for name in names:
        site.stop(name, how)
    while not site.know(names):
        await asyncio.sleep(0.01)


def _lost_data(error: BaseException) -> bool:
    return type(error).__name__ in ("FutureCancelledError", "CancelledError", "FuturesCancelledError")
