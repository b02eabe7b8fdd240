"""`Dataset.fit`: what it refuses before anything runs, which rows it names, and the same bits whatever happens meanwhile."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from running import run_script, started
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from tables import small_pieces

import fourfold as ff
from fourfold.cli.clean import clean_command
from fourfold.errors import OptionError, OptionTypeError
from fourfold.lanes import Lanes
from fourfold.system import seams
from fourfold.workloads.fit import kept as keeping
from fourfold.workloads.fit.contract import About, Fit, Pass, Rows
from fourfold.workloads.fit.kept import Kept
from fourfold.workloads.fit.seen import Numbers

__all__ = ["small_pieces"]

pytestmark = pytest.mark.usefixtures("workers_of_tables")

Cut = Callable[[int, int], None]

N_ROWS = 3000
DRAW = np.random.default_rng(5)
TABLE = pd.DataFrame({name: DRAW.normal(size=N_ROWS) for name in "abc"}).assign(
    y=DRAW.integers(0, 2, N_ROWS), w=DRAW.random(N_ROWS), word="x"
)


class Power:
    """Sums of powers of the rows, weighted and of the target: one pass for each of them, over rows that are kept."""

    def __init__(self, n_passes: int = 4, keep: bool = True, at: Any = None) -> None:
        self.n_passes, self.keep, self.at = n_passes, keep, at

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> None:
        raise NotImplementedError


class Sum:
    def __init__(self, power: int, at: Any) -> None:
        self.power, self.at = power, at

    def fold(self, rows: Rows) -> Any:
        if self.at is not None:
            self.at(self.power, rows)
        parts = rows.X**self.power
        if rows.weight is not None:
            parts = parts * rows.weight[:, None]
        return parts.sum(axis=0), 0 if rows.y is None else rows.y.sum(), rows.n_rows, rows.first

    def combine(self, left: Any, right: Any) -> Any:
        assert left[3] is None or right[3] == left[3] + left[2]
        return *(one + other for one, other in zip(left[:3], right[:3], strict=True)), left[3]

    def finish(self, state: Any) -> Any:
        return state


@ff.recipe(Power)
def fit_power(estimator: Power, about: About) -> Fit:
    numbers, estimator.sums_ = Numbers(takes_nan=False), []
    for power in range(1, estimator.n_passes + 1):
        found = yield Pass(Sum(power, estimator.at), (numbers,), keep=estimator.keep)
        estimator.sums_.append(found)
    return estimator


def bits(estimator: Power) -> bytes:
    return b"".join(np.concatenate([sums, [y, n_rows]]).tobytes() for sums, y, n_rows, _ in estimator.sums_)


def columns(n: int = 3, **others: Any) -> ff.Dataset:
    return ff.scan(TABLE[list("abc")[:n]].assign(**others))


def folders() -> list[str]:
    import tempfile

    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("fourfold-fit-")]


# ---- before anything runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "options", "says"),
    [
        (RandomForestClassifier(), {"target": "y"}, "no recipe that fits RandomForestClassifier.*MinMaxScaler.*fit_groups"),
        (
            make_pipeline(MinMaxScaler(), RandomForestClassifier()),
            {"target": "y"},
            "no recipe that fits (RandomForest|Pipeline)",
        ),
        (MinMaxScaler, {}, "give an estimator, such as"),
        (MinMaxScaler(), {"features": ["a", "bb"]}, "no column 'bb'.*did you mean 'b'.*Columns: a, b"),
        (MinMaxScaler(), {"target": "yy", "features": ["a"]}, "no column 'yy'.*did you mean 'y'"),
        (MinMaxScaler(), {"target": "y", "features": ["a", "y"]}, "'y' is the target, and among the features"),
        (Power(), {"weight": "w", "features": ["a", "w"]}, "'w' is the weight, and among the features"),
        (Power(), {"weight": "w", "target": "w"}, "both the target and the weight"),
        (MinMaxScaler(), {"weight": "w", "features": ["a"]}, "MinMaxScaler takes no weights"),
        (MinMaxScaler(), {"features": []}, "no column left"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_runs(estimator: Any, options: Any, says: str) -> None:
    def fail(batch: pd.DataFrame) -> pd.DataFrame:
        raise AssertionError("it has run")

    rows = ff.scan(TABLE).map_batches(fail, schema=ff.scan(TABLE).schema)
    with pytest.raises(OptionError, match=f"(?s){says}"):
        rows.fit(estimator, engine="serial", **options)


def test_an_estimator_that_learns_to_predict_asks_for_its_target() -> None:
    from sklearn.base import BaseEstimator, RegressorMixin

    class Learns(RegressorMixin, BaseEstimator):  # type: ignore[misc]
        def fit(self, X: Any, y: Any) -> None: ...

    ff.recipe(Learns)(fit_power)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"Learns learns to predict something.*target="):
        columns().fit(Learns())


def test_a_recipe_is_for_a_class_and_not_for_its_subclasses() -> None:
    class Own(MinMaxScaler):  # type: ignore[misc]
        pass

    with pytest.raises(OptionError, match="no recipe that fits Own"):
        columns().fit(Own())
    with pytest.raises(OptionTypeError, match="give the class"):
        ff.recipe(MinMaxScaler())  # type: ignore[arg-type]


# ---- which columns, which rows -----------------------------------------------------------------------------------------


def test_without_features_all_columns_are_but_target_and_weight() -> None:
    fitted = ff.scan(TABLE.drop(columns="word")).fit(Power(1), target="y", weight="w", engine="serial")
    sums, y, n_rows, _ = fitted.sums_[0]
    np.testing.assert_allclose(sums, (TABLE[list("abc")].to_numpy() * TABLE[["w"]].to_numpy()).sum(axis=0), rtol=1e-12)
    assert (y, n_rows) == (TABLE["y"].sum(), N_ROWS)


def test_the_names_and_the_number_of_columns_are_known_afterwards() -> None:
    fitted = columns().fit(MinMaxScaler(), features=["c", "a"], engine="serial")
    expected = MinMaxScaler().fit(TABLE[["c", "a"]])
    assert fitted.n_features_in_ == expected.n_features_in_
    assert fitted.feature_names_in_.tolist() == expected.feature_names_in_.tolist()
    assert fitted.feature_names_in_.dtype == expected.feature_names_in_.dtype


def test_a_table_of_polars_gives_its_names_too() -> None:
    import polars as pl

    table = pl.from_pandas(TABLE[["a", "b", "y"]])
    fitted = ff.scan(table).fit(Ridge(), "y", engine="serial")
    assert fitted.feature_names_in_.tolist() == ["a", "b"]
    np.testing.assert_allclose(
        fitted.predict(table[["a", "b"]]), Ridge().fit(TABLE[["a", "b"]], TABLE["y"]).predict(TABLE[["a", "b"]])
    )


@pytest.mark.parametrize("least", [np.inf, 1.5])
def test_pieces_of_which_no_row_is_left_do_not_count(small_pieces: Cut, least: float) -> None:
    small_pieces(100, 1 << 20)
    rows = ff.scan(TABLE[list("abc")]).filter(lambda batch: batch["a"].abs().max() * 0 + batch["a"] > least)
    if least == np.inf:
        with pytest.raises(ValueError, match="there are no rows to fit"):
            rows.fit(Power(), engine="serial")
        return
    fitted = rows.fit(Power(), engine="serial")
    chosen = TABLE.loc[TABLE["a"] > least, list("abc")].to_numpy()
    for power, (sums, _, n_rows, _) in enumerate(fitted.sums_, start=1):
        np.testing.assert_allclose(sums, (chosen**power).sum(axis=0), rtol=1e-10)
        assert n_rows == len(chosen)


def test_a_table_without_rows_is_no_rows_to_fit() -> None:
    with pytest.raises(ValueError, match="there are no rows to fit"):
        ff.scan(TABLE[["a"]].iloc[:0]).fit(MinMaxScaler())


# ---- rows that are refused ---------------------------------------------------------------------------------------------


BAD = 1234

REFUSED: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "a target that is NaN": ("t", np.nan, {"target": "t"}, "the target 't' is missing or NaN"),
    "a weight that is NaN": ("t", np.nan, {"weight": "t"}, "the weight 't' is nan"),
    "a weight below 0": ("t", -2.0, {"weight": "t"}, "the weight 't' is -2.0"),
    "a weight without end": ("t", np.inf, {"weight": "t"}, "the weight 't' is inf"),
    "a feature that is NaN": ("a", np.nan, {"features": ["b", "a"]}, "column 'a' is nan, and this estimator takes finite"),
    "a feature without end": ("a", np.inf, {"features": ["b", "a"]}, "column 'a' is inf, and this estimator takes finite"),
}


@pytest.fixture(params=REFUSED)
def refused(request: pytest.FixtureRequest, tmp_path: Path, small_pieces: Cut) -> tuple[ff.Dataset, dict[str, Any], str]:
    column, value, options, says = REFUSED[request.param]
    table = TABLE[list("abc")].assign(t=1.0)
    table.loc[BAD, column] = value
    table.to_parquet(tmp_path / "in.parquet")
    small_pieces(700, 1 << 20)
    return ff.scan(tmp_path / "in.parquet"), options, says


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_row_that_is_refused_is_named_with_its_file_its_number_and_its_column(refused: Any, engine: str) -> None:
    rows, options, says = refused
    with pytest.raises(ValueError, match=says) as raised:
        rows.fit(Power(), engine=engine, workers=2, **options)
    assert [note for note in raised.value.__notes__ if f"row {BAD} of " in note and "in.parquet" in note]
    assert not folders()


def test_a_row_that_is_refused_can_be_skipped_and_the_log_says_so(refused: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows, options, _ = refused
    fitted = rows.fit(Power(), engine="serial", on_error="skip", **options)
    names = options.get("features") or [name for name in "abct" if name not in options.values()]
    rest = TABLE[list("abc")].assign(t=1.0).drop(index=BAD)[names].to_numpy()
    for power, (sums, _, n_rows, _) in enumerate(fitted.sums_, start=1):
        np.testing.assert_allclose(sums, (rest**power).sum(axis=0), rtol=1e-10)
        assert n_rows == N_ROWS - 1
    (line,) = [each for each in caplog.messages if "left out" in each]
    assert "fit left out 1 failed rows" in line
    assert f"row {BAD} of " in line


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_row_that_is_refused_behind_a_transformer_ends_the_fit_and_takes_no_piece_with_it(
    small_pieces: Cut, engine: str
) -> None:
    table = TABLE[list("ab")].copy()
    table.loc[BAD, "a"] = np.nan  # MinMaxScaler takes it, and what comes behind does not
    small_pieces(700, 1 << 20)
    with pytest.raises(ValueError, match="Input X contains NaN: column 'a'"):
        ff.scan(table).fit(make_pipeline(MinMaxScaler(), Power()), engine=engine, workers=2, on_error="skip")
    assert not folders()


def test_rows_that_come_and_go_between_passes_are_told() -> None:
    seen: list[int] = []

    def forgetful(batch: pd.DataFrame) -> pd.DataFrame:
        seen.append(len(batch))
        return batch.iloc[int(len(seen) > 1) :]

    rows = ff.scan(TABLE[["a"]].iloc[:100]).map_batches(forgetful, schema=pa.schema({"a": pa.float64()}))
    with pytest.raises(ValueError, match="there were 100 rows in the first pass, and 99 in pass 2"):
        rows.fit(Power(keep=False), engine="serial")


def test_a_target_that_is_null_is_refused_whatever_its_type(tmp_path: Path) -> None:
    TABLE[["a"]].assign(t=["x"] * 7 + [None] + ["x"] * (N_ROWS - 8)).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(ValueError, match="the target 't' is missing or NaN") as raised:
        ff.scan(tmp_path / "in.parquet").fit(Power(), target="t", engine="serial")
    assert [note for note in raised.value.__notes__ if "row 7 of " in note]


def test_texts_where_numbers_are_taken_are_told_by_column() -> None:
    with pytest.raises(ValueError, match="column 'word' is str, and numbers are taken"):
        ff.scan(TABLE[["a", "word"]]).fit(MinMaxScaler(), engine="serial")


# ---- the same bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_every_engine_gives_the_same_bits(small_pieces: Cut, engine: str, keep: bool) -> None:
    small_pieces(100, 1 << 20)
    rows = ff.scan(TABLE.drop(columns="word"))
    here = rows.fit(Power(), target="y", weight="w", engine="serial")
    there = rows.fit(Power(keep=keep), target="y", weight="w", engine=engine, workers=2)
    assert bits(there) == bits(here)
    scaled = columns().fit(MinMaxScaler(), engine=engine, workers=2)
    assert scaled.scale_.tobytes() == MinMaxScaler().fit(TABLE[list("abc")]).scale_.tobytes()
    assert not folders()


class KillOnce:
    """Kills the worker that comes to a power, once."""

    def __init__(self, folder: Path, power: int) -> None:
        self.path, self.power, self.driver = folder / "killed", power, os.getpid()

    def __call__(self, power: int, rows: Rows) -> None:
        if power == self.power and os.getpid() != self.driver:
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("power", [1, 3])
def test_a_worker_that_is_killed_in_a_pass_changes_no_bit(small_pieces: Cut, tmp_path: Path, power: int) -> None:
    small_pieces(100, 1 << 20)
    expected = bits(columns().fit(Power(), engine="serial"))
    fitted = columns().fit(Power(at=KillOnce(tmp_path, power)), engine="processes", workers=2)
    assert (tmp_path / "killed").exists()
    assert bits(fitted) == expected


class Remove:
    """Removes what is kept, before a power is computed, once."""

    def __init__(self, power: int) -> None:
        self.power, self.is_done = power, False

    def __call__(self, power: int, rows: Rows) -> None:
        import tempfile

        if power == self.power and not self.is_done:
            self.is_done = True
            for name in folders():
                for path in Path(tempfile.gettempdir(), name).glob("*-*"):  # others are being written
                    path.unlink()


def test_rows_that_are_kept_are_not_read_again(small_pieces: Cut) -> None:
    small_pieces(100, 1 << 20)
    calls = []
    rows = columns().map_batches(lambda batch: calls.append(len(batch)) or batch, schema=columns().schema)
    rows.fit(Power(), engine="serial")
    assert sum(calls) == N_ROWS
    rows.fit(Power(keep=False), engine="serial")
    assert sum(calls) == 5 * N_ROWS


def test_passes_over_kept_rows_find_out_once_what_workers_must_be_like(
    small_pieces: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(100, 1 << 20)
    asked = []
    setup = Lanes._setup
    monkeypatch.setattr(Lanes, "_setup", lambda self: asked.append(1) or setup(self))
    columns().fit(Power(6), engine="processes", workers=2)
    assert len(asked) == 2, "once for the pass that reads rows, once for the five that follow"


def test_tables_are_not_kept() -> None:
    class Tables:
        def fit(self, X: Any) -> None: ...

    @ff.recipe(Tables)
    def fit_tables(estimator: Tables, about: About) -> Fit:
        yield Pass(Sum(1, None), keep=True)
        return estimator

    with pytest.raises(TypeError, match="keeps arrays and csr matrices, and its rows are a DataFrame"):
        columns().fit(Tables(), engine="serial")


def test_rows_that_a_machine_has_lost_are_read_again(small_pieces: Cut) -> None:
    small_pieces(100, 1 << 20)
    expected = bits(columns().fit(Power(), engine="serial"))
    assert bits(columns().fit(Power(at=Remove(2)), engine="serial")) == expected


class Behind:
    """Sums of rows as they are, then of what one step more makes of them."""

    def __init__(self, step: Any, at: Any = None) -> None:
        self.step, self.at = step, at

    def fit(self, X: Any) -> None:
        raise NotImplementedError


@ff.recipe(Behind)
def fit_behind(estimator: Behind, about: About) -> Fit:
    numbers = Numbers(takes_nan=False)
    estimator.sums_ = [(yield Pass(Sum(1, None), (numbers,), keep=True))]
    for power in (2, 3):
        estimator.sums_.append((yield Pass(Sum(power, estimator.at), (numbers, estimator.step), keep=True)))
    return estimator


def turned(rows: Rows) -> Rows:
    """Columns whose values lie as they should not: sums over them depend on that."""
    return rows._replace(X=(rows.X @ np.arange(1.0, 10.0).reshape(3, 3))[:, ::-1])


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_one_step_more_begins_with_the_rows_that_are_kept(small_pieces: Cut, engine: str) -> None:
    small_pieces(100, 1 << 20)
    calls = []
    rows = columns().map_batches(lambda batch: calls.append(len(batch)) or batch, schema=columns().schema)
    expected = bits(rows.fit(Behind(turned), engine="serial"))
    assert sum(calls) == N_ROWS
    assert bits(columns().fit(Behind(turned, Remove(2)), engine="serial")) == expected, "read again, they are the same"
    assert bits(columns().fit(Behind(turned), engine=engine, workers=2)) == expected
    assert not folders()


def test_a_row_that_a_later_step_refuses_is_named() -> None:
    def refuse(rows: Rows) -> Rows:
        if (rows.X[:, 0] == TABLE["a"][777]).any():
            raise ValueError("not that one")
        return rows

    with pytest.raises(ValueError, match="not that one") as raised:
        columns().fit(Behind(refuse), engine="serial")
    assert any(note.startswith("fourfold: row 777 of ") for note in raised.value.__notes__)


# ---- recorded ----------------------------------------------------------------------------------------------------------

RECORDED = """
    import os, signal, sys
    import numpy as np
    import pandas as pd
    import fourfold as ff
    from fourfold.workloads.fit.contract import Pass
    from fourfold.workloads.fit.seen import Numbers
    import fourfold.data.sources.parquet as parquet
    import fourfold.data.plan as plan

    run, engine = sys.argv[1:]
    parquet.MIN_ROWS = parquet.MAX_ROWS = plan.MIN_ROWS = 100

    class Sum:
        def __init__(self, power): self.power = power
        def fold(self, rows):
            with open("calls.txt", "a") as file:
                file.write(f"{self.power} {rows.first}\\n")
            if self.power == 4 and rows.first == 1500 and os.path.exists("driver"):
                os.kill(int(open("driver").read()), signal.SIGKILL)
            return (rows.X ** self.power).sum(axis=0)
        def combine(self, left, right): return left + right
        def finish(self, state): return state

    class Power:
        def fit(self, X): ...

    @ff.recipe(Power)
    def fit_power(estimator, about):
        numbers, estimator.sums = Numbers(takes_nan=True), []
        for power in range(1, 6):
            estimator.sums.append((yield Pass(Sum(power), (numbers,), keep=True)))
        return estimator

    if __name__ == "__main__":
        if os.path.exists("driver"):
            with open("driver", "w") as file:
                file.write(str(os.getpid()))
        fitted = ff.scan("in.parquet").fit(Power(), run=run, engine=engine, workers=2)
        print(np.concatenate(fitted.sums).tobytes().hex())
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_fit_whose_driver_was_killed_goes_on_and_no_finished_pass_runs_again(tmp_path: Path, engine: str) -> None:
    TABLE[list("abc")].to_parquet(tmp_path / "in.parquet", row_group_size=100)
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    whole = run_script(RECORDED, "whole", engine, folder=tmp_path, TMPDIR=str(tmp))
    assert whole.code == 0, whole.stderr
    (tmp_path / "calls.txt").unlink()
    (tmp_path / "driver").touch()
    killed = run_script(RECORDED, "run", engine, folder=tmp_path, TMPDIR=str(tmp))
    assert killed.code == -signal.SIGKILL
    before = (tmp_path / "calls.txt").read_text().split("\n")[:-1]
    assert [line.split()[0] for line in before].count("3") == 30
    assert len([*tmp.glob("fourfold-fit-*")]) == 1, "a killed driver leaves what it kept"
    (tmp_path / "driver").unlink()
    if engine == "serial":
        command = [sys.executable, "-m", "fourfold", "resume", "run"]
        env = {**os.environ, "TMPDIR": str(tmp)}
        again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=100)
        assert again.returncode == 0, again.stderr
    else:
        again = run_script(RECORDED, "run", engine, folder=tmp_path, TMPDIR=str(tmp))
        assert again.code == 0, again.stderr
    assert again.stdout == whole.stdout
    after = (tmp_path / "calls.txt").read_text().split("\n")[:-1]
    assert sorted({line.split()[0] for line in after[len(before) :]}) == ["4", "5"], "no finished pass runs again"
    assert not [*tmp.glob("fourfold-fit-*")], "nothing is kept when it has ended"


