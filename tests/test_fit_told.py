"""What `fit` tells of a mistake: one clear error, which names the column, the row and what to type next."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from tables import small_pieces
from test_fit import Cut, folders

import fourfold as ff
from fourfold.data.steps import is_of_plan
from fourfold.errors import MissingExtra, OptionError, RunChanged

__all__ = ["small_pieces"]

N_ROWS, BAD = 300, 123
DRAW = np.random.default_rng(2)
TABLE = pd.DataFrame(DRAW.normal(size=(N_ROWS, 3)), columns=list("abc")).assign(
    y=DRAW.integers(0, 2, N_ROWS), word="x", when=pd.Timestamp("2013-01-01")
)


@pytest.mark.parametrize("weight", ["word", "when"])
def test_a_weight_that_can_be_none_is_refused_by_name_before_anything_runs(weight: str) -> None:
    def fail(batch: pd.DataFrame) -> pd.DataFrame:
        raise AssertionError("it has run")

    rows = ff.scan(TABLE).map_batches(fail, schema=ff.scan(TABLE).schema)
    with pytest.raises(OptionError, match=rf"weight='{weight}' is a column of .*, and weights are numbers"):
        rows.fit(Ridge(), "y", ["a"], weight, engine="serial")


@pytest.mark.parametrize("kind", ["int64", "float32", "bool", "decimal"])
def test_a_weight_may_be_any_kind_of_number(kind: str) -> None:
    import pyarrow as pa

    table = pa.Table.from_pandas(TABLE[["a", "y"]])
    weight = pa.array([1] * N_ROWS).cast(pa.decimal128(25, 2)) if kind == "decimal" else pa.array(np.ones(N_ROWS, kind))
    found = ff.scan(table.append_column("w", weight)).fit(Ridge(), "y", ["a"], "w", engine="serial")
    np.testing.assert_allclose(found.coef_, Ridge().fit(TABLE[["a"]], TABLE["y"]).coef_, rtol=1e-10)


def test_a_target_of_texts_is_told_from_a_feature_where_numbers_are_predicted() -> None:
    with pytest.raises(
        ValueError, match=r"the target is to be numbers, and this one is not: .*'x'\. Labels are for a classifier"
    ):
        ff.scan(TABLE).fit(Ridge(), "word", ["a"], engine="serial")


def test_numbers_where_texts_are_taken_are_told() -> None:
    with pytest.raises(TypeError, match=r"TfidfVectorizer takes texts, and this value is none: .*float64\(0\.1"):
        ff.scan(TABLE).fit(TfidfVectorizer(), features="a", engine="serial")


def test_a_dataset_in_the_place_of_rows_in_memory_says_how_it_is_fitted() -> None:
    with pytest.raises(
        TypeError, match=r"X is a Dataset: it has a fit of its own, \.fit\(LogisticRegression\(…\), target=…\)"
    ):
        ff.LogisticRegression().fit(ff.scan(TABLE[["a"]]), TABLE["y"])


PREP = ColumnTransformer([("scaled", StandardScaler(), ["b", "a"]), ("kept", "passthrough", ["c"])])


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("estimator", "column"),
    [
        (make_pipeline(StandardScaler(), Ridge()), "b"),
        (make_pipeline(StandardScaler(), ff.LogisticRegression()), "b"),
        (make_pipeline(PREP, LogisticRegression()), "scaled__b"),
    ],
    ids=["Ridge", "LogisticRegression of ours", "behind columns"],
)
def test_a_row_that_is_refused_behind_a_transformer_is_named_with_its_file_its_number_and_its_column(
    estimator: Any, column: str, on_error: Any, tmp_path: Path, small_pieces: Cut
) -> None:
    TABLE.assign(b=TABLE["b"].where(TABLE.index != BAD)).to_parquet(tmp_path / "in.parquet", row_group_size=50)
    small_pieces(50, 1 << 20)
    rows = ff.scan(tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=f"Input X contains NaN: column '{column}' is nan, and") as raised:
        rows.fit(estimator, "y", list("abc"), engine="serial", on_error=on_error)
    assert [
        note for note in raised.value.__notes__ if note.startswith(f"fourfold: row {BAD} of {tmp_path / 'in.parquet'}: {{")
    ]
    assert not folders()


def test_a_row_that_is_refused_behind_a_transformer_is_not_one_that_was_left_out_before(small_pieces: Cut) -> None:
    table = TABLE.assign(b=TABLE["b"].where(TABLE.index != BAD), y=TABLE["y"].where(TABLE.index != 7))
    small_pieces(50, 1 << 20)
    with pytest.raises(ValueError, match="column 'b' is nan") as raised:
        ff.scan(table).fit(make_pipeline(StandardScaler(), Ridge()), "y", list("abc"), engine="serial", on_error="skip")
    assert [note for note in raised.value.__notes__ if f"row {BAD} of the table" in note]


@pytest.mark.parametrize("engine", ["serial", pytest.param("processes", marks=pytest.mark.slow)])
def test_an_error_that_ended_a_fit_is_as_any_other_afterwards(engine: str) -> None:
    """Also where the fit is within an item or a batch of something else, which may go on with others."""
    with pytest.raises(ValueError, match="the target is to be numbers") as raised:
        ff.scan(TABLE).fit(Ridge(), "word", ["a"], engine=engine, workers=2)
    assert not is_of_plan(raised.value)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (
            (LogisticRegression(), "y", ["a", "b"]),
            (LogisticRegression(C=2.0), "y", ["a", "b"]),
            "estimator was L.* is .*C=2.0",
        ),
        (
            (KMeans(3), None, ["a", "b"]),
            (KMeans(4), None, ["a", "b"]),
            r"estimator was .*n_clusters=3.* is .*n_clusters=4\)\.",
        ),
        ((MinMaxScaler(), None, ["a", "b"]), (MinMaxScaler(), None, ["a"]), "features was a, b and is a. They"),
        ((Ridge(), "y", ["a"]), (Ridge(), "c", ["a"]), "target was 'y' and is 'c'. They"),
    ],
    ids=["a penalty", "kept rows", "features", "target"],
)
def test_a_recorded_fit_that_goes_on_as_another_one_says_what_differs(
    first: Any, second: Any, says: str, tmp_path: Path
) -> None:
    rows = ff.scan(TABLE)
    rows.fit(*first, engine="serial", run=str(tmp_path / "run"))
    with pytest.raises(RunChanged, match=rf"are of another fit: {says}.*give it another folder"):
        rows.fit(*second, engine="serial", run=str(tmp_path / "run"))


def test_what_was_fitted_is_told_to_nobody_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o755)  # of the user, who may have let others look into it
    ff.scan(TABLE).fit(MinMaxScaler(), features=["a"], run=str(run), engine="serial")
    modes = {path.name: path.stat().st_mode & 0o077 for path in run.iterdir()}
    assert modes == dict.fromkeys(["fit", "fit.json", "pass-1"], 0)


def test_a_recorded_fit_of_other_rows_says_what_it_said_before(tmp_path: Path) -> None:
    ff.scan(TABLE).fit(MinMaxScaler(), None, ["a"], engine="serial", run=tmp_path / "run")
    with pytest.raises(RunChanged, match="pass-1 was recorded"):
        ff.scan(TABLE[:7]).fit(MinMaxScaler(), None, ["a"], engine="serial", run=tmp_path / "run")


@pytest.mark.parametrize("version", ["1.8.3", "0.24.2"])
def test_a_scikit_learn_that_is_older_than_its_recipes_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sklearn, "__version__", version)
    with pytest.raises(MissingExtra, match=rf"scikit-learn {version} is installed, .*pip install .*>=1\.9"):
        ff.scan(TABLE).fit(MinMaxScaler(), features=["a"])


@pytest.mark.parametrize("version", ["1.9.0rc1", "1.10.dev0", "2.0.1"])
def test_a_scikit_learn_that_is_newer_is_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sklearn, "__version__", version)
    assert ff.scan(TABLE).fit(MinMaxScaler(), features=["a"], engine="serial").n_samples_seen_ == N_ROWS
