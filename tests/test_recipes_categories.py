"""Estimators that look for categories and quantiles: `Dataset.fit` makes what their own fit makes of all rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from parts import Parts
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, RobustScaler
from tables import small_pieces

import fourfold as ff
from fourfold.workloads.fit.contract import About
from fourfold.workloads.fit.registry import fit_with

__all__ = ["small_pieces"]
N_ROWS = 448
NAMES = ["texts", "holes", "whole", "maybe", "flags", "floats", "kinds"]
GIVEN = [["blue", "green", "red", "violet"], ["a", "b", "c", np.nan], list(range(9)), [0.0, 1.0, 2.0, 3.0, np.nan]]


def table() -> pa.Table:
    """Columns of every type that categories come in; some pieces have only nulls, or no null at all."""
    rng = np.random.default_rng(0)
    late = np.arange(N_ROWS) > 300
    return pa.table(
        {
            "texts": rng.choice(["red", "green", "blue"], N_ROWS, p=[0.1, 0.2, 0.7]),
            "holes": pa.array(np.where(late & (rng.random(N_ROWS) < 0.5), None, rng.choice(["a", "b", "c"], N_ROWS))),
            "whole": rng.integers(0, 9, N_ROWS) * (rng.random(N_ROWS) < 0.5),
            "maybe": pa.array([None if 64 <= row < 80 else row % 4 for row in range(N_ROWS)]),
            "flags": pa.array([None if 64 <= row < 80 else row % 3 == 0 for row in range(N_ROWS)]),
            "floats": pa.array(rng.choice([0.5, -1.0, 1e8, np.nan], N_ROWS)),
            "kinds": pa.array([f"kind {row // 100}" if row % 7 else None for row in range(N_ROWS)]).dictionary_encode(),
            "rare": pa.array(["often"] * (N_ROWS - 1) + ["once"]),
            "numbers": rng.normal(size=N_ROWS) + 1e8,
            "gaps": np.where(rng.random(N_ROWS) < 0.2, np.nan, rng.normal(size=N_ROWS)),
            "constant": np.full(N_ROWS, 7),
            "few": rng.integers(0, 3, N_ROWS).astype(float),
        }
    )


NUMBERS = ["numbers", "gaps", "constant", "few", "whole"]
CASES: list[tuple[Any, list[str]]] = [
    (OneHotEncoder(), NAMES),
    (OneHotEncoder(drop="first", sparse_output=False, dtype=np.int32), NAMES),
    (OneHotEncoder(drop="if_binary", min_frequency=0.2), [*NAMES, "rare"]),
    (OneHotEncoder(min_frequency=60, handle_unknown="infrequent_if_exist"), NAMES),
    (
        OneHotEncoder(max_categories=2, handle_unknown="warn", feature_name_combiner=lambda name, value: f"{name}={value}"),
        NAMES,
    ),
    (OneHotEncoder(max_categories=3, min_frequency=0.1, drop="first", handle_unknown="ignore"), [*NAMES, "rare"]),
    (OneHotEncoder(drop=["red", np.nan]), ["texts", "holes"]),
    (OneHotEncoder(categories=GIVEN, handle_unknown="ignore"), NAMES[:4]),
    (OneHotEncoder(categories=GIVEN, max_categories=3), NAMES[:4]),
    (OrdinalEncoder(), NAMES),
    (OrdinalEncoder(encoded_missing_value=-1, handle_unknown="use_encoded_value", unknown_value=-2, dtype=np.int64), NAMES),
    (OrdinalEncoder(categories=GIVEN), NAMES[:4]),
    (OrdinalEncoder(max_categories=3, handle_unknown="use_encoded_value", unknown_value=np.nan), NAMES),
    (OrdinalEncoder(min_frequency=0.3), [*NAMES, "rare"]),
    (RobustScaler(), NUMBERS),
    (RobustScaler(with_centering=False, quantile_range=(10.0, 99.0), unit_variance=True), NUMBERS),
    (RobustScaler(with_scaling=False), NUMBERS),
]


NAMES_OF_CASES = [f"{type(estimator).__name__}-{number}" for number, (estimator, _) in enumerate(CASES)]


def same(left: Any, right: Any) -> None:
    """Both are equal, of the same types."""
    assert type(left) is type(right), (left, right)
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, (left.dtype, right.dtype)
        assert left.shape == right.shape
        if left.dtype == object:
            for each in zip(left.ravel(), right.ravel(), strict=True):
                same(*each)
        elif left.dtype.kind == "f":
            np.testing.assert_allclose(left, right, rtol=1e-10, atol=0)
        else:
            np.testing.assert_array_equal(left, right)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for each in zip(left, right, strict=True):
            same(*each)
    elif isinstance(left, float):
        np.testing.assert_allclose(left, right, rtol=1e-10)
    elif hasattr(left, "get_params"):
        same_fitted(left, right)
    else:
        assert left == right


def same_fitted(left: Any, right: Any, without: tuple[str, ...] = ()) -> None:
    """Both estimators have the same fitted attributes, private ones of scikit-learn's too."""
    params = left.get_params()
    names = [name for name in vars(right) if name not in params and name not in without]
    assert sorted(set(vars(left)) - set(without)) == sorted({*names, *params})
    for name in (*names, *(name for name in dir(right) if name.endswith("_") and not name.startswith("_"))):
        if name not in without and not callable(getattr(right, name)):
            same(getattr(left, name), getattr(right, name))


