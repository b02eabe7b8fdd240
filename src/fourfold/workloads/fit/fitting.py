"""`Dataset.fit`: an estimator is fitted to all rows, by its recipe, and is the one that its own `fit` would have made."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from fourfold.data.plan import Plan
from fourfold.data.sparse import sparse_columns
from fourfold.data.steps import Filter, Select, check_columns
from fourfold.data.work import FailedRow
from fourfold.errors import OptionError, OptionTypeError
from fourfold.workloads.fit.checking import CheckTarget
from fourfold.workloads.fit.contract import Pass, Trained, drive
from fourfold.workloads.fit.passes import Passes
from fourfold.workloads.fit.recorded import recorded, words_of
from fourfold.workloads.fit.registry import check_fits, fit_with, recipe_of
from fourfold.workloads.fit.seen import Features
from fourfold.workloads.steps import names_of
from fourfold.workloads.transform import Transform

FIRST_ROWS = 20
"""Rows that are looked at, here, for the columns that transformers make. Fewer: nothing is won. More: the fit begins later."""


class Fitted(NamedTuple):
    """What came of a fit.

    Attributes:
        estimator: The fitted one.
        n_rows: How many rows it was fitted to.
        failures: Rows that were left out.
    """

    estimator: Any
    n_rows: int
    failures: list[FailedRow]


def fitted(
    plan: Plan,
    estimator: Any,
    target: str | None,
    features: Sequence[str] | None,
    weight: str | None,
    options: Mapping[str, Any],
) -> Fitted:
    """The estimator, fitted, and to what: see `Dataset.fit`."""
    recipe_of(estimator)
    schema = _schema_of(plan)
    of = features_for(estimator, schema, target, features, weight)
    narrowed = plan.narrowed(of.columns)._replace(takes_sparse=True)
    if of.beside:
        narrowed = narrowed.with_step(CheckTarget(target, weight))
    passes = Passes(narrowed, of, options)
    words = {} if passes.folder is None else words_of(estimator, target, of.features, weight)
    with recorded(passes.folder, words):
        found = driven(estimator, of, schema, passes)
    return Fitted(found, passes.n_rows, passes.failures)


def driven(estimator: Any, of: Features, schema: Any, passes: "OverRows") -> Any:
    """The estimator, fitted by its recipe with these passes, which are closed then."""
    is_alone = not any(hasattr(estimator, name) for name in ("steps", "transformers", "transformer_list"))
    try:
        ended = drive(fit_with(estimator, of.about(schema)._replace(is_alone=is_alone)), passes.run)
    except Exception as error:
        with suppress(AttributeError):  # a mark for the passes, which are over: an item that fits may fail like any other
            BaseException.__delattr__(error, "is_of_plan")
        raise
    finally:
        passes.close()
    return ended.estimator if isinstance(ended, Trained) else ended


class OverRows(Protocol):
    """What goes over all rows, as often as a recipe wants."""

    def run(self, passes: list[Pass]) -> list[Any]:
        """Do these at once. Gives what each finished with."""

    def close(self) -> None:
        """Forget what was kept."""


def features_for(
    estimator: Any, schema: Any, target: str | None, features: Sequence[str] | None, weight: str | None
) -> Features:
    """What an estimator is given of tables with this schema.

    Raises:
        OptionError: It cannot be fitted to them.
    """
    recipe_of(estimator)
    chosen = _features(schema, target, features, weight)
    check_fits(estimator, target is not None, weight is not None)
    return Features(chosen, target, weight, is_text=_takes_texts(estimator, chosen))


def _check_weight(field: Any) -> None:
    """Refuse a column of which no value can be a weight."""
    import pyarrow.types as types

    kinds = types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null
    if not any(is_kind(field.type) for is_kind in kinds):
        raise OptionError(f"weight={field.name!r} is a column of {field.type}, and weights are numbers from 0 on")


def _schema_of(plan: Plan) -> Any:
    """The columns that come out: where only the transformers of the last steps know them, those of the first rows."""
    schema = plan.schema()
    if schema is not None:
        return schema
    known = plan.read_schema()
    for step in plan.steps:
        after = None if known is None else step.schema(known)
        if after is None and not isinstance(step, Transform | Select | Filter):
            raise OptionError(
                f"fit wants to know the columns before it runs, and nobody knows what {step.title} makes: give map_batches a "
                'schema=. That of the first rows is ds.map_batches(…).head(20, "arrow").schema'
            )
        known = after
    prepared = plan._replace(batch_rows=FIRST_ROWS, takes_sparse=True).prepare()
    for piece in plan.pieces():
        for _, batch in prepared.batches(piece):
            table = prepared.run(batch)
            if table is not None and table.num_rows:
                return table.schema
    raise ValueError("there are no rows to fit")


def _takes_texts(estimator: Any, chosen: Sequence[str]) -> bool:
    """Whether it takes an array of texts, and no table; of several steps or parts, whether the first one does."""
    within = getattr(estimator, "steps", None) or getattr(estimator, "transformer_list", None)
    if within:
        return _takes_texts(within[0][1], chosen)
    if not hasattr(estimator, "__sklearn_tags__"):
        return False
    tags = estimator.__sklearn_tags__().input_tags
    if not tags.string or tags.two_d_array:
        return False
    if len(chosen) > 1:
        raise OptionError(
            f"{type(estimator).__name__} takes one column of texts, and there are {len(chosen)}: name it in features="
        )
    return True


def _features(schema: Any, target: str | None, features: Sequence[str] | None, weight: str | None) -> list[str]:
    for option, name in (("target", target), ("weight", weight)):
        if name is not None and not isinstance(name, str):
            raise OptionTypeError(f"{option}={name!r} must be the name of a column")
    if target is not None and target == weight:
        raise OptionError(f"{target!r} is both the target and the weight: name two columns")
    if features is not None:
        chosen = names_of("features", features)
        for option, name in (("target", target), ("weight", weight)):
            if name in chosen:
                raise OptionError(f"{name!r} is the {option}, and among the features: leave it out of features=")
    else:
        chosen = [name for name in schema.names if name not in (target, weight)]
    if not chosen:
        raise OptionError("there is no column left to fit to: name at least one in features=")
    check_columns([*chosen, *(name for name in (target, weight) if name is not None)], schema, "fit")
    if weight is not None:
        _check_weight(schema.field(weight))
    sparse = sparse_columns([schema.field(name) for name in chosen])
    if sparse and len(sparse) < len(chosen):
        dense = next(name for name in chosen if name not in sparse)
        raise OptionError(
            f"column {dense!r} stands beside the sparse matrix {sparse[0]!r}, and an estimator takes one or the other: name "
            f'features=["{sparse[0]}"], or let the transformer pass it through (remainder="passthrough")'
        )
    return chosen
