"""Values into a file, in order, streamed; the file appears whole or not at all.

    values ──write(index, value)──> JsonLines | Csv | Parquet ──> .OUT.<random>.part
                                                                     │ finish(): flushed, on the disk
                                                                     │ publish(): renamed to OUT
                                                                     │ discard(): removed

A killed process can leave a `.part` file behind, never a half OUT.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Protocol

from fourfold.aggregate.part_file import PartFile
from fourfold.aggregate.rows import Columns, as_row, plain, to_json
from fourfold.errors import MissingExtra, OptionError, UnwritableValue

SINK_OF_EXTENSION = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


class Sink(Protocol):
    """Takes values in input order and puts them into a file.

    *Called when*: `write` once per value, then `finish` once, or `discard` instead when something went wrong.
    *Must not* show anything under the output's name before `publish`.
    """

    path: Path
    """The output, as the user gave it."""

    n_nulled: int
    """Numbers that the format cannot hold (NaN, infinity in JSON) and that were written as null."""

    def write(self, index: int, value: object) -> None:
        """Take the value of the item `index`."""

    def finish(self) -> None:
        """Write what is held back and bring it to the disk."""

    def publish(self) -> None:
        """Put the finished file in its place, at once, replacing what was there."""

    def discard(self) -> None:
        """Remove what was written. May be called at any time, and twice."""


def open_sink(path: str | os.PathLike[str]) -> Sink:
    """The sink for `path`, chosen by its extension.

    Raises:
        OptionError: the extension is not known, or the folder does not exist.
        MissingExtra: parquet, and pyarrow is not installed.
    """
    path = Path(path)
    format = SINK_OF_EXTENSION.get(path.suffix.lower())
    if format is None:
        raise OptionError(
            f"cannot tell the output format of {str(path)!r} from its extension {path.suffix!r}; "
            f"use one of {' '.join(SINK_OF_EXTENSION)}"
        )
    if format == "parquet":
        # Beside this file so that this one stays free of Arrow.
        try:
            from fourfold.aggregate.parquet import Parquet
        except ImportError as exc:
            raise MissingExtra("writing parquet needs pyarrow: pip install 'fourfold[data]'") from exc
        return Parquet(path)
    return JsonLines(path) if format == "jsonl" else Csv(path)


class JsonLines:
    """One JSON value per line. NaN and infinities, which JSON does not have, become null and are counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = PartFile(path)
        self.n_nulled = 0
        self.finish, self.publish, self.discard = self._file.finish, self._file.publish, self._file.discard

    def write(self, index: int, value: object) -> None:
        try:
            text, n_nulled = to_json(as_row(value))
        except (TypeError, ValueError, RecursionError) as exc:
            raise UnwritableValue(f"item {index}: its result cannot be written as JSON: {exc}") from exc
        self.n_nulled += n_nulled
        try:
            line = text.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8, but it has an escape
            line = json.dumps(json.loads(text)).encode("ascii")
        self._file.handle.write(line + b"\n")


_CELLS = frozenset({str, int, float, bool, type(None)})
"""What the csv writer takes as it is; everything else is looked at."""


class Csv:
    """A header and one line per value, in UTF-8. The columns are those of the first row.

    None and missing values are empty; lists, dicts and arrays are JSON text in their cell.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = PartFile(path)
        text = io.TextIOWrapper(self._file.handle, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(text, lineterminator="\n")
        # Before Python 3.13 the writer leaves a lone \r unquoted, and then no reader takes the file.
        self._quoting_writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._columns: Columns | None = None
        self.n_nulled = 0
        self.finish, self.publish, self.discard = self._file.finish, self._file.publish, self._file.discard

    def write(self, index: int, value: object) -> None:
        if self._columns is None:
            self._columns = Columns(index, value)
            self._writer.writerow(self._columns.names)
        writer = self._writer
        cells = self._columns.cells(index, value)
        for at, cell in enumerate(cells):
            if type(cell) not in _CELLS:
                cell = cells[at] = self._cell(index, self._columns.names[at], cell)
            if type(cell) is str and "\r" in cell:
                writer = self._quoting_writer
        try:
            writer.writerow(cells)
        except UnicodeEncodeError as exc:
            raise UnwritableValue(f"item {index}: its result holds a str that is no Unicode: {exc}") from exc

    def _cell(self, index: int, name: str, value: object) -> object:
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int | float):
            return value
        try:
            value = plain(value)
            if not isinstance(value, dict | list | tuple):
                return value
            text, n_nulled = to_json(value)
        except (TypeError, ValueError, RecursionError) as exc:
            raise UnwritableValue(f"item {index}, column {name!r}: {exc}") from exc
        self.n_nulled += n_nulled
        return text
