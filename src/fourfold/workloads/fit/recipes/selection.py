"""Selection of columns: by their variance, or by how much they tell of the target."""

import functools
from collections.abc import Generator
from typing import Any

from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import About, Fit, Pass, Rows, Seen
from fourfold.workloads.fit.recipes.checks import check_no_weights, check_target, numbers_of
from fourfold.workloads.fit.recipes.moments import ByClass, ColumnMoments, Moments, Sums
from fourfold.workloads.fit.recipes.scaling import Extremes
from fourfold.workloads.fit.seen import Numbers

Scores = Generator[Pass | list[Pass], Any, tuple[Any, Any]]
"""Ends with a score for each column, and its p-value."""


def variance_threshold(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `VarianceThreshold.fit`."""
    import numpy as np

    check_no_weights(estimator, about)
    seen = (Numbers(takes_nan=True),)
    moments, extent = yield [Pass(ColumnMoments(), seen), Pass(Extremes(skips_nan=False), seen)]
    variances = moments.variance
    if estimator.threshold == 0:  # the distance of extremes is exact where columns are constant
        variances = np.fmin(variances, extent.most - extent.least)
    estimator.variances_ = variances
    if np.all(~np.isfinite(variances) | (variances <= estimator.threshold)):
        alone = " (X contains only one sample)" if extent.n_rows == 1 else ""
        raise ValueError(f"No feature in X meets the variance threshold {estimator.threshold:.5f}{alone}")
    return estimator


def select_by_score(estimator: Any, about: About) -> Fit:
    """SelectKBest and SelectPercentile, by f_classif, f_regression or chi2.

    Raises:
        OptionError: They select by something else.
    """
    import numpy as np

    check_target(estimator, about)
    check_no_weights(estimator, about)
    scores = _scores_of(estimator)
    estimator._check_params(np.empty((1, about.n_features or 0)), None)
    estimator.scores_, estimator.pvalues_ = yield from scores(Numbers(takes_nan=False))
    return estimator


def _scores_of(estimator: Any) -> Any:
    from sklearn.feature_selection import chi2, f_classif, f_regression

    wanted, options = estimator.score_func, {}
    if isinstance(wanted, functools.partial) and not wanted.args and wanted.func is f_regression:
        wanted, options = wanted.func, wanted.keywords
    for function, scores in ((f_classif, _f_classif), (f_regression, _f_regression), (chi2, _chi2)):
        if wanted is function:
            return functools.partial(scores, **options)
    raise OptionError(
        f"{type(estimator).__name__}(score_func={getattr(wanted, '__name__', wanted)}) has to see all rows at once: there are "
        "recipes for f_classif, f_regression and chi2"
    )


def _f_classif(seen: Seen) -> Scores:
    """Source: scikit-learn, `f_oneway`; squares are of distances to the means, so columns far from zero keep their digits."""
    import warnings

    import numpy as np
    from scipy import special

    inner = ColumnMoments()
    _, classes = yield Pass(ByClass(inner, takes_any=True), (seen,))
    whole: Moments = functools.reduce(inner.combine, classes)
    within = sum(each.squares for each in classes)
    between = sum(each.weight * ((each.mean - whole.mean) + (each.rest - whole.rest)) ** 2 for each in classes)
    free_between, free_within = len(classes) - 1, whole.weight[0] - len(classes)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_between, mean_within = between / float(free_between), within / float(free_within)
        ratio = mean_between / mean_within
    is_constant = np.flatnonzero(mean_within == 0.0)
    if is_constant.size and (mean_between == 0.0).any():
        warnings.warn(f"Features {is_constant} are constant.", UserWarning, stacklevel=2)
    return ratio, special.fdtrc(free_between, free_within, ratio)


class WithTarget:
    """Moments of each column and of the target, and how they vary together.

    Args:
        is_centred: By the distances to the means; otherwise by the values.
    """

    def __init__(self, is_centred: bool) -> None:
        self.is_centred = is_centred

    def fold(self, rows: Rows) -> tuple[Moments, Moments, Any]:
        """Of an array or a csr matrix."""
        y = numbers_of(rows.y)
        of_y = ColumnMoments().fold(Rows(y[:, None]))
        off = (y - of_y.mean) - of_y.rest if self.is_centred else y
        together = rows.X.T @ off if hasattr(rows.X, "tocsr") else (rows.X * off[:, None]).sum(axis=0)
        of_x = ColumnMoments().fold(rows)
        if self.is_centred and not hasattr(rows.X, "tocsr"):
            together = ((rows.X - of_x.mean) * off[:, None]).sum(axis=0)
        return of_x, of_y, together

    def combine(self, left: tuple[Moments, Moments, Any], right: tuple[Moments, Moments, Any]) -> tuple[Any, Any, Any]:
        """Of both."""
        together = left[2] + right[2]
        if self.is_centred:
            apart_x, apart_y = ((right[at].mean - left[at].mean) + (right[at].rest - left[at].rest) for at in (0, 1))
            weight = left[0].weight * right[0].weight / (left[0].weight + right[0].weight)
            together = together + apart_x * apart_y * weight
        return *(ColumnMoments().combine(left[at], right[at]) for at in (0, 1)), together

    def finish(self, state: tuple[Moments, Moments, Any]) -> tuple[int, Any, Any, Any]:
        """The rows; of columns and target the sum of squares; and of their products."""
        x, y = (
            each.squares if self.is_centred else each.squares + each.weight * (each.mean + each.rest) ** 2
            for each in state[:2]
        )
        return int(state[1].weight[0]), x, y[0], state[2]


def _f_regression(seen: Seen, center: bool = True, force_finite: bool = True) -> Scores:
    """Source: scikit-learn, `r_regression` and `f_regression`."""
    import numpy as np
    from scipy import stats

    n_rows, squares_x, squares_y, together = yield Pass(WithTarget(center), (seen,))
    free = n_rows - (2 if center else 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = together / np.sqrt(squares_x) / np.sqrt(squares_y)
        if force_finite:
            correlation[np.isnan(correlation)] = 0.0
        ratio = correlation**2 / (1 - correlation**2) * free
        p_values = stats.f.sf(ratio, 1, free)
    if force_finite:
        ratio[np.isinf(ratio)] = np.finfo(ratio.dtype).max
        p_values[np.isnan(ratio)] = 1.0
        ratio[np.isnan(ratio)] = 0.0
    return ratio, p_values


class NotNegative:
    """Refuses rows with a number below zero.

    Args:
        message: Of the error.
    """

    def __init__(self, message: str) -> None:
        self.message = message

    def __call__(self, rows: Rows) -> Rows:
        """The rows as they are."""
        values = rows.X.data if hasattr(rows.X, "tocsr") else rows.X
        if (values < 0).any():
            raise ValueError(self.message)
        return rows


def _chi2(seen: Seen) -> Scores:
    """Source: scikit-learn, `chi2`."""
    import numpy as np
    from sklearn.feature_selection._univariate_selection import _chisquare

    _, sums = yield Pass(ByClass(Sums()), (seen, NotNegative("Input X must be non-negative.")))
    observed, counts = np.array([each[0] for each in sums]), np.array([each[1] for each in sums])
    if len(sums) == 1:  # what scikit-learn makes of one class: a second one without rows
        observed, counts = np.vstack([observed, np.zeros_like(observed)]), np.array([counts[0], 0.0])
    expected = np.outer(counts / counts.sum(), observed.sum(axis=0))
    scores, p_values = _chisquare(observed, expected)
    return scores, p_values
