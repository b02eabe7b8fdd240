"""What is asked of a search, and whether it can be done: one sentence where not."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sklearn.base import clone

import fourfold.system.machine as machine
from fourfold.errors import MissingExtra, OptionError, UnknownOption
from fourfold.options import did_you_mean, resolve, whole_number
from fourfold.workloads.tune.search.spaces import parts_of

METHODS = ("random", "grid", "halving", "tpe")

OTHER_WORDS = {
    **dict.fromkeys(("param_grid", "param_distributions", "params", "param_space", "search_space", "search_spaces"), "space="),
    **dict.fromkeys(("n_iter", "n_candidates", "max_trials"), "n_trials="),
    **dict.fromkeys(("workers", "n_workers"), "n_jobs="),
    **dict.fromkeys(("search", "sampler"), "method="),
    **dict.fromkeys(("resume", "path"), "run="),
    **dict.fromkeys(("folds", "n_folds", "n_splits"), "cv="),
    "seed": "random_state=",
    "backend": "engine=",
    "trial_timeout": "timeout=, which is for one fit",
    "progress": "verbose=1, which shows a bar",
    "reduction_factor": "factor=",
    "pre_dispatch": "nothing: fits are handed out as workers are free",
    **dict.fromkeys(
        ("memory", "threads_per_worker", "retries", "gpus"),
        "a block around fit: with fourfold.using({name}=…): search.fit(X, y)",
    ),
}
"""Arguments of other searches, and of other calls of fourfold, and what they are here."""

OF_HALVING = ("factor", "resource", "min_resources", "max_resources", "aggressive_elimination")


Init = TypeVar("Init", bound=Callable[..., None])


def named_rightly(init: Init) -> Init:
    """Have an `__init__` say, of an argument that it does not have, which one is meant."""
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **named: Any) -> None:
        for name in named:
            if name in known:
                continue
            if name in OTHER_WORDS:
                raise UnknownOption(f"SearchCV has no argument {name}=: give {OTHER_WORDS[name].format(name=name)}")
            raise UnknownOption(f"SearchCV has no argument {name!r}{did_you_mean(name, known)}. It has {', '.join(known)}")
        init(self, *args, **named)

    return cast(Init, checked)


def check_arguments(search: Any) -> None:
    """What scikit-learn does not check itself.

    Raises:
        OptionError: An argument has a value that cannot be used, or goes with another one of them only.
    """
    for part in parts_of(search.space):
        _check_names(search.estimator, part)
    if search.n_trials is not None:
        whole_number("n_trials", search.n_trials, 1)
        if search.method == "grid":
            raise OptionError(f'n_trials={search.n_trials} is not for method="grid", which tries all of its space')
    if search.method == "halving":
        _check_halving(search)
    else:
        _check_not_halving(search)
    is_drawn = search.method != "grid"
    if search.run is not None and is_drawn and search.random_state is None:
        raise OptionError(
            f'run= and method="{search.method}" need random_state=: without it the same call would draw other candidates, and '
            "nothing that is recorded would be of use"
        )
    if search.method == "tpe":
        _check_tpe(search)
    if search.pruner is not None:
        _check_pruner(search)


def _check_names(estimator: Any, part: dict[str, Any]) -> None:
    """Whether an estimator has the parameters of a part of a space: asked before the first fit, not before a candidate's own.

    Raises:
        ValueError: It has not; scikit-learn's own, with the name that may be meant.
    """
    if isinstance(estimator, type) or not hasattr(estimator, "get_params"):
        return  # scikit-learn says what is wrong
    known = estimator.get_params(deep=True)
    for name in part:
        pieces = name.split("__")
        is_of_another_step = any("__".join(pieces[:at]) in part for at in range(1, len(pieces)))  # which is searched, too
        if name in known or is_of_another_step:
            continue
        try:
            clone(estimator).set_params(**{name: None})  # some have parameters that get_params does not tell
        except ValueError as error:
            behind = [each for each in known if f"__{each}".lower().endswith(f"__{name}".lower())]
            hint = f" (did you mean {behind[0]!r}?)" if behind else did_you_mean(name, list(known))
            raise ValueError(f"space={part!r}{hint}: {error}") from None


def _check_not_halving(search: Any) -> None:
    defaults = inspect.signature(type(search)).parameters
    given = [name for name in OF_HALVING if name in defaults and getattr(search, name) != defaults[name].default]
    if given:
        hint = ""
        if search.pruner is not None:
            hint = ", and a pruner has its own: ff.ASHA(min_resource, max_resource, reduction_factor)"
        raise OptionError(f'{given[0]}={getattr(search, given[0])!r} is for method="halving", not for "{search.method}"{hint}')


def _check_halving(search: Any) -> None:
    if search.factor <= 1:
        raise OptionError(f"factor={search.factor!r} must be larger than 1: one candidate of so many goes on")
    if isinstance(search.scoring, list | tuple | set | dict):
        raise OptionError('method="halving" needs one score to go by: scoring= must be a name, a function or None')
    if search.n_trials is None and search.min_resources == "exhaust":
        raise OptionError(
            'n_trials=None draws as many candidates as min_resources allows, and min_resources="exhaust" is as much as '
            "n_trials allows: give one of them"
        )


def _check_tpe(search: Any) -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise MissingExtra("method=\"tpe\" needs the package optuna, which is not installed. Type: pip install 'fourfold[ml]'")
    is_multimetric = isinstance(search.scoring, list | tuple | set | dict)
    if is_multimetric and not isinstance(search.refit, str):
        raise OptionError('method="tpe" needs one score to go by: name it in refit=, as in refit="accuracy"')


def _check_pruner(search: Any) -> None:
    if search.method not in ("random", "grid"):
        raise OptionError(f'pruner= goes with method="random" or "grid": "{search.method}" says itself who goes on')
    if not hasattr(search.estimator, "partial_fit"):
        raise OptionError(
            f"pruner= is for estimators with partial_fit, which go on from what they have learned, and "
            f'{type(search.estimator).__name__} has none: take method="halving" with resource="n_samples"'
        )
    if isinstance(search.scoring, list | tuple | set | dict) and not isinstance(search.refit, str):
        raise OptionError('pruner= needs one score to go by: name it in refit=, as in refit="accuracy"')
    if search.timeout is not None:
        raise OptionError("timeout= and pruner= do not go together: how long a fit takes depends on how far it gets")


def check_folds(search: Any, cv: Any) -> None:
    """Whether the same call makes the same folds, where it must."""
    from sklearn.model_selection._split import _yields_constant_splits

    if search.run is not None and not _yields_constant_splits(cv):
        raise OptionError(
            f"run= needs folds that are the same in the same call, and {cv!r} draws others each time: set its random_state"
        )


def options_of(search: Any) -> dict[str, Any]:
    """The options of the calls that run the fits.

    With more than one job fits are in processes from the first one on: a candidate that kills its process must not be in
    this one.

    Raises:
        OptionError: One of them cannot be used.
    """
    engine = search.engine
    if engine == "auto":
        engine = resolve({}).engine  # of a block, or of the environment
    options: dict[str, Any] = {"engine": engine, "timeout": search.timeout}
    n_jobs = jobs_of(search.n_jobs)
    if engine == "auto":
        options["engine"] = "serial" if n_jobs == 1 and search.timeout is None else "processes"
        options["workers"] = n_jobs
    elif search.n_jobs not in (None, -1):
        options["workers"] = n_jobs
    if engine == "serial":
        options.pop("workers", None)
    if not search.verbose:
        options["progress"] = False
    resolve(options)
    return options


def jobs_of(n_jobs: int | None) -> int:
    """How many jobs scikit-learn's word means: None one, or as many as a block of `joblib.parallel_config` says.

    Raises:
        OptionError: It is 0.
    """
    if n_jobs is None:
        from joblib import effective_n_jobs

        return int(effective_n_jobs(None))
    return machine.jobs_of(n_jobs)
