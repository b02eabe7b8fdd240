"""The first pass: which classes there are, what they weigh, and the weighted mean and deviation of each column."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import Rows

BLOCK_BYTES = 1 << 20
"""Of an array, so much is looked at in one go: it stays in a core's cache while it is used again. A pass over 1,000,000 × 28
took 47 ms with half of it or all of it, 65 ms with twice as much and 107 with sixteen times; with a quarter the calls of
NumPy show, 54 ms."""

FEW = 1000
"""Whole numbers that are so near to each other are counted: a million of them took 50 ms to be told apart otherwise, as long
as a pass takes for all else. Larger: counts of as many numbers for each batch."""


def blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """The rows of an array in parts that fit into the cache."""
    step = max(64, BLOCK_BYTES // (8 * max(1, n_columns)))
    for first in range(0, n_rows, step):
        yield slice(first, min(first + step, n_rows))


class Moments(NamedTuple):
    """Of some rows: what they weigh, the weighted mean of each column, and the weighted squares around it."""

    weight: float
    mean: Any
    squares: Any


class Known(NamedTuple):
    """What a look at some rows tells.

    Attributes:
        classes: In order.
        n_rows: Of each class.
        weights: Of each class.
        squares: The sum of squared weights of each class.
        moments: Of each class; where nobody weighs classes, of all rows together.
    """

    classes: Any
    n_rows: Any
    weights: Any
    squares: Any
    moments: list[Moments]


class Look:
    """Looks at all rows once.

    Args:
        by_class: Moments of each class are wanted: what it will weigh is not known yet.
        names: Of the columns, for messages; None when they have none.
    """

    def __init__(self, by_class: bool, names: Sequence[str] | None) -> None:
        self.by_class, self.names = by_class, names

    def fold(self, rows: Rows) -> Known:
        """Of these rows.

        Raises:
            ValueError: A value is NaN or infinite, a weight is negative, or labels are none.
        """
        import numpy as np

        _check_weights(rows)
        classes = _classes(rows.y)
        codes = codes_of(classes, rows.y)
        weight = np.ones(rows.n_rows) if rows.weight is None else rows.weight
        if self.by_class:
            chosen = [np.flatnonzero(codes == each) for each in range(len(classes))]
            moments = [_moments(rows.X[each], None if rows.weight is None else weight[each]) for each in chosen]
        else:
            moments = [_moments(rows.X, rows.weight)]
        if not all(np.isfinite(each.mean).all() for each in moments):
            _check_values(rows, self.names)

        def summed(values: Any) -> Any:
            return np.bincount(codes, values, len(classes))

        return Known(classes, summed(weight != 0), summed(weight), summed(weight * weight), moments)

    def combine(self, left: Known, right: Known) -> Known:
        """Of both."""
        import numpy as np

        if np.array_equal(left.classes, right.classes):
            classes = left.classes
        else:
            classes = np.unique(np.concatenate([left.classes, right.classes]))

        def placed(known: Known, values: Any) -> Any:
            found = np.zeros(len(classes))
            found[np.searchsorted(classes, known.classes)] = values
            return found

        pairs = zip(left[1:4], right[1:4], strict=True)
        n_rows, weights, squares = (placed(left, a) + placed(right, b) for a, b in pairs)
        if not self.by_class:
            return Known(classes, n_rows, weights, squares, [merged(left.moments[0], right.moments[0])])
        both: dict[int, Moments] = {}
        for known in (left, right):
            for at, each in zip(np.searchsorted(classes, known.classes), known.moments, strict=True):
                both[int(at)] = merged(both[int(at)], each) if int(at) in both else each
        return Known(classes, n_rows, weights, squares, [both[at] for at in range(len(classes))])

    def finish(self, state: Known) -> Known:
        """As it is."""
        return state


def codes_of(classes: Any, y: Any) -> Any:
    """The number of each label's class. A label of none has the number of some class."""
    import numpy as np

    if len(classes) == 2:
        return (y == classes[1]).astype(np.intp)
    return np.minimum(np.searchsorted(classes, y), len(classes) - 1)


def merged(left: Moments, right: Moments) -> Moments:
    """Source: Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances"."""
    weight = left.weight + right.weight
    if not weight:
        return left
    delta, share = right.mean - left.mean, right.weight / weight
    return Moments(weight, left.mean + delta * share, left.squares + right.squares + delta * delta * (left.weight * share))


