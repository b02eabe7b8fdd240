"""Which engine a call runs on, and how its function gets there."""

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import fourfold.shown as shown
import fourfold.system.environment as environment
import fourfold.system.imports as imports
import fourfold.system.machine as machine
from fourfold.aggregate.tree import TreeReduction
from fourfold.distribute.chooser import Chooser
from fourfold.distribute.engine import Engine
from fourfold.distribute.engines.on_this_thread import ThisThread
from fourfold.distribute.lane import LOOP_TARGET_S, Lane
from fourfold.distribute.verdict import MOVE_BYTES_PER_S
from fourfold.errors import NotPicklable, UnsupportedOption
from fourfold.execute import current
from fourfold.execute.chunk import Program, is_worker_class
from fourfold.execute.objects import ObjectCodec
from fourfold.execute.troubles import describe
from fourfold.options import CLUSTER_ENGINES, Settings, cluster_of
from fourfold.records import Need, Parcel, Trouble

if TYPE_CHECKING:
    from fourfold.distribute.watch import Watch
    from fourfold.execute.pickling import Weight

KEPT_BY_THE_DRIVER = frozenset(
    {
        "engine",
        "workers",
        "chunk",
        "on_error",
        "max_failures",
        "retries",
        "retry_on",
        "seed",
        "cost",
        "progress",
        "init",
        "run",
    }
)
"""Options that hold on every engine, because they are kept before or after it."""

NOT_FOR_THE_LOOP = frozenset({"timeout", "memory", "gpus", "threads_per_worker"})
"""Options that a plain loop cannot keep: with them, `engine="auto"` means processes from the first item."""

SLICE_S = 0.05
"""Seconds after which the loop of a recorded run stops to record what has ended. Smaller: more chunks, of some 0.4 ms each
here, between items that leave nothing of ours in the cache. Larger: a killed driver loses more."""


