"""Where the rows of groups come from: the pieces of a dataset, or the partitions of a frame that lives in a cluster.

a dataset                 its pieces are the items of a call           ┐
a frame in a cluster      one job there, and each partition is a piece ┴─► Spill, where the rows are ──Spilled──> here

All that follows is the same: calls whose items are buckets, and then groups, on the same engine.
"""

import pickle
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from fourfold.data.frames import FrameFold, FrameKind, FramePass
from fourfold.data.pieces import Piece
from fourfold.data.plan import Plan
from fourfold.data.running import Run
from fourfold.data.work import Tables
from fourfold.errors import OptionError
from fourfold.execute import current
from fourfold.options import RunOfBlock, Settings, resolve
from fourfold.runs.digest import hash_of
from fourfold.runs.fingerprint import program_parts
from fourfold.workloads.groups.spill import Spill, Spilled

READING = "fit_groups: rows to buckets"


class Source(Protocol):
    """Rows, and how they are brought to their buckets.

    Attributes:
        schema: Of the rows.
        settings: Of the fits.
        is_elsewhere: Workers are on other machines.
    """

    schema: Any
    settings: Settings
    is_elsewhere: bool

    def spill(self, gather: Spill) -> list[Spilled]:
        """Go through all rows. Gives what there is of each piece, in their order.

        Raises:
            Exception: What a row raised that a step could not do.
            OptionError: A worker does not see the folder.
        """

    def digest(self) -> str:
        """What changes when the rows do."""


class OfDataset:
    """The rows of a dataset. See `Source`.

    Args:
        plan: It, with the columns that are wanted.
        options: Of the user: see `fourfold.Options`.
    """

    def __init__(self, plan: Plan, options: Mapping[str, Any]) -> None:
        self._plan, self.settings = plan, _with_own_folder(resolve(options))
        self._run = Run(plan, Tables(), _for_rows(options), READING)
        self.schema, self.is_elsewhere = plan.schema(), self._run.is_elsewhere

    def spill(self, gather: Spill) -> list[Spilled]:
        """See `Source`."""
        self._run.gather = gather
        with self._run.pieces_done() as pieces:
            found = [done.value for _, done in pieces if done.value is not None]
        return sorted(found, key=lambda each: each.number)

    def digest(self) -> str:
        """See `Source`: its files, its rows in memory, its steps."""
        for model in (step.model for step in self._plan.steps if step.model is not None):
            if not model.is_hidden:
                model.digest = model.look()
        parts = program_parts({"plan": self._plan, "pieces": list(self._plan.pieces())})
        return hash_of(repr(sorted(parts.items())).encode()).hex()


def _with_own_folder(settings: Settings) -> Settings:
    """Of `using(run=…)`, each call has a folder of its own; a call within an item has none."""
    run = settings.run
    if isinstance(run, RunOfBlock):
        run = None if current.inside_item() else run.of_next_call()
    return Settings(**{**settings.__dict__, "run": run})


def _for_rows(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which rows are read. A row that cannot be read ends the call: a group is fitted to all rows, or not."""
    of_fits = {"on_error": "raise", "max_failures": None, "timeout": None, "run": None, "chunk": "auto"}
    return {**options, **of_fits}


class OfFrame:
    """The rows of a frame that lives in a cluster. See `Source`.

    Args:
        kind: Of frame.
        frame: It.
        run: The steps on it.
        options: Of the user. Buckets and groups run where the frame lives.

    Raises:
        OptionError: An option is not for frames.
    """

    def __init__(self, kind: FrameKind, frame: Any, run: FramePass, options: Mapping[str, Any]) -> None:
        if "engine" in options:
            raise OptionError(f"engine= is not for {kind.name}: the cluster that has its rows fits their models, too")
        self._kind, self._frame, self._pass = kind, frame, run
        self.settings = resolve({**options, "engine": kind.engine(frame)})
        if self.settings.run is not None:
            raise OptionError(
                f"run= is not for {kind.name}: nobody can tell later whether it has the same rows still. Write it into files, "
                "with its own methods, and scan these"
            )
        engine = self.settings.engine
        self.schema, self.is_elsewhere = run.schema, not isinstance(engine, str) and bool(engine.info.elsewhere)

    def spill(self, gather: Spill) -> list[Spilled]:
        """See `Source`."""
        fold = FrameFold(self._pass, _There(gather))
        found = [pickle.loads(each) for each in self._kind.gather(self._kind.settled(self._frame), fold)]
        for each in found:
            if isinstance(each, OptionError):
                raise each
        return found

    def digest(self) -> str:
        """See `Source`: none is needed."""
        return ""


class _There:
    """Spills a partition: see `fourfold.data.work.Gather`."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill

    def open(self) -> None:
        """Nobody calls it in a cluster."""

    def fold(self, piece: Piece, tables: Iterator[Any]) -> Spilled | OptionError:
        """The error comes back as a value: as an exception it would be the end of the fourth attempt, and a text."""
        try:
            self._spill.open()
        except OptionError as error:
            for _ in tables:  # Spark wants them to be taken
                pass
            return error.with_traceback(None)
        return self._spill.fold(piece, tables)
