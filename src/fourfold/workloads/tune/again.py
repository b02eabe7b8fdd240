"""One recorded trial again: in this process, with the parameters that it had, where a debugger can look."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optuna

from fourfold.errors import OptionError
from fourfold.replay import program_of
from fourfold.runs.place import check_trusted
from fourfold.runs.seal import load_key
from fourfold.runs.story import check_command, open_run
from fourfold.workloads.tune import states
from fourfold.workloads.tune.told import Told, trials_of
from fourfold.workloads.tune.trial import numbers_of


class TrialAgain(NamedTuple):
    """What runs a trial as the run did, what came of it there, and the seconds that it may take when it had taken too long."""

    run_trial: Callable[[], Any]
    told: Told
    timeout_s: float | None


class GivenTrial(optuna.trial.FixedTrial):
    """A trial whose parameters are known. It is not stopped early, and begins at its beginning."""

    def checkpoint(self, state: Any) -> None:
        """Nothing is kept."""

    def restore(self, default: Any = None) -> Any:
        """Nothing was kept."""
        return default


def prepare_trial(run: str, number: int) -> TrialAgain:
    """Load the objective of a recorded run, and the parameters of one of its trials.

    Raises:
        OptionError: There is no such trial.
        UntrustedRun: The run is not ours, or was recorded with another key: nothing was unpickled.
    """
    folder = open_run(run)
    check_trusted(folder)
    key = load_key()
    check_command(folder, key)
    recorded = trials_of(folder)
    trials = {each.number: each for each in recorded.trials}
    if number not in trials:
        raise OptionError(f"{run} has no trial {number} that has ended; it has {len(trials):,}: fourfold tune --status {run}")
    parts = program_of(folder, key)
    told = trials[number]
    timeout_s = float(recorded.story.options.get("trial_timeout", "0")) if told.state == states.TIMED_OUT else 0.0
    return TrialAgain(lambda: _run(parts, told), told, timeout_s or None)


def _run(parts: dict[str, Any], told: Told) -> Any:
    objective = parts["function"]
    call = objective(*parts.get("init", ())) if isinstance(objective, type) else objective
    with numbers_of(told.number, parts.get("seed")):
        return call(GivenTrial(told.params, told.number))
