"""Recorded runs of tables: when one is done, and what becomes of it between its last row and its last word."""

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from tables import people, small_pieces

import fourfold as ff
from fourfold import engines
from fourfold.data import commit
from fourfold.data.commit import Output
from fourfold.data.manifests import Wanted
from fourfold.data.pieces import Piece
from fourfold.data.running import Run
from fourfold.data.stores import StoreOutput
from fourfold.data.sweeping import sweep_store
from fourfold.data.work import Count, RunPiece, Tables
from fourfold.errors import EngineError, OptionError, RunChanged, RunError
from fourfold.records import Failure
from fourfold.runs.leftovers import is_locked
from fourfold.runs.story import story_of
from fourfold.runs.upkeep import change, sweep
from fourfold.system import seams

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]


@pytest.fixture(autouse=True)
def pieces_of_ten(small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)


def state_of(run: Path) -> tuple[str, int]:
    story = story_of(run)
    return story.state, story.n_done


RESULTS: dict[str, Callable[[ff.Dataset, str], Any]] = {
    "count": lambda rows, run: rows.count(run=run),
    "describe": lambda rows, run: rows.describe(run=run),
    "to_pandas": lambda rows, run: rows.to_pandas(run=run),
    "to_polars": lambda rows, run: rows.to_polars(run=run),
    "iter_batches": lambda rows, run: [*rows.iter_batches(run=run)],
}


@pytest.mark.parametrize("result", RESULTS)
def test_a_run_is_done_when_its_result_is_there(result: str, tmp_path: Path) -> None:
    rows = ff.scan(people(40)).map_batches(lambda batch: batch)
    for _ in range(2):
        RESULTS[result](rows, str(tmp_path / "run"))
        assert state_of(tmp_path / "run") == ("done", 4)


def test_a_stream_that_nobody_reads_to_its_end_is_stopped_and_not_done(tmp_path: Path) -> None:
    stream = ff.scan(people(40)).iter_batches(run=str(tmp_path / "run"))
    next(stream)
    stream.close()
    assert state_of(tmp_path / "run")[0] == "stopped"


@pytest.mark.parametrize(("to", "kind"), [("folder", Output), ("memory://is-it-done/out", StoreOutput)])
def test_a_run_is_done_when_its_output_is_there_and_not_before(
    to: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out") if to == "folder" else to
    publish, seen = kind.publish, []

    def look(self: Any, *given: Any) -> Any:
        seen.append((story_of(tmp_path / "run").state, self.is_published()))
        facts = publish(self, *given)
        seen.append((story_of(tmp_path / "run").state, self.is_published()))
        return facts

    monkeypatch.setattr(kind, "publish", look)
    ff.scan(people(40)).write(out, run=tmp_path / "run", engine="serial")
    assert seen == [("running", False), ("running", True)]
    assert state_of(tmp_path / "run") == ("done", 4)
    if to != "folder":
        fsspec.filesystem("memory").rm("/is-it-done", recursive=True)


def noting(folder: Path) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def note(batch: pd.DataFrame) -> pd.DataFrame:
        with open(folder / "ran", "a") as file:
            file.write(f"{batch['id'].iloc[0]}\n")
        return batch

    return note


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_what_cannot_be_published_is_no_end_and_the_same_call_publishes_it(engine: str, tmp_path: Path) -> None:
    rows = ff.scan(people(40)).map_batches(noting(tmp_path))
    seams.set_faults("output.publish:1:EIO")
    try:
        with pytest.raises(OSError, match="Input/output error"):
            rows.write(tmp_path / "out", run=tmp_path / "run", engine=engine)
    finally:
        seams.set_faults("")
    assert state_of(tmp_path / "run") == ("failed", 4)
    assert rows.write(tmp_path / "out", run=tmp_path / "run", engine=engine).report.n_recorded == 4
    assert state_of(tmp_path / "run") == ("done", 4)
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == [0, 10, 20, 30]
    assert ff.scan(tmp_path / "out").count() == 40


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_ends_a_call_between_publishing_and_its_last_word_loses_nothing(
    error: type[BaseException], overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ff.scan(people(40)).map_batches(noting(tmp_path))
    if overwrite:
        ff.scan(people(3)).write(tmp_path / "out")
    publish = Output.publish

    def end(self: Output, *given: Any) -> Any:
        publish(self, *given)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Output, "publish", end)
        with pytest.raises(error):
            rows.write(tmp_path / "out", run=tmp_path / "run", engine="serial", overwrite=overwrite)
    state = {KeyboardInterrupt: "interrupted", OSError: "failed", SystemExit: "stopped"}[error]
    assert state_of(tmp_path / "run") == (state, 4)
    assert ff.scan(tmp_path / "out").count() == 40
    again = rows.write(tmp_path / "out", run=tmp_path / "run", engine="serial", overwrite=overwrite)
    assert (again.n_rows, again.report.n_recorded) == (40, 4)
    assert state_of(tmp_path / "run") == ("done", 4)
    assert len((tmp_path / "ran").read_text().split()) == 4
    assert sorted(os.listdir(tmp_path)) == ["out", "ran", "run"]


def test_a_call_that_began_while_another_one_of_its_run_published_finds_it_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ff.scan(people(40)).map_batches(noting(tmp_path))

    def write() -> Any:
        return rows.write(tmp_path / "out", run=tmp_path / "run", engine="serial")

    open_ = Output.open

    def late(self: Output) -> None:
        monkeypatch.setattr(Output, "open", open_)
        write()  # another driver, from its beginning to its end
        open_(self)

    monkeypatch.setattr(Output, "open", late)
    assert write().n_rows == 40
    assert len((tmp_path / "ran").read_text().split()) == 4
    assert sorted(os.listdir(tmp_path)) == ["out", "ran", "run"]


def test_a_place_for_parts_that_its_owner_removes_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Output(str(tmp_path / "out"), Wanted("same", "parquet")) for _ in range(2))
    first.open()
    flock, n_asked = commit.fcntl.flock, []

    def late(handle: int, how: int) -> None:
        n_asked.append(1)
        first.discard()
        flock(handle, how)

    monkeypatch.setattr(commit.fcntl, "flock", late)
    second.open()
    assert len(n_asked) == 2
    assert second.staging.is_dir()
    second.discard()
    assert os.listdir(tmp_path) == []


