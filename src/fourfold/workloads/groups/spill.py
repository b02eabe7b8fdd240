"""Rows are spilled into files, sorted by buckets, which are hashes of keys: see the picture in `__init__.py`.

folder/
  LEVEL.NAME.rows        the rows of a piece, one Arrow batch for each table of it, each sorted by buckets
  LEVEL.NAME.npy         where buckets begin in each batch: one row of numbers per batch
  LEVEL.BUCKET.groups    the rows of a bucket, one group behind the other, in the order of the dataset

A level is how many columns keys have: groups that others fall back on have fewer.
"""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fourfold.data.pieces import Piece
from fourfold.data.schema import cast_column, unified
from fourfold.errors import OptionError
from fourfold.workloads.groups.keys import Key, hashes, key_columns, keys_of, numbered

FINE_BUCKETS = 256
"""Buckets into which rows of a piece are sorted, a power of two. Neighbours are put together at once, as many as make about a
piece. Fewer: more memory, where there are more pieces. More: more numbers of where each begins. Not measured."""

HEAVY_SHARE, HEAVY_ROWS = 64, 256
"""Keys are counted apart of which a batch has at least the 64th part of its rows, and so many. Smaller: more keys travel.
Larger: groups go unnoticed that are much larger than a bucket."""

BUCKET_BYTES = 128 << 20
"""Bytes of a bucket, about, where pieces are larger than that: a partition of a cluster may be of any size. Smaller: more
files. Larger: who puts one together, or fits its groups, needs more memory. Not measured."""

Categories = tuple[Any, ...]

Heavy = dict[Key, tuple[int, int]]
"""How many rows keys have, and the fine bucket that they are in."""


class Spilled(NamedTuple):
    """What is known of a piece.

    Attributes:
        number: Its own.
        names: Of its files, in order: one, unless the types of its columns change within it.
        n_rows, n_bytes: It has so many.
        schema: Of its rows; None when there are none.
        nullable: Columns with nulls in it.
        heavy: For each level, keys of which there are many rows: how many, and in which bucket.
        categories: Of columns of categories: those.
    """

    number: int
    names: tuple[str, ...]
    n_rows: int
    n_bytes: int
    schema: Any
    nullable: frozenset[str]
    heavy: dict[int, Heavy]
    categories: dict[str, Categories]


