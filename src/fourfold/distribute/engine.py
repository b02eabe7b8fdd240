"""The contract of everything that runs workers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fourfold.fixed import Fixed
from fourfold.records import Cell, Kind, Need, Outcome, Ticket


class EngineInfo(Fixed):
    """What an engine is and can do.

    Attributes:
        name: The word for it in options and reports.
        takes_objects: Payloads and programs stay Python objects; False: they are Parcels, since they cross a boundary.
        honours: The options that this engine can keep, besides those that the driver keeps on every engine.
        inline: `wait` runs one ticket in the caller's thread, so there is nothing to overlap with.
        shares_globals: Its workers share one `random` and one `numpy.random`.
        measures_memory: It is a `MeasuringEngine`, and its workers take memory of this machine.
        elsewhere: Workers may be on other machines, where neither this one's folders nor its environment are.
        dispatch_s: Seconds from the submission of a ticket to its start, on an idle worker. Chunks last much longer.
        stops_items: A cancelled ticket ends after the item that it is on; False: after its last one.
        kills: "ticket", "bundle" or "no": whether a hard cancel ends running items, alone or with their neighbours.
        knows_started: It can tell a ticket that waits from one that runs. False: a hard cancel says LOST of both.
        engine_reruns: It runs tickets again by itself when it loses a machine.
        loads_ahead: It is a `LoadingEngine`.
    """

    name: str
    takes_objects: bool
    honours: frozenset[str]
    inline: bool = False
    shares_globals: bool = False
    measures_memory: bool = False
    elsewhere: bool = False
    dispatch_s: float = 0.0
    stops_items: bool = True
    kills: str = "ticket"
    knows_started: bool = True
    engine_reruns: bool = False
    loads_ahead: bool = False


class MemoryUse(NamedTuple):
    """What workers take, in bytes beyond new ones.

    `item_bytes` is the most that one with an item took lately and `top_bytes` ever; `held_bytes` is what all of them have
    together; `n_recycled` of them were replaced because they had grown.
    """

    item_bytes: int
    top_bytes: int
    held_bytes: int
    n_recycled: int


Runnable = Callable[[Any, Cell], tuple[Kind, Any]]
"""What an engine runs, after a program has been prepared in a worker: payload and cell in, kind and payload out. An
exception that escapes from it is an outcome BAD_PROGRAM."""


NO_NEED = Need()


class Engine(Protocol):
    """Runs tickets somewhere. Exactly one Outcome per submitted ticket, in the order of completion.

    A ticket that did not start may be put elsewhere by the engine; one that started is never run again by the engine.
    All methods are called from one thread, except that `close` may come from an exit handler. None lets an exception of
    user code escape; EngineError is for the engine itself.
    """

    info: EngineInfo

    def open(self) -> None:
        """Start, or begin to start, the workers. Idempotent; returns without waiting for them.

        Raises:
            EngineError: Nothing can be started; the message says what to do.
        """

    def slots(self) -> int:
        """How many tickets can run at once now. 0 while no worker is ready yet; `wait` makes progress on that."""

    def put(self, key: str, program: Any, need: Need = NO_NEED) -> None:
        """Make a program available to the tickets that name `key`; each worker prepares it once."""

    def drop(self, key: str) -> None:
        """No more tickets will name `key`."""

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Accept tickets; returns at once. More than `slots` may be in flight: they wait near their worker."""

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Return the outcomes that are there; if none is, wait up to `timeout` seconds for one or for a change of `slots`."""

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Ask that tickets end (None: all).

        Those that did not start never do: CANCELLED. Running ones end at the next boundary between items: DONE, with fewer
        items. With `hard` they are stopped where the engine can, or given up: LOST.
        """

    def close(self) -> None:
        """Give back everything. Idempotent.

        No process, thread, file or memory of this engine survives, except workers that stay warm for the next call.
        """


class MeasuringEngine(Engine, Protocol):
    """An engine that can say how much memory its workers take."""

    def memory(self, live: bool) -> MemoryUse:
        """What workers take, as they last said; `live`: as it is now, which takes longer."""


class GangEngine(Engine, Protocol):
    """An engine that can start processes which talk to each other: all of them, or none."""

    def check_gang(self, size: int) -> None:
        """Refuse a gang that can never start.

        Raises:
            UnsupportedOption: As this cluster is set up, it starts no gangs.
            EngineError: It has not so many slots.
        """

    def run_gang(self, member: str, arguments: Mapping[str, Any], size: int, deadline: float | None) -> list[tuple[Any, ...]]:
        """Run a gang to its end; returns what `end` of each member says, in the order of ranks.

        Args:
            member: "module:class", which is imported in each task and made with `rank` and the arguments.
            arguments: For it.
            size: How many there are.
            deadline: None, or when it must have ended, by `time.monotonic`.

        Raises:
            GangTimeout: It has not.
            GangLost: The cluster has lost one of them.
            WorkerStartFailed: There was no room for all of them.
        """


class LoadingEngine(Engine, Protocol):
    """An engine whose workers can load programs before they have a ticket, while the caller is busy with items itself."""

    def load(self) -> bool:
        """Let workers load what was `put`; returns whether one of them has.

        Raises:
            EngineError: One of them could not, or died of it: it would kill the next one, too. The loop has loaded it.
        """
