"""Models of groups on disk: many in each file, an index beside them, and a folder that appears whole.

folder/
  groups.json        what this is, and of which versions
  LEVEL.arrow        keys and what became of them, and where each model is: file, offset, size
  LEVEL-N.models     pickles, one behind the other
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fourfold.data.commit import in_one_step
from fourfold.errors import OptionError, UnreadableInput
from fourfold.version import VERSION
from fourfold.workloads.groups.levels import Level

INDEX, FORMAT = "groups.json", 1

FILE_BYTES = 64 << 20
"""Bytes of models in one file, about. Smaller: more files. Larger: more memory to write one. Not measured."""


class Stored:
    """Pickles in files: each is read when it is asked for.

    Args:
        folder: Where they are.
        places: Of each model its file, offset and size; None where there is none.
    """

    def __init__(self, folder: str, places: Sequence[tuple[str, int, int] | None]) -> None:
        self._folder, self._places = folder, places

    def __getitem__(self, at: int) -> bytes | None:
        """See `fourfold.workloads.groups.levels.Pickles`."""
        place = self._places[at]
        if place is None:
            return None
        name, offset, size = place
        path = os.path.join(self._folder, name)
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise UnreadableInput(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise UnreadableInput(f"{path}: ends before the model at {offset} does: was it copied whole?")
        return data


def save(about: Mapping[str, Any], levels: Mapping[int, Level], path: Any, overwrite: bool) -> None:
    """See `GroupModels.save`."""
    to = Path(os.path.realpath(os.path.expanduser(path)))
    if os.path.lexists(to) and not overwrite:
        raise OptionError(f"{to} is there already: give another name, or overwrite=True")
    check_replaced(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    new, old = (to.with_name(f".{to.name}.{secrets.token_hex(4)}.{word}") for word in ("new", "old"))
    new.mkdir()
    try:
        for level, each in levels.items():
            _write_level(new, level, each)
        _write(new / INDEX, [json.dumps({**about, "levels": [*levels], "format": FORMAT, **_versions()}, indent=1).encode()])
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

    places: list[tuple[str, int, int] | None] = []
    pending: list[bytes] = []
    size = n_files = 0
    for at in range(len(level.facts["rows"])):
        data = level.pickles[at]
        if data is None:
            places.append(None)
            continue
        if pending and size + len(data) > FILE_BYTES:
            _write(folder / f"{number}-{n_files}.models", pending)
            pending, size, n_files = [], 0, n_files + 1
        places.append((f"{number}-{n_files}.models", size, len(data)))
        pending.append(data)
        size += len(data)
    if pending:
        _write(folder / f"{number}-{n_files}.models", pending)
    columns = [pa.array(level.facts[name], type_) for name, type_ in _facts().items()]
    where = [pa.array([None if place is None else place[at] for place in places], type_) for at, type_ in enumerate(_where())]
    names = [*(f"key{at}" for at in range(level.keys.num_columns)), *_facts(), "file", "offset", "size"]
    table = pa.table([*level.keys.columns, *columns, *where], names=names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    _write(folder / f"{number}.arrow", [sink.getvalue()])


def _facts() -> dict[str, Any]:
    import pyarrow as pa

    return {"rows": pa.int64(), "status": pa.string(), "seconds": pa.float64(), "score": pa.float64(), "error": pa.string()}


def _where() -> list[Any]:
    import pyarrow as pa

    return [pa.string(), pa.int64(), pa.int64()]


def _write(path: Path, parts: Iterable[Any]) -> None:
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def load(path: Any) -> tuple[dict[str, Any], dict[int, Level]]:
    """See `GroupModels.load`."""
    folder = os.path.abspath(os.path.expanduser(path))
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
    files, offsets, sizes = (table.column(name).to_pylist() for name in ("file", "offset", "size"))
    places = [None if each[0] is None else each for each in zip(files, offsets, sizes, strict=True)]
    return Level.read(keys, facts, Stored(folder, places))
