"""The first steps of a pipeline, fitted once per fold for all candidates that have them alike.

    scale ── pca 5 ──┬── C 0.1          here all share the first step, and four in each group the second:
                     ├── C 1            a group is one unit, so that one worker fits what they share
                     └── C 10           and each candidate the rest.
          ── pca 9 ──┬── C 0.1
                     └── C 1

A Pipeline asks its `memory` for each step that it fits, so what is shared is given to it there, and its `fit` stays
scikit-learn's own.
"""

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MOST = 8
"""Candidates in a group at most. Smaller: shared steps are fitted more often, once per group. Larger: fewer units, which may
not suffice for all workers. With eight, steps that take as long as all else cost an eighth of it."""

UNITS_PER_WORKER = 4
"""Groups are made smaller where there would be fewer units than that for each worker. Fewer: workers wait for the last unit.
More: shared steps are fitted more often."""

Path = tuple[Any, ...]
"""What tells the shared steps of candidates apart: one entry for each step, from the first. Alike means fitted alike."""


class Candidate(NamedTuple):
    """Parameters to try; `path` has an entry for each of the first steps that others share, and is empty where none do."""

    number: int
    params: Mapping[str, Any]
    path: Path = ()


# ---- here: who shares what -----------------------------------------------------------------------------------------------


def most_in_group(n_fits: int, n_workers: int) -> int:
    """How many candidates a group has at most, where so many fits are to keep so many workers busy."""
    return min(MOST, max(1, n_fits // (UNITS_PER_WORKER * n_workers)))


def grouped(estimator: Any, candidates: Sequence[Mapping[str, Any]], most: int = MOST) -> list[list[Candidate]]:
    """The candidates, in groups of at most so many that share their first steps; one that shares nothing is one by itself."""
    values = Values()
    base = _Steps(estimator) if is_shareable(estimator) else None
    paths = [base.path_of(params, values) if base is not None else () for params in candidates]
    counts = Counter(path[:depth] for path in paths for depth in range(1, len(path) + 1))
    groups: dict[Any, list[Candidate]] = {}
    for index, (params, path) in enumerate(zip(candidates, paths, strict=True)):
        depth = max((d for d in range(1, len(path) + 1) if counts[path[:d]] > 1), default=0)
        shared = path[:depth]
        groups.setdefault(shared or index, []).append(Candidate(index, params, shared))
    return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]


def is_shareable(estimator: Any) -> bool:
    """Whether it is scikit-learn's own Pipeline, of several steps, without a memory: one that has it shares already."""
    from sklearn.pipeline import Pipeline

    return type(estimator) is Pipeline and estimator.memory is None and len(estimator.steps) > 1


class _Steps:
    """The steps of a pipeline, as its user gave them."""

    def __init__(self, pipeline: Any) -> None:
        self._steps = list(pipeline.steps)
        self._names = {name for name, _ in self._steps}

    def path_of(self, params: Mapping[str, Any], values: "Values") -> Path:
        """The steps before the last with these parameters; those that do nothing are left out."""
        if any(name.partition("__")[0] not in self._names for name in params):
            return ()  # of the pipeline itself: other steps, a memory
        path = []
        for name, step in self._steps[:-1]:
            step = params.get(name, step)
            if step is None or (isinstance(step, str) and step == "passthrough"):
                continue
            mine = {key: value for key, value in params.items() if key.partition("__")[0] == name}
            if _says_so(mine) or any(_writes(value) for value in (step, *mine.values())):
                break  # the rows are not the same behind it, and a score of the rows of training would see that
            path.append((name, *((key, values.number_of(mine[key])) for key in sorted(mine))))
        return tuple(path)


class Values:
    """Numbers for the values of parameters: the same number means that two fits are alike."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._kept: list[Any] = []

    def number_of(self, value: Any) -> int:
        is_plain = value is None or isinstance(value, bool | int | float | str)
        key = (type(value), value) if is_plain else id(value)
        if not is_plain:
            self._kept.append(value)  # its id is another's when it is gone
        return self._numbers.setdefault(key, len(self._numbers))

    def key_of(self, params: Mapping[str, Any]) -> Any:
        """The same for the same parameters with the same values."""
        return tuple((name, self.number_of(params[name])) for name in sorted(params))


def _writes(step: Any) -> bool:
    """Whether a step says, by `copy=False`, that it writes into the rows that it is given."""
    return hasattr(step, "get_params") and not isinstance(step, type) and _says_so(step.get_params())


def _says_so(params: Mapping[str, Any]) -> bool:
    return any(name.rpartition("__")[2] == "copy" and value is False for name, value in params.items())


# ---- in a worker: fit it once --------------------------------------------------------------------------------------------


class Fitted(NamedTuple):
    """A step after its fit, what it made of the training rows, and what that took."""

    key: Any
    transformer: Any
    rows: Any
    elapsed_s: float


class Shared:
    """The shared steps that were fitted last, on one fold."""

    def __init__(self) -> None:
        self._split: int | None = None
        self._fitted: list[Fitted] = []

    def of(self, split: int, path: Path) -> "OneFit":
        """What stands in for the memory of a pipeline in its next fit."""
        if split != self._split:
            self._split, self._fitted = split, []
        return OneFit(self._fitted, path)


class OneFit:
    """The memory of a Pipeline for one fit; after that it is none, and copies of the pipeline have none."""

    location = None

    def __init__(self, fitted: list[Fitted], path: Path) -> None:
        self._fitted, self._path, self._at = fitted, path, 0
        self._is_used = False
        self.saved_s = 0.0

    def cache(self, function: Callable[..., Any], ignore: Iterable[str] = ()) -> Callable[..., Any]:
        """What a Pipeline calls for each step: the function, or what it made before."""
        if self._is_used:
            return function
        self._is_used = True

        def fit_step(*args: Any, **named: Any) -> Any:
            at, self._at = self._at, self._at + 1
            if at >= len(self._path):
                return function(*args, **named)
            if at < len(self._fitted) and self._fitted[at].key == self._path[at]:
                return self._again(at)
            del self._fitted[at:]
            began = time.perf_counter()
            rows, transformer = function(*args, **named)
            elapsed_s = time.perf_counter() - began
            try:
                kept = copy.deepcopy(rows)  # the steps behind may write into what they are given
            except Exception:  # it cannot be copied, and so not be shared
                self._path = self._path[:at]
            else:
                self._fitted.append(Fitted(self._path[at], transformer, kept, elapsed_s))
            return rows, transformer

        return fit_step

    def _again(self, at: int) -> tuple[Any, Any]:
        self.saved_s += self._fitted[at].elapsed_s
        is_last = at + 1 >= min(len(self._path), len(self._fitted)) or self._fitted[at + 1].key != self._path[at + 1]
        rows = self._fitted[at].rows
        return (copy.deepcopy(rows) if is_last else rows), self._fitted[at].transformer

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()
