"""Run the tests that may have company: of this Python, of the other Pythons that are here, and on clusters, in lanes.

python scripts/run_tests.py               all of them
python scripts/run_tests.py ray 3.12      only these parts, each in a lane of its own; those of Spark share one

Parts are "here", "torch", versions of Python and kinds of cluster. A kind may have words behind a colon, `spark:gpu,machine`:
then only the tests with one of these words in their name. What must be alone is `pytest -m alone`.

What a part needs is installed before it in its lane, where it is missing: an environment of another Python, and Java. With
"prepare", which any Python of 3.11 or newer can run, all of that is installed beside `make check`, and nothing is tested.
"""

import collections
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from again import is_tidy, memory_of, passes_alone
from beside import Lanes, Part

ROOT = Path(__file__).parents[1]

HERE = "here"
SHARES = {
    f"{HERE} s-z": ("--ignore=src", "--ignore-glob=tests/test_[!s-z]*"),
    f"{HERE} m-r": ("--ignore=src", "--ignore-glob=tests/test_[!m-r]*"),
    f"{HERE} a-e": ("--ignore=src", "--ignore-glob=tests/test_[!a-e]*"),
    f"{HERE} f-h": ("--ignore=src", "--ignore-glob=tests/test_[!f-h]*"),
    f"{HERE} i-l": ("--ignore-glob=tests/test_[!i-l]*",),
}
"""The tests of this Python cost as much as those of three kinds of clusters. So they are parts of about the same length, by
the letters that their files begin with; what the package itself has is in the last one. None of these words is a path: what
was late is added to them to run again, and all in that path would, too."""

TORCH = "torch"
TORCH_VERSION = "torch==2.13.0"
TORCH_NAME = "FOURFOLD_TEST_TORCH"
"""Set to 1, torch is installed wherever it comes from. Else only where pip finds a file of it on this machine: what comes from
elsewhere may be a build for GPUs, of several GB."""

PREPARE = "prepare"
VERSIONS = ("3.11", "3.12", "3.13")
SPARKS = (
    "spark",
    "spark-connect",
    "spark-standalone:costs_no,another_machine,gone",
    "spark-local-cluster:gpu",
    "spark-connect-cluster:costs_no_item",
)
"""Connect is another door to the engine that the first kind tests: of the contract, whose cases are about how items are
divided, it runs one case of each test, and nothing of what is OTHER_SIDE of that door."""

OTHER_SIDE = ("search", "tables")
"""Test files about what becomes of items on workers, which do not know by which door these came. What frames do is on both
sides: each door has frames of its own."""

OF_SEVERAL = SPARKS[2:]
OTHER_CLUSTERS = ("ray-two", "dask-processes")

OF_ANY_KIND = OTHER_CLUSTERS[0]
"""The kind that tests run on which any kind can run, `@pytest.mark.of_any_kind`: what they show happens in pieces, on workers,
and how pieces come there is in the contract, which all kinds run. Of all it needs the least processor time for them."""

N_LANES = 6
"""More than cores, as a part often waits for something. Fewer: cores wait, too. More: more tests are late, and all need
memory. Not measured by itself."""

ALIKE = (
    *("beside", "contracts", "crashes", "demo", "docs", "each_write", "fault_matrix", "faults", "file_systems", "house"),
    *("kept", "kills", "leak_check", "memory", "replacing", "runs_cli", "s3", "schedule", "seams", "simulated_bugs"),
    *("simulation", "storage_cli", "stores", "storm", "tables_cli", "timeouts"),
    *("dask", "devices", "launch", "spark", "staying", "torch"),
    *("batch_size", "bundles", "composed", "csv", "describe", "orders_of_files", "partitions", "pushdown", "schema"),
    *("fit_cli", "fit_frames", "fit_groups", "fit_told", "frame_pass", "group_frames", "group_models", "kept_rows"),
    *("logistic", "logistic_newton", "logistic_sklearn", "models", "sparse", "table_runs"),
    *("recipes", "recipes_bins", "recipes_categories", "recipes_each", "recipes_kmeans", "recipes_of_numbers"),
    *("recipes_of_small_numbers", "recipes_on_workers", "recipes_quantiles", "recipes_refuse", "recipes_target_encoding"),
    *("recipes_texts", "asha", "optimize_asha", "optimize_faults", "optimize_line", "optimize_mistakes", "optimize_runs"),
    *("optimize_studies", "rungs", "search_datasets", "search_failures", "search_passes", "search_prefixes"),
    *("search_proposals", "tune_cli"),
)
"""Test files about this machine, its processes and its disk, about decisions without either, about the source as text, about
engines of clusters, which one Python tests, about what other libraries make of tables, for which `dataset`, `fit`, `scan`,
`predict` and `write` stand, or about searches, for which `optimize` and `search` stand: one Python is enough."""

