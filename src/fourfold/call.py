"""One call of a user: joins the four steps.

    source (divide) -> driver (distribute) -> program (execute) -> failures, order, report (aggregate)

The steps know nothing of each other; here each is handed what it needs. What only some calls need is imported when they do.
"""

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import fourfold.machine as machine
from fourfold.aggregate.failures import Failures
from fourfold.aggregate.order import InOrder
from fourfold.aggregate.progress import Progress
from fourfold.aggregate.tree import TreeReduction
from fourfold.distribute.chooser import Chooser
from fourfold.distribute.driver import Driver, Lane, ProgramFailed
from fourfold.distribute.engine import Engine
from fourfold.distribute.engines.on_this_thread import ThisThread
from fourfold.distribute.schedule import Rules, Schedule
from fourfold.distribute.verdict import seconds, size
from fourfold.divide.source import Source
from fourfold.errors import (
    NotPicklable,
    OptionError,
    OptionTypeError,
    RemoteTraceback,
    RunError,
    TooManyFailures,
    UnsupportedOption,
    WorkersKeepDying,
)
from fourfold.execute import current
from fourfold.execute.chunk import Program, is_worker_class
from fourfold.execute.objects import ObjectCodec
from fourfold.execute.troubles import describe, unpickled
from fourfold.options import RunOfBlock, Settings
from fourfold.records import Chunk, Failure, Parcel, Report, Segment, Trouble

if TYPE_CHECKING:
    from fourfold.execute.pickling import Weight
    from fourfold.runs.recording import Recording

KEPT_BY_THE_DRIVER = frozenset(
    {
        "engine",
        "workers",
        "chunk",
        "on_error",
        "max_failures",
        "retries",
        "retry_on",
        "seed",
        "cost",
        "progress",
        "init",
        "run",
    }
)
"""Options that hold on every engine, because they are kept before or after it."""

NOT_FOR_THE_LOOP = frozenset({"timeout", "memory", "gpus", "threads_per_worker"})
"""Options that a plain loop cannot keep: with them, `engine="auto"` means processes from the first item."""


