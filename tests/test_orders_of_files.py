"""`Dataset.write(order=)`: rows in the order of the input, or in any order in fewer files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from tables import people, small_pieces

import fourfold as ff
from fourfold.data import merging
from fourfold.errors import UnwritableValue

__all__ = ["small_pieces"]

Cut = Callable[[int, int], None]


@pytest.fixture(params=["folder", "store"])
def out(request: pytest.FixtureRequest, tmp_path: Path, small_pieces: Cut) -> Iterator[str]:
    """Where to write; pieces have ten rows."""
    small_pieces(10, 1 << 20)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield str(tmp_path / "out") if request.param == "folder" else "memory://out"
    fs.store.clear()


def names_in(out: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(out)
    return sorted(name.removeprefix(f"{path}/") for name in fs.find(path) if "/_" not in name)


def ids(out: str, **reading: Any) -> list[int]:
    found: list[int] = ff.scan(out, **reading).to_arrow()["id"].to_pylist()
    return found


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_with_order_names_of_files_are_in_the_order_of_the_rows_in_each_folder(format: str, out: str) -> None:
    ff.scan(people(120)).write(out, format=format, engine="threads", workers=2)
    assert ids(out) == [*range(120)]
    assert [name for each in names_in(out) for name in ids(f"{out}/{each}")] == [*range(120)]
    ff.scan(people(120)).write(out, format=format, partition_by="word", overwrite=True)
    for folder in {name.partition("/")[0] for name in names_in(out)}:
        found = [each for name in names_in(out) if name.startswith(folder) for each in ids(f"{out}/{name}")]
        assert found == sorted(found)


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_without_order_small_files_of_a_folder_are_one(format: str, out: str) -> None:
    rows = ff.scan(people(60))
    rows.write(out, format=format, partition_by="word")
    assert len(names_in(out)) == 6 * 6
    written = rows.write(out, format=format, partition_by="word", order=False, overwrite=True)
    assert len(names_in(out)) == len(written.files) == 6
    found = ff.scan(out).select(["id", "x", "word"]).to_arrow()
    assert found.sort_by("id").equals(people(60)), "each row once"


def test_without_order_the_files_do_not_depend_on_workers(tmp_path: Path, small_pieces: Cut) -> None:
    small_pieces(10, 1 << 20)
    seen = []
    for at, options in enumerate([{"engine": "serial"}, {"engine": "processes", "workers": 2, "chunk": 1}]):
        written = ff.scan(people(60)).write(tmp_path / str(at), partition_by="word", order=False, **options)
        seen.append([Path(each).read_bytes() for each in written.files])
    assert seen[0] == seen[1]


def test_only_small_files_are_put_together_and_not_into_one_that_is_too_large(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ff.scan(people(60)).write(out)
    fs, path = fsspec.core.url_to_fs(out)
    sizes = [fs.size(f"{path}/{name}") for name in names_in(out)]
    monkeypatch.setattr(merging, "MERGED_BYTES", 2 * max(sizes))
    ff.scan(people(60)).write(out, order=False, overwrite=True)
    assert len(names_in(out)) == 3
    monkeypatch.setattr(merging, "SMALL_BYTES", 1)
    ff.scan(people(60)).write(out, order=False, overwrite=True)
    assert len(names_in(out)) == 6
    assert sorted(ids(out)) == [*range(60)]


def test_without_order_a_recorded_run_that_ended_is_done_at_once(out: str, tmp_path: Path) -> None:
    def write() -> Any:
        return ff.scan(people(60)).write(out, order=False, run=tmp_path / "run")

    first, again = write(), write()
    assert (again.files, again.report.n_recorded) == (first.files, 6)
    assert len(names_in(out)) == 1


def test_types_that_differ_are_widened_where_files_are_put_together(out: str, small_pieces: Cut) -> None:
    small_pieces(1, 1 << 20)
    values = [None, 1, 2.5]
    rows = ff.scan([{"n": n} for n in range(3)])
    rows.map_batches(lambda batch: [{"a": values[row["n"]]} for row in batch], batch_format="pylist").write(out, order=False)
    assert sorted(ff.scan(out).to_arrow()["a"].to_pylist(), key=str) == [1.0, 2.5, None]
    assert len(names_in(out)) == 1


@pytest.mark.parametrize("order", [True, False])
def test_pieces_that_do_not_go_together_are_one_error_in_any_order(order: bool, out: str, small_pieces: Cut) -> None:
    small_pieces(1, 1 << 20)
    rows = ff.scan([{"n": 0}, {"n": 1}])
    rows = rows.map_batches(lambda batch: pa.table({"a": ["x" if batch[0]["n"] else 1]}), batch_format="pylist")
    words = "what came of piece 1 does not go with the pieces before it: column 'a' is string here and int64 in another batch"
    with pytest.raises(UnwritableValue, match=words):
        rows.write(out, order=order, engine="serial")
    assert names_in(out) == []


@pytest.mark.parametrize("order", [True, False])
def test_an_integer_that_is_too_large_for_the_fractions_of_another_piece_is_an_error(
    order: bool, out: str, small_pieces: Cut
) -> None:
    small_pieces(1, 1 << 20)
    rows = ff.scan([{"n": 0}, {"n": 1}])
    rows = rows.map_batches(lambda batch: pa.table({"a": [0.5 if batch[0]["n"] else 2**60 + 1]}), batch_format="pylist")
    with pytest.raises(
        UnwritableValue, match="of one piece does not go with the others: column 'a' is int64 and does not fit"
    ):
        rows.write(out, order=order, engine="serial")
    assert names_in(out) == []
