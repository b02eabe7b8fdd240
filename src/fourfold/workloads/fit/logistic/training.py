"""The recipe of logistic regression: one look at all rows, then one pass for each value that the optimiser asks for."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import Fit, Pass, Seen
from fourfold.workloads.fit.logistic.looking import Known, Look, Moments, merged
from fourfold.workloads.fit.logistic.newton import MOST_COLUMNS, descend
from fourfold.workloads.fit.logistic.objective import FAR, Coded, Loss, Penalty, Scale, penalty_of
from fourfold.workloads.fit.logistic.optimiser import (
    LEAST_AT_CORNERS,
    LEAST_GRADIENT,
    Found,
    Point,
    by_gradient,
    minimise,
)


class Problem(NamedTuple):
    """What is to be fitted.

    Attributes:
        strength: What the l2 and the l1 part of the penalty are multiplied with, by the weight of all rows.
        on_scaled: Coefficients of scaled columns are penalised.
        fit_intercept: There is an intercept.
        class_weight: None, "balanced", or weights by class.
        max_iter: Iterations at most.
        tol: See `minimise`.
        is_flat: Given how rows are scaled, when a point is good enough.
        keeps_constants: Without intercept a constant column has a coefficient, as in scikit-learn; Spark leaves it out.
            Columns are then scaled by how far they are from 0.
        keeps_weightless: A class of which all rows have weight 0 is one all the same, as in scikit-learn.
        warm: Coefficients and intercepts to start at; None for Spark's start.
        by_curvature: Newton's method may be used: the optimum is what matters, not the way there.
    """

    strength: Callable[[float], tuple[float, float]]
    on_scaled: bool
    fit_intercept: bool
    class_weight: Any
    max_iter: int
    tol: float
    is_flat: Callable[[Scale], Callable[[Point, float], bool]]
    keeps_constants: bool = False
    keeps_weightless: bool = False
    warm: tuple[Any, Any] | None = None
    by_curvature: bool = False


class Optimum(NamedTuple):
    """What was fitted.

    Attributes:
        classes: In order.
        coef: One row of coefficients for two classes, else one per class; of rows as they are.
        intercept: One for two classes, else one per class.
        found: What the optimiser says.
        weight: Of all rows, with the weights of their classes.
    """

    classes: Any
    coef: Any
    intercept: Any
    found: Found
    weight: float


def spark_stop(tol: float, has_corners: bool) -> Callable[[Scale], Callable[[Point, float], bool]]:
    """Spark's rule, which looks at the gradient by scaled coefficients."""
    return lambda scale: by_gradient(tol, LEAST_AT_CORNERS if has_corners else LEAST_GRADIENT)


def train(problem: Problem, seen: Sequence[Seen], names: Sequence[str] | None) -> Fit:
    """Fit it. Ends with an Optimum.

    Args:
        problem: What is wanted.
        seen: What is done with rows before.
        names: Of the columns, for messages.
    """
    import numpy as np

    known = yield Pass(Look(problem.class_weight is not None, names), tuple(seen), keep=True)
    known = known if problem.keeps_weightless else _with_weight(known)
    if len(known.classes) < 2:
        raise ValueError(_one_class(known.classes))
    weights = class_weights(problem.class_weight, known)
    total = float((known.weights if weights is None else known.weights * weights).sum())
    if not total > 0:
        raise ValueError(_one_class(known.classes[:0]))
    l2, l1 = problem.strength(total)
    scale, histogram = _scale(problem, known, weights, is_penalised=problem.on_scaled and bool(l2 or l1))
    coded = (*seen, Coded(known.classes, weights))
    n_lines = 1 if len(known.classes) == 2 else len(known.classes)
    shape = n_lines, len(scale.mean) + problem.fit_intercept
    penalty = penalty_of(shape, scale, l2, l1, problem.on_scaled)
    found = yield from _lowest(problem, _start(problem, scale, histogram, shape), penalty, scale, coded)
    coef, intercept = _of_rows_as_they_are(found.x, scale, problem.fit_intercept)
    if n_lines > 1:  # of those that say the same, Spark's and scikit-learn's choice
        coef = coef - coef.mean(axis=0) if not (l2 or l1) else coef
        intercept = intercept - intercept.mean()
    return Optimum(known.classes, np.ascontiguousarray(coef), intercept, found, scale.weight)


def _lowest(problem: Problem, start: Any, penalty: Penalty, scale: Scale, seen: tuple[Seen, ...]) -> Fit:
    """Search the optimum; where the curvature does not lead there, without it. Ends with a Found."""
    is_flat, by_newton = problem.is_flat(scale), None
    if problem.by_curvature and len(start) == 1 and not penalty.l1.any() and start.shape[1] <= MOST_COLUMNS:
        by_newton = yield from descend(start, penalty, scale, problem.fit_intercept, seen, problem.max_iter, is_flat)
        if by_newton.is_converged or len(by_newton.history) > problem.max_iter:
            return by_newton
    before = by_newton.history[:-1] if by_newton else []
    search = minimise(start, penalty.l1, problem.max_iter - len(before), problem.tol, is_flat)  # there digits may be left
    found: Found = yield from _passes(search, penalty, scale, problem.fit_intercept, seen)
    if by_newton and not found.history[-1] < by_newton.history[-1]:
        found = found._replace(x=by_newton.x, gradient_norm=by_newton.gradient_norm, is_converged=False)
    return found._replace(history=[*before, *found.history])


