"""`fourfold predict`: a model over all rows of files."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fourfold.cli.batches import Target, write_dataset
from fourfold.cli.exits import TracebackOption, one_line_errors
from fourfold.cli.storage import OrderOption, StorageOption, WriteStorageOption, storage_for_both


def predict_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A file: .joblib, .pkl, .skops or .onnx; or MODULE:CLASS.")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, globs, folders or URLs.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUTPUT", help="The folder to write.")],
    method: Annotated[str, typer.Option(help="Of an estimator: predict, predict_proba, decision_function, …")] = "predict",
    keep: Annotated[str | None, typer.Option(help="Columns beside the prediction, with commas between; all of them.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the new column, or the beginning of the names of several.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a call; by default what is fastest.")] = None,
    format: Annotated[str | None, typer.Option(help="Of the input: parquet, csv, jsonl or text; by extension.")] = None,
    write_format: Annotated[str, typer.Option("--write-format", help="Of the output: parquet, csv or jsonl.")] = "parquet",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="The folder may take the place of what is there.")] = False,
    order: OrderOption = True,
    storage_option: StorageOption = None,
    write_storage_option: WriteStorageOption = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, serial, threads, processes, spark, ray, dask, or an address.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="How many workers.")] = None,
    on_error: Annotated[str, typer.Option(help="raise, or skip: rows that fail are kept in _failed/.")] = "raise",
    timeout: Annotated[float | None, typer.Option(help="Seconds per call of the model.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what finished in OUTPUT.run, and go on with what is there already.")
    ] = False,
    run: Annotated[str | None, typer.Option(metavar="FOLDER", help="The same, in this folder.")] = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Say of each row what a model makes of it, and write that as a folder, which appears whole or not at all.

    With --resume the first call begins, and the same command goes on when that was killed, interrupted or failed: what the
    model has said is not asked again. When all is done, it says so.

    Example: fourfold predict model.joblib 'in/*.parquet' -o scores/ --method predict_proba --keep id --resume
    """
    beside = resume and run is None
    if beside:
        run = f"{output.rstrip('/') or output}.run"
    again = f"what finished is in {run}: the same command goes on" if run else "with --resume the same command would go on"
    with one_line_errors(show_traceback, f"interrupted: {output} was not written; {again}"):
        from fourfold.data.files import is_url
        from fourfold.errors import OptionError, RunChanged
        from fourfold.workloads.scan import scan

        if beside and is_url(output):
            raise OptionError("--resume keeps its run beside OUTPUT, which is a store: give --run FOLDER")
        reading, writing = storage_for_both(inputs, output, storage_option, write_storage_option)
        given = {"engine": engine, "workers": workers, "timeout": timeout, "run": run}
        options: dict[str, Any] = {"on_error": on_error, **{key: value for key, value in given.items() if value is not None}}
        rows = scan(inputs, format=format, storage_options=reading).predict(
            _model(model),
            method=method,
            keep=keep.split(",") if keep is not None else None,
            name=name,
            batch_size=batch_size or "auto",
        )
        try:
            write_dataset(rows, Target(output, write_format, overwrite, order, writing), options, model)
        except RunChanged as error:
            error.add_note(f"the model, an option or the input is another one than before: to begin again, remove {run}")
            raise


def _model(text: str) -> Any:
    """A file, or the class that MODULE:CLASS names."""
    import os

    from fourfold.cli.target import load_function

    if ":" not in text or os.path.exists(text):
        return text
    return load_function(text)
