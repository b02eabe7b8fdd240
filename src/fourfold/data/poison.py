"""A batch that raises is taken apart until the rows that fail are known: each other row keeps its value.

    [0, 8) raises ──> [0, 4) is fine
                      [4, 8) raises ──> [4, 6) raises ──> 4 is fine, 5 is the one
                                        [6, 8) is fine

A batch that raises although each half of it does not has no row to blame. Where failures are collected, what its halves gave
stands. Where the first failure ends the run, the batch is that failure, unless what it lacked was memory.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from fourfold.data.steps import Batch


class BadRow(NamedTuple):
    """A row without a value.

    Attributes:
        offset: Its place in the batch.
        error: What it raised.
    """

    offset: int
    error: Exception


def run_apart(run: Callable[[Batch], Any], batch: Batch, error: Exception, first_only: bool) -> Iterator[Any | BadRow]:
    """What comes of a batch that raised `error`: tables of its good rows and its bad rows, in order.

    Args:
        run: Takes a batch through the steps.
        batch: It raised.
        error: What it raised.
        first_only: Stop at the first bad row: nothing behind it is run.

    Raises:
        Exception: What a batch raised of which no row is to blame alone, under `first_only`.
    """
    try:
        yield from _search(run, batch, 0, error, first_only)
    except _NobodyToBlame:
        raise error from None


class _NobodyToBlame(Exception):
    """A batch raises, and none of its parts."""


def _search(
    run: Callable[[Batch], Any], batch: Batch, offset: int, error: Exception, first_only: bool
) -> Generator[Any | BadRow, None, bool]:
    """As `run_apart`; returns whether a row was to blame."""
    n_rows = batch.table.num_rows
    if n_rows <= 1:
        if not n_rows:
            raise _NobodyToBlame
        yield BadRow(offset, error)
        return True
    half, n_failed, is_found = n_rows // 2, 0, False
    for begin, count in ((0, half), (half, n_rows - half)):
        part = part_of(batch, begin, count)
        try:
            table = run(part)
        except Exception as inner:
            n_failed += 1
            is_found |= yield from _search(run, part, offset + begin, inner, first_only)
            if is_found and first_only:
                return True
        else:
            yield table
    if not n_failed and first_only and not isinstance(error, MemoryError):
        raise _NobodyToBlame
    return is_found


def part_of(batch: Batch, begin: int, count: int) -> Batch:
    """Some consecutive rows of a batch."""
    numbers = batch.numbers
    return Batch(batch.table.slice(begin, count), None if numbers is None else numbers[begin : begin + count])
