"""Types of columns: the same for any order of files, any engine and any cut, and what does not go together is named."""

import itertools
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import small_pieces, write_parquet

import fourfold as ff
from fourfold.errors import OptionError, UnreadableInput, UnwritableValue

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]

ENGINES = ["serial", "threads", "processes"]


def column(type_: pa.DataType | None, *values: Any) -> pa.Table:
    return pa.table({"a": pa.array(values, type_)})


def category(*values: str) -> pa.Table:
    return pa.table({"a": pa.array(values).dictionary_encode()})


def written(folder: Path, *tables: pa.Table) -> Path:
    for number, table in enumerate(tables):
        write_parquet(table, folder / f"{number}.parquet", group_rows=2)
    return folder


WIDENED = {
    "integers beside fractions": (column(pa.int64(), 1, None, 3), column(pa.float64(), 0.5), pa.float64()),
    "nulls beside integers": (column(pa.null(), None, None, None), column(pa.int64(), 7), pa.int64()),
    "nulls beside texts": (column(pa.null(), None), column(pa.string(), "x"), pa.string()),
    "narrow integers beside wide ones": (column(pa.int8(), 1), column(pa.int64(), 1 << 40), pa.int64()),
    "integers with and without sign": (column(pa.int32(), -1), column(pa.uint32(), 1 << 31), pa.int64()),
    "narrow fractions beside integers": (column(pa.float32(), 0.5), column(pa.int64(), 1 << 25), pa.float64()),
    "decimals": (column(pa.decimal128(5, 2), 1), column(pa.decimal128(20, 10), 2), pa.decimal128(20, 10)),
    "texts of two widths": (column(pa.string(), "x"), column(pa.large_string(), "y"), pa.large_string()),
    "texts and views of them": (column(pa.string(), "x"), column(pa.string_view(), "y"), pa.string()),
    "categories": (category("a", "b", "a"), category("c"), pa.dictionary(pa.int32(), pa.string())),
    "categories beside texts": (category("a", "b"), column(pa.string(), "c"), pa.string()),
    "lists": (column(None, [1], None), column(None, [0.5]), pa.list_(pa.float64())),
    "empty lists": (column(None, []), column(None, ["x"]), pa.list_(pa.string())),
    "records of more fields": (
        column(None, {"p": 1}),
        column(None, {"p": 0.5, "q": "x"}),
        pa.struct([("p", pa.float64()), ("q", pa.string())]),
    ),
    "moments of two units": (column(pa.timestamp("us"), 5), column(pa.timestamp("ns"), 5), pa.timestamp("ns")),
}


@pytest.mark.parametrize("name", WIDENED)
def test_a_narrower_type_gives_way_in_either_order(name: str, tmp_path: Path) -> None:
    one, other, type_ = WIDENED[name]
    for number, tables in enumerate(((one, other), (other, one))):
        (folder := tmp_path / str(number)).mkdir()
        found = ff.scan(written(folder, *tables))
        whole = found.to_arrow(engine="serial")
        assert str(found.schema.field("a").type).replace("element", "item") == str(type_)
        assert whole.schema == found.schema
        values = [value for table in tables for value in table.column("a").cast(type_, safe=False).to_pylist()]
        if "records" not in name:
            assert whole.column("a").to_pylist() == values
        assert len(whole) == len(values)


def test_records_get_the_fields_that_they_lack_as_nulls(tmp_path: Path) -> None:
    one, other, _ = WIDENED["records of more fields"]
    found = ff.scan(written(tmp_path, one, other)).to_arrow(engine="serial")
    assert found.to_pylist() == [{"a": {"p": 1.0, "q": None}}, {"a": {"p": 0.5, "q": "x"}}]


