"""What people read of a run: its state, its failures, what happened. Nothing is unpickled and nothing is changed."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.errors import JournalError, OptionError
from fourfold.records import Parcel
from fourfold.runs.place import JOURNAL, PROGRAM, holder_of, is_held
from fourfold.runs.seal import COMMAND, FUNCTION, ITEM, VALUES, Key, Seals, changed, command_of, is_right, seals_of
from fourfold.runs.tables import WHERE, FailedItem, check_version, reading
from fourfold.runs.values import Where, read_parcel

DEPTH = 3
"""How many folders deep runs are looked for. Less: runs in subfolders are not found. More: a long search in a large tree."""


@dataclass(frozen=True, slots=True)
class Story:
    """One run, as its journal has it.

    `state` is "running", "done", "failed" (an item or the call), "interrupted" (Ctrl-C), "stopped" (nobody wanted the rest),
    or "died" (its driver is gone without a word).
    """

    folder: str
    name: str
    kind: str
    state: str
    n_done: int
    n_failed: int
    total: int | None
    created_at: float
    updated_at: float
    options: dict[str, str]
    command: list[str]
    working_folder: str
    path: list[str]
    driver_pid: int | None

    @property
    def is_open(self) -> bool:
        """Whether items are left that have no outcome, as far as anybody knows."""
        return self.state != "done" and (
            self.total is None or self.n_done + self.n_failed < self.total or self.state == "failed"
        )


def open_run(path: str) -> Path:
    """The folder of a run that somebody names.

    Raises:
        OptionError: It is none.
    """
    folder = Path(path)
    if (folder / JOURNAL).is_file():
        return folder
    near = [str(run) for run in find_runs(folder)] if folder.is_dir() else []
    hint = f"; there are runs in {', '.join(near[:5])}" if near else "; `fourfold runs` lists those below this folder"
    raise OptionError(f"{path} is no run{hint}")


def find_runs(folder: Path, closed: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """The runs in a folder and up to DEPTH below it, by name.

    Args:
        folder: Where to look.
        closed: None, or told of each folder that cannot be looked into.
    """
    for root, folders, files in os.walk(folder, onerror=closed):
        if JOURNAL in files:
            yield Path(root)
        deep = len(Path(root).relative_to(folder).parts) >= DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))


def story_of(folder: Path) -> Story:
    """Read the story of one run.

    Raises:
        JournalError: It cannot be read.
    """
    with reading(folder) as database:
        facts: dict[str, Any] = {}
        n_done = n_failed = 0
        if database is not None:
            facts = {name: json.loads(text) for name, text in database.execute("select name, value from run")}
            (n_done,) = database.execute("select coalesce(sum(n_items), 0) from done").fetchone()
            (n_failed,) = database.execute("select count(*) from failure").fetchone()
    state = facts.get("state", "died")
    if state == "running" and not is_held(folder):
        state = "died"
    holder = holder_of(folder) if state == "running" else None
    return Story(
        folder=str(folder),
        name=facts.get("name", "?"),
        kind=facts.get("kind", "?"),
        state=state,
        n_done=n_done,
        n_failed=n_failed,
        total=facts.get("total"),
        created_at=facts.get("created_at", 0.0),
        updated_at=max([facts.get("updated_at", 0.0), *(path.stat().st_mtime for path in folder.glob(f"{JOURNAL}*"))]),
        options=facts.get("options", {}),
        command=facts.get("command", []),
        working_folder=facts.get("folder", ""),
        path=facts.get("path", []),
        driver_pid=holder["pid"] if holder else None,
    )


def may_go_on(folder: Path) -> bool:
    """Whether a run is recorded in a folder that has not come to its end, as far as anybody can tell."""
    try:
        return (folder / JOURNAL).exists() and story_of(folder).state != "done"
    except (JournalError, OSError):
        return True


def failures_of(folder: Path) -> list[FailedItem]:
    """The failed items of a run, by index: text and numbers only.

    Raises:
        JournalError: It cannot be read.
    """
    with reading(folder) as database:
        return [FailedItem(*row) for row in database.execute("select * from failure order by item")] if database else []


@contextmanager
def _sealed(folder: Path, key: Key) -> Iterator[tuple[sqlite3.Connection, dict[str, Any], Seals] | None]:
    """Look into a run that is about to be loaded; None: nothing is in it yet."""
    with reading(folder) as database:
        facts = dict(database.execute("select name, value from run")) if database else {}
        if database is None or "command" not in facts:
            yield None
            return
        check_version(database.execute("pragma user_version").fetchone()[0], folder)
        facts = {name: json.loads(text) for name, text in facts.items()}
        yield database, facts, seals_of(key, facts, folder)


def check_command(folder: Path, key: Key) -> None:
    """Check that the command of a run, its folder and its import path are those that were recorded with this key.

    Raises:
        JournalError: It cannot be read.
        UntrustedRun: They are not.
    """
    with _sealed(folder, key) as found:
        if found is not None:
            _, facts, seals = found
            if not is_right(facts.get("command_seal"), seals.of(COMMAND, command_of(facts))):
                raise changed(folder / JOURNAL, "the command of the run")


def read_item(folder: Path, value: int, key: Key, what: str) -> Parcel:
    """Read the parcel of a failed item, as bytes; `what` names it in an error.

    Raises:
        JournalError: The journal cannot be read.
        JournalCorrupt: The parcel is not what was written.
        UntrustedRun: It is not what was recorded with this key.
    """
    with _sealed(folder, key) as found:
        if found is None:
            raise JournalError(f"{folder} has nothing in it")
        database, _, seals = found
        where = Where(*database.execute(WHERE, (value,)).fetchone())
    return read_parcel(folder, where, seals.begin(ITEM, value), what)


def read_values(folder: Path, key: Key) -> Iterator[tuple[int, Parcel]]:
    """Read the parcels of items with values, as bytes, each with the index of its first item, in order.

    Somebody else may be writing the run: what is recorded so far is read.

    Raises:
        JournalError: The journal cannot be read.
        JournalCorrupt: A parcel is not what was written.
        UntrustedRun: It is not what was recorded with this key.
    """
    with _sealed(folder, key) as found:
        if found is None:
            return
        database, _, seals = found
        rows = database.execute("select first, n_items, value from done order by first").fetchall()
        for first, n_items, value in rows:
            where = Where(*database.execute(WHERE, (value,)).fetchone())
            what = f"the values of items {first} to {first + n_items - 1}"
            yield first, read_parcel(folder, where, seals.begin(VALUES, value), what)


def read_program(folder: Path, key: Key) -> bytes:
    """Read the function of a run, as bytes.

    Raises:
        OptionError: It was not kept.
        JournalError: It cannot be read.
        UntrustedRun: It is not what was recorded with this key.
    """
    path = folder / PROGRAM
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise OptionError(f"the function of {folder} could not be pickled, or was too large, so it was not kept") from None
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}") from error
    with _sealed(folder, key) as found:
        if found is None or not is_right(found[1].get("program_seal"), found[2].of(FUNCTION, data)):
            raise changed(path, "the function of the run")
    return data


def events_of(folder: Path) -> list[tuple[float, str, dict[str, Any]]]:
    """What happened, in order: seconds since 1970, the kind, and more about it.

    Raises:
        JournalError: It cannot be read.
    """
    with reading(folder) as database:
        rows = database.execute("select at, kind, data from event order by rowid") if database else ()
        return [(at, kind, json.loads(data)) for at, kind, data in rows]