DIFFERENT = ("errors", "exit", "fingerprint", "forward", "imports", "pickling", "processes", "segments", "shield", "threads")
"""Test files about what Python itself does, and does differently from version to version: how it pickles, compiles, imports,
starts and ends processes, and hears signals. The oldest and the newest Python run each case of theirs, and one case of each
other test: all code runs there once, and what one more case would say is not about Python. What both of them do, one that is
between them does, too: it runs one case of each test of these files."""

SCALE_NAME = "FOURFOLD_TIME_SCALE"

SCALE = "3"
"""FOURFOLD_TIME_SCALE of tests that have company: what a bound says is for machines that do nothing else. Smaller: a busy
machine fails them. Larger: what hangs is told later. Not measured. Who needed it runs again alone, without."""

PATIENCE_S = 300
"""Seconds of one test on a cluster: some start several, and company may make each start three times as long."""


def main(names: Sequence[str]) -> int:
    """Run the parts with these names, or all; returns the exit code."""
    os.chdir(ROOT)
    scale_alone = os.environ.get(SCALE_NAME, "1")
    os.environ.setdefault(SCALE_NAME, SCALE)
    try:
        tests = Lanes(preparations() if names == [PREPARE] else [lane(each) for each in lanes_of(names)])
        tests.run()
        os.environ[SCALE_NAME] = scale_alone
        return int(not (passes_alone(tests) and is_tidy(tests.untidy)))
    except KeyboardInterrupt:
        print("interrupted, and all parts have ended", file=sys.stderr)
        return 130


# ---- lanes


def preparations() -> list[Iterable[Part]]:
    """The check, which first makes the environment of this Python, and beside it what the lanes will need later."""
    environments = itertools.chain.from_iterable(map(environment_of, other_versions()))
    return [[Part("check", ["make", "--no-print-directory", "check"])], environments, java()]


def lanes_of(names: Sequence[str]) -> list[Iterable[str]]:
    """These parts, each in a lane of its own, but those of Spark in one; without names, all parts.

    Then a lane takes what waits when it has ended what it had, so that all end at about the same time. Clusters of several
    Java processes are in one lane: they need the most memory.
    """
    if not names:
        waiting = collections.deque(each for each in all_parts() if each not in OF_SEVERAL)
        first = itertools.chain(OF_SEVERAL, taken_from(waiting))
        return [first, *(taken_from(waiting) for _ in range(N_LANES - 1))]
    names = [part for name in names for part in (SHARES if name == HERE else [name])]
    sparks = [name for name in names if is_spark(name)]
    return [*([sparks] if sparks else []), *([name] for name in names if not is_spark(name))]


def all_parts() -> list[str]:
    """All parts, the longest first: what is short fills the end."""
    ray, dask = OTHER_CLUSTERS
    spark, connect, *of_several = SPARKS
    longest, long, *others = SHARES
    return [*of_several, spark, ray, longest, dask, connect, long, *others, *reversed(other_versions()), TORCH]


def taken_from(waiting: "collections.deque[str]") -> Iterator[str]:
    """What waits, until others have taken it."""
    with contextlib.suppress(IndexError):
        while True:
            yield waiting.popleft()


def lane(names: Iterable[str]) -> Iterator[Part]:
    """The parts with these names, each behind what it needs; a word about it when that cannot be had."""
    for name in names:
        yield from parts_on_spark(name) if is_spark(name) else parts_of(name)


def is_spark(name: str) -> bool:
    return name.startswith("spark")


def parts_of(name: str) -> Iterator[Part]:
    """The part with this name. Another Python gets its environment first; it is named and left out when it is not here."""
    if name == TORCH:
        yield from parts_with_torch()
    elif name in SHARES:
        yield pytest_of(name, ".venv", "-m", "not alone", *SHARES[name])
    elif name in VERSIONS:
        found = [*environment_of(name)]
        if not found:
            print(f"python {name}: SKIPPED, it is not here")
        yield from found
        if found and ready(name).exists():  # else that part has failed
            yield pytest_of(f"python {name}", f".venv-{name}", "-m", "not slow and not alone", *tests_of(name))
    else:
        kind, _, words = name.partition(":")
        which = ["-k", words.replace(",", " or ")] if words else []
        if kind == SPARKS[1]:
            which += ["--one-case-of=contract", *(f"--ignore=tests_on_clusters/test_{each}.py" for each in OTHER_SIDE)]
        which += ["-m", "not of_any_kind"] if kind != OF_ANY_KIND else []
        yield pytest_of(kind, ".venv", "tests_on_clusters", f"--cluster={kind}", f"--timeout={PATIENCE_S}", *which)


