"""Results that the driver takes over: small ones are copied out of the memory that a worker wrote, large ones mapped."""

import os
import resource
import weakref
from collections import deque

from fourfold.distribute.engines.on_processes import segments
from fourfold.distribute.engines.on_processes.segments import Place
from fourfold.distribute.verdict import size
from fourfold.errors import EngineError
from fourfold.records import Parcel

HANDOVER_BYTES = 1 << 20
"""Results from this size on stay in the memory that the worker wrote, mapped; smaller ones are copied out of it. Smaller: more
mappings and descriptors. Larger: more copies into fresh memory. Not measured for other sizes."""

HANDOVERS = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
"""Mapped results that may live at once: each holds a descriptor of this process. Those beyond are copied."""

_handovers: set[int] = set()
"""A key for each mapped result that lives."""

_forked: set[int] = set()
"""Those of them that a fork of this process sees as well. Nobody tells when it has let go: their memory is not used again."""


def open_result(place: Place, fds: list[int], freed: deque[int]) -> Parcel:
    """The parcel of a result.

    Args:
        place: Where it lies.
        fds: The descriptor that came with it, where it lies in a segment.
        freed: Gets the number of that segment when it is copied, or when nobody looks at it any more: in any thread.

    Raises:
        EngineError: There is no open file, or no room for a mapping.
    """
    if place.inline is not None:
        return segments.open_inline(place)
    if not fds:
        raise EngineError("a result could not be received: this process has no open file left. Raise `ulimit -n`")
    if place.used_bytes < HANDOVER_BYTES or len(_handovers) >= HANDOVERS:
        parcel = segments.open_copy(place, fds[0])
        freed.append(place.segment)
        return parcel
    try:
        parcel, mapping = segments.open_private(place, fds[0])
    except OSError as error:
        raise EngineError(
            f"a result of {size(place.used_bytes)} could not be received: {error}. Let items return less, or use imap()"
        ) from error
    key = id(mapping)
    _handovers.add(key)
    weakref.finalize(mapping, _let_go, key, freed, place.segment).atexit = False
    return parcel


def _let_go(key: int, freed: deque[int], segment: int) -> None:
    _handovers.discard(key)
    if key in _forked:
        _forked.discard(key)
    else:
        freed.append(segment)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: _forked.update(_handovers))
