r"""Files of lines (CSV, JSON lines, text): pieces are ranges of bytes that begin and end between two rows.

    bytes    a,b\n1,2\n3,"x\ny"\n5,6\n
    pieces        |────────────|────|       a cut is moved to the end of the row that it falls into

For that some bytes are read at each cut. In CSV a line end within quotes ends no row, and whether a cut lies within quotes
depends on those before it: so a file that is cut at all is read once for them (see data/quotes.py), unless the user says that
no value contains a line end. Compressed files are one piece each.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

from fourfold.addresses import Credentials
from fourfold.data.files import DataFile, lives_here, opened
from fourfold.data.keys import columns_of, files_that_match, filled
from fourfold.data.pieces import FULL_ROWS, MAX_BYTES, MIN_BYTES, MIN_ROWS, Piece, full_bytes, share
from fourfold.data.quotes import last_row_end, row_end
from fourfold.data.schema import SchemaConflict, check_declared, types_of_files
from fourfold.data.text import BOM, TEXT, Dialect, header_of, parse_csv, parse_jsonl, parse_text, unfit_column
from fourfold.errors import UnreadableInput

READ_BYTES = 4 << 20
"""Bytes that are parsed at once; more when a row is longer. Smaller: more calls. Larger: more memory. Not measured."""

SAMPLES = 8
"""Files, spread over all of them, from whose beginnings the types of columns are learned. Fewer: more often a type turns out
too narrow, which is an error. More: `scan` takes longer."""

MOST_BYTES_OF_A_ROW = 256 << 20
"""Bytes of one row at most. Larger: a quote that is never closed makes a row of the rest of the file."""

LEARNED = "The types were learned from the beginning of the files: declare those that differ with schema="

PATIENCE = 16
"""Blocks of a file that are read to learn the type of a column that has only nulls so far."""


class Lines:
    """Files of lines. See `TableSource`.

    Args:
        files: At least one, all of one format.
        storage: Options of their file system.
        schema: None, or the types of columns that the user declares; the others are learned.
        dialect: How CSV is written.
        keys: The types of the columns that folders give.

    Attributes:
        in_files: The schema of the files, without the columns that folders give.

    Raises:
        UnreadableInput: Their beginning is not what the format promises.
        OptionError: Their columns do not go together.
    """

    n_rows: int | None = None

    def __init__(
        self, files: Sequence[DataFile], storage: Credentials, schema: Any, dialect: Dialect, keys: Mapping[str, Any]
    ) -> None:
        import pyarrow as pa

        self._storage, self._files, self._dialect = storage, list(files), dialect
        self.only_here = any(lives_here(file.path) for file in files)
        self._format = files[0].format
        self._is_csv = self._format == "csv"
        self._quoting = dialect.delimiter if self._is_csv and dialect.quoted_newlines else None
        self._headers: list[list[str]] = []
        self._starts = [self._start(file) for file in files]
        said = [field for field in schema or () if field.name not in keys or self._has(field.name)]
        self._declared = pa.schema(said)
        self.in_files = self._learned()
        self._keys = {name: type_ for name, type_ in keys.items() if name not in self.in_files.names}
        self.schema = filled(self.in_files, self._keys)

    def __getstate__(self) -> dict[str, Any]:
        """Workers read what pieces name, and need no list of files."""
        return {**self.__dict__, "_files": [], "_starts": []}

    # ---- what the files are like -------------------------------------------------------------------------------------

    def _start(self, file: DataFile) -> tuple[int, int]:
        """Where the rows of a file begin, and the number of its header among all that were met."""
        if not self._is_csv:
            return 0, 0
        with self._named(file.path), self._opened(file.path, file.compression) as handle:
            before, line = self._first_row(handle)
            names = header_of(line, self._dialect)
        if names not in self._headers:
            self._headers.append(names)
        return (before + len(line) if self._dialect.header else before), self._headers.index(names)

    def _first_row(self, handle: IO[bytes]) -> tuple[int, bytes]:
        """Where the first row of a CSV file begins that is no empty line, and that row."""
        block = handle.read(1 << 16)
        at = len(BOM) if block.startswith(BOM) else 0
        while True:
            while end := row_end(block[at:], self._quoting):
                if block[at : at + end].strip(b"\r\n"):
                    return at, block[at : at + end]
                at += end
            more = handle.read(max(1 << 16, len(block)))
            if not more or len(block) - at > MOST_BYTES_OF_A_ROW:
                return at, block[at:]
            block += more

    def _learned(self) -> Any:
        """The types of all columns: as declared, or as the beginnings of some files have them."""
        import pyarrow as pa

        if self._format == "text":
            return pa.schema([(TEXT, pa.string())])
        step = max(1, (len(self._files) - 1) // (SAMPLES - 1)) if len(self._files) > 1 else 1
        schemas, names = [], [name for header in self._headers for name in header]
        for at in range(0, len(self._files), step):
            if (schema := self._sample(at)) is not None:
                schemas.append((self._files[at].path, schema))
                names += schema.names
        if self._is_csv and any(self._headers):
            check_declared(self._declared, list(dict.fromkeys(names)))
        names = list(dict.fromkeys([*names, *self._declared.names]))
        types = types_of_files(schemas, self._declared) | {field.name: field.type for field in self._declared}
        found = [(name, types.get(name, pa.null())) for name in names]
        return pa.schema([(name, pa.string() if pa.types.is_null(type_) else type_) for name, type_ in found])

    def _has(self, name: str) -> bool:
        """Whether a file of CSV has this column."""
        return any(name in header for header in self._headers)

    def _sample(self, at: int) -> Any:
        """The types of one file's columns, by its first blocks; None when it has no rows."""
        import pyarrow as pa

        file, (start, header) = self._files[at], self._starts[at]
        schema = None
        with self._named(file.path), self._opened(file.path, file.compression) as handle:
            self._skip(handle, start)
            for number, block in enumerate(self._blocks(handle, None)):
                table = self._parse(block, header, self._declared, None, strict=False)
                if table.num_rows:
                    found = pa.schema([*table.schema])
                    schema = found if schema is None else self._with_more(schema, found)
                if number >= PATIENCE or (schema is not None and not any(pa.types.is_null(each) for each in schema.types)):
                    break
        return schema

    def _with_more(self, schema: Any, found: Any) -> Any:
        """A later block says what the type of a column is that had only nulls."""
        import pyarrow as pa

        fields = {field.name: field for field in schema}
        for field in found:
            if field.name not in fields or pa.types.is_null(fields[field.name].type):
                fields[field.name] = field
        return pa.schema([*fields.values()])

    # ---- pieces ------------------------------------------------------------------------------------------------------

    def pieces(self, least_rows: int = MIN_ROWS, full_rows: int = FULL_ROWS, where: Any = None) -> Iterator[Piece]:
        """Ranges of bytes, in order, whatever the rows: nobody has counted them."""
        files = files_that_match(self._files, self._keys, where, self.schema)
        size = share(sum(file.size_bytes for file in files), MIN_BYTES, MAX_BYTES, full_bytes(full_rows))
        number, starts = 0, {file.path: start for file, start in zip(self._files, self._starts, strict=True)}
        for file in files:
            start, header = starts[file.path]
            for begin, end in self._ranges(file, start, size):
                yield Piece(number, file.path, (begin, end, header), file.stamp, file.keys, file.format, file.compression)
                number += 1

    def _ranges(self, file: DataFile, start: int, size: int) -> Iterator[tuple[int, int]]:
        """Where pieces of a file begin and end; an end of -1 is that of the file."""
        if file.compression is not None or file.size_bytes - start <= 2 * size:
            if file.compression is not None or file.size_bytes > start:
                yield start, -1
            return
        with self._named(file.path), self._opened(file.path, None) as handle:
            begin = start
            while file.size_bytes - begin > size:
                end = self._row_end_behind(handle, begin, begin + size)
                if end is None:
                    break
                yield begin, end
                begin = end
        if begin < file.size_bytes:
            yield begin, -1

    def _row_end_behind(self, handle: IO[bytes], begin: int, at: int) -> int | None:
        """The first end of a row behind `at`; `begin` is the beginning of a row. None when no other row follows."""
        known = begin if self._quoting is not None else at  # where a row begins, or where it does not matter
        block = b""
        handle.seek(known)
        while (left := at - known - len(block)) > 0 and (more := handle.read(min(left, max(READ_BYTES, len(block))))):
            block += more
            end = self._last_end(block)
            known, block = known + end, block[end:]
            _check_length(len(block))
        while more := handle.read(max(1 << 16, len(block))):  # twice as much each time: what was seen is looked at again
            block += more
            if end := self._first_end(block):
                return known + end
            _check_length(len(block))
        return None

    def _first_end(self, block: bytes) -> int:
        return row_end(block, self._quoting) if self._is_csv else block.find(b"\n") + 1

    def _last_end(self, block: bytes) -> int:
        return last_row_end(block, self._quoting) if self._is_csv else block.rfind(b"\n") + 1

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(self, piece: Piece, columns: Sequence[str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        """Parse block after block."""
        begin, end, header = piece.part
        row = 0
        with self._named(piece.path), self._opened(piece.path, piece.compression) as handle:
            self._skip(handle, begin)
            for block in self._blocks(handle, None if end < 0 else end - begin):
                table = self._parse(block, header, self.in_files, columns, strict=True)
                for at in range(0, table.num_rows, batch_rows):
                    part = table.slice(at, batch_rows)
                    yield row + at, columns_of(part, piece.keys, columns, self.schema)
                row += table.num_rows

    def _parse(self, block: bytes, header: int, schema: Any, columns: Sequence[str] | None, strict: bool) -> Any:
        import pyarrow as pa

        try:
            if self._is_csv:
                return parse_csv(block, self._headers[header], schema, columns, self._dialect)
            return parse_text(block) if self._format == "text" else parse_jsonl(block, schema, strict)
        except pa.ArrowException as error:
            raise ValueError(self._why(str(error), block, header, schema)) from error

    def _why(self, text: str, block: bytes, header: int, schema: Any) -> str:
        """What Arrow says of a block, with the name of the column that it is about, and what to do about it."""
        name, said = None, text
        if found := re.match(r"In CSV column #(\d+): (?:Row #\d+: )?(?:CSV conversion error )?", text):
            name, said = self._headers[header][int(found.group(1))], text[found.end() :]
        elif self._format == "jsonl" and ("changed from" in text or "Failed to convert" in text):
            name = unfit_column(block, schema)
        if name in self._declared.names:
            return f"column {name!r}, declared with schema= as {self._declared.field(name).type}: {said}"
        if name is None and "unexpected field" not in text:
            return text
        return f"{said if name is None else f'column {name!r}: {said}'}. {LEARNED}"

    def _skip(self, handle: IO[bytes], n_bytes: int) -> None:
        if handle.seekable():
            handle.seek(n_bytes)
        else:
            handle.read(n_bytes)

    def _blocks(self, handle: IO[bytes], n_bytes: int | None) -> Iterator[bytes]:
        """Whole rows, some READ_BYTES at a time, of the next `n_bytes`; None: to the end of the file."""
        block = b""
        while n_bytes is None or n_bytes > 0:
            size = max(READ_BYTES, len(block))  # twice as much for a long row: what was seen is looked at again
            more = handle.read(size if n_bytes is None else min(n_bytes, size))
            if not more:
                break
            n_bytes = None if n_bytes is None else n_bytes - len(more)
            block += more
            end = self._last_end(block)
            if end:
                yield block[:end]
            else:
                _check_length(len(block))
            block = block[end:]
        if block.strip({"csv": b"\r\n", "text": b""}.get(self._format)):
            yield block

    def place(self, piece: Piece, row: int) -> tuple[str, int]:
        """All rows of the file before the piece are read for their number: only rows that failed are worth that."""
        start = self._start_of(piece)
        begin, _, header = piece.part
        before = piece._replace(part=(start, begin, header))
        names = [self.schema.names[0]] if self.schema.names else []
        n_rows = sum(table.num_rows for _, table in self.read(before, names, 1 << 20)) if begin > start else 0
        return piece.path, n_rows + row

    def _start_of(self, piece: Piece) -> int:
        if not self._is_csv:
            return 0
        with self._named(piece.path), self._opened(piece.path, piece.compression) as handle:
            before, line = self._first_row(handle)
            return before + len(line) if self._dialect.header else before

    @contextmanager
    def _opened(self, path: str, compression: str | None) -> Iterator[IO[bytes]]:
        with opened(path, self._storage) as handle:
            if compression is None:
                yield handle
                return
            with _unpacking(handle, compression) as inside:
                yield inside

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        import lzma
        import zlib

        import pyarrow as pa

        try:
            yield
        except UnreadableInput:
            raise
        except (pa.ArrowException, SchemaConflict, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise UnreadableInput(f"{path}: {_reason(error)}") from error


def _check_length(n_bytes: int) -> None:
    if n_bytes > MOST_BYTES_OF_A_ROW:
        raise ValueError(
            f"no row ends within {n_bytes >> 20} MiB: is a quote never closed? When no value has a line end in it, say "
            "quoted_newlines=False"
        )


def _unpacking(handle: IO[bytes], compression: str) -> IO[bytes]:
    """What a compressed file holds."""
    if compression == "zstd":
        import pyarrow as pa

        return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(handle, "r"), "zstd"))
    import bz2
    import gzip
    import lzma

    opens: dict[str, Any] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    return cast("IO[bytes]", opens[compression](handle, "rb"))


def _reason(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}; convert the file, e.g. iconv -f latin1 -t utf-8"
    return str(error) or type(error).__name__
