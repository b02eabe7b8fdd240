"""One space for all methods: lists, SciPy's distributions and Optuna's, as each method wants them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fourfold.errors import OptionError, OptionTypeError

EDGE = 1e-9
"""How near to 0 and 1 the quantiles may be at which TPE asks a distribution of SciPy: there its values may be infinite."""


def parts_of(space: Any) -> list[dict[str, Any]]:
    """A space as dicts of which a candidate is of one: a dict alone, or a list of them.

    Raises:
        OptionTypeError: It is neither.
    """
    parts = [space] if isinstance(space, Mapping) else space
    is_list = isinstance(parts, Sequence) and not isinstance(parts, str | bytes)
    if not is_list or not parts or not all(isinstance(part, Mapping) for part in parts):
        raise OptionTypeError(
            f"space={space!r} must be a dict of parameters' names, each with a list or a distribution; or a list of such dicts"
        )
    return [dict(part) for part in parts]


def for_sampling(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With what scikit-learn's samplers take: lists, and objects with `rvs`."""
    return [{name: _samplable(values) for name, values in part.items()} for part in parts]


def for_grid(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With lists only.

    Raises:
        OptionError: A parameter has a distribution, which has no end.
    """
    sampled = for_sampling(parts)
    for part in sampled:
        for name, values in part.items():
            if hasattr(values, "rvs"):
                raise OptionError(
                    f'method="grid" tries each value, and {name!r} has a distribution of them: give a list, or take '
                    'method="random", "halving" or "tpe"'
                )
    return sampled


def _samplable(values: Any) -> Any:
    if not _is_optunas(values):
        return values
    kind = type(values).__name__
    if kind == "CategoricalDistribution":
        return list(values.choices)
    if kind == "IntDistribution" and not values.log:
        return range(values.low, values.high + 1, values.step)
    if kind == "FloatDistribution" and values.step is not None:
        n_steps = round((values.high - values.low) / values.step)
        return [values.low + values.step * at for at in range(n_steps + 1)]
    if kind == "FloatDistribution":
        from scipy.stats import loguniform, uniform

        if values.low == values.high:
            return [values.low]
        return loguniform(values.low, values.high) if values.log else uniform(values.low, values.high - values.low)
    return _WholeOnLogScale(values.low, values.high)


def _is_optunas(values: Any) -> bool:
    """Whether it is one of Optuna's distributions; Optuna itself is not imported for that."""
    return type(values).__module__ == "optuna.distributions"


class _WholeOnLogScale:
    """Whole numbers whose logarithm is uniform, drawn as SciPy's distributions are."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def rvs(self, random_state: Any = None) -> int:
        """One of them."""
        from sklearn.utils import check_random_state

        drawn = check_random_state(random_state).uniform(math.log(self._low - 0.5), math.log(self._high + 0.5))
        return min(max(round(math.exp(drawn)), self._low), self._high)


# ---- for Optuna ----------------------------------------------------------------------------------------------------------


class Axis:
    """One parameter as Optuna's samplers see it, and its value for what they propose.

    Lists are categories. A distribution of SciPy is asked for the value at a quantile, so that where its density is high
    the sampler looks often; whole and uniform ones are what they are.
    """

    def __init__(self, name: str, values: Any) -> None:
        from optuna.distributions import CategoricalDistribution

        self._values: list[Any] | None = None
        self._quantiles: Any = None
        if _is_optunas(values):
            self.distribution = values
        elif hasattr(values, "ppf"):
            self._set_distribution(values)
        elif hasattr(values, "rvs"):
            raise OptionError(
                f'method="tpe" cannot propose values of {name!r}: {values!r} can only be drawn from. Give a list, a '
                'distribution with `ppf`, as those of scipy.stats have, or one of Optuna; or take method="random"'
            )
        elif all(each is None or isinstance(each, bool | int | float | str) for each in values):
            self.distribution = CategoricalDistribution(tuple(values))
        else:
            self._values = list(values)
            self.distribution = CategoricalDistribution(tuple(range(len(self._values))))

    def _set_distribution(self, values: Any) -> None:
        """Of one of SciPy."""
        from optuna.distributions import FloatDistribution, IntDistribution

        kind = getattr(getattr(values, "dist", None), "name", "")
        low, high = values.support()
        if kind == "randint":
            self.distribution = IntDistribution(int(low), int(high))
        elif kind in ("uniform", "loguniform", "reciprocal"):
            self.distribution = FloatDistribution(float(low), float(high), log=kind != "uniform")
        else:
            self.distribution = FloatDistribution(EDGE, 1 - EDGE)
            self._quantiles = values

    def proposed(self, trial: Any, name: str) -> Any:
        """The value that a trial proposes."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        of = self.distribution
        if isinstance(of, CategoricalDistribution):
            return self.value(trial.suggest_categorical(name, of.choices))
        suggest = trial.suggest_float if isinstance(of, FloatDistribution) else trial.suggest_int
        return self.value(suggest(name, of.low, of.high, step=of.step, log=of.log))

    def value(self, proposed: Any) -> Any:
        """The parameter's value."""
        if self._values is not None:
            return self._values[proposed]
        if self._quantiles is not None:
            value = self._quantiles.ppf(proposed)
            return value.item() if hasattr(value, "item") else value
        return proposed
