"""Models over rows: what an estimator says of the whole table, it says of each row, however the rows are cut."""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier, IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from tables import small_pieces, write_parquet

import fourfold as ff
from fourfold.errors import InitFailed, OptionError, OptionTypeError
from fourfold.workloads.batching import BatchSize

pytestmark = pytest.mark.usefixtures("workers_of_tables")

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]

N_ROWS = 400
FEATURES = ["a", "b", "c"]


def frame() -> pd.DataFrame:
    draw = np.random.default_rng(5)
    table = pd.DataFrame(draw.normal(size=(N_ROWS, 3)), columns=FEATURES)
    table.insert(0, "id", range(N_ROWS))
    table["city"] = [["Rom", "Oslo", "Bonn"][row % 3] for row in range(N_ROWS)]
    table["label"] = np.where(table["a"] + draw.normal(size=N_ROWS) > 0, "yes", "no")
    return table


TABLE = frame()
X, Y = TABLE[FEATURES], TABLE["label"]
TREES = {"n_estimators": 5, "random_state": 0}
PREPARE = ColumnTransformer([("n", StandardScaler(), FEATURES), ("c", OneHotEncoder(), ["city"])])
ESTIMATORS: dict[str, tuple[Any, str, bool]] = {
    "tree": (DecisionTreeClassifier(random_state=0), "predict", True),
    "forest": (RandomForestClassifier(**TREES), "predict_proba", True),
    "boosting": (GradientBoostingClassifier(**TREES), "predict_proba", True),
    "forest of numbers": (RandomForestRegressor(**TREES), "predict", True),
    "outliers": (IsolationForest(**TREES), "predict", True),
    "neighbours": (KNeighborsClassifier(), "predict", True),
    "bayes": (GaussianNB(), "predict_proba", False),
    "logistic": (LogisticRegression(), "predict_proba", False),
    "margin": (LinearSVC(random_state=0), "decision_function", False),
    "line": (LinearRegression(), "predict", False),
    "ridge": (Ridge(), "predict", False),
    "clusters": (KMeans(n_clusters=3, n_init=1, random_state=0), "predict", True),
    "pipeline": (make_pipeline(StandardScaler(), PCA(2), LogisticRegression()), "predict_proba", False),
    "columns of several types": (make_pipeline(PREPARE, LogisticRegression()), "predict_proba", False),
    "trees behind an encoder": (make_pipeline(PREPARE, RandomForestClassifier(**TREES)), "predict_proba", True),
}
BY_SIZE = {"size_of": lambda batch: batch["a"]}
CASES = [("auto", N_ROWS, {}), (1, 20, {}), (7, 100, BY_SIZE), (64, N_ROWS, BY_SIZE), (1000, N_ROWS, {})]
"""Rows of a call, and of the table, since a call takes a millisecond; and whether rows are put into another order for it."""


def fitted(name: str) -> Any:
    estimator, _, _ = ESTIMATORS[name]
    is_number = name in ("forest of numbers", "line", "ridge")
    return estimator.fit(taken_by(name, TABLE), TABLE["id"] if is_number else Y)


fitted_once = functools.cache(fitted)


def taken_by(name: str, table: pd.DataFrame) -> pd.DataFrame:
    return table[[*FEATURES, "city"]] if name in ("columns of several types", "trees behind an encoder") else table[FEATURES]


def expected_of(name: str, model: Any, table: pd.DataFrame) -> np.ndarray:
    """What it says itself of the whole table, a column for each of its values."""
    return np.asarray(getattr(model, ESTIMATORS[name][1])(taken_by(name, table))).reshape(len(table), -1)


def assert_said(name: str, got: np.ndarray, expected: np.ndarray) -> None:
    """The same bits; of models that use BLAS, whose sums depend on the rows of a call, the same to 12 digits."""
    if ESTIMATORS[name][2]:
        assert (got == expected).all(), name
    else:
        np.testing.assert_allclose(got, expected, rtol=1e-12, err_msg=name)


def new_columns(found: pa.Table) -> np.ndarray:
    return np.column_stack([found.column(name).to_numpy() for name in found.column_names if name not in TABLE.columns])


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("batch_size", "n_rows", "by_size"), CASES, ids=[str(each[0]) for each in CASES])
def test_predictions_are_those_of_the_whole_table(
    name: str, batch_size: Any, n_rows: int, by_size: dict[str, Any], small_pieces: Cut
) -> None:
    small_pieces(60, 1 << 20)
    model, table = fitted_once(name), TABLE.head(n_rows)
    steps = ff.scan(table).predict(model, method=ESTIMATORS[name][1], batch_size=batch_size, **by_size)
    found = steps.to_arrow(engine="serial")
    assert found.column_names[: TABLE.shape[1]] == list(TABLE.columns)
    assert found.column("id").to_pylist() == [*range(n_rows)]
    assert_said(name, new_columns(found), expected_of(name, model, table))


