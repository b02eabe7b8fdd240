"""How many tickets may run at once, as memory allows: falls at once, rises slowly. Pure: others measure."""

OOM_ALLOWED = 1
"""Times that an item may die of memory while nothing else of the run is in flight, before it is blamed. More: with all memory
to itself it has shown what it needs; each time costs its whole time again and endangers everything else on the machine."""

CALM = 4
"""Tickets per worker that end well after a death of memory, before one more may run at once again. Fewer: the next death comes
sooner. More: one large item leaves the whole rest at half speed. Not measured."""

RISE = 2
"""How many more than now memory must allow before more run: one is kept in hand, or the number would go up and down with each
look. Larger: workers idle that could run."""


class Admission:
    """What memory allows now.

    Attributes:
        room: What the last looks at free memory allow; None while there is enough for all workers.
        ceiling: What deaths of memory have left; None when there was none, or all is calm again.
    """

    def __init__(self) -> None:
        self.room: int | None = None
        self.ceiling: int | None = None
        self._calm = 0

    def limit(self, slots: int) -> int:
        """How many of `slots` workers may have something to do: never below one, if there is one."""
        if self.room is None and self.ceiling is None:  # as ever: it is asked for each chunk
            return slots
        limits = [limit for limit in (self.room, self.ceiling) if limit is not None]
        return min([slots, *(max(1, limit) for limit in limits)])

    def look(self, n_items: int, slots: int) -> None:
        """There is memory for `n_items` items at once."""
        if self.room is None:
            self.room = slots
        if n_items < self.room:
            self.room = max(1, n_items)
        elif n_items >= self.room + RISE:
            self.room = min(n_items - RISE + 1, self.room + max(1, self.room // 2))
        if self.room >= slots:
            self.room = None

    def halve(self, running: int) -> None:
        """A worker died of memory while so many had something to do."""
        self.ceiling = max(1, running // 2)
        self._calm = 0

    def calm(self, slots: int) -> None:
        """A ticket ended well."""
        if self.ceiling is not None:
            self._calm += 1
            if self._calm >= CALM * self.ceiling:
                self.ceiling, self._calm = self.ceiling + 1, 0
                if self.ceiling >= slots:
                    self.ceiling = None
