r"""Files of lines (CSV, JSON lines, text): pieces are ranges of bytes that begin and end between two rows.

    bytes    a,b\n1,2\n3,"x\ny"\n5,6\n
    pieces        |────────────|────|       a cut is moved to the end of the row that it falls into

For that some bytes are read at each cut. In CSV a line end within quotes ends no row, and whether a cut lies within quotes
depends on how many there are before it: so a file that is cut at all is read once for them, unless the user says that no
value contains a line end. Compressed files are one piece each.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

from fourfold.addresses import Credentials
from fourfold.data.files import DataFile, key_columns, lives_here, opened
from fourfold.data.keys import columns_of, filled
from fourfold.data.pieces import MAX_BYTES, MIN_BYTES, MIN_ROWS, Piece, share
from fourfold.data.schema import SchemaConflict, unified
from fourfold.data.text import TEXT, Dialect, header_of, last_row_end, parse_csv, parse_jsonl, parse_text, row_end
from fourfold.errors import OptionError, UnreadableInput

READ_BYTES = 4 << 20
"""Bytes that are parsed at once; more when a row is longer. Smaller: more calls. Larger: more memory. Not measured."""

SAMPLES = 8
"""Files, spread over all of them, from whose beginnings the types of columns are learned. Fewer: more often a type turns out
too narrow, which is an error. More: `scan` takes longer."""

MOST_BYTES_OF_A_ROW = 256 << 20
"""Bytes of one row at most. Larger: a quote that is never closed makes a row of the rest of the file."""

PATIENCE = 16
"""Blocks of a file that are read to learn the type of a column that has only nulls so far."""


class Lines:
    """Files of lines. See `TableSource`.

    Args:
        files: At least one, all of one format.
        storage: Options of their file system.
        schema: The types of columns, as far as the user declares them; the others are learned.
        dialect: How CSV is written.

    Raises:
        UnreadableInput: Their beginning is not what the format promises.
        OptionError: Their columns do not go together.
    """

    n_rows: int | None = None

    def __init__(self, files: Sequence[DataFile], storage: Credentials, schema: Any, dialect: Dialect) -> None:
        import pyarrow as pa

        self._storage, self._files, self._dialect = storage, list(files), dialect
        self.only_here = any(lives_here(file.path) for file in files)
        self._format = files[0].format
        self._is_csv = self._format == "csv"
        self._is_quoted = self._is_csv and dialect.quoted_newlines
        self._keys = key_columns(files)
        self._headers: list[list[str]] = []
        self._starts = [self._start(file) for file in files]
        self._declared = schema if schema is not None else pa.schema([])
        self._in_files = self._learned()
        self.schema = filled(self._in_files, self._keys)

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
        return (before + len(line) if self._dialect.header else 0), self._headers.index(names)

    def _first_row(self, handle: IO[bytes]) -> tuple[int, bytes]:
        """The bytes of blank lines at the beginning, and the first row that is none."""
        block, at = b"", 0
        while more := handle.read(1 << 16):
            block += more
            while end := row_end(block[at:], self._is_quoted):
                if block[at : at + end].strip(b"\r\n\xef\xbb\xbf \t"):
                    return at, block[at : at + end]
                at += end
            if len(block) - at > MOST_BYTES_OF_A_ROW:
                break
        return at, block[at:]

    def _learned(self) -> Any:
        """The types of all columns: as declared, or as the beginnings of some files have them."""
        import pyarrow as pa

        if self._format == "text":
            return pa.schema([(TEXT, pa.string())])
        step = max(1, (len(self._files) - 1) // (SAMPLES - 1)) if len(self._files) > 1 else 1
        schemas, names = [], [name for header in self._headers for name in header]
        for at in range(0, len(self._files), step):
            if (schema := self._sample(at)) is not None:
                schemas.append(schema)
                names += schema.names
        names = list(dict.fromkeys([*names, *self._declared.names]))
        self._check_declared(names)
        types = self._joined(schemas, names)
        return pa.schema([pa.field(name, types[name]) for name in names])

    def _check_declared(self, names: list[str]) -> None:
        if self._is_csv and self._headers and any(self._headers):
            check = [name for name in self._declared.names if all(name not in header for header in self._headers)]
            if check:
                raise OptionError(f"schema= names {check[0]!r}, and the columns are: {', '.join(map(repr, names))}")

    def _joined(self, schemas: list[Any], names: list[str]) -> dict[str, Any]:
        import pyarrow as pa

        def of(schema: Any, name: str) -> Any:
            return schema.field(name).type if name in schema.names else pa.null()

        wholes = [pa.schema([(name, of(schema, name)) for name in names]) for schema in schemas]
        wholes = wholes or [pa.schema([(name, pa.null()) for name in names])]
        try:
            whole = unified(wholes)
        except SchemaConflict as error:
            raise OptionError(f"the files do not go together: {error}") from error
        types = {field.name: pa.string() if pa.types.is_null(field.type) else field.type for field in whole}
        return types | {field.name: field.type for field in self._declared}

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

    def pieces(self, least_rows: int = MIN_ROWS) -> Iterator[Piece]:
        """Ranges of bytes, in order, whatever the rows: nobody has counted them."""
        size = share(sum(file.size_bytes for file in self._files), MIN_BYTES, MAX_BYTES)
        number = 0
        for file, (start, header) in zip(self._files, self._starts, strict=True):
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
        """The first end of a row from `at` on; `begin` is the beginning of a row. None when no other row follows."""
        n_quotes = 0
        if self._is_quoted:
            handle.seek(begin)
            left = at - begin
            while left and (block := handle.read(min(left, READ_BYTES))):
                n_quotes += block.count(b'"')
                left -= len(block)
        handle.seek(at)
        prefix = b'"' * (n_quotes % 2)  # as if the row had begun here, within quotes or not
        block = prefix
        while more := handle.read(max(1 << 16, len(block))):  # twice as much each time: what was seen is looked at again
            block += more
            if end := row_end(block, self._is_quoted):
                return at + end - len(prefix)
            _check_length(len(block))
        return None

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(self, piece: Piece, columns: Sequence[str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        """Parse block after block."""
        begin, end, header = piece.part
        row = 0
        with self._named(piece.path), self._opened(piece.path, piece.compression) as handle:
            self._skip(handle, begin)
            for block in self._blocks(handle, None if end < 0 else end - begin):
                table = self._parse(block, header, self._in_files, columns, strict=True)
                for at in range(0, table.num_rows, batch_rows):
                    part = table.slice(at, batch_rows)
                    yield row + at, columns_of(part, piece.keys, columns, self.schema)
                row += table.num_rows

    def _parse(self, block: bytes, header: int, schema: Any, columns: Sequence[str] | None, strict: bool) -> Any:
        if self._is_csv:
            return parse_csv(block, self._headers[header], schema, columns, self._dialect)
        if self._format == "text":
            return parse_text(block)
        return parse_jsonl(block, schema, strict)

    def _skip(self, handle: IO[bytes], n_bytes: int) -> None:
        if handle.seekable():
            handle.seek(n_bytes)
        else:
            handle.read(n_bytes)

    def _blocks(self, handle: IO[bytes], n_bytes: int | None) -> Iterator[bytes]:
        """Whole rows, some READ_BYTES at a time, of the next `n_bytes`; None: to the end of the file."""
        waiting: list[bytes] = []
        is_odd = False  # whether what waits has an odd number of quotes: then it ends within them
        while n_bytes is None or n_bytes > 0:
            more = handle.read(READ_BYTES if n_bytes is None else min(n_bytes, READ_BYTES))
            if not more:
                break
            n_bytes = None if n_bytes is None else n_bytes - len(more)
            end, is_odd_after = last_row_end(more, is_odd) if self._is_quoted else (more.rfind(b"\n") + 1, False)
            if end:
                yield b"".join([*waiting, more[:end]])
                waiting, is_odd = [more[end:]], is_odd_after
            else:
                waiting.append(more)
                is_odd = is_odd_after
                _check_length(sum(map(len, waiting)))
        rest = b"".join(waiting)
        if rest if self._format == "text" else rest.strip():
            yield rest

    def place(self, piece: Piece, row: int) -> tuple[str, int]:
        """All rows of the file before the piece are read for their number: only rows that failed are worth that."""
        start = self._start_of(piece)
        begin, _, header = piece.part
        before = piece._replace(part=(start, begin, header))
        names = [self.schema.names[0]] if self.schema.names else []
        n_rows = sum(table.num_rows for _, table in self.read(before, names, 1 << 20)) if begin > start else 0
        return piece.path, n_rows + row

    def _start_of(self, piece: Piece) -> int:
        if not self._is_csv or not self._dialect.header:
            return 0
        with self._named(piece.path), self._opened(piece.path, piece.compression) as handle:
            before, line = self._first_row(handle)
            return before + len(line)

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
        import csv
        import lzma
        import zlib

        import pyarrow as pa

        try:
            yield
        except UnreadableInput:
            raise
        except (pa.ArrowException, OSError, EOFError, ValueError, csv.Error, zlib.error, lzma.LZMAError) as error:
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
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}; convert the file, e.g. iconv -f latin1 -t utf-8"
    if "conversion error" in text or "changed from" in text or "unexpected field" in text:
        return f"{text}. The types were learned from the beginning of the files: declare those that differ with schema="
    return text or type(error).__name__