def _moments(X: Any, weight: Any) -> Moments:
    import numpy as np

    if hasattr(X, "tocsr"):
        return _sparse_moments(X, weight)
    found = None
    for rows in blocks(*X.shape):
        with np.errstate(invalid="ignore", over="ignore"):
            part = _block_moments(X[rows], None if weight is None else weight[rows])
            found = part if found is None else merged(found, part)
    return found or Moments(0.0, np.zeros(X.shape[1]), np.zeros(X.shape[1]))


def _block_moments(X: Any, weight: Any) -> Moments:
    """Around the first row: so a constant column has a deviation of exactly 0."""
    import numpy as np

    first = X[0].astype(np.float64)
    around = X - first
    ones = np.ones(len(X)) if weight is None else weight
    total = float(ones.sum())
    shift = ones @ around / total if total else ones @ around
    around -= shift
    np.square(around, out=around)
    return Moments(total, first + shift, ones @ around)


def _sparse_moments(X: Any, weight: Any) -> Moments:
    """What is not stored is 0, and has its share without being made."""
    import numpy as np

    n_rows, n_columns = X.shape
    counts = np.bincount(X.indices, minlength=n_columns)
    each: Any
    stored: Any
    if weight is None:
        total, each, stored = float(n_rows), 1.0, counts.astype(np.float64)
    else:
        total, each = float(weight.sum()), np.repeat(weight, np.diff(X.indptr))
        stored = np.bincount(X.indices, each, n_columns)
        stored[counts == n_rows] = total  # exactly, so that a constant column is one
    first = np.zeros(n_columns)
    first[X.indices[::-1]] = X.data[::-1]
    share = stored / total if total else stored
    with np.errstate(invalid="ignore", over="ignore"):
        apart = X.data - first[X.indices]
        if not apart.any():  # each column has one value beside 0, as those of an encoder: half of the time
            mean = first * share
            return Moments(total, mean, stored * (first - mean) ** 2 + (total - stored) * mean * mean)
        shift = np.bincount(X.indices, each * apart, n_columns) / (total or 1.0)
        mean = first * share + shift
        around = X.data - mean[X.indices]
        squares = np.bincount(X.indices, np.square(around, out=around) * each, n_columns) + (total - stored) * mean * mean
    return Moments(total, mean, squares)


def _classes(y: Any) -> Any:
    """The labels that occur, in order.

    Raises:
        ValueError: They are no labels, or some are missing.
    """
    import numpy as np

    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise ValueError("Input y contains NaN or infinity: rows without a label cannot be learned from")
        if (y != np.floor(y)).any():
            raise ValueError(
                "Unknown label type: continuous. Maybe you are trying to fit a classifier, which expects discrete classes on "
                "a regression target with continuous values."
            )
    if y.dtype.kind in "biuf" and len(y) and float(y.max()) - float(y.min()) < FEW:
        least = y.min()
        apart = y - least if y.dtype.kind == "f" else y.astype(np.int64) - least.astype(np.int64)  # of the largest too
        return np.flatnonzero(np.bincount(apart.astype(np.intp))).astype(y.dtype) + least
    try:
        classes = np.unique(y)
    except TypeError as error:
        raise ValueError(f"Input y contains NaN, or labels that are no texts beside texts: {error}") from None
    if y.dtype.kind == "O" and any(each is None or each != each for each in classes):
        raise ValueError("Input y contains NaN: rows without a label cannot be learned from")
    return classes


def _check_weights(rows: Rows) -> None:
    import numpy as np

    if rows.weight is None:
        return
    bad = ~(rows.weight >= 0) | np.isinf(rows.weight)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        where = f"row {at} of the batch" if rows.first is None else f"row {rows.first + at}"
        raise ValueError(
            f"Negative values in data passed to `sample_weight`, or NaN: the weight of {where} is {rows.weight[at]}, and "
            "weights are finite and not below 0"
        )


def _check_values(rows: Rows, names: Sequence[str] | None) -> None:
    """Find what is NaN or infinite. Only called where a mean is: sums of finite numbers may be infinite too."""
    import numpy as np

    X = rows.X
    if hasattr(X, "tocsr"):
        X = X.tocoo()
        bad = np.flatnonzero(~np.isfinite(X.data))
        found = [(int(X.row[at]), int(X.col[at]), X.data[at]) for at in bad[:1]]
    else:
        found = [(int(row), int(at), X[row, at]) for row, at in np.argwhere(~np.isfinite(X))[:1]]
    for row, at, value in found:
        where = f"row {row} of the batch" if rows.first is None else f"row {rows.first + row}"
        column = f"number {at}" if names is None else repr(names[at])
        raise ValueError(f"Input X contains NaN or infinity: column {column} is {value} in {where}")
