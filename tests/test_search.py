"""`ff.SearchCV` says what scikit-learn's searches say: same candidates, same scores, same ranks."""

import warnings
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from scipy import sparse
from scipy.stats import loguniform, randint, uniform
from sklearn import config_context
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import make_classification, make_regression
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import RandomForestClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, HalvingRandomSearchCV, KFold, RandomizedSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

import fourfold as ff
from fourfold.system.machine import cores
from fourfold.workloads.tune.search.asked import jobs_of, options_of

pytestmark = pytest.mark.usefixtures("workers_of_tables")

X, y = make_classification(80, 6, random_state=0)
XR, yr = make_regression(90, 5, noise=20, random_state=0)
GROUPS = np.repeat(np.arange(8), 10)
WEIGHT = np.linspace(0.5, 2.0, len(y))


def best_of_two(table: dict[str, Any]) -> int:
    """A `refit`: the second best."""
    return int(np.argsort(table["mean_test_score"])[-2])


def two_scores(estimator: Any, X: Any, y: Any) -> dict[str, float]:
    """A `scoring` that gives several."""
    predicted = estimator.predict(X)
    return {"right": float((predicted == y).mean()), "ones": float(predicted.mean())}


def refuses_depth_3(estimator: Any, X: Any, y: Any) -> float:
    """A `scoring` that raises for one candidate."""
    if estimator.max_depth == 3:
        raise RuntimeError("no score for depth 3")
    return float(estimator.score(X, y))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small fits are slower with several threads of BLAS, most of all beside other tests."""
    with threadpool_limits(1):
        yield


PIPELINE = Pipeline([("scale", StandardScaler()), ("reduce", PCA(random_state=0)), ("svc", SVC())])
STEPS = {
    "scale": [StandardScaler(), "passthrough"],
    "reduce": [PCA(3, random_state=0), SelectKBest(k=4), None],
    "svc__C": [0.1, 10],
}
MULTI = {"acc": "accuracy", "auc": "roc_auc", "own": make_scorer(accuracy_score)}

GRIDS = {
    "svc": (SVC(), {"C": [0.1, 1, 10], "kernel": ["rbf", "linear"]}, {}),
    "list of dicts": (SVC(), [{"kernel": ["rbf"], "gamma": [0.1, 1]}, {"kernel": ["poly"], "degree": [2, 3]}], {"cv": 3}),
    "ties": (KNeighborsClassifier(), {"n_neighbors": [3, 5], "leaf_size": [20, 30, 40]}, {}),
    "train scores": (
        Ridge(),
        {"alpha": [0.1, 1.0, 100.0]},
        {"return_train_score": True, "cv": KFold(4, shuffle=True, random_state=1)},
    ),
    "multimetric": (
        GaussianNB(),
        {"var_smoothing": [1e-9, 0.1, 10]},
        {"scoring": MULTI, "refit": "auc", "return_train_score": True},
    ),
    "function of scores": (
        DecisionTreeClassifier(random_state=0),
        {"max_depth": [1, 2, 4]},
        {"scoring": two_scores, "refit": "right"},
    ),
    "refit by a function": (DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2, 4]}, {"refit": best_of_two}),
    "no refit": (
        DecisionTreeClassifier(random_state=0),
        {"max_depth": [1, 2]},
        {"scoring": ["accuracy", "f1"], "refit": False},
    ),
    "pipeline": (PIPELINE, {"reduce__n_components": [2, 4], "svc__C": [0.1, 1, 10]}, {}),
    "steps replaced": (PIPELINE, STEPS, {"cv": 3}),
    "forest": (RandomForestClassifier(random_state=0), {"n_estimators": [2, 9, 5], "max_depth": [2, None]}, {"cv": 3}),
    "no target": (KMeans(n_init=1, random_state=0), {"n_clusters": [2, 3, 4]}, {}),
    "some fail": (SVC(), {"C": [-1, 1, 10]}, {"return_train_score": True}),
    "some fail, many scores": (SVC(), {"C": [-1, 1]}, {"scoring": MULTI, "refit": "acc", "error_score": -5.0}),
    "some fail, a function": (SVC(), {"C": [-1, 1]}, {"scoring": two_scores, "refit": "right", "return_train_score": True}),
    "some scores fail": (DecisionTreeClassifier(random_state=0), {"max_depth": [1, 3]}, {"scoring": refuses_depth_3}),
}


def same(ours: Any, theirs: Any) -> None:
    """All that two searches say is equal, but for times."""
    assert list(ours.cv_results_) == list(theirs.cv_results_)
    for name, expected in theirs.cv_results_.items():
        found = ours.cv_results_[name]
        if name == "params":
            assert [*map(str, found)] == [*map(str, expected)]
        elif "_time" in name:
            assert found.shape == expected.shape
            assert (found >= 0).all()
        elif name.startswith("param_"):
            assert found.dtype == expected.dtype
            assert np.array_equal(found.mask, expected.mask)
            assert str(found) == str(expected)
        else:
            assert found.dtype == expected.dtype, name
            np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)
    for name in ("best_index_", "best_score_", "multimetric_", "n_splits_", "n_features_in_"):
        expected = getattr(theirs, name, None)
        assert getattr(ours, name, None) == (expected if expected is None else pytest.approx(expected, rel=1e-12)), name
    assert str(getattr(ours, "best_params_", None)) == str(getattr(theirs, "best_params_", None))
    public = {name for name in vars(theirs) if name.endswith("_") and not name.startswith("_")}
    assert public <= {name for name in vars(ours) if name.endswith("_")}


def rows_of(case: str) -> tuple[Any, Any]:
    return (XR, yr) if case == "train scores" else (X, None if case == "no target" else y)


@pytest.mark.parametrize("case", GRIDS)
def test_a_grid_has_the_table_that_gridsearchcv_has(case: str) -> None:
    estimator, space, options = GRIDS[case]
    rows, target = rows_of(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the fits that fail: they are the same
        theirs = GridSearchCV(estimator, space, **options).fit(rows, target)
        ours = ff.SearchCV(estimator, space, method="grid", **options).fit(rows, target)
    same(ours, theirs)
    if theirs.refit:
        assert np.array_equal(ours.predict(rows), theirs.predict(rows))


RANDOMS = {
    "distributions": (SVC(), {"C": loguniform(1e-2, 1e2), "gamma": uniform(0.01, 1)}, {}),
    "lists": (KNeighborsClassifier(), {"n_neighbors": list(range(1, 30)), "weights": ["uniform", "distance"]}, {}),
    "list of dicts": (SVC(), [{"C": uniform(1, 9)}, {"degree": randint(2, 4), "kernel": ["poly"]}], {"cv": 3}),
    "pipeline": (PIPELINE, {"reduce__n_components": randint(2, 4), "svc__C": loguniform(1e-2, 1e2)}, {"cv": 3}),
}


@pytest.mark.parametrize("case", RANDOMS)
def test_a_random_search_has_the_table_that_randomizedsearchcv_has(case: str) -> None:
    estimator, space, options = RANDOMS[case]
    theirs = RandomizedSearchCV(estimator, space, n_iter=9, random_state=3, **options).fit(X, y)
    ours = ff.SearchCV(estimator, space, n_trials=9, random_state=3, **options).fit(X, y)
    same(ours, theirs)


def test_ten_candidates_are_drawn_when_nobody_says_how_many() -> None:
    assert len(ff.SearchCV(GaussianNB(), {"var_smoothing": uniform(0, 1)}, cv=2).fit(X, y).cv_results_["params"]) == 10


HALVINGS = {
    "rows": ({"C": loguniform(1e-2, 1e2), "gamma": uniform(0.01, 1)}, {}),
    "so many candidates": ({"C": loguniform(1e-2, 1e2)}, {"n_candidates": 7, "min_resources": "exhaust", "factor": 2}),
    "refit by a function": ({"C": loguniform(1e-2, 1e2)}, {"refit": best_of_two}),
    "aggressive": ({"C": loguniform(1e-2, 1e2)}, {"n_candidates": 12, "min_resources": 20, "aggressive_elimination": True}),
}


@pytest.mark.parametrize("case", HALVINGS)
def test_halving_has_the_candidates_and_the_survivors_that_halvingrandomsearchcv_has(case: str) -> None:
    space, options = HALVINGS[case]
    theirs = HalvingRandomSearchCV(SVC(), space, random_state=5, cv=3, return_train_score=False, **options).fit(X, y)
    renamed = {"n_trials" if name == "n_candidates" else name: value for name, value in options.items()}
    ours = ff.SearchCV(SVC(), space, method="halving", random_state=5, cv=3, **renamed).fit(X, y)
    same(ours, theirs)
    assert theirs.n_iterations_ > 1
    for name in (
        "n_resources_",
        "n_candidates_",
        "n_iterations_",
        "n_remaining_candidates_",
        "min_resources_",
        "max_resources_",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_more_trials_than_candidates_are_told_in_the_words_of_this_search_when_somebody_asked_for_them() -> None:
    space = {"max_depth": [1, 2]}
    with pytest.warns(UserWarning, match=r"n_trials=5 is more than the 2 candidates of the space") as told:
        ff.SearchCV(DecisionTreeClassifier(random_state=0), space, n_trials=5, cv=2).fit(X, y)
    assert len(told) == 1
    ff.SearchCV(DecisionTreeClassifier(random_state=0), space, cv=2).fit(X, y)  # a warning is an error here


WORDS = {
    "n_iter": r"SearchCV has no argument n_iter=: give n_trials=",
    "param_grid": r"give space=",
    "workers": r"give n_jobs=",
    "memory": r"with fourfold.using\(memory=…\): search.fit",
    "scorin": r"no argument 'scorin' \(did you mean 'scoring'\?\). It has estimator, space, method",
}


@pytest.mark.parametrize("name", WORDS)
def test_an_argument_of_another_search_is_told_by_its_name_here(name: str) -> None:
    with pytest.raises(TypeError, match=WORDS[name]):
        ff.SearchCV(SVC(), **{name: 3})


def test_halving_by_a_parameter_gives_the_survivors_more_of_it() -> None:
    options = {"resource": "n_estimators", "max_resources": 9, "random_state": 0, "cv": 2}
    space = {"max_depth": randint(1, 5), "min_samples_leaf": randint(1, 9)}
    forest = RandomForestClassifier(random_state=0)
    theirs = HalvingRandomSearchCV(forest, space, return_train_score=False, **options).fit(X, y)
    same(ff.SearchCV(forest, space, method="halving", **options).fit(X, y), theirs)


def test_groups_go_to_the_splitter() -> None:
    options = {"cv": GroupKFold(3)}
    theirs = GridSearchCV(GaussianNB(), {"var_smoothing": [1e-9, 1.0]}, **options).fit(X, y, groups=GROUPS)
    same(ff.SearchCV(GaussianNB(), {"var_smoothing": [1e-9, 1.0]}, method="grid", **options).fit(X, y, groups=GROUPS), theirs)


def test_weights_are_cut_to_each_fold_and_used_for_scores() -> None:
    space = {"var_smoothing": [1e-9, 1.0]}
    theirs = GridSearchCV(GaussianNB(), space).fit(X, y, sample_weight=WEIGHT)
    ours = ff.SearchCV(GaussianNB(), space, method="grid").fit(X, y, sample_weight=WEIGHT)
    same(ours, theirs)
    assert ours.best_score_ != ff.SearchCV(GaussianNB(), space, method="grid").fit(X, y).best_score_


def test_parameters_of_fit_reach_a_step_also_when_it_is_shared() -> None:
    pipeline = Pipeline([("scale", StandardScaler()), ("clf", GaussianNB())])
    space = {"clf__var_smoothing": [1e-9, 0.1, 1.0]}
    theirs = GridSearchCV(pipeline, space).fit(X, y, scale__sample_weight=WEIGHT)
    same(ff.SearchCV(pipeline, space, method="grid").fit(X, y, scale__sample_weight=WEIGHT), theirs)


def test_metadata_goes_where_it_was_requested() -> None:
    with config_context(enable_metadata_routing=True):
        scale = StandardScaler().set_fit_request(sample_weight=True)
        model = GaussianNB().set_fit_request(sample_weight=True)
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=True)
        pipeline, space = Pipeline([("scale", scale), ("clf", model)]), {"clf__var_smoothing": [1e-9, 0.1]}
        given = {"sample_weight": WEIGHT, "groups": GROUPS}
        theirs = GridSearchCV(pipeline, space, cv=GroupKFold(3), scoring=scorer).fit(X, y, **given)
        ours = ff.SearchCV(pipeline, space, cv=GroupKFold(3), scoring=scorer, method="grid", n_jobs=2).fit(X, y, **given)
        same(ours, theirs)
        assert ours.score(X, y, sample_weight=WEIGHT) == theirs.score(X, y, sample_weight=WEIGHT)


@pytest.mark.parametrize("kind", ["pandas", "polars", "csr"])
def test_rows_may_be_in_a_frame_or_sparse(kind: str) -> None:
    if kind == "csr":
        rows, estimator = sparse.csr_matrix(np.where(X > 0, X, 0)), make_pipeline(TruncatedSVD(4, random_state=0), SVC())
    else:
        library = pytest.importorskip(kind)
        rows, estimator = library.DataFrame(X, **_columns(kind)), make_pipeline(StandardScaler(), SVC())
    theirs = GridSearchCV(estimator, {"svc__C": [0.1, 1]}, cv=3).fit(rows, y)
    ours = ff.SearchCV(estimator, {"svc__C": [0.1, 1]}, cv=3, method="grid", n_jobs=2).fit(rows, y)
    same(ours, theirs)
    if kind != "csr":
        assert [*ours.feature_names_in_] == [*theirs.feature_names_in_]


def _columns(kind: str) -> dict[str, Any]:
    names = [f"x{at}" for at in range(X.shape[1])]
    return {"columns": names} if kind == "pandas" else {"schema": names}


@pytest.mark.parametrize("engine", ["auto", "threads", "processes"])
def test_the_table_is_the_same_for_any_number_of_jobs(engine: str) -> None:
    estimator, space, options = GRIDS["steps replaced"]
    one = ff.SearchCV(estimator, space, method="grid", **options).fit(X, y)
    same(ff.SearchCV(estimator, space, method="grid", n_jobs=3, engine=engine, **options).fit(X, y), one)


def test_the_configuration_of_scikit_learn_is_that_of_the_caller() -> None:
    with_nan = X.copy()
    with_nan[0, 0] = np.nan
    with config_context(assume_finite=True):
        search = ff.SearchCV(StandardScalerThatLooks(), {"copy": [True, False]}, method="grid", scoring=_always_1, n_jobs=2)
        assert search.fit(with_nan, y).best_score_ == 1.0


class StandardScalerThatLooks(StandardScaler):
    """Refuses to be fitted where NaN is looked for."""

    def fit(self, X: Any, y: Any = None) -> Any:
        from sklearn import get_config

        assert get_config()["assume_finite"]
        return self


def _always_1(estimator: Any, X: Any, y: Any) -> float:
    return 1.0


def test_error_score_raise_raises_what_the_fit_raised() -> None:
    with pytest.raises(ValueError, match=r"(?s)'C' parameter of SVC .* Got -1 instead"):
        ff.SearchCV(SVC(), {"C": [-1]}, method="grid", error_score="raise").fit(X, y)


def test_it_raises_when_all_fits_fail() -> None:
    with pytest.raises(ValueError, match="All the 5 fits failed"):
        ff.SearchCV(SVC(), {"C": [-1]}, method="grid").fit(X, y)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_parameter_that_does_not_exist_ends_the_search(n_jobs: int) -> None:
    with pytest.raises(ValueError, match="Invalid parameter 'D' for estimator SVC"):
        ff.SearchCV(SVC(), {"D": [1]}, method="grid", n_jobs=n_jobs).fit(X, y)


DIFFERENT = {"check_supervised_y_2d": "nobody warns of it: scikit-learn's own searches do not, either"}


@pytest.mark.filterwarnings("ignore")  # what checks do may warn
@parametrize_with_checks(
    [
        ff.SearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, method="grid", cv=2, error_score="raise"),
        ff.SearchCV(Ridge(), {"alpha": [0.1, 1.0]}, n_trials=2, cv=2, error_score="raise", random_state=0),
    ],
    expected_failed_checks=lambda search: DIFFERENT if isinstance(search.estimator, Ridge) else {},
)
def test_it_is_an_estimator_by_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_it_can_be_searched_over_itself() -> None:
    inner = ff.SearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2]}, method="grid", cv=2)
    outer = ff.SearchCV(inner, {"cv": [StratifiedKFold(2), StratifiedKFold(3)]}, method="grid", cv=2, n_jobs=2).fit(X, y)
    assert len(outer.cv_results_["params"]) == 2
    assert outer.best_estimator_.best_params_["max_depth"] in (1, 2)


def test_it_says_nothing_unless_it_is_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    space = {"max_depth": [1, 2]}
    search = ff.SearchCV(DecisionTreeClassifier(random_state=0), space, method="grid", cv=2)
    assert options_of(search)["progress"] is False
    search.fit(X, y)
    assert capsys.readouterr() == ("", "")
    search.set_params(verbose=1).fit(X, y)
    assert "progress" not in options_of(search)  # a bar on a terminal
    assert capsys.readouterr().out == "Fitting 2 folds for each of 2 candidates, totalling 4 fits\n"
    search.set_params(verbose=3).fit(X, y)
    assert capsys.readouterr().out.count("[CV 1/2] END") == 2


def test_a_block_and_the_environment_say_where_fits_run_unless_the_search_does(monkeypatch: pytest.MonkeyPatch) -> None:
    search = ff.SearchCV(GaussianNB(), {"var_smoothing": [1.0]}, method="grid")
    assert (options_of(search)["engine"], options_of(search)["workers"]) == ("serial", 1)
    two = clone(search).set_params(n_jobs=2)
    assert (options_of(two)["engine"], options_of(two)["workers"]) == ("processes", 2)
    monkeypatch.setenv("FOURFOLD_ENGINE", "threads")
    assert (options_of(search)["engine"], options_of(search).get("workers")) == ("threads", None)
    with ff.using(engine="serial"):
        assert options_of(two)["engine"] == "serial"
    assert options_of(search.set_params(engine="processes"))["engine"] == "processes"
    with joblib.parallel_config(n_jobs=3):
        assert jobs_of(None) == 3
    assert jobs_of(-1) == cores().n_cores
