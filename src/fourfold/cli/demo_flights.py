"""The features of the demo: what one would compute to predict the delay of a flight before it leaves.

    flights ─┬─ where      great circle and bearing to the destination      airports
             ├─ when       time of day, of week and of year as circles, holidays, the sun
             ├─ weather    at the origin in the hour of departure: wind along and across the way
             └─ aircraft   its age and its seats                            planes
    -> the same rows: which flight it is, TARGET, then one column for each name in FEATURES

It is a class, so that each worker reads the tables of airports, weather and planes once. The features of a flight
depend on that flight only: they are the same however the rows are cut into batches.
"""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

IDENTITY = ("month", "time_hour", "carrier", "flight", "tailnum", "origin", "dest", "arr_delay")
"""Which flight it is, and its delay: columns of the source that stay beside the features, and beside the scores."""

TARGET, LATE, IN_TIME = "arrival", "late", "in_time"
"""What is predicted, and its two values; null of a flight that did not arrive."""

LATE_MIN = 15
"""From this delay on a flight counts as late, as in the statistics of the U.S. Department of Transportation."""

COLUMNS = (*IDENTITY, "day", "sched_dep_time")
"""What is read of the source; the month is in the names of the folders."""

FEATURES = (
    "distance_km",
    "bearing_sin",
    "bearing_cos",
    "minute_of_day_sin",
    "minute_of_day_cos",
    "day_of_year_sin",
    "day_of_year_cos",
    "weekday_sin",
    "weekday_cos",
    "days_to_next_holiday",
    "days_since_holiday",
    "sun_elevation_deg",
    "headwind_knots",
    "crosswind_knots",
    "temperature_c",
    "precipitation_mm",
    "visibility_km",
    "pressure_hpa",
    "pressure_change_3h_hpa",
    "aircraft_age_years",
    "aircraft_seats",
)

YEAR = 2013
_NEW_YEAR = date(YEAR, 1, 1)
MONTH_STARTS = np.array([(date(YEAR, month, 1) - _NEW_YEAR).days for month in range(1, 13)])
"""Days of the year before each month."""

HOLIDAYS = np.array(
    [
        (day - _NEW_YEAR).days
        for day in (
            date(2012, 12, 25),
            date(2013, 1, 1),
            date(2013, 1, 21),
            date(2013, 2, 18),
            date(2013, 5, 27),
            date(2013, 7, 4),
            date(2013, 9, 2),
            date(2013, 10, 14),
            date(2013, 11, 11),
            date(2013, 11, 28),
            date(2013, 12, 25),
            date(2014, 1, 1),
        )
    ]
)
"""Federal holidays, and those of the years beside it that are nearest to a day of 2013, in days since New Year."""

MEASURED = ("temp", "wind_dir", "wind_speed", "precip", "pressure", "visib")
"""What is read of the weather of an hour at an origin: °F, degrees where the wind comes from, miles per hour, inches, hPa,
miles."""

EARTH_RADIUS_KM = 6371.0088
_MINUTES_PER_DAY = 1440
_NEW_YORK_UTC_OFFSET_HOURS = -5


