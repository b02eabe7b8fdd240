"""Passes over parts of an array, without a dataset: for recipes, and what they are made of."""

import pickle
from collections.abc import Generator
from itertools import pairwise
from typing import Any

import numpy as np

from fourfold.workloads.fit.contract import Pass, Rows, drive


class Parts:
    """Does passes over parts of rows, and remembers how many, and the greatest state."""

    def __init__(self, X: Any, n_parts: int, weight: Any = None) -> None:
        ends = np.linspace(0, X.shape[0], n_parts + 1).astype(int)
        cuts = [slice(*both) for both in pairwise(ends) if both[1] > both[0]]
        self.rows = [Rows(X[cut], None, None if weight is None else weight[cut]) for cut in cuts]
        self.n_passes, self.state_bytes = 0, 0

    def run(self, passes: list[Pass]) -> list[Any]:
        self.n_passes += 1
        return [self._finished(each) for each in passes]

    def _finished(self, wanted: Pass) -> Any:
        state = wanted.aggregator.fold(self.rows[0])
        for rows in self.rows[1:]:
            state = wanted.aggregator.combine(state, wanted.aggregator.fold(rows))
        self.state_bytes = max(self.state_bytes, len(pickle.dumps(state)))
        return wanted.aggregator.finish(state)

    def finds(self, fit: Generator[Any, Any, Any]) -> Any:
        return drive(fit, self.run)
