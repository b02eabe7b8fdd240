"""A fitted transformer as a step: its columns take the place of those that it was fitted on."""

import contextlib
from collections.abc import Sequence
from typing import Any

from fourfold.data.sparse import MOST_NAMES, column_of, names_within
from fourfold.data.steps import Apply, Batch
from fourfold.errors import OptionError, OptionTypeError
from fourfold.execute import current
from fourfold.workloads.features import check_features, feature_names


class Transform:
    """See `Dataset.transform`."""

    keeps_rows = True
    imports = ("pandas",)
    most_rows: int | None = None
    least_rows = 0
    model = None
    where = None

    def __init__(self, fitted: Any, dense: bool) -> None:
        self.fitted, self.dense = fitted, dense
        self.title = type(fitted).__qualname__
        if not hasattr(fitted, "transform") or isinstance(fitted, type):
            raise OptionTypeError(f"transform({self.title}): give a fitted transformer, with a method transform")
        if feature_names(fitted) is None:
            raise OptionError(
                f"transform({self.title}): it was not fitted, or on an array without names, so nobody knows which columns it "
                "takes. Fit it on a DataFrame"
            )

    def schema(self, before: Any) -> Any:
        """The new columns have names before anything runs, and types only afterwards."""
        if before is not None:
            check_features(self.fitted, before, self.title)
        return None

    def looks_at(self, before: Any) -> Sequence[str] | None:
        return None

    def prepare(self) -> Apply:
        return _Transforming(self).apply


class _Transforming:
    """A transformer in a worker."""

    def __init__(self, step: Transform) -> None:
        self._fitted, self._is_dense = step.fitted, step.dense
        self._name = step.title
        self._names: tuple[str, ...] | None = None

    def apply(self, batch: Batch) -> Batch:
        current.renew()
        table = batch.table
        check_features(self._fitted, table.schema, self._name)
        names = feature_names(self._fitted) or []
        found = self._fitted.transform(table.select(names).to_pandas())
        columns = self._columns(found, table.num_rows)
        rest = table.drop_columns(names)
        there = {*rest.column_names}
        made = (each for name, column in columns.items() for each in (name, *names_within(column.type)))
        clash = [name for name in made if name in there]
        if clash:
            raise ValueError(
                f"{self._name} makes a column {clash[0]!r}, which the table has already: leave it out with select()"
            )
        for name, column in columns.items():
            rest = rest.append_column(name, column)
        return Batch(rest, batch.numbers)

    def _columns(self, found: Any, n_rows: int) -> dict[str, Any]:
        import numpy as np
        import pyarrow as pa

        if hasattr(found, "toarray"):
            if not self._is_dense:
                return {self._name.lower(): column_of(found, self._name, self._few_names(found.shape[1]))}
            found = found.toarray()
        if hasattr(found, "columns") and not isinstance(found, np.ndarray):  # set_output: a DataFrame
            return {str(name): pa.array(np.asarray(found[name])) for name in found.columns}
        values = np.asarray(found)
        values = values.reshape(n_rows, -1) if values.ndim == 1 else values
        names = [str(name) for name in self._fitted.get_feature_names_out()]
        if values.shape[1] != len(names):
            raise ValueError(
                f"{self._name} gave {values.shape[1]} columns, and get_feature_names_out() has {len(names)} names"
            )
        return {name: _typed(values[:, at]) for at, name in enumerate(names)}

    def _few_names(self, n_columns: int) -> tuple[str, ...] | None:
        """The names of a matrix's columns, when there are some and not too many."""
        if self._names is None and n_columns <= MOST_NAMES:
            with contextlib.suppress(AttributeError):  # hashes have no names
                self._names = tuple(map(str, self._fitted.get_feature_names_out()))
        return self._names


def _typed(values: Any) -> Any:
    """A column; one of mixed objects, as some transformers give them all, has the type that its values have."""
    import pyarrow as pa

    return pa.array(values.tolist()) if values.dtype == object else pa.array(values)
