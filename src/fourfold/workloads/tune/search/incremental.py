"""Learners that go on: `partial_fit` budgets, and a pruner that says who gets more.

    round 0   27 candidates × folds, 1 pass each ──scores──> Rungs ──> the best 9
    round 1    9 candidates × folds, 2 more      ──scores──> Rungs ──> the best 3        each goes on from what it has learned
    round 2    3 candidates × folds, 6 more …

What a candidate has learned on a fold travels with its next item, so any worker can go on with it.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fourfold.records import Failure
from fourfold.workloads.tune.rungs import Decision, bracket_of, resources
from fourfold.workloads.tune.search.fits import Job, Result, Unit, fit_and_score
from fourfold.workloads.tune.search.placed import ABSENT
from fourfold.workloads.tune.search.prefixes import Candidate
from fourfold.workloads.tune.search.rounds import Ended, Rounds


class Leg(NamedTuple):
    """Passes of one candidate over the training rows of a fold, and what it had learned before: the pickle of it."""

    unit: Unit
    begin: int
    end: int
    learned: bytes | None

    def __repr__(self) -> str:  # in messages
        return f"{self.unit!r}, passes {self.begin + 1} to {self.end}"


class Passes:
    """A worker's own: built once, with the job, then called for each leg."""

    def __init__(self, job: Job) -> None:
        self._job = job.with_rows()

    def __call__(self, leg: Leg) -> tuple[Result, bytes] | str:
        from sklearn import config_context
        from sklearn.base import clone

        (candidate,) = leg.unit.candidates
        job, is_new = self._job, leg.learned is None
        if job is None:
            return ABSENT
        with config_context(**job.config):
            estimator = clone(job.estimator) if leg.learned is None else pickle.loads(leg.learned)
            estimator.fit = Budget(estimator, leg.begin, leg.end, job.y)  # what scikit-learn calls
            result = fit_and_score(job, estimator, candidate, leg.unit.split, candidate.params if is_new else None)
            del estimator.fit
        return result, pickle.dumps(estimator, 5)


class Budget:
    """The `fit` of an estimator that learns by passes: as many as it has left."""

    def __init__(self, estimator: Any, begin: int, end: int, y: Any) -> None:
        self._estimator, self._begin, self._end, self._y = estimator, begin, end, y

    def __call__(self, X: Any, y: Any = None, **params: Any) -> None:
        import numpy as np
        from sklearn.base import is_classifier

        target = [] if y is None else [y]
        for number in range(self._begin, self._end):
            is_first = number == 0 and is_classifier(self._estimator)
            classes = {"classes": np.unique(self._y)} if is_first else {}  # a fold may lack one
            self._estimator.partial_fit(X, *target, **classes, **params)


class Ladder:
    """The candidates of one search on the rungs of its pruner.

    Args:
        pruner: `ff.ASHA` or `ff.Hyperband`.
        candidates: All of them: they begin together, so that a rung is full before anybody leaves it.
        rounds: Runs the legs.
    """

    def __init__(self, pruner: Any, candidates: Sequence[Mapping[str, Any]], rounds: Rounds) -> None:
        self._rungs, self._candidates, self._rounds = pruner.rungs(), candidates, rounds
        lowest, self.most, factor = pruner._setting
        levels, of = resources(lowest, self.most, factor), pruner._shares
        self._levels = [[*levels[bracket_of(number, of) :], self.most] for number in range(len(candidates))]
        self._had = [0] * len(candidates)
        self._learned: dict[tuple[int, int], bytes] = {}
        self._took_s: dict[tuple[int, int], float] = {}
        self._failed: set[int] = set()

    def search(self, score: Callable[..., Sequence[float]]) -> None:
        """Run rounds until nobody goes on. `score` has a number for each candidate, NaN where there is none."""
        going = list(range(len(self._candidates)))
        number = 0
        while going:
            ends = [next(level for level in self._levels[each] if level > self._had[each]) for each in going]
            scores = score(
                [self._candidates[each] for each in going],
                more_results={"iter": [number] * len(going), "n_resources": ends},
                run=lambda job, _, going=going, ends=ends: self._results(job, going, ends),
            )
            going = self._next(going, ends, scores)
            number += 1

    def _results(self, job: Job, going: Sequence[int], ends: Sequence[int]) -> list[Result]:
        legs: list[Leg] = []
        for row, (each, end) in enumerate(zip(going, ends, strict=True)):
            for split in range(len(job.splits)):
                unit = Unit(len(legs), split, [Candidate(row, self._candidates[each])])
                legs.append(Leg(unit, self._had[each], end, self._learned.pop((each, split), None)))
        ended = Ended(job)
        for leg, value in self._rounds.run(Passes, job, legs, None):
            place = (going[leg.unit.candidates[0].number], leg.unit.split)
            if isinstance(value, Failure):
                ended.take(leg.unit, value)
                continue
            result, self._learned[place] = value
            result["fit_time"] += self._took_s.get(place, 0.0)
            self._took_s[place] = result["fit_time"]
            ended.take(leg.unit, [result])
        self._failed |= {going[row] for (row, _), result in ended.results.items() if result["fit_error"] is not None}
        return ended.in_order()

    def _next(self, going: Sequence[int], ends: Sequence[int], scores: Sequence[float]) -> list[int]:
        """Who goes on. The best are told of first, so that whoever goes on does so by the whole rung."""
        goes_on = []
        for row in sorted(range(len(going)), key=lambda row: (scores[row] != scores[row], -scores[row], row)):
            number, self._had[going[row]] = going[row], ends[row]
            decision = self._rungs.report(number, ends[row] - 1, scores[row])
            if number in self._failed:
                self._rungs.fail(number)
            elif ends[row] == self.most:
                self._rungs.end(number)
            elif decision is Decision.PAUSE:
                self._rungs.pause(number)
            else:
                goes_on.append(number)
        while (promoted := self._rungs.promotable(is_last=True)) is not None:
            goes_on.append(promoted)
        return sorted(goes_on)


def best_of(refit: Any, metric: Any, table: Mapping[str, Any]) -> int:
    """The row of the best candidate: of those that have had the most passes and have a score, the one with the best score."""
    import numpy as np

    scores, n_resources = table[f"mean_test_{metric}"], table["n_resources"]
    has_score = ~np.isnan(scores)
    if not has_score.any():
        return int(np.argmax(n_resources))
    most = n_resources[has_score].max()
    return int(np.nanargmax(np.where(n_resources == most, scores, np.nan)))
