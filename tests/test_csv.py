"""CSV is divided where its rows end, by the rules of the reader: every division gives what that reads of the whole file."""

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tables import small_pieces

import fourfold as ff
from fourfold.data.quotes import is_open, last_row_end, row_end
from fourfold.data.text import BOM
from fourfold.errors import OptionError, UnreadableInput

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]

TEXTS = {"h": "string", "k": "string"}

MARKS = st.sampled_from(['"', '""', ",", "\n", "\r\n", "\r", "a", " ", "é"])
VALUES = st.sampled_from(
    ["x", "", '"q"', '"a""b"', '5" pipe', '"m\nn"', '"m\r\n"', '""', '"x"y"z', 'a"', '"NA"', "NA", '"""\n"', " "]
)
ROWS = st.tuples(VALUES, VALUES, st.sampled_from(["\n", "\r\n", "\n\n"])).map(lambda row: f"{row[0]},{row[1]}{row[2]}")
BODIES = st.one_of(st.lists(ROWS, max_size=15).map("".join), st.lists(MARKS, max_size=40).map("".join))


def read_whole(data: bytes) -> pa.Table | None:
    """What Arrow reads of a file of two columns at once; None when that is an error."""
    try:
        return pyarrow.csv.read_csv(
            io.BytesIO(data),
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=1 << 20),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in TEXTS}, strings_can_be_null=True, quoted_strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None


def read_divided(path: Path, **options: object) -> pa.Table | None:
    """What we read of it in pieces; None when that is an error."""
    try:
        return ff.scan(path, schema=TEXTS, **options).to_arrow(engine="serial")
    except UnreadableInput:
        return None


def divide(monkeypatch: pytest.MonkeyPatch, piece: int, read: int) -> None:
    for name, value in (("MIN_BYTES", piece), ("MAX_BYTES", piece), ("READ_BYTES", read)):
        monkeypatch.setattr(f"fourfold.data.sources.lines.{name}", value)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, bom=st.booleans(), piece=st.integers(1, 40), read=st.integers(1, 30))
@example(body='5" pipe,3\n6" pipe,4\n' * 9, bom=False, piece=10, read=10)
@example(body='x,"never closed\n1,2\n3,4\n', bom=False, piece=1, read=1)
@example(body="x,\r1,2\r3,4\r", bom=True, piece=1, read=1)
@example(body="\ufeffx,1\n" * 9, bom=True, piece=1, read=1)
@example(body="  \n \n1,2", bom=False, piece=1, read=1)
def test_every_division_gives_what_arrow_reads_at_once(
    body: str, bom: bool, piece: int, read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (BOM if bom else b"") + f"h,k\n{body}".encode()
    (tmp_path / "in.csv").write_bytes(data)
    divide(monkeypatch, piece, read)
    assert read_divided(tmp_path / "in.csv") == read_whole(data)


def ends_of_rows(data: bytes) -> list[int]:
    """The automaton of Arrow's reader, byte by byte."""
    ends, state, at = [], "begin", 0
    while at < len(data):
        byte = data[at : at + 1]
        if state == "quoted":
            if data[at : at + 2] == b'""':
                at += 1
            elif byte == b'"':
                state = "text"
        elif byte in (b"\n", b"\r"):
            at += data[at : at + 2] == b"\r\n"
            if byte == b"\n" or at + 1 < len(data) or data[at : at + 1] == b"\n":
                ends.append(at + 1)
            state = "begin"
        elif byte == b'"' and state == "begin":
            state = "quoted"
        else:
            state = "begin" if byte == b"," else "text"
        at += 1
    return ends


@settings(max_examples=150, deadline=None)
@given(body=BODIES)
@example(body='"\n"\r"')
def test_rows_end_where_an_automaton_that_goes_byte_by_byte_says(body: str) -> None:
    data = body.encode()
    ends = ends_of_rows(data)
    assert row_end(data, ",") == (ends[0] if ends else 0)
    assert last_row_end(data, ",") in (ends or [0])
    newlines = [end for end in ends if data[end - 1 : end] == b"\n"]
    assert last_row_end(data, ",") >= max(newlines, default=0)


@settings(max_examples=150, deadline=None)
@given(body=BODIES)
def test_a_block_is_open_when_a_line_end_in_it_ends_no_row_or_a_quote_is_not_closed(body: str) -> None:
    data = body.encode() + b"\n"
    closed = len(ends_of_rows(data)) == data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")
    assert is_open(data, ",") == (not closed)


def test_a_quote_inside_a_value_glues_no_lines_together(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(1 << 20, 100)
    rows = [{"what": f'{row}" pipe', "n": row, "said": 'a "b"\nc'} for row in range(200)]
    lines = "".join(f'{row["what"]},{row["n"]},"a ""b""\nc"\n' for row in rows)
    (tmp_path / "in.csv").write_text("what,n,said\n" + lines)
    found = ff.scan(tmp_path / "in.csv")
    assert len([*found._plan.source.pieces()]) > 40
    assert found.to_arrow(engine="serial").to_pylist() == rows
    assert pd.read_csv(tmp_path / "in.csv").to_dict("records") == rows


def test_the_header_is_read_as_the_reader_reads_it(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'\xef\xbb\xbf"a\nb",5" pipe,"c"d,"e ""f"""\r1,2,3,4\r')
    assert ff.scan(tmp_path / "in.csv").to_arrow().to_pylist() == [{"a\nb": 1, '5" pipe': 2, "cd": 3, 'e "f"': 4}]


def test_without_a_header_the_mark_of_utf8_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'\xef\xbb\xbf"a\nb",1\n')
    assert ff.scan(tmp_path / "in.csv", header=False).to_arrow().to_pylist() == [{"0": "a\nb", "1": 1}]


def test_a_quote_that_is_never_closed_is_one_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourfold.data.sources.lines.READ_BYTES", 1 << 12)
    monkeypatch.setattr("fourfold.data.sources.lines.MOST_BYTES_OF_A_ROW", 1 << 14)
    (tmp_path / "in.csv").write_text('a,b\n1,"5 pipe\n' + "1,2\n" * 20_000)
    with pytest.raises(UnreadableInput, match="is a quote never closed"):
        ff.scan(tmp_path / "in.csv", schema={"b": "string"}).count(engine="serial")


@pytest.mark.parametrize("value", ['"5 pipe', '"two\nlines"', 'x,5" pipe\n1,"5 pipe'])
def test_a_line_end_within_quotes_is_an_error_where_it_was_said_that_there_is_none(value: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(f"a,b\n1,{value}\n1,2\n")
    with pytest.raises(
        UnreadableInput, match=r"in\.csv: a value in quotes contains a line end.*leave out quoted_newlines=False"
    ):
        ff.scan(tmp_path / "in.csv", quoted_newlines=False)


def test_quotes_inside_values_are_text_without_a_pass_for_quotes_too(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(1 << 20, 64)
    (tmp_path / "in.csv").write_text("a,b\n" + '1,5" pipe\n' * 500)
    found = ff.scan(tmp_path / "in.csv", quoted_newlines=False).to_arrow(engine="serial")
    assert found.column("b").to_pylist() == ['5" pipe'] * 500


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n", "é"])
def test_a_delimiter_is_one_character_of_ascii(delimiter: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a\n1\n")
    with pytest.raises(OptionError, match="must be one character of ASCII"):
        ff.scan(tmp_path / "in.csv", delimiter=delimiter)
