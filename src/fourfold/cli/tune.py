"""`fourfold tune`: parameters of an objective of Optuna, or of an estimator, are searched in parallel.

MODULE:OBJECTIVE                    -> ff.optimize, a study             tune_names.py  samplers, pruners, storages by name
MODULE:ESTIMATOR --space … INPUT…   -> ff.SearchCV, a model in a file   tune_search.py
--status RUN, --export RUN          -> trials of a recorded run         tune_record.py
where the rows of an estimator are                                      tune_rows.py
what cannot be, before anything runs                                    tune_checked.py
what is shown of trials                                                 tune_board.py, while they run tune_live.py
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli.exits import ERROR, SOME_FAILED, TracebackOption, one_line_errors, say
from fourfold.cli.storage import StorageOption
from fourfold.errors import OptionError
from fourfold.options import seconds

if TYPE_CHECKING:
    import optuna

    from fourfold.cli.tune_board import Board

OF_STUDIES = frozenset({
    *{"direction", "sampler", "storage", "study", "mode", "batch_size", "timeout", "retries", "init"},
})  # fmt: skip
OF_ESTIMATORS = frozenset({"features", "method", "cv", "scoring", "format", "storage_option", "out_of_core"})


def tune_command(
    target: Annotated[
        str | None,
        typer.Argument(metavar="MODULE:OBJECTIVE", help="A function of a trial; or an estimator, with --space and INPUT."),
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT...", help="For an estimator: files, globs, folders or URLs.")
    ] = None,
    n_trials: Annotated[int | None, typer.Option(metavar="N", help="How many trials there are to be in the end.")] = None,
    direction: Annotated[
        list[str] | None, typer.Option(help="minimize or maximize; once for each value of the objective. (minimize)")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="tpe, random, grid, qmc, cmaes, gp, nsgaii, nsgaiii, brute, or MODULE:NAME. (tpe)")
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:N,…]",
            help="asha:1,81,3, hyperband:1,81,3, median:5, percentile:25, halving, threshold:0,1, none, or MODULE:NAME.",
        ),
    ] = None,
    space: Annotated[
        str | None, typer.Option(metavar="MODULE:SPACE", help="A dict of parameters: for --sampler grid, or an estimator.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="The study is kept there, by Optuna; $NAME is read from the environment.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the study in --storage; one that is there goes on.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="batch: can be had again; async: faster. (batch)")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Trials proposed together. (The workers.)")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which no trial is begun.")] = None,
    trial_timeout: Annotated[
        float | None, typer.Option(help="Seconds for each trial, or fit; a longer one is stopped.")
    ] = None,
    on_error: Annotated[
        str, typer.Option(help="A trial that raises is one that failed (collect), or ends the search (raise).")
    ] = "collect",
    retries: Annotated[int | None, typer.Option(help="Runs more for a trial that raised.")] = None,
    target_column: Annotated[
        str | None, typer.Option("--target", metavar="COLUMN", help="For an estimator: what it learns to predict.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="Columns that it learns from, with commas between; the others.")] = None,
    method: Annotated[str | None, typer.Option(help="random, grid, halving or tpe. (random)")] = None,
    cv: Annotated[int | None, typer.Option(metavar="N", help="Folds. (5)")] = None,
    scoring: Annotated[
        str | None, typer.Option(metavar="NAME", help="A score of scikit-learn. (The estimator's own.)")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Of the input: parquet, csv, jsonl or text; by extension.")] = None,
    out_of_core: Annotated[
        bool | None,
        typer.Option(
            "--out-of-core/--in-memory",
            help="Of an estimator: each fit reads the rows from their files; or all are in memory, as it is without either.",
        ),
    ] = None,
    storage_option: StorageOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Trials: .parquet, .csv or .jsonl. Of an estimator the best: .joblib or .pkl.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="The file may take the place of what is there.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the sampler, and of each trial's random numbers.")] = None,
    engine: Annotated[str | None, typer.Option(help="processes, serial, threads, spark, ray, dask, or an address.")] = None,
    workers: Annotated[int | None, typer.Option(help="How many trials run at once. (The cores that may be used.)")] = None,
    memory: Annotated[int | None, typer.Option(help="Bytes per worker.")] = None,
    init: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Argument for a class; repeat for more. Passed as text.")
    ] = None,
    threads_per_worker: Annotated[int | None, typer.Option(help="BLAS and OpenMP threads per worker.")] = None,
    run: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Record the trials there: the same command goes on where it ended.")
    ] = None,
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="The best trials on a terminal, a line now and then elsewhere."),
    ] = None,
    status: Annotated[str | None, typer.Option(metavar="RUN", help="Show the trials of a run, also while it goes on.")] = None,
    export: Annotated[
        str | None, typer.Option(metavar="RUN", help="Write the trials of a run into -o FILE, likewise.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the best trials, or --status, as JSON.")] = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Search for good parameters: trials run in parallel, each in a process of its own, and one that dies costs one trial.

    An objective is what Optuna calls so: it is called with a trial, asks that for parameters, and returns a number. An
    estimator of scikit-learn is searched by cross-validation on the rows of INPUT, and the best one is written into a file.

    A trial that fails is counted and told; the exit code is then 3.

    Example: fourfold tune models:objective --n-trials 200 --direction maximize --run runs/tune

    Example: fourfold tune models:pipe 'in/*.parquet' --target late --space models:space --n-trials 30 -o model.joblib
    """
    given = {name: value for name, value in locals().items() if value is not None}
    with one_line_errors(show_traceback, lambda: _interrupted(given)):
        if status is not None or export is not None:
            _look(status, export, given)
            return
        if target is None:
            raise OptionError("name what is searched: MODULE:OBJECTIVE, or MODULE:ESTIMATOR with --space and INPUT")
        if on_error not in ("collect", "raise"):
            raise OptionError(f"--on-error {on_error} is not known. Choices: collect, raise")
        if inputs or target_column is not None:
            from fourfold.cli.tune_search import search

            _check_only("an objective", OF_STUDIES, given)
            code = search(target, inputs or [], given)
        else:
            _check_only("an estimator, which needs INPUT", OF_ESTIMATORS, given)
            code = _optimize(target, given)
    raise SystemExit(code)


