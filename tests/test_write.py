"""`Dataset.write`: a folder that appears whole or not at all. What dies meanwhile: test_kills.py; stores: test_stores.py."""

import fcntl
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from tables import people, small_pieces, write_parquet

import fourfold as ff
from fourfold.data import commit
from fourfold.data.commit import Output
from fourfold.data.manifests import Wanted
from fourfold.errors import OptionError, OptionTypeError, RunChanged, RunError, RunInUse, UnwritableValue
from fourfold.runs import place
from fourfold.runs.place import output_id_of
from fourfold.runs.upkeep import sweep

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pads.dataset(folder, partitioning="hive").to_table().to_pylist()


def left_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_what_is_written_is_read_back_in_order(format: str, engine: str, tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(40, 1 << 20)
    written = ff.scan(people(200)).write(tmp_path / "out", format=format, engine=engine, workers=2)
    small_pieces(1 << 15, 8 << 20)
    assert ff.scan(tmp_path / "out").to_arrow().equals(people(200))
    assert written.n_rows == 200
    assert [os.path.basename(each) for each in written.files] == [f"part-{at:05d}.{format}" for at in range(5)]
    assert left_in(tmp_path) == ["out"]
    assert written.report is not None


@pytest.mark.parametrize("options", [{}, {"run": "run"}], ids=["at the end", "one by one"])
def test_all_parts_are_on_the_disk_before_the_folder_appears(
    options: dict[str, Any], tmp_path: Path, small_pieces: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int, bool]] = []
    fsync, out = os.fsync, tmp_path / "out"

    def note(fd: int) -> None:
        fsync(fd)
        synced.append((os.fstat(fd).st_ino, os.fstat(fd).st_size, out.exists()))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", note)
    small_pieces(40, 1 << 20)
    written = ff.scan(people(200)).write(out, engine="serial", **options)
    stats = [os.stat(each) for each in written.files]
    assert {(each.st_ino, each.st_size, False) for each in stats} <= {*synced}
    assert len(stats) == 5


