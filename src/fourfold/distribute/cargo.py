"""Code that travels to a cluster: fourfold itself where it is not installed, and what the user names with `ship=`.

All of it is one zip, named by its content. The entry, which needs nothing but the standard library, unpacks it on a worker's
machine once, into a private folder, and puts that first on the import path.

    /tmp/fourfold-UID-HASH         a home: each process that imports from it holds a shared lock on it, until it ends
    /tmp/fourfold-UID-HASH-RANDOM  one that is being unpacked, or removed

A home that nobody holds, and nobody has begun to hold for a day, is removed by the next process that needs another one.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import os
import re
import secrets
import shutil
import tarfile
import tempfile
import time
import types
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fourfold.errors import OptionError

ARCHIVES = (".whl", ".zip", ".egg")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

OURS = ("fourfold", "cloudpickle", "threadpoolctl")
"""What a worker imports before the user's function: pure Python, so it can travel."""

UNUSED_S = 24 * 3600.0
"""Seconds for which nobody has come to a home until it is removed. Fewer: the next call unpacks it again, some 50 ms for
fourfold alone. More: the disk is full of what was shipped once."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the zip: the same files are the same bytes."""


def pack(shipped: Iterable[Any], ours: bool) -> bytes:
    """Zip modules, wheels, archives, folders and files; `ours`: and what fourfold's own worker needs.

    Raises:
        OptionError: Something is not there, or cannot travel.
    """
    files: dict[str, bytes] = {}
    for each in shipped:
        files |= _files_of(each)
    if ours:
        for name in OURS:
            files |= _module(importlib.import_module(name))
    if not files:
        return b""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name], zipfile.ZIP_DEFLATED)
    return out.getvalue()


def name_of(cargo: bytes) -> str:
    """The name of a zip: of its content."""
    return hashlib.sha256(cargo).hexdigest()[:32]


def _files_of(each: Any) -> dict[str, bytes]:
    if isinstance(each, types.ModuleType):
        return _module(each)
    if not isinstance(each, str | os.PathLike):
        raise OptionError(f"ship={each!r}: give modules, or paths of wheels, archives, folders and .py files")
    path = Path(each)
    if not path.exists():
        try:
            spec = importlib.util.find_spec(str(each))
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise OptionError(f"ship={str(each)!r} is neither a file nor a module that can be imported here")
        return _module(importlib.import_module(str(each)))
    if path.is_dir():
        return _folder(path, path.name if (path / "__init__.py").exists() else "")
    if path.name.endswith(ARCHIVES):
        with zipfile.ZipFile(path) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    if path.name.endswith(TARS):
        with tarfile.open(path) as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            return {member.name.removeprefix("./"): _read(archive, member) for member in members}
    return {path.name: path.read_bytes()}


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _module(module: types.ModuleType) -> dict[str, bytes]:
    """The files of a module or package: the whole package, when it is part of one."""
    top = importlib.import_module(module.__name__.partition(".")[0])
    if getattr(top, "__path__", None):
        files: dict[str, bytes] = {}
        for folder in reversed(list(top.__path__)):
            files |= _folder(Path(folder), top.__name__)
        return files
    if not getattr(top, "__file__", None):
        raise OptionError(f"ship={module.__name__!r} has no file: it cannot travel")
    path = Path(str(top.__file__))
    return {path.name: path.read_bytes()}


def _folder(folder: Path, name: str) -> dict[str, bytes]:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[(Path(name) / path.relative_to(folder)).as_posix()] = path.read_bytes()
    return files


