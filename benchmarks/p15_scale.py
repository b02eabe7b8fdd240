"""P15: the scheduler alone, on ten thousand simulated workers: `scale.py` runs it, here its rows are read."""

from __future__ import annotations

from rows import Row

TIMEOUT_S = 400.0


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Calls `scale.main()` in a process of its own."""
    del rounds, is_quick
    raise NotImplementedError