@pytest.mark.parametrize(("engine", "workers"), [("threads", 8), ("processes", 2)])
def test_all_models_in_one_pass_say_the_same_for_any_number_of_workers(engine: str, workers: int, small_pieces: Cut) -> None:
    small_pieces(60, 1 << 20)
    models = {name: fitted_once(name) for name in ESTIMATORS}
    rows = ff.scan(TABLE)
    for name, model in models.items():
        rows = rows.predict(model, method=ESTIMATORS[name][1], name=name)
    found = rows.to_arrow(engine=engine, workers=workers)
    assert found.column("id").to_pylist() == [*range(N_ROWS)]
    for name, model in models.items():
        columns = [each for each in found.column_names if each == name or each.startswith(f"{name}_")]
        got = np.column_stack([found.column(each).to_numpy() for each in columns])
        assert_said(name, got, expected_of(name, model, TABLE))


def test_columns_are_given_by_name_whatever_their_order() -> None:
    model = fitted("tree")
    turned = TABLE[["label", "c", "id", "a", "b"]]
    assert ff.scan(turned).predict(model).to_pandas()["prediction"].tolist() == model.predict(X).tolist()


def test_a_missing_feature_is_named_before_anything_runs(tmp_path: Path) -> None:
    model = fitted("tree")
    with pytest.raises(OptionError, match=r"fitted on 3 features, of which 'b' is not in the table\. Columns: id, a, c"):
        ff.scan(TABLE.drop(columns="b")).predict(model)
    joblib.dump(model, tmp_path / "m.joblib")
    with pytest.raises(OptionError, match="of which 'b' is not in the table"):
        ff.scan(TABLE.drop(columns="b")).predict(tmp_path / "m.joblib").to_arrow()


@pytest.mark.parametrize(
    ("value", "type_"), [("x", "string"), (b"x", "binary"), (pd.Timestamp(0), "timestamp"), ([1.0], "list")], ids=repr
)
def test_what_is_no_number_where_numbers_are_taken_is_named(value: Any, type_: str) -> None:
    with pytest.raises(OptionError, match=f"takes numbers, and column 'a' is {type_}"):
        ff.scan(TABLE.assign(a=[value] * N_ROWS)).predict(fitted("tree"))


def test_a_model_without_names_takes_all_columns_in_their_order() -> None:
    model = LinearRegression().fit(X.to_numpy(), TABLE["id"])
    found = ff.scan(X).predict(model).to_arrow()
    np.testing.assert_allclose(found.column("prediction").to_numpy(), model.predict(X.to_numpy()), rtol=1e-12)
    with pytest.raises(OptionError, match=r"fitted on 3 features without names, and the table has 6 columns"):
        ff.scan(TABLE).predict(model)


class Slow:
    """Counts how often it is built."""

    def __init__(self, folder: str) -> None:
        (Path(folder) / f"load-{os.getpid()}-{time.monotonic_ns()}").touch()

    def __call__(self, batch: pd.DataFrame) -> dict[str, Any]:
        return {"score": batch["a"] * 2, "twice": batch["b"]}


def test_a_class_is_built_once_per_worker_and_gives_columns(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(20, 1 << 20)
    found = ff.scan(TABLE).predict(Slow, init=(str(tmp_path),), keep=["id"], batch_size=3)
    table = found.to_arrow(engine="processes", workers=2)
    assert table.column_names == ["id", "score", "twice"]
    assert table.column("score").to_numpy().tolist() == (TABLE["a"] * 2).tolist()
    assert 1 <= len(os.listdir(tmp_path)) <= 2


def test_a_model_that_cannot_be_loaded_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "m.joblib").write_bytes(b"no model")
    with pytest.raises(InitFailed, match=r"the model .*m\.joblib could not be loaded"):
        ff.scan(TABLE).predict(tmp_path / "m.joblib").to_arrow(engine="processes", workers=2)


def test_several_outputs_and_names_of_ones_own() -> None:
    both = np.column_stack([TABLE["a"], TABLE["b"]])
    model = LinearRegression().fit(X, both)
    found = ff.scan(TABLE).predict(model, keep=["id"]).to_arrow()
    assert found.column_names == ["id", "prediction_0", "prediction_1"]
    found = ff.scan(TABLE).predict(fitted("logistic"), method="predict_proba", name="p", keep=[]).to_arrow()
    assert found.column_names == ["p_no", "p_yes"]


