"""Sparse matrices between a transformer and a model: what scikit-learn says of them, in memory of their size."""

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from tables import small_pieces

import fourfold as ff
from fourfold.data.frames import FramePass
from fourfold.errors import OptionError, OptionTypeError
from fourfold.workloads.frame import Frame

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]

N_ROWS = 300
WORDS = ["late", "early", "rain", "fog", "sun", "crew", "gate", "wing"]


def rows() -> pd.DataFrame:
    draw = np.random.default_rng(3)
    table = pd.DataFrame({"id": range(N_ROWS), "x": draw.normal(size=N_ROWS)})
    table["city"] = draw.choice(["Rom", "Oslo", "Bonn", "Wien"], N_ROWS)
    table["text"] = [" ".join(draw.choice(WORDS, 5)) for _ in range(N_ROWS)]
    table["late"] = table["text"].str.contains("rain")
    return table


ROWS = rows()
ENCODE = OneHotEncoder().fit(ROWS[["city"]])
HASH = ColumnTransformer([("text", HashingVectorizer(n_features=1_000_000), "text")]).fit(ROWS[["text"]])


def test_a_million_columns_reach_the_model_without_becoming_dense(tmp_path: Path) -> None:
    matrix = HASH.transform(ROWS[["text"]])
    model = SGDClassifier(random_state=0, max_iter=5, tol=None).fit(matrix, ROWS["late"])
    scores = ff.scan(ROWS).transform(HASH).predict(model, method="decision_function", keep=["id"], batch_size=200)
    tracemalloc.start()
    try:
        scores.write(tmp_path / "out", engine="serial")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    found = ff.scan(tmp_path / "out").to_pandas()
    assert found["id"].tolist() == [*range(N_ROWS)]
    np.testing.assert_allclose(found["decision"], model.decision_function(matrix), rtol=1e-12)
    assert peak_bytes < 50e6 < 200 * 1_000_000 * 8  # what a call would take, were it dense


def test_rows_that_are_filtered_drawn_and_reordered_keep_their_own_values(small_pieces: Cut) -> None:
    small_pieces(70, 1 << 20)
    model = DecisionTreeClassifier(random_state=0).fit(ENCODE.transform(ROWS[["city"]]), ROWS["late"])
    encoded = ff.scan(ROWS).transform(ENCODE).filter(pc.field("x") > 0)
    said = model.predict_proba(ENCODE.transform(ROWS[["city"]]))[:, 1]
    for part in encoded.split(test=0.4, seed=1):
        found = part.predict(model, method="predict_proba", keep=["id"], batch_size=9, dedupe=["x"]).to_pandas()
        assert 0 < len(found) < (ROWS["x"] > 0).sum()
        assert found["proba_True"].tolist() == said[found["id"]].tolist()


def test_an_estimator_that_sorts_its_matrix_in_place_may_do_so() -> None:
    two = OneHotEncoder().fit(ROWS[["city", "late"]])

    class Turned:
        """Gives the columns from the last to the first, and so the cells of each row in descending order."""

        feature_names_in_ = two.feature_names_in_

        def transform(self, table: Any) -> Any:
            rows = two.transform(table)
            return sparse.csr_matrix((rows.data, rows.shape[1] - 1 - rows.indices, rows.indptr), rows.shape)

    turned = Turned().transform(ROWS[["city", "late"]])
    assert not turned.has_sorted_indices
    model = SVC().fit(turned.sorted_indices(), ROWS["x"] > 0)
    found = ff.scan(ROWS).transform(Turned()).predict(model, keep=["id"]).to_pandas(engine="serial")
    assert found["prediction"].tolist() == model.predict(turned).tolist()


def test_two_sparse_results_stand_beside_each_other() -> None:
    both = sparse.hstack([ENCODE.transform(ROWS[["city"]]), HASH.transform(ROWS[["text"]])], format="csr")
    model = SGDClassifier(random_state=0).fit(both, ROWS["late"])
    found = ff.scan(ROWS).transform(ENCODE).transform(HASH).predict(model).to_pandas()
    assert found["prediction"].tolist() == model.predict(both).tolist()
    assert [*found.columns] == ["id", "x", "late", "prediction"]


def test_a_model_that_knows_names_finds_them_in_the_matrix_and_in_the_table() -> None:
    named = pd.DataFrame(ENCODE.transform(ROWS[["city"]]).toarray(), columns=ENCODE.get_feature_names_out())
    named = named.assign(x=ROWS["x"])[["city_Wien", "x", "city_Bonn", "city_Rom"]]  # some of them, in an order of its own
    model = LogisticRegression().fit(named, ROWS["late"])
    found = ff.scan(ROWS).transform(ENCODE).predict(model, method="predict_proba", keep=["id"]).to_pandas()
    np.testing.assert_allclose(found["proba_True"], model.predict_proba(named)[:, 1], rtol=1e-12)


def test_a_column_that_keep_names_is_there_for_another_model() -> None:
    matrix = ENCODE.transform(ROWS[["city"]])
    one = DecisionTreeClassifier(max_depth=1).fit(matrix, ROWS["late"])
    other = DecisionTreeClassifier(max_depth=2).fit(matrix, ROWS["late"])
    first = ff.scan(ROWS).transform(ENCODE).predict(one, name="one", keep=["id", "onehotencoder"])
    found = first.predict(other, name="other").to_pandas()
    assert [*found.columns] == ["id", "one", "other"]
    assert found["other"].tolist() == other.predict(matrix).tolist()


