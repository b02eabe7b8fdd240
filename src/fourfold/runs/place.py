"""The folder of a run: private, ours, and one driver's at a time."""

import contextlib
import fcntl
import json
import os
import re
import secrets
import socket
import stat
import time
import weakref
from pathlib import Path
from typing import Any

import fourfold.system.seams as seams
from fourfold.errors import JournalError, OptionError, RunError, RunInUse, UntrustedRun

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
JOURNAL, PROGRAM = "journal.sqlite", "program.pickle"
LOCK, OUTPUT_ID = "lock", "output-id"


def prepare(path: str) -> Path:
    """Return the folder of a run, made when it is not there; nobody else may read what is made.

    Raises:
        OptionError: The path is a file, or a folder of something else.
        UntrustedRun: It is not ours alone.
        JournalError: It cannot be made.
    """
    folder = Path(os.path.abspath(path))
    try:
        seams.hit("journal.mkdir")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir(mode=PRIVATE_FOLDER)
        except FileExistsError:
            if not folder.is_dir():
                raise OptionError(f"run={path!r} is a file; it must be a folder, or a new name") from None
            left = [entry for entry in os.listdir(folder) if entry != LOCK and not entry.startswith(OUTPUT_ID)]
            if not left:
                _check_owner(folder, os.stat(folder))
            elif not (folder / JOURNAL).exists():
                raise OptionError(
                    f"run={path!r} is a folder with other things in it, such as {min(left)}: give the run a folder of its own"
                ) from None
            else:
                check_trusted(folder)
                return folder
        # Whatever the umask is, and also for an empty folder that was there.
        os.chmod(folder, PRIVATE_FOLDER)
    except RunError:
        raise
    except OSError as error:
        raise JournalError(f"the folder of the run cannot be made: {error}") from error
    return folder


def check_trusted(folder: Path) -> None:
    """Check that nobody else can have put anything into the run: what is read from it may be unpickled.

    Raises:
        UntrustedRun: The folder or a file in it is somebody else's, can be written by others, or is a link.
    """
    _check(folder, os.stat(folder))
    for name in os.listdir(folder):
        path = folder / name
        try:
            found = os.lstat(path)
        except FileNotFoundError:  # SQLite takes its own files away when the last one closes the journal
            continue
        if stat.S_ISLNK(found.st_mode):
            raise UntrustedRun(f"{path} is a link: somebody may have put it there. Nothing of the run was read")
        _check(path, found)


def _check(path: Path, found: os.stat_result) -> None:
    _check_owner(path, found)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedRun(
            f"others may write to {path}, and what a run holds is unpickled. If it is yours, type: chmod -R go-w {path.parent}"
        )


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise UntrustedRun(
            f"{path} belongs to user {found.st_uid} and you are user {os.geteuid()}: what a run holds is unpickled, so only "
            "its owner may go on with it. `fourfold show` reads it without that"
        )


def create_private(path: Path) -> int:
    """Open a new file for writing that only we can read; never through a link that somebody planted.

    Raises:
        OSError: It is there already, or cannot be made.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    os.fchmod(fd, PRIVATE_FILE)
    return fd


def output_id_of(path: str) -> str:
    """The id of what a run writes, made with the run: another run in the same folder, later, has another one.

    Raises:
        RunError: The folder cannot be used: see `prepare`.
    """
    file = prepare(path) / OUTPUT_ID
    try:
        return _id_in(file) or _made_id(file)
    except OSError as error:
        raise JournalError(f"{file} cannot be made: {error.strerror}") from error


def _id_in(file: Path) -> str:
    """The id in a file; "" when there is none, or none that is whole."""
    try:
        text = file.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return text if re.fullmatch("[0-9a-f]{16}", text) else ""


def _made_id(file: Path) -> str:
    """Make the id, unless another driver is faster: of all that begin at once one holds the lock, and then the id stays.

    It is the file itself that is locked: that needs no links, which some file systems do not have.
    """
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        os.fchmod(fd, PRIVATE_FILE)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not _id_in(file):
            os.truncate(fd, 0)
            os.pwrite(fd, secrets.token_hex(8).encode(), 0)
            os.fsync(fd)
        return _id_in(file)
    finally:
        os.close(fd)


class Lock:
    """Held by the one driver that works on a run; the kernel frees it when that process ends, however it ends.

    Raises:
        RunInUse: Another driver holds it.
        JournalError: The file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        try:
            seams.hit("journal.lock")
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
        except OSError as error:
            raise JournalError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            os.truncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(mine).encode(), 0)
        except OSError as error:
            os.close(self._fd)
            if isinstance(error, BlockingIOError):
                holder = holder_of(folder) or {}
                who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
                what = "wait for its end, or use another folder"
                if holder.get("pid") == os.getpid():
                    who, what = "an earlier call of this process", "close its stream (`stream.close()`) first"
                raise RunInUse(f"{who} works on the run {folder} right now: {what}") from None
            raise JournalError(f"{path} cannot be locked: {error.strerror}") from error
        self._pid = os.getpid()
        _held.add(self)

    def release(self) -> None:
        """Let another driver go on; without effect in a process that this one forked."""
        _held.discard(self)
        if self._fd >= 0 and self._pid == os.getpid():
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        """Nobody has it any more: a call was interrupted between taking it and beginning."""
        if hasattr(self, "_pid"):
            self.release()

    def forget(self) -> None:
        """This process is a fork of the one that holds the lock: it must not hold it when that one is dead."""
        os.close(self._fd)
        self._fd = -1


_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()
"""The locks of this process."""


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget_all)


def holder_of(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock of a run, or held it last; None when nobody says."""
    try:
        found = json.loads((folder / LOCK).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "pid" in found else None


def is_held(folder: Path) -> bool:
    """Whether a driver works on the run right now."""
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


WITHOUT_SHARED_MEMORY = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "cephfs", "glusterfs"}
    | {"sshfs", "s3fs", "gcsfuse", "rclone", "blobfuse", "blobfuse2", "juicefs"}
)
"""File systems between machines: SQLite's write-ahead log needs memory that all who open it share, which they do not have."""


def file_system_of(folder: Path, mounts: str = "/proc/self/mounts") -> str:
    """The type of the file system that a folder is on: "ext4", "nfs4", "fuse.sshfs"; "" when nobody tells."""
    best, kind = "", ""
    try:
        lines = Path(mounts).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(folder)
    for line in lines:
        point, found = line.split()[1:3]
        point = point.encode().decode("unicode_escape")  # a space in a path is \040 there
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, found
    return kind
