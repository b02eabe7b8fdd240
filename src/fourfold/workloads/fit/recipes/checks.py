"""What a recipe asks of the rows before it looks at them, and of targets and weights then: in scikit-learn's own words."""

from typing import Any

from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import About, Fit, Pass, Rows
from fourfold.workloads.fit.together import together


def check_target(estimator: Any, about: About) -> None:
    """Refuse to fit without a target.

    Raises:
        ValueError: There is none.
    """
    if not about.has_target:
        name = type(estimator).__name__
        raise ValueError(
            f"This {name} estimator requires y to be passed, but the target y is None: name its column with target="
        )


def check_no_weights(estimator: Any, about: About) -> None:
    """Refuse weights that the estimator's own `fit` does not take.

    Raises:
        OptionError: There are some.
    """
    if about.has_weight:
        raise OptionError(f"{type(estimator).__name__} takes no weights: leave out weight=")


class AnyWeight:
    """Whether any row has a weight other than 0."""

    def fold(self, rows: Rows) -> bool:
        """Of some rows."""
        return bool((rows.weight != 0).any())

    def combine(self, left: bool, right: bool) -> bool:
        """Of both."""
        return left or right

    def finish(self, state: bool) -> bool:
        """Raises ValueError where all rows count for nothing."""
        if not state:
            raise ValueError("Sample weights must contain at least one non-zero number.")
        return state


def with_any_weight(fit: Fit) -> Fit:
    """The recipe, whose first pass refuses weights that are all 0, as scikit-learn does."""
    ended, _ = yield from together([fit, _any_weight()])
    return ended


def _any_weight() -> Fit:
    found = yield Pass(AnyWeight())
    return found


def dtype_of(about: About) -> Any:
    """The type of numbers that scikit-learn would compute with: float32 when all columns are, and float64 otherwise."""
    import numpy as np

    types = [about.dtype] if about.example is None else list(about.example.dtypes)
    if types and all(isinstance(each, np.dtype) and each.kind in "fiub" for each in types):
        return np.dtype(np.float32 if np.result_type(*types) == np.float32 else np.float64)
    return np.dtype(np.float64)


def weights_of(rows: Rows, has_weight: bool) -> Any:
    """One weight per row; None when there are none, and each row counts once.

    Raises:
        ValueError: One is negative, NaN or infinite.
    """
    import numpy as np

    if not has_weight:
        return None
    weight = np.asarray(rows.weight, np.float64)
    if not np.isfinite(weight).all():
        raise ValueError(f"Input sample_weight contains {'NaN' if np.isnan(weight).any() else 'infinity'}.")
    if (weight < 0).any():
        raise ValueError("Negative values in data passed to `sample_weight`.")
    return weight


def numbers_of(y: Any) -> Any:
    """A target as float64.

    Raises:
        ValueError: It is no number, or not a finite one.
    """
    import numpy as np

    try:
        y = np.asarray(y, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the target is to be numbers, and this one is not: {error}. Labels are for a classifier") from None
    if not np.isfinite(y).all():
        raise ValueError(f"Input y contains {'NaN' if np.isnan(y).any() else 'infinity'}.")
    return y


def labels_of(y: Any) -> tuple[Any, Any]:
    """The different labels of a target, sorted, and for each row which one of them it has.

    Raises:
        ValueError: One is missing.
    """
    import numpy as np
    import pandas as pd

    y = np.asarray(y)
    if pd.isna(y).any():
        raise ValueError("Input y contains NaN.")
    return np.unique(y, return_inverse=True)
