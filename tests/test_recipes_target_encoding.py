"""TargetEncoder: `Dataset.fit` makes what its own fit makes of all rows, and of rows for later steps what `fit_transform` makes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from parts import Numbered
from sklearn.base import clone
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold
from sklearn.preprocessing import TargetEncoder
from tables import small_pieces
from test_recipes_categories import Cut, same, same_fitted

import fourfold as ff
from fourfold.workloads.fit.contract import About, Rows, Trained
from fourfold.workloads.fit.registry import fit_with

__all__ = ["small_pieces"]
N_ROWS = 224
FEATURES = ["city", "number", "rare"]
TARGETS = ["price", "far", "whole", "late", "word", "answer", "one"]


def frame() -> pd.DataFrame:
    """Categories with missing values, some in one row only; targets of all kinds."""
    rng = np.random.default_rng(0)
    city = rng.choice(["oslo", "rome", "lima", None], N_ROWS, p=[0.5, 0.3, 0.15, 0.05])
    return pd.DataFrame(
        {
            "city": city,
            "number": rng.integers(0, 5, N_ROWS),
            "rare": ["a"] * (N_ROWS - 1) + ["b"],
            "price": rng.normal(size=N_ROWS) + (city == "oslo"),
            "far": 1e8 + rng.normal(size=N_ROWS),
            "whole": rng.integers(0, 4, N_ROWS),
            "late": rng.integers(0, 2, N_ROWS),
            "word": rng.choice(["low", "middle", "highest"], N_ROWS),
            "answer": rng.choice(["yes", "no"], N_ROWS),
            "one": np.where(np.arange(N_ROWS) == 200, 2.5, 1.0),
        }
    )


CASES: list[tuple[Any, str]] = [
    *((TargetEncoder(cv=4), target) for target in TARGETS),
    (TargetEncoder(smooth=3.5), "price"),
    (TargetEncoder(smooth=0), "word"),
    (TargetEncoder(target_type="continuous"), "whole"),
    (TargetEncoder(target_type="binary"), "late"),
    (TargetEncoder(categories=[["oslo", "rome"], [0, 1, 2, 3, 4], ["a", "b", "c"]]), "price"),
]
NAMES = [f"{number}-{target}" for number, (_, target) in enumerate(CASES)]


@pytest.mark.parametrize("n_pieces", [1, 7])
@pytest.mark.parametrize(("encoder", "target"), CASES, ids=NAMES)
def test_it_is_what_its_own_fit_makes_of_all_rows(encoder: Any, target: str, n_pieces: int, small_pieces: Cut) -> None:
    small_pieces(N_ROWS // n_pieces, 1 << 20)
    rows = frame()
    fitted = ff.scan(rows).fit(clone(encoder), target, FEATURES, engine="serial")
    same_fitted(fitted, clone(encoder).fit(rows[FEATURES], rows[target]))


FOLDS: list[Any] = [
    KFold(4),
    KFold(3, shuffle=True, random_state=0),
    StratifiedKFold(5),
    StratifiedKFold(3, shuffle=True, random_state=1),
    [(np.arange(100, N_ROWS), np.arange(100)), (np.arange(100), np.arange(100, N_ROWS))],
]


@pytest.mark.parametrize("target", ["price", "late", "word"])
@pytest.mark.parametrize("cv", FOLDS, ids=[f"{number}-{type(cv).__name__}" for number, cv in enumerate(FOLDS)])
def test_later_steps_are_trained_on_rows_that_are_encoded_by_the_other_folds(cv: Any, target: str) -> None:
    if target == "price" and isinstance(cv, StratifiedKFold):
        cv = KFold(7)
    rows = frame()
    encoder = TargetEncoder(cv=cv, categories=[["oslo", "rome"], [0, 1, 2, 3, 4], ["a", "b"]])
    alone = clone(encoder)
    wanted = alone.fit_transform(rows[FEATURES], rows[target])
    trained, parts = cross_fitted(encoder, rows, target, 7)
    same_fitted(trained.estimator, alone)
    found = np.concatenate([trained.seen(part).X for part in parts.rows])
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def cross_fitted(encoder: Any, rows: pd.DataFrame, target: str, n_parts: int) -> tuple[Trained, Numbered]:
    """Fitted as the first step of several."""
    parts = Numbered(rows[FEATURES], n_parts, y=rows[target].to_numpy())
    about = About(rows[FEATURES].iloc[:0], len(FEATURES), has_target=True)
    return parts.finds(fit_with(encoder, about)), parts


@pytest.mark.filterwarnings("ignore:.*deprecated in version 1.9")
def test_the_seed_of_an_encoder_gives_the_folds_that_it_gives_alone() -> None:
    rows, encoder = frame(), TargetEncoder(random_state=3)
    wanted = clone(encoder).fit_transform(rows[FEATURES], rows["late"])
    trained, parts = cross_fitted(encoder, rows, "late", 5)
    np.testing.assert_allclose(np.concatenate([trained.seen(part).X for part in parts.rows]), wanted, rtol=1e-10)


def test_a_deprecated_argument_is_warned_of_where_folds_are_made() -> None:
    with pytest.warns(FutureWarning, match=r"`TargetEncoder.shuffle` and `TargetEncoder.random_state` are deprecated"):
        cross_fitted(TargetEncoder(shuffle=False), frame(), "price", 2)


def test_the_rows_for_later_steps_are_tables_where_the_user_wants_tables() -> None:
    encoder = TargetEncoder(cv=KFold(3)).set_output(transform="pandas")
    trained, parts = cross_fitted(encoder, frame(), "price", 2)
    assert list(trained.seen(parts.rows[1]).X.columns) == FEATURES


def test_folds_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="must cover each sample index exactly once with no overlap"):
        cross_fitted(TargetEncoder(cv=ShuffleSplit(3, random_state=0)), frame(), "price", 2)


def test_an_encoder_alone_makes_no_folds() -> None:
    rows = frame()[:3]
    fitted = ff.scan(rows).fit(TargetEncoder(cv=5), "price", FEATURES, engine="serial")
    same_fitted(fitted, TargetEncoder().fit(rows[FEATURES], rows["price"]))


@pytest.mark.parametrize("target", [[1.0, np.nan], [1.0, np.inf]], ids=str)
def test_a_target_that_is_no_number_is_refused(target: list[float]) -> None:
    rows = pd.DataFrame({"x": ["a", "b"], "y": target})
    for kind in ("auto", "continuous"):
        with pytest.raises(ValueError, match="Input y contains"):
            ff.scan(rows).fit(TargetEncoder(target_type=kind), "y", engine="serial")


def test_rows_without_numbers_have_no_folds() -> None:
    trained, parts = cross_fitted(TargetEncoder(cv=KFold(3)), frame(), "price", 2)
    with pytest.raises(ValueError, match="rows have no numbers in the first pass"):
        trained.seen(Rows(parts.rows[0].X))


def test_encodings_of_parts_are_the_same_for_any_of_them() -> None:
    encoder = TargetEncoder(cv=StratifiedKFold(4))
    one, _ = cross_fitted(clone(encoder), frame(), "word", 1)
    many, _ = cross_fitted(clone(encoder), frame(), "word", 64)
    same(many.estimator.encodings_, one.estimator.encodings_)
