"""What a model takes of a table: the columns that it was fitted on, by name and in its order; checked, and in its form.

it knows names     these columns, as a DataFrame; of a sparse column, the columns of its matrix
it knows none      all columns that `keep=` does not name, as one array; a sparse column's matrix alone
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fourfold.data.sparse import matrix_of, names_within, sparse_columns
from fourfold.errors import OptionError

OF_NUMBERS = ("sklearn", "lightgbm", "xgboost")
"""Packages whose classifiers and regressors take numbers only, unless there are others within them."""


def feature_names(estimator: Any) -> list[str] | None:
    """The names that an estimator was fitted on; None when it does not say."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None and hasattr(estimator, "feature_name_") and not hasattr(type(estimator), "feature_names_in_"):
        names = estimator.feature_name_  # LightGBM before 4.6, which makes names up when there were none
        names = None if list(names) == [f"Column_{at}" for at in range(len(names))] else names
    return None if names is None else [str(name) for name in names]


def columns_of(estimator: Any, names: Sequence[str], available: Sequence[str]) -> list[str]:
    """The columns of these names. LightGBM has underscores in its names for the spaces in theirs."""
    if not hasattr(estimator, "feature_name_"):
        return list(names)
    spaced = {name.replace(" ", "_"): name for name in available}
    return [name if name in available else spaced.get(name, name) for name in names]


def check_features(estimator: Any, schema: Any, what: str, keep: Sequence[str] | None = None) -> None:
    """Check that a table has what an estimator was fitted on.

    Args:
        estimator: Fitted.
        schema: Of the table.
        what: The estimator's name, for messages.
        keep: See `unnamed`.

    Raises:
        OptionError: A column is missing or there more than once, there are too many or too few, or it is a text where
            numbers are taken.
    """
    sparse, names = sparse_columns(schema), feature_names(estimator)
    if names is None:
        taken = sparse or unnamed(schema.names, keep)
        n_taken = sum(schema.field(name).type.width for name in sparse) if sparse else len(taken)
        _check_number(estimator, n_taken, taken, schema, what)
    else:
        taken = columns_of(estimator, names, schema.names)
        missing = [name for name in taken if name not in schema.names]
        inside = _places(schema, sparse) if missing else {}
        missing = [name for name in missing if name not in inside]
        if missing:
            raise OptionError(
                f"{what} was fitted on {len(names)} features, of which {_listed(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not in the table. Columns: {', '.join(schema.names)}",
                is_of_plan=True,
            )
        if sparse:
            _check_once(taken, schema, what)
    if _takes_numbers_only(estimator):
        _check_numbers([schema.field(name) for name in taken if name in schema.names and name not in sparse], what)


def _check_once(names: Sequence[str], schema: Any, what: str) -> None:
    """Raise OptionError where a name is in the table and in a matrix, or in two: nobody knows which is meant."""
    times = Counter([*schema.names, *(name for field in schema for name in names_within(field.type))])
    twice = [name for name in names if times[name] > 1]
    if twice:
        raise OptionError(
            f"{what} takes a column {twice[0]!r}, and there are {times[twice[0]]} of that name, in the table and in sparse "
            "matrices: leave all but one out with select()",
            is_of_plan=True,
        )


def _check_number(estimator: Any, n_taken: int, taken: Sequence[str], schema: Any, what: str) -> None:
    n_features = getattr(estimator, "n_features_in_", None)
    if n_features is None or n_features == n_taken:
        return
    shown = ", ".join(taken[:8]) + ("…" if len(taken) > 8 else "")
    if sparse_columns(schema):
        has, then = f"the sparse columns before it ({shown}) hold {n_taken:,}", "transform with what it was fitted on"
    else:
        besides = n_taken < len(schema.names)
        has = f"the table has {n_taken} columns{' that keep= does not name' if besides else ''} ({shown})"
        then = "select() those that it takes, in its order, or name the others in keep="
        if besides and n_taken < n_features:
            then = (
                "what keep= names is no feature. To have features beside the prediction leave it out, and select() afterwards"
            )
    raise OptionError(
        f"{what} was fitted on {n_features:,} features without names, and {has}: {then}",
        is_of_plan=True,
    )


