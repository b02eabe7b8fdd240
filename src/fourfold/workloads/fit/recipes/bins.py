"""Columns of numbers cut into bins."""

from collections.abc import Sequence
from typing import Any

from fourfold.workloads.fit.contract import About, Fit, Pass, Rows, Seen
from fourfold.workloads.fit.recipes.checks import dtype_of
from fourfold.workloads.fit.recipes.quantiles import quantiles, weighted_quantiles
from fourfold.workloads.fit.registry import fit_with
from fourfold.workloads.fit.seen import Numbers
from fourfold.workloads.fit.together import seen_through, together

NARROW = 1e-8
"""Bins that are not wider are removed. Source: scikit-learn, `KBinsDiscretizer.fit`."""


class Ends:
    """The least and the greatest value of each column.

    Args:
        weighted: Rows without weight do not count.
    """

    def __init__(self, weighted: bool) -> None:
        self.weighted = weighted

    def fold(self, rows: Rows) -> tuple[Any, Any]:
        """Of an array. Without rows that count, infinities of the wrong side."""
        import numpy as np

        X = rows.X[rows.weight != 0] if self.weighted else rows.X
        return X.min(axis=0, initial=np.inf), X.max(axis=0, initial=-np.inf)

    def combine(self, left: tuple[Any, Any], right: tuple[Any, Any]) -> tuple[Any, Any]:
        """Of both."""
        import numpy as np

        return np.minimum(left[0], right[0]), np.maximum(left[1], right[1])

    def finish(self, state: tuple[Any, Any]) -> tuple[Any, Any]:
        """As they are."""
        return state


class OneColumn:
    """An array of one column."""

    def __init__(self, column: int) -> None:
        self.column = column

    def __call__(self, rows: Rows) -> Rows:
        return rows._replace(X=rows.X[:, [self.column]])


def k_bins_discretizer(estimator: Any, about: About) -> Fit:
    """All rows count, whatever `subsample` says: scikit-learn draws some where there are more.

    Source: scikit-learn, `KBinsDiscretizer.fit`.
    """
    import numpy as np

    _check(estimator, about)
    n_bins = estimator._validate_n_bins(about.n_features)
    view: tuple[Seen, ...] = (Numbers(takes_nan=False),)
    dtype, by_quantile = dtype_of(about), estimator.strategy == "quantile"
    ends = _ends(Ends(about.has_weight and not by_quantile), view)
    if by_quantile:
        shares = [np.linspace(0, 100, n + 1) / 100 for n in n_bins]
        (least, most), found = yield from together([ends, _by_quantile(estimator, about, view, shares)])
        edges = [each.astype(dtype if about.has_weight else np.float64) for each in found]
    else:
        least, most = (each.astype(dtype) for each in (yield from ends))
        edges = [np.linspace(low, high, int(n) + 1) for low, high, n in zip(least, most, n_bins, strict=True)]
    changing = [int(at) for at in np.flatnonzero(least != most)]
    if estimator.strategy == "kmeans":
        moved = yield from together([_by_centers(view, column, edges[column], about) for column in changing])
        edges = [moved[changing.index(at)].astype(dtype) if at in changing else each for at, each in enumerate(edges)]
    estimator.bin_edges_ = np.zeros(len(edges), dtype=object)
    for column, each in enumerate(edges):
        estimator.bin_edges_[column], n_bins[column] = _kept(estimator.strategy, column, each, column in changing)
    estimator.n_bins_ = n_bins
    _fit_encoder(estimator, about)
    return estimator


def _check(estimator: Any, about: About) -> None:
    """Refuse what scikit-learn refuses before it looks at values, in its words."""
    if about.is_sparse:
        raise TypeError(
            "Sparse data was passed for X, but dense data is required. Use '.toarray()' to convert to a dense numpy array."
        )
    methods = ("inverted_cdf", "averaged_inverted_cdf")
    if estimator.strategy == "quantile" and about.has_weight and estimator.quantile_method not in methods:
        raise ValueError(
            "When fitting with strategy='quantile' and sample weights, quantile_method should either be set to "
            f"'averaged_inverted_cdf' or 'inverted_cdf', got quantile_method='{estimator.quantile_method}' instead."
        )


def _ends(ends: Ends, view: tuple[Seen, ...]) -> Fit:
    found = yield Pass(ends, view, keep=True)
    return found


def _by_quantile(estimator: Any, about: About, view: tuple[Seen, ...], shares: Sequence[Any]) -> Fit:
    if about.has_weight:
        average = estimator.quantile_method == "averaged_inverted_cdf"
        found = yield from weighted_quantiles(view, shares, average)
    else:
        found = yield from quantiles(view, shares, estimator.quantile_method)
    return found


def _by_centers(view: tuple[Seen, ...], column: int, uniform: Any, about: About) -> Fit:
    """The edges of one column halfway between centers, which begin in the middle of bins of one width."""
    import numpy as np
    from sklearn.cluster import KMeans

    start = (uniform[1:] + uniform[:-1])[:, None] * 0.5
    alone = About(None, 1, has_weight=about.has_weight)
    fit = fit_with(KMeans(n_clusters=len(start), init=start, n_init=1), alone)
    model = yield from seen_through((*view, OneColumn(column)), fit)
    centers = np.sort(model.cluster_centers_[:, 0])
    return np.r_[uniform[0], (centers[1:] + centers[:-1]) * 0.5, uniform[-1]]


def _kept(strategy: str, column: int, edges: Any, is_changing: bool) -> tuple[Any, int]:
    """The edges of bins that are wide enough, and how many bins there are."""
    import warnings

    import numpy as np

    if not is_changing:
        warnings.warn(f"Feature {column} is constant and will be replaced with 0.", stacklevel=2)
        return np.array([-np.inf, np.inf]), 1
    wide = np.ones(len(edges), bool) if strategy == "uniform" else np.ediff1d(edges, to_begin=np.inf) > NARROW
    if not wide.all():
        warnings.warn(
            f"Bins whose width are too small (i.e., <= 1e-8) in feature {column} are removed. Consider decreasing the number "
            "of bins.",
            stacklevel=2,
        )
    return edges[wide], int(wide.sum()) - 1


def _fit_encoder(estimator: Any, about: About) -> None:
    import numpy as np
    from sklearn.preprocessing import OneHotEncoder

    if "onehot" not in estimator.encode:
        vars(estimator).pop("_encoder", None)
        return
    for column in np.flatnonzero(estimator.n_bins_ == 0):
        name = f"number {column}" if about.names is None else repr(about.names[column])
        raise ValueError(f"column {name} has no bin that is wider than {NARROW}: scale it before, or leave it out")
    dtype = about.dtype if about.example is None else about.example.to_numpy().dtype
    dtype = np.dtype(np.float64) if dtype is None or dtype.kind == "O" else dtype
    estimator._encoder = OneHotEncoder(
        categories=[np.arange(n) for n in estimator.n_bins_],
        sparse_output=estimator.encode == "onehot",
        dtype=estimator.dtype if estimator.dtype in (np.float64, np.float32) else dtype,
    )
    estimator._encoder.fit(np.zeros((1, len(estimator.n_bins_))))
