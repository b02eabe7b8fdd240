"""A search on a cluster has the table that scikit-learn makes here, also when a candidate kills its process there."""

import os
import warnings
from typing import Any

import numpy as np
import pytest
from clusters import Cluster
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline

import fourfold as ff

X, y = make_classification(60, 6, random_state=0)
SPACE = {"pca__n_components": [2, 4], "model__var_smoothing": [1e-9, 0.1, 1.0]}


def dies_at() -> Any:
    """A class that travels by value: this module is not on the workers."""

    class DiesAt1(GaussianNB):
        def fit(self, X: Any, y: Any) -> Any:
            if self.var_smoothing == 1.0:
                os._exit(3)
            return super().fit(X, y)

    return DiesAt1()


def test_a_search_runs_on_a_cluster(cluster: Cluster) -> None:
    pipeline = Pipeline([("pca", PCA(random_state=0)), ("model", GaussianNB())])
    theirs = GridSearchCV(pipeline, SPACE, cv=3).fit(X, y)
    ours = ff.SearchCV(pipeline, SPACE, cv=3, method="grid", engine=cluster.engine()).fit(X, y)
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], rtol=1e-12)
    assert ours.best_params_ == theirs.best_params_


@pytest.mark.of_any_kind
def test_a_candidate_that_kills_its_process_is_a_row_there_too(cluster: Cluster) -> None:
    search = ff.SearchCV(dies_at(), {"var_smoothing": [0.1, 1.0]}, cv=2, method="grid", engine=cluster.engine())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]
    assert all("code 3" in each.reason for each in search.failures_)
