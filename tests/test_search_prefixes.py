"""The first steps of a pipeline are fitted once per fold for all candidates that have them alike, and only then."""

import time
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import fourfold as ff
from fourfold.workloads.tune.search.prefixes import MOST, OneFit, Shared, grouped, most_in_group

pytestmark = pytest.mark.usefixtures("workers_of_tables")

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 4)), np.arange(40) % 2
N_FITS: list[Any] = []
"""What steps were fitted to, in this process."""


class Step(TransformerMixin, BaseEstimator):
    """A step that says when it is fitted."""

    def __init__(self, shift: float = 0.0, random_state: Any = None) -> None:
        self.shift, self.random_state = shift, random_state

    def fit(self, X: Any, y: Any = None) -> "Step":
        """Nothing is learned."""
        N_FITS.append(self.shift)
        return self

    def transform(self, X: Any) -> Any:
        """Moved."""
        return X + self.shift


class Spoils(GaussianNB):
    """Writes into the rows that it is fitted to."""

    def fit(self, X: Any, y: Any) -> "Spoils":
        """With the rows as they are, and then no more."""
        super().fit(X, y)
        X[:] = 1e6
        return self


def counted(pipeline: Pipeline, space: Any, **options: Any) -> tuple[int, Any]:
    N_FITS.clear()
    search = ff.SearchCV(pipeline, space, method="grid", cv=2, refit=False, **options).fit(X, y)
    return len(N_FITS), search


def pipeline(*steps: Any, last: Any = None, **options: Any) -> Pipeline:
    named = [(f"s{at}", step) for at, step in enumerate(steps)]
    return Pipeline([*named, ("last", last or GaussianNB())], **options)


SMOOTHING = {"last__var_smoothing": [1e-9, 0.1, 1.0]}


def test_a_step_that_all_share_is_fitted_once_per_fold() -> None:
    assert counted(pipeline(Step()), SMOOTHING)[0] == 2


def test_each_value_of_a_step_is_fitted_once_per_fold() -> None:
    assert counted(pipeline(Step()), {"s0__shift": [1.0, 2.0], **SMOOTHING})[0] == 2 * 2


def test_a_step_behind_one_that_differs_is_fitted_for_each() -> None:
    n_fits, _ = counted(pipeline(Step(), Step()), {"s0__shift": [1.0, 2.0], **SMOOTHING})
    assert n_fits == 2 * (2 + 2)


def test_a_step_before_groups_that_differ_is_fitted_once_per_fold_and_worker() -> None:
    n_fits, _ = counted(pipeline(Step(), Step()), {"s1__shift": [1.0, 2.0], **SMOOTHING})
    assert n_fits == 2 * (1 + 2)


def test_true_and_1_are_different_values() -> None:
    assert counted(pipeline(Step()), {"s0__shift": [1, True, 1.0]})[0] == 2 * 3


def test_nothing_is_shared_that_has_a_memory() -> None:
    own = pipeline(Step(), memory="here")
    assert [len(group) for group in grouped(own, [{"last__var_smoothing": 1.0}] * 3)] == [1, 1, 1]


class Draws(Step):
    """Moves rows by a number that it draws."""

    def fit(self, X: Any, y: Any = None) -> "Draws":
        """Each fit draws again."""
        super().fit(X, y)
        self.by_ = self.random_state.uniform(size=X.shape[1]) * self.shift
        return self

    def transform(self, X: Any) -> Any:
        """By column, and not by the same factor."""
        return X**2 * self.by_


def test_a_step_with_a_generator_is_shared_since_each_fit_has_a_copy_of_it() -> None:
    own = pipeline(Draws(1.0, np.random.RandomState(0)))
    space = {"s0__shift": [1.0, 1e4], "last__var_smoothing": [1e-9, 0.1, 1.0]}
    n_fits, ours = counted(own, space)
    theirs = GridSearchCV(own, space, cv=2, refit=False).fit(X, y)
    assert n_fits == 2 * 2
    assert ours.cv_results_["mean_test_score"].tolist() == theirs.cv_results_["mean_test_score"].tolist()


def test_a_step_in_a_step_that_writes_into_its_rows_is_not_shared() -> None:
    own = pipeline(make_pipeline(StandardScaler(), MinMaxScaler()))
    for name in ("s0__standardscaler__copy", "s0__minmaxscaler__copy"):
        assert [len(group) for group in grouped(own, [{name: False}] * 2)] == [1, 1]
        assert [len(group) for group in grouped(own, [{name: True}] * 2)] == [2]


@pytest.mark.parametrize(
    "space", [{}, {"s0__copy": [False]}, {"s0": [StandardScaler(copy=False)]}, {"s0__copy": [True, False]}]
)
def test_a_step_that_writes_into_the_rows_of_training_is_fitted_each_time_as_their_scores_see_it(space: Any) -> None:
    own = pipeline(StandardScaler(copy=bool(space)))
    space = {**space, "last__var_smoothing": [1e-9, 0.1, 1.0]}
    options = {"cv": 2, "refit": False, "return_train_score": True}
    moved = X * [1.0, 2.0, 3.0, 4.0] + [0.1, 0.9, 2.0, 3.0]
    theirs = GridSearchCV(own, space, **options).fit(moved, y)
    ours = ff.SearchCV(own, space, method="grid", **options).fit(moved, y)
    for name in ("mean_test_score", "mean_train_score"):
        assert ours.cv_results_[name].tolist() == theirs.cv_results_[name].tolist(), name