Cut = Callable[[int, int], None]


@pytest.mark.parametrize("n_pieces", [1, 7])
@pytest.mark.parametrize(("estimator", "features"), CASES, ids=NAMES_OF_CASES)
def test_it_is_what_its_own_fit_makes_of_all_rows(
    estimator: Any, features: list[str], n_pieces: int, small_pieces: Cut
) -> None:
    small_pieces(N_ROWS // n_pieces, 1 << 20)
    rows = table()
    alone = clone(estimator).fit(rows.to_pandas()[features])
    fitted = ff.scan(rows).fit(clone(estimator), features=features, engine="serial")
    same_fitted(fitted, alone)
    same(fitted.get_feature_names_out(), alone.get_feature_names_out())


@pytest.mark.parametrize(("estimator", "features"), CASES[:1] + CASES[3:4] + CASES[9:10], ids=str)
def test_pieces_without_rows_change_nothing(estimator: Any, features: list[str], small_pieces: Cut) -> None:
    small_pieces(64, 1 << 20)
    rows = table().append_column("row", pa.array(range(N_ROWS)))
    kept = ff.scan(rows).filter(lambda frame: (frame["row"] < 50) | (frame["row"] > 400))
    fitted = kept.fit(clone(estimator), features=features, engine="serial")
    left = rows.take([*range(50), *range(401, N_ROWS)]).to_pandas()
    same_fitted(fitted, clone(estimator).fit(left[features]))


BAD: list[tuple[Any, list[str]]] = [
    (OneHotEncoder(categories=[["red"]]), ["texts"]),
    (OneHotEncoder(categories=[["red"], ["b"]]), ["texts"]),
    (OneHotEncoder(categories=[[3, 1, 2]]), ["few"]),
    (OneHotEncoder(categories=[["red", "red"]], handle_unknown="ignore"), ["texts"]),
    (OneHotEncoder(drop=["violet"]), ["texts"]),
    (OneHotEncoder(drop=[2.0], min_frequency=400), ["few"]),
    (OneHotEncoder(min_frequency=-1), ["texts"]),
    (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=1), ["texts"]),
    (OrdinalEncoder(dtype=np.int64), ["holes"]),
    (OrdinalEncoder(encoded_missing_value=1), ["holes"]),
    (RobustScaler(quantile_range=(75.0, 25.0)), ["few"]),
]


@pytest.mark.parametrize(("estimator", "features"), BAD, ids=str)
def test_what_cannot_be_fitted_is_refused_in_the_words_of_its_own_fit(estimator: Any, features: list[str]) -> None:
    with pytest.raises((TypeError, ValueError)) as alone:
        clone(estimator).fit(table().to_pandas()[features])
    with pytest.raises(type(alone.value)) as fitted:
        ff.scan(table()).fit(clone(estimator), features=features, engine="serial")
    assert sorted(str(fitted.value)) == sorted(str(alone.value))  # unknown categories are listed in any order


def test_a_refused_encoder_can_be_fitted_by_its_own_fit_afterwards() -> None:
    encoder, frame = OneHotEncoder(drop=["violet"], max_categories=3), table().to_pandas()[["texts"]]
    with pytest.raises(ValueError, match="violet"):
        ff.scan(frame).fit(encoder, engine="serial")
    same_fitted(encoder.set_params(drop=None).fit(frame), OneHotEncoder(max_categories=3).fit(frame))


@pytest.mark.parametrize("quantile_range", [(25.0, 75.0), (0.0, 90.0)])
def test_robust_scaling_of_a_sparse_matrix_counts_its_zeros(quantile_range: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    rows = csr_matrix(rng.normal(size=(200, 3)) * (rng.random((200, 3)) < 0.6))
    scaler = RobustScaler(with_centering=False, quantile_range=quantile_range)
    about = About(None, 3, is_sparse=True)
    same_fitted(Parts(rows, 7).finds(fit_with(clone(scaler), about)), clone(scaler).fit(rows))
    with pytest.raises(ValueError, match="Cannot center sparse matrices"):
        Parts(rows, 7).finds(fit_with(RobustScaler(), about))
