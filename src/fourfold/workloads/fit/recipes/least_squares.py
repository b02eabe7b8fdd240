"""Least squares and principal components: scikit-learn's solvers get the triangle of all rows, as exact as they are."""

from typing import Any

from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import About, Fit, Pass
from fourfold.workloads.fit.recipes.checks import check_no_weights, check_target, dtype_of
from fourfold.workloads.fit.recipes.triangle import Factor, Factored
from fourfold.workloads.fit.seen import Numbers
from fourfold.workloads.fit.threads import one_thread

MOST_SPARSE_COLUMNS = 2_000
"""Columns of a sparse matrix for which there is a triangle, which is dense: 32 MB per state."""


def linear_regression(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `LinearRegression.fit`; sparse columns are solved exactly, and not by iteration."""
    import numpy as np
    from scipy import linalg, optimize

    check_target(estimator, about)
    _check_width(estimator, about)
    if estimator.positive and about.is_sparse:
        raise TypeError("Sparse data was passed for X, but dense data is required: LinearRegression(positive=True)")
    factored = yield Pass(Factor(estimator.fit_intercept, about.has_weight, True), (Numbers(takes_nan=False),))
    triangle, target = factored.triangle[:, :-1], factored.triangle[:, -1]
    for name in ("rank_", "singular_"):
        vars(estimator).pop(name, None)
    with one_thread():
        if estimator.positive:
            coef = optimize.nnls(triangle, target)[0]
        else:
            coef, _, rank, singular = linalg.lstsq(triangle, target, cond=estimator.tol)
    if not estimator.positive and not about.is_sparse:
        estimator.rank_, estimator.singular_ = rank, singular[: factored.n_rows].astype(dtype_of(about))
    is_as_solved = estimator.positive and not estimator.fit_intercept
    _set_intercept(estimator, factored, np.asarray(coef, np.float64 if is_as_solved else dtype_of(about)))
    return estimator


def ridge(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `_BaseRidge.fit`. Solvers that go from row to row have no use for a triangle.

    Raises:
        OptionError: The solver is such a one.
    """
    import numpy as np
    from sklearn.linear_model._ridge import _ridge_regression

    check_target(estimator, about)
    _check_width(estimator, about)
    if estimator.solver in ("sag", "saga"):
        raise OptionError(
            f'Ridge(solver="{estimator.solver}") goes from row to row, in an order that it draws: "auto" gives the same '
            "coefficients, and exactly"
        )
    factored = yield Pass(Factor(estimator.fit_intercept, about.has_weight, True), (Numbers(takes_nan=False),))
    with one_thread():
        coef, estimator.n_iter_, estimator.solver_ = _ridge_regression(
            factored.triangle[:, :-1],
            factored.triangle[:, -1],
            alpha=estimator.alpha,
            max_iter=estimator.max_iter,
            tol=estimator.tol,
            solver=estimator.solver,
            positive=estimator.positive,
            return_n_iter=True,
            return_solver=True,
            check_input=False,
        )
    _set_intercept(estimator, factored, np.asarray(coef, dtype_of(about)))
    return estimator


def _set_intercept(estimator: Any, factored: Factored, coef: Any) -> None:
    estimator.coef_ = coef
    mean = factored.mean.astype(coef.dtype)
    estimator._set_intercept(mean[:-1], mean[-1])


def _check_width(estimator: Any, about: About) -> None:
    if about.is_sparse and (about.n_features or 0) > MOST_SPARSE_COLUMNS:
        raise OptionError(
            f"{type(estimator).__name__} is fitted through a dense square of its columns: {about.n_features:,} sparse ones "
            f"are too many, at most {MOST_SPARSE_COLUMNS:,} are taken. ff.LogisticRegression and SelectKBest take any number"
        )


def pca(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `PCA._fit_full`. Where `svd_solver="auto"` would draw at random, this is exact.

    Raises:
        OptionError: A solver is wanted that draws at random, or iterates.
    """
    from scipy import linalg
    from sklearn.utils.extmath import svd_flip

    check_no_weights(estimator, about)
    _check_width(estimator, about)
    if estimator.svd_solver in ("arpack", "randomized"):
        raise OptionError(
            f'PCA(svd_solver="{estimator.svd_solver}") approximates what svd_solver="auto" computes exactly here, in one pass '
            "over the rows"
        )
    if about.is_sparse and estimator.svd_solver == "full":
        raise TypeError(
            'PCA only support sparse inputs with the "arpack" and "covariance_eigh" solvers, while "full" was passed. See '
            "TruncatedSVD for a possible alternative."
        )
    factored = yield Pass(Factor(), (Numbers(takes_nan=False),))
    shape = factored.n_rows, int(about.n_features or factored.triangle.shape[1])
    wanted = _wanted_components(estimator, shape)
    with one_thread():
        _, singular, components = linalg.svd(factored.triangle, full_matrices=False)
    singular, components = singular[: min(shape)], components[: min(shape)]
    _, components = svd_flip(None, components, u_based_decision=False)
    estimator.mean_ = factored.mean.astype(dtype_of(about))
    _keep_components(estimator, singular, components, wanted, shape, dtype_of(about))
    return estimator


def _wanted_components(estimator: Any, shape: tuple[int, int]) -> Any:
    """As many as there are when nobody said.

    Raises:
        ValueError: More are wanted than there are.
    """
    wanted = min(shape) if estimator.n_components is None else estimator.n_components
    if wanted == "mle":
        if shape[0] < shape[1]:
            raise ValueError("n_components='mle' is only supported if n_samples >= n_features")
    elif not 0 <= wanted <= min(shape):
        raise ValueError(
            f"n_components={wanted} must be between 0 and min(n_samples, n_features)={min(shape)} with "
            f"svd_solver={estimator.svd_solver!r}"
        )
    return wanted


def _keep_components(estimator: Any, singular: Any, components: Any, wanted: Any, shape: tuple[int, int], dtype: Any) -> None:
    import numpy as np
    from sklearn.decomposition._pca import _infer_dimension

    variance = singular**2 / (shape[0] - 1)
    ratio = variance / variance.sum()
    if wanted == "mle":
        wanted = _infer_dimension(variance, shape[0])
    elif 0 < wanted < 1.0:
        wanted = np.searchsorted(np.cumsum(ratio), wanted, side="right") + 1
    rest = variance[wanted:]
    estimator.noise_variance_ = rest.mean().astype(dtype) if wanted < min(shape) else 0.0
    estimator.n_samples_, estimator.n_components_ = shape[0], wanted
    estimator.components_ = components[:wanted].astype(dtype)
    estimator.explained_variance_ = variance[:wanted].astype(dtype)
    estimator.explained_variance_ratio_ = ratio[:wanted].astype(dtype)
    estimator.singular_values_ = singular[:wanted].astype(dtype)
