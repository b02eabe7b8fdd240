"""Values that did not reach the disk before the machine lost its power: what speaks of them is forgotten.

Up to where a file was synced, anything else than what was written is damage.
"""

import sqlite3
from pathlib import Path

from fourfold.errors import JournalCorrupt
from fourfold.runs.tail import Row
from fourfold.runs.values import Where, is_whole, part_path

YOUNG = "select id, part, offset, length_bytes, checksum, seal from value where part = ? and offset + length_bytes > ?"


def torn_values(database: sqlite3.Connection, folder: Path) -> list[int]:
    """The values that are not whole, of those that came after the last sync.

    Raises:
        JournalCorrupt: A file is shorter than it was when it was synced.
    """
    torn = []
    for number, synced in database.execute("select number, synced_bytes from part").fetchall():
        path = part_path(folder, number)
        size = path.stat().st_size if path.exists() else 0
        if size < synced:
            raise JournalCorrupt(
                f"{path} has {size} bytes and had {synced}: it was cut or replaced. Bring it back from a copy, or "
                "begin again in another folder"
            )
        young = database.execute(YOUNG, (number, synced)).fetchall()
        torn += [id for id, *where in young if not is_whole(folder, Where(*where))]
    return torn


def rows_that_forget(database: sqlite3.Connection, value: int) -> list[Row]:
    """What is to be written when a value is lost."""
    rows: list[Row] = []
    for first, n_items in database.execute("select first, n_items from done where value = ?", (value,)):
        # They have run, whatever is left of them: where nothing may run twice they are known as started.
        rows += [("started", (item,)) for item in range(first, first + n_items)]
    return [*rows, ("value lost", (value,)), ("failure lost", (value, value)), ("lost", (value,))]
