"""Which items of a run are done, and where their values are. SQLite; written by the driver only.

    item ended ──> values-0001.part, journal.sqlite      together, in groups: at most COMMIT_S of finished work is in memory

A killed driver loses what was not committed: those items run again. A machine that loses its power may also lose what came
after the last SYNC_S: rows whose values are not on the disk are forgotten when the run is opened again. Everything else that
does not fit its checksum is damage, and is refused.
"""

import json
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import fourfold.seams as seams
from fourfold.errors import JournalCorrupt, JournalError, RunError
from fourfold.records import Parcel
from fourfold.runs.place import JOURNAL, PROGRAM, WITHOUT_SHARED_MEMORY, create_private, file_system_of
from fourfold.runs.seal import COMMAND, FUNCTION, ID_BYTES, Key, Seals, command_of, seals_of
from fourfold.runs.values import ValueWriter, Where, is_whole, part_path, read_parcel, seal_again

VERSION = 2
"""Of the tables below. A journal with another one is refused: what wrote it must read it."""

COMMIT_S = 0.1
"""Seconds of finished work that a killed driver may lose. Smaller: more commits (0.2 ms each). Larger: more runs again."""

COMMIT_SHARE = 0.01
"""Share of the driver's time that commits may take: on a slow disk they come less often. Smaller: more runs again after a
kill. Larger: the loop, which waits for each commit, is slowed down by more."""

SYNC_S = 5.0
"""Seconds between two writes to the disk itself, for the case that the machine loses its power. Smaller: the driver waits
for the disk more often (1 to 30 ms each time). Larger: more runs again after that. Not measured on a spinning disk."""

EVENTS_KEPT = 1000
"""Lines of the run's story that are kept. Fewer: less to read after many resumes. More: a larger journal."""

PAGE = 256
"""Rows that are read at once when a run is resumed. Not measured."""

TABLES = """
create table run (name text primary key, value text not null) without rowid;
create table value (id integer primary key, what integer, part integer, offset integer, length_bytes integer,
                    checksum integer, seal blob);
create table done (first integer primary key, n_items integer, value integer, digests blob, checksum integer);
create table failure (item integer primary key, kind text, error_type text, message text, traceback text, place text,
                      shown text, attempts integer, worker text, digest blob, error integer, value integer);
create table started (item integer primary key) without rowid;
create table part (number integer primary key, synced_bytes integer);
create table event (at real, kind text, data text);
"""


WHERE = "select part, offset, length_bytes, checksum, seal from value where id = ?"


class Done(NamedTuple):
    """Items [first, first + n_items) have values, in the parcel `value`; `digests` are the items'."""

    first: int
    n_items: int
    value: int
    digests: bytes


class FailedItem(NamedTuple):
    """An item that has no value, and why. `error` is the parcel with its exception and `value` that with the item; 0: none."""

    item: int
    kind: str
    error_type: str
    message: str
    traceback: str
    place: str
    shown: str
    attempts: int
    worker: str
    digest: bytes
    error: int
    value: int


