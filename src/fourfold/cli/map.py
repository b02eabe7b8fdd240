"""`fourfold map`: a function over the rows of files, into a file.

    INPUT… ──divide/files──> items ──imap──> values ──aggregate/sinks──> OUT
              (file, line)  ─ ─ one per item, in order ─ ─ >  failures ──> OUT.failures.jsonl

Rows are read as workers ask for them and written as they come, in input order: memory does not grow with the
files. OUT and its list of failures appear at the end, whole, or not at all.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli.batches import Target, map_batches
from fourfold.cli.exits import SOME_FAILED, TracebackOption, one_line_errors, say
from fourfold.cli.storage import OrderOption, StorageOption, WriteStorageOption, storage_for_both
from fourfold.errors import FourfoldError, OptionError, UnwritableValue
from fourfold.system.interrupts import telling_what_is_written

if TYPE_CHECKING:
    from fourfold.aggregate.results import Stream
    from fourfold.aggregate.sinks import Sink
    from fourfold.divide.files import Place
    from fourfold.records import Failure, Report

KINDS_TOLD = 5
"""Kinds of failures (an error type at a line) that are told at the end. More: the reader scrolls; all are in the list."""

MESSAGE_CHARS = 200

Rows = Iterator[tuple["Place", object]]


class ItemKind(StrEnum):
    """What the items are: the rows of the files, or the paths of the files."""

    rows = "rows"
    paths = "paths"


class OnError(StrEnum):
    """What a failed item means."""

    collect = "collect"
    skip = "skip"
    raise_ = "raise"


@dataclass(frozen=True, slots=True)
class Tally:
    """What one run of the command did."""

    n_written: int
    n_failed: int
    n_nulled: int
    failures: list[tuple[int, str]]
    """How many failed with the same error at the same line, and the first of them; the most frequent first."""
    report: Report


def map_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="What to run on each item; modules in this folder are found. A class is built once per worker.",
            show_default=False,
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="jsonl, csv, parquet or text files (.gz too), folders, quoted globs, or - for stdin.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUT", help="File to write: .jsonl, .csv or .parquet.", show_default=False),
    ],
    format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="Read as jsonl, csv, parquet or text. (Default: by extension.)"),
    ] = None,
    items: Annotated[ItemKind, typer.Option(help="Items are the rows, or the paths of the files.")] = ItemKind.rows,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="Call it with tables instead: pandas, polars, arrow, numpy, pylist. OUT is a folder."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT when it is there.")] = False,
    order: OrderOption = True,
    storage_option: StorageOption = None,
    write_storage_option: WriteStorageOption = None,
    engine: Annotated[str | None, typer.Option(help="auto, serial, threads or processes. (Default: auto.)")] = None,
    workers: Annotated[int | None, typer.Option(help="How many. (Default: the cores that may be used.)")] = None,
    chunk: Annotated[str | None, typer.Option(metavar="N", help="Items per chunk, or auto. (Default: auto.)")] = None,
    on_error: Annotated[
        OnError,
        typer.Option(help="Leave a failed item out and list it (collect, skip), or stop (raise)."),
    ] = OnError.collect,
    max_failures: Annotated[
        str | None, typer.Option(metavar="N", help="Stop past this count (10) or fraction (0.01).")
    ] = None,
    retries: Annotated[int | None, typer.Option(help="Runs more for an item that raised.")] = None,
    run: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Record the run there: the same command goes on where it ended.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds per item.")] = None,
    memory: Annotated[int | None, typer.Option(help="Bytes per worker.")] = None,
    idempotent: Annotated[bool | None, typer.Option("--idempotent/--not-idempotent", help="May an item be run twice?")] = None,
    seed: Annotated[int | None, typer.Option(help="Root of every item's random numbers.")] = None,
    init: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Argument for a class; repeat for more. Passed as text.")
    ] = None,
    threads_per_worker: Annotated[int | None, typer.Option(help="BLAS and OpenMP threads per worker.")] = None,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="A bar on a terminal, a line now and then elsewhere.")
    ] = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Run a function on every row of files and write what it returns.

    A dict becomes a row with columns, anything else a bare value. Failed items are left out of OUT and listed,
    with file, line and traceback, in OUT.failures.jsonl; the exit code is then 3.

    With --batch it is called with tables of many rows, and OUT is a folder of Parquet files: see docs/preprocess.md.

    Example: fourfold map features:length texts.jsonl -o lengths.csv
    """
    again = "the same command starts again" if run is None else f"what finished is in {run}; go on: fourfold resume {run}"
    with one_line_errors(show_traceback, f"interrupted: {output} was not written; {again}"):
        options = {
            "engine": engine,
            "workers": workers,
            "chunk": _number("--chunk", chunk),
            "on_error": "raise" if on_error is OnError.raise_ else "collect",
            "max_failures": _number("--max-failures", max_failures),
            "retries": retries,
            "timeout": timeout,
            "memory": memory,
            "idempotent": idempotent,
            "seed": seed,
            "init": tuple(init) if init else None,
            "threads_per_worker": threads_per_worker,
            "progress": progress,
            "run": run,
        }
        given = {name: value for name, value in options.items() if value is not None}
        if batch is not None:
            if items is not ItemKind.rows:
                raise OptionError("--batch takes rows: leave --items out")
            reading, writing = storage_for_both(inputs, output, storage_option, write_storage_option)
            to = Target(output, "parquet", overwrite, order, writing)
            map_batches(_load(target), inputs, format, batch, reading, to, given)
            return
        if storage_option or write_storage_option or not order:
            raise OptionError(
                "--storage-option, --write-storage-option and --no-order are for --batch: without it, inputs and OUT are "
                "files of this machine, and rows stay in order"
            )
        rows = _open_inputs(inputs, format, items)
        _check_free(output, overwrite)
        before = _file_at(output)
        with telling_what_is_written(output, lambda: _file_at(output) != before):
            tally = map_rows(_load(target), rows, output, given)
            _tell(tally, output)
    if tally.n_failed:
        raise SystemExit(SOME_FAILED)


