"""Pipelines, ColumnTransformers and FeatureUnions are fitted as their own `fit` leaves them, and share their passes."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, issparse
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.model_selection import BaseCrossValidator, StratifiedKFold
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from sklearn.utils.validation import check_is_fitted
from tables import small_pieces

import fourfold as ff
from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import About, Fit, Pass, Rows, Trained
from fourfold.workloads.fit.passes import Passes
from fourfold.workloads.fit.seen import Numbers

__all__ = ["small_pieces"]

N_ROWS = 1200
DRAW = np.random.default_rng(8)
TABLE = pd.DataFrame(
    {
        "a": DRAW.normal(size=N_ROWS),
        "b": np.where(DRAW.random(N_ROWS) < 0.1, np.nan, DRAW.normal(1e8, 1, N_ROWS)),
        "c": DRAW.integers(0, 9, N_ROWS),
        "d": DRAW.random(N_ROWS),
        "word": [f"w{row % 5}" for row in range(N_ROWS)],
    }
)
Y, WEIGHT = DRAW.integers(0, 2, N_ROWS), DRAW.random(N_ROWS)
NUMBERS = ["a", "b", "c", "d"]


class Sums:
    """Weighted sums of the columns times the target, and how many rows there are."""

    def fold(self, rows: Rows) -> Any:
        X = rows.X.toarray() if hasattr(rows.X, "toarray") else rows.X
        X = np.nan_to_num(X) * (1.0 if rows.y is None else rows.y[:, None] + 1.0)
        return (X * (1.0 if rows.weight is None else rows.weight[:, None])).sum(axis=0), rows.n_rows

    def combine(self, left: Any, right: Any) -> Any:
        return left[0] + right[0], left[1] + right[1]

    def finish(self, state: Any) -> Any:
        return state


class Summing(BaseEstimator):  # type: ignore[misc]
    """The last step of a pipeline: what it learns is all that it was given."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "Summing":
        rows = Numbers(takes_nan=True)(Rows(X, y, sample_weight))
        self.sum_, self.n_ = Sums().fold(rows)
        self.n_features_in_ = rows.X.shape[1]
        if hasattr(X, "columns"):
            self.feature_names_in_ = np.asarray(X.columns, dtype=object)
        return self

    def predict(self, X: Any) -> Any:
        rows = Numbers(takes_nan=True)(Rows(X))
        found = rows.X @ self.sum_ if not hasattr(rows.X, "toarray") else rows.X.toarray() @ self.sum_
        return np.nan_to_num(found)


@ff.recipe(Summing)
def fit_summing(estimator: Summing, about: About) -> Fit:
    estimator.sum_, estimator.n_ = yield Pass(Sums(), (Numbers(takes_nan=True),))
    return estimator


class Shifted:
    def __init__(self, mean: Any) -> None:
        self.mean = mean

    def __call__(self, rows: Rows) -> Rows:
        return rows._replace(X=np.nan_to_num(rows.X.to_numpy(np.float64)) - 2 * self.mean)


