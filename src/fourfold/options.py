"""The options of every call that runs items: their names, their defaults, and their one validation."""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal, TypedDict, Unpack

import fourfold.shown as shown
import fourfold.system.environment as environment
from fourfold.addresses import without_secrets
from fourfold.errors import FourfoldError, MissingExtra, OptionError, OptionTypeError, UnknownOption
from fourfold.fixed import Fixed, fields_of

OnError = Literal["raise", "collect", "skip"]

LOCAL_ENGINES = ("auto", "serial", "threads", "processes")
CLUSTER_ENGINES = MappingProxyType({"spark": "pyspark", "ray": "ray", "dask": "distributed"})
"""Engines of other people, and the package that each one needs."""
CLUSTER_ADDRESSES = MappingProxyType(
    {"spark://": "spark", "sc://": "spark", "ray://": "ray", "tcp://": "dask", "tls://": "dask"}
)


class Options(TypedDict, total=False):
    """The keyword arguments of every call that runs items. `Settings` says what each one means."""

    engine: Any
    workers: int | None
    chunk: int | Literal["auto"]
    on_error: OnError
    max_failures: int | float | None
    retries: int
    retry_on: type[BaseException] | tuple[type[BaseException], ...]
    timeout: float | None
    memory: int | None
    idempotent: bool
    seed: int | None
    cost: Callable[[Any], float] | None
    run: str | os.PathLike[str] | None
    progress: bool | None
    init: tuple[Any, ...]
    threads_per_worker: int | None
    gpus: int


class Settings(Fixed):
    """Options after validation: every one has a value of the right type.

    Attributes:
        engine: "auto", "serial", "threads", "processes", a cluster's name or address, or an Engine object.
        workers: How many workers; None means the cores that this process may use.
        chunk: Items per chunk; None means measured ("auto"). A long one may come back from a process in parts.
        on_error: "raise" the first failure, "collect" a Failure in the item's place, or "skip" the item.
        max_failures: Stop when more items than this count (int) or fraction of all (float) failed.
        retries: How often an item whose function raised is run again.
        retry_on: Only exceptions of these classes are run again.
        timeout: Seconds per item, the pickling of its value included. `retries` are not for items that take longer. The
            building of a class is no item: when that hangs, a warning says so and where.
        memory: Bytes of its own that a worker process may have, with the function and what it has imported. What an item
            allocates beyond is a MemoryError in it, an ordinary failure. Code that gets past that (it took other ways to its
            memory, or did not look whether it got any) is killed with its worker, and the item runs once more, alone: then
            its failure is OutOfMemory. Items, results and what the function carries as arrays are shared, and not counted.
        idempotent: False: an item that may have had effects is never run twice.
        seed: Root of every item's random numbers; None means that nothing is seeded.
        cost: Maps an item to its relative cost, so that the longest run first.
        run: Folder of the journal: what finished is kept there, and the same call with the same folder does the rest.
        progress: True, False, or None: a bar on a terminal or notebook, a line every few seconds elsewhere.
        init: Arguments of the instance that each worker builds when the function is a class. A worker that takes the place of
            another one, which died or has grown too large from item to item, builds its own.
        threads_per_worker: BLAS and OpenMP threads in each worker; None means cores // workers.
        gpus: GPUs per worker.
    """

    engine: Any = "auto"
    workers: int | None = None
    chunk: int | None = None
    on_error: OnError = "raise"
    max_failures: int | float | None = None
    retries: int = 0
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception
    timeout: float | None = None
    memory: int | None = None
    idempotent: bool = True
    seed: int | None = None
    cost: Callable[[Any], float] | None = None
    run: str | None = None
    progress: bool | None = None
    init: tuple[Any, ...] = ()
    threads_per_worker: int | None = None
    gpus: int = 0

    def asked(self) -> frozenset[str]:
        """The options whose value differs from the default: what an engine must honour."""
        return frozenset(name for name, default in _DEFAULTS.items() if getattr(self, name) != default)


