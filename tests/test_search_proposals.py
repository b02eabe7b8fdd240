"""`method="tpe"`: candidates from Optuna, the same for any number of workers; and one space for all methods."""

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import loguniform, norm, randint, uniform
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.model_selection import ParameterGrid, ParameterSampler

import fourfold as ff
from fourfold.errors import OptionError
from fourfold.workloads.tune.search.spaces import for_grid, for_sampling
from fourfold.workloads.tune.search.tpe import Proposals

pytestmark = pytest.mark.usefixtures("workers_of_tables")

X, y = np.zeros((6, 1)), np.zeros(6)


class Hill(BaseEstimator):
    """Its score is highest at x = 3, depth = 4, kind "good"."""

    def __init__(self, x: float = 0.0, depth: int = 1, kind: Any = "bad") -> None:
        self.x, self.depth, self.kind = x, depth, kind

    def fit(self, X: Any, y: Any) -> "Hill":
        """Nothing is learned."""
        if self.x > 9:
            raise ValueError("too far")
        return self

    def score(self, X: Any, y: Any) -> float:
        """Of what it was made with."""
        return -((self.x - 3) ** 2) - abs(self.depth - 4) - (self.kind != "good")


SPACE = {"x": uniform(-10, 18), "depth": randint(1, 9), "kind": ["bad", "good"]}


def proposed(n_trials: int = 20, space: Any = SPACE, **options: Any) -> Any:
    given = {"method": "tpe", "n_trials": n_trials, "cv": 2, "random_state": 0, **options}
    return ff.SearchCV(Hill(), space, **given).fit(X, y)


def test_the_candidates_are_the_same_for_any_number_of_workers() -> None:
    one, three = proposed(), proposed(n_jobs=3)
    assert one.cv_results_["params"] == three.cv_results_["params"]
    assert proposed(random_state=1).cv_results_["params"] != one.cv_results_["params"]


def test_it_finds_better_candidates_than_it_began_with() -> None:
    search = proposed(48)
    scores = search.cv_results_["mean_test_score"]
    assert np.median(scores[-16:]) > np.median(scores[:16])
    assert search.best_score_ == scores.max()


def test_a_candidate_that_is_proposed_again_is_not_fitted_again() -> None:
    search = proposed(20, {"kind": ["bad", "good"], "depth": [1, 2]})
    assert sum(report.n_items for report in search.reports_) == 4 * search.n_splits_
    assert len(search.study_.trials) == len(search.cv_results_["params"]) == 20
    for params, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        assert score == Hill(**params).score(X, y)


def test_the_study_is_a_study_of_optuna() -> None:
    search = proposed()
    assert isinstance(search.study_, optuna.Study)
    assert search.study_.best_params == search.best_params_
    assert [trial.value for trial in search.study_.trials] == search.cv_results_["mean_test_score"].tolist()


@pytest.mark.filterwarnings("ignore")
def test_a_candidate_without_a_score_is_told_as_failed() -> None:
    search = proposed(24, {"x": uniform(0, 18)})
    failed = [trial.state.name == "FAIL" for trial in search.study_.trials]
    assert failed == np.isnan(search.cv_results_["mean_test_score"]).tolist()
    assert 0 < sum(failed) < 24


def test_of_several_scores_the_one_of_refit_is_what_it_goes_by() -> None:
    search = proposed(scoring={"score": _score, "minus": _minus}, refit="minus")
    assert [trial.value for trial in search.study_.trials] == search.cv_results_["mean_test_minus"].tolist()


def test_a_function_of_several_scores_needs_a_name() -> None:
    with pytest.raises(ValueError, match="name one of plus, minus in refit="):
        proposed(8, scoring=_both)


def _score(estimator: Any, X: Any, y: Any) -> float:
    return float(estimator.score(X, y))


def _minus(estimator: Any, X: Any, y: Any) -> float:
    return -float(estimator.score(X, y))


def _both(estimator: Any, X: Any, y: Any) -> dict[str, float]:
    return {"plus": _score(estimator, X, y), "minus": _minus(estimator, X, y)}


OPTUNAS = {
    "x": FloatDistribution(-5, 5),
    "depth": IntDistribution(1, 64, log=True),
    "kind": CategoricalDistribution(("bad", "good")),
}


@pytest.mark.parametrize("method", ["tpe", "random", "halving"])
def test_distributions_of_optuna_do_for_every_method(method: str) -> None:
    options = {"resource": "depth", "max_resources": 9} if method == "halving" else {}
    space = {name: values for name, values in OPTUNAS.items() if method != "halving" or name != "depth"}
    found = proposed(9, space, method=method, **options).cv_results_["params"]
    assert all(-5 <= each["x"] <= 5 and each["kind"] in ("bad", "good") for each in found)
    assert all(isinstance(each["depth"], int) and 1 <= each["depth"] <= 64 for each in found)
    assert len({each["x"] for each in found}) > 3


def test_steps_and_logarithms_of_optunas_distributions_are_kept() -> None:
    space = {
        "a": IntDistribution(2, 10, step=4),
        "b": FloatDistribution(0, 1, step=0.25),
        "c": FloatDistribution(1e-4, 1, log=True),
    }
    (part,) = for_sampling([space])
    drawn = [*ParameterSampler(part, 60, random_state=0)]
    assert {each["a"] for each in drawn} == {2, 6, 10}
    assert {each["b"] for each in drawn} == {0, 0.25, 0.5, 0.75, 1}
    assert np.median([each["c"] for each in drawn]) < 0.1
    whole = [*ParameterSampler(for_sampling([{"d": IntDistribution(1, 1000, log=True)}]), 60, random_state=0)]
    assert np.median([each["d"] for each in whole]) < 100
    assert len(ParameterGrid(for_grid([{"a": space["a"], "b": space["b"]}]))) == 15
    with pytest.raises(OptionError, match="'c' has a distribution"):
        for_grid([space])


def test_values_of_any_kind_and_quantiles_of_any_distribution_are_proposed() -> None:
    steps = [PCA(2), None, "passthrough", (1, 2)]
    seen: list[dict[str, Any]] = []

    def score(candidates: list[dict[str, Any]]) -> list[float]:
        seen.extend(candidates)
        return [0.0] * len(candidates)

    Proposals([{"step": steps, "far": norm(5, 2), "low": loguniform(1e-3, 1)}], seed=1).search(20, score)
    assert all(any(each["step"] is step for step in steps) for each in seen)
    assert 3 < np.mean([each["far"] for each in seen]) < 7
    assert all(isinstance(each["far"], float) and 1e-3 <= each["low"] <= 1 for each in seen)


def test_a_list_of_dicts_is_a_choice_between_them() -> None:
    found = proposed(16, [{"x": uniform(0, 6)}, {"depth": [3, 4, 5], "kind": ["good"]}]).cv_results_["params"]
    assert {tuple(each) for each in found} == {("x",), ("depth", "kind")}


def test_what_can_only_be_drawn_cannot_be_proposed() -> None:
    class Own:
        """No distribution, but it does for scikit-learn."""

        def rvs(self, random_state: Any = None) -> float:
            """Always that."""
            return 2.5

    assert proposed(2, {"x": Own()}, method="random").best_params_ == {"x": 2.5}
    with pytest.raises(OptionError, match=r"'x'.* can only be drawn from"):
        proposed(2, {"x": Own()})
