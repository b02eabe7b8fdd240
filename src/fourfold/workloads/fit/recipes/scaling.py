"""Scalers: figures of each column, which follow from figures of parts of it."""

from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import About, Fit, Pass, Rows
from fourfold.workloads.fit.recipes.checks import check_no_weights, dtype_of
from fourfold.workloads.fit.recipes.moments import ColumnMoments
from fourfold.workloads.fit.seen import Numbers


class Extent(NamedTuple):
    """Of each column the least and the greatest value; and how many rows there are."""

    least: Any
    most: Any
    n_rows: int


class Extremes:
    """The extent of an array or a csr matrix.

    Args:
        skips_nan: NaN is no value; otherwise a column that has one is NaN.
    """

    def __init__(self, skips_nan: bool = True) -> None:
        self.skips_nan = skips_nan

    def fold(self, rows: Rows) -> Extent:
        """Zeros that a sparse matrix does not hold are values, too."""
        import numpy as np
        from sklearn.utils.sparsefuncs import min_max_axis

        if hasattr(rows.X, "tocsr"):
            least, most = min_max_axis(rows.X, axis=0, ignore_nan=self.skips_nan)
            return Extent(least, most, rows.n_rows)
        least, most = (np.fmin, np.fmax) if self.skips_nan else (np.minimum, np.maximum)
        return Extent(least.reduce(rows.X, axis=0), most.reduce(rows.X, axis=0), rows.n_rows)

    def combine(self, left: Extent, right: Extent) -> Extent:
        """Of both."""
        import numpy as np

        least, most = (np.fmin, np.fmax) if self.skips_nan else (np.minimum, np.maximum)
        return Extent(least(left.least, right.least), most(left.most, right.most), left.n_rows + right.n_rows)

    def finish(self, state: Extent) -> Extent:
        """As it is."""
        return state


def min_max_scaler(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `MinMaxScaler.partial_fit`."""
    from sklearn.preprocessing._data import _handle_zeros_in_scale

    low, high = estimator.feature_range
    if low >= high:
        raise ValueError(f"Minimum of desired feature range must be smaller than maximum. Got {estimator.feature_range}.")
    if about.is_sparse:
        raise TypeError("MinMaxScaler does not support sparse input. Consider using MaxAbsScaler instead.")
    check_no_weights(estimator, about)
    dtype = dtype_of(about)
    extent = yield Pass(Extremes(), (Numbers(takes_nan=True),))
    least, most = extent.least.astype(dtype), extent.most.astype(dtype)
    low, high = dtype.type(low), dtype.type(high)
    estimator.n_samples_seen_ = extent.n_rows
    estimator.data_min_, estimator.data_max_, estimator.data_range_ = least, most, most - least
    estimator.scale_ = (high - low) / _handle_zeros_in_scale(estimator.data_range_, copy=True)
    estimator.min_ = low - least * estimator.scale_
    return estimator


def max_abs_scaler(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `MaxAbsScaler.partial_fit`."""
    import numpy as np
    from sklearn.preprocessing._data import _handle_zeros_in_scale

    check_no_weights(estimator, about)
    extent = yield Pass(Extremes(), (Numbers(takes_nan=True),))
    estimator.max_abs_ = np.fmax(np.abs(extent.least), np.abs(extent.most)).astype(dtype_of(about))
    estimator.n_samples_seen_ = extent.n_rows
    estimator.scale_ = _handle_zeros_in_scale(estimator.max_abs_, copy=True)
    return estimator


def standard_scaler(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `StandardScaler.partial_fit`: which figures it keeps depends on what it is to do."""
    import numpy as np
    from sklearn.preprocessing._data import _handle_zeros_in_scale, _is_constant_feature

    with_mean, with_std = estimator.with_mean, estimator.with_std
    if about.is_sparse and with_mean:
        raise ValueError(
            "Cannot center sparse matrices: pass `with_mean=False` instead. See docstring for motivation and alternatives."
        )
    keeps_mean = with_std or (with_mean and not about.is_sparse)
    has_weight = about.has_weight and (keeps_mean or about.is_sparse)
    moments = yield Pass(ColumnMoments(has_weight), (Numbers(takes_nan=True),))
    estimator.mean_ = moments.mean if keeps_mean else None
    estimator.var_ = moments.variance if with_std else None
    has_own_type = about.is_sparse if keeps_mean else about.has_weight
    seen = moments.weight.astype(dtype_of(about) if has_own_type else np.float64 if keeps_mean else np.int64)
    estimator.n_samples_seen_ = seen[0] if seen.max() == seen.min() else seen
    estimator.scale_ = None
    if with_std:
        is_constant = _is_constant_feature(estimator.var_, estimator.mean_, estimator.n_samples_seen_)
        estimator.scale_ = _handle_zeros_in_scale(np.sqrt(estimator.var_), copy=False, constant_mask=is_constant)
    return estimator
