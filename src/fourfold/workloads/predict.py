"""A model as a step: what it says of each row, beside the columns that are kept.

batch ──features──> model, some rows at a time ──> prediction | proba_<class> | … ──> kept columns + these
"""

from collections.abc import Callable, Sequence
from typing import Any

from fourfold.data.kinds import IMPORTS_OF, as_column, as_kind
from fourfold.data.sparse import sparse_columns
from fourfold.data.steps import Apply, Batch, check_columns
from fourfold.errors import InitFailed, OptionError
from fourfold.execute import current
from fourfold.workloads.batching import FIRST_ROWS, BatchSize
from fourfold.workloads.features import check_features, feature_names, features_of
from fourfold.workloads.models import Model

COLUMN_OF = {"predict": "prediction", "predict_proba": "proba", "decision_function": "decision"}
"""How the column of a method is called; of any other method, as the method."""


BUCKETS = 64
"""Calls of the model among which rows are sorted by size, or equal ones are found. Fewer: more rows of unlike size in a call.
More: pieces of more rows, for fewer workers."""


class Predict:
    """See `Dataset.predict`.

    Args:
        model: What says something of each row.
        method: Of an estimator.
        keep: Columns of the input that are kept; None for all but sparse ones.
        name: None, or what the new column is called, or the beginning of the names of several.
        batch_size: Rows of a call; None is found out.
        kind: The kind of table that a class of the user takes.
        size_of: None, or gives a size for each row of such a table: rows of like size go together.
        dedupe: Columns: of rows that are equal in these, the first is computed.
    """

    keeps_rows = True
    where = None

    def __init__(
        self,
        model: Model,
        method: str,
        keep: Sequence[str] | None,
        name: str | None,
        batch_size: int | None,
        kind: str,
        size_of: Callable[[Any], Any] | None,
        dedupe: Sequence[str],
    ) -> None:
        self.model, self.method, self.keep, self.name = model, method, keep, name
        self.batch_size, self.kind, self.size_of, self.dedupe = batch_size, kind, size_of, tuple(dedupe)
        sees_many = size_of is not None or bool(self.dedupe)
        self.most_rows = None if sees_many else batch_size
        self.least_rows = BUCKETS * (batch_size or FIRST_ROWS) if sees_many else 0

    def schema(self, before: Any) -> Any:
        """Nobody knows the new columns before the model has run; but what it takes can be checked when it is here."""
        check_columns([*(self.keep or ()), *self.dedupe], before, "predict")
        known = self.model.known()
        if before is not None and known is not None:
            check_features(known, before, self.model.name, self.keep)
            self._check_method(known)
        return None

    @property
    def imports(self) -> tuple[str, ...]:
        """See `fourfold.system.imports`."""
        return *IMPORTS_OF[self.kind if self.model.is_class else "pandas"], *self.model.imports

    @property
    def title(self) -> str:
        """The name of the model."""
        return self.model.name

    def looks_at(self, before: Any) -> Sequence[str] | None:
        return None

    def _check_method(self, estimator: Any) -> None:
        if hasattr(estimator, self.method):
            return
        has = [each for each in COLUMN_OF if hasattr(estimator, each)]
        hint = ". Of a class of your own give the class, and init=" if callable(estimator) and not has else ""
        raise OptionError(
            f"method={self.method!r}: {self.model.name} has none; it has {', '.join(has) or 'no such method'}{hint}"
        )

    def prepare(self) -> Apply:
        try:
            loaded = self.model.load()
        except Exception as error:
            raise InitFailed(f"the model {self.model.name} could not be loaded: {type(error).__name__}: {error}") from error
        if not self.model.is_class:
            try:
                self._check_method(loaded)
            except OptionError as error:
                raise InitFailed(str(error)) from error
        return _Predicting(self, loaded).apply


