"""Newton's method for two classes: beside scikit-learn's, where it is hard, and where it has to give way to L-BFGS."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import fourfold as ff
from fourfold.workloads.fit.contract import About, drive
from fourfold.workloads.fit.logistic import newton, training
from fourfold.workloads.fit.logistic.memory import Memory
from fourfold.workloads.fit.logistic.newton import Curvature
from fourfold.workloads.fit.logistic.objective import Coded, Scale
from fourfold.workloads.fit.recipes.logistic import logistic_regression

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1500, 5))
Y = (X @ [1, 2, 0, -1, 0.5] + RNG.logistic(size=len(X)) > 0.3).astype(int)
WEIGHT = RNG.uniform(0, 2, len(X)) * (RNG.random(len(X)) > 0.2)
DUMMIES = np.column_stack([X, np.eye(4)[RNG.integers(0, 4, len(X))]])


def ours(X: Any, y: Any, weight: Any = None, n_threads: int = 1, **parameters: Any) -> Any:
    """Fitted by the recipe, over rows in memory."""
    estimator = LogisticRegression(**{"tol": 1e-10, "max_iter": 1000, **parameters})
    about = About(None, X.shape[1], hasattr(X, "tocsr"), True, weight is not None)
    with Memory(X, y, weight, n_threads) as rows:
        return drive(logistic_regression(estimator, about), rows.run)


def theirs(X: Any, y: Any, weight: Any = None, **parameters: Any) -> Any:
    """Fitted by scikit-learn."""
    return LogisticRegression(**{"tol": 1e-10, "max_iter": 1000, **parameters}).fit(X, y, weight)


def objective(model: Any, X: Any, y: Any, C: float) -> float:
    """What both minimise, without weights."""
    margins = (X @ model.coef_[0] + model.intercept_[0]) * (2 * y - 1)
    return float(np.logaddexp(0, -margins).sum() + 0.5 / C * (model.coef_**2).sum())


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"class_weight": "balanced"},
        {"class_weight": {0: 3.0, 1: 0.5}},
        {"fit_intercept": False},
        {"C": math.inf},
        {"C": 1e-9},
        {"C": 1e-6},
        {"C": 1e6},
    ],
    ids=str,
)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["without weights", "weights"])
def test_the_optimum_is_that_of_scikit_learn(parameters: dict[str, Any], weight: Any) -> None:
    found, known = ours(X, Y, weight, **parameters), theirs(X, Y, weight, solver="newton-cholesky", **parameters)
    np.testing.assert_allclose(found.coef_, known.coef_, rtol=1e-9)
    np.testing.assert_allclose(found.intercept_, known.intercept_, rtol=1e-9, atol=1e-12)
    assert found.n_iter_[0] <= 8
    near = theirs(X, Y, weight, **parameters)
    np.testing.assert_allclose(found.predict_proba(X), near.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize(
    "columns",
    [
        np.column_stack([X, np.full(len(X), 3.7)]),
        np.column_stack([X, X[:, 0] * 2 + X[:, 1]]),
        DUMMIES,
        X * [1e-6, 1e-3, 1, 10, 100],
    ],
    ids=["a constant column", "collinear columns", "dummies beside an intercept", "scales that differ"],
)
def test_columns_that_say_the_same_or_nothing_have_the_coefficients_of_scikit_learn(columns: Any) -> None:
    found, known = ours(columns, Y), theirs(columns, Y, solver="newton-cholesky")
    np.testing.assert_allclose(found.coef_, known.coef_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("columns", [DUMMIES, np.column_stack([X, X[:, 0] * 2 + X[:, 1]])], ids=["dummies", "collinear"])
def test_columns_that_say_the_same_without_a_penalty_have_small_coefficients(columns: Any) -> None:
    found, known = ours(columns, Y, C=math.inf), theirs(columns, Y, C=math.inf)
    np.testing.assert_allclose(found.predict_proba(columns), known.predict_proba(columns), atol=1e-6)
    assert np.abs(found.coef_).max() < 5
    assert found.n_iter_[0] <= 8


def test_columns_far_from_zero_lose_no_digits() -> None:
    found, near = ours(X + np.array([1e6, 1e6, 1e8, 0, 0]), Y), ours(X, Y)
    np.testing.assert_allclose(found.coef_, near.coef_, rtol=1e-6)


def test_classes_that_can_be_told_apart_without_a_penalty_end_and_are_told_apart() -> None:
    y = (X[:, 0] > 0).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ours(X, y, C=math.inf, tol=1e-4, max_iter=100)
    assert (found.predict(X) == y).all()
    strong = ours(X, y, C=1e4)
    np.testing.assert_allclose(strong.coef_, theirs(X, y, C=1e4, solver="newton-cholesky").coef_, rtol=1e-6)


def looks(X: Any, y: Any, **parameters: Any) -> tuple[Any, list[str]]:
    """Fitted by the recipe, and what each pass has looked for."""
    estimator, kinds = LogisticRegression(**parameters), []
    with Memory(X, y, None, 1) as rows:

        def run(passes: list[Any]) -> list[Any]:
            kinds.append(type(passes[0].aggregator).__name__)
            return rows.run(passes)

        return drive(logistic_regression(estimator, About(None, X.shape[1], False, True, False)), run), kinds


def test_where_it_hardly_changes_any_more_the_last_curvature_is_used_again() -> None:
    found, kinds = looks(X, Y, tol=1e-8)
    curved = kinds.count("Curvature")
    assert kinds == ["Look", *["Curvature"] * curved, *["Loss"] * (len(kinds) - 1 - curved)]
    assert curved <= 5
    assert kinds[-1] == "Loss"
    np.testing.assert_allclose(found.coef_, theirs(X, Y, solver="newton-cholesky").coef_, rtol=1e-9)


def test_a_curvature_that_is_too_old_is_looked_for_where_the_gradient_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, "QUICK", math.inf)
    found, kinds = looks(X, Y, tol=1e-8)
    assert kinds[:4] == ["Look", "Curvature", "Loss", "Curvature"]
    np.testing.assert_allclose(found.coef_, theirs(X, Y, solver="newton-cholesky").coef_, rtol=1e-9)


@pytest.mark.parametrize("columns", [X, DUMMIES, X * 20], ids=["some", "dummies", "far from the end"])
def test_the_first_curvature_alone_leads_to_the_optimum_or_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch, columns: Any
) -> None:
    monkeypatch.setattr(newton, "QUICK", math.inf)
    monkeypatch.setattr(newton, "SLOW", math.inf)
    found, kinds = looks(columns, Y, tol=1e-8, max_iter=1000)
    assert kinds.count("Loss") > 3 * kinds.count("Curvature")
    np.testing.assert_allclose(found.coef_, theirs(columns, Y, solver="newton-cholesky").coef_, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 5), (3, 5), (40, 5), (20, 50)], ids=str)
def test_few_rows_are_enough(shape: tuple[int, int]) -> None:
    few, y = RNG.normal(size=shape), np.arange(shape[0]) % 2
    np.testing.assert_allclose(ours(few, y).coef_, theirs(few, y, solver="newton-cholesky").coef_, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("far", [0.0, 1e3], ids=["near", "far"])
@pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "no intercept"])
def test_sparse_rows_have_the_model_of_dense_ones(far: float, fit_intercept: bool) -> None:
    few = np.where(RNG.random(X.shape) < 0.4, X, 0.0) + np.array([far, 0, 0, 0, 0])
    dense = ours(few, Y, WEIGHT, fit_intercept=fit_intercept)
    thin = ours(sparse.csr_matrix(few), Y, WEIGHT, fit_intercept=fit_intercept)
    np.testing.assert_allclose(thin.coef_, dense.coef_, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
@pytest.mark.parametrize("is_far", [False, True])
def test_the_curvature_is_the_slope_of_the_gradient(form: Callable[[Any], Any], is_far: bool) -> None:
    scale = Scale(X.mean(axis=0), X.std(axis=0), is_far, float(WEIGHT.sum()))
    theta, step = RNG.normal(size=(1, 6)), 1e-6

    def at(theta: Any) -> Any:
        with Memory(form(X), Y, WEIGHT, 1) as rows:
            return rows.run([training.Pass(Curvature(theta, scale, True), (Coded(np.array([0, 1]), None),))])[0]

    _, _, hessian = at(theta)
    for number, along in enumerate(np.eye(6) * step):
        slope = (at(theta + along)[1] - at(theta - along)[1]) / (2 * step)
        np.testing.assert_allclose(hessian[number], slope[0], atol=1e-8)


def test_threads_and_workers_change_no_bit() -> None:
    rows = RNG.normal(size=(40_000, 40))  # more than one slice, and more than a block that fits into the cache
    y = (rows[:, 0] + RNG.logistic(size=len(rows)) > 0).astype(int)
    assert (ours(rows, y, n_threads=1).coef_ == ours(rows, y, n_threads=2).coef_).all()
    table = ff.scan(pd.DataFrame(rows[:, :8]).rename(columns=str).assign(y=y))
    one, two = (
        table.fit(LogisticRegression(), target="y", **options)
        for options in ({"engine": "serial"}, {"engine": "threads", "workers": 2})
    )
    assert (one.coef_ == two.coef_).all()
    assert (one.intercept_ == two.intercept_).all()


def heavy_rows() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    heavy = rng.standard_cauchy(size=(500, 3))
    return heavy**3, (heavy.sum(axis=1) + rng.logistic(size=500) > 0).astype(int)


def test_where_columns_have_values_of_all_sizes_l_bfgs_goes_on() -> None:
    """Newton's steps end at nearly twice the value there: the products of columns have no digits left for most rows."""
    heavy, y = heavy_rows()
    found, known = ours(heavy, y, tol=1e-8), theirs(heavy, y, tol=1e-8, max_iter=5000)
    assert objective(found, heavy, y, 1.0) == pytest.approx(objective(known, heavy, y, 1.0), rel=1e-6)


def test_a_gradient_that_is_short_by_scaled_columns_alone_is_said_to_be_long() -> None:
    with pytest.warns(ConvergenceWarning, match=r"did not converge in 100 iteration\(s\)"):
        ours(*heavy_rows(), tol=1e-8, max_iter=100)


def test_from_a_start_that_is_far_away_l_bfgs_goes_on() -> None:
    warm = LogisticRegression(warm_start=True, tol=1e-8)
    warm.coef_, warm.intercept_ = np.array([[-1.0, 1.0, 0.0, 0.0, 0.0]]), np.array([50.0])
    with Memory(X, Y, None, 1) as rows:
        found = drive(logistic_regression(warm, About(None, 5, False, True, False)), rows.run)
    np.testing.assert_allclose(found.coef_, ours(X, Y).coef_, atol=1e-6)


def test_numbers_whose_squares_are_infinite_do_not_end_in_an_error_of_linear_algebra() -> None:
    with np.errstate(all="ignore"):
        assert np.isfinite(ours(X * 1e160, Y).coef_).all()
