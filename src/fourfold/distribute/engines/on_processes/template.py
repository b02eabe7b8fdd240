"""The template: a fresh process with one thread, whose forks are the workers.

Started as `python -c "from ...template import main; main(control_fd, ...)" MODULE…`. It imports these modules, which its
workers would import otherwise, each for itself. It waits for orders of the driver on one
socket, forks a worker for each, and writes into a worker's control page how it died. It ends when the driver is gone.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import fourfold.system.seams as seams
from fourfold.distribute.engines.on_processes import channel, family
from fourfold.distribute.engines.on_processes.page import ENDED, ERRNO, PEAK_KB, PID, STATUS, TICKET, Page
from fourfold.distribute.engines.on_processes.tee import Stream, Tee

WorkerMain = Callable[[socket.socket, Page, int, int], None]


class Child(NamedTuple):
    """A worker, as the template knows it."""

    page: Page
    stream: Stream
    mark: int


END = 0
"""No order, but word that the driver ends its workers, in good order: what they started in sessions of its own may stay."""


def main(control_fd: int, driver_pid: int, worker_main: str, stderr_fd: int) -> None:
    """Serve spawn orders until the driver is gone.

    Args:
        control_fd: The template's end of the socket to the driver.
        driver_pid: The driver's process id.
        worker_main: "module:function" to call in each fork, as `function(channel, page, number, driver_pidfd)`.
        stderr_fd: The driver's own fd 2, or -1 when it has none. Up to here, fd 2 was a file that the driver reads.
    """
    _import_for_all(sys.argv[1:])
    module, _, name = worker_main.partition(":")
    run_worker: WorkerMain = getattr(importlib.import_module(module), name)
    if stderr_fd >= 0:
        os.write(stderr_fd, os.pread(2, 1 << 20, 0).replace(b"\0", b""))
        os.dup2(stderr_fd, 2)
        os.close(stderr_fd)
    control = channel.inherited(control_fd)
    signal.signal(signal.SIGINT, _ignore)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _ignore)
    if os.getppid() != driver_pid:
        return
    try:
        driver_pidfd = os.pidfd_open(driver_pid) if hasattr(os, "pidfd_open") else -1
    except ProcessLookupError:  # it died just now
        return
    children: dict[int, Child] = {}
    is_in_order = False
    poll = select.poll()
    tee = Tee(2 if stderr_fd >= 0 else -1, poll)
    poll.register(control, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
                _reap(children, tee, is_in_order)
            if fd != control_fd:
                tee.attend(fd)
                continue
            order = channel.receive(control)
            if order is None:
                _reap(children, tee, is_in_order)
                for pid in children:  # their own watcher cannot, while an item holds the interpreter in C code
                    _kill_group(pid)
                family.end({child.mark for child in children.values() if child.page.fields[ENDED] or not is_in_order})
                tee.finish()
                os._exit(0)  # nothing of ours waits to be tidied, and the driver waits for this
            (number,), fds = order
            if number == END:
                is_in_order = True
                continue
            inherited = (control, wake_read, wake_write)
            _fork(run_worker, number, fds, children, inherited, driver_pidfd, tee)


def _import_for_all(modules: list[str]) -> None:
    """Import what the workers will need. A fork has one thread of its parent, so no other may have been started by that.

    If one was, this process begins anew without the module that started it and those behind, which each worker imports itself.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever imports it knows which of them are to be shown
        for number, name in enumerate(modules):
            with contextlib.suppress(Exception):  # the worker that needs it says why not
                importlib.import_module(name)
            if not _is_alone():
                os.execv(sys.executable, sys.orig_argv[: number - len(modules)])
    gc.freeze()  # to look for garbage among these a worker would copy them all, and find none


def _is_alone() -> bool:
    """Whether this process has one thread; False when nobody can tell."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _ignore(signum: int, frame: object) -> None:
    """A handler and not SIG_IGN: programs that an item starts must not inherit it."""


def _fork(
    run_worker: WorkerMain,
    number: int,
    fds: list[int],
    children: dict[int, Child],
    inherited: tuple[socket.socket, int, int],
    driver_pidfd: int,
    tee: Tee,
) -> None:
    end, page, mark = channel.inherited(fds[0]), Page(fds[1]), family.new_mark()
    os.close(fds[1])
    stderr_fd = -1
    try:
        stream, stderr_fd = tee.open()
        seams.hit("template.fork")
        pid = os.fork()
    except OSError as error:
        page.fields[ERRNO] = error.errno or -1
        page.close()
        end.close()
        if stderr_fd >= 0:
            os.close(stderr_fd)
        return
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # it does so itself, but we may have to kill the group before that
        page.fields[PID] = pid
        children[pid] = Child(page, stream, mark)
        end.close()
        os.close(stderr_fd)
        return
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the driver may ignore it, and an item that is late is ended by it
        family.bear(mark)
        control, *pipes = inherited
        control.close()
        for fd in pipes:
            os.close(fd)
        tee.leave()
        for sibling in children.values():
            sibling.page.close()
        os.dup2(stderr_fd, 2)
        os.close(stderr_fd)
        # A group of its own: Ctrl-C in the terminal goes to the driver only, and the worker ends with all it started.
        os.setpgid(0, 0)
        run_worker(end, page, number, driver_pidfd)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _reap(children: dict[int, Child], tee: Tee, is_in_order: bool) -> None:
    """Note how those have died that are dead, and end what they have started."""
    marks: set[int] = set()
    while (dead := _next_dead()) is not None:
        # Until it is reaped, its number is nobody else's: what is left of its group is what its items have started.
        _kill_group(dead.si_pid)
        pid, status, usage = os.wait4(dead.si_pid, 0)
        child = children.pop(pid, None)
        if child is not None:
            page = child.page
            with contextlib.suppress(OSError):  # no memory is left for its words
                page.keep_words(tee.drain(child.stream))
            page.fields[PEAK_KB] = usage.ru_maxrss
            page.fields[STATUS] = status + 1
            has_crashed = not is_in_order and (status or page.fields[TICKET])
            if has_crashed or page.fields[ENDED]:
                marks.add(child.mark)
            page.close()
    family.end(marks)


def _next_dead() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