def _number(option: str, text: str | None) -> int | float | str | None:
    if text is None or text == "auto":
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise OptionError(f"{option} {text}: not a number")


def _load(target: str) -> Callable[..., Any]:
    from fourfold.cli.target import load_function

    return load_function(target)


def _open_inputs(inputs: list[str], format: str | None, items: ItemKind) -> Rows:
    """The items of all inputs, lazily, each with its place; wrong names are errors now."""
    from fourfold.divide.files import STDIN, Place, find_files, find_paths, read_rows

    if items is ItemKind.rows:
        files = find_files(inputs, format)
        return (row for file in files for row in read_rows(file))
    if format is not None:
        raise OptionError("--format says how rows are read, and --items paths reads none: leave one out")
    if STDIN in inputs:
        raise OptionError("--items paths wants names: for a list of paths on stdin use - --format text")
    return ((Place(path), path) for path in find_paths(inputs))


def failures_path(output: str) -> str:
    """Where the failures of a run into `output` are listed."""
    return f"{output}.failures.jsonl"


def _check_free(output: str, overwrite: bool) -> None:
    if os.path.isdir(output):
        raise OptionError(f"{output!r} is a folder; -o wants a file, e.g. {os.path.join(output, 'out.jsonl')!r}")
    there = [path for path in (output, failures_path(output)) if os.path.exists(path)]
    if there and not overwrite:
        raise OptionError(f"{there[0]!r} is there already: choose another -o, or add --overwrite to replace it")


