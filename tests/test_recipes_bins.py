"""KBinsDiscretizer: `Dataset.fit` cuts columns where its own fit cuts them."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.preprocessing import KBinsDiscretizer
from tables import small_pieces
from test_recipes_categories import Cut, same, same_fitted

import fourfold as ff
from fourfold.workloads.fit.contract import About
from fourfold.workloads.fit.registry import fit_with

__all__ = ["small_pieces"]
N_ROWS = 224
METHODS = [
    "averaged_inverted_cdf",
    "closest_observation",
    "hazen",
    "interpolated_inverted_cdf",
    "inverted_cdf",
    "linear",
    "median_unbiased",
    "normal_unbiased",
    "weibull",
]


def frame() -> pd.DataFrame:
    """Offsets, ties, a constant column, and one of two values; some rows have no weight, and a value that no other has."""
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, N_ROWS).astype(float)
    return pd.DataFrame(
        {
            "far": 1e8 + rng.normal(size=N_ROWS),
            "ties": rng.integers(0, 6, N_ROWS),
            "constant": np.full(N_ROWS, 3.0),
            "two": (rng.random(N_ROWS) < 0.1).astype(float),
            "wide": np.where(weight == 0, -1e3, np.exp(2 * rng.normal(size=N_ROWS))),
            "w": weight,
        }
    )


CASES: list[Any] = [
    *(KBinsDiscretizer(4, quantile_method=method, encode="ordinal") for method in METHODS),
    KBinsDiscretizer([3, 4, 2, 5, 6], quantile_method="averaged_inverted_cdf"),
    KBinsDiscretizer(5, strategy="uniform", encode="onehot-dense", dtype=np.float32),
    KBinsDiscretizer(5, strategy="uniform", subsample=None),
    KBinsDiscretizer(4, strategy="kmeans"),
]
NAMES = [f"{number}-{case.strategy}" for number, case in enumerate(CASES)]
WEIGHTED = [CASES[0], CASES[4], CASES[10], CASES[12]]


def both(model: Any, rows: pd.DataFrame, weight: str | None = None) -> tuple[Any, Any, list[list[str]]]:
    """Fitted by `Dataset.fit`, fitted by its own fit, and what each has warned of."""
    features = [name for name in rows if name != "w"]
    said: list[list[str]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = ff.scan(rows).fit(clone(model), features=features, weight=weight, engine="serial")
        said.append([str(each.message) for each in caught])
        caught.clear()
        alone = clone(model).fit(rows[features], sample_weight=None if weight is None else rows[weight])
        said.append([str(each.message) for each in caught])
    return fitted, alone, said


@pytest.mark.parametrize("n_pieces", [1, 7])
@pytest.mark.parametrize("model", CASES, ids=NAMES)
def test_it_cuts_where_its_own_fit_cuts(model: Any, n_pieces: int, small_pieces: Cut) -> None:
    small_pieces(N_ROWS // n_pieces, 1 << 20)
    fitted, alone, said = both(model, frame())
    same_fitted(fitted, alone)
    assert sorted(said[0]) == sorted(said[1])
    given = frame().drop(columns="w")
    same(dense(fitted.transform(given)), dense(alone.transform(given)))


def dense(found: Any) -> Any:
    return found.toarray() if hasattr(found, "tocsr") else found


@pytest.mark.parametrize("model", WEIGHTED, ids=lambda model: f"{model.strategy}-{model.quantile_method}")
def test_it_cuts_where_its_own_fit_cuts_by_weight(model: Any, small_pieces: Cut) -> None:
    small_pieces(32, 1 << 20)
    fitted, alone, said = both(model, frame(), "w")
    same_fitted(fitted, alone)
    assert sorted(said[0]) == sorted(said[1])


def test_columns_of_integers_have_an_encoder_of_integers() -> None:
    fitted, alone, _ = both(KBinsDiscretizer(2, quantile_method="averaged_inverted_cdf"), frame()[["ties"]])
    same_fitted(fitted, alone)
    assert fitted._encoder.dtype == np.int64


def test_all_rows_count_where_there_are_more_than_the_subsample() -> None:
    rows = frame()[["wide"]]
    small = KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf", subsample=50, random_state=0)
    fitted, _, _ = both(small, rows)
    _, alone, _ = both(clone(small).set_params(subsample=None), rows)
    same(fitted.bin_edges_, alone.bin_edges_)


@pytest.mark.parametrize("model", [KBinsDiscretizer([2, 1]), KBinsDiscretizer([2, 2, 2]), KBinsDiscretizer(1)], ids=str)
def test_what_cannot_be_fitted_is_refused_in_the_words_of_its_own_fit(model: Any) -> None:
    rows = frame()[["far", "ties"]]
    with pytest.raises(ValueError, match=r".") as alone:
        clone(model).fit(rows)
    with pytest.raises(type(alone.value)) as fitted:
        ff.scan(rows).fit(clone(model), engine="serial")
    assert str(fitted.value) == str(alone.value)


def test_methods_that_take_no_weights_say_so() -> None:
    with pytest.raises(ValueError, match="got quantile_method='linear' instead"):
        ff.scan(frame()).fit(KBinsDiscretizer(quantile_method="linear"), weight="w", engine="serial")


def test_a_missing_value_and_a_sparse_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match=r"column 'far' is nan(.|\n)*row 1 of the table"):
        ff.scan(pd.DataFrame({"far": [1.0, np.nan]})).fit(KBinsDiscretizer(), engine="serial")
    with pytest.raises(TypeError) as alone:
        KBinsDiscretizer().fit(csr_matrix([[1.0], [0.0]]))
    with pytest.raises(TypeError) as fitted:
        next(fit_with(KBinsDiscretizer(), About(None, 1, is_sparse=True)))
    assert str(fitted.value) == str(alone.value)
