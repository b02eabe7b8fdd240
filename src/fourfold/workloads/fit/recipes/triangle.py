"""All rows as one triangle, which is to least squares and principal components what the rows are.

rows ──centred, times the root of the weight──> block under triangle ──QR──> triangle
triangle, triangle ──one under the other, and the row that joins two means──QR──> triangle
"""

from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import Rows
from fourfold.workloads.fit.recipes.checks import numbers_of, weights_of
from fourfold.workloads.fit.recipes.moments import centred, joined
from fourfold.workloads.fit.threads import one_thread

BLOCK_NUMBERS = 4_000_000
"""Numbers that are centred at once: 32 MB. Fewer: more rows that join means. More: a sparse matrix becomes dense in larger
parts. Not measured."""

SLICE_ROWS = 512
"""Rows that are put under the triangle at once. Fewer: more calls. More: they leave the cache. Of 128 to 8192 this is the
quickest, by a tenth at most (benchmarks/constants.py triangle)."""

REFLECTIONS = 16
"""Columns that LAPACK reflects at once. Not measured beyond this one."""


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

    Cost: a state has as many rows as columns. Joining two takes time by the third power of the columns.

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
        size = max(SLICE_ROWS, BLOCK_NUMBERS // rows.X.shape[1])
        state: Factored | None = None
        with one_thread():
            for begin in range(0, rows.n_rows, size):
                block = rows.X[begin : begin + size]
                block = block.toarray() if hasattr(block, "tocsr") else block
                if y is not None:
                    block = np.hstack([block, y[begin : begin + size]])
                found = self._of_block(block, None if weights is None else weights[begin : begin + size])
                state = found if state is None else self.combine(state, found)
        assert state is not None
        return state

    def _of_block(self, block: Any, weights: Any) -> Factored:
        import numpy as np

        if self.is_centred:
            weight, mean, rest, off = centred(block, weights)
            off -= rest
        else:
            weight, mean, off = len(block) if weights is None else weights.sum(), np.zeros(block.shape[1]), block
            rest = mean
        triangle = np.zeros((block.shape[1],) * 2, order="F")
        off = off if weights is None else off * np.sqrt(weights)[:, None]
        for begin in range(0, len(off), SLICE_ROWS):
            triangle = _with_rows(triangle, off[begin : begin + SLICE_ROWS])
        return Factored(len(block), weight, mean, rest, triangle)

    def combine(self, left: Factored, right: Factored) -> Factored:
        """Of both."""
        import numpy as np

        with one_thread():
            triangle = _with_rows(left.triangle, right.triangle, is_triangle=True)
            if not self.is_centred:
                weight, mean, rest = left.weight + right.weight, left.mean, left.rest
            else:
                weight, share, mean, rest, apart = joined(left, right)
                triangle = _with_rows(triangle, (np.sqrt(left.weight * share) * apart)[None])
        return Factored(left.n_rows + right.n_rows, weight, mean, rest, triangle)

    def finish(self, state: Factored) -> Factored:
        """The means are the nearest floats. Columns of one value have zeros, as rows of them have around an exact mean."""
        import numpy as np

        mean = state.mean + state.rest
        if self.is_centred:  # what is left of them is rounding, of the size of eps², and any other column has more than eps
            least = np.finfo(np.float64).eps ** 1.5 * np.abs(mean) * np.sqrt(state.weight)
            state.triangle[:, np.linalg.norm(state.triangle, axis=0) < least] = 0.0
        return state._replace(mean=mean, rest=state.rest - (mean - state.mean))


def _with_rows(triangle: Any, rows: Any, is_triangle: bool = False) -> Any:
    """The triangle of a triangle and of rows under it."""
    import numpy as np
    from scipy.linalg.lapack import dtpqrt

    width = len(triangle)
    below = np.array(rows, order="F")
    found, _, _, info = dtpqrt(width if is_triangle else 0, min(REFLECTIONS, width), triangle, below, overwrite_b=True)
    assert info == 0
    return np.asfortranarray(found)
