"""Where a test can make a system call fail: at the N-th call of a named place.

    FOURFOLD_FAULT="journal.sync:3:ENOSPC"         the 3rd call fails, as a full disk would
    FOURFOLD_FAULT="journal.write:2+:EIO"          the 2nd and all later ones
    FOURFOLD_FAULT="channel.send:*:DELAY"          each one waits, up to DELAY_S
    FOURFOLD_FAULT="journal.commit:5:KILL"         this process is killed there

Several faults are separated by commas. Each process counts for itself. Without the variable a seam costs 40 to 60 ns.
"""

import errno
import os
import random
import signal
import time
from collections import Counter
from typing import NamedTuple

from fourfold.errors import OptionError

VARIABLE = "FOURFOLD_FAULT"

DELAY_S = 0.1
"""Seconds that a DELAY waits at most. Less: fewer orders of events come about. More: slow tests."""


class Fault(NamedTuple):
    """The calls [first, last] of a seam do `action`: an errno's name, "KILL" or "DELAY"."""

    seam: str
    first: int
    last: float
    action: str


def parse(text: str) -> list[Fault]:
    """Read the value of the variable.

    Raises:
        OptionError: It cannot be read.
    """
    faults = []
    for spec in filter(None, text.split(",")):
        seam, _, rest = spec.partition(":")
        when, _, action = rest.partition(":")
        number = when.removesuffix("+")
        known = action in ("KILL", "DELAY") or action in errno.errorcode.values()
        if not (seam and known and (when == "*" or number.isdecimal())):
            raise OptionError(
                f"the environment has {VARIABLE}={text!r}: {spec!r} is not SEAM:N:ERRNO, such as journal.sync:3:ENOSPC"
            )
        first = 1 if when == "*" else int(number)
        faults.append(Fault(seam, first, float("inf") if when in ("*", f"{number}+") else first, action))
    return faults


_faults: list[Fault] = parse(os.environ.get(VARIABLE, ""))
calls: Counter[str] = Counter()
"""How often each seam was passed, while there are faults."""


def hit(seam: str) -> None:
    """Pass a seam: nothing happens, unless a fault waits here.

    Raises:
        OSError: The fault.
    """
    if _faults:
        _pass(seam)


def set_faults(text: str) -> None:
    """Wait with these faults from now on, in this process; "" for none. Counts begin at zero."""
    _faults[:] = parse(text)
    calls.clear()


def _pass(seam: str) -> None:
    calls[seam] += 1
    for fault in _faults:
        if fault.seam == seam and fault.first <= calls[seam] <= fault.last:
            if fault.action == "KILL":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault.action == "DELAY":
                time.sleep(random.Random(f"{seam} {calls[seam]} {os.getpid()}").uniform(0, DELAY_S))
            else:
                number = getattr(errno, fault.action)
                raise OSError(number, os.strerror(number), seam)
