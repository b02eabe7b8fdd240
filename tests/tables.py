"""Tables for tests: columns of every usual type, written in every format."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import fourfold.data.pieces as pieces
import fourfold.data.plan as plan

# Arrow makes its pools of threads, with pipes of their own, when they are first needed, and keeps them.
pyarrow.csv.read_csv(io.BytesIO(b"a\n1\n"))


def people(n_rows: int) -> pa.Table:
    """Numbers, texts with quotes, commas and line ends, and nulls."""
    words = ["plain", 'with "quotes"', "a,comma", "two\nlines", "ünïcode", None]
    return pa.table(
        {
            "id": pa.array(range(n_rows), pa.int64()),
            "x": pa.array([None if row % 11 == 3 else row / 4 for row in range(n_rows)], pa.float64()),
            "word": pa.array([words[row % len(words)] for row in range(n_rows)], pa.string()),
        }
    )


def write_parquet(table: pa.Table, path: Path, group_rows: int = 100) -> None:
    pq.write_table(table, path, row_group_size=group_rows)


def write_csv(table: pa.Table, path: Path) -> None:
    pyarrow.csv.write_csv(table, path)


def write_jsonl(table: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {"parquet": write_parquet, "csv": write_csv, "jsonl": write_jsonl}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Cut sources into pieces of so many rows and bytes, so that small tables have many."""

    def cut(rows: int, size_bytes: int) -> None:
        for module in ("in_memory", "parquet", "lines"):
            for name, value in (
                ("MIN_ROWS", rows),
                ("MAX_ROWS", rows),
                ("MIN_BYTES", size_bytes),
                ("MAX_BYTES", size_bytes),
            ):
                monkeypatch.setattr(f"fourfold.data.sources.{module}.{name}", value, raising=False)
        monkeypatch.setattr(pieces, "MIN_ROWS", rows)
        monkeypatch.setattr(plan, "MIN_ROWS", rows)

    return cut
