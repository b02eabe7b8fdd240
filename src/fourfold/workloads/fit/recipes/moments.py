"""Figures of columns that those of parts give for all: counts, means and squares; of each class, too.

A mean is kept as the sum of two floats, `mean + rest`: columns that are far from zero lose no digits when parts are joined.

Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance: analysis and recommendations",
The American Statistician 37.3 (1983), equations 1.5 and 1.7.
"""

import itertools
from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import Aggregator, Rows
from fourfold.workloads.fit.recipes.checks import labels_of, weights_of


class Moments(NamedTuple):
    """Of each column.

    Attributes:
        weight: The sum of the weights of its values, which without weights is their number.
        mean: The mean; NaN at the end where there is no value.
        rest: What the mean lacks.
        squares: The weighted sum of squared distances to the mean.
    """

    weight: Any
    mean: Any
    rest: Any
    squares: Any

    @property
    def variance(self) -> Any:
        """By the sum of weights: the population's. NaN where there is no value."""
        import numpy as np

        with np.errstate(invalid="ignore"):
            return self.squares / self.weight


class ColumnMoments:
    """Weighted moments of each column of an array or csr matrix. NaN is no value.

    Args:
        has_weight: The rows have weights.
    """

    def __init__(self, has_weight: bool = False) -> None:
        self.has_weight = has_weight

    def fold(self, rows: Rows) -> Moments:
        """By two passes over the rows, of which the second corrects the first."""
        import numpy as np

        weights = weights_of(rows, self.has_weight)
        if hasattr(rows.X, "tocsr"):
            return _of_sparse(rows.X, weights)
        is_missing = np.isnan(rows.X)
        weight, mean, rest, off = centred(rows.X, weights, is_missing if is_missing.any() else None)
        with np.errstate(over="ignore"):
            off *= off
            squares = _sum(off, weights)
            lacks = np.where(np.isinf(squares), 0.0, weight * rest * rest)  # infinity without infinity would be NaN
        return Moments(weight, mean, rest, squares - lacks)

    def combine(self, left: Moments, right: Moments) -> Moments:
        """Of both."""
        import numpy as np

        weight, share, mean, rest, apart = joined(left, right)
        with np.errstate(over="ignore"):
            squares = left.squares + right.squares + apart * apart * left.weight * share
        return Moments(weight, mean, rest, np.maximum(squares, 0.0))

    def finish(self, state: Moments) -> Moments:
        """The mean is the nearest float; of no values it is NaN."""
        import numpy as np

        mean = np.where(state.weight > 0, state.mean + state.rest, np.nan)
        return state._replace(mean=mean, rest=state.rest - (mean - state.mean))


def _of_sparse(X: Any, weights: Any) -> Moments:
    import numpy as np
    from sklearn.utils.sparsefuncs import mean_variance_axis

    mean, variance, weight = mean_variance_axis(X, axis=0, weights=weights, return_sum_weights=True)
    is_there = weight > 0
    return Moments(weight, np.where(is_there, mean, 0.0), np.zeros_like(mean), np.where(is_there, variance * weight, 0.0))


def centred(X: Any, weights: Any, is_missing: Any = None) -> tuple[Any, Any, Any, Any]:
    """Of each column the sum of weights, the mean, what the mean lacks; and the distances to the mean, 0 where missing."""
    import numpy as np

    weight = len(X) if weights is None else weights.sum()
    if is_missing is not None:
        weight = _sum(~is_missing, weights)
    weight = np.broadcast_to(weight, X.shape[1:]).astype(np.float64)
    divisor = np.where(weight > 0, weight, 1.0)
    mean = _sum(X if is_missing is None else np.where(is_missing, 0.0, X), weights) / divisor
    distances = X - mean
    if is_missing is not None:
        distances[is_missing] = 0.0
    return weight, mean, _sum(distances, weights) / divisor, distances


def _sum(values: Any, weights: Any) -> Any:
    """Of each column. No numerical library does it: their sums depend on their threads."""
    return values.sum(axis=0) if weights is None else (values * weights[:, None]).sum(axis=0)


def joined(left: Any, right: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Of two parts: the weight, the right one's share of it, mean and rest, and how far the means are apart."""
    import numpy as np

    weight = left.weight + right.weight
    share = right.weight / np.where(weight > 0, weight, 1.0)
    apart = (right.mean - left.mean) + (right.rest - left.rest)
    apart = np.where((left.weight > 0) & (right.weight > 0), apart, 0.0)
    start = np.where(left.weight > 0, left.mean, right.mean)
    more = np.where(left.weight > 0, left.rest, right.rest) + apart * share
    mean = start + more
    behind = mean - start
    return weight, share, mean, (start - (mean - behind)) + (more - behind), apart


class Sums:
    """The weighted sum of each column, and the sum of weights.

    Args:
        has_weight: The rows have weights.
    """

    def __init__(self, has_weight: bool = False) -> None:
        self.has_weight = has_weight

    def fold(self, rows: Rows) -> tuple[Any, float]:
        """Of an array or a csr matrix."""
        import numpy as np

        weights = weights_of(rows, self.has_weight)
        weight = float(rows.n_rows if weights is None else weights.sum())
        if hasattr(rows.X, "tocsr"):
            return np.asarray(rows.X.T @ (np.ones(rows.n_rows) if weights is None else weights)), weight
        return _sum(rows.X, weights), weight

    def combine(self, left: tuple[Any, float], right: tuple[Any, float]) -> tuple[Any, float]:
        """Of both."""
        return left[0] + right[0], left[1] + right[1]

    def finish(self, state: tuple[Any, float]) -> tuple[Any, float]:
        """As they are."""
        return state


class ByClass:
    """What another aggregator says of the rows of each class. It finishes with the classes, sorted, and one answer for each.

    Args:
        inner: The other one.
        takes_any: Numbers that are no integers are labels, too; otherwise they are refused before there is a class for each.
    """

    def __init__(self, inner: Aggregator, takes_any: bool = False) -> None:
        self.inner, self.takes_any = inner, takes_any

    def fold(self, rows: Rows) -> tuple[Any, list[Any]]:
        """Of rows with a target."""
        import numpy as np
        from sklearn.utils.multiclass import unique_labels

        classes, which = labels_of(rows.y)
        if not self.takes_any and classes.dtype.kind == "f" and (classes != np.floor(classes)).any():
            unique_labels(classes)  # refuses those of a regression
        order = np.argsort(which, kind="stable")
        ends = np.searchsorted(which[order], np.arange(len(classes) + 1))
        states = []
        for begin, end in itertools.pairwise(ends):
            own = order[begin:end]
            states.append(self.inner.fold(Rows(rows.X[own], rows.y[own], None if rows.weight is None else rows.weight[own])))
        return classes, states

    def combine(self, left: tuple[Any, list[Any]], right: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        """Of both: a class that only one of them has is as it was there."""
        import numpy as np

        classes = np.unique(np.concatenate([left[0], right[0]]))
        of_left, of_right = (dict(zip(labels.tolist(), states, strict=True)) for labels, states in (left, right))
        states = []
        for label in classes.tolist():
            if label in of_left and label in of_right:
                states.append(self.inner.combine(of_left[label], of_right[label]))
            else:
                states.append(of_left[label] if label in of_left else of_right[label])
        return classes, states

    def finish(self, state: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        """The classes and the answers."""
        return state[0], [self.inner.finish(each) for each in state[1]]
