"""Trials while they run: a table of the best and of those that run, or a line every few seconds where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fourfold.cli.exits import say
from fourfold.cli.tune_board import Board, table_of

if TYPE_CHECKING:
    from rich.console import Group

    from fourfold.workloads.tune.opened import Running

LINE_EVERY_S = 5.0
"""Seconds between two lines where there is no terminal, as for items."""

RUNNING_SHOWN = 8
"""Trials that run of which there is a line, those first that have run longest. More: the table is higher than a terminal."""


class Live:
    """Shows a board while trials run. It is a callback of `ff.optimize`, and a watcher: see `fourfold.workloads.tune.opened`.

    Args:
        board: That is shown.
        show: True, False, or None for where it makes sense.

    Attributes:
        board: Likewise.
    """

    def __init__(self, board: Board, show: bool | None) -> None:
        self.board, self._show = board, show
        self._last = time.monotonic()
        self._table: Any = None
        self._seen: set[int] = set()
        self._running: Callable[[], list[Running]] = list

    def watch(self, running: Callable[[], list[Running]]) -> None:
        """Here is who runs."""
        self._running = running

    def __call__(self, study: Any, trial: Any) -> None:
        """A trial has ended; at first, also those that an earlier call has recorded."""
        from fourfold.workloads.tune.told import told_of

        for each in [trial] if self._seen else study.get_trials(deepcopy=False):
            if each.state.is_finished() and each.number not in self._seen:
                self._seen.add(each.number)
                self.board.add(told_of(each))
        self.beat()

    @contextmanager
    def shown(self) -> Iterator[Live]:
        """A block in which it is shown."""
        if self._show is False or not sys.stderr.isatty():
            yield self
            return
        from rich.console import Console
        from rich.live import Live as LiveTable

        console = Console(stderr=True, highlight=False)
        with LiveTable(get_renderable=self._rendered, console=console, transient=True) as self._table:
            yield self

    def _rendered(self) -> Group:
        from rich.console import Group

        parts: list[Any] = [self.board.table()] if self.board.best else []
        running = self._running()
        if running:
            rows = [row_of(each) for each in running[:RUNNING_SHOWN]]
            parts.append(table_of(("running", "seconds", "step", "reported"), rows))
        if len(running) > RUNNING_SHOWN:
            parts.append(f"and {len(running) - RUNNING_SHOWN:,} more that run")
        return Group(*parts, self.board.line())

    def beat(self) -> None:
        """The board has changed. The table looks at it by itself, some times a second."""
        if self._table is None and self._show is not False and time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            say(self.board.line())


def row_of(running: Running) -> tuple[str, ...]:
    """A trial that runs, for people."""
    step, value = ("", "") if running.reported is None else (str(running.reported[0]), f"{running.reported[1]:.6g}")
    return str(running.number), f"{running.seconds:.{0 if running.seconds >= 10 else 1}f}", step, value
