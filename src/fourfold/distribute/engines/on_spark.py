"""Spark as an engine, Classic and Connect by one code path: a ticket is a partition, and a job runs a bundle of them.

    tickets ──> queue ──> bundle ──> range(n, numPartitions=n).mapInArrow(task) ──> rows ──> replies
                                      one Spark job, on a thread of ours

A job says what came of it at its end. So bundles are small, several are in flight, and while one has stragglers the next
fills their slots (Spark's own FIFO order). A job that Spark gives up is run again in halves.
"""

import atexit
import contextlib
import os
import pickle
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.distribute.engine import NO_NEED, EngineInfo
from fourfold.distribute.orders import Orders, Stored, bundle_size, parts_of
from fourfold.errors import EngineError
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket
from fourfold.version import VERSION

SUBMITTERS = 32
"""Jobs in flight at most: each has a thread of ours that waits for it. Fewer: chunks that take about as long as it takes to
start a job leave slots idle. More: threads."""

AHEAD = 2
"""Tickets in jobs, for each slot: while one runs the next job is started. Fewer: slots idle while jobs start. More: what is
cancelled has gone too far to be taken back."""

INTERRUPT_S = 0.2
"""Seconds between two tries to end a job: one that Spark did not know yet was not ended. Not measured."""

ROW_BYTES = 1 << 20
"""Bytes of a row. Larger: Connect stacks rows up to the message size of its server, 4 MiB as it comes. Smaller: more rows."""

INLINE_BYTES = 64 << 10
"""A payload up to this size travels with its job, to all tasks of it; larger ones are stored, and taken by one. Smaller: more
uploads, of some milliseconds each. Larger: each task of a bundle gets more of its neighbours' payloads."""

CLOSURE_BYTES = 1 << 20
"""... and all that travels with a job together: each task loads it. Spark makes a broadcast of more."""

CAPACITY_S = 30.0
"""Seconds for which a look at the size of the cluster holds: on Connect it takes a job. Smaller: more jobs. Larger: executors
that come idle longer."""

CLOSE_S = 10.0
"""Seconds until jobs that do not end are left to Spark. Spark looks at its tasks every 2 s, and then kills their processes."""

SCHEMA = "i int, data binary"

JAVA = (
    "no Java was found: Spark needs Java 17 or later on this machine (Debian: apt-get install openjdk-17-jre-headless). "
    "A Spark Connect server, engine='sc://host:port', needs none here"
)


@dataclass(eq=False)
class _Bundle:
    """Tickets of one job."""

    tag: str
    tickets: list[tuple[Ticket, Stored, bytes]]
    interrupted: bool = False
    is_running: bool = False


