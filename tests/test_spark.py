"""The engine on Spark, without Spark: when a cluster counts as gone, and what its pages of errors come down to."""

import socket
import types
from collections.abc import Iterator

import pytest

from fourfold.distribute.connection import PROBE_S
from fourfold.distribute.engines.on_spark import pulse as pulse_module
from fourfold.distribute.engines.on_spark.causes import cause_of, runs_nothing
from fourfold.distribute.engines.on_spark.pulse import SILENT_S, Pulse
from fourfold.distribute.engines.on_spark.session import Session
from fourfold.errors import EngineError, VersionMismatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pulse_module, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


class Staff:
    """Executors, at so many places."""

    def __init__(self, *places: str) -> None:
        self.where = list(places)

    def count(self) -> int:
        return len(self.where)

    def places(self, most: int) -> list[str]:
        return self.where[:most]


def test_a_cluster_at_which_nobody_listens_is_gone_after_a_while(
    clock: types.SimpleNamespace, listener: socket.socket
) -> None:
    pulse = Pulse(f"spark://{address_of(listener)}", Staff())
    assert pulse.look() == ""
    listener.close()
    clock.now += SILENT_S / 2
    assert pulse.look() == ""  # it may be about to start again
    clock.now += SILENT_S / 2
    assert pulse.look().startswith("nobody listens at spark://127.0.0.1:")


def test_executors_that_listen_go_on_without_their_master(clock: types.SimpleNamespace, listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as executor:
        pulse = Pulse(f"spark://{address_of(listener)}", Staff("127.0.0.1:1", address_of(executor)))
        listener.close()
        for _ in range(10):
            clock.now += SILENT_S
            assert pulse.look() == ""
    clock.now += SILENT_S
    assert pulse.look() != ""  # Spark believes in them still


def test_a_cluster_that_has_no_executor_is_of_no_use_after_a_longer_while(clock: types.SimpleNamespace) -> None:
    staff = Staff("127.0.0.1:1")
    pulse = Pulse("", staff)
    clock.now += 2 * PROBE_S
    assert pulse.look() == ""
    staff.where.clear()
    clock.now += PROBE_S / 2
    assert pulse.look() == ""
    clock.now += PROBE_S / 2
    assert pulse.look() == f"it has had no executor for {PROBE_S:.0f} s"


def test_what_was_missed_while_nothing_ran_was_not_missed(clock: types.SimpleNamespace, listener: socket.socket) -> None:
    pulse = Pulse(f"sc://{address_of(listener)}", None)
    listener.close()
    for _ in range(5):
        clock.now += SILENT_S
        pulse.beat()
        assert pulse.look() == ""


def test_an_address_that_never_listened_is_not_looked_at(clock: types.SimpleNamespace) -> None:
    """Behind a proxy, or with a channel of its own, Connect reaches what nobody here can."""
    pulse = Pulse("sc://127.0.0.1:1", None)
    clock.now += 10 * SILENT_S
    assert pulse.look() == ""


# ---- what Spark 4.3 says, shortened

OTHER_PYTHON = """
  An exception was thrown from the Python worker. Please see the stack trace below.
[PYTHON_EXCEPTION] An exception was thrown from the Python worker: Traceback (most recent call last):
  File "/spark/python/lib/pyspark.zip/pyspark/worker.py", line 4174, in invoke_udf
    check_python_version(init_info.python_version)
pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.8 \
than that in driver: 3.11, PySpark cannot run with different minor versions.
Please check environment variables PYSPARK_PYTHON and PYSPARK_DRIVER_PYTHON are correctly set.
 SQLSTATE: 38000"""

NO_ARROW = """An exception was thrown from the Python worker:
Traceback (most recent call last):
  File "/spark/python/lib/pyspark.zip/pyspark/worker.py", line 4207, in invoke_udf
    func, profiler, deserializer, serializer = read_udfs(
                                               ^^^^^^^^^^
  File "/spark/python/lib/pyspark.zip/pyspark/worker.py", line 1920, in read_udfs
    import pyarrow as pa
ModuleNotFoundError: No module named 'pyarrow'"""

NO_PYTHON = """Job aborted due to stage failure: Task 0 in stage 0.0 failed 1 times, most recent failure: \
Lost task 0.0 in stage 0.0 (TID 0) (node-7 executor 3): java.io.IOException: Cannot run program "/nowhere/python": error=2
	at java.base/java.lang.ProcessBuilder.start(ProcessBuilder.java:1143)
Caused by: java.io.IOException: error=2, No such file or directory

Driver stacktrace:"""

NO_DAEMON = """An error occurred while calling o177.getResult.
: org.apache.spark.SparkException: Exception thrown in awaitResult:
	at org.apache.spark.util.SparkThreadUtils$.awaitResult(SparkThreadUtils.scala:70)
Caused by: org.apache.spark.SparkException: EOFException occurred while reading the port number from pyspark.daemon's stdout."""


@pytest.mark.parametrize(
    ("page", "cause", "host"),
    [
        (NO_ARROW, "ModuleNotFoundError: No module named 'pyarrow'", ""),
        (NO_PYTHON, 'IOException: Cannot run program "/nowhere/python": error=2', "node-7"),
        (NO_DAEMON, "SparkException: EOFException occurred while reading the port number from pyspark.daemon's stdout.", ""),
        ("all is lost\nand more", "ValueError: all is lost", ""),
    ],
)
def test_a_page_of_spark_comes_down_to_its_cause(page: str, cause: str, host: str) -> None:
    assert cause_of(ValueError(page)) == (cause, host)


def test_what_the_workers_lack_is_named_with_their_host() -> None:
    refused = runs_nothing(ValueError(OTHER_PYTHON), "node-7")
    assert isinstance(refused, VersionMismatch)
    assert str(refused).startswith("the Spark executors run Python 3.8 on node-7 and this is Python 3.")
    refused = runs_nothing(ValueError(NO_ARROW), "")
    assert isinstance(refused, EngineError)
    assert str(refused).startswith(
        "the Python of the Spark executors has no pyarrow, without which Spark runs no task: install"
    )
    assert str(runs_nothing(ValueError(NO_PYTHON), "")).startswith("Spark runs no task on node-7: IOException: Cannot run")


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = EngineError("Spark has begun no task")
    assert runs_nothing(error, "") is error


class Stopped:
    """A session that somebody stops while its job runs: then it has no tags either."""

    def __init__(self) -> None:
        self.sparkContext = self

    def addJobTag(self, tag: str) -> None:
        """It is there still."""

    def removeJobTag(self, tag: str) -> None:
        raise AttributeError("'NoneType' object has no attribute 'removeJobTag'")

    def range(self, *given: int, numPartitions: int) -> None:
        raise RuntimeError("Job 3 cancelled because SparkContext was shut down")


def test_why_a_job_failed_is_told_also_where_its_session_was_stopped() -> None:
    session = Session("local[1]", None, None, (), None)
    session.spark, session._is_remote = Stopped(), False
    with pytest.raises(RuntimeError, match="SparkContext was shut down"):
        session.run_barrier_job("tag", None, 1)
