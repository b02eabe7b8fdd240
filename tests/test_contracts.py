"""The table of the contract is whole: each row has a test for each engine that has a letter in it, and the page says so."""

import subprocess
import sys
from collections import Counter

from contracts import ENGINES, MEANING, ROOT, ROWS, TABLE, Marked, marked, rows_without_tests, tables


def test_each_of_the_40_rows_has_a_letter_for_each_engine():
    assert [row.number for row in TABLE] == list(range(1, 41))
    assert {len(row.letters) for row in TABLE} == {len(ENGINES)}
    assert set("".join(row.letters for row in TABLE)) == set(MEANING)


def test_each_row_has_a_test_for_each_engine_of_which_it_says_something():
    assert rows_without_tests(marked()) == []


def test_a_row_without_a_test_is_seen():
    tests = [test for test in marked() if test.row != 13 and (test.row != 20 or "threads" not in test.engines)]
    missing = rows_without_tests(tests)
    assert missing == [*((13, engine) for engine in ENGINES), (20, "threads")]


def test_each_mark_names_a_row_and_engines_that_there_are_and_says_it_once():
    tests = marked()
    assert {test.row for test in tests} <= set(ROWS)
    assert {engine for test in tests for engine in test.engines} <= set(ENGINES)
    assert [each for each, count in Counter((test.row, test.test) for test in tests).items() if count > 1] == []
    assert {letter for test in tests for letter in ROWS[test.row].letters} & {"0"} == set()


def test_the_page_lists_the_rows_and_the_tests_that_are_there():
    command = [sys.executable, str(ROOT / "scripts" / "write_contracts.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run scripts/write_contracts.py"


def test_a_test_for_some_engines_is_listed_with_them():
    text = tables(
        [Marked(20, "tests/test_x.py::test_a", ("serial", "threads")), Marked(20, "tests/test_x.py::test_b", ENGINES)]
    )
    assert "\n* 20: `tests/test_x.py::test_a` (serial, threads), `tests/test_x.py::test_b`\n" in text
    assert "\n* 38: none\n" in text
