"""`ff.SearchCV` against GridSearchCV, both with as many processes as there are cores: the table of scores must be the same.

The grid of the digits has 80 fits that share nothing. In the other one eight candidates share each PCA. The last has forests
of very different sizes, the largest at the end, as a grid lists them.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import asdict
from typing import Any

import numpy as np
from fourfolds import start_workers
from fresh import FreshProcessFailed, in_fresh_process
from measure import Contestant, Lap, race, usable_cores
from rows import FOURFOLD, Row, against_the_best_peer, without_figure

import fourfold as ff

BAR_GRID, BAR_SHARED, BAR_SKEWED = 1.0, 0.65, 1.0
SKLEARN = "GridSearchCV"
TIMEOUT_S = 900.0

# Each pixel of the digits becomes so many in each direction, with noise: a PCA then takes as long as some fits of an SVC.
ENLARGED = 3


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Each grid in a process of its own: one that fails costs its own row only."""
    found = []
    for case in ("digits", "shared", "forests"):
        try:
            found.append(
                Row(**in_fresh_process("p12_search", "measured", timeout_s=TIMEOUT_S, case=case, n=rounds, q=is_quick))
            )
        except FreshProcessFailed as error:
            found.append(without_figure("P12", f"the search {case} could not be measured", str(error)))
    return found


def measured(case: str, n: int, q: bool) -> dict[str, Any]:
    """One grid: `n` rounds of both; `q` takes a tenth of the rows."""
    from sklearn.model_selection import GridSearchCV

    what, bar, estimator, space, X, y = CASES[case]()
    X, y = (X[::10], y[::10]) if q else (X, y)
    workers = usable_cores()
    start_workers(workers)
    searches = {
        SKLEARN: GridSearchCV(estimator, space, n_jobs=workers, refit=False),
        FOURFOLD: ff.SearchCV(estimator, space, method="grid", n_jobs=workers, refit=False),
    }
    for search in searches.values():  # both have their processes, and these what they import
        search.fit(X[::20], y[::20])
    contestants = [Contestant(name, {"": lambda s=search: lap(s, X, y)}) for name, search in searches.items()]
    return asdict(against_the_best_peer("P12", f"{what}, {len(X):,} × {X.shape[1]}", race(contestants, n), [SKLEARN], bar))


def lap(search: Any, X: Any, y: Any) -> Lap:
    """One search, whose answer is its table of scores."""
    began = time.perf_counter()
    search.fit(X, y)
    elapsed_s = time.perf_counter() - began
    scores = search.cv_results_["mean_test_score"].round(10)
    return Lap(elapsed_s, f"{zlib.crc32(scores.tobytes()):08x}", f"best {scores.max():.4f}")


def digits() -> tuple[Any, ...]:
    """80 fits of an SVC."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    space = {"C": [0.1, 1, 10, 100], "gamma": [1e-4, 5e-4, 1e-3, 5e-3]}
    return "grid of 16 SVC × 5 folds", BAR_GRID, SVC(), space, *load_digits(return_X_y=True)


def shared() -> tuple[Any, ...]:
    """80 fits, of which eight share a PCA."""
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.pipeline import Pipeline
    from sklearn.svm import SVC

    X, y = load_digits(return_X_y=True)
    large = np.kron(X.reshape(-1, 8, 8), np.ones((1, ENLARGED, ENLARGED))).reshape(len(X), -1)
    large += np.random.default_rng(0).normal(size=large.shape)
    estimator = Pipeline([("pca", PCA(svd_solver="full")), ("svc", SVC())])
    space = {"pca__n_components": [16, 32], "svc__C": [0.1, 1, 10, 100], "svc__gamma": [1e-4, 1e-3]}
    return "grid of 2 PCA × 8 SVC × 5 folds", BAR_SHARED, estimator, space, large, y


def forests() -> tuple[Any, ...]:
    """50 fits, the longest of which are the last."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    space = {"n_estimators": [5, 10, 20, 40, 300], "max_features": ["sqrt", 0.3]}
    estimator = RandomForestClassifier(random_state=0)
    return "grid of 10 forests × 5 folds", BAR_SKEWED, estimator, space, *load_digits(return_X_y=True)


CASES = {"digits": digits, "shared": shared, "forests": forests}