def test_a_filter_that_leaves_no_row_of_a_batch_asks_no_model(small_pieces: Cut) -> None:
    small_pieces(50, 1 << 20)
    model = fitted("logistic")
    found = ff.scan(TABLE).filter(lambda batch: batch["id"] > 380).predict(model).to_arrow(engine="serial")
    assert found.column("prediction").to_pylist() == model.predict(X[TABLE["id"] > 380]).tolist()


def test_classes_of_several_outputs_do_not_collide() -> None:
    both = np.column_stack([Y, TABLE["city"]])
    model = RandomForestClassifier(**TREES).fit(X, both)
    found = ff.scan(TABLE).predict(model, keep=["id"]).to_arrow()
    assert found.column_names == ["id", "prediction_0", "prediction_1"]
    assert found.column("prediction_1").to_pylist() == model.predict(X)[:, 1].tolist()
    found = ff.scan(TABLE).predict(model, method="predict_proba", keep=[]).to_arrow()
    assert found.column_names == ["proba_0_no", "proba_0_yes", "proba_1_Bonn", "proba_1_Oslo", "proba_1_Rom"]


def test_a_column_that_is_there_is_not_overwritten() -> None:
    with pytest.raises(ValueError, match="has a column 'prediction' already"):
        ff.scan(TABLE.assign(prediction=1)).predict(fitted("tree")).to_arrow(engine="serial")


def test_a_model_that_gives_too_few_values_is_an_error_that_says_so() -> None:
    class Short:
        def __call__(self, batch: pd.DataFrame) -> Any:
            return batch["a"].to_numpy()[1:]

    with pytest.raises(ValueError, match=r"Short gave \d+ values of 'prediction' for \d+ rows: give one for each"):
        ff.scan(TABLE).predict(Short).to_arrow(engine="serial")


def test_rows_of_like_size_are_together_and_their_order_comes_back() -> None:
    seen: list[list[int]] = []

    class Look:
        def __call__(self, batch: pd.DataFrame) -> Any:
            seen.append(batch["size"].tolist())
            return batch["id"].to_numpy()

    rows = pd.DataFrame({"id": range(64), "size": [100 if row % 8 == 0 else 1 for row in range(64)]})
    found = ff.scan(rows).predict(Look, batch_size=8, size_of=lambda batch: batch["size"]).to_arrow(engine="serial")
    assert found.column("prediction").to_pylist() == [*range(64)]
    assert [set(each) for each in seen] == [{1}] * 7 + [{100}]


def test_rows_that_are_equal_are_computed_once() -> None:
    n_seen = []

    class Look:
        def __call__(self, batch: pd.DataFrame) -> Any:
            n_seen.append(len(batch))
            return batch["city"].str.len().to_numpy()

    found = ff.scan(TABLE).predict(Look, dedupe=["city"]).to_arrow(engine="serial")
    assert found.column("prediction").to_pylist() == TABLE["city"].str.len().tolist()
    assert sum(n_seen) == 3


def test_a_batch_too_large_for_memory_is_halved_and_the_size_stays_small() -> None:
    sizes = []

    class Small:
        def __call__(self, batch: pd.DataFrame) -> Any:
            sizes.append(len(batch))
            if len(batch) > 20:
                raise MemoryError
            return batch["a"].to_numpy()

    found = ff.scan(TABLE).predict(Small).to_arrow(engine="serial")
    assert found.column("prediction").to_pylist() == TABLE["a"].tolist()
    assert sum(size > 20 for size in sizes) <= 4


def test_rows_that_are_equal_and_of_unlike_size_get_their_own_values_back() -> None:
    class Look:
        def __call__(self, batch: pd.DataFrame) -> Any:
            return batch["label"] + batch["city"]

    asked = {"dedupe": ["city", "label"], "size_of": lambda batch: batch["city"].str.len(), "batch_size": 2}
    found = ff.scan(TABLE).predict(Look, **asked).to_arrow(engine="serial")
    assert found.column("prediction").to_pylist() == (TABLE["label"] + TABLE["city"]).tolist()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
        ValueError("Failed to allocate memory for requested buffer of size 6710886400"),
    ],
    ids=["Python", "CUDA", "torch", "ONNX"],
)
def test_however_a_library_says_that_memory_ran_out_the_rows_of_a_call_are_halved(error: Exception) -> None:
    size, calls = BatchSize(64), []

    def call(table: pa.Table) -> int:
        calls.append(table.num_rows)
        if table.num_rows > 20:
            raise error
        return table.num_rows

    assert sum(size.run(call, pa.table({"a": range(100)}))) == 100
    assert calls == [64, 32, *[16] * 6, 4]


