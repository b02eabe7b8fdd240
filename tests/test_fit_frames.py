"""`fit` and `describe` of frames, with partitions in this process in the place of a cluster's."""

import itertools
import socket
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import Ridge
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler, TargetEncoder

import fourfold as ff
from fourfold.data.frames import FrameFold, FrameKnown, FramePass
from fourfold.data.staying import Invitation, Members, serve
from fourfold.data.steps import is_of_plan
from fourfold.errors import OptionError, UnsupportedOption
from fourfold.workloads.fit.contract import About, Fit, Pass, Rows
from fourfold.workloads.fit.seen import Numbers
from fourfold.workloads.frame import Frame

DRAW = np.random.default_rng(4)
TABLE = pd.DataFrame({"a": DRAW.normal(size=600), "b": DRAW.random(600), "y": DRAW.random(600), "w": DRAW.random(600)})


class Here:
    """A kind of frame: a list of tables. It counts jobs."""

    name = "a list of tables"

    def __init__(self, can_ask: bool = False) -> None:
        self.can_ask, self.n_jobs, self.n_asked = can_ask, 0, 0

    def schema(self, frame: Any) -> Any:
        return frame[0].schema

    def sample(self, frame: Any, n_rows: int) -> Any:
        return pa.concat_tables(frame).slice(0, n_rows)

    def select(self, frame: Any, columns: Sequence[str]) -> Any:
        return [part.select(list(columns)) for part in frame]

    def map(self, frame: Any, run: FramePass) -> Any:
        raise NotImplementedError

    def settled(self, frame: Any) -> Any:
        return frame

    def gather(self, frame: Any, fold: FrameFold) -> list[bytes]:
        self.n_jobs += 1
        return [fold(number, iter([part])) for number, part in enumerate(self.parts(frame))]

    def parts(self, frame: Any) -> Any:
        return frame

    def members(self, frame: Any, n_partitions: int) -> Members | None:
        return None

    def known(self, frame: Any, known: FrameKnown, n_partitions: int) -> list[bytes]:
        self.n_asked += self.can_ask
        return [known(number) for number in range(n_partitions)] if self.can_ask else []


