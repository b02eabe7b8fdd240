"""Run the items of one chunk: cheap in bulk, separate in fate.

A no-op item costs 0.05 µs, and clocks and marks around it ten times that. So items run in blocks, in the tightest loop that
appends to `finished`; when item k raises, `finished` holds the k results before it, so the failing item is known and nothing
runs twice. Blocks are sized to last about BLOCK_S: slow items run in blocks of
one, and the mark that the engine keeps for each block (to know, after a crash, which items to suspect) is exact for them.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, Protocol

from fourfold.errors import InitFailed, UnsafeRandomness
from fourfold.execute import current
from fourfold.execute.keep import NEVER, Keep, SoFar
from fourfold.execute.troubles import describe
from fourfold.records import Cell, Chunk, ChunkResult, Kind, Trouble
from fourfold.shown import safe_repr

BLOCK_S = 0.0005
"""Seconds a block should take. Smaller: more time between blocks (about 1 µs each). Larger: more items are suspects after
a crash, and a cancel takes effect later. At 0.0005 the cost between blocks is 0.2 % (benchmarks/constants.py)."""

Run = Callable[[Any, Cell], tuple[Kind, Any]]
"""What a prepared program is: it takes a payload and the engine's cell, and returns what became of the payload."""


class Program:
    """What workers run: the function, and how.

    Args:
        fn: Called once per item; or, with `init`, a class whose instance is.
        init: None, or the arguments of the instance that each worker builds of the class `fn`.
        seed: Root of the items' random numbers, or None.
        fold: None, or what turns a chunk's values into partial results: `fold(start, values, holes)`.
        shares_globals: Workers share `random` and `numpy.random` (threads do): they cannot be seeded per item.
        into: None, or the list of all results in input order: values are appended to it while that keeps the order.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        init: tuple[Any, ...] | None = None,
        seed: int | None = None,
        fold: Callable[[int, list[Any], list[int]], Any] | None = None,
        shares_globals: bool = False,
        into: list[Any] | None = None,
    ) -> None:
        self.fn, self.init, self.seed, self.fold, self.shares_globals = fn, init, seed, fold, shares_globals
        self.into = into

    def prepare(self) -> "ChunkRun":
        """Build what one worker needs, once: the instance of a class function.

        Raises:
            InitFailed: The class raised while it was built.
        """
        call = self.fn
        if self.init is not None:
            try:
                call = self.fn(*self.init)
            except InitFailed:  # it says already what was built
                raise
            except Exception as error:
                shown = ", ".join(map(safe_repr, self.init))
                raise InitFailed(f"{self.fn.__qualname__}({shown}) raised {type(error).__name__}: {error}") from error

        pace = _Pace()

        def run(chunk: Chunk, cell: Cell, keep: Keep | None = None) -> tuple[Kind, ChunkResult]:
            return Kind.DONE, self._run(call, chunk, cell, pace, keep)

        return run

    def _run(self, call: Callable[..., Any], chunk: Chunk, cell: Cell, pace: "_Pace", keep: Keep | None) -> ChunkResult:
        finished: list[Any] = []
        if self.into is not None and len(self.into) == chunk.start:
            finished = self.into
        first = len(finished)
        troubles: list[Trouble] = []
        before = current.enter_chunk(chunk, finished, self.seed, cell)
        watched = current.globals_fingerprint() if self.seed is not None and self.shares_globals else None
        restore = None
        begin = time.perf_counter()
        try:
            if self.seed is not None and not self.shares_globals:
                # In the loop the caller runs between chunks: its own numbers, and those of its generator of items.
                restore = current.save_globals()
                call = _seeded(call, self.seed)
            _run_blocks(call, chunk.items, SoFar(first, finished, troubles), cell, pace, keep)
            if not cell.inline:
                # Whoever dies or is slow from here on, in folding and pickling, may be any of those that are not kept.
                ran = len(finished) - first
                begin_at = min(0 if keep is None else keep.n_kept, max(ran - 1, 0))
                cell.mark(begin_at, ran - begin_at)
        finally:
            current.leave_chunk(before)
            if restore is not None:
                restore()
        elapsed = time.perf_counter() - begin
        if watched is not None and watched != current.globals_fingerprint():
            raise UnsafeRandomness(
                "an item drew from `random` or `numpy.random` in a seeded run on threads, which all share that state: the "
                'numbers would depend on timing. Use fourfold.rng() in the function, or engine="processes"'
            )
        done = len(finished) - first
        values = finished
        if troubles and finished is self.into:
            values = finished[first:]  # it comes in segments, between which the failures stand
            del finished[first:]
        if self.fold is not None:
            holes = [trouble.offset for trouble in troubles]
            if chunk.indices is None or isinstance(chunk.indices, range):
                values = [self.fold(chunk.index_of(0), finished, holes)]
            else:  # neighbours here, but not in the input
                kept = [offset for offset in range(done) if offset not in holes]
                values = [self.fold(chunk.indices[offset], [finished[offset]], []) for offset in kept]
        return ChunkResult(done, values, troubles, elapsed)


class ChunkRun(Protocol):
    """A prepared program, which may be told to keep what has finished."""

    def __call__(self, chunk: Chunk, cell: Cell, keep: Keep | None = None) -> tuple[Kind, ChunkResult]:
        """Run the chunk."""


class _Pace:
    """How many items a block has; carried from chunk to chunk."""

    __slots__ = ("block",)

    def __init__(self) -> None:
        self.block = 1

    def adapt(self, elapsed: float, ran: int) -> None:
        if elapsed > 2 * BLOCK_S:
            self.block = max(1, int(ran * BLOCK_S / elapsed))
        elif elapsed < BLOCK_S / 2:
            self.block = max(self.block, min(2 * ran, 1 << 20))


def _run_blocks(
    call: Callable[..., Any], items: Sequence[Any], so_far: SoFar, cell: Cell, pace: _Pace, keep: Keep | None
) -> None:
    """Run items until all have a value or a trouble in `so_far`, or until the cell says stop."""
    clock = time.perf_counter
    run_block = _in_python if isinstance(call, FunctionType) else _in_c
    first, finished, troubles = so_far
    total, keep_at = len(items), NEVER if keep is None else keep.due
    open_end = getattr(items, "open_end", None)
    walk = iter(items) if open_end is None else open_end()  # goes on behind an item that raised
    at = 0
    while at < total and not cell.stopped():
        count = total - at if cell.whole else min(pace.block, total - at)
        cell.mark(at, count)
        begin = clock()
        try:
            is_rest = open_end is None and at + count == total
            run_block(call, walk if is_rest else itertools.islice(walk, count), finished)
            if len(finished) - first < at + count:
                # map() took a StopIteration of the function for the end of the block.
                raise StopIteration(f"{getattr(call, '__qualname__', call)} raised StopIteration")
        except BaseException as error:
            if cell.inline and isinstance(error, KeyboardInterrupt):
                raise
            offset = len(finished) - first
            troubles.append(describe(error, offset, _item(items, offset)))
            finished.append(None)
        ran = len(finished) - first - at
        at += ran
        now = clock()
        pace.adapt(now - begin, ran)
        if now >= keep_at and keep is not None and at < total:
            keep.take(at, so_far)
            keep_at = keep.due


def _item(items: Sequence[Any], offset: int) -> Any:
    try:
        return items[offset]
    except IndexError:
        raise RuntimeError("items became fewer while they were mapped: do not change the list during the call") from None


def _in_python(call: Callable[..., Any], block: Iterable[Any], finished: list[Any]) -> None:
    """Python calls a Python function faster than C does: since 3.11 it makes no C frame for it (benchmarks/constants.py)."""
    for item in block:
        finished.append(call(item))  # a comprehension would lose what finished before an exception


def _in_c(call: Callable[..., Any], block: Iterable[Any], finished: list[Any]) -> None:
    """C calls everything else faster."""
    finished.extend(map(call, block))


def _seeded(call: Callable[..., Any], seed: int) -> Callable[[Any], Any]:
    """`call`, with the random states set for its item first."""

    def seeded(item: Any) -> Any:
        index = current.current_index()
        assert index is not None
        current.seed_globals(seed, index)
        return call(item)

    return seeded


def is_worker_class(fn: Any) -> bool:
    """Whether `fn` is a class whose instances are called per item (it defines `__call__`); `int` or `Path` are not."""
    return isinstance(fn, type) and not issubclass(fn, type) and any("__call__" in base.__dict__ for base in fn.__mro__)