MAKES_IT_TWICE = "OneHotEncoder makes a column 'city_Rom', which the table has already: leave it out with select()"


@pytest.mark.parametrize("dense", [False, True])
def test_a_column_that_the_table_has_already_is_named_whether_the_result_is_sparse_or_not(dense: bool) -> None:
    rows = ff.scan(ROWS.assign(city_Rom=1.0)).transform(ENCODE, dense=dense)
    names = [*ENCODE.get_feature_names_out()]
    model = LogisticRegression().fit(pd.DataFrame(ENCODE.transform(ROWS[["city"]]).toarray(), columns=names), ROWS["late"])
    with pytest.raises(ValueError, match=re.escape(MAKES_IT_TWICE)):
        rows.predict(model, keep=["id"]).to_arrow(engine="serial")


def test_a_name_that_is_in_the_table_and_in_a_matrix_or_in_two_is_an_error() -> None:
    names = [*ENCODE.get_feature_names_out()]
    model = LogisticRegression().fit(pd.DataFrame(ENCODE.transform(ROWS[["city"]]).toarray(), columns=names), ROWS["late"])
    same = ColumnTransformer([("city", OneHotEncoder(), ["town"])], sparse_threshold=1, verbose_feature_names_out=False)
    same = same.fit(ROWS[["city"]].set_axis(["town"], axis=1))
    same.get_feature_names_out = lambda: np.asarray(names)
    twice = ff.scan(ROWS.assign(town=ROWS["city"])).transform(ENCODE).transform(same)
    named = ENCODED.predict(model, name="city_Rom", keep=["id", "onehotencoder"])
    for rows, name in ((twice, "city_Bonn"), (named, "city_Rom")):
        with pytest.raises(OptionError, match=f"takes a column '{name}', and there are 2 of that name") as caught:
            rows.predict(model, name="said", keep=["id"]).to_arrow(engine="serial", on_error="skip")
        assert not getattr(caught.value, "__notes__", [])  # no row is to blame


ENCODED = ff.scan(ROWS).transform(ENCODE)


class Reads:
    def __call__(self, batch: pd.DataFrame) -> Any:
        return batch["id"].to_numpy()


@pytest.mark.parametrize(
    ("use", "wants"),
    [
        (lambda options: ENCODED.to_arrow(**options), "columns"),
        (lambda options: ENCODED.map_batches(lambda batch: batch).to_arrow(**options), "a function of yours"),
        (lambda options: ENCODED.filter(lambda batch: batch["id"] > 1).to_arrow(**options), "a function of yours"),
        (lambda options: ENCODED.predict(Reads).to_arrow(**options), "a function of yours"),
        (lambda options: ENCODED.head(), "columns"),
    ],
    ids=["result", "map_batches", "filter", "class", "head"],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_where_a_table_is_wanted_one_error_says_how_to_get_one(use: Callable[[Any], Any], wants: str, on_error: str) -> None:
    with pytest.raises(OptionTypeError) as caught:
        use({"engine": "serial", "on_error": on_error})
    assert str(caught.value) == (
        f"OneHotEncoder gives a sparse matrix of 4 columns, and only predict takes it as it is. For {wants} write "
        "transform(…, dense=True), or let it give dense columns (sparse_output=False, sparse_threshold=0)"
    )
    assert not getattr(caught.value, "__notes__", [])  # no row is to blame


def test_nothing_is_written_when_the_result_is_sparse(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(20, 1 << 20)
    with pytest.raises(OptionTypeError, match="OneHotEncoder gives a sparse matrix of 4 columns"):
        ENCODED.write(tmp_path / "out", engine="processes", workers=2, on_error="skip")
    assert [*tmp_path.iterdir()] == []


def test_a_model_fitted_on_another_number_of_columns_says_both_numbers() -> None:
    model = DecisionTreeClassifier().fit(np.eye(5), range(5))
    with pytest.raises(OptionError, match=r"fitted on 5 features without names, and the sparse .*onehotencoder\) hold 4"):
        ENCODED.predict(model).to_arrow(engine="serial")


class ALocalFrame:
    """A table in the place of a cluster's frame."""

    name = "a frame"

    def schema(self, frame: pa.Table) -> pa.Schema:
        return frame.schema

    def sample(self, frame: pa.Table, n_rows: int) -> pa.Table:
        return frame.slice(0, n_rows)

    def map(self, frame: pa.Table, run: FramePass) -> pa.Table:
        return run(frame)


def test_in_a_frame_of_a_cluster_it_stays_sparse_up_to_the_model_too() -> None:
    model = DecisionTreeClassifier(random_state=0).fit(ENCODE.transform(ROWS[["city"]]), ROWS["late"])
    frame = Frame(ALocalFrame(), pa.Table.from_pandas(ROWS)).transform(ENCODE)
    with pytest.raises(OptionTypeError, match=r"only predict takes it as it is. For a frame write transform"):
        frame.native  # noqa: B018
    found = frame.predict(model, keep=["id"]).native
    assert found.column("prediction").to_pylist() == model.predict(ENCODE.transform(ROWS[["city"]])).tolist()
