"""Real clusters on this machine, in every way in which people have them: in one process, and as processes of their own."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from fourfold.engines import Dask, Ray, Spark

PATIENCE_S = 90.0

SPARK = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.executor.memory": "512m",
    "spark.python.task.killTimeout": "200ms",
    "spark.log.level": "OFF",
    "spark.driver.maxResultSize": "96m",
}


def free_port() -> int:
    """A port that nobody has, and that the kernel gives to nobody who asks for any: a cluster takes a while to come to it."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(max(lowest - 12_000, 1024), lowest) if lowest > 2048 else 0
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])


def await_port(port: int, process: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} does not listen"
        time.sleep(0.1)


class Cluster:
    """A cluster of two workers or more on this machine."""

    kind = ""
    n_gpus = 0
    """It claims to have so many."""
    gpu_ids: frozenset[str] = frozenset()
    """Those of a machine that claims several of them."""
    starts_by_itself = True
    """Whether `engine=kind` starts one like it."""
    is_connect = False
    """It keeps what was stored until the session ends."""
    speculates = False
    """It starts what takes long once more on another machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[Any]] = []

    def start(self) -> None:
        """Start it; returns when its workers are there."""

    def engine(self, **options: Any) -> Any:
        """An engine on it, with the connection that is there."""
        raise NotImplementedError

    def address(self) -> str:
        """What a user types as `engine=`."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """... and what must be in the environment for it."""
        return {}

    def is_elsewhere(self) -> bool:
        """Whether other processes can use it."""
        return bool(self.processes)

    def workers(self) -> list[int]:
        """Process ids of machines, as far as one can tell here: killing one loses what runs there."""
        raise NotImplementedError

    def hosts(self) -> list[int]:
        """Those of machines that see to their workers, where that is somebody else: without it nobody comes back."""
        return []

    def holder(self) -> int:
        """The one of them that keeps what the items of a call share, where one does."""
        return self.workers()[-1]

    def mend(self) -> None:
        """Another machine takes the place of one that was lost, where the cluster does not see to that itself."""

    def run(self, *command: str, **options: Any) -> "subprocess.Popen[Any]":
        """Start a process that ends with the cluster."""
        with open(self.folder / f"{len(self.processes)}.log", "wb") as log:
            process = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=subprocess.STDOUT, **options)
        self.processes.append(process)
        return process

    def kill(self) -> None:
        """End all of it at once, as a power cut does."""
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid)
                for each in [*family.children(recursive=True), family]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()

    def stop(self) -> None:
        """End it."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        self.kill()
        for process in self.processes:
            process.wait()


# ---- Ray


class RayHere(Cluster):
    """Ray, started for this process, as `engine="ray"` does."""

    kind = "ray"

    def start(self) -> None:
        self._first = Ray("local", slots=2)
        self._first.open()

    def engine(self, **options: Any) -> Ray:
        return Ray(**options)

    def address(self) -> str:
        return "ray"

    def workers(self) -> list[int]:
        return []

    def stop(self) -> None:
        self._first.shutdown()


class RayOfTwoMachines(Cluster):
    """A head and a second raylet, as on two machines."""

    kind = "ray"
    n_gpus = 2

    def start(self) -> None:
        import ray
        from ray.cluster_utils import Cluster as RayCluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Neither scaled nor read about, and workers stay that are there: to start one takes seconds with what tests import.
        head = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
        head["_system_config"] = {"num_workers_soft_limit": 8, "idle_worker_killing_time_threshold_ms": 600_000}
        self.ray = RayCluster(initialize_head=True, head_node_args=head)
        self.second = self.ray.add_node(num_cpus=1, num_gpus=1)
        ray.init(address=self.ray.address, log_to_driver=False, configure_logging=False)

    def engine(self, **options: Any) -> Ray:
        return Ray(**options)

    def address(self) -> str:
        return "ray"

    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": self.ray.address}

    def is_elsewhere(self) -> bool:
        return True

    def workers(self) -> list[int]:
        return [info[0].process.pid for name, info in self.second.all_processes.items() if name == "raylet"]

    def mend(self) -> None:
        self.second = self.ray.add_node(num_cpus=1, num_gpus=1)

    def kill(self) -> None:
        for node in [self.second, self.ray.head_node]:
            for processes in node.all_processes.values() if node is not None else ():
                for info in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        psutil.Process(info.process.pid).kill()

    def stop(self) -> None:
        import ray

        ray.shutdown()
        with contextlib.suppress(Exception):
            self.ray.shutdown()
        self.kill()