def _interrupted(given: dict[str, Any]) -> str:
    """What Ctrl-C has left, and how to go on."""
    run, storage = given.get("run"), given.get("storage")
    if run is not None:
        return _interrupted_run(run, bool(given.get("inputs")))
    if storage is not None:
        return "interrupted; what finished is in the study: the same command goes on"
    if given.get("out_of_core"):
        return "interrupted, and the candidates are gone"
    what = "candidates" if given.get("inputs") else "trials"
    return f"interrupted, and the {what} are gone; with --run FOLDER the same command would go on"


def _interrupted_run(run: str, is_search: bool) -> str:
    from pathlib import Path

    from fourfold.runs.story import find_runs

    if next(find_runs(Path(run)), None) is None:
        return "interrupted before anything was recorded: the same command begins"
    if is_search:
        return f"interrupted; what finished is in {run}: the same command goes on"
    return f"interrupted; what finished is in {run}; go on: fourfold resume {shlex.quote(run)}"


def _look(status: str | None, export: str | None, given: dict[str, Any]) -> None:
    from fourfold.cli import tune_record

    own = {"export", "output", "overwrite"} if export is not None else {"status", "as_json"}
    given = {name: value for name, value in given.items() if value is not False}
    if others := sorted(given.keys() - own - {"on_error", "show_traceback"}):
        name = {"as_json": "json", "target_column": "target", "target": "MODULE:OBJECTIVE"}.get(others[0], others[0])
        what = name if name.isupper() or ":" in name else f"--{name.replace('_', '-')}"
        raise OptionError(f"--status RUN and --export RUN stand alone, and nothing is searched: leave {what} out")
    if export is not None:
        tune_record.export(export, given.get("output"), given.get("overwrite", False))
    elif status is not None:
        tune_record.show_status(status, given.get("as_json", False))


def _check_only(other: str, names: frozenset[str], given: dict[str, Any]) -> None:
    wrong = sorted(names & given.keys())
    if "out_of_core" in wrong:
        raise OptionError(f"{'--out-of-core' if given['out_of_core'] else '--in-memory'} is for {other}")
    if wrong:
        raise OptionError(f"--{wrong[0].replace('_', '-')} is for {other}")


