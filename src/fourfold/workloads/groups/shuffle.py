"""Rows go to their groups, by way of files: see the picture in `__init__.py`.

folder/
  LEVEL.PIECE.rows       the rows of a piece, one Arrow batch for each table of it, each sorted by buckets
  LEVEL.PIECE.npy        where buckets begin in each batch: one row of numbers per batch
  LEVEL.BUCKET.groups    the rows of a bucket, one group behind the other, in the order of the dataset

A level is how many columns keys have: groups that others fall back on have fewer.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fourfold.data.pieces import Piece
from fourfold.errors import OptionError
from fourfold.workloads.groups.keys import Key, hashes, key_columns, keys_of, numbered, rows_of

MOST_BUCKETS = 256
"""Buckets there are as many as pieces, up to this: what a worker holds to put one together is then about a piece. Fewer: more
memory. More: smaller slices of each batch, of which each costs microseconds. Not measured."""

HEAVY_SHARE, HEAVY_ROWS = 64, 256
"""Keys are counted apart of which a batch has at least the 64th part of its rows, and so many. Smaller: more keys travel.
Larger: groups go unnoticed that are much larger than a bucket."""

HUGE_BUCKETS, HUGE_ROWS = 2, 50_000
"""A group is huge, and stays out of its bucket, that would take so many of them, and has more than so many rows. Smaller: more
groups are searched for in all pieces. Larger: who puts the bucket together needs more memory. Not measured."""


OPEN_FILES = 256
"""Files of pieces that a worker has open. Fewer: each is opened again for each bucket, in 0.1 ms. More: more descriptors, of
which a process has some thousand."""


class Spilled(NamedTuple):
    """What is known of a piece.

    Attributes:
        n_rows: It has so many.
        nullable: Columns with nulls in it.
        heavy: For each level, keys of which there are many rows: how many, and in which bucket.
        categories: Of columns of categories: those.
    """

    n_rows: int
    nullable: frozenset[str]
    heavy: "dict[int, Heavy]"
    categories: "dict[str, Categories]"


Categories = tuple[Any, ...]


Heavy = dict[Key, tuple[int, int]]
"""How many rows keys have, and the bucket that they are in."""


class Buckets(NamedTuple):
    """How rows are divided.

    Attributes:
        folder: Where they are.
        by: The columns of keys.
        levels: How many of them each key has.
        n_buckets: Of each level but 0.
    """

    folder: Path
    by: tuple[str, ...]
    levels: tuple[int, ...]
    n_buckets: int

    def rows_file(self, level: int, piece: int) -> Path:
        """The rows of a piece."""
        return self.folder / f"{level}.{piece}.rows"

    def groups_file(self, level: int, bucket: int) -> Path:
        """The rows of a bucket."""
        return self.folder / f"{level}.{bucket}.groups"


class Spill:
    """Writes the rows of a piece: see `fourfold.data.work.Gather`."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    def open(self) -> None:
        """Check that this worker sees the folder."""
        if not self._buckets.folder.is_dir():
            error = OptionError(
                f"a worker does not see {self._buckets.folder}, where rows are put together: name a folder that all share, "
                "folder=…"
            )
            raise error

    def fold(self, piece: Piece, tables: Iterator[Any]) -> Spilled:
        """Go through all tables."""
        writers = {level: _Writer(self._buckets, level, piece.number) for level in self._buckets.levels}
        n_rows, nullable, categories = 0, set[str](), dict[str, Categories]()
        try:
            for table in tables:
                if not table.num_rows:
                    continue
                categories = together([categories, categories_of(table)]) if n_rows else categories_of(table)
                plain = without_dictionaries(table).combine_chunks()
                n_rows += plain.num_rows
                nullable |= {name for name in plain.column_names if plain.column(name).null_count}
                for writer in writers.values():
                    writer.write(plain)
            for writer in writers.values():
                writer.commit()
        finally:
            for writer in writers.values():
                writer.close()
        heavy = {level: writer.heavy for level, writer in writers.items()}
        return Spilled(n_rows, frozenset(nullable), heavy, categories)


