"""What each engine costs on this machine, as the table in docs/engines.md.

python scripts/measure_engines.py [processes ray dask spark connect]

Each is started by the call, except the server of Spark Connect: it is up already.
"""

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fourfold as ff

ENGINES = ("processes", "ray", "dask", "spark", "connect")
MIB = 1 << 20

LIMIT_S = 60.0
"""Seconds after which what is waited for does not come."""


def took_s(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(engine: str) -> None:
    """Print one figure per line. In a process of its own: the first call is the first of that process."""

    def run(fn: Callable[[Any], Any], items: Any, **options: Any) -> Any:
        return ff.map(fn, items, engine=engine, workers=2, progress=False, **options)

    say("the first call of a process", took_s(lambda: run(abs, [1])))
    say("a later call of one item", statistics.median(took_s(lambda: run(abs, [1])) for _ in range(10)))
    few, many = (min(took_s(lambda n=count: run(abs, range(n), chunk=1)) for _ in range(3)) for count in (4, 68))
    say("a chunk more, two workers", (many - few) / 64)
    late_s = took_s(lambda: run(time.sleep, [60], timeout=1, on_error="collect"))
    say("from an item's time-out to its failure", late_s - 1)
    say("from `close()` of a stream to the end of the item that runs", close_s(engine))
    shared = np.zeros(128 * MIB // 8)
    say("a call of 8 items that share 128 MiB", took_s(lambda: run(lambda item: shared[item], range(8))))
    say("... again, with the same object", took_s(lambda: run(lambda item: shared[item], range(8))))
    say("64 MiB back from one item", took_s(lambda: run(lambda item: np.zeros(64 * MIB // 8), [1])))


def close_s(engine: str) -> float:
    """Seconds until the process that runs the item is gone."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "pid")

        def fn(item: int) -> int:
            if item:
                note.write_text(str(os.getpid()))
                time.sleep(60)
            return item

        stream = ff.imap(fn, range(2), engine=engine, workers=2, chunk=1, progress=False)
        next(stream)
        until(lambda: note.exists() and note.read_text())
        begin = time.perf_counter()
        stream.close()
        until(lambda: not Path("/proc", note.read_text()).exists())
        return time.perf_counter() - begin


def until(is_true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"waited in vain for {LIMIT_S:.0f} s"
        time.sleep(0.001)


def say(what: str, seconds: float) -> None:
    print(f"{what}\t{seconds * 1000:.3g} ms" if seconds < 1 else f"{what}\t{seconds:.3g} s", flush=True)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def connect_server() -> Iterator[str]:
    """Starts a server of Spark Connect for two tasks at once; gives its address."""
    import pyspark

    home = Path(str(pyspark.__file__)).parent
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = ["bash", str(home / "sbin" / "start-connect-server.sh"), "--wait", "--master", "local[2]"]
        for setting in (
            "spark.connect.grpc.binding.address=127.0.0.1",
            f"spark.connect.grpc.binding.port={port}",
            "spark.ui.enabled=false",
            "spark.python.task.killTimeout=200ms",
        ):
            command += ["--conf", setting]
        places = {"SPARK_HOME": str(home), "SPARK_LOG_DIR": folder, "PYSPARK_PYTHON": sys.executable}
        environment = {**os.environ, **places, "SPARK_LOCAL_IP": "127.0.0.1"}
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            until(lambda: listens(port) or server.poll() is not None)
            assert server.poll() is None, "the Connect server did not start"
            yield f"sc://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def measured(engine: str) -> str:
    """What a process of its own says of an engine."""
    with connect_server() if engine == "connect" else contextlib.nullcontext(engine) as address:
        command = [sys.executable, __file__, "one", address]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main(engines: list[str]) -> None:
    """Measure each engine, and print the table."""
    figures: dict[str, dict[str, str]] = {}
    for engine in engines:
        for line in measured(engine).splitlines():
            what, _, figure = line.partition("\t")
            if figure:
                figures.setdefault(what, {})[engine] = figure
    print("| | " + " | ".join(engines) + " |")
    print("|---|" + "---|" * len(engines))
    for what, by_engine in figures.items():
        print(f"| {what} | " + " | ".join(by_engine.get(engine, "") for engine in engines) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        measure(sys.argv[2])
    else:
        main(sys.argv[1:] or [*ENGINES])
