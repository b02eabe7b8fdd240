"""Rows too many to hold: where they come from, and what is to be done with them. Nothing runs before a result is asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from fourfold.data.kinds import as_kind, check_kind
from fourfold.data.numbered import Numbered
from fourfold.data.plan import Plan
from fourfold.data.running import Run
from fourfold.data.schema import SchemaConflict, fitted, unified
from fourfold.data.steps import Step, parts_of
from fourfold.data.work import Count, Tables
from fourfold.errors import OptionError, UnwritableValue
from fourfold.options import OnError, Options
from fourfold.workloads.describe import Describe, described
from fourfold.workloads.fit.fitting import fitted as fitted_to
from fourfold.workloads.groups.asked import asked_for, check_estimator
from fourfold.workloads.groups.fitting import fit_groups
from fourfold.workloads.groups.models import GroupModels
from fourfold.workloads.groups.sources import OfDataset
from fourfold.workloads.steps import batch_rows, drawn, filtered, mapped, predicted, selected, transformed

if TYPE_CHECKING:
    import os

    import pandas
    import polars
    import pyarrow

    from fourfold.data.writing import Written


class Dataset:
    """Rows of a table, and steps that are done with them in one pass. Made by `fourfold.scan`; it does not change.

    Attributes:
        schema: Of its rows, as an Arrow schema; None when only a run can tell, after a function without `schema=`.
        columns: The names in it; None likewise.

    Example:
        >>> import fourfold as ff
        >>> ds = ff.scan([{"x": 1}, {"x": 2}, {"x": 3}])
        >>> large = ds.map_batches(lambda batch: batch.assign(y=batch.x * 10)).filter(lambda batch: batch.y > 10)
        >>> large.to_arrow().to_pylist()
        [{'x': 2, 'y': 20}, {'x': 3, 'y': 30}]
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def schema(self) -> "pyarrow.Schema | None":
        """See the class."""
        return self._plan.schema()

    @property
    def columns(self) -> list[str] | None:
        """See the class."""
        schema = self.schema
        return None if schema is None else list(schema.names)

    def __repr__(self) -> str:
        n_rows = self._plan.source.n_rows
        size = "" if n_rows is None else f"{n_rows:,} rows "
        steps = "".join(f", then {type(step).__name__}" for step in self._plan.steps)
        return f"Dataset({size}of {', '.join(self._plan.columns)}{steps})"

    # ---- steps -------------------------------------------------------------------------------------------------------

    def select(self, columns: Sequence[str]) -> "Dataset":
        """Keep these columns, in this order. Others are not read, unless an earlier step may look at them.

        Raises:
            OptionError: There is no such column.
        """
        return self._with(selected(columns))

    def filter(self, condition: Any, batch_format: str = "pandas") -> "Dataset":
        """Keep the rows that fulfil a condition.

        Args:
            condition: An expression of Arrow (`pyarrow.compute.field("x") > 3`); conditions as pandas takes them,
                `[("x", ">", 3), ("y", "in", [1, 2])]`, or a list of such lists, of which one is to hold; or a function that
                takes a batch and gives a boolean for each row. A null is no true.
            batch_format: The kind of table that the function takes.

        Raises:
            OptionError: The expression names a column that is not there, or one of another type; before anything runs, where
                the columns are known.

        Cost: what an expression says of columns that are read, before any function of yours, leaves row groups of Parquet
            unread that cannot have such rows, and files of folders `column=value` unopened.
        """
        return self._with(filtered(condition, batch_format))

    def map_batches(
        self,
        fn: Callable[..., Any],
        *,
        init: tuple[Any, ...] = (),
        batch_size: int | str = "auto",
        batch_format: str = "pandas",
        schema: Any = None,
    ) -> "Dataset":
        """Call a function with each batch of rows; what it gives are the rows of the new dataset, more or fewer or as many.

        Args:
            fn: Takes a table of the kind `batch_format`, and gives a table of any kind, a dict of columns, a list of dicts, or
                a generator of these. A class is built once per worker with `init=`, and its instance is called.
            init: Arguments of the class.
            batch_size: The most rows of a batch; it may have fewer, and none at all. "auto" is some 40,000.
            batch_format: "pandas", "polars", "arrow", "numpy" (a dict of arrays) or "pylist" (a list of dicts).
            schema: Of what it gives: an Arrow schema, or a dict of names and types. Without it the columns and types are those
                that all batches have in common; a batch that does not go with the others is an error that names it.

        Raises:
            OptionError: An argument cannot be used; before anything runs.

        Guarantees: what a batch is depends on the input and `batch_size` only, not on workers or engine.
        """
        return self._with(mapped(fn, init, batch_size, batch_format, schema))

    def transform(self, transformer: Any, dense: bool = False) -> "Dataset":
        """Apply a fitted transformer of scikit-learn: its columns take the place of those that it was fitted on.

        They stand behind the others, which are kept.

        Args:
            transformer: Fitted on a DataFrame, so that it knows its columns. New ones are named by `get_feature_names_out()`.
            dense: Make columns of a sparse result. Without it that stays sparse: one column, called as the transformer's
                class in small letters, which `predict` takes and does not keep, and `filter` by an expression passes on. Asked
                for as a table it is an error, since a thousand columns of zeros need memory.

        Raises:
            OptionError: A column that it takes is not there; before anything runs, where the columns are known.
            OptionTypeError: A sparse result is to be written, or a function is to take it; when the first batch is there.
        """
        return self._with(transformed(transformer, dense))

    def predict(
        self,
        model: Any,
        *,
        method: str = "predict",
        keep: Sequence[str] | None = None,
        name: str | None = None,
        init: tuple[Any, ...] = (),
        batch_size: int | str = "auto",
        batch_format: str = "pandas",
        size_of: Callable[[Any], Any] | None = None,
        dedupe: Sequence[str] = (),
    ) -> "Dataset":
        """Say for each row what a model makes of it, beside the columns that are kept.

        Args:
            model: The path of a model (joblib, pickle, skops, ONNX), which each worker loads once; a fitted estimator or
                Pipeline, with scikit-learn's interface; a module of torch; or a class that is built once per worker with
                `init=`, and takes a batch and gives an array, a dict of arrays or a table with as many rows.
            method: Of an estimator: "predict", "predict_proba", "decision_function", or another that takes features.
            keep: Columns of the input beside the prediction; None for all.
            name: Of the new column; of several, the beginning. By default `prediction`, `proba_<class>`, `decision`.
            init: Arguments of the class.
            batch_size: Rows of a call. "auto" grows while that makes rows faster, and shrinks when memory runs out.
            batch_format: The kind of table that a class takes.
            size_of: Takes such a table and gives a size for each row: rows of like size are given to the model together.
            dedupe: Columns: of the rows of a batch that are equal in these, the model sees the first only.

        Raises:
            OptionError: A column that the model was fitted on is not there; before anything runs, where model and columns are
                known. A file that is no model, or, from the call that runs and before anything does, is not there: on a
                cluster, where workers may see what this machine does not, they tell.
            MissingExtra: From the call that runs, before anything does: what loads the file is not installed.

        Guarantees: columns are given to an estimator by name and in its order; to one that knows no names, those that `keep`
            does not name, in theirs. With batch_size="auto", models that use BLAS
            may differ in their last bits from run to run.
        """
        step = predicted(
            model,
            method=method,
            keep=keep,
            name=name,
            init=init,
            batch_size=batch_size,
            batch_format=batch_format,
            size_of=size_of,
            dedupe=dedupe,
        )
        return self._with(step)

    def split(self, test: float, seed: int = 0, by: str | None = None) -> tuple["Dataset", "Dataset"]:
        """Two datasets, for training and for testing: each row is in one of them.

        Which one depends on the number of the row in the dataset and on `seed`, not on workers, batches or files' sizes.

        Args:
            test: The share of rows in the second, from 0 to 1; each row is drawn by itself, so it is about that.
            seed: Another one draws other rows.
            by: A column: rows with the same value of it go together.

        Raises:
            OptionError: `test` is no share; or rows have no number any more, after `map_batches`.
        """
        train, held = drawn(test, seed, by)
        numbered = self._numbered(by)  # one source, so that rows which must be counted are counted once
        steps = numbered._plan.steps
        return numbered._with(train.behind(steps)), numbered._with(held.behind(steps))

    def sample(self, fraction: float, seed: int = 0, by: str | None = None) -> "Dataset":
        """About this share of the rows: see `split`."""
        _, kept = drawn(fraction, seed, by, "fraction")
        return self._numbered(by)._with(kept.behind(self._plan.steps))

    def _numbered(self, by: str | None) -> "Dataset":
        """The same rows, with numbers that tell which is which, unless a column does."""
        if by is not None:
            return self
        if not self._plan.keeps_rows():
            raise OptionError(
                "after map_batches nobody knows which row is which: split or sample first, or name a column with by="
            )
        source = self._plan.source
        if source.n_rows is not None or isinstance(source, Numbered):
            return self
        return Dataset(self._plan._replace(source=Numbered(source)))

    def _with(self, step: Step) -> "Dataset":
        return Dataset(self._plan.with_step(step))

    # ---- training ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        estimator: Any,
        target: str | None = None,
        features: Sequence[str] | None = None,
        weight: str | None = None,
        **options: Unpack[Options],
    ) -> Any:
        """Fit an estimator of scikit-learn to all rows, in parallel; no more of them are in memory than the workers look at.

        Args:
            estimator: One that has a recipe, or a Pipeline, ColumnTransformer or FeatureUnion of such. It is fitted itself.
            target: The column that it learns to predict; None when it needs none.
            features: The columns that it learns from; None for all but target and weight.
            weight: A column of weights, one per row. Of a Pipeline the last step takes them.
            **options: See `fourfold.Options`.

        Returns:
            The estimator: the same as its own `fit` makes of all rows, up to the last digits of sums.

        Raises:
            OptionError: There is no recipe for its class, or a column is not there; before anything runs.
            ValueError: The rows cannot be fitted to: a NaN where it takes none, a target of one class.

        Guarantees: the same bits for any number of workers, and any engine.

        Example:
            >>> import fourfold as ff
            >>> from sklearn.preprocessing import MinMaxScaler
            >>> ff.scan([{"x": 1.0}, {"x": 5.0}, {"x": 3.0}]).fit(MinMaxScaler()).data_max_.tolist()
            [5.0]
        """
        return fitted_to(self._plan, estimator, target, features, weight, options).estimator

    def fit_groups(
        self,
        estimator: Any,
        by: str | Sequence[str],
        target: str | None = None,
        features: Sequence[str] | None = None,
        weight: str | None = None,
        *,
        min_rows: int = 1,
        fallback: str | None = None,
        score: Any = None,
        folder: str | None = None,
        on_error: OnError = "collect",
        **options: Any,
    ) -> GroupModels:
        """Fit one model to each group of rows, with the estimator's own `fit`: what a loop over the groups would make.

        Rows are put together by groups in files, so that a worker holds no more than a group, or some small ones, of the
        dataset. The largest groups begin first; small ones travel many at once.

        Args:
            estimator: Any of scikit-learn's kind. Each group gets a clone, it itself is not fitted. Where its `random_state`
                is None, the group's is made of the key and `seed=`; another one stays.
            by: The columns whose values make a group. Null and NaN are a value.
            target: The column to predict; None for an estimator that needs none.
            features: The columns that models learn from; None for all but those of `by`, target and weight.
            weight: A column of weights, one per row. Of a Pipeline the last step takes them.
            min_rows: A group of fewer rows is not fitted.
            fallback: What `predict` uses for a group that has no model. "parent": a model of the rows that have the same key
                but for its last column, and so on down to that of all rows; "global": one of all rows. These are fitted as
                well, each by one worker that holds its rows.
            score: None, the name of a metric ("r2", "accuracy"), or a function of a fitted model, X and y: what it says of
                the rows that the model was fitted to is in the summary. It takes about as long as a small fit.
            folder: Where rows wait for their fit; None for among the temporary files of this machine, or beside the folder of
                `run=`. Workers on other machines must see it. What is put there is removed at the end.
            on_error: What is done about a fit that raises, crashes or takes too long. "collect": the group has no model, and
                its status and error are in the summary; "skip": it is left out; "raise": it ends the call.
            **options: See `fourfold.Options`. An item is a group: `timeout` is for each. With `run=FOLDER` the same call fits
                those that are left.

        Returns:
            The models by key, and what became of each group.

        Raises:
            OptionError: A column is not there, or an argument cannot be used; before anything runs.
            UnreadableInput: Somebody has removed the rows that wait for their fits.
            Exception: What a row raised that a step before could not do: a group is fitted to all its rows, or not at all.

        Guarantees: rows of a group are in the order of the dataset, so models are the same for any number of workers and any
            engine, and those of a loop. `ff.rng()` in a fit depends on the key and `seed=` only.
        """
        asked = asked_for(self._plan.schema(), by, target, features, weight, min_rows, fallback, on_error)
        check_estimator(estimator)
        source = OfDataset(self._plan.narrowed(asked.names), {**options, "on_error": on_error})
        return fit_groups(source, estimator, asked, score, folder)

    # ---- results -----------------------------------------------------------------------------------------------------

    def count(self, **options: Unpack[Options]) -> int:
        """How many rows there are. Without steps that change them nothing is read, where the files know."""
        plan = self._plan.narrowed(())
        run = Run(plan, Count(), options, "count")
        if plan.source.n_rows is not None and not plan.steps:
            return plan.source.n_rows
        with run.pieces_done() as pieces:
            n_rows = sum(done.value or 0 for _, done in pieces)
        run.warn_of_failures()
        return n_rows

    def describe(self, batch_format: str = "pandas", **options: Unpack[Options]) -> Any:
        """Figures of each column, from one pass: rows, nulls (NaN is one), distinct values, mean, std, quantiles.

        The number of distinct values has a standard error of 1.6 %, a quantile is off by at most 1 % of its value; all others
        are exact. The same bits for any number of workers.
        """
        kind = check_kind("batch_format", batch_format)
        run = Run(self._plan, Describe(), options, "describe")
        with run.pieces_done() as pieces:
            parts = [done.value or {} for _, done in sorted(pieces, key=lambda each: each[0].number)]
        run.warn_of_failures()
        return as_kind(described(parts, self.columns or []), kind)

    def head(self, n: int = 5, batch_format: str = "pandas") -> Any:
        """The first rows, computed here, in this process; no more is read than they need."""
        kind = check_kind("batch_format", batch_format)
        self._plan.check_models()
        prepared = self._plan._replace(batch_rows=min(self._plan.batch_rows, max(n, 1))).prepare()
        tables, n_rows = [], 0
        for piece in self._plan.pieces():
            for _, batch in prepared.batches(piece):
                table = prepared.run(batch)
                if table is None:
                    continue
                tables.append(table)
                n_rows += table.num_rows
                if n_rows >= n:
                    return as_kind(_joined(self._plan, tables).slice(0, n), kind)
        return as_kind(_joined(self._plan, tables).slice(0, n), kind)

    def iter_batches(
        self, batch_size: int | str = "auto", batch_format: str = "pandas", **options: Unpack[Options]
    ) -> Iterator[Any]:
        """The rows in order, as tables of at most so many rows, while others are still computed. Memory stays bounded.

        Each has the types that hold all rows up to it.

        Raises:
            UnwritableValue: A batch does not go with those before it.
        """
        kind, most = check_kind("batch_format", batch_format), batch_rows(batch_size)
        run = Run(self._plan, Tables(), options, "iter_batches", is_stream=True)
        return self._batches(run, kind, most)

    def _batches(self, run: Run, kind: str, most: int | None) -> Iterator[Any]:
        schema = self.schema
        with run.pieces_done() as pieces:
            for table in (table for _, done in pieces for table in done.value or ()):
                schema = _with(schema, table)
                for part in parts_of(table, most):
                    if part.num_rows:
                        yield as_kind(fitted(part, schema), kind)
        run.warn_of_failures()

    def to_arrow(self, **options: Unpack[Options]) -> "pyarrow.Table":
        """All rows, in order, as one Arrow table. Rows that failed, under `on_error="skip"` or `"collect"`, are logged.

        Raises:
            UnwritableValue: A batch does not go with the others.
            Exception: See `fourfold.map`.
        """
        run = Run(self._plan, Tables(), options, "to_arrow")
        with run.pieces_done() as pieces:
            tables = [table for _, done in sorted(pieces, key=lambda each: each[0].number) for table in done.value or ()]
        run.warn_of_failures()
        return _joined(self._plan, tables)

    def to_pandas(self, **options: Unpack[Options]) -> "pandas.DataFrame":
        """All rows as a DataFrame of pandas: see `to_arrow`."""
        check_kind("to_pandas", "pandas")
        return self.to_arrow(**options).to_pandas()

    def to_polars(self, **options: Unpack[Options]) -> "polars.DataFrame":
        """All rows as a DataFrame of Polars: see `to_arrow`."""
        check_kind("to_polars", "polars")
        import polars

        return polars.DataFrame(self.to_arrow(**options))

    def write(
        self,
        path: "str | os.PathLike[str]",
        format: str = "parquet",
        partition_by: str | Sequence[str] | None = None,
        overwrite: bool = False,
        order: bool = True,
        storage_options: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> "Written":
        """Write all rows into the files of a folder, which appears whole or not at all.

        In a store, behind a URL, `_fourfold.json` is put last and names the files that count: see docs/preprocess.md.

        Args:
            path: The folder, on a file system that all workers see; or a URL of fsspec (s3, gs, abfs, …).
            format: "parquet", "csv" or "jsonl".
            partition_by: Columns whose values become folders `column=value`, and are not in the files. None whose name
                begins with `_` or `.`: readers leave such folders alone.
            overwrite: Whether it may take the place of what is there.
            order: True: in each folder, the names of the files are in the order of the input, and so are the rows in them.
                False: rows may be in any order, and small files of a folder (below 16 MiB) are put together into larger ones
                once all are there: `partition_by` makes one for each piece and value, and a filter leaves little of a piece.
            storage_options: For the file system of a URL. They go to the workers, and are kept in no file of a recorded run.
            **options: See `fourfold.Options`. With `run=FOLDER` the same call goes on after its driver was killed, and one
                that was finished is done at once. Rows that fail under "skip" or "collect" are kept in `_failed/`.

        Returns:
            The files, the rows that failed, and the report.

        Raises:
            OptionError: Something is there already, or an argument cannot be used; before anything runs.
            UnwritableValue: A batch does not go with the others, or the format cannot hold it. Nothing appears.

        Guarantees: each row is written once, whatever is killed meanwhile. Files do not depend on workers or engine (in a
            store, their names do: no two attempts have the same).
        """
        from fourfold.data.writing import write

        return write(self._plan, path, format, partition_by, overwrite, order, storage_options, dict(options))


def _with(schema: Any, table: Any) -> Any:
    """The schema that holds the rows of this table too."""
    try:
        return table.schema if schema is None else unified([schema, table.schema])
    except SchemaConflict as error:
        raise UnwritableValue(f"a batch does not go with those before it: {error}") from error


def _joined(plan: Plan, tables: list[Any]) -> Any:
    """Tables in order as one."""
    import pyarrow as pa

    schema = plan.schema()
    if not tables:
        return schema.empty_table() if schema is not None else plan.of_no_rows()
    try:
        whole = unified([table.schema for table in tables])
        return pa.concat_tables([fitted(table, whole) for table in tables])
    except SchemaConflict as error:
        raise UnwritableValue(f"the batches do not go together: {error}") from error
