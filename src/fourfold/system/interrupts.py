"""Ctrl-C where it does no harm: what a driver is about to note of a worker is noted before anything is interrupted."""

import _signal  # type: ignore[import-not-found]  # `signal` itself takes a millisecond to import, and 50 us a block for its enums
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

Handler = Callable[[int, "FrameType | None"], Any]

ECHO_S = 0.3
"""Seconds after the first Ctrl-C in which another one is the same: some terminals and launchers send it twice."""

NUMBERS = [getattr(_signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(_signal, name)]
"""The signals that people end a program with. Not every system has all of them."""


class Shield:
    """Blocks of the main thread that no interrupt cuts in two: it is raised when the block ends.

    Python raises KeyboardInterrupt between any two steps, also between sending work and noting who has it: the results of that
    work could not be taken in any more. A second interrupt, later than an echo, is raised at once: the block may be stuck.

    In other threads nothing changes; nor for signals whose handler is none of Python's.
    """

    def __init__(self) -> None:
        self.heard_at: float | None = None
        """When the interrupt came that was held back last."""
        self._usual: dict[int, Handler] = {}
        self._holds = False
        self._pending: list[tuple[int, FrameType | None, Handler]] = []

    def __enter__(self) -> None:
        # While Python ends nothing can be imported, and nobody interrupts.
        if threading.current_thread() is not threading.main_thread() or sys.is_finalizing():
            return
        self._holds, self._pending = True, []
        try:
            self._take_over()
        except BaseException:
            self._end()
            raise

    def __exit__(self, *exc: object) -> None:
        self._end()

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """A part of a block in which all is as outside: code of the user runs that may take for ever, or set handlers."""
        held = self._holds
        if not held:
            yield
            return
        self._end()
        try:
            yield
        finally:
            self._holds, self._pending = True, []
            self._take_over()

    def _take_over(self) -> None:
        """Hear the signals that a handler of Python has."""
        hear = self._hear
        for number in NUMBERS:
            if callable(usual := _signal.getsignal(number)) and usual != hear:
                self._usual[number] = usual
                _signal.signal(number, hear)

    def _hear(self, number: int, frame: "FrameType | None") -> None:
        now, usual = time.monotonic(), self._usual.get(number, _raise_interrupt)
        if self._holds and all(number != each for each, _, _ in self._pending):
            self.heard_at = self.heard_at if self._pending else now
            self._pending.append((number, frame, usual))
        elif not self._holds or (self.heard_at is not None and now > self.heard_at + ECHO_S):
            usual(number, frame)

    def _end(self) -> None:
        try:
            self._put_back()
        finally:
            self._holds = False
            self._tell()

    def _tell(self) -> None:
        """Pass on what was held back; an exception of the one handler does not keep it from the others."""
        if not self._pending:
            return
        number, frame, usual = self._pending.pop(0)
        try:
            usual(number, frame)
            self.heard_at = None  # it was no reason to raise
        finally:
            self._tell()

    def _put_back(self) -> None:
        if not self._usual:
            return
        hear = self._hear
        try:
            for number in list(self._usual):
                if _signal.getsignal(number) == hear:  # else somebody has set another one meanwhile
                    _signal.signal(number, self._usual[number])
                del self._usual[number]
        finally:
            if self._usual:  # one that is in its place again was heard, and has interrupted this
                self._put_back()


def _raise_interrupt(number: int, frame: "FrameType | None") -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def deaf_for(seconds: float) -> Iterator[None]:
    """Let Ctrl-C of the first `seconds` of a block pass unheard. The main thread hears it: in others nothing changes.

    A handler that Python does not know (of C code) is left alone.
    """
    import signal

    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    until = time.monotonic() + seconds

    def hear(number: int, frame: "FrameType | None") -> None:
        if time.monotonic() > until:
            usual(number, frame)

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


_WRITTEN = " was written before that, whole"


@contextlib.contextmanager
def telling_what_is_written(output: object, is_written: Callable[[], bool]) -> Iterator[None]:
    """A block that makes an output appear: who interrupts it is told when the output is there all the same.

    Args:
        output: As it is called.
        is_written: Whether it is there, and of this block.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        with contextlib.suppress(Exception):  # a store that is dead cannot tell, and Ctrl-C is what has ended the block
            if is_written():
                interrupt.add_note(f"fourfold: {output}{_WRITTEN}")
        raise


def written_before(interrupt: BaseException) -> str:
    """What `telling_what_is_written` has told; "" when that is nothing."""
    notes = (note for note in getattr(interrupt, "__notes__", ()) if note.endswith(_WRITTEN))
    return next(notes, "").removeprefix("fourfold: ")
