"""Parquet files: pieces are row groups, small ones together and large ones in parts."""

import concurrent.futures
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fourfold.addresses import Credentials
from fourfold.data.files import DataFile, is_url, key_columns, lives_here, opened
from fourfold.data.keys import columns_of, filled
from fourfold.data.pieces import MAX_BYTES, MAX_ROWS, MIN_BYTES, MIN_ROWS, Piece, share
from fourfold.data.schema import SchemaConflict, unified
from fourfold.errors import OptionError, UnreadableInput

FOOTER_THREADS = 16
"""Footers that are read at once. They wait for disks and networks, not for cores."""


class Parquet:
    """Files of Parquet. See `TableSource`.

    Args:
        files: At least one.
        storage: Options of their file system.

    Raises:
        UnreadableInput: One of them is no Parquet file.
        OptionError: Their columns do not go together.
    """

    def __init__(self, files: Sequence[DataFile], storage: Credentials) -> None:
        self._storage, self.only_here = storage, any(lives_here(file.path) for file in files)
        self._last: tuple[Any, Any] | None = None
        with concurrent.futures.ThreadPoolExecutor(min(FOOTER_THREADS, len(files))) as pool:
            footers = [*pool.map(self._footer, files)]
        self._keys = key_columns(files)
        self._in_files = _one_schema(files, [schema for schema, _ in footers])
        self.schema = filled(self._in_files, self._keys)
        self._files = list(files)
        self._groups = [groups for _, groups in footers]
        self.n_rows: int | None = sum(rows for groups in self._groups for rows, _ in groups)

    def __getstate__(self) -> dict[str, Any]:
        """Workers read what pieces name, and need no list of files."""
        return {**self.__dict__, "_files": [], "_groups": [], "_last": None}

    def _footer(self, file: DataFile) -> tuple[Any, list[tuple[int, int]]]:
        """The schema of a file, and rows and bytes of its row groups."""
        with self._opened(file.path) as parquet:
            metadata = parquet.metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            return parquet.schema_arrow.remove_metadata(), [(group.num_rows, group.total_byte_size) for group in groups]

    def pieces(self, least_rows: int = MIN_ROWS) -> list[Piece]:
        """Row groups, in order."""
        rows = share(self.n_rows or 0, least_rows, MAX_ROWS)
        size = share(sum(each for groups in self._groups for _, each in groups), MIN_BYTES, MAX_BYTES)
        pieces: list[Piece] = []
        before = 0
        for file, groups in zip(self._files, self._groups, strict=True):
            for part in _parts(groups, rows, size):
                pieces.append(Piece(len(pieces), file.path, part, file.stamp, file.keys, "parquet", first=before + part[0]))
            before += sum(each for each, _ in groups)
        return pieces

    def read(self, piece: Piece, columns: Sequence[str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        """Decode row groups while going through them; one that was cut is decoded whole, and kept for its next part."""
        _, first_group, end_group, first, end = piece.part
        with self._opened(piece.path) as parquet:
            have = [name for name in columns if name in self._in_files.names and name in parquet.schema_arrow.names]
            is_cut = (first, end) != (
                0,
                sum(parquet.metadata.row_group(each).num_rows for each in range(first_group, end_group)),
            )
            if is_cut:
                group = self._decoded(parquet, piece, have).slice(first, end - first)
                stream = iter(group.to_batches(batch_rows))
            else:
                groups = range(first_group, end_group)
                stream = parquet.iter_batches(batch_rows, row_groups=groups, columns=have, use_threads=False)
            at = 0
            while True:
                with self._named(piece.path):
                    batch = next(stream, None)
                if batch is None:
                    return
                if batch.num_rows:
                    with self._named(piece.path):
                        table = columns_of(batch, piece.keys, columns, self.schema)
                    yield at, table
                at += batch.num_rows

    def _decoded(self, parquet: Any, piece: Piece, columns: list[str]) -> Any:
        """One row group. Without this, each of its parts would decode all that lies before it."""
        key = (piece.path, piece.stamp, piece.part[1], tuple(columns))
        last = self._last  # threads share this object
        if last is None or last[0] != key:
            last = self._last = None  # two of them may be more than there is memory for
            with self._named(piece.path):
                last = key, parquet.read_row_group(piece.part[1], columns, use_threads=False).combine_chunks()
            self._last = last
        return last[1]

    def place(self, piece: Piece, row: int) -> tuple[str, int]:
        """The part has the number of its first row."""
        return piece.path, piece.part[0] + row

    @contextmanager
    def _opened(self, path: str) -> Iterator[Any]:
        import pyarrow.parquet as pq

        if is_url(path):
            with opened(path, self._storage) as handle, self._named(path), pq.ParquetFile(handle) as parquet:
                yield parquet
            return
        with opened(path, self._storage):  # says who cannot read it, and where
            pass
        with self._named(path):
            parquet = pq.ParquetFile(path)
        with parquet:
            yield parquet

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise UnreadableInput(f"{path}: not a readable parquet file: {error}") from error


def _one_schema(files: Sequence[DataFile], schemas: list[Any]) -> Any:
    """The columns of all files; one that a file does not have is null there."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for schema in schemas for name in schema.names))
    whole = schemas[0]
    for file, schema in zip(files, schemas, strict=True):
        if schema.equals(whole):
            continue
        both = [
            pa.schema([each.field(name) if name in each.names else pa.field(name, pa.null()) for name in names])
            for each in (whole, schema)
        ]
        try:
            whole = unified(both)
        except SchemaConflict as error:
            raise OptionError(f"{file.path} does not go with the files before it: {error}") from error
    return whole


def _parts(groups: list[tuple[int, int]], rows: int, size: int) -> Iterator[tuple[int, ...]]:
    """Cut the row groups of a file: (number of its first row, first group, end group, first row in these, end row)."""
    begin = n_rows = n_bytes = at = 0
    for number, (group_rows, group_bytes) in enumerate(groups):
        n_cuts = max(_cuts(group_rows, rows), _cuts(group_bytes, size))
        if n_rows and (n_cuts > 1 or n_rows + group_rows > rows or n_bytes + group_bytes > size):
            yield at, begin, number, 0, n_rows
            at, begin, n_rows, n_bytes = at + n_rows, number, 0, 0
        if n_cuts == 1:
            n_rows, n_bytes = n_rows + group_rows, n_bytes + group_bytes
            continue
        ends = [group_rows * cut // n_cuts for cut in range(n_cuts + 1)]
        for first, end in itertools.pairwise(ends):
            if first < end:
                yield at + first, number, number + 1, first, end
        at, begin = at + group_rows, number + 1
    if n_rows:
        yield at, begin, len(groups), 0, n_rows


def _cuts(amount: int, most: int) -> int:
    """Into how many parts to cut: not at all below twice the usual."""
    return math.ceil(amount / most) if amount > 2 * most else 1