def _passes(search: Any, penalty: Penalty, scale: Scale, fit_intercept: bool, seen: tuple[Seen, ...]) -> Fit:
    """Answer what the optimiser asks, until it has found something."""
    answer: Any = None
    while True:
        try:
            theta = search.send(answer)
        except StopIteration as end:
            return end.value
        value, gradient = yield Pass(Loss(theta, scale, fit_intercept), seen, keep=True)
        answer = penalty.added(theta, value, gradient)


def class_weights(wanted: Any, known: Known) -> Any:
    """The weight of each class; None when they weigh the same."""
    import numpy as np

    if wanted is None:
        return None
    if wanted == "balanced":
        of_each = len(known.classes) * known.weights
        return np.divide(known.weights.sum(), of_each, out=np.zeros_like(of_each), where=of_each > 0)
    from sklearn.utils.class_weight import compute_class_weight

    return compute_class_weight(wanted, classes=known.classes, y=known.classes)


def _with_weight(known: Known) -> Known:
    """Without classes that only rows of weight 0 have."""
    import numpy as np

    there = np.flatnonzero(known.weights > 0)
    moments = known.moments if len(known.moments) < len(known.classes) else [known.moments[at] for at in there]
    classes, n_rows, weights, squares = (each[there] for each in known[:4])
    return Known(classes, n_rows, weights, squares, moments)


def _one_class(classes: Any) -> str:
    if not len(classes):
        return "all rows have weight 0: there is nothing to learn from"
    return (
        "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
        f"{classes[0]!r}. Look at the target, and at filters and weights that may have left a class out"
    )


def _scale(problem: Problem, known: Known, weights: Any, is_penalised: bool) -> tuple[Scale, Any]:
    """How columns are scaled, and what each class weighs.

    Where scaled coefficients have no penalty, the scale does not matter for what is found, only for the way there: then it is
    the one that rows have which are repeated as often as they weigh, so that both ways end at the same place.
    """
    import numpy as np

    histogram, squares = known.weights, known.squares
    moments = known.moments
    if weights is not None:
        histogram, squares = histogram * weights, squares * weights * weights
        moments = [Moments(each.weight * w, each.mean, each.squares * w) for each, w in zip(moments, weights, strict=True)]
    whole = moments[0]
    for each in moments[1:]:
        whole = merged(whole, each)
    total = float(histogram.sum())
    degrees = total - (float(squares.sum()) / total if is_penalised or total <= 1 else 1.0)
    variance = whole.squares / degrees if degrees > 0 else np.zeros_like(whole.mean)
    deviation = np.sqrt(np.maximum(variance, 0.0))
    far = bool(np.any(np.abs(whole.mean) > FAR * deviation, where=deviation > 0))
    mean = whole.mean if problem.fit_intercept else np.zeros_like(whole.mean)
    if problem.keeps_constants and not problem.fit_intercept:  # from 0 on: what is not centred deviates from that
        deviation = np.sqrt(whole.squares / total + whole.mean * whole.mean)
    return Scale(mean, deviation, far and problem.fit_intercept, total), histogram


def _start(problem: Problem, scale: Scale, histogram: Any, shape: tuple[int, int]) -> Any:
    import numpy as np

    theta, n_columns = np.zeros(shape), len(scale.mean)
    if problem.warm is not None:
        coef, intercept = problem.warm
        if coef.shape != (shape[0], n_columns):
            raise ValueError(
                f"the coef_ is of shape {coef.shape}, expected {(shape[0], n_columns)}: warm_start= wants the same rows"
            )
        theta[:, :n_columns] = coef * scale.deviation
        if problem.fit_intercept:
            theta[:, n_columns] = intercept + coef @ scale.mean
    elif problem.fit_intercept and shape[0] == 1:
        theta[0, n_columns] = np.log(histogram[1] / histogram[0]) if histogram.all() else 0.0
    elif problem.fit_intercept:
        theta[:, n_columns] = np.log1p(histogram) - np.log1p(histogram).mean()
    return theta


def _of_rows_as_they_are(theta: Any, scale: Scale, fit_intercept: bool) -> tuple[Any, Any]:
    import numpy as np

    n_columns = len(scale.mean)
    coef = theta[:, :n_columns] * scale.inverse
    return coef, theta[:, n_columns] - coef @ scale.mean if fit_intercept else np.zeros(len(theta))
