"""The guard: a process beside the ranks that kills them, with all that they have started, when their driver is gone.

Started as `python -c "from ...guard import main; main(DRIVER, MARK)"`. It reads the ranks' process ids, a line each. A rank
itself cannot watch its driver while C code holds its interpreter, and cannot end what others it has started.
"""

import contextlib
import os
import select
import signal

from fourfold.distribute.engines.on_processes import family

LOOK_S = 0.5
"""Seconds between looks whether the driver lives, where the system has no pidfd and a fork holds the pipe open."""


def main(driver: int, mark: int) -> None:
    """Wait until the driver is gone, or has killed this process because nothing is left to guard."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: list[int] = [0]
    with contextlib.suppress(OSError, AttributeError):
        watched.append(os.pidfd_open(driver))
    ranks = b""
    while os.getppid() == driver:
        readable, _, _ = select.select(watched, [], [], LOOK_S)
        if len(watched) > 1 and watched[1] in readable:
            break
        if 0 in readable:
            data = os.read(0, 4096)
            if not data:
                break
            ranks += data
    with contextlib.suppress(OSError):  # what was said last
        os.set_blocking(0, False)
        ranks += os.read(0, 1 << 20)
    for pid in map(int, ranks.split()):
        if family.may_bear(pid, mark):  # else the rank has ended long ago, and its number is another process's now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
    family.end({mark})
    os._exit(0)