@pytest.mark.parametrize("engine", ENGINES)
def test_types_are_the_same_on_every_engine_and_for_every_cut(engine: str, tmp_path: Path, small_pieces: Cut) -> None:
    tables = [
        pa.table({"a": pa.nulls(5), "b": pa.array(["x"] * 5).dictionary_encode()}),
        pa.table({"a": range(5), "b": pa.array(["y"] * 5).dictionary_encode(), "c": [True] * 5}),
        pa.table({"b": pa.array(["z"] * 5, pa.large_string()), "a": [0.5] * 5}),
    ]
    found = ff.scan(written(tmp_path, *tables))
    for rows in (3, 100):
        small_pieces(rows, 1 << 20)
        whole = found.to_arrow(engine=engine, workers=2)
        assert whole.schema == found.schema == pa.schema({"a": pa.float64(), "b": pa.large_string(), "c": pa.bool_()})
        assert whole.column("a").to_pylist() == [None] * 5 + [0.0, 1.0, 2.0, 3.0, 4.0] + [0.5] * 5
        assert whole.column("b").to_pylist() == ["x"] * 5 + ["y"] * 5 + ["z"] * 5
        assert whole.column("c").to_pylist() == [None] * 5 + [True] * 5 + [None] * 5


def test_views_of_texts_are_texts_that_can_be_filtered(tmp_path: Path) -> None:
    found = ff.scan(written(tmp_path, column(pa.string_view(), "x", "y", "z")), filter=[("a", "in", ["x", "z"])])
    assert found.to_arrow(engine="serial").equals(column(pa.string(), "x", "z"))


def test_the_order_of_files_decides_nothing(tmp_path: Path) -> None:
    tables = [column(pa.int8(), 1), column(pa.null(), None), column(pa.float32(), 0.5), column(pa.uint16(), 3)]
    types = set()
    for number, order in enumerate(itertools.permutations(tables)):
        (folder := tmp_path / str(number)).mkdir()
        types.add(ff.scan(written(folder, *order)).schema.field("a").type)
    assert len(types) == 1


DECIMAL = pa.decimal128(5, 2)
APART = [
    (column(pa.int64(), 1), column(pa.string(), "x")),
    (column(pa.bool_(), True), column(pa.int64(), 1)),
    (column(pa.string(), "x"), column(pa.binary(), b"x")),
    (column(pa.timestamp("us"), 1), column(pa.timestamp("us", "UTC"), 1)),
    (column(DECIMAL, 1), column(pa.float64(), 0.5)),
    (column(pa.float64(), 0.5), column(DECIMAL, 1)),
    (column(pa.list_(DECIMAL), [1]), column(pa.list_(pa.float64()), [0.5])),
    (column(pa.struct({"p": DECIMAL}), {"p": 1}), column(pa.struct({"p": pa.float32(), "q": pa.int8()}), {"p": 0.5})),
    (column(pa.map_(pa.string(), pa.list_(DECIMAL)), {}), column(pa.map_(pa.string(), pa.list_(pa.float64())), {})),
]


@pytest.mark.parametrize(("one", "other"), APART)
def test_types_that_do_not_go_together_are_one_error_with_both_files_and_the_column(
    one: pa.Table, other: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(OptionError) as caught:
        ff.scan(written(tmp_path, one, one, other))
    types = [pq.read_schema(tmp_path / f"{number}.parquet").field("a").type for number in (0, 2)]
    assert str(caught.value) == (
        f"column 'a' is {types[1]} in {tmp_path}/2.parquet, and {types[0]} in {tmp_path}/0.parquet: declare its type, "
        "such as schema={'a': 'string'}"
    )


def test_decimals_in_one_batch_and_floats_in_another_are_an_error_until_their_type_is_declared(small_pieces: Cut) -> None:
    small_pieces(2, 1 << 20)

    def alternate(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"a": Decimal("0.1") if batch[0]["a"] < 2 else 0.5} for _ in batch]

    rows = ff.scan(column(pa.int64(), *range(4)))
    with pytest.raises(TypeError, match=r"'a' is double here and decimal128\(1, 1\) .*declare its type with schema="):
        rows.map_batches(alternate, batch_format="pylist").to_arrow(engine="serial")
    declared = rows.map_batches(alternate, batch_format="pylist", schema={"a": "float64"})
    assert declared.to_arrow(engine="serial").column("a").to_pylist() == [0.1, 0.1, 0.5, 0.5]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_value_that_the_wider_type_cannot_hold_is_an_error_with_file_and_column(engine: str, tmp_path: Path) -> None:
    found = ff.scan(written(tmp_path, column(pa.float64(), 0.5), column(pa.int64(), 2**53 + 1)))
    with pytest.raises(UnreadableInput, match=r"1\.parquet: column 'a' is int64 and does not fit double: Integer value 9007"):
        found.to_arrow(engine=engine, workers=1)


