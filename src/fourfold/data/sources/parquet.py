"""Parquet files: pieces are row groups, small ones together and large ones in parts."""

import concurrent.futures
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fourfold.addresses import Credentials
from fourfold.data.files import DataFile, is_url, lives_here, opened
from fourfold.data.keys import columns_of, files_that_match, filled, said_by
from fourfold.data.pieces import FULL_ROWS, MAX_BYTES, MAX_ROWS, MIN_BYTES, MIN_ROWS, Piece, full_bytes, share
from fourfold.data.predicates import columns_of_expression, speaks_of_ranges
from fourfold.data.schema import SchemaConflict, check_declared, types_of_files
from fourfold.errors import UnreadableInput

FOOTER_THREADS = 16
"""Footers that are read at once. They wait for disks and networks, not for cores."""


class Parquet:
    """Files of Parquet. See `TableSource`.

    Args:
        files: At least one.
        storage: Options of their file system.
        schema: None, or the types of columns that the user declares; the others are those of the files.
        keys: The types of the columns that folders give.

    Attributes:
        in_files: The schema of the files, without the columns that folders give.
        imports: See `fourfold.system.imports`.

    Raises:
        UnreadableInput: One of them is no Parquet file.
        OptionError: Their columns do not go together.
    """

    imports = ("pyarrow.parquet",)

    def __init__(self, files: Sequence[DataFile], storage: Credentials, schema: Any, keys: Mapping[str, Any]) -> None:
        self._storage, self.only_here = storage, any(lives_here(file.path) for file in files)
        self._last: tuple[Any, Any] | None = None
        with concurrent.futures.ThreadPoolExecutor(min(FOOTER_THREADS, len(files))) as pool:
            footers = [*pool.map(self._footer, files)]
        self.in_files = _one_schema(files, [schema for schema, _ in footers], schema, keys)
        self._keys = {name: type_ for name, type_ in keys.items() if name not in self.in_files.names}
        self.schema = filled(self.in_files, self._keys)
        self._files = list(files)
        self._pruned: tuple[Any, list[list[bool]]] | None = None
        self._groups = [groups for _, groups in footers]
        self.n_rows: int | None = sum(rows for groups in self._groups for rows, _ in groups)

    def __getstate__(self) -> dict[str, Any]:
        """Workers read what pieces name, and need no list of files."""
        return {**self.__dict__, "_files": [], "_groups": [], "_last": None, "_pruned": None}

    def _footer(self, file: DataFile) -> tuple[Any, list[tuple[int, int]]]:
        """The schema of a file, and rows and bytes of its row groups."""
        with self._opened(file.path) as parquet:
            metadata = parquet.metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            return parquet.schema_arrow.remove_metadata(), [(group.num_rows, group.total_byte_size) for group in groups]

    def pieces(self, least_rows: int = MIN_ROWS, full_rows: int = FULL_ROWS, where: Any = None) -> list[Piece]:
        """Row groups, in order."""
        kept = self._kept(where)
        amounts = [
            each for groups, flags in zip(self._groups, kept, strict=True) for each in itertools.compress(groups, flags)
        ]
        rows = share(sum(each for each, _ in amounts), least_rows, MAX_ROWS, full_rows)
        size = share(sum(each for _, each in amounts), MIN_BYTES, MAX_BYTES, full_bytes(full_rows))
        pieces: list[Piece] = []
        before = 0
        for file, groups, flags in zip(self._files, self._groups, kept, strict=True):
            for part in _parts(groups, flags, rows, size):
                pieces.append(Piece(len(pieces), file.path, part, file.stamp, file.keys, "parquet", first=before + part[0]))
            before += sum(each for each, _ in groups)
        return pieces

    def _kept(self, where: Any) -> list[list[bool]]:
        """For each row group of each file whether rows of it may fulfil an expression."""
        if where is None:
            return [[True] * len(groups) for groups in self._groups]
        if self._pruned is None or not self._pruned[0].equals(where):
            files = {file.path for file in files_that_match(self._files, self._keys, where, self.schema)}
            looked = columns_of_expression(where, self.schema) or ()
            by_range = any(name in self.in_files.names for name in looked) and speaks_of_ranges(where, self.schema)

            def of(file: DataFile, groups: list[tuple[int, int]]) -> list[bool]:
                if file.path not in files:
                    return [False] * len(groups)
                return self._in_range(file, groups, where, looked) if by_range else [True] * len(groups)

            with concurrent.futures.ThreadPoolExecutor(min(FOOTER_THREADS, len(self._files))) as pool:
                self._pruned = where, [*pool.map(of, self._files, self._groups)]
        return self._pruned[1]

    def _in_range(self, file: DataFile, groups: list[tuple[int, int]], where: Any, looked: Sequence[str]) -> list[bool]:
        """Whether least and greatest values and nulls of each row group leave it possible."""
        import pyarrow.dataset as pads
        from pyarrow import fs

        with opened(file.path, self._storage) as handle, self._named(file.path):
            source = {"file": handle} if is_url(file.path) else {"file": file.path, "filesystem": fs.LocalFileSystem()}
            part = pads.ParquetFileFormat().make_fragment(**source, partition_expression=said_by(file.keys, self._keys))
            have = part.physical_schema
            if any(name in have.names and have.field(name).type != self.schema.field(name).type for name in looked):
                return [True] * len(groups)  # its ranges are of other values than those that are compared
            kept = {group.id for group in part.subset(filter=where, schema=self.schema).row_groups}
            return [number in kept for number in range(len(groups))]

    def read(self, piece: Piece, columns: Sequence[str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        """Decode row groups while going through them; one that was cut is decoded whole, and kept for its next part."""
        _, first_group, end_group, first, end = piece.part
        with self._opened(piece.path) as parquet:
            have = [name for name in columns if name in self.in_files.names and name in parquet.schema_arrow.names]
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
        except SchemaConflict as error:
            raise UnreadableInput(f"{path}: {error}. Declare a type that all values fit, with schema=") from error
        except (pa.ArrowException, OSError) as error:
            raise UnreadableInput(f"{path}: not a readable parquet file: {error}") from error


def _one_schema(files: Sequence[DataFile], schemas: list[Any], declared: Any, keys: Mapping[str, Any]) -> Any:
    """The columns of all files; one that a file does not have is null there."""
    import pyarrow as pa

    for file, schema in zip(files, schemas, strict=True):
        twice = [name for name in schema.names if schema.names.count(name) > 1] if len({*schema.names}) < len(schema) else []
        if twice:
            raise UnreadableInput(f"{file.path}: it has more than one column of the name {twice[0]!r}")
    types = types_of_files(zip((file.path for file in files), schemas, strict=True), declared)
    check_declared(declared, [*types, *keys])
    return pa.schema(list(types.items()))


def _parts(groups: list[tuple[int, int]], kept: list[bool], rows: int, size: int) -> Iterator[tuple[int, ...]]:
    """Cut the row groups of a file: (number of its first row, first group, end group, first row in these, end row)."""
    at = number = 0
    for is_kept, found in itertools.groupby(zip(groups, kept, strict=True), key=lambda each: each[1]):
        run = [group for group, _ in found]
        if is_kept:
            yield from _parts_of_run(run, at, number, rows, size)
        at, number = at + sum(each for each, _ in run), number + len(run)


def _parts_of_run(groups: list[tuple[int, int]], at: int, begin: int, rows: int, size: int) -> Iterator[tuple[int, ...]]:
    """Of groups that follow each other; `at` is the number of the first row, `begin` that of the first group.

    Those that are not cut are put together to pieces of like size, so that no file ends with a small one.
    """
    n_rows = n_bytes = 0
    whole = [group for group in groups if max(_cuts(group[0], rows), _cuts(group[1], size)) == 1]
    most_rows, most_bytes = _even(sum(each for each, _ in whole), rows), _even(sum(each for _, each in whole), size)
    for number, (group_rows, group_bytes) in enumerate(groups, begin):
        n_cuts = max(_cuts(group_rows, rows), _cuts(group_bytes, size))
        if n_rows and (n_cuts > 1 or n_rows + group_rows / 2 > most_rows or n_bytes + group_bytes / 2 > most_bytes):
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
        yield at, begin, number + 1, 0, n_rows


def _even(total: int, most: int) -> float:
    """How much each of equal parts has, when they have about `most`."""
    return total / max(1, round(total / most))


def _cuts(amount: int, most: int) -> int:
    """Into how many parts to cut: not at all below twice the usual."""
    return math.ceil(amount / most) if amount > 2 * most else 1
