"""What the schedule is told, and what it answers: its events and its actions.

Slots       the engine has so many workers now          Take     take the next items, then say Taken
Taken       so many items were taken, or none are left  Submit   run the items [start, start + count)
Finished    a ticket ended; these items failed          Settle   this item's failure is final
Partly      the first items of a ticket have ended
Unstarted   a ticket ended before it did anything       Cancel   end these tickets
Unreadable  a ticket could not cross the boundary       Stop     no more: nothing is left to wait for
Died        a worker died with a ticket, or idle
DoubtOver   items in doubt have waited long enough
GraceOver   stopping has taken long enough
MemoryRoom  there is memory for so many items
"""

from collections.abc import Sequence
from typing import NamedTuple

from fourfold.distribute.sizes import SERVICE_S


class Slots(NamedTuple):
    """The engine has `n_slots` workers now. `prefetch`: a chunk more for each may wait near it. Chunks aim at `target_s`.

    One that is submitted to an idle worker starts after `dispatch_s`. `in_jobs`: many that are submitted together are as cheap
    as one, and come back together.
    """

    n_slots: int
    prefetch: bool = True
    target_s: float = SERVICE_S
    dispatch_s: float = 0.0
    in_jobs: bool = False


class Taken(NamedTuple):
    """`n_items` items were taken, which took `elapsed_s`; no more are there when `exhausted`."""

    n_items: int
    exhausted: bool
    elapsed_s: float = 0.0


class Finished(NamedTuple):
    """A ticket ended: its first `done` items ran. `failed` has (offset, may be tried again) of those without a value."""

    id: int
    done: int
    failed: Sequence[tuple[int, bool]] = ()
    elapsed_s: float = 0.0
    size_bytes: int = 0


class Partly(NamedTuple):
    """The first `done` items of a ticket ended, and their results are here; what became of the others is told next."""

    id: int
    done: int
    failed: Sequence[tuple[int, bool]] = ()
    elapsed_s: float = 0.0
    size_bytes: int = 0


class Unstarted(NamedTuple):
    """A ticket ended before any of its items started."""

    id: int


class Unreadable(NamedTuple):
    """A ticket or its result could not be read at the other side; one of its items is to blame."""

    id: int


class Died(NamedTuple):
    """A worker died. With a ticket: it was running the items [first, first + n_items) of it, those before had ended.

    They count from the first item that was not told of as Partly. No items: it was between two of them.
    `expired`: it was ended, because one of these items ran longer than the run allows. `out_of_memory`: it was killed because
    memory ran out, by the kernel or by the engine. `at_s`: when it was told, by a clock of the driver's. `was_sent`: it died
    of a signal that somebody must send.
    """

    id: int | None = None
    first: int = 0
    n_items: int = 0
    expired: bool = False
    out_of_memory: bool = False
    at_s: float = 0.0
    was_sent: bool = False


class DoubtOver(NamedTuple):
    """The time is over that items in doubt wait for witnesses: they are blamed, or run again, as far as is known now."""


class GraceOver(NamedTuple):
    """The time that a stopping run waits for the tickets before the failed one is over."""


class MemoryRoom(NamedTuple):
    """There is memory for `n_items` items at once. `short`: so little is left that one that runs had better be stopped."""

    n_items: int
    short: bool = False


Event = Slots | Taken | Finished | Partly | Unstarted | Unreadable | Died | DoubtOver | GraceOver | MemoryRoom


class Take(NamedTuple):
    """Take up to `n_items` items from the source, then step with Taken at once."""

    n_items: int


class Submit(NamedTuple):
    """Run the items [start, start + n_items) as ticket `id`; `fresh`: in a worker that has run nothing before."""

    id: int
    start: int
    n_items: int
    fresh: bool = False


class Settle(NamedTuple):
    """The failure that the item last had, in its attempt number `attempts`, is final."""

    position: int
    attempts: int


class Cancel(NamedTuple):
    """End these tickets."""

    ids: tuple[int, ...]
    hard: bool


class Stop(NamedTuple):
    """All is settled, or the run was stopped and nothing is in flight: `reason` is "", "failed", "too many" or "dying"."""

    reason: str


Action = Take | Submit | Settle | Cancel | Stop
