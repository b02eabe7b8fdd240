"""A rank in a task of somebody else's cluster: a crew of one, which the engine leads.

place    where this task is, and where rank 0 could listen
start    the process is there, and waits
go       now that all are there
wait     "runs", "done" or "failed"
end      stop it if it is there still; how it ended
"""

import socket
from collections.abc import Sequence
from typing import Any

import fourfold.system.environment as environment
from fourfold.errors import WorkerStartFailed
from fourfold.patterns.gang import places
from fourfold.patterns.gang.crew import Crew
from fourfold.patterns.gang.ends import End, died
from fourfold.patterns.gang.logs import Log
from fourfold.system.machine import free_thread_variables

KEPT_BYTES = 1 << 20
"""Bytes of the end of what a rank prints that come back from a cluster. Fewer: less in the logs. More: time to travel."""

Place = tuple[str, str, int]
"""The machine, its address, and a port that was free there."""


class Away:
    """One rank.

    Args:
        program: As `Crew` takes it.
        rank: Its number.
        world_size: How many there are.
        restarts: How often the gang was started again.
        checkpoint: The folder of checkpoints.
    """

    def __init__(self, program: bytes, rank: int, world_size: int, restarts: int, checkpoint: str | None) -> None:
        self._program, self._rank, self._size, self._restarts, self._checkpoint = (
            program,
            rank,
            world_size,
            restarts,
            checkpoint,
        )
        self._log = Log(rank, None, shows=False, keep_bytes=KEPT_BYTES)
        self._crew: Crew | None = None
        self._end: End | None = None

    def place(self, address: str) -> Place:
        """Where it is; `address` is how the cluster calls this machine."""
        return socket.gethostname(), address, places.free_port("")

    def start(self, found: Sequence[Place]) -> str:
        """Start its process, which waits; returns "done" or "failed".

        Args:
            found: The places of all ranks, in their order.
        """
        machine, address, port = found[0]
        beside = [number for number, place in enumerate(found) if place[0] == found[self._rank][0]]
        if len(beside) == len(found) and machine == socket.gethostname():
            address = places.LOOPBACK
        # How many cores a task may use is the cluster's to say: one, unless the environment there says something else.
        variables = environment.for_workers() | dict.fromkeys(free_thread_variables(), "1")
        if address == places.LOOPBACK:
            variables = places.on_loopback(variables)
        local = beside.index(self._rank), len(beside)
        variables |= places.of_a_rank(self._rank, self._size, local, (address, port), self._restarts, self._checkpoint)
        self._crew = Crew(self._program, [variables], {self._rank: self._log})
        try:
            self._crew.start()
            return "done"
        except WorkerStartFailed as error:
            self._end = died(self._rank, f"could not be started ({error})", "", after_value=False)
            return "failed"

    def go(self) -> None:
        """All are there: its function may run."""
        assert self._crew is not None
        self._crew.go()

    def wait(self, seconds: float) -> str:
        """Watch it for so long, or until it has ended; returns "runs", "done" or "failed"."""
        if self._end is not None:
            return "failed"
        assert self._crew is not None
        if not self._crew.wait(seconds):
            return "runs"
        (rank,) = self._crew.ranks
        return "failed" if rank.end is not None and rank.end.failed else "done"

    def end(self) -> tuple[Any, ...]:
        """Stop it, if it is there still; returns the fields of its `End`."""
        if self._crew is not None:
            try:
                (found,) = self._crew.ends()
                self._end = self._end or found
            finally:
                self._crew.close()
        end = self._end or End(self._rank, "stopped")
        return tuple(end._replace(where=socket.gethostname(), kept=bytes(self._log.kept)))
