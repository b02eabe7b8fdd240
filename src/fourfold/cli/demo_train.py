"""The training of the demo: columns and a logistic regression fitted from parts of the rows, and one model per carrier.

features/ ──split by row──┬─ 80 % ──fit(Pipeline)──────────> model.joblib      beside scikit-learn, all rows in memory
                          │       └─fit_groups(by carrier)─> 16 models         beside the loop over carriers
                          └─ 20 % ──> how well both tell late flights from others
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

    from fourfold.workloads.dataset import Dataset
    from fourfold.workloads.groups.models import GroupModels

CATEGORIES = ("carrier", "origin", "dest")
"""Features that are names, beside the numbers."""


class Settings(NamedTuple):
    """What is tuned.

    Attributes:
        bins: Each number becomes so many columns, of which one is 1, so that any curve can be learned; 0: it stays.
        rare: Names that a smaller share of flights has become one.
        penalty: On squares of coefficients, as a share of the mean loss: the same for a sample of the flights as for all.
    """

    bins: int
    rare: float
    penalty: float


UNTUNED = Settings(0, 0.002, 1e-5)
"""What one would write without a search."""

HELD_OUT = 0.2
"""Share of the flights that no model is fitted to."""

SOLVER = "newton-cholesky"
"""Of scikit-learn, for its own fits: with as many rows as these "lbfgs" needs 50 times the iterations for the same digits."""

SAME = 1e-5
"""By so much a chance may differ from scikit-learn's: each stops when its gradient is small, somewhere near the same point."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One estimator, fitted both ways.

    Attributes:
        n_rows: That it was fitted to.
        theirs_s, ours_s: Seconds of scikit-learn and of fourfold; both read the rows themselves.
        difference: By how much a chance differs at most between the two, of rows that were held out.
        ours, theirs: The fitted estimators; of groups all models by key.
    """

    n_rows: int
    theirs_s: float
    ours_s: float
    difference: float
    ours: Any
    theirs: Any


def model(n_rows: int, settings: Settings = UNTUNED) -> Any:
    """A Pipeline that is not fitted: numbers and names become columns, and the chance is logistic.

    Args:
        n_rows: That it will be fitted to.
        settings: What is tuned.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder

    from fourfold.cli.demo_flights import FEATURES

    encoder = OneHotEncoder(min_frequency=settings.rare, handle_unknown="infrequent_if_exist")
    columns = ColumnTransformer([("numbers", numbers(settings.bins), list(FEATURES)), ("names", encoder, list(CATEGORIES))])
    chance = LogisticRegression(C=1 / (settings.penalty * n_rows), solver=SOLVER, tol=1e-6)
    return Pipeline([("columns", columns), ("chance", chance)])


def model_of_carrier() -> Any:
    """The same without names: within a carrier few of them vary."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

    return Pipeline([*numbers().steps, ("chance", LogisticRegression(solver=SOLVER))])


def numbers(bins: int = 0) -> Any:
    """What is done with numbers."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import KBinsDiscretizer, StandardScaler

    cut = KBinsDiscretizer(bins, subsample=None, quantile_method="averaged_inverted_cdf") if bins else None
    return Pipeline(
        [("fill in", SimpleImputer(keep_empty_features=True)), ("cut", cut) if cut else ("scale", StandardScaler())]
    )


