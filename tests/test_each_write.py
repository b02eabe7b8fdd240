"""The driver is killed at each write of its journal, one after the other, until there is none left: the next one goes on from there.

Each driver is a fork of this process, so that a kill costs some hundredths of a second.
"""

import itertools
import os
from pathlib import Path

import pytest
from killer import is_killed_at
from recorded_items import recorded_items

import fourfold as ff
from fourfold.runs import rhythm

pytestmark = [
    pytest.mark.fault("F42", faults=20),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

N_ITEMS = 4
VALUES = [item * 0.1 for item in range(N_ITEMS)]

SEAMS = ["open", "create", "program", "write", "tail", "commit", "sync"]
HOW = {
    "lines in the tail": {"TAIL_SHARE": 1e9},
    "commits": {"COMMIT_S": 0.0, "COMMIT_SHARE": 1e9, "SYNC_S": 0.0},
}
CASES = [(seam, how) for seam in SEAMS for how in HOW if (seam, how) != ("tail", "commits")]


@pytest.fixture
def how(request, monkeypatch):
    """What ends is written as soon as it has ended: as a line of the tail, or as a commit that reaches the disk."""
    for name, value in HOW[request.param].items():
        monkeypatch.setattr(rhythm, name, value)


class Recorded:
    """A run in a folder of its own, and a list of what has run of it, in any process."""

    def __init__(self, folder: Path, **options) -> None:
        folder.mkdir()
        self.folder, self.run, self.list = folder, folder / "run", str(folder / "ran.txt")
        self.options = {"engine": "serial", "chunk": 1, "run": self.run, **options}

    def call(self):
        ran = self.list

        def fn(item):
            end = os.open(ran, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(end, b"%d\n" % item)
            os.close(end)
            return item * 0.1

        return ff.map(fn, range(N_ITEMS), **self.options)

    def ran(self):
        return [int(line) for line in Path(self.list).read_text().split()] if os.path.exists(self.list) else []


@pytest.mark.parametrize(
    ("seam", "how", "before"),
    [(*case, before) for case in CASES for before in ("", "journal.write:3:KILL") if not before or case[0] != "program"],
    indirect=["how"],
)
@pytest.mark.usefixtures("how")
def test_a_driver_that_is_killed_at_each_write_goes_on(tmp_path, seam, before):
    for number in itertools.count(1):
        run = Recorded(tmp_path / str(number))
        if before:
            assert is_killed_at(before, run.call)
        first = recorded_items(run.run)
        if not is_killed_at(f"journal.{seam}:{number}:KILL", run.call):
            break
        recorded, n_ran = recorded_items(run.run), len(run.ran())
        assert first <= recorded
        assert run.call() == VALUES
        assert not recorded & set(run.ran()[n_ran:]), "a recorded item ran again"
        assert len(run.ran()) <= N_ITEMS + (2 if before else 1), "more ran again than was in flight at each kill"
    assert number > 1, "the seam is not there"


@pytest.mark.parametrize(("seam", "how"), CASES, indirect=["how"])
@pytest.mark.usefixtures("how")
def test_where_nothing_may_run_twice_a_driver_that_is_killed_at_each_write_runs_nothing_twice(tmp_path, seam):
    for number in itertools.count(1):
        run = Recorded(tmp_path / str(number), idempotent=False, on_error="collect")
        if not is_killed_at(f"journal.{seam}:{number}:KILL", run.call):
            break
        results = run.call()
        assert [value for value in results if not isinstance(value, ff.Failure)] == [
            value for value, found in zip(VALUES, results, strict=True) if not isinstance(found, ff.Failure)
        ]
        assert sorted(run.ran()) == sorted(set(run.ran()))
        assert {failure.kind for failure in results.failures} <= {"indeterminate"}
        assert len(results.failures) <= 1
    assert number > 1, "the seam is not there"
