"""Which candidates a search tries: all, drawn, or proposed by what has scored well before."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, log
from typing import Any

from sklearn.model_selection import ParameterGrid, ParameterSampler

from fourfold.workloads.tune.search.spaces import for_grid, for_sampling, parts_of

N_TRIALS = 10
"""Candidates of "random" and "tpe" when nobody says how many, as RandomizedSearchCV has it."""


def generated(search: Any) -> Any:
    """The candidates that do not depend on the scores of others: an iterable with a length."""
    if search.method == "grid":
        return ParameterGrid(for_grid(parts_of(search.space)))
    parts, n_trials = _drawn(search)
    if search.n_trials is not None and n_trials < search.n_trials:
        warnings.warn(
            f"n_trials={search.n_trials} is more than the {n_trials} candidates of the space: each of them is tried once, as "
            'method="grid" does',
            UserWarning,
            stacklevel=2,
        )
    return ParameterSampler(parts, n_trials, random_state=search.random_state)


def _drawn(search: Any) -> tuple[list[dict[str, Any]], int]:
    """A space of which candidates are drawn, and how many: of one that has an end, no more than there are."""
    parts, n_trials = for_sampling(parts_of(search.space)), n_trials_of(search)
    if not any(hasattr(values, "rvs") for part in parts for values in part.values()):
        n_trials = min(n_trials, len(ParameterGrid(parts)))
    return parts, n_trials


def n_trials_of(search: Any) -> int:
    """How many are drawn, or proposed."""
    if search.n_trials is not None:
        return int(search.n_trials)
    return int(search.max_resources_ // search.min_resources_) if search.method == "halving" else N_TRIALS


def proposed(search: Any, score: Callable[[Sequence[Mapping[str, Any]]], Sequence[float]]) -> Any:
    """Have candidates proposed and scored; returns the study of Optuna."""
    import numpy as np
    from sklearn.utils import check_random_state

    from fourfold.workloads.tune.search.tpe import Proposals

    seed = int(check_random_state(search.random_state).randint(np.iinfo(np.int32).max))
    proposals = Proposals(parts_of(search.space), seed)
    proposals.search(n_trials_of(search), score)
    return proposals.study


def has_rounds(search: Any) -> bool:
    """Whether some candidates are tried after others have their scores."""
    return search.method in ("halving", "tpe") or search.pruner is not None


def n_fits_of(search: Any) -> int | None:
    """How many fits there are in all rounds, when that can be told."""
    if search.pruner is not None:
        return None
    if search.method == "grid":
        n_candidates = len(generated(search))
    elif search.method == "tpe":
        n_candidates = n_trials_of(search)
    else:
        _, n_candidates = _drawn(search)
        if search.method == "halving":
            n_candidates = _n_in_halving(search, n_candidates)
    return n_candidates * int(search.n_splits_)


def _n_in_halving(search: Any, n_candidates: int) -> int:
    """Of all rounds together. Source: `BaseSuccessiveHalving._run_search` of scikit-learn."""
    factor, least, most = search.factor, search.min_resources_, search.max_resources_
    n_rounds = 1 + floor(log(n_candidates, factor))
    if search.min_resources == "exhaust":
        least = max(least, most // factor ** (n_rounds - 1))
    if not search.aggressive_elimination:
        n_rounds = min(n_rounds, 1 + floor(log(most // least, factor)))
    total = 0
    for _ in range(n_rounds):
        total += n_candidates
        n_candidates = ceil(n_candidates / factor)
    return total
