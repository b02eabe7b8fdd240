"""Items that came back unfinished and wait to be submitted again."""

from bisect import bisect_right, insort

from fourfold.records import Chunk


class Returned:
    """Items that came back unfinished, until they are submitted again: disjoint intervals of positions."""

    def __init__(self) -> None:
        self._intervals: dict[int, tuple[Chunk, int]] = {}
        self._starts: list[int] = []

    def put(self, chunk: Chunk, first: int = 0, count: int | None = None) -> None:
        """Keep the `count` items of the chunk from offset `first` on."""
        count = len(chunk.items) - first if count is None else count
        if count:
            start = chunk.start + first
            self._intervals[start] = (chunk, count)
            insort(self._starts, start)

    def take(self, start: int, count: int) -> Chunk:
        """Take out the items `[start, start + count)`, which lie in one interval."""
        begin = self._starts.pop(bisect_right(self._starts, start) - 1)
        chunk, length = self._intervals.pop(begin)
        self.put(chunk, begin - chunk.start, start - begin)
        self.put(chunk, start + count - chunk.start, begin + length - start - count)
        return cut(chunk, start - chunk.start, count)

    def take_all(self) -> list[Chunk]:
        """Take out what is here."""
        return [self.take(start, self._intervals[start][1]) for start in list(self._starts)]

    def drop(self, position: int) -> None:
        """Forget one item, if it is here."""
        if position in self._intervals:
            self.take(position, 1)


def cut(chunk: Chunk, first: int, count: int) -> Chunk:
    """The part of a chunk with the `count` items from offset `first` on."""
    if first == 0 and count == len(chunk.items):
        return chunk
    indices = chunk.indices[first : first + count] if chunk.indices is not None else None
    return Chunk(chunk.start + first, chunk.items[first : first + count], indices)
