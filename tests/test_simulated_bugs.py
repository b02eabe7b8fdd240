"""Bugs put into the schedule on purpose: the simulation must meet each of them, or it is too weak to be trusted.

Each bug is a change of the text of one module. The modules are copied with it, under names of their own, and the copies run
the simulated cases: fourfold itself is not touched.
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from simulation import Case, Parts, judge

import fourfold.distribute
from fourfold.errors import Bug

FOLDER = Path(fourfold.distribute.__file__).parent

COPIED = ["admission", "blame", "respawn", "sizes", "schedule", "inbox", "driver"]
"""The modules that bugs are put into; each after those that it imports."""

SEEDS = 1000
"""Runs in which each bug must be met, as many as test_simulation.py makes."""

BLIND_SEEDS = 10
"""Of those in which nobody knows which item ran, which come first: what they alone ask for is met in the others rarely."""


class Mistake(NamedTuple):
    """A bug: where the text `right` stands in the source, `wrong` stands instead."""

    name: str
    right: str
    wrong: str


MISTAKES = [
    Mistake("the rest of a ticket is dropped", "self._repeat(flight.start + done, flight.count - done)", "pass"),
    Mistake("what did not start is dropped", "self._repeat(flight.start, flight.count)", "pass"),
    Mistake("what did not start alone is dropped", "self._alone.appendleft(flight.start)", "pass"),
    Mistake(
        "items before a dead one are dropped",
        "                self._repeat(flight.start, event.first)\n                suspects",
        "                suspects",
    ),
    Mistake(
        "a time-out loses the tail",
        "            self._repeat(behind, flight.start + flight.count - behind)\n            if",
        "            if not event.expired:\n"
        "                self._repeat(behind, flight.start + flight.count - behind)\n            if",
    ),
    Mistake(
        "a death of memory loses the tail",
        "_items\n        self._repeat(behind, flight.start + flight.count - behind)",
        "_items",
    ),
    Mistake(
        "the rest of a ticket is run twice",
        "self._repeat(flight.start + done, flight.count - done)",
        "self._repeat(flight.start + done - 1, flight.count - done + 1)",
    ),
    Mistake(
        "the first suspect is off by one",
        "first, count = flight.start + event.first, event.n_items",
        "first, count = flight.start + event.first + 1, event.n_items",
    ),
    Mistake(
        "a death is not counted", "return self._hit.get(position, _Deaths()).alone", "return self._hit[position].alone - 1"
    ),
    Mistake(
        "who is suspected runs again in any worker",
        "fresh = count == 1 and self._blame.is_suspected(start)",
        "fresh = False",
    ),
    Mistake(
        "what ends does not end a row of deaths",
        "        self._respawn.item_ended()\n        self._blame",
        "        self._blame",
    ),
    Mistake("a death is forgotten", "self._hit[position] = deaths\n", "pass\n"),
    Mistake("a neighbour is blamed", "self._condemn(position, self", "self._condemn(position + 1, self"),
    Mistake("a neighbour's fault is an attempt", "self._suspect(suspects, flight.single", "self._suspect(suspects, True"),
    Mistake(
        "who is left of a ticket was sent alone",
        "self._suspect(suspects, flight.single",
        "self._suspect(suspects, flight.count == 1",
    ),
    Mistake(
        "what outlived its worker runs again",
        "flight.start, flight.count = start + event.done, flight.count - event.done",
        "flight.start, flight.count = start + event.done - 1, flight.count - event.done + 1",
    ),
    Mistake(
        "what outlived its worker is not given out",
        "failed = self._take_in(cut(chunk, 0, result.done), result, outcome.worker)",
        "failed = []",
    ),
    Mistake("the one to blame is counted from the wrong item", "first = max(0, first - n_kept)", "first = max(0, first)"),
    Mistake("who is in doubt is dropped", "self._blame.doubt(position, self._n_witnesses())", "pass"),
    Mistake(
        "who is in doubt is never judged at the end", "        self._judge_all(actions)\n        before", "        before"
    ),
    Mistake("who is in doubt is blamed whatever is known by now", "if self._blame.is_to_blame(position) or", "if True or"),
    Mistake("nobody says that doubts have lasted enough", "self.inbox.events.append(DoubtOver())", "pass"),
    Mistake("one half of the suspects is dropped", "self._repeat(suspects.start, half)", "pass"),
    Mistake(
        "the halves of the suspects overlap",
        "self._repeat(suspects.start + half, len(suspects) - half)",
        "self._repeat(suspects.start + half - 1, len(suspects) - half + 1)",
    ),
    Mistake("one death is enough", "CRASHES_ALLOWED = 2", "CRASHES_ALLOWED = 1"),
    Mistake("a signal that somebody sends is a crash like any other", "more = LAST_TRIES if", "more = 0 if"),
    Mistake("any crash is taken for a signal that somebody sends", "and (was_sent or not alone)", ""),
    Mistake("who was stopped for want of memory is suspected", "if event.id in self._evicted:", "if False:"),
    Mistake(
        "who is late is suspected as well",
        "suspects = range(suspects.start, first)",
        "suspects = range(suspects.start, first + 1)",
    ),
    Mistake(
        "who died of memory runs beside others",
        "self._submit(self._alone.popleft(), 1, actions, alone=True)",
        "self._submit(self._alone.popleft(), 1, actions)",
    ),
    Mistake(
        "who died of memory waits for no calm",
        "self._alone.extendleft(reversed(again))",
        "self._again.extendleft((position, 1) for position in reversed(again))",
    ),
    Mistake("one retry too many", "attempts <= self.rules.retries", "attempts <= self.rules.retries + 1"),
    Mistake("one retry too few", "attempts <= self.rules.retries", "attempts < self.rules.retries"),
    Mistake("a retry counts as settled", "self.tally.finished -= 1", "pass"),
    Mistake("one failure fewer is too many", "self.rules.failures_before > limit", "self.rules.failures_before >= limit"),
    Mistake("a failure does not stop the run", 'self._stop("failed", position)', "pass"),
    Mistake("a run that stops cancels nothing", "if late:", "if False:"),
    Mistake(
        "the grace of a stopping run has no end", "self._failed_at = -1\n                self._cancelled", "self._cancelled"
    ),
    Mistake(
        "a stopping run forgets what may fail first",
        "for start, count in self._again if start < before",
        "for start, count in ()",
    ),
    Mistake("too many tickets are in flight", "return 2 * self.slots", "return 4 * self.slots"),
    Mistake("a result that is told twice counts twice", "return  # its ticket has ended", "pass  # its ticket has ended"),
    Mistake("a retried item is lost", "self.returned.put(chunk, trouble.offset, 1)", "pass"),
    Mistake("nobody says that the grace is over", "self.inbox.events.append(GraceOver())", "pass"),
]


def found(mistake: Mistake) -> str:
    """The one module in which the text stands, once."""
    counts = {name: source_of(name).count(mistake.right) for name in COPIED}
    holders = [name for name, count in counts.items() if count]
    assert sum(counts.values()) == 1, f"{mistake.right!r} stands {counts} times: bring the list up to date"
    return holders[0]


def source_of(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8")


@pytest.fixture
def parts(request: pytest.FixtureRequest) -> Iterator[Parts]:
    """Copies of the modules, with the bug."""
    mistake: Mistake | None = getattr(request, "param", None)
    holder = found(mistake) if mistake is not None else None
    copies: dict[str, ModuleType] = {}
    try:
        for name in COPIED:
            text = source_of(name)
            if mistake is not None and name == holder:
                text = text.replace(mistake.right, mistake.wrong)
            for other in copies:
                text = text.replace(f"from fourfold.distribute.{other} import", f"from copied_{other} import")
            copies[name] = sys.modules[f"copied_{name}"] = ModuleType(f"copied_{name}")  # imports and dataclasses look it up
            exec(compile(text, f"copy of {name}.py", "exec"), copies[name].__dict__)
        yield Parts(copies["schedule"], copies["driver"], copies["inbox"])
    finally:
        for name in copies:
            del sys.modules[f"copied_{name}"]


def seed_that_meets_it(parts: Parts) -> int | None:
    blind = (Case.blind(seed) for seed in range(BLIND_SEEDS))
    for case in itertools.chain(blind, (Case(seed, faults=True) for seed in range(SEEDS))):
        try:
            judge(case, parts)
        except (AssertionError, Bug, LookupError):  # any other error would be of the list, not of the bug
            return case.seed
    return None


@pytest.mark.parametrize("parts", MISTAKES, ids=lambda mistake: mistake.name, indirect=True)
def test_a_bug_in_the_schedule_is_met_by_the_simulation(parts: Parts) -> None:
    assert seed_that_meets_it(parts) is not None


def test_copies_without_a_bug_pass(parts: Parts) -> None:
    for seed in range(100):
        judge(Case(seed, faults=True), parts)
    for seed in range(BLIND_SEEDS):
        judge(Case.blind(seed), parts)


def test_a_text_that_is_gone_or_stands_twice_is_no_bug() -> None:
    for text in ["no such text", "self"]:
        with pytest.raises(AssertionError, match="bring the list up to date"):
            found(Mistake("", text, ""))
