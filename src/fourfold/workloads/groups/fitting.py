"""`Dataset.fit_groups`: rows are put together by groups, each group is fitted, and what comes of all is told.

plan ──Spill──> files of pieces ──Merge──> groups ──FitGroup, the largest first──> GroupModels
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from fourfold.call import Call
from fourfold.data.plan import Plan
from fourfold.data.running import Run
from fourfold.data.steps import check_columns
from fourfold.data.work import Tables
from fourfold.errors import OptionError, OptionTypeError, UnreadableInput
from fourfold.execute import current
from fourfold.options import RunOfBlock, Settings, resolve
from fourfold.records import Failure
from fourfold.runs.digest import hash_of
from fourfold.runs.fingerprint import program_parts
from fourfold.workloads.groups.keys import check_types, key_table, keys_of
from fourfold.workloads.groups.levels import Level
from fourfold.workloads.groups.models import FALLBACKS, GroupModels
from fourfold.workloads.groups.one import STATUS_OF, TOO_FEW_ROWS, FitGroup, Fitted, Recipe, weight_name_of
from fourfold.workloads.groups.place import rows_folder
from fourfold.workloads.groups.rows import APART, Columns, Group, GroupRows
from fourfold.workloads.groups.shuffle import (
    MOST_BUCKETS,
    Bucket,
    Buckets,
    Categories,
    Merge,
    Merged,
    Spill,
    Spilled,
    huge_groups,
    together,
    without_dictionaries,
)
from fourfold.workloads.steps import names_of

FIXED_COST_ROWS = 1000
"""What a fit costs whatever its rows, in rows: below so many, groups count as equal, and those of one bucket come one after
the other. Smaller: buckets are opened again for groups of other sizes. Larger: groups that take longer come too late."""


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
    def levels(self) -> tuple[int, ...]:
        """How many columns the keys have of those models that are wanted."""
        fewer = {"parent": range(len(self.by) - 1, -1, -1), "global": (0,), None: ()}[self.fallback]
        return (len(self.by), *fewer)


def asked_for(
    plan: Plan,
    by: str | Sequence[str],
    target: str | None,
    features: Sequence[str] | None,
    weight: str | None,
    min_rows: int,
    fallback: str | None,
    on_error: str,
) -> Asked:
    """What the user wants, checked.

    Raises:
        OptionError: A column is not there, or an argument cannot be used.
    """
    keys, schema = names_of("by", by), plan.schema()
    if schema is None:
        raise OptionError(
            "fit_groups wants to know the columns before it runs, and nobody knows what the last steps make: give map_batches "
            "a schema=, and instead of transform(…) fit a Pipeline of the transformer and the estimator"
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


def fit_groups(
    plan: Plan, estimator: Any, asked: Asked, score: Any, folder: str | None, options: Mapping[str, Any]
) -> GroupModels:
    """The models: see `Dataset.fit_groups`."""
    check_estimator(estimator)
    settings = _with_own_folder(resolve({**options, "on_error": asked.on_error}))
    wanted = dict.fromkeys([*asked.by, *asked.columns.features, *filter(None, (asked.columns.target, asked.columns.weight))])
    narrowed = plan.narrowed([*wanted])
    run = Run(narrowed, Tables(), _for_rows(options), "fit_groups: rows to buckets")
    with rows_folder(folder, settings.run, run.is_elsewhere) as place:
        n_pieces = sum(1 for _ in narrowed.pieces())
        buckets = Buckets(place, asked.by, asked.levels, max(1, min(MOST_BUCKETS, n_pieces)))
        run.gather = Spill(buckets)
        with run.pieces_done() as done:
            spilled = {piece.number: each.value for piece, each in done if each.value is not None and each.value.n_rows}
        groups = _groups(run, buckets, dict(sorted(spilled.items())), _key_schema(narrowed, asked.by))
        columns = asked.columns._replace(
            nullable=frozenset().union(*(each.nullable for each in spilled.values())),
            categories=_categories(asked.columns.features, [spilled[number] for number in sorted(spilled)]),
        )
        recipe = Recipe(
            estimator,
            weight_name_of(estimator),
            score,
            settings.seed,
            settings.seed is not None and _is_alone(settings),
            "" if settings.run is None else _digest_of(narrowed),
        )
        return _fitted(groups, (recipe, GroupRows(buckets, sorted(spilled), columns)), asked, settings)


class Groups(NamedTuple):
    """The groups of one level: their keys as an Arrow table, in order, and where their rows are."""

    keys: Any
    items: list[Group]


def _with_own_folder(settings: Settings) -> Settings:
    """Of `using(run=…)`, each call has a folder of its own; a call within an item has none."""
    run = settings.run
    if isinstance(run, RunOfBlock):
        run = None if current.inside_item() else run.of_next_call()
    return Settings(**{**settings.__dict__, "run": run})


def _for_rows(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which rows are read. A row that cannot be read ends the call: a group is fitted to all rows, or not."""
    of_fits = {"on_error": "raise", "max_failures": None, "timeout": None, "run": None, "chunk": "auto"}
    return {**options, **of_fits}


def _categories(features: Sequence[str], spilled: Sequence[Spilled]) -> tuple[tuple[str, Categories], ...]:
    """Those of features, as a DataFrame of all rows has them."""
    return tuple((name, each) for name, each in together([part.categories for part in spilled]).items() if name in features)


