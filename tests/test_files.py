"""Reading rows of files, and writing values into them."""

import csv
import dataclasses
import datetime
import decimal
import gzip
import io
import json
import math
import os
import pathlib
import stat
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.aggregate import parquet
from fourfold.aggregate.sinks import open_sink
from fourfold.divide import files
from fourfold.divide.files import InputFile, Place, find_files, find_paths, read_rows
from fourfold.errors import MissingExtra, OptionError, UnreadableInput, UnwritableValue


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows_of(name, content, format=None):
    mode = content if isinstance(content, bytes) else content.encode()
    pathlib.Path(name).write_bytes(mode)
    return [row for file in find_files([name], format) for _, row in read_rows(file)]


def places_of(name, content):
    pathlib.Path(name).write_text(content)
    return [str(place) for file in find_files([name]) for place, _ in read_rows(file)]


def written(name, values):
    """The bytes of the file that the values make, and how many numbers became null."""
    sink = open_sink(name)
    for index, value in enumerate(values):
        sink.write(index, value)
    sink.finish()
    sink.publish()
    return pathlib.Path(name).read_bytes(), sink.n_nulled


def refusal(name, values):
    """What the sink says of values that it cannot write; nothing stays behind."""
    sink = open_sink(name)

    def write_all():
        for index, value in enumerate(values):
            sink.write(index, value)
        sink.finish()

    with pytest.raises(UnwritableValue) as caught:
        write_all()
    sink.discard()
    assert os.listdir() == []
    return str(caught.value)


def table(values, group_rows, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_ROWS", group_rows)
    written("out.parquet", values)
    return pq.read_table("out.parquet")


# ---- which files


def test_inputs_keep_their_order():
    for name in ("b.txt", "a.txt"):
        pathlib.Path(name).touch()
    assert find_paths(["b.txt", "a.txt", "b.txt"]) == ["b.txt", "a.txt", "b.txt"]


def test_a_glob_is_expanded_in_sorted_order():
    for name in ("b.txt", "a.txt", "c.csv"):
        pathlib.Path(name).touch()
    assert find_paths(["*.txt"]) == ["a.txt", "b.txt"]


def test_a_glob_without_a_match_is_an_error():
    with pytest.raises(OptionError, match=r"no file matches '\*\.csv'"):
        find_paths(["*.csv"])


def test_a_file_whose_name_looks_like_a_glob_is_that_file():
    pathlib.Path("a[1].txt").touch()
    pathlib.Path("a1.txt").touch()
    assert find_paths(["a[1].txt"]) == ["a[1].txt"]


def test_a_folder_gives_every_visible_file_below_it():
    for name in ("d/b.txt", "d/sub/a.txt", "d/.hidden.txt", "d/_SUCCESS", "d/.git/x.txt"):
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).touch()
    assert find_paths(["d"]) == ["d/b.txt", "d/sub/a.txt"]


def test_an_empty_folder_is_an_error():
    pathlib.Path("d").mkdir()
    with pytest.raises(OptionError, match="no file in the folder d"):
        find_paths(["d"])


def test_a_missing_input_is_named():
    with pytest.raises(OptionError, match=r"input not found: nope\.csv"):
        find_paths(["nope.csv"])


def test_an_unknown_extension_lists_the_known_ones():
    pathlib.Path("a.xls").touch()
    with pytest.raises(OptionError, match=r"'\.xls'.*\.jsonl .*--format"):
        find_files(["a.xls"])


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(OptionError, match="'yaml'; formats are: jsonl, csv, parquet, text"):
        find_files([], "yaml")


def test_stdin_needs_a_format():
    with pytest.raises(OptionError, match="--format jsonl"):
        find_files(["-"])


# ---- reading


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_an_empty_file_has_no_rows(name):
    assert rows_of(name, "") == []


def test_a_csv_file_with_only_a_header_has_no_rows():
    assert rows_of("a.csv", "a,b\n") == []


def test_csv_rows_are_dicts_of_strings():
    assert rows_of("a.csv", 'a,b\n1,"x, ""y"""\n\n2,\n') == [{"a": "1", "b": 'x, "y"'}, {"a": "2", "b": ""}]


def test_a_quoted_line_break_stays_in_its_value():
    assert rows_of("a.csv", 'a,b\n1,"two\nlines"\n2,x\n') == [{"a": "1", "b": "two\nlines"}, {"a": "2", "b": "x"}]


