"""Which cases of tests run: all of them, or one of each test."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol


class Item(Protocol):
    """What pytest calls an item, as far as it counts here."""

    nodeid: str
    path: Path


def one_case_each(items: Sequence[Item], whole: Collection[str]) -> list[Item]:
    """The first case of each test, and all cases of those in the files `test_NAME.py` with these names."""
    kept: dict[str, Item] = {}
    for item in items:
        is_whole = item.path.stem.removeprefix("test_") in whole
        kept.setdefault(item.nodeid if is_whole else item.nodeid.partition("[")[0], item)
    return list(kept.values())
