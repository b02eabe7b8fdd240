"""Exact quantiles by passes: those of NumPy on all rows, whatever the parts, with states that do not grow with the rows."""

from typing import Any

import numpy as np
import pytest
from parts import Parts
from scipy.sparse import csr_matrix
from sklearn.utils.stats import _weighted_percentile

from fourfold.workloads.fit.recipes import quantiles as module
from fourfold.workloads.fit.recipes.quantiles import PLOTTING, quantiles, weighted_quantiles

METHODS = [*PLOTTING, "linear", "inverted_cdf", "averaged_inverted_cdf", "closest_observation"]
SHARES = [0.0, 1 / 6, 0.25, 1 / 3, 0.5, 0.975, 1.0]
pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice")


def columns(n_rows: int) -> Any:
    """Offsets, ties, missing values, zeros of both signs, and numbers of all sizes."""
    rng = np.random.default_rng(n_rows)
    normal = rng.normal(size=n_rows)
    holes = np.where(rng.random(n_rows) < 0.3, np.nan, normal)
    zeros = rng.choice([0.0, -0.0, 1e-300, -5.0, 7.0], n_rows)
    integers, wide = rng.integers(-5, 5, n_rows), np.exp(100 * normal) * rng.choice([-1, 1], n_rows)
    return np.c_[normal, 1e8 + rng.random(n_rows), integers, wide, holes, np.zeros(n_rows), zeros, np.full(n_rows, np.nan)]


@pytest.mark.parametrize("n_parts", [1, 7, 64])
@pytest.mark.parametrize("n_rows", [1, 2, 10, 1001])
def test_quantiles_of_parts_are_those_of_all_rows(n_rows: int, n_parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CELLS", (2, 64))
    X = columns(n_rows)
    for method in METHODS:
        found = Parts(X, n_parts).finds(quantiles((), [SHARES] * X.shape[1], method))
        np.testing.assert_array_equal(found, np.nanquantile(X, SHARES, axis=0, method=method).T, method)


@pytest.mark.parametrize("n_rows", [1, 2, 10, 1001])
def test_the_median_is_numpys(n_rows: int) -> None:
    X = columns(n_rows)
    found = Parts(X, 3).finds(quantiles((), [[0.5]] * X.shape[1], "median"))
    np.testing.assert_array_equal(np.array(found)[:, 0], np.nanmedian(X, axis=0))


def test_two_cells_are_enough_to_find_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CELLS", (2, 2))
    X, parts = columns(1001), Parts(columns(1001), 7)
    found = parts.finds(quantiles((), [SHARES] * X.shape[1]))
    np.testing.assert_array_equal(found, np.nanquantile(X, SHARES, axis=0).T)
    assert parts.n_passes > 5


def test_a_state_does_not_grow_with_the_rows() -> None:
    sizes = {}
    for n_rows in (20_000, 80_000):
        parts = Parts(np.random.default_rng(0).normal(size=(n_rows, 1)), 4)
        parts.finds(quantiles((), [SHARES]))
        sizes[n_rows] = parts.state_bytes
    assert sizes[80_000] <= 1.1 * sizes[20_000] <= 1.1 * 24 * 4096 + 1000


def test_infinities_are_values() -> None:
    X = np.array([[np.inf], [1.0], [-np.inf], [2.0], [3.0]])
    found = Parts(X, 2).finds(quantiles((), [[0.0, 0.25, 0.5, 1.0]], "inverted_cdf"))
    assert found[0].tolist() == [-np.inf, 1.0, 2.0, np.inf]


def test_quantiles_of_a_sparse_matrix_count_the_zeros_it_does_not_hold() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(500, 4)) * (rng.random((500, 4)) < [0.0, 0.2, 0.7, 1.0])
    dense[3, 1] = np.nan
    found = Parts(csr_matrix(dense), 7).finds(quantiles((), [SHARES] * 4))
    np.testing.assert_array_equal(found, np.nanquantile(dense, SHARES, axis=0).T)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("n_parts", [1, 7, 64])
def test_quantiles_by_weight_are_those_of_all_rows(n_parts: int, average: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CELLS", (2, 64))
    X = np.delete(
        columns(500), [4, 7], axis=1
    )  # without NaN, which scikit-learn would have for the mean of a last one and none
    weight = np.random.default_rng(0).integers(0, 4, 500).astype(float)
    found = Parts(X, n_parts, weight).finds(weighted_quantiles((), [SHARES] * X.shape[1], average))
    wanted = _weighted_percentile(X, weight, np.array(SHARES) * 100, average=average)
    np.testing.assert_array_equal(found, wanted)
