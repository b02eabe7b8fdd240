"""What the columns of a table are like, from one pass over its pieces."""

from collections.abc import Iterator
from typing import Any

from fourfold.data.draw import hashes_of, mixed
from fourfold.data.pieces import Piece
from fourfold.data.sketches import Distinct, Moments, Quantiles

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


class ColumnFigures:
    """Figures of one column, as far as it was seen."""

    def __init__(self) -> None:
        self.type = ""
        self.n_rows = self.n_nulls = 0
        self.least: Any = None
        self.most: Any = None
        self.moments, self.distinct, self.quantiles = Moments(), Distinct(), Quantiles()

    def add(self, column: Any) -> None:
        """Take in a column of one batch. NaN counts as null."""
        import pyarrow as pa
        import pyarrow.compute as pc

        self.type = str(column.type) if self.type in ("", "null") else self.type
        self.n_rows += len(column)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        self.n_nulls += column.null_count
        values = column.drop_null()
        if not len(values):
            return
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type):
            self._add_numbers(values)
        elif not pa.types.is_nested(values.type):
            self.distinct.add(mixed(hashes_of(values), 0))
        self._widen(values)

    def _add_numbers(self, values: Any) -> None:
        import numpy as np

        numbers = np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in values.chunks])
        floats = numbers.astype(np.float64)
        bits = (floats + 0.0).view(np.uint64)  # there is one zero
        if numbers.dtype.kind in "iu":  # neighbours beyond 2**53 are one float
            bits = np.where(np.abs(floats) < 2.0**53, bits, numbers.astype(np.uint64))
        self.distinct.add(mixed(bits, 0))
        finite = floats[np.isfinite(floats)]
        self.moments.add(finite)
        self.quantiles.add(finite)

    def _widen(self, values: Any) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_nested(values.type) or pa.types.is_dictionary(values.type):
            return
        found = pc.min_max(values).as_py()
        self.least = found["min"] if self.least is None else min(self.least, found["min"])
        self.most = found["max"] if self.most is None else max(self.most, found["max"])

    def merge(self, other: "ColumnFigures") -> None:
        """Take in those of a later piece."""
        self.type = other.type if self.type in ("", "null") else self.type
        self.n_rows += other.n_rows
        self.n_nulls += other.n_nulls
        for mine, theirs in (
            (self.moments, other.moments),
            (self.distinct, other.distinct),
            (self.quantiles, other.quantiles),
        ):
            mine.merge(theirs)  # type: ignore[arg-type]
        self.least = min((each for each in (self.least, other.least) if each is not None), default=None)
        self.most = max((each for each in (self.most, other.most) if each is not None), default=None)

    def row(self, name: str) -> dict[str, Any]:
        """As a row of the table that users get."""
        has_numbers = self.moments.n > 0
        return {
            "column": name,
            "type": self.type,
            "rows": self.n_rows,
            "nulls": self.n_nulls,
            "distinct": self.distinct.estimate(),
            "mean": self.moments.mean if has_numbers else None,
            "std": self.moments.std,
            "min": None if self.least is None else str(self.least),
            **{f"{share:.0%}": self._quantile(share) for share in SHARES},
            "max": None if self.most is None else str(self.most),
        }

    def _quantile(self, share: float) -> float | None:
        """Within the least and the most: the bucket of a constant is wider than it."""
        found = self.quantiles.at(share)
        if found is None or isinstance(self.least, bool):
            return found
        return float(min(max(found, self.least), self.most))


class Describe:
    """Gathers the figures of all columns."""

    def open(self) -> None:
        """It needs nothing."""

    def fold(self, piece: Piece, tables: Iterator[Any]) -> dict[str, ColumnFigures]:
        """By the names of columns."""
        figures: dict[str, ColumnFigures] = {}
        for table in tables:
            for name, column in zip(table.column_names, table.columns, strict=True):
                figures.setdefault(name, ColumnFigures()).add(column)
        return figures


def described(parts: list[dict[str, ColumnFigures]], names: list[str]) -> Any:
    """The figures of all pieces, in their order, as an Arrow table: one row for each column."""
    import pyarrow as pa

    whole: dict[str, ColumnFigures] = {name: ColumnFigures() for name in names}
    for part in parts:
        for name, figures in part.items():
            whole.setdefault(name, ColumnFigures()).merge(figures)
    rows = [figures.row(name) for name, figures in whole.items()]
    numbers = {"mean": pa.float64(), "std": pa.float64(), **{f"{share:.0%}": pa.float64() for share in SHARES}}
    table = pa.Table.from_pylist(rows or [ColumnFigures().row("")])
    schema = pa.schema(
        [pa.field(f.name, numbers.get(f.name, pa.string() if f.name in ("min", "max") else f.type)) for f in table.schema]
    )
    return table.cast(schema).slice(0, len(rows))
