"""Which files a source names, on this machine or behind a URL, and what their folders say of them.

"in/*.parquet"  "logs/"  "s3://bucket/year=2024/"  ──find──> DataFile(path, format, compression, stamp, keys)
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import unquote

from fourfold.data.manifests import MANIFEST, published
from fourfold.divide.files import FORMAT_OF_EXTENSION, find_paths
from fourfold.errors import FourfoldError, MissingExtra, OptionError, UnreadableInput

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("parquet", "csv", "jsonl", "text")

COMPRESSION_OF_EXTENSION = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}

NULL_KEY = "__HIVE_DEFAULT_PARTITION__"
"""What Hive, Spark and Arrow write into the name of a folder for a null."""


class DataFile(NamedTuple):
    """A file of a table.

    Attributes:
        path: A path of this machine, or a URL.
        format: One of FORMATS.
        compression: Of the whole file, None for none; Parquet has its own inside.
        size_bytes: As it lies there.
        stamp: Changes when the file does, as far as its file system tells.
        keys: What the folders `name=value` above it say, as texts; None for a null.
    """

    path: str
    format: str
    compression: str | None
    size_bytes: int
    stamp: str
    keys: tuple[tuple[str, str | None], ...]


def find(sources: Sequence[str], format: str | None, storage: Mapping[str, Any]) -> list[DataFile]:
    """The files that these paths, globs, folders and URLs name, in the order given; those of one folder sorted.

    Raises:
        OptionError: Nothing is there, or its format is not known.
        MissingExtra: A URL needs a package that is not installed.
    """
    if format is not None and format not in FORMATS:
        raise OptionError(f"unknown format {format!r}; formats are: {', '.join(FORMATS)}")
    found = [file for source in sources for file in _find_one(source, format, storage)]
    names = [tuple(name for name, _ in file.keys) for file in found]
    if len(set(names)) > 1:
        odd = next(file for file, each in zip(found, names, strict=True) if each != names[0])
        raise OptionError(
            f"{found[0].path} lies in folders that name {_told(names[0])}, and {odd.path} in such that name "
            f"{_told(tuple(name for name, _ in odd.keys))}: scan them apart"
        )
    return found


def _told(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names)) or "no column"


def _find_one(source: str, format: str | None, storage: Mapping[str, Any]) -> list[DataFile]:
    if is_url(source):
        return _find_behind_url(source, format, storage)
    found, paths = [], find_paths([os.path.expanduser(source)])
    for path in [path for path in paths if os.path.basename(path) != MANIFEST] or paths:  # `out/*` means the rows
        stat = os.stat(path)
        found.append(_file(path, source, format, stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}"))
    return found


def is_url(path: str) -> bool:
    """Whether it names something behind a file system of fsspec."""
    return "://" in path


def lives_here(path: str) -> bool:
    """Whether a URL names the memory of this process: nobody else sees what is there."""
    return any(part.startswith("memory://") for part in path.split("::"))


def _find_behind_url(source: str, format: str | None, storage: Mapping[str, Any]) -> list[DataFile]:
    fs, path = file_system(source, storage)
    is_glob = any(sign in path for sign in "*?[")

    def list_files() -> dict[str, Any]:
        try:
            details = fs.glob(path, detail=True) if is_glob else fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return {name: details[name] for name in sorted(details) if details[name]["type"] == "file"}

    def list_manifests() -> list[str]:
        return [name for each in _manifests_of(path) for name in fs.glob(each)] if is_glob else []

    def is_visible(name: str) -> bool:
        return _is_visible(name, _fixed(path).rstrip("/"))

    try:
        if not is_glob and fs.isfile(path):  # who names one file means it
            found = list_files()
        else:
            found = published(
                fs, list_files, list_manifests, is_visible, _matches(path) if is_glob else _lies_in(path), source
            )
    except FourfoldError:
        raise
    except Exception as error:
        raise OptionError(f"{source} cannot be listed: {type(error).__name__}: {error}") from error
    if not found:
        raise OptionError(f"there is no file at {source}")
    return [_behind(fs, name, str(fs.unstrip_protocol(path)), format, detail) for name, detail in found.items()]


def _manifests_of(pattern: str) -> list[str]:
    """Globs of the manifests that may name files of a glob: those of the folders above them that have a sign in them."""
    *folders, _ = pattern.split("/")
    above = ["/".join(folders[:end]) for end in range(1, len(folders) + 1)]
    return [f"{each}/{MANIFEST}" for each in above if _fixed(each) != each]


def _matches(pattern: str) -> Callable[[str], bool]:
    """Whether a glob of a store would find a path."""
    from fsspec.utils import glob_translate

    fits = re.compile(glob_translate(pattern)).match
    return lambda name: fits(name) is not None


def _lies_in(folder: str) -> Callable[[str], bool]:
    """Whether a path is in a folder of a store, or below it."""
    inside = f"{folder.strip('/')}/".lstrip("/")  # nothing, of all that is there
    return lambda name: name.lstrip("/").startswith(inside)


def _fixed(path: str) -> str:
    """The folder of a glob before its first sign; another path as it is."""
    before = re.split(r"[*?[]", path, maxsplit=1)[0]
    return path if before == path else before.rpartition("/")[0]


def _is_visible(name: str, root: str) -> bool:
    below = name[len(root) :] if name.startswith(root) else name.rsplit("/", 1)[-1]
    return not any(part[:1] in ("_", ".") for part in below.split("/") if part)


def _behind(fs: Any, name: str, source: str, format: str | None, detail: Mapping[str, Any]) -> DataFile:
    size = int(detail.get("size") or 0)
    marks = [str(detail[key]) for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created") if detail.get(key)]
    return _file(str(fs.unstrip_protocol(name)), source, format, size, f"{size}:{':'.join(marks[:1])}")


def file_system(url: str, storage: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of fsspec behind a URL, and the path in it.

    Raises:
        MissingExtra: It needs a package that is not installed.
        OptionError: There is no such file system, or its options are wrong.
    """
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra("URLs need fsspec: pip install 'fourfold[data]'") from error
    try:
        fs, path = fsspec.core.url_to_fs(url, **storage)
    except ImportError as error:
        raise MissingExtra(f"{url} needs another package: {error}") from error
    except (ValueError, TypeError) as error:
        raise OptionError(f"{url} cannot be used with storage_options of {sorted(storage)}: {error}") from error
    return fs, str(path)