def test_a_row_after_a_quoted_line_break_has_its_own_line_number():
    assert places_of("a.csv", 'a,b\n1,"two\nlines"\n2,x\n') == ["a.csv:2", "a.csv:4"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n3\n", r"^a\.csv:3: 1 value where the header has 2 \(a, b\)"),
        ("a,b\n1,2,3\n", r"^a\.csv:2: 3 values where the header has 2"),
        ('a,b\n1,"2\n3,4\n', r"^a\.csv:2: not valid csv: unexpected end of data"),
        ('a\nx\n"y"z\n', r"^a\.csv:3: not valid csv"),
        ("a,b,a\n1,2,3\n", r"^a\.csv:1: the header names 'a' more than once"),
    ],
)
def test_broken_csv_names_file_and_line(content, said):
    with pytest.raises(UnreadableInput, match=said):
        rows_of("a.csv", content)


def test_jsonl_rows_are_any_value_and_blank_lines_are_skipped():
    assert rows_of("a.jsonl", '{"a": 1}\n\n[1]\r\nnull\n"x"') == [{"a": 1}, [1], None, "x"]


def test_a_blank_line_counts_as_a_line():
    assert places_of("a.jsonl", "1\n\n2\n") == ["a.jsonl:1", "a.jsonl:3"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('1\n{"a": }\n', r"^a\.jsonl:2: not valid JSON: Expecting value \(column 7\)"),
        ('{\n  "a": 1\n}\n', r"^a\.jsonl:1: .*jsonl holds one value per line"),
        ("1\n" + "[" * 100_000, r"^a\.jsonl:2: not valid JSON"),
    ],
)
def test_broken_json_names_file_and_line(content, said):
    with pytest.raises(UnreadableInput, match=said):
        rows_of("a.jsonl", content)


def test_rows_before_a_broken_line_are_given_first():
    pathlib.Path("a.jsonl").write_text("1\n2\n{\n")
    rows = read_rows(InputFile("a.jsonl", "jsonl"))
    assert [next(rows)[1], next(rows)[1]] == [1, 2]
    with pytest.raises(UnreadableInput):
        next(rows)


def test_text_lines_lose_their_line_ends_only():
    assert rows_of("a.txt", " x \n\ny\r\nz\u2028z") == [" x ", "", "y", "z\u2028z"]


def test_a_byte_order_mark_is_dropped():
    assert rows_of("a.csv", "\ufeffa\n1\n") == [{"a": "1"}]


def test_bytes_that_are_no_utf8_name_file_and_line():
    with pytest.raises(UnreadableInput, match=r"^a\.txt:2: not UTF-8: byte 0xe9 at column 2"):
        rows_of("a.txt", b"x\ny\xe9\n")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.JSONL.gz"])
def test_gzipped_text_is_read_by_its_inner_extension(name):
    assert rows_of(name, gzip.compress(b"1\n2\n")) == [1, 2]


@pytest.mark.parametrize("content", [gzip.compress(b"1\n" * 1000)[:-9], b"1\n"])
def test_a_broken_gzip_file_is_named(content):
    with pytest.raises(UnreadableInput, match=r"a\.jsonl\.gz: not a whole gzip file"):
        rows_of("a.jsonl.gz", content)


def test_parquet_rows_are_dicts_with_their_row_numbers(monkeypatch):
    monkeypatch.setattr(files, "_PARQUET_BATCH_ROWS", 2)
    pq.write_table(pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]}), "a.parquet")
    found = list(read_rows(InputFile("a.parquet", "parquet")))
    assert [row for _, row in found] == [{"a": 1, "b": "x"}, {"a": 2, "b": None}, {"a": 3, "b": "z"}]
    assert [str(place) for place, _ in found] == ["a.parquet row 0", "a.parquet row 1", "a.parquet row 2"]


def test_a_file_that_is_no_parquet_is_named():
    with pytest.raises(UnreadableInput, match=r"^a\.parquet: not a readable parquet file"):
        rows_of("a.parquet", "a,b\n")


def test_parquet_without_pyarrow_has_the_pip_line(monkeypatch):
    pathlib.Path("a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "fourfold.aggregate.parquet", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'fourfold\[data\]'"):
        next(read_rows(InputFile("a.parquet", "parquet")))
    with pytest.raises(MissingExtra, match=r"pip install 'fourfold\[data\]'"):
        open_sink("out.parquet")


def test_reading_is_lazy():
    def endless():
        while True:
            yield b"line\n"

    class Pipe:
        buffer = endless()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", Pipe)
        rows = read_rows(InputFile("-", "text"))
        assert [next(rows) for _ in range(2)] == [(Place("stdin", "line", 1), "line"), (Place("stdin", "line", 2), "line")]


# ---- writing: whole or not at all


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_nothing_shows_before_publish_and_nothing_stays_after_discard(name):
    sink = open_sink(name)
    sink.write(0, {"a": 1})
    sink.finish()
    assert not os.path.exists(name)
    sink.discard()
    sink.discard()
    assert os.listdir() == []


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_discard_after_publish_keeps_the_file(name):
    written(name, [1])
    sink = open_sink(name)
    sink.finish()
    sink.publish()
    sink.discard()
    assert os.listdir() == [name]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_the_file_has_the_mode_that_the_user_asks_for(name):
    before = os.umask(0o027)
    try:
        written(name, [1])
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(name).st_mode) == 0o640


