"""The items that have no value, and the exceptions that say why."""

import os
from collections.abc import Callable
from typing import Any

from fourfold.errors import RemoteError, RemoteTraceback
from fourfold.records import Failure, Trouble

NOTE = "fourfold: item "
"""How our note on an exception starts; an exception object that several items raise has one note only."""

READ_ONLY = ("assignment destination is read-only", "output array is read-only")
"""What NumPy says of an array that may not be written to."""

IN_THIS_PROCESS = ("this thread", "thread")
"""How workers are called that write to the user's own arrays."""


class Failures:
    """Keeps the failures of one run and decides what stands in their place.

    Args:
        function: The function's name, for notes.
        on_error: "raise", "collect" or "skip".
        retry_on: Exceptions to run an item again for; () for none.
        unpickle: Brings back an exception that travelled as bytes, or returns None.
    """

    def __init__(
        self,
        function: str,
        on_error: str,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] | tuple[()],
        unpickle: Callable[[Any], BaseException | None],
    ) -> None:
        self._function, self._on_error, self._retry_on, self._unpickle = function, on_error, retry_on, unpickle
        self.all: list[Failure] = []
        self.run: str | None = None
        self.keep: Callable[[Failure, Any], None] | None = None

    def may_retry(self, trouble: Trouble) -> bool:
        """Whether the item may run again for this."""
        return bool(self._retry_on) and trouble.kind == "raised" and isinstance(self.exception(trouble), self._retry_on)

    def failed(self, index: int, item: Any, trouble: Trouble, attempts: int, worker: str) -> list[Any]:
        """Note a final failure; returns what stands in the item's place: the Failure, or nothing."""
        error = self.exception(trouble)
        notes = [note for note in getattr(error, "__notes__", []) if not note.startswith(NOTE)]
        note = f"{NOTE}{index} of {self._function}: {trouble.item} (attempt {attempts}, {worker or 'driver'})"
        if trouble.kind == "raised" and worker and not worker.startswith(IN_THIS_PROCESS) and trouble.message in READ_ONLY:
            note += (
                ". Arrays that the function brings along are one copy for all workers, and read-only there: change a .copy()"
            )
        if self.run is not None:
            note += f". See it again: fourfold replay {_quoted(self.run)} --item {index}"
        _set(error, "__notes__", [*notes, note])
        if self._on_error != "raise":
            # Its frames would keep every item of the chunk alive; the text of the traceback stays.
            _set(error, "__traceback__", None)
        failure = Failure(
            index=index,
            kind=trouble.kind,
            error=error,
            error_type=trouble.error_type,
            message=trouble.message,
            traceback=trouble.traceback,
            item=trouble.item,
            attempts=attempts,
            worker=worker,
            place=place_of(trouble.traceback),
        )
        if self.keep is not None:
            self.keep(failure, item)
        return self.add(failure)

    def add(self, failure: Failure) -> list[Any]:
        """Add a failure that is known already; returns what stands in the item's place."""
        self.all.append(failure)
        return [failure] if self._on_error == "collect" else []

    def sorted(self) -> list[Failure]:
        """All failures, by index."""
        return sorted(self.all, key=lambda failure: failure.index)

    def exception(self, trouble: Trouble) -> BaseException:
        """The exception of a trouble: with its own type when it can be brought back, its remote traceback as the cause."""
        if isinstance(trouble.error, BaseException):
            return trouble.error
        error = self._unpickle(trouble.error) if trouble.error is not None else None
        if error is None:
            error = RemoteError(f"{trouble.error_type}: {trouble.message}", error_type=trouble.error_type)
        cause = RemoteTraceback(trouble.traceback)
        cause.__cause__ = error.__cause__
        _set(error, "__cause__", cause)
        return error


def _quoted(path: str) -> str:
    import shlex  # a regular expression: only who has failures needs it

    return shlex.quote(path)


def place_of(traceback: str) -> str:
    """Where a traceback ends: "features.py:12 in score"; "" when it has no frame."""
    import re  # only who has failures needs it

    frames = re.findall(r'^  File "(.+)", line (\d+), in (.+)$', traceback, re.MULTILINE)
    if not frames:
        return ""
    file, line, name = frames[-1]
    return f"{os.path.basename(file)}:{line} in {name}"


_set = BaseException.__setattr__
"""Sets an attribute also where the exception's own class refuses: a frozen dataclass does."""
