"""fourfold's own part in the races: its `map` as a contestant, like that of a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from measure import Contestant, timed
from rows import FOURFOLD

import fourfold as ff


def fourfold(
    fn: Callable[[Any], Any],
    items: Callable[[], Iterable[Any]] | Iterable[Any],
    name: str = FOURFOLD,
    **options: Any,
) -> Contestant:
    """`ff.map(fn, items, **options)` as a contestant; `items` may be a function that makes them anew."""
    make = items if callable(items) else lambda: items
    return Contestant(name, {"": lambda: _lap(fn, make(), options)})


def _lap(fn: Callable[[Any], Any], items: Iterable[Any], options: dict[str, Any]) -> Any:
    return timed(lambda: ff.map(fn, items, **options))


def start_workers(workers: int) -> None:
    """Makes the pool warm: its workers run something and stay."""
    ff.map(abs, range(1000 * workers), engine="processes", workers=workers)
