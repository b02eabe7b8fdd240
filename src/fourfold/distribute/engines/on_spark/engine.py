"""The engine: tickets become bundles, each a Spark job on a thread of ours, and outcomes come back with its end."""

import contextlib
import pickle
import queue
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fourfold.distribute.bundles import Bundles
from fourfold.distribute.connection import OnConnection, first_line
from fourfold.distribute.engine import NO_NEED, EngineInfo
from fourfold.distribute.engines.on_spark import gang
from fourfold.distribute.engines.on_spark.causes import cause_of
from fourfold.distribute.engines.on_spark.inherited import is_called_off, settings_of_this_thread
from fourfold.distribute.engines.on_spark.pulse import LOOK_S, Pulse
from fourfold.distribute.engines.on_spark.session import Session
from fourfold.distribute.orders import Stored, parts_of
from fourfold.errors import EngineError
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket

SUBMITTERS = 32
"""Jobs in flight at most: each has a thread of ours that waits for it. Fewer: chunks that take about as long as it takes to
start a job leave slots idle. More: threads."""

INTERRUPT_S = 0.2
"""Seconds between two tries to end a job: one that Spark did not know yet was not ended. Not measured."""

INLINE_BYTES = 64 << 10
"""A payload up to this size travels with its job, to all tasks of it; larger ones are stored, and taken by one. Smaller: more
uploads, of some milliseconds each. Larger: each task of a bundle gets more of its neighbours' payloads."""

CLOSURE_BYTES = 1 << 20
"""... and all that travels with a job together: each task loads it. Spark makes a broadcast of more."""

CLOSE_S = 10.0
"""Seconds until jobs that do not end are left to Spark. Spark looks at its tasks every 2 s, and then kills their processes."""


class _Bundle:
    """Tickets of one job."""

    __slots__ = ("interrupted", "is_running", "tag", "tickets")

    def __init__(self, tag: str, tickets: list[tuple[Ticket, Stored, bytes]]) -> None:
        self.tag, self.tickets = tag, tickets
        self.interrupted = self.is_running = False