def test_parts_are_locked_by_a_file_that_may_be_written_since_nfs_tells_nobody_of_other_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, locked = commit.fcntl.flock, []

    def note(handle: int, how: int) -> None:
        if how & commit.fcntl.LOCK_EX:
            is_writable = commit.fcntl.fcntl(handle, commit.fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
            locked.append((stat.S_ISREG(os.fstat(handle).st_mode), is_writable))
        flock(handle, how)

    monkeypatch.setattr(commit.fcntl, "flock", note)
    output = Output(str(tmp_path / "out"), Wanted("0" * 16, "parquet"))
    output.open()
    assert locked == [(True, True)]
    assert is_locked(output.staging)
    output.close()
    assert os.listdir(tmp_path) == [], "the lock alone is no reason to keep them"
    ff.scan(people(3)).write(tmp_path / "out", engine="serial")
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["_fourfold.json", "part-00000.parquet"]


@pytest.mark.parametrize(("out", "run"), [("out", "out/run"), ("run/out", "run"), ("out", "out"), ("out", "link/run")])
def test_a_run_and_its_output_lie_apart(out: str, run: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(OptionError, match="lie one in the other: give the run a folder beside it"):
        ff.scan(people(3)).write(tmp_path / out, run=tmp_path / run, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("to", ["folder", "memory://left/out"])
def test_a_call_that_wrote_nothing_leaves_nothing_but_its_run(to: str, tmp_path: Path) -> None:
    rows = ff.scan(people(40))
    rows.write(tmp_path / "out", run=tmp_path / "run")
    fs, other = fsspec.filesystem("memory"), str(tmp_path / "other") if to == "folder" else to
    with pytest.raises(RunChanged):
        rows.write(other, run=tmp_path / "run", engine="serial")
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]
    assert fs.find("/left") == []


def test_clean_removes_parts_that_a_driver_left_which_died_behind_its_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Output, "discard", Output.close)
        ff.scan(people(40)).write(tmp_path / "out", run=tmp_path / "run", engine="serial")
    (staging,) = tmp_path.glob(".out.*.part")
    assert [swept.path for swept in sweep(tmp_path)] == [str(staging)]
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]
    assert ff.scan(tmp_path / "out").count() == 40


