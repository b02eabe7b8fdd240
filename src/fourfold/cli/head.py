"""`fourfold head` and `fourfold describe`: the first rows of a table, and what its columns are like."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors


def head_command(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, globs, folders or URLs.")],
    n: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 5,
    columns: Annotated[str | None, typer.Option(help="Only these columns, with commas between.")] = None,
    format: Annotated[str | None, typer.Option(help="parquet, csv, jsonl or text; by default by extension.")] = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Print the first rows of a table, with the type of each column. No more is read than they need."""
    with one_line_errors(show_traceback):
        from fourfold.workloads.scan import scan

        found = scan(inputs, columns=columns.split(",") if columns else None, format=format).head(n, batch_format="arrow")
        _print(found, [f"{field.name}\n{field.type}" for field in found.schema])


def describe_command(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, globs, folders or URLs.")],
    columns: Annotated[str | None, typer.Option(help="Only these columns, with commas between.")] = None,
    format: Annotated[str | None, typer.Option(help="parquet, csv, jsonl or text; by default by extension.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, serial, threads, processes, spark, ray, dask, or an address.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="How many workers.")] = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Print figures of each column: nulls, distinct values (to 1.6 %), mean, quantiles (to 1 %). One pass over all rows."""
    with one_line_errors(show_traceback):
        from fourfold.workloads.scan import scan

        given: dict[str, Any] = {"engine": engine, "workers": workers}
        dataset = scan(inputs, columns=columns.split(",") if columns else None, format=format)
        found = dataset.describe("arrow", **{name: value for name, value in given.items() if value is not None})
        _print(found, found.column_names)


def _print(found: Any, headings: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings)
    for row in found.to_pylist():
        table.add_row(
            *("" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value) for value in row.values())
        )
    Console(soft_wrap=False).print(table)
