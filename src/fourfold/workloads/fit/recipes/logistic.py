"""scikit-learn's LogisticRegression: the optimum of its objective, whatever solver was named."""

import math
import warnings
from collections.abc import Callable
from typing import Any

from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import About, Fit
from fourfold.workloads.fit.logistic.objective import Scale
from fourfold.workloads.fit.logistic.optimiser import Point
from fourfold.workloads.fit.logistic.training import Optimum, Problem, train
from fourfold.workloads.fit.seen import Numbers

TIGHTER, LEAST_TOL = 1e-3, 1e-11
"""So much of `tol` is used, down to a least one: two solvers that stop at `tol` differ more than each from the optimum, and
the last digits cost few iterations. Larger: models differ from scikit-learn's in more digits."""

STILL = 1e-15
"""A share of the first value that is no progress in 20 iterations: rounding."""


def logistic_regression(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `LogisticRegression.fit`; its objective is ours, times C · Σ weight."""
    import numpy as np

    l1_ratio, C = _penalty(estimator)
    _check_solver(estimator, l1_ratio, C)
    if not about.has_target:
        raise ValueError("requires y to be passed, but the target y is None: name the column of labels with target=")

    def strength(weight: float) -> tuple[float, float]:
        return (1 - l1_ratio) / (C * weight), l1_ratio / (C * weight)

    length = [math.inf]  # of the gradient where it has looked last
    problem = Problem(
        strength,
        on_scaled=False,
        fit_intercept=estimator.fit_intercept,
        class_weight=estimator.class_weight,
        max_iter=estimator.max_iter,
        tol=STILL,
        is_flat=_stop(max(TIGHTER * estimator.tol, LEAST_TOL), length),
        keeps_constants=True,
        keeps_weightless=True,
        warm=_warm(estimator),
        by_curvature=True,
    )
    optimum: Optimum = yield from train(problem, (Numbers(takes_nan=False),), about.names)
    estimator.classes_, estimator.coef_, estimator.intercept_ = optimum.classes, optimum.coef, optimum.intercept
    found = optimum.found
    estimator.n_iter_ = np.array([len(found.history) - 1], np.int32)
    if not found.is_converged and length[0] > estimator.tol:
        from sklearn.exceptions import ConvergenceWarning

        warnings.warn(
            f"LogisticRegression did not converge in {estimator.n_iter_[0]} iteration(s): the gradient is "
            f"{length[0]:.2g}. Increase the number of iterations (max_iter), or scale the data",
            ConvergenceWarning,
            stacklevel=2,
        )
    return estimator


def _penalty(estimator: Any) -> tuple[float, float]:
    """How much of it is absolute values, and C; infinite for none."""
    import numpy as np

    named = getattr(estimator, "penalty", "deprecated")
    ratio = estimator.l1_ratio or 0.0
    if named is None:
        return 0.0, np.inf
    if named == "elasticnet" and estimator.l1_ratio is None:
        raise ValueError("l1_ratio must be specified when penalty is elasticnet.")
    return {"l1": 1.0, "l2": 0.0}.get(named, ratio), estimator.C


def _check_solver(estimator: Any, l1_ratio: float, C: float) -> None:
    """Refuse what scikit-learn refuses, and what is another objective.

    Raises:
        ValueError: scikit-learn has no such combination.
        OptionError: It has, and it cannot be honoured.
    """
    from sklearn.linear_model._logistic import _check_solver

    named = "l2" if l1_ratio == 0 else "l1" if l1_ratio == 1 else "elasticnet"
    _check_solver(estimator.solver, None if math.isinf(C) else named, estimator.dual)
    if estimator.dual:
        raise OptionError("LogisticRegression(dual=True) cannot be fitted from parts of the rows: leave dual= out")
    if estimator.solver == "liblinear" and estimator.fit_intercept:
        raise OptionError(
            "LogisticRegression(solver='liblinear') penalises the intercept too, which no other solver does: give "
            "solver='lbfgs' for an intercept without penalty (with l1_ratio=, 'saga'), or fit_intercept=False"
        )


def _stop(tol: float, length: list[float]) -> Callable[[Scale], Callable[[Point, float], bool]]:
    """Two gradients are short: by coefficients of scaled columns, and by those as they are, as scikit-learn has it.

    Args:
        tol: How short.
        length: Its only place is told the longer one.
    """

    def of(scale: Scale) -> Callable[[Point, float], bool]:
        n_columns = len(scale.mean)

        def is_flat(point: Point, norm: float) -> bool:
            own = point.slope[:, :n_columns] * scale.deviation
            if point.slope.shape[1] > n_columns:
                own = own + point.slope[:, n_columns:] * scale.mean
            length[0] = max(norm, float(abs(own).max(initial=0.0)))
            return length[0] <= tol

        return is_flat

    return of


def _warm(estimator: Any) -> tuple[Any, Any] | None:
    """What an earlier fit has left, where that is to be the start."""
    if not estimator.warm_start or not hasattr(estimator, "coef_"):
        return None
    return estimator.coef_, estimator.intercept_
