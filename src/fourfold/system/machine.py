"""What this machine gives to this process, and where each figure comes from."""

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fourfold.errors import OptionError

if TYPE_CHECKING:
    import threadpoolctl

CGROUPS, MEMBERSHIP = "/sys/fs/cgroup", "/proc/self/cgroup"
"""Where Linux keeps control groups, and which ones this process is in."""


try:
    STARTED_IN = os.getcwd()
except FileNotFoundError:
    STARTED_IN = os.path.expanduser("~")
"""The folder that this process was in when fourfold was imported: a script may go elsewhere later."""


class Cores(NamedTuple):
    """How many cores this process may use, and who says so."""

    n_cores: int
    source: str


class Memory(NamedTuple):
    """How much memory this process may use, and who says so."""

    limit_bytes: int
    source: str


def cores() -> Cores:
    """Return the cores that this process may use: the least of affinity mask and cgroup CPU quota (v1 or v2).

    A quota of 1.5 CPUs counts as 2: rounding down would leave half a core idle for ever.
    """
    found = [_affinity()]
    quota = cgroup_cpu_quota()
    if quota is not None:
        found.append(quota)
    return min(found, key=lambda each: each.n_cores)


def jobs_of(n_jobs: int | None) -> int:
    """How many at once scikit-learn's word means: None one, −1 all cores that this process may use, −2 all but one.

    Raises:
        OptionError: It is 0.
    """
    if n_jobs == 0:
        raise OptionError("n_jobs == 0 has no meaning: -1 means all cores that this process may use")
    if n_jobs is None:
        return 1
    return n_jobs if n_jobs > 0 else max(1, cores().n_cores + 1 + n_jobs)


def _affinity() -> Cores:
    total = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        if allowed < total:
            return Cores(allowed, f"CPU affinity mask ({allowed} of {total} cores)")
    return Cores(total, "cores of the machine")


