"""Which items of a run are done, and where their values are. SQLite; written by the driver only.

    items ended ──> values-0001.part, journal.tail      at once
                         └──> journal.sqlite            in groups

A killed driver loses what no worker had given back: those items run again. A machine that loses its power may also lose what
came after the last SYNC_S (rhythm.py): rows whose values are not on the disk are forgotten when the run is opened again
(torn.py). Everything else that does not fit its checksum is damage, and is refused.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fourfold.system.seams as seams
from fourfold.errors import JournalCorrupt, JournalError, RunError
from fourfold.records import Parcel
from fourfold.runs.place import JOURNAL, PROGRAM, create_private
from fourfold.runs.rhythm import Rhythm
from fourfold.runs.seal import COMMAND, FUNCTION, Key, Seals, command_of, seals_of
from fourfold.runs.tables import STATEMENTS, WHERE, Done, FailedItem, checksum_of, connect, set_up
from fourfold.runs.tail import Row, Tail
from fourfold.runs.torn import rows_that_forget, torn_values
from fourfold.runs.values import ValueWriter, Where, part_path, read_parcel, seal_again

EVENTS_KEPT = 1000
"""Lines of the run's story that are kept. Fewer: less to read after many resumes. More: a larger journal."""

NO_DAMAGE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM,
}
"""What SQLite says when the disk or the machine has no room, or somebody else is busy there: the journal is as it was."""

