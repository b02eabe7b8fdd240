"""What trials want to go on with, as files of the driver: one for each trial, whole or not there."""

import contextlib
import fcntl
import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from hmac import compare_digest
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cloudpickle

from fourfold.distribute.cargo import remove_unheld
from fourfold.errors import UntrustedRun

PREFIX = "fourfold-checkpoints-"

UNHELD_S = 60.0
"""Seconds after which a temporary folder that no process holds is removed: its driver was killed. Shorter: one may be taken
for such that is about to be held. Longer: models stay there."""

SEAL_BYTES = 64
"""Room for a seal before what it seals."""

HEAD_BYTES = 8
"""Room for the length of reports and attributes before them."""

NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Checkpoints:
    """Keeps bytes by the number of a trial.

    Args:
        folder: Where; None for a temporary folder that ends with this object.
        seal: Makes of a number and bytes a text that nobody else can make; None where nobody else comes to the folder.
    """

    def __init__(self, folder: str | None, seal: Callable[[int, bytes], str] | None = None) -> None:
        self._wanted, self._seal = folder, seal
        self._folder: Path | None = None
        self._held: int | None = None
        self._is_closed = False
        self._making = threading.Lock()

    def put(
        self, number: int, data: bytes, reports: Mapping[int, float] = NOTHING, user_attrs: Mapping[str, Any] = NOTHING
    ) -> None:
        """Keep this, in the place of what was kept before.

        Args:
            number: Of the trial.
            data: What it wants to go on with.
            reports: What it has reported so far, by step: it will not say so again.
            user_attrs: What it has said of itself so far: likewise.

        Raises:
            OSError: There is no room.
        """
        head = cloudpickle.dumps((dict(reports), dict(user_attrs)))
        data = len(head).to_bytes(HEAD_BYTES, "big") + head + data
        with self._making:  # trials come on threads of their own
            folder = self._folder = self._folder or self._made()
        handle, path = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self._sealed(number, data) + data)
            os.replace(path, folder / str(number))
        except BaseException:
            os.unlink(path)
            raise

    def _made(self) -> Path:
        if self._is_closed:
            raise FileNotFoundError("the call is over: nothing is kept any more")
        if self._wanted is not None:
            Path(self._wanted).mkdir(mode=0o700, exist_ok=True)
            return Path(self._wanted)
        remove_unheld(rf"{PREFIX}\w{{8}}(-.+)?", UNHELD_S)
        made = tempfile.mkdtemp(prefix=PREFIX)
        self._held = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # there are no locks here, and so nothing is removed
            fcntl.flock(self._held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return Path(made)

    def get(self, number: int) -> bytes | None:
        """What is kept; None when there is nothing.

        Raises:
            UntrustedRun: Somebody else has written it, or the key has changed since.
        """
        found = self._read(number)
        return None if found is None else found[HEAD_BYTES + int.from_bytes(found[:HEAD_BYTES], "big") :]

    def reports(self, number: int) -> dict[int, float]:
        """What the trial had reported when this was kept, by step.

        Raises:
            UntrustedRun: See `get`.
        """
        return self._head(number)[0]

    def user_attrs(self, number: int) -> dict[str, Any]:
        """What the trial had said of itself when this was kept.

        Raises:
            UntrustedRun: See `get`.
        """
        return self._head(number)[1]

    def _head(self, number: int) -> tuple[dict[int, float], dict[str, Any]]:
        found = self._read(number)
        if found is None:
            return {}, {}
        reports, user_attrs = pickle.loads(found[HEAD_BYTES : HEAD_BYTES + int.from_bytes(found[:HEAD_BYTES], "big")])
        return reports, user_attrs

    def _read(self, number: int) -> bytes | None:
        path = self._path(number)
        if path is None:
            return None
        data = path.read_bytes()
        seal, data = data[:SEAL_BYTES], data[SEAL_BYTES:]
        if not compare_digest(seal, self._sealed(number, data)):
            raise UntrustedRun(
                f"{path} has a seal that is not yours: it is not unpickled. Remove it, and its trial begins anew"
            )
        return data

    def has(self, number: int) -> bool:
        """Whether something is kept."""
        return self._path(number) is not None

    def numbers(self) -> list[int]:
        """The trials of which something is kept."""
        folder = self._folder or (Path(self._wanted) if self._wanted else None)
        names = [path.name for path in folder.iterdir()] if folder is not None and folder.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    def drop(self, number: int) -> None:
        """Its trial has ended."""
        path = self._path(number)
        if path is not None:
            path.unlink()

    def close(self) -> None:
        """Remove what is temporary. Who still comes is refused."""
        self._is_closed = True
        if self._folder is not None and self._wanted is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def _path(self, number: int) -> Path | None:
        folder = self._folder or (Path(self._wanted) if self._wanted else None)
        path = None if folder is None else folder / str(number)
        return path if path is not None and path.exists() else None

    def _sealed(self, number: int, data: bytes) -> bytes:
        text = "" if self._seal is None else self._seal(number, data)
        return text.encode().ljust(SEAL_BYTES)[:SEAL_BYTES]