def _check_numbers(fields: Sequence[Any], what: str) -> None:
    import pyarrow.types as types

    is_number = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    for field in fields:
        if not types.is_dictionary(field.type) and not any(test(field.type) for test in is_number):  # categories may be taken
            raise OptionError(f"{what} takes numbers, and column {field.name!r} is {field.type}", is_of_plan=True)


def _takes_numbers_only(estimator: Any) -> bool:
    """Classifiers and regressors do, unless there are others within them; transformers, like encoders, need not."""
    if not hasattr(estimator, "predict") or hasattr(estimator, "transform"):
        return False
    if hasattr(estimator, "takes_numbers"):
        return bool(estimator.takes_numbers)
    if type(estimator).__module__.partition(".")[0] not in OF_NUMBERS:
        return False  # a class of the user, or of another package: it may encode texts itself
    if not hasattr(estimator, "n_features_in_") and not hasattr(estimator, "feature_names_in_"):
        return False  # nobody knows what it takes
    within = estimator.get_params(deep=False).values() if hasattr(estimator, "get_params") else ()
    is_dummy = type(estimator).__module__ == "sklearn.dummy"
    return not is_dummy and not any(isinstance(each, list) or hasattr(each, "fit") for each in within)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def unnamed(columns: Sequence[str], keep: Sequence[str] | None) -> list[str]:
    """The columns that a model takes which knows no names: those that are no keys.

    Args:
        columns: Of the table.
        keep: Columns that stand beside the prediction. They are no features, unless nothing else is left; None: not said.
    """
    return [name for name in columns if name not in (keep or ())] or list(columns)


def features_of(estimator: Any, table: Any, names: Sequence[str] | None, keep: Sequence[str] | None) -> Any:
    """What an estimator is given of a table: a DataFrame, an array, a list of texts, or a sparse matrix.

    Args:
        estimator: Fitted.
        table: With what it takes: see `check_features`.
        names: See `feature_names`.
        keep: See `unnamed`.
    """
    sparse = sparse_columns(table.schema)
    if names is not None:
        columns = columns_of(estimator, names, table.column_names)
        if not sparse or all(name in table.column_names for name in columns):
            return table.select(columns).to_pandas()
        return _named_matrix(table, sparse, columns)
    if sparse:
        return matrix_of(table, sparse)
    return _array(table.select(unnamed(table.column_names, keep)), estimator)


def _array(table: Any, estimator: Any) -> Any:
    import numpy as np
    import pyarrow.types as types

    if not table.num_columns:
        return table.to_pandas()
    if table.num_columns == 1 and not hasattr(estimator, "n_features_in_") and types.is_string(table.schema.field(0).type):
        return table.column(0).to_numpy()  # as vectorizers of texts take them
    return np.column_stack([column.to_numpy() for column in table.columns])


def _places(schema: Any, sparse: Sequence[str]) -> dict[str, int]:
    """Where the named columns of sparse matrices are, when these stand beside each other."""
    places: dict[str, int] = {}
    width = 0
    for column in sparse:
        type_ = schema.field(column).type
        places |= {name: width + at for at, name in enumerate(type_.names or ())}
        width += type_.width
    return places


def _named_matrix(table: Any, sparse: Sequence[str], names: Sequence[str]) -> Any:
    """A DataFrame of sparse columns, in the order of names of which some may be columns of the table."""
    import numpy as np
    import pandas as pd
    from scipy.sparse import csr_matrix, hstack

    matrix, places = matrix_of(table, sparse), _places(table.schema, sparse)
    dense = [name for name in names if name in table.column_names]
    places |= {name: matrix.shape[1] + at for at, name in enumerate(dense)}
    if dense:
        beside = np.column_stack([table.column(name).to_numpy() for name in dense])
        matrix = hstack([matrix, csr_matrix(beside)], format="csr")
    return pd.DataFrame.sparse.from_spmatrix(matrix[:, [places[name] for name in names]], columns=list(names))