NAMES = fields_of(Settings)
WORDS_OF_OTHERS = MappingProxyType(
    {
        **dict.fromkeys(("n_jobs", "max_workers", "processes", "n_workers", "num_workers"), "workers"),
        **dict.fromkeys(("chunksize", "chunk_size", "batch_size"), "chunk"),
        **dict.fromkeys(("verbose", "desc", "show_progress_bar"), "progress"),
        **dict.fromkeys(("initializer", "initargs"), "init"),
        **dict.fromkeys(("backend", "prefer", "executor"), "engine"),
        "random_state": "seed",
    }
)
"""What joblib, multiprocessing, concurrent.futures and tqdm call an option, and its name here."""
_DEFAULTS = {name: getattr(Settings, name) for name in NAMES}
_defaults_of_block: ContextVar[Mapping[str, Any]] = ContextVar("fourfold_defaults", default=MappingProxyType({}))


@contextmanager
def using(**options: Unpack[Options]) -> Iterator[None]:
    """Set defaults for the calls in a block; an option given to a call itself still wins. Blocks nest.

    With `run=FOLDER` each call has a folder of its own in it, FOLDER/1, FOLDER/2 and so on in their order.

    Raises:
        OptionError: At once, when an option is not valid.

    Example:
        >>> import fourfold as ff
        >>> with ff.using(engine="serial", on_error="skip"):
        ...     ff.map(int, ["1", "x", "3"])
        [1, 3]
    """
    resolve(options)
    run = options.get("run")
    mine = {**options, "run": RunOfBlock(os.fspath(run))} if run is not None else options
    token = _defaults_of_block.set({**_defaults_of_block.get(), **mine})
    try:
        yield
    finally:
        _defaults_of_block.reset(token)


def resolve(options: Mapping[str, Any]) -> Settings:
    """Return the settings of one call: its options, over those of the block, the environment and the defaults.

    Raises:
        UnknownOption: An option has a name that does not exist.
        OptionTypeError: An option has a value of the wrong type.
        OptionError: An option, or a variable of the environment, has a value that cannot be used.
        MissingExtra: The engine needs a package that is not installed.
    """
    shown.obey(os.environ.get(shown.VARIABLE))
    environment.allowed()
    given = {**_defaults_of_block.get(), **options}
    given = {**_from_environment(hidden=given), **given}
    for name in given:
        if name not in _DEFAULTS:
            ours = WORDS_OF_OTHERS.get(name)
            meant = did_you_mean(name, NAMES) if ours is None else f": {ours}= is its name here"
            raise UnknownOption(f"there is no option {name!r}{meant}. Options: {', '.join(NAMES)}")
    return Settings(**{name: _CHECKS[name](name, value) for name, value in given.items()})


class RunOfBlock(str):
    """The folder of `using(run=FOLDER)`: the n-th call of the block is recorded in FOLDER/n."""

    __slots__ = ("_calls",)

    def __init__(self, path: str) -> None:
        self._calls = itertools.count(1)

    def of_next_call(self) -> str:
        """The folder of one call."""
        return os.path.join(self, str(next(self._calls)))


def cluster_of(engine: str) -> str:
    """The cluster that a name or address of an engine speaks of; another word as it is."""
    return next((to for prefix, to in CLUSTER_ADDRESSES.items() if engine.startswith(prefix)), engine)


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """Return " (did you mean 'x'?)" for the known word nearest to `word`, or nothing when none is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _from_environment(hidden: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the environment sets and `hidden` does not."""
    found: dict[str, Any] = {}
    engine = os.environ.get("FOURFOLD_ENGINE")
    if engine and "engine" not in hidden:
        try:
            found["engine"] = _engine("engine", engine)
        except FourfoldError as error:
            raise type(error)(f"the environment has FOURFOLD_ENGINE={without_secrets(engine)!r}: {error}") from None
    workers = os.environ.get("FOURFOLD_WORKERS")
    if workers and "workers" not in hidden:
        if not workers.isdecimal() or int(workers) < 1:
            raise OptionError(f"the environment has FOURFOLD_WORKERS={workers!r}; it must be a whole number from 1 up")
        found["workers"] = int(workers)
    return found


# ---- one check per option: (name, value) -> the value to keep ---------------------------------------------------------


