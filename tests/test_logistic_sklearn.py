"""The recipe of scikit-learn's LogisticRegression: the optimum that its own `fit` converges to."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import fourfold as ff
from fourfold.errors import OptionError

NAMES = list("abcd")
EXACT = {"tol": 1e-12, "max_iter": 2_000}


def rows(classes: int = 2, n_rows: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(classes)
    X = rng.standard_normal((n_rows, 4)) * [1.0, 0.7, 1.5, 1.0] + [0.0, 0.3, -0.2, 1.0]
    margins = X @ rng.standard_normal((4, classes)) + 2 * rng.gumbel(size=(n_rows, classes))
    table = pd.DataFrame(X, columns=NAMES)
    table["y"] = np.array(["no", "perhaps", "yes"])[margins.argmax(1)]
    table["w"] = rng.integers(1, 4, n_rows).astype(float)
    return table


def both(estimator: LogisticRegression, table: pd.DataFrame, is_weighted: bool = False):
    """Ours, in two pieces, and scikit-learn's own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        own = clone(estimator).fit(table[NAMES], table["y"], table["w"] if is_weighted else None)
        data = ff.scan(table)
        weight = "w" if is_weighted else None
        ours = data.fit(clone(estimator), target="y", features=NAMES, weight=weight, engine="serial")
    return ours, own


def assert_equal(ours: LogisticRegression, own: LogisticRegression) -> None:
    np.testing.assert_allclose(ours.coef_, own.coef_, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(ours.intercept_, own.intercept_, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        {"solver": "lbfgs"},
        {"solver": "newton-cg", "C": 0.01},
        {"solver": "newton-cg", "C": np.inf},
        {"solver": "newton-cg", "fit_intercept": False},
        {"solver": "newton-cholesky", "class_weight": "balanced"},
        {"solver": "newton-cg", "class_weight": {"no": 2.0, "yes": 0.5, "perhaps": 1.0}},
        {"solver": "saga", "l1_ratio": 1, "C": 0.1},
        {"solver": "saga", "l1_ratio": 0.5, "C": 0.1},
    ],
    ids=str,
)
def test_it_ends_where_scikit_learn_converges_to(classes: int, is_weighted: bool, given: dict) -> None:
    ours, own = both(LogisticRegression(**given, **EXACT), rows(classes), is_weighted)
    assert_equal(ours, own)
    np.testing.assert_array_equal(ours.coef_ == 0, own.coef_ == 0)


@pytest.mark.parametrize("penalty", ["l1", "l2", "elasticnet", None])
def test_penalties_by_their_old_names_are_the_same(penalty: str | None) -> None:
    given = {
        "penalty": penalty,
        "l1_ratio": {"l1": 1.0, "elasticnet": 0.3}.get(penalty, 0.0),
        "C": 1.0 if penalty is None else 0.1,
    }
    assert_equal(*both(LogisticRegression(**given, solver="saga", **EXACT), rows()))


@pytest.mark.parametrize("classes", [2, 3])
def test_every_fitted_attribute_has_scikit_learns_name_type_and_shape(classes: int) -> None:
    ours, own = both(LogisticRegression(**EXACT), rows(classes))
    fitted = [name for name in vars(own) if name.endswith("_")]
    assert sorted(fitted) == sorted(name for name in vars(ours) if name.endswith("_"))
    for name in fitted:
        theirs, mine = getattr(own, name), getattr(ours, name)
        assert type(mine) is type(theirs), name
        if isinstance(theirs, np.ndarray):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), name
    assert ours.classes_.tolist() == own.classes_.tolist()
    assert ours.predict(rows(classes)[NAMES]).tolist() == own.predict(rows(classes)[NAMES]).tolist()


def test_with_its_defaults_it_is_at_least_as_near_to_the_optimum() -> None:
    table = rows(3)
    optimum, _ = both(LogisticRegression(solver="newton-cg", **EXACT), table)
    ours, own = both(LogisticRegression(), table)
    assert np.abs(ours.coef_ - optimum.coef_).max() < 1e-5
    assert np.abs(ours.coef_ - optimum.coef_).max() <= np.abs(own.coef_ - optimum.coef_).max()


def test_without_intercept_a_constant_column_has_a_coefficient() -> None:
    table = rows()
    table["d"] = 1.0
    ours, own = both(LogisticRegression(fit_intercept=False, solver="newton-cg", **EXACT), table)
    assert own.coef_[0, 3]
    assert_equal(ours, own)


def test_with_an_intercept_it_has_none() -> None:
    table = rows()
    table["d"] = 1.0
    assert_equal(*both(LogisticRegression(solver="newton-cg", **EXACT), table))


def test_a_warm_start_begins_where_the_last_fit_ended() -> None:
    table = rows(3)
    data = ff.scan(table)
    model = LogisticRegression(warm_start=True)
    cold = data.fit(model, target="y", features=NAMES, engine="serial").n_iter_[0]
    found = model.coef_
    again = data.fit(model, target="y", features=NAMES, engine="serial")
    assert again.n_iter_[0] <= 1 < cold
    np.testing.assert_allclose(again.coef_, found, rtol=1e-6)


def test_a_warm_start_of_another_shape_is_refused() -> None:
    model = LogisticRegression(warm_start=True)
    ff.scan(rows(3)).fit(model, target="y", features=NAMES, engine="serial")
    with pytest.raises(ValueError, match=r"coef_ is of shape \(3, 4\), expected \(1, 4\)"):
        ff.scan(rows(2)).fit(model, target="y", features=NAMES, engine="serial")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"solver": "liblinear"}, OptionError, "penalises the intercept too.*solver='lbfgs'.*fit_intercept=False"),
        ({"solver": "liblinear", "dual": True, "fit_intercept": False}, OptionError, "dual=True.* leave dual= out"),
        ({"solver": "lbfgs", "dual": True}, ValueError, "supports only dual=False"),
        ({"solver": "lbfgs", "l1_ratio": 1}, ValueError, "lbfgs supports only 'l2' or None penalties"),
        ({"C": -1.0}, ValueError, "'C' parameter"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_before_a_row_is_read(given: dict, error: type, said: str) -> None:
    def read(batch):
        raise AssertionError

    data = ff.scan(rows()).map_batches(read, schema=ff.scan(rows()).schema)
    with pytest.raises(error, match=said):
        data.fit(LogisticRegression(**given), target="y", features=NAMES, engine="serial")


def test_liblinear_without_intercept_is_the_same_objective() -> None:
    given = {"solver": "liblinear", "fit_intercept": False, **EXACT}
    assert_equal(*both(LogisticRegression(**given), rows()))


def test_iterations_that_are_not_enough_are_said() -> None:
    with pytest.warns(ConvergenceWarning, match=r"did not converge in 1 iteration\(s\)"):
        ff.scan(rows()).fit(LogisticRegression(max_iter=1), target="y", features=NAMES, engine="serial")


def test_one_class_is_refused() -> None:
    table = rows().assign(y="no")
    with pytest.raises(ValueError, match="only one class: 'no'"):
        ff.scan(table).fit(LogisticRegression(), target="y", features=NAMES, engine="serial")


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_rows_that_all_have_weight_0_are_refused(class_weight: str | None) -> None:
    data = ff.scan(rows(n_rows=20).assign(w=0.0))
    with pytest.raises(ValueError, match=r"Sample weights must contain at least one non-zero number\."):
        data.fit(LogisticRegression(class_weight=class_weight), target="y", features=NAMES, weight="w", engine="serial")
