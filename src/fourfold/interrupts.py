"""Ctrl-C where it does no harm: what a driver is about to note of a worker is noted before anything is interrupted."""

import contextlib
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
        self._numbers: list[int] | None = None
        self._usual: dict[int, Any] = {}
        self._holds = False
        self._pending: int | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        import signal  # a millisecond, and a loop does not need it

        if self._numbers is None:
            known = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
            self._numbers = [number for number in known if callable(signal.getsignal(number))]
        self._holds, self._pending = True, None
        try:
            for number in self._numbers:
                self._usual[number] = signal.signal(number, self._hear)
        except BaseException:
            self._put_back()
            raise

    def __exit__(self, *exc: object) -> None:
        self._put_back()
        self._holds = False
        self._raise()

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """A part of a block in which interrupts are raised as usual: code of the user runs, and may take for ever."""
        held, self._holds = self._holds, False
        try:
            self._raise()
            yield
        finally:
            self._holds = held

    def _hear(self, number: int, frame: "FrameType | None") -> None:
        now = time.monotonic()
        if self._pending is None and self._holds:
            self._pending, self.heard_at = number, now
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
        number, self._pending = self._pending, None
        if number is not None:
            self._pass_on(number)
            self.heard_at = None  # it was no reason to raise

    def _put_back(self) -> None:
        import signal

        try:
            for number in list(self._usual):
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
