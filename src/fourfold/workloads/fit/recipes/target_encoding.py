"""TargetEncoder: the mean of the target in each category, drawn to the mean of all.

categories, labels ── pass: figures of the target by fold and category ──┬── of all folds: what `transform` uses
                                                                         └── of all folds but one: what later steps of a
                                                                             pipeline see of the rows of this one
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import About, Fit, Pass, Rows, Seen, Trained
from fourfold.workloads.fit.recipes.categories import Categories, no_rows, told


class Labels:
    """The different values of the target, sorted.

    Args:
        are_guessed: A float that is no integer says enough: the target is continuous then.
    """

    def __init__(self, are_guessed: bool) -> None:
        self.are_guessed = are_guessed

    def fold(self, rows: Rows) -> Any:
        """Of some rows."""
        from sklearn.utils._encode import _unique

        return self._short(_unique(rows.y))

    def combine(self, left: Any, right: Any) -> Any:
        """Of both."""
        import numpy as np
        from sklearn.utils._encode import _unique

        return self._short(_unique(np.concatenate([left, right])))

    def finish(self, state: Any) -> Any:
        """As they are."""
        return state

    def _short(self, values: Any) -> Any:
        import numpy as np

        if not self.are_guessed:
            return values
        between = values[values != np.floor(values)] if values.dtype.kind == "f" else values[:0]
        odd = between[~np.isfinite(between)] if len(between) else between
        return odd[:1] if len(odd) else between[:1] if len(between) else values


class Codes:
    """The numbers of labels of all rows, for splitters that look at them: one byte per row, or two, or four."""

    def __init__(self, n_labels: int) -> None:
        self.n_labels = n_labels

    def fold(self, rows: Rows) -> Any:
        """Of some rows."""
        import numpy as np

        return rows.y.astype(np.min_scalar_type(max(1, self.n_labels - 1)))

    def combine(self, left: Any, right: Any) -> Any:
        """Of both."""
        import numpy as np

        return np.concatenate([left, right])

    def finish(self, state: Any) -> Any:
        """As integers of any size."""
        return state.astype("int64")


class Encoded:
    """Rows as numbers: of categories, and of labels or the target itself.

    Args:
        encoder: It knows the categories.
        classes: The labels; None for a continuous target.
    """

    def __init__(self, encoder: Any, classes: Any) -> None:
        self.encoder, self.classes = encoder, classes

    def __call__(self, rows: Rows) -> Rows:
        from sklearn.utils._encode import _encode
        from sklearn.utils.validation import _check_y

        X, _ = self.encoder._transform(rows.X, "ignore", "allow-nan")
        if self.classes is None:
            return rows._replace(X=X, y=_check_y(rows.y, y_numeric=True, estimator=self.encoder))
        return rows._replace(X=X, y=_encode(rows.y, uniques=self.classes))


class Figures(NamedTuple):
    """Of the target. All are arrays: by fold, by category of any column and last by all rows, by output.

    Attributes:
        count: How many rows there are.
        mean: Of them.
        squares: The sum of squared differences from it.
    """

    count: Any
    mean: Any
    squares: Any


class FiguresOf:
    """The target by folds and categories.

    Args:
        n_categories: Of each column.
        n_outputs: One per class of a multiclass target, whose rows are of the class or not; 0: the target is a number.
        folds: The fold of each row; None: there is one.
        n_folds: How many there are.
    """

    def __init__(self, n_categories: Sequence[int], n_outputs: int, folds: Any, n_folds: int) -> None:
        self.n_categories, self.n_outputs = list(n_categories), n_outputs
        self.folds, self.n_folds = folds, n_folds

    def fold(self, rows: Rows) -> Figures:
        """Of some rows."""
        import numpy as np

        y = rows.y[:, None] == np.arange(self.n_outputs) if self.n_outputs else rows.y[:, None]
        y = y.astype(np.float64)
        of_row = 0 if self.folds is None else folds_of(self.folds, rows).astype(np.int64)
        width = sum(self.n_categories) + 1
        begins = np.cumsum([0, *self.n_categories])
        columns = [rows.X[:, at] + begins[at] for at in range(len(self.n_categories))]
        columns.append(np.full(rows.n_rows, width - 1))
        return _stacked([_figures(column + of_row * width, y, self.n_folds * width) for column in columns], self.n_folds)

    def combine(self, left: Figures, right: Figures) -> Figures:
        """Of both."""
        return both(left, right)

    def finish(self, state: Figures) -> Figures:
        """As they are."""
        return state


def folds_of(folds: Any, rows: Rows) -> Any:
    """The folds of some rows.

    Raises:
        ValueError: Nobody knows yet where among all rows they are.
    """
    if rows.first is None:
        raise ValueError("rows have no numbers in the first pass, and folds go by these")
    return folds[rows.first : rows.first + rows.n_rows]


def _figures(groups: Any, y: Any, n_groups: int) -> Figures:
    """Of one column: every row is in one group."""
    import numpy as np

    count = np.bincount(groups, minlength=n_groups).astype(np.float64)[:, None]
    sums = np.stack([np.bincount(groups, each, n_groups) for each in y.T], axis=1)
    mean = sums / np.maximum(count, 1)
    apart = (y - mean[groups]) ** 2
    return Figures(count, mean, np.stack([np.bincount(groups, each, n_groups) for each in apart.T], axis=1))


def _stacked(columns: Sequence[Figures], n_folds: int) -> Figures:
    """Figures of columns together: groups of different columns are different ones, so they are sums."""
    shaped = [Figures(*(each.reshape(n_folds, -1, each.shape[1]) for each in column)) for column in columns]
    return Figures(*(sum(parts[1:], parts[0]) for parts in zip(*shaped, strict=True)))


def both(left: Figures, right: Figures) -> Figures:
    """Of the rows of both. Source: Chan, Golub and LeVeque (1983), equation 2.1."""
    import numpy as np

    count = left.count + right.count
    share = right.count / np.maximum(count, 1)
    apart = right.mean - left.mean
    return Figures(count, left.mean + apart * share, left.squares + right.squares + apart**2 * left.count * share)


class CrossFitted:
    """What `fit_transform` makes of rows: each is encoded by what the other folds say.

    Args:
        encoder: The fitted one.
        folds: The fold of each row.
        encodings: For each fold those of all others, and the means of the target there.
    """

    def __init__(self, encoder: Any, folds: Any, encodings: Sequence[tuple[list[Any], Any]]) -> None:
        self.encoder, self.folds, self.encodings = encoder, folds, list(encodings)

    def __call__(self, rows: Rows) -> Rows:
        import numpy as np
        from sklearn.utils._set_output import _wrap_data_with_container

        X, known = self.encoder._transform(rows.X, "ignore", "allow-nan")
        folds = folds_of(self.folds, rows)
        out = np.empty((rows.n_rows, len(self.encoder.encodings_)))
        for fold, (encodings, mean) in enumerate(self.encodings):
            self.encoder._transform_X_ordinal(out, X, ~known, np.flatnonzero(folds == fold), encodings, mean)
        return rows._replace(X=_wrap_data_with_container("transform", out, rows.X, self.encoder))


def target_encoder(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `TargetEncoder.fit` and `fit_transform`; the formulas are from Micci-Barreca (2001)."""
    from sklearn.model_selection import KFold

    wanted: list[Pass] = [Pass(Categories(counted=False))]
    if estimator.target_type != "continuous":
        wanted.append(Pass(Labels(estimator.target_type != "binary")))
    (columns, n_rows), *labels = yield wanted
    with told(estimator, columns, n_rows):
        estimator._fit(no_rows(about), "ignore", "allow-nan")
    _set_target(estimator, *labels)
    n_outputs = len(estimator.classes_) if estimator.target_type_ == "multiclass" else 0
    view: tuple[Seen, ...] = (Encoded(estimator, estimator.classes_),)
    folds, n_folds = None, 1
    if not about.is_alone:
        cv, y = _splitter(estimator), None
        if estimator.classes_ is not None and not isinstance(cv, KFold):
            y = yield Pass(Codes(len(estimator.classes_)), view, keep=True)
        folds, n_folds = _folds(cv, n_rows, y)
    n_categories = [len(each) for each in estimator.categories_]
    found = yield Pass(FiguresOf(n_categories, n_outputs, folds, n_folds), view, keep=True)
    parts = [Figures(*(each[fold] for each in found)) for fold in range(n_folds)]
    estimator.encodings_, estimator.target_mean_ = _encodings(estimator, _joined(parts), n_categories)
    if folds is None:
        return estimator
    others = [_joined([part for at, part in enumerate(parts) if at != fold]) for fold in range(n_folds)]
    return Trained(estimator, CrossFitted(estimator, folds, [_encodings(estimator, each, n_categories) for each in others]))


