"""Candidates × folds, run as items: one round of a search.

A unit whose worker died, or that ran out of its time, is run again candidate by candidate, to know whose fault it was. That
one has the score of a candidate that raised, and the search goes on.
"""

import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, count
from typing import Any

from fourfold.call import Call
from fourfold.errors import WorkersKeepDying
from fourfold.options import RunOfBlock, resolve
from fourfold.records import Failure, Report
from fourfold.system.machine import cores
from fourfold.workloads.tune.search.fits import Fits, Job, Result, Unit
from fourfold.workloads.tune.search.prefixes import MOST, Candidate, grouped, most_in_group
from fourfold.workloads.tune.search.shown import Shown, of_fits

PROPORTIONAL = frozenset({"n_estimators", "max_iter", "n_iter", "iterations", "n_epochs", "epochs", "num_boost_round"})
"""Parameters by which the time of a fit grows, as a rule: the largest begin first."""

ATTEMPTS = 4
"""Calls that may end since all of their first items kill their workers, each with a sample of others in front. Fewer: a space
of which a small part can be used is given up. More: one of which nothing can be is tried for longer, some 20 fits for each."""


class Rounds:
    """Runs rounds one after the other, and keeps what is to be said of all of them.

    Args:
        options: Of `fourfold.map`.
        run: None, or the folder in which each round has a folder of its own.
        is_split: Each candidate is an item by itself: a limit of time is for one fit.
        shown: Is told of each fit that has ended.
    """

    def __init__(
        self, options: Mapping[str, Any], run: str | os.PathLike[str] | None, is_split: bool, shown: Shown | None = None
    ) -> None:
        self._options, self._is_split = {**options, "progress": False}, is_split
        self._run = None if run is None else RunOfBlock(os.fspath(run))
        self._shown = shown or Shown()
        self.reports: list[Report] = []

    @property
    def is_recorded(self) -> bool:
        """Whether rounds are recorded, by `run=` of the search or of a block around it."""
        return self._run is not None or resolve(self._options).run is not None

    def results(self, job: Job, candidates: Sequence[Mapping[str, Any]]) -> list[Result]:
        """What came of each candidate on each fold, in scikit-learn's order: candidates, and within each its folds."""
        groups = grouped(job.estimator, candidates, self._most_in_group(len(candidates) * len(job.splits)))
        if self._is_split:
            groups = [[candidate] for group in groups for candidate in group]
        units = _numbered([(split, group) for split in range(len(job.splits)) for group in groups])
        ended = Ended(job)
        apart: list[Unit] = []
        for unit, value in self._of_groups(job, units):
            if isinstance(value, Failure | WorkersKeepDying) and len(unit.candidates) > 1:
                apart.append(unit)
            else:
                ended.take(unit, value)
        alone = _numbered([(unit.split, [each._replace(path=())]) for unit in apart for each in unit.candidates])
        for unit, value in self.run(Fits, job, alone, None):
            ended.take(unit, value)
        return ended.in_order()

    def _of_groups(self, job: Job, units: list[Unit]) -> Iterable[tuple[Unit, Any]]:
        """Each unit with its value; where each one has a candidate that kills its worker, with the error that says so."""
        try:
            return self.run(Fits, job, units, _costs(job, units))
        except WorkersKeepDying as error:
            if all(len(unit.candidates) == 1 for unit in units):
                raise
            several = [(unit, error) for unit in units if len(unit.candidates) > 1]
            return chain(several, self.run(Fits, job, [unit for unit in units if len(unit.candidates) == 1], None))

    def _most_in_group(self, n_fits: int) -> int:
        if self._run is not None or self._options["engine"] == "serial":
            return MOST  # the units of a record are the same for any number of workers, and one worker waits for nobody
        return most_in_group(n_fits, self._options.get("workers") or cores().n_cores)

    def run(
        self, worker: Callable[[Job], Any], job: Job, items: Sequence[Any], cost: Callable[[Any], float] | None
    ) -> Iterator[tuple[Any, Any]]:
        """Each item with its value, or with its Failure, in order.

        Raises:
            WorkersKeepDying: The first items have all killed their workers, and so have others, from all over the space.
        """
        if not items:
            return iter(())
        changed: dict[str, Any] = {"init": (job,), "cost": cost}
        changed["on_error"] = "raise" if job.how["error_score"] == "raise" else "collect"
        if self._run is not None:
            changed["run"] = self._run.of_next_call()
        values: dict[int, Any] = {}
        left: Sequence[int] = range(len(items))
        for attempt in range(ATTEMPTS):
            n_before = len(values)
            try:
                self._call(worker, job, items, left, changed, values)
                break
            except WorkersKeepDying:
                if len(values) == n_before or attempt + 1 == ATTEMPTS:  # no item's fault, or that of all
                    raise
            left = left if self._run is not None else [index for index in left if index not in values]
            changed["cost"] = _spread([items[index] for index in left], attempt)
        return zip(items, (values[index] for index in range(len(items))), strict=True)

    def _call(
        self,
        worker: Callable[[Job], Any],
        job: Job,
        items: Sequence[Any],
        left: Sequence[int],
        options: Mapping[str, Any],
        values: dict[int, Any],
    ) -> None:
        """Run those items that are left; `values` has those that have ended, by their index, also when it raises."""
        settings = resolve({**self._options, **options})
        call = Call(worker, [items[index] for index in left], settings, name="SearchCV", parts_of_init=job.parts())
        in_order = settings.on_error == "raise"  # what the loop would have raised first
        with closing(call.in_order() if in_order else call.segments()) as segments:
            for segment in segments:
                for at, value in zip(count(segment.start), segment.values, strict=False):
                    if left[at] not in values and not isinstance(value, str):
                        values[left[at]] = value
                        self._shown.take(items[left[at]], value)
                for failure in call.failures.sorted():
                    if failure.kind == "raised" and isinstance(failure.error, Exception):
                        raise failure.error  # no fit's: parameters that do not exist, a scorer that gives no number
        call.raise_if_stopped()
        self.reports.append(of_fits(call.report(), [items[index] for index in left], self._shown))
        logging.getLogger("fourfold").info("SearchCV: %s", self.reports[-1].verdict)
        if job.placed is not None:
            absent = [index for index in left if index not in values]  # they were on a machine without the rows
            job.placed.sent(bool(absent))
            if absent:
                self._call(worker, job, items, absent, options, values)


