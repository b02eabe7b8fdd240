"""Rows with keys, the loop over their groups, and estimators that do what no group should."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from threadpoolctl import threadpool_limits

FEATURES = ["a", "b"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine a second thread for matrices of 50 rows takes a hundred times as long as they do."""
    with threadpool_limits(1):
        yield


def rows_of(n_groups: int, n_rows: int, seed: int = 0) -> pd.DataFrame:
    """Rows of groups in no order: a key `shop`, a text `town` that some shops share, two features and a target."""
    random = np.random.default_rng(seed)
    shop = random.integers(0, n_groups, n_rows)
    table = pd.DataFrame({"shop": shop, "town": [f"town {each % 7}" for each in shop], "a": random.normal(size=n_rows)})
    return table.assign(b=random.normal(size=n_rows), y=lambda t: t.a * (shop % 5) - t.b + random.normal(size=n_rows))


def loop(estimator: Any, rows: pd.DataFrame, by: Any, features: list[str] = FEATURES, target: str = "y") -> dict[Any, Any]:
    """What `fit_groups` is compared with: a clone for each group, one after the other."""
    groups = rows.groupby(by, dropna=False)
    return {key: clone(estimator).fit(part[features], part[target]) for key, part in groups}


class Mean(RegressorMixin, BaseEstimator):
    """The mean of the target, and what its rows were. The fastest estimator there is."""

    def __init__(self, random_state: Any = None) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Mean":
        self.mean_ = float(np.average(y, weights=sample_weight))
        self.rows_ = X.iloc[:, 0].tolist()
        return self

    def predict(self, X: Any) -> Any:
        return np.full(len(X), self.mean_)


class Deadly(Mean):
    """Does what the first feature of the first row says."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Deadly":
        match X.iloc[0, 0]:
            case 1.0:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 2.0:
                os._exit(3)
            case 3.0:
                time.sleep(600)
            case 4.0:
                raise ValueError("this group is odd")
        super().fit(X, y)
        return self


class Counted(Mean):
    """Notes each fit in a file; when there are `kill_at` of them, it kills its driver."""

    def __init__(self, notes: str = "", kill_at: int = 0) -> None:
        self.notes, self.kill_at = notes, kill_at

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Counted":
        with open(self.notes, "a", buffering=1) as file:
            file.write(f"{X.iloc[0, 0]:g}\n")
        if Path(self.notes).read_text().count("\n") == self.kill_at:
            os.kill(int(os.environ["DRIVER"]), signal.SIGKILL)
            time.sleep(60)
        super().fit(X, y)
        return self


class TwoClasses(ClassifierMixin, BaseEstimator):
    """Says the class that comes most often, and learns from no fewer than two."""

    def fit(self, X: Any, y: Any) -> "TwoClasses":
        self.classes_, counts = np.unique(y, return_counts=True)
        if len(self.classes_) < 2:
            raise ValueError("this needs two classes")
        self.most_ = self.classes_[counts.argmax()]
        return self

    def predict(self, X: Any) -> Any:
        return np.full(len(X), self.most_)
