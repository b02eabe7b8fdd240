"""`fourfold.ASHA` and `fourfold.Hyperband`: pruners of Optuna that stop bad trials early.

`ff.optimize` asks `rungs()`, and what waits at a rung goes on when it turns out to be good. `study.optimize` knows no trial
that waits: it asks `prune()`, which stops for good what does not go on at once.
"""

import math
from typing import Any

from fourfold.errors import MissingExtra, OptionTypeError
from fourfold.workloads.tune.rungs import Rungs, bracket_of, n_brackets, resources, shares

try:
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise MissingExtra("tuning needs optuna: pip install 'fourfold[ml]'") from error


class ASHA(BasePruner):
    """Asynchronous successive halving: of the trials at a rung, the best third goes on.

    Rungs are at `min_resource` reports and each `reduction_factor` times as many. In `ff.optimize` a trial that is not among
    the best at its rung waits with what it gave `trial.checkpoint`, and goes on when it is, so that no worker is ever idle for
    others. In `study.optimize`, which cannot continue a trial, it stops for good.

    Args:
        min_resource: How often each trial reports before it can be stopped. Fewer: bad trials cost less, and some good ones
            that begin slowly are lost.
        max_resource: How often a trial reports that is not stopped, such as its epochs.
        reduction_factor: One trial of so many goes on from each rung.

    Raises:
        OptionTypeError: `max_resource` is missing, or an argument is no whole number.
        OptionError: One is too small, or no rung is between the two resources.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020.

    >>> ASHA(1, 81)
    ASHA(min_resource=1, max_resource=81, reduction_factor=3)
    """

    def __init__(self, min_resource: int = 1, max_resource: int | None = None, reduction_factor: int = 3) -> None:
        if max_resource is None:
            raise OptionTypeError(
                "max_resource is missing: it says how often a trial reports when nothing stops it, as 81 does in "
                f"{type(self).__name__}(1, 81)"
            )
        self._levels = resources(min_resource, max_resource, reduction_factor)
        self._setting = (min_resource, max_resource, reduction_factor)
        self._shares = [1]
        self._passed: dict[tuple[str, int], int] = {}
        """Rungs that a trial which runs in this process has passed: it is asked once at each."""

    def __repr__(self) -> str:
        """As it was made."""
        lowest, highest, factor = self._setting
        return f"{type(self).__name__}(min_resource={lowest}, max_resource={highest}, reduction_factor={factor})"

    def rungs(self) -> Rungs:
        """New rungs without a trial, for `ff.optimize`."""
        return Rungs(*self._setting, n_brackets=len(self._shares))

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial is to stop; see Optuna. While there are too few trials for a third, the best so far goes on."""
        if trial.last_step is None:
            return False
        bracket = bracket_of(trial.number, self._shares)
        levels = self._levels[bracket:]
        key = study.study_name, trial.number
        while (passed := self._passed.get(key, 0)) < len(levels) and trial.last_step + 1 >= levels[passed]:
            if not self._passes(study, trial, bracket, levels[passed]):
                return True
            self._passed[key] = passed + 1
        return False

    def _passes(self, study: Study, trial: FrozenTrial, bracket: int, level: int) -> bool:
        sign = 1.0 if study.direction.name == "MAXIMIZE" else -1.0
        own = sign * _value_at(trial, level)
        if math.isnan(own):
            return False
        n_trials, n_better = 1, 0
        for other in study.get_trials(deepcopy=False):
            if other.number == trial.number or bracket_of(other.number, self._shares) != bracket:
                continue
            if other.last_step is not None and other.last_step + 1 >= level:
                value = math.nan if other.state == TrialState.FAIL else sign * _value_at(other, level)
                n_trials += 1
                n_better += value > own or (value == own and other.number < trial.number)
        return n_better < max(1, n_trials // self._setting[2])


class Hyperband(ASHA):
    """ASHA with several brackets: in each, trials are first compared a rung later than in the one before.

    For those who do not know how early a trial can be judged: most trials begin in the bracket that stops soonest, few in that
    which stops none. A trial's number says which is its own.

    Args:
        min_resource: How often a trial reports before it can be stopped, in the bracket that stops soonest.
        max_resource: How often a trial reports that is not stopped.
        reduction_factor: One trial of so many goes on from each rung.

    Raises:
        OptionTypeError: `max_resource` is missing, or an argument is no whole number.
        OptionError: One is too small, or no rung is between the two resources.

    Source: Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", JMLR 18 (2018).

    >>> Hyperband(1, 81).n_brackets
    5
    """

    def __init__(self, min_resource: int = 1, max_resource: int | None = None, reduction_factor: int = 3) -> None:
        super().__init__(min_resource, max_resource, reduction_factor)
        self._shares = shares(n_brackets(*self._setting), reduction_factor)

    @property
    def n_brackets(self) -> int:
        """How many there are."""
        return len(self._shares)


def _value_at(trial: FrozenTrial, level: int) -> Any:
    """What a trial had reported when it came to a rung: at its step, or the next one at which it reported."""
    return trial.intermediate_values[min(step for step in trial.intermediate_values if step + 1 >= level)]
