"""How trials are proposed: what each one draws depends on its number, and not on which worker was faster.

in order       random, grid and quasi-random: what a trial draws depends on its number alone
batch of k     others: k trials are proposed from what the ones before them have told, and told in the order of their numbers
one by one     batch of 1: as `study.optimize` does it
async          a trial is proposed from whatever has been told when a worker is free
"""

import copy
from typing import Any

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler, QMCSampler, RandomSampler
from optuna.trial import TrialState

from fourfold.workloads.tune import asking
from fourfold.workloads.tune.drawing import (
    AsProposed,
    Beside,
    Drawn,
    Given,
    Noting,
    Rehearsal,
    as_they_are,
    domains,
    sampled_by,
)
from fourfold.workloads.tune.sources import seed_all, sources_of, state_of


def way_of(sampler: BaseSampler, mode: str, batch_size: int) -> "Way":
    """How a sampler is asked.

    Args:
        sampler: Of the study.
        mode: "batch" or "async".
        batch_size: How many trials are proposed at once, where that matters.
    """
    if type(sampler) is RandomSampler:
        return InOneStream(sampler)
    if isinstance(sampler, GridSampler):
        return InGrid(sampler)
    if isinstance(sampler, QMCSampler):
        return InSequence(sampler)
    if mode == "async":
        return Way(sampler, "async: trials depend on which workers are faster")
    if batch_size == 1:
        return Way(sampler, "one by one", batch_size=1)
    if isinstance(sampler, BruteForceSampler):
        return Way(sampler, "as workers are free: nothing is drawn that another trial has drawn")
    if not type(sampler).__module__.startswith("optuna."):  # nobody knows what it remembers: a copy may not do
        told = f"batch of {batch_size}, as far as the sampler draws all parameters of a trial together"
        return Way(sampler, told, batch_size, draws_first=True)
    return InBatches(sampler, batch_size)


class Way:
    """Asks a sampler as it is.

    Attributes:
        told: What a study says of it.
        batch_size: Trials that are proposed at once and told in order; None: whenever a worker is free.
        first_alone: Nobody else is proposed before the first trial has ended.
        counts: The sampler counts its trials in the study.
        first: The number of the trial that must end before others are proposed; None when there is none, or none yet.
        draws_again: A trial of which nothing was recorded draws in a later call what it had drawn.
    """

    draws_again = False

    def __init__(
        self,
        sampler: BaseSampler,
        told: str,
        batch_size: int | None = None,
        first_alone: bool = False,
        counts: bool = False,
        draws_first: bool = False,
    ) -> None:
        self._sampler, self.told, self.batch_size, self.first_alone = sampler, told, batch_size, first_alone
        self.counts, self._draws_first = counts, counts or draws_first
        self.first: int | None = None

    @property
    def waits_for_first(self) -> bool:
        """Whether the trial that runs must end before another one is proposed."""
        return self.first_alone

    def foretold(self, first: optuna.Trial, number: int) -> asking.Given | None:
        """What a trial will draw, if the first one, which still runs, asks for nothing more; None where nobody can say that.

        Args:
            first: That trial.
            number: Of the trial after those of which this was asked before.
        """
        return None

    def foretell_anew(self) -> None:
        """Nothing has come of what was foretold: the next time it is for the trial after the first one again."""

    def has_more(self, study: optuna.Study) -> bool:
        """Whether there is anything to try that no trial has begun."""
        return True

    def proposed(self, trial: optuna.Trial) -> BaseSampler:
        """What draws the parameters of a new trial. Called once for each, in the order of their numbers."""
        if self._draws_first:  # now, in the order of numbers
            self._draw_related(trial, self._sampler)
        return self._sampler

    def drawn_by(self, number: int) -> Drawn:
        """What must be known of an ended trial so that a later call goes on in the same way."""
        return []

    def ended(self, number: int) -> None:
        """A trial has ended."""
        self.first_alone, self.first = False, None

    def learn(self, drawn: Drawn) -> None:
        """A trial of an earlier call, which has ended or waits, had drawn this. Called before it is passed or proposed."""

    def past(self, number: int, is_enqueued: bool, drawn: Drawn) -> None:
        """A trial has ended in an earlier call, which had drawn this. Called in place of `proposed`."""
        self.first_alone = False

    def _draw_related(self, trial: optuna.Trial, sampler: BaseSampler) -> None:
        with sampled_by(trial.study, sampler):
            getattr(trial, "relative_params", None)  # a later Optuna than 5 may not have it: it has drawn them before, then


class InGrid(Way):
    """Each trial tries another point, and there are no more trials than points."""

    draws_again = True

    def __init__(self, sampler: GridSampler) -> None:
        super().__init__(sampler, "in order: each trial's point follows from its number")
        self._grid = sampler
        self._begun: set[int] | None = None

    def has_more(self, study: optuna.Study) -> bool:
        """See `Way`."""
        if self._begun is None:
            self._begun = set()
            for each in study.get_trials(deepcopy=False):
                self._note(each.system_attrs)
        is_all = len(self._begun) >= len(self._grid._all_grids)
        return not is_all or bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def proposed(self, trial: optuna.Trial) -> BaseSampler:
        """See `Way`."""
        self._note(trial.study._storage.get_trial_system_attrs(trial._trial_id))
        return self._sampler

    def _note(self, attrs: dict[str, Any]) -> None:
        if self._begun is not None and "grid_id" in attrs and self._grid._same_search_space(attrs["search_space"]):
            self._begun.add(attrs["grid_id"])