def test_a_link_is_written_through():
    pathlib.Path("real").mkdir()
    pathlib.Path("real/out.jsonl").write_text("old")
    os.symlink("real/out.jsonl", "out.jsonl")
    written("out.jsonl", [1])
    assert os.path.islink("out.jsonl")
    assert pathlib.Path("real/out.jsonl").read_text() == "1\n"


def test_a_missing_folder_says_how_to_make_it():
    with pytest.raises(OptionError, match=r"the folder /.*/no does not exist.*mkdir -p /.*/no"):
        open_sink("no/out.jsonl")


def test_an_unknown_output_extension_lists_the_known_ones():
    with pytest.raises(OptionError, match=r"'\.txt'; use one of \.jsonl .*\.csv \.parquet"):
        open_sink("out.txt")


# ---- writing: rows and values


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Pair(NamedTuple):
    x: int
    y: float


@pytest.mark.parametrize("value", [{"x": 1, "y": 2.5}, Point(1, 2.5), Pair(1, 2.5)], ids=lambda v: type(v).__name__)
def test_results_with_named_fields_become_columns(value):
    assert written("out.csv", [value])[0] == b"x,y\n1,2.5\n"
    assert written("out.jsonl", [value])[0] == b'{"x": 1, "y": 2.5}\n'
    written("out.parquet", [value])
    assert pq.read_table("out.parquet").to_pylist() == [{"x": 1, "y": 2.5}]


def test_bare_values_become_one_column():
    assert written("out.csv", [1, None, "x"])[0] == b'value\n1\n""\nx\n'
    assert written("out.jsonl", [1, None, "x", [2]])[0] == b'1\nnull\n"x"\n[2]\n'
    written("out.parquet", [1, None])
    assert pq.read_table("out.parquet").to_pylist() == [{"value": 1}, {"value": None}]


@pytest.mark.parametrize(("name", "content"), [("out.jsonl", b""), ("out.csv", b"")])
def test_no_values_make_an_empty_file(name, content):
    assert written(name, [])[0] == content


def test_no_values_make_a_parquet_file_without_columns():
    written("out.parquet", [])
    assert pq.read_table("out.parquet").shape == (0, 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.bool_(True), "true"),
        (np.arange(3), "[0, 1, 2]"),
        (np.array([[1.5]]), "[[1.5]]"),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
        (datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC), '"2026-01-02T03:04:00+00:00"'),
        (np.datetime64("2026-01-02T03:04:05", "ns"), '"2026-01-02T03:04:05.000000000"'),
        (decimal.Decimal("1.10"), '"1.10"'),
        ({"a": [Point(1, 2)]}, '{"a": [{"x": 1, "y": 2}]}'),
        ("é\n", '"é\\n"'),
        ("\ud800", '"\\ud800"'),
    ],
)
def test_json_of_values_that_are_not_plain(value, text):
    assert written("out.jsonl", [value]) == ((text + "\n").encode(), 0)


def test_a_text_with_a_carriage_return_is_quoted_whatever_its_class():
    values = ["a\rb", np.str_("a\rb")]
    written("out.csv", values)
    assert [row for _, row in read_rows(InputFile("out.csv", "csv"))] == [{"value": "a\rb"}] * 2


def test_nan_becomes_null_in_json_and_is_counted():
    content, n_nulled = written("out.jsonl", [math.nan, {"a": [math.inf, 1.0, np.float32("nan")]}])
    assert content == b'null\n{"a": [null, 1.0, null]}\n'
    assert n_nulled == 3


def test_csv_cells_of_values_that_are_not_plain():
    row = {"list": [1, math.nan], "array": np.arange(2), "day": datetime.date(2026, 1, 2), "flag": np.bool_(True)}
    content, n_nulled = written("out.csv", [row])
    assert list(csv.DictReader(io.StringIO(content.decode()))) == [
        {"list": "[1, null]", "array": "[0, 1]", "day": "2026-01-02", "flag": "True"}
    ]
    assert n_nulled == 1


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_missing_value_is_empty(name):
    written(name, [{"a": 1, "b": 2}, {"b": 3}])
    rows = [row for _, row in read_rows(find_files([name])[0])]
    assert rows[1] == {"a": "" if name == "out.csv" else None, "b": "3" if name == "out.csv" else 3}


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([{"a": 1}, {"a": 1, "b": 2}], "item 1: its result has the column 'b', which the first row (item 0) does not have: a"),
        ([{"a": 1}, 2], "item 1: its result is int, but that of item 0 is a row with columns"),
        ([1, {"a": 2}], "item 1: its result is dict, but that of item 0 is a bare value"),
        ([{1: 2}], "item 0: the column name 1 is int, not str"),
    ],
)
def test_a_row_that_does_not_fit_names_the_item(name, values, said):
    assert refusal(name, values).startswith(said)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": b"x"}, "bytes cannot be written: decode it"),
        ({"a": {1, 2}}, "set cannot be written: return sorted(...)"),
        ({"a": [object()]}, "object cannot be written"),
        ({"a": datetime.timedelta(1)}, "timedelta cannot be written: return its .total_seconds()"),
        ({"a": pathlib.Path("x")}, "Path cannot be written: return str(path)"),
    ],
)
@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_value_without_a_text_form_names_item_place_and_type(name, value, said):
    message = refusal(name, [{"a": 1}, value])
    assert "item 1" in message
    assert "'a'" in message
    assert said in message


