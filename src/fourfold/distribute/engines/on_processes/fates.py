"""What became of the tickets that a worker had when it died."""

from collections.abc import Iterable
from typing import NamedTuple

from fourfold.distribute.engines.on_processes.expiry import Overdue
from fourfold.distribute.engines.on_processes.kept import read as read_kept
from fourfold.distribute.engines.on_processes.obituary import Obituary, with_stack
from fourfold.distribute.engines.on_processes.page import Block, Page
from fourfold.records import Kind, Outcome


class Death(NamedTuple):
    """A death, and what had been done to the worker before it.

    Attributes:
        name: The worker's.
        page: Its control page.
        obituary: How it died.
        overdue: The block for which it was ended, when its time was over.
        oversize: Why it was ended, when that was for its size; else "".
    """

    name: str
    page: Page
    obituary: Obituary
    overdue: Overdue | None
    oversize: str


def fates(tickets: Iterable[int], death: Death) -> list[Outcome]:
    """The outcomes of these tickets: of the one that ran, and of those that waited."""
    on = death.page.block()
    return [_of_running(on, death) if on is not None and on.ticket == id else _of_waiting(id, death) for id in tickets]


def _of_waiting(id: int, death: Death) -> Outcome:
    return Outcome(id, Kind.CANCELLED if death.page.is_to_stop(id) else Kind.COLLATERAL, worker=death.name)


def _of_running(on: Block, death: Death) -> Outcome:
    kind, reason, stack, overdue = Kind.LOST, death.obituary.reason, "", death.overdue
    if overdue is not None:
        # It may have ended the item before it heard that it must end: then it died on an innocent one.
        if overdue.block == on:
            kind, reason, stack = Kind.EXPIRED, overdue.reason, overdue.expiry.stack
        else:
            reason = f"{death.name} was stopped: the item before this one {overdue.reason}"
    starved = bool(death.oversize) and kind is Kind.LOST
    return Outcome(
        on.ticket,
        kind,
        # No items: it died before the first one, unpickling them. Any of them may be to blame.
        running=(on.first, on.n_items) if on.n_items else None,
        reason=death.oversize if starved else reason,
        worker=death.name,
        evidence=with_stack(stack, death.obituary.evidence),
        out_of_memory=starved or death.obituary.out_of_memory,
        was_sent=death.obituary.was_sent,
        kept=read_kept(death.page),
    )
