"""What a gang keeps for its next start: one object in one file, which is always a whole one.

rank 0 ── checkpoint(state) ──> FOLDER/checkpoint.pickle-XXXX ──rename──> FOLDER/checkpoint.pickle
all    <── restore() ─────────────────────────────────────────────────────┘
"""

import contextlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

from fourfold.errors import NotPicklable, OptionError, UnreadableInput, UntrustedRun
from fourfold.patterns.gang.places import CHECKPOINT

FILE = "checkpoint.pickle"

_ASIDE = ". Copy it again if it was copied, or move it away, to begin at the start"


def checkpoint(state: object) -> None:
    """Keep this object for the next start of the gang, in the place of the one before.

    Rank 0 writes, and returns when the object is on the disk; in other ranks nothing happens, so that all may call it. A rank
    that is killed while it writes leaves the object before, whole.

    Args:
        state: What `restore` shall return: the step, and what it needs to go on, such as `model.state_dict()`.

    Raises:
        OptionError: `ff.launch` was not given a folder, or did not start this process.
        NotPicklable: It cannot be pickled; the message has the path inside it.
    """
    import cloudpickle

    folder = _folder()
    if os.environ.get("RANK") != "0":
        return
    for left in folder.glob(f"{FILE}-*"):  # of a rank 0 that was killed
        left.unlink(missing_ok=True)
    fd, path = tempfile.mkstemp(prefix=f"{FILE}-", dir=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            try:
                cloudpickle.Pickler(file, protocol=5).dump(state)
            except OSError:
                raise
            except Exception as error:
                from fourfold.execute.pickling import explain

                raise NotPicklable(f"a checkpoint cannot be kept: {explain(state, 'state', error)}") from error
            file.flush()
            os.fsync(file.fileno())
        os.replace(path, folder / FILE)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    _sync(folder)


def restore(default: Any = None) -> Any:
    """The object that `checkpoint` has kept last, in this call or in one before with the same folder.

    Args:
        default: What to return where there is none yet.

    Raises:
        OptionError: `ff.launch` was not given a folder, or did not start this process.
        UntrustedRun: Somebody else has written the file: it is not unpickled.
        UnreadableInput: The file is cut off: it was copied, for `checkpoint` leaves no such one.
    """
    path = _folder() / FILE
    if not path.exists():
        return default
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        if about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise UntrustedRun(
                f"{path} belongs to somebody else, or others may write it, and to unpickle it could run their code: chown and "
                "chmod 600 it if you know where it is from"
            )
        if not about.st_size:
            raise UnreadableInput(f"{path}: is empty{_ASIDE}")
        try:
            return pickle.load(file)
        except (EOFError, pickle.UnpicklingError) as error:
            raise UnreadableInput(f"{path}: is no whole checkpoint ({error}){_ASIDE}") from error


def _folder() -> Path:
    folder = os.environ.get(CHECKPOINT)
    if not folder:
        raise OptionError(
            "there is no folder for checkpoints: give ff.launch one, with checkpoint=, and call this in the function that it "
            "starts"
        )
    return Path(folder)


def _sync(folder: Path) -> None:
    """The new name is on the disk too."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(fd)
    finally:
        os.close(fd)
