"""A plan is run: pieces are the items of a call, and a piece whose worker died is searched for the row to blame.

pieces ──> Call (engine, retries, journal, …) ──> PieceDone, in order
                   └─ crashed, timed out, out of memory ──> halves of its rows, again and again ──> the row
"""

import itertools
import logging
import os
import shutil
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from fourfold.addresses import without_secrets
from fourfold.aggregate.failures import NOTE
from fourfold.call import Call
from fourfold.data.files import lives_here
from fourfold.data.identity import parts_of_run
from fourfold.data.pieces import Piece
from fourfold.data.plan import Plan
from fourfold.data.steps import Loadable, is_of_plan
from fourfold.data.work import Count, FailedRow, Gather, Loader, PieceDone, Policy, RunPiece, Tables, shown
from fourfold.errors import OptionError, RunChanged, TooManyFailures
from fourfold.execute import current
from fourfold.lanes import NOT_FOR_THE_LOOP, Prepared
from fourfold.options import CLUSTER_ENGINES, RunOfBlock, Settings, cluster_of, resolve
from fourfold.records import Failure, Report

DEADLY = ("crashed", "timed out", "out of memory")
"""Failures of a piece that one of its rows may be to blame for."""

FAN = 64
"""Parts into which rows are cut to find the one that kills its worker. Each level costs two deaths, whatever the fan, and runs
all rows once more. Fewer: more levels. More: more items, of which each opens the file. Not measured."""

FEW_ROWS = 1000
"""A fraction of `max_failures` counts against so many rows at least, as long as not all are read."""