def _file_at(path: str) -> tuple[int, int] | None:
    """Which file it is: another one when it was replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def map_rows(function: Callable[..., Any], rows: Rows, output: str, options: dict[str, Any]) -> Tally:
    """Run `function` on the rows and put what it returns into `output`.

    Raises:
        FourfoldError: nothing was published; with `on_error="raise"` also the function's own exception.
    """
    from fourfold.aggregate.sinks import open_sink

    with ExitStack() as stack:
        sinks = []
        for path in (output, failures_path(output)):
            with _said_of(path):
                sink = open_sink(path)
            stack.callback(sink.discard)
            sinks.append(sink)
        out, failed = sinks
        tally = _stream(function, rows, out, failed, options)
        _finish(failed)
        _finish(out)
        # The list of failures goes first: OUT alone must mean that everything is in it.
        if tally.n_failed:
            with _said_of(failures_path(output)):
                failed.publish()
        with _said_of(output):
            out.publish()
        if not tally.n_failed:
            Path(failures_path(output)).unlink(missing_ok=True)
    return tally


def _stream(function: Callable[..., Any], rows: Rows, out: Sink, failed: Sink, options: dict[str, Any]) -> Tally:
    """Every value into `out` and every failure into `failed`, in input order."""
    from fourfold.compose import imap
    from fourfold.records import Failure

    places = Places()
    n_failed = 0
    alike: dict[tuple[str, str], list[Any]] = {}
    with closing(imap(function, places.noting(rows), **options)) as values, _telling_the_item(values, places):
        for index, value in enumerate(values):
            place = places.pop()
            if isinstance(value, Failure):
                _write(failed, index, _failure_row(value, place), place)
                told = alike.setdefault((value.error_type, value.place), [0, _told(value, place)])
                told[0] += 1
                n_failed += 1
            else:
                _write(out, index, value, place)
        report = values.report
    failures = sorted(((count, first) for count, first in alike.values()), key=lambda each: -each[0])
    return Tally(places.n_popped - n_failed, n_failed, out.n_nulled, failures, report)


def _told(failure: Failure, place: Place) -> str:
    return " ".join(f"{place}: {failure.error_type}: {failure.message}".split())[:MESSAGE_CHARS]


class Places:
    """Where each item was read, from the time it is read until its outcome is there."""

    def __init__(self) -> None:
        self._waiting: deque[Place] = deque()
        self.n_popped = 0

    def noting(self, rows: Rows) -> Iterator[object]:
        """The items of `rows`; their places are kept aside."""
        for place, item in rows:
            self._waiting.append(place)
            yield item

    def pop(self) -> Place:
        """The place of the next item in input order."""
        self.n_popped += 1
        return self._waiting.popleft()

    def of(self, index: int) -> Place:
        """The place of an item whose outcome is not there yet."""
        return self._waiting[index - self.n_popped]


@contextmanager
def _telling_the_item(values: Stream, places: Places) -> Iterator[None]:
    """An item's own exception, raised under `on_error="raise"`, says where the item was read."""
    try:
        yield
    except Exception as exc:
        for failure in values.failures:
            if failure.error is exc:
                exc.add_note(f"read from {places.of(failure.index)}")
        raise


def _write(sink: Sink, index: int, value: object, place: Place) -> None:
    """Errors of writing say where the item was read."""
    try:
        with _said_of(sink.path):
            sink.write(index, value)
    except UnwritableValue as exc:
        raise UnwritableValue(f"{place}: {exc}") from exc


def _finish(sink: Sink) -> None:
    with _said_of(sink.path):
        sink.finish()


@contextmanager
def _said_of(path: Path | str) -> Iterator[None]:
    """What the system has against a file is said in one line.

    Raises:
        FourfoldError: It cannot be written.
    """
    try:
        yield
    except OSError as exc:
        raise FourfoldError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def _failure_row(failure: Failure, place: Place) -> dict[str, object]:
    where = {"source": place.source, **({place.unit: place.number} if place.unit else {})}
    return {
        "index": failure.index,
        **where,
        "kind": failure.kind,
        "error_type": failure.error_type,
        "message": failure.message,
        "item": failure.item,
        "attempts": failure.attempts,
        "place": failure.place,
        "traceback": failure.traceback,
    }


def _tell(tally: Tally, output: str) -> None:
    """The end of the story, on stderr."""
    say(f"{output}: {tally.n_written:,} of {tally.n_written + tally.n_failed:,} items written")
    if tally.n_failed:
        if len(tally.failures) == 1:
            say(f"{tally.n_failed:,} failed, listed in {failures_path(output)}; the first: {tally.failures[0][1]}")
        else:
            say(f"{tally.n_failed:,} failed, listed in {failures_path(output)}:")
        for count, first in tally.failures[:KINDS_TOLD] if len(tally.failures) > 1 else ():
            say(f"  {count:,} x {first}")
        if len(tally.failures) > KINDS_TOLD:
            say(f"  and {len(tally.failures) - KINDS_TOLD} other kinds")
    if tally.n_nulled:
        say(f"{tally.n_nulled:,} numbers were NaN or infinite, which JSON cannot hold: they are null")
    say(tally.report.verdict)
