"""Files as items: which files the inputs name, and their rows, lazily, each with the place it came from.

inputs        "a.csv"  "logs/"  "day-*.jsonl.gz"  "-"
  find_files  everything that can be wrong with a name is said here, before anything runs
InputFile     path + format
  read_rows   one row at a time: the file is never held
(Place, row)  the row, and the file and line a failure will be reported with
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

from fourfold.errors import MissingExtra, OptionError, UnreadableInput
from fourfold.shown import safe_repr

STDIN = "-"

FORMAT_OF_EXTENSION = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
    ".log": "text",
}

# Rows of a parquet file decoded at once. Smaller: more calls into Arrow per row. Larger: more rows held as
# Python objects, which is what bounds the memory of reading. Not measured.
_PARQUET_BATCH_ROWS = 4096


class Place(NamedTuple):
    """Where a row came from: `line` counts from 1 (text formats), `row` from 0 (parquet)."""

    source: str
    unit: str = ""
    number: int = 0

    def __str__(self) -> str:
        if not self.unit:
            return self.source
        return f"{self.source}:{self.number}" if self.unit == "line" else f"{self.source} row {self.number}"


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read, or standard input (path `-`), and the format it is read as."""

    path: str
    format: str


def find_files(inputs: Sequence[str], format: str | None = None) -> list[InputFile]:
    """The files that `inputs` name, in the order given, with the format of each.

    Args:
        inputs: paths, globs (`**` included), folders (every visible file below, sorted), or `-`.
        format: read all of them as this; None goes by the extension of each (before `.gz`).

    Raises:
        OptionError: nothing is there, a glob matches nothing, or a format is unknown or missing.
    """
    if format is not None and format not in READERS:
        raise OptionError(f"unknown format {format!r}; formats are: {', '.join(READERS)}")
    return [InputFile(path, format or _format_of(path)) for path in find_paths(inputs)]


def find_paths(inputs: Sequence[str]) -> list[str]:
    """The paths that `inputs` name, whatever their format; see `find_files`."""
    return [path for name in inputs for path in _paths_of(name)]


def read_rows(file: InputFile) -> Iterator[tuple[Place, object]]:
    """The rows of one file, read as they are asked for.

    A jsonl row is any JSON value, a csv row a dict of strings, a parquet row a dict, a text row its line.

    Raises:
        UnreadableInput: the content is broken; the message opens with the file and the line.
        MissingExtra: parquet, and pyarrow is not installed.
    """
    source = "stdin" if file.path == STDIN else file.path
    return READERS[file.format](file.path, source)


def _paths_of(name: str) -> list[str]:
    if name == STDIN or os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        return _files_below(name)
    if glob.has_magic(name):
        matches = sorted(path for path in glob.glob(name, recursive=True) if not os.path.isdir(path))
        if matches:
            return matches
        raise OptionError(f"no file matches {name!r} in {os.getcwd()}; check the pattern with ls")
    if os.path.exists(name):  # a named pipe, /dev/stdin
        return [name]
    raise OptionError(f"input not found: {name} (looked in {os.getcwd()})")


def _files_below(folder: str) -> list[str]:
    """Every file below a folder, sorted; names that begin with `.` or `_` are other tools' marks, not data."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    visible = [str(path) for path in paths if not any(part[0] in "._" for part in path.relative_to(folder).parts)]
    if not visible:
        raise OptionError(f"no file in the folder {folder}")
    return visible


def _format_of(path: str) -> str:
    if path == STDIN:
        raise OptionError("standard input has no extension: say what it holds, e.g. --format jsonl")
    extension = Path(path.removesuffix(".gz")).suffix.lower()
    if extension in FORMAT_OF_EXTENSION:
        return FORMAT_OF_EXTENSION[extension]
    raise OptionError(
        f"cannot tell the format of {path} from its extension {extension!r}; known are "
        f"{' '.join(FORMAT_OF_EXTENSION)}: say what it holds, e.g. --format text"
    )


@contextmanager
def _opened(path: str, source: str) -> Iterator[IO[bytes]]:
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as handle:
            yield cast("IO[bytes]", handle)
    except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise UnreadableInput(f"{source}: not a whole gzip file: {exc}") from exc


def _lines(path: str, source: str) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends; a byte-order mark at its start is dropped."""
    with _opened(path, source) as handle:
        for number, raw in enumerate(handle, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as exc:
                raise UnreadableInput(
                    f"{source}:{number}: not UTF-8: byte 0x{raw[exc.start]:02x} at column {exc.start + 1}; "
                    f"convert the file, e.g. iconv -f latin1 -t utf-8"
                ) from exc
            yield line.removeprefix("\ufeff") if number == 1 else line


def _read_text(path: str, source: str) -> Iterator[tuple[Place, object]]:
    for number, line in enumerate(_lines(path, source), 1):
        yield Place(source, "line", number), line.removesuffix("\n").removesuffix("\r")


def _read_jsonl(path: str, source: str) -> Iterator[tuple[Place, object]]:
    for number, line in enumerate(_lines(path, source), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise UnreadableInput(f"{source}:{number}: not valid JSON: {_json_reason(exc, line)}") from exc
        yield Place(source, "line", number), row


def _json_reason(exc: Exception, line: str) -> str:
    if not isinstance(exc, json.JSONDecodeError):
        return str(exc)
    end = len(line.rstrip())
    hint = "; jsonl holds one value per line" if exc.pos >= end and line.lstrip()[0] in "[{" else ""
    return f"{exc.msg} (column {min(exc.pos, end) + 1}){hint}"


def _read_csv(path: str, source: str) -> Iterator[tuple[Place, object]]:
    rows = csv.reader(_lines(path, source), strict=True)
    start = 1
    header: list[str] | None = None
    try:
        for values in rows:
            place, start = Place(source, "line", start), rows.line_num + 1
            if not values:  # an empty line
                continue
            if header is None:
                header = _checked_header(values, place)
                continue
            if len(values) != len(header):
                raise UnreadableInput(
                    f"{place}: {_count(len(values), 'value')} where the header has {len(header)} "
                    f"({', '.join(header)}): {_short(values)}"
                )
            yield place, dict(zip(header, values, strict=True))
    except csv.Error as exc:
        raise UnreadableInput(f"{source}:{start}: not valid csv: {exc}") from exc


def _checked_header(header: list[str], place: Place) -> list[str]:
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise UnreadableInput(f"{place}: the header names {', '.join(map(repr, twice))} more than once")
    return header


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _short(value: object, limit: int = 60) -> str:
    text = safe_repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _read_parquet(path: str, source: str) -> Iterator[tuple[Place, object]]:
    if path == STDIN:
        raise OptionError("parquet cannot be read from a pipe (its index is at the end): give the file")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise MissingExtra("reading parquet needs pyarrow: pip install 'fourfold[data]'") from exc
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield Place(source, "row", number), row
                    number += 1
    except (pyarrow.ArrowException, OSError) as exc:
        raise UnreadableInput(f"{source}: not a readable parquet file: {exc}") from exc


READERS: dict[str, Callable[[str, str], Iterator[tuple[Place, object]]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "text": _read_text,
}
