"""Dask as an engine: a ticket is a Dask task, and its items run in a worker process beside Dask's own.

Dask cannot stop a task that runs. Here it need not: the order is told to end, and the site ends it.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fourfold.addresses import without_secrets
from fourfold.distribute.connection import (
    PROBE_S,
    Connection,
    OnConnection,
    cannot_connect,
    check_that_somebody_listens,
    first_line,
    parts_as_bytes,
)
from fourfold.distribute.engine import NO_NEED, EngineInfo
from fourfold.distribute.keeper import Keeper
from fourfold.distribute.orders import Orders, Stored
from fourfold.errors import EngineError
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket

CONNECT_S = 10.0
"""Seconds until a scheduler that does not answer counts as not there. Smaller: a slow one is refused. Larger: a wrong address
is told later."""

UNDONE_IN_A_ROW = 100
"""Tasks in a row whose data Dask has lost, after which the cluster counts as unusable: when a worker dies, all that waited for
what it held are lost together. Fewer: that ends a run. More: what cannot work is tried for longer."""

CAPACITY_S = 2.0
"""Seconds for which a look at the size of the cluster holds. Smaller: more questions. Larger: new machines idle longer."""

STOP_S = 2.0
"""Seconds until workers that do not answer are not waited for, when orders are to end. Shorter: an order that was to end may
begin. Longer: a machine that is stuck keeps the driver."""

MOST_OF_MEMORY = 0.9
"""Share of a worker's memory that it may have with a result: at 0.95 Dask ends it. Smaller: results are refused that would
have come. Larger: a worker is lost instead, with what it holds."""

IDLE_S = 0.05
"""Seconds that `wait` sleeps when nothing is in flight. Not measured."""


class _Connection(Connection):
    """A client of a scheduler: given, made for an address, or of a cluster that is started here."""

    where = "the Dask cluster"

    def __init__(
        self,
        address: str | None,
        client: Any,
        slots: int | None,
        ship: Sequence[Any],
        resources: Mapping[str, float] | None,
    ) -> None:
        super().__init__(ship)
        self._address, self._given, self._slots = address, client, slots
        self.resources = dict(resources or {})
        self.client: Any = None
        self.task: Any = None
        self._keeper: Keeper | None = None

    def _answers(self) -> bool:
        if self.client.status != "running":
            return False
        self.restore_cargo()
        return True

    def _connect(self) -> None:
        if self._given is not None:
            self.client = self._given
            return
        import distributed as untyped

        distributed: Any = untyped
        address = self._address
        try:
            if address is None:
                from fourfold.machine import cores

                self._keeper = Keeper(__name__, self._slots or cores().n_cores)
                address = self._keeper.address
            else:
                check_that_somebody_listens(address, greets=not address.startswith("tls://"))
                _check_certificates(address)
            self.client = distributed.Client(address, set_as_default=False, timeout=CONNECT_S)
        except EngineError:
            self._let_go()
            raise
        except Exception as error:
            self._let_go()
            advice = 'Check the address, or use engine="dask" to start a cluster of this machine'
            cannot_connect("Dask scheduler", address, error, advice)
        self.is_ours = True

    def _open_door(self) -> tuple[str, str] | None:
        place = str(getattr(self.client.scheduler, "address", ""))
        if self._keeper is not None or not place.startswith("tcp://"):
            return None
        return place, "Start its scheduler and workers with certificates (--tls-ca-file, --tls-cert, --tls-key) and use tls://"

    def _leave(self) -> None:
        client, self.client = self.client, None
        try:
            with contextlib.suppress(Exception):  # its scheduler may be gone
                client.close()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def _probe(self, orders: Orders) -> dict[str, Any]:
        self.task = _make_task(orders.entry)
        future = self.client.submit(self.task, orders.version, "", None, pure=False, resources=self.resources or None)
        try:
            found: dict[str, Any] = future.result(timeout=PROBE_S)
        except Exception as error:
            with contextlib.suppress(Exception):
                self.client.cancel([future], force=True)
            raise EngineError(f"the Dask cluster runs no task: {type(error).__name__}: {error}") from error
        return found

    def _store_cargo(self, orders: Orders) -> Any:
        return self.scatter(orders.cargo)

    def scatter(self, data: Any) -> Any:
        """Store something in the memory of one worker; others take it from there."""
        return self.client.scatter([data], hash=False, broadcast=False)[0]

    def restore_cargo(self) -> None:
        """Store what travels along again, if it is gone."""
        if self.cargo is not None and self.cargo.status != "finished":
            self.cargo = self._store_cargo(self.orders)


def _check_certificates(address: str) -> None:
    """A client without the certificates that its address asks for takes 20 s to end, at the end of the process."""
    import distributed as untyped

    distributed: Any = untyped
    if address.startswith("tls://") and distributed.Security().get_connection_args("client")["ssl_context"] is None:
        raise EngineError(
            f"{without_secrets(address)} asks for certificates, and Dask is configured with none: set distributed.comm.tls in "
            "dask.config, or give a client of yours, engine=fourfold.engines.Dask(client=…)"
        )


def start_here(count: int) -> tuple[str, Callable[[], None]]:
    """Start a Dask cluster of this machine; returns its scheduler's address, and what ends it. Called in a keeper."""
    import logging

    import dask
    import distributed as untyped

    distributed: Any = untyped
    # Each of its processes has a server of web pages, also without a dashboard. It cannot be left out, but it need not tell.
    dask.config.set({"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []})
    options = {"host": "127.0.0.1", "threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    cluster = distributed.LocalCluster(n_workers=count, **options)
    return str(cluster.scheduler_address), cluster.close


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

    connection: _Connection
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
        self.connection, self.most = _Connection(address, client, slots, ship, resources), slots
        self._start()

    def _start(self) -> None:
        self._programs: dict[str, Stored] = {}
        self._contents: dict[str, tuple[bytes, ...]] = {}
        self._flying: dict[int, tuple[Any, str]] = {}
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
                there.task, *work, key=name_there, pure=False, retries=0, resources=self._wants() or None
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
        was_alone = not self._flying
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
        self.connection.restore_cargo()

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Tell the workers to end these orders: between items, or with the process that runs them when `hard`."""
        names = [name for id, (_, name) in self._flying.items() if ids is None or id in ids]
        if names:
            work = (self.connection.client, names, "hard" if hard else "soft")
            teller = threading.Thread(target=_tell, args=work, name="fourfold-stop", daemon=True)
            teller.start()
            teller.join(STOP_S)  # a worker that does not answer may never do so

    def close(self) -> None:
        """Cancel what runs, and free what is stored. The connection stays for the next call."""
        with contextlib.suppress(Exception):
            if self._flying:
                self.cancel(hard=True)
                self.connection.client.cancel([future for future, _ in self._flying.values()], force=True)
        self._flying.clear()
        self._arrived = queue.SimpleQueue()
        self._programs.clear()
        self._contents.clear()


def _make_task(entry: Callable[..., Any]) -> Callable[..., Any]:
    most_share = MOST_OF_MEMORY

    def fourfold_chunk(version: str, cargo: str, cargo_bytes: Any, *work: Any) -> Any:
        if not work:
            return entry(version, cargo, None)
        order, payload, program = work
        reply = entry(version, cargo, lambda: cargo_bytes, order, payload, lambda: program)
        if isinstance(reply, str) or reply[1] is None:
            return reply
        import distributed

        worker = distributed.get_worker()
        limit, size = worker.memory_manager.memory_limit, sum(memoryview(part).nbytes for part in reply[1])
        # It is here twice, as it came and as it goes. Dask ends a worker that is too large, and all that it holds is lost.
        # A small one makes no difference: then something else fills the worker.
        needs, has = 2 * size, worker.monitor.get_process_memory()
        if limit and needs > (1 - most_share) * limit and has + needs > most_share * limit:
            reason = (
                f"its result of {size >> 20} MiB does not fit into the memory of a Dask worker, of {int(limit) >> 20} MiB: "
                "let items return less, or start workers with a larger --memory-limit"
            )
            return (3, None, None, reason, *reply[4:])
        # Dask pickles some results by protocol 4, which has no buffers.
        return (reply[0], tuple(bytes(memoryview(part)) for part in reply[1]), *reply[2:])

    return fourfold_chunk


def _tell(client: Any, names: list[str], how: str) -> None:
    with contextlib.suppress(Exception):  # the next outcome tells what has become of the cluster
        client.run(_stop, names, how)


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
