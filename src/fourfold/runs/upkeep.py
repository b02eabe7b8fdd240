"""What is done to a recorded run from outside: changes to its journal, and the removal of what dead drivers have left."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fourfold.runs.journal import Journal
from fourfold.runs.place import Lock, check_trusted, is_held
from fourfold.runs.seal import load_key
from fourfold.runs.story import DEPTH, find_runs, may_go_on


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
_OUTPUT_PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
_OUTPUT_WHOLE = re.compile(r"(\..+\.[0-9a-f]{16})\.whole(\.old)?")

OF_RUN = "run"
"""The file in the folder of an output's parts that names the run which goes on with them."""


class Swept(NamedTuple):
    """A file that was removed; or, with `error`, a run, folder or file that was left as it is."""

    path: str
    error: Exception | None = None


def sweep(folder: Path) -> Iterator[Swept]:
    """Remove what dead drivers have left below a folder: files of values that no journal knows, outputs that nobody writes.

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
        for name in files:
            path = Path(root, name)
            if _OUTPUT_PART.fullmatch(name) and not path.is_symlink() and not _is_locked(path):
                yield _remove(path)
        for name in folders:
            path = Path(root, name)
            if (_OUTPUT_PART.fullmatch(name) or _OUTPUT_WHOLE.fullmatch(name)) and _is_abandoned(path):
                yield _remove(path)
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
                yield _remove(run / name)
    finally:
        lock.release()


def _remove(path: Path) -> Swept:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return Swept(str(path), error)
    return Swept(str(path))


def _is_abandoned(path: Path) -> bool:
    """Whether nobody writes the output of this folder of parts, or of what was to take its place, and no run needs it."""
    if path.is_symlink():
        return False
    whole = _OUTPUT_WHOLE.fullmatch(path.name)
    if whole is None:
        return not _is_locked(path) and not _has_run(path)
    parts = path.with_name(f"{whole[1]}.part")
    return not whole[2] and (not parts.exists() or not _is_locked(parts))


def _has_run(parts: Path) -> bool:
    """Whether a run is there that goes on with these parts, and has not published them."""
    try:
        return may_go_on(Path((parts / OF_RUN).read_text()))
    except (OSError, UnicodeDecodeError):
        return False


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # also where locks do not work: then nobody knows, and it stays
        return True
    finally:
        os.close(handle)
    return False