PAGE = 256
"""Rows that are read at once when a run is resumed. Not measured."""


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
        self._rows: list[Row] = []
        self._tail, self._n_in_tail, self._n_commits = Tail(folder), 0, 0
        self._rhythm = Rhythm(time.monotonic())
        self._pid = os.getpid()
        self._is_full = False
        self._database: sqlite3.Connection | None = None
        self._seals: Seals | None = None
        try:
            with self._one_error("opened"):
                seams.hit("journal.open")
                if not (folder / JOURNAL).exists():
                    os.close(create_private(folder / JOURNAL))
                self._database = connect(folder / JOURNAL)
                self.is_new = set_up(self._database, folder)
                self._commit_the_tail()
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

    def _commit_the_tail(self) -> None:
        """What the driver before this one had no time to commit."""
        self._n_commits = self.facts().get("n_commits", 0)
        self._rows = self._tail.read(self._n_commits)
        if self._rows:
            self._n_in_tail = len(self._rows)
            self.note("killed", rows=len(self._rows))
            self._commit_rows()

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
            is_outside = isinstance(error, OSError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in NO_DAMAGE
            if (what != "written" and not is_outside) or isinstance(error, sqlite3.IntegrityError):
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
        self._check_that_it_is_ours()
        with self._one_error("written"):
            if self._values is None:
                number: int = self._one("select coalesce(max(number), 0) + 1 from part")
                while part_path(self.folder, number).exists():  # of a session that died before its first commit
                    number += 1
                self._values = ValueWriter(self.folder, number)
                self._rows.append(("new part", (number,)))
            where = self._values.write(parcel, self.seals.begin(what, self._next_value))
        self._next_value += 1
        self._rows.append(("value", (self._next_value - 1, what, *where)))
        return self._next_value - 1

    def add(self, done: Done) -> None:
        """Items have values. Replaces what was known of them."""
        self._rows.append(("done", (*done, checksum_of(done))))
        for statement in ("not failed", "ended") if self._has_loose_items else ():
            self._rows.append((statement, (done.first, done.first + done.n_items - 1)))

    def add_failure(self, failed: FailedItem) -> None:
        """An item has no value."""
        self._has_loose_items = True
        plain = [storable(field) if isinstance(field, str) else field for field in failed]
        self._rows += [("failed", (*plain,)), ("ended", (failed.item, failed.item))]

    def start(self, items: list[int]) -> None:
        """Items are about to run, and must never run twice: committed at once, to the disk itself.

        Raises:
            JournalError: There is no room.
        """
        if not self._is_full:
            self._is_full = True
            self.database.execute("pragma synchronous = full")
        self._has_loose_items = True
        self._rows += [("started", (item,)) for item in items]
        self.commit()

    def forget_start(self, items: list[int]) -> None:
        """They were about to run, and did not."""
        self._rows += [("ended", (item, item)) for item in items]

    def note(self, kind: str, **data: Any) -> None:
        """A line of the run's story."""
        self._rows += [("event", (time.time(), kind, json.dumps(data))), ("newest events", (EVENTS_KEPT,))]

    def tell(self, **facts: Any) -> None:
        """Facts about the run, as JSON."""
        self._rows += [("told", (name, json.dumps(fact))) for name, fact in facts.items()]

    def beat(self, must_keep: bool = True) -> None:
        """Make what was written outlive this process, and commit it when it is time.

        Unless it must, it does so only while lines take no more than their share of the time.

        Raises:
            JournalError: There is no room.
        """
        if not self._has_something_to_write():
            return
        now = time.monotonic()
        if self._rhythm.is_time_to_commit(now):
            self.commit()
        elif len(self._rows) > self._n_in_tail and (must_keep or self._rhythm.is_time_for_a_line(now)):
            self._tell_the_tail(now)

    def _tell_the_tail(self, begin: float) -> None:
        """Values first, then what speaks of them."""
        with self._one_error("written"):
            if self._values is not None:
                self._values.flush()
            self._tail.append(self._n_commits, self._rows[self._n_in_tail :])
        self._n_in_tail = len(self._rows)
        self._rhythm.told(begin, time.monotonic())

    def _has_something_to_write(self) -> bool:
        return bool(self._rows) and self._is_ours()

    def _is_ours(self) -> bool:
        """Not in a fork of the driver, which may live on and end in the middle of a call: it writes nothing."""
        return os.getpid() == self._pid

    def _check_that_it_is_ours(self) -> None:
        if not self._is_ours():
            raise JournalError(
                f"the run {self.folder} is recorded by process {self._pid}, and this is a fork of it: make the call after the "
                "fork, in one of them"
            )

    def commit(self) -> None:
        """Values first, then what speaks of them: from here on it is in the journal.

        Raises:
            JournalError: There is no room.
        """
        if not self._has_something_to_write():
            return
        begin = time.monotonic()
        with self._one_error("written"):
            if self._values is not None:
                if self._rhythm.is_time_to_sync(begin):
                    self._rows.append(self._sync(self._values))
                self._values.flush()
            self._commit_rows()
        self._rhythm.committed(begin, time.monotonic())

    def _commit_rows(self) -> None:
        seams.hit("journal.commit")
        os.stat(self.folder / JOURNAL)  # what is written to a file that was removed is lost in silence
        database, n_commits = self.database, self._n_commits + 1
        try:
            database.execute("begin immediate")
            for name, values in self._rows:
                database.execute(STATEMENTS[name], values)
            database.execute(STATEMENTS["told"], ("n_commits", json.dumps(n_commits)))
            database.execute("commit")
        except BaseException:  # Ctrl-C too: the rows are written by the next commit, again if need be
            if database.in_transaction:
                database.execute("rollback")
            raise
        self._n_commits, self._n_in_tail = n_commits, 0
        self._rows.clear()
        self._tail.rewind()

    def _sync(self, values: ValueWriter) -> tuple[str, tuple[Any, ...]]:
        self._rhythm.synced(time.monotonic())
        return "synced", (values.sync(), values.number)

    def close(self, last_words: bool = True) -> None:
        """Commit what is there and close all files.

        Raises:
            JournalError: There is no room; all is closed nevertheless.
        """
        try:
            if last_words and self._database is not None:
                self._close_values()
                self.commit()
                if self._is_ours():
                    with self._one_error("written"):
                        self._tail.remove()
        except JournalError:
            with suppress(OSError, sqlite3.Error):
                # Those whose values did not get into the file are forgotten when the run is opened again.
                self._commit_rows()
            raise
        finally:
            if self._values is not None:
                self._values.close()
                self._values = None
            self._tail.close()
            if self._database is not None:
                self._database.close()
                self._database = None

    def _close_values(self) -> None:
        if self._values is not None and self._has_something_to_write():
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

    def n_done_of_first(self, n_items: int) -> int:
        """How many of the first items are done."""
        with self._one_error("read"):
            query = "select coalesce(sum(min(n_items, ? - first)), 0) from done where first < ?"
            return int(self._one(query, n_items, n_items))

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
                if checksum != checksum_of(row):
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
            self._rows.append(("sealed", (seal, id)))
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
        self._rows.append(("none failed", ()))
        self.commit()
        return count

    def parts(self) -> set[int]:
        """The numbers of the files of values."""
        return {number for (number,) in self.database.execute("select number from part")}

    def _forget_torn_values(self) -> None:
        for value in torn_values(self.database, self.folder):
            self._rows += rows_that_forget(self.database, value)
            self._has_loose_items = True
        if self._rows:
            self.note("torn", rows=len(self._rows))
            self.commit()


def storable(text: str) -> str:
    """The text without halves of letters, as names of files in another encoding have them: SQLite stores UTF-8 only."""
    return text.encode("utf-8", "backslashreplace").decode()
