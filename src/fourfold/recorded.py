"""A call with `run=`: joins what it finishes with what earlier calls have recorded.

settled segments ──> the call      what earlier calls finished comes back from the journal, at the point where the source
       └──> journal ──^            passes it
"""

import logging
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fourfold.addresses import without_secrets
from fourfold.aggregate.failures import Failures
from fourfold.aggregate.tree import TreeReduction
from fourfold.distribute.driver import Driver
from fourfold.divide.source import Source
from fourfold.errors import RunError
from fourfold.execute import current
from fourfold.execute.pickling import dump, dump_by_name, load
from fourfold.execute.troubles import pickled, unpickled
from fourfold.options import RunOfBlock, Settings
from fourfold.records import Chunk, Segment
from fourfold.runs.recording import Carriage, Recording, Subject
from fourfold.runs.tables import Done
from fourfold.system.interrupts import Shield


def open_recording(
    fn: Callable[..., Any],
    settings: Settings,
    name: str,
    tree: TreeReduction | None,
    parts_of_init: Mapping[str, Any] | None = None,
) -> Recording | None:
    """Open the folder of `run=`; None when the call is inside an item, or inside `using(run=…)` that is.

    `parts_of_init` are the parts of `init=` by their names, where it is not of the user: each is compared for itself.

    Raises:
        RunError: The folder cannot be used, or was recorded by something else.
    """
    path = settings.run
    if isinstance(path, RunOfBlock):
        path = None if current.inside_item() else path.of_next_call()
    if path is None:
        return None
    parts: dict[str, Any] = {"function": fn}
    parts |= {"init": settings.init} if settings.init else {}
    parts |= {"seed": settings.seed} if settings.seed is not None else {}
    parts |= {"combine": tree.function} if tree is not None else {}
    compared = parts
    if parts_of_init is not None:
        compared = {each: part for each, part in parts.items() if each != "init"} | {**parts_of_init}
    subject = Subject(
        name=name,
        kind="map" if tree is None else "reduce",
        parts=parts,
        compared=compared,
        options={each: without_secrets(repr(getattr(settings, each))) for each in sorted(settings.asked() - {"init"})},
        repeatable=settings.idempotent,
        failures_stand=settings.on_error != "raise",
    )
    return Recording(path, subject, Carriage(dump, dump_by_name, load, pickled, unpickled))


@dataclass
class Recorded:
    """What is recorded of one call, and what comes back from earlier ones.

    Attributes:
        recording: The open folder.
        tree: None, or how values are reduced.
        source: The items.
        failures: Those of this call.
        driver: Runs what is left.
        by_index: Divides a segment of positions into those of consecutive indices.
        raises: The first failure ends the call; `in_order`: after the segments before it.
    """

    recording: Recording
    tree: TreeReduction | None
    source: Source
    failures: Failures
    driver: Driver
    by_index: Callable[[Segment], Iterable[Segment]]
    raises: bool
    in_order: bool = False
    stopped_by_failure: bool = False
    n_recalled: int = 0
    _is_used_later: bool = field(default=False, init=False)
    _is_waiting: bool = field(default=False, init=False)
    """All items have ended, and what uses their values has not."""

    def __post_init__(self) -> None:
        self.failures.run, self.failures.keep = self.recording.path, self.recording.fail

    def segments(self, raw: Generator[Segment]) -> Iterator[Segment]:
        """What was recorded before, and what comes now."""
        recording, state = self.recording, "stopped"
        try:
            recording.begin()
            try:
                for segment in raw:
                    yield from self._recall()
                    yield from self.by_index(segment)
            except Exception as error:
                if not isinstance(error, RunError):  # the items before an input that raises come first, as in the loop
                    yield from self._recall()
                raise
            yield from self._recall()
            if not self.driver.reason:
                recording.check_end(self.source.n_read)
            state = "failed" if self.driver.reason else "done"
            if self._is_used_later and state == "done":
                recording.beat()
        except BaseException as error:
            state = self._state_after(error)
            raise
        finally:
            self._end("failed" if self.stopped_by_failure else state, raw)

    @contextmanager
    def used_by(self) -> Iterator[None]:
        """A block that uses all values: the run is done when it ends, and not when it fails or its process dies before."""
        self._is_used_later, state = True, "done"
        try:
            yield
        except BaseException as error:
            if self._is_waiting:
                state = self._state_after(error)
            raise
        finally:
            self._is_used_later = False
            if self._is_waiting:
                self._end(state)

    def _state_after(self, error: BaseException) -> str:
        """How a call has ended that ended with this."""
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"fourfold: {self.recording.hint}")
            return "interrupted"
        return "failed" if isinstance(error, Exception) else "stopped"

    def beat(self, must_keep: bool) -> None:
        """To be called often: makes what is recorded outlive this process, soon or, when it must, at once."""
        self.recording.beat(must_keep)

    def starting(self, chunk: Chunk) -> None:
        """These items may have effects from now on."""
        self.recording.start([chunk.index_of(offset) for offset in range(len(chunk.items))])

    def not_started(self, chunk: Chunk) -> None:
        """They had none: nothing of them has run."""
        self.recording.not_started([chunk.index_of(offset) for offset in range(len(chunk.items))])

    def _end(self, state: str, raw: Generator[Segment] | None = None) -> None:
        """Record what ended while the call was stopped, and how it has ended, unless what uses its values is to tell that.

        Whatever happens here, the folder is free afterwards.
        """
        ended_by = sys.exception()
        self._is_waiting = self._is_used_later and state == "done"
        try:
            if raw is not None:
                _close_for_sure(raw)
        finally:
            if not self._is_waiting:
                self._close(state, ended_by)

    def _close(self, state: str, ended_by: BaseException | None = None) -> None:
        try:
            with Shield():
                self.recording.close(state)
        except Exception as error:
            if state in ("done", "stopped"):
                raise
            if not isinstance(ended_by, RunError):  # that is the one to be raised, and may have said it already
                logging.getLogger("fourfold").error("%s", error)

    def record(self, segment: Segment) -> None:
        """These items have values."""
        if self.tree is None:
            for each in self.by_index(segment):
                self.recording.add(each.start, each.values)
            return
        ranges, begin = [], segment.start
        for hole in (*segment.holes, segment.n_items + len(segment.holes)):
            ranges += self.source.ranges(begin, segment.start + hole - begin)
            begin = segment.start + hole + 1
        if ranges:
            self.recording.add_partial(ranges, segment.values)

    def _recall(self) -> Iterator[Segment]:
        """What the source has gone past: values, and failures, that an earlier call has recorded."""
        for row in self.recording.passed():
            if isinstance(row, Done):
                self.n_recalled += row.n_items
                yield Segment(row.first, row.n_items, self.recording.recall.values(row))
                continue
            self.n_recalled += 1
            failure = self.recording.recall.failure_of(row)
            values = self.failures.add(failure)
            if self.raises and not self.in_order and failure.error is not None:
                raise failure.error
            if self.tree is not None:
                values = [self.tree.absent(row.item)]
            yield Segment(row.item, 1, values)


def _close_for_sure(raw: Generator[Segment]) -> None:
    try:
        raw.close()
    except KeyboardInterrupt:
        raw.close()  # it may have come before that one began
        raise
