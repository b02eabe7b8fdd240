"""Small files of one folder are put together, by workers, where rows may be in any order: `write(order=False)`.

parts of a folder ──packed──> [part, part, …] ──a worker reads them──> one part more, which takes their place
"""

import shutil
from collections.abc import Iterator, Sequence
from typing import IO, Any

from fourfold.data.parts import EXTENSION, Part, Summed
from fourfold.data.places import Place
from fourfold.data.quotes import row_end
from fourfold.data.schema import fitted, unified
from fourfold.data.together import in_order, one_schema, schema_of, write_tables

SMALL_BYTES = 16 << 20
"""A file with less is put together with others. Smaller: more files, which readers open one by one. Larger: more is written
twice. Not measured."""

MERGED_BYTES = 128 << 20
"""Bytes of a file that was put together, at most. Larger: one worker takes long for it. Not measured."""

HEADER_BYTES = 1 << 16


def packed(parts: Sequence[Part]) -> tuple[list[Part], list[list[Part]]]:
    """Parts that stay as they are, and groups of small ones to be put together. They depend on the parts only.

    Raises:
        UnwritableValue: The parts do not go together.
    """
    ordered = in_order(parts)
    one_schema(ordered)
    stay: list[Part] = []
    groups: list[list[Part]] = []
    last: dict[Any, list[Part]] = {}
    for part in ordered:
        if part.size_bytes >= SMALL_BYTES:
            stay.append(part)
            continue
        key = part.folder, tuple(schema_of(part).names)  # columns of CSV are known by their place
        group = last.get(key)
        if group is None or sum(each.size_bytes for each in group) + part.size_bytes > MERGED_BYTES:
            groups.append(group := [])
            last[key] = group
        group.append(part)
    return stay + [group[0] for group in groups if len(group) == 1], [group for group in groups if len(group) > 1]


class Merge:
    """Puts a group of parts together: called with each in a worker.

    Args:
        place: Where parts are.
        format: One of EXTENSION.
    """

    def __init__(self, place: Place, format: str) -> None:
        self._place, self._format = place, format

    def __call__(self, parts: list[Part]) -> Part:
        """The part that has all their rows."""
        first = parts[0]
        name = self._place.name(first.number, first.first, EXTENSION[self._format])
        target = self._place.target(first.beside(name))
        schema = unified([schema_of(part) for part in parts])
        if self._format == "parquet":
            tables = (fitted(table, schema) for table in self._tables(parts))
            n_rows, size_bytes, checksum = write_tables(tables, target, self._format)
        else:
            n_rows = sum(part.n_rows for part in parts)
            with Summed(target.begin()) as file:
                self._copy(parts, file)
                target.finish(file.file)
            size_bytes, checksum = file.size_bytes, file.checksum
        return Part(first.number, first.first, first.folder, name, n_rows, size_bytes, checksum, bytes(schema.serialize()))

    def _tables(self, parts: list[Part]) -> Iterator[Any]:
        import pyarrow.parquet as pq

        for part in parts:
            with self._opened(part) as handle, pq.ParquetFile(handle) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, use_threads=False)

    def _copy(self, parts: list[Part], to: Any) -> None:
        """Lines behind lines, with one header."""
        for number, part in enumerate(parts):
            with self._opened(part) as handle:
                if number and self._format == "csv":
                    handle.seek(_end_of_header(handle))
                shutil.copyfileobj(handle, to)

    def _opened(self, part: Part) -> Any:
        return self._place.opened(part.path)


def _end_of_header(handle: IO[bytes]) -> int:
    """Where the first row of a CSV file begins."""
    block = b""
    while not (end := row_end(block, ",")):
        more = handle.read(HEADER_BYTES)
        if not more:
            return len(block)
        block += more
    return end