class Prepared:
    """What calls with the same options need not find out again: a fit makes one for each pass, of some milliseconds."""

    def __init__(self) -> None:
        self._setup: dict[str, Any] = {}
        self._imports: dict[frozenset[str], imports.Imports] = {}

    def setup(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a worker process must be like, as it was at the first call."""
        self._setup = self._setup or make()
        return dict(self._setup)

    def imports_of(self, modules: set[str]) -> imports.Imports:
        """The imports of a program that speaks of these."""
        key = frozenset(modules)
        if key not in self._imports:
            self._imports[key] = imports.imports_of(modules)
        return self._imports[key]


class Lanes:
    """The engines that one call may use, each with its codec and its program.

    Args:
        fn: The user's function, or class.
        settings: The user's options.
        name: Of the function, for messages.
        tree: None, or how values are reduced, partly in the workers.
        into: None, or the list of all values, which the loop may append to.
        bounded: Results are streamed.
        index_of: The input index of an item, by ticket and offset.
        prepared: What calls before have found out.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        settings: Settings,
        name: str,
        tree: TreeReduction | None,
        into: list[Any] | None,
        bounded: bool,
        index_of: Callable[[int, int], int | None],
        prepared: Prepared | None = None,
    ) -> None:
        self._fn, self._settings, self._name, self._tree = fn, settings, name, tree
        self._into, self._bounded, self._index_of = into, bounded, index_of
        self._prepared = prepared or Prepared()
        self._cores: machine.Cores | None = None
        self._loop: ThisThread | None = None
        self._modules: set[str] = set()
        """Which the program speaks of, once it was pickled."""

    @property
    def cores(self) -> machine.Cores:
        """The cores that this process may use; looked up when somebody asks."""
        if self._cores is None:
            self._cores = machine.cores()
        return self._cores

    @property
    def workers(self) -> int:
        """How many workers the user wants, or cores there are."""
        return self._settings.workers or self.cores.n_cores

    def first(self) -> Lane:
        """The lane that the call starts on.

        Raises:
            UnsupportedOption: Its engine cannot keep an option that the user gave.
        """
        lane = self._first()
        _check_honoured(self._settings, lane.engine)
        return lane

    def _first(self) -> Lane:
        engine = self._settings.engine
        if current.inside_item():
            engine = "serial"
        if engine == "auto":
            engine = "processes" if self._settings.asked() & NOT_FOR_THE_LOOP else "serial"
        if engine == "processes":
            return self._on_processes()
        if engine == "serial":
            return self.loop()
        if engine == "threads":
            from fourfold.distribute.engines.on_threads import Threads

            engine = Threads(self.workers, _describe, self._watch('on engine="processes", timeout= stops what takes too long'))
        if isinstance(engine, str):
            engine = engine_named(engine, self._settings.workers).for_another_call()
        elif hasattr(engine, "for_another_call"):  # calls may overlap, and an engine is for one at a time
            engine = engine.for_another_call(engine.most)
        if engine.info.takes_objects:
            return Lane(engine, ObjectCodec(), lambda: self._program(shares_globals=engine.info.shares_globals))
        return self._with_parcels(engine)

    def loop(self) -> Lane:
        """The lane of this thread."""
        # An hour may lie in the middle of a chunk of items that took no time so far, and all the memory behind it.
        slice_s = SLICE_S if self._settings.run is not None else LOOP_TARGET_S if self._bounded else None
        self._loop = ThisThread(_describe, slice_s)
        return Lane(self._loop, ObjectCodec(), self._looped, target_s=slice_s)

    def connect(self) -> None:
        """Connect to the cluster of the first lane, when it is one that was named: what is wrong with it is told at the call.

        Raises:
            EngineError: There is no such cluster.
        """
        engine = self._settings.engine
        if isinstance(engine, str) and cluster_of(engine) in CLUSTER_ENGINES:
            engine_named(engine, self._settings.workers).open()  # may take a minute, in which calls on other clusters go on

    def chooser(self, total: int | None) -> Chooser:
        """What decides, while the call is the loop of `engine="auto"`, whether it goes on with processes."""
        return Chooser(
            total=total,
            workers=lambda: self.workers,
            cores=lambda: self.cores.n_cores,
            warm=_warm_workers,
            weigh=_weigh,
            load=self._load,
            lane=self._on_processes,
        )

    def _load(self) -> imports.Load:
        """What workers have to do before their first item.

        Raises:
            NotPicklable: The function cannot travel.
        """
        from fourfold.distribute.engines.on_processes.pool import POOL
        from fourfold.execute.pickling import weigh

        modules: set[str] = set()
        init = self._settings.init
        function = weigh((self._fn, init) if init else self._fn, 1 << 30, modules)
        load = imports.load_of(POOL.left_of(imports.imports_of(modules), self.workers))
        prepared_s, waiting_s = (
            (self._loop.prepared_s, self._loop.prepared_waiting_s) if self._loop is not None else (0.0, 0.0)
        )
        travel_s = function.pickle_s + (function.buffer_bytes + function.stream_bytes) / MOVE_BYTES_PER_S
        return load._replace(each_s=load.each_s + prepared_s + travel_s, waiting_s=waiting_s)

    def let_go(self) -> None:
        """A call is part of reference cycles: what it holds would live until the next garbage collection."""
        self._into = None

    def _on_processes(self) -> Lane:
        from fourfold.distribute.engines.on_processes.engine import Processes
        from fourfold.execute.forward import Replay

        watch = self._watch("timeout= stops what takes too long")
        return self._with_parcels(Processes(self.workers, Replay(), watch, lambda: self._prepared.imports_of(self._modules)))

    def _watch(self, advice: str) -> "Watch":
        from fourfold.distribute.watch import Watch

        return Watch(self._name, is_worker_class(self._fn), self._index_of, advice)

    def _with_parcels(self, engine: Engine) -> Lane:
        from fourfold.execute.forward import Replay
        from fourfold.execute.parcels import ParcelCodec

        settings = self._settings
        caps = [cap for cap in (settings.workers, getattr(engine, "most", None)) if cap is not None]
        need = Need(settings.timeout, settings.memory, settings.gpus, settings.idempotent)
        return Lane(
            engine, ParcelCodec(), lambda: self._parcel(engine.info.elsewhere), need, Replay(), most=min(caps, default=None)
        )

    # ---- the program -------------------------------------------------------------------------------------------------

    def _looped(self) -> Program:
        return self._program(into=self._into)

    def _program(self, shares_globals: bool = False, into: list[Any] | None = None) -> Program:
        return Program(
            self._fn,
            init=self._settings.init if is_worker_class(self._fn) else None,
            seed=self._settings.seed,
            fold=self._tree.fold if self._tree is not None else None,
            shares_globals=shares_globals,
            into=into,
        )

    def _parcel(self, elsewhere: bool) -> Parcel:
        from fourfold.execute.pickling import dump, explain_first
        from fourfold.execute.remote import RemoteProgram
        from fourfold.worker import pack_program

        try:
            parcel = dump(RemoteProgram(self._program()), self._modules)
        except Exception as error:
            parts = {self._name: self._fn, "init": self._settings.init, "combine": self._tree}
            raise NotPicklable(
                f"the function cannot travel to workers: {explain_first(parts, error)}. Make it inside the function, "
                'pass a class with init=, or use engine="threads"'
            ) from error
        setup = self._prepared.setup(self._setup)
        if elsewhere:
            threads = self._settings.threads_per_worker or 1  # cores of that machine are the cluster's to give
            # What a task of a cluster gives back comes with its end: cut, it would travel twice.
            setup |= {"cwd": None, "path": None, "environment": None, "is_cut": False}
            setup |= {"threads": threads, "thread_variables": machine.THREAD_VARIABLES}
        return pack_program(parcel, setup)

    def _setup(self) -> dict[str, Any]:
        """What a worker process must be like."""
        import logging
        import pickle
        import warnings

        threads, variables = self._settings.threads_per_worker, machine.THREAD_VARIABLES
        if threads is None and (variables := machine.free_thread_variables()):
            threads = max(1, self.cores.n_cores // self.workers)
        levels = {
            name: logger.level
            for name, logger in logging.root.manager.loggerDict.items()
            if isinstance(logger, logging.Logger)
        }
        plain = [each for each in warnings.filters if each[2].__module__ == "builtins"]
        return {
            "is_cut": True,
            "cwd": _current_folder(),
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "environment": environment.for_workers(),
            "hides": shown.key(),
            "arguments": [each for each in sys.argv if isinstance(each, str)],
            "threads": threads,
            "thread_variables": variables,
            "recursion_limit": sys.getrecursionlimit(),
            "levels": {"": logging.root.level, **{name: level for name, level in levels.items() if level}},
            "filters": pickle.dumps(plain),
        }


_clusters: dict[str, Any] = {}
"""An engine for each name or address that was asked for: it has the connection, which is kept for the next call."""
_clusters_lock = threading.Lock()


def _forget_clusters() -> None:
    """This process is a fork: the connections are its parent's."""
    global _clusters_lock
    _clusters_lock = threading.Lock()
    _clusters.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_clusters)


