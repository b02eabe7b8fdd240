"""Where chunks run: an engine, what speaks to it, and how long a chunk should take there."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from fourfold.distribute.engine import NO_NEED, Engine, LoadingEngine
from fourfold.distribute.sizes import SERVICE_S
from fourfold.records import Chunk, ChunkResult, Need, Trouble

DISPATCHES = 20
"""A chunk should last so many times as long as it takes to start one. Smaller: more of the time goes into starting. Larger: a
longer tail, later first results."""

LOOP_TARGET_S = 0.01
"""Seconds of a chunk while the caller itself computes. Smaller: more time between chunks (about 30 µs each). Larger: workers
that are ready wait longer, and more results are held before they are streamed."""


class Codec(Protocol):
    """How chunks become payloads of one engine, and its payloads results."""

    def pack(self, chunk: Chunk) -> tuple[Any, int]:
        """The payload of a chunk, and its size in bytes."""

    def unpack(self, payload: Any) -> tuple[ChunkResult, int]:
        """The result in a payload, and its size in bytes."""

    def misfit(self, chunk: Chunk, error: BaseException) -> Trouble:
        """The trouble of a chunk of one item, which raised `error` when it was packed or its result was unpacked."""

    def killed(self, chunk: Chunk, kind: str, reason: str, evidence: str) -> Trouble:
        """The trouble of a chunk of one item, whose worker died while it ran it.

        `kind`: "crashed"; "timed out", when it was ended for that; "out of memory"; or "indeterminate", when it must not run
        again to see whether it is to blame.
        """

    def unloaded(self, chunk: Chunk, payload: Any) -> Trouble:
        """The trouble of a chunk of one item, which its worker could not load."""

    def trouble(self, payload: Any) -> Trouble:
        """The trouble in the payload of an outcome that is not DONE."""


class Lane:
    """An engine, the codec that speaks to it, and what makes the program that it runs.

    `hear` gets what workers said, where an engine brings that with its outcomes. `target_s` is how long a chunk should take
    here; None: as long as suits the engine. At most `most` workers are used.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        program: Callable[[], Any],
        need: Need = NO_NEED,
        hear: Callable[[tuple[Any, ...]], None] | None = None,
        target_s: float | None = None,
        most: int | None = None,
    ) -> None:
        self._most = most
        self.engine, self.codec, self.program, self.need, self._hear = engine, codec, program, need, hear
        info = engine.info
        usual_s = LOOP_TARGET_S if info.inline else max(SERVICE_S, DISPATCHES * info.dispatch_s)
        self.target_s = usual_s if target_s is None else target_s
        self.holds_s = info.dispatch_s if info.kills == "bundle" else 0.0
        """Seconds for which tickets may be held, to be submitted together: an engine of bundles would start a job for each."""
        self._is_open = False

    def open(self) -> None:
        """Open the engine and give it the program."""
        program = self.program()
        self._is_open = True
        self.engine.open()
        self.engine.put("program", program, self.need)

    def slots(self) -> int:
        """How many tickets to run at once now."""
        slots = self.engine.slots()
        return slots if self._most is None else min(slots, self._most)

    def is_capped(self) -> bool:
        """Whether the engine would run more at once than it may: a ticket too many would not wait there."""
        return self._most is not None and self.engine.slots() > self._most

    def is_loaded(self) -> bool:
        """Whether a worker has loaded the program, where the engine lets workers do so before they have a ticket."""
        return not self.engine.info.loads_ahead or cast(LoadingEngine, self.engine).load()

    def hear(self, said: Sequence[tuple[Any, ...]]) -> None:
        """Pass on what a worker said."""
        if self._hear is not None:
            for record in said:
                self._hear(record)

    def close(self) -> None:
        """Give everything back."""
        if self._is_open:
            self._is_open = False
            self.engine.close()
