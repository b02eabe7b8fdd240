"""A Program for another process: parcels in, parcels out."""

from typing import Any

from fourfold.errors import NotPicklable
from fourfold.execute.chunk import Program, Run
from fourfold.execute.keep import Keep, Price
from fourfold.execute.pickling import dump, explain, load
from fourfold.execute.troubles import describe, pickled
from fourfold.records import Cell, Chunk, ChunkResult, Kind, Parcel, Trouble


class RemoteProgram:
    """Loads the chunk from its parcel, runs it, and packs what came of it.

    Guarantees: the parcel that it returns can be packed and sent; a result that cannot be pickled is its item's trouble.
    """

    def __init__(self, program: Program) -> None:
        self.program = program

    def prepare(self) -> Run:
        """Build what this worker needs, once."""
        inner, price = self.program.prepare(), Price()
        is_folded = self.program.fold is not None  # what combines values must run in their worker

        def run(parcel: Parcel, cell: Cell) -> tuple[Kind, Parcel]:
            try:
                chunk = Chunk(*load(parcel))
            except BaseException as error:
                return Kind.BAD_TICKET, dump_trouble(error)
            keep = None if cell.keep is None or is_folded else Keep(chunk, cell, price, _pack)
            kind, result = inner(chunk, cell, keep)
            return kind, _pack(result, chunk, is_folded)

        return run


def dump_trouble(error: BaseException) -> Parcel:
    """The parcel of a Trouble that is no single item's."""
    return dump(describe(error, 0, None, travels=True))


def load_trouble(parcel: Parcel) -> Trouble:
    """Bring back what `dump_trouble` made."""
    return Trouble(*load(parcel))


def _pack(result: ChunkResult, chunk: Chunk, is_folded: bool = False) -> Parcel:
    """Pickle a result whole; when that fails, value by value, so that only the values to blame become troubles."""
    troubles = [_travelling(trouble) for trouble in result.troubles]
    try:
        return dump((result.done, result.values, troubles, result.elapsed_s))
    except Exception as error:
        if is_folded:
            raise NotPicklable(f"a combined value cannot travel back: {explain(result.values[0], 'value', error)}") from error
    values = list(result.values)
    failed = {trouble.offset for trouble in troubles}
    for offset, value in enumerate(values):
        if offset in failed:
            continue
        try:
            dump(value)
        except Exception as error:
            why = NotPicklable(explain(value, "result", error))
            why.__cause__ = error
            values[offset] = None
            troubles.append(describe(why, offset, chunk.items[offset], kind="unpicklable", travels=True))
    troubles.sort(key=lambda trouble: trouble.offset)
    return dump((result.done, values, troubles, result.elapsed_s))


def _travelling(trouble: Trouble) -> Trouble:
    """The trouble with its exception pickled."""
    error: Any = trouble.error
    return trouble._replace(error=pickled(error))