def make_entry() -> Callable[..., Any]:
    """Return what a task of a cluster runs. It travels by value, since it is a function inside a function."""

    def entry(version: str, cargo: str, fetch_cargo: Callable[[], bytes], *work: Any) -> Any:
        """Make fourfold importable, and do `work`: an order, or nothing, to say what is here."""
        try:
            return prepare_and_do(version, cargo, fetch_cargo, *work)
        except Exception as error:  # of this machine: a full disk, a folder that is somebody else's, memory that was lost
            if not work:
                raise
            import socket

            where = socket.gethostname()
            return {"kind": 6, "reason": f"{where} cannot run items: {type(error).__name__}: {error}", "worker": where}

    def prepare_and_do(version: str, cargo: str, fetch_cargo: Callable[[], bytes], *work: Any) -> Any:
        import contextlib
        import importlib
        import os
        import socket
        import sys

        home = move_into(cargo, fetch_cargo) if cargo else ""
        found = dict.fromkeys(("fourfold", "cloudpickle"), "")
        for name in found:
            with contextlib.suppress(ImportError):
                module = importlib.import_module(name)
                travelled = f"{os.sep}fourfold-{os.getuid()}-" in str(module.__file__)
                found[name] = "" if travelled and not work else module.__version__
        if not work:
            facts = {"python": tuple(sys.version_info[:3]), "executable": sys.executable, "host": socket.gethostname()}
            return facts | found
        if found["fourfold"] != version:
            here = f"fourfold {found['fourfold']}" if found["fourfold"] else "no fourfold"
            return f"{here} on {socket.gethostname()}"
        return importlib.import_module("fourfold.site").run(*work, home)

    def move_into(cargo: str, fetch_cargo: Callable[[], bytes]) -> str:
        """Put the home of this cargo first on the import path; returns it."""
        import importlib
        import os
        import sys
        import tempfile

        home = os.path.join(tempfile.gettempdir(), f"fourfold-{os.getuid()}-{cargo}")
        if home not in sys.path[:1]:
            held = sys.__dict__.setdefault("_fourfold_homes", {})  # where no module of ours is there yet
            if home in held and not os.path.isdir(home):  # somebody cleans up by force
                os.close(held.pop(home))
            while home not in held:
                fd = hold(home) or unpack(home, fetch_cargo)
                if fd:
                    held[home] = fd
            about = os.lstat(home)
            if about.st_uid != os.getuid() or about.st_mode & 0o022:
                raise PermissionError(f"{home} belongs to somebody else: code is not imported from it")
            sys.path[:] = [home, *(entry for entry in sys.path if entry != home)]
            importlib.invalidate_caches()
        return home

    def hold(home: str) -> int:
        """Keep it there until this process ends; returns what holds it, 0 when it is not there or about to be removed."""
        import contextlib
        import fcntl
        import os
        import time

        try:
            fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # who locks it alone is about to rename it
            os.close(fd)
            time.sleep(0.001)
            return 0
        except OSError:  # there are no locks here, and so nothing is removed
            return fd
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(home)):
                with contextlib.suppress(OSError):
                    os.utime(home)
                return fd
        os.close(fd)
        return 0

    def unpack(home: str, fetch_cargo: Callable[[], bytes]) -> int:
        """Make it; returns what holds it, 0 when another process of this machine was faster."""
        import io
        import os
        import shutil
        import tempfile
        import zipfile

        private = tempfile.mkdtemp(prefix=f"{os.path.basename(home)}-")
        fd = hold(private)
        if not fd:  # removed already
            return 0
        try:
            with zipfile.ZipFile(io.BytesIO(fetch_cargo())) as archive:
                archive.extractall(private)
            os.rename(private, home)
        except BaseException as error:
            os.close(fd)
            shutil.rmtree(private, ignore_errors=True)
            if isinstance(error, OSError) and os.path.isdir(home):
                return 0
            raise
        return fd

    return entry


def remove_unused(unused_s: float = UNUSED_S) -> list[str]:
    """Remove the homes of this machine that no process holds, and that nobody has come to for so long; returns them."""
    return remove_unheld(rf"fourfold-{os.getuid()}-[0-9a-f]{{32}}(-.+)?", unused_s)


def remove_unheld(pattern: str, unused_s: float, spare: str = "") -> list[str]:
    """Remove the folders for temporary files whose names fit a pattern, which no process holds by a shared lock.

    Args:
        pattern: Of whole names.
        unused_s: Those that were used in the last seconds stay.
        spare: The path of one that stays.

    Returns:
        The paths of those that were removed.
    """
    folder = tempfile.gettempdir()
    removed = []
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if re.fullmatch(pattern, name) and path != spare:
            with contextlib.suppress(OSError):  # somebody was faster, or it is somebody else's
                if _remove(path, unused_s):
                    removed.append(path)
    return removed


def _remove(home: str, unused_s: float) -> bool:
    """Remove a home, if nobody holds it. Who comes to hold it meanwhile finds that it is another one, or none."""
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        about = os.fstat(fd)
        if about.st_uid != os.getuid() or time.time() - about.st_mtime < unused_s:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(about, os.stat(home)):
            return False
        private = f"{home}-{secrets.token_hex(8)}"
        os.rename(home, private)
        shutil.rmtree(private, ignore_errors=True)
        return True
    finally:
        os.close(fd)
