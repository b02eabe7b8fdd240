"""What a job of Spark died of: one line of the pages that Spark has to say about it."""

import re
import sys

from fourfold.distribute.connection import first_line
from fourfold.errors import EngineError, FourfoldError, VersionMismatch

TRACEBACK = "Traceback (most recent call last):"

LOST_TASK = re.compile(r"Lost task \S+ in stage \S+ \(TID \d+\) \((\S+) executor \S+\): (.*)")
"""How Spark names the attempt because of which it gives a job up: the host, and why. Not when a Python worker has raised."""

OTHER_PYTHON = re.compile(r"PYTHON_VERSION_MISMATCH.*different version: (\S+) than")

MISSING = re.compile(r"^ModuleNotFoundError: No module named '(\w+)")


def cause_of(error: BaseException) -> tuple[str, str]:
    """Why a job failed, in a line, and the host where it did; "" where the error does not name it."""
    page = str(error)
    _, found, trace = page.rpartition(TRACEBACK)
    ends = [line for line in trace.splitlines() if line and not line[0].isspace()] if found else []
    if ends:
        return _short(ends[0]), ""
    if lost := LOST_TASK.search(page):
        return _short(lost[2]), lost[1]
    causes = re.findall(r"^Caused by: (.*)", page, re.MULTILINE)
    return _short(causes[-1]) if causes else first_line(error), ""


def runs_nothing(error: BaseException, host: str) -> FourfoldError:
    """The error to raise where Spark cannot run the first task; `host`: where that was, "" when nobody says."""
    if isinstance(error, FourfoldError):
        return error
    why, where = cause_of(error)
    on = f" on {where or host}" if where or host else ""
    if other := OTHER_PYTHON.search(why):
        ours = ".".join(map(str, sys.version_info[:2]))
        return VersionMismatch(
            f"the Spark executors run Python {other[1]}{on} and this is Python {ours}: functions travel between equal minor "
            "versions only. Start them with the Python of this environment (PYSPARK_PYTHON, or spark.pyspark.python)"
        )
    if missing := MISSING.match(why):
        return EngineError(
            f"the Python of the Spark executors{on} has no {missing[1]}, without which Spark runs no task: install it there, "
            "or start them with another Python (PYSPARK_PYTHON, or spark.pyspark.python)"
        )
    return EngineError(f"Spark runs no task{on}: {why}")


def _short(line: str) -> str:
    """Without the packages of classes, of Java or Python."""
    return re.sub(r"^(?:[a-z_]\w*\.)+(?=[A-Z])", "", line.strip())[:500]
