"""Passes over the rows of a dataset: each is one run of its pieces, and states are combined in a fixed tree.

    Gather.fold   in a worker: tables of a piece ──Features──> Rows ──seen──> Rows ──fold, combine──> one state per pass
    Passes.run    here: states of pieces ──combine, by the tree over their places──> finish

Rows that a recipe wants again are kept where they were made; the next pass asks for those first, and reads what nobody has.
"""

import operator
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fourfold.aggregate.tree import EMPTY, TreeReduction
from fourfold.data.pieces import Piece
from fourfold.data.plan import Plan
from fourfold.data.running import Run
from fourfold.workloads.fit.contract import Pass, Rows, Seen
from fourfold.workloads.fit.kept import Kept
from fourfold.workloads.fit.seen import Features

Place = Callable[[Piece, int], tuple[str, int]]


class Part(NamedTuple):
    """What comes of one piece: how many rows it has, and a state for each pass."""

    n_rows: int
    states: list[Any]


class Wanted(NamedTuple):
    """What a worker is told of the passes that are done at once.

    Attributes:
        passes: All of them.
        views: For each, the number under which its rows are kept; None when they are not.
        firsts: The number of the first row of each piece, by the piece's number; None in the first pass.
    """

    passes: Sequence[Pass]
    views: Sequence[int | None]
    firsts: Mapping[int, int] | None

    def first_of(self, piece: int) -> int | None:
        """The number of the first row of a piece."""
        return None if self.firsts is None else self.firsts.get(piece)


class Gather:
    """Makes a Part of the tables of a piece: see `fourfold.data.work.Gather`.

    Args:
        features: What rows the tables are.
        wanted: The passes.
        kept: Where rows are kept.
        place: The file and number of a row of a piece; None where steps may have changed which rows there are.
    """

    def __init__(self, features: Features, wanted: Wanted, kept: Kept, place: Place | None) -> None:
        self._features, self._wanted, self._kept, self._place = features, wanted, kept, place

    def open(self) -> None:
        """It needs nothing."""

    def fold(self, piece: Piece, tables: Iterator[Any]) -> Part:
        """Go through all tables."""
        first, n_rows = self._wanted.first_of(piece.number), 0
        states: list[Any] = [EMPTY] * len(self._wanted.passes)
        n_batches = 0
        for table in tables:
            rows = self._features(table)._replace(first=None if first is None else first + n_rows)
            try:
                self._look(rows, piece.number, n_batches, states)
            except ValueError as error:
                path, row = (f"what the steps make of {piece.path or 'the table'}", n_rows)
                if self._place is not None:
                    path, row = self._place(piece, n_rows)
                error.add_note(f"fourfold: row 0 of that batch is row {row} of {path}")
                raise
            n_rows += rows.n_rows
            n_batches += 1
        for view in {each for each in self._wanted.views if each is not None}:
            self._kept.kept(piece.number, view, n_batches)
        return Part(n_rows, states)

    def _look(self, rows: Rows, piece: int, batch: int, states: list[Any]) -> None:
        """Keep rows and fold them, for each pass."""
        for at, seen in enumerate(_all_seen(rows, self._wanted.passes)):
            view = self._wanted.views[at]
            if view is not None:
                self._kept.keep(piece, view, batch, seen)
            states[at] = _folded(self._wanted.passes[at], states[at], seen)


class FoldKept:
    """Called with the number of each piece: folds what this machine has kept of it. None when it has not."""

    def __init__(self, wanted: Wanted, kept: Kept) -> None:
        self._wanted, self._kept = wanted, kept

    def __call__(self, piece: int) -> Part | None:
        """The part of a piece."""
        states: list[Any] = [EMPTY] * len(self._wanted.passes)
        n_rows = 0
        for at, (wanted, view) in enumerate(zip(self._wanted.passes, self._wanted.views, strict=True)):
            found = None if view is None else self._kept.find(piece, view, self._wanted.first_of(piece))
            if found is None:
                return None
            n_rows = 0
            for rows in found:
                states[at] = _folded(wanted, states[at], rows)
                n_rows += rows.n_rows
        return Part(n_rows, states)


