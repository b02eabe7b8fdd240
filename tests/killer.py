"""Kills workers: the one that runs item k at a chosen moment, or random ones again and again. And drivers, at a chosen seam."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leaks import living_descendants, the_pool

from fourfold.system import seams

PHASES = ("before it", "in it", "while its result travels")


class Kill:
    """An item that kills its worker, as an outsider would, with SIGKILL, the first `times` times that it comes to `phase`.

    The function is to be called with its `value`, by `run`.
    """

    def __init__(self, folder: Path | str, value: int, phase: str, times: int, driver: int | None = None) -> None:
        self.folder, self.value, self.phase, self.times = str(folder), value, phase, times
        self.driver = driver or os.getpid()

    def at(self, phase: str) -> None:
        """The worker is here."""
        if phase != self.phase or os.getpid() == self.driver:
            return
        for number in range(self.times):
            try:
                os.close(os.open(f"{self.folder}/killed-{self.value}-{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def count(self) -> int:
        """How often it has killed."""
        return sum(name.startswith(f"killed-{self.value}-") for name in os.listdir(self.folder))

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.folder, self.value, self.phase, self.times, self.driver)


def _arrive(*fields: Any) -> Kill:
    kill = Kill(*fields)
    kill.at("before it")
    return kill


class Leaving:
    """A result that kills its worker when it is pickled."""

    def __init__(self, kill: Kill, value: Any) -> None:
        self.kill, self.value = kill, value

    def __reduce__(self) -> tuple[Any, ...]:
        self.kill.at("while its result travels")
        return _value, (self.value,)


def _value(value: Any) -> Any:
    return value


def run(fn: Callable[[int], Any], item: Any) -> Any:
    """Call the function; what goes wrong besides is the item's own doing."""
    if not isinstance(item, Kill):
        return fn(item)
    item.at("in it")
    return Leaving(item, fn(item.value))


@contextmanager
def storm(seed: int, every_s: float) -> Iterator[list[int]]:
    """Kill a random worker of this process's pool every `every_s` seconds during the block; gives the pids killed so far.

    Less often on a machine with other work: workers that are all killed before they have begun to work end a call, as they should.
    """
    from conftest import crowd  # not above: workers import this module, too

    over, killed, dice = threading.Event(), [], random.Random(seed)

    def kill() -> None:
        while not over.wait(every_s * crowd()):
            pool = the_pool()  # none before the first call
            template = pool._template if pool is not None else None
            workers = [each.pid for each in living_descendants(0) if template is not None and each.parent == template.pid]
            if workers:
                pid = dice.choice(sorted(workers))
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def is_killed_at(fault: str, work: Callable[[], object]) -> bool:
    """Do some work in a fork of this process in which a fault waits; whether it was killed there."""
    pid = os.fork()
    if pid == 0:
        try:
            seams.set_faults(fault)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0
