"""The fault matrix: what goes wrong, what must come of it, and within which time.

A test says which rows it is for: `@pytest.mark.fault("F3")`, and how often it makes the fault: `@pytest.mark.fault("F5", faults=40)`.
It must be over within the bound of the row for each of them. From all this, `scripts/write_faults.py` makes `docs/faults.md`.
"""

from typing import NamedTuple

import pytest

MARK = "fault"


class Row(NamedTuple):
    """One row of the matrix.

    Attributes:
        number: Its name: "F3".
        fault: What goes wrong.
        outcome: What must come of it.
        bound_s: Seconds in which a test of one such fault must be over, with the script that it may start, on a machine that
            does nothing else; None when nothing can hang.
    """

    number: str
    fault: str
    outcome: str
    bound_s: float | None = None


WORKERS = "Workers that die or misbehave"
DATA = "Data"
DRIVER = "The driver, signals, and what the machine has too little of"

TABLE: dict[str, list[Row]] = {
    WORKERS: [
        Row("F1", "an item raises", "its own exception, with index and traceback; the others keep their values", 1),
        Row("F2", "an item calls `sys.exit`", "a failure of that item, and the worker lives on", 1),
        Row("F3", "an item calls `os._exit`", "`WorkerLost` with the exit code, for that item alone", 5),
        Row("F4", "C code calls `exit(0)`", "`WorkerLost`: code 0 is a death like any other", 5),
        Row("F5", "a worker is killed, by itself or an outsider", "the signal is named; an outsider's kill blames nobody", 5),
        Row("F6", "a segmentation fault", "SIGSEGV is named, and the Python line that led there", 5),
        Row("F7", "abort, bus error, a stack that overflows in C", "the signal is named; `RecursionError` is an ordinary failure", 5),
        Row("F8", "a worker dies in the middle of a message", "no deadlock, no half message; the item on it is named", 5),
        Row("F9", "a worker dies while it pickles or unpickles", "the item is named; a result that kills who unpickles it kills the driver", 5),
        Row("F10", "a worker dies between items, or in a destructor", "nothing is lost and nobody is blamed", 5),
        Row("F11", "workers kill each other", "the run ends, every item has one outcome", 20),
        Row("F12", "idle workers are killed between calls", "the next call works", 2),
        Row("F13", "items that always kill their worker", "they are named, all others keep their values", 10),
        Row("F14", "an item kills its worker once", "it runs again and succeeds", 5),
        Row("F15", "every item kills its worker", "the run ends with one error that has the last cause", 10),
        Row("F16", "workers cannot start", "fewer workers, or one error that says why", 5),
        Row("F17", "the function cannot be built: raises, dies, hangs", "one error; a hang is told", 5),
        Row("F18", "an item hangs, in Python or in C", "`timeout=` stops that item alone; without it a stall is told", 3),
        Row("F19", "a worker is frozen and thawed", "it counts as hanging only under `timeout=`, and gives no second result", 3),
        Row("F20", "an item leaves processes behind", "they end with their worker", 2),
        Row("F21", "memory runs out", "`MemoryError` or `OutOfMemory` of that item; fewer items run at once", 10),
        Row("F22", "a worker grows and grows", "it is replaced between chunks, no item is lost"),
        Row("F23", "an item writes into descriptors or closes them", "its own death at worst, and no damage to others", 5),
        Row("F24", "an item changes its process: folder, environment, signals", "the next call finds the driver's state; what stays within a call is documented", 5),
        Row("F25", "an item forks, and the child comes back", "one result; the child ends in silence", 5),
        Row("F26", "an item uses fourfold, multiprocessing or joblib", "it works, and does not multiply threads or processes", 20),
        Row("F27", "an item has signal handlers or raises `KeyboardInterrupt`", "a failure of that item, unless the driver was interrupted", 5),
    ],
    DATA: [
        Row("F30", "functions, items, results, exceptions that cannot be pickled", "one failure that names the path inside the object", 5),
        Row("F31", "pickling fails late, or a hundred times in a row", "those fail, the others come, nothing stalls", 5),
        Row("F32", "payloads of no bytes, more than a pipe, hundreds of megabytes, more than memory", "they arrive, or one clear error", 20),
        Row("F33", "exceptions with odd constructors, huge, self-referential, not Unicode", "the item's failure, with class and message", 5),
        Row("F34", "items whose `==`, `hash`, `repr`, `len`, `bool` raise", "none of these is ever needed", 5),
        Row("F35", "a source that is endless, raises, changes or lies about its length", "what the loop gives, or the source's own exception", 5),
        Row("F36", "no item, one, fewer than workers, a million", "the loop's answer", 20),
        Row("F37", "equal items, NaN, unhashable items", "told apart by their place", 5),
        Row("F38", "a result that is the item itself, or a view of it", "a value of its own, as after a copy", 5),
    ],
    DRIVER: [
        Row("F40", "Ctrl-C at any moment", "`KeyboardInterrupt` after a short grace; nothing and nobody is left behind", 5),
        Row("F41", "a second Ctrl-C, SIGTERM, SIGHUP, a reader that leaves", "the usual exit codes, one line", 5),
        Row("F42", "the driver is killed", "its workers end with it, and what was recorded is whole", 2),
        Row("F43", "the driver is stopped and continued", "it goes on", 10),
        Row("F44", "the driver forks with workers alive", "the child has workers of its own", 5),
        Row("F45", "the program ends in the middle", "quietly, and at once", 5),
        Row("F46", "several threads, or asyncio, call at once", "each gets its own answer", 20),
        Row("F47", "few open files or processes, no room in /dev/shm, no TMPDIR", "slower, or one clear error", 10),
        Row("F48", "the journal: full disk, damage, links, two drivers, a folder that is gone", "one error that says which file; what was recorded is safe", 5),
        Row("F49", "system calls are interrupted all the time", "the same answer", 20),
        Row("F50", "the process that starts workers is killed", "another one takes its place", 5),
        Row("F51", "numerical libraries and locks in use when workers start", "no deadlock", 10),
        Row("F52", "the machine has more cores than this process may use", "as many workers as it may use"),
        Row("F53", "the N-th system call of fourfold's own fails", "the answer, or one documented error; nothing is left behind", 10),
    ],
}  # fmt: skip