class Journal:
    """The journal of one run, open for writing. The folder is prepared, trusted and locked.

    Args:
        folder: Of the run.
        key: Seals what it holds. Without one, no parcel is read or written.

    Raises:
        JournalError: It cannot be opened, or is of another version of fourfold.
        JournalCorrupt: It is not what was written.
        UntrustedRun: It was recorded with another key.
    """

    def __init__(self, folder: Path, key: Key | None = None) -> None:
        self.folder, self.is_new = folder, False
        self._values: ValueWriter | None = None
        self._rows: list[tuple[str, tuple[Any, ...]]] = []
        self._committed_at = self._synced_at = time.monotonic()
        self._took_s = 0.0
        self._pid = os.getpid()
        self._is_full = False
        self._database: sqlite3.Connection | None = None
        self._seals: Seals | None = None
        try:
            with self._one_error("opened"):
                seams.hit("journal.open")
                if not (folder / JOURNAL).exists():
                    os.close(create_private(folder / JOURNAL))
                self._database = _connect(folder / JOURNAL)
                self._set_up()
                facts = self.facts()
                if key is not None:
                    self._seals = seals_of(key, {"key": key.name, **facts}, folder)
                self._next_value: int = self._one("select coalesce(max(id), 0) + 1 from value")
                self._has_loose_items = bool(self.count("failure") or self.started())
                self._forget_torn_values()
                if key is not None and "key" not in facts:
                    self.tell(key=key.name)
        except BaseException:
            self.close(last_words=False)
            raise

    def _set_up(self) -> None:
        database = self.database
        # SQLite gives the files beside it the mode of the journal.
        shared = file_system_of(self.folder).removeprefix("fuse.") in WITHOUT_SHARED_MEMORY
        database.execute(f"pragma journal_mode = {'delete' if shared else 'wal'}")
        database.execute("pragma synchronous = normal")
        found = self._one("pragma user_version")
        self.is_new = not found
        if self.is_new:  # also when a driver was killed between making the file and the tables
            fact = f"insert into run values ('id', '\"{os.urandom(ID_BYTES).hex()}\"');"
            database.executescript(f"begin immediate; {TABLES} {fact} pragma user_version = {VERSION}; commit;")
            return
        check_version(found, self.folder)
        (told,) = database.execute("pragma quick_check(1)").fetchone()
        if told != "ok":
            raise JournalCorrupt(
                f"{self.folder / JOURNAL} is damaged: {told}. Bring it back from a copy, or begin again in another folder"
            )

    @property
    def database(self) -> sqlite3.Connection:
        """The open database."""
        assert self._database is not None
        return self._database

    @property
    def seals(self) -> Seals:
        """Those of the run; it was opened with a key."""
        assert self._seals is not None
        return self._seals

    def _one(self, query: str, *values: Any) -> Any:
        return self.database.execute(query, values).fetchone()[0]

    @contextmanager
    def _one_error(self, what: str) -> Iterator[None]:
        """A full disk, a folder that is gone, a file that is too large: one error, that says what is safe."""
        try:
            yield
        except (OSError, sqlite3.Error, ValueError, TypeError, KeyError) as error:
            if isinstance(error, RunError):
                raise
            if (what != "written" and not isinstance(error, OSError)) or isinstance(error, sqlite3.IntegrityError):
                raise JournalCorrupt(
                    f"{self.folder / JOURNAL} is damaged: {error}. Bring it back from a copy, or begin again in another folder"
                ) from error
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise JournalError(
                f"the run {self.folder} cannot be {what}: {why}. What was recorded before is safe: when that is mended "
                "(is the disk full, the folder writable?), the same call goes on from there"
            ) from error

    # ---- writing -----------------------------------------------------------------------------------------------------

    def keep(self, parcel: Parcel, what: int) -> int:
        """Write a parcel of values, an item or an error; returns its number, for the rows that speak of it.

        Raises:
            JournalError: There is no room.
        """
        with self._one_error("written"):
            if self._values is None:
                number: int = self._one("select coalesce(max(number), 0) + 1 from part")
                while part_path(self.folder, number).exists():  # of a session that died before its first commit
                    number += 1
                self._values = ValueWriter(self.folder, number)
                self._rows.append(("insert or ignore into part values (?, 0)", (number,)))
            where = self._values.write(parcel, self.seals.begin(what, self._next_value))
        self._next_value += 1
        self._rows.append(("insert or replace into value values (?, ?, ?, ?, ?, ?, ?)", (self._next_value - 1, what, *where)))
        return self._next_value - 1

    def add(self, done: Done) -> None:
        """Items have values. Replaces what was known of them."""
        self._rows.append(("insert or replace into done values (?, ?, ?, ?, ?)", (*done, _checksum(done))))
        for table in ("failure", "started") if self._has_loose_items else ():
            self._rows.append((f"delete from {table} where item between ? and ?", (done.first, done.first + done.n_items - 1)))

    def add_failure(self, failed: FailedItem) -> None:
        """An item has no value."""
        self._has_loose_items = True
        plain = [storable(field) if isinstance(field, str) else field for field in failed]
        self._rows.append((f"insert or replace into failure values ({', '.join('?' * len(failed))})", (*plain,)))
        self._rows.append(("delete from started where item = ?", (failed.item,)))

    def start(self, items: list[int]) -> None:
        """Items are about to run, and must never run twice: committed at once, to the disk itself.

        Raises:
            JournalError: There is no room.
        """
        if not self._is_full:
            self._is_full = True
            self.database.execute("pragma synchronous = full")
        self._has_loose_items = True
        self._rows += [("insert or replace into started values (?)", (item,)) for item in items]
        self.commit()

    def note(self, kind: str, **data: Any) -> None:
        """A line of the run's story."""
        self._rows.append(("insert into event values (?, ?, ?)", (time.time(), kind, json.dumps(data))))
        self._rows.append(("delete from event where rowid <= (select max(rowid) from event) - ?", (EVENTS_KEPT,)))

    def tell(self, **facts: Any) -> None:
        """Facts about the run, as JSON."""
        self._rows += [("insert or replace into run values (?, ?)", (name, json.dumps(fact))) for name, fact in facts.items()]

    def beat(self, patience_s: float = COMMIT_S) -> None:
        """Commit when the last time was more than `patience_s` ago.

        Raises:
            JournalError: There is no room.
        """
        if self._rows and time.monotonic() - self._committed_at >= max(patience_s, self._took_s / COMMIT_SHARE):
            self.commit()

    def commit(self) -> None:
        """Values first, then what speaks of them: from here on it outlives this process.

        Raises:
            JournalError: There is no room.
        """
        if os.getpid() != self._pid:  # a fork of the driver: the journal is not this process's
            self._rows.clear()
        if not self._rows:
            return
        begin = time.monotonic()
        with self._one_error("written"):
            if self._values is not None:
                if time.monotonic() - self._synced_at > SYNC_S:
                    self._rows.append(self._sync(self._values))
                self._values.flush()
            self._commit_rows()
        self._committed_at = time.monotonic()
        self._took_s = self._committed_at - begin

    def _commit_rows(self) -> None:
        seams.hit("journal.commit")
        os.stat(self.folder / JOURNAL)  # what is written to a file that was removed is lost in silence
        database = self.database
        try:
            database.execute("begin immediate")
            for query, values in self._rows:
                database.execute(query, values)
            database.execute("commit")
        except BaseException:  # Ctrl-C too: the rows are written by the next commit, again if need be
            if database.in_transaction:
                database.execute("rollback")
            raise
        self._rows.clear()

    def _sync(self, values: ValueWriter) -> tuple[str, tuple[Any, ...]]:
        self._synced_at = time.monotonic()
        return "update part set synced_bytes = ? where number = ?", (values.sync(), values.number)

    def close(self, last_words: bool = True) -> None:
        """Commit what is there and close all files.

        Raises:
            JournalError: There is no room; all is closed nevertheless.
        """
        try:
            if last_words and self._database is not None:
                self._close_values()
                self.commit()
        except JournalError:
            with suppress(OSError, sqlite3.Error):
                # Those whose values did not get into the file are forgotten when the run is opened again.
                self._commit_rows()
            raise
        finally:
            if self._values is not None:
                self._values.close()
                self._values = None
            if self._database is not None:
                self._database.close()
                self._database = None

    def _close_values(self) -> None:
        if self._values is not None and self._rows:
            with self._one_error("written"):
                self._rows.append(self._sync(self._values))

    # ---- reading -----------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What `tell` was told, in this session and before it."""
        with self._one_error("read"):
            return {name: json.loads(value) for name, value in self.database.execute("select name, value from run")}

    def count(self, table: str) -> int:
        """How many items are in "done" or "failure"."""
        what = "coalesce(sum(n_items), 0)" if table == "done" else "count(*)"
        with self._one_error("read"):
            return int(self._one(f"select {what} from {table}"))

    def done_from(self, first: int) -> list[Done]:
        """The next PAGE rows of done items that reach beyond `first`, in order.

        Raises:
            JournalCorrupt: A row is not what was written.
        """
        with self._one_error("read"):
            begin = self._one("select coalesce(max(first), 0) from done where first <= ?", first)
            query = "select * from done where first >= ? order by first limit ?"
            found = [(Done(*fields), checksum) for *fields, checksum in self.database.execute(query, (begin, PAGE))]
            for row, checksum in found:
                if checksum != _checksum(row):
                    raise JournalCorrupt(
                        f"{self.folder / JOURNAL} is damaged: the row of items {row.first} to {row.first + row.n_items - 1} "
                        "has a wrong checksum. Bring it back from a copy, or begin again in another folder"
                    )
        return [row for row, _ in found]

    def failures(self) -> list[FailedItem]:
        """The failed items, by index."""
        with self._one_error("read"):
            return [FailedItem(*row) for row in self.database.execute("select * from failure order by item")]

    def started(self) -> list[int]:
        """Items that started, and of which nobody knows how they ended."""
        with self._one_error("read"):
            return [item for (item,) in self.database.execute("select item from started order by item")]

    def where_is(self, value: int) -> Where:
        """Where a parcel lies."""
        with self._one_error("read"):
            return Where(*self.database.execute(WHERE, (value,)).fetchone())

    def read(self, value: int, what: int, named: str) -> Parcel:
        """Read a parcel of values, an item or an error; `named` is its name in an error.

        Raises:
            JournalCorrupt: It is not what was written.
            UntrustedRun: It was changed by somebody who has not our key.
        """
        self.commit()
        return read_parcel(self.folder, self.where_is(value), self.seals.begin(what, value), named)

    def seal_again(self, key: Key) -> int:
        """Seal all that the run holds with this key, whatever it was sealed with; returns the number of parcels.

        Raises:
            JournalCorrupt: A parcel is not what was written: nothing is changed.
            JournalError: A file cannot be read or written.
        """
        facts = self.facts()
        seals = seals_of(key, {**facts, "key": key.name}, self.folder)
        rows = self.database.execute("select * from value").fetchall()
        for id, what, *fields in rows:
            seal = seal_again(self.folder, Where(*fields), seals.begin(what, id), f"parcel {id}")
            self._rows.append(("update value set seal = ? where id = ?", (seal, id)))
        if "command" in facts:
            self.tell(command_seal=seals.of(COMMAND, command_of(facts)))
        with self._one_error("read"), suppress(FileNotFoundError):
            self.tell(program_seal=seals.of(FUNCTION, (self.folder / PROGRAM).read_bytes()))
        self.tell(key=key.name)
        self.commit()
        return len(rows)

    def forget_failures(self) -> int:
        """Forget the failed items, so that they run again; returns how many."""
        count = self.count("failure")
        self._rows.append(("delete from failure", ()))
        self.commit()
        return count

    def parts(self) -> set[int]:
        """The numbers of the files of values."""
        return {number for (number,) in self.database.execute("select number from part")}

    def _forget_torn_values(self) -> None:
        """Forget the items whose values did not reach the disk before the machine lost its power."""
        for number, synced in self.database.execute("select number, synced_bytes from part").fetchall():
            path = part_path(self.folder, number)
            size = path.stat().st_size if path.exists() else 0
            if size < synced:
                raise JournalCorrupt(
                    f"{path} has {size} bytes and had {synced}: it was cut or replaced. Bring it back from a copy, or "
                    "begin again in another folder"
                )
            young = (
                "select id, part, offset, length_bytes, checksum, seal from value where part = ? and offset + length_bytes > ?"
            )
            for id, *where in self.database.execute(young, (number, synced)).fetchall():
                if not is_whole(self.folder, Where(*where)):
                    self._forget_value(id)
        if self._rows:
            self.note("torn", rows=len(self._rows))
            self.commit()

    def _forget_value(self, id: int) -> None:
        for first, n_items in self.database.execute("select first, n_items from done where value = ?", (id,)):
            # They have run, whatever is left of them: where nothing may run twice they are known as started.
            again = "insert or replace into started values (?)"
            self._rows += [(again, (item,)) for item in range(first, first + n_items)]
            self._has_loose_items = True
        self._rows.append(("delete from done where value = ?", (id,)))
        self._rows.append(("delete from failure where error = ? or value = ?", (id, id)))
        self._rows.append(("delete from value where id = ?", (id,)))


