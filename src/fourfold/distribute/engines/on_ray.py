"""Ray as an engine: a ticket is a Ray task, and its items run in a worker process beside Ray's own.

Ray never runs a task again here (max_retries=0): a lost one comes back to the schedule, which decides.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from fourfold.addresses import without_secrets
from fourfold.distribute.connection import (
    PROBE_S,
    Connection,
    OnConnection,
    cannot_connect,
    check_that_somebody_listens,
    first_line,
    unchanged,
)
from fourfold.distribute.engine import NO_NEED, EngineInfo
from fourfold.distribute.keeper import Keeper
from fourfold.distribute.orders import Orders, Stored, parts_of
from fourfold.errors import EngineError
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket

CAPACITY_S = 5.0
"""Seconds for which a look at the size of the cluster holds. Smaller: more questions. Larger: new machines idle longer."""

CLOSE_S = 5.0
"""Seconds in which workers whose tasks are cancelled must have ended. Not measured: they take half a second."""

LOOK_S = 2.0
"""Seconds between looks whether the head of the cluster is there. Not measured: one look takes less than a millisecond."""

ANSWER_S = 10.0
"""Seconds in which the head must say which machines there are, if it is there. Shorter: a slow one is asked again."""

SILENT_S = 20.0
"""Seconds of a head that nobody reaches until it counts as gone. Longer: one that starts again is waited for; but after 60
Ray ends this process, whatever it is doing."""

IDLE_S = 0.05
"""Seconds that `wait` sleeps when nothing is in flight. Not measured."""


class _Connection(Connection):
    """The Ray of this process, or one that is started here."""

    where = "the Ray cluster"

    def __init__(
        self, address: str | None, slots: int | None, ship: Sequence[Any], resources: Mapping[str, float] | None
    ) -> None:
        super().__init__(ship)
        self._address, self._slots, self.resources = address, slots, dict(resources or {})
        self._keeper: Keeper | None = None
        self._which: Any = None
        self.task: Any = None
        self._head = ""
        self._looked_at = self._heard_at = 0.0
        self._has_set_tokens = False
        self._silence = ""
        self._asker: threading.Thread | None = None

    def _answers(self) -> bool:
        try:
            return self.is_there() and self.is_heard(now=True)
        except EngineError:
            if self.is_ours:
                return False  # another one is started, or connected to
            raise

    def is_there(self) -> bool:
        """Whether this process has the Ray that was connected to: not none, and no other one."""
        return bool(_ray().is_initialized()) and _which_ray() == self._which

    def is_heard(self, now: bool = False) -> bool:
        """Whether the head of the cluster can be reached: most functions of Ray wait for it, for a minute.

        Args:
            now: Look, however short ago that was done.

        Raises:
            EngineError: It is gone, for good or for too long.
        """
        at = time.monotonic()
        if self._head and (now or at - self._looked_at >= LOOK_S):
            self._looked_at = at
            try:
                if self._keeper is not None and not self._keeper.is_alive():
                    self._heard_at = -math.inf  # and never again
                    raise EngineError("the Ray that was started here was ended")
                check_that_somebody_listens(self._head)
            except EngineError as error:
                self._silence = f"Ray is gone: {error}"
            else:
                self._heard_at = at
        is_heard = self._heard_at >= self._looked_at
        if not is_heard and (now or self._looked_at - self._heard_at >= SILENT_S):
            raise EngineError(self._silence)  # to whoever asks, until it answers again
        return is_heard

    def machines(self) -> list[dict[str, float]] | None:
        """What each machine of the cluster has; None when the head does not answer.

        It is asked in a thread: who asks a head that is gone waits for a minute, and then Ray ends the process.
        """
        if not self.is_heard() or (self._asker is not None and self._asker.is_alive()):
            return None
        found: list[list[dict[str, float]]] = []

        def ask() -> None:
            with contextlib.suppress(Exception):
                found.append([machine["Resources"] for machine in _ray().nodes() if machine["Alive"]])

        self._asker = threading.Thread(target=ask, name="fourfold-ray", daemon=True)
        self._asker.start()
        self._asker.join(ANSWER_S)
        return found[0] if found else None

    def _connect(self) -> None:
        ray = _ray()
        if not ray.is_initialized():
            try:
                self._init(ray)
            except EngineError:
                self._forget_tokens()
                raise
        elif self._address not in (None, "auto", "local", _connected_to.get(os.getpid())):
            raise EngineError(
                f"this process has a Ray already, and it is not {without_secrets(self._address)}: call ray.shutdown() first, "
                "or leave the address out"
            )
        self._which = _which_ray()
        # Over ray:// the head is behind a server, whose connection Ray watches itself.
        self._head = "" if ray.util.client.ray.is_connected() else str(ray.get_runtime_context().gcs_address)
        self._looked_at = self._heard_at = time.monotonic()
        self._asker = None

    def _init(self, ray: Any) -> None:
        address = self._address
        with unchanged(*SET_BY_RAY, signals=[signal.SIGTERM]):
            try:
                if address == "local" or (address is None and not os.environ.get("RAY_ADDRESS")):
                    from fourfold.machine import cores

                    self._has_set_tokens = _ask_for_tokens(ray)
                    self._keeper = Keeper(__name__, self._slots or cores().n_cores)
                    address = self._keeper.address
                elif address != "auto":
                    check_that_somebody_listens(address or os.environ["RAY_ADDRESS"])
                with _on_loopback(ray) if self._keeper is not None else contextlib.nullcontext():
                    ray.init(address=address, log_to_driver=False, configure_logging=False)
            except Exception as error:
                self._let_go()
                if isinstance(error, EngineError):
                    raise
                where = self._address or os.environ.get("RAY_ADDRESS")
                cannot_connect("Ray", where, error, "Check the address, or leave it out to start one here")
        self.is_ours = True
        _connected_to[os.getpid()] = self._address

    def _open_door(self) -> tuple[str, str] | None:
        if self._keeper is not None or _asks_who_it_is(_ray()):
            return None
        advice = (
            "Set RAY_AUTH_MODE=token where it is started and for this process: `ray get-auth-token --generate` makes the token"
        )
        return self._head or self._address or "", advice

    def _leave(self) -> None:
        self.task = None
        try:
            if self.is_there():
                _ray().shutdown()
        finally:
            self._let_go()
            self._forget_tokens()

    def abandon(self, generation: int) -> None:
        """Leave the Ray that is gone, when it was connected to here.

        It would end this process a minute later, and hold up an error that nobody catches until then.
        """
        with self._lock:
            if self.is_ours and self.generation == generation:
                self.is_ours = False
                self._leave()

    def _let_go(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def _forget_tokens(self) -> None:
        """The next Ray of this process asks for tokens if its environment says so."""
        if self._has_set_tokens and not _ray().is_initialized():
            self._has_set_tokens = False
            _ray()._raylet.Config.initialize("")

    def _probe(self, orders: Orders) -> dict[str, Any]:
        ray = _ray()
        self.task = ray.remote(_make_task(orders.entry))
        ref = self.task.options(num_cpus=0, max_retries=2).remote(orders.version, "", [])
        try:
            found: dict[str, Any] = ray.get(ref, timeout=PROBE_S)
        except Exception as error:
            with contextlib.suppress(Exception):
                ray.cancel(ref, force=True)
            raise EngineError(f"the Ray cluster runs no task: {type(error).__name__}: {error}") from error
        return found

    def _store_cargo(self, orders: Orders) -> Any:
        return _ray().put(orders.cargo)


SET_BY_RAY = ("RAY_AUTH_MODE", "PYTHONBREAKPOINT")
"""Variables of the environment that Ray sets in the process that connects, or that are set for it here."""


def _ask_for_tokens(ray: Any) -> bool:
    """Only who has the user's token may use the Ray that is about to start, as when Ray starts one in this process.

    Returns:
        Whether Ray was told to read that. It remembers it when the environment says something else again.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    with contextlib.suppress(AttributeError):  # an older Ray has neither tokens nor this
        ray._raylet.Config.initialize("")
        return True
    return False


