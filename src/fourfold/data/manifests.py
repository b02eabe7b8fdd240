"""Which files of a store belong together. A store cannot rename a folder, so a manifest says what is there, and is put last.

out/part-00000000-0000000000-<run>-<attempt>.parquet     as a worker has written it: there before anybody may read it
out/_fourfold.json                                       names the files that count; for readers there are no others
"""

import json
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fourfold.errors import OptionError
from fourfold.version import VERSION

MANIFEST = "_fourfold.json"
"""What the folder holds and which run made it. Readers of Parquet leave names with `_` alone."""

OF_STORE = re.compile(r"(?:part-\d{8}-\d{10}|rows)-([0-9a-f]{16})-[0-9a-f]{16}\.\w+")
"""The name of a file that a run has put into a store, and the id of that run."""

LISTINGS = 3
"""How often files are listed until they are those that the manifest names. Each time somebody has just published others."""


class Wanted(NamedTuple):
    """What is to be written, wherever that is.

    Attributes:
        id: The same for all calls of one recorded run, and no other one's.
        format: "parquet", "csv" or "jsonl".
        overwrite: Whether it may take the place of what is there.
        run: The folder of the recorded run that goes on with the parts, None when there is none.
    """

    id: str
    format: str
    overwrite: bool = False
    run: str | None = None

    def has_made(self, manifest: Mapping[str, Any]) -> bool:
        """Whether this run has made the output of this manifest."""
        return manifest.get("run") == self.id

    def manifest(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of its output: these facts, and whose it is."""
        return {"run": self.id, "fourfold": VERSION, "written_at": time.time(), **facts}


def manifest_bytes(facts: dict[str, Any]) -> bytes:
    """A manifest as it is written."""
    return (json.dumps(facts, indent=1) + "\n").encode()


def facts_in(data: bytes) -> dict[str, Any]:
    """What a manifest says; nothing when it is none of ours."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_manifest(fs: Any, folder: str) -> dict[str, Any]:
    """The manifest of a folder of a store; nothing when there is none."""
    try:
        return facts_in(fs.cat_file(posixpath.join(folder, MANIFEST)))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}


def all_named_in(facts: Mapping[str, Any]) -> list[str]:
    """All files that a manifest names, also those of rows without a value."""
    return [*named_in(facts), *facts.get("failed_rows", ())]


def named_in(facts: Mapping[str, Any]) -> list[str]:
    """The files with rows that a manifest names, in the order of the rows; of no rows, the one that tells the columns."""
    return [*(each["path"] for each in facts.get("files", ())), *facts.get("empty", ())]


def run_of(path: str) -> str | None:
    """The run that has put a file into a store, None for a file of somebody else."""
    found = OF_STORE.fullmatch(posixpath.basename(path))
    return found[1] if found else None


def published(
    fs: Any,
    list_files: Callable[[], Mapping[str, Any]],
    list_manifests: Callable[[], Iterable[str]],
    is_visible: Callable[[str], bool],
    is_wanted: Callable[[str], bool],
    source: str,
) -> dict[str, Any]:
    """Those of the listed files that readers may see, with what the listing says of them.

    Args:
        fs: The file system.
        list_files: Lists them.
        list_manifests: Lists those above them that no file would lead to, when all that one names are gone.
        is_visible: Whether a file is none of those that readers leave alone.
        is_wanted: Whether a file would be listed if it were there.
        source: What the user has named, for messages.

    Raises:
        OptionError: There are only files of runs that have not ended, or files are gone that a manifest names.
    """
    for _ in range(LISTINGS):
        fs.invalidate_cache()
        listed = list_files()
        found = {path: each for path, each in listed.items() if is_visible(path)}
        manifests = _Manifests(fs, [*(path for path in listed if posixpath.basename(path) == MANIFEST), *list_manifests()])
        ours = [path for path in found if run_of(path) is not None]
        n_unfinished = sum(not manifests.name(path) for path in ours)
        gone = [path for path in manifests.named() if path not in found and is_wanted(path) and is_visible(path)]
        if not gone:
            break
    else:
        raise OptionError(f"{gone[0]} is gone, and the manifest of its folder names it: the output is damaged, write it again")
    kept = {path: each for path, each in found.items() if manifests.count(path)}
    if n_unfinished and not kept:
        raise OptionError(
            f"{source} has no finished output, only {n_unfinished} files of runs that have not ended, or that nobody goes on "
            f"with: wait for the end, go on with the run, or remove them: fourfold clean {source}"
        )
    return kept


class _Manifests:
    """The manifests above some files, each read once.

    Args:
        fs: The file system.
        known: Paths of those that a listing has shown.
    """

    def __init__(self, fs: Any, known: list[str]) -> None:
        self._fs = fs
        self._named: dict[str, frozenset[str] | None] = {}
        for path in known:
            self._of(posixpath.dirname(path))

    def name(self, path: str) -> bool:
        """Whether a manifest above a file names it."""
        return any(path in (self._of(folder) or ()) for folder in folders_above(path))

    def count(self, path: str) -> bool:
        """Whether a file counts: it is named; or it is somebody else's, and no manifest that is known speaks of its folder."""
        if run_of(path) is not None:
            return self.name(path)
        return all(self._named.get(folder) is None for folder in folders_above(path))

    def named(self) -> Iterator[str]:
        """All that they name, as far as they were read: of a folder of values, its manifest lies above."""
        for named in self._named.values():
            yield from sorted(named or ())

    def _of(self, folder: str) -> frozenset[str] | None:
        """The files that the manifest of a folder names; None where there is none that was made for a store."""
        if folder not in self._named:
            facts = read_manifest(self._fs, folder)
            is_of_store = "empty" in facts  # not that of a folder that was copied here from a disk
            self._named[folder] = (
                frozenset(posixpath.join(folder, name) for name in all_named_in(facts)) if is_of_store else None
            )
        return self._named[folder]


def folders_above(path: str) -> Iterable[str]:
    """The folders that a file of a store lies in, the nearest first."""
    while (above := path.rpartition("/")[0]) and above != path:
        yield above
        path = above