def _is_alone(settings: Settings) -> bool:
    """Whether each worker has a state of random numbers of its own."""
    engine = settings.engine
    return engine != "threads" if isinstance(engine, str) else not engine.info.shares_globals


def _digest_of(plan: Plan) -> str:
    """What changes when a dataset does: its files, its rows in memory, its steps."""
    for model in (step.model for step in plan.steps if step.model is not None):
        if not model.is_hidden:
            model.digest = model.look()
    parts = program_parts({"plan": plan, "pieces": list(plan.pieces())})
    return hash_of(repr(sorted(parts.items())).encode()).hex()


def _key_schema(plan: Plan, by: Sequence[str]) -> Any:
    """The columns of keys, with their types in files of groups."""
    schema = plan.schema()
    return key_table(without_dictionaries(schema.empty_table()), by).schema


def _groups(run: Run, buckets: Buckets, spilled: Mapping[int, Spilled], schema: Any) -> dict[int, Groups]:
    """Put all buckets together; by level."""
    pieces, parts = list(spilled), list(spilled.values())
    items = []
    for level in buckets.levels if pieces else ():
        if level:  # all rows together are in order already
            huge = huge_groups(parts, level, buckets.n_buckets)
            items += [Bucket(level, number, huge.get(number, ())) for number in range(buckets.n_buckets)]
    merged = run.call(Merge, (buckets, pieces), items, "fit_groups: buckets to groups") if items else []
    found = {}
    for level in buckets.levels:
        of_level = [(item, each) for item, each in zip(items, merged, strict=True) if item.level == level]
        found[level] = _sorted(of_level, [schema.field(name) for name in buckets.by[:level]])
    if 0 in found and pieces:
        found[0].items.append(Group((), sum(each.n_rows for each in parts), 0, APART))
    return found


def _sorted(merged: Sequence[tuple[Bucket, Merged]], fields: Sequence[Any]) -> Groups:
    """The groups of these buckets in the order of their keys; null is the last."""
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = pa.schema(fields)
    tables, items = [schema.empty_table()], list[Group]()
    for bucket, each in merged:
        if each.counts:
            firsts = [0, *itertools.accumulate(each.counts)]
            keys = keys_of(each.keys.columns, each.keys.num_rows)
            items += [Group(key, n, bucket.number, at) for key, n, at in zip(keys, each.counts, firsts, strict=False)]
            tables.append(each.keys)
        for key, n_rows in zip(bucket.without, each.counts_without, strict=True):
            items.append(Group(key, n_rows, bucket.number, APART))
            tables.append(pa.table([pa.array([value], field.type) for value, field in zip(key, schema, strict=True)], schema))
    table = pa.concat_tables(tables).combine_chunks()
    if not fields or not items:
        return Groups(table, items)
    order = pc.sort_indices(table, [(name, "ascending") for name in schema.names])  # null is the last
    return Groups(table.take(order), [items[at] for at in order.to_pylist()])


# ---- the fits ----------------------------------------------------------------------------------------------------------


def _fitted(groups: Mapping[int, Groups], init: tuple[Recipe, GroupRows], asked: Asked, settings: Settings) -> GroupModels:
    """Fit all groups of all levels that have enough rows, the largest first."""
    items = [each for of_level in groups.values() for each in of_level.items if each.n_rows >= asked.min_rows]
    items.sort(key=lambda group: (-len(group.key), group.bucket, group.first))
    changed = {
        "init": init,
        "cost": _cost,
        "on_error": "raise" if asked.on_error == "raise" else "collect",
    }
    call = Call(FitGroup, items, Settings(**{**settings.__dict__, **changed}), name="fit_groups")
    ended: list[Any] = []
    n_failed = 0
    with closing(call.in_order()) as segments:
        for segment in segments:
            ended += segment.values
            for failure in call.failures.all[n_failed:]:
                if isinstance(failure.error, UnreadableInput) and hasattr(failure.error, "of_rows"):
                    raise failure.error  # it is not the group's failure, and others would have it, too
            n_failed = len(call.failures.all)
    call.raise_if_stopped()
    report = call.conclude()
    of_group = dict(zip(((len(each.key), each.key) for each in items), ended, strict=True))
    levels = {level: _level(each, of_group, asked) for level, each in groups.items()}
    models = GroupModels(asked.by, asked.columns.features, asked.fallback, levels, report, call.failures.sorted())
    models.warn_of_failures()
    return models


def _cost(group: Group) -> float:
    return float(max(group.n_rows, FIXED_COST_ROWS))


def _level(groups: Groups, ended: Mapping[Any, Any], asked: Asked) -> Level:
    """What came of the groups of one level."""
    kept, outcomes = [], []
    for at, group in enumerate(groups.items):
        outcome = ended.get((len(group.key), group.key))
        if isinstance(outcome, Failure) and asked.on_error == "skip":
            continue
        kept.append(at)
        outcomes.append(_outcome(group, outcome, asked.min_rows))
    keys = groups.keys if len(kept) == len(groups.items) else groups.keys.take(kept)
    return Level.of(keys, [groups.items[at] for at in kept], outcomes)


def _outcome(group: Group, outcome: Any, min_rows: int) -> Fitted:
    if outcome is None:
        return Fitted(TOO_FEW_ROWS, 0.0, None, f"{group.n_rows} rows are less than min_rows={min_rows}", None)
    if isinstance(outcome, Failure):
        return Fitted(STATUS_OF[outcome.kind], math.nan, None, f"{outcome.error_type}: {outcome.message}", None)
    found: Fitted = outcome
    return found
