"""Where the parts of an output go while it is written: a folder beside it, or, in a store, the output itself.

Folder   .out.<run>.part/<piece>-<first row>-<attempt>.parquet       a file of a file system that all workers see
Store    out/part-<piece>-<first row>-<run>-<attempt>.parquet        made here, without a name, and put when it is whole

No two attempts have one name, so whoever is late, or thought dead, overwrites nothing.
"""

import contextlib
import ctypes
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any, NamedTuple, Protocol

import fourfold.system.seams as seams
from fourfold.addresses import Credentials
from fourfold.data.files import file_system, opened
from fourfold.errors import OptionError

BUFFER_BYTES = 1 << 20


class Target(Protocol):
    """One file to be written. Whoever holds it writes from its beginning to its end, once."""

    def begin(self) -> IO[bytes]:
        """A file to write into."""

    def anew(self, file: IO[bytes]) -> AbstractContextManager[tuple[Any, IO[bytes]]]:
        """Begin again, with what was written so far at hand: something that Arrow can read, and a new file to write into."""

    def finish(self, file: IO[bytes]) -> None:
        """All is written: from now on it is there, also after a power cut."""

    def discard(self) -> None:
        """Nothing of it is wanted. The file is closed."""


class Place(Protocol):
    """Where parts go. It travels to the workers."""

    def check(self) -> None:
        """Called in each worker, before it writes.

        Raises:
            OptionError: This worker does not see where parts go.
        """

    def name(self, number: int, first: int, extension: str) -> str:
        """A new name for what an attempt writes of a piece."""

    def target(self, name: str) -> Target:
        """A file of this name, with folders before it."""

    def opened(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A part of this name, open for reading."""


class Folder(NamedTuple):
    """A folder that the driver has made, on a file system that all workers see. See `Place`.

    Attributes:
        path: Of the folder.
        is_synced: Parts are on the disk when they are finished. False: on their way there; whoever publishes them waits for
            all of them at once, on this machine.
    """

    path: str
    is_synced: bool = True

    def check(self) -> None:
        """The driver has made it: who does not find it sees another file system."""
        if not os.path.isdir(self.path):
            raise OptionError(
                f"workers on {socket.gethostname()} do not see the folder {self.path}, which the driver has made: write to a "
                "folder that all machines see under this path, or to a URL"
            )

    def name(self, number: int, first: int, extension: str) -> str:
        """Names in this order are in the order of the rows."""
        return f"{number:08d}-{first:010d}-{secrets.token_hex(8)}{extension}"

    def target(self, name: str) -> "OnDisk":
        """See `Place`."""
        return OnDisk(os.path.join(self.path, name), self.is_synced)

    def opened(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """See `Place`."""
        return open(os.path.join(self.path, name), "rb")


class Store(NamedTuple):
    """The folder of a URL. See `Place`.

    Attributes:
        url: Of the output.
        storage: Options of its file system.
        run: The id of the run.
    """

    url: str
    storage: Credentials
    run: str

    def check(self) -> None:
        """Options of the store travel, and what is wrong with them the first put says."""

    def name(self, number: int, first: int, extension: str) -> str:
        """Names in this order are in the order of the rows."""
        return f"part-{number:08d}-{first:010d}-{self.run}-{secrets.token_hex(8)}{extension}"

    def target(self, name: str) -> "InStore":
        """See `Place`."""
        return InStore(f"{self.url}/{name}", self.storage)

    def opened(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """See `Place`."""
        return opened(f"{self.url}/{name}", self.storage)


class OnDisk:
    """See `Target`."""

    def __init__(self, path: str, is_synced: bool = True) -> None:
        self._path, self._is_synced = path, is_synced

    def begin(self) -> IO[bytes]:
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        seams.hit("part.open")
        return open(self._path, "xb", buffering=BUFFER_BYTES)

    @contextmanager
    def anew(self, file: IO[bytes]) -> Iterator[tuple[Any, IO[bytes]]]:
        file.close()
        before = f"{self._path}.narrow"
        os.rename(self._path, before)
        try:
            yield before, self.begin()
        finally:
            os.unlink(before)

    def finish(self, file: IO[bytes]) -> None:
        file.flush()
        if self._is_synced:
            os.fsync(file.fileno())
        else:
            _begin_to_sync(file.fileno())

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def _begin_to_sync(fd: int) -> None:
    """Let the kernel write what a file has to the disk, now and not in half a minute, and do not wait for that."""
    sync_file_range_write = 2
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), sync_file_range_write)


class InStore:
    """See `Target`. Nothing is in the store before all of it is: not when this process is killed, and not when rows fail.

    The file is made on this machine, in the folder for temporary files and without a name: a kill leaves nothing there.
    """

    def __init__(self, url: str, storage: Credentials) -> None:
        self._url, self._storage = url, storage

    def begin(self) -> IO[bytes]:
        seams.hit("part.open")
        return tempfile.TemporaryFile(buffering=BUFFER_BYTES)

    @contextmanager
    def anew(self, file: IO[bytes]) -> Iterator[tuple[Any, IO[bytes]]]:
        file.seek(0)
        with file:
            yield file, self.begin()

    def finish(self, file: IO[bytes]) -> None:
        file.flush()
        fs, path = file_system(self._url, self._storage)
        seams.hit("part.put")
        made = f"/proc/self/fd/{file.fileno()}"
        try:
            fs.put_file(made, path)
        except Exception:  # where folders are more than beginnings of names
            fs.makedirs(os.path.dirname(path), exist_ok=True)
            fs.put_file(made, path)
        seams.hit("part.there")

    def discard(self) -> None:
        """It has never been there."""