def test_a_column_that_a_file_has_twice_is_one_error_with_its_name(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], ["a", "a"]), tmp_path / "in.parquet")
    with pytest.raises(UnreadableInput, match=r"in\.parquet: it has more than one column of the name 'a'"):
        ff.scan(tmp_path)


# ---- declared --------------------------------------------------------------------------------------------------------


def test_a_declared_type_is_what_files_of_parquet_are_read_as(tmp_path: Path) -> None:
    found = ff.scan(written(tmp_path, column(pa.int64(), 1), column(pa.string(), "x")), schema={"a": "string"})
    assert found.to_arrow(engine="serial").to_pydict() == {"a": ["1", "x"]}
    assert found.filter([("a", "=", "1")]).count(engine="serial") == 1


def test_ranges_of_a_type_that_is_not_the_declared_one_leave_nothing_out(tmp_path: Path) -> None:
    found = ff.scan(written(tmp_path, column(pa.int64(), 9, 10)), schema={"a": "string"})
    assert found.filter([("a", "=", "10")]).count(engine="serial") == 1  # as texts, 9 is not the least
    assert found.filter([("a", "<", "9")]).count(engine="serial") == 1


def test_a_declared_type_that_a_value_does_not_fit_is_an_error_with_file_and_column(tmp_path: Path) -> None:
    found = ff.scan(written(tmp_path, column(pa.string(), "1"), column(pa.string(), "x")), schema={"a": "int64"})
    with pytest.raises(UnreadableInput, match=r"1\.parquet: column 'a' is string and does not fit int64"):
        found.to_arrow(engine="serial")


@pytest.mark.parametrize("name", ["in.parquet", "in.csv"])
def test_a_declared_column_that_is_not_there_is_one_error_with_the_nearest_name(name: str, tmp_path: Path) -> None:
    write_parquet(pa.table({"alpha": [1]}), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("alpha\n1\n")
    with pytest.raises(OptionError, match=r"schema= names 'alfa' \(did you mean 'alpha'\?\), and the columns are: 'alpha'"):
        ff.scan(tmp_path / name, schema={"alfa": "int64"})


@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "in.jsonl"])
def test_what_folders_say_can_be_declared_too(name: str, tmp_path: Path) -> None:
    (tmp_path / "day=7").mkdir()
    write_parquet(pa.table({"x": [1]}), tmp_path / "day=7" / "in.parquet")
    (tmp_path / "day=7" / "in.csv").write_text("x\n1\n")
    (tmp_path / "day=7" / "in.jsonl").write_text('{"x": 1}\n')
    found = ff.scan(tmp_path / "*" / name, schema={"day": "string"}, filter=[("day", "=", "7")])
    assert found.to_arrow(engine="serial").to_pylist() == [{"x": 1, "day": "7"}]
    with pytest.raises(OptionError, match=r"lies in a folder day=7, which is no bool"):
        ff.scan(tmp_path / "*" / name, schema={"day": "bool"})


# ---- learned from texts ----------------------------------------------------------------------------------------------


def csv(*values: str) -> str:
    return "k,a\n" + "".join(f"0,{value}\n" for value in values)


def jsonl(*values: str) -> str:
    return "".join(f'{{"k": 0, "a": {value or "null"}}}\n' for value in values)


def files(folder: Path, extension: str, *texts: str) -> Path:
    for number, text in enumerate(texts):
        (folder / f"{number:02}.{extension}").write_text(text)
    return folder


TEXTS: dict[str, Callable[..., str]] = {"csv": csv, "jsonl": jsonl}