def check_version(found: int, folder: Path) -> None:
    """Check the version of the tables of a run.

    Raises:
        JournalError: It is not ours.
    """
    if found != VERSION:
        raise JournalError(
            f"{folder} was written by another version of fourfold (tables {found}, this one has {VERSION}): "
            "go on with that version, or begin again in another folder"
        )


def storable(text: str) -> str:
    """The text without halves of letters, as names of files in another encoding have them: SQLite stores UTF-8 only."""
    return text.encode("utf-8", "backslashreplace").decode()


def _checksum(done: Done) -> int:
    return zlib.crc32(done.digests, zlib.crc32(struct.pack("<qqq", *done[:3])))


def _connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    """Open a database; results may be asked for in another thread than the one that began the run."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=5.0
    )


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """Look into the journal of a run that somebody else may be writing, without changing it; None: nothing is in it yet.

    Raises:
        JournalError: There is none.
    """
    if not (folder / JOURNAL).exists():
        raise JournalError(f"{folder} is no run: there is no {JOURNAL} in it")
    database = _connect(folder / JOURNAL, "ro")
    try:
        yield database if database.execute("pragma user_version").fetchone()[0] else None
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise JournalError(f"{folder / JOURNAL} cannot be read: {error}") from error
    finally:
        database.close()
