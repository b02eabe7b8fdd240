"""The contract of engines: 40 rows, what each engine makes of them, and the tests of each row as the source has them.

A test says which row it is for: `@pytest.mark.contract(20)`, and of which engines where it is not for all; in `fourfold.testing`
`@contract(20)`. From both, `scripts/write_contracts.py` makes the tables of `docs/contracts.md`.
"""

import ast
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

CLUSTERS = ("spark", "connect", "ray", "dask")
ENGINES = ("serial", "threads", "processes", *CLUSTERS)

PLACES = {"src/fourfold/testing": ENGINES, "tests_on_clusters": CLUSTERS, "tests": ENGINES}
"""Where tests are, and for which engines they are when they do not say."""

MEANING = {
    "Y": "it holds",
    "B": "it holds of a whole Spark job: its chunks come back, are cancelled and are stopped together",
    "X": "the engine does something else instead, and the test asserts what: it refuses the option, takes objects as they are, gives "
    "the item up without ending it, or ends with it",
    "–": "there is nothing to hold",
    "0": "not there yet, on no engine",
}


class Row(NamedTuple):
    """One row: a promise, and one letter of MEANING for each of ENGINES."""

    number: int
    promise: str
    letters: str


TABLE = [
    Row(1, "200 chunks: each has exactly one outcome, with its own values", "YYYYYYY"),
    Row(2, "a fast chunk is told while a slow one runs", "–YYBBYY"),
    Row(3, "items are pulled no further than what is consumed and the window", "YYYYYYY"),
    Row(4, "an item that raises: type, message, traceback; its neighbours and its worker go on", "YYYYYYY"),
    Row(5, "exceptions that cannot be pickled or built keep their name and message", "YYYYYYY"),
    Row(6, "`SystemExit` and `KeyboardInterrupt` of an item are its failure, and no dead worker", "YYYYYYY"),
    Row(7, "values that cannot be pickled cost their items and are named", "XXYYYYY"),
    Row(8, "a value whose class is not here costs its item and is named", "XXYYYYY"),
    Row(9, "a function of a module that workers do not have: one error before any item runs", "XXYYYYY"),
    Row(10, "lambdas, closures, partials, bound methods, functions of scripts", "YYYYYYY"),
    Row(11, "an item that kills its worker once runs again", "XXYYYYY"),
    Row(12, "an item that always kills its worker is found among 20, in bounded time", "XXYYYYY"),
    Row(13, "`os._exit`, abort, segmentation fault, SIGKILL are named", "XXYYYYY"),
    Row(14, "an executor, raylet or Dask worker is killed from outside: no item is lost", "–––Y–YY"),
    Row(15, "a whole machine is lost: no item is lost", "–––Y–YY"),
    Row(16, "what is cancelled before it starts never runs", "YYYBBYY"),
    Row(17, "what runs and is cancelled ends soon; the engine goes on", "–YYBBYY"),
    Row(18, "an item that never ends is killed within 10 s, and its slot is free", "XXYBBYY"),
    Row(19, "`timeout=` costs one item", "XXYYYYY"),
    Row(20, "Ctrl-C in the driver: its exit code, and nobody left behind", "YYYYYYY"),
    Row(21, "the driver is killed: nobody left behind, and its record goes on", "YYYYYYY"),
    Row(22, "128 MiB that items share are sent once, held once, and freed (on Connect with the session)", "YYYYYYY"),
    Row(23, "who keeps them dies: the run completes", "XXYYYYY"),
    Row(24, "items just below and above what travels within a message", "YYYYYYY"),
    Row(25, "64 MiB come back from one item; what the cluster does not carry is told (Spark's `maxResultSize`)", "YYYYYYY"),
    Row(26, "hundreds of chunks of a millisecond each (2,000 on processes)", "YYYYYYY"),
    Row(27, "`gpus=`: no more workers than there are GPUs, each sees its own", "XXXYXYY"),
    Row(28, "a need that nobody can meet is told within 15 s", "YYYYYYY"),
    Row(29, "numerical libraries have as many threads as `threads_per_worker=` says", "YYYYYYY"),
    Row(30, "fourfold inside an item runs serially; joblib inside a worker process starts nobody", "YYYYYYY"),
    Row(31, "two calls at once do not mix; one that is given up leaves the other whole", "YYYYYYY"),
    Row(32, "outcomes that come twice, late, in any order change nothing", "YYYYYYY"),
    Row(33, "the record and the output have each item once, whatever dies", "YYYYYYY"),
    Row(34, "`close` may come twice, and leaves nothing", "YYYYYYY"),
    Row(35, "a wrong address and another version are told, with what to do", "–––YYYY"),
    Row(36, "the cluster goes away: told within 60 s, and the record goes on elsewhere", "–––YYYY"),
    Row(37, "a session or client of yours keeps its settings, tags and signal handlers", "–––YYYY"),
    Row(38, "as a backend of joblib: GridSearchCV, RandomForest", "0000000"),
    Row(39, "as an `Executor` of the standard library", "0000000"),
    Row(40, "the same program and seed give the same bits, in chunks of any size", "YYYYYYY"),
]

