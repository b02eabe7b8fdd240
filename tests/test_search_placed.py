"""X and y come to a machine once for a search, not once for each of its rounds."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import uniform
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import SGDClassifier
from sklearn.naive_bayes import GaussianNB

import fourfold as ff
from fourfold.errors import RunChanged
from fourfold.workloads.fit import kept
from fourfold.workloads.tune.search import placed
from fourfold.workloads.tune.search.placed import Placed, place_for

rng = np.random.default_rng(0)
X, y = rng.normal(size=(60, 4)), np.arange(60) % 2
FRAME = pd.DataFrame(X, columns=list("abcd")).assign(kind=["a", "b"] * 30)


@pytest.fixture(autouse=True)
def small_rows_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows of tests are small, and folders are to be seen."""
    monkeypatch.setattr(placed, "PLACED_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def there(place: Placed) -> Any:
    """What a worker finds that is sent a place."""
    return pickle.loads(pickle.dumps(place))


@pytest.mark.parametrize("rows", [X, FRAME, sparse.csr_matrix(X), X.tolist(), X[:, 0], X.astype("f4").T])
def test_rows_come_as_they_are_and_go_when_the_search_ends(rows: Any, tmp_path: Path) -> None:
    with place_for((rows, y), "processes") as place:
        assert not place.travels
        assert len(pickle.dumps(place)) < 500
        there_rows, there_y = there(place)
        assert pickle.dumps(there_rows) == pickle.dumps(rows)
        assert there_y.tolist() == y.tolist()
        there_y[0] = 7  # its own
        assert there(place)[1][0] == y[0]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "engine", ["serial", "threads", ff.engines.Threads(2) if hasattr(ff.engines, "Threads") else "serial"]
)
def test_workers_that_share_the_memory_of_this_process_need_no_place(engine: Any) -> None:
    with place_for((X, y), engine) as place:
        assert place is None


def test_few_rows_travel_with_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "PLACED_BYTES", X.nbytes + y.nbytes + 1000)
    with place_for((X, y), "processes") as place:
        assert place is None


def test_where_there_is_no_room_they_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(placed, "_write", full)
    with place_for((X, y), "processes") as place:
        assert place.travels
        place.sent(some_lack_them=False)
        assert there(place)[0].tolist() == X.tolist()


def test_a_worker_of_a_cluster_on_this_machine_keeps_what_it_was_sent_unless_the_search_is_over() -> None:
    with place_for((X, y), "dask") as place:
        assert there(place)[0].tolist() == X.tolist()
        place.sent(some_lack_them=False)
        assert there(place)[0].tolist() == X.tolist()
        place.sent(some_lack_them=True)
        late = pickle.dumps(place)
    assert pickle.loads(late)[0].tolist() == X.tolist()
    assert not os.path.exists(place._kept.folder)


def test_another_machine_keeps_what_it_was_sent_and_then_needs_the_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with place_for((X, y), "ray") as place:
        assert place.travels
        place.forget()  # it is the folder of the driver's machine
        monkeypatch.setattr(placed, "_is_home", lambda _: False)
        assert there(place)[0].tolist() == X.tolist()
        place.sent(some_lack_them=False)
        assert there(place)[0].tolist() == X.tolist()
        kept._let_go(place._kept.folder)
        shutil.rmtree(place._kept.folder)
        assert there(place) is False


def test_a_folder_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with place_for((X, y), "processes") as place:
        os.chmod(place._kept.folder, 0o777)
        with pytest.raises(PermissionError, match="belongs to somebody else"):
            there(place)


SPACE = {"var_smoothing": uniform(1e-9, 1)}
METHODS = {
    "tpe": (GaussianNB(), SPACE, {"method": "tpe", "n_trials": 12}),
    "halving": (GaussianNB(), SPACE, {"method": "halving"}),
    "passes": (SGDClassifier(random_state=0), {"alpha": uniform(1e-5, 1)}, {"n_trials": 6, "pruner": ff.ASHA(1, 4, 2)}),
}


@pytest.mark.parametrize("case", METHODS)
@pytest.mark.parametrize("is_there", [True, False])
def test_rounds_find_the_rows_and_those_who_do_not_are_sent_them(
    case: str, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator, space, options = METHODS[case]
    if not is_there:  # as on a machine that has come during the search: what is not sent is not there
        monkeypatch.setattr(placed, "_write", lambda *_: None)
    one, two = (ff.SearchCV(estimator, space, cv=2, random_state=0, n_jobs=n, **options).fit(X, y) for n in (1, 2))
    assert two.cv_results_["params"] == one.cv_results_["params"]
    assert two.cv_results_["mean_test_score"].tolist() == one.cv_results_["mean_test_score"].tolist()
    assert len(two.reports_) == len(one.reports_) + (not is_there)  # once: who was sent them has kept them
    assert [*tmp_path.iterdir()] == []


class Raises(ClassifierMixin, BaseEstimator):
    """No fit of it is one."""

    def __init__(self, c: float = 0.0) -> None:
        self.c = c

    def fit(self, X: Any, y: Any) -> None:
        """As told."""
        raise ValueError("as told")


def test_a_search_that_raises_leaves_no_rows_behind(tmp_path: Path) -> None:
    search = ff.SearchCV(Raises(), {"c": uniform()}, method="tpe", n_trials=2, cv=2, n_jobs=2, error_score="raise")
    with pytest.raises(ValueError, match="as told"):
        search.fit(X, y)
    assert [*tmp_path.iterdir()] == []


def test_a_recorded_search_compares_rows_that_are_large(tmp_path: Path) -> None:
    search = ff.SearchCV(GaussianNB(), {"var_smoothing": uniform(1e-9, 1e-3)}, method="tpe", n_trials=2, cv=2, n_jobs=2)
    with ff.using(run=tmp_path / "run"):
        search.fit(X, y)
    with ff.using(run=tmp_path / "run"), pytest.raises(RunChanged, match="X changed"):
        search.fit(X + 1, y)
