"""Encoders of categories: which different values each column has, and how often. The rest is scikit-learn's own fit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import About, Fit, Pass, Rows


class Column(NamedTuple):
    """The different values of a column, sorted as scikit-learn does: None and NaN come last.

    Attributes:
        values: An array; its type is that of the column, over all rows.
        counts: How many rows have each; None where nobody wants to know.
    """

    values: Any
    counts: Any


class Categories:
    """The different values of each column, and how many rows there are. A state grows with the number of different values.

    Args:
        counted: How often each value is there is wanted, too.
    """

    def __init__(self, counted: bool) -> None:
        self.counted = counted

    def fold(self, rows: Rows) -> tuple[list[Column], int]:
        """Of a DataFrame or an array. Columns are read as scikit-learn's encoders read them."""
        from sklearn.preprocessing import OneHotEncoder
        from sklearn.utils._encode import _unique

        columns, n_rows, _ = OneHotEncoder()._check_X(rows.X, "allow-nan")
        if self.counted:
            return [_counted(each) for each in columns], n_rows
        return [Column(_unique(each), None) for each in columns], n_rows

    def combine(self, left: tuple[list[Column], int], right: tuple[list[Column], int]) -> tuple[list[Column], int]:
        """Of both. A column may have been of integers here and of floats there, where it has missing values."""
        return [_union(*both) for both in zip(left[0], right[0], strict=True)], left[1] + right[1]

    def finish(self, state: tuple[list[Column], int]) -> tuple[list[Column], int]:
        """As they are."""
        return state


def _counted(values: Any) -> Column:
    """The different values of a column, and their counts. Objects are counted by `Counter`, in a quarter of the time."""
    from collections import Counter

    import numpy as np
    from sklearn.utils._encode import _unique

    if values.dtype != object:
        return Column(*_unique(values, return_counts=True))
    counter = Counter(values.tolist())
    keys = np.empty(len(counter), dtype=object)
    keys[:] = list(counter)
    return _summed(keys, np.array(list(counter.values())))


def _summed(values: Any, counts: Any) -> Column:
    """Values that may be there several times, as NaN is in many ways, and their counts."""
    import numpy as np
    from sklearn.utils._encode import _unique

    found, places = _unique(values, return_inverse=True)
    summed = np.zeros(len(found), np.int64)
    np.add.at(summed, places, counts)
    return Column(found, summed)


def _union(left: Column, right: Column) -> Column:
    import numpy as np
    from sklearn.utils._encode import _unique

    values = np.concatenate([left.values, right.values])
    if left.counts is None:
        return Column(_unique(values), None)
    return _summed(values, np.concatenate([left.counts, right.counts]))


def encoder(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `OneHotEncoder.fit` and `OrdinalEncoder.fit`, which are called."""
    counted = estimator.max_categories is not None or estimator.min_frequency is not None
    columns, n_rows = yield Pass(Categories(counted))
    with told(estimator, columns, n_rows):
        estimator.fit(no_rows(about))
    return estimator


def no_rows(about: About) -> Any:
    """What has the names of the columns, or as many columns."""
    import numpy as np

    return about.example if about.example is not None else np.empty((0, about.n_features or 0))


@contextmanager
def told(estimator: Any, columns: Sequence[Column], n_rows: int) -> Iterator[None]:
    """While it lasts, an encoder that looks at rows gets the different values of all rows, and their counts."""

    def infrequent(n_samples: int, counts: Any, missing: Any) -> None:
        known = [_counts_of(*both) for both in zip(estimator.categories_, columns, strict=True)]
        type(estimator)._fit_infrequent_category_mapping(estimator, n_rows, known, missing)

    looking = {
        "_check_X": lambda X, *finite, **named: ([each.values for each in columns], n_rows, len(columns)),
        "_fit_infrequent_category_mapping": infrequent,
    }
    vars(estimator).update(looking)
    try:
        yield
    finally:
        for name in looking:
            del vars(estimator)[name]


def _counts_of(categories: Any, column: Column) -> Any:
    """How often each category is there; 0 for one that is given, and in no row."""
    import numpy as np
    from sklearn.utils._encode import _nandict

    known = _nandict(dict(zip(column.values.tolist(), column.counts.tolist(), strict=True)))
    counts = np.zeros(len(categories), np.int64)
    for at, category in enumerate(categories.tolist()):
        with suppress(KeyError):
            counts[at] = known[category]
    return counts