def _optimize(target: str, given: dict[str, Any]) -> int:
    """Run a study, and tell what came of it; returns the exit code."""
    from fourfold.cli.tune_board import Board, print_json
    from fourfold.cli.tune_checked import time_outs_of_trials
    from fourfold.cli.tune_live import Live
    from fourfold.cli.tune_record import check_free, write_trials
    from fourfold.workloads.tune.optimizing import optimize
    from fourfold.workloads.tune.told import told_of

    output = given.get("output")
    if output is not None:
        check_free(output, "overwrite" in given and given["overwrite"])
    objective, options = _objective(target, given), _options(given)
    study = _study(given)
    directions = [each.name for each in study.directions]
    live = Live(Board(directions, given.get("n_trials")), given.get("progress"))
    with live.shown(), time_outs_of_trials():
        optimize(objective, study=study, callbacks=[live], **options)
    trials = [told_of(trial) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    board = Board(directions)
    for trial in trials:
        board.add(trial)
    if output is not None:
        write_trials(trials, len(directions), output)
    if given["as_json"]:
        print_json(board.as_json())
    else:
        board.print()
    return _tell(study, board, output)


def _tell(study: optuna.Study, board: Board, output: str | None) -> int:
    """The end of the story, on stderr; returns the exit code."""
    say(board.counted() + (f"; all are in {output}" if output is not None else ""))
    board.tell_failures()
    report = study.report  # type: ignore[attr-defined]
    say(report.verdict if report.n_items else "nothing was left to run: the study has as many trials as were asked for")
    if board.n_without_value and not board.best:
        say("no trial has a value")
        return ERROR
    return SOME_FAILED if board.n_without_value else 0


def _objective(target: str, given: dict[str, Any]) -> Any:
    from fourfold.cli.target import load_function, load_object
    from fourfold.workloads.tune.checked import check_objective

    found = load_object(target)
    if hasattr(found, "fit"):
        raise OptionError(f"{target} is an estimator: name INPUT, --target and --space as well")
    objective = load_function(target)
    if "init" in given and not isinstance(objective, type):
        raise OptionError(f"--init is for a class, and {target} is of type {type(objective).__name__}")
    try:
        check_objective(objective)
    except OptionError as error:
        error.add_note("if it gives an estimator, name INPUT, --target and --space as well")
        raise
    return objective


def _study(given: dict[str, Any]) -> optuna.Study:
    """The study that options say: a new one in memory, or one of a storage."""
    import optuna

    from fourfold.cli.tune_names import errors_of_storage, pruner_named, sampler_named, space_named, storage_named

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it would say of each trial is shown otherwise
    directions = given.get("direction", ["minimize"])
    unknown = [each for each in directions if each not in ("minimize", "maximize")]
    if unknown:
        raise OptionError(f"--direction {unknown[0]} is not known. Choices: minimize, maximize")
    if ("study" in given) != ("storage" in given):
        raise OptionError("--storage URL and --study NAME belong together: where the study is kept, and under which name")
    sampler = sampler_named(given.get("sampler"), given.get("seed"), space_named(given.get("space")))
    about = {
        "directions": directions,
        "sampler": sampler or optuna.samplers.TPESampler(seed=given.get("seed")),
        "pruner": pruner_named(given.get("pruner")),
    }
    if "storage" not in given:
        return optuna.create_study(**about)
    kept = {"storage": storage_named(given["storage"]), "study_name": given["study"], "load_if_exists": True}
    with errors_of_storage(given["storage"]):
        study = optuna.create_study(**about, **kept)
    own = [each.name.lower() for each in study.directions]
    if "direction" in given and own != directions:  # Optuna would go on in the study's own, and not say so
        raise OptionError(
            f"--direction {', '.join(directions)}: the study {given['study']} is there already, to {', '.join(own)}"
        )
    return study


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """What `optimize` is told besides.

    Raises:
        OptionError: One of them cannot be used.
    """
    seconds("trial_timeout", given.get("trial_timeout"))
    names = ("n_trials", "timeout", "trial_timeout", "batch_size", "retries", "seed", "engine", "workers", "memory")
    options = {name: given[name] for name in (*names, "threads_per_worker", "run", "mode") if name in given}
    if "init" in given:
        options["init"] = tuple(given["init"])
    if given["on_error"] == "collect":
        options["catch"] = (Exception,)
    return {**options, "progress": False}  # the board is shown instead
