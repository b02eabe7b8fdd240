"""Where rows come from: files of every format and tables of every kind give the same rows, however they are cut."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import WRITERS, people, small_pieces, write_csv, write_jsonl, write_parquet

import fourfold as ff
from fourfold.errors import OptionError, OptionTypeError, UnreadableInput

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]

# Polars makes its threads, with pipes of their own, when they are first needed, and keeps them.
pl.LazyFrame({"a": [1]}).collect(engine="streaming")


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("n_rows", [1, 2, 999])
def test_a_file_gives_its_rows_in_order_however_it_is_cut(format: str, n_rows: int, tmp_path: Path, small_pieces: Cut) -> None:
    table = people(n_rows)
    WRITERS[format](table, tmp_path / f"in.{format}")
    small_pieces(64, 700)
    found = ff.scan(tmp_path / f"in.{format}")
    assert len([*found._plan.source.pieces()]) >= n_rows / 128
    assert found.to_arrow().cast(table.schema).equals(table)  # 0.0 is 0 in CSV
    assert found.count() == n_rows


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_the_engine_makes_no_difference(engine: str, tmp_path: Path, small_pieces: Cut) -> None:
    table = people(500)
    write_parquet(table, tmp_path / "in.parquet")
    small_pieces(50, 1 << 20)
    assert ff.scan(tmp_path / "in.parquet").to_arrow(engine=engine, workers=2).equals(table)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(st.integers(1, 60), min_size=1, max_size=6), rows=st.integers(1, 80), size=st.integers(100, 5000))
def test_row_groups_are_cut_and_packed_without_a_row_lost(
    groups: list[int], rows: int, size: int, tmp_path: Path, small_pieces: Cut
) -> None:
    import pyarrow.parquet as pq

    small_pieces(rows, size)
    table = people(sum(groups))
    with pq.ParquetWriter(tmp_path / "in.parquet", table.schema) as writer:
        at = 0
        for count in groups:
            writer.write_table(table.slice(at, count))
            at += count
    found = ff.scan(tmp_path / "in.parquet")
    pieces = [*found._plan.source.pieces()]
    assert found.to_arrow(engine="serial").equals(table)
    firsts = [piece.first for piece in pieces]
    assert firsts == sorted(firsts)
    assert firsts[0] == 0


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(st.sampled_from('ab"\n,x '), max_size=12), min_size=1, max_size=60), size=st.integers(20, 400))
def test_quoted_line_ends_and_quotes_end_no_row_wherever_the_file_is_cut(
    words: list[str], size: int, tmp_path: Path, small_pieces: Cut
) -> None:
    small_pieces(1 << 20, size)
    table = pa.table({"n": list(range(len(words))), "word": words})
    write_csv(table, tmp_path / "in.csv")
    assert ff.scan(tmp_path / "in.csv", schema={"word": "string"}).to_arrow(engine="serial").equals(table)


def test_lines_without_a_pass_for_quotes_are_cut_too(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(1 << 20, 64)
    rows = [{"a": row, "b": f"w{row}"} for row in range(200)]
    (tmp_path / "in.csv").write_text("a;b\n" + "".join(f"{row['a']};{row['b']}\n" for row in rows))
    found = ff.scan(tmp_path / "in.csv", delimiter=";", quoted_newlines=False)
    assert len([*found._plan.source.pieces()]) > 10
    assert found.to_arrow(engine="serial").to_pylist() == rows


def test_blank_lines_before_the_header_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.data.sources.lines.READ_BYTES", 64)
    (tmp_path / "in.csv").write_text("\n\r\na,b\n" + "".join(f"{row},{row * 2}\n" for row in range(100)))
    found = ff.scan(tmp_path / "in.csv").to_arrow(engine="serial")
    assert found.to_pylist() == [{"a": row, "b": row * 2} for row in range(100)]


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_the_last_line_counts_with_and_without_its_end(ending: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(f"a\r\n1\r\n2{ending}".encode())
    (tmp_path / "in.txt").write_bytes(f"one\r\n\r\ntwo{ending}".encode())
    assert ff.scan(tmp_path / "in.csv").to_arrow().to_pylist() == [{"a": 1}, {"a": 2}]
    assert ff.scan(tmp_path / "in.txt").to_arrow().to_pylist() == [{"text": "one"}, {"text": ""}, {"text": "two"}]


def test_compressed_files_are_read(tmp_path: Path) -> None:
    table = people(50)
    write_jsonl(table, tmp_path / "in.jsonl")
    plain = (tmp_path / "in.jsonl").read_bytes()
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "in.jsonl.bz2").write_bytes(bz2.compress(plain))
    (tmp_path / "in.jsonl.xz").write_bytes(lzma.compress(plain))
    with pa.CompressedOutputStream(str(tmp_path / "in.jsonl.zst"), "zstd") as packed:
        packed.write(plain)
    for name in ("in.jsonl.gz", "in.jsonl.bz2", "in.jsonl.xz", "in.jsonl.zst"):
        assert ff.scan(tmp_path / name).to_arrow().equals(table)


@pytest.mark.parametrize("make", [lambda t: t, lambda t: t.to_pandas(), lambda t: pl.from_arrow(t), lambda t: t.to_pylist()])
def test_tables_in_memory_of_every_kind(make: Callable[[pa.Table], object], small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)
    table = people(35)
    found = ff.scan(make(table)).to_arrow(engine="processes", workers=2)
    assert found.cast(table.schema).equals(table)


def test_anything_with_an_arrow_stream_is_a_source() -> None:
    class Foreign:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return people(3).__arrow_c_stream__()

    assert ff.scan(Foreign()).to_arrow().equals(people(3))


class Once:
    """A stream that can be read once, as a generator can."""

    def __init__(self, table: pa.Table) -> None:
        self._table: pa.Table | None = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        if self._table is None:
            raise RuntimeError("read already")
        table, self._table = self._table, None
        return table.__arrow_c_stream__()


@pytest.mark.parametrize("make", [Once, lambda table: table.to_reader(), lambda table: pads.dataset(table.to_reader())])
def test_a_stream_that_can_be_read_once_is_kept_and_gives_its_rows_to_every_call(
    make: Callable[[pa.Table], object], small_pieces: Cut
) -> None:
    small_pieces(10, 1 << 20)
    found = ff.scan(make(people(35)))
    assert found.count() == 35
    for engine in ("serial", "threads"):
        assert found.to_arrow(engine=engine).equals(people(35))
    train, test = found.split(0.5)
    assert train.count(engine="serial") + test.count(engine="serial") == 35


def test_a_reader_that_was_scanned_is_not_taken_for_an_empty_table() -> None:
    reader = people(3).to_reader()
    ff.scan(reader)
    with pytest.raises(OptionError, match="was scanned before, and has no rows any more: use the dataset of that scan again"):
        ff.scan(reader)


@pytest.mark.parametrize("make", [lambda frame: frame.lazy(), lambda frame: pads.dataset(frame.to_arrow())])
def test_what_is_lazy_computes_only_the_columns_that_are_wanted(make: Callable[[pl.DataFrame], object]) -> None:
    lazy = make(pl.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None], "c": [1.5, 2.0, 3.0]}))
    found = ff.scan(lazy, columns=["b"], filter=pc.field("a") > 1)
    assert found.to_arrow(engine="serial").to_pydict() == {"b": ["y", None]}
    assert found._plan.source.schema.names == ["a", "b"]
    assert ff.scan(lazy).columns == ["a", "b", "c"]


def test_a_lazy_frame_that_lacks_a_column_is_not_run() -> None:
    def never(frame: pl.DataFrame) -> pl.DataFrame:
        raise AssertionError

    lazy = pl.LazyFrame({"a": [1]}).map_batches(never, schema={"a": pl.Int64})
    with pytest.raises(OptionError, match=r"columns=: there is no column 'aa' \(did you mean 'a'\?\)"):
        ff.scan(lazy, columns=["aa"])
    with pytest.raises(OptionError, match=r"filter \(aa > 1\): there is no column 'aa'"):
        ff.scan(lazy, filter=[("aa", ">", 1)])


def test_an_index_of_pandas_that_is_more_than_a_numbering_becomes_a_column() -> None:
    frame = pd.DataFrame({"x": [1, 2]}, index=pd.Index(["a", "b"], name="key"))
    assert ff.scan(frame).columns == ["key", "x"]
    assert ff.scan(frame.reset_index(drop=True)).columns == ["x"]


def test_folders_give_columns(tmp_path: Path) -> None:
    for year, carrier in ((2013, "AA"), (2014, "U A")):
        folder = tmp_path / "flights" / f"year={year}" / f"carrier={carrier.replace(' ', '%20')}"
        folder.mkdir(parents=True)
        write_parquet(pa.table({"n": [year]}), folder / "a.parquet")
    null = tmp_path / "flights" / "year=2015" / "carrier=__HIVE_DEFAULT_PARTITION__"
    null.mkdir(parents=True)
    write_parquet(pa.table({"n": [2015]}), null / "a.parquet")
    found = ff.scan(tmp_path / "flights")
    assert found.to_arrow().to_pylist() == [
        {"n": 2013, "year": 2013, "carrier": "AA"},
        {"n": 2014, "year": 2014, "carrier": "U A"},
        {"n": 2015, "year": 2015, "carrier": None},
    ]
    assert found.select(["carrier", "year"]).to_arrow().column_names == ["carrier", "year"]


def test_a_column_of_the_files_stands_over_that_of_their_folders(tmp_path: Path) -> None:
    (tmp_path / "x=1").mkdir()
    write_parquet(pa.table({"x": [7]}), tmp_path / "x=1" / "a.parquet")
    assert ff.scan(tmp_path).to_arrow().to_pylist() == [{"x": 7}]


def test_a_column_that_some_files_have_not_is_null_there_and_types_are_widened(tmp_path: Path) -> None:
    write_parquet(pa.table({"a": [1]}), tmp_path / "1.parquet")
    write_parquet(pa.table({"a": [2.5], "b": ["x"]}), tmp_path / "2.parquet")
    assert ff.scan(tmp_path).to_arrow().to_pylist() == [{"a": 1.0, "b": None}, {"a": 2.5, "b": "x"}]


def test_files_whose_columns_do_not_go_together_are_named(tmp_path: Path) -> None:
    write_parquet(pa.table({"a": [1]}), tmp_path / "1.parquet")
    write_parquet(pa.table({"a": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(
        OptionError,
        match=r"column .a. is string in .*2\.parquet, and int64 in .*1\.parquet: declare its type, such as schema={.a.: .string.}",
    ):
        ff.scan(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_type_is_learned_from_later_rows_when_the_first_have_only_nulls(kind: str, tmp_path: Path) -> None:
    rows = [{"a": None, "b": 1}] * 5 + [{"a": 2, "b": 2}]
    WRITERS[kind](pa.Table.from_pylist(rows), tmp_path / f"in.{kind}")
    assert ff.scan(tmp_path / f"in.{kind}").to_arrow().to_pylist() == rows


def test_a_value_that_does_not_fit_the_learned_type_names_the_file_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourfold.data.sources.lines.READ_BYTES", 64)
    (tmp_path / "in.csv").write_text("a\n" + "1\n" * 100 + "x\n")
    with pytest.raises(UnreadableInput, match=r"in\.csv: .*int64.*declare those that differ with schema="):
        ff.scan(tmp_path / "in.csv").to_arrow(engine="serial")
    declared = ff.scan(tmp_path / "in.csv", schema={"a": "string"})
    assert declared.to_arrow().column("a").to_pylist() == ["1"] * 100 + ["x"]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UnreadableInput, match=r"in\.parquet: not a readable parquet file"):
        ff.scan(tmp_path / "in.parquet")
    (tmp_path / "in.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UnreadableInput, match=r"in\.jsonl: "):
        ff.scan(tmp_path / "in.jsonl").to_arrow()
    (tmp_path / "in.csv").write_text("a,a\n1,2\n")
    with pytest.raises(UnreadableInput, match=r"in\.csv: the header names 'a' more than once"):
        ff.scan(tmp_path / "in.csv")


def test_urls_of_fsspec_are_read(tmp_path: Path) -> None:
    write_parquet(people(20), tmp_path / "a.parquet")
    write_csv(people(20), tmp_path / "b.csv")
    assert ff.scan(f"file://{tmp_path}/*.parquet").to_arrow(engine="processes", workers=1).equals(people(20))
    assert ff.scan(f"file://{tmp_path}/b.csv").to_arrow().equals(people(20))
    with pytest.raises(OptionError, match="there is no file at"):
        ff.scan(f"file://{tmp_path}/none/*.csv")


def test_head_reads_the_beginning_of_a_file_only(tmp_path: Path, small_pieces: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(1 << 20, 1000)
    monkeypatch.setattr("fourfold.data.sources.lines.READ_BYTES", 500)
    (tmp_path / "in.csv").write_text("a\n" + "1\n" * 50_000)
    found = ff.scan(tmp_path / "in.csv")
    cut = [0]
    real = type(found._plan.source)._row_end_behind
    monkeypatch.setattr(
        "fourfold.data.sources.lines.Lines._row_end_behind", lambda *given: cut.append(given[-1]) or real(*given)
    )
    assert len(found.head(3)) == 3
    assert max(cut) < 10_000


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (42, {}, OptionTypeError, "give a path"),
        ("none.parquet", {}, OptionError, "input not found"),
        ("no-*.parquet", {}, OptionError, "no file matches"),
        ([{"a": 1}], {"format": "csv"}, OptionError, "are for files"),
        ([{"a": 1}], {"columns": ["b"]}, OptionError, "there is no column 'b'"),
        ([{"a": 1}], {"columns": 3}, OptionTypeError, "must be a list of names"),
        ([{"a": 1}], {"filter": 3}, OptionTypeError, "give an expression"),
    ],
)
def test_what_cannot_be_scanned_is_one_error(source: object, options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ff.scan(source, **options)


def test_files_of_two_formats_are_refused(tmp_path: Path) -> None:
    write_csv(people(1), tmp_path / "a.csv")
    write_jsonl(people(1), tmp_path / "b.jsonl")
    with pytest.raises(OptionError, match=r"a\.csv is csv and .*b\.jsonl is jsonl"):
        ff.scan(tmp_path)


@pytest.mark.parametrize("reading", [{"delimter": ";"}, {"header": 1}])
def test_options_of_csv_are_checked(reading: dict, tmp_path: Path) -> None:
    write_csv(people(1), tmp_path / "a.csv")
    with pytest.raises(OptionTypeError):
        ff.scan(tmp_path / "a.csv", **reading)


def test_a_filter_of_scan_may_use_columns_that_are_not_kept(tmp_path: Path) -> None:
    write_parquet(people(30), tmp_path / "in.parquet")
    found = ff.scan(tmp_path / "in.parquet", columns=["word"], filter=pc.field("id") >= 28)
    assert found.to_arrow().to_pylist() == [{"word": "ünïcode"}, {"word": None}]


def test_only_the_columns_that_are_wanted_are_read(tmp_path: Path) -> None:
    write_parquet(people(30), tmp_path / "in.parquet")
    assert ff.scan(tmp_path / "in.parquet").select(["x"])._plan.columns == ("x",)


def test_no_rows_at_all(tmp_path: Path) -> None:
    write_parquet(people(0), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("a,b\n")
    (tmp_path / "in.jsonl").write_text("")
    assert ff.scan(tmp_path / "in.parquet").to_arrow().equals(people(0))
    assert ff.scan(tmp_path / "in.csv").to_arrow().column_names == ["a", "b"]
    assert ff.scan(tmp_path / "in.jsonl").count() == 0
    assert ff.scan([]).count() == 0


def test_rows_of_json_have_all_columns_that_some_row_has(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"a": 1}) + "\n" + json.dumps({"b": 2}) + "\n")
    assert ff.scan(tmp_path / "in.jsonl").to_arrow().to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": 2}]


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "n_pieces"), [(100_000, 65536, 16), (100_000, 8, 128), (1_000_000, 65536, 32)]
)
def test_a_small_table_has_few_pieces_unless_calls_of_few_rows_are_wanted(n_rows: int, batch_size: int, n_pieces: int) -> None:
    found = ff.scan(pa.table({"a": range(n_rows)})).map_batches(lambda batch: batch, batch_size=batch_size)
    pieces = [*found._plan.pieces()]
    assert len(pieces) == n_pieces
    assert sum(end - first for first, end in (piece.part for piece in pieces)) == n_rows


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [
        ([5_000] * 5 + [2_004], [27_004]),  # and not a large piece and a small one
        ([5_000] * 18, [30_000] * 3),
        ([5_000] * 15, [40_000, 35_000]),
        ([50_000] * 3, [50_000] * 3),  # a part of one would have it decoded whole
        ([70_000], [23_333, 23_333, 23_334]),
        ([5_000, 70_000, 5_000], [5_000, 23_333, 23_333, 23_334, 5_000]),
    ],
)
def test_row_groups_are_put_together_to_pieces_of_like_size(tmp_path: Path, groups: list[int], sizes: list[int]) -> None:
    def write(name: str, groups: list[int]) -> str:
        table, path = pa.table({"a": np.zeros(sum(groups))}), str(tmp_path / name)
        with pq.ParquetWriter(path, table.schema) as writer:
            for n_rows in groups:
                writer.write_table(table.slice(0, n_rows))
        return path

    many = write("many.parquet", [600_000])  # so that a piece has as many rows as fill it
    found = ff.scan([write("in.parquet", groups), many])._plan.pieces()
    assert [piece.part[4] - piece.part[3] for piece in found if piece.path != many] == sizes


def test_one_name_of_a_column_stands_for_a_list_of_it() -> None:
    rows = [{"a": 1, "bc": 2}]
    assert (
        ff.scan(rows, columns="bc").to_arrow().to_pylist() == ff.scan(rows).select("bc").to_arrow().to_pylist() == [{"bc": 2}]
    )
