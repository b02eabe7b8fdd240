"""One thread for numerical libraries: how many there are would be seen in the last bits of sums.

Besides, a piece is a small matter: on a machine that is busy, two threads of BLAS that wait for each other took ten times as
long for the products of 1,000 rows as one.
"""

import contextlib
from collections.abc import Iterator

from fourfold.system.machine import limited_threads


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Numerical libraries use one thread, for a while."""
    import scipy.linalg  # noqa: F401 — a library that comes later would not be limited

    with limited_threads(1):
        yield
