"""One failed item of a recorded run, again: in this process, where a debugger can look."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fourfold.errors import JournalCorrupt, OptionError
from fourfold.execute import current
from fourfold.execute.chunk import is_worker_class
from fourfold.execute.pickling import load
from fourfold.records import Chunk, Parcel
from fourfold.runs.place import PROGRAM, check_trusted
from fourfold.runs.seal import load_key
from fourfold.runs.story import check_command, failures_of, open_run, read_item, read_program, story_of
from fourfold.runs.tables import FailedItem

ITEMS_NAMED = 10


def prepare_replay(run: str, item: int) -> tuple[Callable[[], Any], FailedItem]:
    """Load the function and a failed item of a run; returns what runs it as the run did, and its failure.

    The current folder and the import path become those of the run. A function of a module is the one that is there now; a
    function of a script is the one that was recorded.

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
    folder = folder.resolve()
    story = story_of(folder)
    sys.path[:] = [*story.path, *(entry for entry in sys.path if entry not in story.path)]
    if os.path.isdir(story.working_folder):
        os.chdir(story.working_folder)
    data, parcel = read_program(folder, key), read_item(folder, failed[item].value, key, f"item {item}")
    parts = _load_program(folder, data)
    value = load(parcel)
    return lambda: _run(parts, item, value), failed[item]


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