def test_clean_removes_the_word_of_a_writer_to_a_store_whose_run_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fs = "memory://forgotten/out", fsspec.filesystem("memory")
    with monkeypatch.context() as patch:
        patch.setattr(StoreOutput, "discard", lambda self: None)
        ff.scan(people(40)).write(out, run=tmp_path / "run", engine="serial")
    (marker,) = fs.find("/forgotten/out/_fourfold")
    fs.pipe_file(marker, json.dumps({**json.loads(fs.cat_file(marker)), "began": 1}).encode())  # no process that lives
    assert len([*sweep_store(out)]) == 1
    assert ff.scan(out).count() == 40
    fs.rm("/forgotten", recursive=True)


def test_rows_that_run_again_after_their_output_was_published_are_not_lost_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourfold.data.sources.lines.READ_BYTES", 64)
    monkeypatch.setattr("fourfold.data.sources.lines.PATIENCE", 0)

    def put(last: str) -> None:
        (tmp_path / "1.csv").write_text("a\n" + "1\n" * 100 + f"{last}\n")
        os.utime(tmp_path / "1.csv", (1, 1))  # to all who look it is the same file

    def write() -> Any:
        return ff.scan(tmp_path / "1.csv").write(tmp_path / "out", run=tmp_path / "run", on_error="skip", engine="serial")

    put("x")
    assert len(write().failures) == len(write().failures) == 1
    put("2")
    assert change(tmp_path / "run", forget_failures=True) == 1
    with pytest.raises(
        RunError, match=r"when 1 rows had failed, and now that they have run again 0 have: what is there was not"
    ):
        write()
    assert ff.scan(tmp_path / "out").count() == 0


def search_of(rows: ff.Dataset, run: Path) -> tuple[Run, Piece]:
    return Run(rows._plan, Tables(), {"run": run, "on_error": "skip", "engine": "serial"}, "search"), [*rows._plan.pieces()][1]


def test_a_search_for_a_row_that_kills_its_worker_is_recorded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, piece = search_of(ff.scan(people(40)), tmp_path / "run")
    killer = Failure(0, "crashed", None, "WorkerLost", "it died", "", "")
    found = search._as_read(piece, Count(), (), "rows"), search._failed(piece._replace(rows=(3, 4)), killer)
    monkeypatch.setattr(RunPiece, "batches", lambda self, piece: pytest.fail("it is read again"))
    assert search._as_read(piece, Count(), (), "rows") == found[0] == 10
    again = search._failed(piece._replace(rows=(3, 4)), killer)
    assert again.data.to_pylist() == found[1].data.to_pylist() == people(40).slice(13, 1).to_pylist()


def test_what_a_search_with_other_steps_has_recorded_is_forgotten(tmp_path: Path) -> None:
    folder = str(tmp_path / "run" / "search" / "1-0")
    for steps, n_rows in ((lambda batch: batch, 10), (lambda batch: batch.head(4), 4)):
        search, piece = search_of(ff.scan(people(40)).map_batches(steps), tmp_path / "run")
        assert [done.value for done in search._outcomes([piece], Count(), folder)] == [n_rows]
        assert len(search._outcomes([piece, piece], Count(), folder)) == 2, "nor are other pieces in the way"


def test_a_finished_table_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open(self: Any) -> None:
        raise EngineError("a cluster was started")

    monkeypatch.setattr("fourfold.options.check_installed", lambda *given: None)
    monkeypatch.setattr("fourfold.lanes._clusters", {})
    monkeypatch.setattr(engines.Dask, "open", open)
    rows = ff.scan(people(40)).map_batches(noting(tmp_path))

    def write(engine: str, order: bool = True) -> Any:
        return rows.write(tmp_path / "out", run=tmp_path / "run", engine=engine, order=order)

    files = write("serial").files
    again = write("dask")
    assert (again.n_rows, again.files, again.report.n_recorded) == (40, files, 4)
    (tmp_path / "run2").mkdir()
    with pytest.raises(EngineError, match="a cluster was started"):
        rows.count(run=tmp_path / "run2", engine="dask")


def test_a_finished_run_is_done_within_a_second(tmp_path: Path) -> None:
    rows = ff.scan(people(400)).map_batches(noting(tmp_path))
    rows.write(tmp_path / "out", run=tmp_path / "run", engine="serial")
    began = time.perf_counter()
    assert rows.write(tmp_path / "out", run=tmp_path / "run", engine="processes", workers=2).report.n_recorded == 40
    assert time.perf_counter() - began < float(os.environ.get("FOURFOLD_TIME_SCALE", "1"))
