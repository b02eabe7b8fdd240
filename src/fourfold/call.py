"""One call of a user: joins the four steps.

    source (divide) -> driver (distribute) -> program (execute) -> failures, order, report (aggregate)

The steps know nothing of each other; here each is handed what it needs. What only some calls need is imported when they do.
"""

import itertools
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import fourfold.system.machine as machine
from fourfold.aggregate.failures import Failures
from fourfold.aggregate.order import InOrder
from fourfold.aggregate.progress import Counts, Progress
from fourfold.aggregate.tree import TreeReduction
from fourfold.distribute.driver import Driver
from fourfold.distribute.inbox import ProgramFailed
from fourfold.distribute.schedule import Rules, Schedule
from fourfold.distribute.verdict import seconds, size
from fourfold.divide.source import Source
from fourfold.errors import JournalError, OptionError, OptionTypeError, RemoteTraceback, TooManyFailures, WorkersKeepDying
from fourfold.execute import current
from fourfold.execute.chunk import is_worker_class
from fourfold.execute.troubles import unpickled
from fourfold.lanes import NOT_FOR_THE_LOOP, Lanes, Prepared
from fourfold.options import Settings
from fourfold.records import Chunk, Report, Segment
from fourfold.shown import safe_repr

if TYPE_CHECKING:
    from fourfold.recorded import Recorded
    from fourfold.runs.recording import Recording

SLOW_OPENING = 0.1
"""Share of a call that it takes to connect to a cluster, from which the verdict speaks of it. Not measured."""


