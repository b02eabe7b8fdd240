"""What a job of Spark died of: one line of the pages that Spark has to say about it."""

import re
import sys

from fourfold.distribute.connection import first_line
from fourfold.errors import EngineError, FourfoldError, VersionMismatch

TRACEBACK = "Traceback (most recent call last):"

LOST_TASK = re.compile(r"Lost task \S+ in stage \S+ \(TID \d+\) \((\S+) executor \S+\): (.*)")
"""How Spark names the attempt because of which it gives a job up: the host, and why. Connect has not always these words."""

OTHER_PYTHON = re.compile(r"PYTHON_VERSION_MISMATCH.*different version: (\S+) than")

MISSING = re.compile(r"^ModuleNotFoundError: No module named '(\w+)")


def cause_of(error: BaseException) -> tuple[str, str]:
    """Why a job failed, in a line, and the host where it did; "" where Spark does not name it.

    The exception of a Python worker comes without the words of Spark about its task: these are what was raised before.
    """
    pages = [str(each) for each in (error, error.__context__) if each is not None]
    lost = next((found for found in map(LOST_TASK.search, pages) if found), None)
    host = lost[1] if lost else ""
    _, found, trace = pages[0].rpartition(TRACEBACK)
    if found:
        ends = [line for line in trace.splitlines() if line and not line[0].isspace()]
        if ends:
            return _short(ends[0]), host
    if lost:
        return _short(lost[2]), host
    causes = re.findall(r"^Caused by: (.*)", pages[0], re.MULTILINE)
    return _short(causes[-1]) if causes else first_line(error), host


def runs_nothing(error: BaseException) -> FourfoldError:
    """The error to raise where Spark cannot run the first task."""
    if isinstance(error, FourfoldError):
        return error
    why, host = cause_of(error)
    on = f" on {host}" if host else ""
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
