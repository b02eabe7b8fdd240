"""Whether workers die for ever: they are replaced as fast as they die, and nothing gets done.

Many deaths in a short time are no reason to give up: 20 deadly items beside each other cost 40 workers in a second, and each
item is found. What tells them apart is that it goes on: so a row of deaths must last, too.
"""

from collections import deque

WINDOW_S = 10.0
"""Seconds in which too many deaths are counted. Smaller: workers that take seconds to die are replaced for ever. Larger:
deaths that have nothing to do with each other are counted together. Promise R5."""

LEAST = 5
"""Deaths in that time that are not too many, on few workers; for others it is 2 each. R5 has 3, but an item dies twice before
it is in doubt, and with 3 two deadly items at the beginning would end a run on one worker. Later deaths do not count."""

LASTS_S = 5.0
"""Seconds from the first to the last of them, at least, while no item has ever ended. Smaller: deadly items at the beginning
end a run that could go on. Larger: a function that never works is tried for longer. Not measured."""

LASTS_LATER_S = 10.0
"""... once items have ended: then it is less likely that all of the others are deadly, and more that these are neighbours."""


class Respawn:
    """The deaths since an item last ended."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._recent: deque[float] = deque()

    def died(self, at_s: float) -> None:
        """A worker died at this time."""
        if self._since is None:
            self._since = at_s
        self._recent.append(at_s)

    def take_back(self) -> None:
        """The death that was told last has a limit of its own."""
        if self._recent:
            self._recent.pop()

    def item_ended(self) -> None:
        """Something gets done."""
        self._since = None
        self._recent.clear()

    def is_endless(self, n_slots: int, n_searched: int, *, any_ended: bool) -> bool:
        """Whether to give up.

        Args:
            n_slots: The most workers that there were.
            n_searched: Deaths that the search for one item among many takes.
            any_ended: Whether any item has ever ended.
        """
        if self._since is None:
            return False
        if not self._recent:
            return False
        last = self._recent[-1]
        while self._recent[0] < last - WINDOW_S:
            self._recent.popleft()
        lasts_s = LASTS_LATER_S if any_ended else LASTS_S
        return len(self._recent) > max(LEAST, 2 * n_slots) + n_searched and last - self._since >= lasts_s
