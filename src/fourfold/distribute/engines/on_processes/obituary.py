"""How a worker died: in a sentence, and with what it left behind."""

import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from fourfold.distribute.engines.on_processes import stacks
from fourfold.distribute.engines.on_processes.page import ERRNO, PEAK_KB, STATUS, Page
from fourfold.system.machine import oom_kills

OBITUARY_S = 1.0
"""Seconds to wait for the template to note how a worker died. Smaller: a cause may be missing from the message."""

BEFORE_READY, LOADING, BETWEEN_ITEMS = " before it was ready", " while it loaded the function", " between items"
"""When a worker died, if it was not with an item."""

HINTS = {
    signal.SIGSEGV: "C code used memory that is not its own, or recursed too deeply",
    signal.SIGABRT: "C code gave up and called abort()",
    signal.SIGBUS: "C code used memory that is not there, such as the end of a mapped file that has become shorter",
    signal.SIGFPE: "C code divided by zero",
    signal.SIGILL: "C code was built for another processor",
    signal.SIGKILL: "often the kernel's answer to too little memory",
}
"""What is behind a signal as a rule."""


SENT = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that somebody sends, and no instruction of the code that runs raises. The kernel may, for want of memory; where it
counts these kills, they are known (OutOfMemoryKills)."""


class Obituary(NamedTuple):
    """How a worker died.

    `reason` is one sentence. `evidence` has lines: its Python stack when there is one, and what it wrote to fd 2 last.
    `was_sent`: it died of one of SENT.
    """

    reason: str
    evidence: str = ""
    out_of_memory: bool = False
    was_sent: bool = False


class OutOfMemoryKills:
    """Knows how many processes the kernel has killed for want of memory, and whose deaths they were."""

    def __init__(self) -> None:
        self._accounted = oom_kills()

    def account_for_one(self) -> bool:
        """A worker was killed: whether the kernel has killed one since, for which nobody has accounted yet."""
        count = oom_kills()
        if count is None or self._accounted is None or count <= self._accounted:
            return False
        self._accounted += 1
        return True


def write(name: str, page: Page, when: str, kills: OutOfMemoryKills | None, is_watched: Callable[[], bool]) -> Obituary:
    """Say how the worker died.

    Args:
        name: The worker's.
        page: Its control page.
        when: One of those above, or "".
        kills: None, when it was killed by us.
        is_watched: Whether somebody will note how it died.
    """
    fields = page.fields
    deadline = time.monotonic() + OBITUARY_S
    while not fields[STATUS] and not fields[ERRNO] and is_watched() and time.monotonic() < deadline:
        time.sleep(0.001)
    if fields[ERRNO]:
        return Obituary(f"{name} could not be forked: {os.strerror(int(fields[ERRNO]))}")
    if not fields[STATUS]:
        return Obituary(f"{name} ended{when} and nobody noted how: the process that watches workers is gone too")
    status = int(fields[STATUS]) - 1
    signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    out_of_memory = signal_number == signal.SIGKILL and kills is not None and kills.account_for_one()
    if out_of_memory:
        how = "was killed by the kernel's out-of-memory killer (SIGKILL)"
    elif signal_number:
        how = f"was killed by {_signal_name(signal_number)}"
        if signal_number in HINTS:
            how += f" ({HINTS[signal.Signals(signal_number)]})"
    else:
        how = f"exited with code {os.waitstatus_to_exitcode(status)}"
        if when != BEFORE_READY:  # then an exception of ours ended it
            how += " (os._exit, or exit() in C code)"
    peak = f"; its peak memory was {fields[PEAK_KB] / 1024:.0f} MiB" if fields[PEAK_KB] else ""
    evidence = _evidence(page, bool(signal_number))
    return Obituary(f"{name} {how}{when}{peak}", evidence, out_of_memory, signal_number in SENT)


def _evidence(page: Page, by_signal: bool) -> str:
    stack = stacks.at_death(page) if by_signal else ""
    words = page.words()
    return with_stack(stack, f"last lines on stderr:\n{words}" if words else "")


def with_stack(stack: str, evidence: str) -> str:
    """The evidence, below a worker's stack when there is one."""
    told = f"Python stack of the worker, most recent call first:\n{stack}" if stack else ""
    return "\n".join(filter(None, [told, evidence]))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
