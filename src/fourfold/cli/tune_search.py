"""`fourfold tune MODULE:ESTIMATOR --space MODULE:SPACE INPUT…`: the best of an estimator's parameters, by cross-validation."""

from __future__ import annotations

import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.cli.exits import SOME_FAILED, printable, say
from fourfold.errors import OptionError

if TYPE_CHECKING:
    from fourfold.workloads.tune.search.estimator import SearchCV

N_SHOWN = 10
"""Candidates that are shown, the best of all. More: the reader scrolls. --json has all."""


def search(target: str, inputs: list[str], given: dict[str, Any]) -> int:
    """Search, write the best estimator, and print what came of it; returns the exit code."""
    from fourfold.cli.fit import estimator_named, free_path, write

    path = _output(given, free_path)
    found = _searched(estimator_named(target), inputs, given)
    if path is not None:
        write(found.best_estimator_, path)
    if given["as_json"]:
        from fourfold.cli.tune_board import print_json

        print_json(as_json(found))
    else:
        _print(found)
    n_candidates = len(found.cv_results_["params"])
    say(f"{n_candidates:,} candidates on {found.n_splits_} folds; the best has {found.best_score_:.6g}")
    if path is not None:
        say(f"{path}: {type(found.best_estimator_).__name__} with these parameters, fitted to all rows")
    return _tell_failures(found)


def _output(given: dict[str, Any], free_path: Any) -> Path | None:
    for name, option in (("target_column", "--target COLUMN"), ("space", "--space MODULE:SPACE")):
        if name not in given:
            raise OptionError(f"an estimator needs {option}")
    if "output" not in given:
        return None
    path: Path = free_path(given["output"], given["overwrite"])
    return path


def _searched(estimator: Any, inputs: list[str], given: dict[str, Any]) -> SearchCV:
    from sklearn.exceptions import FitFailedWarning

    from fourfold.cli.storage import storage_for
    from fourfold.cli.tune_names import pruner_named, space_named
    from fourfold.workloads.scan import scan
    from fourfold.workloads.tune.search.estimator import SearchCV

    if not inputs:
        raise OptionError("an estimator needs INPUT: files, globs, folders or URLs")
    names = {"method": "method", "n_trials": "n_trials", "cv": "cv", "scoring": "scoring", "seed": "random_state"}
    names |= {"workers": "n_jobs", "engine": "engine", "trial_timeout": "timeout", "run": "run"}
    options = {theirs: given[ours] for ours, theirs in names.items() if ours in given}
    if given.get("on_error") == "raise":
        options["error_score"] = "raise"
    if "pruner" in given:
        options["pruner"] = pruner_named(given["pruner"])
    verbose = 0 if given.get("progress") is False else 1
    found = SearchCV(estimator, space_named(given["space"]), verbose=verbose, **{"n_jobs": -1, **options})
    rows = scan(inputs, format=given.get("format"), storage_options=storage_for(inputs, given.get("storage_option")))
    target = given["target_column"]
    features = given["features"].split(",") if "features" in given else None
    table = (rows if features is None else rows.select([*features, target])).to_pandas(engine="serial")
    if target not in table:
        raise OptionError(f"there is no column {target!r}; there are: {', '.join(map(str, table.columns))}")
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # what it says is no answer
        warnings.filterwarnings("ignore", category=FitFailedWarning)  # they are told below
        warnings.filterwarnings("ignore", "One or more of the test scores are non-finite")  # likewise
        found.fit(table.drop(columns=target), table[target])
    return found


def as_json(found: SearchCV) -> dict[str, Any]:
    """All candidates, for programs."""
    table = found.cv_results_
    keys = ("mean_test_score", "std_test_score", "rank_test_score", "mean_fit_time")
    candidates = [
        {"params": params, **{key: float(table[key][at]) for key in keys}} for at, params in enumerate(table["params"])
    ]
    best = {"params": found.best_params_, "score": float(found.best_score_), "index": int(found.best_index_)}
    return {"best": best, "n_splits": found.n_splits_, "candidates": candidates, "n_failures": len(found.failures_)}


def _print(found: SearchCV) -> None:
    from fourfold.cli.tune_board import print_table

    table = found.cv_results_
    order = sorted(range(len(table["params"])), key=lambda at: (table["rank_test_score"][at], at))
    rows = []
    for at in order[:N_SHOWN]:
        params = ", ".join(f"{name}={value}" for name, value in table["params"][at].items())
        rows.append((f"{table['mean_test_score'][at]:.6g}", f"{table['std_test_score'][at]:.2g}", printable(params)))
    print_table(("score", "± over folds", "parameters"), rows)


def _tell_failures(found: SearchCV) -> int:
    if not found.failures_:
        return 0
    first = found.failures_[0]
    reason = printable(" ".join(str(first.reason).split()))
    say(f"{len(found.failures_):,} fits failed; the first, on fold {first.split} with {dict(first.params)}: {reason}")
    return SOME_FAILED
