"""A file of tables as they came out of the steps: who looks at their rows again neither reads nor filters them once more.

It is a file of Arrow's own format: a table that is found in it lies where the file is mapped, and nothing is copied. It is
kept where that is cheap, and else not at all: the rows are read again then, as they are on any other machine.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 30
"""Of the tables of a fit, so much is kept at most. Less: fits of middle size read their rows twice. More: the memory that a
system has for files is full, and what is written is read from a disk again. Not measured."""

SHARE_OF_ROOM = 0.1
"""And no more than this share of the room that is free there: rows in the form that a recipe wants must fit, too."""


class KeepingTables:
    """The tables of a piece while they are kept.

    Args:
        folder: Where they appear, when all are there.
        name: Under which name.
        n_pieces: How many there are, which share the room.
    """

    def __init__(self, folder: str, name: str, n_pieces: int) -> None:
        room = os.statvfs(folder)
        self._left = min(MOST_BYTES, SHARE_OF_ROOM * room.f_bavail * room.f_frsize) / max(1, n_pieces)
        self._folder, self._name = folder, name
        self._path: str | None = None
        self._writer: Any = None
        self._is_given_up = False

    def passing(self, tables: Iterator[Any]) -> Iterator[Any]:
        """The same tables, each of which is added."""
        for table in tables:
            if table.num_rows:
                self.add(table)
            yield table

    def add(self, table: Any) -> None:
        """One more table; where it has no room or other columns than those before, all are given up."""
        import pyarrow as pa

        self._left -= table.nbytes
        batches = table.combine_chunks().to_batches() if self._left >= 0 and _is_plain(table.schema) else []
        if self._is_given_up or len(batches) != 1:  # a table that comes back as two would be two batches of rows
            self.discard()
            return
        try:
            if self._writer is None:
                handle, self._path = tempfile.mkstemp(dir=self._folder)
                os.close(handle)
                self._writer = pa.ipc.new_file(self._path, table.schema)
            self._writer.write_batch(batches[0])
        except (pa.ArrowException, OSError):
            self.discard()

    def finish(self) -> bool:
        """All tables of the piece have come. Gives whether they are kept."""
        import pyarrow as pa

        if self._writer is None or self._path is None:
            return False
        try:
            self._writer.close()
            os.replace(self._path, os.path.join(self._folder, self._name))
        except (pa.ArrowException, OSError):
            self.discard()
            return False
        return True

    def discard(self) -> None:
        """Keep none of them."""
        import pyarrow as pa

        self._is_given_up = True
        if self._writer is not None:
            with contextlib.suppress(pa.ArrowException, OSError):  # what was not written yet cannot be: that is known already
                self._writer.close()
            self._writer = None
        if self._path is not None:
            Path(self._path).unlink(missing_ok=True)


def _is_plain(schema: Any) -> bool:
    """Whether a table comes out of a file as it went in: of types that others have made, nobody knows."""
    import pyarrow as pa

    return not any(isinstance(field.type, pa.BaseExtensionType | pa.DictionaryType) for field in schema)


def tables_in(data: Any) -> Iterator[Any]:
    """The tables of a file, one by one.

    Args:
        data: The file, as its bytes are mapped.
    """
    import pyarrow as pa

    with pa.ipc.open_file(pa.py_buffer(data)) as reader:
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)], reader.schema)
