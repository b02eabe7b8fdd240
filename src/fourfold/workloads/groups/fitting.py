"""`Dataset.fit_groups`: rows are put together by groups, each group is fitted, and what comes of all is told.

rows ──Spill──> files of pieces ──Merge──> groups ──FitGroup, the largest first──> GroupModels
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from fourfold.call import Call
from fourfold.errors import UnreadableInput
from fourfold.options import Settings
from fourfold.records import Failure
from fourfold.workloads.groups.asked import Asked
from fourfold.workloads.groups.keys import key_table, keys_of
from fourfold.workloads.groups.levels import Level
from fourfold.workloads.groups.merge import Bucket, Merge, Merged, Pieces, huge_groups
from fourfold.workloads.groups.models import GroupModels
from fourfold.workloads.groups.one import ERROR, STATUS_OF, TOO_FEW_ROWS, FitGroup, Fitted, Recipe, classes_of, weight_name_of
from fourfold.workloads.groups.place import rows_folder
from fourfold.workloads.groups.rows import APART, Columns, Group, GroupRows
from fourfold.workloads.groups.sources import Source
from fourfold.workloads.groups.spill import Buckets, Spill, Spilled, together, without_dictionaries

FIXED_COST_ROWS = 1000
"""What a fit costs whatever its rows, in rows: below so many, groups count as equal, and those of one bucket come one after
the other. Smaller: buckets are opened again for groups of other sizes. Larger: groups that take longer come too late."""

TRIED = 3
"""Groups that `engine="auto"` fits in the loop before the largest one, at most. Fewer: the first one alone may tell nothing,
since it imports what all need. More: the largest one begins later. Not measured."""


def fit_groups(source: Source, estimator: Any, asked: Asked, score: Any, folder: str | None) -> GroupModels:
    """The models: see `Dataset.fit_groups`."""
    settings = source.settings
    with rows_folder(folder, settings.run, source.is_elsewhere) as place:
        keys = _key_schema(source.schema, asked.by)
        spill = Spill(Buckets(place, asked.by, asked.levels), keys, asked.names, settings.run is not None)
        spilled = [each for each in source.spill(spill) if each.n_rows]
        buckets = spill.buckets.of_pieces(spilled)
        pieces = Pieces.of(spilled)
        groups = _groups(settings, buckets, pieces, spilled, keys)
        recipe = Recipe(
            estimator,
            weight_name_of(estimator),
            score,
            settings.seed,
            settings.seed is not None and _is_alone(settings),
            "" if settings.run is None else source.digest(),
        )
        rows = GroupRows(buckets, pieces, _with_facts(asked.columns, spilled))
        return _fitted(groups, (recipe, rows), asked, settings)


class Groups(NamedTuple):
    """The groups of one level: their keys as an Arrow table, in order, and where their rows are."""

    keys: Any
    items: list[Group]


def _with_facts(columns: Columns, spilled: Sequence[Spilled]) -> Columns:
    """The columns with what all rows together say of them, as a DataFrame of all rows has it."""
    categories = together([part.categories for part in spilled])
    return columns._replace(
        nullable=frozenset().union(*(each.nullable for each in spilled)),
        categories=tuple((name, each) for name, each in categories.items() if name in columns.features),
    )


def _is_alone(settings: Settings) -> bool:
    """Whether each worker has a state of random numbers of its own."""
    engine = settings.engine
    return engine != "threads" if isinstance(engine, str) else not engine.info.shares_globals


def _key_schema(schema: Any, by: Sequence[str]) -> Any:
    """The columns of keys, with their types in files of groups."""
    return key_table(without_dictionaries(schema.empty_table()), by).schema


def _groups(settings: Settings, buckets: Buckets, pieces: Pieces, spilled: Sequence[Spilled], keys: Any) -> dict[int, Groups]:
    """Put all buckets together; by level."""
    items = []
    for level in buckets.levels if spilled else ():
        if level:  # all rows together are in order already
            huge = huge_groups(spilled, level, buckets.n_buckets)
            items += [Bucket(level, number, huge.get(number, ())) for number in range(buckets.n_buckets)]
    merged = _merged(settings, (buckets, pieces), items) if items else []
    found = {}
    for level in buckets.levels:
        of_level = [(item, each) for item, each in zip(items, merged, strict=True) if item.level == level]
        found[level] = _sorted(of_level, [keys.field(name) for name in buckets.by[:level]])
    if 0 in found and spilled:
        found[0].items.append(Group((), sum(each.n_rows for each in spilled), 0, APART))
    return found


def _merged(settings: Settings, init: tuple[Buckets, Pieces], items: list[Bucket]) -> list[Merged]:
    own = {"init": init, "on_error": "raise", "max_failures": None, "retries": 0, "run": None, "timeout": None, "chunk": None}
    call = Call(Merge, items, Settings(**{**settings.__dict__, **own}), bounded=True, name="fit_groups: buckets to groups")
    with closing(call.in_order()) as segments:
        merged: list[Merged] = [each for segment in segments for each in segment.values]
    call.raise_if_stopped()
    call.conclude()
    return merged


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
        "cost": _costs(items, settings.engine == "auto"),
        "on_error": "raise" if asked.on_error == "raise" else "collect",
    }
    call = Call(FitGroup, items, Settings(**{**settings.__dict__, **changed}), name="fit_groups", unit="group")
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
    failures, classes = call.failures.sorted(), classes_of(ended)
    models = GroupModels(asked.by, asked.columns.features, asked.fallback, levels, report, failures, classes)
    models.warn_of_failures()
    return models


def _costs(items: Sequence[Group], is_auto: bool) -> Callable[[Group], float]:
    """What puts the largest group first; behind some of middling size where that is to be found out by the loop.

    Else the loop would fit the largest one before it knows that workers pay, and they would have nothing to do until then.
    """
    ranked = sorted(items, key=lambda group: group.n_rows)
    middle = max(0, len(ranked) - 1) // 2
    tried = {(group.key, group.bucket) for group in ranked[:-1][middle : middle + TRIED]} if is_auto else set()

    def cost(group: Group) -> float:
        is_tried = (group.key, group.bucket) in tried
        return float(max(ranked[-1].n_rows if is_tried else group.n_rows, FIXED_COST_ROWS) + is_tried)

    return cost


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
        return Fitted(STATUS_OF.get(outcome.kind, ERROR), math.nan, None, f"{outcome.error_type}: {outcome.message}", None)
    found: Fitted = outcome
    return found
