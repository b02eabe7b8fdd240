"""A fitted transformer as a step: its columns take the place of those that it was fitted on."""

from collections.abc import Sequence
from typing import Any

from fourfold.data.steps import Apply, Batch
from fourfold.errors import OptionError, OptionTypeError
from fourfold.execute import current
from fourfold.workloads.models import check_features, feature_names


class Transform:
    """See `Dataset.transform`."""

    keeps_rows = True
    most_rows: int | None = None
    least_rows = 0
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
        return self._apply

    def _apply(self, batch: Batch) -> Batch:
        current.renew()
        table = batch.table
        check_features(self.fitted, table.schema, self.title)
        names = feature_names(self.fitted) or []
        found = self.fitted.transform(table.select(names).to_pandas())
        columns = self._columns(found, table.num_rows)
        rest = table.drop_columns(names)
        clash = [name for name in columns if name in rest.column_names]
        if clash:
            raise ValueError(
                f"{self.title} makes a column {clash[0]!r}, which the table has already: leave it out with select()"
            )
        for name, column in columns.items():
            rest = rest.append_column(name, column)
        return Batch(rest, batch.numbers)

    def _columns(self, found: Any, n_rows: int) -> dict[str, Any]:
        import numpy as np
        import pyarrow as pa

        if hasattr(found, "toarray"):
            if not self.dense:
                raise TypeError(
                    f"{self.title} gives a sparse matrix, and a table has dense columns: write transform(…, dense=True), "
                    "or let it give dense ones (sparse_output=False, sparse_threshold=0)"
                )
            found = found.toarray()
        if hasattr(found, "columns") and not isinstance(found, np.ndarray):  # set_output: a DataFrame
            return {str(name): pa.array(np.asarray(found[name])) for name in found.columns}
        values = np.asarray(found)
        values = values.reshape(n_rows, -1) if values.ndim == 1 else values
        names: Sequence[str] = [str(name) for name in self.fitted.get_feature_names_out()]
        if values.shape[1] != len(names):
            raise ValueError(
                f"{self.title} gave {values.shape[1]} columns, and get_feature_names_out() has {len(names)} names"
            )
        return {name: _typed(values[:, at]) for at, name in enumerate(names)}


def _typed(values: Any) -> Any:
    """A column; one of mixed objects, as some transformers give them all, has the type that its values have."""
    import pyarrow as pa

    return pa.array(values.tolist()) if values.dtype == object else pa.array(values)
