"""One call with `run=`: which items need not run again, and what has finished.

source ──item──> seen? ── yes: its recorded values come back, when their turn has come
                   └───── no:  it runs ──> add, fail ──> journal
"""

import contextlib
import logging
import os
import shlex
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import fourfold.system.seams as seams
from fourfold.addresses import credentials_kept_out, without_kept_out
from fourfold.errors import JournalError, RunChanged
from fourfold.records import Failure, Parcel
from fourfold.runs.digest import DIGEST_BYTES
from fourfold.runs.fingerprint import item_digest
from fourfold.runs.identity import Identity
from fourfold.runs.journal import Journal
from fourfold.runs.place import PROGRAM, Lock, create_private, prepare
from fourfold.runs.recall import DoneRows, Recall
from fourfold.runs.seal import COMMAND, ERROR, FUNCTION, ITEM, VALUES, command_of, load_key
from fourfold.runs.tables import Done, FailedItem
from fourfold.system.interrupts import Shield
from fourfold.system.machine import STARTED_IN

UNKNOWN = bytes(DIGEST_BYTES)
"""Stands for the digest of an item that cannot be pickled: any other such item is taken for it."""

PROGRAM_BYTES = 64 << 20
"""Functions up to this size, with all that they hold, are kept for a replay. Larger: more is written at the start of a run."""


