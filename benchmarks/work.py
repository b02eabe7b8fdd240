"""What the items do: the functions that the contestants run, importable by name in every worker.

They burn *work*, never a clock: when two items share a core each takes longer, so contention shows in the
figures. A function that spun until a deadline, or slept, would hide it.

Libraries are imported where they are used: in a fresh interpreter the first call of a contestant must pay for its
own imports, not find them done by the harness.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Microseconds of pure Python in one calibration sample, at least. Smaller: the timer shows. Larger: more
# samples are hit by an interruption. Not measured.
SAMPLE_US = 5000


# A permutation of the numbers below 251: `spin` walks in it.
NEXT = [(73 * number + 41) % 251 for number in range(251)]


def spin(units: int) -> int:
    """Burns `units` steps of pure Python and holds the GIL while it does.

    It makes no objects. A loop that does takes up to 12 % more or less time with where the heap has room, which
    differs between call chains and processes and says nothing about who called it.
    """
    table, at = NEXT, units % 251
    for _ in itertools.repeat(None, units):
        at = table[at]
    return at


def calibrate(samples: int = 31) -> float:
    """Finds how many units of `spin` take a microsecond of CPU time on this machine.

    CPU time of this thread, not the wall clock: somebody else's work on the same core must not change the
    item. The median, not the minimum: 4000 items run at the machine's usual speed, not at its best.

    Returns:
        Units per microsecond.
    """
    spin(100_000)
    units, seconds = 1000, 0.0
    while seconds * 1e6 < SAMPLE_US:
        units *= 2
        seconds = _cpu_seconds(units)
    return units / (statistics.median(_cpu_seconds(units) for _ in range(samples)) * 1e6)


def _cpu_seconds(units: int) -> float:
    start = time.thread_time()
    spin(units)
    return time.thread_time() - start


def items_of(microseconds: float, count: int, units_per_us: float) -> list[int]:
    """Makes `count` items for `spin` of that length; they differ by a few steps, so that answers do."""
    units = int(microseconds * units_per_us)
    return [units + index % 16 for index in range(count)]


def skewed_items(total_s: float, count: int, units_per_us: float, sigma: float) -> list[int]:
    """Makes items for `spin` whose lengths follow a lognormal law, in the worst order: shortest first.

    The quantiles of the law, not random draws: the same items on every machine and in every run.
    """
    normal = statistics.NormalDist()
    shape = [math.exp(sigma * normal.inv_cdf((index + 0.5) / count)) for index in range(count)]
    scale = total_s * 1e6 * units_per_us / sum(shape)
    return [max(1, int(scale * length)) for length in shape]


def units_of(units: int) -> int:
    """The cost of an item of `spin`: its number of steps."""
    return units


def same(item: Any) -> Any:
    """The identity: an item with no work in it."""
    return item


def add_one(number: int) -> int:
    """The smallest useful item."""
    return number + 1


def squares(numbers: list[int]) -> list[int]:
    """The textbook example: a list of numbers, squared."""
    return [number * number for number in numbers]


def total_row(row: dict[str, Any]) -> dict[str, Any]:
    """A small row with one column more."""
    return {**row, "total": row["price"] * row["count"]}


def shout(text: str) -> str:
    """A short string in, a short string out."""
    return text.strip().upper()


def nap(seconds: float) -> float:
    """Waits as an item does that asks a server."""
    time.sleep(seconds)
    return seconds


def mean_of(array: np.ndarray) -> float:
    """Reads a large array, returns a number."""
    return float(array.mean())


def double(array: np.ndarray) -> np.ndarray:
    """Reads a large array, returns another of its size."""
    return array * 2


def matrix_products(seed: int, size: int = 600, products: int = 8) -> float:
    """Multiplies matrices and returns one number of the last.

    Rounded to 9 digits: BLAS may add in another order with another number of threads.
    """
    import numpy as np

    matrix = np.random.default_rng(seed).random((size, size)) / size
    result = matrix
    for _ in range(products):
        result = result @ matrix * 2.0
    return float(f"{np.trace(result):.9g}")


def sum_slice(array: np.ndarray, part: int, parts: int) -> float:
    """Sums one of `parts` equal slices of a large array."""
    length = len(array) // parts
    return float(array[part * length : (part + 1) * length].sum())


def private_bytes() -> tuple[int, int]:
    """The private memory of this process (USS) and its number."""
    import psutil

    return os.getpid(), psutil.Process().memory_full_info().uss


def arrays_of_4_mb(count: int) -> list[np.ndarray]:
    """Makes arrays of half a million floats."""
    import numpy as np

    return [np.full(500_000, float(number)) for number in range(count)]


def touch_every_page(array: np.ndarray) -> float:
    """Reads one number in each page, so that a page shared with another process counts as shared."""
    return float(array[:: 4096 // array.itemsize].sum())
