"""What draws the parameters of one trial: samplers that note, give or leave to others what a sampler of the user draws."""

import copy
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from fourfold.workloads.tune import asking
from fourfold.workloads.tune.sources import word_of

Drawn = list[tuple[str, Any]]
"""Parameters that a sampler was asked for, one after the other, each with its distribution."""

PLAIN = (type(None), bool, int, float, str)
"""Types of choices that Optuna knows, and that can travel to any worker."""


def given(trial: optuna.Trial, sampler: BaseSampler) -> asking.Given:
    """What a trial is known to draw, before it asks: what it has drawn already, and what was drawn when it was proposed.

    Args:
        trial: Of the study.
        sampler: What draws for it.
    """
    frozen = trial._cached_frozen_trial
    found = dict(sampler.values) if isinstance(sampler, Given) else {}
    space, values = getattr(trial, "relative_search_space", None) or {}, getattr(trial, "_relative_params", None) or {}
    found |= {name: (space[name], value) for name, value in values.items() if name in space}
    found |= {name: (frozen.distributions[name], value) for name, value in frozen.params.items()}
    return domains(found, frozen.system_attrs.get("fixed_params", {}))


def domains(drawn: Mapping[str, tuple[BaseDistribution, Any]], fixed: Container[str] = ()) -> asking.Given:
    """Values by name, each with how a trial would ask for it; what is fixed, is odd, or is not in its range is left out."""
    found = {}
    for name, (distribution, value) in drawn.items():
        asked_by = _domain_of(distribution)
        if asked_by is not None and name not in fixed and _has(distribution, value):
            found[name] = (*asked_by, value)
    return found


def _has(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):  # of a sampler of the user: Optuna says so when it is asked for
        return False


def _domain_of(each: BaseDistribution) -> tuple[str, tuple[Any, ...]] | None:
    if isinstance(each, FloatDistribution):
        return "suggest_float", (each.low, each.high, each.step, each.log)
    if isinstance(each, IntDistribution):
        return "suggest_int", (each.low, each.high, each.step, each.log)
    if isinstance(each, CategoricalDistribution) and all(isinstance(choice, PLAIN) for choice in each.choices):
        return "suggest_categorical", tuple(each.choices)
    return None


@contextmanager
def sampled_by(study: optuna.Study, sampler: BaseSampler) -> Iterator[None]:
    """While it lasts, the study has this sampler."""
    before, study.sampler = study.sampler, sampler
    try:
        yield
    finally:
        study.sampler = before


class Noting(RandomSampler):
    """Draws from a sampler, and notes what."""

    def __init__(self, sampler: RandomSampler) -> None:
        super().__init__()
        self._sampler = sampler
        self.drawn: Drawn = []

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        self.drawn.append((param_name, param_distribution))
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


class Beside(RandomSampler):
    """Draws each parameter by its name."""

    def __init__(self, root: list[int]) -> None:
        super().__init__()
        self._root = root

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        seed = word_of([*self._root, zlib.crc32(param_name.encode())])
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)


class Given(RandomSampler):
    """Gives what was drawn before; what was not, another sampler draws."""

    def __init__(self, values: dict[str, tuple[Any, Any]], other: RandomSampler) -> None:
        super().__init__()
        self.values, self._other = values, other

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        distribution, value = self.values.get(param_name, (None, None))
        if distribution == param_distribution:
            return value
        return self._other.sample_independent(study, trial, param_name, param_distribution)


class AsProposed(BaseSampler):
    """Draws what a trial asks for while it runs as if all others still were where they were when it was proposed.

    Those of its batch run meanwhile, and some samplers look at them.

    Args:
        own: The sampler of this trial.
        trials: All trials of the study when it was proposed.
    """

    def __init__(self, own: BaseSampler, trials: list[optuna.trial.FrozenTrial]) -> None:
        self._own, self._trials = own, trials

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """See Optuna."""
        # Under Hyperband it is a view of the study that is made for this call.
        view = copy.copy(study) if type(study) is optuna.Study else study
        view._storage = _Then(study._storage, [trial if each.number == trial.number else each for each in self._trials])
        return self._own.sample_independent(view, trial, param_name, param_distribution)

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        """Not asked: they were drawn before."""
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        """Not asked: they were drawn before."""
        return self._own.sample_relative(study, trial, search_space)


def as_they_are(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """All trials; those that run change later on, and are copied."""
    found = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return [each if each.state.is_finished() else copy.deepcopy(each) for each in found]


class _Then:
    """A storage whose trials are as they were."""

    def __init__(self, storage: Any, trials: list[optuna.trial.FrozenTrial]) -> None:
        self._storage, self._trials = storage, trials

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[optuna.trial.FrozenTrial]:
        found = [each for each in self._trials if states is None or each.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


class Rehearsal:
    """What a sampler would draw together for one trial after the other, if one that runs had ended as it is.

    Nothing of the study or of the sampler changes.

    Args:
        sampler: Of the study.
        first: The trial that runs.
    """

    def __init__(self, sampler: BaseSampler, first: optuna.Trial) -> None:
        self._sampler, self._study = copy.deepcopy(sampler), copy.copy(first.study)
        frozen = copy.copy(first.study._storage.get_trial(first._trial_id))
        frozen.state = TrialState.COMPLETE
        self._trial = frozen
        trials = [frozen if each.number == frozen.number else each for each in first.study.get_trials(deepcopy=False)]
        self._study._thread_local = type(first.study._thread_local)()
        self._study._storage = _Aside(first.study, trials)  # type: ignore[assignment]

    def next(self) -> dict[str, tuple[BaseDistribution, Any]]:
        """What the next trial would draw."""
        space = self._sampler.infer_relative_search_space(self._study, self._trial)
        values = self._sampler.sample_relative(self._study, self._trial, space)
        return {name: (space[name], value) for name, value in values.items()}


class _Aside(_Then):
    """A storage in which samplers may note something that nobody else sees."""

    def __init__(self, study: optuna.Study, trials: list[optuna.trial.FrozenTrial]) -> None:
        super().__init__(study._storage, trials)
        self._attrs = dict(study._storage.get_study_system_attrs(study._study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._attrs

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._attrs[key] = value
