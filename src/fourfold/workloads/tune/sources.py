"""The sources of random numbers that a sampler holds: where they stand, and how they are set."""

import zlib
from typing import Any

DEPTH = 4
"""Samplers that hold samplers that hold …: so deep they are searched. Not measured; Optuna has 2."""


def sources_of(sampler: Any) -> list[Any]:
    """All sources of random numbers that a sampler of Optuna holds, in a fixed order: objects with a NumPy `rng`."""
    found: list[Any] = []
    _search(sampler, DEPTH, found, set())
    return found


def _search(holder: Any, depth: int, found: list[Any], seen: set[int]) -> None:
    import numpy as np

    if id(holder) in seen or not depth:
        return
    seen.add(id(holder))
    for _, each in sorted(getattr(holder, "__dict__", {}).items()):
        if isinstance(getattr(type(each), "rng", None), property) and isinstance(each.rng, np.random.RandomState):
            found.append(each)
        elif type(each).__module__.startswith("optuna."):
            _search(each, depth - 1, found, seen)


def state_of(source: Any) -> int:
    """A number that tells where a source stands, without drawing from it."""
    _, keys, place, *_ = source.rng.get_state()
    return zlib.crc32(keys.tobytes(), place)


def seed_all(sampler: Any, roots: list[int], number: int) -> None:
    """Let all sources of a sampler go on from a trial's number."""
    for at, (source, root) in enumerate(zip(sources_of(sampler), roots, strict=True)):
        source.rng.seed(word_of([root, number, at]))


def word_of(entropy: list[int]) -> int:
    """One number that follows from several."""
    import numpy as np

    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
