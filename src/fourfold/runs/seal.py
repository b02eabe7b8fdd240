"""The user's key, and the seals that tell what this user's drivers have recorded from what somebody else put there.

    key (32 bytes) ──┬──> its name, which the journal shows
    run's id ────────┴──> seals of the run ──> of one parcel: BLAKE2b over what it is, its number, its bytes

What a run holds is unpickled, and its command is run again: both can do anything. A checksum tells damage and no more, since
whoever changes bytes can change that as well.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shlex
import stat
import struct
from collections.abc import Mapping
from hmac import compare_digest
from pathlib import Path
from typing import Any

import fourfold.system.seams as seams
from fourfold.errors import JournalError, UntrustedRun

VARIABLE = "FOURFOLD_KEY"
"""Of the environment: any text, from which the key is made. The same text elsewhere is the same key."""

FOLDER, FILE, LOCK = "fourfold", "key", ".key-lock"

NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What is said of a link by file systems that have none: FAT, CIFS, many in user space, and what a sandbox forbids."""

KEY_BYTES = 32
"""Of randomness in a key. Fewer: it could be guessed. More: BLAKE2b takes up to 64, and 32 cannot be guessed either."""

SEAL_BYTES = 16
"""Of each seal. Fewer: one could be hit by trying. More: a larger journal."""

ID_BYTES = 16
"""Of a run's random id; BLAKE2b takes no longer salt."""

NAME_BYTES = 6
"""Of a key's name. Fewer: two keys may have the same. More: longer to read."""

VALUES, ITEM, ERROR, FUNCTION, COMMAND, CHECKPOINT = range(6)
"""What a seal is for. Without it an item, whose bytes may come from anywhere, could stand where an exception is expected."""

_WAY_ON = f"set {VARIABLE} to a long secret text, the same wherever these runs are used"


class Key:
    """A secret of the user.

    Args:
        secret: Its bytes.
    """

    __slots__ = ("_secret", "name")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.name = hashlib.blake2b(key=secret, digest_size=NAME_BYTES, person=b"fourfold name").hexdigest()

    def __repr__(self) -> str:
        return f"<key {self.name}>"

    def seals(self, run_id: bytes) -> "Seals":
        """The seals of one run."""
        return Seals(hashlib.blake2b(key=self._secret, digest_size=SEAL_BYTES, salt=run_id, person=b"fourfold seal"))


class Seals:
    """Makes the seals of one run."""

    __slots__ = ("_empty",)

    def __init__(self, empty: hashlib.blake2b) -> None:
        self._empty = empty

    def begin(self, what: int, number: int = 0) -> hashlib.blake2b:
        """A seal to be fed with the bytes of a parcel: what it is for, and its number in the run."""
        # To begin with the key each time would cost 0.7 µs more, as much as the rest of a small seal.
        seal = self._empty.copy()
        seal.update(_HEAD.pack(what, number))
        return seal

    def of(self, what: int, data: bytes) -> str:
        """The seal, as text, of bytes of which a run has but one."""
        seal = self.begin(what)
        seal.update(data)
        return seal.hexdigest()


_HEAD = struct.Struct("<BQ")


def is_right(found: Any, wanted: bytes | str) -> bool:
    """Whether what stands in a journal is the seal that should."""
    if isinstance(found, str) and isinstance(wanted, str):
        return compare_digest(found.encode(), wanted.encode())
    return isinstance(found, bytes) and isinstance(wanted, bytes) and compare_digest(found, wanted)


def seals_of(key: Key, facts: Mapping[str, Any], folder: Path) -> Seals:
    """The seals of a recorded run.

    Raises:
        UntrustedRun: It was recorded with another key.
        ValueError: Its id is none.
    """
    if facts.get("key") != key.name:
        named = shlex.quote(str(folder))
        raise UntrustedRun(
            f"the run {folder} was recorded with another key (another user, machine or home folder): nothing of it was "
            f"unpickled. If it is yours, look at it with `fourfold show {named}`, then type: fourfold trust {named}. Or set "
            f"{VARIABLE} to the same text wherever runs are to be shared"
        )
    return key.seals(bytes.fromhex(facts["id"]))


def changed(path: Path, what: str) -> UntrustedRun:
    """The error of bytes that have a wrong seal."""
    named = shlex.quote(str(path.parent))
    return UntrustedRun(
        f"{path} was changed by somebody, where {what} should be: the seal is wrong. Nothing of it was unpickled. Bring the "
        f"file back from a copy, or begin again in another folder. If you changed it, type: fourfold trust {named}"
    )


