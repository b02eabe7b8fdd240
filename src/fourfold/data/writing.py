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
from fourfold.data.work import FailedRow, Tables
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
        report: Figures and the verdict of the run.
        n_loads: How many workers have loaded the models and built the classes of the steps, each once.
    """

    _hidden = ("files", "failures", "report")

    path: str
    files: list[str]
    n_rows: int
    failures: list[FailedRow]
    failed_path: str | None
    report: Report
    n_loads: int = 0


def write(plan: Plan, path: Any, format: str, partition_by: Any, overwrite: bool, options: dict[str, Any]) -> Written:
    """See `Dataset.write`."""
    by, name = _columns(partition_by, plan), os.path.basename(os.fspath(_local(path)))
    run = Run(plan, Tables(), options, f"write {name}")
    output = Output(_local(path), _run_id(run.folder), overwrite, _format(format), run.folder)
    run.gather = WriteParts(str(output.staging), format, by)
    is_there = output.is_published()
    try:
        output.open()
        parts = [part for _, done in run.pieces_done() for part in done.value or ()]
        if is_there:
            return _as_written(output, run)
        output.check(parts)
        return _publish(output, parts, run, plan)
    finally:
        if run.folder is None or output.is_published():
            output.discard()
        else:
            output.close()  # the parts stay for a call that goes on


def _publish(output: Output, parts: list[Part], run: Run, plan: Plan) -> Written:
    n_rows = sum(part.n_rows for part in parts)
    if not parts:
        schema = plan.schema()
        output.add_empty(schema.empty_table() if schema is not None else plan.prepare().of_no_rows())
    failed = output.failed_rows(_dead_letters(run.failures, plan.read_schema())) if run.failures else None
    files = output.publish(parts, {"rows": n_rows, "failed": len(run.failures)})
    run.warn_of_failures()
    return Written(str(output.path), files, n_rows, run.failures, failed, run.report, run.n_loads)


def _as_written(output: Output, run: Run) -> Written:
    """An earlier call of this run has published the folder."""
    facts = output.manifest()
    failed = output.path / FAILED / "rows.parquet"
    files = [str(output.path / each["path"]) for each in facts["files"]]
    return Written(str(output.path), files, facts["rows"], run.failures, str(failed) if run.failures else None, run.report)


def _dead_letters(failures: Sequence[FailedRow], schema: Any) -> Any:
    """Rows without a value as a table: what was read, of this schema, then file, row, and why."""
    import pyarrow as pa

    nulls = pa.table([pa.nulls(1, each.type) for each in schema], schema=schema)
    rows = pa.concat_tables([nulls if failure.data is None else failure.data for failure in failures])
    facts = {
        "_file": [failure.path for failure in failures],
        "_row": [failure.row for failure in failures],
        "_kind": [failure.kind for failure in failures],
        "_error": [f"{failure.error_type}: {failure.message}" for failure in failures],
    }
    for name, values in facts.items():
        at = rows.schema.get_field_index(name)  # they are there when rows that had failed before are fed back
        rows = rows.append_column(name, pa.array(values)) if at < 0 else rows.set_column(at, name, pa.array(values))
    return rows


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
