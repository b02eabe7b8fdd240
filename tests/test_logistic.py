"""`ff.LogisticRegression`: Spark's model, in memory and from parts of the rows."""

import importlib.util
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as OfSklearn
from sklearn.utils.estimator_checks import check_estimator

import fourfold as ff
from fourfold.workloads.fit.contract import Rows, drive
from fourfold.workloads.fit.logistic.looking import Look
from fourfold.workloads.fit.logistic.memory import Memory
from fourfold.workloads.fit.logistic.objective import Loss, Scale
from fourfold.workloads.fit.logistic.training import train

pytestmark = pytest.mark.usefixtures("workers_of_tables")

REFERENCE = Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "spark_logistic_regression.json").read_text())
TWO_ROWS, TWO_LABELS = np.array([[0.0, 1.1, 0.1], [2.0, 1.0, -1.0]]), np.array([1, 0])
SOLVED = np.array([-1.2274184001573272, 24.548368003146543, 2.2316698184678674, -23.544116584836004])
NAMES = list("abcd")


def _problem():
    spec = importlib.util.spec_from_file_location("problems", REFERENCE / "problems.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.problem


def numbers_of(model) -> np.ndarray:
    return np.concatenate([model.coef_.ravel(), model.intercept_])


def rows(n_rows: int = 400, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_rows, 4)) * [1.0, 3.0, 0.2, 10.0] + [0.0, 5.0, 1.0, -3.0]
    margins = (X - X.mean(0)) / X.std(0) @ rng.standard_normal((4, classes)) + 2 * rng.gumbel(size=(n_rows, classes))
    return X, margins.argmax(1), rng.integers(1, 4, n_rows).astype(float)


def table(X: np.ndarray, y: np.ndarray, **columns: np.ndarray) -> pa.Table:
    return pa.table({name: X[:, at] for at, name in enumerate(NAMES)} | {"y": y} | columns)


def parted(n_parts: int, folder: Path, whole: pa.Table) -> ff.Dataset:
    """The rows as so many files, and so as many pieces at least."""
    import pyarrow.parquet as pq

    ends = np.linspace(0, whole.num_rows, n_parts + 1).astype(int)
    for at, (first, end) in enumerate(itertools.pairwise(ends)):
        pq.write_table(whole.slice(first, end - first), folder / f"{at:03}.parquet")
    return ff.scan(folder / "*.parquet")


# ---- Spark ---------------------------------------------------------------------------------------------------------------


def test_two_rows_give_what_spark_prints_after_as_many_iterations() -> None:
    model = ff.LogisticRegression(reg_param=0.01, max_iter=10).fit(TWO_ROWS, TWO_LABELS)
    np.testing.assert_allclose(numbers_of(model), SOLVED, rtol=1e-6)
    assert model.n_iter_ == 9
    assert model.converged_
    assert model.objective_history_[0] == pytest.approx(np.log(2), rel=1e-12)
    assert model.objective_history_[-1] == pytest.approx(0.07005138080086905, rel=1e-12)


def test_two_rows_give_the_solution_that_is_known_by_hand() -> None:
    model = ff.LogisticRegression(reg_param=0.01, max_iter=100, tol=1e-12).fit(TWO_ROWS, TWO_LABELS)
    np.testing.assert_allclose(numbers_of(model), SOLVED, rtol=1e-9)


