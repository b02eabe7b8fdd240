"""The folder in which rows wait for their fits: private, locked as long as its call runs, and gone with it."""

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fourfold.errors import OptionError, RunInUse
from fourfold.runs.place import output_id_of

PREFIX, LOCK = "fourfold-groups-", "lock"


@contextmanager
def rows_folder(folder: str | None, run: str | None, is_elsewhere: bool) -> Iterator[Path]:
    """A block that has an empty folder for rows.

    Args:
        folder: Where it is made; None for beside the folder of the run, or among the temporary files of this machine.
        run: The folder of `run=`: the same run has the same folder each time, since what is recorded names it.
        is_elsewhere: Workers are on other machines.

    Raises:
        OptionError: Workers on other machines would not see it; or it cannot be made.
        RunInUse: Another call with the same `run` uses it.
    """
    if folder is None and run is None and is_elsewhere:
        raise OptionError(
            "fit_groups puts the rows of a group together in files, and workers on other machines must see them: name a "
            "folder that all of them share, folder=…, or record the call in one, run=…"
        )
    parent = Path(os.path.abspath(folder or (os.path.dirname(os.path.abspath(run)) if run else tempfile.gettempdir())))
    if folder is None and run is None:
        _sweep(parent)
    path = parent / f"{PREFIX}{secrets.token_hex(8) if run is None else output_id_of(run)}"
    lock = _locked(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked(path: Path) -> int:
    """Make the folder, or take it over from a call that was killed; returns what holds the lock."""
    try:
        while (lock := _lock(path)) is None:
            pass  # a call that sweeps was faster: what is locked is not there any more
    except OSError as error:
        raise OptionError(f"the folder for the rows of groups cannot be made: {path}: {error.strerror}") from error
    for entry in path.iterdir():
        if entry.name != LOCK:
            entry.unlink()
    return lock


def _lock(path: Path) -> int | None:
    """Make the folder and lock it; None when it was removed meanwhile."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _is_at(lock, path / LOCK):
                raise RunInUse(f"another call uses {path}, the rows of this run: wait until it has ended") from None
        else:
            if _is_at(lock, path / LOCK):
                return lock
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _is_at(fd: int, path: Path) -> bool:
    """Whether this open file still is the one with that name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _sweep(parent: Path) -> None:
    """Remove what calls on this machine have left that were killed. Who comes to one meanwhile finds that it is gone."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if os.lstat(path).st_uid != os.getuid():
                continue
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(lock, path / LOCK):
                    private = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
                    os.rename(path, private)
                    shutil.rmtree(private, ignore_errors=True)
            finally:
                os.close(lock)
