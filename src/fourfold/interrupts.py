"""Ctrl-C where it does no harm: what a driver is about to note of a worker is noted before anything is interrupted."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

ECHO_S = 0.3
"""Seconds after the first Ctrl-C in which another one is the same: some terminals and launchers send it twice."""

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
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
        self._usual: dict[int, Any] = {}
        self._holds = False
        self._pending: list[int] = []

    def __enter__(self) -> None:
        # While Python ends nothing can be imported, and nobody interrupts.
        if threading.current_thread() is not threading.main_thread() or sys.is_finalizing():
            return
        self._holds, self._pending = True, []
        try:
            self._take_over()
        except BaseException:
            self._put_back()
            raise

    def _take_over(self) -> None:
        """Hear the signals that a handler of Python has."""
        import signal  # a millisecond, and a loop does not need it

        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and callable(usual := signal.getsignal(number)) and usual != self._hear:
                self._usual[number] = usual
                signal.signal(number, self._hear)

    def __exit__(self, *exc: object) -> None:
        self._put_back()
        self._holds = False
        self._raise()

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """A part of a block in which interrupts are raised as usual: code of the user runs, and may take for ever.

        It may also set handlers of its own, which stay.
        """
        held, self._holds = self._holds, False
        try:
            self._raise()
            yield
        finally:
            if held:
                self._take_over()
            self._holds = held

    def _hear(self, number: int, frame: "FrameType | None") -> None:
        now = time.monotonic()
        if self._holds and number not in self._pending:
            self._pending.append(number)
            self.heard_at = self.heard_at if len(self._pending) > 1 else now
        elif not self._holds or (self.heard_at is not None and now > self.heard_at + ECHO_S):
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        """Let the usual handler have it: of Python, the system's, or none at all."""
        import signal

        usual = self._usual.get(number)
        if usual is None:  # the block has ended: it is in its place again
            signal.raise_signal(number)
            return
        signal.signal(number, usual)
        try:
            signal.raise_signal(number)
        finally:
            signal.signal(number, self._hear)

    def _raise(self) -> None:
        """Pass on what was held back; an exception of the one handler does not keep it from the others."""
        if not self._pending:
            return
        try:
            self._pass_on(self._pending.pop(0))
            self.heard_at = None  # it was no reason to raise
        finally:
            self._raise()

    def _put_back(self) -> None:
        if not self._usual:
            return
        import signal

        try:
            for number in list(self._usual):
                if signal.getsignal(number) == self._hear:  # else somebody has set another one meanwhile
                    signal.signal(number, self._usual[number])
                del self._usual[number]
        finally:
            if self._usual:  # one that is in its place again was heard, and has interrupted this
                self._put_back()


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
