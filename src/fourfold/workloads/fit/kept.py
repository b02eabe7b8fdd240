"""Rows that are wanted again, as files on the machine where they were made: each of its workers maps them into its memory.

/tmp/fourfold-fit-<user>-<fit>/     0700, and locked as long as somebody uses it; who finds one that nobody holds removes it
  3                                 piece 3: its tables, as they came out of the steps
  3-0                               piece 3, view 0: all its batches; it is there whole or not at all
  3-1                               the same rows after one step more: without what that has left as it was
"""

import contextlib
import fcntl
import mmap
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fourfold.distribute.cargo import remove_unheld
from fourfold.errors import RunError
from fourfold.workloads.fit.contract import Rows
from fourfold.workloads.fit.kept_file import NAMES, Keeping, batches_in
from fourfold.workloads.fit.kept_tables import KeepingTables, tables_in

UNUSED_S = 600.0
"""Seconds after which a worker on another machine lets go of a fit of which it has not heard. Less: a slow fit reads its rows
again. More: files of fits that are over lie there, as long as the cluster keeps the worker."""

_held: dict[str, tuple[int, float]] = {}
"""Folders that this process holds: the descriptor that locks each, and when it was used last."""


def _prefix() -> str:
    return f"fourfold-fit-{os.getuid()}-"


def sweep(spare: str = "") -> list[str]:
    """Remove the folders of fits on this machine that nobody holds, except the one of that path; returns them."""
    return remove_unheld(rf"{_prefix()}[0-9a-f]{{32}}(-.+)?", 0.0, spare)


class Kept:
    """What the workers of each machine keep of one fit. It travels by its name.

    Args:
        name: Of the fit, 32 hexadecimal digits: no other one has it.
    """

    def __init__(self, name: str) -> None:
        self.name, self._home, self._base = name, socket.gethostname(), tempfile.gettempdir()

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.name, self._home, self._base)

    @property
    def folder(self) -> str:
        """On this machine. Only its owner can read it."""
        return os.path.join(self._base, _prefix() + self.name)

    def open(self) -> None:
        """Called by the driver, before anything is kept: what dead ones have left is removed."""
        if self.folder not in _held:
            sweep()
            _hold(self.folder)

    def forget(self) -> None:
        """Remove what this machine keeps. Workers that still run keep nothing more on it."""
        _let_go(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def find(self, piece: int, view: int, first: int | None, names: Sequence[str] = NAMES) -> Iterator[Rows] | None:
        """The rows of a piece, batch by batch; None when this machine has not kept them.

        Args:
            piece: Its number.
            view: See `keeping`.
            first: The number of the first row.
            names: What is wanted of them.
        """
        data = self._mapped(f"{piece}-{view}")
        return None if data is None else batches_in(data, first, lambda base, its: self.find(piece, base, None, its), names)

    def find_tables(self, piece: int) -> Iterator[Any] | None:
        """The tables of a piece; None when this machine has not kept them."""
        data = self._mapped(f"{piece}")
        return None if data is None else tables_in(data)

    def _mapped(self, name: str) -> Any:
        """A file, in memory; None when it is not there."""
        try:
            handle = os.open(os.path.join(self.folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if not _is_ours(os.lstat(self.folder)) or os.fstat(handle).st_uid != os.getuid():
                raise PermissionError(f"{self.folder} belongs to somebody else: rows are not taken from it")
            data = mmap.mmap(handle, 0, prot=mmap.PROT_READ)
        finally:
            os.close(handle)
        if self.folder in _held:
            _held[self.folder] = _held[self.folder][0], time.monotonic()
        return data

    @contextlib.contextmanager
    def keeping(self, piece: int, views: Mapping[int, int | None]) -> Iterator[dict[int, Keeping]]:
        """A block that adds the batches of a piece, by view, and finishes them; when it fails, they are discarded.

        Args:
            piece: Its number.
            views: The numbers of views, each with that of its base, or None.
        """
        found = {view: new for view, base in views.items() if (new := self.new(piece, view, base)) is not None}
        try:
            yield found
        except BaseException:
            for each in found.values():
                each.discard()
            raise

    def new(self, piece: int, view: int, base: int | None = None) -> Keeping | None:
        """Keep the rows of a piece from now on; None where the driver has forgotten this fit."""
        if not os.path.isdir(self.folder):
            if socket.gethostname() == self._home:
                return None
            _let_go_of_old()
            sweep(self.folder)
            _hold(self.folder)
        return Keeping(self.folder, f"{piece}-{view}", base)

    def new_tables(self, piece: int, n_pieces: int) -> KeepingTables | None:
        """Keep the tables of a piece from now on, of so many; None where the driver is elsewhere, or has forgotten."""
        if socket.gethostname() != self._home:
            return None
        try:
            return KeepingTables(self.folder, f"{piece}", n_pieces)
        except FileNotFoundError:
            return None


def _arrived(name: str, home: str, base: str) -> Kept:
    kept = Kept(name)
    kept._home = home
    if socket.gethostname() == home:  # this process may have looked for its own before TMPDIR was what it is for the driver
        kept._base = base
    return kept


def _hold(folder: str) -> None:
    """Make it, unless it is there, and lock it as long as this process lives or until it is let go.

    Raises:
        PermissionError: It is somebody else's, or others may look into it.
    """
    while folder not in _held:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # removed meanwhile
            continue
        if _is_locked(handle, folder):
            _held[folder] = handle, time.monotonic()
        else:
            os.close(handle)


def _is_locked(handle: int, folder: str) -> bool:
    about = os.fstat(handle)
    if not _is_ours(about):
        os.close(handle)
        raise PermissionError(f"{folder} belongs to somebody else, or others may look into it: no rows are kept there")
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # who locks it alone is about to remove it
        time.sleep(0.001)
        return False
    except OSError:  # there are no locks here, and so nothing is removed
        return True
    try:
        return os.path.samestat(about, os.stat(folder))
    except FileNotFoundError:
        return False


def _is_ours(about: os.stat_result) -> bool:
    return about.st_uid == os.getuid() and not about.st_mode & 0o077


def _let_go(folder: str) -> None:
    if folder in _held:
        os.close(_held.pop(folder)[0])


def _let_go_of_old() -> None:
    for folder, (_, used) in list(_held.items()):
        if time.monotonic() - used > UNUSED_S:
            _let_go(folder)


def name_in(run: str | None) -> str:
    """The name of a fit: a new one, or the one that its recorded run has already, since it is part of what is recorded.

    Raises:
        RunError: There is something else in its place.
    """
    if run is None:
        return os.urandom(16).hex()
    path = Path(run, "fit")
    os.makedirs(run, mode=0o700, exist_ok=True)
    if not path.exists():
        handle, private = tempfile.mkstemp(dir=run)
        with os.fdopen(handle, "w") as file:
            file.write(os.urandom(16).hex())
        with contextlib.suppress(FileExistsError):  # another driver was faster: one of them will hear that the run is in use
            os.link(private, path)
        os.unlink(private)
    found = path.read_text()
    if not re.fullmatch("[0-9a-f]{32}", found):
        raise RunError(f"{path} does not name a fit: {run} is of something else. Give a fit a folder of its own")
    return found
