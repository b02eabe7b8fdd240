"""`fourfold head`: the first rows of a table, whatever its format."""

from __future__ import annotations

from typing import Annotated

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
        from rich.console import Console
        from rich.table import Table

        from fourfold.workloads.scan import scan

        dataset = scan(inputs, columns=columns.split(",") if columns else None, format=format)
        found = dataset.head(n, batch_format="arrow")
        table = Table(*(f"{field.name}\n{field.type}" for field in found.schema))
        for row in found.to_pylist():
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        Console(soft_wrap=False).print(table)
