"""Passes over the rows of a dataset: each is one run of its pieces, and states are combined in a fixed tree.

    Gather.fold   in a worker: tables of a piece ──Features──> Rows ──seen──> Rows ──fold, combine──> one state per pass
    FoldKept      in a worker: the same, of what it has kept of the piece
    Passes.run    here: states of pieces ──combine, by the tree over their places──> finish

Rows that a recipe wants again are kept where they were made, or their tables are, where they will be seen some other way; the
next pass asks for those first, and reads what nobody has.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from fourfold.aggregate.tree import TreeReduction
from fourfold.data.pieces import Piece
from fourfold.data.plan import Plan
from fourfold.data.running import Run
from fourfold.data.work import Count, FailedRow
from fourfold.execute import current
from fourfold.options import RunOfBlock, Settings, resolve
from fourfold.workloads.fit.checking import CheckSeen
from fourfold.workloads.fit.contract import Pass, Rows
from fourfold.workloads.fit.kept import Kept, name_in
from fourfold.workloads.fit.kept_file import Keeping
from fourfold.workloads.fit.seen import Features, all_seen, in_one_block
from fourfold.workloads.fit.threads import one_thread
from fourfold.workloads.fit.views import TABLES, Part, Views, Wanted, folded

SHORT_S = 0.02
"""Seconds of work for each worker, below which it gets its pieces all at once in the next pass over kept rows. Smaller: more
of such a pass is messages, of some 0.2 ms each. Larger: a worker that is slower than others ends later. Not measured."""


class Gather:
    """Makes a Part of the tables of a piece: see `fourfold.data.work.Gather`."""

    def __init__(self, features: Features, wanted: Wanted, kept: Kept) -> None:
        self._features, self._wanted, self._kept = features, wanted, kept

    def open(self) -> None:
        """It needs nothing."""

    def fold(self, piece: Piece, tables: Iterator[Any]) -> Part:
        """Go through all tables."""
        with self._kept.keeping(piece.number, self._wanted.new()) as keeping:
            with self._keeping_tables(piece, tables) as (passing, is_kept), one_thread():
                part = self._folded(piece, passing, keeping)
                part = part._replace(has_tables=is_kept())
            with _ending_the_fit():
                for each in keeping.values():
                    each.finish()
        return part

    @contextmanager
    def _keeping_tables(self, piece: Piece, tables: Iterator[Any]) -> Iterator[tuple[Iterator[Any], Callable[[], bool]]]:
        """A block with the same tables, which are kept while they pass by, and whether they are when all have."""
        n_pieces = self._wanted.keeps_tables
        new = self._kept.new_tables(piece.number, n_pieces) if n_pieces else None
        if new is None:
            yield tables, lambda: False
            return
        try:
            yield new.passing(tables), new.finish
        except BaseException:
            new.discard()
            raise

    def _folded(self, piece: Piece, tables: Iterator[Any], keeping: Mapping[int, Keeping]) -> Part:
        first, n_rows = self._wanted.first_of(piece.number), 0
        states = self._wanted.no_states()
        for table in tables:
            if not table.num_rows:  # many transformers cannot take that
                continue
            with _ending_the_fit():
                rows = self._features(table)._replace(first=None if first is None else first + n_rows)
                n_rows += rows.n_rows
                fold_each(self._wanted, range(len(states)), rows, states, keeping)
        return Part(n_rows, states)


def fold_each(
    wanted: Wanted, chosen: Sequence[int], rows: Rows, states: list[Any], keeping: Mapping[int, Keeping], shares: bool = False
) -> None:
    """Fold some rows for some of the passes, and keep what is wanted again.

    Args:
        wanted: All passes.
        chosen: The places of those that look at these rows.
        rows: As they come.
        states: Those before, in whose places the new ones are put.
        keeping: Files of rows, by view.
        shares: The rows are those of the files' bases.
    """
    added = set()
    for at, seen in zip(chosen, all_seen(rows, [wanted.passes[at].seen for at in chosen]), strict=True):
        view = wanted.views[at]
        if view is not None:
            seen = in_one_block(seen)
            if view in keeping and view not in added:
                keeping[view].add(seen, rows if shares else None)
                added.add(view)
        states[at] = folded(wanted.passes[at], states[at], seen)


@contextmanager
def _ending_the_fit() -> Iterator[None]:
    """What is raised here is no failure of rows that on_error="skip" leaves out: all rows of the piece would go with them."""
    try:
        yield
    except Exception as error:
        BaseException.__setattr__(error, "is_of_plan", True)
        raise


class FoldKept:
    """Called with the number of each piece: folds what this machine has kept of it. None when it has not."""

    def __init__(self, wanted: Wanted, kept: Kept, features: Features) -> None:
        self._wanted, self._kept, self._features = wanted, kept, features

    def is_there(self, piece: int) -> bool | None:
        """Whether this machine has kept it; None when it has not."""
        return all(self._rows(piece, base) is not None for base in self._wanted.bases or ()) or None

    def __call__(self, piece: int) -> Part | None:
        """The part of a piece."""
        bases, views = self._wanted.bases or (), self._wanted.views
        found = {base: kept for base in bases if (kept := self._rows(piece, base)) is not None}
        if len(found) < len({*bases}):
            return None
        states, counts = self._wanted.no_states(), set()
        with self._kept.keeping(piece, self._wanted.new()) as keeping, one_thread():
            for base, batches in found.items():
                chosen = [at for at, own in enumerate(bases) if own == base]
                new = {view: keeping[view] for at in chosen if (view := views[at]) in keeping}
                n_rows = 0
                for rows in batches:
                    fold_each(self._wanted, chosen, rows, states, new, shares=base != TABLES)
                    n_rows += rows.n_rows
                counts.add(n_rows)
            for each in keeping.values():
                each.finish()
        return Part(counts.pop(), states)

    def _rows(self, piece: int, base: int) -> Iterator[Rows] | None:
        """What is kept of a piece, in this form."""
        first = self._wanted.first_of(piece)
        if base != TABLES:
            return self._kept.find(piece, base, first)
        tables = self._kept.find_tables(piece)
        return None if tables is None else self._rows_of(tables, first)

    def _rows_of(self, tables: Iterator[Any], first: int | None) -> Iterator[Rows]:
        for table in tables:
            yield self._features(table)._replace(first=first)
            first = None if first is None else first + table.num_rows


class Passes:
    """Looks at all rows, as often as a recipe wants.

    Attributes:
        folder: Where all passes are recorded; None for nowhere.
        n_rows: How many there are, after the first pass.
        failures: Those that were left out, likewise.

    Args:
        plan: The dataset.
        features: What rows its tables are.
        options: See `fourfold.Options`. Of a recorded run, each pass has a folder of its own in `run=`.
    """

    def __init__(self, plan: Plan, features: Features, options: Mapping[str, Any]) -> None:
        settings = resolve(options)
        self.folder = _folder_of(settings)
        self._leaves_out = settings.on_error != "raise"
        self._plan, self._features, self._options = plan, features, dict(options)
        self._pieces = list(plan.pieces())
        self._kept = Kept(name_in(self.folder))
        self._views = Views()
        self._asking: Run | None = None
        self._chunk: int | None = None
        self._counts: list[int] | None = None
        self._firsts: dict[int, int] | None = None
        self._with_tables: set[int] = set()
        self._n_done = 0
        self.n_rows = 0
        self.failures: list[FailedRow] = []

    def run(self, passes: list[Pass]) -> list[Any]:
        """Do these at once. Gives what each finished with.

        Raises:
            ValueError: There are no rows, or an aggregator refuses them.
            Exception: See `fourfold.map`.
        """
        if self._leaves_out and not self._n_done:  # what the first pass cannot take, no later one sees
            self._plan = self._plan.with_step(CheckSeen(self._features, [each.seen for each in passes]))
        if any(each.keep or each.again for each in passes):
            self._kept.open()
        wanted, kept = self._views.asked(passes, self._firsts, 2 * len(self._with_tables) > len(self._pieces))
        if any(each.again for each in passes) and not self._n_done:
            wanted = wanted._replace(keeps_tables=len(self._pieces))
        try:
            parts = {} if kept is None else self._parts_kept(kept)
            parts |= self._parts_read(wanted, [piece for piece in self._pieces if piece.number not in parts])
        except (ValueError, TypeError) as error:
            if self._n_done or not self._leaves_out:  # else nobody knows yet which rows are left out
                self._blame_a_row(wanted, error)
            raise
        self._n_done += 1
        self._with_tables |= {number for number, part in parts.items() if part.has_tables}
        self._count(parts)
        if not self.n_rows:
            raise ValueError("there are no rows to fit")
        return finished(passes, [parts[piece.number] for piece in self._pieces])

    def close(self) -> None:
        """Forget what was kept."""
        self._kept.forget()

    def _parts_kept(self, wanted: Wanted) -> dict[int, Part]:
        """By the numbers of pieces, of those that the machine has kept whose worker was asked."""
        if self._asking is None:
            gather = Gather(self._features, wanted, self._kept)
            self._asking = Run(self._plan, gather, {**self._options, "run": None}, "fit", pieces=())
        asking, numbers = self._asking, [piece.number for piece in self._pieces]
        folder = self._options_of("-kept")["run"]
        found = asking.call(FoldKept, (wanted, self._kept, self._features), numbers, "fit", folder, self._chunk)
        report = asking.report
        is_short = report.engine == "processes" and report.busy_s < SHORT_S * report.workers
        self._chunk = -(-len(numbers) // report.workers) if is_short else None
        return {number: part for number, part in zip(numbers, found, strict=True) if part is not None}

    def _parts_read(self, wanted: Wanted, pieces: Sequence[Piece]) -> dict[int, Part]:
        if not pieces:
            return {}
        gather = Gather(self._features, wanted, self._kept)
        run = Run(self._plan, gather, self._options_of(""), "fit", pieces=pieces)
        with run.pieces_done() as done:
            parts = {piece.number: each.value or Part(0, wanted.no_states()) for piece, each in done}
        if not self._n_done:
            run.warn_of_failures()  # the later ones leave out the same rows
            self.failures = run.failures
        return parts

    def _blame_a_row(self, wanted: Wanted, error: Exception) -> None:
        """Raise what a row raises alone, with its file and number, when it is the rows that the estimator cannot take."""
        if any(note.startswith("fourfold: row ") for note in getattr(error, "__notes__", [])):
            return
        plan = self._plan.with_step(CheckSeen(self._features, [each.seen for each in wanted.passes]))
        run = Run(plan, Count(), {**self._options, "run": None, "progress": False, "max_failures": None}, "fit")
        with run.pieces_done() as done:
            for _ in done:
                pass
        left_out = {(each.path, each.row) for each in self.failures}
        for bad in run.failures:
            if (bad.path, bad.row) not in left_out and bad.error is not None:
                bad.error.add_note(f"fourfold: row {bad.row} of {bad.path}: {bad.shown}")
                raise bad.error from None

    def _options_of(self, what: str) -> dict[str, Any]:
        """The options of the next pass."""
        if self.folder is None:
            return {**self._options, "run": None}
        return {**self._options, "run": os.path.join(self.folder, f"pass-{self._n_done + 1}{what}")}

    def _count(self, parts: Mapping[int, Part]) -> None:
        counts = [parts[piece.number].n_rows for piece in self._pieces]
        if self._counts not in (None, counts):
            raise ValueError(
                f"there were {self.n_rows:,} rows in the first pass, and {sum(counts):,} in pass {self._n_done}: a fit wants "
                "the same ones each time. Are files changing, or does a step fail now and then?"
            )
        self._counts, self.n_rows = counts, sum(counts)
        numbers = (piece.number for piece in self._pieces)
        self._firsts = dict(zip(numbers, accumulate(counts, initial=0), strict=False))


def finished(passes: Sequence[Pass], parts: Sequence[Part]) -> list[Any]:
    """What all rows together say, for each pass: the parts of pieces, in their order, by a tree over their places."""
    found = []
    for at, each in enumerate(passes):
        tree = TreeReduction(each.aggregator.combine)
        state = tree.identity()
        for place, part in enumerate(parts):
            state = tree.combine(state, [((0, place), part.states[at])])
        found.append(each.aggregator.finish(tree.finish(state, len(parts))))
    return found


def _folder_of(settings: Settings) -> str | None:
    """Where all passes are recorded."""
    if isinstance(settings.run, RunOfBlock):
        return None if current.inside_item() else settings.run.of_next_call()
    return settings.run