class Call:
    """One call, checked here and run when its segments are asked for.

    Args:
        fn: The user's function, or class.
        items: The user's items.
        settings: The user's options.
        bounded: Results are streamed: do not run far ahead of the slowest chunk.
        tree: None, or how values are reduced, partly in the workers.
        into: None, or the list that gets all values in input order: the loop may append to it, and such a segment has it
            for its values.
        name: What runs, for messages; "" for the function's own name.
        unit: What progress calls one of what it counts.
        counts: What progress shows; None for items.
        parts_of_init: None, or what `init` is made of, by the names that a message has for what has changed since a run
            was recorded.
        prepared: What calls with the same options have found out before.

    Raises:
        OptionError: Something cannot be used, before anything starts.
        RunError: The folder of `run=` cannot be used, or was recorded by something else.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        settings: Settings,
        *,
        bounded: bool = False,
        tree: TreeReduction | None = None,
        into: list[Any] | None = None,
        name: str = "",
        unit: str = "item",
        counts: Counts | None = None,
        parts_of_init: Mapping[str, Any] | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        _check_function(fn, settings)
        self._fn, self._settings, self._tree = fn, settings, tree
        self._name, self._unit, self._counts = name or machine.user_name_of(fn), unit, counts or _Counts(self)
        self._began = time.perf_counter()
        self._final: Report | None = None
        into = into if settings.cost is None and settings.run is None else None
        self._lanes = Lanes(fn, settings, self._name, tree, into, bounded, self._index_of, prepared)
        self._lane = self._lanes.first()
        self._recording = self._open_recording(parts_of_init)
        self._recorded: Recorded | None = None
        self._has_begun = False
        self._order = InOrder()
        try:
            self._set_up(items, bounded)
        except BaseException:
            self.give_up()
            raise

    def _set_up(self, items: Iterable[Any], bounded: bool) -> None:
        """Make the parts and join them."""
        settings, tree, recording = self._settings, self._tree, self._recording
        self._source = Source(items, settings.cost, recording.seen if recording is not None else None)
        total = self._source.total
        if recording is not None:
            recording.tell_total(total)
            if self._is_all_recorded(items):
                self._lane = self._lanes.loop()
            total = None if total is None or settings.cost is not None else max(0, total - recording.n_recorded)
        self._may_be_done = not self._lane.engine.info.inline and self._may_be_recorded(items)
        if not self._lane.engine.info.inline and not self._may_be_done:
            self._lanes.connect()  # not before: what the record has against this call is said at once
        self.failures = Failures(self._name, settings.on_error, settings.retry_on if settings.retries else (), unpickled)
        self._stops_at_failure = settings.on_error == "raise"
        self._stopped_by_failure = False
        rules = Rules(
            total=total if settings.cost is None else len(self._source.costs or ()),
            chunk=settings.chunk if settings.idempotent else 1,
            costs=self._source.costs,
            retries=settings.retries,
            stop_at_failure=self._stops_at_failure,
            max_failures=settings.max_failures,
            n_before=recording.n_recorded + recording.n_failed if recording is not None else 0,
            failures_before=recording.n_failed if recording is not None else 0,
            bounded=bounded,
            rerun_after_loss=settings.idempotent,
        )
        self._schedule = Schedule(rules)
        show = False if current.inside_item() else settings.progress
        self._progress = Progress(self._counts, self._source.total, show, machine.in_notebook(), self._name, self._unit)
        is_auto = settings.engine == "auto" and self._lane.engine.info.inline and not current.inside_item()
        self._chooser = self._lanes.chooser(rules.total) if is_auto else None
        self._driver = Driver(
            self._source,
            self._schedule,
            self._lane,
            self.failures,
            absent=tree.absent if tree is not None else None,
            choose=self._chooser,
            lane_failed=self._chooser.failed if self._chooser is not None else None,
            beat=self._beat,
            starting=None if recording is None or settings.idempotent else self._starting,
            not_started=None if recording is None or settings.idempotent else self._not_started,
            record=None if recording is None else self._record,
        )
        if recording is not None:
            from fourfold.recorded import Recorded

            self._recorded = Recorded(
                recording, tree, self._source, self.failures, self._driver, self._by_index, self._stops_at_failure
            )

    def _is_all_recorded(self, items: Iterable[Any]) -> bool:
        """Whether nothing is left to run, as far as that can be told without taking an item: then no worker need start."""
        assert self._recording is not None
        recording = self._recording
        if self._settings.cost is not None:  # all were read, for their costs
            return recording.n_recorded + recording.n_failed > 0 and not self._source.total
        return isinstance(items, Sequence) and len(items) > 0 and recording.has_first(len(items))

    def _may_be_recorded(self, items: Iterable[Any]) -> bool:
        """Whether only taking items can tell that nothing is left to run: they come one by one, and some are recorded."""
        recording = self._recording
        if recording is None or self._settings.cost is not None or isinstance(items, Sequence):
            return False
        return recording.n_recorded + recording.n_failed > 0

    def _leave_out_recorded(self) -> None:
        """Go past the items that are recorded; when none is behind them, no worker need start."""
        if self._source.is_at_end():
            self._lane = self._lanes.loop()
            self._driver.change_over(self._lane)
        else:
            self._lanes.connect()

    def _open_recording(self, parts_of_init: Mapping[str, Any] | None) -> "Recording | None":
        if self._settings.run is None:
            return None
        from fourfold.recorded import open_recording

        return open_recording(self._fn, self._settings, self._name, self._tree, parts_of_init)

    def _index_of(self, ticket: int, offset: int) -> int | None:
        return self._driver.index_of(ticket, offset)

    def _beat(self, must_keep: bool) -> None:
        self._progress.beat()
        if self._recorded is not None:
            self._recorded.beat(must_keep)

    def _record(self, segment: Segment) -> None:
        assert self._recorded is not None
        self._recorded.record(segment)

    def _starting(self, chunk: Chunk) -> None:
        assert self._recorded is not None
        self._recorded.starting(chunk)

    def _not_started(self, chunk: Chunk) -> None:
        assert self._recorded is not None
        self._recorded.not_started(chunk)

    # ---- running -----------------------------------------------------------------------------------------------------

    def in_order(self) -> Generator[Segment]:
        """The settled segments in input order; up to the first failure, when that ends the run."""
        order = self._order
        if self._recorded is not None:
            self._recorded.in_order = True
        with closing(self.segments()) as segments:
            for segment in segments:
                for ready in order.push(segment):
                    if self._stops_at_failure and len(ready.values) < ready.n_items:
                        self._stopped_by_failure = True  # all before it have values: this is where the loop would have raised
                        if self._recorded is not None:
                            self._recorded.stopped_by_failure = True
                        return
                    yield ready

    def segments(self) -> Generator[Segment]:
        """The settled segments as they come, each numbered by input index.

        Raises:
            Exception: See `fourfold.map`.
        """
        self._has_begun = True
        with closing(self._run()) as raw:
            if self._recorded is not None:
                yield from self._recorded.segments(raw)
            else:
                for segment in raw:
                    yield from self._by_index(segment)

    @contextmanager
    def used_by(self) -> Iterator[None]:
        """A block in which the segments are asked for and used: a recorded run counts as done when it ends, and not before."""
        try:
            if self._recorded is None:
                yield
            else:
                with self._recorded.used_by():
                    yield
        finally:
            self.give_up()

    def _run(self) -> Generator[Segment]:
        """The settled segments as they come, each numbered by position."""
        with ExitStack() as stack:
            stack.callback(self._source.close)
            stack.callback(self._progress.close)
            stack.callback(self._lanes.let_go)
            if self._may_be_done:
                self._leave_out_recorded()
            self._set_process_state(stack)
            if self._chooser is not None:
                self._chooser.begin()
            try:
                yield from self._driver.run()
            except ProgramFailed as failed:
                error = self.failures.exception(failed.trouble)
                if isinstance(error, ImportError) and self._lane.engine.info.elsewhere:
                    missing = error.name or "package.whl"
                    error.add_note(
                        f"fourfold: the workers do not have it. Install it there, or send it along: engine=fourfold.engines."
                        f"{type(self._lane.engine).__name__}(…, ship=[{missing!r}])"
                    )
                raise error from error.__cause__

    def raise_if_stopped(self) -> None:
        """Raise why the run ended early, if it did. Called after the last segment, outside of generators where it can be.

        A StopIteration of the user's function leaves a generator as a RuntimeError.
        """
        reason = "failed" if self._stopped_by_failure else self._driver.reason
        if reason:
            self._raise(reason)

    def _by_index(self, segment: Segment) -> Iterator[Segment]:
        """Where positions are not indices, a segment falls into those of consecutive items."""
        if not self._source.permuted or self._tree is not None:
            yield segment
            return
        begin = 0
        for first, count in self._source.ranges(segment.start, segment.n_items):
            yield Segment(first, count, segment.values[begin : begin + count])
            begin += count

    def rescue(self, error: JournalError, given: Sequence[Any] = ()) -> None:
        """The record has failed: let the error have the values that are there, `given` first, which are in input order."""
        if self._tree is not None:
            return
        left_out = {each.index for each in self.failures.all} if self._settings.on_error == "skip" else ()
        found = dict(zip((index for index in itertools.count() if index not in left_out), given, strict=False))
        for segment in [*self._order.waiting(), *(each for ready in self._driver.ready() for each in self._by_index(ready))]:
            if isinstance(segment.values, list):  # others are still in the journal
                found |= zip(itertools.count(segment.start), segment.values, strict=False)
        error.results = found
        if found:
            error.add_note(f"fourfold: {len(found)} values are there: .results of this error has them, by index")

    @property
    def is_recorded(self) -> bool:
        """Whether `run=` keeps this call in a folder."""
        return self._recording is not None

    @property
    def _n_recalled(self) -> int:
        return self._recorded.n_recalled if self._recorded is not None else 0

    def give_up(self) -> None:
        """When nobody has asked for segments, nobody will: let go of the folder of the run."""
        if self._recording is not None and not self._has_begun:
            self._recording.close("")

    def _set_process_state(self, stack: ExitStack) -> None:
        """Make this process what items need that run in it, until the stack unwinds."""
        info, settings = self._lane.engine.info, self._settings
        if not info.takes_objects:
            return
        threads = settings.threads_per_worker
        if threads is None and info.shares_globals and "numpy" in sys.modules:
            threads = max(1, self._lanes.cores.n_cores // self._lanes.workers)
        if threads is not None:
            stack.enter_context(machine.limited_threads(threads))

    def _raise(self, reason: str) -> NoReturn:
        failures = self.failures.sorted()
        if reason == "dying":
            evidence = self._driver.inbox.last_evidence
            last_line = f"; the last that it left: {evidence.splitlines()[-1].strip()}" if evidence else ""
            raise WorkersKeepDying(
                f"{self._schedule.tally.deaths} workers of {self._name} died with nothing finished in between; the last one: "
                f'{self._driver.inbox.last_loss}{last_line}. Run a few items with engine="serial" to see what they do'
            ) from (RemoteTraceback(evidence) if evidence else None)
        first = failures[0]
        assert first.error is not None
        if reason == "failed":
            raise first.error
        raise TooManyFailures(
            f"{len(failures)} of {self._schedule.tally.finished + self._n_recalled} items failed, more than max_failures="
            f"{self._settings.max_failures!r} allows; the first is item {first.index}: {first.error_type}: {first.message}",
            failures=failures,
        ) from first.error

    # ---- the report --------------------------------------------------------------------------------------------------

    def conclude(self) -> Report:
        """The call has ended: return its report, and log the verdict."""
        self._final = self.report()
        logging = sys.modules.get("logging")
        if logging is not None:  # who has not imported it has set up no handler, and importing it takes 5 ms
            logging.getLogger("fourfold").info("%s: %s", self._name, self._final.verdict)
        return self._final

    def report(self) -> Report:
        """Figures and verdict, as far as the call has come."""
        if self._final is not None:
            return self._final
        tally, engine = self._schedule.tally, self._driver.lane.engine.info
        elapsed = time.perf_counter() - self._began
        workers = 1 if engine.inline else max(1, self._driver.most_slots)
        return Report(
            verdict=self._verdict(elapsed, workers),
            engine=engine.name,
            workers=workers,
            n_items=tally.finished + self._n_recalled,
            n_failures=len(self.failures.all),
            n_chunks=tally.chunks,
            n_retries=tally.retries,
            n_workers_lost=tally.deaths,
            elapsed_s=elapsed,
            busy_s=tally.busy_s,
            sent_bytes=self._driver.sent_bytes,
            returned_bytes=self._driver.inbox.returned_bytes,
            seed=self._settings.seed,
            n_recorded=self._n_recalled,
            peak_item_bytes=self._driver.memory.use.top_bytes,
            memory_workers=tally.memory_slots,
        )

    def warn_of_failures(self, what: str) -> None:
        """Log failed items where the answer has no place for them."""
        failures = self.failures.sorted()
        if failures:
            import logging

            logging.getLogger("fourfold").warning("%s %d failed items; the first: %r", what, len(failures), failures[0])

    def _verdict(self, elapsed: float, workers: int) -> str:
        tally, info = self._schedule.tally, self._driver.lane.engine.info
        what = f"{tally.finished} items with {seconds(tally.busy_s)} of work in {seconds(elapsed)}"
        if self._n_recalled:
            what += f" ({self._n_recalled} others were recorded before)"
        if self._n_recalled and not tally.finished:
            return f"all {self._n_recalled} items were recorded before: nothing was left to do"
        if info.inline:
            if self._chooser is None:
                nested = current.inside_item() and self._settings.engine != "serial"
                return f"the loop, {'since it runs inside an item' if nested else 'as asked'}: {what}"
            return f"stayed the loop: {what}; {self._chooser.why}"
        ratio = f"{tally.busy_s / elapsed:.2f} times as fast as its items one after the other" if elapsed else ""
        crew = f"{workers} {info.name}"
        if self._lanes.workers > workers and not info.elsewhere:
            crew += f" (of {self._lanes.workers} wanted: the others were not ready before the end)"
        ratio += self._memory_words(workers)
        opening_s = opening(self._began) if (opening := getattr(self._driver.lane.engine, "opening_s", None)) else 0.0
        if opening_s > SLOW_OPENING * elapsed:
            ratio += f"; {seconds(opening_s)} of it to connect to {info.name}, which a later call of this process need not do"
        if self._chooser is None:
            return f"{crew}, {self._why_at_once()}: {what}, {ratio}"
        return f"changed from the loop to {crew} after {self._driver.n_looped} items: {what}, {ratio}"

    def _why_at_once(self) -> str:
        """Why the first item did not run in the loop."""
        asked = self._settings.asked() & NOT_FOR_THE_LOOP if self._settings.engine == "auto" else ()
        return f"since the loop cannot keep {'= and '.join(sorted(asked))}=" if asked else "as asked"

    def _memory_words(self, workers: int) -> str:
        """What memory did to this run, as the end of its verdict."""
        tally, memory = self._schedule.tally, self._driver.memory
        words = ""
        if tally.memory_slots is not None:
            words += f"; memory let {tally.memory_slots} of {workers} workers run"
            if memory.scarcest is not None:
                needs, free = size(memory.scarcest.item_bytes), size(memory.scarcest.free_bytes)
                words += f": an item needs about {needs}, {free} were free"
        if tally.memory_deaths:
            words += f"; {tally.memory_deaths} workers died of memory"
        if memory.use.n_recycled:
            words += f"; {memory.use.n_recycled} workers were replaced, since they had grown from item to item"
        return words


class _Counts:
    """What progress shows: items that were recorded before count as finished."""

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def finished(self) -> int:
        return self._call._schedule.tally.finished + self._call._n_recalled

    @property
    def failures(self) -> int:
        return len(self._call.failures.all)


def _check_function(fn: Any, settings: Settings) -> None:
    if not callable(fn):
        raise OptionTypeError(f"fn={fn!r} must be a function of one item; it is of type {type(fn).__name__}")
    if _is_async(fn):
        raise OptionTypeError(f"{machine.user_name_of(fn)} is an async function: wrap it, lambda item: asyncio.run(fn(item))")
    if settings.init and not isinstance(fn, type):
        raise OptionError(
            f"init={safe_repr(settings.init)} is for classes; {machine.user_name_of(fn)} is a function: use functools.partial"
        )
    if settings.init and not is_worker_class(fn):
        raise OptionError(
            f"init={safe_repr(settings.init)}: instances of {fn.__qualname__} cannot be called: give it a __call__(self, item)"
        )
    if settings.max_failures is not None and settings.on_error == "raise":
        raise OptionError(
            f'max_failures={settings.max_failures!r} allows failures, and on_error="raise" ends at the first one: '
            'add on_error="collect" or on_error="skip"'
        )
    if not settings.idempotent and settings.retries:
        raise OptionError(
            f"retries={settings.retries} runs items again, and idempotent=False forbids it: leave one of them out"
        )


def _is_async(fn: Any) -> bool:
    code = getattr(fn, "__code__", None)
    return code is not None and bool(code.co_flags & 0x280)  # CO_COROUTINE | CO_ASYNC_GENERATOR: inspect is slow to import
