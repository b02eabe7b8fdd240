"""Which items a run has on the disk, as the next driver will find it. The run itself is left as it is."""

import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path

from fourfold.runs import upkeep


def recorded_items(run: Path) -> set[int]:
    """The indices of the items that have values there; none where nothing was begun."""
    if not (run / "journal.sqlite").exists():
        return set()
    with tempfile.TemporaryDirectory() as room:
        copy = Path(shutil.copytree(run, Path(room, "run")))
        upkeep.change(copy)
        with contextlib.closing(sqlite3.connect(copy / "journal.sqlite")) as database:
            rows = database.execute("select first, n_items from done").fetchall()
    return {first + offset for first, count in rows for offset in range(count)}