SLICE_S = 0.01
"""Seconds after which the loop of a recorded run stops to record what has ended. Smaller: more chunks, of 30 µs each. Larger:
a killed driver loses more."""


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
    ) -> None:
        _check_function(fn, settings)
        self._fn, self._settings, self._tree = fn, settings, tree
        self._into = into if settings.cost is None and settings.run is None else None
        self._name = machine.user_name_of(fn)
        self._began = time.perf_counter()
        self._cores: machine.Cores | None = None
        self._final: Report | None = None
        self._chooser: Chooser | None = None
        self._lane = self._first_lane()
        _check_honoured(settings, self._lane.engine)
        self._recording = self._open_recording()
        self._has_begun = self._orders = False
        self._n_recalled = 0
        self._failed_now: set[int] = set()
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
            total = None if total is None or settings.cost is not None else max(0, total - recording.n_recorded)
        self.failures = Failures(self._name, settings.on_error, settings.retry_on if settings.retries else (), unpickled)
        self._stops_at_failure = settings.on_error == "raise"
        self._stopped_by_failure = False
        if recording is not None:
            self.failures.run, self.failures.keep = recording.path, self._keep_failure
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
        self._progress = Progress(_Counts(self), self._source.total, show, machine.in_notebook(), self._name)
        if settings.engine == "auto" and self._lane.engine.info.inline and not current.inside_item():
            self._chooser = self._new_chooser()
        self._driver = Driver(
            self._source,
            self._schedule,
            self._lane,
            self.failures,
            absent=tree.absent if tree is not None else None,
            choose=self._chooser,
            lane_failed=self._chooser.failed if self._chooser is not None else None,
            beat=self._progress.beat if recording is None else self._beat,
            starting=None if recording is None or settings.idempotent else self._starting,
            keep=recording is not None,
        )

    # ---- running -----------------------------------------------------------------------------------------------------

    def in_order(self) -> Iterator[Segment]:
        """The settled segments in input order; up to the first failure, when that ends the run."""
        order, self._orders = InOrder(), True
        with closing(self.segments()) as segments:
            for segment in segments:
                for ready in order.push(segment):
                    if self._stops_at_failure and len(ready.values) < ready.n_items:
                        self._stopped_by_failure = True  # all before it have values: this is where the loop would have raised
                        return
                    yield ready

    def segments(self) -> Generator[Segment]:
        """The settled segments as they come, each numbered by input index.

        Raises:
            Exception: See `fourfold.map`.
        """
        self._has_begun = True
        with closing(self._run()) as raw:
            if self._recording is not None:
                yield from self._recorded(raw, self._recording)
            else:
                for segment in raw:
                    yield from self._by_index(segment)

    def _run(self) -> Generator[Segment]:
        """The settled segments as they come, each numbered by position."""
        with ExitStack() as stack:
            stack.callback(self._source.close)
            stack.callback(self._progress.close)
            stack.callback(self._let_go)
            self._set_process_state(stack)
            try:
                yield from self._driver.run()
            except ProgramFailed as failed:
                error = self.failures.exception(failed.trouble)
                raise error from error.__cause__

    def _let_go(self) -> None:
        """A call is part of reference cycles: what it holds would live until the next garbage collection."""
        self._into = None

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

    # ---- the record --------------------------------------------------------------------------------------------------

    def _open_recording(self) -> "Recording | None":
        path = self._settings.run
        if isinstance(path, RunOfBlock):
            path = None if current.inside_item() else path.of_next_call()
        if path is None:
            return None
        from fourfold.execute.pickling import dump, dump_by_name, load
        from fourfold.execute.troubles import pickled
        from fourfold.runs.recording import Carriage, Recording, Subject

        settings = self._settings
        parts: dict[str, Any] = {"function": self._fn}
        parts |= {"init": settings.init} if settings.init else {}
        parts |= {"seed": settings.seed} if settings.seed is not None else {}
        parts |= {"combine": self._tree.function} if self._tree is not None else {}
        shown = {name: repr(getattr(settings, name)) for name in sorted(settings.asked() - {"init"})}
        subject = Subject(
            name=self._name,
            kind="map" if self._tree is None else "reduce",
            parts=parts,
            options=shown,
            repeatable=settings.idempotent,
            failures_stand=settings.on_error != "raise",
        )
        return Recording(path, subject, Carriage(dump, dump_by_name, load, pickled, unpickled))

    def _recorded(self, raw: Generator[Segment], recording: "Recording") -> Iterator[Segment]:
        """What was recorded before and what comes now, which is recorded first."""
        state = "stopped"
        try:
            recording.begin()
            try:
                for segment in raw:
                    yield from self._recall(recording)
                    self._record(segment, recording)
                    yield from self._by_index(segment)
            except Exception as error:
                if not isinstance(error, RunError):  # the items before an input that raises come first, as in the loop
                    yield from self._recall(recording)
                raise
            yield from self._recall(recording)
            if not self._driver.reason:
                recording.check_end(self._source.n_read)
            state = "failed" if self._driver.reason else "done"
        except KeyboardInterrupt as interrupt:
            state = "interrupted"
            interrupt.add_note(f"fourfold: {recording.hint}")
            raise
        except Exception:
            state = "failed"
            raise
        finally:
            self._end_recording(raw, recording, "failed" if self._stopped_by_failure else state)

    def _end_recording(self, raw: Generator[Segment], recording: "Recording", state: str) -> None:
        """Record what ended while the call was stopped. Whatever happens here, the folder is free afterwards."""
        try:
            raw.close()
        finally:
            # What ended the call is to be told, not what came of it here.
            with suppress(Exception) if state != "done" else nullcontext():
                try:
                    for segment in self._driver.leftover:
                        self._record(segment, recording)
                finally:
                    recording.close(state)

    def _record(self, segment: Segment, recording: "Recording") -> None:
        if segment.n_items == 1 and not segment.holes and (index := self._source.index_of(segment.start)) in self._failed_now:
            self._failed_now.discard(index)
            return
        if self._tree is None:
            for each in self._by_index(segment):
                recording.add(each.start, each.values)
            return
        ranges, begin = [], segment.start
        for hole in (*segment.holes, segment.n_items + len(segment.holes)):
            ranges += self._source.ranges(begin, segment.start + hole - begin)
            begin = segment.start + hole + 1
        if ranges:
            recording.add_partial(ranges, segment.values)

    def _keep_failure(self, failure: Failure, item: Any) -> None:
        assert self._recording is not None
        self._recording.fail(failure, item)
        self._failed_now.add(failure.index)

    def _recall(self, recording: "Recording") -> Iterator[Segment]:
        """What the source has gone past: values, and failures, that an earlier call has recorded."""
        from fourfold.runs.journal import Done

        for row in recording.passed():
            if isinstance(row, Done):
                self._n_recalled += row.n_items
                yield Segment(row.first, row.n_items, recording.values(row))
                continue
            self._n_recalled += 1
            failure = recording.failure_of(row)
            values = self.failures.add(failure)
            if self._stops_at_failure and not self._orders and failure.error is not None:
                raise failure.error
            if self._tree is not None:
                values = [self._tree.absent(row.item)]
            yield Segment(row.item, 1, values)

    def _beat(self) -> None:
        assert self._recording is not None
        self._progress.beat()
        self._recording.beat(inline=self._driver.lane.engine.info.inline)

    def _starting(self, chunk: Chunk) -> None:
        assert self._recording is not None
        self._recording.start([chunk.index_of(offset) for offset in range(len(chunk.items))])

    @property
    def is_recorded(self) -> bool:
        """Whether `run=` keeps this call in a folder."""
        return self._recording is not None

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
            threads = max(1, self.cores.n_cores // self.workers)
        if threads is not None:
            stack.enter_context(machine.limited_threads(threads))

    def _raise(self, reason: str) -> NoReturn:
        failures = self.failures.sorted()
        if reason == "dying":
            evidence = self._driver.last_evidence
            last_line = f"; the last that it left: {evidence.splitlines()[-1].strip()}" if evidence else ""
            raise WorkersKeepDying(
                f"{self._schedule.tally.deaths} workers of {self._name} died with nothing finished in between; the last one: "
                f'{self._driver.last_loss}{last_line}. Run a few items with engine="serial" to see what they do'
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

    # ---- the engine --------------------------------------------------------------------------------------------------

    @property
    def cores(self) -> machine.Cores:
        """The cores that this process may use; looked up when somebody asks."""
        if self._cores is None:
            self._cores = machine.cores()
        return self._cores

    @property
    def workers(self) -> int:
        """How many workers the user wants, or cores there are."""
        return self._settings.workers or self.cores.n_cores

    def _first_lane(self) -> Lane:
        engine = self._settings.engine
        if current.inside_item():
            engine = "serial"
        if engine == "auto":
            engine = "processes" if self._settings.asked() & NOT_FOR_THE_LOOP else "serial"
        if engine == "processes":
            return self._on_processes()
        if engine == "serial":
            # An hour may lie in the middle of a chunk of items that took no time so far.
            slice_s = None if self._settings.run is None else SLICE_S
            return Lane(ThisThread(_describe, slice_s), ObjectCodec(), lambda: self._program(into=self._into))
        if engine == "threads":
            from fourfold.distribute.engines.on_threads import Threads

            engine = Threads(self.workers, _describe)
        if engine.info.takes_objects:
            return Lane(engine, ObjectCodec(), lambda: self._program(shares_globals=engine.info.shares_globals))
        return self._with_parcels(engine)

    def _on_processes(self) -> Lane:
        from fourfold.distribute.engines.on_processes.engine import Processes
        from fourfold.distribute.watch import Watch
        from fourfold.execute.forward import Replay

        watch = Watch(self._name, is_worker_class(self._fn), lambda ticket, offset: self._driver.index_of(ticket, offset))
        settings = self._settings
        return self._with_parcels(Processes(self.workers, Replay(), settings.timeout, settings.memory, watch))

    def _with_parcels(self, engine: Engine) -> Lane:
        from fourfold.execute.parcels import ParcelCodec

        return Lane(engine, ParcelCodec(), self._program_parcel)

    def _new_chooser(self) -> Chooser:
        return Chooser(
            total=self._schedule.rules.total,
            workers=lambda: self.workers,
            cores=lambda: self.cores.n_cores,
            warm=_warm_workers,
            weigh=_weigh,
            fn=self._fn,
            lane=self._on_processes,
        )

    def _program(self, shares_globals: bool = False, into: list[Any] | None = None) -> Program:
        return Program(
            self._fn,
            init=self._settings.init if is_worker_class(self._fn) else None,
            seed=self._settings.seed,
            fold=self._tree.fold if self._tree is not None else None,
            shares_globals=shares_globals,
            into=into,
        )

    def _program_parcel(self) -> Parcel:
        from fourfold.execute.pickling import dump, explain_first
        from fourfold.execute.remote import RemoteProgram
        from fourfold.worker import pack_program

        try:
            parcel = dump(RemoteProgram(self._program()))
        except Exception as error:
            parts = {self._name: self._fn, "init": self._settings.init, "combine": self._tree}
            raise NotPicklable(
                f"the function cannot travel to workers: {explain_first(parts, error)}. Make it inside the function, "
                'pass a class with init=, or use engine="threads"'
            ) from error
        return pack_program(parcel, self._setup())

    def _setup(self) -> dict[str, Any]:
        """What a worker process must be like."""
        import logging
        import pickle
        import warnings

        threads = self._settings.threads_per_worker
        if threads is None and not any(name in os.environ for name in machine.THREAD_VARIABLES):
            threads = max(1, self.cores.n_cores // self.workers)
        levels = {
            name: logger.level
            for name, logger in logging.root.manager.loggerDict.items()
            if isinstance(logger, logging.Logger)
        }
        plain = [each for each in warnings.filters if each[2].__module__ == "builtins"]
        return {
            "cwd": _current_folder(),
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "environment": dict(os.environ),
            "threads": threads,
            "recursion_limit": sys.getrecursionlimit(),
            "levels": {"": logging.root.level, **{name: level for name, level in levels.items() if level}},
            "filters": pickle.dumps(plain),
        }

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
            returned_bytes=self._driver.returned_bytes,
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
        if self.workers > workers:
            crew += f" (of {self.workers} wanted: the others were not ready before the end)"
        ratio += self._memory_words(workers)
        if self._chooser is None:
            return f"{crew}, as asked: {what}, {ratio}"
        return f"changed from the loop to {crew} after {self._driver.n_looped} items: {what}, {ratio}"

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
            f"init={settings.init!r} is for classes; {machine.user_name_of(fn)} is a function: use functools.partial"
        )
    if settings.init and not is_worker_class(fn):
        raise OptionError(
            f"init={settings.init!r}: instances of {fn.__qualname__} cannot be called: give it a __call__(self, item)"
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


def _check_honoured(settings: Settings, engine: Engine) -> None:
    honours = engine.info.honours | KEPT_BY_THE_DRIVER
    missing = sorted(settings.asked() - honours)
    if missing:
        name = missing[0]
        raise UnsupportedOption(
            f"engine {engine.info.name!r} cannot honour {name}={getattr(settings, name)!r}. Leave {name} out"
            + ("" if engine.info.name == "processes" else ', or use engine="processes"')
        )


def _describe(error: BaseException) -> Trouble:
    return describe(error, 0, None)


def _warm_workers() -> int:
    pool = sys.modules.get("fourfold.distribute.engines.on_processes.pool")
    return pool.POOL.warm() if pool is not None else 0


def _weigh(obj: Any, limit_bytes: int) -> "Weight":
    from fourfold.execute.pickling import weigh

    return weigh(obj, limit_bytes)


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