def cgroup_cpu_quota(root: str = CGROUPS, membership: str = MEMBERSHIP) -> Cores | None:
    """Return the tightest CPU quota on the way from this process's cgroup to the root, or None without one."""
    quotas = []
    for folder in _cgroup_folders(root, membership, "cpu"):
        text = _read(os.path.join(folder, "cpu.max"))
        if text is None:
            quota = _read(os.path.join(folder, "cpu.cfs_quota_us")) or "-1"
            text = f"{quota} {_read(os.path.join(folder, 'cpu.cfs_period_us')) or '100000'}"
        parts = text.split()
        if len(parts) == 2 and parts[0] not in ("max", "-1") and int(parts[1]) > 0:
            quotas.append((int(parts[0]) / int(parts[1]), folder))
    if not quotas:
        return None
    cpus, folder = min(quotas)
    return Cores(max(1, -int(-cpus // 1)), f"cgroup CPU quota of {cpus:g} CPUs in {folder}")


def memory() -> Memory:
    """Return the memory that this process may use: the least of the machine's and the cgroup's limit."""
    found = [Memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "memory of the machine")]
    for folder in _cgroup_folders(CGROUPS, MEMBERSHIP, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(os.path.join(folder, name))
            if text is not None and text.isdigit():
                found.append(Memory(int(text), f"cgroup limit in {os.path.join(folder, name)}"))
    return min(found)


NO_LIMIT_BYTES = 1 << 60
"""From here on a limit is none: cgroups of version 1 write a number where those of version 2 write "max"."""


class FreeMemory(NamedTuple):
    """How much memory this process and those beside it may still take, of how much."""

    free_bytes: int
    limit_bytes: int


class MemoryReader:
    """Reads again and again how much memory is free: the least of what the machine has and what each cgroup leaves.

    What the kernel would give back at once (caches of files) counts as free. One look takes about 20 µs, as measured with a
    limit in one cgroup.

    Args:
        root: Where control groups are.
        membership: Which ones this process is in.
        meminfo: What the machine as a whole has.
    """

    def __init__(self, root: str = CGROUPS, membership: str = MEMBERSHIP, meminfo: str = "/proc/meminfo") -> None:
        self._meminfo = meminfo
        self._groups = []
        for folder in _cgroup_folders(root, membership, "memory"):
            for limit, usage, cache in (
                ("memory.max", "memory.current", "inactive_file"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            ):
                path = os.path.join(folder, limit)
                limit_bytes = _number_after(_read_bytes(path), b"")
                if limit_bytes is not None and limit_bytes < NO_LIMIT_BYTES:
                    self._groups.append((path, os.path.join(folder, usage), os.path.join(folder, "memory.stat"), cache))

    def read(self) -> FreeMemory | None:
        """What is free now; None where nobody says."""
        found = [free for group in self._groups if (free := self._in_group(*group)) is not None]
        text = _read_bytes(self._meminfo)
        total, available = _number_after(text, b"MemTotal:"), _number_after(text, b"MemAvailable:")
        if total is not None and available is not None:
            found.append(FreeMemory(available * 1024, total * 1024))
        return min(found, default=None)

    def _in_group(self, limit: str, usage: str, stat: str, cache: str) -> FreeMemory | None:
        limit_bytes, used_bytes = _number_after(_read_bytes(limit), b""), _number_after(_read_bytes(usage), b"")
        if limit_bytes is None or used_bytes is None:
            return None
        free_bytes = limit_bytes - used_bytes
        if free_bytes < limit_bytes // 2:  # the kernel adds up this file over all cores: only when it matters
            free_bytes += _number_after(b"\n" + _read_bytes(stat), b"\n%s " % cache.encode()) or 0
        return FreeMemory(max(0, free_bytes), limit_bytes)


def _read(path: str) -> str | None:
    """The start of a small file, None where it cannot be read."""
    data = _bytes_of(path)
    return None if data is None else data.decode("utf-8", "replace").strip()


def _read_bytes(path: str) -> bytes:
    """The start of a small file, or nothing."""
    return _bytes_of(path) or b""


def _bytes_of(path: str) -> bytes | None:
    """A third of the time of `open().read()`, and each call on processes reads some of these."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 16384)
    except OSError:
        return None
    finally:
        os.close(fd)


def _number_after(text: bytes, name: bytes) -> int | None:
    _, found, rest = text.partition(name) if name else (b"", True, text)
    digits = rest.split(None, 1)[:1] if found else []
    return int(digits[0]) if digits and digits[0].isdigit() else None


def oom_kills(root: str = CGROUPS, membership: str = MEMBERSHIP) -> int | None:
    """Return how many processes of this one's cgroup the kernel has killed for want of memory, or None when nobody counts."""
    path = _oom_counter(root, membership)
    return _oom_count(path) if path is not None else None


@functools.cache
def _oom_counter(root: str, membership: str) -> str | None:
    """The file that counts. Looked for once: a process that moves to another cgroup later is not seen."""
    for folder in _cgroup_folders(root, membership, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            path = os.path.join(folder, name)
            if _oom_count(path) is not None:
                return path
    return None


def _oom_count(path: str) -> int | None:
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill" and value.isdigit():
            return int(value)
    return None


def waited_for_a_core_s() -> float:
    """Seconds in which this thread could have computed, and had no core since others were on it; 0.0 where nobody counts."""
    words = _read_bytes("/proc/thread-self/schedstat").split()
    return int(words[1]) / 1e9 if len(words) > 1 and words[1].isdigit() else 0.0


def catches(pid: int, signal_number: int) -> bool:
    """Whether the process has a handler for the signal; False when nobody can tell."""
    for line in (_read(f"/proc/{pid}/status") or "").splitlines():
        key, _, mask = line.partition(":")
        if key == "SigCgt":
            return bool(int(mask, 16) >> (signal_number - 1) & 1)
    return False


def is_stopped(pid: int) -> bool:
    """Whether the process is frozen, as SIGSTOP does it; False when nobody can tell."""
    return (_read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()[:1] in (["T"], ["t"])


def _cgroup_folders(mount: str, membership: str, controller: str) -> list[str]:
    """The cgroup folders that bind this process for `controller`, innermost first, for v2 and v1 layouts."""
    folders = []
    mount = os.fspath(mount)
    for line in (_read(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = mount
        elif controller in controllers.split(","):
            together = os.path.join(mount, controllers)
            base = together if os.path.isdir(together) else os.path.join(mount, controller)
        else:
            continue
        inner = os.path.normpath(os.path.join(base, path.lstrip("/")))
        # In a container the path is often the host's and is not there: then the root of the mount is ours.
        while inner.startswith(base + os.sep):
            folders.append(inner)
            inner = os.path.dirname(inner)
        folders.append(base)
    return [folder for folder in folders if os.path.isdir(folder)]


THREAD_VARIABLES: tuple[str, ...] = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""What numerical libraries read when they are first imported, to know how many threads to start."""

READ_FIRST = {"OPENBLAS_NUM_THREADS": "openblas", "MKL_NUM_THREADS": "mkl", "BLIS_NUM_THREADS": "blis"}
"""Libraries, as threadpoolctl calls them, by the variable that each reads before it reads OMP_NUM_THREADS."""

JOBLIB_VARIABLE = "LOKY_MAX_CPU_COUNT"
"""What joblib, and scikit-learn with it, takes for the number of cores: so many processes `n_jobs=-1` starts."""


def free_thread_variables() -> tuple[str, ...]:
    """Those of THREAD_VARIABLES that say nothing yet: OMP_NUM_THREADS speaks for all, each other one for its library."""
    if "OMP_NUM_THREADS" in os.environ:
        return ()
    return tuple(name for name in THREAD_VARIABLES if name not in os.environ)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def user_name_of(fn: object) -> str:
    """Return a short name for a function, for messages."""
    while type(fn).__name__ == "partial" and hasattr(fn, "func"):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    return str(name.rpartition("<locals>.")[2])


_limits: list[int] = []
"""The limits that hold now: runs of several threads overlap."""

_unlimited: "threadpoolctl.threadpool_limits | None" = None
"""Knows what the libraries used before the first of them."""

_limits_lock = threading.Lock()


_found: "tuple[int, threadpoolctl.ThreadpoolController] | None" = None
"""How many modules there were when numerical libraries were last looked for, and those that were loaded then."""


def _libraries() -> "threadpoolctl.ThreadpoolController":
    """The numerical libraries that are loaded. Looking for them takes 3 ms, and new ones come with new modules."""
    import threadpoolctl

    global _found
    if _found is None or _found[0] != len(sys.modules):
        _found = len(sys.modules), threadpoolctl.ThreadpoolController()
    return _found[1]


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let numerical libraries of this process use `count` threads each, for a while.

    Where several limits hold at once, the lowest counts; the last one to end puts back what was there before the first.
    """
    global _unlimited
    _limits.append(count)
    try:
        with _limits_lock:
            limiter = _libraries().limit(limits=min(_limits))
            _unlimited = _unlimited or limiter
        yield
    finally:
        with _limits_lock:
            _limits.remove(count)
            if _limits:
                _libraries().limit(limits=min(_limits))
            elif _unlimited is not None:
                _unlimited.restore_original_limits()
                _unlimited = None


def limit_this_thread() -> None:
    """What `limited_threads` says now, for OpenMP too: each thread has a number of its own there."""
    if _limits:
        import threadpoolctl

        threadpoolctl.threadpool_limits(limits=min(_limits), user_api="openmp")


_limited: tuple[object, ...] = ()
"""The last limit for good, and the libraries it was set for."""


def limit_threads_for_good(count: int, variables: Sequence[str] = THREAD_VARIABLES) -> None:
    """The same until the process ends; for libraries that are loaded. Those that come later read THREAD_VARIABLES.

    Args:
        count: Threads of each.
        variables: Those of THREAD_VARIABLES that this is the number for. Libraries of the others have the number there.
    """
    global _limited
    others = {api: os.environ.get(name, "") for name, api in READ_FIRST.items() if name not in variables}
    key = (count, *others.items())
    loaded = (key, *(name in sys.modules for name in ("numpy", "scipy", "sklearn", "torch")))
    if any(loaded[1:]) and loaded != _limited:
        import threadpoolctl

        libraries = threadpoolctl.ThreadpoolController()
        for api in {each["internal_api"] for each in libraries.info()}:
            text = others.get(api, str(count))
            if text.isdigit() and int(text):
                libraries.select(internal_api=api).limit(limits=int(text))
        _limited = loaded
