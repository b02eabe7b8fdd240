"""The features of the demo: what one would compute to predict the delay of a flight before it leaves.

    Aircraft (one item: its flights of the year, in order)
        where     great circle and bearing to the destination           airports
        when      time of day and of year as circles, holidays, the sun
        weather   at the origin in the hour of departure: wind along and across the way
        history   delays of this aircraft that were known by then: a day, a week, a month back
    -> a matrix, one row per flight, one column per name in FEATURES

An item is an aircraft and not a flight, because the history of a flight is made of the flights before it: so
the items are independent, and each is worth sending. Everything is plain Python over real data, as written
when there is no library function for it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    "flights_1d",
    "mean_delay_1d_min",
    "flights_7d",
    "mean_delay_7d_min",
    "late_share_7d",
    "flights_30d",
    "mean_delay_30d_min",
    "sd_delay_30d_min",
    "late_share_30d",
    "last_delay_min",
    "hours_since_last_flight",
    "mean_delay_on_route_min",
)

YEAR = 2013

# Federal holidays, and those of the years beside it that are nearest to a day of 2013.
HOLIDAYS = tuple(
    day.toordinal()
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
)

EARTH_RADIUS_KM = 6371.0088
LATE_MIN = 15.0
"""From this delay on a flight counts as late, as in the statistics of the U.S. Department of Transportation."""

_MINUTES_PER_DAY = 1440
_TURN = 2 * math.pi
_NEW_YORK_UTC_OFFSET_HOURS = -5


class Airport(NamedTuple):
    """Where an airport is, in radians."""

    latitude: float
    longitude: float


Weather = tuple[float, float, float, float, float, float]
"""One hour at one origin: temperature in °F, where the wind comes from in degrees, its speed in miles per hour, rain in
inches, pressure in hPa, sight in miles; NaN where it was not measured. A bare tuple: with 26,115 of them the tables
are pickled ten times faster than as objects of a class, and they travel to every worker."""


class Flight(NamedTuple):
    """One scheduled flight. `row` is its place in the source; NaN is what did not happen (a cancelled flight)."""

    row: int
    origin: str
    destination: str
    month: int
    day: int
    scheduled_min: int
    hour_utc: int
    departure_delay_min: float
    arrival_delay_min: float
    air_time_min: float


class Aircraft(NamedTuple):
    """One item: an aircraft, and its flights in the order of their schedule.

    The flights are kept as one tuple per field of Flight: that is pickled ten times faster than one object per
    flight, and the driver has to do all the pickling alone.
    """

    tail_number: str
    built_year: float
    seats: float
    columns: tuple[tuple[Any, ...], ...]

    def flights(self) -> Iterator[Flight]:
        return map(Flight, *self.columns)


class Tables(NamedTuple):
    """What every item needs: airports by code, weather by (origin, hours since the epoch)."""

    airports: dict[str, Airport]
    weather: dict[tuple[str, int], Weather]


def aircraft_features(tables: Tables, aircraft: Aircraft) -> NDArray[np.float64]:
    """The features of every flight of one aircraft, in the order of its flights: (flights, FEATURES)."""
    import numpy as np

    history = History()
    rows = []
    for flight in aircraft.flights():
        day = date(YEAR, flight.month, flight.day).toordinal()
        now_min = day * _MINUTES_PER_DAY + flight.scheduled_min
        history.advance(now_min)
        origin = tables.airports[flight.origin]
        destination = tables.airports.get(flight.destination)
        distance_km, bearing = way(origin, destination) if destination else (math.nan, math.nan)
        rows.append(
            (
                distance_km,
                math.sin(bearing),
                math.cos(bearing),
                *calendar(day, flight.scheduled_min),
                sun_elevation_deg(origin, day, flight.scheduled_min),
                *weather(tables.weather, flight, bearing),
                YEAR - aircraft.built_year,
                aircraft.seats,
                *history.features(now_min, flight.destination),
            )
        )
        history.add(now_min, flight)
    return np.array(rows, dtype=np.float64)


def way(origin: Airport, destination: Airport) -> tuple[float, float]:
    """Great-circle distance in km (haversine) and initial bearing in radians, clockwise from north.

    Example:
        >>> kennedy = Airport(math.radians(40.639751), math.radians(-73.778925))
        >>> los_angeles = Airport(math.radians(33.942536), math.radians(-118.408075))
        >>> [round(figure, 3) for figure in way(kennedy, los_angeles)]
        [3974.205, -1.504]
    """
    d_lat = destination.latitude - origin.latitude
    d_lon = destination.longitude - origin.longitude
    cos_origin, cos_destination = math.cos(origin.latitude), math.cos(destination.latitude)
    half = math.sin(d_lat / 2) ** 2 + cos_origin * cos_destination * math.sin(d_lon / 2) ** 2
    east = math.sin(d_lon) * cos_destination
    north = cos_origin * math.sin(destination.latitude)
    north -= math.sin(origin.latitude) * cos_destination * math.cos(d_lon)
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(half)), math.atan2(east, north)


def calendar(day: int, minute: int) -> tuple[float, ...]:
    """Minute of day, day of year and weekday as points on circles; days to the next and since the last holiday."""
    in_day = _TURN * minute / _MINUTES_PER_DAY
    in_year = _TURN * (day - date(YEAR, 1, 1).toordinal()) / 365
    in_week = _TURN * (day % 7) / 7
    following = bisect_left(HOLIDAYS, day)
    since = 0 if HOLIDAYS[following] == day else day - HOLIDAYS[following - 1]
    return (
        math.sin(in_day),
        math.cos(in_day),
        math.sin(in_year),
        math.cos(in_year),
        math.sin(in_week),
        math.cos(in_week),
        HOLIDAYS[following] - day,
        since,
    )


def sun_elevation_deg(airport: Airport, day: int, minute: int) -> float:
    """How high the sun stands, to about a degree.

    Source: Duffie and Beckman, Solar Engineering of Thermal Processes, equations 1.6.1 and 1.6.5.
    """
    day_of_year = day - date(YEAR, 1, 1).toordinal() + 1
    declination = math.radians(23.45) * math.sin(_TURN * (284 + day_of_year) / 365)
    solar_hour = minute / 60 - _NEW_YORK_UTC_OFFSET_HOURS + math.degrees(airport.longitude) / 15
    hour_angle = _TURN * (solar_hour - 12) / 24
    height = math.sin(airport.latitude) * math.sin(declination)
    height += math.cos(airport.latitude) * math.cos(declination) * math.cos(hour_angle)
    return math.degrees(math.asin(height))


def weather(table: dict[tuple[str, int], Weather], flight: Flight, bearing: float) -> tuple[float, ...]:
    """Wind along and across the way, temperature, rain, sight and pressure at the origin; NaN where unknown."""
    now = table.get((flight.origin, flight.hour_utc))
    if now is None:
        return (math.nan,) * 7
    fahrenheit, wind_from_deg, wind_mph, rain_in, pressure_hpa, sight_mi = now
    before = table.get((flight.origin, flight.hour_utc - 3))
    angle = math.radians(wind_from_deg) - bearing
    wind_knots = wind_mph * 0.868976
    return (
        wind_knots * math.cos(angle),
        wind_knots * math.sin(angle),
        (fahrenheit - 32) / 1.8,
        rain_in * 25.4,
        sight_mi * 1.609344,
        pressure_hpa,
        pressure_hpa - before[4] if before else math.nan,
    )


class Window:
    """The delays of the last so many days, and their sums. Delays are whole minutes, so the sums stay exact."""

    def __init__(self, days: int) -> None:
        self._span_min = days * _MINUTES_PER_DAY
        self._delays: deque[tuple[float, float]] = deque()
        self.count = self.n_late = 0
        self.total = self.total_of_squares = 0.0

    def add(self, at_min: float, delay: float) -> None:
        self._delays.append((at_min, delay))
        self._count(delay, 1)

    def advance(self, now_min: float) -> None:
        while self._delays and self._delays[0][0] < now_min - self._span_min:
            self._count(self._delays.popleft()[1], -1)

    def _count(self, delay: float, sign: int) -> None:
        self.count += sign
        self.n_late += sign * (delay >= LATE_MIN)
        self.total += sign * delay
        self.total_of_squares += sign * delay * delay

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    @property
    def late_share(self) -> float:
        return self.n_late / self.count if self.count else math.nan

    @property
    def deviation(self) -> float:
        if self.count < 2:
            return math.nan
        spread = self.total_of_squares - self.total * self.total / self.count
        return math.sqrt(max(spread, 0.0) / (self.count - 1))


class History:
    """The delays of one aircraft as they were known at a time: a flight counts once it has landed."""

    def __init__(self) -> None:
        self._in_the_air: deque[tuple[float, str, float]] = deque()
        self._day, self._week, self._month = Window(1), Window(7), Window(30)
        self._routes: dict[str, tuple[int, float]] = {}
        self._last_delay = self._last_landing_min = math.nan

    def add(self, now_min: float, flight: Flight) -> None:
        """Take a flight that has just left; a cancelled one has no delay to remember."""
        landing_min = now_min + flight.departure_delay_min + flight.air_time_min
        if not (math.isnan(landing_min) or math.isnan(flight.arrival_delay_min)):
            self._in_the_air.append((landing_min, flight.destination, flight.arrival_delay_min))

    def advance(self, now_min: float) -> None:
        """Let the time pass: flights land, old delays fall out of the windows."""
        while self._in_the_air and self._in_the_air[0][0] <= now_min:
            landing_min, destination, delay = self._in_the_air.popleft()
            for window in (self._day, self._week, self._month):
                window.add(landing_min, delay)
            count, total = self._routes.get(destination, (0, 0.0))
            self._routes[destination] = (count + 1, total + delay)
            self._last_delay, self._last_landing_min = delay, landing_min
        for window in (self._day, self._week, self._month):
            window.advance(now_min)

    def features(self, now_min: float, destination: str) -> tuple[float, ...]:
        day, week, month = self._day, self._week, self._month
        on_route, total = self._routes.get(destination, (0, math.nan))
        return (
            day.count,
            day.mean,
            week.count,
            week.mean,
            week.late_share,
            month.count,
            month.mean,
            month.deviation,
            month.late_share,
            self._last_delay,
            (now_min - self._last_landing_min) / 60,
            total / on_route if on_route else math.nan,
        )
