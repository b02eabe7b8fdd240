"""What is done to a recorded run from outside: changes to its journal, and the removal of what dead drivers have left."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fourfold.errors import RunError
from fourfold.runs.journal import Journal
from fourfold.runs.leftovers import is_abandoned, is_on_its_way_out, remove, settle
from fourfold.runs.place import Lock, check_trusted, is_held
from fourfold.runs.seal import load_key
from fourfold.runs.story import DEPTH, find_runs


def change(folder: Path, *, accept_changes: bool = False, forget_failures: bool = False) -> int:
    """Let the next call take what it is for what was recorded, or forget failures so that they run again; how many.

    Raises:
        RunError: The run cannot be changed.
    """
    check_trusted(folder)
    lock = Lock(folder)
    try:
        journal = Journal(folder)
        try:
            if accept_changes:
                journal.tell(accept_changes=True)
            return journal.forget_failures() if forget_failures else 0
        finally:
            journal.close()
    finally:
        lock.release()


def trust(folder: Path) -> tuple[int, str]:
    """Seal all that a run holds with the user's own key, on the user's word; nothing is unpickled.

    Returns:
        The number of parcels, and the name of the key.

    Raises:
        RunError: The run is somebody else's, in use, or damaged.
    """
    check_trusted(folder)
    key = load_key()
    lock = Lock(folder)
    try:
        journal = Journal(folder)
        try:
            return journal.seal_again(key), key.name
        finally:
            journal.close(last_words=False)
    finally:
        lock.release()


_VALUES = re.compile(r"values-(\d+)\.part")


class Swept(NamedTuple):
    """A file that was removed; or, with `error`, a run, folder or file that was left as it is.

    With `is_back` it is the output that was there before: a driver was killed while it replaced it.
    """

    path: str
    error: Exception | None = None
    is_back: bool = False


def sweep(folder: Path) -> Iterator[Swept]:
    """Remove what dead drivers have left below a folder: files of values that no journal knows, outputs that nobody writes.

    An output that one was about to replace is put back.

    What a living driver uses is locked, and stays. What cannot be opened is told of, and the others are swept.
    """
    closed: list[Swept] = []

    def note(error: OSError) -> None:
        closed.append(Swept(str(error.filename), error))

    for run in find_runs(folder, note):
        try:
            if not is_held(run):
                yield from _sweep_run(run)
        except Exception as error:
            yield Swept(str(run), error)
    yield from closed
    for root, folders, files in os.walk(folder):
        paths = [Path(root, name) for name in (*files, *folders)]
        for path in filter(is_on_its_way_out, paths):  # first: what is beside it tells what has happened
            yield _settled(path)
        for path in filter(is_abandoned, paths):
            yield _removed(path)
        deep = len(Path(root).relative_to(folder).parts) >= DEPTH
        folders[:] = [] if deep else folders


def _sweep_run(run: Path) -> Iterator[Swept]:
    check_trusted(run)
    lock = Lock(run)
    try:
        journal = Journal(run)  # opening it ends what SQLite had not ended, and forgets what was torn
        known = journal.parts()
        journal.close()
        for name in os.listdir(run):
            found = _VALUES.fullmatch(name)
            if found and int(found[1]) not in known:
                yield _removed(run / name)
    finally:
        lock.release()


def _settled(old: Path) -> Swept:
    try:
        output = settle(old)
    except (OSError, RunError) as error:
        return Swept(str(old), error)
    return Swept(str(old)) if output is None else Swept(str(output), is_back=True)


def _removed(path: Path) -> Swept:
    try:
        remove(path)
    except OSError as error:
        return Swept(str(path), error)
    return Swept(str(path))
