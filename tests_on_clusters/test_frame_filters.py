"""Filters on frames that live in a cluster keep the rows that they keep of the same table here, whatever the columns hold."""

import functools
import operator
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from clusters import Cluster

import fourfold as ff
from fourfold.data.predicates import expression_of
from fourfold.errors import OptionError

N_ROWS = 60
DAY, NOON = date(2024, 1, 1), datetime(2024, 1, 1, 12, 0, 0, 250)


def _with_nulls(every: int, value: Callable[[int], Any]) -> list[Any]:
    return [None if row % every == 3 else value(row) for row in range(N_ROWS)]


TABLE = pa.table(
    {
        "id": pa.array(range(N_ROWS), pa.int64()),
        "n": pa.array(_with_nulls(7, lambda row: row % 5 - 2), pa.int32()),
        "large": pa.array(_with_nulls(8, lambda row: (1 << 60) + row), pa.int64()),
        "x": pa.array(_with_nulls(11, lambda row: float("nan") if row % 11 == 5 else row / 4), pa.float64()),
        "word": pa.array(_with_nulls(6, lambda row: ["a", "b", "", "ü", "it's", "two\nlines"][row % 6]), pa.string()),
        "flag": pa.array(_with_nulls(5, lambda row: row % 2 == 0), pa.bool_()),
        "day": pa.array(_with_nulls(9, lambda row: DAY + timedelta(days=row)), pa.date32()),
        "at": pa.array(
            _with_nulls(10, lambda row: (NOON + timedelta(hours=row)).replace(tzinfo=UTC)), pa.timestamp("us", "UTC")
        ),
        "seen": pa.array(_with_nulls(9, lambda row: NOON + timedelta(hours=row)), pa.timestamp("us")),
        "price": pa.array(_with_nulls(8, lambda row: Decimal(row) / 4), pa.decimal128(9, 2)),
    }
)

LATER = NOON + timedelta(hours=20)

