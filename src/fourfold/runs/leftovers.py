"""What a dead driver has left beside an output, and what becomes of it.

.out.<run>.part         what workers have written; a file in it is locked as long as a driver goes on with it
.out.<run>.whole        what was about to take the place of out
.out.<run>.whole.old    out itself, on its way out, where a file system cannot let two names change places in one step
"""

import contextlib
import fcntl
import os
import re
import shutil
from pathlib import Path

from fourfold.errors import RunError
from fourfold.runs.story import may_go_on

OF_RUN = "run"
"""The file in the folder of an output's parts that names the run which goes on with them."""

LOCK = "lock"
"""The file in it that its driver locks. NFS does not tell other machines of a lock on a folder."""

OLD = ".old"

_PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
_WHOLE = re.compile(r"(\..+\.[0-9a-f]{16})\.whole")
_OLD = re.compile(r"(\.(.+)\.[0-9a-f]{16})\.whole\.old")


def put_back(output: Path) -> None:
    """An output may be gone since a driver was killed while it replaced it: then it is there again."""
    if os.path.lexists(output):
        return
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(output.parent)):
            found = _OLD.fullmatch(name)
            if found and found[2] == output.name and is_on_its_way_out(output.with_name(name)):
                settle(output.with_name(name))
                return


def is_on_its_way_out(path: Path) -> bool:
    """Whether this is an output that was about to be replaced, by a driver that is dead."""
    found = _OLD.fullmatch(path.name)
    return found is not None and not is_locked(path.with_name(f"{found[1]}.part"))


def settle(old: Path) -> Path | None:
    """Undo what a driver has begun that was killed while it replaced an output, or end it when the new one is there.

    Returns:
        The output, when it is the old one again; None when the new one is there.

    Raises:
        RunError: Somebody has made another output meanwhile: nobody can tell which of them is wanted.
        OSError: What is left cannot be moved, or removed.
    """
    found = _OLD.fullmatch(old.name)
    assert found is not None
    output, whole = old.with_name(found[2]), old.with_name(old.name.removesuffix(OLD))
    if not os.path.lexists(output):
        os.rename(old, output)
        return output
    if os.path.lexists(whole):  # it was to become the output, and has not
        raise RunError(
            f"this was {output} until a run was killed that was about to replace it, and now another one is there: keep one "
            f"of them and remove the other, and {whole.name}"
        )
    remove(old)
    return None


def is_abandoned(path: Path) -> bool:
    """Whether nobody writes the output of these parts, or of what was to take its place, and no run needs it."""
    if whole := _WHOLE.fullmatch(path.name):  # also a file or a link: it was the output, before another one took its place
        is_witness = os.path.lexists(f"{path}{OLD}")
        return not is_witness and not is_locked(path.with_name(f"{whole[1]}.part"))
    if path.is_symlink():
        return False
    return _PART.fullmatch(path.name) is not None and not is_locked(path) and not _has_run(path)


def _has_run(parts: Path) -> bool:
    """Whether a run is there that goes on with these parts, and has not published them."""
    try:
        return may_go_on(Path((parts / OF_RUN).read_text()))
    except (OSError, UnicodeDecodeError):
        return False


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of a file, or of a folder of parts; also when nobody can tell."""
    try:
        handle = os.open(path / LOCK if path.is_dir() else path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
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


def remove(path: Path) -> None:
    """Take a file, a link or a folder away."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
