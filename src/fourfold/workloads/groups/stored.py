"""Models of groups on disk: many in each file, an index beside them, and a folder that appears whole.

folder/
  groups.json        what this is, and of which versions
  LEVEL.arrow        keys and what became of them, and where each model is: file, offset, sizes of its parts
  LEVEL-N.models     models, one behind the other: of each the pickle, and then its large arrays

Until it is whole it is .NAME.<token>.new, and its index is locked as long as somebody writes it; where two names cannot change
places in one step, the models that were there before are .NAME.<token>.old for a moment.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fourfold.data.commit import in_one_step
from fourfold.errors import OptionError, UnreadableInput
from fourfold.version import VERSION
from fourfold.workloads.groups.levels import Level
from fourfold.workloads.groups.pickled import Pickled

INDEX, FORMAT = "groups.json", 2

FILE_BYTES = 64 << 20
"""Bytes of models in one file, about. Smaller: more files. Larger: fewer, which a damage costs more of. Not measured."""


Place = tuple[str, int, list[int]]
"""Where a model is: its file, its offset there, and the sizes of its parts."""


class Stored:
    """Pickles in files: each is read when it is asked for.

    Args:
        folder: Where they are.
        places: None where there is none.
    """

    def __init__(self, folder: str, places: "Sequence[Place | None]") -> None:
        self._folder, self._places = folder, places

    def __getitem__(self, at: int) -> Pickled | None:
        """See `fourfold.workloads.groups.levels.Pickles`."""
        place = self._places[at]
        if place is None:
            return None
        name, offset, sizes = place
        path = os.path.join(self._folder, name)
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                head, *arrays = [file.read(size) for size in sizes]
        except OSError as error:
            raise UnreadableInput(f"{path}: cannot be read: {error.strerror}") from error
        found = Pickled(head, tuple(arrays))
        if found.size_bytes < sum(sizes):
            raise UnreadableInput(f"{path}: ends before the model at {offset} does: was it copied whole?")
        return found


def save(about: Mapping[str, Any], levels: Mapping[int, Level], path: Any, overwrite: bool) -> None:
    """See `GroupModels.save`."""
    to = Path(os.path.realpath(os.path.expanduser(path)))
    put_back(to)
    if os.path.lexists(to) and not overwrite:
        raise OptionError(f"{to} is there already: give another name, or overwrite=True")
    check_replaced(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    _sweep(to)
    with _new_folder(to) as (new, index):
        old = new.with_suffix(".old")
        try:
            for level, each in levels.items():
                _write_level(new, level, each)
            text = json.dumps({**about, "levels": [*levels], "format": FORMAT, **_versions()}, indent=1)
            with open(index, "wb", closefd=False) as file:
                file.write(text.encode())
                _bring_to_disk(file)
            if not to.exists():
                os.rename(new, to)
            elif not in_one_step(new, to):  # readers see the one before or the new one, where the system can do that
                os.rename(to, old)
                os.rename(new, to)
        finally:
            if not os.path.lexists(to) and old.exists():  # it ended between these two
                os.rename(old, to)
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _new_folder(to: Path) -> Iterator[tuple[Path, int]]:
    """A folder to write into, and its index, open and locked."""
    while True:
        new = to.with_name(f".{to.name}.{secrets.token_hex(4)}.new")
        new.mkdir()
        try:
            index = os.open(new / INDEX, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # another save took it for one of the dead
        try:
            with contextlib.suppress(OSError):  # a file system without locks, where nobody removes what is left
                fcntl.flock(index, fcntl.LOCK_EX)
            if (new / INDEX).exists():
                yield new, index
                return
        finally:
            os.close(index)


def _left(to: Path, ending: str) -> Iterator[Path]:
    """What saves to this folder have left, or write right now."""
    form = re.compile(rf"\.{re.escape(to.name)}\.[0-9a-f]{{8}}\.{ending}")
    with contextlib.suppress(OSError):
        yield from [to.with_name(name) for name in sorted(os.listdir(to.parent)) if form.fullmatch(name)]


@contextlib.contextmanager
def _taken(new: Path) -> Iterator[bool]:
    """A block in which nobody writes there; false where somebody does, or nobody can tell. What is not there is taken."""
    index = -1
    try:
        with contextlib.suppress(FileNotFoundError):
            index = os.open(new / INDEX, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        is_free = False
    else:
        is_free = True
    try:
        yield is_free
    finally:
        if index >= 0:
            os.close(index)


def _sweep(to: Path) -> None:
    """Remove what saves to this folder have left that were killed."""
    for old in _left(to, "old"):
        with _taken(old.with_suffix(".new")) as is_dead:
            if is_dead and os.path.lexists(to):
                shutil.rmtree(old, ignore_errors=True)
    for new in _left(to, "new"):
        with _taken(new) as is_dead, contextlib.suppress(OSError):
            if is_dead and (new / INDEX).exists():
                mine = to.with_name(f".{to.name}.{secrets.token_hex(4)}.new")
                os.rename(new, mine)  # who is about to lock it finds that it is gone
                shutil.rmtree(mine, ignore_errors=True)
            elif is_dead:
                new.rmdir()  # who is about to put an index there finds the same


def put_back(to: Path) -> None:
    """Models may be gone since a save was killed while it replaced them: then they are there again."""
    for old in _left(to, "old") if not os.path.lexists(to) else ():
        with _taken(old.with_suffix(".new")) as is_dead, contextlib.suppress(OSError):
            if is_dead and not os.path.lexists(to):
                os.rename(old, to)


def check_replaced(to: Path) -> None:
    """Refuse to put models in the place of anything but models.

    Raises:
        OptionError: Something else is there.
    """
    if to.exists() and not (to / INDEX).exists() and (not to.is_dir() or any(to.iterdir())):
        raise OptionError(f"{to} holds other things than models of groups, and is not overwritten")


def _versions() -> dict[str, str]:
    import platform

    import sklearn

    return {"fourfold": VERSION, "scikit-learn": sklearn.__version__, "python": platform.python_version()}


def _write_level(folder: Path, number: int, level: Level) -> None:
    """The models of a level, and their index."""
    import pyarrow as pa

    with contextlib.closing(_Files(folder, number)) as files:
        pickles = (level.pickles[at] for at in range(len(level.facts["rows"])))
        places = [None if data is None else files.put(data) for data in pickles]
    columns = [pa.array(level.facts[name], type_) for name, type_ in _facts().items()]
    where = [pa.array([None if place is None else place[at] for place in places], type_) for at, type_ in enumerate(_where())]
    names = [*(f"key{at}" for at in range(level.keys.num_columns)), *_facts(), "file", "offset", "sizes"]
    table = pa.table([*level.keys.columns, *columns, *where], names=names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with open(folder / f"{number}.arrow", "wb") as file:
        file.write(sink.getvalue())
        _bring_to_disk(file)


class _Files:
    """The files of a level, one after the other: each model is in one as soon as it is put."""

    def __init__(self, folder: Path, level: int) -> None:
        self._folder, self._level = folder, level
        self._file: Any = None
        self._n_files = 0

    def put(self, model: Pickled) -> Place:
        """Where it is now."""
        if self._file is not None and self._file.tell() + model.size_bytes > FILE_BYTES:
            self.close()
        if self._file is None:
            self._file = open(self._folder / f"{self._level}-{self._n_files}.models", "wb")  # noqa: SIM115
            self._n_files += 1
        offset = self._file.tell()
        sizes = [self._file.write(part) for part in (model.head, *model.arrays)]
        return os.path.basename(self._file.name), offset, sizes

    def close(self) -> None:
        """No more comes into the last one."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                _bring_to_disk(file)