class _Predicting:
    """A model in a worker."""

    def __init__(self, step: Predict, loaded: Any) -> None:
        self._step, self._loaded = step, loaded
        self._names = None if step.model.is_class else feature_names(loaded)
        self._size = BatchSize(step.batch_size)
        self._checked = False

    def apply(self, batch: Batch) -> Batch:
        step, table = self._step, batch.table
        if not self._checked and not step.model.is_class:
            check_features(self._loaded, table.schema, step.model.name, step.keep)
            self._checked = True
        columns = self._all_columns(table)
        kept = table.drop_columns(sparse_columns(table.schema)) if step.keep is None else table.select(list(step.keep))
        for name, column in columns.items():
            if name in kept.column_names:
                raise ValueError(f"the table has a column {name!r} already: name the new one with name=, or say what to keep=")
            kept = kept.append_column(name, column)
        return Batch(kept, batch.numbers)

    def _all_columns(self, table: Any) -> dict[str, Any]:
        """What is said of each row, in the order of the rows."""
        import numpy as np
        import pyarrow as pa

        first, back = _distinct(table, self._step.dedupe)
        rows = table if first is None else table.take(pa.array(first))
        order = None
        if self._step.size_of is not None:
            order = np.argsort(np.asarray(self._step.size_of(as_kind(rows, self._step.kind))), kind="stable")
            rows = rows.take(pa.array(order))
        parts = self._size.run(self._call, rows)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if order is not None:
            inverse = np.empty_like(order)
            inverse[order] = np.arange(len(order))
            columns = {name: values[inverse] for name, values in columns.items()}
        if back is not None:
            columns = {name: values[back] for name, values in columns.items()}
        return {name: _arrow(values) for name, values in columns.items()}

    def _call(self, table: Any) -> dict[str, Any]:
        """One call of the model: arrays by the names of columns."""
        current.renew()
        step = self._step
        if step.model.is_class:
            given = self._loaded(as_kind(table, step.kind))
        else:
            given = getattr(self._loaded, step.method)(features_of(self._loaded, table, self._names, step.keep))
        columns = named(given, step.name or COLUMN_OF.get(step.method, step.method), self._classes())
        for name, values in columns.items():
            if len(values) != table.num_rows:
                raise ValueError(
                    f"{step.model.name} gave {len(values)} values of {name!r} for {table.num_rows} rows: give one for each"
                )
        return columns

    def _classes(self) -> Any:
        """What the columns of an array are called after; None when they stand for nothing that has a name."""
        is_pairwise = getattr(self._loaded, "decision_function_shape", None) == "ovo"
        if self._step.method == "predict_proba" or (self._step.method == "decision_function" and not is_pairwise):
            return getattr(self._loaded, "classes_", None)
        return None


def _distinct(table: Any, columns: Sequence[str]) -> tuple[Any, Any]:
    """The first row of each group of equal ones, and for each row the place of its group; None for both without columns."""
    import numpy as np

    if not columns:
        return None, None
    groups: dict[tuple[Any, ...], int] = {}
    first: list[int] = []
    back = np.empty(table.num_rows, np.int64)
    for row, key in enumerate(zip(*(table.column(name).to_pylist() for name in columns), strict=True)):
        shown = tuple(repr(value) for value in key)  # lists have no hash, and NaN is not equal to itself
        if shown not in groups:
            groups[shown] = len(first)
            first.append(row)
        back[row] = groups[shown]
    return first, back


def named(given: Any, name: str, classes: Any) -> dict[str, Any]:
    """Arrays by the names of columns: what a model gave, in any of the forms that models give.

    One value per row is `name`. Several are `name_<class>` where the model has classes, else `name_0`, `name_1`, …. A table
    or a dict of columns has names of its own.
    """
    import numpy as np

    if hasattr(given, "columns") and hasattr(given, "to_numpy"):  # a DataFrame
        return {str(each): given[each].to_numpy() for each in given.columns}
    if isinstance(given, dict):
        return {str(each): np.asarray(values) for each, values in given.items()}
    if isinstance(given, list) and given and all(getattr(each, "ndim", 0) == 2 for each in given):  # several outputs at once
        parts = [named(each, f"{name}_{at}", None if classes is None else classes[at]) for at, each in enumerate(given)]
        return {each: values for part in parts for each, values in part.items()}
    values = given.toarray() if hasattr(given, "toarray") else np.asarray(given)
    if values.ndim == 1:
        return {name: values}
    if values.ndim == 2:
        is_said = classes is not None and not isinstance(classes, list) and len(classes) == values.shape[1]
        return {f"{name}_{each}": values[:, at] for at, each in enumerate(classes if is_said else range(values.shape[1]))}
    raise ValueError(
        f"the model gave an array of {values.ndim} dimensions: it must give one value, or one row of them, for each row"
    )


def _arrow(values: Any) -> Any:
    return as_column(values.tolist() if values.dtype == object else values)