def engine_named(name: str, slots: int | None) -> Any:
    """The engine that has the connection to the cluster of this name or address, and is not asked to connect yet.

    Args:
        name: "spark", "ray", "dask", or an address.
        slots: Of a cluster that is started here.
    """
    import fourfold.engines as engines

    kinds: dict[str, Any] = {"ray": engines.Ray, "dask": engines.Dask, "spark": engines.Spark}
    with _clusters_lock:
        if name not in _clusters:
            _clusters[name] = kinds[cluster_of(name)](None if name in kinds else name, slots=slots)
        return _clusters[name]


def _check_honoured(settings: Settings, engine: Engine) -> None:
    honours = engine.info.honours | KEPT_BY_THE_DRIVER
    missing = sorted(settings.asked() - honours)
    if missing:
        name = missing[0]
        raise UnsupportedOption(
            f"engine {engine.info.name!r} cannot honour {name}={getattr(settings, name)!r}. Leave {name} out"
            + ("" if engine.info.name == "processes" else ', or use engine="processes"')
        )


def _describe(error: BaseException) -> Trouble:
    return describe(error, 0, None)


def _warm_workers() -> int:
    pool = sys.modules.get("fourfold.distribute.engines.on_processes.pool")
    return pool.POOL.warm() if pool is not None else 0


def _weigh(obj: Any, limit_bytes: int) -> "Weight":
    from fourfold.execute.pickling import weigh

    return weigh(obj, limit_bytes)


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
