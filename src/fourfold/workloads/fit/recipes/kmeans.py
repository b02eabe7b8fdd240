"""KMeans: every pass says which center is nearest to each row, and where the centers move.

    means of columns ── n_init starts ── pass: sums of the rows at each center ── centers move ── pass … until they rest

All starts share their passes; kmeans_starts.py finds them.
"""

from collections.abc import Generator
from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import About, Fit, Pass, Rows, Seen
from fourfold.workloads.fit.recipes.checks import dtype_of
from fourfold.workloads.fit.recipes.kmeans_starts import starts
from fourfold.workloads.fit.seen import Numbers
from fourfold.workloads.fit.threads import one_thread
from fourfold.workloads.fit.together import together


class Spread(NamedTuple):
    """How many rows there are, and how many of these have a weight; means and sums of squared differences of columns."""

    n_rows: int
    n_weighted: int
    mean: Any
    squares: Any


class SpreadOf:
    """The spread of an array or a csr matrix. Weights of rows do not count in it, as in scikit-learn's KMeans."""

    def fold(self, rows: Rows) -> Spread:
        """Of some rows."""
        import numpy as np
        from sklearn.utils.sparsefuncs import mean_variance_axis

        n_weighted = rows.n_rows if rows.weight is None else int(np.count_nonzero(rows.weight))
        if hasattr(rows.X, "tocsr"):
            mean, variance = mean_variance_axis(rows.X, axis=0)
        else:
            mean, variance = rows.X.mean(axis=0), rows.X.var(axis=0)
        return Spread(rows.n_rows, n_weighted, mean, variance * rows.n_rows)

    def combine(self, left: Spread, right: Spread) -> Spread:
        """Of both. Source: Chan, Golub and LeVeque (1983), equation 2.1."""
        n_rows = left.n_rows + right.n_rows
        apart = right.mean - left.mean
        mean = left.mean + apart * (right.n_rows / n_rows)
        squares = left.squares + right.squares + apart**2 * (left.n_rows * right.n_rows / n_rows)
        return Spread(n_rows, left.n_weighted + right.n_weighted, mean, squares)

    def finish(self, state: Spread) -> Spread:
        """As it is."""
        return state


class Centred:
    """Dense rows without the means of columns: distances are more exact then. Sparse ones stay as they are."""

    def __init__(self, mean: Any) -> None:
        self.mean = mean

    def __call__(self, rows: Rows) -> Rows:
        import numpy as np

        return rows if hasattr(rows.X, "tocsr") else rows._replace(X=np.subtract(rows.X, self.mean, order="C"))


class Nearest(NamedTuple):
    """What all rows say of some centers.

    Attributes:
        sums: Of the rows to which each center is nearest, times their weights.
        weights: Of these rows.
        counts: Of these rows.
        inertia: The squared distances of all rows from their centers, times weights.
        labels: A digest of which center is nearest to each row.
    """

    sums: Any
    weights: Any
    counts: Any
    inertia: float
    labels: bytes


class NearestTo:
    """Finds the nearest of these centers for each row.

    Args:
        centers: All of them.
        moved: Where they are now: the inertia is about these. None for the same place.
    """

    def __init__(self, centers: Any, moved: Any = None) -> None:
        self.centers, self.moved = centers, moved

    def fold(self, rows: Rows) -> Nearest:
        """Of an array or a csr matrix."""
        from hashlib import blake2b

        import numpy as np
        from scipy.sparse import csc_matrix
        from sklearn.cluster._kmeans import _inertia_dense, _inertia_sparse

        X, weight, labels, inertia = _labelled(rows, self.centers)
        if self.moved is not None:
            inertia = (_inertia_sparse if hasattr(X, "tocsr") else _inertia_dense)(X, weight, self.moved, labels, 1)
        n_centers = len(self.centers)
        chosen = csc_matrix((weight, labels, np.arange(len(labels) + 1, dtype=np.int32)), shape=(n_centers, len(labels)))
        sums = chosen @ X
        sums = sums.toarray() if hasattr(sums, "tocsr") else sums
        counts = np.bincount(labels, minlength=n_centers)
        weights = counts.astype(np.float64) if rows.weight is None else np.bincount(labels, weight, n_centers)
        digest = blake2b(labels.astype(np.min_scalar_type(n_centers))).digest()
        return Nearest(sums, weights, counts, inertia, digest)

    def combine(self, left: Nearest, right: Nearest) -> Nearest:
        """Of both."""
        from hashlib import blake2b

        labels = blake2b(left.labels + right.labels).digest()
        sums, weights, counts = (a + b for a, b in zip(left[:3], right[:3], strict=True))
        return Nearest(sums, weights, counts, left.inertia + right.inertia, labels)

    def finish(self, state: Nearest) -> Nearest:
        """As it is."""
        return state