class Run:
    """One run of a plan.

    Args:
        plan: What is done.
        gather: What the tables of a piece become, in its worker.
        options: Of the user: see `fourfold.Options`.
        name: What is done, for messages.
        is_stream: What comes of pieces is wanted in order, and cannot be held until the end.
        to: The URL or folder that workers write to, "" for none.
        pieces: None for all of the plan, or those that are run.

    Raises:
        OptionError: An option cannot be used here, or a file of a model; before anything starts.
        MissingExtra: What loads a model is not installed.
    """

    def __init__(
        self,
        plan: Plan,
        gather: Gather,
        options: Mapping[str, Any],
        name: str,
        is_stream: bool = False,
        to: str = "",
        pieces: Sequence[Piece] | None = None,
    ) -> None:
        self._settings = _with_own_folder(_where_workers_see(resolve(options), plan.source.only_here or lives_here(to)))
        _check_fit(self._settings)
        self._plan, self.gather, self._name, self._is_stream = plan, gather, name, is_stream
        self._pieces = pieces
        self._policy = Policy(self._settings.on_error == "raise", self._settings.retries, self._settings.retry_on)
        self.failures: list[FailedRow] = []
        self.n_rows = 0
        self._loaders: set[Loader] = set()
        self._report: Report | None = None
        self._prepared = Prepared()
        self._check_max_failures()
        if not self.is_elsewhere:  # there a path may be one that only workers see: they tell
            plan.check_models()

    @property
    def report(self) -> Report:
        """Figures and verdict, when it has ended."""
        assert self._report is not None
        return self._report

    @property
    def n_loads(self) -> int:
        """How often models were loaded in this call: by workers that came back with rows."""
        return sum(each.n_models for each in self._loaders)

    @property
    def folder(self) -> str | None:
        """Where this run is recorded."""
        return self._settings.run

    @property
    def is_elsewhere(self) -> bool:
        """Whether its workers may be on other machines."""
        engine = self._settings.engine
        if current.inside_item():
            return False
        return cluster_of(engine) in CLUSTER_ENGINES if isinstance(engine, str) else bool(engine.info.elsewhere)

    def _check_max_failures(self) -> None:
        if self._settings.max_failures is not None and self._policy.first_only:
            raise OptionError(
                f'max_failures={self._settings.max_failures!r} allows failures, and on_error="raise" ends at the first one: '
                'add on_error="collect" or on_error="skip"'
            )

    @contextmanager
    def pieces_done(self) -> Iterator[Iterator[tuple[Piece, PieceDone]]]:
        """A block that takes what comes of each piece, and uses it: a recorded run counts as done when the block has ended.

        They come in order; but one that was searched for a bad row comes last, unless this is a stream.

        Raises:
            Exception: What the first failing row raised, under `on_error="raise"`.
            TooManyFailures: More rows failed than `max_failures` allows.
        """
        if self.folder is not None:
            self._look_at_models()
        elif self.is_elsewhere:
            self._tell_models_apart()
        pieces = list(self._plan.pieces() if self._pieces is None else self._pieces)
        call = self._call(pieces, self.gather, self._policy, self._settings.run)
        with call.used_by(), closing(self._pieces_of(call, pieces)) as done:
            yield done

    def _look_at_models(self) -> None:
        """Take down which models these are: where only workers see a file, one of them is asked."""
        models = [step.model for step in self._plan.steps if step.model is not None]
        hidden = [model for model in models if model.is_hidden]
        for model in models:
            if model not in hidden:
                model.digest = model.look()
        if hidden:
            for model, digest in zip(hidden, self.call(_Look, (), hidden, "look at a model"), strict=True):
                model.digest = digest

    def _tell_models_apart(self) -> None:
        """Workers of clusters keep what they have loaded for the next call: another model in the same file is not that one."""
        for model in (step.model for step in self._plan.steps if step.model is not None):
            model.digest = uuid.uuid4().hex if model.is_hidden else model.look()  # what nobody here sees is loaded anew

    def _pieces_of(self, call: Call, pieces: list[Piece]) -> Generator[tuple[Piece, PieceDone]]:
        deadly: list[tuple[Piece, Failure]] = []
        try:
            with closing(self._outcomes_of(call)) as outcomes:
                for outcome, piece in zip(outcomes, pieces, strict=False):  # the outcomes first: they are to come to their end
                    if isinstance(outcome, Failure) and outcome.kind in DEADLY and not self._is_stream:
                        deadly.append((piece, outcome))  # searched when nobody waits for it
                    else:
                        yield piece, self._settled(piece, outcome)
            call.raise_if_stopped()
        except Exception as error:
            self._raise(error, pieces[call.failures.sorted()[0].index] if call.failures.all else None)
        finally:
            self._report = call.conclude()
        for piece, failure in deadly:
            yield piece, self._settled(piece, failure)
        self._check_failures(is_end=True)

    def _outcomes_of(self, call: Call) -> Generator[Any]:
        """What comes of each item, in order; notes who has loaded models for it."""
        with closing(call.in_order()) as segments:
            for segment in segments:
                if isinstance(segment.values, list):  # others are in the journal, and nobody has loaded anything for them now
                    self._loaders |= {each.loader for each in segment.values if isinstance(each, PieceDone) and each.loader}
                yield from segment.values

    def _call(self, pieces: list[Piece], gather: Gather, policy: Policy, run: str | None, plan: Plan | None = None) -> Call:
        init = plan or self._plan, gather, policy
        changed = {
            "init": init,
            "on_error": "raise" if policy.first_only else "collect",
            "max_failures": None,
            "retries": 0,
            "run": run,
            "progress": self._settings.progress if run == self._settings.run and plan is None else False,
        }
        settings = Settings(**{**self._settings.__dict__, **changed})
        parts = parts_of_run(*init) if run is not None else None
        return Call(RunPiece, pieces, settings, bounded=True, name=self._name, parts_of_init=parts)

    def call(
        self,
        fn: type,
        init: tuple[Any, ...],
        items: list[Any],
        name: str,
        run: str | None = None,
        chunk: int | None = None,
    ) -> list[Any]:
        """What another class makes of items, built with `init` in the workers of this run; recorded in `run`, if anywhere.

        Args:
            fn: The class.
            init: What it is built with.
            items: What its instances are called with.
            name: For messages.
            run: Where it is recorded.
            chunk: Items per chunk, where the user has not said how many.

        Raises:
            Exception: What the first item that fails raised.
        """
        changed = {"init": init, "on_error": "raise", "max_failures": None, "retries": 0, "run": run, "timeout": None}
        settings = Settings(**{**self._settings.__dict__, "chunk": self._settings.chunk or chunk, **changed})
        call = Call(fn, items, settings, bounded=True, name=name, prepared=self._prepared)
        values = list(self._outcomes_of(call))
        call.raise_if_stopped()
        self._report = call.conclude()
        return values

    def _settled(self, piece: Piece, outcome: Any) -> PieceDone:
        if isinstance(outcome, PieceDone):
            done = outcome
        elif outcome.error is not None and is_of_plan(outcome.error):
            raise outcome.error
        elif outcome.kind in DEADLY:
            done = self._searched(piece, outcome)
        else:
            done = PieceDone(None, 0, [_whole(piece, outcome)], 0.0)
        self.n_rows += done.n_rows
        self.failures += done.failed
        self._check_failures(is_end=False)
        return done

    def _check_failures(self, is_end: bool) -> None:
        most = self._settings.max_failures
        if most is None:
            return
        n_rows = self.n_rows if is_end else max(self.n_rows, self._plan.source.n_rows or FEW_ROWS)
        if len(self.failures) > (most * n_rows if isinstance(most, float) else most):
            first = self.failures[0]
            raise TooManyFailures(
                f"{len(self.failures)} of {self.n_rows} rows failed, more than max_failures={most!r} allows; the first is row "
                f"{first.row} of {first.path}: {first.error_type}: {first.message}",
                failures=self.failures,
            ) from first.error

    # ---- a row that kills its worker ---------------------------------------------------------------------------------

    def _searched(self, piece: Piece, failure: Failure) -> PieceDone:
        """A piece without its rows that kill the worker that runs them."""
        killers = self._killers(piece, failure)
        if not killers:
            return PieceDone(None, 0, [_whole(piece, failure)], 0.0)
        failed = [self._failed(part, each) for part, each in killers]
        rest = piece._replace(without=tuple(part.rows[0] for part, _ in killers if part.rows))
        (outcome,) = self._outcomes([rest], self.gather, self._folder(piece, "rest"))
        if not isinstance(outcome, PieceDone):  # it is not these rows alone
            return PieceDone(None, 0, [_whole(piece, outcome)], 0.0)
        found = sorted([*failed, *outcome.failed], key=lambda each: each.row)
        return outcome._replace(failed=found, n_rows=outcome.n_rows + len(failed))

    def _killers(self, piece: Piece, failure: Failure) -> list[tuple[Piece, Failure]]:
        """The rows of a piece that kill their worker alone, each as a piece of one row; none when nobody can tell."""
        n_rows = self._as_read(piece, Count(), (), "rows")
        parts, depth = [(piece._replace(rows=(0, n_rows)), failure)] if n_rows else [], 0
        while any(_n_rows(part) > 1 for part, _ in parts):
            smaller = [small for part, _ in parts for small in _cut(part)]
            outcomes = self._outcomes(smaller, Count(), self._folder(piece, str(depth)))
            parts = [(part, each) for part, each in zip(smaller, outcomes, strict=True) if isinstance(each, Failure)]
            depth += 1
        return parts

    def _folder(self, piece: Piece, name: str) -> str | None:
        """Where a search is recorded."""
        run = self._settings.run
        return None if run is None else os.path.join(run, "search", f"{piece.number}-{name}")

    def _outcomes(self, pieces: list[Piece], gather: Gather, run: str | None, plan: Plan | None = None) -> list[Any]:
        """PieceDone or Failure of each piece. What a search with other steps has recorded is forgotten."""
        try:
            return self._outcomes_once(pieces, gather, run, plan)
        except RunChanged:
            if run is None:
                raise
            shutil.rmtree(run)
            return self._outcomes_once(pieces, gather, run, plan)

    def _outcomes_once(self, pieces: list[Piece], gather: Gather, run: str | None, plan: Plan | None) -> list[Any]:
        call = self._call(pieces, gather, self._policy._replace(first_only=False), run, plan)
        outcomes = list(self._outcomes_of(call))
        call.raise_if_stopped()
        call.conclude()
        return outcomes

    def _as_read(self, piece: Piece, gather: Gather, columns: tuple[str, ...], name: str) -> Any:
        """What comes of these columns of a piece before any step; None when it cannot be read."""
        plan = self._plan._replace(steps=(), columns=columns)
        (outcome,) = self._outcomes([piece], gather, self._folder(piece, name), plan)
        return outcome.value if isinstance(outcome, PieceDone) else None

    def _failed(self, piece: Piece, failure: Failure) -> FailedRow:
        """The row that is left of the piece, as a failure."""
        first = piece.rows[0] if piece.rows else 0
        tables = self._as_read(piece, Tables(), self._plan.columns, f"row-{first}")
        row = tables[0] if tables else None
        path, number = self._plan.source.place(piece, first)
        seen = shown(row) if row is not None else ""
        what = failure.kind, failure.error, failure.error_type, failure.message, failure.traceback
        return FailedRow(path, number, *what, seen, row)

    def _raise(self, error: Exception, piece: Piece | None) -> None:
        """Raise what ended the run, with the row that it is about instead of the piece."""
        from fourfold.errors import ItemTimeout, WorkerLost

        notes = [note for note in getattr(error, "__notes__", []) if not note.startswith(NOTE)]
        if isinstance(error, WorkerLost | ItemTimeout) and piece is not None:
            kind = "timed out" if isinstance(error, ItemTimeout) else "crashed"
            failure = Failure(0, kind, error, type(error).__name__, str(error), "", "")
            for bad in [self._failed(*killer) for killer in self._killers(piece, failure)[:1]]:
                notes.append(f"fourfold: row {bad.row} of {bad.path}: {bad.shown}")
        BaseException.__setattr__(error, "__notes__", notes)
        raise error

    def warn_of_failures(self) -> None:
        """Log rows without a value, where the answer has no place for them."""
        if self.failures:
            first = self.failures[0]
            logging.getLogger("fourfold").warning(
                "%s left out %d failed rows; the first: row %d of %s: %s: %s",
                self._name,
                len(self.failures),
                first.row,
                first.path,
                first.error_type,
                first.message,
            )


