"""The two steps of the demo that write tables, each twice: as it is written with fourfold, and as the plain loop over files.

                ┌─ for file in files: function(pd.read_parquet(file)).to_parquet(…)    half before, half after it
files of a step ┤
                └─ scan(files).map_batches(…) | .predict(…) .write(folder)             cold: its workers start here
            equal, bit for bit?
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.cli.demo_train import timed

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from fourfold.data.writing import Written


@dataclass(frozen=True, slots=True)
class Step:
    """One step, both ways.

    Attributes:
        read: One of `files`, as a DataFrame.
        function: What the loop does with it.
        write: The same with fourfold: all files into `output`.
    """

    files: Sequence[Path]
    read: Callable[[Path], pd.DataFrame]
    function: Callable[[pd.DataFrame], pd.DataFrame]
    write: Callable[[], Written]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What both ways took, in this process, by the same clock. Their answers are equal."""

    n_files: int
    loop_s: float
    fourfold_s: float
    written: Written


def preprocess(data: Path, months: int, output: Path, options: dict[str, Any]) -> Step:
    """Features of each flight."""
    from fourfold.cli.demo_data import of_months
    from fourfold.cli.demo_flights import COLUMNS, Features
    from fourfold.workloads.scan import scan

    def read(file: Path) -> pd.DataFrame:
        import pandas as pd

        month = int(file.parent.name.removeprefix("month="))
        rows = pd.read_parquet(file, columns=[name for name in COLUMNS if name != "month"], partitioning=None)
        return rows.assign(month=month)

    def write() -> Written:
        flights = scan(of_months(data, months), columns=COLUMNS)
        written: Written = flights.map_batches(Features, init=(str(data),)).write(output, overwrite=True, **options)
        return written

    files = [data / "flights" / f"month={month}" / "flights.parquet" for month in range(1, months + 1)]
    return Step(files, read, Features(str(data)), write)


def predict(features: Path, model: Path, output: Path, options: dict[str, Any]) -> Step:
    """The chance of each flight to be late."""
    import joblib

    from fourfold.cli.demo_flights import IDENTITY
    from fourfold.workloads.scan import scan

    fitted = joblib.load(model)

    def function(rows: pd.DataFrame) -> pd.DataFrame:
        chances = fitted.predict_proba(rows[fitted.feature_names_in_])
        columns = {f"proba_{name}": chances[:, at] for at, name in enumerate(fitted.classes_)}
        return rows[list(IDENTITY)].assign(**columns)

    def read(file: Path) -> pd.DataFrame:
        import pandas as pd

        return pd.read_parquet(file)

    def write() -> Written:
        scores = scan(features).predict(model, method="predict_proba", keep=IDENTITY)
        written: Written = scores.write(output, overwrite=True, **options)
        return written

    return Step(sorted(features.glob("*.parquet")), read, function, write)


def compare(step: Step) -> Comparison:
    """Run a step both ways, and compare what was written.

    Half of the loop runs before fourfold and half after it, so that a machine that gets faster or slower meanwhile favours
    neither. What the loop writes stays in memory, which is no slower than a disk.

    Raises:
        Bug: The answers differ.
    """
    half = len(step.files) // 2
    before, before_s = timed(lambda: loop(step, step.files[:half]))
    written, fourfold_s = timed(step.write)
    after, after_s = timed(lambda: loop(step, step.files[half:]))
    check_equal(before + after, written.files)
    return Comparison(len(step.files), before_s + after_s, fourfold_s, written)


def loop(step: Step, files: Sequence[Path]) -> list[io.BytesIO]:
    """The plain loop: a file of Parquet for each file."""
    written = []
    for file in files:
        buffer = io.BytesIO()
        step.function(step.read(file)).to_parquet(buffer)
        written.append(buffer)
    return written


def check_equal(loop: Sequence[Any], fourfold: Sequence[str]) -> None:
    """Compare what is in the files of both, column by column, bit for bit.

    Raises:
        Bug: They differ; the message names the column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fourfold.errors import Bug

    ours, theirs = (pa.concat_tables([pq.ParquetFile(file).read() for file in files]) for files in (loop, fourfold))
    if ours.column_names != theirs.column_names or ours.num_rows != theirs.num_rows:
        raise Bug(f"the loop wrote {_shape(ours)}, and fourfold {_shape(theirs)}; please report this")
    for name in ours.column_names:
        if not _bits(ours[name].cast(theirs[name].type)).equals(_bits(theirs[name])):
            raise Bug(f"the loop and fourfold gave different values of {name}; please report this")


def _shape(table: pa.Table) -> str:
    return f"{table.num_rows:,} rows of {', '.join(table.column_names)}"


def _bits(column: pa.ChunkedArray) -> pa.Array:
    """A column such that equal means the same bits: as floats, 0.0 is equal to -0.0, and NaN not to itself."""
    import pyarrow as pa

    whole = column.combine_chunks()
    return whole.view(pa.int64()) if pa.types.is_float64(whole.type) else whole
