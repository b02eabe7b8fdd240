"""All that a worker has started: found by a mark that a process inherits and cannot lose by accident.

What an item starts is in the worker's process group, and ends with it by one signal. What makes a group or a session of its
own (`start_new_session=True`, `setsid`, a daemon) leaves that, and when its parent has died, nothing says whose it was. So
each worker bears a mark: its limit of file locks, which Linux hands on to all children and has not looked at since 2.4.
"""

import contextlib
import os
import resource
import signal

_LOCKS = 10
"""RLIMIT_LOCKS, which Python has no name for."""

_PASSES = 3
"""Looks for processes that others started while they were ended. Fewer: one that starts others all the time leaves some."""


def new_mark() -> int:
    """A mark that no other process bears."""
    return int.from_bytes(os.urandom(7), "big") | 1


def bear(mark: int) -> None:
    """This process, and what it starts from now on, bears the mark; without effect where the system cannot."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        _, hard = resource.prlimit(0, _LOCKS)
        resource.setrlimit(_LOCKS, (mark, hard))


def end(marks: set[int]) -> None:
    """Kill all that bears one of the marks. A look takes some 6 µs for each process of the machine."""
    for _ in range(_PASSES):
        found = [pid for pid in _pids() if _mark_of(pid) in marks] if marks else []
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def may_bear(pid: int, mark: int) -> bool:
    """Whether a process bears the mark; also true where the system does not say."""
    return not hasattr(resource, "prlimit") or _mark_of(pid) == mark


def _pids() -> list[int]:
    if not hasattr(resource, "prlimit"):
        return []
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []


def _mark_of(pid: int) -> int:
    try:
        return resource.prlimit(pid, _LOCKS)[0]
    except OSError:  # somebody else's, or gone
        return 0
