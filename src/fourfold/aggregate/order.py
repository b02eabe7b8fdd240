"""Segments arrive in any order of positions and leave in order."""

from collections.abc import Iterator

from fourfold.records import Segment


class InOrder:
    """Holds back the segments whose turn has not come."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, Segment] = {}

    def waiting(self) -> list[Segment]:
        """Those whose turn has not come."""
        return list(self._waiting.values())

    def push(self, segment: Segment) -> Iterator[Segment]:
        """Take one segment; give all those whose turn it now is."""
        self._waiting[segment.start] = segment
        while (ready := self._waiting.pop(self._next, None)) is not None:
            self._next += ready.n_items
            yield ready