def _joined(parts: Sequence[Figures]) -> Figures:
    joined = parts[0]
    for part in parts[1:]:
        joined = both(joined, part)
    return joined


def _set_target(estimator: Any, labels: Any = None) -> None:
    """What kind of target there is, and its classes."""
    import warnings

    from sklearn.preprocessing import LabelBinarizer, LabelEncoder
    from sklearn.utils.multiclass import type_of_target

    estimator.target_type_, estimator.classes_ = estimator.target_type, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nearly each row has a label of its own: these are the labels
        if estimator.target_type == "auto":
            known = ("binary", "multiclass", "continuous")
            found = type_of_target(labels, input_name="y")
            if found not in known:
                raise ValueError(f"Unknown label type: Target type was inferred to be {found!r}. Only {known} are supported.")
            estimator.target_type_ = found
        if estimator.target_type_ != "continuous":
            kind = LabelEncoder if estimator.target_type_ == "binary" else LabelBinarizer
            estimator.classes_ = kind().fit(labels).classes_


def _encodings(estimator: Any, of: Figures, n_categories: Sequence[int]) -> tuple[list[Any], Any]:
    """For each column, and each output of it, the encodings of its categories; and the means of the target."""
    import numpy as np

    count, mean, squares = of.count[:-1], of.mean[:-1], of.squares[:-1]
    overall, variance = of.mean[-1], of.squares[-1] / of.count[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        if estimator.smooth == "auto":
            share = variance * count / (variance * count + squares / count)
            found = np.where(np.isnan(share), overall, share * mean + (1 - share) * overall)
        else:
            weight = count + estimator.smooth
            found = np.where(weight == 0, overall, (estimator.smooth * overall + mean * count) / weight)
    ends = np.cumsum(n_categories)
    parts = [np.ascontiguousarray(each) for block in np.split(found, ends[:-1]) for each in block.T]
    return parts, overall if estimator.target_type_ == "multiclass" else overall[0]


def _splitter(estimator: Any) -> Any:
    """The cross-validation, as `TargetEncoder.fit_transform` makes it."""
    import warnings
    from numbers import Integral

    from sklearn.model_selection import KFold, StratifiedKFold, check_cv

    defaults = type(estimator)()
    given = {name: getattr(estimator, name) for name in ("shuffle", "random_state")}
    given = {name: value for name, value in given.items() if value != "deprecated"}
    if given and defaults.shuffle == "deprecated":
        warnings.warn(
            "`TargetEncoder.shuffle` and `TargetEncoder.random_state` are deprecated in version 1.9 and will be removed in "
            "version 1.11. Pass a cross-validation generator as `cv` argument to specify the shuffling behaviour instead.",
            FutureWarning,
            stacklevel=2,
        )
    if not isinstance(estimator.cv, Integral):
        return check_cv(estimator.cv)
    kind = KFold if estimator.classes_ is None else StratifiedKFold
    return kind(estimator.cv, **{"shuffle": True, **given})


def _folds(cv: Any, n_rows: int, y: Any) -> tuple[Any, int]:
    """The fold of each row, and how many there are.

    Raises:
        ValueError: A row is in no fold, or in several.
    """
    import numpy as np

    number = np.zeros(n_rows, np.uint8)
    n_times = np.zeros(n_rows, np.uint8)
    n_folds = 0
    for _, rows in cv.split(np.broadcast_to(0.0, (n_rows, 1)), np.zeros(n_rows, np.int8) if y is None else y):
        number = number.astype(np.min_scalar_type(n_folds), copy=False) if n_folds > 255 else number
        number[rows] = n_folds
        n_times[rows] = np.minimum(n_times[rows], 1) + 1
        n_folds += 1
    if not np.all(n_times == 1):
        raise ValueError(
            "Validation indices from `cv` must cover each sample index exactly once with no overlap. Pass a splitter with "
            "non-overlapping validation folds as `cv` or refer to the docs for other options."
        )
    return number, n_folds
