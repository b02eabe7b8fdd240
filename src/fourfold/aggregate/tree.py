"""Reduction by a fixed tree: the same bits for any chunking, worker count, engine and order of arrival.

Level-k block j covers the positions [j * 2**k, (j + 1) * 2**k); its value is combine(left half, right half), or the left
half when the right one is empty. So the tree depends on the number of items only:

    level 2      [0 .... 4)         [4 .. 6)        n = 6
    level 1   [0 2)     [2 4)     [4 6)
    level 0   0   1     2   3     4   5

A worker that holds positions [a, b) reduces its maximal aligned blocks, at most 2 log2(b - a + 1) of them, and sends
these; the driver merges siblings whenever both are there, and the ragged right edge at the end.
"""

from collections.abc import Callable
from typing import Any

from fourfold.errors import OptionError

Block = tuple[int, int]
"""(level k, number j)."""


class _Empty:
    """The value of a block whose items all failed: combining with it changes nothing."""

    def __reduce__(self) -> str:
        return "EMPTY"


EMPTY = _Empty()


class TreeReduction:
    """The Aggregator of `ff.reduce`.

    Args:
        function: Combines two values; it must be associative in the mathematical sense, and need not be commutative.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def identity(self) -> dict[Block, Any]:
        """No block yet."""
        return {}

    def fold(self, start: int, values: list[Any], holes: list[int]) -> list[tuple[Block, Any]]:
        """Reduce a chunk to its maximal aligned blocks, split at the holes."""
        blocks: list[tuple[Block, Any]] = []
        begin = 0
        for hole in [*holes, len(values)]:
            blocks += self._aligned(start + begin, values[begin:hole])
            begin = hole + 1
        return blocks

    def absent(self, position: int) -> list[tuple[Block, Any]]:
        """The block of an item without a value."""
        return [((0, position), EMPTY)]

    def combine(self, state: dict[Block, Any], partial: list[tuple[Block, Any]]) -> dict[Block, Any]:
        """Merge siblings as far up as they are complete."""
        for (level, number), value in partial:
            while (sibling := (level, number ^ 1)) in state:
                other = state.pop(sibling)
                value = self._join(value, other) if number % 2 == 0 else self._join(other, value)
                level, number = level + 1, number >> 1
            state[level, number] = value
        return state

    def finish(self, state: dict[Block, Any], count: int) -> Any:
        """Merge the ragged right edge from right to left.

        Raises:
            OptionError: There is no value at all.
        """
        # The blocks that are left cover [0, count) from left to right, each smaller than the one before it.
        answer: Any = EMPTY
        for level, number in sorted(state, key=lambda block: block[1] << block[0], reverse=True):
            answer = self._join(state[level, number], answer)
        if answer is EMPTY:
            why = "there are no items" if count == 0 else f"all {count} items failed"
            raise OptionError(f"reduce has no value to return: {why}")
        return answer

    def _aligned(self, start: int, values: list[Any]) -> list[tuple[Block, Any]]:
        """The maximal aligned blocks of consecutive values. Each level is one pass over a shrinking list."""
        blocks: list[tuple[Block, Any]] = []
        tail: list[tuple[Block, Any]] = []
        level = 0
        while values:
            if start % 2:
                blocks.append(((level, start), values[0]))
                values, start = values[1:], start + 1
            if len(values) % 2:
                tail.append(((level, start + len(values) - 1), values[-1]))
                values = values[:-1]
            values = list(map(self._join, values[::2], values[1::2]))
            start >>= 1
            level += 1
        return blocks + tail[::-1]

    def _join(self, left: Any, right: Any) -> Any:
        if left is EMPTY:
            return right
        return left if right is EMPTY else self.function(left, right)