class Ended:
    """The results of a round so far, by candidate and fold."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.results: dict[tuple[int, int], Result] = {}

    def take(self, unit: Unit, value: Any) -> None:
        """Note what came of a unit: results, or its Failure."""
        for at, candidate in enumerate(unit.candidates):
            is_lost = isinstance(value, Failure)
            self.results[candidate.number, unit.split] = _without_score(value, self._job) if is_lost else value[at]

    def in_order(self) -> list[Result]:
        """By candidate, and within each by fold."""
        return [self.results[place] for place in sorted(self.results)]


def _numbered(parts: Iterable[tuple[int, list[Candidate]]]) -> list[Unit]:
    return [Unit(number, *part) for number, part in enumerate(parts)]


def _without_score(failure: Failure, job: Job) -> Result:
    """What `_fit_and_score` would have returned, had the fit raised what its worker died of."""
    from sklearn.metrics._scorer import _MultimetricScorer

    scorer, score = job.how["scorer"], job.how["error_score"]
    scores = dict.fromkeys(scorer._scorers, score) if isinstance(scorer, _MultimetricScorer) else score
    text = f"{failure.error_type.rpartition('.')[2]}: {failure.message}"
    if failure.traceback:
        text += f"\n{failure.traceback}"
    result = {"fit_error": text, "test_scores": scores, "fit_time": 0.0, "score_time": 0.0, "kind": failure.kind}
    if job.how["return_train_score"]:
        result["train_scores"] = dict(scores) if isinstance(scores, dict) else scores
    return result


def _spread(items: Sequence[Any], seed: int) -> Callable[[Any], float]:
    """An order in which neighbours are apart: they have parameters in common, and so what they die of."""
    places = dict(zip(map(id, items), random.Random(seed).sample(range(len(items)), len(items)), strict=True))
    return lambda item: float(places[id(item)])


# ---- the longest first ---------------------------------------------------------------------------------------------------


def _costs(job: Job, units: list[Unit]) -> Callable[[Unit], float] | None:
    """How long units take, relative to each other; None where nothing tells them apart."""
    base = job.estimator.get_params()
    costs = []
    for unit in units:
        sizes = [_size(base, candidate) for candidate in unit.candidates]
        costs.append(float(len(job.splits[unit.split][0]) * sum(sizes)))
    # Folds differ by a row or two: that is no reason to leave the order of the candidates.
    return (lambda unit: costs[unit.number]) if max(costs) > 1.05 * min(costs) else None


def _size(base: Mapping[str, Any], candidate: Candidate) -> float:
    """The product of those parameters that a fit's time is proportional to."""
    size = 1.0
    for name, value in {**base, **candidate.params}.items():
        is_number = hasattr(value, "__float__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0
        if name.rpartition("__")[2] in PROPORTIONAL and is_number and value > 0:
            size *= float(value)
    return size
