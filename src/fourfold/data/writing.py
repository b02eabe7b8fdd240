"""`Dataset.write`: a plan is run, its parts are collected, and the folder appears."""

import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourfold.data.commit import FAILED, Output
from fourfold.data.parts import EXTENSION, Part, WriteParts
from fourfold.data.plan import Plan
from fourfold.data.running import Run
from fourfold.data.steps import check_columns
from fourfold.data.work import FailedRow
from fourfold.errors import OptionError, OptionTypeError
from fourfold.fixed import Fixed
from fourfold.records import Report


class Written(Fixed):
    """What `Dataset.write` has written.

    Attributes:
        path: The folder.
        files: In it, in the order of the rows.
        n_rows: In all of them.
        failures: Rows that have no value, under `on_error="skip"` and `"collect"`.
        failed_path: A Parquet file with those rows as they were read, and why they failed; None when there are none.
        report: Figures and the verdict of the run; None when there was nothing left to do.
    """

    _hidden = ("files", "failures", "report")

    path: str
    files: list[str]
    n_rows: int
    failures: list[FailedRow]
    failed_path: str | None
    report: Report | None


def write(plan: Plan, path: Any, format: str, partition_by: Any, overwrite: bool, options: dict[str, Any]) -> Written:
    """See `Dataset.write`."""
    by = _columns(partition_by, plan)
    output = Output(_local(path), _run_id(options.get("run")), overwrite, _format(format))
    if options.get("run") is not None and output.is_published():
        return _as_written(output)
    run = Run(plan, WriteParts(str(output.staging), format, by), options, f"write {os.path.basename(os.fspath(path))}")
    try:
        output.open()
        parts = [part for _, done in run.pieces_done() for part in done.value or ()]
        output.check(parts)
        written = _publish(output, parts, run)
    except BaseException:
        if options.get("run") is None:
            output.discard()
        else:
            output.close()
        raise
    return written


def _publish(output: Output, parts: list[Part], run: Run) -> Written:
    n_rows = sum(part.n_rows for part in parts)
    failed = output.failed_rows(_dead_letters(run.failures)) if run.failures else None
    files = output.publish(parts, {"rows": n_rows, "failed": len(run.failures)})
    run.warn_of_failures()
    return Written(str(output.path), files, n_rows, run.failures, failed, run.report)


def _as_written(output: Output) -> Written:
    """An earlier call of this run has published the folder."""
    facts = output.manifest()
    failed = output.path / FAILED / "rows.parquet"
    return Written(
        str(output.path),
        [str(output.path / each["path"]) for each in facts["files"]],
        facts["rows"],
        [],
        str(failed) if failed.exists() else None,
        None,
    )


def _dead_letters(failures: Sequence[FailedRow]) -> Any:
    """Rows without a value as a table: what was read, then file, row, and why."""
    import pyarrow as pa

    rows = [failure.data for failure in failures if failure.data is not None]
    empty = rows[0].schema.empty_table() if rows else pa.table({})
    tables = []
    for failure in failures:
        row = (
            failure.data
            if failure.data is not None
            else pa.table([pa.nulls(1, each.type) for each in empty.schema], schema=empty.schema)
        )
        facts = {
            "_file": failure.path,
            "_row": failure.row,
            "_kind": failure.kind,
            "_error": f"{failure.error_type}: {failure.message}",
        }
        for name, value in facts.items():
            row = row.append_column(name, pa.array([value]))
        tables.append(row)
    return pa.concat_tables(tables)


def _columns(partition_by: Any, plan: Plan) -> tuple[str, ...]:
    by = [partition_by] if isinstance(partition_by, str) else list(partition_by or ())
    if not all(isinstance(name, str) for name in by):
        raise OptionTypeError(f"partition_by={partition_by!r} must be the name of a column, or a list of names")
    check_columns(by, plan.schema(), "partition_by")
    return tuple(by)


def _format(format: Any) -> str:
    if format not in EXTENSION:
        raise OptionError(f"format={format!r} cannot be written. Formats: {', '.join(EXTENSION)}")
    return str(format)


def _local(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        raise OptionTypeError(f"write({path!r}): give the path of a folder")
    text = os.fspath(path)
    if "://" in text:
        raise OptionError(
            f"write({text!r}): only folders of a file system that is mounted can be written, so that they appear at once"
        )
    return os.path.expanduser(text)


def _run_id(run: Any) -> str:
    """The same for each call of a recorded run: it goes on with the parts that are there."""
    if run is None:
        return secrets.token_hex(8)
    return hashlib.blake2b(str(Path(run).absolute()).encode(), digest_size=8).hexdigest()
