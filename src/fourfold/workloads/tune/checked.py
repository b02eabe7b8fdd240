"""What `optimize` is asked for, and whether it can be done: one sentence where not, before any trial runs."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection

from fourfold.errors import MissingExtra, OptionError, OptionTypeError, UnknownOption
from fourfold.system.machine import user_name_of

WORDS_OF_OPTUNA = {
    "n_jobs": "workers= says how many trials run at once",
    "show_progress_bar": "progress=True shows one",
    "gc_after_trial": "trials are in other processes, which need none",
    "func": "the objective is the first argument",
    **dict.fromkeys(
        ("storage", "study_name", "load_if_exists"),
        "make the study with optuna.create_study(storage=…, study_name=…, load_if_exists=True), and hand it over as study=",
    ),
}
"""Arguments of Optuna that `optimize` has under another name, or not at all."""

PACKAGES = {"CmaEsSampler": "cmaes", "GPSampler": "torch"}
"""What samplers of Optuna import when they draw for the first time, which is after some trials."""


def check_objective(objective: Any) -> None:
    """Whether it can be called with a trial.

    Raises:
        OptionTypeError: It cannot.
    """
    if not callable(objective):
        raise OptionTypeError(
            f"objective={objective!r} must be a function of a trial; it is of type {type(objective).__name__}. Hand over "
            "the function itself, without calling it"
        )
    if isinstance(objective, type):  # one is made in the worker
        if not any("__call__" in vars(each) for each in objective.__mro__):
            raise OptionTypeError(f"objective={objective!r} is a class without __call__(self, trial)")
        return
    name = user_name_of(objective)
    if inspect.iscoroutinefunction(objective):
        raise OptionTypeError(f"objective {name} is a coroutine function, and nobody awaits it: use def, not async def")
    try:
        signature = inspect.signature(objective, follow_wrapped=False)  # a decorator may hand over more than the trial
    except (TypeError, ValueError):  # of C code
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise OptionTypeError(
            f"objective {name} is called with one argument, the trial, and takes {signature}: {error}. Give it other "
            "data by a closure, functools.partial, or a class with init="
        ) from None


def check_names(options: Mapping[str, Any]) -> None:
    """Whether an option is Optuna's word for something.

    Raises:
        UnknownOption: One is; the message has ours.
    """
    for name in options:
        if name in WORDS_OF_OPTUNA:
            raise UnknownOption(f"there is no option {name!r} here: {WORDS_OF_OPTUNA[name]}")


def check_directions(direction: Any, directions: Any) -> None:
    """Whether they are such.

    Raises:
        OptionError: They are not, or both are given.
    """
    if direction is not None and directions is not None:
        raise OptionError("direction= and directions= were both given: the second is for objectives with several values")
    if isinstance(directions, str):
        raise OptionTypeError(f"directions={directions!r} must be a list, with one for each value; for one value: direction=")
    if isinstance(direction, Sequence) and not isinstance(direction, str):
        raise OptionTypeError(f"direction={direction!r} must be one; for several values of an objective: directions=")
    for name, each in (("direction", direction), *(("directions", each) for each in directions or ())):
        if each not in (None, "minimize", "maximize", StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE):
            raise OptionError(f'{name}={each!r} is not known. Choices: "minimize", "maximize"')


def check_parts(sampler: Any, pruner: Any) -> None:
    """Whether they are a sampler and a pruner.

    Raises:
        OptionTypeError: One of them is something else.
    """
    for name, value, kind, example in (
        ("sampler", sampler, BaseSampler, "optuna.samplers.TPESampler()"),
        ("pruner", pruner, BasePruner, "ff.ASHA(1, 81)"),
    ):
        if value is None or isinstance(value, kind):
            continue
        if isinstance(value, type) and issubclass(value, kind):
            raise OptionTypeError(f"{name}={value.__name__} is a class; an instance is needed: {value.__name__}(…)")
        raise OptionTypeError(
            f"{name}={value!r} must be a {name} of Optuna, as {example}; it is of type {type(value).__name__}"
        )


def check_packages(sampler: BaseSampler) -> None:
    """Whether a sampler can draw.

    Raises:
        MissingExtra: Optuna's needs a package that is not installed.
    """
    kind = type(sampler)
    package = PACKAGES.get(kind.__name__)
    if package is not None and kind.__module__.startswith("optuna.") and find_spec(package) is None:
        raise MissingExtra(f"{kind.__name__} needs the package {package}, which is not installed. Type: pip install {package}")


def caught(catch: Any) -> tuple[type[BaseException], ...]:
    """The exceptions that do not end the call.

    Raises:
        OptionTypeError: One is something else.
    """
    found = tuple(catch) if isinstance(catch, Iterable) and not isinstance(catch, str) else (catch,)
    for each in found:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise OptionTypeError(f"catch={catch!r} must be a class of exceptions, as ValueError, or several of them")
    return found


def called_back(callbacks: Any) -> list[Callable[..., Any]]:
    """The callbacks.

    Raises:
        OptionTypeError: They are no list of functions.
    """
    found: list[Any] = list(callbacks) if isinstance(callbacks, Iterable) else [None]
    if not all(callable(each) for each in found):
        raise OptionTypeError(f"callbacks={callbacks!r} must be a list of functions of the study and a trial")
    return found
