"""The three kinds of frames that clusters have: how they tell their columns, and how a pass goes over their batches."""

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fourfold.data.frames import SAMPLE_ROWS, FrameFold, FrameKind, FrameKnown, FramePass
from fourfold.data.kinds import as_kind, as_table
from fourfold.data.staying import Invitation, Members, MembersLost, serve
from fourfold.errors import EngineError, OptionError


def frame_kind_of(obj: Any) -> FrameKind | None:
    """What kind of cluster's frame this is, by where its class is from; None for anything else."""
    for each in type(obj).__mro__:
        module = each.__module__
        if each.__name__ == "DataFrame" and module.startswith("pyspark.sql"):
            return OnSpark()
        if each.__name__ in ("DataFrame", "FrameBase") and module.startswith(("dask.dataframe", "dask_expr")):
            return OnDask()
        if each.__name__ == "Dataset" and module.startswith("ray.data"):
            return OnRay()
    return None


def _usual(schema: Any) -> Any:
    return as_table(schema.empty_table(), "the frame").schema


# ---- Spark -----------------------------------------------------------------------------------------------------------


class OnSpark:
    """A DataFrame of Spark, Classic or Connect."""

    name = "a DataFrame of Spark"

    def schema(self, frame: Any) -> Any:
        return _usual(_arrow_of(frame.schema))

    def sample(self, frame: Any, n_rows: int) -> Any:
        return as_table(frame.limit(n_rows).toArrow(), self.name)

    def select(self, frame: Any, columns: Sequence[str]) -> Any:
        return frame.select(*("`" + name.replace("`", "``") + "`" for name in columns))  # a dot would be a field of a struct

    def map(self, frame: Any, run: FramePass) -> Any:
        fields = _fields_of_spark(run.schema)
        return _without_dots(frame).mapInArrow(run.giving(_arrow_of(fields)).batches, fields)

    def settled(self, frame: Any) -> Any:
        return frame  # the user caches it, where that pays

    def gather(self, frame: Any, fold: FrameFold) -> list[bytes]:
        with _told_when_cancelled():
            found = _without_dots(frame).mapInArrow(_folding(fold), PARTS).toArrow()
        return _parts_of(found)

    def engine(self, frame: Any) -> Any:
        from fourfold.engines import Spark

        return Spark(session=frame.sparkSession)

    def members(self, frame: Any, n_partitions: int) -> Members | None:
        from fourfold.distribute.engines.on_spark.inherited import is_remote, settings_of_this_thread

        if is_remote(frame):  # its tasks may not reach this machine
            return None
        context = frame.sparkSession.sparkContext
        told = context.getConf().get
        if any((told(name) or "").lower() == "true" for name in NOT_WITH_MEMBERS):
            return None

        set_there = settings_of_this_thread(frame.sparkSession)

        def start(invitation: Invitation, n_members: int) -> None:
            set_there()
            with _told_when_cancelled():
                context.parallelize(range(n_members), n_members).foreach(lambda _: serve(invitation))

        host = told("spark.driver.host", "127.0.0.1")
        try:
            return Members(start, min(n_partitions, _slots_of(context)), host, told("spark.driver.bindAddress", host))
        except (MembersLost, OSError):
            return None

    def known(self, frame: Any, known: FrameKnown, n_partitions: int) -> list[bytes]:
        numbers = frame.sparkSession.range(0, n_partitions, 1, n_partitions)
        with _told_when_cancelled():
            return _parts_of(numbers.mapInArrow(_knowing(known), PARTS).toArrow())


@contextlib.contextmanager
def _told_when_cancelled() -> Iterator[None]:
    from fourfold.distribute.engines.on_spark.inherited import is_called_off

    try:
        yield
    except Exception as error:
        if is_called_off(error):
            raise EngineError("the Spark job of this pass was cancelled") from error
        raise


NOT_WITH_MEMBERS = (
    "spark.authenticate.enableSaslEncryption",
    "spark.network.crypto.enabled",
    "spark.speculation",
    "spark.ssl.rpc.enabled",
)
"""Settings with which no tasks stay: their lines are not encrypted; and Spark would start one once more that takes long, and
end it when the other one has found that nobody waits for it."""


def _slots_of(context: Any) -> int:
    """Tasks that run at once, one at least: others would come when the first ones have ended, and be waited for in vain.

    `defaultParallelism` is what a user has set, where they have, and that is often twice as many and more.
    """
    try:
        spark = context._jsc.sc()
        found = int(spark.maxNumConcurrentTasks(spark.resourceProfileManager().defaultResourceProfile()))
    except Exception:  # it is no part of what Spark promises
        found = context.defaultParallelism
    return max(1, found)


PARTS = "number int, part binary"
"""The columns in which values of partitions come back from Spark."""


def _parts_of(found: Any) -> list[bytes]:
    return [each["part"] for each in sorted(found.to_pylist(), key=operator.itemgetter("number"))]