class RayElsewhere(Cluster):
    """A Ray of processes of its own, to which nobody has connected yet: one that is lost loses no test's own Ray."""

    kind = "ray"

    def start(self) -> None:
        self._port = free_port()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"]
        place = ["--node-ip-address", "127.0.0.1", "--port", str(self._port), "--include-dashboard", "false"]
        head = self.run(*command, *place, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"})
        await_port(self._port, head)

    def address(self) -> str:
        return "ray"

    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": f"127.0.0.1:{self._port}"}


# ---- Dask


class DaskCluster(Cluster):
    """One client for all tests."""

    kind = "dask"
    _first: Dask

    def holder(self) -> int:
        """The worker that got the largest data first."""

        def find(dask_scheduler: Any) -> str:  # inside another one it travels by value
            kept = [task for task in dask_scheduler.tasks.values() if task.who_has]
            largest = max(kept, key=lambda task: task.nbytes or 0)
            return str(next(iter(largest.who_has)).address)

        client = self._first.connection.client
        address = client.run_on_scheduler(find)
        return int(client.run(os.getpid, workers=[address])[address])


class DaskHere(DaskCluster):
    """A LocalCluster, started for this process, as `engine="dask"` does."""

    def start(self) -> None:
        self._first = Dask(slots=2)
        self._first.open()

    def engine(self, **options: Any) -> Dask:
        return Dask(client=self._first.connection.client, **options)

    def address(self) -> str:
        return "dask"

    def workers(self) -> list[int]:
        return [*self._first.connection.client.run(os.getpid).values()]

    def stop(self) -> None:
        self._first.shutdown()


class DaskOfProcesses(DaskCluster):
    """A scheduler and two workers, each a process of its own."""

    n_gpus = 2

    def start(self) -> None:
        port = free_port()
        self.url = f"tcp://127.0.0.1:{port}"
        module = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
        scheduler = self.run(*module, "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        await_port(port, scheduler)
        for _ in range(2):
            self._add_worker()
        self._first = Dask(self.url)
        self._first.open()
        self._first.connection.client.wait_for_workers(2, timeout=PATIENCE_S)

    def _add_worker(self) -> None:
        self.run(
            sys.executable, "-m", "distributed.cli.dask_worker", self.url, "--nthreads", "1", "--nworkers", "1",
            "--host", "127.0.0.1", "--no-dashboard", "--local-directory", str(self.folder / f"worker-{len(self.processes)}"),
            "--resources", "GPU=1",
        )  # fmt: skip

    def engine(self, **options: Any) -> Dask:
        return Dask(client=self._first.connection.client, **options)

    def address(self) -> str:
        return self.url

    def workers(self) -> list[int]:
        return [child.pid for host in self.hosts() for child in psutil.Process(host).children()]

    def hosts(self) -> list[int]:
        return [process.pid for process in self.processes[1:] if process.poll() is None]

    def mend(self) -> None:
        for _ in range(2 - len(self.hosts())):
            self._add_worker()
        self._first.connection.client.wait_for_workers(2, timeout=PATIENCE_S)

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self._first.shutdown()
        super().stop()


# ---- Spark


class SparkCluster(Cluster):
    """One session for all tests; engines take it and leave it."""

    kind = "spark"
    master = ""
    settings = SPARK

    def start(self) -> None:
        os.environ["SPARK_LOCAL_IP"], os.environ["PYSPARK_PYTHON"] = "127.0.0.1", sys.executable
        self._first = Spark(self.master, config=self.settings | self._own_settings())
        self._first.open()

    def _own_settings(self) -> dict[str, str]:
        """A folder, and for executors what `java.py` has said to all other Java by now."""
        return {"spark.local.dir": str(self.folder), "spark.executor.extraJavaOptions": os.environ["SPARK_SUBMIT_OPTS"]}

    def engine(self, **options: Any) -> Spark:
        return Spark(session=self._first.connection.spark, **options)

    def address(self) -> str:
        return self.master

    def stop(self) -> None:
        self._first.shutdown()
        with contextlib.suppress(Exception):
            from pyspark import SparkContext

            SparkContext._gateway.shutdown()
        super().stop()

    def workers(self) -> list[int]:
        """The executors."""
        found = []
        for each in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if "CoarseGrainedExecutorBackend" in " ".join(each.cmdline()):
                    found.append(each.pid)
        return found

    def _await_executors(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self._first.connection.spark.sparkContext._jsc.sc().getExecutorMemoryStatus().size() < 3:
            assert time.monotonic() < deadline, "the executors do not come"
            time.sleep(0.1)


class SparkLocal(SparkCluster):
    """Spark in one JVM, as `engine="spark"` does."""

    master = "local[2]"


class SparkLocalCluster(SparkCluster):
    """A driver and two executors: three JVMs. Each executor has three cores, and two GPUs, as a script claims."""

    master = "local-cluster[2,3,1024]"
    n_gpus = 4
    gpu_ids = frozenset({"3", "5"})

    def start(self) -> None:
        script = self.folder / "find_gpus.sh"
        script.write_text(f"""#!/bin/sh\necho '{{"name": "gpu", "addresses": {json.dumps(sorted(self.gpu_ids))}}}'\n""")
        script.chmod(0o700)
        self.settings = SPARK | {
            "spark.worker.resource.gpu.amount": "2",
            "spark.worker.resource.gpu.discoveryScript": str(script),
            "spark.executor.resource.gpu.amount": "2",
        }
        super().start()
        self._await_executors()

    def mend(self) -> None:
        self._await_executors()  # Spark starts another one itself


class SparkStandalone(SparkCluster):
    """A master and two workers, each a process with an address of its own, from the jars of the wheel.

    What takes long is started once more on the other worker. Spark does so between hosts only: not in its own cluster.
    """

    speculates = True
    settings = SPARK | {
        "spark.speculation": "true",
        "spark.speculation.task.duration.threshold": "2s",
        "spark.speculation.minTaskRuntime": "2s",
    }

    def start(self) -> None:
        import pyspark

        port = free_port()
        self.master = f"spark://127.0.0.1:{port}"
        self._program = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
        master = self._daemon("master.Master", "--host", "127.0.0.1", "--port", str(port))
        await_port(port, master)
        self._workers = [self._worker(1), self._worker(2)]
        super().start()
        self._await_executors()

    def _daemon(self, name: str, *arguments: str) -> "subprocess.Popen[Any]":
        environment = {**os.environ, "SPARK_DAEMON_MEMORY": "256m", "SPARK_LOCAL_IP": "127.0.0.1"}
        return self.run(self._program, f"org.apache.spark.deploy.{name}", *arguments, "--webui-port", "0", env=environment)

    def _worker(self, number: int) -> "subprocess.Popen[Any]":
        place = ["--host", f"127.0.0.{number}", "--work-dir", str(self.folder / f"work-{number}")]
        return self._daemon("worker.Worker", *place, "--cores", "1", "--memory", "1024m", self.master)

    def workers(self) -> list[int]:
        """Each with its executors, as they are lost together with a machine."""
        return [process.pid for process in self._workers]

    def mend(self) -> None:
        gone = [number for number, process in enumerate(self._workers) if process.poll() is not None]
        for number in gone:
            self._workers[number] = self._worker(number + 1)
        self._await_executors()


class SparkConnect(SparkCluster):
    """A Connect server in one JVM; this process has no Java."""

    starts_by_itself = False
    is_connect = True
    beneath = "local[2]"
    _session: Any = None

    def start(self) -> None:
        import pyspark

        port = free_port()
        self.master = f"sc://127.0.0.1:{port}"
        script = Path(pyspark.__file__).parent / "sbin" / "start-connect-server.sh"
        place = {"spark.connect.grpc.binding.address": "127.0.0.1", "spark.connect.grpc.binding.port": str(port)}
        settings = SPARK | self._own_settings() | place
        command = ["bash", str(script), "--wait", "--master", self.beneath]
        for name, value in settings.items():
            command += ["--conf", f"{name}={value}"]
        environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        environment["SPARK_HOME"] = str(Path(pyspark.__file__).parent)
        environment["SPARK_LOG_DIR"] = str(self.folder)
        server = self.run(*command, env=environment)
        await_port(port, server)
        from pyspark.sql import SparkSession

        self._session = SparkSession.builder.remote(self.master).create()  # with the patience that Spark gives it

    def engine(self, **options: Any) -> Spark:
        return Spark(session=self._session, **options)

    def stop(self) -> None:
        if self._session is not None:
            # Whether or not it is there to be told: Spark asks a server that is gone for ten minutes.
            self._session.release_session_on_close = self.processes[0].poll() is None
            self._session.stop()
        Cluster.stop(self)


class SparkConnectCluster(SparkConnect):
    """A Connect server with two executors: three JVMs."""

    beneath = "local-cluster[2,1,1024]"


KINDS: dict[str, Callable[[Path], Cluster]] = {
    "ray": RayHere,
    "ray-two": RayOfTwoMachines,
    "dask": DaskHere,
    "dask-processes": DaskOfProcesses,
    "spark": SparkLocal,
    "spark-local-cluster": SparkLocalCluster,
    "spark-standalone": SparkStandalone,
    "spark-connect": SparkConnect,
    "spark-connect-cluster": SparkConnectCluster,
}
