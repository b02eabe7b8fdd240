"""Whether a trial has asked for all its parameters: seen where it runs, by what its thread has computed since the last one."""

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType

from fourfold.workloads.tune.asking import Ask

COMPUTES_S = 0.01
"""Seconds of its processor that a thread computes without asking for another parameter, after which it will probably ask for
none. Fewer: an objective that prepares something between two parameters is taken for one that has all. More: workers that
could run other trials idle so long, once in a study. Time that it waits for a processor does not count. Not measured."""

STEP_S, GIVES_UP_S = 0.002, 0.5
"""How often one looks, and how long. After that the desk goes by the clock."""


class Quiet:
    """Tells the desk once when the thread that enters it is quiet.

    Args:
        ask: The way to the desk.
        key: What the trial is called there.
    """

    def __init__(self, ask: Ask, key: int) -> None:
        self._ask, self._key = ask, key
        self._clock = _clock_of_this_thread()
        self._since: float | None = None
        self._until = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fourfold-quiet", daemon=True)

    def __enter__(self) -> "Quiet":
        if self._clock is not None:
            self.has_asked()
            self._since = None
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._clock is not None:
            self._thread.join()

    def is_asking(self) -> None:
        """The trial asks for a parameter: what is computed until the answer is not its own."""
        self._since = None

    def has_asked(self) -> None:
        """The trial has a parameter that it has asked for."""
        if self._clock is not None:
            self._since, self._until = self._clock(), time.monotonic() + GIVES_UP_S

    def _watch(self) -> None:
        assert self._clock is not None
        while not self._over.wait(STEP_S) and time.monotonic() < self._until:
            since = self._since
            if since is not None and self._clock() - since >= COMPUTES_S:
                with contextlib.suppress(Exception):  # the line is broken: the trial will hear of it
                    self._ask.say("quiet", self._key)
                return


def _clock_of_this_thread() -> Callable[[], float] | None:
    """The processor time of the thread that calls this, to be read by any; None where the system does not tell it."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return None
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)
