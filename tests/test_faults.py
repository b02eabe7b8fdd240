"""The fault matrix is whole: each row has tests, each mark has a row, and docs/faults.md is what the tests say."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import conftest
import faults
import pytest
from faults import ROWS, Case, page

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

LIST = """
import sys, pytest
from faults import Recorder

recorder = Recorder()
code = pytest.main([*{files!r}, "-m", "fault", "--collect-only", "-q", "-q", "--no-summary"], plugins=[recorder])
print(repr([tuple(case) for case in recorder.cases.values() if case.rows]))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def tests_by_row(pytestconfig):
    """The tests that are there now, by the rows that they are marked with."""
    items = pytestconfig.stash[conftest.COLLECTED]
    is_partial = pytestconfig.getoption("lf", False) or any("::" in each for each in pytestconfig.args)
    whole = {item.path for item in items} if not is_partial else set()
    missing = sorted(path for path in {*TESTS.glob("test_*.py")} - whole if may_have_marks(path.read_text()))
    cases = [(faults.rows_of(item), faults.test_of(item.nodeid)) for item in items if item.path in whole]
    found = defaultdict(set)
    for rows, test in [*cases, *collected_anew(missing)]:
        for row in rows:
            found[row].add(test)
    return found


def may_have_marks(text):
    """Whether to look for marks in a file of tests: to import all of them takes ten seconds."""
    return "mark.fault" in text or bool(re.search(r"\bF\d+\b", text))


def collected_anew(files):
    """The rows and names of all tests of these files, which this pytest was not given, by another one."""
    if not files:
        return []
    command = [sys.executable, "-c", LIST.format(files=[*map(str, files)])]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [case[:2] for case in ast.literal_eval(done.stdout.splitlines()[-1])]


@pytest.mark.slow
def test_every_row_has_a_test_and_every_mark_a_row(tests_by_row):
    assert sorted(tests_by_row) == sorted(ROWS)


@pytest.mark.slow
def test_the_page_lists_the_rows_and_the_tests_that_are_there(tests_by_row):
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (F\d+) \| (.*?) \|", text, re.MULTILINE))
    assert rows == {number: row.fault for number, row in ROWS.items()}, "run scripts/write_faults.py"
    listed = {
        row: set(re.findall(r"^\* `(.*)`$", tests, re.MULTILINE))
        for row, tests in re.findall(r"^\*\*(F\d+)\*\*\n\n((?:\* .*\n)*)", text, re.MULTILINE)
    }
    assert listed == tests_by_row, "run scripts/write_faults.py"


def test_what_the_page_says_has_passed():
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    for row, said in re.findall(r"^\| (F\d+) \|.*\| ([^|]*) \|$", text, re.MULTILINE):
        found = re.fullmatch(r"\d+ passed(, \d+ skipped)?, the slowest ([\d.]+) s(?: for (\d+) faults)?", said)
        assert found, f"{row}: {said}"
        bound_s = ROWS[row].bound_s
        assert bound_s is None or float(found[2]) <= bound_s * int(found[3] or 1), f"{row}: {said}"


def test_a_row_says_what_became_of_its_tests():
    cases = [
        Case({"F3": 1}, "tests/test_x.py::test_a", "passed", 1.5),
        Case({"F3": 4, "F4": 1}, "tests/test_x.py::test_b", "failed", 2.0),
        Case({"F4": 1}, "tests/test_x.py::test_b", "skipped", 0.0),
        Case({"F5": 40}, "tests/test_x.py::test_c", "passed", 30.0),
    ]
    text = page(cases)
    assert f"| F3 | {ROWS['F3'].fault} | {ROWS['F3'].outcome} | 5 s | 1 passed, 1 failed, the slowest 1.5 s |\n" in text
    assert "5 s | 1 passed, the slowest 30.0 s for 40 faults |\n" in text
    assert "| 1 failed, 1 skipped, the slowest 2.0 s |\n" in text
    assert "**F3**\n\n* `tests/test_x.py::test_a`\n* `tests/test_x.py::test_b`\n" in text


@pytest.mark.slow
def test_a_test_takes_no_longer_than_its_faults_may(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import threading, pytest\n\n"
        "def take_long(): threading.Event().wait(0.2)\n\n"
        "@pytest.mark.fault('F1')\ndef test_once(): take_long()\n\n"
        "@pytest.mark.fault('F1', faults=1000)\ndef test_often(): take_long()\n\n"
        "@pytest.mark.fault('F22')\ndef test_without_a_bound(): take_long()\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault(row, faults=1): a row\n")
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-q", "-p", "conftest", "-p", "no:cacheprovider"]
    env = {**os.environ, "FOURFOLD_TIME_SCALE": "0.001"}
    done = subprocess.run(command, cwd=Path(faults.__file__).parent, env=env, capture_output=True, text=True, check=False)
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert re.search(r"test_once _+\nit took 0.\d s, and its faults \(F1 × 1\) have 0.\d+ s", done.stdout), done.stdout


def test_the_mark_of_a_test_says_more_than_that_of_its_file():
    class Marked:
        def iter_markers(self, name):
            return [pytest.mark.fault("F53", faults=20).mark, pytest.mark.fault("F53", "F1").mark]  # the nearest comes first

    assert (faults.rows_of(Marked()), faults.bound_of(Marked())) == ({"F53": 20, "F1": 1}, 200)


def test_a_test_that_fails_at_any_stage_has_failed(outcomes):
    assert outcomes == {"passes": "passed", "fails": "failed", "leaks": "failed", "skips": "skipped"}


@pytest.fixture
def outcomes(tmp_path):
    """What the recorder makes of four tests that are really run."""
    (tmp_path / "test_four.py").write_text(
        "import pytest\n"
        "@pytest.fixture\ndef leaky():\n    yield\n    pytest.fail('it leaks')\n"
        "@pytest.mark.fault('F1')\ndef test_passes(): pass\n"
        "@pytest.mark.fault('F1')\ndef test_fails(): assert 0\n"
        "@pytest.mark.fault('F1')\ndef test_leaks(leaky): pass\n"
        "@pytest.mark.fault('F1')\ndef test_skips(): pytest.skip('no')\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault(row): a row\n")
    code = (
        "import pytest, sys; from faults import Recorder; recorder = Recorder()\n"
        f"pytest.main([{str(tmp_path)!r}, '-q', '-p', 'no:cacheprovider'], plugins=[recorder])\n"
        "print({case.test.rpartition('test_')[2]: case.outcome for case in recorder.cases.values()})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(faults.__file__).parent, capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])
