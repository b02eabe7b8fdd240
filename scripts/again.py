"""What failed or was late beside others runs once more, alone: a busy machine can be later than any bound foresees.

What fails alone, too, fails for another reason. What fails only beside others, and not because it was late, may be a race: it
is named at the end with what it said, and more than a few of them fail the run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from beside import Lanes, Part

NOTED = ("v", "fourfold")
"""Where tests/notes.py notes at the end, in the cache of a pytest, which tests were late, and what those said that failed."""

MOST = 3
"""Tests that may fail beside others though they were not late. Fewer: what a busy machine does to a test that is not to blame
fails the run. More: a race passes. Not measured."""

KEPT = Path("build/failed-in-company.txt")
"""All that they said, of the last run."""

SHOWN_LINES = 12
"""Lines of each that are printed: the last ones say what went wrong."""


def passes_alone(tests: Lanes) -> bool:
    """Run the tests that failed or were late in company once more, without any; returns whether all is well then."""
    in_company = {part.name: failed_in(part) for part in tests.failed if part.again and came_to_its_end(part)}
    again = [*failed_again(tests.failed), *late_again(tests.ended)]
    final = [part.name for part in tests.failed if not part.again or not came_to_its_end(part)]
    tidy = True
    if again:
        print(f"failed or late in company, and run again alone: {', '.join(part.name for part in again)}", flush=True)
        alone = Lanes([again])
        alone.run()
        final += [part.name for part in alone.failed]
        tidy = is_tidy(alone.untidy)
    are_few = told({name: said for name, said in in_company.items() if name not in final})
    if final:
        print(f"failed: {', '.join(final)}")
    elif again and are_few and tidy:
        print("in company only: each of them passes alone, in the time that is promised")
    return not final and are_few and tidy


def told(in_company: Mapping[str, Mapping[str, str]]) -> bool:
    """Say which tests failed in company, though not late, and pass alone, and keep that; returns whether they are few."""
    KEPT.unlink(missing_ok=True)
    found = [(f"{name}: {test}", text) for name, said in in_company.items() for test, text in said.items()]
    if not found:
        return True
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text("\n\n".join(f"==== {name}\n{text}" for name, text in found) + "\n")
    print(
        f"==== Failed in company, though not late, and passed alone: {len(found)}. Is it a race? All they said is in {KEPT}:"
    )
    for name, text in found:
        print("\n    ".join([name, *text.splitlines()[-SHOWN_LINES:]]))
    if len(found) > MOST:
        print(f"failed: {len(found)} tests fail in company though they are not late, and {MOST} may")
    return len(found) <= MOST


def failed_in(part: Part) -> dict[str, str]:
    """What the tests said that failed in this part and were not late."""
    late = noted(part, "late") or ()
    return {test: text for test, text in (noted(part, "failed") or {}).items() if test not in late}


def noted(part: Part, what: str) -> list[str] | dict[str, str] | None:
    """What its pytest has noted at its end; None: it did not come to its end."""
    note = Path(memory_of(part.name), *NOTED, what)
    return json.loads(note.read_text()) if note.exists() else None


def came_to_its_end(part: Part) -> bool:
    """Whether its pytest ran all tests, and what failed may run again.

    One that was ended by the watchdog, interrupted or killed, has not told of those behind.
    """
    return noted(part, "late") is not None


def failed_again(failed: Sequence[Part]) -> list[Part]:
    """What failed in these parts."""
    return [Part(part.name, [*part.command, *part.again]) for part in failed if part.again and came_to_its_end(part)]


def late_again(ended: Sequence[Part]) -> list[Part]:
    """The tests that passed, and took longer than they may on a machine that does nothing else."""
    found = []
    for part in ended:
        failed = noted(part, "failed") or {}
        tests = [test for test in noted(part, "late") or () if test not in failed] if part.again else []
        if tests:
            command = [word for word in part.command if not Path(word).is_dir()]  # all in a folder would run again
            found.append(Part(f"what was late of {part.name}", [*command, *tests]))
    return found


def is_tidy(untidy: Sequence[Part]) -> bool:
    """Whether no part has left processes behind; else that is said. It is never because of company: they had time to end."""
    if untidy:
        names = ", ".join(part.name for part in untidy)
        print(f"failed: {names} left processes behind: which ones stands above, at the end of what each part said")
    return not untidy


def memory_of(name: str) -> str:
    """Where the pytest of a part keeps which tests failed, and which were late."""
    return f".pytest_cache/{name.replace(' ', '-')}"
