"""Run the tests that may have company: of this Python, of the other Pythons that are here, and on clusters, in lanes.

python scripts/run_tests.py               all of them
python scripts/run_tests.py spark 3.12    only these parts, each in a lane of its own

Parts are "here", versions of Python and kinds of cluster. A kind may have words behind a colon, `spark:gpu,machine`: then only
the tests with one of these words in their name. What must be alone is `pytest -m alone`.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from beside import Lanes, Part

ROOT = Path(__file__).parents[1]

HERE = "here"
VERSIONS = ("3.11", "3.12", "3.13")
SPARKS = (
    "spark",
    "spark-connect",
    "spark-standalone:machine,gone",
    "spark-local-cluster:machine,gpu",
    "spark-connect-cluster:machine",
)
OTHER_CLUSTERS = ("ray-two", "dask-processes")

ALIKE = (
    *("cli", "crashes", "demo", "docs", "fault_matrix", "faults", "interrupts", "journal", "leak_check", "memory"),
    *("runs_cli", "seams", "simulated_bugs", "simulation", "storm", "timeouts"),
)
"""Test files about this machine, its processes and its disk, or about decisions without either: one Python is enough."""

SCALE = "3"
"""FOURFOLD_TIME_SCALE of tests that have company: what a bound says is for machines that do nothing else. Smaller: a busy
machine fails them. Larger: what hangs is told later. Not measured."""

PATIENCE_S = 300
"""Seconds of one test on a cluster: some start several, and company may make each start three times as long."""


def main(names: Sequence[str]) -> int:
    """Run the parts with these names, or all; returns the exit code."""
    os.chdir(ROOT)
    os.environ.setdefault("FOURFOLD_TIME_SCALE", SCALE)
    lanes = [[name] for name in names] or all_lanes()
    parts = [[part for name in lane for part in parts_of(name)] for lane in lanes]
    try:
        tests = Lanes(parts)
        tests.run()
        return int(not passes_alone([part for lane in parts for part in lane if part.name in tests.failed]))
    except KeyboardInterrupt:
        print("interrupted, and all parts have ended", file=sys.stderr)
        return 130


def passes_alone(failed: Sequence[Part]) -> bool:
    """Run the tests that failed in company once more, without any; returns whether all of them pass.

    A busy machine can be later than any bound foresees. What fails here, too, fails for another reason.
    """
    if not failed:
        return True
    print(f"failed in company, and run again alone: {', '.join(part.name for part in failed)}", flush=True)
    only = ["--last-failed", "--last-failed-no-failures=none"]
    again = Lanes([[Part(part.name, [*part.command, *only]) for part in failed]])
    again.run()
    print(f"failed: {', '.join(again.failed)}" if again.failed else "failed in company only: what was late stands above")
    return not again.failed


def all_lanes() -> list[list[str]]:
    """All parts, in lanes of about the same length. One has all of Spark: its clusters need the most memory."""
    first, *others = other_versions()
    return [[*SPARKS], [*OTHER_CLUSTERS, *others], [HERE, first]]


def parts_of(name: str) -> list[Part]:
    """The part with this name; none, and a word about it, when what it needs is not here."""
    if name == HERE:
        return [pytest_of(name, ".venv", "-m", "not alone")]
    if name in VERSIONS:
        ignored = [f"--ignore=tests/test_{each}.py" for each in ALIKE]
        return [pytest_of(f"python {name}", f".venv-{name}", "-m", "not slow and not alone", *ignored)] if made(name) else []
    kind, _, words = name.partition(":")
    if kind.startswith("spark") and not java():
        print(f"{kind}: SKIPPED, there is no Java (Debian: apt-get install openjdk-17-jre-headless)")
        return []
    which = ["-k", words.replace(",", " or ")] if words else []
    return [pytest_of(kind, ".venv", "tests_on_clusters", f"--cluster={kind}", f"--timeout={PATIENCE_S}", *which)]


def pytest_of(name: str, venv: str, *arguments: str) -> Part:
    """A part that is a process of pytest: it has one Ray, and one kind of Spark."""
    memory = f"cache_dir=.pytest_cache/{name.replace(' ', '-')}"  # which tests failed, of this part
    return Part(name, [f"{venv}/bin/python", "-m", "pytest", "-q", "-o", memory, *arguments])


def other_versions() -> list[str]:
    """The Pythons that the tests run once more on."""
    return [version for version in VERSIONS if version != "{}.{}".format(*sys.version_info)]


def made(version: str) -> bool:
    """Make the environment of this Python; False when this Python is not here."""
    found = subprocess.run(["scripts/find_python.sh", version], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    if not found:
        print(f"python {version}: not here, skipped")
        return False
    subprocess.run(["make", "--no-print-directory", f".venv-{version}/.test-ready", f"PYTHON={found}"], check=True)
    return True


@functools.cache
def java() -> bool:
    """Whether Java is here, which Spark needs; root of a Debian installs it."""
    if "JAVA_HOME" in os.environ or shutil.which("java"):
        return True
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing Java 17, which Spark needs", flush=True)
        command = ["apt-get", "install", "-qq", "-y", "openjdk-17-jre-headless"]
        quietly = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, stdout=subprocess.DEVNULL, env=quietly, check=False)
    return shutil.which("java") is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