def _without_dots(frame: Any) -> Any:
    """The frame with other names where one has a dot: mapInArrow asks for columns by name, and takes dots for fields."""
    if any("." in name for name in frame.columns):
        return frame.toDF(*(f"column_{number}" for number in range(len(frame.columns))))
    return frame


def _folding(fold: FrameFold) -> Any:
    def run(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow as pa
        from pyspark import TaskContext

        context = TaskContext.get()
        number = 0 if context is None else context.partitionId()
        tables = (pa.Table.from_batches([batch]).rename_columns(fold.run.before.names) for batch in batches)
        yield _as_parts([number], [fold(number, tables)])

    return run


def _knowing(known: FrameKnown) -> Any:
    def run(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            numbers = batch.column(0).to_pylist()
            yield _as_parts(numbers, [known(number) for number in numbers])

    return run


def _as_parts(numbers: Sequence[int], parts: Sequence[bytes]) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([pa.array(numbers, pa.int32()), pa.array(parts, pa.binary())], ["number", "part"])


def _arrow_of(fields: Any) -> Any:
    """The Arrow schema of a StructType. Times are points on a line: UTC says them as well as the zone of any session."""
    from pyspark.sql.pandas.types import to_arrow_schema

    try:
        return to_arrow_schema(fields, timezone="UTC")
    except TypeError:  # of an older Spark, which takes UTC by itself
        return to_arrow_schema(fields)


def _fields_of_spark(schema: Any) -> Any:
    """The StructType of an Arrow schema.

    Raises:
        OptionError: Spark has no type for the values of a column.
    """
    import pyarrow as pa
    from pyspark.sql.pandas.types import from_arrow_schema

    known = pa.schema([field.with_type(_known_to_spark(field.type)) for field in schema])
    for field in known:
        try:
            _arrow_of(from_arrow_schema(pa.schema([field])))
        except (TypeError, ValueError) as error:  # what PySpark raises is one of them
            raise OptionError(
                f"column {field.name!r} is {schema.field(field.name).type}, and Spark has no such type: make another one of "
                "it in a step before, such as texts"
            ) from error
    return from_arrow_schema(known)


SPARK_DIGITS = 38
"""Digits that a decimal of Spark has at most."""


def _known_to_spark(type_: Any) -> Any:
    """A type that Spark has for the values of one: for numbers the one that it takes when it reads them from Parquet."""
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        return _known_to_spark(type_.value_type)
    if any(is_list(type_) for is_list in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        return pa.list_(_known_to_spark(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_known_to_spark(field.type)) for field in type_])
    if pa.types.is_map(type_):
        return pa.map_(_known_to_spark(type_.key_type), _known_to_spark(type_.item_type))
    if pa.types.is_decimal(type_) and type_.precision <= SPARK_DIGITS:
        return pa.decimal128(type_.precision, type_.scale)
    others = {
        "uint8": pa.int16(),
        "uint16": pa.int32(),
        "uint32": pa.int64(),
        "uint64": pa.decimal128(20, 0),
        "halffloat": pa.float32(),
        "string_view": pa.string(),
        "binary_view": pa.binary(),
        "date64[ms]": pa.date32(),
    }
    return others.get(str(type_), type_)


# ---- Dask ------------------------------------------------------------------------------------------------------------


class OnDask:
    """A DataFrame of Dask."""

    name = "a DataFrame of Dask"

    def schema(self, frame: Any) -> Any:
        import pyarrow as pa

        found = as_table(frame._meta, self.name).schema
        if pa.null() not in found.types:
            return found
        seen = self.sample(frame, SAMPLE_ROWS).schema  # objects may be texts, dates, lists: only rows tell
        return pa.schema([seen.field(field.name) if pa.types.is_null(field.type) else field for field in found])

    def sample(self, frame: Any, n_rows: int) -> Any:
        return as_table(frame.head(n_rows, npartitions=-1), self.name)

    def select(self, frame: Any, columns: Sequence[str]) -> Any:
        frame = frame if frame.index.name is None else frame.reset_index()
        names = {str(name): name for name in frame.columns}
        return frame[[names[name] for name in columns]]

    def map(self, frame: Any, run: FramePass) -> Any:
        before = run.before
        dtypes = {
            str(name): dtype
            for name, dtype in frame._meta.dtypes.items()
            if str(name) in run.schema.names and run.schema.field(str(name)).type == before.field(str(name)).type
        }
        meta = _as_frame(run.schema.empty_table(), dtypes)
        # The index numbers the rows of each part from 0 on, whatever it was: what Dask knew of it holds no more.
        return frame.map_partitions(_run_part, run, dtypes, meta=meta, clear_divisions=True)

    def settled(self, frame: Any) -> Any:
        return frame  # the user persists it, where that pays

    def gather(self, frame: Any, fold: FrameFold) -> list[bytes]:
        from dask.base import compute
        from dask.delayed import delayed

        call = delayed(_fold_part, pure=False)
        folding = delayed(fold, pure=False, traverse=False)  # it travels once
        parts = [call(folding, number, part) for number, part in enumerate(frame.to_delayed())]
        return list(compute(*parts))  # type: ignore[no-untyped-call]

    def engine(self, frame: Any) -> Any:
        from dask.base import get_scheduler

        from fourfold.engines import Dask

        client = getattr(get_scheduler(collections=[frame]), "__self__", None)  # type: ignore[no-untyped-call]
        return "auto" if client is None else Dask(client=client)  # without a client Dask runs in this process

    def members(self, frame: Any, n_partitions: int) -> Members | None:
        return None

    def known(self, frame: Any, known: FrameKnown, n_partitions: int) -> list[bytes]:
        return []


def _fold_part(fold: FrameFold, number: int, part: Any) -> bytes:
    return fold(number, iter([part]))


def _run_part(part: Any, run: FramePass, dtypes: Mapping[str, Any]) -> Any:
    return _as_frame(run(part), dtypes)


def _as_frame(table: Any, dtypes: Mapping[str, Any]) -> Any:
    """A DataFrame of pandas, with the dtypes that columns had before they were Arrow's."""
    frame = as_kind(table, "pandas")
    for name, dtype in dtypes.items():
        if frame[name].dtype != dtype and not _has_no_room(dtype, table.column(name)):
            frame[name] = _with_dtype(table.column(name), frame[name], dtype)
    return frame


def _has_no_room(dtype: Any, column: Any) -> bool:
    """Whether there are values, or nulls, that the dtype does not have."""
    if hasattr(dtype, "categories"):  # a step may have made values that were none of them: they would turn null
        return dtype.categories is None or not {*column.unique().drop_null().to_pylist()} <= {*dtype.categories}
    return dtype.kind in "iub" and not hasattr(dtype, "__from_arrow__") and column.null_count > 0


def _with_dtype(column: Any, series: Any, dtype: Any) -> Any:
    if hasattr(dtype, "__from_arrow__"):
        return type(series)(dtype.__from_arrow__(column), index=series.index)
    return series.astype(dtype)


# ---- Ray -------------------------------------------------------------------------------------------------------------


class OnRay:
    """A Dataset of Ray."""

    name = "a Dataset of Ray"

    def schema(self, frame: Any) -> Any:
        import pyarrow as pa

        found = frame.schema()
        if found is None:
            raise OptionError("this Dataset of Ray has no rows, and no columns that anybody knows")
        types = [type_ if isinstance(type_, pa.DataType) else pa.null() for type_ in found.types]
        if pa.null() in types and (rows := _rows_of(frame, SAMPLE_ROWS)) is not None:
            known = rows.schema  # blocks of pandas with objects: only rows tell what they are
            types = [
                known.field(name).type if type_ == pa.null() else type_ for name, type_ in zip(found.names, types, strict=True)
            ]
        return _usual(pa.schema(list(zip(found.names, types, strict=True))))

    def sample(self, frame: Any, n_rows: int) -> Any:
        rows = _rows_of(frame, n_rows)
        return self.schema(frame).empty_table() if rows is None else rows

    def select(self, frame: Any, columns: Sequence[str]) -> Any:
        return frame.select_columns(list(columns))

    def map(self, frame: Any, run: FramePass) -> Any:
        return frame.map_batches(run, batch_format="pyarrow", zero_copy_batch=True)

    def settled(self, frame: Any) -> Any:
        options = frame.context.execution_options
        was, options.preserve_order = options.preserve_order, True
        try:
            return frame.materialize()
        finally:
            options.preserve_order = was

    def gather(self, frame: Any, fold: FrameFold) -> list[bytes]:
        import ray

        blocks = [block for bundle in frame.iter_internal_ref_bundles() for block in bundle.block_refs]
        run, folding = ray.remote(_fold_block), ray.put(fold)
        found: list[bytes] = ray.get([run.remote(folding, number, block) for number, block in enumerate(blocks)])
        return found

    def engine(self, frame: Any) -> Any:
        from fourfold.engines import Ray

        return Ray()

    def members(self, frame: Any, n_partitions: int) -> Members | None:
        return None

    def known(self, frame: Any, known: FrameKnown, n_partitions: int) -> list[bytes]:
        return []


def _fold_block(fold: FrameFold, number: int, block: Any) -> bytes:
    return fold(number, iter([block]))


def _rows_of(frame: Any, n_rows: int) -> Any:
    """The first rows; None when there are none."""
    import pyarrow as pa

    batches = [*frame.limit(n_rows).iter_batches(batch_format="pyarrow")]
    return as_table(pa.concat_tables(batches, promote_options="permissive"), "the frame") if batches else None