ROWS = {row.number: row for rows in TABLE.values() for row in rows}


def rows_of(item: pytest.Item) -> dict[str, int]:
    """The numbers of the rows that a test is marked with, each with how many such faults it makes, one after the other."""
    marks = [*item.iter_markers(MARK)][::-1]  # that of the test itself says more than that of its file
    return {number: mark.kwargs.get("faults", 1) for mark in marks for number in mark.args}


def bound_of(item: pytest.Item) -> float | None:
    """Seconds in which a test must be over, by its rows; None when nothing can hang, or it is no test of a fault."""
    bounds = [ROWS[number].bound_s for number in rows_of(item)]
    if not bounds or None in bounds:
        return None
    return max((ROWS[number].bound_s or 0.0) * n_faults for number, n_faults in rows_of(item).items())


class Case(NamedTuple):
    """What became of one test with one set of parameters."""

    rows: dict[str, int]
    """Its rows, and how often it makes the fault of each."""
    test: str
    """tests/test_crashes.py::test_x, without parameters."""
    outcome: str
    """"passed", "failed", "skipped", or "" when it was only collected."""
    elapsed_s: float
    """Of the test itself, without its fixtures."""


def test_of(nodeid: str) -> str:
    """The name of a test without its parameters."""
    return nodeid.partition("[")[0]


class Recorder:
    """A plugin of pytest that keeps what became of the marked tests."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.cases[item.nodeid] = Case(rows_of(item), test_of(item.nodeid), "", 0.0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = self.cases[report.nodeid]
        outcome = case.outcome if case.outcome == "failed" else report.outcome
        if report.when == "teardown" and report.outcome == "passed":
            outcome = case.outcome
        elapsed_s = report.duration if report.when == "call" else case.elapsed_s
        self.cases[report.nodeid] = case._replace(outcome=outcome, elapsed_s=elapsed_s)


HEAD = """# Faults, and what comes of them

Written by `scripts/write_faults.py` from a run of the tests: a row stands here with the tests that make its fault happen for
real, and with what they gave. Bounds hold on a machine that does nothing else; a slower one sets FOURFOLD_TIME_SCALE, and
where others compute too, the tests allow for that. A bound is for
one fault, and a test that takes longer fails; where a test makes the fault again and again, its time is given "for n faults".

There is one way in which workers start, so no row is tested under several start methods. What `multiprocessing` calls "spawn" (a
new interpreter, nothing inherited) and "forkserver" (a server that forks workers) are the same thing here: the template is a new
interpreter with one thread that has seen nothing of the program, and workers are forked from it, never from the program. Each
row is tested, where that makes a difference, with items alone and fifty to a chunk, and under `on_error="raise"` and `"collect"`.

"""


def page(cases: list[Case]) -> str:
    """The text of docs/faults.md."""
    parts = [HEAD]
    for title, rows in TABLE.items():
        parts.append(f"## {title}\n\n| | fault | what must come of it | within | tests |\n|---|---|---|---|---|\n")
        parts += [_line(row, [case for case in cases if row.number in case.rows]) for row in rows]
        parts.append("\n")
    parts.append("## The tests of each row\n\n")
    for number in ROWS:
        tests = sorted({case.test for case in cases if number in case.rows})
        parts.append(f"**{number}**\n\n" + "".join(f"* `{test}`\n" for test in tests) + "\n")
    return "".join(parts).rstrip("\n") + "\n"


def _line(row: Row, cases: list[Case]) -> str:
    counts = {outcome: sum(case.outcome == outcome for case in cases) for outcome in ("passed", "failed", "skipped")}
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    slowest_s, n_faults = max(
        ((case.elapsed_s, case.rows[row.number]) for case in cases), key=lambda each: each[0] / each[1], default=(0.0, 1)
    )
    often = f" for {n_faults} faults" if n_faults > 1 else ""
    bound = f"{row.bound_s:g} s" if row.bound_s else "–"
    return f"| {row.number} | {row.fault} | {row.outcome} | {bound} | {said}, the slowest {slowest_s:.1f} s{often} |\n"