def command_of(facts: Mapping[str, Any]) -> bytes:
    """What a run does when it is resumed or replayed, before anything is unpickled: its command, folder and import path."""
    return json.dumps([facts.get(name) for name in ("command", "folder", "path")]).encode()


# ---- the key


def load_key() -> Key:
    """The user's key: from the environment, or from its file, which is made when there is none.

    Raises:
        JournalError: There is none, and it cannot be made.
        UntrustedRun: Others may know or change it.
    """
    text = os.environ.get(VARIABLE)
    if text:
        made = hashlib.blake2b(os.fsencode(text), digest_size=KEY_BYTES, person=b"fourfold key")
        return Key(made.digest())
    path = key_path()
    try:
        return Key(_load(path))
    except OSError as error:
        if isinstance(error, UntrustedRun | JournalError):
            raise
        raise JournalError(
            f"the key that seals recorded runs cannot be kept in {path}: {error.strerror or error}. Where there is no home "
            f"folder to write to, {_WAY_ON}"
        ) from error


def key_path() -> Path:
    """Where the key is when the environment has none.

    Raises:
        JournalError: This user has no home.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # as the standard has it
        state = os.path.expanduser("~/.local/state")
    if not os.path.isabs(state):
        raise JournalError(f"there is no home folder for the key that seals recorded runs: {_WAY_ON}")
    return Path(state, FOLDER, FILE)


def _load(path: Path) -> bytes:
    _make_private(path.parent)
    folder = _opened(path.parent, os.O_DIRECTORY)
    try:
        _check(path.parent, os.fstat(folder), stat.S_IWGRP | stat.S_IWOTH)
        try:
            return _read(path, folder)
        except FileNotFoundError:
            _make(folder)
            return _read(path, folder)  # another process may have been faster: its key it is
    finally:
        os.close(folder)


def _make_private(folder: Path) -> None:
    """Make a folder and those above it, for nobody else whatever the umask."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(each, 0o700)


def _opened(path: Path, flags: int, folder: int | None = None) -> int:
    """Open for reading, never through a link."""
    try:
        name = path if folder is None else path.name
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError:
        if path.is_symlink():
            raise UntrustedRun(f"{path} is a link, and the key that seals recorded runs must be none: remove it") from None
        raise


def _check(path: Path, found: os.stat_result, forbidden: int) -> None:
    if found.st_uid != os.geteuid():
        raise UntrustedRun(
            f"{path} belongs to user {found.st_uid} and you are user {os.geteuid()}: the key that seals recorded runs must be "
            f"your own. Mend the folder, or {_WAY_ON}"
        )
    if found.st_mode & forbidden:
        raise UntrustedRun(
            f"others may read or change {path}, which seals recorded runs. If you trust it still, type: chmod go-rwx "
            f"{shlex.quote(str(path))}; if not, remove it"
        )


def _read(path: Path, folder: int) -> bytes:
    seams.hit("key.read")
    with os.fdopen(_opened(path, 0, folder), "rb") as file:
        found = os.fstat(file.fileno())
        _check(path, found, stat.S_IRWXG | stat.S_IRWXO)
        secret = file.read(KEY_BYTES + 1) if stat.S_ISREG(found.st_mode) else b""
    if len(secret) != KEY_BYTES:
        raise JournalError(f"{path} is not the key that seals recorded runs: remove it, and a new one is made")
    return secret


def _make(folder: int) -> None:
    """Make the key: it is there whole or not at all, and the first one stays."""
    name = f".{FILE}-{os.urandom(8).hex()}"
    seams.hit("key.make")
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            seams.hit("key.make")
            os.fsync(fd)  # a key that a loss of power takes away takes all runs with it
        seams.hit("key.make")
        try:
            seams.hit("key.link")
            os.link(name, FILE, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            _rename_unless_there(name, folder)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it is the key now
            os.unlink(name, dir_fd=folder)


def _rename_unless_there(name: str, folder: int) -> None:
    """Make this file the key on a file system without links: of all that do so at once one holds the lock.

    The lock is a file that stays: who removed it would let somebody in who has it open.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(LOCK, flags, 0o600, dir_fd=folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            os.stat(FILE, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            seams.hit("key.rename")
            os.rename(name, FILE, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(fd)