def _labelled(rows: Rows, centers: Any) -> tuple[Any, Any, Any, float]:
    """Rows as scikit-learn's loops take them, with their weights, the numbers of their centers, and the inertia."""
    import numpy as np
    from sklearn.cluster._kmeans import _labels_inertia

    if hasattr(rows.X, "tocsr"):  # scikit-learn's loop wants to be able to write there, and kept rows are mapped files
        X = rows.X if rows.X.data.flags.writeable else rows.X.copy()
    else:
        X = np.ascontiguousarray(rows.X)
    weight = np.ones(rows.n_rows) if rows.weight is None else np.ascontiguousarray(rows.weight)
    with one_thread():
        labels, inertia = _labels_inertia(X, weight, centers, n_threads=1)
    return X, weight, labels, float(inertia)


class Farthest:
    """The rows that are farthest from their centers: where centers go that are nearest to no row.

    Args:
        centers: All of them.
        n: How many rows.
    """

    def __init__(self, centers: Any, n: int) -> None:
        self.centers, self.n = centers, n

    def fold(self, rows: Rows) -> tuple[Any, ...]:
        """Distances, rows, the numbers of their centers, and weights; the farthest first."""
        import numpy as np

        X, weight, labels, _ = _labelled(rows, self.centers)
        dense = X.toarray() if hasattr(X, "tocsr") else X
        distances = ((dense - self.centers[labels]) ** 2).sum(axis=1)
        best = np.argsort(-distances, kind="stable")[: self.n]
        return distances[best], dense[best], labels[best], weight[best]

    def combine(self, left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of both."""
        import numpy as np

        joined = [np.concatenate(both) for both in zip(left, right, strict=True)]
        best = np.argsort(-joined[0], kind="stable")[: self.n]
        return tuple(each[best] for each in joined)

    def finish(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """As they are."""
        return state


class Run(NamedTuple):
    """What one start has come to."""

    inertia: float
    centers: Any
    counts: Any
    n_iter: int


def kmeans(estimator: Any, about: About) -> Fit:
    """`labels_` is left out: it would have one entry per row. Elkan's algorithm comes to what Lloyd's does, which is run.

    Source: scikit-learn, `KMeans.fit` and `_kmeans_single_lloyd`.
    """
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils._openmp_helpers import _openmp_effective_n_threads

    numbers = Numbers(takes_nan=False)
    spread = yield Pass(SpreadOf(), (numbers,))
    if spread.n_rows < estimator.n_clusters:
        raise ValueError(f"n_samples={spread.n_rows} should be >= n_clusters={estimator.n_clusters}.")
    _check_runs(estimator)
    estimator._tol = np.mean(spread.squares / spread.n_rows) * estimator.tol if estimator.tol else 0
    estimator._n_threads = _openmp_effective_n_threads()
    mean = np.zeros_like(spread.mean) if about.is_sparse else spread.mean
    view: tuple[Seen, ...] = (numbers, Centred(mean))
    begun = yield from starts(estimator, view, check_random_state(estimator.random_state), spread, mean)
    runs = yield from together([_lloyd(view, centers, estimator.max_iter, estimator._tol) for centers in begun])
    best = runs[0]
    for run in runs[1:]:
        best = run if run.inertia < best.inertia and not _is_same(run, best) else best
    n_distinct = int(np.count_nonzero(best.counts))
    if n_distinct < estimator.n_clusters:
        warnings.warn(
            f"Number of distinct clusters ({n_distinct}) found smaller than n_clusters ({estimator.n_clusters}). Possibly due "
            "to duplicate points in X.",
            ConvergenceWarning,
            stacklevel=2,
        )
    estimator.cluster_centers_ = (best.centers + mean).astype(dtype_of(about))  # its predict takes no mixture of types
    estimator._n_features_out = len(best.centers)
    estimator.inertia_, estimator.n_iter_ = best.inertia, best.n_iter
    return estimator


def _check_runs(estimator: Any) -> None:
    """How many starts there are. Source: scikit-learn, `_check_params_vs_input` of `_BaseKMeans` and `KMeans`."""
    import warnings

    is_given = not isinstance(estimator.init, str) and not callable(estimator.init)
    automatic = 1 if is_given or estimator.init == "k-means++" else 10
    estimator._n_init = automatic if estimator.n_init == "auto" else estimator.n_init
    if is_given and estimator._n_init != 1:
        warnings.warn(
            "Explicit initial center position passed: performing only one init in KMeans instead of "
            f"n_init={estimator._n_init}.",
            RuntimeWarning,
            stacklevel=2,
        )
        estimator._n_init = 1
    estimator._algorithm = estimator.algorithm
    if estimator.algorithm == "elkan" and estimator.n_clusters == 1:
        warnings.warn(
            "algorithm='elkan' doesn't make sense for a single cluster. Using 'lloyd' instead.", RuntimeWarning, stacklevel=2
        )
        estimator._algorithm = "lloyd"


def _lloyd(view: tuple[Seen, ...], centers: Any, max_iter: int, tol: float) -> Fit:
    """Moves centers until they rest. Ends with a Run."""
    import numpy as np

    before, is_over, n_iter = b"", False, 0
    while not is_over:
        nearest = yield Pass(NearestTo(centers), view, keep=True)
        moved = yield from _moved(nearest, centers, view)
        is_still, is_strict, n_iter = np.array_equal(moved, centers), nearest.labels == before, n_iter + 1
        shift = float((np.sqrt(((moved - centers) ** 2).sum(axis=1)) ** 2).sum())
        old, centers, before = centers, moved, nearest.labels
        is_over = is_strict or shift <= tol or n_iter == max_iter
    if not is_still:  # of rows that stay where they were, scikit-learn does not ask again which center is nearest
        nearest = yield Pass(NearestTo(old, centers) if is_strict else NearestTo(centers), view, keep=True)
    return Run(nearest.inertia, centers, nearest.counts, n_iter)


def _moved(nearest: Nearest, centers: Any, view: tuple[Seen, ...]) -> Generator[Pass, Any, Any]:
    """Where the centers are now: in the middle of their rows. One without rows goes to the row that is farthest from its own.

    Of several without rows the first goes to the farthest row, the second to the next one.

    Source: scikit-learn, `_relocate_empty_clusters_dense` and `_average_centers`.
    """
    import numpy as np

    sums, weights = nearest.sums.copy(), nearest.weights.copy()
    empty = np.flatnonzero(weights == 0)
    if len(empty):
        distances, rows, old, weight = yield Pass(Farthest(centers, len(empty)), view, keep=True)
        for at, center in enumerate(empty.tolist() if distances[0] > 0 else ()):
            sums[old[at]] -= rows[at] * weight[at]
            sums[center] = rows[at] * weight[at]
            weights[center] = weight[at]
            weights[old[at]] -= weight[at]
    for center, weight in enumerate(weights):
        if weight > 0:
            sums[center] *= 1.0 / weight
        else:
            sums[center] = sums[np.argmax(weights)]
    return sums


def _is_same(left: Run, right: Run) -> bool:
    """Whether both have come to the same clusters, whatever their numbers; a little less inertia is rounding then."""
    import numpy as np

    order = [np.lexsort(run.centers.T) for run in (left, right)]
    counts = [run.counts[each] for run, each in zip((left, right), order, strict=True)]
    one, other = (run.centers[each] for run, each in zip((left, right), order, strict=True))
    return np.array_equal(*counts) and np.allclose(one, other, rtol=1e-9, atol=1e-9 * float(np.abs(one).max()))
