"""Exact quantiles of columns, out of more rows than anybody holds: each pass narrows the place where a wanted value is.

    values of a column, as integers of the same order
    |----.--.-..-|-....:.::|:.:::::::|:::.:...|--.--..---|     a pass: cells of equal width, with how many rows each has,
                      ^ the wanted rank is in this one          and its least and its greatest value
                  |.:  .|:: |: :.|                              the next pass: cells of this one alone, until it has one value

A state has at most so many cells, whatever the rows; cells are halves of halves, so that two states can be joined. Columns of
few different values are known after one pass, others after two or three.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import Pass, Rows, Seen

MAX_CELLS = 2**17
"""Of one state, of 24 bytes each: 3 MB. More of them narrow faster: fewer passes, larger states. Not measured."""

CELLS = (64, 4096)
"""Of one place, at least and at most. With fewer than two a pass would narrow nothing."""

PLOTTING = {
    "interpolated_inverted_cdf": (0.0, 1.0),
    "hazen": (0.5, 0.5),
    "weibull": (0.0, 0.0),
    "median_unbiased": (1 / 3.0, 1 / 3.0),
    "normal_unbiased": (3 / 8.0, 3 / 8.0),
}
"""The methods of numpy.quantile with two parameters, alpha and beta. Source: Hyndman and Fan (1996)."""


class Cells(NamedTuple):
    """What is known of the values of one place: sorted cells that have any.

    Attributes:
        shift: Values, as integers, are in the same cell when they are equal without so many last bits.
        least: Of each cell, as an integer.
        most: Of each cell.
        mass: How many rows have a value in it, or their weights.
    """

    shift: int
    least: Any
    most: Any
    mass: Any


class Place(NamedTuple):
    """Where wanted values are.

    Attributes:
        column: Its number.
        least: No wanted value is smaller; as an integer.
        most: No wanted value is greater.
        below: The mass of all values that are smaller.
        after: The next value that is greater than those here, as an integer; None when there is none.
        targets: Which values are wanted: see `Found`.
    """

    column: int
    least: int
    most: int
    below: float = 0.0
    after: int | None = None
    targets: tuple[float, ...] = ()


class Found(NamedTuple):
    """The smallest value up to which there is a wanted mass.

    Attributes:
        value: This value.
        mass: Up to it, and with it: the wanted one or more.
        after: The next greater value; the same one when there is none.
    """

    value: float
    mass: float
    after: float


class CellsOf:
    """The cells of places. NaN is no value, and a row without weight is none.

    Args:
        places: They do not overlap.
        weighted: Rows have their weights for a mass, and 1 otherwise.
    """

    def __init__(self, places: Sequence[Place], weighted: bool) -> None:
        self.places, self.weighted = list(places), weighted
        self.limit = max(CELLS[0], min(CELLS[1], MAX_CELLS // max(1, len(self.places))))

    def fold(self, rows: Rows) -> list[Cells]:
        """Of an array or a csr matrix."""
        import numpy as np

        weight = rows.weight if self.weighted else None
        X = rows.X.tocsc() if hasattr(rows.X, "tocsr") else rows.X
        found, last = [], -1
        keys, mass = np.empty(0, np.int64), None
        for place in self.places:
            if place.column != last:
                values, mass = _column(X, place.column, weight)
                keys, last = _keys_of(values), place.column
            here = (keys >= place.least) & (keys <= place.most)
            found.append(_cells(keys[here], None if mass is None else mass[here], self.limit))
        return found

    def combine(self, left: list[Cells], right: list[Cells]) -> list[Cells]:
        """Of both."""
        return [_joined(*both, self.limit) for both in zip(left, right, strict=True)]

    def finish(self, state: list[Cells]) -> list[Cells]:
        """As they are."""
        return state


def _column(X: Any, column: int, weight: Any) -> tuple[Any, Any]:
    """Its values, and their masses; None for 1 each. The zeros that a csc matrix does not hold are one value of their mass."""
    import numpy as np

    if not hasattr(X, "tocsr"):
        if weight is None:
            return X[:, column], None
        return X[weight != 0, column], weight[weight != 0]
    held = slice(X.indptr[column], X.indptr[column + 1])
    weight = np.ones(X.shape[0]) if weight is None else weight
    mass = weight[X.indices[held]]
    zeros = weight.sum() - mass.sum() if len(mass) < X.shape[0] else 0.0
    values, mass = np.append(X.data[held], 0.0), np.append(mass, zeros)
    return values[mass != 0], mass[mass != 0]


def _keys_of(values: Any) -> Any:
    """Floats as integers of the same order. NaN are beyond the keys of the infinities."""
    import numpy as np

    bits = np.ascontiguousarray(values + 0.0, np.float64).view(np.int64)  # -0.0 is 0.0
    return bits ^ ((bits >> 63) & np.int64(2**63 - 1))


def _values_of(keys: Any) -> Any:
    import numpy as np

    keys = np.asarray(keys, np.int64)
    return (keys ^ ((keys >> 63) & np.int64(2**63 - 1))).view(np.float64)


def _cells(keys: Any, mass: Any, limit: int) -> Cells:
    """One per different value, or as many as may be."""
    import numpy as np

    if mass is None:
        keys = np.sort(keys)
        return _merged(0, keys, keys, None, limit)
    order = np.argsort(keys, kind="stable")
    return _merged(0, keys[order], keys[order], mass[order], limit)


def _joined(left: Cells, right: Cells, limit: int) -> Cells:
    import numpy as np

    least, most, mass = (np.concatenate(both) for both in zip(left[1:], right[1:], strict=True))
    order = np.argsort(least, kind="stable")
    return _merged(max(left.shift, right.shift), least[order], most[order], mass[order], limit)


def _merged(shift: int, least: Any, most: Any, mass: Any, limit: int) -> Cells:
    """What is in the same cell is made one; cells are wider where there would be more than the limit.

    A mass of None is 1 for each, of single values: then nothing has to be added up.
    """
    import numpy as np

    if not len(least):
        return Cells(shift, least, most, np.empty(0))
    apart = (least[1:] ^ least[:-1]).view(np.uint64)  # neighbours are in one cell when no bit above the shift differs
    is_new = apart > np.uint64((1 << shift) - 1)
    if len(apart) >= limit and np.count_nonzero(is_new) >= limit:
        shift = int(np.partition(apart, len(apart) - limit)[len(apart) - limit]).bit_length()
        is_new = apart > np.uint64((1 << shift) - 1)
    starts = np.append(0, np.flatnonzero(is_new) + 1)
    ends = np.append(starts[1:], len(least))
    if mass is None:
        return Cells(shift, least[starts], most[ends - 1], (ends - starts).astype(np.float64))
    masses = np.bincount(np.repeat(np.arange(len(starts)), ends - starts), mass)
    return Cells(shift, least[starts], np.maximum.accumulate(most)[ends - 1], masses)


Wanted = Callable[[int, float], Sequence[float]]
"""For a column and the mass of all its values: up to which masses they are wanted."""


def located(
    seen: tuple[Seen, ...], n_columns: int, wanted: Wanted, weighted: bool = False
) -> Generator[Pass, Any, list[dict[float, Found]]]:
    """Find values by the mass up to them.

    Ends with a dict per column: what is found for each wanted mass. A column without values has an empty one.
    """
    import numpy as np

    least, most = (int(key) for key in _keys_of(np.array([-np.inf, np.inf])))
    places = [Place(column, least, most) for column in range(n_columns)]
    found: list[dict[float, Found]] = [{} for _ in places]
    is_first = True
    while places:
        every = yield Pass(CellsOf(places, weighted), seen, keep=True)
        inner: list[Place] = []
        for place, cells in zip(places, every, strict=True):
            if len(cells.least):
                targets = wanted(place.column, float(cells.mass.sum())) if is_first else place.targets
                inner += _looked_up(place, cells, targets, found[place.column])
        places, is_first = inner, False
    return found


def _looked_up(place: Place, cells: Cells, targets: Sequence[float], found: dict[float, Found]) -> list[Place]:
    """What the cells say of the targets, and the places where to look for the others."""
    import numpy as np

    upto = place.below + np.cumsum(cells.mass)
    inner: dict[int, Place] = {}
    for target in dict.fromkeys(targets):
        at = min(int(np.searchsorted(upto, target)), len(upto) - 1)
        least, most = int(cells.least[at]), int(cells.most[at])
        after = int(cells.least[at + 1]) if at + 1 < len(upto) else place.after
        if least == most:
            value, beyond = _values_of([least, least if after is None else after]).tolist()
            found[target] = Found(value, float(upto[at]), beyond)
            continue
        known = inner.get(at)
        below = float(upto[at - 1]) if at else place.below
        before = () if known is None else known.targets
        inner[at] = Place(place.column, least, most, below, after, (*before, target))
    return list(inner.values())


def quantiles(
    seen: tuple[Seen, ...], shares: Sequence[Sequence[float]], method: str = "linear"
) -> Generator[Pass, Any, list[Any]]:
    """Exact quantiles of each column: `yield from` it in a recipe. NaN is no value.

    Args:
        seen: What is done with rows before; their X is to be an array of float64 or a csr matrix.
        shares: For each column, which quantiles, from 0 to 1.
        method: As numpy.quantile's; or "median", the mean of the two in the middle as numpy.median has it, for any share.

    Returns:
        An array for each column, with as many values; NaN where a column has none.

    Cost: two or three passes, over rows that are kept. A state has 3 MB at most (and up to 1.5 kB per quantile beyond 2,000).
    """
    import numpy as np

    places: list[list[tuple[int, int, float]]] = [[] for _ in shares]

    def wanted(column: int, mass: float) -> list[float]:
        places[column] = [_place_of(method, int(mass), share) for share in shares[column]]
        return [low + 1.0 for low, _, _ in places[column]]

    found = yield from located(seen, len(shares), wanted)
    answers = []
    for column, asked in enumerate(shares):
        answer = np.full(len(asked), np.nan)
        for at, (low, high, part) in enumerate(places[column]):
            here = found[column][low + 1.0]
            answer[at] = _between(method, here.value, here.value if here.mass > high else here.after, part)
        answers.append(answer)
    return answers


def _place_of(method: str, n: int, share: float) -> tuple[int, int, float]:
    """The ranks of two neighbours, from 0, and how far the quantile is from the lower to the upper one.

    Source: NumPy, `_function_base_impl._QuantileMethods`, whose rounding this has.
    """
    import numpy as np

    if method == "median":
        return (n - 1) // 2, n // 2, 0.5
    if method in ("inverted_cdf", "closest_observation"):
        at = n * share - 1 - (0.5 if method == "closest_observation" else 0)
        low = int(np.floor(at))
        is_exact = at == low and (method == "inverted_cdf" or low % 2 == 1)
        low = min(max(0, low if is_exact else low + 1), n - 1)
        return low, low, 0.0
    if method == "linear":
        at = (n - 1) * share
    elif method == "averaged_inverted_cdf":
        at = n * share - 1
    else:
        alpha, beta = PLOTTING[method]
        at = n * share + (alpha + share * (1 - alpha - beta)) - 1
    if at < 0 or at >= n - 1:
        low = 0 if at < 0 else n - 1
        return low, low, 0.0
    low = int(np.floor(at))
    part = at - low
    if method == "averaged_inverted_cdf":
        part = 0.5 if part == 0 else 1.0
    return low, low + 1, float(part)


def _between(method: str, low: float, high: float, part: float) -> float:
    """Source: NumPy, `_lerp`, whose rounding this has."""
    if low == high:
        return low
    if method == "median":
        return (low + high) / 2
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


def weighted_quantiles(
    seen: tuple[Seen, ...], shares: Sequence[Sequence[float]], average: bool
) -> Generator[Pass, Any, list[Any]]:
    """The smallest value of each column up to which there is a share of all weights.

    Args:
        seen: See `quantiles`.
        shares: See `quantiles`.
        average: Where there is exactly this share, the mean of this value and the next one.

    Source: scikit-learn, `utils.stats._weighted_percentile`.
    """
    import numpy as np

    places: list[list[float]] = [[] for _ in shares]

    def wanted(column: int, mass: float) -> list[float]:
        places[column] = [share * mass or float(np.nextafter(0.0, 1.0)) for share in shares[column]]
        return places[column]

    found = yield from located(seen, len(shares), wanted, weighted=True)
    answers = []
    for column, asked in enumerate(shares):
        answer = np.full(len(asked), np.nan)
        for at, target in enumerate(places[column]):
            here = found[column][target]
            is_above = not average or here.mass - target > np.finfo(np.float64).eps
            answer[at] = here.value if is_above else (here.value + here.after) / 2
        answers.append(answer)
    return answers
