"""`fourfold tune`, as a user types it."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import numpy as np
import optuna
import pandas as pd
import pyarrow as pa
import pytest
from tables import write_csv, write_parquet
from typer.testing import CliRunner

import fourfold as ff
import fourfold.addresses as addresses
from fourfold.cli import app, tune_live, tune_rows
from fourfold.cli.target import load_function
from fourfold.cli.tune_board import Board, print_json, shortened
from fourfold.cli.tune_live import Live
from fourfold.cli.tune_names import pruner_named, sampler_named, storage_named
from fourfold.cli.tune_record import rows_of
from fourfold.errors import OptionError
from fourfold.system.machine import FreeMemory, MemoryReader
from fourfold.workloads.tune.again import prepare_trial
from fourfold.workloads.tune.opened import Running
from fourfold.workloads.tune.told import Told

OBJECTIVES = """
import os

def parabola(trial):
    x = trial.suggest_float("x", -10, 10)
    k = trial.suggest_categorical("k", ["a", "b", None])
    if trial.number == 3:
        raise ValueError("no three")
    if trial.number == 7:
        return float("nan")
    return (x - 2) ** 2 + (k == "a")

def waits(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.number == 4 and not os.path.exists("go"):
        open("gate", "w").close()  # until somebody reads
        open("gate")  # until somebody writes, which nobody does
    return x

def raises(trial):
    raise KeyError("it never works")

def steps(trial):
    x = trial.suggest_float("x", 0, 1)
    for step in range(9):
        trial.report(x, step)
        trial.checkpoint(step)
        if trial.should_prune():
            import optuna
            raise optuna.TrialPruned
    return x

def pipe():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    return make_pipeline(StandardScaler(), LogisticRegression())

def fails():
    from sklearn.dummy import DummyClassifier

    class Fails(DummyClassifier):
        def fit(self, X, y):
            if self.random_state == 2:
                raise ValueError("no two")
            return super().fit(X, y)

    return Fails()

def forest():
    from sklearn.ensemble import RandomForestClassifier
    return RandomForestClassifier()

def is_without_bounds(trial):
    trial.set_user_attr("nan", float("nan"))
    return float("inf")

def empty_range():
    from scipy.stats import loguniform
    return {"logisticregression__C": loguniform(-1, 1)}

space = {"logisticregression__C": [0.001, 0.1, 10.0]}
nothing = {}
no_values = {"logisticregression__C": []}
no_list = {"logisticregression__C": 3}
no_parameter = {"C": [1, 2]}
two = {"logisticregression__C": [0.001, 10.0]}
states = {"random_state": [1, 2]}
grid = {"x": [0.0, 0.25, 0.5], "k": ["b"]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(OBJECTIVES)
    path, verbosity = list(sys.path), optuna.logging.get_verbosity()
    yield tmp_path
    optuna.logging.set_verbosity(verbosity)
    sys.path[:] = path
    sys.modules.pop("mine", None)


def fourfold(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The command as a program."""
    command = [sys.executable, "-m", "fourfold", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100)


def here(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The same in this process, which has imported all that it needs."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, arguments)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


# ---- objectives


@pytest.mark.slow
def test_trials_are_those_of_optuna_and_what_failed_is_told(folder: Path) -> None:
    command = ("tune", "mine:parabola", "--n-trials", "12", "--sampler", "random", "--seed", "0", "--engine", "serial")
    done = fourfold(*command, "--run", "run", "-o", "trials.csv", folder=folder)
    assert done.returncode == 3, done.stderr
    first, *failed, verdict = done.stderr.splitlines()
    assert first == "fourfold: 12 trials: 10 complete, 1 failed, 1 invalid; all are in trials.csv"
    assert re.fullmatch(r"fourfold: 1 failed; trial 3 with x=\S+, k=\w+: ValueError: no three", failed[0])
    assert failed[1].endswith("the objective returned nan")
    assert "12 trials" in verdict

    with contextlib.chdir(folder):
        parabola = load_function("mine:parabola")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(parabola, 12, catch=ValueError)
    trials = pd.read_csv(folder / "trials.csv", keep_default_na=False, na_values=[""])
    expected = study.trials_dataframe()
    assert trials["params_x"].tolist() == expected["params_x"].tolist()
    assert trials["value"].equals(expected["value"])
    assert trials["state"].tolist() == ["complete"] * 3 + ["failed"] + ["complete"] * 3 + ["invalid"] + ["complete"] * 4
    heading, best = done.stdout.splitlines()[:2]
    assert heading.split() == ["trial", "value", "parameters"]
    assert best.split()[0] == str(study.best_trial.number)

    told = json.loads(here("tune", "--status", "run", "--json", folder=folder).stdout)
    assert told["states"] == {"complete": 10, "failed": 1, "invalid": 1}
    assert (told["state"], told["total"], told["running"]) == ("done", 12, [])
    assert told["best"][0]["values"] == [study.best_value]
    again = here("tune", "--export", "run", "-o", "trials.csv", folder=folder)
    assert (again.returncode, again.stderr) == (
        2,
        "fourfold: trials.csv is there already: choose another name, or --overwrite\n",
    )
    assert here("tune", "--export", "run", "-o", "trials.parquet", folder=folder).returncode == 0
    assert pd.read_parquet(folder / "trials.parquet")["params_x"].tolist() == expected["params_x"].tolist()
    assert "12 of 12 trials" in here("runs", folder=folder).stdout


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_that_gives_the_same_trials(folder: Path) -> None:
    os.mkfifo(folder / "gate")
    command = ["tune", "mine:waits", "--n-trials", "8", "--sampler", "random", "--seed", "1", "--run", "run", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fourfold", *command], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        with open(folder / "gate"):  # trial 4 runs
            pass
        status = here("tune", "--status", "run", "--json", folder=folder)
        told = json.loads(status.stdout)
        assert told["state"] == "running"
        assert 4 in told["running"]
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "fourfold: interrupted; what finished is in run; go on: fourfold resume run"
    assert "go on: fourfold resume run" in here("tune", "--status", "run", folder=folder).stdout
    (folder / "go").touch()
    resumed = fourfold("resume", "run", folder=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert "fourfold: 8 trials: 8 complete" in resumed.stderr
    whole = here(*command[:-4], "--engine", "serial", folder=folder)
    assert resumed.stdout == whole.stdout
    assert "its trials, also while it runs: fourfold tune --status run" in here("show", "run", folder=folder).stdout


@pytest.mark.slow
def test_a_trial_is_replayed_with_the_parameters_that_it_had(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("tune", "mine:parabola", "--n-trials", "4", "--seed", "0", "--engine", "serial", "--run", "run", "--json")
    best = json.loads(here(*command, folder=folder).stdout)["best"][0]
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.chdir(folder)
    again = prepare_trial(str(folder / "run"), best["number"])
    assert again.told.params == best["params"]
    assert again.run_trial() == best["values"][0]
    with pytest.raises(OptionError, match="run has no trial 9 that has ended; it has 4"):
        prepare_trial(str(folder / "run"), 9)
    bad = fourfold("replay", "run", "--item", "3", folder=folder)
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[0].endswith("it was failed: ValueError: no three")
    assert bad.stderr.splitlines()[-1] == "ValueError: no three"


@pytest.mark.slow
def test_a_study_in_a_storage_goes_on_with_the_same_command(folder: Path) -> None:
    command = ("tune", "mine:steps", "--direction", "maximize", "--engine", "serial", "--pruner", "asha:1,9,3", "--json")
    kept = ("--storage", "sqlite:///studies.db", "--study", "mine", "--sampler", "grid", "--space", "mine:grid")
    for n_trials in ("2", "3"):
        done = here(*command, *kept, "--n-trials", n_trials, folder=folder)
        assert done.returncode == 0, done.stderr
        assert sum(json.loads(done.stdout)["states"].values()) == int(n_trials)
    other = here("tune", "mine:steps", "--direction", "minimize", *kept, "--n-trials", "4", folder=folder)
    assert (other.returncode, other.stdout) == (2, "")
    assert "--direction minimize: the study mine is there already, to maximize" in other.stderr
    study = optuna.load_study(study_name="mine", storage=f"sqlite:///{folder}/studies.db")
    assert sorted(each.params["x"] for each in study.trials) == [0.0, 0.25, 0.5]
    assert study.best_params == {"x": 0.5}


def test_a_search_in_which_nothing_works_is_an_error(folder: Path) -> None:
    done = here("tune", "mine:raises", "--n-trials", "3", "--engine", "serial", folder=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert "3 failed; the first is trial 0 with no parameters: KeyError: 'it never works'" in done.stderr
    assert done.stderr.splitlines()[-1] == "fourfold: no trial has a value"
    stopped = here("tune", "mine:raises", "--n-trials", "3", "--engine", "serial", "--on-error", "raise", folder=folder)
    assert stopped.returncode == 1
    assert "KeyError: 'it never works'" in stopped.stderr


# ---- estimators


@pytest.mark.slow
def test_the_best_estimator_is_in_the_file_and_its_scores_are_those_of_searchcv(folder: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(120, 3)), columns=["a", "b", "c"])
    table["y"] = np.where(table["a"] + rng.normal(size=120) > 0, "late", "early")
    table.to_parquet(folder / "in.parquet")
    command = ("tune", "mine:pipe", "in.parquet", "--target", "y", "--space", "mine:space", "--method", "grid", "--cv", "3")
    done = here(*command, "--workers", "1", "--features", "a,b", "-o", "best.joblib", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipe = make_pipeline(StandardScaler(), LogisticRegression())
    expected = ff.SearchCV(pipe, {"logisticregression__C": [0.001, 0.1, 10.0]}, method="grid", cv=3)
    expected.fit(table[["a", "b"]], table["y"])
    told = json.loads(done.stdout)
    assert told["best"]["params"] == expected.best_params_
    assert [each["mean_test_score"] for each in told["candidates"]] == expected.cv_results_["mean_test_score"].tolist()
    best = joblib.load(folder / "best.joblib")
    assert best.feature_names_in_.tolist() == ["a", "b"]
    assert best.predict_proba(table[["a", "b"]]).tobytes() == expected.predict_proba(table[["a", "b"]]).tobytes()


def test_a_fit_that_fails_is_told_and_the_code_says_so(folder: Path) -> None:
    pd.DataFrame({"a": [1, 2] * 10, "y": [0, 1] * 10}).to_parquet(folder / "in.parquet")
    command = ("tune", "mine:fails", "in.parquet", "--target", "y", "--space", "mine:states", "--method", "grid", "--cv", "2")
    done = here(*command, "--workers", "1", "--no-progress", folder=folder)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("fourfold: 2 fits failed; the first, on fold 0 with random_state=2: ")
    assert "no two" in done.stderr
    scores = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert scores == ["0.5", "nan"]


def test_with_out_of_core_each_fit_reads_the_files_and_the_best_is_that_of_searchcv_on_a_dataset(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    for at in range(3):
        table = pd.DataFrame(rng.normal(size=(40, 3)), columns=["a", "b", "c"])
        table["y"] = np.where(table["a"] + rng.normal(size=40) > 0, "late", "early")
        table.to_parquet(folder / "in" / f"{at}.parquet")
    command = (
        "tune",
        "mine:pipe",
        "in",
        "--target",
        "y",
        "--space",
        "mine:two",
        "--method",
        "grid",
        "--cv",
        "2",
        "--workers",
        "1",
    )
    done = here(*command, "--features", "a,b", "--out-of-core", "-o", "best.joblib", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    first, *fits, _, _ = done.stderr.splitlines()
    assert first.startswith("fourfold: rows stay in 3 files, which each fit reads (--out-of-core)")
    assert [line.partition(" END ")[0] for line in fits] == ["[CV 1/2]", "[CV 2/2]"] * 2
    told = json.loads(done.stdout)
    with contextlib.chdir(folder):
        pipe, rows = load_function("mine:pipe")(), ff.scan(folder / "in")
    expected = ff.SearchCV(pipe, {"logisticregression__C": [0.001, 10.0]}, method="grid", cv=2)
    expected.fit(rows, target="y", features=["a", "b"])
    assert [each["mean_test_score"] for each in told["candidates"]] == expected.cv_results_["mean_test_score"].tolist()
    best = joblib.load(folder / "best.joblib")
    assert best.feature_names_in_.tolist() == ["a", "b"]
    assert best[-1].coef_.tobytes() == expected.best_estimator_[-1].coef_.tobytes()


@pytest.mark.parametrize(
    ("estimator", "more", "says"),
    [
        ("pipe", (), "--out-of-core leaves them in their files, and --in-memory tries all the same"),
        ("forest", (), "or try all the same with --in-memory (there is no recipe that fits RandomForestClassifier"),
        ("pipe", ("--method", "halving"), "with --in-memory (--method halving does not go with --out-of-core"),
    ],
)
def test_rows_that_are_too_many_for_memory_are_not_read(
    estimator: str, more: tuple[str, ...], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd.DataFrame({"a": range(900), "y": [0, 1, 1] * 300}).to_parquet(folder / "in.parquet")
    monkeypatch.setattr(MemoryReader, "read", lambda self: FreeMemory(20_000, 1 << 30))
    space = "mine:space" if estimator == "pipe" else "mine:states"
    done = here("tune", f"mine:{estimator}", "in.parquet", "--target", "y", "--space", space, *more, folder=folder)
    (line,) = done.stderr.splitlines()
    assert line.startswith("fourfold: the rows would take some 14.5 kB of memory, and 20 kB are free: ")
    assert says in line
    assert (done.returncode, done.stdout) == (2, "")


def test_rows_are_weighed_by_the_first_ones_or_by_their_files(folder: Path) -> None:
    table = pa.table({"a": range(900), "y": [0, 1, 1] * 300})
    write_parquet(table, folder / "in.parquet")
    write_csv(table, folder / "in.csv")
    in_memory = table.nbytes
    assert tune_rows.bytes_of(ff.scan(folder / "in.parquet")) == pytest.approx(in_memory, rel=0.02)
    assert tune_rows.bytes_of(ff.scan(folder / "in.csv")) == (folder / "in.csv").stat().st_size
    pd.DataFrame({"a": []}).to_parquet(folder / "none.parquet")
    assert tune_rows.bytes_of(ff.scan(folder / "none.parquet")) == 0


def test_when_all_fits_fail_alike_it_is_one_line_without_a_traceback(folder: Path) -> None:
    pd.DataFrame({"a": ["x", "z"] * 10, "y": [0, 1] * 10}).to_parquet(folder / "in.parquet")
    command = ("tune", "mine:pipe", "in.parquet", "--target", "y", "--space", "mine:space", "--cv", "2", "--workers", "1")
    done = here(*command, "-o", "best.pkl", "--no-progress", folder=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "fourfold: all 6 fits failed. The first: ValueError: could not convert string to float: 'x' (--traceback shows where)"
    ]
    assert not (folder / "best.pkl").exists()


def test_a_limit_of_memory_is_for_the_workers_of_a_search_too(folder: Path) -> None:
    pd.DataFrame({"a": [1, 2] * 10, "y": [0, 1] * 10}).to_parquet(folder / "in.parquet")
    command = ("tune", "mine:pipe", "in.parquet", "--target", "y", "--space", "mine:two", "--cv", "2", "--workers", "1")
    done = here(*command, "--memory", "100000000", folder=folder)
    assert done.returncode == 2
    assert "engine 'serial' cannot honour --memory 100000000" in done.stderr.splitlines()[-1]


def test_a_space_with_fewer_candidates_than_were_asked_for_is_told_in_a_line(folder: Path) -> None:
    pd.DataFrame({"a": [1, 2] * 10, "y": [0, 1] * 10}).to_parquet(folder / "in.parquet")
    command = ("tune", "mine:pipe", "in.parquet", "--target", "y", "--space", "mine:two", "--cv", "2", "--workers", "1")
    done = here(*command, "--n-trials", "9", "--no-progress", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1:] == [
        "fourfold: 2 candidates on 2 folds; the best has 1",
        "fourfold: the space has no more than these 2, fewer than --n-trials 9",
    ]


# ---- what cannot be


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mine:parabola",), "--n-trials is missing"),
        (("mine:parabol", "--n-trials", "2"), "did you mean 'parabola'?"),
        (("mine:parabola", "--n-trials", "2", "--cv", "3"), "--cv is for an estimator, which needs INPUT"),
        (("mine:pipe", "in.parquet", "--target", "y"), "an estimator needs --space MODULE:SPACE"),
        (("mine:pipe", "in.parquet", "--target", "y", "--sampler", "tpe"), "--sampler is for an objective"),
        (("mine:parabola", "--n-trials", "2", "--storage", "$NOT_THERE", "--study", "a"), "the environment has no NOT_THERE"),
        (("mine:parabola", "--status", "run"), "stand alone, and nothing is searched: leave MODULE:OBJECTIVE out"),
        (("--status", "run", "--export", "run"), "--status RUN and --export RUN stand alone"),
        (("--status", "run", "--n-trials", "3"), "and nothing is searched: leave --n-trials out"),
        (("--export", "run", "-o", "a.csv", "--json"), "and nothing is searched: leave --json out"),
        (("mine:parabola", "--n-trials", "2", "--out-of-core"), "--out-of-core is for an estimator, which needs INPUT"),
        (("mine:parabola", "--n-trials", "2", "--init", "a"), "--init is for a class, and mine:parabola is of type function"),
        (("mine:parabola", "--n-trials", "2", "--sampler", "rando"), "is not known (did you mean random?). Choices: tpe, "),
        (
            ("mine:parabola", "--n-trials", "2", "--sampler", "grid", "--space", "mine:no_list"),
            "C has 3, and is to have a list",
        ),
        (("mine:pipe", "--n-trials", "2"), "; if it gives an estimator, name INPUT, --target and --space as well"),
        (
            ("mine:parabola", "in.parquet", "--target", "y", "--space", "mine:space"),
            "an objective, which is called with a trial,",
        ),
        (
            ("mine:parabola", "--n-trials", "2", "--trial-timeout", "1", "--engine", "threads"),
            "cannot honour --trial-timeout 1.0. Leave --trial-timeout out, or use --engine processes",
        ),
        (
            ("mine:parabola", "--n-trials", "2", "--storage", "s.db", "--study", "a"),
            "--storage s.db is no URL of a storage of",
        ),
    ],
)
def test_what_cannot_be_is_one_line_and_a_usage_error(arguments: tuple[str, ...], says: str, folder: Path) -> None:
    done = here("tune", *arguments, folder=folder)
    (line,) = done.stderr.splitlines()
    assert says in line
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("asha:1,81,3,4", "asha takes min_resource, max_resource, reduction_factor, in this order"),
        ("asha:1,one", "'one' is no number"),
        ("asha", "max_resource is missing"),
        ("ash", "is not known (did you mean asha?)"),
        ("percentile", "missing 1 required positional argument: 'percentile'"),
    ],
)
def test_a_pruner_that_cannot_be_is_named(text: str, says: str) -> None:
    with pytest.raises(OptionError, match=re.escape(says)):
        pruner_named(text)


def test_pruners_and_samplers_have_the_numbers_behind_their_names() -> None:
    assert repr(pruner_named("asha:1,81,3")) == repr(ff.ASHA(1, 81, 3))
    assert pruner_named("percentile:25,3")._n_startup_trials == 3
    assert isinstance(sampler_named("qmc", 1, None), optuna.samplers.QMCSampler)
    with pytest.raises(OptionError, match="--sampler grid needs --space"):
        sampler_named("grid", None, None)
    with pytest.raises(OptionError, match="--space is for --sampler grid here"):
        sampler_named("tpe", None, {"x": [1]})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--target z --space mine:space", "--target: there is no column 'z'. Columns: a, y"),
        ("--target y --space mine:space --features a,z", "--features: there is no column 'z'"),
        ("--target y --space mine:space --features a,y", "'y' is the --target, and among --features: leave it out there"),
        ("--target y --space mine:space --features a,a", "--features names a column twice: a,a"),
        ("--target y --space mine:nothing", "--space mine:nothing is empty: name at least one parameter"),
        ("--target y --space mine:no_values", "--space mine:no_values: logisticregression__C has no values"),
        ("--target y --space mine:no_list", "logisticregression__C has 3, and is to have a list of values, or a distribution"),
        ("--target y --space mine:no_parameter", "Pipeline has no parameter 'C' (did you mean 'logisticregression__C'?)"),
        ("--target y --space mine:empty_range", "nothing can be drawn for logisticregression__C: Domain error"),
        (
            "--target y --space mine:space --method gird",
            "--method gird is not known (did you mean 'grid'?). Choices: random, ",
        ),
        ("--target y --space mine:space --method grid --n-trials 2", "--n-trials 2 is not for --method grid"),
        ("--target y --space mine:space --n-trials 0", "--n-trials 0 must be at least 1"),
        ("--target y --space mine:space --cv 1", "--cv 1 must be at least 2"),
        ("--target y --space mine:space --workers 0", "--workers 0 must be at least 1"),
        (
            "--target y --space mine:space --trial-timeout 0",
            "--trial-timeout 0.0 must be a positive, finite number of seconds",
        ),
        ("--target y --space mine:space --scoring acuracy", "is no score of scikit-learn (did you mean 'accuracy'?)"),
        ("--target y --space mine:space --run run", "--run and --method random need --seed"),
        ("--target y --space mine:space --out-of-core --run run", "--run does not go with --out-of-core"),
        ("--target y --space mine:space --out-of-core --method halving", "take random, grid or tpe"),
    ],
)
def test_a_mistake_of_a_search_is_one_line_before_rows_are_read(
    arguments: str, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd.DataFrame({"a": [1, 2], "y": [0, 1]}).to_parquet(folder / "in.parquet")
    monkeypatch.setattr(tune_rows, "stay_in_files", None)
    done = here("tune", "mine:pipe", "in.parquet", *arguments.split(), folder=folder)
    (line,) = done.stderr.splitlines()
    assert says in line
    assert (done.returncode, done.stdout) == (2, "")


def test_a_search_out_of_core_is_for_estimators_with_a_recipe(folder: Path) -> None:
    done = here("tune", "mine:forest", "in", "--target", "y", "--space", "mine:states", "--out-of-core", folder=folder)
    (line,) = done.stderr.splitlines()
    assert line.startswith("fourfold: --out-of-core: there is no recipe that fits RandomForestClassifier")
    assert line.endswith(". Without it rows are read into memory, for its own fit")
    assert done.returncode == 2


def test_a_storage_that_cannot_be_opened_is_named_without_its_login(folder: Path) -> None:
    command = ("tune", "mine:parabola", "--n-trials", "2", "--study", "a", "--storage")
    done = here(*command, "sqlite:///no/such/folder.db", folder=folder)
    assert (done.returncode, done.stderr) == (
        1,
        "fourfold: --storage sqlite:///no/such/folder.db cannot be opened: unable to open database file\n",
    )
    done = here(*command, "mysql://me:word@host/db", folder=folder)
    assert done.returncode == 1
    assert (
        done.stderr == "fourfold: --storage mysql://…@host/db needs MySQLdb, which is not installed: pip install mysqlclient\n"
    )


def test_a_study_that_is_full_says_so_and_shows_its_best(folder: Path) -> None:
    command = ("tune", "mine:steps", "--n-trials", "2", "--engine", "serial", "--storage", "sqlite:///s.db", "--study", "a")
    first, again = here(*command, folder=folder), here(*command, folder=folder)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert again.stderr.splitlines() == [
        "fourfold: 2 trials: 2 complete",
        "fourfold: nothing was left to run: the study has as many trials as were asked for",
    ]


@pytest.mark.parametrize(
    ("arguments", "has_begun", "says"),
    [
        (("--run", "run"), False, "interrupted before anything was recorded: the same command begins"),
        (("--run", "run"), True, "interrupted; what finished is in run; go on: fourfold resume run"),
        (
            ("--storage", "sqlite:///s.db", "--study", "a"),
            True,
            "interrupted; what finished is in the study: the same command",
        ),
        ((), True, "interrupted, and the trials are gone; with --run FOLDER the same command would go on"),
    ],
)
def test_ctrl_c_says_what_can_go_on(
    arguments: tuple[str, ...], has_begun: bool, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **named: object) -> None:
        if has_begun:
            optimize(*_, **named)
        raise KeyboardInterrupt

    from fourfold.workloads.tune import optimizing

    optimize = optimizing.optimize
    monkeypatch.setattr(optimizing, "optimize", interrupted)
    done = here("tune", "mine:steps", "--n-trials", "1", "--engine", "serial", *arguments, folder=folder)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith(f"fourfold: {says}")


# ---- what is shown


def test_json_has_null_where_there_is_no_number_for_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("tune", "mine:is_without_bounds", "--n-trials", "1", "--engine", "serial", "--json")
    done = here(*command, "-o", "trials.jsonl", folder=folder)
    best = json.loads(done.stdout, parse_constant=pytest.fail)["best"][0]
    assert (best["values"], best["user_attrs"]) == ([None], {"nan": None})
    told = "2 numbers were NaN or infinite, which JSON cannot hold: they are null in trials.jsonl"
    assert done.stderr.splitlines()[0] == f"fourfold: {told}"
    print_json({"a": (np.int64(3), np.float64("-inf"), {1: [float("nan")]}), "b": folder})
    assert json.loads(capsys.readouterr().out) == {"a": [3, None, {"1": [None]}], "b": str(folder)}


def test_what_was_raised_is_told_without_the_modules_of_its_type() -> None:
    assert (
        shortened("sklearn.utils._param_validation.InvalidParameterError: a.b: no\n two")
        == "InvalidParameterError: a.b: no two"
    )
    assert shortened("the objective returned nan") == "the objective returned nan"


def told(number: int, *values: float, state: str = "complete", **params: object) -> Told:
    return Told(number, state, list(values) or None, params, {}, 0, 1, "", None, None)


@pytest.mark.parametrize(("direction", "best"), [("minimize", [3, 1, 0]), ("maximize", [0, 1, 3])])
def test_the_best_trials_come_first_and_those_without_a_value_never(direction: str, best: list[int]) -> None:
    board = Board([direction], 9)
    for trial in (told(0, 3.0), told(1, 2.0), told(2, state="crashed"), told(3, 1.0), told(4, 0.5, state="pruned")):
        board.add(trial)
    assert [each.number for each in board.best] == best
    value = board.best[0].values
    assert board.line() == f"5 of 9 trials: 3 complete, 1 pruned, 1 crashed; best {value[0]:g} (trial {best[0]})"


def test_with_several_directions_those_are_best_that_no_other_beats() -> None:
    board = Board(["minimize", "maximize"])
    for number, values in enumerate([(1.0, 1.0), (2.0, 2.0), (2.0, 1.0), (0.5, 1.0), (0.5, 1.0)]):
        board.add(told(number, *values))
    assert [each.number for each in board.best] == [1, 3, 4]
    assert board.line().endswith("; 3 are best")


def test_a_parameter_of_several_types_is_text_in_a_table_and_one_of_numbers_stays() -> None:
    rows = rows_of([told(0, 1.0, k=None, n=1), told(1, 2.0, k="a", n=2.5), told(2, 3.0, k=4), told(3, 3.0, k=[1])], 1)
    assert [row["params_k"] for row in rows] == [None, "a", "4", "[1]"]
    assert [row["params_n"] for row in rows] == [1.0, 2.5, None, None]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "show", "shown"),
    [
        (Terminal, None, "trial  value  parameters"),
        (Terminal, False, ""),
        (io.StringIO, None, "fourfold: 1 trials: 1 complete; best 2 (trial 0)\n"),
        (io.StringIO, False, ""),
    ],
)
def test_trials_are_a_table_on_a_terminal_lines_elsewhere_and_nothing_when_quiet(
    stream: type[io.StringIO], show: bool | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_live, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(sys, "stderr", written := stream())
    with Live(Board(["minimize"]), show).shown() as live:
        live.board.add(told(0, 2.0, x=1.5))
        live.beat()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written.getvalue())
    assert shown in text if stream is Terminal and shown else text == shown


def test_a_login_in_a_storage_is_in_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_of_commands", {})
    url = "postgresql://me:word@host/db"
    assert storage_named(url) == url
    assert addresses.without_kept_out(["--storage", url, f"--storage={url}"]) == ["--storage", "=…", "--storage==…"]
    monkeypatch.setenv("MINE", "sqlite:///other.db")
    assert storage_named("$MINE") == "sqlite:///other.db"
    assert addresses.without_kept_out(["--storage", "$MINE"]) == ["--storage", "$MINE"]


def test_trials_that_run_are_shown_with_what_they_have_reported_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", written := Terminal())
    monkeypatch.setattr(tune_live, "RUNNING_SHOWN", 2)
    with Live(Board(["minimize"], 9), None).shown() as live:
        live.watch(lambda: [Running(4, 75.3, (3, 0.25)), Running(6, 1.24, None), Running(7, 0.1, None)])
    lines = [line.split() for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written.getvalue()).splitlines()]
    assert ["running", "seconds", "step", "reported"] in lines
    at = lines.index(["running", "seconds", "step", "reported"])
    assert lines[at + 1 : at + 5] == [
        ["4", "75", "3", "0.25"],
        ["6", "1.2"],
        ["and", "1", "more", "that", "run"],
        ["0", "of", "9", "trials"],
    ]


def test_who_looks_on_is_told_which_trials_run_now() -> None:
    seen: list[list[Running]] = []

    class Looks:
        def watch(self, running: Callable[[], list[Running]]) -> None:
            self.running = running

        def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            """Trials have ended."""

    looks = Looks()

    def objective(trial: optuna.Trial) -> float:
        for step in range(2):
            trial.report(step / 2, step)
        seen.append(looks.running())
        return 0.0

    ff.optimize(objective, n_trials=2, engine="serial", callbacks=[looks])
    assert [[(each.number, each.reported) for each in running] for running in seen] == [[(0, (1, 0.5))], [(1, (1, 0.5))]]
    assert all(0 <= running[0].seconds < 60 for running in seen)
    assert looks.running() == []
