"""What runs have left in a store, and nobody goes on with: found by the names of files, and by who says that he writes."""

import posixpath
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from fourfold.addresses import Credentials
from fourfold.data.files import file_system
from fourfold.data.manifests import MANIFEST, all_named_in, facts_in, folders_above, run_of
from fourfold.data.stores import WRITERS, remove, replaced_in
from fourfold.data.writers import Writer
from fourfold.errors import OptionError

PATIENCE_S = 24 * 3600.0
"""Seconds since the last file of a run on another machine, after which it counts as dead: nobody can look. Less: what a slow
run has written is taken from it, and it ends with an error. More: files of dead ones lie there longer."""


def sweep_store(url: str, patience_s: float = PATIENCE_S, storage: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Remove from the folder of a store, and from those below it, what no manifest names and nobody goes on with.

    What a process of this machine writes stays, and what a run goes on with that is recorded on it; of other machines' runs,
    what is younger than `patience_s`.

    Returns:
        The URLs of what was removed.

    Raises:
        OptionError: The store cannot be used, or a manifest cannot be read. Nothing was removed.
    """
    fs, root = file_system(url, Credentials(storage or {}))
    fs.invalidate_cache()
    try:
        found: dict[str, Any] = fs.find(root, detail=True)
    except FileNotFoundError:
        found = {}
    except Exception as error:
        raise OptionError(f"{url} cannot be listed: {type(error).__name__}: {error}") from error
    youngest = _youngest(found)
    above = [path for folder in folders_above(root) for path in _files_in(fs, posixpath.join(folder, WRITERS))]
    writers = [path for path in found if posixpath.basename(posixpath.dirname(path)) == WRITERS]
    alive = set()
    for path, writer in [(path, Writer.read(fs, path)) for path in (*writers, *above)]:
        run = posixpath.basename(path).removesuffix(".json")
        if writer is None or _may_go_on(writer, time.time() - youngest.get(run, 0.0), patience_s):
            alive.add(run)
    named, replaced = _named(fs, found)  # after the writers: who is no writer any more has put his manifest
    left = [path for path in found if run_of(path) and path not in named and run_of(path) not in alive]
    left += [path for path in replaced - {*left, *named} if path in found]
    left += [path for path in writers if posixpath.basename(path).removesuffix(".json") not in alive]
    for path in sorted(left):
        remove(fs, [path])
        if not fs.exists(path):
            yield str(fs.unstrip_protocol(path))


def _files_in(fs: Any, folder: str) -> list[str]:
    try:
        return list(fs.find(folder))
    except (FileNotFoundError, PermissionError):
        return []


def _may_go_on(writer: Writer, age_s: float, patience_s: float) -> bool:
    return writer.is_alive() or writer.will_go_on() or (not writer.is_here() and age_s < patience_s)


def _named(fs: Any, found: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """All files that a manifest names, of those folders and of the ones above; and those whose place these have taken."""
    named, replaced = set(), set()
    for folder in sorted({folder for path in found if run_of(path) for folder in _outputs_of(path)}):
        facts = _facts(fs, folder)
        named |= {posixpath.join(folder, name) for name in all_named_in(facts)}
        replaced |= {path for path in replaced_in(facts, folder) if run_of(path)}  # others may be there anew
    return named, replaced


def _outputs_of(path: str) -> Iterator[str]:
    """The folders whose manifest may name a file: between it and its output there are folders of values, and `_failed`.

    Others are not looked at: a key for one folder of a bucket may not read what lies above, and has to do for it.
    """
    for folder in folders_above(path):
        yield folder
        if "=" not in (name := posixpath.basename(folder)) and name != "_failed":
            return


def _facts(fs: Any, folder: str) -> dict[str, Any]:
    """What the manifest of a folder says; nothing only when there is none, as what none names is removed."""
    path = posixpath.join(folder, MANIFEST)
    try:
        facts = facts_in(fs.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except Exception as error:
        raise _unreadable(fs, path, f"{type(error).__name__}: {error}") from error
    if not facts:
        raise _unreadable(fs, path, "it is no manifest of fourfold")
    return facts


def _unreadable(fs: Any, path: str, why: str) -> OptionError:
    return OptionError(
        f"{fs.unstrip_protocol(path)}: this manifest cannot be read ({why}), and only it tells which files count: nothing was "
        "removed. Use a key that may read it; if it is broken, write the output again, with overwrite=True"
    )


def _youngest(found: Mapping[str, Any]) -> dict[str, float]:
    """When the last file of each run was written, by the store; now, where it does not tell."""
    last: dict[str, float] = {}
    for path, detail in found.items():
        run = run_of(path) or posixpath.basename(path).removesuffix(".json")
        when = next((detail[key] for key in ("LastModified", "mtime", "updated", "created") if detail.get(key)), None)
        seconds = (
            when.timestamp() if isinstance(when, datetime) else float(when) if isinstance(when, int | float) else time.time()
        )
        last[run] = max(last.get(run, 0.0), seconds)
    return last
