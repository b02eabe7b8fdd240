"""What the user wants of groups, checked before anything runs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fourfold.data.steps import check_columns
from fourfold.errors import OptionError, OptionTypeError
from fourfold.workloads.groups.keys import check_types
from fourfold.workloads.groups.models import FALLBACKS
from fourfold.workloads.groups.rows import Columns
from fourfold.workloads.steps import names_of


class Asked(NamedTuple):
    """What the user wants of groups.

    Attributes:
        by: The columns of keys.
        columns: Which others are what.
        min_rows: Groups of fewer get no model.
        fallback: "parent", "global", or None.
        on_error: What is done about a fit that fails.
    """

    by: tuple[str, ...]
    columns: Columns
    min_rows: int
    fallback: str | None
    on_error: str

    @property
    def names(self) -> list[str]:
        """All columns that are wanted."""
        others = filter(None, (self.columns.target, self.columns.weight))
        return [*dict.fromkeys([*self.by, *self.columns.features, *others])]

    @property
    def levels(self) -> tuple[int, ...]:
        """How many columns the keys have of those models that are wanted."""
        fewer = {"parent": range(len(self.by) - 1, -1, -1), "global": (0,), None: ()}[self.fallback]
        return (len(self.by), *fewer)


def asked_for(
    schema: Any,
    by: str | Sequence[str],
    target: str | None,
    features: Sequence[str] | None,
    weight: str | None,
    min_rows: int,
    fallback: str | None,
    on_error: str,
) -> Asked:
    """What the user wants of rows with this schema, checked; None when nobody knows it.

    Raises:
        OptionError: A column is not there, or an argument cannot be used.
    """
    keys = names_of("by", by)
    if schema is None:
        raise OptionError(
            "fit_groups wants to know the columns before it runs, and nobody knows what the last steps make: give map_batches "
            'a schema=, such as ds.map_batches(…).head(20, "arrow").schema; and instead of transform(…) fit a Pipeline of the '
            "transformer and the estimator"
        )
    if not keys or len({*keys}) < len(keys):
        raise OptionError(f"by={by!r} must name the columns whose values make a group, each once")
    if isinstance(min_rows, bool) or not isinstance(min_rows, int) or min_rows < 1:
        raise OptionError(f"min_rows={min_rows!r} must be a number of rows, 1 at least")
    if fallback not in FALLBACKS:
        raise OptionError(f'fallback={fallback!r} is not known: it is "parent", "global" or None')
    others = {*keys, target, weight}
    chosen = [name for name in schema.names if name not in others] if features is None else names_of("features", features)
    check_columns([*keys, *chosen, *filter(None, (target, weight))], schema, "fit_groups")
    if not chosen:
        raise OptionError("there is no column left to fit to: name at least one in features=")
    if twice := sorted({name for name in chosen if chosen.count(name) > 1}):
        raise OptionError(f"features={features!r} has {', '.join(map(repr, twice))} twice: name each column once")
    if target in chosen or target in keys:
        raise OptionError(f"{target!r} is the target: leave it out of {'features' if target in chosen else 'by'}=")
    check_types(keys, schema)
    return Asked(tuple(keys), Columns(tuple(chosen), target, weight), min_rows, fallback, on_error)


def check_estimator(estimator: Any) -> None:
    """Raise OptionTypeError unless clones of it can be fitted."""
    if isinstance(estimator, type) or not (hasattr(estimator, "fit") and hasattr(estimator, "get_params")):
        raise OptionTypeError(
            f"fit_groups({estimator!r}): give an estimator with scikit-learn's interface, such as Ridge(): each group gets a "
            "clone of it"
        )


def check_known(by: Sequence[str], schema: Any) -> None:
    """Raise OptionError when nobody knows of which type keys are: they would not be the same from batch to batch."""
    import pyarrow as pa

    for name in by:
        if pa.types.is_null(schema.field(name).type):
            raise OptionError(
                f"by={name!r}: its first values are all null, and nobody knows of which type the others are: say so in a step "
                "before, with map_batches(…, schema=…)"
            )
