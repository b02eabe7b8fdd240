"""Workers that do not become ready: told of, then ended and replaced, like those that die before they are ready.

    ordered ──template forks it──> forked ──imports, hooks──> ready
       └── nothing for START_S: the template hangs     └── nothing for START_S: the worker hangs

A template that hangs (a `sitecustomize` that waits for something, a process that somebody stopped) is ended with all that
waits for it, and another one is started.
"""

import os
import time
from collections.abc import Sequence

from fourfold.distribute.engines.on_processes import stacks
from fourfold.distribute.engines.on_processes.handle import Worker
from fourfold.distribute.engines.on_processes.pool import POOL
from fourfold.distribute.watch import Watch
from fourfold.errors import OptionError
from fourfold.system.machine import is_stopped

START_S = 60.0
"""Seconds, times FOURFOLD_TIME_SCALE, that a worker has until it is ready, or what starts workers until it has started it: as
a rule 0.01 s and 0.2 s. Smaller: a start from a slow network file system is given up. Larger: who waits for one that hangs
hears of it later. Not measured."""

NOTICE = 0.25
"""Share of it after which a start that takes long is told. Smaller: slow ones are told of that end well. Not measured."""


def time_scale() -> float:
    """By how much this machine is slower than others: FOURFOLD_TIME_SCALE.

    Raises:
        OptionError: It is no number.
    """
    text = os.environ.get("FOURFOLD_TIME_SCALE", "1")
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"FOURFOLD_TIME_SCALE={text!r} must be a number, such as 2 on a slow machine") from None


class Starts:
    """Watches over the workers of one engine until they are ready.

    Args:
        watch: None, or what tells of those that take long.
    """

    def __init__(self, watch: Watch | None) -> None:
        self._watch = watch
        self._limit_s = START_S * time_scale()
        self._told: set[int] = set()
        self._at_fault: set[int] = set()
        """Templates that are known to have started none of those that waited for them."""

    def look(self, workers: Sequence[Worker]) -> float | None:
        """End what has been starting for too long; returns the seconds until the next look, None when nothing starts."""
        soonest = None
        for worker in workers:
            if (
                worker.ready or worker.line.hung_up or worker.has_spoken()
            ):  # who comes back from elsewhere has not heard it yet
                continue
            took_s = time.monotonic() - worker.born_at
            if took_s >= self._limit_s:
                self._end(worker, workers)
                continue
            left_s = self._limit_s - took_s
            if took_s < NOTICE * self._limit_s:
                left_s = NOTICE * self._limit_s - took_s
            elif self._watch is not None:
                self._tell(worker, took_s, self._watch)
            soonest = left_s if soonest is None else min(soonest, left_s)
        return soonest

    def is_its_own_fault(self, worker: Worker) -> bool:
        """Whether this worker's failed start counts: of all that waited for one template, only the first does."""
        if worker.is_forked():
            return True
        is_known = worker.template_pid in self._at_fault
        self._at_fault.add(worker.template_pid)
        return not is_known

    def _end(self, worker: Worker, workers: Sequence[Worker]) -> None:
        limit = f"{self._limit_s:g} s"
        if worker.is_forked():
            stack = _stack(worker)
            at = f" at {stack.splitlines()[0].strip()}" if stack else ""
            worker.fail_to_start(f"{worker.name} was not ready after {limit}, and was stopped{at}", "")
            return
        frozen = ", which is frozen," if is_stopped(worker.template_pid) else ""
        reason = (
            f"the process that starts workers (pid {worker.template_pid}){frozen} started none in {limit}, and was stopped"
        )
        words = POOL.end_template(worker.template_pid)
        for each in workers:
            if each.template_pid == worker.template_pid and not each.is_forked():
                each.fail_to_start(reason, words)

    def _tell(self, worker: Worker, took_s: float, watch: Watch) -> None:
        """Once of each worker, and once of each template."""
        key = worker.number if worker.is_forked() else -worker.template_pid
        if key in self._told:
            return
        self._told.add(key)
        if worker.is_forked():
            stack = _stack(worker)
            where = f"It is here, most recent call first:\n{stack}" if stack else ""
            watch.starts_slowly(worker.name, took_s, self._limit_s, where, is_stopped(worker.pid))
        else:
            pid = worker.template_pid
            words = POOL.words_of_template(pid)
            words = f"The last that it said: {words}" if words else ""
            watch.starts_slowly(f"the process that starts workers (pid {pid})", took_s, self._limit_s, words, is_stopped(pid))


def _stack(worker: Worker) -> str:
    (stack,) = stacks.ask([(worker.pid, worker.pidfd, worker.page)])
    return stack
