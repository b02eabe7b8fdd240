"""The loss of logistic regression over some rows and its gradient, and the penalty.

Rows are scaled by the deviation of each column, and centred by its mean, without being changed: the coefficients are. So
sparse rows stay sparse. Below, `slopes` are the coefficients of rows as they are: one line for two classes, else one each.

Source: Apache Spark, `BinaryLogisticBlockAggregator.scala` and `MultinomialLogisticBlockAggregator.scala`; but log(sum(exp))
is never the logarithm of a probability, which may be 0.
"""

from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import Rows
from fourfold.workloads.fit.logistic.looking import blocks, codes_of

FAR = 100.0
"""A column whose mean is so many deviations from 0 is really centred, where rows are an array: each block while it is in the
cache. That costs a fifth of an iteration; without it, digits are lost, as many as this number has. Not measured."""


class Coded:
    """Labels as numbers, and weights with the weight of their class. What rows look like when the loss is taken.

    Of two classes the second is −1 and the first 1, the sign of the margin in the loss; of more, each is its number.

    Args:
        classes: In order.
        weights: Of classes; None when they weigh the same.
    """

    def __init__(self, classes: Any, weights: Any) -> None:
        self.classes, self.weights = classes, weights

    def __call__(self, rows: Rows) -> Rows:
        """The same X, coded labels, weights."""
        codes = codes_of(self.classes, rows.y)
        weight = rows.weight
        if self.weights is not None:
            weight = self.weights[codes] if weight is None else weight * self.weights[codes]
        return rows._replace(y=1.0 - 2.0 * codes if len(self.classes) == 2 else codes, weight=weight)


class Scale(NamedTuple):
    """How columns are seen by the optimiser.

    Attributes:
        mean: Of each column; 0 without intercept.
        deviation: Of each column; 0: it has no coefficient.
        is_far: Rows are to be centred before they are multiplied.
        weight: Of all rows together.
    """

    mean: Any
    deviation: Any
    is_far: bool
    weight: float

    @property
    def inverse(self) -> Any:
        """1 / deviation, and 0 where that is 0."""
        import numpy as np

        return np.divide(1.0, self.deviation, out=np.zeros_like(self.deviation), where=self.deviation > 0)


class Loss:
    """The mean loss at some coefficients, and its gradient by them.

    A state is one array: the loss, the sums of residuals, and the products of residuals and columns.

    Args:
        theta: Scaled coefficients and, with an intercept, that: one row of them, or one per class.
        scale: How columns are scaled.
        fit_intercept: Each row of theta ends with an intercept.
    """

    def __init__(self, theta: Any, scale: Scale, fit_intercept: bool) -> None:
        import numpy as np

        self.scale, self.fit_intercept = scale, fit_intercept
        n_columns = len(scale.mean)
        self.slopes = theta[:, :n_columns] * scale.inverse
        self.offset = theta[:, n_columns] if fit_intercept else np.zeros(len(theta))
        if not scale.is_far:
            self.offset = self.offset - self.slopes @ scale.mean

    def fold(self, rows: Rows) -> Any:
        """Of these rows, each read once."""
        import numpy as np

        X = rows.X
        one = _binomial if len(self.slopes) == 1 else _multinomial
        parts = [slice(0, rows.n_rows)] if hasattr(X, "tocsr") else blocks(*X.shape)
        loss, sums, products = 0.0, np.zeros(len(self.slopes)), np.zeros(self.slopes.shape)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for part in parts:
                block = X if hasattr(X, "tocsr") else X[part]
                if self.scale.is_far:
                    block = block - self.scale.mean
                weight = None if rows.weight is None else rows.weight[part]
                of_block, residuals = one(block, rows.y[part], weight, self.slopes, self.offset)
                loss += of_block
                sums += residuals.sum(axis=1)
                products += residuals @ block
        return np.concatenate([[loss], sums, products.ravel()])

    def combine(self, left: Any, right: Any) -> Any:
        """Of both."""
        return left + right

    def finish(self, state: Any) -> tuple[float, Any]:
        """The mean, and its gradient in the shape of theta."""
        import numpy as np

        n_rows, _ = self.slopes.shape
        sums, products = state[1 : n_rows + 1], state[n_rows + 1 :].reshape(self.slopes.shape)
        if not self.scale.is_far:
            products = products - np.outer(sums, self.scale.mean)
        gradient = products * self.scale.inverse
        if self.fit_intercept:
            gradient = np.column_stack([gradient, sums])
        return float(state[0]) / self.scale.weight, gradient / self.scale.weight


def _binomial(X: Any, sign: Any, weight: Any, slopes: Any, offset: Any) -> tuple[float, Any]:
    """The loss of rows, log(1 + exp(z)) where z is how far a margin is on the wrong side, and their residuals."""
    import numpy as np

    z = X @ slopes[0]
    z += offset[0]
    z *= sign
    loss = np.abs(z)
    np.negative(loss, out=loss)
    np.exp(loss, out=loss)
    np.log1p(loss, out=loss)
    loss += np.maximum(z, 0.0)
    np.subtract(z, loss, out=z)
    np.exp(z, out=z)  # 1 / (1 + exp(-z)), and nothing overflows
    z *= sign
    if weight is None:
        return float(loss.sum()), z[None]
    z *= weight
    return float(loss @ weight), z[None]


def _multinomial(X: Any, codes: Any, weight: Any, slopes: Any, offset: Any) -> tuple[float, Any]:
    """With a line for each class, so that what is done with all classes of a row runs along rows."""
    import numpy as np

    margins = np.ascontiguousarray((X @ slopes.T).T) if hasattr(X, "tocsr") else slopes @ X.T
    margins += offset[:, None]
    margins -= margins.max(axis=0)
    own = codes, np.arange(len(codes))
    loss = -margins[own]
    np.exp(margins, out=margins)
    total = margins.sum(axis=0)
    loss += np.log(total)
    margins /= total
    margins[own] -= 1.0
    if weight is None:
        return float(loss.sum()), margins
    margins *= weight
    return float(loss @ weight), margins


class Penalty(NamedTuple):
    """What is added to the loss: l2 / 2 · θ² + l1 · |θ|, with a factor for each coefficient; intercepts have none.

    Attributes:
        l2: In the shape of theta.
        l1: In the shape of theta.
    """

    l2: Any
    l1: Any

    def added(self, theta: Any, value: float, gradient: Any) -> tuple[float, Any]:
        """Loss and gradient with the smooth part of it; the optimiser adds the other one."""
        return value + 0.5 * float((self.l2 * theta * theta).sum()), gradient + self.l2 * theta


def penalty_of(shape: tuple[int, int], scale: Scale, l2: float, l1: float, on_scaled: bool) -> Penalty:
    """Args: on_scaled: The scaled coefficients are what is penalised, else those of the rows as they are."""
    import numpy as np

    n_columns = len(scale.mean)
    factor = np.where(scale.deviation > 0, 1.0, 0.0) if on_scaled else scale.inverse
    both = np.zeros((2, *shape))
    both[0, :, :n_columns], both[1, :, :n_columns] = l2 * factor * factor, l1 * factor
    return Penalty(both[0], both[1])
