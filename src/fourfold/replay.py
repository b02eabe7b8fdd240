"""One failed item of a recorded run, again: in this process, where a debugger can look."""

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from fourfold.errors import ItemTimeout, JournalCorrupt, OptionError
from fourfold.execute import current
from fourfold.execute.chunk import is_worker_class
from fourfold.execute.pickling import load
from fourfold.records import Chunk, Parcel
from fourfold.runs.place import PROGRAM, check_trusted
from fourfold.runs.seal import Key, load_key
from fourfold.runs.story import check_command, failures_of, open_run, read_item, read_program, story_of
from fourfold.runs.tables import FailedItem

ITEMS_NAMED = 10

DEAF_S = 2.0
"""Seconds beyond its time after which an item in C code that hears no signal is ended: with its stack, and this process with
it. Smaller: a busy machine ends one that would have raised. Not measured."""


class Replay(NamedTuple):
    """What runs a failed item as the run did, its failure, and the seconds that it may take when it had taken too long."""

    run_item: Callable[[], Any]
    failed: FailedItem
    timeout_s: float | None


def prepare_replay(run: str, item: int) -> Replay:
    """Load the function and a failed item of a run.

    The current folder, the import path and `sys.argv` become those of the run. A function of a module is the one that is there
    now; a function of a script is the one that was recorded.

    Raises:
        OptionError: The item has not failed, or nothing was kept of it.
        UntrustedRun: The run is not ours, or was recorded with another key: nothing was unpickled.
    """
    folder = open_run(run)
    check_trusted(folder)
    key = load_key()
    check_command(folder, key)
    failed = {each.item: each for each in failures_of(folder)}
    if item not in failed:
        known = ", ".join(map(str, list(failed)[:ITEMS_NAMED])) or "none"
        raise OptionError(f"item {item} of {run} has no recorded failure; items are kept when they fail: {known}")
    if not failed[item].value:
        raise OptionError(f"item {item} of {run} could not be pickled, so it was not kept: {failed[item].shown}")
    story = story_of(folder)
    folder = folder.resolve()
    parcel = read_item(folder, failed[item].value, key, f"item {item}")
    parts = program_of(folder, key)
    value = load(parcel)
    timeout_s = float(story.options.get("timeout", "0")) if failed[item].kind == "timed out" else 0.0
    return Replay(lambda: _run(parts, item, value), failed[item], timeout_s or None)


def program_of(folder: Path, key: Key) -> dict[str, Any]:
    """What a run has kept of its function, by name; this process stands where the run stood from here on.

    Raises:
        OptionError: Nothing was kept.
        UntrustedRun: It is not what was recorded with this key: nothing was unpickled.
    """
    story, folder = story_of(folder), folder.resolve()
    sys.path[:] = [*story.path, *(entry for entry in sys.path if entry not in story.path)]
    if os.path.isdir(story.working_folder):
        os.chdir(story.working_folder)
    sys.argv[:] = arguments_of(story.command) or sys.argv
    return _load_program(folder, read_program(folder, key))


def arguments_of(command: Sequence[str]) -> list[str]:
    """What `sys.argv` was in a process that was started with this command; of `-m`, the name of the module stands first."""
    words = iter(command[1:])
    for word in words:
        if word in ("-W", "-X", "--check-hash-based-pycs"):
            next(words, "")
        elif word in ("-c", "-m"):
            name = next(words, "")
            return ["-c" if word == "-c" else name, *words]
        elif word == "-" or not word.startswith("-"):
            return [word, *words]
    return []


@contextlib.contextmanager
def stopped_after(timeout_s: float | None) -> Iterator[None]:
    """Raise ItemTimeout where this thread is when the time is over; not while a debugger is at work.

    C code that hears no signal is ended with this process, and its Python stack is on stderr.
    """
    if timeout_s is None:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        faulthandler.cancel_dump_traceback_later()
        if sys.gettrace() is None:
            raise ItemTimeout(f"ran longer than timeout={timeout_s:g} seconds, as in the run")

    before = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(timeout_s + DEAF_S, exit=True)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _load_program(folder: Path, data: bytes) -> dict[str, Any]:
    try:
        head, buffers = pickle.loads(data)
        parts: dict[str, Any] = load(Parcel(head, tuple(buffers)))
    except Exception as error:
        raise JournalCorrupt(f"{folder / PROGRAM} cannot be unpickled: {type(error).__name__}: {error}") from error
    return parts


def _run(parts: dict[str, Any], index: int, item: Any) -> Any:
    function, seed = parts["function"], parts.get("seed")
    call = function(*parts.get("init", ())) if is_worker_class(function) else function
    before = current.enter_chunk(Chunk(index, [item]), [], seed)
    try:
        if seed is not None:
            current.seed_globals(seed, index)
        return call(item)
    finally:
        current.leave_chunk(before)