class Features:
    """The function of the batches: a DataFrame of COLUMNS goes in, one of IDENTITY, TARGET and FEATURES comes out.

    Args:
        folder: With the tables: see `demo_data`.
    """

    def __init__(self, folder: str) -> None:
        import pandas as pd

        airports = pd.read_parquet(f"{folder}/airports.parquet").set_index("faa")
        self._places = np.radians(airports[["lat", "lon"]])
        self._planes = pd.read_parquet(f"{folder}/planes.parquet").set_index("tailnum")[["year", "seats"]]
        self._weather = by_hour(pd.read_parquet(f"{folder}/weather.parquet"))

    def __call__(self, flights: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        day = MONTH_STARTS[flights["month"] - 1] + flights["day"].to_numpy() - 1
        clock = flights["sched_dep_time"].to_numpy()
        minute = clock // 100 * 60 + clock % 100  # 1345 is a quarter to two
        here_lat, here_lon = _found(self._places, flights["origin"])
        distance_km, bearing = way(here_lat, here_lon, *_found(self._places, flights["dest"]))
        built, seats = _found(self._planes, flights["tailnum"])
        columns = (
            distance_km,
            np.sin(bearing),
            np.cos(bearing),
            *calendar(day, minute),
            sun_elevation_deg(here_lat, here_lon, day, minute),
            *air(_found(self._weather, pd.MultiIndex.from_frame(flights[["origin", "time_hour"]])), bearing),
            YEAR - built,
            seats,
        )
        features = pd.DataFrame(np.stack(columns, axis=1), columns=FEATURES, index=flights.index)
        return pd.concat([flights[list(IDENTITY)].assign(**{TARGET: arrival(flights["arr_delay"])}), features], axis=1)


def arrival(delay_min: pd.Series) -> pd.Series:
    """LATE or IN_TIME; null where nobody knows."""
    import pandas as pd

    named = pd.Series(np.where(delay_min >= LATE_MIN, LATE, IN_TIME), delay_min.index, dtype="str")
    return named.where(delay_min.notna())


def _found(table: pd.DataFrame, keys: Any) -> Floats:
    """An array for each column of the table: its values at these keys, NaN where it has none."""
    found: Floats = table.reindex(keys).to_numpy(np.float64).T
    return found


def by_hour(weather: pd.DataFrame) -> pd.DataFrame:
    """MEASURED at an origin in an hour, the last one of a kind, and how the pressure has changed in the three hours before."""
    import pandas as pd

    weather = weather.drop_duplicates(["origin", "time_hour"], keep="last").set_index(["origin", "time_hour"])
    origin, hour = (weather.index.get_level_values(name) for name in weather.index.names)
    before = weather["pressure"].reindex(pd.MultiIndex.from_arrays([origin, hour - pd.Timedelta(hours=3)]))
    return weather[list(MEASURED)].assign(pressure_change=weather["pressure"].to_numpy() - before.to_numpy())


def way(from_lat: Floats, from_lon: Floats, to_lat: Floats, to_lon: Floats) -> tuple[Floats, Floats]:
    """Great-circle distance in km (haversine) and initial bearing in radians, clockwise from north; of angles in radians.

    Example:
        >>> kennedy, los_angeles = np.radians([40.639751, -73.778925]), np.radians([33.942536, -118.408075])
        >>> [round(float(figure), 3) for figure in way(*kennedy, *los_angeles)]
        [3974.205, -1.504]
    """
    d_lat, d_lon = to_lat - from_lat, to_lon - from_lon
    half = np.sin(d_lat / 2) ** 2 + np.cos(from_lat) * np.cos(to_lat) * np.sin(d_lon / 2) ** 2
    east = np.sin(d_lon) * np.cos(to_lat)
    north = np.cos(from_lat) * np.sin(to_lat) - np.sin(from_lat) * np.cos(to_lat) * np.cos(d_lon)
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(half)), np.arctan2(east, north)


def calendar(day: Integers, minute: Integers) -> tuple[Any, ...]:
    """Minute of day, day of year and weekday as points on circles; days to the next and since the last holiday.

    Args:
        day: Days since New Year.
        minute: Of the day.
    """
    turns = minute / _MINUTES_PER_DAY, day / 365, (day + _NEW_YEAR.weekday()) % 7 / 7
    circles = [circle(2 * math.pi * turn) for turn in turns for circle in (np.sin, np.cos)]
    following = np.searchsorted(HOLIDAYS, day)
    to_next = HOLIDAYS[following] - day
    return *circles, to_next, np.where(to_next == 0, 0, day - HOLIDAYS[following - 1])


def sun_elevation_deg(latitude: Floats, longitude: Floats, day: Integers, minute: Integers) -> Floats:
    """How high the sun stands, to about a degree.

    Source: Duffie and Beckman, Solar Engineering of Thermal Processes, equations 1.6.1 and 1.6.5.
    """
    declination = math.radians(23.45) * np.sin(2 * math.pi * (285 + day) / 365)
    solar_hour = minute / 60 - _NEW_YORK_UTC_OFFSET_HOURS + np.degrees(longitude) / 15
    hour_angle = 2 * math.pi * (solar_hour - 12) / 24
    height = np.sin(latitude) * np.sin(declination)
    height = height + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle)
    elevation: Floats = np.degrees(np.arcsin(height))
    return elevation


def air(weather: Floats, bearing: Floats) -> tuple[Floats, ...]:
    """Wind along and across the way, temperature, rain, sight, pressure and its change; NaN where nothing was measured."""
    fahrenheit, wind_from_deg, wind_mph, rain_in, pressure_hpa, sight_mi, pressure_change_hpa = weather
    angle = np.radians(wind_from_deg) - bearing
    wind_knots = wind_mph * 0.868976
    return (
        wind_knots * np.cos(angle),
        wind_knots * np.sin(angle),
        (fahrenheit - 32) / 1.8,
        rain_in * 25.4,
        sight_mi * 1.609344,
        pressure_hpa,
        pressure_change_hpa,
    )
