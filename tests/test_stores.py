"""`Dataset.write` and `scan` of a store that cannot rename: files appear together, by a manifest that is put last.

The store is the memory of this process (fsspec); test_s3.py has one behind HTTP, with drivers and workers that are killed.
"""

import json
import os
import pickle
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from tables import people, small_pieces

import fourfold as ff
from fourfold.addresses import Credentials, credentials_kept_out
from fourfold.data import writers
from fourfold.data.commit import Output
from fourfold.data.manifests import Wanted
from fourfold.data.places import Store
from fourfold.data.stores import StoreOutput
from fourfold.data.sweeping import sweep_store
from fourfold.data.writers import Writer, writer_of_this_process
from fourfold.errors import InitFailed, OptionError, RunChanged, RunError, RunInUse, UnwritableValue
from fourfold.system import seams

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]

OUT = "memory://out"


@pytest.fixture
def store() -> Iterator[Any]:
    """The file system, empty."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def pieces_of_ten(small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)


def names(store: Any) -> list[str]:
    return sorted(name.removeprefix("/out/") for name in store.find("/"))


def put_part(store: Any, run: str, number: int = 0, folder: str = "/out") -> str:
    """What an attempt of a run has written."""
    path = f"{folder}/{Store(OUT, Credentials(), run).name(number, 0, '.parquet')}"
    with store.open(path, "wb") as file:
        pq.write_table(people(10), file)
    return path


def fail_at_35(batch: pd.DataFrame) -> pd.DataFrame:
    if (batch["id"] == 35).any():
        raise ValueError("no")
    return batch


@pytest.mark.usefixtures("pieces_of_ten")
@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("engine", ["auto", "serial", "threads"])
def test_what_is_written_into_a_store_is_read_back_in_order(format: str, engine: str, store: Any) -> None:
    written = ff.scan(people(60)).write(OUT, format=format, engine=engine, workers=2)
    assert ff.scan(OUT).to_arrow().equals(people(60))
    assert [f"memory:/{name}" for name in sorted(store.glob("/out/part*"))] == written.files, (
        "names are in the order of the rows"
    )
    assert written.n_rows == 60
    assert [name for name in names(store) if not name.startswith("part-")] == ["_fourfold.json"]


@pytest.mark.usefixtures("pieces_of_ten")
def test_other_programs_that_list_the_folder_read_the_same(store: Any) -> None:
    ff.scan(people(60)).write(OUT, partition_by="word")
    found = pads.dataset("/out", filesystem=store, partitioning="hive").to_table()
    assert sorted(found["id"].to_pylist()) == [*range(60)]
    assert ff.scan(OUT).select(["id", "x", "word"]).to_arrow().sort_by("id").equals(people(60))
    assert ff.scan("memory://out/*/*.parquet").count() == 60
    assert ff.scan("memory://out/word=plain").count() == 10
    assert len(names(store)) == 6 * 6 + 1


@pytest.mark.usefixtures("store")
def test_no_rows_in_a_store_tell_the_columns() -> None:
    written = ff.scan(people(0)).write(OUT)
    assert (written.n_rows, written.files) == (0, [])
    assert ff.scan(OUT).to_arrow().equals(people(0))


@pytest.mark.usefixtures("pieces_of_ten")
def test_rows_that_fail_are_kept_in_the_store_and_can_be_fed_back(store: Any) -> None:
    written = ff.scan(people(60)).map_batches(fail_at_35).write(OUT, on_error="skip")
    assert [failure.row for failure in written.failures] == [35]
    assert ff.scan(written.failed_path).to_arrow()["_error"].to_pylist() == ["ValueError: no"]
    for source in ("_failed", "_failed/", "_failed/*.parquet"):
        assert ff.scan(f"{OUT}/{source}").to_arrow()["_row"].to_pylist() == [35]
    assert ff.scan(OUT).count() == ff.scan(f"{OUT}/**").count() == 59
    ff.scan(people(60)).write(OUT, overwrite=True)
    assert not [name for name in names(store) if name.startswith("_failed")]


def test_types_that_differ_are_widened_in_the_store(store: Any, small_pieces: Cut) -> None:
    small_pieces(1, 1 << 20)
    values = [None, 1, 2.5]
    rows = ff.scan([{"n": n} for n in range(3)])
    rows.map_batches(lambda batch: pa.table({"a": [values[batch[0]["n"]]]}), batch_format="pylist").write(OUT)
    assert ff.scan(OUT).to_arrow()["a"].to_pylist() == [None, 1.0, 2.5]
    found = json.loads(store.cat_file("/out/_fourfold.json"))["files"]
    assert [each["bytes"] for each in found] == [store.size(f"/out/{each['path']}") for each in found]
    assert len(names(store)) == 3 + 1, "the narrower files are gone"


def test_types_that_differ_within_a_piece_of_a_store_are_widened_too(store: Any) -> None:
    values = [None, 1, 2.5]
    found = ff.scan([{"n": n} for n in range(3)]).map_batches(
        lambda batch: (pa.table({"a": [values[row["n"]]]}) for row in batch), batch_size=1, batch_format="pylist"
    )
    found._plan = found._plan._replace(batch_rows=1)
    found.write(OUT)
    assert ff.scan(OUT).to_arrow()["a"].to_pylist() == [None, 1.0, 2.5]
    assert len(names(store)) == 2


# ---- all or nothing --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pieces_of_ten")
def test_a_run_that_fails_leaves_nothing_in_the_store_and_what_was_there(store: Any) -> None:
    ff.scan(people(5)).write(OUT)
    before = names(store)
    with pytest.raises(ValueError, match="no"):
        ff.scan(people(50)).map_batches(fail_at_35).write(OUT, overwrite=True)
    assert names(store) == before
    assert ff.scan(OUT).count() == 5


@pytest.mark.usefixtures("pieces_of_ten")
def test_while_it_is_written_readers_see_what_was_there_and_then_all_of_it(store: Any) -> None:
    seen = []

    def look(batch: pd.DataFrame) -> pd.DataFrame:
        seen.append(ff.scan(OUT).count())
        return batch

    ff.scan(people(5)).write(OUT)
    ff.scan(people(60)).map_batches(look).write(OUT, overwrite=True, engine="serial")
    assert seen == [5] * 6
    assert ff.scan(OUT).to_arrow().equals(people(60))
    assert len(names(store)) == 6 + 1, "what was replaced is gone"


@pytest.mark.usefixtures("pieces_of_ten")
def test_what_has_not_ended_is_nothing_to_a_reader(store: Any) -> None:
    with pytest.raises(OptionError, match="there is no file"):
        ff.scan(OUT)
    path = put_part(store, "1" * 16)
    for source in (OUT, "memory://out/*.parquet"):
        with pytest.raises(OptionError, match="no finished output, only 1 files of runs that have not ended"):
            ff.scan(source)
    assert ff.scan(f"memory://{path}").count() == 10, "who names a file means it"


@pytest.mark.usefixtures("pieces_of_ten")
def test_what_a_zombie_writes_later_is_no_row(store: Any) -> None:
    written = ff.scan(people(60)).write(OUT)
    run = json.loads(store.cat_file("/out/_fourfold.json"))["run"]
    late = put_part(store, run, 3)
    assert ff.scan(OUT).to_arrow().equals(people(60))
    assert ff.scan("memory://out/part-*").count() == 60
    assert [*sweep_store(OUT)] == [f"memory://{late}"]
    assert ff.scan(OUT).count() == written.n_rows


def test_what_others_put_into_an_output_is_no_row_of_it(store: Any) -> None:
    ff.scan(people(6)).write(OUT)
    with store.open("/out/theirs.parquet", "wb") as file:
        pq.write_table(people(4), file)
    assert [ff.scan(source).count() for source in (OUT, "memory://out/*.parquet", "memory://out/theirs.parquet")] == [6, 6, 4]


def test_a_folder_that_was_copied_into_a_store_has_all_its_files(store: Any, tmp_path: Path) -> None:
    ff.scan(people(6)).write(tmp_path / "out")
    store.put(str(tmp_path / "out"), "/out", recursive=True)
    assert ff.scan(OUT).count() == 6
    with store.open("/out/more.parquet", "wb") as file:
        pq.write_table(people(4), file)
    assert ff.scan(OUT).count() == 10


@pytest.mark.usefixtures("pieces_of_ten")
def test_a_file_that_is_gone_is_an_error_and_no_rows_less(store: Any) -> None:
    ff.scan(people(60)).write(OUT)
    store.rm_file(sorted(store.glob("/out/part*"))[2])
    with pytest.raises(OptionError, match=r"part-00000002.* is gone, and the manifest of its folder names it"):
        ff.scan(OUT)


@pytest.mark.usefixtures("pieces_of_ten")
@pytest.mark.parametrize("source", ["k=1", "k=1/", "*/*.parquet", "k=1/part-*", "k=[12]/*", "**"])
def test_a_file_that_is_gone_is_an_error_of_globs_and_of_folders_of_values_too(source: str, store: Any) -> None:
    ff.scan(people(60).append_column("k", [[row % 3 for row in range(60)]])).write(OUT, partition_by="k")
    assert ff.scan(f"{OUT}/{source}").count() in (20, 40, 60)
    gone = sorted(store.glob("/out/k=1/part-*"))[2]
    store.rm_file(gone)
    with pytest.raises(OptionError, match=f"{re.escape(gone)} is gone, and the manifest of its folder names it"):
        ff.scan(f"{OUT}/{source}")
    assert [ff.scan(f"{OUT}/{other}").count() for other in ("k=2", "k=0/*", "*/part-00000000-*")] == [20, 20, 10]


@pytest.mark.usefixtures("pieces_of_ten")
@pytest.mark.parametrize("source", ["*/*.parquet", "*/k=*/*.parquet", "*/k=1/*", "**/*.parquet", "[ab]/**/part-*", "*/*/*"])
def test_an_output_of_which_every_file_is_gone_is_an_error_of_a_glob_over_several(source: str, store: Any) -> None:
    rows = ff.scan(people(60).append_column("k", [[row % 3 for row in range(60)]]))
    for name in ("a", "b"):
        rows.write(f"memory://data/{name}", partition_by=["k"] if "k=" in source or source == "*/*/*" else None)
    n_rows = ff.scan(f"memory://data/{source}").count()
    assert n_rows in (40, 120)
    gone = store.glob(f"/data/a/{source.partition('/')[2]}")
    store.rm([path for path in gone if path.endswith(".parquet")])
    with pytest.raises(OptionError, match=r"^/data/a/.*\.parquet is gone, and the manifest of its folder names it"):
        ff.scan(f"memory://data/{source}")
    store.rm("/data/a", recursive=True)
    assert ff.scan(f"memory://data/{source}").count() == n_rows / 2, "nothing is missed of an output that is gone as a whole"


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("source", ["memory://none/*.parquet", "memory://*/none", "memory://none", "memory://none/**"])
def test_what_a_url_does_not_find_is_named(source: str) -> None:
    with pytest.raises(OptionError, match=rf"there is no file at {re.escape(source)}$"):
        ff.scan(source)


def test_an_output_in_a_hidden_folder_is_nothing_to_readers_of_the_folder_above(store: Any) -> None:
    for folder in ("new", "_old/out", ".older"):
        ff.scan(people(6)).write(f"memory://data/{folder}")
    assert ff.scan("memory://data").count() == ff.scan("memory://data/**").count() == 6
    assert ff.scan("memory://data/_old/out").count() == 6, "who names it means it"
    store.rm(store.glob("/data/_old/out/part-*"))
    assert ff.scan("memory://data").count() == 6
    with pytest.raises(OptionError, match="is gone, and the manifest"):
        ff.scan("memory://data/_old")


def test_a_reader_that_lists_while_somebody_publishes_looks_again(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ff.scan(people(5)).write(OUT)
    find, is_first = store.find, [True]

    def stale(path: str, **options: Any) -> Any:
        found = find(path, **options)
        if is_first.pop() if is_first else False:
            ff.scan(people(7)).write(OUT, overwrite=True)
        return found

    monkeypatch.setattr(type(store), "find", lambda self, path, **options: stale(path, **options))
    assert ff.scan(OUT).count() == 7


# ---- what is there already -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pieces_of_ten")
def test_nothing_in_a_store_is_overwritten_unless_that_is_asked_for(store: Any) -> None:
    store.pipe_file("/out/mine.txt", b"x")
    ran = []
    with pytest.raises(OptionError, match="is there already: give another path, or overwrite=True"):
        ff.scan(people(6)).map_batches(ran.append).write(OUT)
    assert ran == []
    ff.scan(people(6)).write(OUT, overwrite=True)
    assert [name for name in names(store) if not name.startswith("part-")] == ["_fourfold.json"]


def test_files_of_another_run_that_has_not_ended_are_told_apart(store: Any) -> None:
    put_part(store, "1" * 16)
    with pytest.raises(OptionError, match=r"has 1 files of another run that has not ended: .* fourfold clean memory://out"):
        ff.scan(people(6)).write(OUT)


def test_of_two_that_write_to_one_place_the_second_changes_nothing(store: Any) -> None:
    def other(batch: pd.DataFrame) -> pd.DataFrame:
        if not store.exists("/out/_fourfold.json"):
            store.pipe_file("/out/_fourfold.json", b'{"run": "%s", "files": [], "empty": []}' % (b"1" * 16))
        return batch

    with pytest.raises(OptionError, match="has appeared meanwhile: nothing of it was changed"):
        ff.scan(people(6)).map_batches(other).write(OUT)
    assert names(store) == ["_fourfold.json"]


def test_where_a_store_can_only_put_what_is_not_there_yet_the_look_before_is_not_all(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = type(store).pipe_file

    def lose(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if path == "/out/_fourfold.json" and mode == "create":
            pipe(self, path, b'{"run": "%s", "files": [], "empty": []}' % (b"1" * 16))  # between the look and the put
        pipe(self, path, value, mode=mode, **options)

    monkeypatch.setattr(type(store), "pipe_file", lose)
    with pytest.raises(OptionError, match="has appeared meanwhile: nothing of it was changed"):
        ff.scan(people(6)).write(OUT)
    assert json.loads(store.cat_file("/out/_fourfold.json"))["run"] == "1" * 16


def test_a_store_that_cannot_put_only_what_is_not_there_yet_is_written_too(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = type(store).pipe_file
    monkeypatch.setattr(type(store), "pipe_file", lambda self, path, value: pipe(self, path, value))
    assert ff.scan(people(6)).write(OUT).n_rows == ff.scan(OUT).count() == 6


def test_an_overwriting_run_leaves_what_another_one_writes(store: Any) -> None:
    ff.scan(people(3)).write(OUT)
    theirs = put_part(store, "1" * 16)
    ff.scan(people(6)).write(OUT, overwrite=True)
    assert store.exists(theirs)
    assert ff.scan(OUT).count() == 6


@pytest.mark.parametrize("how", ["the same call again", "clean"])
def test_what_was_replaced_goes_also_when_the_driver_died_before_it_could_take_it_away(
    store: Any, tmp_path: Path, how: str
) -> None:
    def write() -> Any:
        return ff.scan(people(6)).write(OUT, overwrite=True, run=tmp_path / "run")

    ff.scan(people(3)).write(OUT)
    with store.open("/out/mine.parquet", "wb") as file:
        pq.write_table(people(4), file)
    seams.set_faults("output.published:1:EIO")
    discard, StoreOutput.discard = StoreOutput.discard, lambda self: None  # type: ignore[method-assign]
    try:
        with pytest.raises(OSError, match="Input/output error"):
            write()
    finally:
        seams.set_faults("")
        StoreOutput.discard = discard  # type: ignore[method-assign]
    assert len(names(store)) == 5
    assert ff.scan(OUT).count() == 6
    if how == "clean":
        assert len([*sweep_store(OUT)]) == 1
        store.rm_file(store.find("/out/_fourfold")[0])
        store.rm_file("/out/mine.parquet")
    else:
        assert write().n_rows == 6
    assert len(names(store)) == 2
    assert ff.scan(OUT).count() == 6
    store.pipe_file("/out/mine.parquet", b"put there later")
    assert (write().n_rows, [*sweep_store(OUT)]) == (6, [])
    assert store.exists("/out/mine.parquet")


def test_an_output_that_is_there_is_no_error_when_what_is_left_cannot_be_removed(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: StoreOutput) -> None:
        raise OSError("the network is gone")

    monkeypatch.setattr(StoreOutput, "_take_away", fail)
    assert ff.scan(people(6)).write(OUT).n_rows == ff.scan(OUT).count() == 6
    assert "could not be removed (OSError: the network is gone); type: fourfold clean memory://out" in caplog.text
    assert names(store)[0].startswith("_fourfold")


# ---- runs that go on -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pieces_of_ten")
def test_a_recorded_run_goes_on_in_the_store(store: Any, tmp_path: Path) -> None:
    def check(batch: pd.DataFrame) -> pd.DataFrame:
        return batch if (tmp_path / "mended").exists() else fail_at_35(batch)

    dataset = ff.scan(people(60)).map_batches(check)
    with pytest.raises(ValueError, match="no"):
        dataset.write(OUT, run=tmp_path / "run", engine="serial")
    n_before = len(store.glob("/out/part-*"))
    assert n_before >= 1
    assert [*sweep_store(OUT)] == [], "the run can go on"
    (tmp_path / "mended").touch()
    written = dataset.write(OUT, run=tmp_path / "run", engine="serial")
    assert written.report.n_recorded >= n_before
    again = dataset.write(OUT, run=tmp_path / "run", engine="serial")
    assert (again.files, again.n_rows, again.report.n_recorded) == (written.files, 60, 6)
    assert ff.scan(OUT).to_arrow().equals(people(60))
    assert len(names(store)) == 6 + 1


@pytest.mark.usefixtures("pieces_of_ten")
def test_parts_that_somebody_took_from_the_store_are_named(store: Any, tmp_path: Path) -> None:
    dataset = ff.scan(people(60)).map_batches(lambda batch: batch if (tmp_path / "mended").exists() else fail_at_35(batch))
    with pytest.raises(ValueError, match="no"):
        dataset.write(OUT, run=tmp_path / "run", engine="serial")
    (tmp_path / "mended").touch()
    store.rm_file(store.glob("/out/part-*")[0])
    with pytest.raises(RunError, match="is gone or has another size"):
        dataset.write(OUT, run=tmp_path / "run", engine="serial")
    with pytest.raises(OptionError, match="no finished output"):
        ff.scan(OUT)


def test_a_driver_that_lives_keeps_others_of_its_run_away(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (StoreOutput(OUT, Wanted("1" * 16, "parquet"), Credentials()) for _ in range(2))
    first.open()
    monkeypatch.setattr(Writer, "is_this_process", lambda self: False)
    with pytest.raises(RunInUse, match="another call of the same run writes memory://out right now"):
        second.open()
    second.discard()
    assert len(names(store)) == 1
    first.discard()
    assert names(store) == []


# ---- clean -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("writer", "stays"),
    [
        (writer_of_this_process(None), True),
        (writer_of_this_process(None)._replace(began=1), False),
        (Writer("elsewhere", 1, 1, None), True),
        (None, False),
    ],
    ids=["a process that lives", "one that has its number", "one of another machine", "nobody"],
)
def test_clean_removes_from_a_store_what_nobody_goes_on_with(store: Any, writer: Writer | None, stays: bool) -> None:
    ff.scan(people(6)).write(OUT)
    put_part(store, "1" * 16, folder="/out/day=1")
    if writer is not None:
        store.pipe_file(f"/out/_fourfold/{'1' * 16}.json", json.dumps(writer._asdict()).encode())
    assert [*sweep_store("memory://out/day=1")] == [*sweep_store(OUT)] or not stays
    assert bool(store.find("/out/day=1")) == stays
    assert [*sweep_store(OUT, 0.0)] == [] or not (writer is None or writer.is_alive())
    assert bool(store.find("/out/day=1")) == (writer is not None and writer.is_alive())
    assert ff.scan(OUT).count() == 6


@pytest.mark.parametrize("folder", [OUT, f"{OUT}/k=1"])
@pytest.mark.parametrize("what", [PermissionError("no"), OSError("the network is gone"), b'{"run": "1', b"[]"], ids=str)
def test_clean_removes_nothing_where_a_manifest_cannot_be_read(
    what: Any, folder: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ff.scan([{"k": 1, "a": 2}]).write(OUT, partition_by="k")
    put_part(store, "1" * 16, folder="/out/k=1")
    before, cat = names(store), type(store).cat_file

    def read(self: Any, path: str, **options: Any) -> Any:
        if not path.endswith("/out/_fourfold.json"):
            return cat(self, path, **options)
        if isinstance(what, Exception):
            raise what
        return what

    monkeypatch.setattr(type(store), "cat_file", read)
    with pytest.raises(OptionError, match=r"out/_fourfold.json: this manifest cannot be read \(.*nothing was removed"):
        list(sweep_store(folder))
    assert names(store) == before
    monkeypatch.undo()
    assert len([*sweep_store(folder)]) == 1
    assert ff.scan(OUT).count() == 1


def test_clean_needs_no_key_for_what_lies_above_the_output(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_out(name: str) -> None:
        real = getattr(type(store), name)

        def look(self: Any, path: str, *args: Any, **options: Any) -> Any:
            if not path.startswith("/b/mine"):
                raise PermissionError(path)
            return real(self, path, *args, **options)

        monkeypatch.setattr(type(store), name, look)

    ff.scan(people(6)).write("memory://b/mine/out")
    path = put_part(store, "1" * 16, folder="/b/mine/out")
    keep_out("cat_file")
    keep_out("find")
    assert [*sweep_store("memory://b/mine/out")] == [f"memory://{path}"]


@pytest.mark.parametrize("moment", ["writers are listed", "the manifest was looked for"])
def test_clean_leaves_what_is_published_while_it_looks(moment: str, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = "1" * 16
    path, marker = put_part(store, run, folder="/out/k=1"), f"/out/_fourfold/{run}.json"
    store.pipe_file(marker, json.dumps(writer_of_this_process(None)._asdict()).encode())
    find, cat = type(store).find, type(store).cat_file

    def publish() -> None:
        if store.exists(marker):
            facts = {"run": run, "files": [{"path": path.removeprefix("/out/")}], "empty": []}
            store.pipe_file("/out/_fourfold.json", json.dumps(facts).encode())
            store.rm_file(marker)

    def list_files(self: Any, path: str, **options: Any) -> Any:
        if path == "/out/_fourfold" and moment == "writers are listed":
            publish()
        return find(self, path, **options)

    def read(self: Any, path: str, **options: Any) -> Any:
        try:
            return cat(self, path, **options)
        finally:
            if path == "/out/_fourfold.json":
                publish()

    monkeypatch.setattr(type(store), "find", list_files)
    monkeypatch.setattr(type(store), "cat_file", read)
    assert [*sweep_store("memory://out/k=1")] == []
    assert names(store) == ["_fourfold.json", path.removeprefix("/out/")], "it was published"
    assert ff.scan(OUT).count() == 10


def test_a_process_that_is_dead_has_no_beginning() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert writers._began(process.pid) == -1, "nobody has asked for its end yet"
    process.wait()
    assert writers._began(process.pid) == -1
    assert writers._began(os.getpid()) > 0


# ---- where workers see it --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("store", "pieces_of_ten")
def test_memory_of_this_process_is_not_for_other_processes() -> None:
    ran: list[Any] = []
    expected = r"memory:// is the memory of this process, and workers of engine='processes' cannot see it"
    with pytest.raises(OptionError, match=expected):
        ff.scan(people(60)).map_batches(ran.append).write(OUT, engine="processes")
    ff.scan(people(60)).write(OUT)
    with pytest.raises(OptionError, match=expected):
        ff.scan(OUT).map_batches(ran.append).count(engine="processes")
    with pytest.raises(OptionError, match=r"engine='auto' cannot see it \(timeout= needs processes\)"):
        ff.scan(OUT).count(timeout=3)
    assert ran == []
    train, _ = ff.scan(OUT).map_batches(lambda batch: batch, schema=people(0).schema).split(test=0.5, by="id")
    assert train.count() > 0


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_a_folder_that_workers_do_not_see_is_one_error_and_nothing_runs(
    engine: str, on_error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(batch: pd.DataFrame) -> pd.DataFrame:
        (tmp_path / "ran").touch()
        return batch

    monkeypatch.setattr(Output, "open", lambda self: None)  # as if the driver had made it on another machine
    with pytest.raises(InitFailed) as caught:
        ff.scan(people(60)).map_batches(note).write(tmp_path / "out", engine=engine, workers=2, on_error=on_error)
    assert re.search(r"workers on \S+ do not see the folder .*, which the driver has made", str(caught.value.__cause__))
    assert os.listdir(tmp_path) == []


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_options_of_a_store_travel_and_stay_out_of_files_and_fingerprints() -> None:
    options = Credentials(key="AKIA", secret="hunter2")
    assert pickle.loads(pickle.dumps(options)) == options
    with credentials_kept_out():
        assert b"hunter2" not in pickle.dumps({"storage": options})
    assert "hunter2" not in repr(options)


@pytest.mark.usefixtures("pieces_of_ten", "store")
def test_a_run_goes_on_with_another_key_and_has_none_in_its_folder(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/in/a.csv", b"a\n" + b"1\n" * 10)

    def write(word: str) -> Any:
        options = {"token": word, "skip_instance_cache": True}
        dataset = ff.scan("memory://in/a.csv", storage_options=options)
        return dataset.write(OUT, storage_options=options, run=tmp_path / "run")

    assert write("hunter2").report.n_recorded == 0
    assert write("hunter3").report.n_recorded == 1
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(kept) > 1
    assert not [path for path in kept if b"hunter" in path.read_bytes()]
    with pytest.raises(RunChanged):
        ff.scan("memory://in/a.csv").map_batches(fail_at_35).write(OUT, run=tmp_path / "run")


@pytest.mark.usefixtures("store")
def test_what_does_not_go_together_appears_nowhere_in_the_store(store: Any, small_pieces: Cut) -> None:
    small_pieces(1, 1 << 20)
    values = [1, "x"]
    rows = ff.scan([{"n": n} for n in range(2)])
    with pytest.raises(UnwritableValue, match="column 'a' is string"):
        rows.map_batches(lambda batch: pa.table({"a": [values[batch[0]["n"]]]}), batch_format="pylist").write(OUT)
    assert names(store) == []
