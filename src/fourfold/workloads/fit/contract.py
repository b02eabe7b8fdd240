"""The contract of a recipe: how one class of estimator is fitted from parts of the rows.

A recipe is a generator. It yields what it wants to know of all rows, is sent the answer, and ends with the fitted estimator:

    def fit_max_abs(estimator, about):
        most = yield Pass(MostAbsolute())          # one pass over all rows
        estimator.max_abs_ = most
        return estimator

What it yields may be a list of passes: then all are done at once, and a list of answers is sent.
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol


class Rows(NamedTuple):
    """Some rows as an estimator sees them.

    Attributes:
        X: A DataFrame of pandas, an array of two dimensions, or a csr matrix of scipy; for estimators that take texts, an
            array of them.
        y: An array with one value per row; None without a target.
        weight: An array of float64, one per row; None without weights.
        first: The number of the first one among all rows of this fit; None in the first pass, when nobody has counted yet.
    """

    X: Any
    y: Any = None
    weight: Any = None
    first: int | None = None

    @property
    def n_rows(self) -> int:
        """How many there are."""
        return int(self.X.shape[0])


class Seen(Protocol):
    """What is done with rows before an estimator sees them. It travels to workers, and is called there."""

    def __call__(self, rows: Rows) -> Rows:
        """The same rows, with other columns.

        Raises:
            ValueError: The estimator cannot take them; the message names the column.
        """


class Aggregator(Protocol):
    """Something that is known of all rows when it is known of parts of them.

    It travels to workers. A state travels back, so it is small: it does not grow with the rows.
    """

    def fold(self, rows: Rows) -> Any:
        """The state of these rows. Called in a worker, with one row at least."""

    def combine(self, left: Any, right: Any) -> Any:
        """The state of both; the rows of the left come before those of the right. It may change and return either."""

    def finish(self, state: Any) -> Any:
        """What is known of all rows. Called once, here.

        Raises:
            ValueError: The estimator cannot be fitted to them.
        """


class Pass(NamedTuple):
    """One look at all rows.

    Attributes:
        aggregator: What is wanted.
        seen: What is done with the rows before; the first one is done first.
        keep: The same rows, seen the same way, will be looked at again: each machine keeps what it has made of them, which is
            to be an array or a csr matrix. Rows are read again where nobody has kept them.
        again: All rows will be looked at again, and be seen some other way: their tables are kept, where that is cheap.
    """

    aggregator: Aggregator
    seen: tuple[Seen, ...] = ()
    keep: bool = False
    again: bool = False


class About(NamedTuple):
    """What is known of the rows before the first one is read.

    Attributes:
        example: The columns as a DataFrame of no rows; None when they come as an array or a matrix without names.
        n_features: How many columns there are; None when an estimator takes texts.
        is_sparse: They come as a csr matrix.
        has_target: There is a `y`.
        has_weight: There are weights.
        is_alone: The estimator is all that is fitted: no later step is trained on what it makes of the rows.
        dtype: The type of what comes as an array or a matrix; None where nobody knows.
    """

    example: Any
    n_features: int | None
    is_sparse: bool = False
    has_target: bool = False
    has_weight: bool = False
    is_alone: bool = False
    dtype: Any = None

    @property
    def names(self) -> list[str] | None:
        """The names of the columns; None when they have none."""
        return None if self.example is None else [str(name) for name in self.example.columns]


Fit = Generator[Pass | list[Pass], Any, Any]
"""A recipe at work. It ends with the fitted estimator, or with a `Trained`."""

Recipe = Callable[[Any, About], Fit]


class Trained(NamedTuple):
    """A fitted transformer whose `fit_transform` gives other rows than its `transform`: a later step is trained on those.

    Attributes:
        estimator: The fitted one.
        seen: Makes of rows what `fit_transform` makes of them.
    """

    estimator: Any
    seen: Seen


def drive(fit: Fit, run: Callable[[list[Pass]], list[Any]]) -> Any:
    """Run a recipe to its end.

    Args:
        fit: The recipe.
        run: Does some passes at once, and gives what each finished with.
    """
    answer: Any = None
    while True:
        try:
            wanted = fit.send(answer)
        except StopIteration as end:
            return end.value
        answer = run(wanted) if isinstance(wanted, list) else run([wanted])[0]
