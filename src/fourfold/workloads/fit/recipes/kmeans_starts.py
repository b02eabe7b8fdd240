"""Where KMeans starts: the same rows that scikit-learn draws with the same random_state, found by passes.

A draw is a place on a line on which each row has a length, its weight or its squared distance. One pass measures the batches
of rows, which says in which batch the place is; the next one looks there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import Fit, Pass, Rows, Seen
from fourfold.workloads.fit.threads import one_thread
from fourfold.workloads.fit.together import together


class Batch(NamedTuple):
    """Some consecutive rows.

    Attributes:
        first: The number of the first one.
        masses: The lengths of all of them together; one for each candidate.
    """

    first: int
    masses: Any


class Masses:
    """How long the batches of rows are: a list, which has one entry for each.

    Args:
        centers: A row is as long as the square of its distance from the nearest of these, times its weight. None: its weight.
        candidates: For each, how long rows would be with this center besides; None: one length, without any.
    """

    def __init__(self, centers: Any = None, candidates: Any = None) -> None:
        self.centers, self.candidates = centers, candidates

    def fold(self, rows: Rows) -> list[Batch]:
        """Of one batch."""
        import numpy as np

        weight = np.ones(rows.n_rows) if rows.weight is None else rows.weight
        with one_thread():
            lengths = _lengths(rows, self.centers)
            if self.candidates is None:
                return [Batch(rows.first or 0, np.array([lengths @ weight]))]
            distances = _distances(self.candidates, rows.X)
            return [Batch(rows.first or 0, np.minimum(lengths, distances, out=distances) @ weight)]

    def combine(self, left: list[Batch], right: list[Batch]) -> list[Batch]:
        """Of both."""
        return [*left, *right]

    def finish(self, state: list[Batch]) -> list[Batch]:
        """As they are."""
        return state


class Drawn(NamedTuple):
    """A row at a place of the line: its number, its weight, and its values."""

    number: int
    weight: float
    values: Any


class RowsAt:
    """Finds the rows at some places of the line.

    Args:
        centers: See `Masses`.
        places: By the numbers of first rows of batches: for each place there its number, and how far it is from the beginning.
        without: The numbers of rows that have no length.
        side: "right" where the place at which a row ends is in the next one, as for numpy.searchsorted.
    """

    def __init__(
        self, centers: Any, places: dict[int, list[tuple[int, float]]], without: Sequence[int] = (), side: Any = "left"
    ) -> None:
        self.centers, self.places, self.without, self.side = centers, places, list(without), side

    def fold(self, rows: Rows) -> dict[int, Drawn]:
        """By the numbers of places."""
        import numpy as np

        first = rows.first or 0
        if first not in self.places:
            return {}
        weight = np.ones(rows.n_rows) if rows.weight is None else rows.weight
        with one_thread():
            lengths = _lengths(rows, self.centers) * weight
        lengths[[number - first for number in self.without if first <= number < first + rows.n_rows]] = 0
        ends = np.cumsum(lengths)
        found = {}
        for number, place in self.places[first]:
            at = min(int(np.searchsorted(ends, place, side=self.side)), int(np.searchsorted(ends, ends[-1])))
            row = rows.X[[at]]
            values = row.toarray()[0] if hasattr(row, "tocsr") else np.array(row[0])
            found[number] = Drawn(first + at, float(weight[at]), values)
        return found

    def combine(self, left: dict[int, Drawn], right: dict[int, Drawn]) -> dict[int, Drawn]:
        """Of both."""
        return left | right

    def finish(self, state: dict[int, Drawn]) -> list[Drawn]:
        """In the order of the places."""
        return [state[number] for number in sorted(state)]


def _distances(centers: Any, X: Any) -> Any:
    from sklearn.metrics.pairwise import _euclidean_distances
    from sklearn.utils.extmath import row_norms

    return _euclidean_distances(centers, X, Y_norm_squared=row_norms(X, squared=True), squared=True)


def _lengths(rows: Rows, centers: Any) -> Any:
    import numpy as np

    return np.ones(rows.n_rows) if centers is None else _distances(centers, rows.X).min(axis=0)


def starts(estimator: Any, view: tuple[Seen, ...], random: Any, spread: Any, mean: Any) -> Fit:
    """The first centers of each of `n_init` runs, among rows of this view. Ends with a list of arrays.

    Source: scikit-learn, `KMeans._init_centroids`.
    """
    from sklearn.utils.validation import check_array

    k, n_runs = estimator.n_clusters, estimator._n_init
    if isinstance(estimator.init, str) and estimator.init == "k-means++":
        n_trials = _n_trials(k)
        draws = [[random.random_sample(), *(random.uniform(size=n_trials) for _ in range(1, k))] for _ in range(n_runs)]
        found = yield from together([_spread_out(view, each) for each in draws])
        return found
    if isinstance(estimator.init, str):
        if spread.n_weighted < k:
            raise ValueError("Fewer non-zero entries in p than size")
        batches = yield Pass(Masses(), view, keep=True)
        found = []
        for _ in range(n_runs):
            found.append((yield from _at_random(view, k, random, batches)))
        return found
    if callable(estimator.init):
        raise OptionError(
            "init= is a function that wants all rows at once, and here nobody has them: give the centers as an array, or "
            '"k-means++" or "random"'
        )
    centers = check_array(estimator.init, dtype="float64", copy=True, order="C")
    estimator._validate_center_shape(_Shape(mean), centers)
    return [centers - mean]


class _Shape:
    """Something with as many columns, and no values."""

    def __init__(self, mean: Any) -> None:
        self.shape = (0, len(mean))


def _n_trials(k: int) -> int:
    import numpy as np

    return 2 + int(np.log(k))


def _placed(batches: Sequence[Batch], which: int, shares: Any, side: Any) -> dict[int, list[tuple[int, float]]]:
    """In which batch each of these places is, and how far from its beginning. Places are shares of the whole line."""
    import numpy as np

    ends = np.cumsum([batch.masses[which] for batch in batches])
    places: dict[int, list[tuple[int, float]]] = {}
    for number, share in enumerate(np.atleast_1d(shares)):
        place = share * ends[-1]
        at = min(int(np.searchsorted(ends, place, side=side)), int(np.searchsorted(ends, ends[-1])))
        places.setdefault(batches[at].first, []).append((number, place - (ends[at - 1] if at else 0.0)))
    return places


def _spread_out(view: tuple[Seen, ...], draws: Sequence[Any]) -> Fit:
    """Centers far from each other: k-means++. Source: scikit-learn, `_kmeans_plusplus`."""
    import numpy as np

    batches = yield Pass(Masses(), view, keep=True)
    first = yield Pass(RowsAt(None, _placed(batches, 0, draws[0], "right"), side="right"), view, keep=True)
    centers = first[0].values[None]
    if len(draws) > 1:
        batches, best = (yield Pass(Masses(centers), view, keep=True)), 0
    for shares in draws[1:]:
        drawn = yield Pass(RowsAt(centers, _placed(batches, best, shares, "left")), view, keep=True)
        candidates = np.array([each.values for each in drawn])
        batches = yield Pass(Masses(centers, candidates), view, keep=True)
        best = int(np.argmin(np.sum([batch.masses for batch in batches], axis=0)))
        centers = np.vstack([centers, candidates[best]])
    return centers


def _at_random(view: tuple[Seen, ...], k: int, random: Any, batches: Sequence[Batch]) -> Fit:
    """Different rows, by their weights. Source: NumPy, `RandomState.choice` without replacement."""
    import numpy as np

    found: dict[int, Drawn] = {}
    firsts = [batch.first for batch in batches]
    while len(found) < k:
        left = [batch._replace(masses=batch.masses.copy()) for batch in batches]
        for drawn in found.values():
            left[int(np.searchsorted(firsts, drawn.number, side="right")) - 1].masses[0] -= drawn.weight
        places = _placed(left, 0, random.rand(k - len(found)), "right")
        for drawn in (yield Pass(RowsAt(None, places, list(found), "right"), view, keep=True)):
            found.setdefault(drawn.number, drawn)
    return np.array([drawn.values for drawn in found.values()])