def parted(n_parts: int = 5, table: pd.DataFrame = TABLE) -> list[Any]:
    whole = pa.Table.from_pandas(table, preserve_index=False)
    ends = [len(table) * at // n_parts for at in range(n_parts + 1)]
    return [whole.slice(0, 0), *(whole.slice(begin, end - begin) for begin, end in itertools.pairwise(ends))]


class Sums:
    def __init__(self, power: int) -> None:
        self.power = power

    def fold(self, rows: Rows) -> Any:
        X = rows.X.toarray() if hasattr(rows.X, "toarray") else rows.X
        return (X**self.power).sum(axis=0), rows.first, rows.n_rows

    def combine(self, left: Any, right: Any) -> Any:
        assert left[1] is None or right[1] == left[1] + left[2]
        return left[0] + right[0], left[1], left[2] + right[2]

    def finish(self, state: Any) -> Any:
        return state[0]


class Power:
    def fit(self, X: Any) -> None:
        raise NotImplementedError


@ff.recipe(Power)
def fit_power(estimator: Power, about: About) -> Fit:
    numbers, estimator.sums_ = Numbers(takes_nan=False), []
    for power in range(1, 5):
        estimator.sums_.append((yield Pass(Sums(power), (numbers,), keep=True)))
    return estimator


@pytest.mark.parametrize("n_parts", [1, 7, 64])
@pytest.mark.parametrize("estimator", [StandardScaler(), MinMaxScaler(), Ridge()])
def test_what_is_fitted_to_partitions_is_what_its_own_fit_makes_of_all_rows(estimator: Any, n_parts: int) -> None:
    options = {"target": "y", "weight": "w"} if isinstance(estimator, Ridge) else {}
    found = Frame(Here(), parted(n_parts)).fit(clone(estimator), features=["a", "b"], **options)
    own = clone(estimator)
    expected = own.fit(TABLE[["a", "b"]], TABLE["y"], TABLE["w"]) if options else own.fit(TABLE[["a", "b"]])
    for name, value in vars(expected).items():
        if name.endswith("_") and isinstance(value, np.ndarray) and value.dtype != object:
            np.testing.assert_allclose(getattr(found, name), value, rtol=1e-10)
    assert found.feature_names_in_.tolist() == ["a", "b"]


@pytest.mark.parametrize("can_ask", [True, False])
def test_rows_are_kept_and_asked_for_before_a_job_brings_them(can_ask: bool) -> None:
    calls = []

    def note(batch: Any) -> Any:
        calls.append(len(batch))
        return batch

    kind = Here(can_ask)
    frame = Frame(kind, parted()).select(["a", "b"]).map_batches(note, schema={"a": "float64", "b": "float64"})
    found = frame.fit(Power())
    assert sum(calls) == len(TABLE), "only the first of four passes runs the steps"
    assert (kind.n_jobs, kind.n_asked) == ((1, 3) if can_ask else (4, 0))
    for power, sums in enumerate(found.sums_, start=1):
        np.testing.assert_allclose(sums, (TABLE[["a", "b"]] ** power).sum(), rtol=1e-10)


def test_where_machines_do_not_know_they_are_asked_once() -> None:
    class Elsewhere(Here):
        def known(self, frame: Any, known: FrameKnown, n_partitions: int) -> list[bytes]:
            self.n_asked += 1
            return [b""] * (n_partitions - 1) + [known(n_partitions - 1)]

    kind = Elsewhere()
    Frame(kind, parted()).fit(Power(), features=["a"])
    assert (kind.n_jobs, kind.n_asked) == (4, 1)


class Staying(Here):
    """It has tasks that stay, of which one may end at a power."""

    def __init__(self, ends_at: int = 0) -> None:
        super().__init__(can_ask=True)
        self.ends_at, self.n_questions = ends_at, 0

    def members(self, frame: Any, n_partitions: int) -> Members | None:
        def start(invitation: Invitation, n_members: int) -> None:
            threads = [threading.Thread(target=serve, args=(invitation,)) for _ in range(n_members)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        found, ask = Members(start, 2, "127.0.0.1", "127.0.0.1"), Members.ask

        def counted(question: Any) -> list[bytes]:
            self.n_questions += 1
            if self.n_questions == self.ends_at:
                found._lines[1].shutdown(socket.SHUT_RDWR)
            return ask(found, question)

        found.ask = counted  # type: ignore[method-assign]
        return found


@pytest.mark.parametrize(("ends_at", "n_questions", "n_asked"), [(0, 3, 0), (2, 2, 2)])
def test_tasks_that_stay_are_asked_without_a_job_and_where_one_ends_jobs_go_on(
    ends_at: int, n_questions: int, n_asked: int
) -> None:
    kind = Staying(ends_at)
    n_threads = threading.active_count()
    found = Frame(kind, parted()).fit(Power(), features=["a", "b"])
    assert (kind.n_jobs, kind.n_questions, kind.n_asked) == (1, n_questions, n_asked)
    assert threading.active_count() == n_threads, "they end with the fit"
    there = Frame(Here(), parted()).fit(Power(), features=["a", "b"])
    assert np.array(found.sums_).tobytes() == np.array(there.sums_).tobytes()


def test_tasks_that_stay_have_ended_before_a_job_reads_rows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, living = Staying(), []
    gather = kind.gather
    monkeypatch.setattr(kind, "gather", lambda *given: living.append(threading.active_count()) or gather(*given))
    Frame(kind, parted()).fit(KeptThenNot(), features=["a"])
    assert kind.n_questions == 1
    assert living[0] == living[1], "a job that waits for their slots would wait for ever"


class KeptThenNot:
    def fit(self, X: Any) -> None:
        raise NotImplementedError


@ff.recipe(KeptThenNot)
def fit_kept_then_not(estimator: KeptThenNot, about: About) -> Fit:
    numbers = Numbers(takes_nan=True)
    for _ in range(2):
        yield Pass(Sums(1), (numbers,), keep=True)
    yield Pass(Sums(1), (Numbers(takes_nan=True),))
    return estimator


def test_partitions_that_are_others_in_each_job_are_refused() -> None:
    class Changing(Here):
        def parts(self, frame: Any) -> Any:
            return [pa.concat_tables(frame[:2]), *frame[2:]] if self.n_jobs > 1 else frame

    with pytest.raises(ValueError, match=r"a list of tables had other partitions in the job before: .*Cache or persist it"):
        Frame(Changing(), parted()).fit(StandardizedTwice())


class StandardizedTwice:
    def fit(self, X: Any) -> None:
        raise NotImplementedError


@ff.recipe(StandardizedTwice)
def fit_twice(estimator: StandardizedTwice, about: About) -> Fit:
    for _ in range(2):
        yield Pass(Sums(1), (Numbers(takes_nan=True),))
    return estimator


def test_what_a_sparse_transformer_has_made_can_be_fitted_to() -> None:
    def as_sparse(X: Any) -> Any:
        return csr_matrix(np.where(np.asarray(X) > 0.5, X, 0))

    sparse = FunctionTransformer(as_sparse, feature_names_out="one-to-one", accept_sparse=True)
    prep = ColumnTransformer([("s", sparse, ["a", "b"])], sparse_threshold=1.0).fit(TABLE[["a", "b"]])
    found = Frame(Here(), parted()).select(["a", "b", "y"]).transform(prep).fit(Power(), target="y")
    np.testing.assert_allclose(found.sums_[0], prep.transform(TABLE).toarray().sum(axis=0), rtol=1e-10)


def test_what_cannot_be_fitted_is_refused_before_a_job_runs() -> None:
    kind = Here()
    with pytest.raises(OptionError, match="no column 'z'"):
        Frame(kind, parted()).fit(MinMaxScaler(), features=["z"])
    with pytest.raises(OptionError, match="no recipe that fits Nothing"):
        Frame(kind, parted()).fit(type("Nothing", (), {"fit": None})())
    assert kind.n_jobs == 0
    with pytest.raises(ValueError, match="there are no rows to fit"):
        Frame(kind, parted(1, TABLE.iloc[:0])).fit(MinMaxScaler())


def test_a_fit_to_a_frame_takes_no_options_and_says_where_they_are_set() -> None:
    kind = Here()
    with pytest.raises(
        UnsupportedOption, match=r"workers=, progress=: a fit to a list of tables takes no options.*the cluster"
    ):
        Frame(kind, parted()).fit(MinMaxScaler(), features=["a"], workers=2, progress=False)
    assert kind.n_jobs == 0


def test_an_encoder_alone_makes_no_folds_of_a_frame_either() -> None:
    rows = pd.DataFrame({"word": ["a", "b", "a"], "y": [1.0, 2.0, 5.0]})
    found = Frame(Here(), parted(2, rows)).fit(TargetEncoder(cv=5), "y")
    np.testing.assert_allclose(found.encodings_, TargetEncoder().fit(rows[["word"]], rows["y"]).encodings_)


def test_an_error_that_ended_a_fit_to_a_frame_is_as_any_other_afterwards() -> None:
    rows = pd.DataFrame({"a": [1.0, 2.0], "y": ["x", "y"]})
    with pytest.raises(ValueError, match="the target is to be numbers") as raised:
        Frame(Here(), parted(1, rows)).fit(Ridge(), "y")
    assert not is_of_plan(raised.value)


def test_a_row_that_is_refused_is_shown() -> None:
    bad = TABLE.assign(y=TABLE["y"].where(TABLE.index != 333))
    with pytest.raises(ValueError, match="the target 'y' is missing or NaN") as raised:
        Frame(Here(), parted(5, bad)).fit(Power(), target="y")
    assert [note for note in raised.value.__notes__ if note.startswith(f"fourfold: the row is {{'a': {bad['a'][333]}")]


def test_figures_of_partitions_are_those_of_the_table() -> None:
    found = Frame(Here(), parted()).describe()
    exact = ["column", "type", "rows", "nulls", "distinct", "min", "max", "50%"]
    here = ff.scan(TABLE).describe()
    pd.testing.assert_frame_equal(found[exact], here[exact])
    np.testing.assert_allclose(found["std"].to_numpy(), TABLE.std().to_numpy(), rtol=1e-10)
