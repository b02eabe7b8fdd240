"""Passes over rows in memory, on threads: NumPy and scipy let go of Python while they compute.

A fit asks some twenty times for a pass of some milliseconds. One crew of threads does all of them: a call of `fourfold.map`
for each would take 4 ms to plan what is known already, an answer of the crew takes a tenth of one.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from fourfold.aggregate.tree import TreeReduction
from fourfold.system.machine import limited_threads
from fourfold.workloads.fit.contract import Pass, Rows, Seen

SLICE_BYTES = 4 << 20
"""Rows are handed to threads in slices of about so many bytes, however many threads there are: the bits of a sum follow from
the slices alone. Smaller: more of the time is Python's, which only one thread has. Larger: threads wait for the last one."""


class Memory:
    """Rows in memory. A context: the threads end with it.

    Args:
        X: An array or a csr matrix. It is not copied.
        y: Labels.
        weight: Weights; None for none.
        n_threads: Threads at most.
    """

    def __init__(self, X: Any, y: Any, weight: Any, n_threads: int) -> None:
        self._slices = _slices(X, y, weight)
        self._seen: dict[tuple[int, ...], list[Rows]] = {}
        self._steps: list[Seen] = []
        self._n_threads = min(n_threads, len(self._slices))
        self._open = ExitStack()
        self._each: Callable[..., Any] = map

    def __enter__(self) -> "Memory":
        # One thread of BLAS in each of ours, also where there is one: with two it may sum in another order.
        self._open.enter_context(limited_threads(1))
        if self._n_threads > 1:
            self._each = self._open.enter_context(ThreadPoolExecutor(self._n_threads, "fourfold-fit")).map
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, passes: list[Pass]) -> list[Any]:
        """Do these. Gives what each finished with."""
        return [self._done(each) for each in passes]

    def _done(self, wanted: Pass) -> Any:
        tree = TreeReduction(wanted.aggregator.combine)
        state, n_slices = tree.identity(), 0
        for found in self._each(wanted.aggregator.fold, self._seen_through(wanted)):
            state = tree.combine(state, [((0, n_slices), found)])
            n_slices += 1
        return wanted.aggregator.finish(tree.finish(state, n_slices))

    def _seen_through(self, wanted: Pass) -> list[Rows]:
        key = tuple(map(id, wanted.seen))
        found = self._seen.get(key)
        if found is None:
            found = self._slices
            for step in wanted.seen:
                found = list(self._each(step, found))
            if wanted.keep:
                self._seen[key] = found
                self._steps.extend(wanted.seen)  # alive, so that no other one gets their ids
        return found


def _slices(X: Any, y: Any, weight: Any) -> list[Rows]:
    n_rows, n_columns = X.shape
    row_bytes = 12 * X.nnz // max(1, n_rows) + 8 if hasattr(X, "tocsr") else 8 * n_columns
    step = max(1024, SLICE_BYTES // max(1, row_bytes))
    return [
        Rows(_between(X, first, first + step), y[first : first + step], _part(weight, first, first + step), first)
        for first in range(0, n_rows, step)
    ]


def _part(weight: Any, first: int, end: int) -> Any:
    return None if weight is None else weight[first:end]


def _between(X: Any, first: int, end: int) -> Any:
    """Rows of a csr matrix without a copy of what is in them; of an array a view."""
    if not hasattr(X, "tocsr"):
        return X[first:end]
    indptr = X.indptr[first : end + 1]
    inside = slice(indptr[0], indptr[-1])
    part = type(X)((len(indptr) - 1, X.shape[1]), dtype=X.dtype)  # scipy would copy what is less than half of an array
    part.data, part.indices, part.indptr = X.data[inside], X.indices[inside], indptr - indptr[0]
    return part
