"""Run all tests that are for rows of the fault matrix, and write docs/faults.md from what became of them.

python scripts/write_faults.py                           run, and write
python scripts/write_faults.py -m "fault and not slow"   arguments go to pytest; the page then has those tests only
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from faults import Recorder, page  # noqa: E402


def main() -> int:
    os.chdir(ROOT)
    recorder = Recorder()
    code = pytest.main(["tests", "-q", *(sys.argv[1:] or ["-m", "fault"])], plugins=[recorder])
    cases = [case for case in recorder.cases.values() if case.outcome]
    (ROOT / "docs" / "faults.md").write_text(page(cases), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
