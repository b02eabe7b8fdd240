"""Items, pulled lazily from any iterable, as consecutive chunks."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from types import GeneratorType
from typing import Any

from fourfold.errors import OptionError, OptionTypeError
from fourfold.records import Chunk


class Source:
    """Hands out the items of one call in order, a chunk at a time, to one thread.

    Lists, tuples and ranges are sliced, everything else is iterated; `close` closes a generator.

    Args:
        items: Any iterable.
        cost: None, or what maps an item to its relative cost: then all items are read first, and the costly come first.
        seen: None, or what says of an index and its item whether it is left out. Called in input order, once per item.

    Raises:
        OptionTypeError: `items` cannot be iterated.
        OptionError: A cost is no finite number.
    """

    def __init__(
        self,
        items: Iterable[Any],
        cost: Callable[[Any], float] | None = None,
        seen: Callable[[int, Any], bool] | None = None,
    ) -> None:
        self.costs: list[float] | None = None
        self.n_read = 0
        """Items that were read from the input, those left out included; only counted with `seen`."""
        self._seen = seen
        self._order: list[int] | None = None
        self._gaps: list[tuple[int, int]] = [(0, 0)]  # positions from which on indices are that much ahead
        self._position = 0
        self._iterator: Iterator[Any] | None = None
        self._sequence: Sequence[Any] | None = None
        self._ended = False
        self._error: Exception | None = None
        self._ahead: list[Any] = []
        """Items that were taken to see whether there are any, and not handed out yet."""
        if cost is not None:
            read = list(_iterator_of(items))
            indices = [index for index, item in enumerate(read) if seen is None or not seen(index, item)]
            self._sequence, self.costs, self._order = _longest_first(read, indices, cost)
            self.n_read = len(read)
        elif type(items) in (list, tuple, range) and seen is None:
            self._sequence = items  # type: ignore[assignment]
        else:
            self._iterator = _iterator_of(items)
        self.total = len(self._sequence) if self._sequence is not None else _length(items)

    @property
    def permuted(self) -> bool:
        """Whether positions and indices differ."""
        return self._order is not None or self._gaps != [(0, 0)]

    def index_of(self, position: int) -> int:
        """The place in the input of the item that is handed out at `position`."""
        if self._order is not None:
            return self._order[position]
        return position + self._gaps[bisect_right(self._gaps, position, key=itemgetter(0)) - 1][1]

    def ranges(self, position: int, count: int) -> list[tuple[int, int]]:
        """The places in the input of `count` items from `position` on, as (first, count) of those that are consecutive."""
        if not self.permuted:
            return [(position, count)] if count else []
        found: list[tuple[int, int]] = []
        for index in map(self.index_of, range(position, position + count)):
            if found and sum(found[-1]) == index:
                found[-1] = (found[-1][0], found[-1][1] + 1)
            else:
                found.append((index, 1))
        return found

    def take(self, count: int, *, copy: bool = True) -> Chunk | None:
        """Return the next `count` items, fewer at the end, None when there are none left.

        Args:
            count: How many.
            copy: False may give a view on the user's list, for a chunk that runs before the caller goes on.

        Raises:
            Exception: Whatever the iterator raises; the items before that are handed out first.
        """
        start = self._position
        items: Sequence[Any]
        if self._sequence is None:
            items = self._pull(count) if self._seen is None else self._pull_unseen(count, self._seen)
        elif copy or isinstance(self._sequence, range):
            items = self._sequence[start : start + count]
        else:
            items = Window(self._sequence, start, max(0, min(count, len(self._sequence) - start)))
        if not items:
            return None
        self._position += len(items)
        return Chunk(start, items, self._indices(start, len(items)) if self.permuted else None)

    def _indices(self, start: int, count: int) -> Sequence[int]:
        first = self.index_of(start)
        if self._order is None and self.index_of(start + count - 1) == first + count - 1:
            return range(first, first + count)
        return tuple(self.index_of(position) for position in range(start, start + count))

    def _pull(self, count: int) -> list[Any]:
        """Iterate. Once it has ended the iterator is left alone: a terminal or a growing file would go on after its end."""
        assert self._iterator is not None
        items: list[Any] = []
        if self._error is not None:
            raise self._error
        if not self._ended:
            try:
                items.extend(itertools.islice(self._iterator, count))
                self._ended = len(items) < count
            except Exception as error:
                self._error, self._ended = error, True
                if not items:
                    raise
        return items

    def _pull_unseen(self, count: int, seen: Callable[[int, Any], bool]) -> list[Any]:
        """Iterate, and leave out what was seen before."""
        items, self._ahead = self._ahead, []
        while len(items) < count:
            try:
                read = self._pull(count - len(items))
            except Exception:
                if items:  # `_pull` raises it again the next time
                    break
                raise
            if not read:
                break
            for item in read:
                index, self.n_read = self.n_read, self.n_read + 1
                if seen(index, item):
                    continue
                position = self._position + len(items)
                if index - position != self._gaps[-1][1]:
                    self._gaps.append((position, index - position))
                items.append(item)
        return items

    def is_at_end(self) -> bool:
        """Whether all items that are left of an iterator were seen before. It is read up to the first one that was not.

        Raises:
            Exception: What `seen` raises. What the iterator raises is left to `take`.
        """
        assert self._seen is not None
        try:
            self._ahead = self._pull_unseen(1, self._seen)
        except Exception as error:
            if error is not self._error:
                raise
            return False
        return not self._ahead

    def close(self) -> None:
        """Close a generator, so that its `finally` runs now."""
        close = getattr(self._iterator, "close", None)
        if isinstance(self._iterator, GeneratorType) and close is not None:
            close()


class Window(Sequence[Any]):
    """Part of a list or tuple, not copied: a slice costs 6 ns per item, as much as a seventh of `x + 1`."""

    __slots__ = ("_count", "_sequence", "_start")

    def __init__(self, sequence: Sequence[Any], start: int, count: int) -> None:
        self._sequence, self._start, self._count = sequence, start, count

    def __len__(self) -> int:
        return self._count

    def open_end(self) -> Iterator[Any]:
        """The items from the first one on, and those behind the last one: for who counts them, which costs 3 ns per item."""
        walk = iter(self._sequence)
        walk.__setstate__(self._start)  # type: ignore[attr-defined]  # what copy() and pickle use; islice would walk there
        return walk

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.open_end(), self._count)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            begin, stop, step = at.indices(self._count)
            return self._sequence[self._start + begin : self._start + stop : step]
        return self._sequence[self._start + range(self._count)[at]]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self[:],)


def _iterator_of(items: Any) -> Iterator[Any]:
    try:
        return iter(items)
    except TypeError:
        import inspect  # 13 ms, and only who made a mistake needs it

        if inspect.isgeneratorfunction(items):
            raise OptionTypeError(
                f"items is the generator function {items.__qualname__}: call it, {items.__qualname__}()"
            ) from None
        if inspect.isasyncgen(items) or inspect.iscoroutine(items):
            raise OptionTypeError(
                f"items is an async {type(items).__name__}: collect it first, [x async for x in ...]"
            ) from None
        if getattr(items, "__iter__", None) is not None:  # it can be iterated, and its own code raised
            raise
        if hasattr(items, "iter_batches"):
            raise OptionTypeError(
                f"items is a {type(items).__name__}, whose rows come in batches: it has map_batches(fn) for all of them at "
                "once, or give iter_batches(), whose items are tables"
            ) from None
        raise OptionTypeError(
            f"items must be something to iterate over, such as a list or a generator, not {type(items).__name__}"
        ) from None


def _length(items: Iterable[Any]) -> int | None:
    """How many items, when the container says so; only a hint, since `len` may lie or raise."""
    try:
        return len(items)  # type: ignore[arg-type]
    except Exception:
        return None


def _longest_first(
    read: list[Any], indices: list[int], cost: Callable[[Any], float]
) -> tuple[list[Any], list[float], list[int]]:
    costs = {}
    for index in indices:
        value = cost(read[index])
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise OptionTypeError(f"cost(items[{index}]) returned {value!r}; it must return a number") from None
        if not math.isfinite(number) or number < 0:
            raise OptionError(f"cost(items[{index}]) returned {value!r}; a cost must be finite and not negative")
        costs[index] = number
    order = sorted(indices, key=costs.__getitem__, reverse=True)
    return [read[index] for index in order], [costs[index] for index in order], order