def tests_of(version: str) -> list[str]:
    """The words for pytest by which another Python gets its tests. All those of a file are `--ignore`: see SHARES."""
    if is_between(version):
        return ["--one-case-but-of=", "--ignore=src", *(f"--ignore={path}" for path in other_files(DIFFERENT))]
    return [f"--one-case-but-of={','.join(DIFFERENT)}", *(f"--ignore=tests/test_{each}.py" for each in ALIKE)]


def is_between(version: str) -> bool:
    """Whether the tests run on an older Python, and on a newer one."""
    tested = [each for each in VERSIONS if each == this_version() or found_python(each)]
    return version not in (tested[0], tested[-1])


def other_files(names: Sequence[str]) -> list[str]:
    """All test files but those with these names."""
    return sorted(
        f"tests/{path.name}" for path in Path("tests").glob("test_*.py") if path.stem.removeprefix("test_") not in names
    )


def parts_with_torch() -> Iterator[Part]:
    """The tests that need the real torch, in an environment with it; a word about it where it is not at hand."""
    if not is_torch_at_hand():
        print(f"{TORCH}: SKIPPED, pip finds no file of {TORCH_VERSION} on this machine ({TORCH_NAME}=1 downloads it)")
        return
    stamp = ready(TORCH)
    make = ["make", "--no-print-directory", str(stamp), f"PYTHON={sys.executable}", f"TORCH={TORCH_VERSION}"]
    yield Part("environment with torch", make)
    if stamp.exists():  # else that part has failed
        yield pytest_of(TORCH, str(stamp.parent), "tests/test_torch.py", "-m", TORCH)


def is_torch_at_hand() -> bool:
    """Whether torch can be installed without a large download: it is asked for where pip asks no index."""
    if os.environ.get(TORCH_NAME) == "1" or ready(TORCH).exists():
        return True
    options = ["--dry-run", "--no-deps", "--no-index", "--ignore-installed", "--disable-pip-version-check", "--report", "-"]
    command = [sys.executable, "-m", "pip", "install", "-qq", *options, TORCH_VERSION]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    if found.returncode:
        return False
    return all(each["download_info"]["url"].startswith("file:") for each in json.loads(found.stdout)["install"])


def environment_of(version: str) -> Iterator[Part]:
    """What makes the environment of this Python where there is none; nothing where this Python is not here."""
    found = found_python(version)
    if found:
        make = ["make", "--no-print-directory", str(ready(version)), f"PYTHON={found}"]
        yield Part(f"environment of Python {version}", make)


def found_python(version: str) -> str:
    """Where this Python is; "" when it is not here."""
    find = ["scripts/find_python.sh", version]
    return subprocess.run(find, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def ready(version: str) -> Path:
    """The stamp of an environment, which the Makefile makes."""
    return Path(f".venv-{version}/.test-ready")


def parts_on_spark(kind: str) -> Iterator[Part]:
    """The part of this kind of Spark, behind Java."""
    yield from java()
    if is_java_here():
        yield from parts_of(kind)
    else:
        print(f"{kind}: SKIPPED, there is no Java (Debian: apt-get install openjdk-17-jre-headless)")


def java() -> Iterator[Part]:
    """What installs Java where there is none: root of a Debian may do that."""
    if not is_java_here() and os.geteuid() == 0 and shutil.which("apt-get"):
        install = "apt-get -o DPkg::Lock::Timeout=120 install -qq -y openjdk-17-jre-headless >/dev/null"
        command = f"DEBIAN_FRONTEND=noninteractive {install} || echo 'it cannot be installed'"
        yield Part("Java 17, which Spark needs", ["sh", "-c", command])


def is_java_here() -> bool:
    return "JAVA_HOME" in os.environ or shutil.which("java") is not None


def pytest_of(name: str, venv: str, *arguments: str) -> Part:
    """A part that is a process of pytest: it has one Ray, and one kind of Spark. What fails in it can be run again."""
    shutil.rmtree(memory_of(name), ignore_errors=True)  # of an earlier run: those who failed then are not those who failed now
    command = [f"{venv}/bin/python", "-m", "pytest", "-q", "-o", f"cache_dir={memory_of(name)}", *arguments]
    return Part(name, command, again=["--last-failed", "--last-failed-no-failures=none"])


def other_versions() -> list[str]:
    """The Pythons that the tests run once more on."""
    return [version for version in VERSIONS if version != this_version()]


def this_version() -> str:
    return "{}.{}".format(*sys.version_info)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
