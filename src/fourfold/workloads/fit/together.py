"""Several recipes at once, which share their passes; and a recipe on rows that earlier steps have changed."""

from collections.abc import Sequence
from typing import Any

from fourfold.workloads.fit.contract import Fit, Pass, Seen


def together(fits: Sequence[Fit]) -> Fit:
    """Run recipes that do not need each other: what they want at the same time is one pass over the rows.

    Ends with the list of what they end with.
    """
    ends: dict[int, Any] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(fits)))
    while answers:
        wanted: dict[int, Pass | list[Pass]] = {}
        for at, answer in answers.items():
            try:
                wanted[at] = fits[at].send(answer)
            except StopIteration as end:
                ends[at] = end.value
        passes = [each for asked in wanted.values() for each in _listed(asked)]
        found = iter((yield passes) if passes else [])
        answers = {
            at: [next(found) for _ in asked] if isinstance(asked, list) else next(found) for at, asked in wanted.items()
        }
    return [ends[at] for at in range(len(fits))]


def seen_through(seen: Sequence[Seen], fit: Fit, again: bool = False) -> Fit:
    """The recipe on rows that these have changed before it sees them.

    Args:
        seen: The first one is done first.
        fit: The recipe.
        again: Others look at all rows after it.
    """
    answer: Any = None
    while True:
        try:
            wanted = fit.send(answer)
        except StopIteration as end:
            return end.value
        passes = [each._replace(seen=(*seen, *each.seen), again=again or each.again) for each in _listed(wanted)]
        answers = yield passes
        answer = answers if isinstance(wanted, list) else answers[0]


def _listed(wanted: Pass | list[Pass]) -> list[Pass]:
    return wanted if isinstance(wanted, list) else [wanted]
