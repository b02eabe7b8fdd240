"""Which GPUs of a machine a task has, where its cluster counts them and does not say which: Dask does so.

Ray and Spark give a task its devices, as many as it asked for, and then there is nothing to choose. Elsewhere each task locks
those that it takes, by a file of their name: the kernel unlocks what a process held that was killed.

    CUDA_VISIBLE_DEVICES=0,1   the worker's: choose of these        unset: of those of the machine
"""

import contextlib
import fcntl
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from fourfold.errors import EngineError

VARIABLE = "CUDA_VISIBLE_DEVICES"


@contextmanager
def devices_for(count: int, preferred: Sequence[str] = ()) -> Iterator[str]:
    """What CUDA_VISIBLE_DEVICES is to be for a task that takes so many GPUs; they are its own until the block ends.

    Args:
        count: Of GPUs; 0: the task takes none, and sees what its worker sees.
        preferred: Values that some process is set up for already.

    Raises:
        EngineError: There are not so many that nobody has.
    """
    given = os.environ.get(VARIABLE)
    there = [name.strip() for name in (given or "").split(",") if name.strip()]
    if not count or len(there) == count:
        yield given or ""
        return
    liked = [name for value in preferred for name in value.split(",") if name and (given is None or name in there)]
    with contextlib.ExitStack() as held:
        taken: list[str] = []
        for name in itertools.chain(liked, _of_this_machine() if given is None else there):
            if held.enter_context(_locked(name)):
                taken.append(name)
            if len(taken) == count:
                break
        else:
            raise EngineError(
                f"a task for {count} GPUs came to a worker with {len(taken)} to give, of {given or 'those of its machine'}: "
                f"give workers no more of the resource GPU than they have devices, and {VARIABLE} where they may not have all"
            )
        yield ",".join(sorted(taken, key=int if given is None else there.index))  # one set of devices has one process


def _of_this_machine() -> Iterable[str]:
    """The numbers of its devices; where none can be seen, any number: whoever started the worker knows how many there are."""
    n_files = sum(re.fullmatch(r"nvidia\d+", name) is not None for name in os.listdir("/dev"))
    return map(str, range(n_files) if n_files else itertools.count())


@contextmanager
def _locked(name: str) -> Iterator[bool]:
    """Have this device, unless somebody else has: yields whether that is so."""
    path = os.path.join(tempfile.gettempdir(), f"fourfold-{os.getuid()}-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}")
    fd = _lock(path)
    try:
        yield fd >= 0
    finally:
        if fd >= 0:
            os.unlink(path)
            os.close(fd)


def _lock(path: str) -> int:
    """The open file, locked; -1 when somebody else has it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with contextlib.suppress(FileNotFoundError):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return -1
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        os.close(fd)  # its last owner has just removed it
