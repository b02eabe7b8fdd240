"""A rank's own process: it says that it is there, waits until all are, runs its function, and leaves what came of it.

Started as `python -c "...; main(PROGRAM, ANSWER, DRIVER, MARK)"` with three descriptors: the program, which all ranks read; a
file for the answer; and a socket to the driver. What it prints goes through pipes: fd 1 and fd 2.

    answer file:  8 bytes of size, written last │ pickle of (kind, when, data)
"""

import contextlib
import faulthandler
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from fourfold.distribute.engines.on_processes import family

SIZE = struct.Struct("<Q")

READY, GO = b"r", b"g"


def main(program_fd: int, answer_fd: int, driver_fd: int, mark: int) -> None:
    """Live the life of a rank."""
    family.bear(mark)
    for fd in (program_fd, answer_fd, driver_fd):
        os.set_inheritable(fd, False)
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)  # a driver that has waited for too long asks where it hangs
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with socket.socket(fileno=driver_fd) as driver:
        driver.setblocking(True)  # what this Python imports at its start may have set a default timeout
        driver.sendall(READY)
        if driver.recv(1) != GO:
            os._exit(0)  # another rank could not start, or the driver is gone
    pid = os.getpid()
    kind, when, data = _run(program_fd)
    _flush()
    if os.getpid() != pid:
        os._exit(0 if kind == "value" else 1)  # a fork of the function's: the rank is its parent
    _leave(answer_fd, pickle.dumps((kind, when, data), protocol=5))
    if kind != "value":
        sys.exit(1)


def _run(program_fd: int) -> tuple[str, float, Any]:
    """Run the program; returns what kind of end it had, when, and the pickled value or the trouble."""
    from fourfold.execute.pickling import dump_whole, explain

    try:
        with mmap.mmap(program_fd, 0, access=mmap.ACCESS_READ) as whole:
            program = pickle.loads(whole)
        os.close(program_fd)
        sys.argv[:] = program["arguments"]
        run = _script(program["script"]) if "script" in program else _function(program["function"])
    except BaseException as error:
        return "load", time.time(), _trouble(error)
    try:
        value = run()
    except BaseException as error:
        if "script" in program and isinstance(error, SystemExit) and error.code in (None, 0):
            return "value", time.time(), dump_whole(None)
        return "raised", time.time(), _trouble(error)  # the time first: to describe it takes a while
    try:
        return "value", time.time(), dump_whole(value)
    except Exception as error:
        from fourfold.errors import NotPicklable

        why = NotPicklable(f"its value cannot travel back: {explain(value, 'value', error)}")
        return "unpicklable", time.time(), _trouble(why)


def _function(pickled: bytes) -> Callable[[], Any]:
    fn, args = pickle.loads(pickled)
    return lambda: fn(*args)


def _script(path: str) -> Callable[[], Any]:
    import runpy

    sys.path.insert(0, os.path.dirname(path))

    def run() -> None:
        runpy.run_path(path, run_name="__main__")

    return run


def _trouble(error: BaseException) -> tuple[bytes | None, str, str, str]:
    """What a driver needs of an exception: itself, pickled, when it can travel; its type, message, and traceback.

    Of the frames those above the user's are left out, and what would end the driver (SystemExit, …) does not travel.
    """
    from fourfold.execute.troubles import format_traceback, pickled, qualified_name, safe_str

    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    if frames is not None:
        error.__traceback__ = frames
    travels = pickled(error) if isinstance(error, Exception) else None
    return travels, qualified_name(type(error)), safe_str(error), format_traceback(error)


def _is_ours(filename: str) -> bool:
    return filename == __file__ or filename == "<frozen runpy>"


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _leave(answer_fd: int, answer: bytes) -> None:
    """Write the answer: its size last, so that one that is cut counts as none."""
    view, at = memoryview(answer), SIZE.size
    while view:
        written = os.pwrite(answer_fd, view, at)
        view, at = view[written:], at + written
    os.pwrite(answer_fd, SIZE.pack(len(answer)), 0)
