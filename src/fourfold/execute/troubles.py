"""An exception becomes a Trouble: what a person reads, and the exception itself when it can travel."""

import contextlib
from typing import Any

from fourfold.records import Trouble
from fourfold.shown import clip, without_quotes
from fourfold.shown import safe_repr as safe_repr  # for those who show what an item returned

TEXT_CHARS = 100_000
"""Characters of a traceback or message that travel. Not measured: it only keeps a huge message from filling the driver."""


LINE_CHARS = 300
"""Characters of what is said of an exception in a line. Not measured."""


def in_words(error: BaseException) -> str:
    """What the exception is and says, in one line."""
    return clip(f"{type(error).__name__}: {' '.join(safe_str(error).split())}", LINE_CHARS)


def describe(error: BaseException, offset: int, item: Any, *, kind: str = "raised", travels: bool = False) -> Trouble:
    """Describe the exception of the item at `offset` of its chunk.

    Args:
        error: What was raised.
        offset: Which item of the chunk.
        item: The item, for its short repr.
        kind: "raised", or what else went wrong with the item ("unpicklable").
        travels: The trouble goes to another process: pickle the exception, or leave it out when that fails.
    """
    if isinstance(error, MemoryError):
        _note_peak(error)
    return Trouble(
        offset=offset,
        kind=kind,
        error=pickled(error) if travels else error,
        error_type=qualified_name(type(error)),
        message=without_quotes(clip(safe_str(error), TEXT_CHARS), item),
        traceback=without_quotes(format_traceback(error), item),
        item=safe_repr(item),
    )


def _note_peak(error: MemoryError) -> None:
    """Say in a note how much memory this process had at most: the error itself knows only what it asked for."""
    with contextlib.suppress(Exception):
        import resource

        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        error.add_note(f"fourfold: the memory of the process that ran it peaked at {peak_bytes / 1e6:.0f} MB")


def pickled(error: BaseException) -> bytes | None:
    """Pickle an exception with its chain of causes, or return None when it would not come back alive.

    It is unpickled here as well: an exception with its own `__init__` often pickles and then fails where it is read, and
    there it would cost the whole chunk.
    """
    import pickle

    from fourfold.execute.pickling import dump_whole  # cloudpickle: only those who send exceptions pay for it

    try:
        data = dump_whole(_chain(error))
        back = pickle.loads(data)[0]
    except BaseException:
        return None
    return data if type(back).__qualname__ == type(error).__qualname__ else None


def unpickled(data: Any) -> BaseException | None:
    """Bring back what `pickled` made, causes and contexts in place; None when this process cannot."""
    import pickle

    try:
        error = _unchain(pickle.loads(data))
    except Exception:
        return None
    return error


_Chain = tuple[BaseException, Any, Any, bool]


def _chain(error: BaseException, depth: int = 0) -> _Chain:
    """An exception with its cause and context, which pickling alone would drop."""
    deeper = depth < 20
    cause = _chain(error.__cause__, depth + 1) if error.__cause__ is not None and deeper else None
    context = _chain(error.__context__, depth + 1) if error.__context__ is not None and deeper and cause is None else None
    return error, cause, context, error.__suppress_context__


def _unchain(chain: _Chain) -> BaseException:
    error, cause, context, suppress = chain
    put = BaseException.__setattr__  # a frozen dataclass refuses its own
    put(error, "__cause__", _unchain(cause) if cause is not None else None)
    put(error, "__context__", _unchain(context) if context is not None else None)
    put(error, "__suppress_context__", suppress)
    return error


def format_traceback(error: BaseException) -> str:
    """The traceback as text, from the user's first frame on: ours above it help nobody. A function of C has none."""
    import traceback  # 3 ms, and only failed items need it

    try:
        frames = error.__traceback__
        while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
            frames = frames.tb_next
        lines = traceback.format_exception(type(error), error, frames)
        return clip("".join(lines), TEXT_CHARS)
    except Exception as broken:
        return f"{qualified_name(type(error))}: <its traceback cannot be printed: {type(broken).__name__}>\n"


_HERE = __file__.rpartition("execute")[0] + "execute"


def _is_ours(filename: str) -> bool:
    return filename.startswith(_HERE)


def qualified_name(cls: type) -> str:
    """`ValueError` for built-ins, `package.module.Class` for others."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def safe_str(obj: object) -> str:
    """`str(obj)`, or a placeholder when that raises."""
    try:
        return str(obj)
    except Exception:
        return f"<unprintable {type(obj).__name__}>"