def test_a_json_value_that_holds_itself_is_an_error():
    circle = []
    circle.append(circle)
    assert refusal("out.jsonl", [circle]).startswith("item 0: its result cannot be written as JSON")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.text(st.characters(exclude_categories=["Cs"]))), max_size=5))
def test_what_csv_writes_csv_reads(rows):
    rows = [{"a": "", **row, "z": "end"} for row in rows]
    names = dict.fromkeys(key for row in rows[:1] for key in row)
    rows = [{name: row.get(name, "") for name in names} for row in rows]
    written("law.csv", rows)
    assert [row for _, row in read_rows(InputFile("law.csv", "csv"))] == rows


# A list, not a dict: JSON makes text of keys.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(json_values, max_size=5))
def test_what_jsonl_writes_jsonl_reads(values):
    written("law.jsonl", values)
    assert [row for _, row in read_rows(InputFile("law.jsonl", "jsonl"))] == values


# ---- parquet: types


def test_a_column_of_nulls_gets_its_type_later(monkeypatch):
    found = table([{"a": None}] * 4 + [{"a": "x"}], 2, monkeypatch)
    assert found.schema.field("a").type == pa.string()
    assert found["a"].to_pylist() == [None] * 4 + ["x"]


def test_integers_become_floats_when_a_float_comes(monkeypatch):
    found = table([1, 2, 3, 1.5], 2, monkeypatch)
    assert found["value"].to_pylist() == [1.0, 2.0, 3.0, 1.5]


def test_a_column_of_nulls_only_stays_null(monkeypatch):
    assert table([None] * 3, 2, monkeypatch)["value"].to_pylist() == [None] * 3


@pytest.mark.parametrize("group_rows", [1, 2, 3, 7, 100])
def test_the_table_does_not_depend_on_the_batch(group_rows, monkeypatch):
    values = [{"a": None if k < 4 else k, "b": [k] * k, "c": decimal.Decimal(k) / 4} for k in range(8)]
    assert table(values, group_rows, monkeypatch).to_pylist() == table(values, 100, monkeypatch).to_pylist()


@pytest.mark.parametrize("group_rows", [1, 2, 100])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, 2, 3, "x"], "item 3, column 'value': 'x'"),
        ([{"a": "x"}, {"a": "y"}, {"a": 3}], "item 2, column 'a': 3"),
        ([{"a": object()}], "item 0, column 'a'"),
        (["x", "y", b"z"], "item 2, column 'value': b'z'"),
        ([datetime.date(2026, 1, 2), None, datetime.datetime(2026, 1, 2, 3)], "item 2, column 'value'"),
        ([np.ones((2, 2))], "item 0, column 'value'"),
    ],
)
def test_a_value_of_another_type_names_the_item(values, said, group_rows, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_ROWS", group_rows)
    assert refusal("out.parquet", values).startswith(said)


def test_an_integer_too_large_for_the_floats_of_its_column_is_an_error(monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 2)
    assert "column's type" in refusal("out.parquet", [2**60 + 1, 1, 1.5, 2.5])


def test_types_that_parquet_has_are_kept(monkeypatch):
    row = {
        "bytes": b"x",
        "day": datetime.date(2026, 1, 2),
        "decimal": decimal.Decimal("1.10"),
        "array": np.array([0.5, 1.5]),
        "scalar": np.float32(0.25),
    }
    found = table([row], 10, monkeypatch).to_pylist()[0]
    assert found == {**row, "array": [0.5, 1.5], "scalar": 0.25}


def test_a_full_disk_while_discarding_is_not_an_error():
    sink = open_sink("out.jsonl")
    sink._file.handle.close()
    sink._file.handle = SimpleNamespace(close=lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    sink.discard()
    assert os.listdir() == []


def test_json_keys_that_are_no_text_become_text():
    assert json.loads(written("out.jsonl", [{1: 2}])[0]) == {"1": 2}
