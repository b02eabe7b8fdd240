"""What a worker prints, logs and warns reaches the driver's own, with the item's index.

In the worker: `install(send)` replaces `sys.stdout` and `sys.stderr`, puts one handler on the root logger, and takes over
`warnings.showwarning`; each hands a small record to `send`. In the driver: `replay` gives the record to the driver's own
stream, logger or warning filters.
"""

import codecs
import io
import logging
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

from fourfold.execute.current import current_index

Send = Callable[[tuple[Any, ...]], None]

LINE_BYTES = 8192
"""Longest piece of a line that travels at once; longer lines come in pieces. It must fit into one message of a channel."""

RECORD_BYTES = 4 * LINE_BYTES
"""Largest record of a logger, which must fit into one message too: a message and a traceback of PIECE_CHARS always do."""

PIECE_CHARS = LINE_BYTES // 4
"""Characters that are never more than LINE_BYTES."""


def install(send: Send) -> None:
    """Take over what this process prints, logs and warns."""
    sys.stdout = _Stream("stdout", send)
    sys.stderr = _Stream("stderr", send)
    root = logging.getLogger()
    root.handlers[:] = [_Forward(send)]

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        always = _action(str(message), category, lineno) == "always"
        send(("warning", current_index(), _dumped((str(message), category)), filename, lineno, always))

    warnings.showwarning = show


def adopt(levels: dict[str, int], filters: list[Any]) -> None:
    """Use the driver's logging levels and warning filters: "error" fails the item here as it does in the loop."""
    for name in _leveled - levels.keys():
        logging.getLogger(name).setLevel(logging.NOTSET)
    _leveled.clear()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
        _leveled.add(name)
    if filters != warnings.filters:
        warnings.filters[:] = filters  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]


_leveled: set[str] = set()
"""Loggers of this worker that have the level of the last run's driver."""


class _Stream(io.TextIOBase):
    """Sends whole lines; `flush` sends what there is."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, name: str, send: Send) -> None:
        self._name, self._send, self._text = name, send, ""
        self._begun = False
        self._index: int | None = None

        self.buffer = _Bytes(self)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """The file itself, for programs that an item starts: what they print does not pass through here."""
        return 1 if self._name == "stdout" else 2

    def write(self, text: str) -> int:
        self._index = current_index()
        self._text += text
        if "\n" in text or len(self._text) >= PIECE_CHARS:
            *lines, self._text = self._text.split("\n")
            for line in lines:
                self._emit(line, ends=True)
            if len(self._text) >= PIECE_CHARS:
                begin, self._text = self._text, ""
                self._emit(begin, ends=False)
        return len(text)

    def flush(self) -> None:
        if self._text or self._begun:
            text, self._text = self._text, ""
            self._emit(text, ends=True)

    def _emit(self, line: str, ends: bool) -> None:
        *pieces, last = [line[begin : begin + PIECE_CHARS] for begin in range(0, len(line), PIECE_CHARS)] or [""]
        for piece in pieces:
            self._send(("print", self._index, self._name, piece, False))
        self._send(("print", self._index, self._name, last, ends))
        self._begun = not ends


class _Bytes(io.BufferedIOBase):
    """Takes the bytes of those who write to `sys.stdout.buffer`."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def forget(self) -> None:
        """Drop half a letter: the other half never came."""
        self._decoder.reset()

    def write(self, data: Any) -> int:
        self._stream.write(self._decoder.decode(data))
        return memoryview(data).nbytes

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """An item may close it, but the next one needs it."""
        self.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def flush() -> None:
    """Send the lines that have no end yet. Called at the end of each chunk."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if isinstance(stream, _Stream):
            stream.buffer.forget()


class _Forward(logging.Handler):
    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send_record = send

    def emit(self, record: logging.LogRecord) -> None:
        fields = dict(record.__dict__)
        try:
            fields["msg"], fields["args"] = record.getMessage()[:PIECE_CHARS], None
        except Exception:  # it does not fit its arguments: as other handlers do, say so and go on
            self.handleError(record)
            return
        if record.exc_info:
            text = logging.Formatter().formatException(record.exc_info) if record.exc_info[0] else ""
            # A long traceback says what happened at its end.
            fields["exc_text"], fields["exc_info"] = text[-PIECE_CHARS:], None
        self._send_record(("log", current_index(), _dumped(fields)))


def _dumped(obj: Any) -> bytes:
    """Pickle plain things; leave out of a dict what does not travel, and extras when all is too large."""
    try:
        data = pickle.dumps(obj)
        if len(data) <= RECORD_BYTES:
            return data
    except Exception:
        data = b""
    if isinstance(obj, dict):
        usual = logging.makeLogRecord({}).__dict__.keys()
        plain = {key: value for key, value in obj.items() if isinstance(value, str | int | float | None)}
        short = {key: value for key, value in plain.items() if key in usual or not isinstance(value, str) or len(value) < 1000}
        data = pickle.dumps(short)
        if len(data) <= RECORD_BYTES:
            return data
        return pickle.dumps({key: value for key, value in plain.items() if key in usual})
    text, _ = obj
    return pickle.dumps((text[:1000], UserWarning))


def _action(text: str, category: type[Warning], lineno: int) -> str:
    """The action of the first warning filter that fits, as the `warnings` module decides it (without the module's name)."""
    for action, message, kind, _, line in warnings.filters:
        if (message is None or message.match(text)) and issubclass(category, kind) and line in (0, lineno):
            return action
    return "default"


class Replay:
    """Gives what workers sent to the driver's own streams, loggers and warning filters. One per run."""

    def __init__(self) -> None:
        self._shown: set[tuple[Any, ...]] = set()
        self._begun: dict[tuple[int | None, str], list[str]] = {}

    def __call__(self, record: tuple[Any, ...]) -> None:
        """Replay one record."""
        kind, index, *rest = record
        where = "" if index is None else f"[item {index}] "
        if kind == "print":
            self._print(index, where, *rest)
        elif kind == "log":
            fields = pickle.loads(rest[0])
            log = logging.makeLogRecord({**fields, "msg": f"{where}{fields.get('msg', '')}", "item": index})
            logger = logging.getLogger(log.name)
            if logger.isEnabledFor(log.levelno):
                logger.handle(log)
        else:
            self._warn(where, *rest)

    def _print(self, index: int | None, where: str, name: str, text: str, ends: bool) -> None:
        """Pieces of a line wait for its end: other workers print too."""
        self._begun.setdefault((index, name), [where]).append(text)
        if not ends:
            return
        line, stream = "".join(self._begun.pop((index, name))), getattr(sys, name)
        try:
            print(line, file=stream)
        except UnicodeEncodeError:
            print(line.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream)

    def _warn(self, where: str, data: bytes, filename: str, lineno: int, always: bool) -> None:
        text, category = pickle.loads(data)
        key = (text, category, filename, lineno)
        if always or key not in self._shown:
            # The worker has applied the filters already; each worker applies "once per place" for itself.
            self._shown.add(key)
            try:
                warning = category(f"{where}{text}")
            except Exception:  # its class wants other arguments
                warning, category = UserWarning(f"{where}{text}"), UserWarning
            warnings.showwarning(warning, category, filename, lineno)