@pytest.mark.parametrize(("max_iter", "tol", "rtol"), [(10, 1e-6, 1e-6), (100, 1e-12, 1e-9)])
@pytest.mark.parametrize("engine", ["serial", "threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_two_rows_of_a_dataset_give_the_same_model(engine: str, max_iter: int, tol: float, rtol: float) -> None:
    given = ff.scan(table(np.c_[TWO_ROWS, [0.0, 0.0]], TWO_LABELS))
    estimator = ff.LogisticRegression(reg_param=0.01, max_iter=max_iter, tol=tol)
    model = given.fit(estimator, target="y", features=NAMES[:3], engine=engine)
    np.testing.assert_allclose(numbers_of(model), SOLVED, rtol=rtol)
    assert max_iter > 10 or model.n_iter_ == 9


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["seed"]))
def test_spark_finds_the_same_model(case: dict) -> None:
    X, y, weight = _problem()(case["seed"], case["rows"], case["features"], case["classes"])
    given = {name: case[name] for name in ("reg_param", "elastic_net_param", "standardization", "fit_intercept")}
    model = ff.LogisticRegression(**given, max_iter=1000, tol=1e-13).fit(X, y, weight if case["weighted"] else None)
    np.testing.assert_allclose(model.coef_, case["coef"], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(model.intercept_, case["intercept"], rtol=1e-5, atol=1e-12)
    assert model.objective_history_[-1] == pytest.approx(case["objective"], rel=1e-5)
    assert model.objective_history_[0] == pytest.approx(case["objective_first"], rel=1e-12)
    np.testing.assert_array_equal(model.coef_ == 0, np.array(case["coef"]) == 0)
    if not case["elastic_net_param"]:
        assert abs(model.n_iter_ - case["iterations"]) <= 1


# ---- the objective -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("is_far", [False, True])
def test_the_gradient_is_the_slope_of_the_loss(classes: int, is_far: bool) -> None:
    X, y, weight = rows(50, classes)
    given = Rows(X, 1.0 - 2.0 * y if classes == 2 else y, weight)
    scale = Scale(X.mean(0), X.std(0, ddof=1), is_far, float(weight.sum()))
    theta = np.random.default_rng(1).standard_normal((1 if classes == 2 else classes, 5))

    def loss(theta: np.ndarray):
        one = Loss(theta, scale, fit_intercept=True)
        return one.finish(one.fold(given))

    _, gradient = loss(theta)
    for place in np.ndindex(theta.shape):
        step = np.zeros_like(theta)
        step[place] = 1e-6
        slope = (loss(theta + step)[0] - loss(theta - step)[0]) / 2e-6
        assert gradient[place] == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_extreme_margins_have_a_finite_loss_and_gradient() -> None:
    X = np.array([[1e5], [-1e5], [3e4], [-1e-5]])
    scale = Scale(np.zeros(1), np.ones(1), False, 4.0)
    for theta, y in ((np.array([[1.0]]), [1.0, 1.0, -1.0, -1.0]), (np.array([[1.0], [-1.0], [5.0]]), [0, 1, 2, 1])):
        loss = Loss(theta, scale, fit_intercept=False)
        value, gradient = loss.finish(loss.fold(Rows(X, np.array(y))))
        assert np.isfinite(value)
        assert value > 1e4
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_figures_of_columns_are_exact_however_rows_are_cut(offset: float) -> None:
    X, y, weight = rows(300)
    X = X + offset
    for by_class in (False, True):
        look, state = Look(by_class, None), None
        for first in range(0, 300, 7):
            part = slice(first, first + 7)
            found = look.fold(Rows(X[part], y[part], weight[part]))
            state = found if state is None else look.combine(state, found)
        for moments, chosen in zip(state.moments, [y == 0, y == 1] if by_class else [y >= 0], strict=True):
            mean = np.average(X[chosen], axis=0, weights=weight[chosen])
            np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
            want = weight[chosen] @ (X[chosen] - mean) ** 2
            np.testing.assert_allclose(moments.squares, want, rtol=1e-12 if not offset else 1e-6)


# ---- the same model, whatever the rows come as -----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_arrays_frames_tables_and_sparse_matrices_give_the_same_model(classes: int) -> None:
    X, y, weight = rows(classes=classes)
    X[np.random.default_rng(2).random(X.shape) < 0.5] = 0.0
    want = ff.LogisticRegression(reg_param=0.01, tol=1e-9).fit(X, y, weight)
    frame = pd.DataFrame(X, columns=NAMES)
    for given in (frame, np.asfortranarray(X), csr_matrix(X), X.tolist()):
        model = ff.LogisticRegression(reg_param=0.01, tol=1e-9).fit(given, y, weight)
        np.testing.assert_allclose(numbers_of(model), numbers_of(want), rtol=1e-9)
    data = ff.scan(table(X, y, w=weight))
    model = data.fit(ff.LogisticRegression(reg_param=0.01, tol=1e-9), target="y", weight="w", engine="serial")
    np.testing.assert_allclose(numbers_of(model), numbers_of(want), rtol=1e-9)
    assert model.feature_names_in_.tolist() == NAMES
    assert model.n_features_in_ == 4
    assert model.score(frame, y) == want.score(X, y)


def test_what_a_sparse_matrix_stores_twice_is_one_number() -> None:
    X, y, _ = rows()
    half = csr_matrix(
        (np.repeat(X.ravel() / 2, 2), np.tile(np.repeat(np.arange(4), 2), 400), np.arange(0, 3201, 8)), shape=(400, 4)
    )
    model, want = (ff.LogisticRegression(reg_param=0.01, tol=1e-9).fit(each, y) for each in (half, X))
    np.testing.assert_allclose(numbers_of(model), numbers_of(want), rtol=1e-9)
    assert half.nnz == 3200


def test_numbers_of_half_the_bytes_are_computed_with_as_others() -> None:
    X, y, _ = rows()
    small = X.astype(np.float32)
    for given in (small, csr_matrix(small)):
        model, want = (ff.LogisticRegression(reg_param=0.01).fit(each, y) for each in (given, given.astype(np.float64)))
        np.testing.assert_allclose(numbers_of(model), numbers_of(want), rtol=1e-9)
        assert model.coef_.dtype == np.float64


def test_a_sparse_matrix_is_never_made_dense() -> None:
    rng = np.random.default_rng(0)
    n_rows, n_columns = 500, 2_000_000  # 8 GB as an array
    at = rng.integers(0, 50, n_rows * 3)
    X = csr_matrix((np.ones(n_rows * 3), at, np.arange(0, n_rows * 3 + 1, 3)), shape=(n_rows, n_columns))
    y = (at[::3] > 25).astype(int)
    model = ff.LogisticRegression(reg_param=0.1, max_iter=3, tol=0.1).fit(X, y)
    assert np.flatnonzero(model.coef_[0]).max() < 50
    assert model.score(X, y) > 0.7


@pytest.mark.parametrize("classes", [2, 3])
def test_any_number_of_pieces_gives_the_same_model(tmp_path: Path, classes: int) -> None:
    X, y, weight = rows(1_000, classes)
    want = ff.LogisticRegression(reg_param=0.01, tol=1e-9, class_weight="balanced").fit(X, y, weight)
    for n_parts in (1, 2, 7, 64):
        folder = tmp_path / str(n_parts)
        folder.mkdir()
        data = parted(n_parts, folder, table(X, y, w=weight))
        estimator = ff.LogisticRegression(reg_param=0.01, tol=1e-9, class_weight="balanced")
        model = data.fit(estimator, target="y", weight="w", engine="serial")
        assert len(data._plan.pieces()) >= n_parts
        np.testing.assert_allclose(numbers_of(model), numbers_of(want), rtol=1e-9)


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bits(tmp_path: Path) -> None:
    X, y, _ = rows(2_000)
    data = parted(7, tmp_path, table(X, y))
    found = set()
    for workers, engine in ((1, "processes"), (2, "processes"), (4, "threads"), (1, "serial")):
        options = {"engine": engine} | ({} if engine == "serial" else {"workers": workers})
        found.add(numbers_of(data.fit(ff.LogisticRegression(reg_param=0.01), target="y", **options)).tobytes())
    assert len(found) == 1


def test_any_number_of_threads_gives_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((5_000, 300))  # some slices
    y = X[:, 0] + rng.standard_normal(5_000) > 0
    fits = [ff.LogisticRegression(reg_param=0.1, max_iter=4, n_jobs=n, tol=0.1).fit(X, y) for n in (None, 1, 2, 4, -1, -2)]
    assert len({numbers_of(model).tobytes() for model in fits}) == 1


@pytest.mark.slow
def test_a_worker_that_is_killed_in_iteration_5_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _ = rows(1_000)
    data = parted(4, tmp_path, table(X, y))
    want = data.fit(ff.LogisticRegression(reg_param=0.01), target="y", engine="serial")
    from fourfold.workloads.fit.logistic import training

    asked = []

    def loss(*given):
        asked.append(None)
        return Dies(*given, tmp_path / "died") if len(asked) == 6 else Loss(*given)  # the first is the start

    monkeypatch.setattr(training, "Loss", loss)
    model = data.fit(ff.LogisticRegression(reg_param=0.01), target="y", engine="processes", workers=2)
    assert (tmp_path / "died").exists()
    assert numbers_of(model).tobytes() == numbers_of(want).tobytes()
    assert model.objective_history_ == want.objective_history_


class Dies(Loss):
    """Kills the worker that uses it first, and no other."""

    def __init__(self, theta, scale, fit_intercept, path: Path) -> None:
        super().__init__(theta, scale, fit_intercept)
        self.path, self.driver = path, os.getpid()

    def fold(self, rows: Rows):
        assert os.getpid() != self.driver
        try:
            self.path.touch(exist_ok=False)
        except FileExistsError:
            return super().fold(rows)
        os.kill(os.getpid(), signal.SIGKILL)


# ---- weights ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_a_row_of_weight_0_is_absent(classes: int) -> None:
    X, y, weight = rows(classes=classes)
    weight[::3] = 0.0
    y[0] = classes  # a class of its own
    there = weight > 0
    want = ff.LogisticRegression(reg_param=0.01, tol=1e-9).fit(X[there], y[there], weight[there])
    model = ff.LogisticRegression(reg_param=0.01, tol=1e-9).fit(X, y, weight)
    np.testing.assert_allclose(numbers_of(model), numbers_of(want), rtol=1e-12)
    assert model.classes_.tolist() == list(range(classes))


def test_a_weight_of_2_is_a_row_twice_where_columns_are_not_scaled() -> None:
    X, y, _ = rows()
    twice, thrice = np.vstack([X, X[::2]]), np.concatenate([y, y[::2]])
    weight = np.where(np.arange(400) % 2, 1.0, 2.0)
    plain = {"reg_param": 0.05, "tol": 1e-12}
    same = [ff.LogisticRegression(**plain, standardization=False).fit(*each) for each in ((X, y, weight), (twice, thrice))]
    np.testing.assert_allclose(numbers_of(same[0]), numbers_of(same[1]), rtol=1e-9)
    other = [ff.LogisticRegression(**plain).fit(*each) for each in ((X, y, weight), (twice, thrice))]
    assert not np.allclose(numbers_of(other[0]), numbers_of(other[1]), rtol=1e-6)  # deviations have other degrees of freedom


@pytest.mark.parametrize("class_weight", ["balanced", {0: 2.0, 1: 0.5, 2: 1.0}])
def test_weights_of_classes_are_weights_of_their_rows(class_weight) -> None:
    X, y, weight = rows(classes=3)
    of_class = weight.sum() / (3 * np.bincount(y, weight)) if class_weight == "balanced" else np.array([2.0, 0.5, 1.0])
    want = ff.LogisticRegression(reg_param=0.01, tol=1e-9).fit(X, y, weight * of_class[y])
    model = ff.LogisticRegression(reg_param=0.01, tol=1e-9, class_weight=class_weight).fit(X, y, weight)
    np.testing.assert_allclose(numbers_of(model), numbers_of(want), rtol=1e-9)


# ---- scikit-learn --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_scikit_learn_finds_the_same_model_by_its_c(classes: int, fit_intercept: bool) -> None:
    X, y, weight = rows(classes=classes)
    X = (X - X.mean(0)) / X.std(0) + [0.5, 0.0, 0.0, 0.0]
    same = {"fit_intercept": fit_intercept, "tol": 1e-12, "max_iter": 1000}
    model = ff.LogisticRegression(reg_param=0.02, standardization=False, **same).fit(X, y, weight)
    want = OfSklearn(C=1 / (0.02 * weight.sum()), solver="newton-cg", **same).fit(X, y, weight)
    np.testing.assert_allclose(model.coef_, want.coef_, rtol=1e-5)
    np.testing.assert_allclose(model.intercept_, want.intercept_, rtol=1e-5, atol=1e-9)
    deviation = np.sqrt(
        weight @ (X - np.average(X, axis=0, weights=weight)) ** 2 / (weight.sum() - weight @ weight / weight.sum())
    )
    scaled = ff.LogisticRegression(reg_param=0.02, **same).fit(X, y, weight)
    want = OfSklearn(C=1 / (0.02 * weight.sum()), solver="newton-cg", **same).fit(X / deviation, y, weight)
    np.testing.assert_allclose(scaled.coef_, want.coef_ / deviation, rtol=1e-5)


def test_values_near_1000_end_finite_and_where_scikit_learn_ends() -> None:
    rng = np.random.default_rng(0)
    X = rng.uniform(750, 1000, (300, 4))
    y = (X @ [1.0, -1.0, 0.5, 0.0] + 100 * rng.standard_normal(300) > 430).astype(int)
    model = ff.LogisticRegression(reg_param=0.01, standardization=False, tol=1e-12).fit(X, y)
    want = OfSklearn(C=1 / (0.01 * 300), solver="newton-cg", tol=1e-12, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(model.coef_, want.coef_, rtol=1e-5)
    np.testing.assert_allclose(model.intercept_, want.intercept_, rtol=1e-5)


def test_check_estimator_has_nothing_to_say() -> None:
    said = check_estimator(ff.LogisticRegression(), on_skip=None)
    assert [each["check_name"] for each in said if each["status"] == "passed"]


def test_to_sklearn_predicts_the_same_and_finds_the_same_model_anew() -> None:
    X, y, _ = rows(classes=3)
    frame, labels = pd.DataFrame(X / X.std(0), columns=NAMES), np.array(["no", "yes", "perhaps"])[y]
    model = ff.LogisticRegression(reg_param=0.02, standardization=False, tol=1e-9).fit(frame, labels)
    same = model.to_sklearn()
    assert type(same) is OfSklearn
    np.testing.assert_allclose(same.predict_proba(frame), model.predict_proba(frame), rtol=1e-12)
    assert same.predict(frame).tolist() == model.predict(frame).tolist()
    anew = same.fit(frame, labels)
    np.testing.assert_allclose(anew.coef_, model.coef_, rtol=1e-4)


def test_it_predicts_labels_probabilities_and_their_logarithms() -> None:
    X, y, _ = rows()
    labels = np.array(["no", "yes"])[y]
    model = ff.LogisticRegression(reg_param=0.01).fit(X, labels)
    assert model.classes_.tolist() == ["no", "yes"]
    margins, proba = model.decision_function(X), model.predict_proba(X)
    np.testing.assert_allclose(margins, X @ model.coef_[0] + model.intercept_[0], rtol=1e-12)
    np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-margins)), rtol=1e-9)
    assert model.predict(X).tolist() == model.classes_[(proba[:, 1] > 0.5).astype(int)].tolist()
    far = np.abs(model.coef_) / model.coef_ * 1e6
    assert np.isfinite(model.predict_log_proba(far)).all()
    assert pickle.loads(pickle.dumps(model)).predict(X).tolist() == model.predict(X).tolist()


