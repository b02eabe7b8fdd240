"""What is typed for `fourfold tune`, looked at before anything runs: one line says what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fourfold.errors import OptionError, UnsupportedOption
from fourfold.options import did_you_mean, seconds, whole_number

METHODS = ("random", "grid", "halving", "tpe")


def check_search(given: Mapping[str, Any]) -> None:
    """Check numbers and names of a search.

    Raises:
        OptionError: One cannot be used.
    """
    method = given.get("method", "random")
    if method not in METHODS:
        raise OptionError(f"--method {method} is not known{did_you_mean(method, METHODS)}. Choices: {', '.join(METHODS)}")
    for name, least in (("n_trials", 1), ("cv", 2), ("workers", 1)):
        if name in given:
            whole_number(name, given[name], least)
    if "trial_timeout" in given:
        seconds("trial_timeout", given["trial_timeout"])
    if "scoring" in given:
        from sklearn.metrics import get_scorer_names

        known, name = get_scorer_names(), given["scoring"]
        if name not in known:
            raise OptionError(
                f"--scoring {name} is no score of scikit-learn{did_you_mean(name, known)}. Choices: {', '.join(known)}"
            )


def check_space(named: str, space: Any, estimator: Any) -> None:
    """Check that each parameter has values that can be tried, and is one of the estimator.

    Raises:
        OptionError: One has not, or is not.
    """
    parts = [space] if isinstance(space, Mapping) else list(space)
    for part in parts:
        if not isinstance(part, Mapping):
            raise OptionError(f"--space {named} is a list that holds {part!r}, and each of its parts is to be a dict")
        for name, values in part.items():
            _check_values(named, name, values)
            _check_name(named, name, part, estimator)


def _check_values(named: str, name: str, values: Any) -> None:
    is_distribution = hasattr(values, "rvs") or type(values).__module__ == "optuna.distributions"
    is_list = hasattr(values, "__len__") and hasattr(values, "__getitem__") and not isinstance(values, str | bytes | Mapping)
    if not (is_distribution or is_list):
        raise OptionError(f"--space {named}: {name} has {values!r}, and is to have a list of values, or a distribution")
    if hasattr(values, "rvs"):
        try:
            values.rvs(random_state=0)
        except ValueError as error:
            raise OptionError(f"--space {named}: nothing can be drawn for {name}: {error}") from error
    if is_list and len(values) == 0:
        raise OptionError(f"--space {named}: {name} has no values")


def _check_name(named: str, name: str, part: Mapping[str, Any], estimator: Any) -> None:
    if not hasattr(estimator, "get_params"):
        return
    known = estimator.get_params(deep=True)
    pieces = name.split("__")
    if name in known or any("__".join(pieces[:at]) in part for at in range(1, len(pieces))):  # a step that is searched, too
        return
    from sklearn.base import clone

    try:
        clone(estimator).set_params(**{name: None})  # some have parameters that get_params does not tell
    except ValueError:
        behind = [each for each in known if f"__{each}".endswith(f"__{name}")]
        hint = f" (did you mean {behind[0]!r}?)" if behind else did_you_mean(name, list(known))
        of = type(estimator).__name__
        raise OptionError(f"--space {named}: {of} has no parameter {name!r}{hint}") from None


def check_grid(space: Any) -> None:
    """Check a space of `--sampler grid`.

    Raises:
        OptionError: It is none.
    """
    if not isinstance(space, Mapping):
        raise OptionError(f"--space is of type {type(space).__name__}, and is to be one dict for --sampler grid")
    for name, values in space.items():
        if isinstance(values, str | bytes) or not isinstance(values, Sequence):
            raise OptionError(f"--space: {name} has {values!r}, and is to have a list of values for --sampler grid")
        if not values:
            raise OptionError(f"--space: {name} has no values")


def features_named(text: str | None, target: str, columns: Sequence[str]) -> list[str]:
    """The columns that an estimator learns from: those of `--features`, or all others.

    Raises:
        OptionError: There is no such column, or the target is one of them.
    """
    chosen = [name for name in columns if name != target] if text is None else text.split(",")
    for option, name in (("--target", target), *(("--features", name) for name in chosen)):
        if name not in columns:
            raise OptionError(
                f"{option}: there is no column {name!r}{did_you_mean(name, list(columns))}. Columns: {', '.join(columns)}"
            )
    if target in chosen:
        raise OptionError(f"{target!r} is the --target, and among --features: leave it out there")
    if len(set(chosen)) < len(chosen):
        raise OptionError(f"--features names a column twice: {text}")
    if not chosen:
        raise OptionError(f"the input has no column beside {target!r} to learn from")
    return chosen


@contextmanager
def time_outs_of_trials() -> Iterator[None]:
    """A block in which the time-out that an engine cannot honour is called as it is here: that of trials, or of fits.

    Raises:
        UnsupportedOption: An engine cannot honour something.
    """
    try:
        yield
    except UnsupportedOption as error:
        told = str(error).replace(" timeout=", " trial_timeout=").replace("Leave timeout", "Leave --trial-timeout")
        raise UnsupportedOption(told) from error