def _asks_who_it_is(ray: Any) -> bool:
    """Whether the Ray of this process uses tokens, or certificates on both sides."""
    if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return True
    with contextlib.suppress(AttributeError):  # an older Ray has no tokens
        return bool(ray._raylet.get_authentication_mode() == ray._raylet.AuthenticationMode.TOKEN)
    return False


@contextlib.contextmanager
def _on_loopback(ray: Any) -> Iterator[None]:
    """Connect to 127.0.0.1: where Ray supports clusters, it takes that for another name of this machine's own address."""
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def start_here(count: int) -> tuple[str, Callable[[], None]]:
    """Start a Ray of this machine; returns its address, and what ends it. Called in a keeper.

    It listens at 127.0.0.1 only, as Ray does where it supports no clusters: its own option for the address does not take that.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when Ray is imported, by each of its processes
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = _ray()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Ray greets; what its processes say is in its own files
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    ray.init(address="local", num_cpus=count, **options)
    return str(ray.get_runtime_context().gcs_address), ray.shutdown


class Ray(OnConnection):
    """Runs tickets as tasks of a Ray cluster.

    Args:
        address: As `ray.init` takes it: "auto", "host:port", "ray://host:port"; None: the Ray of this process when it has one,
            else the cluster of RAY_ADDRESS, else one of this machine that is started here and ends with this process.
        slots: The most tasks at once; None: as many as the cluster has CPUs for.
        ship: What workers need of your own code: modules, wheels, archives, folders or files, put first on their import path.
        resources: Custom resources that each worker takes, as `ray.remote(resources=…)`.
    """

    connection: _Connection
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
        self.connection, self.most = _Connection(address, slots, ship, resources), slots
        self._start()

    def _start(self) -> None:
        self._programs: dict[str, Stored] = {}
        self._flying: dict[Any, int] = {}
        self._cancelled: dict[int, Kind] = {}
        self._room, self._room_at = 0, 0.0
        self._need = NO_NEED
        self._generation = 0

    # ---- tickets -----------------------------------------------------------------------------------------------------

    def slots(self) -> int:
        """As many tasks as the machines of the cluster have CPUs and GPUs for, whoever uses them now."""
        if not self.connection.is_open:
            return 0
        now = time.monotonic()
        if now >= self._room_at:
            with contextlib.suppress(Exception):  # the next outcome tells what has become of the cluster
                machines = self.connection.machines()
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
            place = _ray().put(parts_of(program))
        except Exception as error:
            self.connection.down = first_line(error)
            raise EngineError(
                f"Ray cannot store {program.size_bytes} bytes of the function: {self.connection.down}"
            ) from error
        self._programs[key] = Stored(self.connection.orders.key_of(program, need), place, need)
        if not self.slots():
            raise EngineError(
                f"the Ray cluster has no machine for workers that take {self._wants()}: all of it has "
                f"{_ray().cluster_resources()}"
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
        if self.connection.generation != self._generation or not _ray().is_initialized():
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
        ray = _ray()
        refs = list(self._flying)
        try:
            self._check_that_it_is_there()
            self.connection.is_heard()
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
        if not self._flying or (not hard and not self._need.idempotent) or not _ray().is_initialized():
            return  # Ray cannot tell a task that waits from one that has begun
        for ref, id in self._flying.items():
            if ids is None or id in ids:
                self._cancelled[id] = Kind.LOST if hard else Kind.CANCELLED
                with contextlib.suppress(Exception):
                    _ray().cancel(ref, force=hard)

    def close(self) -> None:
        """Cancel what runs, and free what is stored. The connection stays for the next call."""
        with contextlib.suppress(Exception):
            self.cancel(hard=True)
            if self._flying and _ray().is_initialized():
                # A worker that is about to be killed would get the first task of the next call.
                _ray().wait(list(self._flying), num_returns=len(self._flying), timeout=CLOSE_S, fetch_local=False)
        self._flying.clear()
        self._cancelled.clear()
        self._programs.clear()


_connected_to: dict[int, str | None] = {}
"""The address that this process has connected to by an engine, by its process id."""


def _ray() -> Any:
    import ray

    return ray


def _which_ray() -> Any:
    """What tells the Ray of this process from any other one; None where that is not known, as over ray://."""
    with contextlib.suppress(Exception):
        context = _ray().get_runtime_context()
        return context.get_job_id(), context.get_node_id()
    return None


