"""How chunks become payloads and payloads results: as objects, or as parcels where a process boundary is crossed."""

from typing import Any

from fourfold.errors import NotPicklable, WorkerLost
from fourfold.execute.pickling import dump, explain, load
from fourfold.execute.remote import load_trouble
from fourfold.execute.troubles import describe, safe_repr
from fourfold.records import Chunk, ChunkResult, Parcel, Trouble


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

    def killed(self, chunk: Chunk, reason: str) -> Trouble:
        """Names the item of a chunk of one that killed its worker."""
        return _killed(chunk, reason)

    def unloaded(self, chunk: Chunk, payload: Any) -> Trouble:
        """Never called: objects are not loaded."""
        return self.trouble(payload)

    def trouble(self, payload: Any) -> Trouble:
        """The trouble itself."""
        trouble: Trouble = payload
        return trouble


class ParcelCodec:
    """Payloads are parcels."""

    def pack(self, chunk: Chunk) -> tuple[Parcel, int]:
        """Pickle a chunk."""
        parcel = dump(tuple(chunk))
        return parcel, parcel.size_bytes

    def unpack(self, payload: Parcel) -> tuple[ChunkResult, int]:
        """Unpickle a result."""
        done, values, troubles, elapsed_s = load(payload)
        return ChunkResult(done, values, troubles, elapsed_s), payload.size_bytes

    def misfit(self, chunk: Chunk, error: BaseException) -> Trouble:
        """Describes the item of a chunk of one, with the path to what cannot be pickled."""
        item = chunk.items[0]
        try:
            dump(item)
            why: BaseException = error
        except Exception as cause:
            why = NotPicklable(explain(item, "item", cause))
            why.__cause__ = cause
        return describe(why, 0, item, kind="unpicklable")

    def killed(self, chunk: Chunk, reason: str) -> Trouble:
        """Names the item of a chunk of one that killed its worker."""
        return _killed(chunk, reason)

    def unloaded(self, chunk: Chunk, payload: Parcel) -> Trouble:
        """What the worker says, and the item, which it never saw."""
        return load_trouble(payload)._replace(kind="unpicklable", item=safe_repr(chunk.items[0]))

    def trouble(self, payload: Parcel) -> Trouble:
        """Unpickle the trouble of a whole chunk or program."""
        return load_trouble(payload)


def _killed(chunk: Chunk, reason: str) -> Trouble:
    return describe(WorkerLost(f"the item killed its worker: {reason}"), 0, chunk.items[0], kind="crashed")
