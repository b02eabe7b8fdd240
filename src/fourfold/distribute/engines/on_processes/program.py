"""The program of a run, in memory that all its workers share."""

from contextlib import AbstractContextManager
from typing import Any

from fourfold.distribute.engines.on_processes import channel
from fourfold.distribute.engines.on_processes.segments import Owner
from fourfold.records import Parcel


class SharedProgram:
    """A program laid out once for all workers of a run, in memory that is written again when all have let go of it.

    Args:
        parcel: The program.
        owner: Owns the memory.
        number: Names the program in messages.
        lock: Held while the owner is changed; runs in several threads share it.
    """

    def __init__(self, parcel: Parcel, owner: Owner, number: int, lock: AbstractContextManager[Any]) -> None:
        self.number = number
        self._owner, self._lock = owner, lock
        self.place, self.fd = owner.write(parcel, channel.INLINE_BYTES)
        self._holders: set[object] = set()
        self._over = self._spoiled = False

    def given(self, worker: object) -> None:
        """The worker has it."""
        self._holders.add(worker)

    def returned(self, worker: object, kept: bool) -> None:
        """The worker has let go of it, or is dead; `kept`: something there looks at it for good."""
        self._holders.discard(worker)
        self._spoiled = self._spoiled or kept
        self._settle()

    def close(self) -> None:
        """The run is over."""
        self._over = True
        self._settle()

    def _settle(self) -> None:
        if self._over and not self._holders:
            with self._lock:
                if self._spoiled:
                    self._owner.abandon(self.place.segment)
                else:
                    self._owner.release(self.place.segment)