def _make_task(entry: Callable[..., Any]) -> Callable[..., Any]:
    def fourfold_chunk(version: str, cargo: str, cargo_refs: list[Any], *work: Any) -> Any:
        """Run an order on another thread: Ray ends a task by a KeyboardInterrupt in this one."""
        import sys
        import threading

        import ray

        if not work:
            return entry(version, cargo, None)
        name, order, payload, program_refs = work
        answers: list[tuple[bool, Any]] = []
        should_stop = has_begun = False
        running = threading.Lock()  # held until there is an answer
        running.acquire()

        def run() -> None:
            try:
                reply = entry(version, cargo, lambda: ray.get(cargo_refs[0]), order, payload, lambda: ray.get(program_refs[0]))
                answers.append((True, reply))
            except BaseException as error:
                answers.append((False, error))
            finally:
                running.release()

        thread = threading.Thread(target=run, name="fourfold-order", daemon=True)
        while True:
            try:  # around all of it: the interrupt may come at any step
                if not has_begun:
                    has_begun = True
                    thread.start()
                while not answers:
                    site = sys.modules.get("fourfold.site") if should_stop else None
                    if site is not None:
                        should_stop = False
                        site.stop(name, "soft")
                    running.acquire(timeout=0.02)  # Ray's interrupt ends no wait for a lock: it is heard after this one
                is_reply, answer = answers[0]
                if is_reply:
                    return answer
                break
            except KeyboardInterrupt:
                should_stop = True
        raise answer

    return fourfold_chunk
