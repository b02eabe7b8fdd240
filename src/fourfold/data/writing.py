"""`Dataset.write`: a plan is run, its parts are collected, and the folder appears."""

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fourfold.addresses import Credentials
from fourfold.data.commit import Output
from fourfold.data.files import is_url
from fourfold.data.manifests import Wanted
from fourfold.data.merging import Merge, packed
from fourfold.data.parts import EXTENSION, Part, WriteParts
from fourfold.data.plan import Plan
from fourfold.data.running import Run
from fourfold.data.steps import check_columns
from fourfold.data.stores import StoreOutput
from fourfold.data.work import FailedRow, Tables
from fourfold.errors import OptionError, OptionTypeError, RunError
from fourfold.fixed import Fixed
from fourfold.records import Report
from fourfold.runs.place import output_id_of
from fourfold.system.interrupts import telling_what_is_written


class Written(Fixed):
    """What `Dataset.write` has written.

    Attributes:
        path: The folder, or its URL.
        files: In it, in the order of the rows of the input.
        n_rows: In all of them.
        failures: Rows that have no value, under `on_error="skip"` and `"collect"`.
        failed_path: A Parquet file with those rows as they were read, and why they failed; None when there are none.
        report: Figures and the verdict of the run.
        n_loads: How often models of `predict` were loaded: each once in every worker that came back with rows.
    """

    _hidden = ("files", "failures", "report")

    path: str
    files: list[str]
    n_rows: int
    failures: list[FailedRow]
    failed_path: str | None
    report: Report
    n_loads: int = 0


def write(
    plan: Plan,
    path: Any,
    format: str,
    partition_by: Any,
    overwrite: bool,
    order: bool,
    storage_options: Mapping[str, Any] | None,
    options: dict[str, Any],
) -> Written:
    """See `Dataset.write`."""
    by, to, storage = _columns(partition_by, plan), _address(path), Credentials(storage_options or {})
    if not isinstance(order, bool):
        raise OptionTypeError(f"order={order!r} must be True or False")
    if storage and not is_url(to):
        raise OptionError(f"storage_options= are for URLs, and {to} is a folder of this machine")
    run = Run(plan, Tables(), options, f"write {os.path.basename(to.rstrip('/'))}", to=to)
    output = _output(to, overwrite, _format(format, to), run, storage)
    run.gather = WriteParts(output.place, format, by)
    with telling_what_is_written(output.path, output.is_published):
        try:
            output.open()
            return _run(output, run, plan, format, order)
        finally:
            is_over = run.folder is None
            with contextlib.suppress(Exception):  # of a store that is dead: what ended the call is what is to be raised
                is_over = is_over or output.is_published()
            if is_over:
                output.discard()
            else:
                output.close()  # the parts stay for a call that goes on


def _run(output: Output | StoreOutput, run: Run, plan: Plan, format: str, order: bool) -> Written:
    with run.pieces_done() as pieces:
        parts = [part for _, done in pieces for part in done.value or ()]
        if output.is_published():
            return _as_written(output, run)
        output.check(parts)
        if not order:
            parts, groups = packed(parts)
            parts += run.call(Merge, (output.place, format), groups, "put small files together") if groups else []
        return _publish(output, parts, run, plan)


def _output(to: str, overwrite: bool, format: str, run: Run, storage: Credentials) -> Output | StoreOutput:
    folder = run.folder
    if folder is not None and not is_url(to):
        _check_apart(to, folder)
    wanted = Wanted(secrets.token_hex(8) if folder is None else output_id_of(folder), format, overwrite, folder)
    if is_url(to):
        return StoreOutput(to, wanted, storage)
    return Output(to, wanted, is_synced=folder is not None or run.is_elsewhere)


def _check_apart(to: str, run: str) -> None:
    """The one would be removed with the other, or be among its files."""
    folder, other = os.path.realpath(to), os.path.realpath(run)
    if os.path.commonpath([folder, other]) in (folder, other):
        raise OptionError(f"run={run!r} and the output {to} lie one in the other: give the run a folder beside it, {to}.run")


def _publish(output: Output | StoreOutput, parts: list[Part], run: Run, plan: Plan) -> Written:
    n_rows = sum(part.n_rows for part in parts)
    if not parts:
        schema = plan.schema()
        output.add_empty(schema.empty_table() if schema is not None else plan.of_no_rows())
    if run.failures:
        output.add_failed(_dead_letters(run.failures, plan.read_schema()))
    facts = output.publish(parts, {"rows": n_rows, "failed": len(run.failures)})
    run.warn_of_failures()
    return _written(output, facts, run)


def _as_written(output: Output | StoreOutput, run: Run) -> Written:
    """An earlier call of this run has published the folder.

    Raises:
        RunError: Some of its rows have run again since, and ended in another way.
    """
    facts = output.manifest()
    if facts["failed"] != len(run.failures):
        raise RunError(
            f"{output.path} was written by this run when {facts['failed']} rows had failed, and now that they have run again "
            f"{len(run.failures)} have: what is there was not changed. Write anew, with overwrite=True and another folder for "
            "run="
        )
    return _written(output, facts, run)


def _written(output: Output | StoreOutput, facts: dict[str, Any], run: Run) -> Written:
    files, failed = output.where(facts)
    return Written(
        str(output.path), files, facts["rows"], run.failures, failed if run.failures else None, run.report, run.n_loads
    )


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
    hidden = next((name for name in by if name.startswith(("_", "."))), None)
    if hidden is not None:
        raise OptionError(
            f"partition_by: folders {hidden}=… begin with {hidden[0]!r}, and readers of tables leave such folders alone: give "
            "the column another name first"
        )
    return tuple(by)


def _format(format: Any, to: str) -> str:
    if format not in EXTENSION:
        raise OptionError(f"format={format!r} cannot be written. Formats: {', '.join(EXTENSION)}")
    named = next((each for each, extension in EXTENSION.items() if to.lower().rstrip("/").endswith(extension)), format)
    if named != format:
        raise OptionError(
            f"{to!r} has the name of a {named} file, and what is written is a folder of {format} files: name a "
            f"folder; its files are {named} where that is the format that was asked for"
        )
    return str(format)


def _address(path: Any) -> str:
    """A URL, or the path of a folder of this machine."""
    if not isinstance(path, str | os.PathLike):
        raise OptionTypeError(f"write({path!r}): give the path of a folder, or a URL")
    text = os.fspath(path)
    scheme, found, rest = text.partition("://")
    if found and scheme in ("file", "local"):
        return rest
    return text if is_url(text) else os.path.expanduser(text)