def test_a_block_of_runs_has_one_folder_for_all_passes_of_a_fit(tmp_path: Path) -> None:
    with ff.using(run=tmp_path):
        columns().fit(Power(2), engine="serial")
    (own,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert {path.name for path in own.iterdir()} == {"fit", "fit.json", "pass-1", "pass-2-kept"}


# ---- what is kept ------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept() -> Iterator[Kept]:
    found = Kept(os.urandom(16).hex())
    found.open()
    yield found
    found.forget()


def kept_and_found(kept: Kept, batches: list[Rows]) -> list[Rows]:
    new = kept.new(3, 0)
    assert new is not None
    for rows in batches:
        new.add(rows)
    new.finish()
    found = kept.find(3, 0, 10)
    assert found is not None
    return list(found)


def test_kept_rows_come_back_as_they_were(kept: Kept) -> None:
    from scipy.sparse import csr_matrix

    values = DRAW.normal(size=(7, 3))
    batches = [
        Rows(values, np.array(["a", None] * 3 + ["b"], dtype=object), np.arange(7.0)),
        Rows(np.asfortranarray(values), np.arange(7)),
        Rows(csr_matrix(np.where(values > 0, values, 0)), np.arange(7) > 3),
        Rows(np.zeros((0, 3)), np.array([], "M8[ns]")),
    ]
    found = kept_and_found(kept, batches)
    assert [rows.first for rows in found] == [10, 17, 24, 31]
    for rows, was in zip(found, batches, strict=True):
        if hasattr(was.X, "tocsr"):
            assert (rows.X != was.X).nnz == 0
            assert type(rows.X) is type(was.X)
        else:
            assert rows.X.tobytes("A") == was.X.tobytes("A")
            assert rows.X.flags.f_contiguous == was.X.flags.f_contiguous
        assert rows.y.dtype == was.y.dtype
        assert rows.y.tolist() == was.y.tolist()
        assert (rows.weight is None) == (was.weight is None)


def test_a_folder_of_kept_rows_is_private_and_somebody_elses_is_refused(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.stat(kept.folder).st_mode & 0o777 == 0o700
    kept_and_found(kept, [Rows(np.ones((2, 2)))])
    os.chmod(kept.folder, 0o777)
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        kept.find(3, 0, None)
    monkeypatch.setattr(keeping, "sweep", list)  # it came between
    other = Kept(os.urandom(16).hex())
    os.mkdir(other.folder, 0o755)
    try:
        with pytest.raises(PermissionError, match="belongs to somebody else"):
            other.open()
    finally:
        os.rmdir(other.folder)


def test_a_folder_that_somebody_holds_is_not_swept_and_one_that_nobody_holds_is(kept: Kept) -> None:
    left = Kept(os.urandom(16).hex())
    os.mkdir(left.folder, 0o700)
    Path(left.folder, "3-0").write_bytes(b"x")
    columns(1).fit(Power(2), engine="serial")
    assert not os.path.exists(left.folder), "the next fit on this machine has swept it"
    assert os.path.isdir(kept.folder)


def test_the_command_clean_removes_what_killed_fits_have_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = Kept(os.urandom(16).hex())
    os.mkdir(left.folder, 0o700)
    clean_command(str(tmp_path))
    said = capsys.readouterr()
    assert said.out.splitlines() == [left.folder]
    assert "1 folders of rows removed" in said.err
    assert not os.path.exists(left.folder)


def test_a_fit_that_was_forgotten_keeps_nothing_more_on_its_drivers_machine(kept: Kept) -> None:
    kept.forget()
    assert kept.new(0, 0) is None
    assert not os.path.exists(kept.folder)


def test_on_another_machine_a_folder_is_made_by_who_keeps_the_first_row(kept: Kept) -> None:
    kept.forget()
    elsewhere = keeping._arrived(kept.name, "another-machine", "/nowhere")
    new = elsewhere.new(0, 0)
    assert new is not None
    new.discard()
    assert os.listdir(kept.folder) == []
    assert keeping.sweep() == [], "the process that keeps there holds it"


def test_workers_of_this_machine_keep_rows_where_the_driver_says(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    parcel = pickle.dumps(kept)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")  # a worker may have looked for its own before TMPDIR was set
    assert pickle.loads(parcel).folder == kept.folder


def test_a_full_disk_is_one_clear_error() -> None:
    seams.set_faults("kept.write:2+:ENOSPC")
    try:
        with pytest.raises(OSError, match=r"there is no room in .* for the rows that this fit looks at again.*TMPDIR"):
            columns().fit(Power(), engine="serial")
    finally:
        seams.set_faults("")
    assert not folders()


INTERRUPTED = """
    import time
    import pandas as pd
    import fourfold as ff
    from fourfold.workloads.fit.contract import Pass
    from fourfold.workloads.fit.seen import Numbers

    class Wait:
        def __init__(self, how_long): self.how_long = how_long
        def fold(self, rows):
            time.sleep(self.how_long)
            return rows.n_rows
        def combine(self, left, right): return left + right
        def finish(self, state): return state

    class Waits:
        def fit(self, X): ...

    @ff.recipe(Waits)
    def fit_waits(estimator, about):
        numbers = Numbers(takes_nan=True)
        yield Pass(Wait(0), (numbers,), keep=True)
        print("ready", flush=True)
        yield Pass(Wait(60), (numbers,), keep=True)
        return estimator

    if __name__ == "__main__":
        ff.scan(pd.DataFrame({"x": range(1000)})).fit(Waits(), engine="processes", workers=2)
"""


@pytest.mark.slow
def test_ctrl_c_while_workers_fold_leaves_no_rows_and_no_workers(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with started(INTERRUPTED, folder=tmp_path, TMPDIR=str(tmp_path / "tmp")) as script:
        assert script.read_line() == "ready"
        assert [*(tmp_path / "tmp").glob("fourfold-fit-*/0-0")]
        script.interrupt()
        ended = script.end()
    assert ended.code == -signal.SIGINT, ended.stderr
    assert ended.survivors == []
    assert not [*(tmp_path / "tmp").glob("fourfold-fit-*")]


class Interrupt:
    def __call__(self, power: int, rows: Rows) -> None:
        if power == 3:
            raise KeyboardInterrupt


def test_after_ctrl_c_nothing_is_kept() -> None:
    with pytest.raises(KeyboardInterrupt):
        columns().fit(Power(at=Interrupt()), engine="serial")
    assert not folders()