class Spark:
    """Runs tickets as partitions of Spark jobs.

    Args:
        master: "local[4]", "spark://host:port", "yarn", …, or "sc://host:port" for Spark Connect; None: the session of this
            process when it has one, else one of this machine, on all its cores.
        session: A session of yours, instead of a master. It is used and never stopped; its tags and settings stay as they are.
        slots: The most tasks at once; None: as many as the cluster runs.
        ship: What workers need of your own code: modules, wheels, archives, folders or files, put first on their import path.
        config: Settings of a session that is made here.
    """

    info = EngineInfo(
        name="spark",
        takes_objects=False,
        honours=frozenset({"idempotent", "threads_per_worker", "timeout", "memory", "gpus"}),
        elsewhere=True,
        dispatch_s=0.05,
        stops_items=False,
        kills="bundle",
        knows_started=False,
        engine_reruns=True,
    )

    def __init__(
        self,
        master: str | None = None,
        *,
        session: Any = None,
        slots: int | None = None,
        ship: Sequence[Any] = (),
        config: dict[str, str] | None = None,
    ) -> None:
        self._master, self._given, self.most, self._ship = master, session, slots, ship
        self._config = dict(config or {})
        self._session: Any = None
        self._is_ours = self._is_remote = False
        self._orders: Orders | None = None
        self._cargo: Any = None
        self._programs: dict[str, Stored] = {}
        self._task: Any = None
        self._need = NO_NEED
        self._profile: Any = None
        self._lock = threading.Lock()
        self._queue: deque[Ticket] = deque()
        self._bundles: dict[str, _Bundle] = {}
        self._todo: queue.SimpleQueue[_Bundle | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._n_flying = self._count = 0
        self._interrupted_at = 0.0
        self._threads: list[threading.Thread] = []
        self._capacity, self._capacity_at = 0, 0.0
        self._ticket_s: float | None = None
        self._files: Path | None = None
        self._down = ""
        self._is_open = False
        self._pid = 0

    # ---- the session -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take or make the session; prove on one executor that functions can travel there.

        Raises:
            EngineError: There is no Spark there, or no Java here.
            VersionMismatch: Its Python, or its fourfold, is another one.
        """
        if self._is_open and not self._down and self._answers():
            return
        self._is_open = False
        if self._files is not None:  # of a session that is gone: what was stored there must be stored again
            shutil.rmtree(self._files, ignore_errors=True)
            self._files = None
        self._session = self._given if self._given is not None else self._find_or_make()
        self._is_remote = type(self._session).__module__.startswith("pyspark.sql.connect")
        self._down = ""
        self._orders = orders = Orders(VERSION, self._ship)
        self._task = _make_task(orders.entry, VERSION)
        try:
            (found,) = self._run_job("fourfold-probe", [None])
        except Exception as error:
            raise EngineError(f"Spark runs no task: {_first_line(error)}") from error
        orders.check(found, "the Spark executors")
        self._cargo = self._store(orders.cargo, orders.cargo_name) if orders.cargo else None
        self._look_at_capacity()
        self._is_open = True

    def for_another_call(self) -> "Spark":
        """An engine on the same session: calls may overlap, and an engine is for one at a time."""
        return Spark(session=self._session, ship=self._ship)

    def _answers(self) -> bool:
        """Whether the session is of use."""
        try:
            if self._is_remote:
                return bool(self._session.range(1).count())
            return not self._session.sparkContext._jsc.sc().isStopped()
        except Exception:
            return False

    def _find_or_make(self) -> Any:
        import pyspark.sql

        there = self._running_master()
        if there and self._master in (None, there):
            return pyspark.sql.SparkSession.builder.getOrCreate()
        if there:
            raise EngineError(f"this process has a Spark session on {there}, and can have no other one, on {self._master}")
        master = self._master or "local[*]"
        builder = pyspark.sql.SparkSession.builder
        handler = signal.getsignal(signal.SIGINT)
        try:
            if master.startswith("sc://"):
                session = builder.remote(master).create()
            else:
                if not shutil.which("java") and not os.environ.get("JAVA_HOME"):
                    raise EngineError(JAVA)
                session = self._make(builder.master(master), master)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"no Spark at {master}: {_first_line(error)}") from error
        finally:
            with contextlib.suppress(ValueError):  # Spark's handler cancels all jobs; ours end by their tags
                signal.signal(signal.SIGINT, handler)
        self._is_ours, self._pid = True, os.getpid()
        atexit.register(self.shutdown)
        return session

    def _running_master(self) -> str:
        """The master of the Classic session that this process has; "" when it has none, or another kind is asked for."""
        if (self._master or "").startswith("sc://"):
            return ""
        from pyspark import SparkContext

        context = SparkContext._active_spark_context
        try:
            return str(context.master) if context is not None and not context._jsc.sc().isStopped() else ""
        except Exception:
            return ""

    def _make(self, builder: Any, master: str) -> Any:
        from fourfold.machine import cores

        here = master.startswith("local")
        settings = {"spark.python.task.killTimeout": "200ms", "spark.ui.showConsoleProgress": "false"}
        if here:
            settings |= {
                "spark.ui.enabled": "false",
                "spark.driver.host": "127.0.0.1",
                "spark.driver.bindAddress": "127.0.0.1",
            }
            if master == "local[*]":
                builder = builder.master(f"local[{self.most or cores().n_cores}]")
        if here or "127.0.0.1" in master or "localhost" in master:
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else executors take the first python3 of PATH
        for name, value in (settings | self._config).items():
            builder = builder.config(name, value)
        return builder.appName("fourfold").getOrCreate()

    def shutdown(self) -> None:
        """End the session, when this engine has made it. Called when this process ends."""
        if self._pid not in (0, os.getpid()):
            return  # a fork
        self.close()
        self._is_open = False
        atexit.unregister(self.shutdown)
        session, self._session = self._session, None
        self._cargo = self._orders = None
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)
            self._files = None
        if session is not None and self._is_ours:
            self._is_ours = False
            with contextlib.suppress(Exception):
                session.stop()

    def __enter__(self) -> "Spark":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    # ---- what is stored there ----------------------------------------------------------------------------------------

    def _store(self, data: bytes, name: str) -> Any:
        """Make bytes available to all tasks: a broadcast, or on Connect a file of the session."""
        if not self._is_remote:
            return self._session.sparkContext.broadcast(data)
        if self._files is None:
            self._files = Path(tempfile.mkdtemp(prefix="fourfold-"))
        path = self._files / f"fourfold-{name}"
        if not path.exists():
            path.write_bytes(data)
            self._session.addArtifacts(str(path), file=True)
            path.write_bytes(b"")  # it is there now; its name says so
        return path.name

    def _free(self, place: Any) -> None:
        if place is not None and not isinstance(place, str):
            with contextlib.suppress(Exception):
                place.destroy()

    def put(self, key: str, program: Parcel, need: Need = NO_NEED) -> None:
        """Store the program where all executors can take it.

        Raises:
            EngineError: The cluster can never run it.
        """
        assert self._orders is not None
        self._need = need
        name = self._orders.key_of(program, need)
        try:
            place = self._store(pickle.dumps(parts_of(program), protocol=5), name)
        except Exception as error:
            self._down = _first_line(error)
            raise EngineError(f"Spark cannot store {program.size_bytes} bytes of the function: {self._down}") from error
        self._programs[key] = Stored(name, place, need)
        self._profile = self._make_profile(need.gpus) if need.gpus else None

    def _make_profile(self, gpus: int) -> Any:
        from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

        master = "" if self._is_remote else self._session.sparkContext.master
        if master.startswith("local["):
            raise EngineError(
                f"Spark gives GPUs to tasks of a cluster, not of {master}: use a standalone master, YARN or Kubernetes"
            )
        return ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", gpus)).build

    def drop(self, key: str) -> None:
        """Forget the program. On Connect its file stays until the session ends."""
        program = self._programs.pop(key, None)
        if program is not None:
            self._free(program.place)

    # ---- tickets -----------------------------------------------------------------------------------------------------

    def slots(self) -> int:
        """As many tasks as the cluster runs at once."""
        return self._capacity

    def _look_at_capacity(self) -> None:
        self._capacity_at = time.monotonic() + CAPACITY_S
        if not self._is_remote:
            context = self._session.sparkContext
            cpus = float(context.getConf().get("spark.task.cpus", "1"))
            self._capacity = max(1, int(context.defaultParallelism / cpus))
            return
        from pyspark.sql import functions

        # A range without a number of partitions has as many as the cluster has cores.
        frame = self._session.range(1 << 16).select(functions.spark_partition_id().alias("number")).distinct()
        self._capacity = max(1, frame.count())

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue tickets, and start jobs as far as it makes sense."""
        with self._lock:
            self._queue.extend(tickets)
            self._start_bundles()

    def _start_bundles(self) -> None:
        """While slots are free all goes at once; later, in bundles that the driver can feed."""
        size = bundle_size(self.slots(), self._ticket_s, self.info.dispatch_s)
        slots = self.slots()
        while self._queue and (self._n_flying < slots or (len(self._queue) >= size and self._n_flying < AHEAD * slots)):
            n_free = max(1, slots - self._n_flying)
            taken = [self._queue.popleft() for _ in range(min(size, len(self._queue), n_free if n_free > 1 else size))]
            self._start([(ticket, self._programs[ticket.program], self._orders_of(ticket)) for ticket in taken])

    def _orders_of(self, ticket: Ticket) -> bytes:
        assert self._orders is not None
        return self._orders.order(ticket, self._programs[ticket.program])[1]

    def _start(self, tickets: list[tuple[Ticket, Stored, bytes]]) -> None:
        self._count += 1
        bundle = _Bundle(f"fourfold-{os.getpid()}-{id(self):x}-{self._count}", tickets)
        self._bundles[bundle.tag] = bundle
        self._n_flying += len(tickets)
        if len(self._threads) < SUBMITTERS and len(self._threads) < len(self._bundles):
            thread = threading.Thread(target=self._serve, args=(self._todo,), name="fourfold-spark", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._todo.put(bundle)

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Return what has come, or wait for the first."""
        outcomes = []
        try:
            outcomes.append(self._arrived.get(timeout=timeout) if timeout != 0 else self._arrived.get_nowait())
            while True:
                outcomes.append(self._arrived.get_nowait())
        except queue.Empty:
            pass
        with self._lock:
            self._start_bundles()
            self._interrupt_what_should_end()
        return outcomes

    def _interrupt_what_should_end(self) -> None:
        now = time.monotonic()
        if now < self._interrupted_at + INTERRUPT_S:
            return
        for bundle in self._bundles.values():
            if bundle.interrupted and bundle.is_running:
                self._interrupted_at = now
                with contextlib.suppress(Exception):
                    self._interrupt(bundle.tag)

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Tickets without a job never start. Jobs go on, unless `hard`: then their other tickets come back undone."""
        with self._lock:
            for ticket in list(self._queue):
                if ids is None or ticket.id in ids:
                    self._queue.remove(ticket)
                    self._arrived.put(Outcome(ticket.id, Kind.CANCELLED))
            if not hard:
                return
            for bundle in self._bundles.values():
                if any(ids is None or ticket.id in ids for ticket, _, _ in bundle.tickets):
                    bundle.interrupted = True
            self._interrupted_at = 0.0
            self._interrupt_what_should_end()

    def _interrupt(self, tag: str) -> None:
        """End a job. A tag of a Classic session is known in the thread that made it only; one of its context everywhere."""
        if self._is_remote:
            self._session.interruptTag(tag)
        else:
            self._session.sparkContext.cancelJobsWithTag(tag)

    def close(self) -> None:
        """End what runs, and free what is stored. The session stays for the next call."""
        self.cancel(hard=True)
        for _ in self._threads:
            self._todo.put(None)
        deadline = time.monotonic() + CLOSE_S
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < deadline:
            with self._lock:
                self._interrupt_what_should_end()
            time.sleep(0.01)
        self._threads.clear()
        self._queue.clear()
        self._bundles.clear()
        self._n_flying = 0
        self._todo, self._arrived = queue.SimpleQueue(), queue.SimpleQueue()
        for key in list(self._programs):
            self.drop(key)

    # ---- in the threads that wait for jobs ---------------------------------------------------------------------------

    def _serve(self, todo: "queue.SimpleQueue[_Bundle | None]") -> None:
        while (bundle := todo.get()) is not None:
            arrived = self._arrived
            with self._lock:
                bundle.is_running = not bundle.interrupted
            if not bundle.is_running:
                outcomes = [Outcome(ticket.id, Kind.CANCELLED) for ticket, _, _ in bundle.tickets]
            else:
                outcomes = self._run(bundle, todo)
            with self._lock:
                if todo is not self._todo:
                    continue  # closed meanwhile: nobody asks for these any more
                self._n_flying -= len(bundle.tickets)
                self._bundles.pop(bundle.tag, None)
                for outcome in outcomes:
                    arrived.put(outcome)
            if time.monotonic() > self._capacity_at and not self._down:
                with contextlib.suppress(Exception):
                    self._look_at_capacity()

    def _run(self, bundle: _Bundle, todo: Any) -> list[Outcome]:
        assert self._orders is not None
        stored = []
        try:
            work = []
            for ticket, program, order in bundle.tickets:
                payload: Any = parts_of(ticket.payload)
                if ticket.payload.size_bytes > min(INLINE_BYTES, CLOSURE_BYTES // len(bundle.tickets)):
                    data = pickle.dumps(payload, protocol=5)
                    payload = self._store(data, f"{bundle.tag}-{ticket.id}")
                    stored.append(payload)
                work.append((order, payload, program.place, program.need.idempotent))
            replies = self._run_job(bundle.tag, work)
        except Exception as error:
            return self._failed(bundle, error, todo)
        finally:
            for place in stored:
                self._free(place)
        outcomes = []
        for (ticket, _, _), (elapsed_s, reply) in zip(bundle.tickets, replies, strict=True):
            self._ticket_s = elapsed_s if self._ticket_s is None else (self._ticket_s + elapsed_s) / 2
            outcomes.append(self._orders.outcome(ticket.id, reply))
        return outcomes

    def _run_job(self, tag: str, work: list[Any]) -> list[Any]:
        """Run one job, a partition for each; returns their replies."""
        session, cargo_name = self._session, self._orders.cargo_name if self._orders is not None else ""
        tags = session if self._is_remote else session.sparkContext
        add, remove = (tags.addTag, tags.removeTag) if self._is_remote else (tags.addJobTag, tags.removeJobTag)
        add(tag)
        try:
            frame = session.range(0, len(work), 1, numPartitions=len(work))
            task = self._task(work, cargo_name, self._cargo)
            table = frame.mapInArrow(task, SCHEMA, profile=self._profile).toArrow()
        finally:
            remove(tag)
        pieces: dict[int, list[bytes]] = {}
        for i, data in zip(table.column("i").to_pylist(), table.column("data"), strict=True):
            pieces.setdefault(i, []).append(data.as_buffer())
        return [pickle.loads(b"".join(pieces[i])) for i in range(len(work))]

    def _failed(self, bundle: _Bundle, error: Exception, todo: Any) -> list[Outcome]:
        """Spark has given the job up, or we have."""
        tickets = bundle.tickets
        if bundle.interrupted:
            return [Outcome(ticket.id, Kind.LOST, reason="its Spark job was ended") for ticket, _, _ in tickets]
        reason = _first_line(error)
        if self._is_down(error):
            self._down = reason
            return [Outcome(ticket.id, Kind.ENGINE_DOWN, reason=f"Spark is gone: {reason}") for ticket, _, _ in tickets]
        if len(tickets) == 1 or not all(program.need.idempotent for _, program, _ in tickets):
            return [Outcome(ticket.id, Kind.LOST, reason=f"Spark gave the job up: {reason}") for ticket, _, _ in tickets]
        with self._lock:  # one of them is to blame: find out which
            if bundle.interrupted or todo is not self._todo:
                return [Outcome(ticket.id, Kind.LOST, reason="its Spark job was ended") for ticket, _, _ in tickets]
            half = len(tickets) // 2
            self._start(tickets[:half])
            self._start(tickets[half:])
        return []

    def _is_down(self, error: Exception) -> bool:
        if type(error).__name__ in ("Py4JNetworkError", "Py4JError", "ConnectionRefusedError", "ConnectionResetError"):
            return True
        if self._is_remote:
            return "UNAVAILABLE" in str(error) or "Connection refused" in str(error)
        try:
            return bool(self._session.sparkContext._jsc.sc().isStopped())
        except Exception:
            return True


def _make_task(entry: Callable[..., Any], version: str) -> Callable[..., Any]:
    """Return what makes the function of a job. It travels by value."""
    row_bytes = ROW_BYTES

    def with_work(work: list[Any], cargo_name: str, cargo: Any) -> Callable[..., Any]:
        def fourfold_bundle(batches: Any) -> Any:
            import os
            import pickle
            import time

            import pyarrow
            from pyspark import SparkFiles, TaskContext

            def take(place: Any) -> Any:
                if not isinstance(place, str):
                    return place.value
                with open(SparkFiles.get(place), "rb") as file:
                    return file.read()

            context = TaskContext.get()
            gpus = context.resources().get("gpu") if context is not None else None
            if gpus is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus.addresses)
            for batch in batches:
                for i in batch.column(0).to_pylist():
                    begin = time.perf_counter()
                    if work[i] is None:
                        answer = entry(version, "", None)
                    else:
                        order, payload, program, idempotent = work[i]
                        if not idempotent and context is not None and context.attemptNumber():
                            reply = (3, None, None, "Spark lost its first attempt", "", "", False, ())
                        else:
                            if not isinstance(payload, tuple):
                                payload = pickle.loads(take(payload))
                            reply = entry(
                                version,
                                cargo_name,
                                lambda: take(cargo),
                                order,
                                payload,
                                lambda place=program: pickle.loads(take(place)),
                            )
                        answer = (time.perf_counter() - begin, reply)
                    data = memoryview(pickle.dumps(answer, protocol=5))
                    for start in range(0, len(data), row_bytes):
                        yield pyarrow.RecordBatch.from_arrays(
                            [pyarrow.array([i], pyarrow.int32()), pyarrow.array([data[start : start + row_bytes].tobytes()])],
                            names=["i", "data"],
                        )

        return fourfold_bundle

    return with_work


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:500]