CONDITIONS: dict[str, Any] = {
    "numbers": [("n", ">=", -1), ("n", "!=", 1), ("n", "not in", [2, 7])],
    "large numbers": [("large", ">", (1 << 60) + 30), ("large", "in", [(1 << 60) + row for row in range(20, 40)])],
    "fractions": [[("x", "<", 1.5)], [("x", "=", 4.0)], [("x", ">", 12)]],
    "no NaN is unequal to nothing": [("x", "!=", 4.0)],
    "texts": [[("word", "in", ["a", "ü", "two\nlines"]), ("word", "<", "z")], [("word", "=", "")]],
    "other texts": [("word", "!=", "a"), ("word", "not in", ["it's"])],
    "booleans": [("flag", "=", True)],
    "dates": [[("day", ">", date(2024, 2, 10))], [("day", "in", [DAY, date(2024, 1, 3)])]],
    "times in a zone": [("at", "<=", LATER.replace(tzinfo=UTC))],
    "one of some times": [("at", "in", [LATER.replace(tzinfo=UTC), NOON.replace(tzinfo=UTC)])],
    "times of no zone": [[("seen", ">", LATER)], [("seen", "in", [NOON])]],
    "decimals": [("price", ">=", Decimal("3.50")), ("price", "<", Decimal(9))],
    "nulls": pc.field("word").is_null() | pc.field("day").is_null(),
    "no nulls": pc.field("n").is_valid() & ~pc.field("flag"),
    "two columns": pc.field("x") > pc.field("n") * 2 + 5,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The table as Parquet in three files, as frames mostly come."""
    folder = tmp_path_factory.mktemp("table")
    for part in range(3):
        pq.write_table(TABLE.slice(part * 20, 20), folder / f"{part}.parquet")
    return str(folder)


def native(cluster: Cluster, files: str) -> Any:
    engine = cluster.engine()
    engine.open()
    if cluster.kind == "dask":
        import dask.dataframe as dd

        return dd.read_parquet(files, dtype_backend="pyarrow")
    if cluster.kind == "ray":
        import ray

        return ray.data.read_parquet(files)
    return engine.connection.spark.read.parquet(files)


def brought(cluster: Cluster, frame: Any) -> pa.Table:
    """All rows of a frame of the cluster, by its own means, in the order of ids."""
    if cluster.kind == "dask":
        engine = cluster.engine()
        engine.open()
        with engine.connection.client.as_current():
            found = pa.Table.from_pandas(frame.compute(), preserve_index=False)
    elif cluster.kind == "ray":
        import ray

        tables = ray.get(frame.to_arrow_refs())
        found = pa.concat_tables([table for table in tables if table.num_rows], promote_options="permissive")
    else:
        found = frame.toArrow()
    return found.sort_by("id")


@pytest.mark.slow
def test_a_filter_keeps_there_what_it_keeps_here(cluster: Cluster, tmp_path: Path) -> None:
    """One job for all conditions: each is for rows of its own, which are those of the table with other ids."""
    parts, conditions, expected = [], [], {}
    for number, (name, condition) in enumerate(CONDITIONS.items()):
        first, ids = number * N_ROWS, pc.field("id")
        kept = ff.scan(TABLE).filter(condition).to_arrow()["id"].to_pylist()
        assert 0 < len(kept) < N_ROWS
        expected[name] = [first + row for row in kept]
        parts.append(TABLE.set_column(0, "id", pc.add(TABLE["id"], first)))
        conditions.append((ids >= first) & (ids < first + N_ROWS) & expression_of(condition))
    pq.write_table(pa.concat_tables(parts), tmp_path / "rows.parquet", row_group_size=300)
    frame = ff.scan(native(cluster, str(tmp_path)), filter=functools.reduce(operator.or_, conditions), columns=["id"])
    assert frame.columns == ["id"]
    found = brought(cluster, frame.native)["id"].to_pylist()
    assert {name: [row for row in found if row // N_ROWS == at] for at, name in enumerate(CONDITIONS)} == expected


@pytest.mark.slow
def test_a_function_of_a_batch_keeps_there_what_it_keeps_here(cluster: Cluster, files: str) -> None:
    def condition(batch: pd.DataFrame) -> Any:
        return batch["x"].gt(3.0) & batch["word"].notna()

    frame = ff.scan(native(cluster, files)).filter(condition)
    expected = ff.scan(TABLE).filter(condition).to_arrow()["id"].to_pylist()
    assert brought(cluster, frame.native)["id"].to_pylist() == expected


@pytest.mark.slow
def test_values_of_all_types_come_through_a_filter_as_they_were(cluster: Cluster, files: str) -> None:
    frame = ff.scan(native(cluster, files)).filter([("id", ">=", 1)])
    found = brought(cluster, frame.native)
    for name in TABLE.column_names:
        values = [repr(value) for value in TABLE[name].to_pylist()[1:]]
        assert [repr(value) for value in found[name].cast(TABLE.schema.field(name).type).to_pylist()] == values, name


@pytest.mark.slow
def test_a_filter_that_leaves_no_row_leaves_the_columns(cluster: Cluster, files: str) -> None:
    frame = ff.scan(native(cluster, files)).filter([("n", ">", 100)]).select(["word", "id"])
    assert frame.columns == ["word", "id"]
    assert len(frame.native.to_pandas() if cluster.kind == "ray" else _rows(cluster, frame.native)) == 0


def _rows(cluster: Cluster, frame: Any) -> Any:
    return frame.compute() if cluster.kind == "dask" else frame.collect()


def test_a_condition_that_cannot_be_is_told_before_a_job_runs(cluster: Cluster, files: str) -> None:
    frame = ff.scan(native(cluster, files))
    for condition, words in (
        ([("wort", "=", "a")], r"there is no column 'wort' \(did you mean 'word'\?\)"),
        ([("day", ">", "yesterday")], "filter .*day"),
        ([("at", "in", [NOON])], "Cannot compare timestamp with timezone to timestamp without timezone"),
        ([("price", ">", 3)], r"Compare decimals with decimal\.Decimal\. Columns: .*price: decimal"),
    ):
        with pytest.raises(OptionError, match=words):
            frame.filter(condition)


@pytest.mark.slow
def test_columns_that_nobody_looks_at_are_not_read_there(cluster: Cluster, files: str) -> None:
    frame = ff.scan(native(cluster, files)).filter([("n", ">", 0)]).split(0.5, by="word")[0].select(["id", "x"])
    assert sorted(frame._before.names) == ["id", "n", "word", "x"]
    assert ff.scan(native(cluster, files)).select(["id", "x"]).select(["x"])._steps == ()
    expected = ff.scan(TABLE).filter([("n", ">", 0)]).split(0.5, by="word")[0].to_arrow()
    found = brought(cluster, frame.native)
    assert found.column_names == ["id", "x"]
    assert found["id"].to_pylist() == expected["id"].to_pylist()


@pytest.mark.slow
def test_a_frame_of_pandas_keeps_its_dtypes_on_dask(cluster: Cluster) -> None:
    if cluster.kind != "dask":
        pytest.skip("not applicable: it is about Dask")
    import dask.dataframe as dd

    before = TABLE.to_pandas()
    before["whole"] = before["large"].astype("Int64").where(before.index % 3 > 0)
    before["kind"] = pd.Categorical(before["word"].fillna("none"), ordered=True)
    before = before.drop(columns=["large"]).set_index(pd.Index(range(100, 100 + N_ROWS)))
    frame = ff.scan(dd.from_pandas(before, npartitions=3)).filter([("id", "!=", 5)]).native
    assert not frame.known_divisions
    engine = cluster.engine()
    engine.open()
    with engine.connection.client.as_current():
        found = frame.compute()
    expected = before[before["id"] != 5].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.reset_index(drop=True), dd.from_pandas(expected, npartitions=1).compute())
    assert found.dtypes.to_dict() == frame.dtypes.to_dict()


@pytest.mark.slow
def test_blocks_of_pandas_with_objects_are_filtered_on_ray(cluster: Cluster) -> None:
    if cluster.kind != "ray":
        pytest.skip("not applicable: it is about Ray")
    import ray

    rows = TABLE.select(["id", "day", "price", "word"]).to_pandas()
    cluster.engine().open()
    frame = ff.scan(ray.data.from_pandas(rows), filter=[("day", ">", DAY), ("price", "<", Decimal(9))])
    expected = ff.scan(rows).filter([("day", ">", DAY), ("price", "<", Decimal(9))]).to_arrow()
    assert brought(cluster, frame.native)["id"].to_pylist() == expected["id"].to_pylist()


@pytest.mark.slow
def test_sessions_in_other_zones_and_types_that_spark_has_not(cluster: Cluster, files: str) -> None:
    if cluster.kind != "spark":
        pytest.skip("not applicable: it is about Spark")

    def nested(batch: pa.Table) -> pa.Table:
        ids = batch["id"].to_pylist()
        structs = pa.array([{"u": row, "f": [row]} for row in ids], pa.struct({"u": pa.uint64(), "f": pa.list_(pa.uint8())}))
        maps = pa.array([[("u", row)] for row in ids], pa.map_(pa.string(), pa.uint32()))
        return batch.append_column("struct", structs).append_column("map", maps)

    frame = native(cluster, files)
    spark = frame.sparkSession
    zone = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", "Asia/Kolkata")
    try:
        late = ff.scan(frame.withColumnRenamed("n", "a.n")).filter([("at", ">", LATER.replace(tzinfo=UTC)), ("a.n", ">", 0)])
        counted = late.select(["id", "at", "a.n"]).map_batches(lambda batch: batch.assign(small=batch["id"].astype("uint8")))
        found = brought(cluster, counted.map_batches(nested, batch_format="arrow").native)
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)
    expected = ff.scan(TABLE).filter([("at", ">", LATER.replace(tzinfo=UTC)), ("n", ">", 0)]).to_arrow()
    assert found["small"].to_pylist() == found["id"].to_pylist() == expected["id"].to_pylist()
    assert found["struct"].to_pylist() == [{"u": row, "f": [row]} for row in found["id"].to_pylist()]
    assert found["map"].to_pylist() == [[("u", row)] for row in found["id"].to_pylist()]
    assert found["at"].cast(pa.timestamp("us", "UTC")).equals(expected["at"])
