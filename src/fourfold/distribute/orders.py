"""What the engines on other people's clusters share: orders and replies, the probe, and what is stored there.

    ticket ──order──> a task of the cluster: entry (cargo.py) ──> site.py ──> worker process
    outcome <─reply──

An engine says how a task is started and how its result comes back. It never sees a user's object: the payload is bytes.
"""

import hashlib
import itertools
import pickle
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from fourfold.distribute import cargo
from fourfold.errors import VersionMismatch
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket

DOWN_IN_A_ROW = 8
"""Replies in a row that a machine of the cluster could not start a worker process, after which the cluster counts as unusable.
Fewer: one sick machine ends the run. More: a cluster that cannot run processes at all is tried for longer."""

DOWN_S = 30.0
"""... and seconds that this goes on without any other reply: a sick machine answers at once, while the others are busy. Less:
one sick machine among others with long items ends the run. More: it is told later that nothing can run. Not measured."""

Parts = tuple[Any, ...]
"""The head of a parcel, and its buffers: what every cluster can carry."""


class Stored(NamedTuple):
    """A program in the cluster's own memory: its name, where it is, and what its items need."""

    key: str
    place: Any
    need: Need


class Orders:
    """Makes orders of tickets, and outcomes of replies.

    Args:
        version: Of fourfold.
        ship: What travels along: modules, wheels, archives, folders, files.
    """

    def __init__(self, version: str, ship: Sequence[Any]) -> None:
        self.version = version
        self.cargo = cargo.pack(ship, ours=False)
        self.entry = cargo.make_entry()
        self._ship = tuple(ship)
        self._name = uuid.uuid4().hex  # also in a fork, and in containers where each process is number 1
        self._numbers = itertools.count()
        self._down, self._down_since = 0, 0.0

    @property
    def cargo_name(self) -> str:
        """The name of what travels along, "" when that is nothing."""
        return cargo.name_of(self.cargo) if self.cargo else ""

    def check(self, found: dict[str, Any], where: str) -> bool:
        """Take in what the probe has found on a worker; returns whether fourfold has to travel there.

        Raises:
            VersionMismatch: Functions cannot travel between these versions.
        """
        ours = sys.version_info[:3]
        where = f"{where} on {found['host']}" if "host" in found else where  # fourfold of before did not say it
        if tuple(found["python"][:2]) != ours[:2]:
            raise VersionMismatch(
                f"{where}: Python {_dotted(found['python'])} runs there ({found['executable']}) and this is Python "
                f"{_dotted(ours)}: functions travel between equal minor versions only. Start the workers with the Python of "
                "this environment"
            )
        if found["fourfold"] and found["fourfold"] != self.version:
            raise VersionMismatch(
                f"{where}: fourfold {found['fourfold']} is there and this is {self.version}: install the same version there, "
                "or none, then it travels along"
            )
        if found["fourfold"] and found["cloudpickle"]:
            return False
        self.cargo = cargo.pack(self._ship, ours=True)
        return True

    def key_of(self, program: Parcel, need: Need) -> str:
        """A name of a program by its content: workers keep what they know already."""
        digest = hashlib.sha256(pickle.dumps((tuple(need), self.cargo_name)))
        for part in (program.head, *program.buffers):
            digest.update(part)
        return digest.hexdigest()[:32]

    def order(self, ticket: Ticket, program: Stored) -> tuple[str, bytes]:
        """The name of an order, and the order."""
        name = f"{self._name}-{next(self._numbers)}"
        return name, pickle.dumps((name, program.key, tuple(program.need), ticket.n_items, ticket.fresh))

    def outcome(self, id: int, reply: Any) -> Outcome:
        """What became of a ticket, by the reply to its order."""
        if isinstance(reply, str):
            return Outcome(id, Kind.ENGINE_DOWN, reason=f"a worker has {reply}, and this is fourfold {self.version}")
        told = Outcome(id, **reply)
        if told.kind == Kind.ENGINE_DOWN:
            now = time.monotonic()
            self._down_since = self._down_since if self._down else now
            self._down += 1
            is_hopeless = self._down >= DOWN_IN_A_ROW and now - self._down_since > DOWN_S
            down = Kind.ENGINE_DOWN if is_hopeless else Kind.COLLATERAL
            return Outcome(id, down, reason=told.reason, worker=told.worker)
        self._down = 0
        parcel = None if told.data is None else _parcel(told.data)
        return told._replace(kind=Kind(told.kind), data=parcel, kept=tuple(map(_parcel, told.kept)))


def parts_of(parcel: Parcel) -> Parts:
    """Head and buffers of a parcel, the buffers as the pickle protocol 5 carries them without a copy."""
    return bytes(parcel.head), *(pickle.PickleBuffer(buffer) for buffer in parcel.buffers)


def _parcel(parts: Parts) -> Parcel:
    head, *buffers = parts
    return Parcel(head, tuple(memoryview(buffer) for buffer in buffers))


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