class InSequence(Way):
    """Quasi-random search: points are counted in the study, and drawn when a trial is proposed.

    What the first trial did not ask for comes from a generator of its own, by a trial's number and the parameter's name.
    """

    draws_again = True

    def __init__(self, sampler: QMCSampler) -> None:
        super().__init__(sampler, "in order: each trial's point follows from its number", first_alone=True, counts=True)
        self._root = [state_of(each) for each in sources_of(sampler)]
        self._rehearsal: Rehearsal | None = None

    def proposed(self, trial: optuna.Trial) -> BaseSampler:
        """See `Way`."""
        self._draw_related(trial, self._sampler)
        if self.first_alone:
            self.first = trial.number
            for name, distribution in _drawn_before(trial):
                self._sampler.sample_independent(trial.study, trial._cached_frozen_trial, name, distribution)
            return self._sampler
        return Beside([*self._root, trial.number])

    def foretold(self, first: optuna.Trial, number: int) -> asking.Given | None:
        """See `Way`."""
        if self._rehearsal is None:
            self._rehearsal = Rehearsal(self._sampler, first)
        return domains(self._rehearsal.next())

    def foretell_anew(self) -> None:
        """See `Way`."""
        self._rehearsal = None


class InBatches(Way):
    """Each trial has a copy of the sampler with random numbers of its own, by its number."""

    draws_again = True

    def __init__(self, sampler: BaseSampler, batch_size: int) -> None:
        super().__init__(sampler, f"batch of {batch_size}", batch_size)
        self._roots = [state_of(each) for each in sources_of(sampler)]

    def proposed(self, trial: optuna.Trial) -> BaseSampler:
        own = copy.deepcopy(self._sampler)
        seed_all(own, self._roots, trial.number)
        self._draw_related(trial, own)
        return AsProposed(own, as_they_are(trial.study))


class InOneStream(Way):
    """Random search: all trials draw from one stream, as in `study.optimize`, in the order of their numbers.

    What the first trial has drawn, the others draw too, before they run. What one of them asks for besides comes from a
    generator of its own, by its number and the parameter's name.
    """

    draws_again = True

    def __init__(self, sampler: RandomSampler) -> None:
        super().__init__(sampler, "in order: each trial's point follows from its number")
        self._random = sampler
        self._root = [state_of(each) for each in sources_of(sampler)]
        self._path: Drawn | None = None
        self._first: tuple[int, Noting] | None = None
        self._ahead: RandomSampler | None = None
        self._noted: dict[int, Drawn] = {}

    @property
    def waits_for_first(self) -> bool:
        return self._first is not None

    def proposed(self, trial: optuna.Trial) -> BaseSampler:
        beside = Beside([*self._root, trial.number])
        if "fixed_params" in trial.study._storage.get_trial_system_attrs(trial._trial_id):  # it was enqueued
            return beside
        if self._path is None:
            self.first, own = trial.number, Noting(self._random)
            self._first = self.first, own
            for name, distribution in _drawn_before(trial):
                own.sample_independent(trial.study, trial._cached_frozen_trial, name, distribution)
            return own
        return Given(_drawn(self._path, self._random, trial), beside)

    def foretold(self, first: optuna.Trial, number: int) -> asking.Given | None:
        """See `Way`."""
        if self._first is None or not self._first[1].drawn:
            return None
        self._ahead = self._ahead or copy.deepcopy(self._random)
        return domains(_drawn(self._first[1].drawn, self._ahead, first))

    def foretell_anew(self) -> None:
        """See `Way`."""
        self._ahead = None

    def drawn_by(self, number: int) -> Drawn:
        return self._noted.get(number, [])

    def ended(self, number: int) -> None:
        if self._first is not None and self._first[0] == number:
            self._noted[number] = self._first[1].drawn
            self._path, self._first, self.first = self._noted[number] or None, None, None

    def learn(self, drawn: Drawn) -> None:
        self._path = self._path or drawn or None

    def past(self, number: int, is_enqueued: bool, drawn: Drawn) -> None:
        if is_enqueued:
            return
        self.learn(drawn)
        for name, distribution in self._path or ():
            self._random.sample_independent(None, None, name, distribution)  # type: ignore[arg-type]


def _drawn_before(trial: optuna.Trial) -> Drawn:
    """What a trial has drawn that an earlier call began: the study has the values, and the stream is to be behind them."""
    return list(trial._cached_frozen_trial.distributions.items())


def _drawn(path: Drawn, sampler: RandomSampler, trial: optuna.Trial) -> dict[str, tuple[Any, Any]]:
    frozen = trial.study._storage.get_trial(trial._trial_id)
    return {
        name: (distribution, sampler.sample_independent(trial.study, frozen, name, distribution))
        for name, distribution in path
    }
