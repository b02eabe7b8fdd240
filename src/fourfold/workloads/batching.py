"""How many rows a model takes at once: measured, since no number suits all models."""

import math
import time
from collections.abc import Callable
from typing import Any

from fourfold.system.machine import waited_for_a_core_s

FIRST_ROWS = 64
"""Rows of the first call under "auto". Smaller: more calls until the best size is found. Larger: a model that likes few rows
is slow for longer. Not measured."""

MOST_ROWS = 1 << 16
"""Rows of a call at most. Larger: more memory, with nothing left to gain."""

GAIN = 1.05
"""A call of more rows must take this much less time per row, or the size stays. Smaller: it grows on noise."""

TRIES = 3
"""Calls of a size before it counts as no faster than the one before: one may have waited for a core. Fewer: on a busy machine
the size stays small. More: a size that is too large is used longer. Not measured."""

AGAIN = 16
"""Calls after which twice the rows are tried once more, and twice as many calls after each try in vain: the machine may have
been busy with something else at the first one. Fewer: more calls of a size that is too large. Not measured."""


STEP = 16
"""Times the rows of the last size that the next one has at most. Smaller: a model whose calls are dear is called more often
before it gets enough rows. Larger: one lucky fast call makes a huge one."""

CALL_SHARE = 0.05
"""Share of the time that calls themselves may take, besides their rows, at the size that is tried next. Smaller: larger steps.
Not measured."""

SURPRISE = 1.35
"""Times what was expected of a size that a large step led to, from which on it is left again. Smaller: sizes grow slowly on a
busy machine. Larger: a model that slows down somewhere on the way stays slow. Not measured."""

NO_MEMORY = ("can't allocate memory", "failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")
"""How libraries say it that have no exception for it: torch on a CPU, ONNX Runtime, LightGBM and XGBoost, CUDA."""


def lacks_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, that of a GPU included."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(each in text for each in NO_MEMORY)


def _clock() -> float:
    """Seconds that go on while this thread computes or waits for a device, and not while others are on its core."""
    return time.perf_counter() - waited_for_a_core_s()


class BatchSize:
    """How many rows to give to a model: a number, or what was fastest so far.

    It grows while that makes rows faster, goes back when it made them slower, and halves when memory runs out. Where two sizes
    show that it is calls that are dear, it grows by more than to the double.
    """

    def __init__(self, fixed: int | None) -> None:
        self.rows = fixed if fixed is not None else FIRST_ROWS
        self._most = MOST_ROWS if fixed is None else fixed
        self._is_trying = fixed is None
        self._again = AGAIN
        self._most_seen = 0
        self._before = self.rows
        self._before_s = math.inf  # per row, the fastest call of so many rows
        self._most_step = STEP
        self._row_s = self._one_call_s = 0.0  # what the last two sizes showed
        self._calls_s: list[float] = []  # per row, of these rows

    def run(self, call: Callable[[Any], Any], table: Any) -> list[Any]:
        """What the model makes of all rows of a table, in as many calls as that takes.

        Raises:
            Exception: What the model raised; for want of memory only when a single row is too much.
        """
        found: list[Any] = []
        self._most_seen = max(self._most_seen, table.num_rows)
        at = 0
        while at < table.num_rows or not found:
            part = table.slice(at, self._next(table.num_rows - at))
            began = _clock()
            try:
                found.append(call(part))
            except Exception as error:
                if part.num_rows <= 1 or not lacks_memory(error):
                    raise
                self._shrink(part.num_rows)
                continue
            self._learn(part.num_rows, _clock() - began)
            at += part.num_rows
        return found

    def _next(self, n_left: int) -> int:
        """Rows of the next call. A small rest goes along: alone it may cost nearly as much as a full call."""
        return n_left if n_left - self.rows < self.rows // 2 and n_left <= self._most else self.rows

    def _shrink(self, n_rows: int) -> None:
        """So many rows are too many for memory."""
        if n_rows > self.rows:  # a rest that went along
            self._most = self.rows
            return
        self._most = max(1, n_rows // 2)
        if self._is_trying and self._before < self._most:  # a large step led here
            self.rows, self._most_step = self._before, 2
            self._try_more(2, self._before_s)
        else:
            self.rows, self._is_trying = self._most, False

    def _learn(self, n_rows: int, elapsed_s: float) -> None:
        if n_rows < self.rows or (self.rows >= self._most and not self._is_trying):
            return  # the last rows of a table tell nothing of a full call, and there is nothing left to try
        self._calls_s.append(elapsed_s / n_rows)
        fastest_s = min(self._calls_s[-TRIES:])  # of as many calls as the next size will have
        if not self._is_trying:
            if len(self._calls_s) >= self._again:
                self._try_more(2, fastest_s)
        elif self.rows > 2 * self._before and fastest_s > SURPRISE * (self._row_s + self._one_call_s / self.rows):
            self.rows, self._most_step = self._before, 2  # somewhere between them rows get slower
            self._try_more(2, self._before_s)
        elif fastest_s * GAIN < self._before_s:
            self._try_more(self._step(fastest_s), fastest_s)
        elif len(self._calls_s) >= TRIES:
            if fastest_s > self._before_s * GAIN:
                self.rows = self._before
            self._is_trying, self._calls_s, self._again = False, [], self._again * 2

    def _step(self, fastest_s: float) -> int:
        """Times the rows of this size that the next one should have, by what the last two show of calls and of rows."""
        if self._before_s == math.inf:
            return 2
        longer_s = fastest_s * self.rows - self._before_s * self._before
        self._row_s = max(longer_s / (self.rows - self._before), 1e-12)
        self._one_call_s = (fastest_s - self._row_s) * self.rows
        step = 2
        while step < self._most_step and step * 2 * self.rows * CALL_SHARE * self._row_s <= self._one_call_s:
            step *= 2
        return step

    def _try_more(self, step: int, fastest_s: float) -> None:
        # More rows than a table has would never be seen in one call.
        rows = min(self.rows * step, max(self._most_seen, self.rows), self._most)
        self._is_trying, self._before, self._before_s = rows > self.rows, self.rows, fastest_s
        self._calls_s = []
        if self._is_trying:
            self.rows = rows