class _Look:
    """Called with each model in a worker that sees its file."""

    def __call__(self, model: Loadable) -> str:
        return model.look()


def _with_own_folder(settings: Settings) -> Settings:
    """Of `using(run=…)`, each run has a folder of its own: this one's, for all the calls that it makes."""
    if not isinstance(settings.run, RunOfBlock):
        return settings
    own = None if current.inside_item() else settings.run.of_next_call()
    return Settings(**{**settings.__dict__, "run": own})


def _where_workers_see(settings: Settings, only_here: bool) -> Settings:
    """The settings for workers that see the memory of this process, where it has what they read or write.

    Raises:
        OptionError: They are asked for elsewhere.
    """
    engine = settings.engine
    if not only_here or current.inside_item() or engine in ("serial", "threads"):
        return settings
    if engine == "auto" and not settings.asked() & NOT_FOR_THE_LOOP:
        logging.getLogger("fourfold").info("memory:// is the memory of this process: it stays the loop")
        return Settings(**{**settings.__dict__, "engine": "serial"})
    if not isinstance(engine, str) and engine.info.takes_objects:
        return settings
    name = engine if isinstance(engine, str) else engine.info.name
    asked = ", ".join(f"{each}=" for each in sorted(settings.asked() & NOT_FOR_THE_LOOP))
    raise OptionError(
        f"memory:// is the memory of this process, and workers of engine={without_secrets(name)!r} cannot see it"
        + (f" ({asked} needs processes)" if engine == "auto" else "")
        + ': use engine="serial" or "threads", or a store or folder that all workers see'
    )


def _check_fit(settings: Settings) -> None:
    """Refuse the options that speak of items of the user, which a dataset has not."""
    if settings.init:
        raise OptionError("init= is not for datasets: give it to map_batches or predict, with the class")
    if settings.cost is not None:
        raise OptionError("cost= is not for datasets: pieces of a table have no cost that anybody knows before they run")
    if not settings.idempotent:
        raise OptionError(
            "idempotent=False is not for datasets: rows are run again when a worker dies, and written once all the same"
        )


def _n_rows(piece: Piece) -> int:
    assert piece.rows is not None
    return piece.rows[1] - piece.rows[0]


def _cut(piece: Piece) -> list[Piece]:
    """The rows of a piece in at most FAN parts."""
    assert piece.rows is not None
    first, end = piece.rows
    n_parts = min(FAN, end - first)
    ends = [first + (end - first) * at // n_parts for at in range(n_parts + 1)]
    return [piece._replace(rows=each) for each in itertools.pairwise(ends)]


def _whole(piece: Piece, failure: Failure) -> FailedRow:
    """All rows of a piece, of which none could be read."""
    path = piece.path or "the table"
    return FailedRow(path, -1, failure.kind, failure.error, failure.error_type, failure.message, failure.traceback, "")