ROWS = {row.number: row for row in TABLE}


class Marked(NamedTuple):
    """A test, and a row that it is marked with."""

    row: int
    test: str
    """tests/test_exit.py::test_x, or fourfold/testing/calls.py::test_x."""
    engines: tuple[str, ...]


@functools.cache
def marked() -> tuple[Marked, ...]:
    """All marked tests, read from the source: nothing is imported, no cluster is asked."""
    found: list[Marked] = []
    for place, engines in PLACES.items():
        for path in sorted((ROOT / place).glob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "contract(" not in text:
                continue
            tree = ast.parse(text)
            name = path.relative_to(ROOT).as_posix().removeprefix("src/")
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    found += [Marked(row, f"{name}::{node.name}", of or engines) for row, of in _marks(node)]
    return tuple(found)


def _marks(test: ast.FunctionDef) -> Iterator[tuple[int, tuple[str, ...]]]:
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("pytest.mark.contract", "contract"):
            words = [ast.literal_eval(each) for each in decorator.args]
            engines = tuple(word for word in words if isinstance(word, str))
            yield from ((word, engines) for word in words if isinstance(word, int))


def rows_without_tests(tests: Sequence[Marked]) -> list[tuple[int, str]]:
    """Rows and engines that have a letter of a test, and no test."""
    have = {(test.row, engine) for test in tests for engine in test.engines}
    wanted = [
        (row.number, engine) for row in TABLE for engine, letter in zip(ENGINES, row.letters, strict=True) if letter in "YBX"
    ]
    return [each for each in wanted if each not in have]


def tables(tests: Sequence[Marked]) -> str:
    """The text between the marks in docs/contracts.md."""
    parts = [
        "| | promise | " + " | ".join(f"`{each}`" for each in ENGINES) + " |\n",
        "|---|---|" + "---|" * len(ENGINES) + "\n",
    ]
    parts += [f"| {row.number} | {row.promise} | {' | '.join(_shown(each) for each in row.letters)} |\n" for row in TABLE]
    parts.append("\n" + "".join(f"* **{_shown(letter)}**: {meaning}\n" for letter, meaning in MEANING.items()))
    parts.append("\nThe tests of each row; those of `fourfold/testing` are the suite, and run on every engine:\n\n")
    for row in TABLE:
        mine = sorted({(test.test, _for(test)) for test in tests if test.row == row.number})
        parts += [f"* {row.number}: " + (", ".join(f"`{name}`{only}" for name, only in mine) or "none") + "\n"]
    return "".join(parts)


def _shown(letter: str) -> str:
    return {"Y": "yes", "B": "job", "X": "other", "0": "later"}.get(letter, letter)


def _for(test: Marked) -> str:
    return "" if test.engines in PLACES.values() else f" ({', '.join(test.engines)})"
