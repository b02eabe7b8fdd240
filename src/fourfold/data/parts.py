"""A worker writes the tables of one piece into files of its own: nobody else ever writes to them, and nobody sees them yet.

tables ──folders `column=value`──> PartWriter, one for each folder ──> a file of this attempt (places.py) ──> Part
"""

import contextlib
import io
import posixpath
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import fourfold.system.seams as seams
from fourfold.data.partitions import divided
from fourfold.data.pieces import Piece
from fourfold.data.places import Place, Target
from fourfold.data.schema import SchemaConflict, fitted, unified
from fourfold.errors import UnwritableValue

EXTENSION = {"parquet": ".parquet", "csv": ".csv", "jsonl": ".jsonl"}

MOST_FOLDERS = 1000
"""Values of `partition_by` in one piece. More would be so many open files, of a few rows each: it is a mistake."""


class Part(NamedTuple):
    """A file that an attempt has written.

    Attributes:
        number: Of its piece, and of the first row in that: parts in this order are in the order of the rows.
        first: See `number`.
        folder: `column=value/…` below the output, "" for none.
        name: Of the file: no other attempt has it.
        n_rows, size_bytes, checksum: Of the file; the checksum is its CRC-32.
        schema: Of its rows, serialized by Arrow.
    """

    number: int
    first: int
    folder: str
    name: str
    n_rows: int
    size_bytes: int
    checksum: int
    schema: bytes

    @property
    def path(self) -> str:
        """Of the file, below the output."""
        return self.beside(self.name)

    def beside(self, name: str) -> str:
        """The path of another file in its folder."""
        return posixpath.join(self.folder, name)


class WriteParts:
    """Gathers the files that were written.

    Args:
        place: Where they go.
        format: One of EXTENSION.
        partition_by: Columns whose values become folders.
    """

    def __init__(self, place: Place, format: str, partition_by: Sequence[str]) -> None:
        self.place, self.format, self.partition_by = place, format, tuple(partition_by)

    @property
    def imports(self) -> tuple[str, ...]:
        """See `fourfold.system.imports`."""
        return ("pyarrow.parquet",) if self.format == "parquet" else ("pyarrow.csv",)

    def open(self) -> None:
        """Check that this worker sees where parts go."""
        self.place.check()

    def fold(self, piece: Piece, tables: Iterator[Any]) -> list[Part]:
        """Write all tables; no file when there are none."""
        first = piece.rows[0] if piece.rows is not None else 0
        attempt = self.place.name(piece.number, first, EXTENSION[self.format])
        writers: dict[str, PartWriter] = {}
        try:
            for table in tables:
                for folder, part in divided(table, self.partition_by):
                    if folder not in writers:
                        if len(writers) >= MOST_FOLDERS:
                            raise UnwritableValue(
                                f"partition_by={list(self.partition_by)!r} has more than {MOST_FOLDERS} values in one piece: "
                                "partition by something coarser"
                            )
                        writers[folder] = PartWriter(self.place.target(posixpath.join(folder, attempt)), self.format)
                    writers[folder].write(part)
            return [
                Part(piece.number, first, folder, attempt, *writer.finish(), writer.schema_bytes())
                for folder, writer in writers.items()
            ]
        except BaseException:
            for writer in writers.values():
                writer.discard()
            raise


class PartWriter:
    """One file, written table by table. It is at its place, and safe there, before `finish` returns.

    A later table may have wider types than the first one: then what is there is written anew in these.
    """

    def __init__(self, target: Target, format: str) -> None:
        self._target, self._format = target, format
        self._schema: Any = None
        self._writer: Any = None
        self._n_rows = 0
        self._file = Summed(target.begin())

    def write(self, table: Any) -> None:
        """Add rows.

        Raises:
            UnwritableValue: They do not go with those before them, or the format cannot hold them.
        """
        if self._schema is None:
            self._begin(table.schema)
        elif not table.schema.equals(self._schema):
            table = self._widened(table)
        if self._format == "csv" and table.num_columns == 1 and table.column(0).null_count:
            raise UnwritableValue(
                "a CSV file of one column cannot hold nulls: they would be empty lines. Write Parquet or JSON lines"
            )
        self._n_rows += table.num_rows
        self._writer.write_table(table)

    def _begin(self, schema: Any) -> None:
        _check_writable(schema, self._format)
        self._schema = schema
        if self._format == "parquet":
            import pyarrow.parquet as pq

            self._writer = pq.ParquetWriter(self._file, schema)
        elif self._format == "csv":
            from pyarrow import csv

            self._writer = csv.CSVWriter(self._file, schema)
        else:
            self._writer = _JsonWriter(self._file)

    def _widened(self, table: Any) -> Any:
        try:
            whole = unified([self._schema, table.schema])
            if self._format == "parquet" and not whole.equals(self._schema):
                self._write_anew(whole)
            self._schema = whole
            return fitted(table, whole)
        except SchemaConflict as error:
            raise UnwritableValue(f"a batch does not go with those before it: {error}") from error

    def _write_anew(self, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._writer.close()
        narrow = self._file  # when nobody holds it, it closes its file
        with self._target.anew(narrow.file) as (before, file):
            self._file = Summed(file)
            self._writer = pq.ParquetWriter(self._file, schema)
            with pq.ParquetFile(before) as parquet:
                for group in range(parquet.num_row_groups):
                    self._writer.write_table(fitted(parquet.read_row_group(group, use_threads=False), schema))

    def finish(self) -> tuple[int, int, int]:
        """Bring all to its place: rows, bytes and checksum."""
        seams.hit("part.finish")
        self._writer.close()
        self._target.finish(self._file.file)
        self._file.close()
        return self._n_rows, self._file.size_bytes, self._file.checksum

    def schema_bytes(self) -> bytes:
        """The schema of what was written."""
        return bytes(self._schema.serialize())

    def discard(self) -> None:
        """Remove what was written."""
        import pyarrow as pa

        # The writer first: left open it would try again when it is collected, and complain on stderr.
        for each in (self._writer, self._file):
            with contextlib.suppress(pa.ArrowException, OSError, ValueError, AttributeError):
                each.close()
        self._target.discard()


class Summed(io.RawIOBase):
    """A file that knows the size and the checksum of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size_bytes = self.checksum = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.file.write(view)
        self.size_bytes += view.nbytes
        self.checksum = zlib.crc32(view, self.checksum)
        return view.nbytes

    def tell(self) -> int:
        return self.size_bytes

    def fileno(self) -> int:
        return self.file.fileno()

    def flush(self) -> None:
        if not self.file.closed:
            self.file.flush()

    def close(self) -> None:
        self.file.close()
        super().close()


class _JsonWriter:
    """One JSON object per row."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write_table(self, table: Any) -> None:
        from fourfold.aggregate.rows import to_json

        try:
            lines = [to_json(row)[0] for row in table.to_pylist()]
        except (TypeError, ValueError) as error:
            raise UnwritableValue(f"a value cannot be written as JSON: {error}") from error
        self._file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))

    def close(self) -> None:
        """Nothing is held back."""


def _check_writable(schema: Any, format: str) -> None:
    import pyarrow as pa

    if not schema.names:
        raise UnwritableValue("a batch without columns cannot be written")
    if format != "csv":
        return
    nested = [field for field in schema if pa.types.is_nested(field.type)]
    if nested:
        raise UnwritableValue(
            f"column {nested[0].name!r} is {nested[0].type}, which CSV cannot hold: write Parquet or JSON lines, or make it "
            "a text"
        )