def _folded(wanted: Pass, state: Any, rows: Rows) -> Any:
    if not rows.n_rows:
        return state
    found = wanted.aggregator.fold(rows)
    return found if state is EMPTY else wanted.aggregator.combine(state, found)


def _all_seen(rows: Rows, passes: Sequence[Pass]) -> Iterator[Rows]:
    """The rows as each pass sees them; what several begin with is done once."""
    done: dict[tuple[int, ...], Rows] = {(): rows}
    for each in passes:
        key: tuple[int, ...] = ()
        for step in each.seen:
            behind = (*key, id(step))
            if behind not in done:
                done[behind] = step(done[key])
            key = behind
        yield done[key]


class Passes:
    """Looks at all rows, as often as a recipe wants.

    Args:
        plan: The dataset.
        features: What rows its tables are.
        options: See `fourfold.Options`.
    """

    def __init__(self, plan: Plan, features: Features, options: Mapping[str, Any]) -> None:
        self._plan, self._features, self._options = plan, features, dict(options)
        self._pieces = list(plan.pieces())
        self._kept = Kept(secrets.token_hex(8))
        self._views: list[tuple[Seen, ...]] = []
        self._firsts: dict[int, int] | None = None
        self.n_rows = 0

    def run(self, passes: list[Pass]) -> list[Any]:
        """Do these at once. Gives what each finished with.

        Raises:
            ValueError: There are no rows, or an aggregator refuses them.
            Exception: See `fourfold.map`.
        """
        is_kept = self._firsts is not None and all(each.keep and self._view_of(each) is not None for each in passes)
        wanted = Wanted(passes, [self._view_of(each, add=True) if each.keep else None for each in passes], self._firsts)
        parts = self._parts_kept(wanted) if is_kept else {}
        parts |= self._parts_read(wanted, [piece for piece in self._pieces if piece.number not in parts])
        if self._firsts is None:
            self._count(parts)
        if not self.n_rows:
            raise ValueError("there are no rows to fit")
        return [self._finished(each, at, parts) for at, each in enumerate(passes)]

    def close(self) -> None:
        """Forget what was kept."""
        self._kept.forget()

    def _view_of(self, wanted: Pass, add: bool = False) -> int | None:
        """The number of what the rows of a pass look like; None when no pass before it has kept them."""
        for number, view in enumerate(self._views):
            if len(view) == len(wanted.seen) and all(map(operator.is_, view, wanted.seen)):
                return number
        if add:
            self._views.append(wanted.seen)
        return len(self._views) - 1 if add else None

    def _parts_kept(self, wanted: Wanted) -> dict[int, Part]:
        """By the numbers of pieces, of those that the machine has kept whose worker was asked."""
        run = self._new_run(wanted, ())
        numbers = [piece.number for piece in self._pieces]
        found = run.call(FoldKept, (wanted, self._kept), numbers, "fit")
        return {number: part for number, part in zip(numbers, found, strict=True) if part is not None}

    def _parts_read(self, wanted: Wanted, pieces: Sequence[Piece]) -> dict[int, Part]:
        if not pieces:
            return {}
        run = self._new_run(wanted, pieces)
        with run.pieces_done() as done:
            parts = {piece.number: each.value or Part(0, [EMPTY] * len(wanted.passes)) for piece, each in done}
        run.warn_of_failures()
        return parts

    def _new_run(self, wanted: Wanted, pieces: Sequence[Piece]) -> Run:
        place = None if self._plan.steps else self._plan.source.place
        gather = Gather(self._features, wanted, self._kept, place)
        return Run(self._plan, gather, self._options, "fit", pieces=pieces)

    def _count(self, parts: Mapping[int, Part]) -> None:
        firsts = {}
        for piece in self._pieces:
            firsts[piece.number] = self.n_rows
            self.n_rows += parts[piece.number].n_rows
        self._firsts = firsts

    def _finished(self, wanted: Pass, at: int, parts: Mapping[int, Part]) -> Any:
        """What all rows together say, by a tree over the places of pieces."""
        tree = TreeReduction(wanted.aggregator.combine)
        state = tree.identity()
        for place, piece in enumerate(self._pieces):
            state = tree.combine(state, [((0, place), parts[piece.number].states[at])])
        return wanted.aggregator.finish(tree.finish(state, len(self._pieces)))