def _file(path: str, source: str, format: str | None, size: int, stamp: str) -> DataFile:
    stem, extension = os.path.splitext(path)
    compression = COMPRESSION_OF_EXTENSION.get(extension.lower())
    if compression:
        extension = os.path.splitext(stem)[1]
    format = format or FORMAT_OF_EXTENSION.get(extension.lower())
    if format is None:
        raise OptionError(
            f"cannot tell the format of {path} from its extension {extension!r}; say what it holds: format={FORMATS[0]!r}, "
            f"or another one of {', '.join(FORMATS[1:])}"
        )
    return DataFile(path, format, None if format == "parquet" else compression, size, stamp, _keys(path, source))


def _keys(path: str, source: str) -> tuple[tuple[str, str | None], ...]:
    """What the folders between the source and the file say. Those above the source are the user's own affair."""
    if not is_url(path):
        path, source = os.path.normpath(path), os.path.normpath(source)
    prefix = _fixed(source).rstrip("/")
    below = path[len(prefix) :] if prefix and path.startswith(prefix) else path
    pairs = [part.split("=", 1) for part in below.split("/")[:-1] if "=" in part]
    return tuple((unquote(name), None if value == NULL_KEY else unquote(value)) for name, value in pairs)


@contextmanager
def opened(path: str, storage: Mapping[str, Any]) -> "Iterator[IO[bytes]]":
    """A file, open for reading, as its bytes lie there.

    Raises:
        UnreadableInput: It cannot be opened here.
    """
    try:
        if is_url(path):
            fs, inside = file_system(path, storage)
            handle = cast("IO[bytes]", fs.open(inside, "rb"))
        else:
            handle = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        import socket

        raise UnreadableInput(
            f"{path} cannot be read on {socket.gethostname()}: {error}. Workers read files themselves: put them where all "
            "machines see them"
        ) from error
    with handle:
        yield handle
