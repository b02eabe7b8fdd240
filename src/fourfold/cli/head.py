"""`fourfold head` and `fourfold describe`: the first rows of a table, and what its columns are like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors
from fourfold.cli.storage import StorageOption, storage_for

if TYPE_CHECKING:
    from fourfold.workloads.dataset import Dataset


def head_command(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, globs, folders or URLs.")],
    n: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 5,
    columns: Annotated[str | None, typer.Option(help="Only these columns, with commas between.")] = None,
    format: Annotated[str | None, typer.Option(help="parquet, csv, jsonl or text; by default by extension.")] = None,
    storage_option: StorageOption = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Print the first rows of a table, with the type of each column. No more is read than they need."""
    with one_line_errors(show_traceback):
        found = _scanned(inputs, columns, format, storage_option).head(n, batch_format="arrow")
        _print([[f"{field.name}\n{field.type}", *map(_cell, found[field.name].to_pylist())] for field in found.schema])


def describe_command(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, globs, folders or URLs.")],
    columns: Annotated[str | None, typer.Option(help="Only these columns, with commas between.")] = None,
    format: Annotated[str | None, typer.Option(help="parquet, csv, jsonl or text; by default by extension.")] = None,
    storage_option: StorageOption = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, serial, threads, processes, spark, ray, dask, or an address.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="How many workers.")] = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Print figures of each column: nulls, distinct values (to 1.6 %), mean, quantiles (to 1 %). One pass over all rows."""
    with one_line_errors(show_traceback):
        given: dict[str, Any] = {"engine": engine, "workers": workers}
        dataset = _scanned(inputs, columns, format, storage_option)
        found = dataset.describe("arrow", **{name: value for name, value in given.items() if value is not None})
        figures = found.column_names[1:]  # as many for a thousand columns as for one: they are the lines
        _print([[found.column_names[0], *figures], *([_cell(value) for value in row.values()] for row in found.to_pylist())])


def _scanned(inputs: list[str], columns: str | None, format: str | None, storage_option: list[str] | None) -> Dataset:
    from fourfold.workloads.scan import scan

    names, storage = columns.split(",") if columns else None, storage_for(inputs, storage_option)
    found: Dataset = scan(inputs, columns=names, format=format, storage_options=storage)
    return found


def _print(columns: list[list[str]]) -> None:
    """Print columns of cells, the first cell of each in bold: several tables where one is too wide for the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # not str: brackets and colons in it would be markup and emoji

    console = Console()
    room = console.width if console.is_terminal else None
    if room is None:
        console.width = 1 << 20  # a pipe has no width: nothing is cut
    while columns:
        shown = columns if room is None else columns[: _n_that_fit(columns, room)]
        table = Table()
        for column in shown:
            table.add_column(Text(column[0]))
        for row in zip(*(column[1:] for column in shown), strict=True):
            table.add_row(*map(Text, row))
        console.print(table)
        columns = columns[len(shown) :]


def _n_that_fit(columns: list[list[str]], room: int) -> int:
    """How many columns, and at least one, have room in a line."""
    from rich.cells import cell_len

    n_fit, used = 0, 1
    for column in columns:
        used += 3 + max(cell_len(line) for cell in column for line in cell.split("\n"))
        if used > room:
            break
        n_fit += 1
    return max(1, n_fit)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)
