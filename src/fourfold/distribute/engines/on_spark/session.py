"""The session of Spark: found, given or made; what is stored there, and its jobs. Engines of overlapping calls share one."""

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fourfold.distribute.connection import (
    PROBE_S,
    Connection,
    cannot_connect,
    check_that_somebody_listens,
    first_line,
    unchanged,
)
from fourfold.distribute.engines.on_spark.causes import runs_nothing
from fourfold.distribute.engines.on_spark.inherited import is_remote, settings_of_this_thread
from fourfold.distribute.engines.on_spark.pulse import LOOK_S, Pulse, has_proxy, pulse_of
from fourfold.distribute.engines.on_spark.task import SCHEMA, make_task
from fourfold.distribute.orders import Orders
from fourfold.errors import EngineError, FourfoldError
from fourfold.version import VERSION

CAPACITY_S = 30.0
"""Seconds for which a look at the size of the cluster holds: on Connect it takes a job. Smaller: more jobs. Larger: executors
that come idle longer."""

RETRIES: dict[str, Any] = {"max_retries": 8, "max_backoff": 5000}
"""For how long a Connect session that is made here asks a server that does not answer: 25 s in all, its waits in milliseconds.
Spark's own are 10 minutes. Shorter: a network that fails for a moment ends the call. Longer: it takes longer to say that the
server is gone."""

TOLD_S = 1.0
"""Seconds in which Spark, when a job has failed, says where. Shorter: a busy Spark does not yet. Longer: so takes the error,
where it never says. Not measured."""

JAVA = (
    "no Java was found: Spark needs Java 17 or later on this machine (Debian: apt-get install openjdk-17-jre-headless). "
    "A Spark Connect server, engine='sc://host:port', needs none here"
)


