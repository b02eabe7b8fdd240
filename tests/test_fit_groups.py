"""`Dataset.fit_groups`: one model per group, as a loop over the groups makes it, whatever single groups do."""

import datetime
import logging
import os
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from groups import FEATURES, Counted, Deadly, Mean, TwoClasses, loop, one_thread, rows_of  # noqa: F401
from running import started
from sklearn.cluster import KMeans
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import small_pieces  # noqa: F401

import fourfold as ff
import fourfold.workloads.groups.merge as merge
import fourfold.workloads.groups.place as place
import fourfold.workloads.groups.spill as spill
from fourfold.errors import OptionError, OptionTypeError, RunInUse, TooManyFailures, UnreadableInput
from fourfold.records import Failure
from fourfold.workloads.groups.fitting import _outcome
from fourfold.workloads.groups.rows import Group

pytestmark = pytest.mark.usefixtures("workers_of_tables")

Cut = Callable[[int, int], None]


class Dtypes(Mean):
    """What columns it was given."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Dtypes":
        self.dtypes_ = [*X.dtypes]
        return self


def waiting_rows(folder: str | Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith("fourfold-groups-")]


@pytest.mark.parametrize(("engine", "n_groups"), [("serial", 300), ("threads", 40), ("processes", 300), ("auto", 40)])
def test_groups_have_the_models_of_the_loop(engine: str, n_groups: int, small_pieces: Cut) -> None:  # noqa: F811
    small_pieces(700, 1 << 30)
    rows = rows_of(n_groups, 4000)
    expected = loop(Ridge(), rows, "shop")
    models = ff.scan(rows).fit_groups(Ridge(), by="shop", target="y", features=FEATURES, engine=engine)
    assert list(models) == list(expected)
    for key, model in expected.items():
        assert models[key].coef_.tobytes() == model.coef_.tobytes()
        assert models[key].intercept_ == model.intercept_
        assert models[key].feature_names_in_.tolist() == FEATURES
        assert models[key].get_params() == model.get_params() | {"random_state": models[key].random_state}
    summary = models.summary()
    assert summary.columns.tolist() == ["shop", "rows", "status", "seconds", "score", "error"]
    assert summary.rows.tolist() == rows.groupby("shop").size().tolist()
    assert {*summary.status} == {"ok"}
    assert (summary.seconds > 0).all()
    assert not waiting_rows(tempfile.gettempdir())


@pytest.mark.slow
def test_ten_thousand_groups_have_the_models_of_the_loop() -> None:
    rows = rows_of(10_000, 60_000)
    models = ff.scan(rows).fit_groups(Mean(), by="shop", target="y", features=FEATURES, engine="processes")
    expected = loop(Mean(), rows, "shop")
    assert list(models) == list(expected)
    assert all((models[key].mean_, models[key].rows_) == (each.mean_, each.rows_) for key, each in expected.items())


def test_rows_of_a_group_keep_the_order_of_the_dataset(small_pieces: Cut) -> None:  # noqa: F811
    rows = rows_of(5, 900).assign(a=lambda t: t.index.astype(float))
    for cut in (64, 256, 5000):
        small_pieces(cut, 1 << 30)
        models = ff.scan(rows).fit_groups(Mean(), by="shop", target="y", features=FEATURES, engine="serial")
        for key, part in rows.groupby("shop"):
            assert models[key].rows_ == part.a.tolist()


def test_models_have_the_same_bits_for_any_workers_and_any_cutting(small_pieces: Cut) -> None:  # noqa: F811
    rows = rows_of(20, 1500)
    found = set()
    for cut, workers in ((90, 1), (90, 2), (5000, 2)):
        small_pieces(cut, 1 << 30)
        forest = RandomForestRegressor(n_estimators=2, max_depth=3)
        models = ff.scan(rows).fit_groups(
            forest, by="shop", target="y", features=FEATURES, engine="processes", workers=workers
        )
        found.add(models.predict(rows).tobytes())
    assert len(found) == 1


def test_dtypes_do_not_depend_on_which_groups_lie_together(small_pieces: Cut) -> None:  # noqa: F811
    class Dtypes(Mean):
        def fit(self, X: Any, y: Any) -> "Dtypes":  # type: ignore[override]
            self.dtypes_ = [str(each) for each in X.dtypes]
            return self

    table = pa.table(
        {
            "key": ["a", "a", "b", "b"],
            "number": pa.array([1, 2, None, 4]),
            "flag": pa.array([True, False, True, None]),
            "kind": pa.array(["x", "y", "x", "y"]).dictionary_encode(),
            "y": [0.0, 1.0, 2.0, 3.0],
        }
    )
    of_all = table.to_pandas()[["number", "flag", "kind"]].dtypes.astype(str).tolist()
    for cut in (1, 4):
        small_pieces(cut, 1 << 30)
        models = ff.scan(table).fit_groups(Dtypes(), by="key", target="y", engine="serial")
        assert [model.dtypes_ for model in models.values()] == [of_all] * 2


@pytest.mark.parametrize("n_files", [1, 2])
def test_columns_of_categories_have_all_of_them_in_each_group(n_files: int, tmp_path: Path, small_pieces: Cut) -> None:  # noqa: F811
    small_pieces(50, 1 << 30)
    rows = rows_of(4, 400).assign(kind=lambda t: pd.Categorical(t.town, [f"town {each}" for each in (6, 3, 1, 0, 2, 4, 5)]))
    names = ["kind", "a"]
    for number in range(n_files):
        pq.write_table(pa.Table.from_pandas(rows[number::n_files]), tmp_path / f"{number}.parquet")
    rows = pd.concat([rows[number::n_files] for number in range(n_files)])
    model = HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=2, random_state=0)
    expected = loop(model, rows, "shop", names)
    models = ff.scan(tmp_path / "*.parquet").fit_groups(model, by="shop", target="y", features=names, engine="processes")
    assert [*models.summary().status] == ["ok"] * 4
    said = models.predict(rows)
    for key, each in expected.items():
        of_key = (rows.shop == key).to_numpy()
        assert said[of_key].tolist() == each.predict(rows[names][of_key]).tolist()
    seen = ff.scan(rows).fit_groups(Dtypes(), by="shop", target="y", features=names, engine="serial")
    assert [seen[key].dtypes_ for key in seen] == [[*rows[names].dtypes]] * 4


def test_a_group_that_is_much_larger_than_a_bucket_is_put_together_by_who_fits_it(
    small_pieces: Cut,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_pieces(300, 1 << 30)
    monkeypatch.setattr(merge, "HUGE_ROWS", 500)
    monkeypatch.setattr(spill, "HEAVY_ROWS", 16)
    rows = rows_of(40, 3000)
    rows.loc[rows.index % 2 == 0, "shop"] = 7
    rows.loc[rows.index % 2 == 0, "town"] = "town 7"
    rows["town"] = rows.town.where(rows.index % 4 != 2)  # a huge group with null
    expected = loop(Ridge(), rows, ["shop", "town"])
    ds = ff.scan(rows)
    merged = []
    usual = merge.Merge.__call__

    def noting(self: Any, bucket: Any) -> Any:
        merged.append(bucket)
        return usual(self, bucket)

    monkeypatch.setattr(merge.Merge, "__call__", noting)
    models = ds.fit_groups(Ridge(), by=["shop", "town"], target="y", features=FEATURES, engine="serial")
    assert {key for bucket in merged for key in bucket.without} == {(7, "town 7"), (7, None)}
    assert len(models) == len(expected)
    for key, model in expected.items():
        assert models[key].coef_.tobytes() == model.coef_.tobytes()
    assert models.summary().rows.sum() == 3000


def test_what_did_not_come_back_whole_is_an_error_of_its_group() -> None:
    group = Group((1,), 3, 0, 0)
    found = _outcome(group, Failure(0, "unpicklable", None, "TypeError", "no such class here", "", ""), 1)
    assert (found.status, found.error) == ("error", "TypeError: no such class here")


def test_the_largest_groups_are_fitted_first(tmp_path: Path) -> None:
    sizes = {1: 1500, 2: 40, 3: 2500, 4: 1200}
    shop = np.repeat(list(sizes), list(sizes.values()))
    rows = pd.DataFrame({"shop": shop, "a": shop.astype(float), "y": 0.0})
    notes = tmp_path / "notes"
    ff.scan(rows).fit_groups(Counted(str(notes)), by="shop", target="y", engine="serial")
    assert notes.read_text().split() == ["3", "1", "4", "2"]


def test_where_the_loop_finds_out_whether_workers_pay_it_does_not_begin_with_the_largest_group(tmp_path: Path) -> None:
    sizes = {1: 1500, 2: 40, 3: 25_000, 4: 1200, 5: 60}
    shop = np.repeat(list(sizes), list(sizes.values()))
    rows = pd.DataFrame({"shop": shop, "a": shop.astype(float), "y": 0.0})
    notes = tmp_path / "notes"
    ff.scan(rows).fit_groups(Counted(str(notes)), by="shop", target="y", engine="auto")
    assert [*notes.read_text().split()][2:] == ["3", "2", "5"]
    notes.unlink()
    ff.scan(rows[rows.shop.isin([2, 3])]).fit_groups(Counted(str(notes)), by="shop", target="y", engine="auto")
    assert notes.read_text().split() == ["2", "3"]


# ---- keys --------------------------------------------------------------------------------------------------------------

DAY = datetime.date(2024, 2, 29)
KEYS: dict[str, tuple[Any, list[Any]]] = {
    "texts": (pa.string(), ["b", "a", "", "ünï"]),
    "large texts": (pa.large_string(), ["b", "a"]),
    "integers": (pa.int32(), [3, -1, 0]),
    "floats": (pa.float64(), [0.5, -2.0, 1e300]),
    "booleans": (pa.bool_(), [True, False]),
    "dates": (pa.date32(), [DAY, datetime.date(1960, 1, 1)]),
    "times": (pa.timestamp("us"), [datetime.datetime(2024, 1, 1, 5), datetime.datetime(1960, 1, 1)]),
    "nanoseconds": (pa.timestamp("ns", "UTC"), [pd.Timestamp("2024-01-01 00:00:00.000000001", tz="UTC")]),
    "decimals": (pa.decimal128(6, 2), [Decimal("1.50"), Decimal("-2.00")]),
    "bytes": (pa.binary(), [b"\x00", b"a"]),
    "categories": (pa.dictionary(pa.int8(), pa.string()), ["x", "y"]),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_each_type_and_null_make_groups(kind: str, small_pieces: Cut) -> None:  # noqa: F811
    small_pieces(3, 1 << 30)
    type_, values = KEYS[kind]
    keys = [*values, None] * 4
    table = pa.table(
        {"key": pa.array(keys, type_), "a": [float(at) for at in range(len(keys))], "y": 1.0 * np.arange(len(keys))}
    )
    models = ff.scan(table).fit_groups(Mean(), by="key", target="y", engine="serial")
    assert {*models} == {*values, None}
    for at, key in enumerate(keys[: len(values) + 1]):
        assert models[key].rows_ == [float(row) for row in range(at, len(keys), len(values) + 1)]
    assert pd.isna(models.summary()["key"].iloc[-1])
    assert models.predict(table).tolist() == [models[key].mean_ for key in keys]


@pytest.mark.parametrize("n_rows", [2, 60_000])
def test_the_two_hours_at_which_clocks_go_back_are_two_groups(
    n_rows: int,
    small_pieces: Cut,  # noqa: F811
) -> None:
    small_pieces(n_rows // 2, 1 << 30)
    when = pd.to_datetime(["2020-10-25 00:30", "2020-10-25 01:30"]).tz_localize("UTC").tz_convert("Europe/Berlin")
    rows = pd.DataFrame({"when": [*when] * (n_rows // 2), "a": 1.0, "y": [1.0, 2.0] * (n_rows // 2)})
    models = ff.scan(rows).fit_groups(Mean(), by="when", target="y", engine="serial")
    assert [models[each].mean_ for each in when] == [1.0, 2.0]
    assert [models[each.to_pydatetime()].mean_ for each in when] == [1.0, 2.0]
    assert [str(each) for each in models] == ["2020-10-25 02:30:00+02:00", "2020-10-25 02:30:00+01:00"]
    assert models.predict(rows[:2]).tolist() == [1.0, 2.0]


def test_nan_is_null_and_minus_zero_is_zero() -> None:
    table = pa.table({"key": pa.array([0.0, -0.0, float("nan"), None]), "a": [1.0, 2.0, 3.0, 4.0], "y": [0.0] * 4})
    models = ff.scan(table).fit_groups(Mean(), by="key", target="y", engine="serial")
    assert {key: model.rows_ for key, model in models.items()} == {0.0: [1.0, 2.0], None: [3.0, 4.0]}
    for word in (None, np.nan, pd.NA, pd.NaT, np.float64("nan")):
        assert models[word].rows_ == [3.0, 4.0]
    assert models[np.float64(0)].rows_ == [1.0, 2.0]


def test_several_columns_make_a_key() -> None:
    rows = rows_of(12, 300)
    rows["town"] = rows.town.where(rows.index % 3 > 0)
    models = ff.scan(rows).fit_groups(Mean(), by=["town", "shop"], target="y", features=FEATURES, engine="serial")
    expected = loop(Mean(), rows, ["town", "shop"])
    assert len(models) == len(expected)
    for key, model in expected.items():
        assert models[key].rows_ == model.rows_
    assert ("nowhere", 1) not in models
    with pytest.raises(KeyError, match="a key has a value for each of town, shop"):
        models["town 1"]


# ---- groups that cannot be fitted --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bad_group_costs_one_group_and_has_its_status(caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of(60, 1200).sort_values("shop", kind="stable").assign(a=0.0)
    lonely = pd.DataFrame({"shop": [101, 102, 103], "a": 0.0, "b": 0.0, "y": 1.0})
    rows = pd.concat([rows, lonely])
    for shop, what in ((5, 1.0), (17, 2.0), (31, 3.0), (40, 4.0)):
        rows.loc[rows.shop == shop, "a"] = what
    with caplog.at_level(logging.WARNING, "fourfold"):
        models = ff.scan(rows).fit_groups(
            Deadly(), by="shop", target="y", features=FEATURES, min_rows=2, engine="processes", workers=2, timeout=3
        )
    status = models.summary().set_index("shop").status
    bad = {5: "crashed", 17: "crashed", 31: "timed_out", 40: "error"} | dict.fromkeys((101, 102, 103), "too_few_rows")
    assert {shop: word for shop, word in status.items() if word != "ok"} == bad
    assert len(models) == 56
    errors = models.summary().set_index("shop").error
    assert "SIGSEGV" in errors[5]
    assert errors[40] == "ValueError: this group is odd"
    assert errors[101] == "1 rows are less than min_rows=2"
    assert sorted(each.kind for each in models.failures) == ["crashed", "crashed", "raised", "timed out"]
    with pytest.raises(KeyError, match="the group 40 has no model: error: ValueError: this group is odd"):
        models[40]
    assert 40 not in models
    assert "7 of 63 groups have no model (2 crashed, 1 timed_out, 1 error, 3 too_few_rows); the first: 5:" in caplog.text


def test_a_target_that_is_nan_is_the_error_of_its_group() -> None:
    rows = rows_of(4, 100)
    rows.loc[rows.index[rows.shop == 2][0], "y"] = np.nan
    summary = ff.scan(rows).fit_groups(Ridge(), by="shop", target="y", features=FEATURES, engine="serial").summary()
    assert summary.status.tolist() == ["ok", "ok", "error", "ok"]
    assert summary.error[2].startswith("ValueError: Input y contains NaN")


def test_a_group_of_one_class_is_called_so_where_a_classifier_needs_two() -> None:
    table = {"key": ["a", "a", "b", "b"], "x": [0.0, 1.0, 0.0, 1.0], "y": ["no", "yes", "no", "no"]}
    ds = ff.scan(pd.DataFrame(table))
    summary = ds.fit_groups(TwoClasses(), by="key", target="y", engine="serial", on_error="raise").summary()
    assert summary.status.tolist() == ["ok", "one_class"]
    assert summary.error[1] == "ValueError: this needs two classes"
    with pytest.raises(ValueError, match="odd"):  # another reason is raised
        ds.fit_groups(_Odd(), by="key", target="y", engine="serial", on_error="raise")


class _Odd(TwoClasses):
    def fit(self, X: Any, y: Any) -> "_Odd":
        raise ValueError("odd")


def test_on_error_raise_ends_with_the_error_of_the_group_and_skip_leaves_it_out() -> None:
    rows = rows_of(6, 60).assign(a=0.0)
    rows.loc[rows.shop == 3, "a"] = 4.0
    given: dict[str, Any] = {"by": "shop", "target": "y", "features": FEATURES, "engine": "serial"}
    with pytest.raises(ValueError, match="this group is odd") as caught:
        ff.scan(rows).fit_groups(Deadly(), on_error="raise", **given)
    assert "Group(key=(3,)" in caught.value.__notes__[0]
    skipped = ff.scan(rows).fit_groups(Deadly(), on_error="skip", **given)
    assert skipped.summary().shop.tolist() == [0, 1, 2, 4, 5]
    assert skipped.failures[0].error_type == "ValueError"
    with pytest.raises(TooManyFailures):
        ff.scan(rows).fit_groups(Deadly(), max_failures=0, **given)
    assert not waiting_rows(tempfile.gettempdir())


def test_a_row_that_a_step_before_fails_on_ends_the_call() -> None:
    def fails(batch: pd.DataFrame) -> pd.DataFrame:
        if (batch.shop == 1).any():
            raise ValueError("this row")
        return batch

    ds = ff.scan(rows_of(3, 30)).map_batches(
        fails, schema={"shop": "int64", "town": "string", "a": float, "b": float, "y": float}
    )
    with pytest.raises(ValueError, match="this row"):
        ds.fit_groups(Mean(), by="shop", target="y", features=FEATURES, engine="serial")
    assert not waiting_rows(tempfile.gettempdir())


def test_no_rows_make_no_models() -> None:
    rows = rows_of(3, 30).iloc[:0]
    models = ff.scan(rows).fit_groups(Ridge(), by="shop", target="y", features=FEATURES, fallback="global")
    assert len(models) == 0
    assert models.summary().columns.tolist() == ["shop", "rows", "status", "seconds", "score", "error"]
    assert models.predict(rows).tolist() == []
    assert np.isnan(models.predict(rows_of(3, 5))).all()


# ---- what a fit is given -----------------------------------------------------------------------------------------------


def test_a_random_state_of_none_is_made_of_the_key_and_another_one_stays() -> None:
    rows = rows_of(4, 80)

    def states(estimator: Any, rows: pd.DataFrame, **options: Any) -> dict[Any, Any]:
        models = ff.scan(rows).fit_groups(estimator, by="shop", target="y", features=FEATURES, engine="serial", **options)
        return {key: model.random_state for key, model in models.items()}

    first = states(Mean(), rows)
    assert len({*first.values()}) == 4
    assert states(Mean(), rows[rows.shop == 2].assign(shop=2.0)) == {2: first[2]}  # whatever groups there are, and as what
    assert states(Mean(), rows, seed=5) != first
    assert {*states(Mean(random_state=3), rows).values()} == {3}
    pipe = make_pipeline(StandardScaler(), KMeans(2, n_init=1))
    models = ff.scan(rows).fit_groups(pipe, by="shop", features=FEATURES, engine="serial")
    assert len({model[-1].random_state for model in models.values()}) == 4


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_random_numbers_in_a_fit_depend_on_the_key_and_the_seed(engine: str) -> None:
    class Drawn(Mean):
        def fit(self, X: Any, y: Any) -> "Drawn":  # type: ignore[override]
            self.drawn_ = (float(ff.rng().random()), float(np.random.random()))
            return self

    def drawn(rows: pd.DataFrame) -> dict[Any, Any]:
        models = ff.scan(rows).fit_groups(Drawn(), by="shop", target="y", features=FEATURES, engine=engine, seed=1)
        return {key: model.drawn_ for key, model in models.items()}

    rows = rows_of(4, 80)
    assert len({*drawn(rows).values()}) == 4
    assert drawn(rows[rows.shop == 2]) == {2: drawn(rows)[2]}


def test_weights_reach_the_fit_also_of_a_pipeline() -> None:
    rows = rows_of(4, 200).assign(w=lambda t: np.abs(t.b))
    for estimator, name in ((Ridge(), "sample_weight"), (make_pipeline(StandardScaler(), Ridge()), "ridge__sample_weight")):
        models = ff.scan(rows).fit_groups(estimator, by="shop", target="y", features=FEATURES, weight="w", engine="serial")
        for key, part in rows.groupby("shop"):
            expected = type(estimator)(**estimator.get_params(deep=False)).fit(part[FEATURES], part.y, **{name: part.w})
            assert models[key].predict(part[FEATURES]).tobytes() == expected.predict(part[FEATURES]).tobytes()


def test_features_are_all_columns_but_keys_target_and_weight() -> None:
    rows = rows_of(4, 40).drop(columns="town").assign(w=1.0)
    models = ff.scan(rows).fit_groups(Ridge(), by="shop", target="y", weight="w", engine="serial")
    assert models.features == ("a", "b")


def test_a_score_is_that_of_the_rows_of_the_group() -> None:
    rows = rows_of(4, 200)
    given: dict[str, Any] = {"by": "shop", "target": "y", "features": FEATURES, "engine": "serial"}
    named = ff.scan(rows).fit_groups(Ridge(), score="r2", **given)
    counted = ff.scan(rows).fit_groups(Ridge(), score=lambda model, X, y: len(X), **given)
    expected = [named[key].score(part[FEATURES], part.y) for key, part in rows.groupby("shop")]
    assert named.summary().score.tolist() == expected
    assert counted.summary().score.tolist() == counted.summary().rows.tolist()


def test_a_fit_in_a_worker_starts_no_more_jobs_and_its_model_keeps_what_was_asked_for() -> None:
    class Jobs(Mean):
        def __init__(self, n_jobs: Any = None) -> None:
            self.n_jobs = n_jobs

        def fit(self, X: Any, y: Any) -> "Jobs":  # type: ignore[override]
            self.had_ = self.n_jobs
            return self

    models = ff.scan(rows_of(3, 30)).fit_groups(Jobs(-1), by="shop", target="y", features=FEATURES, engine="processes")
    assert {(model.had_, model.n_jobs) for model in models.values()} == {(1, -1)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "shopp"}, "there is no column 'shopp' (did you mean 'shop'?)"),
        ({"by": []}, "must name the columns"),
        ({"by": ["shop", "shop"]}, "each once"),
        ({"target": "a", "features": ["a"]}, "'a' is the target: leave it out of features="),
        ({"by": "y"}, "'y' is the target: leave it out of by="),
        ({"features": []}, "there is no column left"),
        ({"features": ["a", "b", "a"]}, "has 'a' twice: name each column once"),
        ({"min_rows": 0}, "min_rows=0"),
        ({"fallback": "mother"}, "fallback='mother' is not known"),
        ({"on_error": "ignore"}, "on_error='ignore' is not known"),
        ({"cost": len}, "cost= is not for datasets"),
        ({"engine": "ray"}, "workers on other machines must see them: name a folder"),
    ],
)
def test_what_cannot_be_asked_for_is_said_before_anything_runs(given: dict[str, Any], message: str) -> None:
    asked = {"by": "shop", "target": "y", "features": FEATURES} | given
    with pytest.raises(OptionError) as caught:
        ff.scan(rows_of(3, 30)).fit_groups(Ridge(), **asked)
    assert message in str(caught.value)


def test_keys_that_are_lists_and_what_is_no_estimator_are_refused() -> None:
    with pytest.raises(OptionError, match="its values are list<item: int64>, and keys are texts"):
        ff.scan(pa.table({"key": [[1]], "a": [1.0], "y": [1.0]})).fit_groups(Ridge(), by="key", target="y")
    for wrong in (Ridge, "Ridge()", object()):
        with pytest.raises(OptionTypeError, match="give an estimator with scikit-learn's interface"):
            ff.scan(rows_of(3, 30)).fit_groups(wrong, by="shop", target="y")


def test_columns_that_nobody_knows_before_a_run_are_refused_with_what_to_do() -> None:
    ds = ff.scan(rows_of(3, 30)).map_batches(lambda batch: batch)
    with pytest.raises(OptionError, match="give map_batches a schema="):
        ds.fit_groups(Ridge(), by="shop", target="y")


# ---- runs that go on ---------------------------------------------------------------------------------------------------

SCRIPT = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import numpy as np, pandas as pd
    import fourfold as ff
    from groups import Counted

    if __name__ == "__main__":
        os.environ["DRIVER"] = str(os.getpid())
        rows = pd.DataFrame({"shop": np.arange(80) % 16, "a": 1.0 * (np.arange(80) % 16), "y": 1.0 * np.arange(80)})
        models = ff.scan(rows).fit_groups(
            Counted("notes", int(os.environ.get("KILL_AT", "10"))), by="shop", target="y", engine="processes", workers=1, chunk=1, run="run"
        )
        print(len(models), models.report.n_recorded, os.environ["DRIVER"] and len(os.listdir(".")))
"""