@pytest.mark.parametrize("extension", TEXTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_types_of_texts_are_those_that_the_beginnings_of_files_have_in_common(
    engine: str, extension: str, tmp_path: Path
) -> None:
    text = TEXTS[extension]
    found = ff.scan(files(tmp_path, extension, text("", ""), text("1"), text("0.5"), text("")))
    whole = found.to_arrow(engine=engine, workers=1)
    assert found.schema == whole.schema == pa.schema({"k": pa.int64(), "a": pa.float64()})
    assert whole.column("a").to_pylist() == [None, None, 1.0, 0.5, None]


def test_columns_of_texts_may_come_in_any_order_and_be_missing(tmp_path: Path) -> None:
    found = ff.scan(files(tmp_path, "csv", "a,b\n1,x\n", "b,a\ny,2\n", "b\nz\n", "c,a\n0.5,3\n")).to_arrow(engine="serial")
    assert found.to_pydict() == {"a": [1, 2, None, 3], "b": ["x", "y", "z", None], "c": [None, None, None, 0.5]}


@pytest.mark.parametrize("extension", TEXTS)
def test_beginnings_that_do_not_go_together_are_one_error_with_both_files(extension: str, tmp_path: Path) -> None:
    text = TEXTS[extension]
    with pytest.raises(OptionError, match=r"column 'a' is string in .*/01\.\w+, and int64 in .*/00\.\w+: declare its type"):
        ff.scan(files(tmp_path, extension, text("1"), text('"x"')))


@pytest.mark.parametrize(
    ("extension", "value", "said"),
    [
        ("csv", "x", "column 'a': to int64: invalid value 'x'"),
        ("csv", "0.5", "column 'a': to int64: invalid value '0.5'"),
        ("jsonl", '"x"', r"column 'a': JSON parse error: Column\(/a\) changed from number to string"),
        ("jsonl", "0.5", "column 'a': Failed to convert JSON to int64, couldn't parse:0.5"),
    ],
)
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_later_value_that_does_not_fit_is_an_error_with_file_and_column_on_every_engine(
    engine: str, extension: str, value: str, said: str, tmp_path: Path
) -> None:
    text = TEXTS[extension]
    texts = [text("1")] * 20
    texts[11] = text("1", value)  # of twenty files, every other one is looked at before
    found = ff.scan(files(tmp_path, extension, *texts))
    with pytest.raises(UnreadableInput, match=rf"11\.{extension}: ({said}).*declare those that differ with schema="):
        found.to_arrow(engine=engine, workers=1)


@pytest.mark.parametrize("extension", TEXTS)
def test_a_value_that_does_not_fit_its_declared_type_says_so(extension: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match=rf"00\.{extension}: column 'a', declared with schema= as int64: .*") as caught:
        ff.scan(files(tmp_path, extension, TEXTS[extension]('"x"')), schema={"a": "int64"})
    assert "learned" not in str(caught.value)


def test_a_new_column_of_a_later_file_of_json_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    texts = ['{"a": 1}\n'] * 20
    texts[11] = '{"a": 1, "late": 2}\n'
    with pytest.raises(UnreadableInput, match=r"11\.jsonl: .*unexpected field.*declare those that differ with schema="):
        ff.scan(files(tmp_path, "jsonl", *texts)).to_arrow(engine="serial")
    declared = ff.scan(tmp_path, schema={"late": "int64"}).to_arrow(engine="serial")
    assert declared.column("late").to_pylist() == [None] * 11 + [2] + [None] * 8


# ---- what comes out --------------------------------------------------------------------------------------------------


def of_types(*values: Any) -> ff.Dataset:
    """One batch for each value, with it in column `a`."""
    return ff.scan([{"n": n} for n in range(len(values))]).map_batches(
        lambda batch: pa.table({"a": pa.array([values[batch[0]["n"]]])}), batch_size=1, batch_format="pylist"
    )


def test_batches_of_a_stream_have_the_types_of_those_before_them_too(small_pieces: Cut) -> None:
    small_pieces(1, 1 << 20)
    batches = [*of_types(None, 1, 2.5, None, 3).iter_batches(batch_format="arrow", engine="serial")]
    assert [str(batch.schema.field("a").type) for batch in batches] == ["null", "int64", "double", "double", "double"]
    with pytest.raises(UnwritableValue, match="does not go with those before it: column 'a' is string here and int64"):
        [*of_types(1, "x").iter_batches(engine="serial")]
