"""The engine: each ticket is a task of Ray."""

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fourfold.distribute.connection import OnConnection, first_line
from fourfold.distribute.engine import NO_NEED, EngineInfo
from fourfold.distribute.engines.on_ray import gang, library
from fourfold.distribute.engines.on_ray.cluster import Cluster
from fourfold.distribute.engines.on_ray.head import LOOK_S
from fourfold.distribute.orders import Stored, parts_of
from fourfold.errors import EngineError
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket

CAPACITY_S = 5.0
"""Seconds for which a look at the size of the cluster holds. Smaller: more questions. Larger: new machines idle longer."""

CLOSE_S = 5.0
"""Seconds in which workers whose tasks are cancelled must have ended. Not measured: they take half a second."""

IDLE_S = 0.05
"""Seconds that `wait` sleeps when nothing is in flight. Not measured."""


class Ray(OnConnection):
    """Runs tickets as tasks of a Ray cluster.

    Args:
        address: As `ray.init` takes it: "auto", "host:port", "ray://host:port"; None: the Ray of this process when it has one,
            else the cluster of RAY_ADDRESS, else one of this machine that is started here and ends with this process.
        slots: The most tasks at once; None: as many as the cluster has CPUs for.
        ship: What workers need of your own code: modules, wheels, archives, folders or files, put first on their import path.
        resources: Custom resources that each worker takes, as `ray.remote(resources=…)`.
    """

    connection: Cluster
    info = EngineInfo(
        name="ray",
        takes_objects=False,
        honours=frozenset({"idempotent", "threads_per_worker", "timeout", "memory", "gpus"}),
        elsewhere=True,
        dispatch_s=0.01,  # what a worker idles between two chunks, with the next one queued: 6 to 9 ms
        knows_started=False,
    )

    def __init__(
        self,
        address: str | None = None,
        *,
        slots: int | None = None,
        ship: Sequence[Any] = (),
        resources: Mapping[str, float] | None = None,
    ) -> None:
        self.connection, self.most = Cluster(address, slots, ship, resources), slots
        self._start()

    def _start(self) -> None:
        self._programs: dict[str, Stored] = {}
        self._flying: dict[Any, int] = {}
        self._cancelled: dict[int, Kind] = {}
        self._room, self._room_at = 0, 0.0
        self._need = NO_NEED
        self._generation = 0

    # ---- gangs -------------------------------------------------------------------------------------------------------

    def check_gang(self, size: int) -> None:
        """Refuse a gang that the machines of the cluster have no room for, whoever uses them now."""
        gang.check(self.connection.head.machines(), self._wants(), size)

    def run_gang(self, member: str, arguments: Mapping[str, Any], size: int, deadline: float | None) -> list[tuple[Any, ...]]:
        """Run a gang in a placement group."""
        return gang.run(self.connection, self._wants(), member, arguments, size, deadline)

    # ---- tickets -----------------------------------------------------------------------------------------------------

    def slots(self) -> int:
        """As many tasks as the machines of the cluster have CPUs and GPUs for, whoever uses them now."""
        if not self.connection.is_open:
            return 0
        now = time.monotonic()
        if now >= self._room_at:
            with contextlib.suppress(Exception):  # the next outcome tells what has become of the cluster
                machines = self.connection.head.machines()
                if machines is not None:
                    wants = self._wants()
                    # A task has all that it wants on one machine.
                    self._room = sum(min(int(has.get(name, 0.0) / each) for name, each in wants.items()) for has in machines)
                    self._room_at = now + CAPACITY_S
        return self._room

    def _wants(self) -> dict[str, float]:
        wants = {"CPU": 1.0, "GPU": float(self._need.gpus), **self.connection.resources}
        return {name: each for name, each in wants.items() if each}

    def put(self, key: str, program: Parcel, need: Need = NO_NEED) -> None:
        """Store the program in Ray, once.

        Raises:
            EngineError: The cluster can never run it.
        """
        self._need, self._room_at = need, 0.0
        self._generation = self.connection.generation
        try:
            place = library.ray().put(parts_of(program))
        except Exception as error:
            self.connection.down = first_line(error)
            raise EngineError(
                f"Ray cannot store {program.size_bytes} bytes of the function: {self.connection.down}"
            ) from error
        self._programs[key] = Stored(self.connection.orders.key_of(program, need), place, need)
        if not self.slots():
            raise EngineError(
                f"the Ray cluster has no machine for workers that take {self._wants()}: all of it has "
                f"{library.ray().cluster_resources()}"
            )

    def drop(self, key: str) -> None:
        """Forget the program: Ray frees it with its last reference."""
        self._programs.pop(key, None)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """One Ray task for each.

        Raises:
            EngineError: Ray cannot take it.
        """
        self._check_that_it_is_there()
        try:
            self._submit(tickets)
        except Exception as error:
            raise EngineError(f"Ray cannot take a chunk: {first_line(error)}") from error

    def _check_that_it_is_there(self) -> None:
        # Where there is none, most functions of Ray start one.
        if self.connection.generation != self._generation or not library.ray().is_initialized():
            raise EngineError("Ray is gone: this process has none any more, or another one")

    def _submit(self, tickets: Sequence[Ticket]) -> None:
        there, orders = self.connection, self.connection.orders
        cargo = [there.cargo] if there.cargo is not None else []
        for ticket in tickets:
            program = self._programs[ticket.program]
            name, order = orders.order(ticket, program)
            options = {"num_cpus": 1, "num_gpus": program.need.gpus, "resources": there.resources, "max_retries": 0}
            work = (name, order, parts_of(ticket.payload), [program.place])
            ref = there.task.options(**options).remote(orders.version, there.cargo_name, cargo, *work)
            self._flying[ref] = ticket.id

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Return what has come, or wait for the first."""
        if not self._flying:
            time.sleep(IDLE_S if timeout is None else min(timeout, IDLE_S))
            return []
        ray = library.ray()
        refs = list(self._flying)
        try:
            self._check_that_it_is_there()
            self.connection.head.is_heard()
            done, _ = ray.wait(refs, num_returns=1, timeout=LOOK_S if timeout is None else min(timeout, LOOK_S))
            if done:
                done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        except Exception as error:
            return self._go_down(error)
        return [outcome for ref in done for outcome in self._outcome(ray, ref)]

    def _outcome(self, ray: Any, ref: Any) -> list[Outcome]:
        errors = ray.exceptions
        id = self._flying.pop(ref, -1)
        if id < 0:
            return []  # Ray is gone, and it was told of with the others
        cancelled = self._cancelled.pop(id, None)
        try:
            return [self.connection.orders.outcome(id, ray.get(ref))]
        except (errors.TaskCancelledError, errors.WorkerCrashedError) as error:
            if cancelled is not None:
                return [Outcome(id, cancelled, reason="its Ray task was ended")]
            return [Outcome(id, Kind.LOST, reason=f"Ray lost the task: {first_line(error)}")]
        except errors.OutOfMemoryError as error:
            return [Outcome(id, Kind.LOST, reason=f"Ray ended the task for memory: {first_line(error)}", out_of_memory=True)]
        except (errors.RaySystemError, errors.LocalRayletDiedError, ConnectionError) as error:
            self._flying[ref] = id
            return self._go_down(error)
        except errors.RayTaskError as error:
            if isinstance(error.cause, (errors.OutOfDiskError, errors.ObjectStoreFullError)):
                # The worker could not store what came of it; that it could not get the function is told when it is stored.
                reason = (
                    f"Ray has no room for its result, neither in memory nor on disk ({first_line(error.cause)}): let items "
                    "return less, or start Ray with a larger object store"
                )
                return [Outcome(id, Kind.LOST, reason=reason)]
            return [Outcome(id, Kind.ENGINE_DOWN, reason=f"a worker of Ray cannot run fourfold: {error.cause!r}")]
        except errors.RayError as error:
            return [Outcome(id, Kind.LOST, reason=f"Ray lost the task: {first_line(error)}")]

    def _go_down(self, error: BaseException) -> list[Outcome]:
        reason = str(error) if isinstance(error, EngineError) else f"Ray is gone: {first_line(error)}"
        if self.connection.generation == self._generation:
            self.connection.down = reason
        ids = list(self._flying.values())
        self._flying.clear()
        with contextlib.suppress(Exception):
            self.connection.abandon(self._generation)
        return [Outcome(id, Kind.ENGINE_DOWN, reason=reason) for id in ids]

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Tasks that wait never start; those that run go on, unless `hard`."""
        if not self._flying or (not hard and not self._need.idempotent) or not library.ray().is_initialized():
            return  # Ray cannot tell a task that waits from one that has begun
        for ref, id in self._flying.items():
            if ids is None or id in ids:
                self._cancelled[id] = Kind.LOST if hard else Kind.CANCELLED
                with contextlib.suppress(Exception):
                    library.ray().cancel(ref, force=hard)

    def close(self) -> None:
        """Cancel what runs, and free what is stored. The connection stays for the next call."""
        with contextlib.suppress(Exception):
            self.cancel(hard=True)
            if self._flying and library.ray().is_initialized():
                # A worker that is about to be killed would get the first task of the next call.
                library.ray().wait(list(self._flying), num_returns=len(self._flying), timeout=CLOSE_S, fetch_local=False)
        self._flying.clear()
        self._cancelled.clear()
        self._programs.clear()
