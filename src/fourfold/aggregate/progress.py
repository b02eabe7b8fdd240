"""How far a run is: a bar on terminals and in notebooks, a line every few seconds elsewhere.

The driver only changes numbers; a thread of its own looks at them and writes. So a terminal that does not take the text (it
is paused, or the pipe is full) stops the bar and never the work.
"""

import sys
import threading
import time
from typing import Any, Protocol

DELAY_S = 0.5
"""Seconds before anything is shown. Smaller: short runs flicker. Larger: people wonder."""

BAR_EVERY_S = 0.1
LINE_EVERY_S = 5.0
"""Seconds between two looks of the bar, and between two lines. Not measured."""

LEAVE_S = 0.3
"""Seconds that the end of a run waits for the last line to be written. Longer: a stuck terminal delays the answer."""


class Counts(Protocol):
    """What there is to show."""

    @property
    def finished(self) -> int:
        """Items with an outcome."""

    @property
    def failures(self) -> int:
        """Those of them that failed."""


class Progress:
    """Shows the counts of one run.

    Args:
        counts: Numbers that the driver changes while it runs.
        total: How many items, when known.
        show: True, False, or None for where it makes sense.
        notebook: Whether this is a notebook's kernel.
        label: What runs.
        unit: What one of them is called.
    """

    def __init__(
        self, counts: Counts, total: int | None, show: bool | None, notebook: bool, label: str, unit: str = "item"
    ) -> None:
        self._counts, self._total, self._label, self._unit = counts, total, label, unit
        self._wanted = show if show is not None else True
        self._bar = self._wanted and (notebook or _is_terminal(sys.stderr))
        self._delay_s = DELAY_S if self._bar or show else LINE_EVERY_S
        self._began = time.monotonic()
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def beat(self) -> None:
        """Start to show, when it is time. Called often; it costs a look at the clock."""
        if self._wanted and self._thread is None and time.monotonic() - self._began > self._delay_s:
            self._thread = threading.Thread(target=self._show, name="fourfold-progress", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Show the last state, unless the terminal is stuck."""
        self._wanted = False
        if self._thread is not None:
            self._over.set()
            self._thread.join(LEAVE_S)

    def _show(self) -> None:
        try:
            if self._bar:
                self._show_bar()
            else:
                self._show_lines()
        except Exception:  # a closed stream or a broken notebook widget must not reach the user's program
            return

    def _show_bar(self) -> None:
        from tqdm.auto import tqdm

        # Every look is shown: the time goes on also while no item ends.
        bar: Any = tqdm(total=self._total, desc=self._label, unit=self._unit, smoothing=0.1, mininterval=0, miniters=0)
        while True:
            over = self._over.wait(BAR_EVERY_S)
            if self._counts.failures:
                bar.set_postfix_str(f"{self._counts.failures} failed", refresh=False)
            bar.update(self._counts.finished - bar.n)
            if over:
                bar.close()
                return

    def _show_lines(self) -> None:
        over = False
        while not over:
            print(self._line(), file=sys.stderr, flush=True)
            over = self._over.wait(LINE_EVERY_S)
        print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        done, failed = self._counts.finished, self._counts.failures
        elapsed = time.monotonic() - self._began
        rate = done / elapsed if elapsed else 0.0
        text = (
            f"{self._label}: {done}" + (f"/{self._total}" if self._total is not None else "") + f" {self._unit}s, {rate:.3g}/s"
        )
        if failed:
            text += f", {failed} failed"
        if self._total and rate:
            text += f", about {max(0, self._total - done) / rate:.0f} s left"
        return text


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False
