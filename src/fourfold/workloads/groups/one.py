"""The fit of one group, in a worker: what its own `fit` makes of a clone of the estimator and the rows of the group."""

import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fourfold.execute import current
from fourfold.workloads.groups.keys import Key, number_of
from fourfold.workloads.groups.pickled import Pickled
from fourfold.workloads.groups.rows import Examples, Group, GroupRows

OK, TOO_FEW_ROWS, ONE_CLASS, ERROR, CRASHED, TIMED_OUT = "ok", "too_few_rows", "one_class", "error", "crashed", "timed_out"
STATUS_OF = {"raised": ERROR, "crashed": CRASHED, "out of memory": CRASHED, "timed out": TIMED_OUT}
"""What a group is called whose fit failed in this way."""

SEEDS = 1 << 31
"""Seeds are below this: scikit-learn takes no larger ones everywhere."""


class Fitted(NamedTuple):
    """What came of one group.

    Attributes:
        status: OK, or ONE_CLASS.
        seconds: What its fit took.
        score: What `score=` makes of the rows it was fitted to; None without.
        error: Why there is no model.
        model: None when there is none.
        classes: Those that it has seen; none of one that is no classifier of one target.
    """

    status: str
    seconds: float
    score: float | None
    error: str
    model: Pickled | None
    classes: tuple[Any, ...] = ()


class Recipe(NamedTuple):
    """How each group is fitted.

    Attributes:
        estimator: Not fitted; clones of it are.
        weight_name: What its `fit` calls weights.
        score: None, the name of a metric of scikit-learn, or a function of a fitted estimator, X and y.
        seed: Root of random numbers, beside the key.
        seeds_globals: The states of `random` and `numpy.random` are this worker's own, and are seeded too.
        rows: In a recorded run, a digest of where rows come from: a group of other rows is not what was recorded.
    """

    estimator: Any
    weight_name: str = "sample_weight"
    score: Any = None
    seed: int | None = None
    seeds_globals: bool = False
    rows: str = ""


class FitGroup:
    """Called with each group."""

    def __init__(self, recipe: Recipe, rows: GroupRows) -> None:
        self._recipe, self._rows = recipe, rows.of_one_worker()
        self._seeds = unseeded(recipe.estimator)
        self._limits = _too_many_jobs(recipe.estimator)
        self._score = _scorer(recipe.score)

    def __call__(self, group: Group) -> Fitted:
        """Fit one group.

        Raises:
            Exception: Whatever its fit raises, unless that is for want of a second class.
        """
        rows = self._rows.of(group)
        current.renew()  # to read them has a time of its own
        number = number_of(group.key)
        if self._recipe.seeds_globals:
            assert self._recipe.seed is not None
            current.seed_globals(self._recipe.seed, number)
        with current.numbered(number, self._recipe.seed or 0):
            return self._fitted(group.key, rows)

    def _fitted(self, key: Key, rows: Examples) -> Fitted:
        from sklearn.base import clone

        estimator = clone(self._recipe.estimator)
        _set(estimator, {name: seed_of(key, name, self._recipe.seed) for name in self._seeds})
        _set(estimator, dict.fromkeys(self._limits, 1))
        given = {} if rows.weight is None else {self._recipe.weight_name: rows.weight}
        began = time.perf_counter()
        try:
            estimator.fit(rows.X, *(() if rows.y is None else (rows.y,)), **given)
        except Exception as error:
            if not _has_one_class(estimator, rows.y):
                raise
            return Fitted(ONE_CLASS, time.perf_counter() - began, None, f"{type(error).__name__}: {error}", None)
        seconds = time.perf_counter() - began
        score = None if self._score is None else float(self._score(estimator, rows.X, rows.y))
        _set(estimator, self._limits)
        return Fitted(OK, seconds, score, "", Pickled.of(estimator), _classes_of(estimator))


def seed_of(key: Key, name: str, seed: int | None) -> int:
    """The `random_state` of a group's estimator: the same for the same key, on any worker and among any other groups."""
    return int.from_bytes(number_of((*key, name, seed or 0)).to_bytes(8, "little")[:4], "little") % SEEDS


def unseeded(estimator: Any) -> list[str]:
    """The parameters that are a `random_state` of None: what comes of a fit would be another each time."""
    return [
        name
        for name, value in sorted(estimator.get_params(deep=True).items())
        if value is None and name.rpartition("__")[2] == "random_state"
    ]


def _too_many_jobs(estimator: Any) -> dict[str, Any]:
    """The parameters `n_jobs` that ask for more than this worker has: groups run beside each other already."""
    if not current.in_worker_process():
        return {}
    return {
        name: value
        for name, value in estimator.get_params(deep=True).items()
        if name.rpartition("__")[2] == "n_jobs" and isinstance(value, int) and value != 1
    }


def _set(estimator: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if "__" in name:
            estimator.set_params(**{name: value})
        else:
            setattr(estimator, name, value)  # what set_params does, without the 0.1 ms to look at all of them


def _has_one_class(estimator: Any, y: Any) -> bool:
    import pandas as pd
    from sklearn.base import is_classifier

    return y is not None and is_classifier(estimator) and not pd.isna(y).any() and len(pd.unique(y)) < 2


def _scorer(score: Any) -> Callable[[Any, Any, Any], Any] | None:
    if not isinstance(score, str):
        return score  # type: ignore[no-any-return]
    from sklearn.metrics import get_scorer

    return get_scorer(score)  # type: ignore[no-any-return]


def _classes_of(estimator: Any) -> tuple[Any, ...]:
    found: Any = getattr(estimator, "classes_", None)
    return tuple(found.tolist()) if getattr(found, "ndim", 0) == 1 else ()


def classes_of(ended: Iterable[Any]) -> bytes:
    """All classes that models have seen, as a pickled list in order; nothing when there are none."""
    found = list({value: None for each in ended if isinstance(each, Fitted) for value in each.classes})
    try:
        found.sort()
    except TypeError:  # texts of one group, and numbers of another
        found.sort(key=lambda value: (type(value).__name__, repr(value)))
    return pickle.dumps(found, protocol=5) if found else b""


def weight_name_of(estimator: Any) -> str:
    """What `fit` calls weights: of a Pipeline they are for its last step."""
    steps: Sequence[Any] = getattr(estimator, "steps", ())
    return f"{steps[-1][0]}__sample_weight" if steps else "sample_weight"
