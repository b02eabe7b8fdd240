"""Steps of a dataset: what they make of rows is what the same functions make of the whole table, however it is cut."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import people, small_pieces, write_csv, write_parquet

import fourfold as ff
from fourfold.errors import InitFailed, OptionError, OptionTypeError, TooManyFailures, UnwritableValue, WorkerLost

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]


def scale(batch: pd.DataFrame) -> pd.DataFrame:
    return batch.assign(y=batch["x"] * 2 + batch["id"])


class AddTo:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        return batch.assign(sum=batch["id"] + self.amount)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_rows=st.integers(0, 120),
    rows=st.integers(1, 50),
    batch=st.integers(1, 40),
    engine=st.sampled_from(["serial", "threads", "processes"]),
    workers=st.integers(1, 3),
)
def test_any_cut_any_batch_any_engine_gives_what_the_function_gives_of_the_whole_table(
    n_rows: int, rows: int, batch: int, engine: str, workers: int, small_pieces: Cut
) -> None:
    small_pieces(rows, 1 << 20)
    table = people(n_rows)
    found = ff.scan(table).map_batches(scale, batch_size=batch).filter(lambda frame: frame["y"] > 30)
    whole = scale(table.to_pandas())
    expected = whole[whole["y"] > 30].reset_index(drop=True)
    got = found.to_pandas(engine=engine, workers=workers)
    pd.testing.assert_frame_equal(got, expected, check_dtype=False)


@pytest.mark.parametrize(
    ("kind", "is_kind"),
    [
        ("pandas", lambda batch: isinstance(batch, pd.DataFrame)),
        ("polars", lambda batch: isinstance(batch, pl.DataFrame)),
        ("arrow", lambda batch: isinstance(batch, pa.Table)),
        ("numpy", lambda batch: isinstance(batch["id"], np.ndarray)),
        ("pylist", lambda batch: isinstance(batch[0], dict)),
    ],
)
def test_a_function_takes_the_kind_of_table_that_was_named_and_may_give_it_back(
    kind: str, is_kind: Callable[[Any], bool]
) -> None:
    def look(batch: Any) -> Any:
        assert is_kind(batch)
        return batch

    table = people(20).set_column(1, "x", pa.array(range(20), pa.float64()))  # arrays of NumPy know no null
    assert ff.scan(table).map_batches(look, batch_format=kind).to_arrow(engine="serial").equals(table)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: pd.DataFrame({"a": range(n)}),
        lambda n: pl.DataFrame({"a": range(n)}),
        lambda n: pa.table({"a": range(n)}),
        lambda n: pa.RecordBatch.from_pydict({"a": range(n)}),
        lambda n: {"a": np.arange(n)},
        lambda n: [{"a": k} for k in range(n)],
        lambda n: (pa.table({"a": [k]}) for k in range(n)),
    ],
)
def test_a_function_may_give_any_kind_and_any_number_of_rows(make: Callable[[int], Any]) -> None:
    found = ff.scan([{"n": 3}, {"n": 2}]).map_batches(lambda batch: make(batch[0]["n"]), batch_size=1, batch_format="pylist")
    assert found.to_arrow(engine="serial").column("a").to_pylist() == [0, 1, 2, 0, 1]


def test_arrays_of_two_dimensions_come_and_go() -> None:
    def double(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert batch["v"].shape == (len(batch["v"]), 3)
        return {"v": batch["v"] * 2}

    rows = ff.scan([{"n": 1}, {"n": 2}]).map_batches(lambda b: {"v": np.outer(b["n"], np.ones(3))}, batch_format="numpy")
    assert rows.map_batches(double, batch_format="numpy").to_arrow().column("v").to_pylist() == [[2.0] * 3, [4.0] * 3]


def test_a_class_is_built_once_per_worker(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)

    class Counted:
        def __init__(self, folder: str) -> None:
            (Path(folder) / f"built-{os.getpid()}-{os.urandom(4).hex()}").touch()

        def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
            return batch

    found = ff.scan(people(200)).map_batches(Counted, init=(str(tmp_path),), batch_size=5)
    assert found.count(engine="processes", workers=2) == 200
    assert 1 <= len(os.listdir(tmp_path)) <= 2


def test_a_class_that_cannot_be_built_is_one_error() -> None:
    class Broken:
        def __init__(self) -> None:
            raise OSError("no model")

        def __call__(self, batch: Any) -> Any:
            return batch

    with pytest.raises(InitFailed, match=r"^Broken\(\) raised OSError: no model$"):
        ff.scan(people(3)).map_batches(Broken).to_arrow(engine="processes", workers=1)


# ---- types -----------------------------------------------------------------------------------------------------------


def of_types(*values: Any) -> ff.Dataset:
    """One batch for each value, with it in column `a`."""
    return ff.scan([{"n": n} for n in range(len(values))]).map_batches(
        lambda batch: pa.table({"a": pa.array([values[batch[0]["n"]]])}), batch_size=1, batch_format="pylist"
    )


def test_a_batch_of_nulls_and_integers_that_turn_into_fractions_are_widened() -> None:
    assert of_types(None, 1, 2.5).to_arrow(engine="serial").column("a").to_pylist() == [None, 1.0, 2.5]


def test_batches_that_do_not_go_together_are_an_error_that_names_column_and_types() -> None:
    with pytest.raises((UnwritableValue, TypeError), match="column 'a' is string here and int64 in another batch"):
        of_types(1, "x").to_arrow(engine="serial")


def test_an_integer_too_large_for_a_column_of_fractions_is_no_silent_loss() -> None:
    with pytest.raises((UnwritableValue, TypeError), match="does not fit double"):
        of_types(2**53 + 1, 0.5).to_arrow(engine="serial")


def test_a_declared_schema_is_enforced() -> None:
    def wrong(batch: pd.DataFrame) -> pd.DataFrame:
        return batch.assign(extra=1)

    declared = ff.scan([{"a": 1}]).map_batches(lambda batch: batch, schema={"a": "float64"})
    assert declared.to_arrow().schema.field("a").type == pa.float64()
    with pytest.raises(TypeError, match=r"wrong gave a batch that does not fit schema=: .* it has also 'extra'"):
        ff.scan([{"a": 1}]).map_batches(wrong, schema={"a": "int64"}).to_arrow()
    with pytest.raises(TypeError, match="'a' is double and does not fit int32"):
        ff.scan([{"a": 1.5}]).map_batches(lambda batch: batch, schema={"a": "int32"}).to_arrow()


def test_categories_of_different_batches_go_together() -> None:
    def category(batch: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"c": batch["word"].astype("category")})

    found = ff.scan([{"word": word} for word in "abcab"]).map_batches(category, batch_size=2)
    assert found.to_arrow().column("c").to_pylist() == list("abcab")


def test_a_function_that_gives_no_table_says_what_it_gave() -> None:
    def nothing(batch: Any) -> None: ...

    with pytest.raises(TypeError, match="nothing gave None, which is no table"):
        ff.scan(people(3)).map_batches(nothing).to_arrow()


def test_a_function_that_gives_a_series_hears_how_it_becomes_a_table() -> None:
    with pytest.raises(TypeError, match=r"gave a Series, which is a column and no table: .* to_frame\(name\)"):
        ff.scan([{"x": 1}]).map_batches(lambda batch: batch["x"] + 1).to_arrow()


def test_map_of_a_dataset_says_which_of_its_methods_is_meant() -> None:
    with pytest.raises(OptionTypeError, match=r"items is a Dataset.*map_batches.*iter_batches"):
        ff.map(len, ff.scan([{"x": 1}]))  # type: ignore[arg-type]


def test_functions_are_not_called_with_batches_that_a_filter_has_emptied(small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)

    def as_text(batch: pd.DataFrame) -> pd.DataFrame:
        assert len(batch)
        return batch.assign(t=[f"{x}" for x in batch["id"]])

    found = ff.scan(people(60)).filter(lambda batch: batch["id"] >= 45).map_batches(as_text)
    assert found.to_arrow(engine="serial").column("t").to_pylist() == [f"{x}" for x in range(45, 60)]
    assert ff.scan(people(60)).filter(lambda batch: batch["id"] > 99).map_batches(as_text).count() == 0


def test_an_index_without_a_name_is_no_column() -> None:
    found = ff.scan(people(10)).map_batches(lambda batch: batch[batch["id"].isin([1, 5])])
    assert found.to_arrow().column_names == ["id", "x", "word"]


def test_a_mask_of_pandas_is_taken_by_its_index() -> None:
    rows = ff.scan([{"k": 1, "t": 5}, {"k": 1, "t": 2}, {"k": 2, "t": 1}])
    found = rows.filter(lambda batch: ~batch.sort_values("t").duplicated("k"))
    assert found.to_arrow().to_pylist() == [{"k": 1, "t": 2}, {"k": 2, "t": 1}]


def test_large_integers_beside_nulls_keep_their_digits() -> None:
    rows = [{"a": 2**60 + 1}, {"a": None}, {"a": -(2**60) - 1}]
    assert ff.scan(rows).map_batches(lambda batch: batch).to_arrow().to_pylist() == rows


# ---- rows that fail --------------------------------------------------------------------------------------------------


def fails_at(*bad: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def check(batch: pd.DataFrame) -> pd.DataFrame:
        if batch["id"].isin(bad).any():
            raise ValueError(f"cannot take {batch['id'].tolist()[:3]}")
        return batch

    return check


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_row_that_fails_is_named_with_file_number_and_content(engine: str, tmp_path: Path, small_pieces: Cut) -> None:
    write_parquet(people(300), tmp_path / "in.parquet")
    small_pieces(40, 1 << 20)
    with pytest.raises(ValueError, match=r"cannot take \[171\]") as caught:
        ff.scan(tmp_path / "in.parquet").map_batches(fails_at(171, 260)).to_arrow(engine=engine, workers=2)
    notes = [note for note in caught.value.__notes__ if note.startswith("fourfold: ")]
    assert notes == [f"fourfold: row 171 of {tmp_path}/in.parquet: {{'id': 171, 'x': 42.75, 'word': 'two\\nlines'}}"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.sets(st.integers(0, 119), max_size=12), batch=st.integers(1, 50), rows=st.integers(5, 60))
def test_good_rows_keep_their_values_and_bad_ones_are_listed(bad: set[int], batch: int, rows: int, small_pieces: Cut) -> None:
    small_pieces(rows, 1 << 20)
    dataset = ff.scan(people(120)).map_batches(fails_at(*bad), batch_size=batch)
    kept = dataset.to_arrow(engine="serial", on_error="skip").column("id").to_pylist() if len(bad) < 120 else []
    assert kept == [row for row in range(120) if row not in bad]


def test_the_row_of_a_csv_file_has_its_number_in_the_file(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(1 << 20, 200)
    write_csv(people(300), tmp_path / "in.csv")
    with pytest.raises(ValueError, match="cannot") as caught:
        ff.scan(tmp_path / "in.csv").map_batches(fails_at(171)).to_arrow(engine="serial")
    assert f"row 171 of {tmp_path}/in.csv" in caught.value.__notes__[-1]


def test_a_batch_that_fails_although_none_of_its_rows_does_is_named_as_a_whole() -> None:
    def few(batch: pd.DataFrame) -> pd.DataFrame:
        if len(batch) > 3:
            raise ValueError("too many")
        return batch

    dataset = ff.scan(people(8)).map_batches(few)
    with pytest.raises(ValueError, match="too many") as caught:
        dataset.to_arrow(engine="serial")
    assert "in rows 0 to 7 of the table: none of them fails alone" in caught.value.__notes__[-1]
    assert dataset.to_arrow(engine="serial", on_error="skip").equals(people(8))


def test_a_batch_that_needs_too_much_memory_is_halved() -> None:
    def hungry(batch: pd.DataFrame) -> pd.DataFrame:
        if len(batch) > 3:
            raise MemoryError
        return batch

    assert ff.scan(people(20)).map_batches(hungry).to_arrow(engine="serial").equals(people(20))


def test_a_batch_is_tried_again_as_often_as_asked() -> None:
    failures = iter([True, True, False])

    def flaky(batch: pd.DataFrame) -> pd.DataFrame:
        if next(failures):
            raise OSError("not now")
        return batch

    assert ff.scan(people(4)).map_batches(flaky).count(engine="serial", retries=2, retry_on=OSError) == 4


def test_more_failures_than_allowed_end_the_run() -> None:
    dataset = ff.scan(people(100)).map_batches(fails_at(1, 2, 3))
    with pytest.raises(TooManyFailures, match="3 of 100 rows failed, more than max_failures=2 allows") as caught:
        dataset.to_arrow(engine="serial", on_error="skip", max_failures=2)
    assert [failure.row for failure in caught.value.failures] == [1, 2, 3]
    assert dataset.to_arrow(engine="serial", on_error="skip", max_failures=3).num_rows == 97
    assert dataset.to_arrow(engine="serial", on_error="skip", max_failures=0.03).num_rows == 97


def kills_at(*bad: int) -> Callable[[pa.Table], pa.Table]:
    """Takes tables of Arrow: many workers come and go, and none of them needs to import pandas."""

    def die(batch: pa.Table) -> pa.Table:
        if set(bad).intersection(batch.column("id").to_pylist()):
            os._exit(7)
        return batch

    return die


@pytest.mark.slow
def test_a_row_that_kills_its_worker_is_found_and_the_others_are_kept(small_pieces: Cut) -> None:
    small_pieces(20, 1 << 20)
    dataset = ff.scan(people(60)).map_batches(kills_at(13, 47), batch_format="arrow")
    options: dict[str, Any] = {"engine": "processes", "workers": 2}
    found = dataset.to_arrow(on_error="skip", **options)
    assert found.column("id").to_pylist() == [row for row in range(60) if row not in (13, 47)]
    with pytest.raises(WorkerLost, match="exited with code 7") as caught:
        dataset.to_arrow(**options)
    assert [note for note in caught.value.__notes__ if note.startswith("fourfold: row 13 of the table: {'id': 13")]
    stream = dataset.iter_batches(on_error="skip", batch_format="arrow", **options)
    assert [row for batch in stream for row in batch.column("id").to_pylist()] == found.column("id").to_pylist()


@pytest.mark.slow
def test_a_row_that_hangs_is_found_and_the_time_of_a_batch_is_its_own(small_pieces: Cut) -> None:
    import time

    small_pieces(100, 1 << 20)

    def hang(batch: pd.DataFrame) -> pd.DataFrame:
        if (batch["id"] == 42).any():
            time.sleep(60)
        time.sleep(0.025)  # fifty of them take longer than one may
        return batch

    dataset = ff.scan(people(100)).map_batches(hang, batch_size=2)
    found = dataset.to_arrow(on_error="skip", timeout=1, workers=2)
    assert found.column("id").to_pylist() == [row for row in range(100) if row != 42]


# ---- results ---------------------------------------------------------------------------------------------------------


def test_head_reads_no_more_than_it_needs() -> None:
    seen = []

    def look(batch: pd.DataFrame) -> pd.DataFrame:
        seen.append(len(batch))
        return batch

    assert ff.scan(people(1000)).map_batches(look).head(3)["id"].tolist() == [0, 1, 2]
    assert seen == [3]
    assert len(ff.scan(people(2)).head(5)) == 2


def test_iter_batches_gives_batches_of_the_wanted_size_and_kind_in_order(small_pieces: Cut) -> None:
    small_pieces(30, 1 << 20)
    batches = [*ff.scan(people(100)).iter_batches(batch_size=20, batch_format="polars", engine="threads")]
    assert all(isinstance(batch, pl.DataFrame) and 0 < len(batch) <= 20 for batch in batches)
    assert pl.concat(batches)["id"].to_list() == [*range(100)]


def test_iter_batches_may_be_left_early() -> None:
    stream: Iterator[Any] = ff.scan(people(100)).iter_batches(batch_size=5)
    assert len(next(stream)) == 5
    stream.close()  # type: ignore[attr-defined]


def test_to_polars() -> None:
    assert ff.scan(people(7)).to_polars().equals(pl.from_arrow(people(7)))


def test_a_function_without_rows_still_says_its_columns() -> None:
    assert ff.scan(people(0)).map_batches(scale).to_arrow().column_names == ["id", "x", "word", "y"]


def counts_on_rows(batch: pd.DataFrame) -> pd.DataFrame:
    return batch.assign(largest=max(batch["id"]))


def test_a_function_that_cannot_take_no_rows_is_named_where_its_columns_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = ff.scan(people(9)).filter(pc.field("id") > 99).map_batches(counts_on_rows)
    assert nothing.to_arrow(engine="serial").column_names == []
    (said,) = [record.getMessage() for record in caplog.records if record.name == "fourfold"]
    assert said.startswith("there are no rows, and so no columns: counts_on_rows was asked for them with a batch of no rows, ")
    assert "raised ValueError: " in said
    assert said.endswith("map_batches(…, schema=…) says the columns without asking")
    caplog.clear()
    nothing.write(tmp_path / "out", engine="serial")
    assert "counts_on_rows" in caplog.text


def test_a_declared_schema_needs_no_rows(caplog: pytest.LogCaptureFixture) -> None:
    found = ff.scan(people(0)).map_batches(counts_on_rows, schema={"largest": "int64"}).to_arrow(engine="serial")
    assert found.schema == pa.schema({"largest": pa.int64()})
    assert not caplog.records


def misspelt(batch: pd.DataFrame) -> pd.DataFrame:
    return batchh  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        (lambda rows: rows.map_batches(scale).select(["yy"]), OptionError),
        (lambda rows: rows.map_batches(scale).filter(pc.field("yy") > 1), OptionError),
        (lambda rows: rows.map_batches(misspelt), NameError),
        (lambda rows: rows.map_batches(scale, schema={"y": "float64"}).map_batches(scale), TypeError),
    ],
)
def test_what_fails_with_rows_too_is_raised_without_them(steps: Callable[[ff.Dataset], ff.Dataset], error: Any) -> None:
    for n_rows in (0, 3):
        with pytest.raises(error):
            steps(ff.scan(people(n_rows))).to_arrow(engine="serial")


def test_a_draw_of_no_rows_keeps_the_columns() -> None:
    for part in ff.scan(people(0)).split(0.5):
        assert part.map_batches(scale).to_arrow(engine="serial").column_names == ["id", "x", "word", "y"]


@pytest.mark.parametrize("by", [None, "word"])
def test_a_split_is_the_same_however_rows_are_cut(by: str | None, tmp_path: Path, small_pieces: Cut) -> None:
    table = people(2000)
    write_parquet(table, tmp_path / "in.parquet")
    write_csv(table, tmp_path / "in.csv")
    seen = []
    for source, cut in ((table, 1 << 15), (tmp_path / "in.parquet", 77), (tmp_path / "in.csv", 333)):
        small_pieces(cut, cut * 20)
        train, test = ff.scan(source).split(test=0.25, seed=3, by=by)
        ids = [part.map_batches(lambda b: b[["id"]]).to_arrow(engine="serial").column(0).to_pylist() for part in (train, test)]
        assert sorted(ids[0] + ids[1]) == [*range(2000)]
        seen.append(ids)
    assert seen[0] == seen[1] == seen[2]
    if by is None:
        assert 400 < len(seen[0][1]) < 600


def test_rows_of_one_value_stay_together_and_another_seed_draws_others() -> None:
    rows = ff.scan([{"key": row % 50} for row in range(1000)])
    train, test = (part.to_arrow().column("key").to_pylist() for part in rows.split(0.3, seed=1, by="key"))
    assert not set(train) & set(test)
    assert rows.sample(0.3, seed=1).to_arrow() != rows.sample(0.3, seed=2).to_arrow()
    assert rows.sample(0).count() == 0
    assert rows.sample(1).count() == 1000


def test_what_one_draw_has_drawn_tells_nothing_of_the_next() -> None:
    rows = ff.scan(pa.table({"a": range(20_000)}))
    train, _ = rows.split(0.2)
    assert abs(train.sample(0.1).count() - 1600) < 200
    assert abs(train.split(0.25)[1].count() - 4000) < 300
    assert abs(rows.sample(0.5).sample(0.5).count() - 5000) < 300


def test_shares_of_rows_are_as_likely_as_they_say() -> None:
    n_rows = 200_000
    drawn = ff.scan(pa.table({"a": np.zeros(n_rows)})).sample(0.1, seed=7).count()
    assert abs(drawn - 0.1 * n_rows) < 5 * (n_rows * 0.09) ** 0.5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda ds: ds.select(["idd"]), OptionError, r"no column 'idd' \(did you mean 'id'\?\)"),
        (lambda ds: ds.select([]), OptionError, "keeps no column"),
        (lambda ds: ds.map_batches(3), OptionTypeError, "must be a function"),
        (lambda ds: ds.map_batches(len, init=(1,)), OptionError, "init="),
        (lambda ds: ds.map_batches(len, batch_size=0), OptionError, "at least 1"),
        (lambda ds: ds.map_batches(len, batch_format="panda"), OptionError, "Choices: pandas"),
        (lambda ds: ds.map_batches(len, schema={"a": "int99"}), OptionTypeError, "is no type"),
        (lambda ds: ds.split(2), OptionError, "from 0 to 1"),
        (lambda ds: ds.split(0.1, by="none"), OptionError, "no column 'none'"),
        (lambda ds: ds.map_batches(scale).split(0.1), OptionError, "after map_batches"),
        (lambda ds: ds.count(init=(1,)), OptionError, "not for datasets"),
        (lambda ds: ds.to_arrow(cost=len), OptionError, "not for datasets"),
        (lambda ds: ds.to_arrow(idempotent=False), OptionError, "not for datasets"),
        (lambda ds: ds.to_arrow(max_failures=1), OptionError, "ends at the first one"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(call: Callable[[ff.Dataset], Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        call(ff.scan(people(3)))


def test_a_filter_is_an_expression_or_a_function_of_a_batch_and_null_is_no_true() -> None:
    rows = ff.scan([{"a": 1}, {"a": None}, {"a": 3}])
    assert rows.filter(pc.field("a") > 1).to_arrow().to_pylist() == [{"a": 3}]
    assert rows.filter(lambda b: b["a"] > 1, batch_format="polars").to_arrow().to_pylist() == [{"a": 3}]
    with pytest.raises(ValueError, match="gave 1 booleans for a batch of 3 rows"):
        rows.filter(lambda b: [True]).to_arrow()
    with pytest.raises(TypeError, match="not one boolean for each row"):
        rows.filter(lambda b: b["a"]).to_arrow()
