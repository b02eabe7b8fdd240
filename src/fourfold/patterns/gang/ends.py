"""How ranks ended, whose failure was the first, and the error that says so."""

import math
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

from fourfold.errors import GangFailed, NotPicklable, RemoteError, RemoteTraceback
from fourfold.execute.troubles import unpickled

HOPELESS = frozenset({"load", "unpicklable"})
"""Kinds of failures that a gang would meet again however often it is started."""


class End(NamedTuple):
    """How one rank ended.

    Attributes:
        rank: Its number.
        kind: "value", "raised", "load" (its function could not be loaded), "unpicklable" (its value), "died", or "stopped",
            since another one had failed.
        when: `time.time()` of a failure; -inf of a death, which tells no time and is no consequence of another failure.
        data: The pickled value, or what `member` says of an exception.
        how: Of a death, in words.
        words: The last lines that it has printed.
        where: The machine that it was on; "" for this one.
        kept: On another machine: the end of what it has printed.
    """

    rank: int
    kind: str
    when: float = 0.0
    data: Any = None
    how: str = ""
    words: str = ""
    where: str = ""
    kept: bytes = b""

    @property
    def failed(self) -> bool:
        """Whether it has ended by itself, without a value."""
        return self.kind not in ("value", "stopped")


def died(rank: int, how: str, words: str, after_value: bool) -> End:
    """The end of a rank whose process ended in another way than a rank's ends."""
    if after_value:
        return End(rank, "died", math.inf, how=f"{how}, after its function had returned", words=words)
    return End(rank, "died", -math.inf, how=f"{how}, before its function returned", words=words)


def first_failure(ends: Sequence[End]) -> End | None:
    """The failure that was there before the others; None when every rank has a value.

    When one rank fails, those that talk to it fail a moment later: what they say is not the cause.
    """
    return min((end for end in ends if end.failed), key=lambda end: (end.when, end.rank), default=None)


def error_of(end: End, world_size: int, n_restarts: int) -> BaseException:
    """The error to raise for a failure: the exception of the rank itself, with a note that says which rank it was."""
    rank = f"rank {end.rank} of {world_size}{f' on {end.where}' if end.where else ''}"
    times = "once" if n_restarts == 1 else f"{n_restarts} times"
    again = f" The gang was started again {times}." if n_restarts else ""
    if end.kind == "died":
        last = f"; the last that it left: {end.words.splitlines()[-1].strip()}" if end.words else ""
        error: BaseException = GangFailed(f"{rank} {end.how}{last}.{again}", rank=end.rank)
        return _with_words(error, end)
    travelled, error_type, message, traceback = end.data
    found = unpickled(travelled) if travelled is not None else None
    if end.kind == "unpicklable":
        error = NotPicklable(f"{rank}: {message}")
    elif found is not None:
        error = found
    elif error_type == "SystemExit":
        error = GangFailed(f"{rank} ended with sys.exit({message})", rank=end.rank)
    elif error_type == "KeyboardInterrupt":
        error = GangFailed(f"{rank} was interrupted (KeyboardInterrupt)", rank=end.rank)
    else:
        error = RemoteError(f"{error_type}: {message}", error_type=error_type)
    cause = RemoteTraceback(traceback)
    cause.__cause__ = error.__cause__
    BaseException.__setattr__(error, "__cause__", cause)  # a frozen dataclass refuses its own
    did = "could not load the function" if end.kind == "load" else "raised this"
    if not isinstance(error, GangFailed | NotPicklable) or end.kind == "raised":
        error.add_note(f"fourfold: {rank} {did}.{again}")
    return _with_words(error, end)


def _with_words(error: BaseException, end: End) -> BaseException:
    if end.words:
        error.add_note(f"fourfold: the last lines of rank {end.rank}:\n{end.words}")
    return error


def values_of(ends: Sequence[End]) -> list[Any]:
    """The values of all ranks, in the order of their numbers."""
    return [pickle.loads(end.data) for end in sorted(ends, key=lambda end: end.rank)]
