"""Chunks and results as payloads of engines that take Python objects as they are."""

from typing import Any

from fourfold.errors import FourfoldError, ItemTimeout, OutOfMemory, RemoteTraceback, WorkerLost
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

    def killed(
        self, chunk: Chunk, reason: str, expired: bool = False, out_of_memory: bool = False, evidence: str = ""
    ) -> Trouble:
        """Names the item of a chunk of one that killed its worker, or ran too long."""
        return killed(chunk, reason, expired, out_of_memory, evidence)

    def unloaded(self, chunk: Chunk, payload: Any) -> Trouble:
        """Never called: objects are not loaded."""
        return self.trouble(payload)

    def trouble(self, payload: Any) -> Trouble:
        """The trouble itself."""
        trouble: Trouble = payload
        return trouble


def killed(chunk: Chunk, reason: str, expired: bool, out_of_memory: bool, evidence: str) -> Trouble:
    error: FourfoldError
    if out_of_memory:
        advice = "Make items smaller, use fewer workers, or raise memory= where it is set"
        kind, error = "out of memory", OutOfMemory(f"memory ran out on this item: {reason}. {advice}")
    elif expired:
        kind, error = "timed out", ItemTimeout(reason)
    else:
        kind, error = "crashed", WorkerLost(f"the item killed its worker: {reason}")
    if evidence:
        error.__cause__ = RemoteTraceback(evidence)
    return describe(error, 0, chunk.items[0], kind=kind)
