"""All rows as one triangle, which is to least squares and principal components what the rows are.

rows ──centred, times the root of the weight──> block ──QR──> R        R above R above the row that joins two means ──QR──> R
"""

from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import Rows
from fourfold.workloads.fit.recipes.checks import numbers_of, weights_of
from fourfold.workloads.fit.recipes.moments import centred, joined

BLOCK_ROWS = 8192
"""Rows that are made triangular at once, or four times the columns if that is more. Fewer: more time goes into joining them.
More: they leave the cache, and a sparse matrix becomes dense in larger parts. Not measured."""


class Factored(NamedTuple):
    """What is left of rows for least squares.

    Attributes:
        n_rows: How many there are.
        weight: The sum of their weights.
        mean: Of each column; zeros when they are not centred.
        rest: What the mean lacks.
        triangle: R of the QR decomposition of the centred rows, each times the root of its weight. A target is the last
            column.
    """

    n_rows: int
    weight: Any
    mean: Any
    rest: Any
    triangle: Any


class Factor:
    """The triangle R with the same singular values, right singular vectors and least squares as all rows.

    It is as exact as a decomposition of all rows would be, where a covariance matrix would have half of the digits.

    Args:
        is_centred: The mean of each column is taken off.
        has_weight: The rows have weights.
        has_target: The target is a last column.

    Cost: a state has at most as many rows as columns. Joining two takes time by the third power of the columns.

    Source: J. Demmel, L. Grigori, M. Hoemmen, J. Langou, "Communication-optimal parallel and sequential QR and LU
    factorizations", SIAM J. Sci. Comput. 34.1 (2012), section 3: TSQR. The row that joins two means is Chan's.
    """

    def __init__(self, is_centred: bool = True, has_weight: bool = False, has_target: bool = False) -> None:
        self.is_centred, self.has_weight, self.has_target = is_centred, has_weight, has_target

    def fold(self, rows: Rows) -> Factored:
        """Of an array or a csr matrix, block by block."""
        import numpy as np

        weights = weights_of(rows, self.has_weight)
        y = numbers_of(rows.y)[:, None] if self.has_target else None
        size = max(BLOCK_ROWS, 4 * rows.X.shape[1])
        state: Factored | None = None
        for begin in range(0, rows.n_rows, size):
            block = rows.X[begin : begin + size]
            block = block.toarray() if hasattr(block, "tocsr") else block
            if y is not None:
                block = np.hstack([block, y[begin : begin + size]])
            found = self._of_block(block, weights[begin : begin + size])
            state = found if state is None else self.combine(state, found)
        assert state is not None
        return state

    def _of_block(self, block: Any, weights: Any) -> Factored:
        import numpy as np

        if self.is_centred:
            weight, mean, rest, off = centred(block, weights)
            off -= rest
        else:
            weight, mean, off = weights.sum(), np.zeros(block.shape[1]), block
            rest = mean
        return Factored(len(block), weight, mean, rest, _triangle(off * np.sqrt(weights)[:, None]))

    def combine(self, left: Factored, right: Factored) -> Factored:
        """Of both."""
        import numpy as np

        triangles = [left.triangle, right.triangle]
        if not self.is_centred:
            weight, mean, rest = left.weight + right.weight, left.mean, left.rest
        else:
            weight, share, mean, rest, apart = joined(left, right)
            triangles.append((np.sqrt(left.weight * share) * apart)[None])
        return Factored(left.n_rows + right.n_rows, weight, mean, rest, _triangle(np.vstack(triangles)))

    def finish(self, state: Factored) -> Factored:
        """As it is."""
        return state


def _triangle(rows: Any) -> Any:
    import numpy as np

    return np.linalg.qr(rows, mode="r")
