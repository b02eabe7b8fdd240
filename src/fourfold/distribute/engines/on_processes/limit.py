"""`memory=` in a worker: what its items allocate beyond it fails there, as a MemoryError.

The kernel's RLIMIT_DATA counts the memory that a process may write to and shares with nobody, whether it was touched or not:
heap, large arrays, stacks of threads. RLIMIT_AS would count libraries and segments too. What is reserved when items begin and
not touched yet (stacks of BLAS threads, arenas) is not charged. It holds while items run and not in between.
"""

import contextlib
import resource
from types import TracebackType

from fourfold.distribute.engines.on_processes.gauge import data_bytes, private_bytes
from fourfold.errors import OutOfMemory


class MemoryLimit:
    """The private bytes that this process may have inside the block. Zero: as many as there are."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._before = resource.getrlimit(resource.RLIMIT_DATA)

    def __enter__(self) -> None:
        if self.limit_bytes:
            soft, hard = self._before = resource.getrlimit(resource.RLIMIT_DATA)
            wanted = data_bytes() + max(0, self.limit_bytes - private_bytes()[0])
            wanted = min([wanted, *(each for each in (soft, hard) if each != resource.RLIM_INFINITY)])
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.limit_bytes:
            with contextlib.suppress(ValueError):  # an item has lowered the hard limit for good
                resource.setrlimit(resource.RLIMIT_DATA, self._before)

    def check(self) -> None:
        """See that the limit leaves something for items.

        Raises:
            OutOfMemory: The process with the function is larger than the limit.
        """
        private, _ = private_bytes()
        if self.limit_bytes and private >= self.limit_bytes:
            raise OutOfMemory(
                f"memory={self.limit_bytes} leaves nothing for items: a worker with the function loaded has {private} bytes. "
                "Raise memory=, or leave it out"
            )
