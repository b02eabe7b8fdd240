"""Predictions: rows go to the models of their groups, and what these say comes back in the order of the rows."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from fourfold.data.kinds import as_column
from fourfold.errors import OptionError
from fourfold.workloads.groups.keys import Key, key_columns, keys_of, numbered
from fourfold.workloads.groups.spill import without_dictionaries
from fourfold.workloads.predict import COLUMN_OF, named


class Models(Protocol):
    """What this needs of GroupModels, which need this."""

    @property
    def classes_(self) -> Any:
        """All classes, in order."""


def rows_by_key(table: Any, by: Sequence[str]) -> Iterator[tuple[Key, Any]]:
    """Each key of a table, and which rows have it."""
    import numpy as np

    columns = key_columns(without_dictionaries(table.select(list(by))), by)
    codes, firsts = numbered(columns, table.num_rows)
    keys = keys_of([column.take(firsts) for column in columns], len(firsts))
    ends = np.bincount(codes, minlength=len(firsts)).cumsum()
    parts = np.split(np.argsort(codes, kind="stable"), ends[:-1]) if keys else []
    yield from zip(keys, parts, strict=True)


def in_order(parts: Sequence[Any]) -> Any:
    """The rows of all of these keys."""
    import numpy as np

    return parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))


class _Values:
    """Says what `predict` of a model does."""

    width: int | None = None

    def __init__(self, models: Models) -> None:
        pass

    def __call__(self, model: Any, X: Any) -> Any:
        import numpy as np

        return np.asarray(model.predict(X))


class _Chances:
    """Says how likely a model finds each class of all models; those that it has not seen are not."""

    def __init__(self, models: Models) -> None:
        self._places = {each: at for at, each in enumerate(models.classes_.tolist())}
        self.width: int | None = len(self._places)

    def __call__(self, model: Any, X: Any) -> Any:
        import numpy as np

        if not hasattr(model, "predict_proba"):
            raise OptionError(f"{type(model).__name__} has no predict_proba: some classifiers want an option for it")
        said = np.asarray(model.predict_proba(X))
        if len(said) and [*model.classes_.tolist()] == [*self._places]:
            return said
        every = np.zeros((len(X), len(self._places)), said.dtype)
        every[:, [self._places[each] for each in model.classes_.tolist()]] = said
        return every


SAY: Mapping[str, type[_Values] | type[_Chances]] = MappingProxyType({"predict": _Values, "predict_proba": _Chances})
"""What says something of the rows of a model, by method."""


def joined(parts: Sequence[tuple[Any, Any]], n_rows: int, width: int | None = None) -> Any:
    """Values in the order of rows. Where there are none, NaN or None.

    Args:
        parts: Rows, and their values; None where no model says any.
        n_rows: Of all.
        width: Of the answer, where it is known though nobody says anything.
    """
    import numpy as np

    given = [values for _, values in parts if values is not None]
    is_full = len(given) == len(parts)
    dtype = np.result_type(*given) if given else np.dtype(float)
    if any(each.dtype.kind != dtype.kind and not {each.dtype.kind, dtype.kind} <= {*"iuf"} for each in given):
        dtype = np.dtype(object)  # numbers of one group and texts of another stay what they are
    if not is_full:
        dtype = np.result_type(dtype, float) if dtype.kind in "iuf" else np.dtype(object)
    rest = given[0].shape[1:] if given else () if width is None else (width,)
    answer = np.full((n_rows, *rest), np.nan if dtype.kind == "f" else None, dtype) if not is_full else None
    answer = np.empty((n_rows, *rest), dtype) if answer is None else answer
    for rows, values in parts:
        if values is not None:
            answer[rows] = values
    return answer


class PredictGroups:
    """Called with batches of a Dataset."""

    def __init__(self, models: Models, unknown: str, method: str) -> None:
        self._models, self._unknown, self._method = models, unknown, method

    def __call__(self, table: Any) -> Any:
        """The batch with its new columns."""
        import pyarrow as pa

        values = getattr(self._models, self._method)(table, self._unknown)
        if self._method == "predict_proba":
            for name, each in named(values, COLUMN_OF[self._method], self._models.classes_).items():
                table = table.append_column(name, pa.array(each, from_pandas=True))
            return table
        column = pa.array(values, from_pandas=True) if values.ndim == 1 else as_column(values)
        if column.null_count == len(column):  # of which type others are, this batch cannot know
            column = pa.nulls(len(column))
        return table.append_column(COLUMN_OF[self._method], column)
