"""Whether an item is to blame for the deaths of its workers: what is known of each, and when that is enough.

An item that kills its workers and one that outsiders hit look alike while they die. What tells them apart is what else
happens: outsiders hit many items, and most of those end well when they run again. So each death that proves to be nobody's
fault allows every item one more, and an item that has died often enough waits, without running, for more to be known. When
it has only died of signals that somebody must send, it runs once more after that: who sent them may have gone.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

CRASHES_ALLOWED = 2
"""An item is blamed when its worker died this often while it ran the item alone. Once could be an outsider's kill."""

LAST_TRIES = 1
"""Deaths more, after its witnesses, for an item whose workers all died of a signal that somebody must have sent. Fewer: it is
blamed when the last two kills of an outsider hit it, which happens easily while it runs alone in a new worker (see
tests/test_kills.py). More: an item for which its worker is killed each time takes more of them along."""

TRIES_IN_A_STORM = 20
"""The most deaths alone before an item is in doubt when an outsider kills workers. Smaller: more innocent items are blamed
then. Larger: a bad item takes more workers along in such a run. With 20 kills per second at random on 2 workers (simulated,
40 runs of 2,000 items), no item of up to 50 ms was blamed; 8 runs blamed one of 100 ms, whose tries die two times in three."""

WITNESSES = 32
"""Tickets that must end or die before an item is blamed that has died often enough. Smaller: the first items that outsiders
hit are blamed, before others have shown that there are outsiders: with none, 6 of 40 such runs of items of 20 ms blamed one.
Larger: a bad item is told of later."""

DOUBT_S = 2.0
"""Seconds to wait for them at most. Smaller: fewer witnesses where items are long. Larger: a bad item among long ones is told
of later. Not measured."""


class _Deaths(NamedTuple):
    """Of one item: those in which only it is suspected, those in which it also ran alone, and whether all these were sent."""

    suspected: int = 0
    alone: int = 0
    were_sent: bool = True


class Blame:
    """What is known of the items whose workers died."""

    def __init__(self) -> None:
        self._hit: dict[int, _Deaths] = {}
        """Deaths by position."""
        self._absolved = 0
        """Deaths that were no item's fault: the item they hit ended well when it ran again, or none was on the worker."""
        self._doubted: deque[tuple[int, int]] = deque()
        """Positions that have died often enough, and the number of witnesses when they did; the longest waiting first."""

    def allowed(self) -> int:
        """Deaths alone after which an item is in doubt: one more for each death in this run that was nobody's fault."""
        return min(CRASHES_ALLOWED + self._absolved, TRIES_IN_A_STORM)

    def hit(self, position: int, *, alone: bool, was_sent: bool) -> int:
        """Note a death in which this item alone is suspected; returns how often it has died while it ran alone.

        `was_sent`: of a signal that somebody must send.
        """
        before = self._hit.get(position, _Deaths())
        deaths = _Deaths(before.suspected + 1, before.alone + alone, before.were_sent and (was_sent or not alone))
        self._hit[position] = deaths
        return deaths.alone

    def is_suspected(self, position: int) -> bool:
        """Whether a worker has died, and no other item can be to blame: its next run decides, and is one in a fresh worker."""
        return position in self._hit

    def is_enough(self, position: int) -> bool:
        """Whether the item has died alone so often that it is to wait for more to be known."""
        return self.crashes(position) >= self.allowed()

    def is_to_blame(self, position: int) -> bool:
        """Whether that is enough, now that more is known."""
        more = LAST_TRIES if self._hit[position].were_sent else 0
        return self.crashes(position) >= self.allowed() + more

    def crashes(self, position: int) -> int:
        """How often it has died while it ran alone."""
        return self._hit.get(position, _Deaths()).alone

    def forget(self, position: int) -> None:
        """It runs no more."""
        self._hit.pop(position, None)

    def absolve(self, deaths: int = 1) -> None:
        """So many deaths were nobody's fault."""
        self._absolved += deaths

    def end_well(self, positions: range) -> None:
        """These items ended: what they died of before was not their fault."""
        for position in [each for each in self._hit if each in positions]:
            self.absolve(self._hit.pop(position).suspected)

    # ---- those who wait to be judged ---------------------------------------------------------------------------------

    def doubt(self, position: int, n_witnesses: int) -> None:
        """Put this one off."""
        self._doubted.append((position, n_witnesses))

    def doubted(self) -> Iterable[int]:
        """The positions that are put off."""
        return (position for position, _ in self._doubted)

    def has_doubts(self) -> bool:
        """Whether any is put off."""
        return bool(self._doubted)

    def waits_since(self) -> int:
        """The number of witnesses when the one was put off that waits for longest."""
        return self._doubted[0][1]

    def next(self) -> int:
        """The one that waits for longest, who waits no more."""
        return self._doubted.popleft()[0]
