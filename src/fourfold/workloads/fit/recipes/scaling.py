"""Scalers: figures of each column, which follow from figures of parts of it."""

from typing import Any

from fourfold.workloads.fit.contract import About, Fit, Pass, Rows
from fourfold.workloads.fit.seen import Numbers


class Extremes:
    """The least and the greatest value of each column, and how many rows there are. NaN is no value."""

    def fold(self, rows: Rows) -> tuple[Any, Any, int]:
        """Of an array."""
        import numpy as np

        return np.fmin.reduce(rows.X, axis=0), np.fmax.reduce(rows.X, axis=0), rows.n_rows

    def combine(self, left: tuple[Any, Any, int], right: tuple[Any, Any, int]) -> tuple[Any, Any, int]:
        """Of both."""
        import numpy as np

        return np.fmin(left[0], right[0]), np.fmax(left[1], right[1]), left[2] + right[2]

    def finish(self, state: tuple[Any, Any, int]) -> tuple[Any, Any, int]:
        """As they are."""
        return state


def min_max_scaler(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `MinMaxScaler.partial_fit`."""
    from sklearn.preprocessing._data import _handle_zeros_in_scale

    low, high = estimator.feature_range
    if low >= high:
        raise ValueError(f"Minimum of desired feature range must be smaller than maximum. Got {estimator.feature_range}.")
    if about.is_sparse:
        raise TypeError("MinMaxScaler does not support sparse input. Consider using MaxAbsScaler instead.")
    least, most, estimator.n_samples_seen_ = yield Pass(Extremes(), (Numbers(takes_nan=True),))
    estimator.data_min_, estimator.data_max_, estimator.data_range_ = least, most, most - least
    estimator.scale_ = (high - low) / _handle_zeros_in_scale(estimator.data_range_, copy=True)
    estimator.min_ = low - least * estimator.scale_
    return estimator
