"""Which item runs in this thread: its index, and its own random numbers."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fourfold.records import Cell, Chunk

if TYPE_CHECKING:
    import numpy as np

STAGE = 0
"""First part of every spawn key: room for the stages of a pipeline, each with its own streams."""


class _Here(threading.local):
    """What runs in this thread. Each thread has its own copy."""

    chunk: Chunk | None = None
    finished: list[Any] = []  # noqa: RUF012  (replaced, never changed: the list that the running block fills)
    first: int = 0  # how long that list was when the chunk began
    seed: int | None = None
    cell: Cell | None = None
    generator: "tuple[int, np.random.Generator] | None" = None


_here = _Here()
_in_worker = False


def enter_worker_process() -> None:
    """Note that this process is a worker: whatever runs here is inside an item."""
    global _in_worker
    _in_worker = True


def in_worker_process() -> bool:
    """Whether this process is a worker, and all objects in it are copies."""
    return _in_worker


def inside_item() -> bool:
    """Whether the caller runs inside an item, on any engine: there, a nested call runs as a plain loop."""
    return _in_worker or _here.chunk is not None


def enter_chunk(chunk: Chunk, finished: list[Any], seed: int | None, cell: Cell | None = None) -> dict[str, Any]:
    """Note that `chunk` runs in this thread and `finished` grows by one with each item; returns what to restore."""
    here = _here.__dict__
    before = here.copy()
    here.update(chunk=chunk, finished=finished, first=len(finished), seed=seed, cell=cell, generator=None)
    return before


def leave_chunk(before: dict[str, Any]) -> None:
    """Undo `enter_chunk`."""
    here = _here.__dict__
    here.clear()
    here.update(before)


def renew() -> None:
    """Begin the time of the item that runs here anew: for items that are many steps, of which each has `timeout=`."""
    here = _here
    if here.chunk is not None and here.cell is not None:
        here.cell.mark(min(len(here.finished) - here.first, len(here.chunk.items) - 1), 1)


@contextmanager
def numbered(number: int, seed: int) -> Iterator[None]:
    """A block in which `rng` goes by this number and seed, instead of the index of the item that runs here."""
    before = enter_chunk(Chunk(0, (None,), (number,)), [], seed)
    try:
        yield
    finally:
        leave_chunk(before)


def current_index() -> int | None:
    """The input index of the item that runs in this thread, or None outside of items.

    Costs nothing while items run: it counts the results that the running chunk has so far.
    """
    chunk = _here.chunk
    offset = len(_here.finished) - _here.first
    return None if chunk is None or offset >= len(chunk.items) else chunk.index_of(offset)


def rng() -> "np.random.Generator":
    """Return the NumPy generator of the item that runs here: the same numbers on any engine, worker and attempt.

    Its stream depends on the run's `seed=` and the item's index only. Calls within one item return the same generator.
    Outside of items, or in a run without a seed, it is a fresh generator with entropy of the operating system.

    Source: `numpy.random.SeedSequence` with `spawn_key=(stage, index)`, the children of `SeedSequence.spawn`.

    Example:
        >>> import fourfold as ff
        >>> def roll(item):
        ...     return int(ff.rng().integers(6))
        >>> ff.map(roll, range(5), seed=1) == ff.map(roll, range(5), seed=1, workers=3, chunk=2)
        True
    """
    import numpy as np

    index = current_index()
    if index is None or _here.seed is None:
        return np.random.default_rng()
    if _here.generator is None or _here.generator[0] != index:
        _here.generator = (index, np.random.Generator(np.random.PCG64(seed_sequence(_here.seed, index))))
    return _here.generator[1]


def seed_sequence(seed: int, index: int) -> "np.random.SeedSequence":
    """The root of all random numbers of item `index` in a run with `seed`."""
    import numpy as np

    return np.random.SeedSequence(seed, spawn_key=(STAGE, index))


def seed_globals(seed: int, index: int) -> None:
    """Set the states of `random` and of `numpy.random` for item `index`, so that legacy code does not depend on its worker."""
    import numpy as np

    words = seed_sequence(seed, index).generate_state(8)
    np.random.seed(words)
    random.seed(int.from_bytes(words.tobytes(), "little"))


def save_globals() -> Callable[[], None]:
    """Return a function that puts the states of `random` and `numpy.random` back to what they are now."""
    import numpy as np

    ours, theirs = random.getstate(), np.random.get_state()

    def restore() -> None:
        random.setstate(ours)
        np.random.set_state(theirs)

    return restore


def globals_fingerprint() -> tuple[Any, ...]:
    """A value that changes when something draws from the states of `random` or `numpy.random`."""
    import numpy as np

    legacy: Any = np.random.get_state()
    return random.getstate(), legacy[1].tobytes(), legacy[2:]