@contextmanager
def without_warnings() -> Iterator[None]:
    """A block in which scikit-learn does not say that fewer bins are enough: of most hours, there is no rain to be cut."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Bins whose width are too small")
        yield


def flights(features: Path) -> tuple[Dataset, Dataset]:
    """Those that models are fitted to, and those that are held out, of all that arrived."""
    import pyarrow.compute as pc

    from fourfold.cli.demo_flights import TARGET
    from fourfold.workloads.scan import scan

    train, held_out = scan(features).filter(pc.field(TARGET).is_valid()).split(HELD_OUT, seed=0)
    return train, held_out


def fit(train: Dataset, held_out: pd.DataFrame, settings: Settings, options: dict[str, Any]) -> Trained:
    """The model of all flights, by scikit-learn with all rows in memory, and by fourfold from parts of them.

    Raises:
        Bug: They say different chances.
    """
    from fourfold.cli.demo_flights import FEATURES, TARGET

    columns = [*FEATURES, *CATEGORIES]
    with without_warnings():
        (theirs, n_rows), theirs_s = timed(lambda: _by_scikit_learn(train, columns, settings))
        again = model(n_rows, settings)
        ours, ours_s = timed(lambda: train.fit(again, target=TARGET, features=columns, **options))
    difference = differ([(ours, theirs, held_out[columns])])
    return Trained(n_rows, theirs_s, ours_s, difference, ours, theirs)


def _by_scikit_learn(train: Dataset, columns: Sequence[str], settings: Settings) -> tuple[Any, int]:
    from fourfold.cli.demo_flights import TARGET

    rows = train.select([*columns, TARGET]).to_pandas(engine="serial")
    return model(len(rows), settings).fit(rows[list(columns)], rows[TARGET]), len(rows)


def fit_carriers(train: Dataset, held_out: pd.DataFrame, folder: Path, options: dict[str, Any]) -> Trained:
    """One model per carrier, in the loop over carriers, and by fourfold.

    Raises:
        Bug: They say different chances.
    """
    from fourfold.cli.demo_flights import FEATURES, TARGET

    (theirs, n_rows), theirs_s = timed(lambda: _loop_over_carriers(train))

    def fit_groups() -> GroupModels:
        return train.fit_groups(model_of_carrier(), "carrier", TARGET, FEATURES, folder=str(folder), **options)

    ours, ours_s = timed(fit_groups)
    new = {carrier: rows[list(FEATURES)] for carrier, rows in held_out.groupby("carrier") if carrier in theirs}
    difference = differ([(ours[carrier], theirs[carrier], rows) for carrier, rows in new.items()])
    return Trained(n_rows, theirs_s, ours_s, difference, ours, theirs)


def _loop_over_carriers(train: Dataset) -> tuple[dict[str, Any], int]:
    from fourfold.cli.demo_flights import FEATURES, TARGET

    rows = train.select([*FEATURES, "carrier", TARGET]).to_pandas(engine="serial")
    of_carriers = rows.groupby("carrier")
    models = {
        carrier: model_of_carrier().fit(each[list(FEATURES)], each[TARGET])
        for carrier, each in of_carriers
        if each[TARGET].nunique() > 1  # of a few flights, all may be late: there is nothing to tell apart
    }
    return models, len(rows)


def differ(pairs: Sequence[tuple[Any, Any, pd.DataFrame]]) -> float:
    """By how much the chances of two models differ at most.

    Args:
        pairs: Of models, each with the rows that they are asked about.

    Raises:
        Bug: It is more than SAME.
    """
    import numpy as np

    from fourfold.errors import Bug

    most = float(np.max([abs(ours.predict_proba(rows) - theirs.predict_proba(rows)).max() for ours, theirs, rows in pairs]))
    if not most <= SAME:
        raise Bug(f"fourfold and scikit-learn say chances that differ by {most:.2g}; please report this")
    return most


def chance_of_carriers(models: GroupModels, rows: pd.DataFrame) -> pd.Series:
    """The chance of each flight to be late, by the model of its carrier; NaN where that has none."""
    import pandas as pd

    from fourfold.cli.demo_flights import FEATURES

    parts = [
        pd.Series(models[carrier].predict_proba(each[list(FEATURES)])[:, 1], each.index)
        for carrier, each in rows.groupby("carrier")
        if carrier in models
    ]
    return pd.concat(parts).reindex(rows.index)


def auc(rows: pd.DataFrame, chance: Any) -> float:
    """How well a chance tells late flights from others: the area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    from fourfold.cli.demo_flights import LATE, TARGET

    return float(roc_auc_score(rows[TARGET] == LATE, chance))


def save(fitted: Any, to: Path, rows: pd.DataFrame) -> None:
    """Write a model, whole or not at all; one that is there stays where it says the same of these rows.

    A recorded run knows its model by the bytes of its file, and the same model has other ones after each fit.
    """
    from fourfold.cli.fit import write

    if not (to.exists() and says_the_same(to, fitted, rows)):
        write(fitted, to)


def says_the_same(path: Path, fitted: Any, rows: pd.DataFrame) -> bool:
    """Whether the model in a file has the chances of this one, bit for bit."""
    import joblib

    try:
        there = joblib.load(path).predict_proba(rows)
    except Exception:  # another version's, or no model: it is written anew
        return False
    return bool(there.tobytes() == fitted.predict_proba(rows).tobytes())


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a function gives, and the seconds that it took."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start