@pytest.mark.slow
def test_a_run_whose_driver_was_killed_fits_no_group_again_that_had_finished(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    with started(SCRIPT, here, folder=tmp_path, DRIVER="") as script:
        killed = script.end()
    assert killed.code == -9
    assert len(waiting_rows(tmp_path)) == 1
    with started(SCRIPT, here, folder=tmp_path, DRIVER="") as script:
        ended = script.end()
    assert ended.code == 0, ended.stderr
    n_models, n_recorded, _ = ended.stdout.split()
    notes = (tmp_path / "notes").read_text().split()
    assert int(n_models) == 16
    assert int(n_recorded) >= 8  # of the ten that began, the last one did not end
    assert len(notes) == 10 + 16 - int(n_recorded)
    assert not waiting_rows(tmp_path)


def test_a_run_that_ended_fits_nothing_again_and_changed_rows_are_told(tmp_path: Path) -> None:
    rows = rows_of(5, 50).assign(a=lambda t: t.shop.astype(float))
    notes = tmp_path / "notes"

    def fit(rows: pd.DataFrame) -> Any:
        return ff.scan(rows).fit_groups(
            Counted(str(notes)), by="shop", target="y", features=FEATURES, engine="serial", run=tmp_path / "run"
        )

    first = fit(rows)
    again = fit(rows)
    assert sorted(notes.read_text().split()) == ["0", "1", "2", "3", "4"]
    assert again.report.n_recorded == 5
    assert again.predict(rows).tobytes() == first.predict(rows).tobytes()
    with pytest.raises(ff.errors.RunChanged):
        fit(rows.assign(y=rows.y + 1))


def test_two_calls_with_one_run_do_not_take_each_others_rows(tmp_path: Path) -> None:
    rows = rows_of(3, 30)

    class Nested(Mean):
        def fit(self, X: Any, y: Any) -> "Nested":  # type: ignore[override]
            with pytest.raises(RunInUse):
                ff.scan(rows).fit_groups(
                    Mean(), by="shop", target="y", features=FEATURES, engine="serial", run=tmp_path / "run"
                )
            return self

    models = ff.scan(rows).fit_groups(
        Nested(), by="shop", target="y", features=FEATURES, engine="serial", run=tmp_path / "run", on_error="raise"
    )
    assert len(models) == 3


def test_rows_that_a_killed_call_has_left_are_removed_by_the_next_one() -> None:
    left = Path(tempfile.gettempdir(), "fourfold-groups-0123456789abcdef")
    left.mkdir(mode=0o700)
    (left / "lock").touch()
    (left / "0.0.rows").touch()
    ff.scan(rows_of(3, 30)).fit_groups(Mean(), by="shop", target="y", features=FEATURES, engine="serial")
    assert not left.exists()


@pytest.mark.parametrize("on_error", ["collect", "skip"])
def test_rows_that_somebody_removes_during_the_fits_end_the_call(
    on_error: Any,
    tmp_path: Path,
    small_pieces: Cut,  # noqa: F811
) -> None:
    small_pieces(500, 1 << 30)

    class Removes(Mean):
        def fit(self, X: Any, y: Any) -> "Removes":  # type: ignore[override]
            (folder,) = tmp_path.iterdir()
            for file in folder.glob("*.groups"):
                file.unlink()
            return self

    rows = ff.scan(rows_of(40, 2000))
    with pytest.raises(UnreadableInput, match="rows that wait there for their fit are gone"):
        rows.fit_groups(
            Removes(), by="shop", target="y", features=FEATURES, engine="serial", folder=str(tmp_path), on_error=on_error
        )
    assert not waiting_rows(tmp_path)


@pytest.mark.parametrize("call", ["mkdir", "open", "flock"])
def test_a_folder_that_another_call_sweeps_while_it_is_made_is_made_again(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, usual = (place.fcntl, place.fcntl.flock) if call == "flock" else (place.os, getattr(os, call))
    swept = []

    def other_is_faster(*args: Any, **options: Any) -> Any:
        done = usual(*args, **options) if call != "flock" else None
        if not swept and any("fourfold-groups-" in str(each) for each in (args[0], *tmp_path.iterdir())):
            swept.append(call)
            monkeypatch.setattr(owner, call, usual)
            place._sweep(tmp_path)
        return done if call != "flock" else usual(*args, **options)

    monkeypatch.setattr(owner, call, other_is_faster)
    with place.rows_folder(str(tmp_path), None, False) as folder:
        assert swept
        assert [each.name for each in folder.iterdir()] == [place.LOCK]
        place._sweep(tmp_path)
        assert folder.is_dir()
    assert not waiting_rows(tmp_path)


def test_rows_wait_where_folder_says(tmp_path: Path) -> None:
    seen = []

    class Looks(Mean):
        def fit(self, X: Any, y: Any) -> "Looks":  # type: ignore[override]
            seen.extend(waiting_rows(tmp_path / "rows"))
            return self

    ff.scan(rows_of(3, 30)).fit_groups(
        Looks(), by="shop", target="y", features=FEATURES, engine="serial", folder=tmp_path / "rows", on_error="raise"
    )
    assert len(seen) == 3
    assert not os.listdir(tmp_path / "rows")


def test_ctrl_c_leaves_no_rows_behind() -> None:
    class Interrupts(Mean):
        def fit(self, X: Any, y: Any) -> "Interrupts":  # type: ignore[override]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ff.scan(rows_of(3, 30)).fit_groups(Interrupts(), by="shop", target="y", features=FEATURES, engine="serial")
    assert not waiting_rows(tempfile.gettempdir())


@pytest.mark.slow
def test_a_group_of_half_of_all_rows_is_not_in_the_memory_of_the_driver(tmp_path: Path) -> None:
    n_rows = 1_000_000
    shop = np.where(np.arange(n_rows) % 2, 0, np.arange(n_rows) % 50)
    columns = {name: np.arange(n_rows, dtype=float) for name in "abcdefgh"}
    pa.parquet.write_table(pa.table({"shop": shop, **columns, "y": np.ones(n_rows)}), tmp_path / "rows.parquet")
    ds = ff.scan(tmp_path / "rows.parquet")
    ds.select(["shop", "a", "y"]).fit_groups(Size(), by="shop", target="y", engine="processes", workers=1)
    me = psutil.Process()
    before = me.memory_info().rss
    models = ds.fit_groups(Size(), by="shop", target="y", engine="processes", workers=1)
    grown = me.memory_info().rss - before
    assert models[0].n_ == n_rows // 2 + n_rows // 50
    assert grown < 20e6, f"the driver grew by {grown / 1e6:.0f} MB, and the group has 40"


class Size(Mean):
    """Counts its rows."""

    def fit(self, X: Any, y: Any) -> "Size":  # type: ignore[override]
        self.n_ = len(X)
        return self
