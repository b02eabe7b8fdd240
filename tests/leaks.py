"""What this process holds: processes, threads, open files, named files. Two looks tell what was left behind in between.

Workers that the pool keeps warm for the next call are allowed, as many as it knows of, and no more.
"""

import contextlib
import ctypes
import os
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PREFIXES = {
    "/var/tmp": ("fourfold",),
    "/dev/shm": ("fourfold", "sem.", "psm_"),
    tempfile.gettempdir(): ("fourfold", "tmp"),
}
"""Which files would be leaks where they are. conftest.py has given this process a folder of its own before this is read."""

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Whoever loses its parent becomes our child: a worker that survives its driver does not escape."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def the_pool() -> Any:
    """The pool of this process, if there is one."""
    module = sys.modules.get("fourfold.distribute.engines.on_processes.pool")
    return module.POOL if module is not None else None


class Holdings(NamedTuple):
    """What this process holds at one moment."""

    pids: frozenset[int]
    threads: frozenset[int]
    fds: dict[int, str]
    named_files: frozenset[str]

    @classmethod
    def now(cls) -> "Holdings":
        return cls(
            frozenset(process.pid for process in descendants()),
            frozenset(thread.ident or 0 for thread in threading.enumerate()),
            open_files(),
            named_files(),
        )

    def leaks(self) -> list[str]:
        """Sentences about what is there now and was not there before, and is not the warm pool's."""
        warm = WarmPool.now()
        return [
            *self._leaked_processes(warm),
            *self._leaked_threads(warm),
            *self._leaked_files(warm),
            *(f"the file {name}" for name in sorted(named_files() - self.named_files) if not is_a_strangers(name)),
        ]

    def _leaked_processes(self, warm: "WarmPool") -> Iterator[str]:
        if warm.n_lent:
            yield f"{warm.n_lent} workers that a run has not given back"
        workers = 0
        for process in living_descendants(warm.template):
            # A worker that was just ordered has not said its pid yet: it is counted instead.
            if process.parent == warm.template or process.pid in warm.workers:
                workers += 1
            elif process.pid not in self.pids and process.pid != warm.template and not process.is_a_tracker:
                yield f"the process {process.line}"
        if workers > warm.n_idle:
            yield f"{workers} workers, and the pool knows of {warm.n_idle}"

    def _leaked_threads(self, warm: "WarmPool") -> Iterator[str]:
        frames = sys._current_frames()
        for thread in threading.enumerate():
            # tqdm keeps one thread for all its bars, for good.
            known = thread.ident in self.threads or thread.ident == warm.timer or type(thread).__name__ == "TMonitor"
            if not known:
                stack = traceback.format_stack(frames[thread.ident]) if thread.ident in frames else []
                yield f"the thread {thread.name}, which is here:\n{''.join(stack)}"

    def _leaked_files(self, warm: "WarmPool") -> Iterator[str]:
        fresh = {fd: to for fd, to in open_files().items() if fd not in warm.fds and self.fds.get(fd) != to}
        # A mapping keeps a descriptor of its own (before Python 3.13): one control page for each worker.
        pages = [fd for fd, target in fresh.items() if "fourfold" in target and target.endswith(" (deleted)")]
        for fd in pages[: warm.n_idle]:
            del fresh[fd]
        for fd, target in fresh.items():
            listening = target.startswith("socket:") and listens(fd)
            yield f"the open file {fd} -> {target}" + (", which listens" if listening else "")


class WarmPool(NamedTuple):
    """What the pool of this process holds between calls, by its own books."""

    template: int = 0
    workers: frozenset[int] = frozenset()
    n_idle: int = 0
    n_lent: int = 0
    timer: int | None = None
    fds: frozenset[int] = frozenset()

    @classmethod
    def now(cls) -> "WarmPool":
        pool = the_pool()
        if pool is None:
            return cls()
        owners = [pool._program_memory, *(worker._items for worker in pool._idle)]
        return cls(
            template=pool._template.pid if pool._template is not None else 0,
            workers=frozenset(worker.pid for worker in pool._idle if worker.pid),
            n_idle=len(pool._idle),
            n_lent=len(pool._lent),
            timer=pool._let_go_timer.ident if pool._let_go_timer is not None else None,
            fds=frozenset(
                [worker.end.fileno() for worker in pool._idle]
                + [worker.pidfd for worker in pool._idle]
                + [worker.page.fd for worker in pool._idle]
                + ([pool._control.fileno(), pool._template_log] if pool._control is not None else [])
                + [segment.fd for owner in owners for segment in [*owner._free, *owner._busy.values()]]
            ),
        )


