"""Where a worker is, as Python's faulthandler writes it: when it crashes, and when the driver asks by a signal.

faulthandler writes without the interpreter, so that it answers also while C code holds it. It writes into the file of the
control page, which the driver reads.
"""

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Sequence

from fourfold.distribute.engines.on_processes.page import Page
from fourfold.distribute.watch import trimmed
from fourfold.system.machine import catches

ASK = signal.SIGUSR1
"""What the driver sends to be told where a worker is."""

ANSWER_S = 0.5
"""Seconds that workers get to answer. Smaller: busy machines give no stack. Larger: it takes longer to say that a worker is
frozen. A worker that runs answers in less than 1 ms."""

STEADY_S = 0.005
"""Seconds without a new line after which an answer is taken to be whole. Not measured."""

_TEMPLATE = f"{os.path.dirname(__file__)}/template.py"
_FATAL = "Fatal Python error: "


def write_into(page: Page) -> None:
    """In a worker: its stack goes there when it crashes or is asked. An item may set up faulthandler otherwise."""
    faulthandler.enable(page.fd, all_threads=False)
    faulthandler.register(ASK, page.fd, all_threads=False, chain=False)


def at_death(page: Page) -> str:
    """The stack of a worker that crashed; "" when it left none."""
    text = page.stack()
    # Whatever comes before it are answers, or crashes of processes that an item forked.
    _, fatal, text = text.rpartition(_FATAL)
    return trimmed(text) if fatal else ""


def ask(workers: Sequence[tuple[int, int, Page]]) -> list[str]:
    """The stacks of living workers, "" for those that do not answer.

    Args:
        workers: For each its process id, its pidfd or -1, and its page.
    """
    asked = [send(*worker) for worker in workers]
    deadline = time.monotonic() + ANSWER_S
    texts, steady_since = _read(workers, asked), time.monotonic()
    while time.monotonic() < deadline:
        said = [text for text, is_asked in zip(texts, asked, strict=True) if is_asked]
        if all(map(is_whole, said)):
            break
        is_steady = all(said)
        if is_steady and time.monotonic() - steady_since > STEADY_S:
            break
        time.sleep(0.001)
        before, texts = texts, _read(workers, asked)
        if texts != before:
            steady_since = time.monotonic()
    return [trimmed(text) for text in texts]


def send(pid: int, pidfd: int, page: Page) -> bool:
    """Ask one worker, if it listens: who does not, or not any more, would die of the signal."""
    if not catches(pid, ASK):
        return False
    with contextlib.suppress(OSError):
        page.clear_stack()
        if pidfd >= 0 and hasattr(signal, "pidfd_send_signal"):
            signal.pidfd_send_signal(pidfd, ASK)
        else:
            os.kill(pid, ASK)
        return True
    return False


def is_whole(text: str) -> bool:
    """Whether an answer ends where every worker's stack does, in the template, or where Python gives up."""
    *_, above, last = ["", *text.splitlines()[-2:]] if text else ["", ""]
    return last == "  ..." or (last.startswith('  File "<string>"') and _TEMPLATE in above)


def _read(workers: Sequence[tuple[int, int, Page]], asked: Sequence[bool]) -> list[str]:
    return [page.stack() if is_asked else "" for (_, _, page), is_asked in zip(workers, asked, strict=True)]