class Buckets(NamedTuple):
    """How rows are divided.

    Attributes:
        folder: Where they are.
        by: The columns of keys.
        levels: How many of them each key has.
        n_buckets: Of each level but 0, when they are put together: a power of two.
    """

    folder: Path
    by: tuple[str, ...]
    levels: tuple[int, ...]
    n_buckets: int = FINE_BUCKETS

    def of_pieces(self, spilled: Sequence[Spilled]) -> "Buckets":
        """As many as there are pieces, about: what a worker holds to put one together is then one of these, or less."""
        wanted = max(len(spilled), sum(each.n_bytes for each in spilled) // BUCKET_BYTES)
        return self._replace(n_buckets=min(FINE_BUCKETS, 1 << max(0, wanted - 1).bit_length()))

    def fine(self, level: int, bucket: int) -> slice:
        """The fine buckets that are one."""
        if not level:
            return slice(0, 1)
        width = FINE_BUCKETS // self.n_buckets
        return slice(bucket * width, (bucket + 1) * width)

    def rows_file(self, level: int, name: str) -> Path:
        """The rows of a piece."""
        return self.folder / f"{level}.{name}.rows"

    def groups_file(self, level: int, bucket: int) -> Path:
        """The rows of a bucket."""
        return self.folder / f"{level}.{bucket}.groups"


class Spill:
    """Writes the rows of a piece: see `fourfold.data.work.Gather`.

    Args:
        buckets: Where, and by which keys.
        keys: The schema of keys. Others may have other types from batch to batch; equal keys have the same one everywhere.
        columns: Those that are wanted.
        names_are_numbers: What is written has the same name each time. Else no two attempts at a piece meet in one file: a
            cluster may give them its rows in another order.
    """

    def __init__(self, buckets: Buckets, keys: Any, columns: Sequence[str], names_are_numbers: bool) -> None:
        self.buckets, self._keys, self._columns, self._names_are_numbers = buckets, keys, columns, names_are_numbers

    def open(self) -> None:
        """Check that this worker sees the folder."""
        if not self.buckets.folder.is_dir():
            error = OptionError(
                f"a worker does not see {self.buckets.folder}, where rows are put together: name a folder that all share, "
                "folder=…"
            )
            raise error

    def fold(self, piece: Piece, tables: Iterator[Any]) -> Spilled:
        """Go through all tables."""
        name = str(piece.number) if self._names_are_numbers else f"{piece.number}-{secrets.token_hex(8)}"
        files = _Files(self.buckets, name)
        n_rows, n_bytes, nullable, categories = 0, 0, set[str](), dict[str, Categories]()
        try:
            for table in tables:
                if not table.num_rows:
                    continue
                table = table.select(self._columns)
                categories = together([categories, categories_of(table)]) if n_rows else categories_of(table)
                plain = self._with_keys(without_dictionaries(table)).combine_chunks()
                n_rows, n_bytes = n_rows + plain.num_rows, n_bytes + plain.nbytes
                nullable |= {name for name in plain.column_names if plain.column(name).null_count}
                files.write(plain)
            files.commit()
        finally:
            files.close()
        schema = unified(files.schemas) if files.schemas else None
        names, has_nulls = tuple(files.names), frozenset(nullable)
        return Spilled(piece.number, names, n_rows, n_bytes, schema, has_nulls, files.heavy, categories)

    def _with_keys(self, table: Any) -> Any:
        for field in self._keys:
            at = table.schema.get_field_index(field.name)
            table = table.set_column(at, field.name, cast_column(table.column(at), field.name, field.type))
        return table.replace_schema_metadata(None)


class _Files:
    """The files of a piece: one for each level, and more when the types of columns change."""

    def __init__(self, buckets: Buckets, name: str) -> None:
        self._buckets, self._name = buckets, name
        self._writers: list[_Writer] = []
        self.names: list[str] = []
        self.schemas: list[Any] = []
        self.heavy: dict[int, Heavy] = {level: {} for level in buckets.levels}

    def write(self, table: Any) -> None:
        if not self.schemas or not table.schema.equals(self.schemas[-1]):
            self.commit()
            self.names.append(f"{self._name}+{len(self.names)}" if self.names else self._name)
            self.schemas.append(table.schema)
            self._writers = [_Writer(self._buckets, at, self.names[-1], self.heavy[at]) for at in self._buckets.levels]
        for writer in self._writers:
            writer.write(table)

    def commit(self) -> None:
        for writer in self._writers:
            writer.commit()

    def close(self) -> None:
        """Remove what was not committed."""
        for writer in self._writers:
            writer.close()


class _Writer:
    """One file of rows, which is there whole or not at all.

    Args:
        buckets, level, name: Which.
        heavy: Takes what is counted.
    """

    def __init__(self, buckets: Buckets, level: int, name: str, heavy: Heavy) -> None:
        self._path = buckets.rows_file(level, name)
        self._by, self._heavy = buckets.by[:level], heavy
        self._writer: Any = None
        self._temporary = ""
        self._starts: list[Any] = []

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
            of_groups = (hashes(columns, firsts) % np.uint64(FINE_BUCKETS)).astype(np.uint16)
            self._count(columns, np.bincount(codes), firsts, of_groups)
            bucket = of_groups[codes]
            table = table.take(pa.array(np.argsort(bucket, kind="stable")))
            starts = [0, *np.bincount(bucket, minlength=FINE_BUCKETS).cumsum()]
        (batch,) = table.combine_chunks().to_batches()
        self._writer.write_batch(batch)
        self._starts.append(starts)

    def _count(self, columns: Sequence[Any], counts: Any, firsts: Any, buckets: Any) -> None:
        import numpy as np
        import pyarrow as pa

        many = np.flatnonzero(counts >= max(HEAVY_ROWS, counts.sum() // HEAVY_SHARE))
        keys = keys_of([column.take(pa.array(firsts[many])) for column in columns], len(many))
        for key, count, bucket in zip(keys, counts[many].tolist(), buckets[many].tolist(), strict=True):
            self._heavy[key] = (self._heavy.get(key, (0, 0))[0] + count, bucket)

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