# ---- rows that are hard, and rows that are refused --------------------------------------------------------------------------------


def test_a_constant_column_has_no_coefficient_and_changes_no_other() -> None:
    X, y, _ = rows()
    X[:, 1] = 0.1
    for fit_intercept in (True, False):
        given = {"reg_param": 0.01, "fit_intercept": fit_intercept, "tol": 1e-9}
        model = ff.LogisticRegression(**given).fit(X, y)
        without = ff.LogisticRegression(**given).fit(X[:, [0, 2, 3]], y)
        assert model.coef_[0, 1] == 0
        np.testing.assert_allclose(model.coef_[0, [0, 2, 3]], without.coef_[0], rtol=1e-9)
    for weight in (None, np.random.default_rng(0).random(400)):
        assert ff.LogisticRegression(reg_param=0.01).fit(csr_matrix(X), y, weight).coef_[0, 1] == 0


def test_columns_that_repeat_each_other_share_a_coefficient() -> None:
    X, y, _ = rows()
    X[:, 1] = X[:, 0]
    model = ff.LogisticRegression(reg_param=0.01, tol=1e-9).fit(X, y)
    assert model.coef_[0, 0] == pytest.approx(model.coef_[0, 1], rel=1e-9)
    free = ff.LogisticRegression(tol=1e-9).fit(X, y)
    assert free.converged_
    assert np.isfinite(free.coef_).all()


