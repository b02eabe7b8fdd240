"""Passes over parts of an array, without a dataset: for recipes, and what they are made of."""

import pickle
from collections.abc import Generator
from itertools import pairwise
from typing import Any

import numpy as np

from fourfold.workloads.fit.contract import Pass, Rows, drive


class Parts:
    """Does passes over parts of rows, and remembers how many, and the greatest state."""

    def __init__(self, X: Any, n_parts: int, weight: Any = None, y: Any = None) -> None:
        ends = np.linspace(0, X.shape[0], n_parts + 1).astype(int)
        cuts = [slice(*both) for both in pairwise(ends) if both[1] > both[0]]
        self.rows = [Rows(X[cut], *(None if each is None else each[cut] for each in (y, weight))) for cut in cuts]
        self.n_passes, self.state_bytes = 0, 0

    def run(self, passes: list[Pass]) -> list[Any]:
        self.n_passes += 1
        return [self._finished(each) for each in passes]

    def _finished(self, wanted: Pass) -> Any:
        state = self._state(wanted, self.rows[0])
        for rows in self.rows[1:]:
            state = wanted.aggregator.combine(state, self._state(wanted, rows))
        self.state_bytes = max(self.state_bytes, len(pickle.dumps(state)))
        return wanted.aggregator.finish(state)

    def _state(self, wanted: Pass, rows: Rows) -> Any:
        for seen in wanted.seen:
            rows = seen(rows)
        return wanted.aggregator.fold(rows)

    def finds(self, fit: Generator[Any, Any, Any]) -> Any:
        return drive(fit, self.run)


class Numbered(Parts):
    """Rows that have been counted, as they are from the second pass on."""

    def run(self, passes: list[Pass]) -> list[Any]:
        found, first = super().run(passes), 0
        for at, rows in enumerate(self.rows):
            self.rows[at] = rows._replace(first=first)
            first += rows.n_rows
        return found
