"""The nouns of fourfold: small frozen records that travel between the four steps. No behaviour lives here."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol

from fourfold.fixed import Fixed

Buffer = bytes | bytearray | memoryview


class Parcel(NamedTuple):
    """One pickled object: the pickle stream, and the large buffers beside it (pickle protocol 5, out of band)."""

    head: Buffer
    buffers: tuple[Buffer, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes that cross the wire."""
        return sum(len(buffer) for buffer in self.buffers) + len(self.head)


class Chunk(NamedTuple):
    """Consecutive items that travel together.

    `start` is the position of the first one. Positions number the items in the order in which they are handed out; the
    index of an item is its place in the input. The two differ under `cost=`, and where a resumed run leaves items out: then
    `indices` gives them, as a range where they are consecutive.
    """

    start: int
    items: Sequence[Any]
    indices: Sequence[int] | None = None

    def index_of(self, offset: int) -> int:
        """The input index of the item at `offset` in this chunk."""
        return self.start + offset if self.indices is None else self.indices[offset]


class Trouble(NamedTuple):
    """Why one item has no value, as its worker saw it. `error` is the exception, or its pickle from another process."""

    offset: int
    kind: str
    error: "BaseException | Buffer | None"
    error_type: str
    message: str
    traceback: str
    item: str


class ChunkResult(NamedTuple):
    """What came of one chunk: the first `done` items have a value or a trouble, the rest did not run.

    `values` has one entry per finished item (None where it failed), or the aligned blocks of a reduction. The loop of
    `map` may give the list of all results so far, which ends with those of this chunk.
    """

    done: int
    values: list[Any]
    troubles: list[Trouble]
    elapsed_s: float


class Segment(NamedTuple):
    """Settled items at consecutive positions `[start, start + n_items)`; skipped failures have no value.

    `values` may be the list that the values go to in the end: then they are there. In a reduction the values are partial
    results, `n_items` counts the items in them, and `holes` has the offsets from `start` of those that are left out.
    """

    start: int
    n_items: int
    values: Sequence[Any]
    holes: tuple[int, ...] = ()


class Kind(IntEnum):
    """What became of a ticket, as the engine saw it (an item's own exception is inside a DONE)."""

    DONE = 0
    """It ran; `data` is the payload that the program returned. Fewer items than asked when it was cancelled."""
    BAD_PROGRAM = 1
    """The worker could not load or build the program. Running it again will not help."""
    BAD_TICKET = 2
    """The worker could not load the chunk. A smaller chunk may tell which item is to blame."""
    LOST = 3
    """The worker died while it ran the ticket; `running` tells the offsets it was on."""
    COLLATERAL = 4
    """Undone only because it shared a worker with something else. Not an attempt."""
    CANCELLED = 5
    """It never started."""
    ENGINE_DOWN = 6
    """No worker is left and none can be started. Every open ticket gets this."""
    EXPIRED = 7
    """An item ran longer than the run allows, and the engine ended its worker; `running` tells the offsets it was on."""


class Need(NamedTuple):
    """What the items of a program need where they run, and what ends them: seconds per item, bytes and GPUs per worker.

    `idempotent` is False where no item may run twice, not even after its machine was lost.
    """

    timeout: float | None = None
    memory: int | None = None
    gpus: int = 0
    idempotent: bool = True


class Ticket(NamedTuple):
    """One order to an engine: run `program` on `payload`. The payload is opaque to the engine.

    `fresh`: in a worker that has run nothing before, with nothing beside it: what it dies of there is its own fault. An engine
    that has no such workers runs it anywhere.
    """

    id: int
    program: str
    payload: Any
    n_items: int
    fresh: bool = False


class Outcome(NamedTuple):
    """What an engine says of one ticket: exactly one per ticket, in the order of completion."""

    id: int
    kind: Kind
    data: Any = None
    running: tuple[int, int] | None = None
    reason: str = ""
    worker: str = ""
    evidence: str = ""
    """What a person may want to see besides the reason, in several lines: the stack of a worker that died, its last words."""
    out_of_memory: bool = False
    """With LOST: it was killed because memory ran out, by the kernel or by the engine."""
    was_sent: bool = False
    """With LOST: it died of a signal that somebody must send, such as SIGKILL; False where nobody knows."""
    said: tuple[tuple[Any, ...], ...] = ()
    """What its worker printed, logged and warned meanwhile, where it does not arrive by itself (see execute/forward.py)."""
    kept: tuple[Any, ...] = ()
    """With LOST and EXPIRED: payloads like that of a DONE, of the first items, then of those behind them, and so on: they had
    finished before, and their results outlived the worker. `running` counts from the first item of the ticket nevertheless."""


class Failure(Fixed):
    """An item that has no value, and why. Stands in the item's place under `on_error="collect"`.

    Example:
        >>> import fourfold as ff
        >>> ff.map(int, ["1", "x"], on_error="collect")[1].error_type
        'ValueError'
    """

    _hidden: ClassVar[tuple[str, ...]] = ("error", "traceback")

    index: int
    kind: str
    error: BaseException | None
    error_type: str
    message: str
    traceback: str
    item: str
    attempts: int = 1
    worker: str = ""
    place: str = ""
    """Where in the user's code it was raised: "features.py:12 in score"; "" when nobody knows."""


class Report(Fixed):
    """What one call did: figures, and the verdict in a sentence.

    `peak_item_bytes` is the most memory that a worker process took with an item, beyond a new worker (0: not measured);
    `memory_workers` the fewest workers that had something to do because there was no memory for more (None: there was).
    """

    verdict: str
    engine: str
    workers: int
    n_items: int
    n_failures: int
    n_chunks: int
    n_retries: int
    n_workers_lost: int
    elapsed_s: float
    busy_s: float
    sent_bytes: int
    returned_bytes: int
    seed: int | None = None
    n_recorded: int = 0
    """Items among `n_items` that an earlier call with the same `run` had finished."""
    peak_item_bytes: int = 0
    memory_workers: int | None = None


class Cell(Protocol):
    """What a running chunk shares with its engine: where it is, and whether it should stop."""

    whole: bool
    """True where nothing is to be done between blocks: a chunk is one."""
    inline: bool
    """True in the caller's own thread: nobody looks while it runs, and a KeyboardInterrupt is not the item's failure."""

    def mark(self, offset: int, count: int) -> None:
        """Note that the items `[offset, offset + count)` are about to run."""

    def stopped(self) -> bool:
        """Whether to end at the next boundary between items."""

    @property
    def keep(self) -> Callable[[Buffer, tuple[Buffer, ...]], bool] | None:
        """Keeps what the next items have come to, past the death of the worker: head and buffers of a parcel, in a call.

        It returns False when it cannot. None where a worker does not die alone.
        """
