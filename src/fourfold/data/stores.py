"""Files of a store (s3://, gs://, memory://, …) appear together, or not at all: folders there cannot be renamed in one step.

    workers ──put──> out/part-<piece>-…-<run>-<attempt>.parquet      final at once: put whole, under a name that no other has
       └──Part──> driver: the first outcome of a piece wins
                     └──put──> out/_fourfold.json                    the one step: names the winners; nothing else is there
                     └──delete──> what lost, and what was replaced

A reader that obeys the manifest (`fourfold.scan`) sees all or nothing, also of an output that takes the place of another one.
Where the store can put only what is not there yet, two drivers that write to one place cannot both win.
While it is written, and as long as it may be gone on with, `out/_fourfold/<run>.json` tells who writes: see `sweep_store`.
Source: the manifests of Delta and Iceberg, whose files nobody sees before one write has named them.
"""

import contextlib
import json
import logging
import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

import fourfold.system.seams as seams
from fourfold.addresses import Credentials
from fourfold.data.files import file_system
from fourfold.data.manifests import MANIFEST, Wanted, all_named_in, manifest_bytes, read_manifest, run_of
from fourfold.data.parts import EXTENSION, Part
from fourfold.data.places import Store
from fourfold.data.together import has_types, in_order, one_schema, write_tables, write_widened
from fourfold.data.writers import Writer, writer_of_this_process
from fourfold.errors import OptionError, RunError, RunInUse

WRITERS = "_fourfold"
"""The folder, in the output, of files that tell who writes."""


