"""What `fourfold map --batch KIND` and `fourfold predict` have in common: a dataset into a folder, and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fourfold.cli.exits import SOME_FAILED, say
from fourfold.system.interrupts import telling_what_is_written

if TYPE_CHECKING:
    from fourfold.data.writing import Written
    from fourfold.workloads.dataset import Dataset


class Target(NamedTuple):
    """Where a dataset is written to, and how: see `Dataset.write`."""

    path: str
    format: str
    overwrite: bool
    order: bool
    storage_options: dict[str, Any]


def write_dataset(dataset: Dataset, to: Target, options: dict[str, Any], model: str | None = None) -> None:
    """Write a dataset into a folder and tell the end, and how often a model was loaded for it.

    Raises:
        SystemExit: With the code for it, when rows failed.
    """
    written = dataset.write(**to._asdict(), **options)
    with telling_what_is_written(written.path, lambda: True):
        _tell(written, to, model)
    if written.failures:
        raise SystemExit(SOME_FAILED)


def _tell(written: Written, to: Target, model: str | None) -> None:
    loads = f", {written.n_loads} loads of {model}" if model is not None else ""
    say(f"{to.path}: {written.n_rows:,} rows in {len(written.files)} files{loads}")
    say(written.report.verdict)
    if written.failures:
        first = written.failures[0]
        say(
            f"{len(written.failures):,} rows failed, kept in {written.failed_path}; the first: row {first.row} of "
            f"{first.path}: {first.error_type}: {first.message}"
        )


def map_batches(
    function: Any,
    inputs: list[str],
    format: str | None,
    kind: str,
    reading: dict[str, Any],
    to: Target,
    options: dict[str, Any],
) -> None:
    """Call a function with batches of the rows of files, and write what it gives into a folder."""
    from fourfold.workloads.scan import scan

    init = options.pop("init", ())
    rows = scan(inputs, format=format, storage_options=reading)
    write_dataset(rows.map_batches(function, init=init, batch_format=kind), to, options)