class Session(Connection):
    """A session, Classic or Connect: jobs, stored bytes, and how many tasks run at once.

    Args:
        master: As `Spark` takes it.
        given: A session of the user.
        slots: Cores of a session that is made here.
        ship: As `Spark` takes it.
        config: As `Spark` takes it.
    """

    where = "the Spark executors"

    def __init__(
        self, master: str | None, given: Any, slots: int | None, ship: Sequence[Any], config: dict[str, str] | None
    ) -> None:
        super().__init__(ship)
        self._master, self._given, self._slots = master, given, slots
        self._config = dict(config or {})
        self.spark: Any = None
        self._is_remote = False
        self._task: Any = None
        self._cores = self._capacity = 0
        self._capacity_at = 0.0
        self.pulse: Pulse | None = None
        """Whether its cluster is there; None: it is all in the Java process of this one."""
        self._stored: set[str] = set()

    # ---- opening and closing -----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._stored.clear()  # in a session that is gone
        with unchanged("PYSPARK_PYTHON"):
            before, self.spark = self.spark, self._given if self._given is not None else self._find_or_make()
        self._is_remote = is_remote(self.spark)
        if before is not self.spark:
            self.pulse = pulse_of(self.spark, self._is_remote)
        if self.pulse is not None and (silence := self.pulse.silence()):  # Spark itself would wait for it
            raise EngineError(f"Spark is gone: {silence}")

    def _probe(self, orders: Orders) -> dict[str, Any]:
        self._task = make_task(orders.entry, VERSION)
        try:
            ((_, found),) = self._ask("fourfold-probe", [None])
        except Exception as error:
            raise runs_nothing(error, "" if isinstance(error, FourfoldError) else self._host_of("fourfold-probe")) from error
        self._look_at_capacity()
        return dict(found)

    def _ask(self, tag: str, work: list[Any]) -> list[Any]:
        """Run one job, and do not wait for ever: where nobody has room for a task, Spark does."""
        answers: queue.SimpleQueue[tuple[list[Any], Exception | None]] = queue.SimpleQueue()

        set_there = settings_of_this_thread(self.spark)

        def run() -> None:
            set_there()
            try:
                answers.put((self.run_job(tag, work), None))
            except Exception as error:
                answers.put(([], error))

        threading.Thread(target=run, name="fourfold-spark-probe", daemon=True).start()
        deadline = time.monotonic() + PROBE_S
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    found, error = answers.get(timeout=LOOK_S)
                    if error is not None:
                        raise error
                    return found
                if self.pulse is not None and (why := self.pulse.look()):
                    raise EngineError(f"Spark is gone: {why}")
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"Spark has begun no task in {PROBE_S:.0f} s. Has the cluster workers, and are their cores free?"
                    )
        except BaseException:
            self.interrupt(tag)
            raise

    def _host_of(self, tag: str) -> str:
        """Where the task of a job was that has just failed; "" where Spark does not say, as on Connect."""
        if self._is_remote:
            return ""
        scala = self.spark.sparkContext._jsc.sc()
        deadline = time.monotonic() + TOLD_S
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                job = max(scala.statusTracker().getJobIdsForTag(tag))
                for stage in scala.statusTracker().getJobInfo(job).get().stageIds():
                    return str(scala.statusStore().taskList(stage, 0, 1).apply(0).host())
            time.sleep(0.05)
        return ""

    def _store_cargo(self, orders: Orders) -> Any:
        return self.store(orders.cargo, orders.cargo_name)

    def _open_door(self) -> tuple[str, str] | None:
        if self._is_remote:
            server = self.spark.client._builder
            advice = "Give the server a token (spark.connect.authenticate.token), and name it: sc://host:port/;token=…"
            return None if getattr(server, "secure", True) else (server.endpoint, advice)
        conf = self.spark.sparkContext.getConf()
        if conf.get("spark.master").startswith("local") or conf.get("spark.authenticate", "false") == "true":
            return None
        return conf.get("spark.master"), "Set spark.authenticate=true, with spark.authenticate.secret where Spark makes none"

    def _answers(self) -> bool:
        """Whether the session is of use."""
        try:
            if self.pulse is not None and self.pulse.silence():
                return False
            if self._is_remote:
                return bool(self.spark.range(1).count())
            return not self.spark.sparkContext._jsc.sc().isStopped()
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
            if master.startswith("spark://"):
                check_that_somebody_listens(master)
            if master.startswith("sc://"):
                self._check_the_server()
                session = builder.remote(master).create()
                self._be_impatient(session)
            else:
                if not shutil.which("java") and not os.environ.get("JAVA_HOME"):
                    raise EngineError(JAVA)
                session = self._make(builder.master(master), master)
        except EngineError:
            raise
        except Exception as error:
            cannot_connect("Spark", master, error)
        finally:
            # Spark's handler cancels all jobs; ours end by their tags. One that is none of Python's stays away.
            with contextlib.suppress(ValueError, TypeError):
                signal.signal(signal.SIGINT, handler)
        self.is_ours = True
        return session

    def _check_the_server(self) -> None:
        if not has_proxy():
            check_that_somebody_listens(self._master or "")

    def _listens(self) -> bool:
        try:
            self._check_the_server()
        except EngineError:
            return False
        return True

    def _be_impatient(self, session: Any) -> None:
        from pyspark.sql.connect.client.retries import DefaultPolicy

        session.client.set_retry_policies([DefaultPolicy(**RETRIES)])

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
        from fourfold.system.machine import cores

        here = master.startswith("local")
        settings = {"spark.python.task.killTimeout": "200ms", "spark.ui.showConsoleProgress": "false"}
        if here:
            settings |= {
                "spark.ui.enabled": "false",
                "spark.driver.host": "127.0.0.1",
                "spark.driver.bindAddress": "127.0.0.1",
            }
            if not master.startswith("local-cluster"):
                settings["spark.authenticate"] = (
                    "true"  # Spark makes a secret of its own: other users of the machine have none
                )
            if master == "local[*]":
                builder = builder.master(f"local[{self._slots or cores().n_cores}]")
        if here or "127.0.0.1" in master or "localhost" in master:
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else executors take the first python3 of PATH
        for name, value in (settings | self._config).items():
            builder = builder.config(name, value)
        return builder.appName("fourfold").getOrCreate()

    def _leave(self) -> None:
        spark, self.spark = self.spark, None
        if self._is_remote and (self.down or not self._listens()):
            spark.release_session_on_close = False  # nobody is there to be told
        if not self._is_remote:
            from pyspark import SparkContext

            if SparkContext._active_spark_context not in (None, spark._sc):
                return  # ours was stopped by somebody, who has made another one
        with contextlib.suppress(Exception):
            spark.stop()
        if not self._is_remote:
            try:
                gateway: Any = SparkContext._gateway
                gateway.jvm.System.currentTimeMillis()
            except Exception:  # its Java is gone: the next session starts another one
                SparkContext._gateway = SparkContext._jvm = None

    # ---- what is stored there ----------------------------------------------------------------------------------------

    def store(self, data: bytes, name: str) -> Any:
        """Make bytes available to all tasks: a broadcast, or on Connect a file of the session, which keeps it to its end.

        Other bytes have another name.
        """
        if not self._is_remote:
            return self.spark.sparkContext.broadcast(data)
        name = f"fourfold-{name}"
        if name not in self._stored:
            with tempfile.TemporaryDirectory(prefix="fourfold-") as folder:
                path = Path(folder) / name
                path.write_bytes(data)
                self.spark.addArtifacts(str(path), file=True)
            self._stored.add(name)
        return name

    def free(self, place: Any) -> None:
        """Give back what was stored, as far as that can be."""
        if place is not None and not isinstance(place, str):
            with contextlib.suppress(Exception):
                place.destroy()

    # ---- tasks -------------------------------------------------------------------------------------------------------

    def slots(self, gpus: int = 0) -> int:
        """As many tasks as the cluster ran at once when it was last looked at; `gpus`: that take so many each."""
        if not gpus:
            return self._capacity
        each = self._cores_of_an_executor()
        if not each:
            return self._cores  # too many: Spark lets them wait
        return max(1, self._cores // each * min(each, self._gpus_of_an_executor() // gpus))

    def look_again(self) -> None:
        """Look at the size of the cluster, if that was long ago. Takes a job on Connect."""
        if time.monotonic() > self._capacity_at and not self.down:
            with contextlib.suppress(Exception):
                self._look_at_capacity()

    def _look_at_capacity(self) -> None:
        self._capacity_at = time.monotonic() + CAPACITY_S
        if self._is_remote:
            from pyspark.sql import functions

            # A range without a number of partitions has as many as the cluster has cores.
            frame = self.spark.range(1 << 16).select(functions.spark_partition_id().alias("number")).distinct()
            self._cores = max(1, frame.count())
        else:
            self._cores = max(1, self.spark.sparkContext.defaultParallelism)
        self._capacity = max(1, int(self._cores / float(self._setting("spark.task.cpus", "1"))))

    def _setting(self, name: str, otherwise: str) -> str:
        with contextlib.suppress(Exception):  # a Connect server may not tell
            return str(self.spark.conf.get(name, otherwise))
        return otherwise

    def _gpus_of_an_executor(self) -> int:
        return int(self._setting("spark.executor.resource.gpu.amount", "0"))

    def _cores_of_an_executor(self) -> int:
        """0: Spark does not say. A standalone executor has all cores of its machine, one on YARN or Kubernetes has one."""
        master = self._setting("spark.master", "")
        usual = "1" if master.startswith(("yarn", "k8s")) else "0"
        each = int(self._setting("spark.executor.cores", usual))
        if not each and self.pulse is not None and self.pulse.executors is not None:
            each = self._cores // max(1, self.pulse.executors.count())
        return each

    def profile_of(self, gpus: int) -> Any:
        """What tasks that take GPUs ask for.

        Raises:
            EngineError: This Spark gives none, or not so many: it would wait for them.
        """
        from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

        master = "" if self._is_remote else self.spark.sparkContext.master
        if master.startswith("local["):
            raise EngineError(
                f"Spark gives GPUs to tasks of a cluster, not of {master}: use a standalone master, YARN or Kubernetes"
            )
        if gpus > (n_there := self._gpus_of_an_executor()):
            raise EngineError(
                f"a worker should have {gpus} GPUs, and an executor of this Spark has {n_there}: take fewer, or set "
                "spark.executor.resource.gpu.amount when you start Spark"
            )
        profile = ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", gpus)).build
        if self._is_remote:
            try:
                self._tell(profile)
            except Exception as error:
                raise EngineError(f"this Spark gives no GPUs: {first_line(error)}") from error
        return profile

    def _tell(self, profile: Any) -> None:
        """Connect makes a profile with the session that is active in the thread: a thread of ours has this one."""
        from concurrent.futures import ThreadPoolExecutor

        from pyspark.sql.connect.session import SparkSession

        def tell() -> int:
            SparkSession._active_session.session = self.spark
            return int(profile.id)

        with ThreadPoolExecutor(1) as thread:
            thread.submit(tell).result()

    def run_job(self, tag: str, work: list[Any], profile: Any = None) -> list[Any]:
        """Run one job, a partition for each; returns their answers. A job is called off by its tag."""
        with self._tagged(tag):
            frame = self.spark.range(0, len(work), 1, numPartitions=len(work))
            table = frame.mapInArrow(self._task(work, self.cargo_name, self.cargo), SCHEMA, profile=profile).toArrow()
        return _answers_of(table, len(work))

    def run_barrier_job(self, tag: str, task: Any, size: int) -> list[Any]:
        """Run one job whose tasks start all at once, or not at all; returns their answers."""
        with self._tagged(tag):
            table = self.spark.range(0, size, 1, numPartitions=size).mapInArrow(task, SCHEMA, barrier=True).toArrow()
        return _answers_of(table, size)

    @contextlib.contextmanager
    def _tagged(self, tag: str) -> Iterator[None]:
        tags = self.spark if self._is_remote else self.spark.sparkContext
        add, remove = (tags.addTag, tags.removeTag) if self._is_remote else (tags.addJobTag, tags.removeJobTag)
        add(tag)
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # a session that was stopped meanwhile has none: why is what the job says
                remove(tag)

    def begins_again(self, tag: str) -> bool:
        """Whether Spark runs a stage of this job for another time. On Connect nobody knows."""
        if self._is_remote:
            return False
        tracker = self.spark.sparkContext._jsc.sc().statusTracker()
        with contextlib.suppress(Exception):  # it has forgotten the job, which has ended
            stages = [each for job in tracker.getJobIdsForTag(tag) for each in tracker.getJobInfo(job).get().stageIds()]
            return any(tracker.getStageInfo(stage).get().currentAttemptId() > 0 for stage in stages)
        return False

    def adapts(self) -> bool:
        """Whether executors come and go: Spark starts no barrier jobs then."""
        return self._setting("spark.dynamicAllocation.enabled", "false").lower() == "true"

    def interrupt(self, tag: str) -> None:
        """End a job. A tag of a Classic session is known in the thread that made it only; one of its context everywhere."""
        with contextlib.suppress(Exception):
            if self._is_remote:
                self.spark.interruptTag(tag)
            else:
                self.spark.sparkContext.cancelJobsWithTag(tag)

    def is_down(self, error: BaseException) -> bool:
        """Whether the error of a job says that the session itself is gone. It is then not used any more."""
        if self._says_down(error):
            self.down = first_line(error)
        return bool(self.down)

    def _says_down(self, error: BaseException) -> bool:
        if type(error).__name__ in ("Py4JNetworkError", "Py4JError", "ConnectionRefusedError", "ConnectionResetError"):
            return True
        if self._is_remote:
            return "UNAVAILABLE" in str(error) or "Connection refused" in str(error)
        try:
            return bool(self.spark.sparkContext._jsc.sc().isStopped())
        except Exception:
            return True


def _answers_of(table: Any, count: int) -> list[Any]:
    """What the tasks of a job have answered, whose pieces are the rows of this table."""
    pieces: dict[int, list[Any]] = {}
    for i, data in zip(table.column("i").to_pylist(), table.column("data"), strict=True):
        pieces.setdefault(i, []).append(data.as_buffer())
    return [pickle.loads(pieces[i][0] if len(pieces[i]) == 1 else b"".join(pieces[i])) for i in range(count)]