def test_one_class_is_refused_and_named() -> None:
    X, _, _ = rows(10)
    with pytest.raises(ValueError, match=r"at least 2 classes in the data, but the data contains only one class: .*'yes'"):
        ff.LogisticRegression().fit(X, ["yes"] * 10)
    with pytest.raises(ValueError, match="only one class"):
        ff.scan(table(X, np.ones(10, int))).fit(ff.LogisticRegression(), target="y", engine="serial")


def test_a_nan_is_refused_with_its_row_and_its_column() -> None:
    X, y, _ = rows(100_000)
    X[77_777, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity: column 'c' is nan in row 77777"):
        ff.LogisticRegression().fit(pd.DataFrame(X, columns=NAMES), y)
    with pytest.raises(ValueError, match="NaN or infinity: column number 2 is nan in row 77777"):
        ff.LogisticRegression().fit(csr_matrix(X), y)


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_a_nan_in_a_file_is_refused_with_its_row_there_and_its_column(tmp_path: Path, engine: str) -> None:
    X, y, _ = rows(90)
    X[77, 2] = np.nan
    data = parted(3, tmp_path, table(X, y))
    changed = data.map_batches(lambda batch: batch, schema=data.schema)
    for each in (data, changed):
        with pytest.raises(ValueError, match="column 'c' is nan, and") as caught:
            each.fit(ff.LogisticRegression(), target="y", engine=engine)
        assert any(f"fourfold: row 17 of {tmp_path / '002.parquet'}" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_weight_that_is_none_is_refused_with_its_row(bad: float) -> None:
    X, y, weight = rows(20)
    weight[13] = bad
    data = ff.scan(table(X, y, w=weight))
    with pytest.raises(ValueError, match=f"the weight 'w' is {bad}") as caught:
        data.fit(ff.LogisticRegression(), target="y", weight="w", engine="serial")
    assert any("fourfold: row 13 of the table" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.linspace(0, 1, 20), "Unknown label type: continuous"),
        (np.array([0.0, 1.0] * 9 + [1.0, np.nan]), "Input y contains NaN"),
        (np.array(["a", "b"] * 9 + ["a", None], object), "Input y contains NaN"),
    ],
)
def test_labels_that_are_none_are_refused(y: np.ndarray, said: str) -> None:
    X, _, _ = rows(20)
    with pytest.raises(ValueError, match=said):
        ff.scan(table(X, y)).fit(ff.LogisticRegression(), target="y", engine="serial")