class Spark(OnConnection):
    """Runs tickets as partitions of Spark jobs.

    Args:
        master: "local[4]", "spark://host:port", "yarn", …, or "sc://host:port" for Spark Connect; None: the session of this
            process when it has one, else one of this machine, on all its cores.
        session: A session of yours, instead of a master. It is used and never stopped; its tags and settings stay as they are.
        slots: The most tasks at once; None: as many as the cluster runs.
        ship: What workers need of your own code: modules, wheels, archives, folders or files, put first on their import path.
        config: Settings of a session that is made here.
    """

    connection: Session
    info = EngineInfo(
        name="spark",
        takes_objects=False,
        honours=frozenset({"idempotent", "threads_per_worker", "timeout", "memory", "gpus"}),
        elsewhere=True,
        dispatch_s=0.1,
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
        self.connection, self.most = Session(master, session, slots, ship, config), slots
        self._start()

    def _start(self) -> None:
        self._programs: dict[str, Stored] = {}
        self._profile: Any = None
        self._gpus = 0
        self._lock = threading.Lock()
        self._bundles = Bundles(self.info.dispatch_s)
        self._running: dict[str, _Bundle] = {}
        self._todo: queue.SimpleQueue[_Bundle | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._name, self._count = f"fourfold-{uuid.uuid4().hex}", 0
        self._generation = 0
        self._threads: list[threading.Thread] = []
        self._ender: threading.Thread | None = None
        self._watcher: threading.Thread | None = None
        self._set_there: Callable[[], None] | None = None
        self._is_over = threading.Event()

    def put(self, key: str, program: Parcel, need: Need = NO_NEED) -> None:
        """Store the program where all executors can take it.

        Raises:
            EngineError: The cluster can never run it.
        """
        self._generation = self.connection.generation
        name = self.connection.orders.key_of(program, need)
        self._gpus = need.gpus
        self._profile = self.connection.profile_of(need.gpus) if need.gpus else None
        try:
            place = self.connection.store(pickle.dumps(parts_of(program), protocol=5), name)
        except Exception as error:
            self.connection.is_down(error)
            raise EngineError(f"Spark cannot store {program.size_bytes} bytes of the function: {first_line(error)}") from error
        self._programs[key] = Stored(name, place, need)

    def drop(self, key: str) -> None:
        """Forget the program. On Connect its file stays until the session ends, as those of large payloads do."""
        program = self._programs.pop(key, None)
        if program is not None:
            self.connection.free(program.place)

    # ---- gangs -------------------------------------------------------------------------------------------------------

    def check_gang(self, size: int) -> None:
        """Refuse a gang that can never start: too few slots, or executors that come and go."""
        gang.check(self.connection, size)

    def run_gang(self, member: str, arguments: Mapping[str, Any], size: int, deadline: float | None) -> list[tuple[Any, ...]]:
        """Run a gang as one barrier job."""
        return gang.run(self.connection, member, arguments, size, deadline)

    # ---- tickets -----------------------------------------------------------------------------------------------------

    def slots(self) -> int:
        """As many tasks as the cluster runs at once."""
        return self.connection.slots(self._gpus)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue tickets, and start jobs as far as it makes sense."""
        with self._lock:
            self._bundles.add(tickets)
            self._start_jobs()

    def _start_jobs(self) -> None:
        while tickets := self._bundles.next(self.slots()):
            work = []
            for ticket in tickets:
                program = self._programs[ticket.program]
                work.append((ticket, program, self.connection.orders.order(ticket, program)[1]))
            self._start_job(work)

    def _start_job(self, work: list[tuple[Ticket, Stored, bytes]]) -> None:
        self._count += 1
        bundle = _Bundle(f"{self._name}-{self._count}", work)
        self._running[bundle.tag] = bundle
        if len(self._threads) < SUBMITTERS and len(self._threads) < len(self._running):
            if self._set_there is None:
                self._set_there = settings_of_this_thread(self.connection.spark)
            arguments = self._todo, self._set_there
            thread = threading.Thread(target=self._serve, args=arguments, name="fourfold-spark", daemon=True)
            self._threads.append(thread)
            thread.start()
        if self._watcher is None and self.connection.pulse is not None:
            watched = self.connection.pulse, self._is_over
            self._watcher = threading.Thread(target=self._watch, args=watched, name="fourfold-spark-watch", daemon=True)
            self._watcher.start()
        self._todo.put(bundle)

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Return what has come, or wait for the first."""
        with self._lock:  # what came since the last time may have made room
            self._start_jobs()
        outcomes = []
        try:
            outcomes.append(self._arrived.get(timeout=timeout) if timeout != 0 else self._arrived.get_nowait())
            while True:
                outcomes.append(self._arrived.get_nowait())
        except queue.Empty:
            pass
        return outcomes

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Tickets without a job never start. Jobs go on, unless `hard`: then their other tickets come back undone."""
        with self._lock:
            for ticket in self._bundles.take_back(ids):
                self._arrived.put(Outcome(ticket.id, Kind.CANCELLED))
            if not hard:
                return
            for bundle in self._running.values():
                if any(ids is None or ticket.id in ids for ticket, _, _ in bundle.tickets):
                    bundle.interrupted = True
            if self._to_end() and (self._ender is None or not self._ender.is_alive()):
                self._ender = threading.Thread(target=self._end_jobs, name="fourfold-spark-end", daemon=True)
                self._ender.start()

    def _to_end(self) -> list[str]:
        return [bundle.tag for bundle in self._running.values() if bundle.interrupted]

    def _end_jobs(self) -> None:
        """On a thread of its own: a server that is gone may keep the question for minutes."""
        session = self.connection
        while True:
            with self._lock:
                tags = self._to_end()
                if not tags or self.connection.down:
                    self._ender = None
                    return
            for tag in tags:
                session.interrupt(tag)
            time.sleep(INTERRUPT_S)

    def close(self) -> None:
        """End what runs, and free what is stored. The session stays for the next call."""
        self._is_over.set()
        if not self.connection.down:
            self.cancel(hard=True)
        for _ in self._threads:
            self._todo.put(None)
        deadline = time.monotonic() + (CLOSE_S if not self.connection.down else 0.0)
        for thread in [*self._threads, *filter(None, [self._watcher])]:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._running.clear()
            self._bundles = Bundles(self.info.dispatch_s)
            self._todo, self._arrived = queue.SimpleQueue(), queue.SimpleQueue()
            self._watcher, self._is_over, self._set_there = None, threading.Event(), None
        self._threads.clear()
        for key in list(self._programs):
            self.drop(key)

    def _watch(self, pulse: Pulse, is_over: threading.Event) -> None:
        """On a thread of its own: where the cluster is gone, the threads that wait for jobs would do so for ever."""
        while not is_over.wait(LOOK_S):
            if not self._running:
                pulse.beat()
                continue
            why = ""
            with contextlib.suppress(Exception):  # this Java is gone: who waits for a job hears of it
                why = pulse.look()
            if why:
                self._go_down(f"Spark is gone: {why}", is_over)
                return

    def _go_down(self, reason: str, is_over: threading.Event) -> None:
        with self._lock:
            if is_over.is_set():
                return
            if self.connection.generation == self._generation:
                self.connection.down = reason
            tickets = [ticket for bundle in self._running.values() for ticket, _, _ in bundle.tickets]
            self._running.clear()
            for ticket in tickets + self._bundles.take_back(None):
                self._arrived.put(Outcome(ticket.id, Kind.ENGINE_DOWN, reason=reason))

    # ---- in the threads that wait for jobs ---------------------------------------------------------------------------

    def _serve(self, todo: "queue.SimpleQueue[_Bundle | None]", set_there: Callable[[], None]) -> None:
        set_there()
        while (bundle := todo.get()) is not None:
            with self._lock:
                bundle.is_running = not bundle.interrupted
            if not bundle.is_running:
                outcomes = [Outcome(ticket.id, Kind.CANCELLED) for ticket, _, _ in bundle.tickets]
            else:
                outcomes = self._run(bundle, todo)
            with self._lock:
                if todo is not self._todo:
                    continue  # closed meanwhile: nobody asks for these any more
                if self._running.pop(bundle.tag, None) is None:
                    continue  # its tickets were told that the cluster is gone
                self._bundles.ended(len(outcomes))
                for outcome in outcomes:
                    self._arrived.put(outcome)
            self.connection.look_again()

    def _run(self, bundle: _Bundle, todo: Any) -> list[Outcome]:
        session = self.connection
        stored = []
        try:
            work = []
            for ticket, program, order in bundle.tickets:
                payload: Any = parts_of(ticket.payload)
                if ticket.payload.size_bytes > min(INLINE_BYTES, CLOSURE_BYTES // len(bundle.tickets)):
                    payload = session.store(pickle.dumps(payload, protocol=5), f"{bundle.tag}-{ticket.id}")
                    stored.append(payload)
                work.append((order, payload, program.place, program.need.idempotent))
            answers = session.run_job(bundle.tag, work, self._profile)
            if session.pulse is not None:
                session.pulse.beat()
            outcomes = []
            for (ticket, _, _), answer in zip(bundle.tickets, answers, strict=True):
                elapsed_s, reply = answer
                self._bundles.learn(elapsed_s, ticket.n_items)
                outcomes.append(session.orders.outcome(ticket.id, reply))
            return outcomes
        except Exception as error:
            return self._failed(bundle, error, todo)
        finally:
            for place in stored:
                session.free(place)

    def _failed(self, bundle: _Bundle, error: Exception, todo: Any) -> list[Outcome]:
        """Spark has given the job up, or we have."""
        tickets = bundle.tickets
        reason, host = cause_of(error)
        reason += f" (on {host})" if host else ""
        if bundle.interrupted:
            kind, reason = Kind.LOST, "its Spark job was ended"
        elif self.connection.generation != self._generation or self.connection.is_down(error):
            kind, reason = Kind.ENGINE_DOWN, f"Spark is gone: {reason}"
        elif is_called_off(error):  # nobody is to blame, and what somebody wants to end does not begin again
            kind, reason = Kind.ENGINE_DOWN, f"a Spark job of this call was cancelled: {reason}"
        elif len(tickets) == 1 or not all(program.need.idempotent for _, program, _ in tickets):
            kind, reason = Kind.LOST, f"Spark gave the job up: {reason}"
        else:
            with self._lock:  # one of them is to blame: find out which
                if not bundle.interrupted and todo is self._todo:
                    half = len(tickets) // 2
                    self._start_job(tickets[:half])
                    self._start_job(tickets[half:])
                    return []
            kind, reason = Kind.LOST, "its Spark job was ended"
        return [Outcome(ticket.id, kind, reason=reason) for ticket, _, _ in tickets]