class Twofold(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Its `fit_transform` gives other rows than its `transform`, as a cross-fitted encoder."""

    def fit(self, X: Any, y: Any = None) -> "Twofold":
        self.mean_ = np.nan_to_num(X.to_numpy(np.float64)).sum(axis=0) / len(X)
        self.n_features_in_, self.feature_names_in_ = X.shape[1], np.asarray(X.columns, dtype=object)
        return self

    def transform(self, X: Any) -> Any:
        return np.nan_to_num(X.to_numpy(np.float64)) - self.mean_

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return Shifted(self.fit(X).mean_)(Rows(X)).X

    def get_feature_names_out(self, names: Any = None) -> Any:
        return np.asarray([f"{name}_shifted" for name in names], dtype=object)


@ff.recipe(Twofold)
def fit_twofold(estimator: Twofold, about: About) -> Fit:
    sums, n_rows = yield Pass(Sums(), (Numbers(takes_nan=True), NoTarget()))
    estimator.mean_ = sums / n_rows
    return Trained(estimator, Shifted(estimator.mean_))


class NoTarget:
    def __call__(self, rows: Rows) -> Rows:
        return rows._replace(y=None)


def as_sparse(X: Any) -> Any:
    values = np.asarray(X, np.float64)
    return csr_matrix(np.where(values > 0.5, values, 0))


def sparse(names: str = "one-to-one") -> FunctionTransformer:
    return FunctionTransformer(as_sparse, feature_names_out=names, accept_sparse=True)


def scaler() -> MinMaxScaler:
    return MinMaxScaler()


def columns(*parts: Any, **options: Any) -> ColumnTransformer:
    return ColumnTransformer(list(parts), **options)


WHOLES: dict[str, Any] = {
    "a pipeline of one step": Pipeline([("scale", scaler())]),
    "a pipeline with an estimator": Pipeline([("scale", scaler()), ("again", MinMaxScaler((3, 5))), ("sum", Summing())]),
    "a pipeline that passes through": Pipeline(
        [("scale", scaler()), ("pass", "passthrough"), ("none", None), ("sum", Summing())]
    ),
    "a pipeline that ends with passing": Pipeline([("scale", scaler()), ("last", "passthrough")]),
    "a pipeline with a memory": Pipeline([("scale", scaler()), ("sum", Summing())], memory="MEMORY"),
    "a pipeline in a pipeline": Pipeline([("in", Pipeline([("s", scaler()), ("t", scaler())])), ("sum", Summing())]),
    "tables between steps": Pipeline([("scale", scaler()), ("sum", Summing())]).set_output(transform="pandas"),
    "columns by names": columns(("one", scaler(), ["a", "c"]), ("two", scaler(), ["b"])),
    "columns by places": columns(("one", scaler(), [0, 2]), ("two", scaler(), slice(1, 2))),
    "columns by slices of names": columns(("one", scaler(), slice("b", "d"))),
    "columns by masks": columns(("one", scaler(), [True, False, True, False])),
    "columns by types": columns(
        ("float", scaler(), make_column_selector(dtype_include="float")), ("int", scaler(), make_column_selector("c"))
    ),
    "columns dropped": columns(("one", scaler(), ["a"]), ("gone", "drop", ["b"]), ("rest", "passthrough", ["d"])),
    "no column for a part": columns(("one", scaler(), []), ("two", scaler(), ["d"])),
    "no column at all": columns(("gone", "drop", ["a"])),
    "the remainder passed": columns(("one", scaler(), ["b"]), remainder="passthrough"),
    "the remainder fitted": columns(("one", scaler(), [1]), remainder=scaler()),
    "names as they are": columns(("one", scaler(), ["b"]), remainder="passthrough", verbose_feature_names_out=False),
    "names in a form": columns(("one", scaler(), ["b"]), verbose_feature_names_out="{feature_name}-{transformer_name}"),
    "parts with weights": columns(("one", scaler(), ["a"]), ("two", scaler(), ["b"]), transformer_weights={"one": 3.0}),
    "a table of columns": columns(("one", scaler(), ["a"]), remainder="passthrough").set_output(transform="pandas"),
    "sparse and dense": columns(("s", sparse(), ["a", "d"]), ("d", scaler(), ["b"]), sparse_threshold=0.7),
    "sparse and too dense": columns(("s", sparse(), ["a", "d"]), ("d", scaler(), ["b"]), sparse_threshold=0.5),
    "sparse, and dense wanted": columns(("s", sparse(), ["a", "d"]), ("d", scaler(), ["b"]), sparse_threshold=0),
    "columns of columns": columns(
        ("in", columns(("x", scaler(), ["a"]), remainder="passthrough"), ["a", "b"]), ("y", scaler(), ["c"])
    ),
    "a pipeline of columns": Pipeline([("c", columns(("one", scaler(), ["a", "b"]), remainder="drop")), ("sum", Summing())]),
    "sparse rows between steps": Pipeline(
        [("c", columns(("s", sparse(), ["a"]), ("t", sparse(), ["d"]), sparse_threshold=1.0)), ("sum", Summing())]
    ),
    "a union": FeatureUnion([("one", scaler()), ("two", MinMaxScaler((-1, 1)))]),
    "a union that drops and passes": FeatureUnion([("one", scaler()), ("gone", "drop"), ("rest", "passthrough")]),
    "a union with weights": FeatureUnion([("one", scaler()), ("two", scaler())], transformer_weights={"two": 0.5}),
    "a union of tables": FeatureUnion([("one", scaler()), ("two", scaler())]).set_output(transform="pandas"),
    "a union with a sparse part": FeatureUnion([("one", scaler()), ("s", sparse())]),
    "a union of pipelines": FeatureUnion([("one", Pipeline([("s", scaler()), ("t", scaler())])), ("two", scaler())]),
    "trained otherwise": Pipeline([("two", Twofold()), ("sum", Summing())]),
    "columns trained otherwise": Pipeline(
        [("c", columns(("two", Twofold(), ["a", "b"]), ("one", scaler(), ["c"]))), ("sum", Summing())]
    ),
    "a union trained otherwise": Pipeline([("u", FeatureUnion([("two", Twofold()), ("one", scaler())])), ("sum", Summing())]),
    "a pipeline trained otherwise in columns": Pipeline(
        [("c", columns(("p", Pipeline([("two", Twofold()), ("s", FunctionTransformer())]), ["a"]))), ("sum", Summing())]
    ),
}


def same(found: Any, expected: Any, where: str = "") -> None:
    """Compare two fitted estimators, with all that they have learned and all within them."""
    assert type(found) is type(expected), where
    if isinstance(expected, BaseEstimator):
        learned = {name for name in vars(expected) if not name.startswith("_sklearn") and "memory" not in name}
        assert {name for name in vars(found) if not name.startswith("_sklearn") and "memory" not in name} == learned, where
        for name in learned:
            same(getattr(found, name), getattr(expected, name), f"{where}.{name}")
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
        if expected.dtype == object:
            assert found.tolist() == expected.tolist(), where
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-10, err_msg=where)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for at, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{where}[{at}]")
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            same(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-10, nan_ok=True), where
    elif isinstance(expected, make_column_selector | BaseCrossValidator):
        assert vars(found) == vars(expected), where
    else:
        assert found == expected, where


def dense(rows: Any) -> Any:
    return np.asarray(rows.toarray() if issparse(rows) else rows, np.float64)


@pytest.mark.parametrize("name", WHOLES)
def test_what_is_made_of_parts_is_fitted_as_its_own_fit_leaves_it(name: str, small_pieces: Any, tmp_path: Any) -> None:
    small_pieces(150, 1 << 20)
    whole, own = clone(WHOLES[name]), clone(WHOLES[name])
    if getattr(whole, "memory", None):
        whole.memory = own.memory = str(tmp_path)
    table = TABLE[NUMBERS]
    found = ff.scan(table.assign(y=Y)).fit(whole, target="y", engine="serial")
    expected = own.fit(table, Y)
    assert found is whole
    same(found, expected)
    check_is_fitted(found)
    found = pickle.loads(pickle.dumps(found))
    assert list(getattr(found, "feature_names_in_", NUMBERS)) == NUMBERS
    if hasattr(expected, "transform"):
        made, other = found.transform(table), expected.transform(table)
        assert type(made) is type(other)
        np.testing.assert_allclose(dense(made), dense(other), rtol=1e-10)
        assert found.get_feature_names_out().tolist() == expected.get_feature_names_out().tolist()
    else:
        rows = ff.scan(table).predict(found, keep=[]).to_pandas()
        np.testing.assert_allclose(rows["prediction"], expected.predict(table), rtol=1e-9)


@pytest.mark.parametrize("rows", [1200, 200, 19])
def test_how_the_rows_are_cut_changes_nothing_but_last_digits(small_pieces: Any, rows: int) -> None:
    small_pieces(rows, 1 << 20)
    prep = columns(("s", sparse(), ["a", "d"]), ("two", Twofold(), ["b"]), ("p", "passthrough", ["c"]), sparse_threshold=0.7)
    whole = Pipeline([("prep", prep), ("sum", Summing())])
    found = ff.scan(TABLE[NUMBERS]).fit(clone(whole), engine="threads", workers=2)
    same(found, clone(whole).fit(TABLE[NUMBERS]))


class Passing:
    """How many passes a fit took, and how many recipes shared each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shared: list[int] = []
        run = Passes.run

        def counted(passes: Passes, wanted: list[Pass]) -> list[Any]:
            self.shared.append(len(wanted))
            return run(passes, wanted)

        monkeypatch.setattr(Passes, "run", counted)


def test_parts_that_do_not_need_each_other_share_their_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passing = Passing(monkeypatch)
    inner = FeatureUnion([("x", scaler()), ("y", Pipeline([("one", scaler()), ("two", scaler())]))])
    ff.scan(TABLE[NUMBERS]).fit(columns(("one", scaler(), ["a"]), ("in", inner, ["b", "c"]), remainder=scaler()))
    assert passing.shared == [6, 1], "a first pass for all that can be known, and one for the last step of the inner pipeline"


@pytest.mark.parametrize(("threshold", "n_passes"), [(0.0, 1), (0.2, 1), (0.5, 2), (0.9, 2)])
def test_what_is_stored_is_counted_only_where_it_matters(
    monkeypatch: pytest.MonkeyPatch, threshold: float, n_passes: int
) -> None:
    passing = Passing(monkeypatch)
    prep = columns(("s", sparse(), ["a", "d"]), ("one", scaler(), ["b"]), sparse_threshold=threshold)
    found = ff.scan(TABLE[NUMBERS]).fit(prep, engine="serial")
    assert len(passing.shared) == n_passes
    assert found.sparse_output_ == clone(prep).fit(TABLE[NUMBERS]).sparse_output_


@pytest.mark.parametrize(("threshold", "n_passes"), [(0.3, 1), (0.15, 2)])
def test_what_an_encoder_stores_at_most_is_known_without_counting(
    monkeypatch: pytest.MonkeyPatch, threshold: float, n_passes: int
) -> None:
    from sklearn.preprocessing import OneHotEncoder

    passing = Passing(monkeypatch)
    prep = columns(("cat", OneHotEncoder(), ["word"]), sparse_threshold=threshold)
    found = ff.scan(TABLE[["word"]]).fit(prep, engine="serial")
    assert len(passing.shared) == n_passes
    assert found.sparse_output_ == clone(prep).fit(TABLE[["word"]]).sparse_output_


def test_what_bins_store_is_known_without_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.preprocessing import KBinsDiscretizer

    passing = Passing(monkeypatch)
    cut = Pipeline([("scale", scaler()), ("cut", KBinsDiscretizer(4, strategy="uniform"))])
    prep = columns(("cut", cut, ["a", "d"]), ("one", scaler(), ["b"]), sparse_threshold=0.5)
    found = ff.scan(TABLE[NUMBERS]).fit(prep, engine="serial")
    assert len(passing.shared) == 2, "one for each step"
    assert found.sparse_output_ is clone(prep).fit(TABLE[NUMBERS]).sparse_output_ is True


def test_weights_go_to_the_last_step_alone() -> None:
    whole = Pipeline([("scale", scaler()), ("in", Pipeline([("two", Twofold()), ("sum", Summing())]))])
    whole[0].set_output(transform="pandas")
    table = TABLE[NUMBERS]
    found = ff.scan(table.assign(y=Y, w=WEIGHT)).fit(clone(whole), target="y", weight="w", engine="serial")
    same(found, clone(whole).fit(table, Y, in__sum__sample_weight=WEIGHT))
    with pytest.raises(OptionError, match="weight= is given, and MinMaxScaler takes no weights"):
        ff.scan(table.assign(w=WEIGHT)).fit(Pipeline([("scale", scaler())]), weight="w")
    with pytest.raises(OptionError, match=r"ColumnTransformer takes no weights: they go to the last step of a Pipeline"):
        ff.scan(table.assign(w=WEIGHT)).fit(columns(("one", scaler(), ["a"])), weight="w")


def test_a_part_without_a_recipe_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.tree import DecisionTreeClassifier

    passing = Passing(monkeypatch)
    whole = Pipeline([("c", columns(("one", scaler(), ["a"]))), ("tree", DecisionTreeClassifier())])
    with pytest.raises(OptionError, match="no recipe that fits DecisionTreeClassifier"):
        ff.scan(TABLE[["a"]].assign(y=Y)).fit(whole, target="y")
    assert passing.shared == []


def test_what_scikit_learn_refuses_is_refused_in_its_words() -> None:
    rows = ff.scan(TABLE[NUMBERS])
    with pytest.raises(ValueError, match="1D data passed to a transformer that expects 2D data"):
        rows.fit(columns(("one", scaler(), "a")))
    with pytest.raises(ValueError, match=r"Some column names are not columns of the dataframe: \{'z'\}"):
        rows.fit(columns(("one", scaler(), ["z"])))
    twice = columns(("one", scaler(), ["a"]), ("two", scaler(), ["a"]), verbose_feature_names_out=False)
    with pytest.raises(ValueError, match=r"Output feature names: \['a'\] are not unique"):
        rows.fit(twice.set_output(transform="pandas"))
    with pytest.raises(ValueError, match="Names provided are not unique"):
        rows.fit(Pipeline([("one", scaler()), ("one", scaler())]))
    with pytest.raises(TypeError, match="intermediate steps should be transformers"):
        rows.fit(Pipeline([("sum", Summing()), ("one", scaler())]))


def test_verbose_says_of_each_part_when_it_is_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    whole = Pipeline([("c", columns(("one", scaler(), ["a"]), verbose=True)), ("sum", Summing())], verbose=True)
    ff.scan(TABLE[NUMBERS]).fit(whole, engine="serial")
    said = [line.split("total=")[0].replace(".", "").strip() for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "[ColumnTransformer]  (1 of 1) Processing one,",
        "[Pipeline]  (step 1 of 2) Processing c,",
        "[Pipeline]  (step 2 of 2) Processing sum,",
    ]


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_every_engine_gives_the_same_bits_of_all_parts(engine: str, small_pieces: Any) -> None:
    small_pieces(150, 1 << 20)
    whole = Pipeline([("c", columns(("two", Twofold(), ["a"]), ("p", "passthrough", ["c", "d"]))), ("sum", Summing())])
    rows = ff.scan(TABLE[NUMBERS].assign(y=Y))
    here = rows.fit(clone(whole), target="y", engine="serial")
    there = rows.fit(clone(whole), target="y", engine=engine, workers=2)
    assert there[-1].sum_.tobytes() == here[-1].sum_.tobytes()


# ---- with other recipes ------------------------------------------------------------------------------------------------


def real() -> dict[str, Any]:
    """What people build, of the names that they have."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler, TargetEncoder

    numbers = make_pipeline(StandardScaler(), MinMaxScaler())
    encoder = OneHotEncoder(min_frequency=10, handle_unknown="infrequent_if_exist")
    prep = columns(("num", numbers, ["a", "c"]), ("cat", encoder, ["word"]))
    crossed = columns(("t", TargetEncoder(cv=StratifiedKFold(3)), ["word", "c"]), ("num", StandardScaler(), ["a"]))
    texts = columns(("text", TfidfVectorizer(), "word"), ("num", StandardScaler(), ["a"]))
    return {
        "numbers and categories": prep,
        "dense, for a model": make_pipeline(columns(*clone(prep).transformers, sparse_threshold=0), Ridge()),
        "texts beside numbers": texts,
        "a cross-fitted encoder before a model": make_pipeline(crossed, Ridge()),
        "columns by their types": columns(
            ("num", numbers, make_column_selector(dtype_include="number")),
            ("cat", encoder, make_column_selector(dtype_exclude="number")),
        ),
    }


@pytest.mark.parametrize("name", list(real()))
@pytest.mark.parametrize("rows", [1200, 19])
def test_scalers_encoders_and_models_are_fitted_together(name: str, rows: int, small_pieces: Any) -> None:
    small_pieces(rows, 1 << 20)
    table = TABLE[["a", "c", "d", "word"]]
    found = ff.scan(table.assign(y=Y)).fit(real()[name], target="y", engine="serial")
    expected = real()[name].fit(table, Y)
    same(found, expected)
    if hasattr(expected, "transform"):
        assert found.sparse_output_ == expected.sparse_output_
        assert found.get_feature_names_out().tolist() == expected.get_feature_names_out().tolist()
        assert issparse(found.transform(table)) == issparse(expected.transform(table))
        there = ff.scan(table.assign(y=Y)).transform(found, dense=True).to_pandas()
        names = list(expected.get_feature_names_out())
        np.testing.assert_allclose(there[names].to_numpy(np.float64), dense(expected.transform(table)), rtol=1e-10, atol=1e-15)


# ---- a transformer first, and then a fit -------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_rows_that_a_transformer_has_made_can_be_fitted_to(threshold: float) -> None:
    table = TABLE[["a", "c", "d"]]
    prep = columns(("s", sparse(), ["a", "d"]), ("one", scaler(), ["c"]), sparse_threshold=threshold).fit(table)
    rows = ff.scan(table.assign(y=Y, w=WEIGHT)).transform(prep)
    found = rows.fit(Summing(), target="y", weight="w", engine="serial")
    made = prep.transform(table)
    assert issparse(made) == bool(threshold)
    if not threshold:
        made = pd.DataFrame(made, columns=prep.get_feature_names_out())
    same(found, Summing().fit(made, Y, WEIGHT))
    predicted = rows.predict(found, keep=["y"]).to_pandas()["prediction"]
    np.testing.assert_allclose(predicted, found.predict(made), rtol=1e-9)


def test_a_column_beside_a_sparse_matrix_is_refused_with_the_way_on() -> None:
    prep = columns(("s", sparse(), ["a", "d"]), sparse_threshold=1.0).fit(TABLE[["a", "d"]])
    rows = ff.scan(TABLE[["a", "c", "d"]].assign(y=Y)).transform(prep)
    with pytest.raises(OptionError, match=r"column 'c' stands beside the sparse matrix 'columntransformer'.*passthrough"):
        rows.fit(Summing(), target="y")
    found = rows.fit(Summing(), target="y", features=["columntransformer"], engine="serial")
    assert found.n_features_in_ == 2


def test_after_a_function_nobody_knows_the_columns() -> None:
    rows = ff.scan(TABLE[NUMBERS]).map_batches(lambda batch: batch)
    with pytest.raises(OptionError, match=r"nobody knows what .* makes: give map_batches a schema="):
        rows.fit(scaler())


def test_the_schema_that_the_error_speaks_of_is_enough() -> None:
    def function(batch: pd.DataFrame) -> pd.DataFrame:
        return batch.assign(late=batch[NUMBERS[0]] > 0)

    made = ff.scan(TABLE[NUMBERS]).map_batches(function)
    rows = ff.scan(TABLE[NUMBERS]).map_batches(function, schema=made.head(20, "arrow").schema)
    assert rows.fit(scaler(), features=NUMBERS).n_features_in_ == len(NUMBERS)
