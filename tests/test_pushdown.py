"""What nobody wants is not read: columns, row groups and files. What is not read is damaged here, so that reading it fails."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import WRITERS, people, small_pieces, write_parquet

import fourfold as ff
from fourfold.errors import OptionError, OptionTypeError, UnreadableInput

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]

X, ID = pc.field("x"), pc.field("id")


def damage(path: Path, group: int, column: str) -> None:
    """Make a column of a row group unreadable."""
    metadata = pq.read_metadata(path)
    chunk = metadata.row_group(group).column(metadata.schema.names.index(column))
    begin = min(at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at is not None)
    data = bytearray(path.read_bytes())
    data[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """`people(400)` in four row groups, of which only the rows 200 to 299 can be read, and of these not the words."""
    path = tmp_path / "in.parquet"
    write_parquet(people(400), path)
    for group in range(4):
        damage(path, group, "word")
        if group != 2:
            damage(path, group, "id")
            damage(path, group, "x")
    return path


WANTED = [("id", ">=", 210), ("id", "<", 290)]
EXPRESSION = (ID >= 210) & (ID < 290)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: ff.scan(path, columns=["id"], filter=EXPRESSION),
        lambda path: ff.scan(path, columns=["id"], filter=WANTED),
        lambda path: ff.scan(path, columns=["id"], filter=[WANTED, [("id", "=", 250)]]),
        lambda path: ff.scan(path).select(["id", "x"]).filter(EXPRESSION).select(["id"]),
        lambda path: ff.scan(path).filter(ID >= 210).filter([("id", "<", 290)]).select(["id"]),
        lambda path: ff.scan(path).filter(EXPRESSION).select(["x", "id"]).select(["id"]),
        lambda path: ff.scan(path).filter(EXPRESSION).sample(1.0).select(["id"]),
        lambda path: ff.scan(path).sample(1.0, by="x").filter(EXPRESSION).select(["id"]),
        lambda path: ff.scan(path).filter(EXPRESSION).select(["id"]).map_batches(lambda batch: batch),
        lambda path: ff.scan(path.parent, columns=["id"], filter=EXPRESSION),
        lambda path: ff.scan(f"file://{path}", columns=["id"], filter=EXPRESSION),
    ],
)
def test_columns_that_nobody_looks_at_and_row_groups_that_cannot_match_are_not_read(
    read: Callable[[Path], ff.Dataset], damaged: Path
) -> None:
    assert read(damaged).to_arrow(engine="serial").to_pydict() == {"id": list(range(210, 290))}


def test_the_engine_makes_no_difference_to_what_is_read(damaged: Path, small_pieces: Cut) -> None:
    small_pieces(30, 1 << 20)
    found = ff.scan(damaged, columns=["id"], filter=WANTED)
    assert found.to_arrow(engine="processes", workers=2).column(0).to_pylist() == list(range(210, 290))
    assert found.count(engine="threads", workers=2) == 80
    assert len(found.head(100)) == 80


def test_count_reads_only_the_columns_of_conditions(damaged: Path) -> None:
    assert ff.scan(damaged).filter(WANTED).count(engine="serial") == 80
    assert ff.scan(damaged).select(["word"]).count() == 400


@pytest.mark.parametrize(
    "read",
    [
        lambda path: ff.scan(path),
        lambda path: ff.scan(path, columns=["word"], filter=EXPRESSION),
        lambda path: ff.scan(path).filter(EXPRESSION).map_batches(lambda batch: batch).select(["id"]),
        lambda path: ff.scan(path, columns=["id", "x"]).map_batches(lambda batch: batch).filter(EXPRESSION),
        lambda path: ff.scan(path, columns=["id", "x"]).filter(lambda batch: batch["id"] >= 0).filter(EXPRESSION),
        lambda path: ff.scan(path, columns=["id", "x"]).filter(pc.field(0) >= 210).select(["id"]),
    ],
)
def test_what_a_function_or_somebody_else_may_look_at_is_read(read: Callable[[Path], ff.Dataset], damaged: Path) -> None:
    with pytest.raises(UnreadableInput, match=r"in\.parquet: not a readable parquet file"):
        read(damaged).to_arrow(engine="serial")


# ---- the same rows as without ----------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 2, 2.5, 3])
ATOMS = st.one_of(
    st.tuples(
        st.sampled_from([operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]),
        st.sampled_from(["f", "i", "w"]),
        NUMBERS,
    ).map(lambda atom: atom[0](pc.field(atom[1]), atom[2])),
    st.sampled_from(
        [
            pc.field("f").is_nan(),
            pc.field("f").is_null(),
            pc.field("i").is_null(),
            pc.field("s").is_null(),
            pc.field("s") == "b",
            pc.field("s") != "b",
            pc.field("d") == "b",
            pc.field("i").isin([1, 3]),
            pc.field("f").isin([1.0, float("nan")]),
            (pc.field("f") < 2) == (pc.field("i") < 2),
            pc.field("n", "q") > 1,
            pc.field("g") == 1,
            pc.field("late").is_null(),
            pc.field("late") > 1,
        ]
    ),
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: two[0] & two[1]),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=4,
)
ROW = st.tuples(
    st.sampled_from([None, float("nan"), 1.0, 2.0, 3.0]),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([None, "a", "b", "c"]),
)


def table_of(rows: list[Any], w: pa.DataType, late: bool) -> pa.Table:
    f, i, s = ([row[at] for row in rows] for at in range(3))
    columns = {
        "f": pa.array(f, pa.float64()),
        "i": pa.array(i, pa.int64()),
        "s": pa.array(s, pa.string()),
        "d": pa.array(s, pa.string()).dictionary_encode(),
        "n": pa.array([{"q": each} for each in i], pa.struct([("q", pa.int64())])),
        "w": pa.array(i, w),
        **({"late": pa.array(i, pa.int64())} if late else {}),
    }
    return pa.table(columns)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=st.lists(ROW, min_size=1, max_size=8), other=st.lists(ROW, min_size=1, max_size=8), condition=CONDITIONS)
def test_a_condition_keeps_the_rows_that_it_is_true_of_whatever_files_say_of_their_row_groups(
    one: list[Any], other: list[Any], condition: pc.Expression, tmp_path: Path, small_pieces: Cut
) -> None:
    small_pieces(2, 1 << 20)
    for at, (rows, w) in enumerate(((one, pa.int64()), (other, pa.float64()))):
        (tmp_path / f"g={at}").mkdir(exist_ok=True)
        write_parquet(table_of(rows, w, late=at == 1), tmp_path / f"g={at}" / "in.parquet", group_rows=2)
    whole = ff.scan(tmp_path).to_arrow(engine="serial").filter(condition)
    found = ff.scan(tmp_path, filter=condition).to_arrow(engine="serial")
    others = [name for name in whole.column_names if name not in found.column_names]
    assert all(whole.column(name).null_count == whole.num_rows for name in others)  # of a file that was not opened
    same = whole.select(found.column_names).cast(found.schema)
    assert str(found.to_pydict()) == str(same.to_pydict())  # NaN is not equal to itself


def test_nan_is_not_taken_for_a_number_between_the_least_and_the_greatest(tmp_path: Path) -> None:
    table = pa.table({"x": [1.0, np.nan, 2.0, 7.0, 8.0, 9.0]})
    write_parquet(table, tmp_path / "in.parquet", group_rows=3)
    for condition in (~(X < 5), X != 1, X.is_nan(), (X < 5) == False, X.isin([np.nan])):  # noqa: E712 (an expression)
        assert ff.scan(tmp_path / "in.parquet", filter=condition).count() == table.filter(condition).num_rows


def test_a_row_keeps_its_number_whatever_is_left_out_before_it(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(40, 1 << 20)
    write_parquet(people(1000), tmp_path / "in.parquet")
    train, test = ff.scan(tmp_path / "in.parquet").filter((ID >= 500) & (ID < 800)).split(0.3, seed=1)
    _, drawn = ff.scan(people(1000)).split(0.3, seed=1)
    expected = [row for row in drawn.to_arrow().column("id").to_pylist() if 500 <= row < 800]
    assert test.to_arrow(engine="serial").column("id").to_pylist() == expected
    assert train.count(engine="serial") == 300 - len(expected)
    assert min(piece.first for piece in test._plan.pieces()) == 500


def test_a_row_that_fails_has_its_number_in_the_file_whatever_is_left_out_before_it(tmp_path: Path) -> None:
    def check(batch: Any) -> Any:
        if (batch["id"] == 350).any():
            raise ValueError("no")
        return batch

    write_parquet(people(400), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match="no") as caught:
        ff.scan(tmp_path / "in.parquet", filter=ID >= 320).map_batches(check).to_arrow(engine="serial")
    assert "row 350 of" in caught.value.__notes__[-1]


# ---- folders ---------------------------------------------------------------------------------------------------------


def partitioned(folder: Path, format: str) -> None:
    """Two years; of 2013 no file can be read."""
    for year in (2013, 2014):
        (folder / f"year={year}").mkdir(parents=True)
        WRITERS[format](people(5), folder / f"year={year}" / f"a.{format}")
    (folder / "year=2013" / f"a.{format}").write_bytes(b'"\xff')


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize(
    "condition",
    [
        pc.field("year") > 2013,
        [("year", "=", 2014)],
        [("year", "not in", [2013])],
        (pc.field("year") == 2014) & (X >= 0) & (pc.field("word") != "?"),
        ((pc.field("year") == 2014) & (ID >= 0)) | ((pc.field("year") == 2014) & X.is_null()),
    ],
)
def test_files_of_other_folders_are_not_opened(format: str, condition: Any, tmp_path: Path) -> None:
    partitioned(tmp_path, format)
    found = ff.scan(tmp_path, filter=condition).to_arrow(engine="serial")
    assert set(found.column("year").to_pylist()) == {2014}
    with pytest.raises(UnreadableInput, match="year=2013"):
        ff.scan(tmp_path).to_arrow(engine="serial")


@pytest.mark.parametrize("format", WRITERS)
def test_files_of_other_folders_are_not_read_where_the_condition_comes_later(format: str, tmp_path: Path) -> None:
    for year in (2013, 2014):
        (tmp_path / f"year={year}").mkdir()
        WRITERS[format](people(5), tmp_path / f"year={year}" / f"a.{format}")
    later = ff.scan(tmp_path).filter(pc.field("year") == 2014).select(["id"])
    (tmp_path / "year=2013" / f"a.{format}").unlink()
    assert later.to_arrow(engine="serial").column("id").to_pylist() == list(range(5))


def test_no_folder_that_matches_gives_no_rows_of_the_columns_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "year=2013").mkdir()
    write_parquet(people(5), tmp_path / "year=2013" / "a.parquet")
    found = ff.scan(tmp_path, filter=[("year", ">", 2013)])
    assert found.columns == ["id", "x", "word", "year"]
    assert found.count() == found.to_arrow().num_rows == 0


@pytest.mark.parametrize(
    "options",
    [{"columns": ["id", "late"]}, {"columns": ["id"], "filter": pc.field("late").is_null() & (pc.field("year") == 2013)}],
)
def test_a_column_that_only_files_of_other_folders_have_is_found_there(options: dict[str, Any], tmp_path: Path) -> None:
    for year, more in ((2013, {}), (2014, {"late": [1, 2]})):
        (tmp_path / f"year={year}").mkdir()
        write_parquet(pa.table({"id": [1, 2], **more}), tmp_path / f"year={year}" / "a.parquet")
    found = ff.scan(tmp_path, **{"filter": pc.field("year") == 2013, **options}).to_arrow()
    assert found.to_pydict() == {"id": [1, 2], "late": [None, None]} or found.to_pydict() == {"id": [1, 2]}
    assert found.column_names == options["columns"]


def test_a_condition_on_a_column_that_files_have_themselves_is_not_taken_for_one_on_folders(tmp_path: Path) -> None:
    for x in (1, 2):
        (tmp_path / f"x={x}").mkdir()
        write_parquet(pa.table({"x": [7 + x]}), tmp_path / f"x={x}" / "a.parquet")
    assert ff.scan(tmp_path, filter=[("x", "=", 8)]).to_arrow().to_pydict() == {"x": [8]}
    assert ff.scan(tmp_path, filter=[("x", ">", 1)]).count() == 2


# ---- wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"columns": ["wrd"]}, OptionError, r"columns=: there is no column 'wrd' \(did you mean 'word'\?\)"),
        (
            {"filter": pc.field("idd") > 3},
            OptionError,
            r"filter \(idd > 3\): there is no column 'idd' \(did you mean 'id'\?\)",
        ),
        ({"filter": [("idd", ">", 3)]}, OptionError, r"no column 'idd' \(did you mean 'id'\?\)"),
        ({"filter": [("word", ">", 3)]}, OptionError, r"filter \(word > 3\): .*\(string, .*Columns: word: string"),
        ({"filter": pc.add(ID, 1)}, OptionError, "gives int64, and not a boolean for each row"),
        ({"filter": [("id", "~", 3)]}, OptionTypeError, "must be a list of conditions"),
        ({"filter": [("id", "=")]}, OptionTypeError, "must be a list of conditions"),
        ({"filter": []}, OptionTypeError, "must be a list of conditions"),
        ({"filter": ("id", "=", 3)}, OptionTypeError, r"a list of conditions such as \[\('x', '>', 3\)\]"),
    ],
)
def test_a_wrong_column_or_condition_is_one_error_before_anything_is_read(
    options: dict[str, Any], error: type[Exception], words: str, damaged: Path
) -> None:
    with pytest.raises(error, match=words):
        ff.scan(damaged, **options)


def test_a_wrong_condition_behind_a_function_is_the_same_error_when_the_columns_are_known() -> None:
    found = ff.scan(people(3)).map_batches(lambda batch: batch).filter(pc.field("idd") > 3)
    with pytest.raises(OptionError, match=r"there is no column 'idd' \(did you mean 'id'\?\)"):
        found.to_arrow(engine="serial")