def test_the_files_do_not_depend_on_workers_or_engine(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(40, 1 << 20)
    seen = []
    for at, options in enumerate([{"engine": "serial"}, {"engine": "processes", "workers": 3, "chunk": 2}]):
        written = ff.scan(people(200)).write(tmp_path / str(at), **options)
        seen.append([Path(each).read_bytes() for each in written.files])
    assert seen[0] == seen[1]


def test_columns_become_folders_and_come_back(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(20, 1 << 20)
    table = people(60)
    written = ff.scan(table).write(tmp_path / "out", partition_by=["word"])
    assert (tmp_path / "out" / "word=__HIVE_DEFAULT_PARTITION__").is_dir()
    assert all("word=" in each for each in written.files)
    found = ff.scan(tmp_path / "out").select(["id", "x", "word"]).to_arrow().sort_by("id")
    assert found.equals(table)


def test_a_glob_over_all_of_an_output_means_its_rows(tmp_path: Path) -> None:
    ff.scan(people(60)).write(tmp_path / "out")
    assert ff.scan(f"{tmp_path}/out/*").to_arrow().equals(people(60))


def test_nothing_is_overwritten_unless_that_is_asked_for(tmp_path: Path) -> None:
    ff.scan(people(5)).write(tmp_path / "out")
    ran = []

    def note(batch: pd.DataFrame) -> pd.DataFrame:
        ran.append(1)
        return batch

    with pytest.raises(OptionError, match="is there already: give another path, or overwrite=True"):
        ff.scan(people(6)).map_batches(note).write(tmp_path / "out")
    assert ran == []
    ff.scan(people(6)).write(tmp_path / "out", overwrite=True)
    assert len(rows_of(tmp_path / "out")) == 6
    assert left_in(tmp_path) == ["out"]


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_has_appeared_while_rows_were_written_is_not_overwritten(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = {
        "folder": lambda path: ff.scan(people(3)).write(path),
        "file": Path.touch,
        "link": lambda path: path.symlink_to(tmp_path),
    }
    sync = commit._sync_folders

    def late(whole: Path) -> None:  # the last moment before it takes its place
        sync(whole)
        monkeypatch.setattr(commit, "_sync_folders", sync)
        make[what](tmp_path / "out")

    monkeypatch.setattr(commit, "_sync_folders", late)
    with pytest.raises(OptionError, match="has appeared meanwhile: nothing of it was changed"):
        ff.scan(people(6)).write(tmp_path / "out")
    assert left_in(tmp_path) == ["out"]
    assert what != "folder" or len(rows_of(tmp_path / "out")) == 3


def test_ctrl_c_while_two_folders_change_places_leaves_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ff.scan(people(3)).write(tmp_path / "out")
    rename, renamed = os.rename, []

    def interrupted(one: Any, other: Any) -> None:
        rename(one, other)
        renamed.append(other)
        if len(renamed) == 1:
            signal.raise_signal(signal.SIGINT)

    # A system that cannot exchange two names in one step.
    monkeypatch.setattr(commit.ctypes, "CDLL", lambda *given, **named: object())
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ff.scan(people(6)).write(tmp_path / "out", overwrite=True)
    assert len(renamed) == 3
    assert len(rows_of(tmp_path / "out")) == 6
    assert left_in(tmp_path) == ["out"]


@pytest.mark.parametrize("target", ["empty", "missing"])
def test_a_link_is_no_place_for_an_output_unless_it_may_be_replaced(target: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / target)
    ran: list[Any] = []
    with pytest.raises(OptionError, match="is there already"):
        ff.scan(people(3)).map_batches(ran.append).write(tmp_path / "out")
    assert ran == []
    ff.scan(people(3)).write(tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out").is_symlink()
    assert len(rows_of(tmp_path / "out")) == 3
    assert left_in(tmp_path) == ["empty", "out"]
    assert left_in(tmp_path / "empty") == []


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_folder_of_parquet_does_not_take_the_name_of_a_file_of_another_format(name: str, tmp_path: Path) -> None:
    rows = ff.scan([{"x": 1}])
    with pytest.raises(OptionError, match=rf"{name}' has the name of a \w+ file, and what is written is a folder of parquet"):
        rows.write(tmp_path / name)
    assert not (tmp_path / name).exists()
    assert rows.write(tmp_path / name, format=name.partition(".")[2]).n_rows == 1


def test_an_empty_folder_is_a_place_for_an_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ff.scan(people(3)).write(tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 3
    assert left_in(tmp_path) == ["out"]


@pytest.mark.parametrize("links", [True, False])
def test_all_files_are_on_the_disk_before_the_folder_appears(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    fsync, take_place = os.fsync, Output._take_place

    def note(handle: int) -> None:
        fsync(handle)
        synced.add(os.fstat(handle).st_ino)

    def check(self: Output) -> None:
        missing = [path for path in [self._whole, *self._whole.rglob("*")] if path.stat().st_ino not in synced]
        assert missing == []
        take_place(self)

    def refuse(*given: Any) -> None:
        raise PermissionError("this file system has no links")

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Output, "_take_place", check)
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    ff.scan(people(60)).write(tmp_path / "out", partition_by="word", engine="serial")
    assert len(rows_of(tmp_path / "out")) == 60


def test_a_run_that_fails_leaves_nothing_and_what_was_there(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)
    ff.scan(people(5)).write(tmp_path / "out")

    def fail(batch: pd.DataFrame) -> pd.DataFrame:
        if (batch["id"] == 35).any():
            raise ValueError("no")
        return batch

    with pytest.raises(ValueError, match="no"):
        ff.scan(people(50)).map_batches(fail).write(tmp_path / "out", overwrite=True)
    assert left_in(tmp_path) == ["out"]
    assert len(rows_of(tmp_path / "out")) == 5


def test_types_that_differ_from_piece_to_piece_are_widened_and_conflicts_appear_nowhere(
    tmp_path: Path, small_pieces: Cut
) -> None:
    small_pieces(1, 1 << 20)

    def of(*values: Any) -> ff.Dataset:
        return ff.scan([{"n": n} for n in range(len(values))]).map_batches(
            lambda batch: pa.table({"a": [values[batch[0]["n"]]]}), batch_format="pylist"
        )

    of(None, 1, 2.5).write(tmp_path / "out", engine="serial")
    schemas = {str(pq.read_schema(each)) for each in (tmp_path / "out").glob("*.parquet")}
    assert schemas == {"a: double"}
    assert [row["a"] for row in rows_of(tmp_path / "out")] == [None, 1.0, 2.5]
    with pytest.raises(UnwritableValue, match="column 'a' is string"):
        of(1, "x").write(tmp_path / "bad", engine="serial")
    assert left_in(tmp_path) == ["out"]


def test_types_that_differ_within_a_piece_are_widened_too(tmp_path: Path) -> None:
    values = [None, 1, 2.5]
    found = ff.scan([{"n": n} for n in range(3)]).map_batches(
        lambda batch: (pa.table({"a": [values[row["n"]]]}) for row in batch), batch_size=1, batch_format="pylist"
    )
    found._plan = found._plan._replace(batch_rows=1)
    found.write(tmp_path / "out", engine="serial")
    assert [row["a"] for row in rows_of(tmp_path / "out")] == [None, 1.0, 2.5]
    assert left_in(tmp_path / "out") == ["_fourfold.json", "part-00000.parquet"]


def test_rows_that_fail_are_kept_beside_and_can_be_fed_back(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)
    write_parquet(people(60), tmp_path / "in.parquet")

    def check(batch: pd.DataFrame) -> pd.DataFrame:
        if batch["id"].isin([7, 33]).any():
            raise ValueError("bad row")
        return batch

    dataset = ff.scan(tmp_path / "in.parquet").map_batches(check)
    written = dataset.write(tmp_path / "out", on_error="collect")
    assert [(failure.row, failure.kind, failure.message) for failure in written.failures] == [
        (7, "raised", "bad row"),
        (33, "raised", "bad row"),
    ]
    assert written.failed_path is not None
    failed = ff.scan(written.failed_path).to_arrow().to_pylist()
    assert [(row["id"], row["_row"], row["_error"]) for row in failed] == [
        (7, 7, "ValueError: bad row"),
        (33, 33, "ValueError: bad row"),
    ]
    assert failed[0]["_file"] == str(tmp_path / "in.parquet")
    assert ff.scan(tmp_path / "out").count() == 58  # what begins with _ is no data
    again = ff.scan(written.failed_path, columns=["id", "x", "word"]).write(tmp_path / "mended")
    assert again.n_rows == 2


def test_no_rows_make_a_folder_that_tells_the_columns(tmp_path: Path) -> None:
    written = ff.scan(people(0)).write(tmp_path / "out")
    assert (written.n_rows, written.files) == (0, [])
    assert ff.scan(tmp_path / "out").to_arrow().equals(people(0))


def test_a_run_of_something_else_is_not_taken_for_this_one(tmp_path: Path) -> None:
    ff.scan(people(20)).map_batches(lambda batch: batch).write(tmp_path / "out", run=tmp_path / "run")
    with pytest.raises(RunChanged):
        ff.scan(people(20)).map_batches(lambda batch: batch.head(1)).write(tmp_path / "out", run=tmp_path / "run")
    with pytest.raises(RunChanged):
        ff.scan(people(21)).map_batches(lambda batch: batch).write(tmp_path / "out", run=tmp_path / "run", overwrite=True)


def test_two_calls_of_one_run_do_not_write_at_once(tmp_path: Path) -> None:
    first, second = (Output(str(tmp_path / "out"), Wanted("same", "parquet")) for _ in range(2))
    first.open()
    with pytest.raises(RunInUse, match="another call of the same run"):
        second.open()
    second.discard()
    assert first.staging.is_dir()
    first.discard()
    assert left_in(tmp_path) == []


def test_runs_of_a_block_go_on_too(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)

    def check(batch: pd.DataFrame) -> pd.DataFrame:
        if (batch["id"] == 35).any() and not (tmp_path / "mended").exists():
            raise ValueError("no")
        return batch

    def call() -> Any:
        with ff.using(run=tmp_path / "runs", engine="serial"):
            return ff.scan(people(60)).map_batches(check).write(tmp_path / "out")

    with pytest.raises(ValueError, match="no"):
        call()
    (tmp_path / "mended").touch()
    assert call().report.n_recorded >= 2
    assert call().report.n_recorded == 6
    assert left_in(tmp_path) == ["mended", "out", "runs"]


def test_a_piece_that_cannot_be_read_is_left_out_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.data.sources.lines.READ_BYTES", 64)
    monkeypatch.setattr("fourfold.data.sources.lines.PATIENCE", 0)
    (tmp_path / "1.csv").write_text("a\n" + "1\n" * 100 + "x\n")
    (tmp_path / "2.csv").write_text("a\n7\n")
    written = ff.scan([tmp_path / "1.csv", tmp_path / "2.csv"]).write(tmp_path / "out", on_error="skip", engine="serial")
    assert [row["a"] for row in rows_of(tmp_path / "out")] == [7]
    assert [(failure.row, failure.path) for failure in written.failures] == [(-1, str(tmp_path / "1.csv"))]
    assert written.failed_path is not None
    failed = ff.scan(written.failed_path)
    assert failed.columns == ["a", "_file", "_row", "_kind", "_error"]
    again = failed.map_batches(lambda batch: 1 / 0).write(tmp_path / "again", on_error="skip", engine="serial")
    assert again.failed_path is not None
    assert ff.scan(again.failed_path).columns == failed.columns


def test_a_csv_file_of_one_column_cannot_hold_nulls(tmp_path: Path) -> None:
    with pytest.raises(UnwritableValue, match="would be empty lines"):
        ff.scan([{"a": 1}, {"a": None}]).write(tmp_path / "out", format="csv")


def test_a_finished_run_is_done_at_once_and_runs_nothing(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)
    source, out, run = people(40), tmp_path / "out", tmp_path / "run"
    ran = tmp_path / "ran"

    class Note:
        def __init__(self) -> None:
            with open(ran, "a") as file:
                file.write("built\n")

        def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
            return batch

    first = ff.scan(source).map_batches(Note).write(out, run=run, engine="serial")
    assert ran.read_text() == "built\n"
    again = ff.scan(source).map_batches(Note).write(out, run=run, engine="serial")
    assert ran.read_text() == "built\n"
    assert (again.files, again.n_rows) == (first.files, first.n_rows)
    assert "nothing was left to do" in again.report.verdict


def test_clean_removes_what_nobody_goes_on_with_and_nothing_else(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)

    def fail(batch: pd.DataFrame) -> pd.DataFrame:
        if (batch["id"] == 35).any():
            raise ValueError("no")
        return batch

    with pytest.raises(ValueError, match="no"):
        ff.scan(people(40)).map_batches(fail).write(tmp_path / "recorded", run=tmp_path / "run", engine="serial")
    (kept,) = tmp_path.glob(".recorded.*.part")
    living = Output(str(tmp_path / "living"), Wanted("0" * 16, "parquet"))
    living.open()
    for name in (f".dead.{'1' * 16}.part", f".dead.{'1' * 16}.whole", f".living.{'0' * 16}.whole"):
        (tmp_path / name / "x=1").mkdir(parents=True)
        (tmp_path / name / "x=1" / "a.parquet").touch()
    assert {os.path.basename(swept.path) for swept in sweep(tmp_path)} == {
        f".dead.{'1' * 16}.{end}" for end in ("part", "whole")
    }
    assert kept.is_dir()
    assert living.staging.is_dir()
    living.discard()
    shutil.rmtree(tmp_path / "run")
    assert [swept.path for swept in sweep(tmp_path)] == [str(kept)]
    assert left_in(tmp_path) == []


def test_parts_that_are_gone_are_named(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)

    def fail(batch: pd.DataFrame) -> pd.DataFrame:
        if (batch["id"] == 35).any() and not (tmp_path / "mended").exists():
            raise ValueError("no")
        return batch

    dataset = ff.scan(people(40)).map_batches(fail)
    with pytest.raises(ValueError, match="no"):
        dataset.write(tmp_path / "out", run=tmp_path / "run", engine="serial")
    (tmp_path / "mended").touch()
    (staging,) = tmp_path.glob(".out.*.part")
    next(staging.glob("*.parquet")).unlink()
    with pytest.raises(RunError, match="is gone or has another size"):
        dataset.write(tmp_path / "out", run=tmp_path / "run", engine="serial")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"format": "xls"}, OptionError, "cannot be written"),
        ({"partition_by": "none"}, OptionError, "no column 'none'"),
        ({"partition_by": [3]}, OptionTypeError, "must be the name of a column"),
        ({"path": "nowhere://bucket/out"}, OptionError, "Protocol not known"),
        ({"storage_options": {"key": "k"}}, OptionError, "storage_options= are for URLs"),
        ({"order": "input"}, OptionTypeError, "must be True or False"),
        ({"path": 3}, OptionTypeError, "give the path of a folder, or a URL"),
        ({"path": "none/out"}, OptionError, "does not exist; make it first"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        ff.scan(people(3)).write(**{"path": "out", **options})
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", ["_kind", ".kind"])
def test_partitions_that_no_reader_would_see_are_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    ran: list[Any] = []
    rows = ff.scan(people(3).append_column(name, [["a"] * 3]))
    with pytest.raises(OptionError, match=f"folders {re.escape(name)}=… begin with '{re.escape(name[0])}', and readers"):
        rows.map_batches(ran.append).write(tmp_path / "out", partition_by=["word", name])
    assert ran == left_in(tmp_path) == []


def test_partitions_by_all_columns_or_too_many_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnwritableValue, match="nothing would be left"):
        ff.scan([{"a": 1}]).write(tmp_path / "out", partition_by="a")
    monkeypatch.setattr("fourfold.data.parts.MOST_FOLDERS", 20)
    with pytest.raises(UnwritableValue, match="more than 20 values"):
        ff.scan(people(30)).write(tmp_path / "out", partition_by="id")
    assert left_in(tmp_path) == []


def test_csv_cannot_hold_lists(tmp_path: Path) -> None:
    with pytest.raises(UnwritableValue, match="which CSV cannot hold"):
        ff.scan([{"a": [1, 2]}]).write(tmp_path / "out", format="csv")


@pytest.mark.parametrize("to", ["folder", "memory://same-run-again/out"])
def test_a_run_whose_folder_was_removed_is_another_run_and_writes_anew(tmp_path: Path, to: str) -> None:
    out = str(tmp_path / "out") if to == "folder" else to

    def write(rows: list[dict[str, int]], **options: Any) -> int:
        return ff.scan(rows).write(out, run=tmp_path / "run", engine="serial", **options).n_rows

    assert write([{"a": 1}, {"a": 2}]) == 2
    assert write([{"a": 1}, {"a": 2}]) == 2, "finished: nothing is done, and nothing is in the way"
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(OptionError, match="is there already"):
        write([{"a": 3}])
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert write([{"a": 3}], overwrite=True) == 1
    assert ff.scan(out).to_arrow(engine="serial").to_pylist() == [{"a": 3}]


def test_an_id_of_an_output_that_was_not_made_to_its_end_is_made_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    (run / "output-id").touch(mode=0o600)
    assert ff.scan([{"a": 1}]).write(tmp_path / "out", run=run, engine="serial").n_rows == 1
    assert len((run / "output-id").read_text()) == 16


def test_of_two_drivers_that_begin_one_run_at_once_both_have_the_id_of_the_first_also_where_files_have_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, flock, ids = tmp_path / "run", fcntl.flock, []

    def refuse(*given: Any, **options: Any) -> None:
        raise PermissionError("this file system has no links")

    def late(handle: Any, how: int) -> None:  # another driver begins and ends, when this one has found no id
        monkeypatch.setattr(fcntl, "flock", flock)
        ids.append(output_id_of(str(run)))
        flock(handle, how)

    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(fcntl, "flock", late)
    ids.append(output_id_of(str(run)))
    assert ids == [output_id_of(str(run))] * 2
    assert left_in(run) == ["output-id"]


def test_an_id_is_made_by_one_driver_while_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, token, locks = tmp_path / "run", place.secrets.token_hex, []

    def made(n_bytes: int) -> str:
        with open(run / "output-id", "rb") as file, pytest.raises(BlockingIOError) as caught:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        locks.append(caught.type)
        return token(n_bytes)

    monkeypatch.setattr(place.secrets, "token_hex", made)
    assert output_id_of(str(run)) == output_id_of(str(run))
    assert locks == [BlockingIOError]