class Process(NamedTuple):
    """One line of the process table."""

    pid: int
    parent: int
    state: str
    name: str

    @property
    def is_a_tracker(self) -> bool:
        """multiprocessing keeps one process for good once something asked for it."""
        return "multiprocessing.resource_tracker" in command_of(self.pid)

    @property
    def line(self) -> str:
        return f"{self.pid} ({self.name}, {self.state}, child of {self.parent}): {command_of(self.pid)}"


_strangers: set[int] = set()
"""Processes that are not ours, and cannot become ours: they need not be looked at again."""


def descendants() -> list[Process]:
    """All processes under this one."""
    pids = {int(entry) for entry in os.listdir("/proc") if entry.isdecimal()}
    _strangers.intersection_update(pids)
    read = [process for pid in pids - _strangers if (process := read_process(pid)) is not None]
    children: dict[int, list[Process]] = {}
    for process in read:
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    parents = [os.getpid()]
    while parents:
        born = children.get(parents.pop(), [])
        found += born
        parents += [process.pid for process in born]
    # By their parents, not by being missing from `found`: a parent may have died while we read.
    not_ours = {0, 1, *_strangers}
    _strangers.update(process.pid for process in read if process.parent in not_ours and process.pid != os.getpid())
    return found


def read_process(pid: int) -> Process | None:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        text = os.read(fd, 1024).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(fd)
    # "17 (any name, even with ) in it) S 1 ..."
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return Process(pid, int(parent), state, name)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def living_descendants(template: int) -> list[Process]:
    """The processes under this one that still run. Buries the dead that became our children when their parents died."""
    living = []
    for process in descendants():
        if process.state not in "ZX":
            living.append(process)
        elif process.parent == os.getpid() and process.pid != template:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
    return living


def open_files() -> dict[int, str]:
    """Where each open descriptor of this process leads to."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
    return found


def listens(fd: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as end:  # a thread may have closed it meanwhile
        return bool(end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return False


def named_files() -> frozenset[str]:
    """Files that have a name where others could find them: of ours there should be none, ever, and of a test none that stays.

    In the folder of temporary files of these tests, which nobody else uses, that is whatever `tempfile` makes. In /dev/shm it is
    what multiprocessing makes there: semaphores and shared memory.
    """
    found = []
    for folder, prefixes in PREFIXES.items():
        with contextlib.suppress(OSError):
            found += [f"{folder}/{name}" for name in os.listdir(folder) if name.startswith(prefixes)]
    return frozenset(found)


def is_a_strangers(path: str) -> bool:
    """Whether it may be a file of /dev/shm that somebody else has made.

    Who made it nobody knows. So it counts as ours when one of our processes has mapped it, and, when nobody has, only where
    nobody else runs Python.
    """
    if not path.startswith(("/dev/shm/sem.", "/dev/shm/psm_")):
        return False
    ours = {os.getpid(), *(process.pid for process in descendants())}
    return not any(_maps(pid, path) for pid in ours) and strangers_run_python(ours)


def strangers_run_python(ours: set[int]) -> bool:
    """Whether processes run Python that are not ours, nor above this one."""
    known, above = {*ours}, read_process(os.getpid())
    while above is not None:
        known.add(above.pid)
        above = read_process(above.parent)
    pids = {int(entry) for entry in os.listdir("/proc") if entry.isdecimal()} - known
    return any("python" in command_of(pid).partition(" ")[0] for pid in pids)


def _maps(pid: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        return path in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    return False
