"""Newton's method for two classes: each pass gives the curvature too, so that some five of them are enough.

A pass over all rows is what a fit waits for. L-BFGS needs a hundred of them where columns depend on each other, and this one
as many as the digits double. Its price: a state has as many numbers as there are pairs of columns, and their products take
nearly all of the time. So near the end, where the curvature hardly changes any more, the last one is used again: a pass that
asks for the gradient alone takes a tenth of the time with 200 columns, and gives digits all the same. Where steps lead
nowhere, as from a start that is far away or with columns whose values differ by ten digits, it says so, and L-BFGS goes on.

Source: Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithm 3.2 with the Hessian itself; V. E. Shamanskii,
"A modification of Newton's method", Ukrainian Mathematical Journal 19.1 (1967), for steps that share one.
"""

import math
from typing import Any

from fourfold.workloads.fit.contract import Fit, Pass, Rows, Seen
from fourfold.workloads.fit.logistic.looking import blocks
from fourfold.workloads.fit.logistic.objective import Loss, Penalty, Scale
from fourfold.workloads.fit.logistic.optimiser import ARMIJO, BACKTRACKS, DIGITS, Found, Point, Stop
from fourfold.workloads.fit.threads import one_thread

MOST_COLUMNS = 300
"""With more, L-BFGS is used. More: a state of 1,000 columns has 8 MB, for each piece. Fewer: more passes. By count: the
products of a row with itself cost d² and those with a line 4 d, in fewer and faster calls, and passes are 20 times as many."""

NOTHING = 1e-12
"""A gradient by scaled coefficients that is no longer than rounding makes it: where no step lowers the value, that is the end.
Smaller: L-BFGS looks a few times more where there is nothing to find. Larger: it is the end where L-BFGS finds lower values.
Not measured."""


QUICK, SLOW = 0.01, 0.05
"""Shares of a gradient. Where a step is expected to leave no more than the first one of it, the next point is looked at
without its curvature; when a step by an older curvature has left more than the second one, that is looked at after all.
Larger: more steps, each with a pass for a tenth of a curvature's time. Smaller: more curvatures. The demo's pipeline with 194
columns takes three curvatures and four gradients with these, and six curvatures without."""


class Curvature(Loss):
    """The mean loss of two classes at some coefficients, its gradient, and its Hessian by them.

    A state is a pair: that of `Loss`, and the weighted products of columns with each other, the last column being 1.
    """

    def fold(self, rows: Rows) -> Any:
        """Of these rows."""
        is_thin = hasattr(rows.X, "tocsr") and not self.scale.is_far  # centred rows would have no zeros
        return super().fold(rows), self._of_thin(rows) if is_thin else self._of_full(rows)

    def _of_full(self, rows: Rows) -> Any:
        """The products of all columns with each other, of these rows."""
        import numpy as np

        X = rows.X
        products, held = np.zeros((X.shape[1] + 1, X.shape[1] + 1)), None
        for part in blocks(*X.shape):
            block = X[part].toarray() if hasattr(X, "tocsr") else X[part]  # of so few rows and columns that is small
            if self.scale.is_far:
                block = block - self.scale.mean
            root = self._roots(block, None if rows.weight is None else rows.weight[part])
            held = np.empty((len(block), len(products))) if held is None else held[: len(block)]
            np.multiply(block, root[:, None], out=held[:, :-1])
            held[:, -1] = root
            products += held.T @ held
        return products

    def _of_thin(self, rows: Rows) -> Any:
        """The same, and what is done with each value is done with those that are stored."""
        import numpy as np

        X, width = rows.X, rows.X.shape[1]
        root = self._roots(X, rows.weight)
        rooted = type(X)((X.data * np.repeat(root, np.diff(X.indptr)), X.indices, X.indptr), X.shape)
        products, held = np.zeros((width + 1, width + 1)), None
        for part in blocks(*X.shape):
            thin = rooted[part]
            held = np.empty(thin.shape) if held is None else held[: thin.shape[0]]
            products[:-1, :-1] += thin.toarray(out=held).T @ held
        products[-1, :-1] = products[:-1, -1] = rooted.T @ root
        products[-1, -1] = root @ root
        return products

    def _roots(self, X: Any, weight: Any) -> Any:
        """The root of the second derivative of the loss of each row by its margin, p (1 − p)."""
        import numpy as np

        apart = np.exp(-np.abs(X @ self.slopes[0] + self.offset[0]))
        curves = apart / (1.0 + apart) ** 2
        return np.sqrt(curves if weight is None else curves * weight)

    def combine(self, left: Any, right: Any) -> Any:
        """Of both."""
        return left[0] + right[0], left[1] + right[1]

    def finish(self, state: Any) -> Any:
        """The mean, its gradient in the shape of theta, and its Hessian by theta's numbers in a line."""
        import numpy as np

        value, gradient = super().finish(state[0])
        products, mean = state[1], self.scale.mean
        inner, sums, total = products[:-1, :-1], products[-1, :-1], products[-1, -1]
        if not self.scale.is_far:
            inner = inner - np.outer(mean, sums) - np.outer(sums, mean) + total * np.outer(mean, mean)
            sums = sums - total * mean
        inverse = self.scale.inverse
        hessian = inner * np.outer(inverse, inverse)
        if self.fit_intercept:
            edge = sums * inverse
            hessian = np.block([[hessian, edge[:, None]], [edge[None], np.array([[total]])]])
        return value, gradient, hessian / self.scale.weight


