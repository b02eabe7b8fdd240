"""Newton's method for two classes: each pass gives the curvature too, so that some five of them are enough.

A pass over all rows is what a fit waits for. L-BFGS needs a hundred of them where columns depend on each other, and this one
as many as the digits double. Its price: a state has as many numbers as there are pairs of columns. Where its steps lead
nowhere, as from a start that is far away or with columns whose values differ by ten digits, it says so, and L-BFGS goes on.

Source: Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithm 3.2 with the Hessian itself.
"""

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


class Curvature(Loss):
    """The mean loss of two classes at some coefficients, its gradient, and its Hessian by them.

    A state is a pair: that of `Loss`, and the weighted products of columns with each other, the last column being 1.
    """

    def fold(self, rows: Rows) -> Any:
        """Of these rows."""
        import numpy as np

        X = rows.X
        products = np.zeros((X.shape[1] + 1, X.shape[1] + 1))
        for part in blocks(*X.shape):
            block = X[part].toarray() if hasattr(X, "tocsr") else X[part]  # of so few rows and columns that is small
            if self.scale.is_far:
                block = block - self.scale.mean
            root = np.sqrt(self._curves(block, None if rows.weight is None else rows.weight[part]))
            weighted = np.column_stack([block * root[:, None], root])
            products += weighted.T @ weighted
        return super().fold(rows), products

    def _curves(self, block: Any, weight: Any) -> Any:
        """The second derivative of the loss of each row by its margin: p (1 − p)."""
        import numpy as np

        apart = np.exp(-np.abs(block @ self.slopes[0] + self.offset[0]))
        curves = apart / (1.0 + apart) ** 2
        return curves if weight is None else curves * weight

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

    def look(theta: Any) -> Fit:
        value, gradient, hessian = yield Pass(Curvature(theta, scale, fit_intercept), seen, keep=True)
        value, gradient = penalty.added(theta, value, gradient)
        return Point(theta, value, gradient, gradient), hessian + np.diag(penalty.l2.ravel())

    point, hessian = yield from look(start)
    history = [point.value]
    while True:
        norm = float(np.linalg.norm(point.gradient))
        if is_flat(point, norm) or len(history) > max_iter or not np.isfinite(hessian).all():
            return Found(point.x, history, is_flat(point, norm), norm)
        step = -_solved(hessian, point.gradient.ravel()).reshape(point.x.shape)
        slope = float((step * point.gradient).sum())
        for halvings in range(BACKTRACKS):
            share = 0.5**halvings
            new, of_new = yield from look(point.x + share * step)
            if new.value <= point.value + ARMIJO * share * slope + DIGITS * abs(point.value):
                break
        else:  # nothing lower that way
            return Found(point.x, history, norm <= NOTHING, norm)
        if new.value >= point.value and float(np.linalg.norm(new.gradient)) >= norm:  # all digits of the curvature are used
            return Found(point.x, history, norm <= NOTHING, norm)
        point, hessian = new, of_new
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
