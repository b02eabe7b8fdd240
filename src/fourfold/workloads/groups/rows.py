"""The rows of a group as an estimator sees them, in a worker: a slice of its bucket, which is opened once."""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from fourfold.errors import UnreadableInput
from fourfold.workloads.groups.keys import Key, key_columns, rows_of
from fourfold.workloads.groups.merge import Pieces, Slices
from fourfold.workloads.groups.spill import Buckets, Categories

KEPT_BYTES = 64 << 20
"""Bytes of opened buckets that a worker keeps, besides the one that it is at. Smaller: buckets are opened again for groups of
other sizes. Larger: more memory. Not measured."""

APART = -1
"""Where a group begins that is in no bucket."""


class Group(NamedTuple):
    """One group, small enough to travel.

    Attributes:
        key: Its values of the columns of keys.
        n_rows: It has so many.
        bucket: It is in this one, of the level that is the length of the key.
        first: The place of its first row there; APART when it must be put together from the pieces.
    """

    key: Key
    n_rows: int
    bucket: int
    first: int


class Examples(NamedTuple):
    """What an estimator is fitted to: a DataFrame X, and arrays y and weights where there are any."""

    X: Any
    y: Any
    weight: Any

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        size = int(self.X.memory_usage(index=False, deep=False).sum())
        return size + sum(int(each.nbytes) for each in (self.y, self.weight) if each is not None)

    def part(self, begin: int, end: int) -> "Examples":
        """Some of the rows, as arrays of their own: an estimator sees what a loop over groups would give it."""
        y, weight = (None if each is None else each[begin:end].copy() for each in (self.y, self.weight))
        return Examples(self.X.iloc[begin:end].copy(), y, weight)


class Columns(NamedTuple):
    """Which columns are what.

    Attributes:
        features, target, weight: Their names.
        nullable: Those with a null in any row of the dataset: they have the same dtype in all groups, as in one DataFrame.
        categories: Of features that are columns of categories, which have all of them in each group.
    """

    features: tuple[str, ...]
    target: str | None
    weight: str | None
    nullable: frozenset[str] = frozenset()
    categories: tuple[tuple[str, Categories], ...] = ()

    def examples(self, table: Any) -> Examples:
        """The rows of an Arrow table."""
        import numpy as np
        import pandas as pd

        y = None if self.target is None else frame_of(table, (self.target,), self.nullable)[self.target].to_numpy()
        weight = None if self.weight is None else np.asarray(table.column(self.weight).to_numpy(), np.float64)
        X = frame_of(table, self.features, self.nullable)
        for name, values in self.categories:
            X[name] = pd.Categorical(X[name], pd.Index(values))
        return Examples(X, y, weight)


def frame_of(table: Any, columns: Sequence[str], nullable: Collection[str]) -> Any:
    """A DataFrame in which dtypes are those of a table that has nulls in these columns, whether there is one here or not."""
    frame = table.select(list(columns)).to_pandas()
    for name in columns:
        if name in nullable and frame[name].dtype.kind in "iu":
            frame[name] = frame[name].astype("float64")
        elif name in nullable and frame[name].dtype.kind == "b":
            frame[name] = frame[name].astype(object)
    return frame


class GroupRows:
    """Reads the rows of groups.

    Args:
        buckets: Where they are.
        pieces: What was spilled.
        columns: Which columns are what.
    """

    def __init__(self, buckets: Buckets, pieces: Pieces, columns: Columns) -> None:
        self._buckets, self._pieces, self._columns = buckets, pieces, columns
        self._opened: OrderedDict[tuple[int, int], Examples] = OrderedDict()

    def of_one_worker(self) -> "GroupRows":
        """The same, with opened buckets of its own: threads are workers that are given the same object."""
        return GroupRows(self._buckets, self._pieces, self._columns)

    def of(self, group: Group) -> Examples:
        """The rows of a group, in the order of the dataset.

        Raises:
            UnreadableInput: Somebody has removed them; `.of_rows` is true.
        """
        try:
            return self._of(group)
        except FileNotFoundError as error:
            raise UnreadableInput(
                f"{self._buckets.folder}: rows that wait there for their fit are gone: has somebody removed temporary files? "
                "Make the call again (with run=, in another folder), or name a folder for rows, folder=…",
                of_rows=True,
            ) from error

    def _of(self, group: Group) -> Examples:
        if group.first == APART:
            return self._columns.examples(self._put_together(group))
        return self._bucket(len(group.key), group.bucket).part(group.first, group.first + group.n_rows)

    def _put_together(self, group: Group) -> Any:
        import pyarrow as pa

        by = self._buckets.by[: len(group.key)]
        parts = []
        for part in Slices(self._buckets, self._pieces).of(len(group.key), group.bucket):
            parts.append(part.filter(rows_of(key_columns(part, by), group.key, part.num_rows)) if by else part)
        return pa.concat_tables(parts)

    def _bucket(self, level: int, number: int) -> Examples:
        import pyarrow as pa

        found = self._opened.get((level, number))
        if found is None:
            with pa.memory_map(str(self._buckets.groups_file(level, number))) as source:
                found = self._columns.examples(pa.ipc.open_file(source).read_all())
            self._opened[level, number] = found
            while len(self._opened) > 1 and sum(each.size_bytes for each in self._opened.values()) > KEPT_BYTES:
                self._opened.popitem(last=False)
        self._opened.move_to_end((level, number))
        return found