def _engine(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        missing = [method for method in ("open", "submit", "wait", "cancel", "close") if not hasattr(value, method)]
        if missing:
            raise OptionTypeError(
                f"engine={value!r} is neither a name nor an Engine object (it has no {missing[0]}()). "
                f"Names: {', '.join(LOCAL_ENGINES)}"
            )
        return value
    if value in LOCAL_ENGINES:
        return value
    cluster = cluster_of(value)
    if cluster not in CLUSTER_ENGINES:
        known, shown = [*LOCAL_ENGINES, *CLUSTER_ENGINES], without_secrets(value)
        raise OptionError(f"unknown engine {shown!r}{did_you_mean(value, known)}. Engines: {', '.join(known)}")
    check_installed(cluster, f"engine={without_secrets(value)!r}")
    return value


def check_installed(cluster: str, who: str) -> None:
    """Look for the package of a cluster; `who` needs it.

    Raises:
        MissingExtra: It is not here.
    """
    from importlib.util import find_spec

    package = CLUSTER_ENGINES[cluster]
    if find_spec(package) is None:
        raise MissingExtra(
            f"{who} needs the package {package}, which is not installed. Type: pip install 'fourfold[{cluster}]'"
        )


def _whole(least: int, optional: bool = True) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise OptionTypeError(f"{name}={value!r} must be a whole number, not {type(value).__name__}")
        number = int(value.__index__())
        if number < least:
            raise OptionError(f"{name}={number} must be at least {least}")
        return number

    return check


def whole_number(name: str, value: Any, least: int) -> int:
    """The value of an argument that must be a whole number.

    Raises:
        OptionError: It is none, or too small.
    """
    number: int = _whole(least, optional=False)(name, value)
    return number


def seconds(name: str, value: Any) -> float | None:
    """The value of an argument that must be None, or a positive number of seconds.

    Raises:
        OptionError: It is not.
    """
    return _seconds(name, value)


def _workers(name: str, value: Any) -> int | None:
    if value == -1:
        raise OptionError("workers=-1 is not used here: leave workers out to get all cores that this process may use")
    number: int | None = _whole(1)(name, value)
    return number


def _chunk(name: str, value: Any) -> int | None:
    if isinstance(value, str):
        if value == "auto":
            return None
        raise OptionError(f'chunk={value!r} must be a number of items or "auto"')
    number: int | None = _whole(1)(name, value)
    return number


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"{name}={value!r} must be a number of seconds, not {type(value).__name__}")
    if not value > 0 or math.isinf(value):
        raise OptionError(f"{name}={value!r} must be a positive, finite number of seconds; leave it out for no limit")
    return float(value)


def _on_error(name: str, value: Any) -> str:
    choices = ("raise", "collect", "skip")
    if not isinstance(value, str):
        raise OptionTypeError(f"{name}={value!r} must be one of {', '.join(choices)}")
    if value not in choices:
        raise OptionError(f"{name}={value!r} is not known{did_you_mean(value, choices)}. Choices: {', '.join(choices)}")
    return value


def _max_failures(name: str, value: Any) -> int | float | None:
    if isinstance(value, float):
        if not 0 <= value <= 1:
            raise OptionError(f"{name}={value!r}: a float is a fraction of all items, from 0.0 to 1.0; use an int for a count")
        return value
    count: int | None = _whole(0)(name, value)
    return count


def _retry_on(name: str, value: Any) -> Any:
    classes = value if isinstance(value, tuple) else (value,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise OptionTypeError(f"{name}={value!r} must be an exception class or a tuple of them")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionTypeError(f"{name}={value!r} must be True or False")
    return value


def _progress(name: str, value: Any) -> bool | None:
    return None if value is None else _flag(name, value)


def _cost(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise OptionTypeError(f"{name}={value!r} must be a function that takes an item and returns its relative cost")
    return value


def _init(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        told = shown.safe_repr(value)
        raise OptionTypeError(f"{name}={told} must be a tuple of arguments, such as {name}=({told},)")
    return value


def _run(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, RunOfBlock):
        return value
    if not isinstance(value, str | os.PathLike) or not isinstance(path := os.fspath(value), str):
        raise OptionTypeError(f"{name}={value!r} must be the path of a folder")
    if not path:
        raise OptionError(f"{name}={value!r} must name a folder")
    return path


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "engine": _engine,
    "workers": _workers,
    "chunk": _chunk,
    "on_error": _on_error,
    "max_failures": _max_failures,
    "retries": _whole(0, optional=False),
    "retry_on": _retry_on,
    "timeout": _seconds,
    "memory": _whole(1),
    "idempotent": _flag,
    "seed": _whole(0),
    "cost": _cost,
    "run": _run,
    "progress": _progress,
    "init": _init,
    "threads_per_worker": _whole(1),
    "gpus": _whole(0, optional=False),
}
