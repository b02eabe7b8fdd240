"""Rows as an estimator sees them."""

from collections.abc import Iterator, Sequence
from typing import Any

from fourfold.data.sparse import matrix_of, sparse_columns
from fourfold.workloads.fit.contract import About, Rows, Seen


class Features:
    """Makes rows of a table: the first thing that is done with one.

    Args:
        features: Columns of X.
        target: The column of y; None for none.
        weight: The column of weights; None for none.
        is_text: The only feature is given as an array of texts.
    """

    def __init__(self, features: Sequence[str], target: str | None, weight: str | None, is_text: bool = False) -> None:
        self.features, self.target, self.weight, self.is_text = list(features), target, weight, is_text

    @property
    def beside(self) -> list[str]:
        """Target and weight, as far as there are any."""
        return [name for name in (self.target, self.weight) if name is not None]

    @property
    def columns(self) -> list[str]:
        """All that is looked at, each once."""
        return [*dict.fromkeys([*self.features, *self.beside])]

    def __call__(self, table: Any) -> Rows:
        """The rows of an Arrow table."""
        import numpy as np

        y = None if self.target is None else table.column(self.target).to_pandas().to_numpy()
        weight = None if self.weight is None else table.column(self.weight).to_pandas().to_numpy(np.float64, na_value=np.nan)
        return Rows(self._features_of(table), y, weight)

    def _features_of(self, table: Any) -> Any:
        if self.is_text:
            return table.column(self.features[0]).to_pandas().to_numpy()
        if sparse_columns(table.select(self.features).schema):
            return matrix_of(table, self.features).tocsr()
        return table.select(self.features).to_pandas()

    def about(self, schema: Any) -> About:
        """What is known before a row is read, of a table with this schema."""
        has_target, has_weight = self.target is not None, self.weight is not None
        if self.is_text:
            return About(None, None, False, has_target, has_weight)
        chosen = [schema.field(name) for name in self.features]
        if sparse_columns(chosen):
            return About(None, sum(field.type.width for field in chosen), True, has_target, has_weight)
        import pyarrow as pa

        return About(pa.schema(chosen).empty_table().to_pandas(), len(chosen), False, has_target, has_weight)


class ByTransform:
    """What a fitted transformer makes of rows."""

    def __init__(self, fitted: Any) -> None:
        self.fitted = fitted

    def __call__(self, rows: Rows) -> Rows:
        return rows._replace(X=self.fitted.transform(rows.X))


def all_seen(rows: Rows, chains: Sequence[Sequence[Seen]]) -> Iterator[Rows]:
    """The rows behind each chain of these; what several begin with is done once."""
    done: dict[tuple[int, ...], Rows] = {(): rows}
    for chain in chains:
        key: tuple[int, ...] = ()
        for at, step in enumerate(chain):
            behind = (*key, id(step))
            if behind not in done:
                try:
                    done[behind] = step(done[key])
                except ValueError as error:
                    raise _named(error, chain[:at]) from error.__cause__
            key = behind
        yield done[key]


def _named(error: ValueError, before: Sequence[Seen]) -> ValueError:
    """What Numbers raised, with the name that the last step before gives to the column, where it gives one."""
    column = getattr(error, "column", None)
    if column is None or not before or not isinstance(before[-1], ByTransform):
        return error
    try:
        name = str(before[-1].fitted.get_feature_names_out()[column])
    except Exception:  # what a transformer that somebody has written may raise; the number is enough
        return error
    return ValueError(str(error).replace(f"column number {column} ", f"column {name!r} ", 1))


def in_one_block(rows: Rows) -> Rows:
    """The rows as they will come out of a file: the order of sums may depend on how an array lies in memory."""
    import numpy as np

    if hasattr(rows.X, "columns"):
        raise TypeError(
            f"a pass with keep=True keeps arrays and csr matrices, and its rows are a {type(rows.X).__name__}: give it "
            "seen=(Numbers(…),)"
        )
    if hasattr(rows.X, "tocsr") or rows.X.flags.c_contiguous or rows.X.flags.f_contiguous:
        return rows
    return rows._replace(X=np.ascontiguousarray(rows.X))


class Numbers:
    """A DataFrame as an array of float64. Arrays and sparse matrices stay as they are, but for their type.

    Args:
        takes_nan: NaN is a value like others, and stands for what is missing.
    """

    def __init__(self, takes_nan: bool) -> None:
        self.takes_nan = takes_nan

    def __call__(self, rows: Rows) -> Rows:
        import numpy as np

        X, names = rows.X, getattr(rows.X, "columns", None)
        X = X.tocsr().astype(np.float64, copy=False) if hasattr(X, "tocsr") else _floats(X)
        values = X.data if hasattr(X, "tocsr") else X
        bad = ~np.isfinite(values) if not self.takes_nan else np.isinf(values)
        if bad.any():
            raise _complaint(X, bad, names)
        return rows._replace(X=X)


def _floats(X: Any) -> Any:
    import numpy as np

    try:
        return X.to_numpy(dtype=np.float64, na_value=np.nan) if hasattr(X, "columns") else np.asarray(X, np.float64)
    except (TypeError, ValueError):
        for name in getattr(X, "columns", ()):
            try:
                X[name].to_numpy(dtype=np.float64, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise ValueError(f"column {name!r} is {X[name].dtype}, and numbers are taken: {error}") from None
        raise


def _complaint(X: Any, bad: Any, names: Any) -> ValueError:
    import numpy as np

    if hasattr(X, "tocsr"):
        place = int(np.flatnonzero(bad)[0])
        row, at = int(np.searchsorted(X.indptr, place, side="right")) - 1, int(X.indices[place])
        value = X.data[place]
    else:
        row, at = (int(each[0]) for each in np.nonzero(bad))
        value = X[row, at]
    column = repr(names[at]) if names is not None else f"number {at}"
    where = f" in row {row} of the batch" if X.shape[0] > 1 else ""  # of one alone, who asks knows which it is
    said = "Input X contains NaN" if np.isnan(value) else "Input X contains infinity"
    error = ValueError(f"{said}: column {column} is {value}{where}, and this estimator takes finite numbers")
    if names is None:
        vars(error)["column"] = at  # which may have a name all the same: see _named
    return error
