"""What rows look like that are kept, and what workers are told of the passes that are done at once."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fourfold.aggregate.tree import EMPTY
from fourfold.workloads.fit.contract import Pass, Rows, Seen
from fourfold.workloads.fit.seen import in_one_block

TABLES = -1
"""In place of the number of a view: the tables themselves, of which any rows can be made."""


class Part(NamedTuple):
    """What comes of one piece.

    Attributes:
        n_rows: How many it has.
        states: One for each pass.
        has_tables: They are kept on the machine of the driver.
    """

    n_rows: int
    states: list[Any]
    has_tables: bool = False


class Wanted(NamedTuple):
    """What a worker is told of the passes that are done at once.

    Attributes:
        passes: All of them.
        views: For each, the number under which its rows are kept; None when they are not.
        firsts: The number of the first row of each piece, by the piece's number; None in the first pass.
        bases: For each, the view that its rows are made of, or TABLES; None where they are read.
        keeps_tables: Those of so many pieces are to be kept; 0: none are.
    """

    passes: Sequence[Pass]
    views: Sequence[int | None]
    firsts: Mapping[int, int] | None
    bases: Sequence[int] | None = None
    keeps_tables: int = 0

    def first_of(self, piece: int) -> int | None:
        """The number of the first row of a piece."""
        return None if self.firsts is None else self.firsts.get(piece)

    def new(self) -> dict[int, int | None]:
        """Views that come to be, with their bases."""
        pairs = zip(self.views, self.bases or itertools.repeat(None), strict=False)
        return {view: None if base == TABLES else base for view, base in pairs if view is not None and view != base}

    def no_states(self) -> list[Any]:
        """Those of no rows."""
        return [EMPTY] * len(self.passes)


class View(NamedTuple):
    """What rows look like that are kept.

    Attributes:
        seen: The steps that a recipe has named.
        read: The steps that make them of rows that are read: with a base in between as it comes out of its file.
    """

    seen: tuple[Seen, ...]
    read: tuple[Seen, ...]


class Views:
    """Those of a fit: each has a number."""

    def __init__(self) -> None:
        self._views: list[View] = []

    def asked(
        self, passes: Sequence[Pass], firsts: Mapping[int, int] | None, has_tables: bool = False
    ) -> tuple[Wanted, Wanted | None]:
        """What is wanted where rows are read; and where they are kept: None when passes before have not kept all of these.

        Args:
            passes: That are done at once.
            firsts: See `Wanted`.
            has_tables: Tables are kept: rows that no view begins with are made of them.
        """
        bases = [self._longest(each.seen) for each in passes]
        read = [self._read(each.seen, base) for each, base in zip(passes, bases, strict=True)]
        views = [
            self._numbered(View(each.seen, steps)) if each.keep else None for each, steps in zip(passes, read, strict=True)
        ]
        wanted = Wanted([each._replace(seen=steps) for each, steps in zip(passes, read, strict=True)], views, firsts)
        found = [TABLES if base is None else base for base in bases]
        if firsts is None or (TABLES in found and not has_tables):
            return wanted, None
        rest = [
            each._replace(seen=each.seen if base == TABLES else self._behind(base, each.seen))
            for each, base in zip(passes, found, strict=True)
        ]
        return wanted, Wanted(rest, views, firsts, found)

    def _read(self, seen: tuple[Seen, ...], base: int | None) -> tuple[Seen, ...]:
        return seen if base is None else (*self._views[base].read, in_one_block, *self._behind(base, seen))

    def _behind(self, base: int, seen: tuple[Seen, ...]) -> tuple[Seen, ...]:
        return seen[len(self._views[base].seen) :]

    def _longest(self, seen: tuple[Seen, ...]) -> int | None:
        """The view that begins as this one does and goes furthest."""
        begins = [number for number, view in enumerate(self._views) if _are_same(view.seen, seen[: len(view.seen)])]
        return max(begins, key=lambda number: len(self._views[number].seen), default=None)

    def _numbered(self, wanted: View) -> int:
        for number, view in enumerate(self._views):
            if _are_same(view.seen, wanted.seen):
                return number
        self._views.append(wanted)
        return len(self._views) - 1


def _are_same(one: Sequence[Seen], other: Sequence[Seen]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def folded(wanted: Pass, state: Any, rows: Rows) -> Any:
    """A state with some rows more."""
    if not rows.n_rows:
        return state
    found = wanted.aggregator.fold(rows)
    return found if state is EMPTY else wanted.aggregator.combine(state, found)