def test_a_row_that_is_too_much_alone_and_any_other_error_are_raised() -> None:
    for error in (MemoryError("one row"), ValueError("no memory in it")):

        def call(table: pa.Table, error: Exception = error) -> int:
            raise error

        with pytest.raises(type(error), match=str(error)):
            BatchSize(None).run(call, pa.table({"a": range(100)}))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": "s3://bucket/m.joblib"}, OptionError, "is a URL, and models are loaded from files"),
        ({"model": __file__}, OptionError, "cannot tell what it is from its extension"),
        ({"model": int}, OptionTypeError, "cannot be called"),
        ({"method": "predict_proba", "model": "line"}, OptionError, "has none; it has predict"),
        ({"init": (1,), "model": "line"}, OptionError, "is for classes"),
        ({"keep": ["none"]}, OptionError, "no column 'none'"),
        ({"dedupe": ["none"]}, OptionError, "no column 'none'"),
        ({"batch_size": 0}, OptionError, "at least 1"),
        ({"size_of": 3}, OptionTypeError, "must be a function"),
    ],
)
def test_what_cannot_be_predicted_is_said_before_anything_runs(options: dict, error: type[Exception], words: str) -> None:
    model = options.pop("model", "tree")
    with pytest.raises(error, match=words):
        ff.scan(TABLE).predict(fitted(model) if model in ESTIMATORS else model, **options)


# ---- transformers ----------------------------------------------------------------------------------------------------


def test_a_transformer_replaces_its_columns_and_the_model_takes_them(small_pieces: Cut) -> None:
    small_pieces(60, 1 << 20)
    prepare = ColumnTransformer([("n", StandardScaler(), FEATURES), ("c", OneHotEncoder(sparse_output=False), ["city"])]).fit(
        TABLE[[*FEATURES, "city"]]
    )
    rows = ff.scan(TABLE).transform(prepare)
    found = rows.to_arrow(engine="processes", workers=2)
    names = [*prepare.get_feature_names_out()]
    assert found.column_names == ["id", "label", *names]
    values = prepare.transform(TABLE[[*FEATURES, "city"]])
    np.testing.assert_allclose(found.select(names).to_pandas().to_numpy(), values, rtol=1e-12)
    model = LogisticRegression().fit(pd.DataFrame(values, columns=names), Y)
    said = rows.predict(model, keep=["id"]).to_pandas()
    assert said["prediction"].tolist() == model.predict(pd.DataFrame(values, columns=names)).tolist()


def test_output_of_pandas_is_taken_too() -> None:
    scale = StandardScaler().set_output(transform="pandas").fit(X)
    found = ff.scan(TABLE).transform(scale).to_arrow()
    np.testing.assert_allclose(found.column("a").to_numpy(), scale.transform(X)["a"], rtol=1e-12)


def test_a_sparse_result_becomes_dense_when_that_is_asked_for() -> None:
    encode = OneHotEncoder().fit(TABLE[["city"]])
    found = ff.scan(TABLE).transform(encode, dense=True).to_arrow()
    assert found.column("city_Bonn").to_pylist() == (TABLE["city"] == "Bonn").astype(float).tolist()


@pytest.mark.parametrize(
    ("fitted", "error", "words"),
    [
        (StandardScaler(), OptionError, "it was not fitted"),
        (StandardScaler, OptionTypeError, "give a fitted transformer"),
        (StandardScaler().fit(pd.DataFrame({"none": [1.0]})), OptionError, "of which 'none' is not in the table"),
    ],
)
def test_what_cannot_transform_is_said_at_once(fitted: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ff.scan(TABLE).transform(fitted)


def test_predictions_are_written_as_parquet(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(50, 1 << 20)
    write_parquet(pa.Table.from_pandas(TABLE), tmp_path / "in.parquet")
    model = fitted("forest")
    written = ff.scan(tmp_path / "in.parquet").predict(model, method="predict_proba", keep=["id"]).write(tmp_path / "out")
    found = ff.scan(tmp_path / "out").to_pandas()
    assert written.n_rows == N_ROWS
    assert found["id"].tolist() == TABLE["id"].tolist()
    assert (found[["proba_no", "proba_yes"]].to_numpy() == model.predict_proba(X)).all()
