"""Scaling by quantiles, which outliers do not move."""

from typing import Any

from fourfold.workloads.fit.contract import About, Fit
from fourfold.workloads.fit.recipes.checks import dtype_of
from fourfold.workloads.fit.recipes.quantiles import quantiles
from fourfold.workloads.fit.seen import Numbers


def robust_scaler(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `RobustScaler.fit`."""
    import numpy as np
    from scipy.stats import norm
    from sklearn.preprocessing._data import _handle_zeros_in_scale

    low, high = estimator.quantile_range
    if not 0 <= low <= high <= 100:
        raise ValueError(f"Invalid quantile range: {estimator.quantile_range}")
    if about.is_sparse and estimator.with_centering:
        raise ValueError(
            "Cannot center sparse matrices: use `with_centering=False` instead. See docstring for motivation and alternatives."
        )
    shares = [low / 100, high / 100, 0.5] if estimator.with_scaling else [0.5]
    found = yield from quantiles((Numbers(takes_nan=True),), [shares] * (about.n_features or 0))
    figures = np.array(found).T
    estimator.center_ = figures[-1].astype(dtype_of(about)) if estimator.with_centering else None
    estimator.scale_ = None
    if estimator.with_scaling:
        estimator.scale_ = _handle_zeros_in_scale(figures[1] - figures[0], copy=False)
        if estimator.unit_variance:
            estimator.scale_ = estimator.scale_ / (norm.ppf(high / 100.0) - norm.ppf(low / 100.0))
    return estimator