@pytest.mark.parametrize(
    "labels",
    [
        np.array([2**60, 2**60 + 1]),
        np.array([2**63 - 1, 2**63], np.uint64),
        np.array([-128, 127], np.int8),
        np.array([-3.0, 2.0], np.float32),
        np.array([False, True]),
    ],
    ids=str,
)
def test_labels_are_told_apart_whatever_numbers_they_are(labels: np.ndarray) -> None:
    X, y, _ = rows(50)
    classes = ff.LogisticRegression(max_iter=1, tol=1.0).fit(X, labels[y]).classes_
    assert classes.tolist() == labels.tolist()
    assert classes.dtype == labels.dtype


def test_a_target_is_wanted() -> None:
    X, y, _ = rows(20)
    with pytest.raises(ValueError, match="name its column with target="):
        ff.scan(table(X, y)).fit(ff.LogisticRegression(), engine="serial")


def test_iterations_that_are_not_enough_are_said() -> None:
    X, y, _ = rows()
    with pytest.warns(ConvergenceWarning, match="max_iter=2 iterations were not enough"):
        model = ff.LogisticRegression(max_iter=2).fit(X, y)
    assert not model.converged_
    assert model.n_iter_ == 2
    assert len(model.objective_history_) == 3


def test_classes_without_an_error_between_them_end_finite_and_are_said() -> None:
    X = np.linspace(-1, 1, 40)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = ff.LogisticRegression(tol=0.0).fit(X, X[:, 0] > 0)
    assert np.isfinite(numbers_of(model)).all()
    assert model.score(X, X[:, 0] > 0) == 1.0
    assert model.objective_history_ == sorted(model.objective_history_, reverse=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"reg_param": -1.0}, "'reg_param' parameter"), ({"n_jobs": 0}, "n_jobs == 0"), ({"elastic_net_param": 2}, "elastic")],
)
def test_parameters_that_are_none_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ff.LogisticRegression(**given).fit(*rows(20)[:2])


