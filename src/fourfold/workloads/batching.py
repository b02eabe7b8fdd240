"""How many rows a model takes at once: measured, since no number suits all models."""

import math
import time
from collections.abc import Callable
from typing import Any

FIRST_ROWS = 64
"""Rows of the first call under "auto". Smaller: more calls until the best size is found. Larger: a model that likes few rows
is slow for longer. Not measured."""

MOST_ROWS = 1 << 16
"""Rows of a call at most. Larger: more memory, with nothing left to gain."""

GAIN = 1.05
"""A size is better than the best so far when it takes this much less time per row. Smaller: it grows on noise."""

TRIALS = 2
"""Full calls of each size, of which the faster one counts: the first pays for what is set up, and either may have waited for a
core. Fewer: it stays with a few rows because of one slow call. More: it takes longer to get there."""

MISSES = 2
"""Sizes in a row that are no better, each twice the one before, after which it goes back to the best. Fewer: as above."""


NO_MEMORY = ("can't allocate memory", "failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")
"""How libraries say it that have no exception for it: torch on a CPU, ONNX Runtime, LightGBM and XGBoost, CUDA."""


def lacks_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, that of a GPU included."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(each in text for each in NO_MEMORY)


class BatchSize:
    """How many rows to give to a model: a number, or what was fastest so far.

    It doubles while that makes rows faster, goes back to the best size when it does no more, and halves when memory runs out.
    """

    def __init__(self, fixed: int | None) -> None:
        self._is_settled = fixed is not None
        self.rows = self._best_rows = fixed if fixed is not None else FIRST_ROWS
        self._best_s = math.inf
        self._trials: list[float] = []
        self._n_misses = 0

    def run(self, call: Callable[[Any], Any], table: Any) -> list[Any]:
        """What the model makes of all rows of a table, in as many calls as that takes.

        Raises:
            Exception: What the model raised; for want of memory only when a single row is too much.
        """
        found: list[Any] = []
        at = 0
        while at < table.num_rows or not found:
            part = table.slice(at, self.rows)
            began = time.perf_counter()
            try:
                found.append(call(part))
            except Exception as error:
                if part.num_rows <= 1 or not lacks_memory(error):
                    raise
                self.rows, self._is_settled = max(1, part.num_rows // 2), True
                continue
            self._learn(part.num_rows, time.perf_counter() - began)
            at += part.num_rows
        return found

    def _learn(self, n_rows: int, elapsed_s: float) -> None:
        if self._is_settled or n_rows < self.rows:  # the last rows of a table tell nothing of a full call
            return
        self._trials.append(elapsed_s / n_rows)
        if len(self._trials) < TRIALS:
            return
        each_s, self._trials = min(self._trials), []
        if each_s * GAIN < self._best_s:
            self._best_rows, self._best_s, self._n_misses = self.rows, each_s, 0
        else:
            self._n_misses += 1
        if self._n_misses < MISSES and 2 * self.rows <= MOST_ROWS:
            self.rows *= 2
        else:
            self.rows, self._is_settled = self._best_rows, True
