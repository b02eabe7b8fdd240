"""Samplers, pruners, spaces and storages as they are named on the command line: tpe, asha:1,81,3, MODULE:SPACE."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fourfold.addresses import keep_out, without_secrets
from fourfold.cli.tune_checked import check_grid
from fourfold.errors import FourfoldError, MissingExtra, OptionError

SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "grid": "GridSampler",
    "qmc": "QMCSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "brute": "BruteForceSampler",
}
"""Of Optuna."""


class _Pruner(NamedTuple):
    """Where a pruner is, and what the numbers behind its name are."""

    module: str
    name: str
    arguments: tuple[str, ...]


_RESOURCES = ("min_resource", "max_resource", "reduction_factor")
_STEPS = ("n_startup_trials", "n_warmup_steps", "interval_steps")
_OF_OPTUNA, _OF_OURS = "optuna.pruners", "fourfold.workloads.tune.asha"

PRUNERS = {
    "asha": _Pruner(_OF_OURS, "ASHA", _RESOURCES),
    "hyperband": _Pruner(_OF_OURS, "Hyperband", _RESOURCES),
    "median": _Pruner(_OF_OPTUNA, "MedianPruner", _STEPS),
    "percentile": _Pruner(_OF_OPTUNA, "PercentilePruner", ("percentile", *_STEPS)),
    "halving": _Pruner(_OF_OPTUNA, "SuccessiveHalvingPruner", ("min_resource", "reduction_factor", "min_early_stopping_rate")),
    "threshold": _Pruner(_OF_OPTUNA, "ThresholdPruner", ("lower", "upper", "n_warmup_steps", "interval_steps")),
    "none": _Pruner(_OF_OPTUNA, "NopPruner", ()),
}

DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Modules of databases, and the packages that have them where these are called otherwise."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def sampler_named(text: str | None, seed: int | None, space: Any) -> Any:
    """The sampler that `--sampler` says; None for that of `ff.optimize`.

    Raises:
        OptionError: There is none of that name, or it cannot be made.
        FourfoldError: It needs a package that is not installed.
    """
    import optuna

    if space is not None and text != "grid":
        raise OptionError("--space is for --sampler grid here: the objective itself says what its trials draw from")
    if text is None:
        return None
    if ":" in text:
        return _own("--sampler", text, optuna.samplers.BaseSampler)
    if text not in SAMPLERS:
        raise OptionError(
            f"--sampler {text} is not known{_nearest(text, SAMPLERS)}. Choices: {', '.join(SAMPLERS)}, MODULE:NAME"
        )
    kind = getattr(optuna.samplers, SAMPLERS[text])
    if text != "grid":
        return _made(f"--sampler {text}", lambda: kind(seed=seed))
    if space is None:
        raise OptionError("--sampler grid needs --space MODULE:SPACE: a dict from parameters' names to lists of their values")
    check_grid(space)
    return _made("--sampler grid", lambda: kind(space, seed=seed))


def pruner_named(text: str | None) -> Any:
    """The pruner that `--pruner NAME[:NUMBER,…]` says; None for Optuna's own.

    Raises:
        OptionError: There is none of that name, or it takes other numbers.
    """
    import importlib

    import optuna

    if text is None:
        return None
    name, _, numbers = text.partition(":")
    if name not in PRUNERS:
        if ":" in text:
            return _own("--pruner", text, optuna.pruners.BasePruner)
        choices = f"Choices: {', '.join(PRUNERS)}, MODULE:NAME; e.g. asha:1,81,3 or median:5"
        raise OptionError(f"--pruner {text} is not known{_nearest(name, PRUNERS)}. {choices}")
    where = PRUNERS[name]
    given = [_number(text, each) for each in numbers.split(",")] if numbers else []
    if len(given) > len(where.arguments):
        raise OptionError(f"--pruner {text}: {name} takes {', '.join(where.arguments) or 'no numbers'}, in this order")
    arguments = dict(zip(where.arguments, given, strict=False))
    return _made(f"--pruner {text}", lambda: getattr(importlib.import_module(where.module), where.name)(**arguments))


def space_named(text: str | None) -> Any:
    """What MODULE:SPACE names, or gives when it is called; None when nothing is named.

    Raises:
        OptionError: It is neither a dict nor a list of dicts.
    """
    from fourfold.cli.target import load_object

    if text is None:
        return None
    found = load_object(text)
    if callable(found):
        found = _made(f"--space {text}", found)
    if not isinstance(found, dict | list | tuple):
        raise OptionError(
            f"--space {text} is of type {type(found).__name__}, and is to be a dict from parameters' names to lists of values"
        )
    if not found:
        raise OptionError(f"--space {text} is empty: name at least one parameter, with a list of its values")
    return found


def storage_named(text: str) -> str:
    """The URL of a storage of Optuna; `$NAME` is read from the environment. A login in it is in no record of a run.

    Raises:
        OptionError: There is no such variable.
    """
    variable = _VARIABLE.fullmatch(text)
    if variable is None:
        if without_secrets(text) != text:
            keep_out(text, "=…")
        return text
    name = variable[1] or variable[2]
    if name not in os.environ:
        raise OptionError(f"--storage: the environment has no {name}")
    return os.environ[name]


@contextmanager
def errors_of_storage(text: str) -> Iterator[None]:
    """A block in which a storage is opened: what it raises names the option, and never a login.

    Raises:
        OptionError: It is no URL of a storage.
        FourfoldError: It cannot be opened, or needs a package.
    """
    shown = f"--storage {without_secrets(text)}"
    try:
        yield
    except ImportError as error:
        module = getattr(error.__cause__ or error, "name", None) or "its driver"
        hint = f": pip install {DRIVERS.get(module, module)}" if module != "its driver" else ""
        raise MissingExtra(f"{shown} needs {module}, which is not installed{hint}") from error
    except Exception as error:
        kind = type(error).__name__
        if kind == "ArgumentError" or isinstance(error, ValueError):
            example = "sqlite:///studies.db, or postgresql://host/name"
            raise OptionError(f"{shown} is no URL of a storage of Optuna, such as {example}") from error
        if not type(error).__module__.startswith("sqlalchemy"):
            raise
        reason = str(error).partition(" (Background on this error")[0].partition("\n")[0].split(") ", 1)[-1]
        raise FourfoldError(f"{shown} cannot be opened: {reason}") from error


def _own(option: str, text: str, kind: type) -> Any:
    """An object of the user's, or what a class or function of theirs gives."""
    from fourfold.cli.target import load_object

    found = load_object(text)
    if not isinstance(found, kind) and callable(found):
        found = _made(f"{option} {text}", found)
    if not isinstance(found, kind):
        raise OptionError(f"{option} {text} is of type {type(found).__name__}, and no {kind.__name__} of Optuna")
    return found


def _made(what: str, make: Any) -> Any:
    """What a call gives; that it cannot be called so is an error of the option.

    Raises:
        OptionError: It takes other arguments, or does not like them.
        FourfoldError: A package is missing.
    """
    import optuna

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # who types its name wants it
            return make()
    except FourfoldError:
        raise
    except ImportError as error:
        raise FourfoldError(f"{what} needs a package that is not installed: {error}") from error
    except (TypeError, ValueError) as error:
        raise OptionError(f"{what}: {error}") from error


def _number(text: str, word: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    raise OptionError(f"--pruner {text}: {word!r} is no number")


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
