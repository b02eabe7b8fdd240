"""`fourfold clean`: what dead runs have left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fourfold.cli.exits import ERROR, TracebackOption, one_line_errors, printable, say, say_left_out
from fourfold.cli.storage import StorageOption, storage_for


def clean_command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to look, and below: a folder, or a URL.")] = ".",
    older_than: Annotated[
        float,
        typer.Option("--older-than", min=0, metavar="HOURS", help="Of a URL: runs of other machines count as dead then."),
    ] = 24.0,
    storage_option: StorageOption = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Remove what dead runs have left in a folder: half-written outputs, and values that no journal knows.

    An output that a run was about to replace when it was killed is put back, where it is gone. Where somebody has made
    another one meanwhile, both stay and are named: you have to decide, and the exit code is 1.
    And, from the folder for temporary files, code that calls on a cluster have unpacked on this machine and no worker uses,
    and rows that fits have kept there which were killed.
    What is in use is locked and stays, and so does everything that is recorded. Workers and shared memory need no
    cleaning: they end with their driver. What cannot be read is named, with its reason, and the exit code is 1 too.

    Of a URL, such as s3://bucket/scores: files that no manifest names, and whose run is dead. A store has no locks, so
    nobody can look whether a run of another machine lives: it counts as dead a day after its last file. Keys are taken from
    where the library of the store looks for them, or given by --storage-option.
    """
    with one_line_errors(show_traceback):
        storage = storage_for([folder], storage_option)
        if "://" in folder:
            _clean_store(folder, older_than, storage)
            return
        from fourfold.distribute.cargo import remove_unused
        from fourfold.errors import OptionError
        from fourfold.runs.upkeep import sweep
        from fourfold.workloads.fit import kept

        if not Path(folder).is_dir():
            raise OptionError(f"{folder} is no folder")
        n_removed = n_left = n_back = 0
        for swept in sweep(Path(folder)):
            if swept.is_back:
                say(f"{printable(swept.path)} is there again: a run was killed while it replaced it")
                n_back += 1
            elif swept.error is None:
                print(swept.path, flush=True)  # also when a later one ends the command
                n_removed += 1
            else:
                say_left_out(swept.path, swept.error)
                n_left += 1
        homes = remove_unused(0.0)
        fits = kept.sweep()
        for path in (*homes, *fits):
            print(path)
        left = f"; {n_left} stay as they are, for the reasons above" if n_left else ""
        say(f"{n_removed} files removed{left}" if n_removed or n_back else f"nothing to clean in {folder}{left}")
        if homes:
            say(f"{len(homes)} folders of unpacked code removed in {Path(homes[0]).parent}")
        if fits:
            say(f"{len(fits)} folders of rows removed in {Path(fits[0]).parent}")
        if n_left:
            raise SystemExit(ERROR)


def _clean_store(url: str, older_than: float, storage: dict[str, Any]) -> None:
    from fourfold.data.sweeping import sweep_store

    n_removed = 0
    for removed in sweep_store(url, older_than * 3600, storage):
        print(removed, flush=True)
        n_removed += 1
    say(f"{n_removed} files removed" if n_removed else f"nothing to clean in {url}")