class Carriage(NamedTuple):
    """How values and exceptions become bytes and come back.

    `dump` takes the user's functions and classes along; `dump_here` names them, for values that come back to the same program.
    """

    dump: Callable[[Any], Parcel]
    dump_here: Callable[[Any], Parcel]
    load: Callable[[Parcel], Any]
    pickled: Callable[[BaseException], bytes | None]
    unpickled: Callable[[Any], BaseException | None]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is run: a later call must be the same to go on.

    Attributes:
        name: Of the function, for messages.
        kind: "map" or "reduce".
        parts: What is kept for a replay, by name: the function, `init`, `seed`.
        compared: What the values depend on, by the names that messages have for it.
        options: What the user asked for, to be shown.
        repeatable: False: an item that may have had effects must not run again.
        failures_stand: A recorded failure is the item's outcome; False: the item runs again.
    """

    name: str
    kind: str
    parts: Mapping[str, Any]
    compared: Mapping[str, Any]
    options: Mapping[str, str]
    repeatable: bool
    failures_stand: bool


class Recording:
    """Keeps one call in a folder. Open from its making until `close`.

    Args:
        path: The folder.
        subject: What is run.
        carriage: How values become bytes.

    Attributes:
        recall: Brings back what earlier calls have recorded.

    Raises:
        RunError: See `fourfold.errors`: the folder cannot be used, or was made by another call.
    """

    def __init__(self, path: str, subject: Subject, carriage: Carriage) -> None:
        self.path, self._subject, self._carriage = path, subject, carriage
        key = load_key()
        self.folder = prepare(path)
        self._lock: Lock | None = None
        self._journal: Journal | None = None
        self._digests: dict[int, bytes] = {}
        self._passed: deque[Done | FailedItem] = deque()
        self._warned = False
        self.n_passed = 0
        try:
            with Shield():
                self._lock = Lock(self.folder)
            self._journal = journal = Journal(self.folder, key)
            self._identity = Identity(journal, path)
            self._keeps_program = self._identity.meet(subject.kind, subject.compared)
            self._failed = {failed.item: failed for failed in journal.failures()}
            self._started = set(journal.started())
            self.n_recorded = journal.count("done")
        except BaseException:
            self.close("")
            raise
        self._rows = DoneRows(journal, is_empty=not self.n_recorded)
        self.recall = Recall(journal, carriage.load, carriage.unpickled, is_reduction=subject.kind == "reduce")

    @property
    def journal(self) -> Journal:
        """The open journal."""
        assert self._journal is not None
        return self._journal

    # ---- what runs ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The call is in order, and runs from now on.

        Raises:
            JournalError: There is no room.
        """
        journal, subject = self.journal, self._subject
        again = {
            "command": without_kept_out([sys.executable, *sys.orig_argv[1:]]),
            "folder": STARTED_IN,
            "path": [entry for entry in sys.path if isinstance(entry, str)],
        }
        if self._keeps_program:
            self._keep_program()
        journal.tell(
            **again,
            command_seal=journal.seals.of(COMMAND, command_of(again)),
            name=subject.name,
            state="running",
            options=dict(subject.options),
            pid=os.getpid(),
            host=socket.gethostname(),
            updated_at=time.time(),
            accept_changes=False,
        )
        journal.note("opened" if journal.is_new else "resumed", pid=os.getpid())
        journal.commit()

    def _keep_program(self) -> None:
        """Keep what runs, for `fourfold replay`; a function that cannot be pickled can be run but not replayed."""
        path = self.folder / PROGRAM
        try:
            with credentials_kept_out():
                parcel = self._carriage.dump(dict(self._subject.parts))
        except Exception:
            return
        if parcel.size_bytes > PROGRAM_BYTES:
            return
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        data = bytes(self._carriage.dump((parcel.head, [bytes(each) for each in parcel.buffers])).head)
        self.journal.tell(program_seal=self.journal.seals.of(FUNCTION, data))
        try:
            seams.hit("journal.program")
            with os.fdopen(create_private(path), "wb") as file:
                seams.hit("journal.program")
                file.write(data)
        except OSError as error:
            raise JournalError(f"{path} cannot be written: {error.strerror}") from error

    # ---- what need not run -------------------------------------------------------------------------------------------

    @property
    def n_failed(self) -> int:
        """Recorded failures that stand."""
        return len(self._failed) if self._subject.failures_stand else 0

    def has_first(self, n_items: int) -> bool:
        """Whether none of the first items need run again, as far as their numbers tell."""
        n_failed = sum(item < n_items for item in self._failed) if self._subject.failures_stand else 0
        return n_items <= self.n_recorded + n_failed and n_items <= self.journal.n_done_of_first(n_items) + n_failed

    def seen(self, index: int, item: Any) -> bool:
        """Whether the item at `index` need not run. Called for every item, in input order.

        Raises:
            RunChanged: Another item was recorded at this index.
            JournalCorrupt: The journal is damaged.
        """
        if not index:
            self._identity.meet_items(item)
        digest = item_digest(item)
        row = self._rows.row_of(index)
        if row is not None:
            at = (index - row.first) * DIGEST_BYTES
            self._compare(index, row.digests[at : at + DIGEST_BYTES], digest)
            self.n_passed += 1
            if index == row.first + row.n_items - 1:
                self._passed.append(row)
            return True
        failed = self._failed.get(index)
        if failed is not None:
            self._compare(index, failed.digest, digest)
            if self._subject.failures_stand or not self._subject.repeatable:
                self._passed.append(failed)
                return True
        elif index in self._started and not self._subject.repeatable:
            self._passed.append(self._of_unknown_end(index, item, digest))
            return True
        self._digests[index] = digest
        return False

    def _compare(self, index: int, recorded: bytes, now: bytes) -> None:
        if recorded != now:
            raise RunChanged(
                f"item {index} is not the item that the run {self.folder} recorded: the input has changed, or its order. Use "
                "another folder for the new input. (Items that hold a time, or something else that is new each time, never "
                "look the same.)"
            )

    def _of_unknown_end(self, index: int, item: Any, digest: bytes) -> FailedItem:
        message = (
            "the driver died while the item ran or was about to: it may have had effects, and idempotent=False forbids to "
            f"run it again. When you know that it had none, type: fourfold rerun {shlex.quote(self.path)} --failed"
        )
        failed = FailedItem(index, "indeterminate", "fourfold.errors.Indeterminate", message, "", "", "", 1, "", digest, 0, 0)
        failed = failed._replace(value=self._keep(item, ITEM))
        self.journal.add_failure(failed)
        return failed

    def values_so_far(self) -> Iterator[tuple[int, Any]]:
        """All recorded items that have a value, by their indices, in order.

        Raises:
            JournalCorrupt: The journal is damaged.
        """
        first = 0
        while rows := [row for row in self.journal.done_from(first) if row.first >= first]:
            for row in rows:
                yield from enumerate(self.recall.values(row), row.first)
            first = rows[-1].first + rows[-1].n_items

    def passed(self) -> Iterator[Done | FailedItem]:
        """What the source has gone past since the last time: items with recorded values, or recorded failures."""
        while self._passed:
            yield self._passed.popleft()

    def check_end(self, n_items: int) -> None:
        """The input had `n_items` items and has ended.

        Raises:
            RunChanged: More were recorded.
        """
        if self.n_passed < self.n_recorded:
            raise RunChanged(
                f"the run {self.folder} has recorded {self.n_recorded} items, and the input has only {n_items}: use another "
                "folder for the new input"
            )
        self.tell_total(n_items)

    # ---- what has happened -------------------------------------------------------------------------------------------

    def add(self, first: int, values: Sequence[Any]) -> None:
        """The items from `first` on have these values.

        Raises:
            JournalError: There is no room.
        """
        try:
            parcel = self._dump(values)
        except Exception as error:
            if len(values) > 1:
                for offset in range(len(values)):
                    self.add(first + offset, values[offset : offset + 1])
            else:
                self._not_kept(first, error)
            return
        value = self.journal.keep(parcel, VALUES)
        self.journal.add(Done(first, len(values), value, self._digests_of(first, len(values))))

    def add_partial(self, ranges: Sequence[tuple[int, int]], results: Sequence[Any]) -> None:
        """The items of these (first, count) ranges are in partial results of a reduction.

        Raises:
            JournalError: There is no room.
        """
        try:
            parcel = self._carriage.dump_here(list(results))
        except Exception as error:
            for first, count in ranges:
                for item in range(first, first + count):
                    self._not_kept(item, error)
            return
        value = self.journal.keep(parcel, VALUES)
        for first, count in ranges:
            self.journal.add(Done(first, count, value, self._digests_of(first, count)))

    def _dump(self, values: Sequence[Any]) -> Parcel:
        if any(isinstance(value, BaseException) and self._carriage.pickled(value) is None for value in values):
            raise TypeError("an exception among them could not be unpickled again")
        return self._carriage.dump_here(list(values))

    def _digests_of(self, first: int, count: int) -> bytes:
        return b"".join(self._digests.pop(index, UNKNOWN) for index in range(first, first + count))

    def _not_kept(self, item: int, error: Exception) -> None:
        """A value cannot be recorded: it would be computed again, unless that is forbidden."""
        digest = self._digests.pop(item, UNKNOWN)
        if not self._subject.repeatable:
            message = f"the item ended, and its value could not be recorded: {error}. idempotent=False forbids to run it again"
            name = "fourfold.errors.Indeterminate"
            self.journal.add_failure(FailedItem(item, "indeterminate", name, message, "", "", "", 1, "", digest, 0, 0))
        if not self._warned:
            self._warned = True
            logging.getLogger("fourfold").warning(
                "%s: the value of item %d cannot be pickled (%s): such values are not recorded, and would be computed again",
                self.path,
                item,
                error,
            )

    def fail(self, failure: Failure, item: Any) -> None:
        """An item has failed for good.

        Raises:
            JournalError: There is no room.
        """
        self.journal.add_failure(
            FailedItem(
                failure.index,
                failure.kind,
                failure.error_type,
                failure.message,
                failure.traceback,
                failure.place,
                failure.item,
                failure.attempts,
                failure.worker,
                self._digests.pop(failure.index, UNKNOWN),
                self._keep(self._carriage.pickled(failure.error), ERROR) if failure.error is not None else 0,
                self._keep(item, ITEM),
            )
        )

    def _keep(self, obj: Any, kind: int) -> int:
        """Keep something for later; 0 when it is nothing, or cannot be pickled."""
        if obj is None:
            return 0
        try:
            parcel = self._carriage.dump(obj)
        except Exception:
            return 0
        return self.journal.keep(parcel, kind)

    def start(self, indices: Sequence[int]) -> None:
        """Items are about to run. Only asked for when none may run twice.

        Raises:
            JournalError: There is no room: the items must not run.
        """
        self.journal.start(list(indices))

    def not_started(self, indices: Sequence[int]) -> None:
        """These were about to run, and did not."""
        self.journal.forget_start(list(indices))

    def tell_total(self, n_items: int | None) -> None:
        """How many items there are, when that is known."""
        self.journal.tell(total=n_items)

    def beat(self, must_keep: bool = True) -> None:
        """Make what is recorded outlive this process; unless it must, not more often than the time for it allows.

        Raises:
            JournalError: There is no room.
        """
        self.journal.beat(must_keep)

    def close(self, state: str) -> None:
        """The call has ended: "done", "failed", "interrupted", or "" when it never began.

        Raises:
            JournalError: The last results could not be written.
        """
        try:
            if self._journal is not None:
                if state:
                    self._journal.tell(state=state, updated_at=time.time())
                    self._journal.note(state)
                self._journal.close(last_words=bool(state))
        finally:
            self._journal = None
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    @property
    def hint(self) -> str:
        """What a person who stopped the call should know."""
        return f"what finished is recorded in {self.path}: the same call goes on from there"
