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
"""A call of twice the rows must take this much less time per row, or the size stays. Smaller: it grows on noise."""

TRIES = 3
"""Calls of a size before it counts as no faster than half of it: one may have waited for a core. Fewer: on a busy machine the
size stays small. More: a size that is too large is used longer. Not measured."""

AGAIN = 16
"""Calls after which twice the rows are tried once more, and twice as many calls after each try in vain: the machine may have
been busy with something else at the first one. Fewer: more calls of a size that is too large. Not measured."""


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

    It doubles while that makes rows faster, goes back when it made them slower, and halves when memory runs out.
    """

    def __init__(self, fixed: int | None) -> None:
        self.rows = fixed if fixed is not None else FIRST_ROWS
        self._most = MOST_ROWS if fixed is None else fixed
        self._is_trying = fixed is None
        self._again = AGAIN
        self._half_s = math.inf  # per row, the fastest call of half of these rows
        self._calls_s: list[float] = []  # per row, of these rows

    def run(self, call: Callable[[Any], Any], table: Any) -> list[Any]:
        """What the model makes of all rows of a table, in as many calls as that takes.

        Raises:
            Exception: What the model raised; for want of memory only when a single row is too much.
        """
        found: list[Any] = []
        at = 0
        while at < table.num_rows or not found:
            part = table.slice(at, self._next(table.num_rows - at))
            began = time.perf_counter()
            try:
                found.append(call(part))
            except Exception as error:
                if part.num_rows <= 1 or not lacks_memory(error):
                    raise
                self.rows = self._most = max(1, part.num_rows // 2)
                self._is_trying = False
                continue
            self._learn(part.num_rows, time.perf_counter() - began)
            at += part.num_rows
        return found

    def _next(self, n_left: int) -> int:
        """Rows of the next call. A small rest goes along: alone it may cost nearly as much as a full call."""
        return n_left if n_left - self.rows < self.rows // 2 and n_left <= self._most else self.rows

    def _learn(self, n_rows: int, elapsed_s: float) -> None:
        if n_rows < self.rows or (self.rows * 2 > self._most and not self._is_trying):
            return  # the last rows of a table tell nothing of a full call, and there is nothing left to try
        self._calls_s.append(elapsed_s / n_rows)
        fastest_s = min(self._calls_s[-TRIES:])  # of as many calls as the double will have
        if not self._is_trying:
            if len(self._calls_s) >= self._again:
                self._try_double(fastest_s)
        elif fastest_s * GAIN < self._half_s:
            self._try_double(fastest_s)
        elif len(self._calls_s) >= TRIES:
            if fastest_s > self._half_s * GAIN:
                self.rows = max(1, self.rows // 2)
            self._is_trying, self._calls_s, self._again = False, [], self._again * 2

    def _try_double(self, fastest_s: float) -> None:
        self._is_trying, self._half_s, self._calls_s = self.rows * 2 <= self._most, fastest_s, []
        if self._is_trying:
            self.rows *= 2
