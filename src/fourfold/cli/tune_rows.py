"""Where the rows are while an estimator is searched: in memory, or in their files, which each fit reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fourfold.cli.exits import say
from fourfold.distribute.verdict import size
from fourfold.errors import OptionError

if TYPE_CHECKING:
    from fourfold.workloads.dataset import Dataset
    from fourfold.workloads.tune.search.estimator import SearchCV

SHARE = 0.5
"""Of the memory that is free, which rows may take: fits copy those of their folds. More: the kernel may kill the search. Less:
what would have gone is refused. Not measured."""

ROWS_WEIGHED = 1000
"""Rows by which all are weighed. Fewer: a rare long text is not among them. More: the search begins later."""

ONLY_IN_MEMORY = ("run", "pruner", "trial_timeout")
"""Options for fits that are items: with rows in files, pieces of the rows are."""


def check_out_of_core(estimator: Any, given: dict[str, Any]) -> None:
    """Whether a search may leave the rows in their files.

    Raises:
        OptionError: An option is given that cannot, or something has no recipe.
    """
    from fourfold.workloads.fit.registry import check_fits

    for name in ONLY_IN_MEMORY:
        if name in given:
            raise OptionError(
                f"--{name.replace('_', '-')} does not go with --out-of-core: fits come one after the other there"
            )
    if given.get("method") == "halving":
        raise OptionError("--method halving does not go with --out-of-core: take random, grid or tpe")
    try:
        check_fits(estimator, True, False)
    except OptionError as error:
        reason = str(error).partition(". Two ways on")[0]
        raise OptionError(f"--out-of-core: {reason}. Without it rows are read into memory, for its own fit") from error


def stay_in_files(rows: Dataset, estimator: Any, given: dict[str, Any]) -> bool:
    """Whether they do, as was asked for.

    Raises:
        OptionError: They were not asked to, and are too many for memory.
    """
    if given.get("out_of_core") is not None:
        return bool(given["out_of_core"])
    from fourfold.system.machine import MemoryReader

    free = MemoryReader().read()
    size_bytes = bytes_of(rows)
    if free is None or size_bytes <= SHARE * free.free_bytes:
        return False
    told = f"the rows would take some {size(size_bytes)} of memory, and {size(free.free_bytes)} are free"
    try:
        check_out_of_core(estimator, given)
    except OptionError as error:
        why = str(error).removeprefix("--out-of-core: ").partition(". Without it")[0]
        raise OptionError(
            f"{told}: name fewer columns with --features, or try all the same with --in-memory ({why})"
        ) from error
    raise OptionError(f"{told}: --out-of-core leaves them in their files, and --in-memory tries all the same")


def bytes_of(rows: Dataset) -> int:
    """What the rows take in memory, about: by the first ones where their number is known, else as much as their files."""
    source = rows._plan.source
    if source.n_rows is None:
        return sum(file.size_bytes for file in getattr(source, "_files", ()))
    if not source.n_rows:
        return 0
    first = rows.head(ROWS_WEIGHED)
    return int(first.memory_usage(deep=True).sum() / max(1, len(first)) * source.n_rows)


def fit_in_files(found: SearchCV, rows: Dataset, target: str, features: list[str] | None) -> None:
    """Search with rows that stay where they are."""
    n_files = len(getattr(rows._plan.source, "_files", ()))
    of = f"{n_files:,} files" if n_files != 1 else "their file"
    say(f"rows stay in {of}, which each fit reads (--out-of-core); folds go by hashes of the numbers of rows")
    if found.verbose:
        found.set_params(verbose=2)  # a line for each fit: they come one after the other, and each takes a while
    found.fit(rows, target=target, features=features)


def fit_in_memory(found: SearchCV, rows: Dataset, target: str) -> None:
    """Search with all rows in memory, as scikit-learn does."""
    table = rows.to_pandas(engine="serial", progress=False)
    taken = size(int(table.memory_usage(deep=True).sum()))
    say(f"{len(table):,} rows of {len(table.columns):,} columns are in memory, {taken}")
    found.fit(table.drop(columns=target), table[target])
