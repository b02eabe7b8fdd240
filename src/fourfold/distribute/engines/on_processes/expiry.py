"""The end of a worker whose item has run out of time.

    asked where it is ──answer, or ASK_S──> asked to end (SIGTERM) ──GRACE_S──> killed, with all that it started
                                                └── dies, as a rule at once; or its item ends: then it kills itself

An item without a handler of its own for SIGTERM dies of it at once. One that has a handler may clean up. It gets no further
than its own end: the page says that its time was over, and the worker looks there between two items.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from fourfold.distribute.engines.on_processes import stacks
from fourfold.distribute.engines.on_processes.page import EXPIRED, Block, Page
from fourfold.distribute.watch import trimmed
from fourfold.system.machine import is_stopped

ASK_S = 0.1
"""Seconds that an item which is late has to say where it is. Smaller: busy machines give no stack. Larger: one that cannot
answer is stopped later. One that can answers in less than 1 ms."""

GRACE_S = 2.0
"""Seconds between the request to end and the kill. Smaller: items with a handler cannot clean up. Larger: one that ignores the
request holds its worker for longer. Promise R7."""

LOOK_S = 0.001
"""Seconds between looks whether the answer is there. Not measured."""


class Expiry:
    """Ends one worker, step by step, without waiting.

    Args:
        pid: The worker's.
        pidfd: The worker's, or -1.
        page: Its control page.
        kill: Kills it with all that it started.
    """

    def __init__(self, pid: int, pidfd: int, page: Page, kill: Callable[[], None]) -> None:
        self._pid, self._page, self._kill = pid, page, kill
        self.stack = ""
        """Where it was when its time was over, as far as it said."""
        self._text = ""
        self._since = self._steady_since = time.monotonic()
        self._waits_for = "answer"
        if is_stopped(pid):  # it can neither answer nor clean up
            self._waits_for = "death"
            kill()
        elif not stacks.send(pid, pidfd, page):
            self._ask_to_end()

    def step(self) -> float:
        """Do what is due; returns the seconds until the next step."""
        now = time.monotonic()
        if self._waits_for == "answer":
            before, self._text = self._text, self._page.stack()
            if self._text != before:
                self._steady_since = now
            is_steady = bool(self._text) and now - self._steady_since > stacks.STEADY_S
            if not (is_steady or stacks.is_whole(self._text) or now - self._since > ASK_S):
                return LOOK_S
            self.stack = trimmed(self._text)
            self._ask_to_end()
        if self._waits_for == "end" and now - self._since >= GRACE_S:
            self._waits_for = "death"
            self._kill()
        return max(LOOK_S, self._since + GRACE_S - now) if self._waits_for == "end" else GRACE_S

    def _ask_to_end(self) -> None:
        self._waits_for, self._since = "end", time.monotonic()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self._pid, signal.SIGTERM)


class Overdue(NamedTuple):
    """The block whose time is over, what its failure says, and what ends its worker."""

    block: Block
    reason: str
    expiry: Expiry


def mark_if_overdue(page: Page, timeout_s: float, heard_at: float) -> tuple[Block | None, float]:
    """Mark the block that a worker is on when it has run for longer than `timeout_s`: the worker gets no further than its end.

    Args:
        page: The worker's.
        timeout_s: What a block has.
        heard_at: It may have waited to be heard until then.

    Returns:
        The block, if it is overdue, and else the seconds until one may be.
    """
    on = page.block()
    if on is None:
        return None, timeout_s
    left_s = max(on.began_ns / 1e9, heard_at) + timeout_s - time.monotonic()
    # It may have gone on to another item while we looked.
    if left_s > 0 or page.block() != on:
        return None, max(left_s, 0.0)
    page.fields[EXPIRED] = on.began_ns
    if page.block() != on:  # it has gone on: from here on it cannot, if it has not
        return None, 0.0
    return on, 0.0
