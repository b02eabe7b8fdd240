"""`Dataset.fit`: an estimator is fitted to all rows, by its recipe, and is the one that its own `fit` would have made."""

from collections.abc import Mapping, Sequence
from typing import Any

from fourfold.data.plan import Plan
from fourfold.data.steps import check_columns
from fourfold.errors import OptionError
from fourfold.workloads.fit.contract import Trained, drive
from fourfold.workloads.fit.passes import Passes
from fourfold.workloads.fit.registry import fit_with, recipe_of
from fourfold.workloads.fit.seen import Features
from fourfold.workloads.steps import names_of


def fitted(
    plan: Plan,
    estimator: Any,
    target: str | None,
    features: Sequence[str] | None,
    weight: str | None,
    options: Mapping[str, Any],
) -> Any:
    """The estimator, fitted: see `Dataset.fit`."""
    recipe_of(estimator)
    schema = plan.schema()
    if schema is None:
        raise OptionError(
            "fit wants to know the columns before it runs, and nobody knows what the last steps make: give map_batches a "
            "schema=, and instead of transform(…) fit a Pipeline of the transformer and the estimator"
        )
    chosen = _features(schema.names, target, features, weight)
    check_columns([*chosen, *(name for name in (target, weight) if name is not None)], schema, "fit")
    of = Features(chosen, target, weight, is_text=_takes_texts(estimator, chosen))
    narrowed = plan.narrowed([*dict.fromkeys([*chosen, *filter(None, (target, weight))])])
    passes = Passes(narrowed, of, options)
    is_alone = not any(hasattr(estimator, name) for name in ("steps", "transformers", "transformer_list"))
    try:
        ended = drive(fit_with(estimator, of.about(schema)._replace(is_alone=is_alone)), passes.run)
    finally:
        passes.close()
    return ended.estimator if isinstance(ended, Trained) else ended


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


def _features(columns: Sequence[str], target: str | None, features: Sequence[str] | None, weight: str | None) -> list[str]:
    if features is not None:
        chosen = names_of("features", features)
        if target in chosen:
            raise OptionError(f"{target!r} is the target, and among the features: leave it out of features=")
    else:
        chosen = [name for name in columns if name not in (target, weight)]
    if not chosen:
        raise OptionError("there is no column left to fit to: name at least one in features=")
    return chosen
