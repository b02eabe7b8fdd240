"""Java for clusters that live for minutes, and of which a test run starts dozens.

With a local session on two cores, a start and five jobs cost 27 s of processor time with Java's own options, and 15 s when it
compiles once; a start and one job cost 11 s then, and 6 s when it also has its classes from an archive.
"""

import os
import subprocess
import sys
from pathlib import Path

COMPILES_ONCE = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xlog:disable"
"""Without a word about an archive that does not fit, which is then not used: a script's output is looked at."""

PATIENCE_S = 300
"""Seconds until the archive is given up: it takes one start of Spark, and some ten seconds more."""

JOB = """
from pyspark import SparkContext
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
assert spark.sparkContext.parallelize(range(8), 2).map(lambda x: x + 1).collect() == list(range(1, 9))
assert spark.range(8).count() == 8
java = SparkContext._gateway.proc
spark.stop()
SparkContext._gateway.shutdown()
java.stdin.close()  # it ends, and writes down which classes it had
java.wait()
"""


def variables() -> dict[str, str]:
    """Variables by which Spark hears of the options: in drivers and servers, and in masters and workers."""
    text = options()
    return {"SPARK_SUBMIT_OPTS": text, "SPARK_DAEMON_JAVA_OPTS": text}


def options() -> str:
    """The options of Java; the first time in an environment, the archive is made."""
    import pyspark

    archive = Path(sys.prefix) / f"spark-{pyspark.__version__}.jsa"
    if not archive.exists():
        make(archive)
    return f"{COMPILES_ONCE} -XX:SharedArchiveFile={archive}" if archive.exists() else COMPILES_ONCE


def make(archive: Path) -> None:
    """Write the classes of a small job into an archive. Without it, all runs as well, and starts later."""
    fresh = archive.with_suffix(f".{os.getpid()}")
    variables = {"SPARK_SUBMIT_OPTS": f"{COMPILES_ONCE} -XX:ArchiveClassesAtExit={fresh}", "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [sys.executable, "-c", JOB]
    try:
        subprocess.run(command, env={**os.environ, **variables}, capture_output=True, timeout=PATIENCE_S, check=True)
        fresh.rename(archive)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"no archive of the classes of Spark: {error}", file=sys.stderr)
    finally:
        fresh.unlink(missing_ok=True)