class StoreOutput:
    """The folder of a store to be written.

    Args:
        url: Where it will be.
        wanted: What is to be there.
        storage: Options of the file system.

    Raises:
        OptionError: Something is there already, or the store cannot be used.
    """

    def __init__(self, url: str, wanted: Wanted, storage: Credentials) -> None:
        self.path, self._wanted = url.rstrip("/"), wanted
        self._fs, root = file_system(self.path, storage)
        self._root = root.rstrip("/")
        if not self._root:
            raise OptionError(f"write({url!r}): give a folder in it")
        self.place = Store(self.path, storage, wanted.id)
        self._marker = posixpath.join(self._root, WRITERS, f"{wanted.id}.json")
        self._is_open = self._takes_away = False
        self._failed: list[str] = []
        self._empty: list[str] = []
        self._before = self._listed()
        if not wanted.overwrite and not self.is_published():
            self._check_vacant(url)

    def _check_vacant(self, url: str) -> None:
        there = [path for path in self._before if path != self._marker and run_of(path) != self._wanted.id]
        if not there:
            return
        is_ours = all(run_of(path) or path.startswith(posixpath.dirname(self._marker)) for path in there)
        if is_ours and not read_manifest(self._fs, self._root):
            raise OptionError(
                f"{url} has {len(there)} files of another run that has not ended: wait for it, go on with it, or, when it is "
                f"dead, remove them: fourfold clean {url}"
            )
        raise OptionError(f"{url} is there already: give another path, or overwrite=True to replace it")

    def _listed(self) -> dict[str, int]:
        """All files of the folder, with their bytes."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._root, detail=True)
        except FileNotFoundError:  # also of a bucket: then putting says so
            return {}
        except Exception as error:
            raise OptionError(f"{self.path} cannot be listed: {type(error).__name__}: {error}") from error
        return {name: int(each.get("size") or 0) for name, each in found.items()}

    def is_published(self) -> bool:
        """Whether this run has made what is there."""
        return self._wanted.has_made(self.manifest())

    def manifest(self) -> dict[str, Any]:
        """What the folder says of itself; empty when it is not ours."""
        return read_manifest(self._fs, self._root)

    def open(self) -> None:
        """Tell who writes here.

        Raises:
            RunInUse: Another driver of the same run does.
            OptionError: Nothing can be put there.
        """
        before = Writer.read(self._fs, self._marker)
        if before is not None and before.is_alive() and not before.is_this_process():
            raise RunInUse(f"another call of the same run writes {self.path} right now: process {before.pid}")
        self._takes_away = before is not None
        data = json.dumps(writer_of_this_process(self._wanted.run)._asdict()).encode()
        above = posixpath.dirname(self._root)
        try:
            if above and self._fs.isdir(above):  # so that no bucket is made: a wrong name is an error
                self._fs.makedirs(posixpath.dirname(self._marker), exist_ok=True)
            self._fs.pipe_file(self._marker, data)
        except Exception as error:
            raise OptionError(f"{self.path} cannot be written: {type(error).__name__}: {error}") from error
        self._is_open = True

    def check(self, parts: Sequence[Part]) -> None:
        """Check that all parts are there, also those of earlier calls.

        Raises:
            RunError: One is gone.
        """
        found = self._listed()
        for part in parts:
            if found.get(self._path_of(part)) != part.size_bytes:
                raise RunError(
                    f"{self.path}/{part.path}, which this run has written, is gone or has "
                    "another size: was it cleaned or overwritten? Write anew, with another folder for run="
                )

    def _path_of(self, part: Part) -> str:
        return posixpath.join(self._root, part.path)

    def add_empty(self, table: Any) -> None:
        """There is no row: one file tells the columns, where anybody knows them."""
        if table.num_columns:
            name = self.place.name(0, 0, EXTENSION[self._wanted.format])
            write_tables([table], self.place.target(name), self._wanted.format)
            self._empty = [name]

    def add_failed(self, table: Any) -> None:
        """Keep rows that have no value beside the others."""
        name = f"_failed/{self.place.name(0, 0, '.parquet').replace('part-00000000-0000000000', 'rows')}"
        write_tables([table], self.place.target(name), "parquet")
        self._failed = [name]

    def where(self, facts: dict[str, Any]) -> tuple[list[str], str]:
        """The files that a manifest names, and the one of rows without a value, if there are any."""
        failed = [f"{self.path}/{name}" for name in facts["failed_rows"]]
        return [f"{self.path}/{each['path']}" for each in facts["files"]], next(iter(failed), "")

    def publish(self, parts: Sequence[Part], facts: dict[str, Any]) -> dict[str, Any]:
        """Make these parts the output; returns its manifest.

        Raises:
            UnwritableValue: The parts do not go together.
            OptionError: Something has appeared meanwhile.
        """
        ordered = in_order(parts)
        schema = one_schema(ordered)
        files = [self._final(part, schema) for part in ordered]
        facts = self._wanted.manifest({**facts, "files": files, "empty": self._empty, "failed_rows": self._failed})
        facts["replaced"] = [posixpath.relpath(path, self._root) for path in sorted(self._replaced() - self._named(facts))]
        seams.hit("output.publish")
        self._put_manifest(facts)
        self._takes_away = True
        seams.hit("output.published")
        return facts

    def _final(self, part: Part, schema: Any) -> dict[str, Any]:
        """A part as the manifest names it: as it is, or, where its types are narrower, written anew."""
        name, n_rows, size_bytes, checksum = part.name, part.n_rows, part.size_bytes, part.checksum
        if not has_types(part, schema, self._wanted.format):
            name = self.place.name(part.number, part.first, EXTENSION[self._wanted.format])
            target = self.place.target(part.beside(name))
            with self._fs.open(self._path_of(part), "rb") as file:
                n_rows, size_bytes, checksum = write_widened(file, target, schema)
        return {"path": part.beside(name), "rows": n_rows, "bytes": size_bytes, "crc32": checksum}

    def _replaced(self) -> set[str]:
        """What was there before, but nothing that another run writes right now."""
        if not self._wanted.overwrite:
            return set()
        named = self._named(self.manifest())
        kept = {self._marker, posixpath.join(self._root, MANIFEST)}
        others = {path for path in self._before if posixpath.dirname(path) != posixpath.dirname(self._marker)}
        return {path for path in others | named if path not in kept and (path in named or run_of(path) is None)}

    def _named(self, facts: dict[str, Any]) -> set[str]:
        return {posixpath.join(self._root, name) for name in all_named_in(facts)}

    def _put_manifest(self, facts: dict[str, Any]) -> None:
        path, data = posixpath.join(self._root, MANIFEST), manifest_bytes(facts)
        if self._wanted.overwrite:
            self._fs.pipe_file(path, data)
            return
        try:
            if self.manifest():
                raise FileExistsError
            try:
                self._fs.pipe_file(path, data, mode="create")
            except (TypeError, ValueError, NotImplementedError):  # a store that cannot: then the look before has to do
                self._fs.pipe_file(path, data)
        except FileExistsError:
            if not self.is_published():  # it may be ours: put, and put again since the answer was lost
                raise OptionError(
                    f"{self.path} has appeared meanwhile: nothing of it was changed. Give another path"
                ) from None

    def close(self) -> None:
        """The parts stay for a call that goes on; where there are none, nothing does."""
        with contextlib.suppress(Exception):  # what ended the call is what is to be raised
            if self._is_open and not any(run_of(path) == self._wanted.id for path in self._listed()):
                self.discard()

    def discard(self) -> None:
        """Remove what this run has put here and the manifest does not name, and what that has replaced."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._take_away()
        except Exception as error:  # what is there is there, and what is left is nothing to readers
            what = "%s: what is left of this run could not be removed (%s: %s); type: fourfold clean %s"
            logging.getLogger("fourfold").warning(what, self.path, type(error).__name__, error, self.path)

    def _take_away(self) -> None:
        facts = self.manifest()
        named, replaced = self._named(facts), replaced_in(facts, self._root)
        found = self._listed()
        remove(self._fs, (path for path in found if run_of(path) == self._wanted.id and path not in named))
        if self._takes_away:  # not for ever: somebody may put a file of that name there, long after
            remove(self._fs, replaced.intersection(found) - named)
        remove(self._fs, [self._marker])
        with contextlib.suppress(Exception):  # where folders are more than beginnings of names
            self._fs.rmdir(posixpath.dirname(self._marker))


def replaced_in(facts: dict[str, Any], root: str) -> set[str]:
    """The files whose place an output has taken, by its manifest: they may be there still, when its driver was killed."""
    return {posixpath.join(root, name) for name in facts.get("replaced", ())}


def remove(fs: Any, paths: Iterable[str]) -> None:
    """Take files of a store away, many in one request where it can; what cannot be is left, and is nothing to readers."""
    wanted = sorted(paths)
    plain = [path for path in wanted if not any(sign in path for sign in "*?[")]
    try:
        if plain:
            fs.rm(plain)
    except Exception:  # one of them, and nobody knows which
        plain = []
    for path in set(wanted).difference(plain):
        with contextlib.suppress(Exception):
            fs.rm_file(path)
