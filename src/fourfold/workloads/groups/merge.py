"""Buckets are put together from what pieces have spilled, one group behind the other."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fourfold.data.schema import fitted, unified
from fourfold.workloads.groups.keys import Key, key_columns, numbered, rows_of
from fourfold.workloads.groups.spill import FINE_BUCKETS, Buckets, Heavy, Spilled, put

HUGE_BUCKETS, HUGE_ROWS = 2, 50_000
"""A group is huge, and stays out of its bucket, that would take so many of them, and has more than so many rows. Smaller: more
groups are searched for in all pieces. Larger: who puts the bucket together needs more memory. Not measured."""

OPEN_FILES = 256
"""Files of pieces that a worker has open. Fewer: each is opened again for each bucket, in 0.1 ms. More: more descriptors, of
which a process has some thousand."""


class Pieces(NamedTuple):
    """What was spilled.

    Attributes:
        names: Of files, in the order of the dataset.
        schema: Of all rows; None when there are none.
    """

    names: tuple[str, ...]
    schema: Any

    @classmethod
    def of(cls, spilled: Sequence[Spilled]) -> "Pieces":
        """All of these.

        Raises:
            SchemaConflict: A column has types in them that do not go together.
        """
        schemas = [each.schema for each in spilled]
        return cls(tuple(name for each in spilled for name in each.names), unified(schemas) if schemas else None)


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
        pieces: What was spilled.
    """

    def __init__(self, buckets: Buckets, pieces: Pieces) -> None:
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
        pieces: What was spilled.
    """

    def __init__(self, buckets: Buckets, pieces: Pieces) -> None:
        self._buckets, self._pieces = buckets, pieces
        self._open: dict[Path, tuple[Any, Any]] = {}

    def of(self, level: int, bucket: int) -> Iterator[Any]:
        """The rows of a bucket in the order of the dataset, as Arrow tables that are not copied."""
        import numpy as np
        import pyarrow as pa

        fine = self._buckets.fine(level, bucket)
        for name in self._pieces.names:
            reader, starts = self._opened(self._buckets.rows_file(level, name))
            begins, ends = starts[:, fine.start], starts[:, fine.stop]
            for at in np.flatnonzero(ends > begins).tolist():
                batch = reader.get_batch(at).slice(int(begins[at]), int(ends[at] - begins[at]))
                yield fitted(pa.Table.from_batches([batch]), self._pieces.schema)

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
        for key, (count, fine) in each.heavy[level].items():
            found[key] = (found.get(key, (0, 0))[0] + count, fine * n_buckets // FINE_BUCKETS)
    most = max(HUGE_ROWS, HUGE_BUCKETS * sum(each.n_rows for each in spilled) // n_buckets)
    by_bucket: dict[int, tuple[Key, ...]] = {}
    for key, (count, bucket) in found.items():
        if count > most:
            by_bucket[bucket] = (*by_bucket.get(bucket, ()), key)
    return by_bucket
