"""`fourfold fit`: an estimator is fitted to all rows of files, and written into a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli.exits import SOME_FAILED, TracebackOption, one_line_errors, say
from fourfold.cli.storage import StorageOption, storage_for

if TYPE_CHECKING:
    from fourfold.workloads.fit.fitting import Fitted

ENDINGS = (".joblib", ".pkl")


def fit_command(
    estimator: Annotated[
        str, typer.Argument(metavar="MODULE:ESTIMATOR", help="An estimator; or a class or function that gives one.")
    ],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, globs, folders or URLs.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUTPUT", help="The file to write: .joblib or .pkl; with --by a folder.")
    ],
    target: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that it learns to predict.")] = None,
    features: Annotated[str | None, typer.Option(help="Columns that it learns from, with commas between; the others.")] = None,
    weight: Annotated[str | None, typer.Option(metavar="COLUMN", help="A column of weights.")] = None,
    by: Annotated[str | None, typer.Option(help="Columns, with commas between: one model for each of their values.")] = None,
    min_rows: Annotated[int, typer.Option(metavar="N", help="With --by: a group of fewer rows has no model.")] = 1,
    fallback: Annotated[str | None, typer.Option(help="With --by: parent or global, for groups without a model.")] = None,
    format: Annotated[str | None, typer.Option(help="Of the input: parquet, csv, jsonl or text; by extension.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="The file may take the place of what is there.")] = False,
    storage_option: StorageOption = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, serial, threads, processes, spark, ray, dask, or an address.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="How many workers.")] = None,
    on_error: Annotated[
        str | None, typer.Option(help="raise, or skip: rows that fail are left out; with --by, groups, else told by status.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep finished passes in OUTPUT.run, and go on with what is there already.")
    ] = False,
    run: Annotated[str | None, typer.Option(metavar="FOLDER", help="The same, in this folder.")] = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Fit an estimator of scikit-learn to all rows, in parallel, and write it into a file, which appears whole or not at all.

    With --resume the first call begins, and the same command goes on when that was killed, interrupted or failed: passes over
    the rows that have finished are not made again.

    With --by OUTPUT is a folder with one model for each group; a group that cannot be fitted has none, and the exit code is 3.

    Example: fourfold fit models:pipe 'in/*.parquet' --target late -o model.joblib
    """
    if resume and run is None:
        run = f"{output}.run"
    again = f"what finished is in {run}: the same command goes on" if run else "with --resume the same command would go on"
    with one_line_errors(show_traceback, f"interrupted: {output} was not written; {again}"):
        from fourfold.errors import OptionError
        from fourfold.workloads.fit.fitting import fitted
        from fourfold.workloads.scan import scan

        if by is None and (min_rows != 1 or fallback is not None):
            raise OptionError(f"{'--fallback' if fallback else '--min-rows'} is for groups: name their columns with --by")
        path = free_path(output, overwrite) if by is None else _free_folder(output, overwrite)
        rows = scan(inputs, format=format, storage_options=storage_for(inputs, storage_option))
        given = {"engine": engine, "workers": workers, "run": run}
        options: dict[str, Any] = {key: value for key, value in {**given, "on_error": on_error}.items() if value is not None}
        chosen = None if features is None else features.split(",")
        if by is not None:
            models = rows.fit_groups(
                estimator_named(estimator),
                by.split(","),
                target,
                chosen,
                weight,
                min_rows=min_rows,
                fallback=fallback,
                **options,
            )
            models.save(path, overwrite)
            say(f"{output}: {models!r}")
            raise SystemExit(SOME_FAILED if models.failures or len(models) < len(models.summary()) else 0)
        found = fitted(rows._plan, estimator_named(estimator), target, chosen, weight, options)
        write(found.estimator, path)
        _tell(found, output)
    if found.failures:
        raise SystemExit(SOME_FAILED)


def free_path(output: str, overwrite: bool) -> Path:
    """The path of the output, where it can be written.

    Raises:
        OptionError: It cannot.
    """
    from fourfold.errors import OptionError

    path = Path(output)
    if path.suffix not in ENDINGS:
        raise OptionError(f"{output} is to end with {' or '.join(ENDINGS)}: that says how the estimator is written")
    if not path.parent.is_dir():
        raise OptionError(f"there is no folder {path.parent}: make it first")
    if path.is_dir() or (path.exists() and not overwrite):
        raise OptionError(f"{output} is there already: choose another name, or overwrite=True")
    return path


def _free_folder(output: str, overwrite: bool) -> Path:
    """The folder of models of groups, where it can be written: said before anything runs.

    Raises:
        OptionError: It cannot.
    """
    from fourfold.errors import OptionError
    from fourfold.workloads.groups.stored import check_replaced

    path = Path(output)
    if path.exists() and not overwrite:
        raise OptionError(f"{output} is there already: choose another name, or overwrite=True")
    check_replaced(path)
    return path


def estimator_named(target: str) -> Any:
    """What MODULE:ESTIMATOR names, or what it gives when it is called without arguments."""
    from fourfold.cli.target import load_object
    from fourfold.errors import OptionError

    found = load_object(target)
    if not isinstance(found, type) and hasattr(found, "fit"):
        return found
    if not callable(found):
        raise OptionError(
            f"{target} is of type {type(found).__name__}, and neither an estimator nor a function that gives one"
        )
    try:
        return found()
    except TypeError as error:
        raise OptionError(f"{target} cannot be called without arguments ({error}): name a function that can") from error


def write(estimator: Any, path: Path) -> None:
    """Write a file that is there whole or not at all."""
    import pickle

    import joblib

    from fourfold.aggregate.part_file import PartFile

    file = PartFile(path)
    try:
        if path.suffix == ".joblib":
            joblib.dump(estimator, file.handle)
        else:
            pickle.dump(estimator, file.handle, protocol=5)
        file.finish()
        file.publish()
    finally:
        file.discard()


def _tell(found: Fitted, output: str) -> None:
    say(f"{output}: {type(found.estimator).__name__} fitted to {found.n_rows:,} rows")
    if found.failures:
        first = found.failures[0]
        say(
            f"{len(found.failures):,} rows were left out; the first: row {first.row} of {first.path}: {first.error_type}: "
            f"{first.message}"
        )