class Uncopied(np.ndarray):
    """Rows of which there can be no copy."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("one is enough")


class MakesUncopied(Step):
    """Of a step, as some libraries have it."""

    def transform(self, X: Any) -> Any:
        """As they are."""
        return np.asarray(X).view(Uncopied)


def test_rows_that_cannot_be_copied_are_made_for_each_fit() -> None:
    n_fits, search = counted(pipeline(MakesUncopied(), Step()), SMOOTHING)
    assert n_fits == 2 * 3 * 2
    assert search.failures_ == []


def test_a_candidate_that_changes_the_pipeline_itself_shares_nothing() -> None:
    changed = [{"memory": None}, {"steps": pipeline(Step()).steps}, {"last__var_smoothing": 1.0}]
    assert [len(group) for group in grouped(pipeline(Step()), changed)] == [1, 1, 1]


def test_a_subclass_of_pipeline_shares_nothing() -> None:
    class Own(Pipeline):
        """It may fit its steps in another way."""

    own = Own(pipeline(Step()).steps)
    assert [len(group) for group in grouped(own, [{}, {}])] == [1, 1]


def test_groups_are_not_so_large_that_workers_have_nothing_to_do() -> None:
    many = [{"last__var_smoothing": float(at)} for at in range(2 * MOST + 1)]
    assert [len(group) for group in grouped(pipeline(Step()), many)] == [MOST, MOST, 1]
    assert [most_in_group(24, workers) for workers in (1, 2, 4, 8)] == [6, 3, 1, 1]
    assert len(grouped(pipeline(Step()), many[:8], most_in_group(24, 4))) == 8
    assert most_in_group(1000, 2) == MOST


def test_a_step_that_writes_into_its_rows_harms_no_other_candidate() -> None:
    own = pipeline(StandardScaler(), PCA(2, random_state=0), last=Spoils())
    theirs = GridSearchCV(own, SMOOTHING, cv=2, refit=False).fit(X, y)
    ours = ff.SearchCV(own, SMOOTHING, method="grid", cv=2, refit=False).fit(X, y)
    assert ours.cv_results_["mean_test_score"].tolist() == theirs.cv_results_["mean_test_score"].tolist()


def test_a_shared_step_costs_each_candidate_its_time() -> None:
    shared, X1, model = Shared(), np.ones((2, 1)), StandardScaler()
    first, second = shared.of(0, ("a",)), shared.of(0, ("a",))
    rows, fitted = first.cache(_fit_slowly)(model, X1)
    again, same = second.cache(_fit_slowly)(model, X1)
    assert (first.saved_s, same) == (0.0, fitted)
    assert second.saved_s > 0
    assert again is not rows
    assert again.tolist() == rows.tolist()


class Slow(Step):
    """Its fit takes a moment."""

    def fit(self, X: Any, y: Any = None) -> "Slow":
        """Busy for 20 ms."""
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass
        return self


def test_the_table_has_the_time_of_a_fit_as_if_it_had_been_alone() -> None:
    search = ff.SearchCV(pipeline(Slow()), SMOOTHING, method="grid", cv=2, refit=False).fit(X, y)
    assert (search.cv_results_["mean_fit_time"] >= 0.02).all()


def test_another_fold_finds_nothing_of_the_one_before() -> None:
    shared = Shared()
    shared.of(0, ("a",)).cache(_fit_slowly)(StandardScaler(), np.ones((2, 1)))
    other = shared.of(1, ("a",))
    rows, _ = other.cache(_fit_slowly)(StandardScaler(), np.zeros((3, 1)))
    assert other.saved_s == 0.0
    assert len(rows) == 3


def _fit_slowly(model: Any, X: Any) -> tuple[Any, Any]:
    return model.fit_transform(X), model


def test_what_stands_in_for_a_memory_does_so_for_one_fit_and_in_no_copy() -> None:
    one = OneFit([], ("a",))
    assert one.cache(_fit_slowly) is not _fit_slowly
    assert one.cache(_fit_slowly) is _fit_slowly
    assert clone(pipeline(MinMaxScaler(), memory=one)).memory is None


def test_a_pipeline_with_a_memory_uses_that(tmp_path: Any) -> None:
    own = pipeline(StandardScaler(), memory=str(tmp_path))
    ff.SearchCV(own, SMOOTHING, method="grid", cv=2).fit(X, y)
    assert [*tmp_path.glob("joblib/**/output.pkl")]


# ---- the order of fits ---------------------------------------------------------------------------------------------------


class Sized(GaussianNB):
    """Says how large it is when it is fitted."""

    def __init__(self, n_estimators: int = 1, var_smoothing: float = 1e-9) -> None:
        super().__init__(var_smoothing=var_smoothing)
        self.n_estimators = n_estimators

    def fit(self, X: Any, y: Any) -> "Sized":
        """As its base."""
        N_FITS.append(self.n_estimators)
        return super().fit(X, y)


def test_the_fits_that_take_longest_begin_first() -> None:
    N_FITS.clear()
    ff.SearchCV(Sized(), {"n_estimators": [5, 100, 20]}, method="grid", cv=2, refit=False).fit(X, y)
    assert N_FITS == [100, 100, 20, 20, 5, 5]


def test_fits_that_nothing_tells_apart_are_in_the_order_of_the_grid() -> None:
    N_FITS.clear()
    ff.SearchCV(Sized(n_estimators=7), {"var_smoothing": [1.0, 2.0]}, method="grid", cv=2, refit=False).fit(X, y)
    assert N_FITS == [7] * 4
    assert ff.SearchCV(Sized(), {"n_estimators": [1.0, True]}, method="grid", cv=2).fit(X, y).n_splits_ == 2
