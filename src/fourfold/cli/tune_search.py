"""`fourfold tune MODULE:ESTIMATOR --space MODULE:SPACE INPUT…`: the best of an estimator's parameters, by cross-validation.

options ──tune_checked──> SearchCV ──rows: tune_rows──> candidates and scores ──> a table, or JSON, and the best in a file
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from fourfold.cli.exits import ERROR, SOME_FAILED, say
from fourfold.errors import FourfoldError, OptionError

if TYPE_CHECKING:
    from fourfold.workloads.tune.search.estimator import SearchCV

N_SHOWN = 10
"""Candidates that are shown, the best of all. More: the reader scrolls. --json has all."""

OF_SEARCH = {
    "method": "method",
    "n_trials": "n_trials",
    "cv": "cv",
    "scoring": "scoring",
    "seed": "random_state",
    "workers": "n_jobs",
    "engine": "engine",
    "trial_timeout": "timeout",
    "run": "run",
}
"""Options here, and what SearchCV calls them."""

ALL_FAILED = "All the "
"""How a search begins to say that no fit has worked."""


def search(target: str, inputs: list[str], given: dict[str, Any]) -> int:
    """Search, write the best estimator, and print what came of it; returns the exit code."""
    from fourfold.cli.fit import free_path, write

    for name, option in (("target_column", "--target COLUMN"), ("space", "--space MODULE:SPACE")):
        if name not in given:
            raise OptionError(f"an estimator needs {option}")
    if not inputs:
        raise OptionError("an estimator needs INPUT: files, globs, folders or URLs")
    path = free_path(given["output"], given["overwrite"]) if "output" in given else None
    found = _search_of(_estimator(target), given)
    _fit(found, inputs, given)
    n_candidates = len(found.cv_results_["params"])
    has_score = found.best_score_ == found.best_score_  # nan is not itself
    if has_score and path is not None:
        write(found.best_estimator_, path)
    _show(found, given["as_json"])
    best = f"; the best has {found.best_score_:.6g}" if has_score else ""
    say(f"{n_candidates:,} {'candidates' if n_candidates != 1 else 'candidate'} on {found.n_splits_} folds{best}")
    n_asked = given.get("n_trials", 0)
    if n_candidates < n_asked and found.method == "random":
        say(f"the space has no more than these {n_candidates:,}, fewer than --n-trials {n_asked:,}")
    if has_score and path is not None:
        say(f"{path}: {type(found.best_estimator_).__name__} with these parameters, fitted to all rows")
    code = _tell_failures(found)
    if not has_score:
        say("no candidate has a score" + (f", and {path} was not written" if path is not None else ""))
        return ERROR
    return code


def _estimator(target: str) -> Any:
    from fourfold.cli.fit import estimator_named

    try:
        return estimator_named(target)
    except OptionError as error:
        if "cannot be called without arguments" in str(error):
            error.add_note("an objective, which is called with a trial, takes no INPUT and no --target")
        raise


def _search_of(estimator: Any, given: dict[str, Any]) -> SearchCV:
    """The search that options say.

    Raises:
        OptionError: One of them cannot be used.
    """
    from fourfold.cli.tune_checked import check_search, check_space, time_outs_of_trials
    from fourfold.cli.tune_names import pruner_named, space_named
    from fourfold.cli.tune_rows import check_out_of_core
    from fourfold.workloads.tune.search.asked import check_arguments, options_of
    from fourfold.workloads.tune.search.estimator import SearchCV
    from fourfold.workloads.tune.search.spaces import for_grid, parts_of

    check_search(given)
    if given.get("out_of_core"):
        check_out_of_core(estimator, given)
    space = space_named(given["space"])
    check_space(given["space"], space, estimator)
    options = {theirs: given[ours] for ours, theirs in OF_SEARCH.items() if ours in given}
    if given.get("on_error") == "raise":
        options["error_score"] = "raise"
    if "pruner" in given:
        options["pruner"] = pruner_named(given["pruner"])
    verbose = 0 if given.get("progress") is False else 1
    found = SearchCV(estimator, space, verbose=verbose, **{"n_jobs": -1, **options})
    check_arguments(found)  # as fit does, which comes after the rows
    with time_outs_of_trials():
        options_of(found)
    if found.method == "grid":
        for_grid(parts_of(space))
    return found


def _fit(found: SearchCV, inputs: list[str], given: dict[str, Any]) -> None:
    """Search over the rows of INPUT, wherever these are meanwhile."""
    from fourfold.cli.storage import storage_for
    from fourfold.cli.tune_checked import features_named, time_outs_of_trials
    from fourfold.cli.tune_rows import fit_in_files, fit_in_memory, stay_in_files
    from fourfold.options import using
    from fourfold.workloads.scan import scan

    target = given["target_column"]
    rows = scan(inputs, format=given.get("format"), storage_options=storage_for(inputs, given.get("storage_option")))
    features = features_named(given.get("features"), target, rows.columns)
    rows = rows.select([*features, target])
    of_workers = {name: given[name] for name in ("memory", "threads_per_worker") if name in given}
    with using(**of_workers), time_outs_of_trials(), _told(), redirect_stdout(sys.stderr):  # what it says is no answer
        if stay_in_files(rows, found.estimator, given):
            fit_in_files(found, rows, target, features)
        else:
            fit_in_memory(found, rows, target)


@contextmanager
def _told() -> Iterator[None]:
    """A block in which warnings are not said that are told at the end, and all fits that failed alike end it with a line.

    Raises:
        FourfoldError: All have.
    """
    from sklearn.exceptions import FitFailedWarning

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", category=FitFailedWarning)
        warnings.filterwarnings("ignore", "One or more of the test scores are non-finite")
        warnings.filterwarnings("ignore", "Scoring failed")
        warnings.filterwarnings("ignore", "n_trials=.* is more than the")
        try:
            yield
        except ValueError as error:
            if not str(error).startswith(ALL_FAILED):
                raise
            raise FourfoldError(_all_failed(str(error))) from error


def _all_failed(text: str) -> str:
    """How many, and what the first raised; the message has the whole traceback of each kind of failure."""
    count, _, rest = text.partition("\n")[0].removeprefix(ALL_FAILED).partition(" fits failed. ")
    why = "" if rest.startswith("error_score=") else f" {rest}"
    lines = [line.strip() for line in text.partition("-" * 80)[2].partition("\n" + "-" * 80)[0].splitlines() if line.strip()]
    return f"all {count} fits failed.{why} The first: {lines[-1] if lines else 'nobody knows why'} (--traceback shows where)"


def as_json(found: SearchCV) -> dict[str, Any]:
    """All candidates, for programs."""
    table = found.cv_results_
    keys = ("mean_test_score", "std_test_score", "mean_fit_time")
    candidates = [
        {
            "params": params,
            **{key: float(table[key][at]) for key in keys},
            "rank_test_score": int(table["rank_test_score"][at]),
        }
        for at, params in enumerate(table["params"])
    ]
    best = {"params": found.best_params_, "score": float(found.best_score_), "index": int(found.best_index_)}
    return {"best": best, "n_splits": found.n_splits_, "candidates": candidates, "n_failures": len(found.failures_)}


def _show(found: SearchCV, is_json: bool) -> None:
    from fourfold.cli.tune_board import in_words, print_json, print_table

    if is_json:
        print_json(as_json(found))
        return
    table = found.cv_results_
    order = sorted(range(len(table["params"])), key=lambda at: (table["rank_test_score"][at], at))
    rows = [
        (f"{table['mean_test_score'][at]:.6g}", f"{table['std_test_score'][at]:.2g}", in_words(table["params"][at]))
        for at in order[:N_SHOWN]
    ]
    print_table(("score", "± over folds", "parameters"), rows)


def _tell_failures(found: SearchCV) -> int:
    """Say which fits have no score, and why; returns the exit code."""
    from fourfold.cli.tune_board import in_words, shortened

    failed = [each for each in found.failures_ if each.kind != "unscored"]
    unscored = [each for each in found.failures_ if each.kind == "unscored"]
    if failed:
        first = failed[0]
        reason, with_what = shortened(str(first.reason)), in_words(first.params)
        which = "the first, on" if len(failed) > 1 else "it was on"
        fits = f"{len(failed):,} {'fits' if len(failed) > 1 else 'fit'} failed"
        say(f"{fits}; {which} fold {first.split} with {with_what or 'no parameters'}: {reason}")
    if unscored:
        say(f"{len(unscored):,} fits are well, and a score of theirs raised: {shortened(str(unscored[0].reason))}")
    scores = (found.cv_results_[f"split{at}_test_score"] for at in range(found.n_splits_))
    n_without = sum(int((each != each).sum()) for each in scores) - len(failed)  # nan is not itself
    if n_without > 0 and not unscored:
        say(f"{n_without:,} fits have a score that is nan: are there NaN in the rows?")
    return SOME_FAILED if failed or n_without > 0 else 0
