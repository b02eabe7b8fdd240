"""What one rank prints: all of it into a file, its lines onto the terminal, and the end of it for errors."""

import codecs
import contextlib
import logging
import sys
from pathlib import Path
from typing import IO

WORDS_BYTES = 4096
"""Bytes of the end that an error shows at most. Less: a stack of a deep library is cut. More: errors of pages."""

WORDS_LINES = 30
"""... and lines."""

LINE_CHARS = 8192
"""Characters of a line at which it is cut, and goes on in the next one: a rank that prints no end of line takes no memory."""


class Log:
    """Takes what a rank prints.

    Args:
        rank: Its number.
        path: Of its file; None for none.
        restarts: How often the gang was started again: the first start begins a new file.
        shows: Whether its lines are printed here.
        keep_bytes: How much of the end is kept.
    """

    def __init__(
        self, rank: int, path: Path | None, restarts: int = 0, shows: bool = True, keep_bytes: int = WORDS_BYTES
    ) -> None:
        self._rank, self._shows, self._keep_bytes = rank, shows, keep_bytes
        self.kept = bytearray()
        """The end of what it has printed."""
        self._lines = {name: _Lines() for name in ("stdout", "stderr")}
        self._file: IO[bytes] | None = None
        if path is not None:
            self._file = open(path, "ab" if restarts else "wb", buffering=0)  # noqa: SIM115
            if restarts:
                self.note(f"fourfold: started again, for the {restarts}. time")

    def take(self, stream: str, data: bytes) -> None:
        """Bytes have come from a stream of the rank."""
        self.kept += data
        del self.kept[: -self._keep_bytes]
        self._write(data)
        if self._shows:
            for line in self._lines[stream].take(data):
                self._show(stream, line)

    def note(self, text: str) -> None:
        """Write something into the file that the rank did not print."""
        self._write(text.encode(errors="replace").rstrip(b"\n") + b"\n")

    def words(self) -> str:
        """The last lines that it has printed; "" when it has printed nothing."""
        return "\n".join(self.kept[-WORDS_BYTES:].decode(errors="replace").strip().splitlines()[-WORDS_LINES:])

    def close(self) -> None:
        """Nothing comes any more."""
        for stream, lines in self._lines.items():
            for line in lines.rest():
                self._show(stream, line)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            logging.getLogger("fourfold").warning("the log of rank %d ends here, and the gang goes on: %s", self._rank, error)
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _show(self, stream: str, line: str) -> None:
        out = getattr(sys, stream)
        if out is None:
            return
        text = f"[rank {self._rank}] {line}"
        try:
            print(text, file=out, flush=True)
        except UnicodeEncodeError:
            print(text.encode(out.encoding, "backslashreplace").decode(out.encoding), file=out, flush=True)


class _Lines:
    """Cuts bytes into lines."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def take(self, data: bytes) -> list[str]:
        *lines, self._text = (self._text + self._decoder.decode(data)).split("\n")
        while len(self._text) > LINE_CHARS:
            lines.append(self._text[:LINE_CHARS])
            self._text = self._text[LINE_CHARS:]
        return lines

    def rest(self) -> list[str]:
        text, self._text = self._text, ""
        return [text] if text else []
