"""The worker's side of a run: joins what a worker process needs, as `compose` does for the driver.

The engine's loop (distribute/engines/on_processes/worker_loop.py) knows nothing of items; execute/ knows nothing of channels.
"""

import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import fourfold.shown as shown
from fourfold.distribute.engine import Runnable
from fourfold.distribute.engines.on_processes import stacks
from fourfold.distribute.engines.on_processes.page import Page
from fourfold.distribute.engines.on_processes.worker_loop import WorkerLoop, watch_driver
from fourfold.execute import current, forward
from fourfold.execute.chunk import Run
from fourfold.execute.pickling import load
from fourfold.execute.remote import dump_trouble
from fourfold.execute.troubles import in_words
from fourfold.records import Kind, Parcel
from fourfold.system.machine import JOBLIB_VARIABLE, limit_threads_for_good


def main(end: socket.socket, page: Page, number: int, driver_pidfd: int) -> None:
    """Serve the driver at the other end of the channel until it says stop."""
    stacks.write_into(page)
    watch_driver(end, driver_pidfd)
    _draw_anew()
    current.enter_worker_process()
    global _calm_down
    _calm_down = _remember_signals()
    inherited = [name for name in sys.argv[1:] if name in sys.modules]  # of those that the template was asked for
    loop = WorkerLoop(
        end, page, load=_load, describe=dump_trouble, in_words=in_words, flush=forward.flush, inherited=inherited
    )
    forward.install(lambda record: loop.send("say", record))
    loop.serve()


def _draw_anew() -> None:
    """Where NumPy was imported before the fork, all workers would draw the same numbers. Python sees to its own."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def pack_program(program: Parcel, setup: dict[str, Any]) -> Parcel:
    """The parcel of a program with what its worker must be like: called in the driver, read by `_load`."""
    return Parcel(pickle.dumps((setup, bytes(program.head))), program.buffers)


def _remember_signals() -> Callable[[], None]:
    """Return a function that puts signals, timers and the umask of this process back to what they are now."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    mask = os.umask(0)
    os.umask(mask)

    def restore() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.umask(mask)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return restore


_calm_down: Callable[[], None]
"""Undoes what items of earlier calls have done to signals and the umask; set when the worker starts."""


def _load(parcel: Parcel) -> Runnable:
    setup, head = pickle.loads(parcel.head)
    is_cut = setup.pop("is_cut")
    _become(**setup)
    run: Run = load(Parcel(head, parcel.buffers)).prepare()
    if is_cut:
        return run

    def run_whole(payload: Any, cell: Any) -> tuple[Kind, Any]:
        return run(payload, cell.uncut())

    return run_whole


def _become(
    cwd: str | None,
    path: list[str] | None,
    environment: dict[str, str] | None,
    arguments: list[str],
    threads: int | None,
    thread_variables: tuple[str, ...],
    recursion_limit: int,
    levels: dict[str, int],
    filters: bytes,
    hides: bytes,
) -> None:
    """Make this process like the driver, in what is given here.

    None leaves what there is: another machine has folders and variables of its own.

    Signals are as in a new worker again.
    """
    _calm_down()
    sys.setrecursionlimit(recursion_limit)
    sys.argv[:] = arguments
    if cwd is not None:
        os.chdir(cwd)  # without a look at where we are: that folder may be gone
    if path is not None:
        sys.path[:] = path
    if threads is not None:
        environment = {**(environment or os.environ), **dict.fromkeys(thread_variables, str(threads))}
    if environment is not None:
        environment.setdefault(JOBLIB_VARIABLE, str(threads or 1))  # each of the workers has that many
    if environment is not None and dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)
    shown.hide(hides)
    if hides:
        os.environ[shown.VARIABLE] = "1"  # for calls inside items; another machine has an environment of its own
    if threads is not None:
        limit_threads_for_good(threads, thread_variables)
    forward.adopt(levels, pickle.loads(filters))
