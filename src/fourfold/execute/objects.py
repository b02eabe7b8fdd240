"""Chunks and results as payloads of engines that take Python objects as they are."""

from typing import Any

from fourfold.errors import FourfoldError, Indeterminate, ItemTimeout, OutOfMemory, RemoteTraceback, WorkerLost
from fourfold.execute.troubles import describe
from fourfold.records import Chunk, ChunkResult, Trouble


class ObjectCodec:
    """Payloads are the objects themselves."""

    def pack(self, chunk: Chunk) -> tuple[Any, int]:
        """The chunk itself."""
        return chunk, 0

    def unpack(self, payload: Any) -> tuple[ChunkResult, int]:
        """The result itself."""
        return payload, 0

    def misfit(self, chunk: Chunk, error: BaseException) -> Trouble:
        """Describes the item of a chunk of one."""
        return describe(error, 0, chunk.items[0])

    def killed(self, chunk: Chunk, kind: str, reason: str, evidence: str) -> Trouble:
        """Names the item of a chunk of one that its worker died on, and why."""
        return killed(chunk, kind, reason, evidence)

    def unloaded(self, chunk: Chunk, payload: Any) -> Trouble:
        """Never called: objects are not loaded."""
        return self.trouble(payload)

    def trouble(self, payload: Any) -> Trouble:
        """The trouble itself."""
        trouble: Trouble = payload
        return trouble


def killed(chunk: Chunk, kind: str, reason: str, evidence: str) -> Trouble:
    error: FourfoldError
    if kind == "out of memory":
        advice = "Make items smaller, use fewer workers, or raise memory= where it is set"
        error = OutOfMemory(f"memory ran out on this item: {reason}. {advice}")
    elif kind == "timed out":
        error = ItemTimeout(reason)
    elif kind == "indeterminate":
        error = Indeterminate(
            f"the item may have had effects before its worker died, and idempotent=False forbids to run it again: {reason}"
        )
    else:
        error = WorkerLost(f"the item killed its worker: {reason}")
    if evidence:
        error.__cause__ = RemoteTraceback(evidence)
    return describe(error, 0, chunk.items[0], kind=kind)