# ---- how it is done ------------------------------------------------------------------------------------------------------------------


def test_rows_in_memory_are_not_copied() -> None:
    X, y, weight = rows(300_000)
    sparse = csr_matrix(X)
    for given, values in ((X, lambda each: each), (sparse, lambda each: each.data), (sparse, lambda each: each.indices)):
        slices = Memory(given, y, weight, 1)._slices
        assert len(slices) > 2
        assert all(np.shares_memory(values(part.X), values(given)) for part in slices)


def test_rows_are_looked_at_once_and_then_once_for_each_value_asked_for() -> None:
    X, y, _ = rows()
    passes = []
    with Memory(X, y, None, 1) as memory:

        def run(wanted):
            passes.extend(wanted)
            return memory.run(wanted)

        found = drive(train(ff.LogisticRegression(reg_param=0.01)._problem(), (), None), run).found
    assert isinstance(passes[0].aggregator, Look)
    assert all(isinstance(each.aggregator, Loss) for each in passes[1:])
    assert len(found.history) <= len(passes) - 1 <= len(found.history) + 3


def test_rows_of_a_dataset_go_through_its_steps_once() -> None:
    X, y, _ = rows()
    seen = []
    whole = table(X, y)
    data = ff.scan(whole).map_batches(lambda batch: seen.append(len(batch)) or batch, schema=whole.schema)
    data.fit(ff.LogisticRegression(reg_param=0.01), target="y", engine="serial")
    assert sum(seen) == len(X)


def test_importing_the_parts_that_workers_import_loads_no_heavy_library() -> None:
    code = (
        "import sys; from fourfold.workloads.fit.logistic import training, memory; from fourfold.workloads.fit.recipes import "
        "logistic; sys.exit(bool({'numpy', 'scipy', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
