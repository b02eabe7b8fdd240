"""What is shown of a search while it runs, and said of its rounds: fits, how many of all, and the best score so far."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from fourfold.aggregate.progress import Progress
from fourfold.execute import current
from fourfold.options import resolve
from fourfold.records import Failure, Report
from fourfold.system.machine import in_notebook
from fourfold.workloads.tune.search.fits import Result, Unit


class Shown:
    """Counts the fits of a search, and knows the best score so far.

    Args:
        n_splits: Folds; a candidate has a score once it has one on each.
        metric: The name of the score to go by, None when there is none.
    """

    def __init__(self, n_splits: int = 0, metric: str | None = None) -> None:
        self.n_splits, self.metric = n_splits, metric
        self._scores: dict[int, list[float]] = defaultdict(list)
        self.finished = self.failures = 0
        self.best: float | None = None
        self.total: int | None = None

    @contextmanager
    def on_screen(self, total: int | None, options: Mapping[str, Any]) -> Iterator[None]:
        """A block in which the counts are shown, where the options of the calls say so: on a terminal as a bar."""
        show = False if current.inside_item() else resolve(options).progress
        self.total = total
        progress = Progress(self, total, show, in_notebook(), "SearchCV", unit="fit", more=self.words)
        with closing(progress):
            progress.begin()
            yield

    def begin_round(self, is_comparable: bool) -> None:
        """Candidates are numbered from 0 on again; `is_comparable`: their scores are as those of the rounds before."""
        self._scores.clear()
        if not is_comparable:  # of fewer rows, or passes
            self.best = None

    def take(self, item: Any, value: Any) -> None:
        """Note what came of a unit, or of a leg."""
        unit: Unit = getattr(item, "unit", item)
        if isinstance(value, Failure):
            if len(unit.candidates) == 1:  # else these run again, one by one
                self.finished, self.failures = self.finished + 1, self.failures + 1
            return
        results = [value[0]] if unit is not item else value
        for candidate, result in zip(unit.candidates, results, strict=True):
            self.take_result(candidate.number, result)

    def take_result(self, candidate: int, result: Result) -> None:
        """Note what came of one fit."""
        self.finished += 1
        self.failures += result["fit_error"] is not None
        scores = self._scores[candidate]
        scores.append(score_of(result, self.metric))
        if len(scores) == self.n_splits:
            mean = math.fsum(scores) / len(scores)
            if mean == mean and (self.best is None or mean > self.best):
                self.best = mean

    def words(self) -> str:
        """The best score so far, or nothing."""
        return "" if self.best is None else f"best {self.best:.4g}"


def score_of(result: Result, metric: str | None) -> float:
    """The score to go by of one fit, NaN where it has none."""
    scores = result["test_scores"]
    if isinstance(scores, Mapping):
        return float(scores.get(metric, math.nan))
    return float(scores)


def of_fits(report: Report, items: Sequence[Any], shown: Shown) -> Report:
    """The report of a call whose items are units, of the fits in them, and of how far the search is."""
    n_fits = sum(len(getattr(item, "unit", item).candidates) for item in items)
    verdict = report.verdict
    if n_fits == len(items):
        verdict = verdict.replace(" items", " fits")
    else:  # of shared steps
        verdict = verdict.replace(" items", f" groups of {n_fits} fits", 1).replace("its items", "its groups")
    if shown.total is not None and shown.total != n_fits:
        verdict += f"; {shown.finished} of {shown.total} fits are done"
    if words := shown.words():
        verdict += f"; {words}"
    return Report(**{**vars(report), "verdict": verdict, "n_items": n_fits})
