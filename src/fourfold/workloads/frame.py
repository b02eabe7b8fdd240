"""Steps on a frame that lives in a cluster already: lazy, and a frame of the same kind comes back."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from fourfold.data.frames import SAMPLE_ROWS, FrameFold, FrameKind, FramePass, Steps
from fourfold.data.kinds import as_kind, check_kind
from fourfold.data.sparse import check_dense
from fourfold.data.steps import Select, Step
from fourfold.errors import OptionError, UnsupportedOption
from fourfold.options import OnError
from fourfold.workloads.describe import Describe, described
from fourfold.workloads.fit.fitting import features_for
from fourfold.workloads.fit.on_frames import fitted_to_frame
from fourfold.workloads.groups.asked import asked_for, check_estimator, check_known
from fourfold.workloads.groups.fitting import fit_groups
from fourfold.workloads.groups.models import GroupModels
from fourfold.workloads.groups.sources import OfFrame
from fourfold.workloads.steps import drawn, filtered, mapped, predicted, selected, transformed


class Frame:
    """A DataFrame of Spark or Dask, or a Dataset of Ray, and steps on its rows. Made by `fourfold.scan`; it does not change.

    Attributes:
        native: The frame with all steps, lazy, of the kind that it was: write it, join it, count it with its own methods.
        schema: Of its rows, as an Arrow schema. Decimals that are objects of Python have the digits of the first rows in it,
            and in each batch those that they need there.
    """

    def __init__(
        self, kind: FrameKind, frame: Any, before: Any = None, steps: tuple[Step, ...] = (), schema: Any = None
    ) -> None:
        self._kind, self._frame, self._steps = kind, frame, steps
        self._before = kind.schema(frame) if before is None else before
        self.schema = self._before if schema is None else schema

    def __repr__(self) -> str:
        steps = "".join(f", then {type(step).__name__}" for step in self._steps)
        return f"Frame({self._kind.name} of {', '.join(self.schema.names)}{steps})"

    @property
    def columns(self) -> list[str]:
        """The names in the schema."""
        return list(self.schema.names)

    @property
    def native(self) -> Any:
        """See the class."""
        check_dense(self.schema, self._kind.name)
        if not self._steps:
            return self._frame
        return self._kind.map(self._frame, FramePass(Steps.here(self._steps), self._before, self.schema))

    def _with(self, step: Step) -> "Frame":
        schema = step.schema(self.schema)
        if schema is not None and isinstance(step, Select) and self._reads_only(step) is not None:
            return self._narrowed(step, schema)
        steps = (*self._steps, step)
        if schema is None:  # only a run tells, and clusters want to know before
            if step.model is not None:
                step.model.check_here()
                # Workers that have loaded this file before load it again when it has changed.
                step.model.digest = step.model.look()
            sample = self._kind.sample(self._frame, SAMPLE_ROWS)
            schema = FramePass(Steps.here(steps), self._before)(sample).schema
        return Frame(self._kind, self._frame, self._before, steps, schema)

    def _reads_only(self, select: Select) -> set[str] | None:
        """The columns that are looked at when only these are wanted; None when a step may look at any."""
        looked = [step.looks_at(self._before) for step in self._steps]
        return {*select.columns}.union(*filter(None, looked)) if None not in looked else None

    def _narrowed(self, select: Select, schema: Any) -> "Frame":
        """The same steps on a frame that has no other columns: the cluster need not read them."""
        import pyarrow as pa

        steps = tuple(step for step in self._steps if not isinstance(step, Select))
        wanted = self._reads_only(select) or set()
        names = [*select.columns, *(name for name in self._before.names if name in wanted - {*select.columns})]
        before = pa.schema([self._before.field(name) for name in names])
        then = (*steps, select) if len(names) > len(select.columns) else steps
        return Frame(self._kind, self._kind.select(self._frame, names), before, then, schema)

    def select(self, columns: Sequence[str]) -> "Frame":
        """As `Dataset.select`."""
        return self._with(selected(columns))

    def filter(self, condition: Any, batch_format: str = "pandas") -> "Frame":
        """As `Dataset.filter`."""
        return self._with(filtered(condition, batch_format))

    def map_batches(
        self,
        fn: Callable[..., Any],
        *,
        init: tuple[Any, ...] = (),
        batch_size: int | str = "auto",
        batch_format: str = "pandas",
        schema: Any = None,
    ) -> "Frame":
        """As `Dataset.map_batches`. Without `schema=` the function is called once here, with some rows, for its columns."""
        return self._with(mapped(fn, init, batch_size, batch_format, schema))

    def transform(self, transformer: Any, dense: bool = False) -> "Frame":
        """As `Dataset.transform`."""
        return self._with(transformed(transformer, dense))

    def predict(self, model: Any, **options: Any) -> "Frame":
        """As `Dataset.predict`, with its options. The model is loaded once here, with some rows, for its columns."""
        return self._with(predicted(model, **options))

    def split(self, test: float, seed: int = 0, *, by: str | None = None) -> tuple["Frame", "Frame"]:
        """As `Dataset.split`, by a column: the rows of a cluster's frame have no numbers.

        Raises:
            OptionError: `by` is not given.
        """
        if by is None:
            raise OptionError(
                "rows of a frame in a cluster have no numbers, and may come in any order: name a column with by="
            )
        train, held = drawn(test, seed, by)
        return self._with(train.behind(self._steps)), self._with(held.behind(self._steps))

    # ---- results: these run jobs --------------------------------------------------------------------------------------

    def fit(
        self,
        estimator: Any,
        target: str | None = None,
        features: Sequence[str] | None = None,
        weight: str | None = None,
        **options: Any,
    ) -> Any:
        """As `Dataset.fit`: each pass over the rows is a job of the cluster, and only figures come here.

        There are no options: the cluster says where its jobs run, how often it tries them, and what it shows of them.

        Raises:
            UnsupportedOption: One is given.
            OptionError: There is no recipe for its class, or a column is not there; before anything runs.
            ValueError: The rows cannot be fitted to; or the partitions of the frame are others in each job.

        Guarantees: the same bits for the same partitions.
        """
        if options:
            given = ", ".join(f"{name}=" for name in options)
            raise UnsupportedOption(
                f"{given}: a fit to {self._kind.name} takes no options, for its jobs are those of the cluster. Set there what "
                "it knows of such things; or write the frame into files, and scan these"
            )
        chosen = self._for_fit(estimator, target, features, weight)
        return fitted_to_frame(
            self._kind, chosen._frame, chosen._before, chosen._steps, chosen.schema, estimator, target, features, weight
        )

    def _for_fit(self, estimator: Any, target: str | None, features: Sequence[str] | None, weight: str | None) -> "Frame":
        """The same rows without columns that nobody looks at, where the cluster can leave them out."""
        select = Select(features_for(estimator, self.schema, target, features, weight).columns)
        return self if self._reads_only(select) is None else self._narrowed(select, select.schema(self.schema))

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
        """As `Dataset.fit_groups`: one job brings rows to files, and groups are fitted on the same cluster.

        All its machines must see `folder`, where rows wait for their fits. None is enough only where the frame lives in this
        process, as one of Dask without a client does. `timeout` is for each group, not for the job; `engine` and `run` are not
        for frames.

        Raises:
            OptionError: As there; or a machine of the cluster does not see the folder.
            Exception: What the cluster makes of an error of a row.

        Guarantees: the same models for the same partitions. Rows of a group are in the order of these, and in theirs.
        """
        asked = asked_for(self.schema, by, target, features, weight, min_rows, fallback, on_error)
        check_estimator(estimator)
        check_known(asked.by, self.schema)
        chosen = self._with(Select(tuple(asked.names)))
        run = FramePass(Steps.here(chosen._steps), chosen._before, chosen.schema)
        source = OfFrame(self._kind, chosen._frame, run, {**options, "on_error": on_error})
        return fit_groups(source, estimator, asked, score, folder)

    def describe(self, batch_format: str = "pandas") -> Any:
        """As `Dataset.describe`, by one job of the cluster."""
        kind = check_kind("batch_format", batch_format)
        check_dense(self.schema, "describe")
        run = FramePass(Steps.here(self._steps), self._before, self.schema)
        found = self._kind.gather(self._kind.settled(self._frame), FrameFold(run, Describe()))
        return as_kind(described([pickle.loads(part) for part in found], self.columns), kind)