def descend(
    start: Any, penalty: Penalty, scale: Scale, fit_intercept: bool, seen: tuple[Seen, ...], max_iter: int, is_flat: Stop
) -> Fit:
    """Search the lowest value of a loss without corners, from a start.

    Ends with a Found, which is not converged, with iterations left, where another method is to go on.
    """
    import numpy as np

    def look(theta: Any, is_curved: bool = True) -> Fit:
        wanted = (Curvature if is_curved else Loss)(theta, scale, fit_intercept)
        value, gradient, *hessian = yield Pass(wanted, seen, keep=True)
        value, gradient = penalty.added(theta, value, gradient)
        return Point(theta, value, gradient, gradient), hessian[0] + np.diag(penalty.l2.ravel()) if is_curved else None

    point, hessian = yield from look(start)
    history, is_here, left = [point.value], True, 1.0
    while True:
        norm = float(np.linalg.norm(point.gradient))
        if is_flat(point, norm) or len(history) > max_iter or not np.isfinite(hessian).all():
            return Found(point.x, history, is_flat(point, norm), norm)
        if not is_here and left > SLOW:
            _, hessian = yield from look(point.x)
            is_here = True
        step = -_solved(hessian, point.gradient.ravel()).reshape(point.x.shape)
        slope = float((step * point.gradient).sum())
        for halvings in range(BACKTRACKS):
            share = 0.5**halvings
            new, of_new = yield from look(point.x + share * step, halvings > 0 or (is_here and left * left > QUICK))
            if new.value <= point.value + ARMIJO * share * slope + DIGITS * abs(point.value):
                break
        else:  # nothing lower that way
            new = point
        left = float(np.linalg.norm(new.gradient)) / norm
        if new.value >= point.value and left >= 1.0:
            if is_here:  # all digits of the curvature are used
                return Found(point.x, history, norm <= NOTHING, norm)
            left = math.inf
            continue
        point, hessian, is_here = new, hessian if of_new is None else of_new, of_new is not None
        history.append(point.value)


def _solved(hessian: Any, gradient: Any) -> Any:
    """The step; of columns that say the same, the shortest one."""
    import numpy as np
    from scipy import linalg

    diagonal = np.einsum("ii->i", hessian)
    diagonal[diagonal == 0] = 1.0  # a column that never varies, or rows that are all far from the margin
    with one_thread():
        try:
            return linalg.cho_solve(linalg.cho_factor(hessian), gradient)
        except linalg.LinAlgError:
            return np.linalg.lstsq(hessian, gradient, rcond=None)[0]
