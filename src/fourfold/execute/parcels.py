"""Chunks and results as parcels, for engines that cross a process boundary."""

from fourfold.errors import NotPicklable
from fourfold.execute.objects import killed
from fourfold.execute.pickling import dump, explain, load
from fourfold.execute.remote import load_trouble
from fourfold.execute.troubles import describe
from fourfold.records import Chunk, ChunkResult, Parcel, Trouble
from fourfold.shown import safe_repr, without_quotes


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

    def killed(self, chunk: Chunk, kind: str, reason: str, evidence: str) -> Trouble:
        """Names the item of a chunk of one that its worker died on, and why."""
        return killed(chunk, kind, reason, evidence)

    def unloaded(self, chunk: Chunk, payload: Parcel) -> Trouble:
        """What the worker says, and the item, which it never saw."""
        trouble, item = load_trouble(payload), chunk.items[0]
        return trouble._replace(
            kind="unpicklable",
            message=without_quotes(trouble.message, item),
            traceback=without_quotes(trouble.traceback, item),
            item=safe_repr(item),
        )

    def trouble(self, payload: Parcel) -> Trouble:
        """Unpickle the trouble of a whole chunk or program."""
        return load_trouble(payload)