def _bring_to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _facts() -> dict[str, Any]:
    import pyarrow as pa

    return {"rows": pa.int64(), "status": pa.string(), "seconds": pa.float64(), "score": pa.float64(), "error": pa.string()}


def _where() -> list[Any]:
    import pyarrow as pa

    return [pa.string(), pa.int64(), pa.list_(pa.int64())]


def load(path: Any) -> tuple[dict[str, Any], dict[int, Level]]:
    """See `GroupModels.load`."""
    folder = os.path.abspath(os.path.expanduser(path))
    put_back(Path(os.path.realpath(folder)))
    try:
        about = json.loads(Path(folder, INDEX).read_text(encoding="utf-8"))
        found = about["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OptionError(f"{folder} is no folder of models of groups: GroupModels.save makes them ({error})") from error
    if found != FORMAT:
        raise OptionError(f"{folder} was saved by fourfold {about.get('fourfold')}, in a way that this one does not know")
    return about, {level: _read_level(folder, level, about["by"][:level]) for level in about["levels"]}


def _read_level(folder: str, number: int, by: Sequence[str]) -> Level:
    import pyarrow as pa

    path = os.path.join(folder, f"{number}.arrow")
    try:
        with pa.memory_map(path) as source:
            table = pa.ipc.open_file(source).read_all()
    except OSError as error:
        raise UnreadableInput(f"{path}: cannot be read: {os.strerror(error.errno or errno.EIO)}") from error
    except pa.ArrowException as error:
        raise UnreadableInput(f"{path}: is no whole index of models: was it copied whole? ({error})") from error
    keys = pa.table([table.column(f"key{at}") for at in range(len(by))], names=list(by))
    facts = {name: table.column(name).to_pylist() for name in _facts()}
    files, offsets, sizes = (table.column(name).to_pylist() for name in ("file", "offset", "sizes"))
    places = [None if each[0] is None else each for each in zip(files, offsets, sizes, strict=True)]
    return Level.read(keys, facts, Stored(folder, places))
