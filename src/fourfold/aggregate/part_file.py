"""A file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

import fourfold.system.seams as seams
from fourfold.errors import OptionError


class PartFile:
    """A file that is written beside its place, under a name of its own, and then renamed into it."""

    def __init__(self, path: Path) -> None:
        # Through a link the file behind it is replaced, as when writing to it.
        self.path = Path(os.path.realpath(path))
        if not self.path.parent.is_dir():
            raise OptionError(f"the folder {self.path.parent} does not exist; make it first: mkdir -p {self.path.parent}")
        self.part = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.part")
        seams.hit("sink.open")
        # "x" never follows a planted link; the mode is the user's umask, as for any new file.
        self.handle: IO[bytes] = open(self.part, "xb")  # noqa: SIM115 (closed by finish or discard)
        with contextlib.suppress(OSError):  # not every file system can
            # Who finds the file and can lock it knows that its writer is dead: `fourfold clean`.
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def finish(self) -> None:
        """Bring what was written to the disk."""
        seams.hit("sink.write")
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.handle.close()

    def publish(self) -> None:
        seams.hit("sink.publish")
        os.replace(self.part, self.path)

    def discard(self) -> None:
        # A full disk fails a second time when the buffer is flushed; the file goes all the same.
        with contextlib.suppress(OSError):
            self.handle.close()
        self.part.unlink(missing_ok=True)