class _Writer:
    """One file of rows, which is there whole or not at all."""

    def __init__(self, buckets: Buckets, level: int, piece: int) -> None:
        self._path = buckets.rows_file(level, piece)
        self._by, self._n_buckets = buckets.by[:level], buckets.n_buckets if level else 1
        self._writer: Any = None
        self._temporary = ""
        self._starts: list[Any] = []
        self.heavy: Heavy = {}

    def write(self, table: Any) -> None:
        import numpy as np
        import pyarrow as pa

        if self._writer is None:
            handle, self._temporary = tempfile.mkstemp(dir=self._path.parent)
            os.close(handle)
            self._writer = pa.ipc.new_file(self._temporary, table.schema)
        starts = [0, table.num_rows]
        if self._by:
            columns = key_columns(table, self._by)
            codes, firsts = numbered(columns, table.num_rows)
            of_groups = (hashes(columns, firsts) % np.uint64(self._n_buckets)).astype(np.uint16)
            self._count(columns, np.bincount(codes), firsts, of_groups)
            bucket = of_groups[codes]
            table = table.take(pa.array(np.argsort(bucket, kind="stable")))
            starts = [0, *np.bincount(bucket, minlength=self._n_buckets).cumsum()]
        (batch,) = table.combine_chunks().to_batches()
        self._writer.write_batch(batch)
        self._starts.append(starts)

    def _count(self, columns: Sequence[Any], counts: Any, firsts: Any, buckets: Any) -> None:
        import numpy as np
        import pyarrow as pa

        many = np.flatnonzero(counts >= max(HEAVY_ROWS, counts.sum() // HEAVY_SHARE))
        keys = keys_of([column.take(pa.array(firsts[many])) for column in columns], len(many))
        for key, count, bucket in zip(keys, counts[many].tolist(), buckets[many].tolist(), strict=True):
            self.heavy[key] = (self.heavy.get(key, (0, 0))[0] + count, bucket)

    def commit(self) -> None:
        import numpy as np

        if self._writer is None:
            return
        self._writer.close()
        put(self._path.with_suffix(".npy"), lambda file: np.save(file, np.array(self._starts, np.int64)))
        os.replace(self._temporary, self._path)
        self._writer = None

    def close(self) -> None:
        """Remove what was not committed."""
        if self._writer is not None:
            self._writer.close()
            os.unlink(self._temporary)
            self._writer = None


def categories_of(table: Any) -> dict[str, Categories]:
    """Those of its columns of categories."""
    import pyarrow as pa

    found = {}
    for field in table.schema:
        if pa.types.is_dictionary(field.type):
            every = (each for chunk in table.column(field.name).chunks for each in chunk.dictionary.to_pylist())
            found[field.name] = tuple(each for each in dict.fromkeys(every) if each is not None)
    return found


def together(parts: Sequence[Mapping[str, Categories]]) -> dict[str, Categories]:
    """All categories of each column, those of the first parts first. A column that has none in one part has none."""
    names = [name for name in parts[0] if all(name in each for each in parts)] if parts else []
    return {name: tuple(dict.fromkeys(value for each in parts for value in each[name])) for name in names}


def without_dictionaries(table: Any) -> Any:
    """A table in which columns of categories are columns of their values: other batches may have other categories."""
    import pyarrow as pa

    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in table.schema
    ]
    return table.cast(pa.schema(fields)) if any(a is not b for a, b in zip(fields, table.schema, strict=True)) else table


def put(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file that is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        write(file)
    os.replace(temporary, path)


class Bucket(NamedTuple):
    """A bucket to be put together.

    Attributes:
        level, number: Which one.
        without: Keys of huge groups, which stay out of it.
    """

    level: int
    number: int
    without: tuple[Key, ...]


class Merged(NamedTuple):
    """What is in a bucket: the keys of its groups as an Arrow table, how many rows each has, and those that stay out."""

    keys: Any
    counts: list[int]
    counts_without: list[int]


class Merge:
    """Called with each bucket: writes its groups.

    Args:
        buckets: Where and how.
        pieces: The numbers of those that have rows.
    """

    def __init__(self, buckets: Buckets, pieces: Sequence[int]) -> None:
        self._buckets, self._slices = buckets, Slices(buckets, pieces)

    def __call__(self, bucket: Bucket) -> Merged:
        """Put a bucket together."""
        import numpy as np
        import pyarrow as pa

        by = self._buckets.by[: bucket.level]
        counts_without = [0] * len(bucket.without)
        parts = []
        for part in self._slices.of(bucket.level, bucket.number):
            columns = key_columns(part, by)
            for at, key in enumerate(bucket.without):
                mask = rows_of(columns, key, part.num_rows)
                n_rows = mask.true_count
                if n_rows:
                    counts_without[at] += n_rows
                    part = part.filter(pa.compute.invert(mask))
                    columns = key_columns(part, by)
            parts.append(part)
        if not parts:
            return Merged(None, [], counts_without)
        table = pa.concat_tables(parts)
        columns = key_columns(table, by)
        codes, firsts = numbered(columns, table.num_rows)
        ordered = table.take(pa.array(np.argsort(codes, kind="stable")))
        _write(self._buckets.groups_file(bucket.level, bucket.number), ordered)
        keys = pa.table([column.take(pa.array(firsts)) for column in columns], names=list(by))
        return Merged(keys, np.bincount(codes, minlength=len(firsts)).tolist(), counts_without)


class Slices:
    """Reads buckets from the files of pieces. Files stay open from bucket to bucket, up to OPEN_FILES.

    Args:
        buckets: Where they are.
        pieces: The numbers of pieces that have rows, in order.
    """

    def __init__(self, buckets: Buckets, pieces: Sequence[int]) -> None:
        self._buckets, self._pieces = buckets, tuple(pieces)
        self._open: dict[Path, tuple[Any, Any]] = {}

    def of(self, level: int, bucket: int) -> Iterator[Any]:
        """The rows of a bucket in the order of the dataset, as Arrow tables that are not copied."""
        import numpy as np
        import pyarrow as pa

        for piece in self._pieces:
            reader, starts = self._opened(self._buckets.rows_file(level, piece))
            for at in np.flatnonzero(starts[:, bucket + 1] > starts[:, bucket]).tolist():
                begin, end = starts[at, bucket : bucket + 2].tolist()
                yield pa.Table.from_batches([reader.get_batch(at).slice(begin, end - begin)])

    def _opened(self, path: Path) -> tuple[Any, Any]:
        import numpy as np
        import pyarrow as pa

        found = self._open.get(path)
        if found is None:
            if len(self._open) >= OPEN_FILES:
                self._open.clear()
            self._open[path] = found = pa.ipc.open_file(pa.memory_map(str(path))), np.load(path.with_suffix(".npy"))
        return found


def _write(path: Path, table: Any) -> None:
    import pyarrow as pa

    def write(file: Any) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())

    put(path, write)


def huge_groups(spilled: Sequence[Spilled], level: int, n_buckets: int) -> dict[int, tuple[Key, ...]]:
    """The keys of groups that are much larger than a bucket, by their buckets."""
    found: Heavy = {}
    for each in spilled:
        for key, (count, bucket) in each.heavy[level].items():
            found[key] = (found.get(key, (0, 0))[0] + count, bucket)
    most = max(HUGE_ROWS, HUGE_BUCKETS * sum(each.n_rows for each in spilled) // n_buckets)
    by_bucket: dict[int, tuple[Key, ...]] = {}
    for key, (count, bucket) in found.items():
        if count > most:
            by_bucket[bucket] = (*by_bucket.get(bucket, ()), key)
    return by_bucket
