"""KMeans: `Dataset.fit` starts where its own fit starts, and comes to the same centers in as many steps."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import threadpoolctl
from parts import Numbered
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.pipeline import make_pipeline
from tables import small_pieces
from test_recipes_categories import Cut, same_fitted

import fourfold as ff
from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import About, Rows
from fourfold.workloads.fit.recipes.kmeans_starts import Masses
from fourfold.workloads.fit.registry import fit_with

__all__ = ["small_pieces"]
N_ROWS = 192
LEFT_OUT = ("labels_",)
START = np.array([[1e3, 0.0, 0.0], [1e3, 1.0, 1.0], [1e3 + 5, 3.0, 3.0]])


def table() -> pa.Table:
    """Four clouds, far from zero."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, 3)) + rng.integers(0, 4, N_ROWS)[:, None] * 2 + [1e3, 0, 0]
    columns = {name: X[:, at] for at, name in enumerate("abc")}
    return pa.table({**columns, "w": rng.integers(0, 4, N_ROWS).astype(float)})


CASES: list[Any] = [
    KMeans(4, random_state=0),
    KMeans(5, random_state=1, n_init=3, tol=0),
    KMeans(3, init="random", random_state=2, max_iter=9),
    KMeans(40, init="random", random_state=3, n_init=2, max_iter=3),
    KMeans(3, init=START),
    KMeans(3, init=START, max_iter=1),
    KMeans(1, random_state=0),
    KMeans(6, random_state=4, algorithm="elkan"),
    KMeans(3, init=np.vstack([START[:2], [[1e6, 1e6, 1e6]]])),
]
NAMES = [f"{number}-{case.init if isinstance(case.init, str) else 'given'}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize(("n_pieces", "weight"), [(1, None), (7, None), (7, "w")], ids=["whole", "pieces", "weighted"])
@pytest.mark.parametrize("model", CASES, ids=NAMES)
def test_it_is_what_its_own_fit_makes_of_all_rows(model: Any, n_pieces: int, weight: str | None, small_pieces: Cut) -> None:
    small_pieces(N_ROWS // n_pieces, 1 << 20)
    rows = table()
    frame = rows.to_pandas()
    features = ["a", "b", "c"]
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter("always")
        alone = clone(model).fit(frame[features], sample_weight=None if weight is None else frame[weight])
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        fitted = ff.scan(rows).fit(clone(model), features=features, weight=weight, engine="serial")
    assert [str(each.message) for each in ours] == [str(each.message) for each in theirs]
    same_fitted(fitted, alone, without=LEFT_OUT)
    np.testing.assert_array_equal(fitted.predict(frame[features]), alone.labels_)


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("n_parts", [1, 7])
def test_sparse_rows_stay_sparse_and_come_to_the_same_centers(init: str, n_parts: int) -> None:
    rng = np.random.default_rng(0)
    rows = csr_matrix(rng.normal(size=(200, 5)) * (rng.random((200, 5)) < 0.4))
    model = KMeans(4, init=init, random_state=0)
    fitted = Numbered(rows, n_parts).finds(fit_with(clone(model), About(None, 5, is_sparse=True)))
    same_fitted(fitted, clone(model).fit(rows), without=LEFT_OUT)


def test_more_centers_than_different_rows_are_warned_of() -> None:
    frame = pd.DataFrame({"x": [1.0, 1.0, 5.0, 5.0, 5.0], "y": [2.0, 2.0, 3.0, 3.0, 3.0]})
    model = KMeans(4, random_state=0, n_init=2)
    with pytest.warns(ConvergenceWarning, match="Number of distinct clusters") as theirs:
        alone = clone(model).fit(frame)
    with pytest.warns(ConvergenceWarning, match="Number of distinct clusters") as ours:
        fitted = ff.scan(frame).fit(clone(model), engine="serial")
    assert str(ours[0].message) == str(theirs[0].message)
    same_fitted(fitted, alone, without=LEFT_OUT)


def test_given_centers_are_one_start_and_say_so() -> None:
    with pytest.warns(RuntimeWarning, match="performing only one init in KMeans instead of n_init=5"):
        ff.scan(table()).fit(KMeans(3, init=START, n_init=5), features=["a", "b", "c"], engine="serial")


BAD: list[Any] = [KMeans(500), KMeans(3, init=START[:, :2]), KMeans(2, init=START), KMeans(0), KMeans(3, tol=-1.0)]


@pytest.mark.parametrize("model", BAD, ids=lambda model: f"{model.n_clusters}-{type(model.init).__name__}")
def test_what_cannot_be_fitted_is_refused_in_the_words_of_its_own_fit(model: Any) -> None:
    frame = table().to_pandas()[["a", "b", "c"]]
    with pytest.raises(ValueError, match=r".") as alone:
        clone(model).fit(frame)
    with pytest.raises(type(alone.value)) as fitted:
        ff.scan(frame).fit(clone(model), engine="serial")
    assert str(fitted.value) == str(alone.value)


def test_a_random_start_needs_as_many_rows_with_a_weight() -> None:
    frame = table().to_pandas().assign(w=lambda frame: (frame.index < 3).astype(float))
    with pytest.raises(ValueError, match="Fewer non-zero entries in p than size"):
        ff.scan(frame).fit(KMeans(4, init="random"), weight="w", engine="serial")


def test_a_function_that_wants_all_rows_is_refused() -> None:
    with pytest.raises(OptionError, match="init= is a function that wants all rows at once"):
        ff.scan(table()).fit(KMeans(2, init=lambda X, k, random_state: X[:k]), weight="w", engine="serial")


def test_centers_that_go_to_far_rows_at_the_last_step_count_as_in_its_own_fit() -> None:
    rng = np.random.default_rng(8)
    frame = pd.DataFrame({"x": np.where(rng.random(224) < 0.2, -1e3, np.exp(2 * rng.normal(size=224)))})
    edges = np.linspace(frame["x"].min(), frame["x"].max(), 5)
    model = KMeans(4, init=((edges[1:] + edges[:-1]) / 2)[:, None])
    with pytest.warns(ConvergenceWarning, match=r"Number of distinct clusters \(2\) found"):
        alone = clone(model).fit(frame)
    with pytest.warns(ConvergenceWarning, match=r"Number of distinct clusters \(2\) found"):
        fitted = ff.scan(frame).fit(clone(model), engine="serial")
    same_fitted(fitted, alone, without=LEFT_OUT)


@pytest.mark.parametrize("n_pieces", [1, 7])
def test_several_centers_without_rows_come_to_the_same_places_as_in_its_own_fit(n_pieces: int, small_pieces: Cut) -> None:
    """In whatever order: which of them goes to which row is arbitrary there."""
    small_pieces(N_ROWS // n_pieces, 1 << 20)
    frame = table().to_pandas()[["a", "b", "c"]]
    model = KMeans(6, init=np.vstack([START, np.full((3, 3), 1e6)]))
    alone, fitted = clone(model).fit(frame), ff.scan(frame).fit(clone(model), engine="serial")
    assert fitted.n_iter_ == alone.n_iter_
    assert fitted.inertia_ == pytest.approx(alone.inertia_, rel=1e-10)
    ours, theirs = (np.array(sorted(each.cluster_centers_.tolist())) for each in (fitted, alone))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert len(np.unique(fitted.predict(frame))) == 6


def test_what_starts_are_drawn_by_has_the_same_bits_for_any_number_of_threads() -> None:
    draw = np.random.default_rng(0)
    X = draw.normal(size=(20_000, 10))
    rows = Rows(X, weight=draw.random(len(X)), first=0)
    for wanted in (Masses(), Masses(X[:8].copy()), Masses(X[:8].copy(), X[:5].copy())):
        bits = set()
        for n_threads in (1, 2):
            with threadpoolctl.threadpool_limits(n_threads):
                bits.add(wanted.fold(rows)[0].masses.tobytes())
        assert len(bits) == 1


def test_sparse_rows_that_were_kept_come_to_the_same_centers(small_pieces: Cut) -> None:
    small_pieces(16, 1 << 30)
    texts = pd.DataFrame({"text": ["rain and fog", "sun", "fog in the sun", "rain", "wind and fog"] * 12})
    steps = make_pipeline(HashingVectorizer(n_features=16), KMeans(3, random_state=0))
    found = ff.scan(texts).fit(clone(steps), features=["text"], engine="serial")[-1]
    expected = clone(steps).fit(texts["text"])[-1]
    assert found.n_iter_ == expected.n_iter_
    np.testing.assert_allclose(found.cluster_centers_, expected.cluster_centers_, atol=1e-12)
