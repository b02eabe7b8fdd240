"""The tables of a run's journal, and what is written to them."""

import json
import os
import shutil
import sqlite3
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from fourfold.errors import JournalCorrupt, JournalError, RunError
from fourfold.runs.place import JOURNAL, WITHOUT_SHARED_MEMORY, file_system_of
from fourfold.runs.seal import ID_BYTES
from fourfold.runs.tail import Tail

VERSION = 4
"""Of the tables below. A journal with another one is refused: what wrote it must read it."""

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

STATEMENTS = {
    "told": "insert or replace into run values (?, ?)",
    "new part": "insert or ignore into part values (?, 0)",
    "synced": "update part set synced_bytes = ? where number = ?",
    "value": "insert or replace into value values (?, ?, ?, ?, ?, ?, ?)",
    "sealed": "update value set seal = ? where id = ?",
    "done": "insert or replace into done values (?, ?, ?, ?, ?)",
    "failed": "insert or replace into failure values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "not failed": "delete from failure where item between ? and ?",
    "none failed": "delete from failure",
    "started": "insert or replace into started values (?)",
    "ended": "delete from started where item between ? and ?",
    "value lost": "delete from done where value = ?",
    "failure lost": "delete from failure where error = ? or value = ?",
    "lost": "delete from value where id = ?",
    "event": "insert into event values (?, ?, ?)",
    "newest events": "delete from event where rowid <= (select max(rowid) from event) - ?",
}
"""All that is ever written, by name: the tail of a journal has names, and what somebody else put there runs nothing else."""

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


def set_up(database: sqlite3.Connection, folder: Path) -> bool:
    """Make the tables in a database that has none; returns whether that was so.

    Raises:
        JournalError: They are of another version.
        JournalCorrupt: The database is not what was written.
    """
    # SQLite gives the files beside it the mode of the journal.
    shared = file_system_of(folder).removeprefix("fuse.") in WITHOUT_SHARED_MEMORY
    database.execute(f"pragma journal_mode = {'delete' if shared else 'wal'}")
    database.execute("pragma synchronous = normal")
    (found,) = database.execute("pragma user_version").fetchone()
    if not found:  # also when a driver was killed between making the file and the tables
        fact = f"insert into run values ('id', '\"{os.urandom(ID_BYTES).hex()}\"');"
        database.executescript(f"begin immediate; {TABLES} {fact} pragma user_version = {VERSION}; commit;")
        return True
    check_version(found, folder)
    (told,) = database.execute("pragma quick_check(1)").fetchone()
    if told != "ok":
        raise JournalCorrupt(
            f"{folder / JOURNAL} is damaged: {told}. Bring it back from a copy, or begin again in another folder"
        )
    return False


def checksum_of(done: Done) -> int:
    return zlib.crc32(done.digests, zlib.crc32(struct.pack("<qqq", *done[:3])))


def connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    """Open a database; results may be asked for in another thread than the one that began the run."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=5.0
    )


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """Look into the journal of a run that somebody else may be writing, without changing it; None: nothing is in it yet.

    What is not committed yet, or was not when the driver was killed, is there too.

    Raises:
        JournalError: There is none.
    """
    if not (folder / JOURNAL).exists():
        raise JournalError(f"{folder} is no run: there is no {JOURNAL} in it")
    database = connect(folder / JOURNAL, "ro") if os.access(folder, os.W_OK) else _copy_of(folder)
    try:
        version = database.execute("pragma user_version").fetchone()[0]
        tail = Tail(folder)
        if version == VERSION and tail.exists():
            # A copy of one moment, and then the lines that follow it: the driver may go on writing.
            copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            committed, database = database, copy
            with closing(committed):
                committed.backup(copy)
            for name, values in tail.read(_n_commits(copy)):
                copy.execute(STATEMENTS[name], values)
        yield database if version else None
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, RunError):
            raise
        raise JournalError(f"{folder / JOURNAL} cannot be read: {error}") from error
    finally:
        database.close()


def _copy_of(folder: Path) -> sqlite3.Connection:
    """A journal that lies where nothing can be written: even to read it, SQLite makes files beside it.

    Raises:
        JournalError: It cannot be read, or there is no room for a copy.
    """
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        with tempfile.TemporaryDirectory(prefix="fourfold-") as room:
            for path in folder.glob(f"{JOURNAL}*"):
                if not path.name.endswith("-shm"):
                    shutil.copyfile(path, Path(room, path.name))
            with closing(connect(Path(room, JOURNAL))) as database:
                database.backup(copy)
    except (sqlite3.Error, OSError) as error:
        copy.close()
        raise JournalError(f"{folder / JOURNAL} cannot be read: {error}") from error
    return copy


def _n_commits(database: sqlite3.Connection) -> int:
    """The number of the last commit: lines of the tail that follow it are not in the database."""
    found = database.execute("select value from run where name = 'n_commits'").fetchone()
    return int(json.loads(found[0])) if found else 0
