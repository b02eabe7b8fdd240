"""SimpleImputer: what each column has in place of missing values."""

from typing import Any, NamedTuple

from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import About, Fit, Pass, Rows
from fourfold.workloads.fit.recipes.checks import check_no_weights, dtype_of
from fourfold.workloads.fit.recipes.moments import ColumnMoments
from fourfold.workloads.fit.recipes.quantiles import quantiles
from fourfold.workloads.fit.seen import Numbers


def simple_imputer(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `SimpleImputer.fit`.

    Raises:
        OptionError: The strategy is a function, or columns are sparse and the strategy wants more of them than their numbers.
    """
    import numpy as np

    check_no_weights(estimator, about)
    if callable(estimator.strategy):
        raise OptionError(
            "SimpleImputer(strategy=FUNCTION) has to see all values of a column at once: give the name of a strategy"
        )
    is_of_numbers = estimator.strategy in ("mean", "median")
    if about.is_sparse and (not is_of_numbers or estimator.add_indicator):
        raise OptionError(
            'SimpleImputer takes sparse columns for "mean" and "median" without add_indicator; other columns for all it can do'
        )
    n_missing = yield from (_by_numbers if is_of_numbers else _by_values)(estimator, about)
    estimator._fit_indicator(np.asarray(n_missing > 0)[None])
    return estimator


def _by_numbers(estimator: Any, about: About) -> Fit:
    """Strategies that compute. Ends with how many values of each column are missing."""
    import numpy as np
    from scipy.sparse import csc_matrix

    dtype, width = dtype_of(about), about.n_features or 0
    witness = csc_matrix((1, width), dtype=dtype) if about.is_sparse else np.ones((1, width), dtype)
    estimator._fill_dtype = estimator._validate_input(witness, in_fit=True).dtype
    seen = (Numbers(takes_nan=_is_nan(estimator.missing_values)), AsNan(estimator.missing_values))
    moments, n_rows = yield [Pass(ColumnMoments(), seen, keep=estimator.strategy == "median"), Pass(Count(), seen)]
    statistics = moments.mean
    if estimator.strategy == "median":
        medians = yield from quantiles(seen, [(0.5,)] * len(statistics), "median")
        statistics = np.array([each[0] for each in medians], np.float64 if about.is_sparse else dtype)
    if estimator.keep_empty_features:
        statistics = np.where(moments.weight == 0, statistics.dtype.type(0), statistics)
    estimator.statistics_ = statistics
    return n_rows - moments.weight


def _by_values(estimator: Any, about: About) -> Fit:
    """Strategies that take any values. Ends with how many values of each column are missing."""
    import numpy as np
    from sklearn.impute._base import _most_frequent

    is_counted = estimator.strategy == "most_frequent"
    tally = yield Pass(Tallies(estimator.missing_values, is_counted))
    dtype = estimator._fill_dtype = estimator._validate_input(tally.witness, in_fit=True).dtype
    is_empty = np.equal(tally.n_missing, tally.n_rows)
    keeps_empty = estimator.keep_empty_features
    if not is_counted:
        fill = estimator.fill_value
        fill = (0 if dtype.kind in "iuf" else "missing_value") if fill is None else fill
        estimator.statistics_ = np.full(len(is_empty), fill, dtype=np.object_)
        estimator.statistics_[is_empty & (not keeps_empty)] = np.nan
        return tally.n_missing
    estimator.statistics_ = np.empty(len(is_empty), object if dtype.kind == "O" else np.float64)
    for column, counts in enumerate(tally.counts):
        most = max(counts.values(), default=0)
        often = np.empty(sum(count == most for count in counts.values()), object)
        often[:] = [tally.as_in_all(column, value) for value, count in counts.items() if count == most]
        estimator.statistics_[column] = 0 if keeps_empty and not counts else _most_frequent(often, np.nan, 0)
    return tally.n_missing


def _is_nan(missing: Any) -> bool:
    from sklearn.utils._missing import is_pandas_na, is_scalar_nan

    return bool(is_pandas_na(missing) or is_scalar_nan(missing))


class AsNan:
    """Makes NaN of the number that stands for what is missing.

    Args:
        missing: This number.
    """

    def __init__(self, missing: Any) -> None:
        self.missing = missing

    def __call__(self, rows: Rows) -> Rows:
        """The rows, of which what came is left as it is."""
        import numpy as np

        if _is_nan(self.missing):
            return rows
        if not hasattr(rows.X, "tocsr"):
            return rows._replace(X=np.where(np.equal(rows.X, self.missing), np.nan, rows.X))
        X = rows.X.copy()
        X.data[np.equal(X.data, self.missing)] = np.nan
        return rows._replace(X=X)


class Count:
    """How many rows there are."""

    def fold(self, rows: Rows) -> int:
        """Of any."""
        return rows.n_rows

    def combine(self, left: int, right: int) -> int:
        """Of both."""
        return left + right

    def finish(self, state: int) -> int:
        """As it is."""
        return state


class Tally(NamedTuple):
    """What is known of the values of each column.

    Attributes:
        witness: One row, of which scikit-learn sees which types the columns have.
        n_rows: How many rows there are.
        n_missing: Of each column, how many values are missing.
        counts: Of each column, how often each other value is there; empty when nobody asked.
    """

    witness: Any
    n_rows: int
    n_missing: Any
    counts: list[dict[Any, int]]

    def as_in_all(self, column: int, value: Any) -> Any:
        """A value that has the type of its column in all rows: integers are floats where others of theirs are missing."""
        kind = getattr(self.witness, "dtypes", [getattr(self.witness, "dtype", None)] * len(self.counts))
        dtype = kind.iloc[column] if hasattr(kind, "iloc") else kind[column]
        return float(value) if getattr(dtype, "kind", "O") == "f" else value


class Tallies:
    """The tally of a DataFrame or an array.

    Args:
        missing: Stands for what is missing.
        is_counted: Values are counted. The state grows with how many different ones there are.
    """

    def __init__(self, missing: Any, is_counted: bool) -> None:
        self.missing, self.is_counted = missing, is_counted

    def fold(self, rows: Rows) -> Tally:
        """Column by column."""
        import numpy as np

        n_missing, counts, X = [], [], rows.X
        for at in range(X.shape[1]):
            name = X.columns[at] if hasattr(X, "columns") else at
            values = _values(X.iloc[:, at]) if hasattr(X, "columns") else X[:, at]
            is_missing = self._mask(values, name)
            n_missing.append(int(is_missing.sum()))
            counts.append(_counted(values[~is_missing]) if self.is_counted else {})
        return Tally(X.iloc[:1] if hasattr(X, "columns") else X[:1], rows.n_rows, np.array(n_missing), counts)

    def _mask(self, values: Any, name: Any) -> Any:
        """Where a value is missing.

        Raises:
            ValueError: NaN is there, and does not stand for what is missing.
        """
        import numpy as np
        import pandas as pd
        from sklearn.utils._mask import _get_mask

        if values.dtype.kind == "f" and np.isinf(values).any():
            raise ValueError(f"column {name!r} is infinite somewhere, and this estimator takes finite numbers")
        if not _is_nan(self.missing):
            is_nan = values != values if values.dtype == object else pd.isna(values)
            if np.asarray(is_nan, bool).any():
                raise ValueError(f"Input X contains NaN: column {name!r}, where missing values are {self.missing!r}")
        if isinstance(self.missing, str) and values.dtype != object:
            return np.zeros(len(values), bool)
        return np.asarray(_get_mask(values, self.missing), bool)

    def combine(self, left: Tally, right: Tally) -> Tally:
        """Of both."""
        for into, more in zip(left.counts, right.counts, strict=True):
            for value, count in more.items():
                into[value] = into.get(value, 0) + count
        witness = _first_of(left.witness, right.witness)
        return Tally(witness, left.n_rows + right.n_rows, left.n_missing + right.n_missing, left.counts)

    def finish(self, state: Tally) -> Tally:
        """As it is."""
        return state


def _values(column: Any) -> Any:
    """Numbers as an array of numbers, as scikit-learn makes them of types of pandas; anything else as an array of objects."""
    import numpy as np
    import pandas as pd

    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufb":
        return column.to_numpy()
    if pd.api.types.is_numeric_dtype(column.dtype) and not isinstance(column.dtype, pd.CategoricalDtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.astype(object).to_numpy()


def _counted(values: Any) -> dict[Any, int]:
    import collections

    import numpy as np

    if values.dtype == object:
        return dict(collections.Counter(values.tolist()))
    different, counts = np.unique(values, return_counts=True)
    return dict(zip(different.tolist(), counts.tolist(), strict=True))


def _first_of(left: Any, right: Any) -> Any:
    """The first row of the left one, of types that take the values of both."""
    import numpy as np
    import pandas as pd

    if not hasattr(left, "columns"):
        return np.concatenate([left, right])[:1]
    return pd.concat([left, right], ignore_index=True).iloc[:1]
