"""`launch`: a gang of processes, started together, and again together after a failure."""

import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fourfold.engines as engines
from fourfold.addresses import without_secrets
from fourfold.errors import GangLost, GangTimeout, NotPicklable, OptionError, OptionTypeError, UnsupportedOption
from fourfold.lanes import engine_named
from fourfold.options import cluster_of, resolve, seconds, whole_number
from fourfold.patterns.gang import places
from fourfold.patterns.gang.crew import Crew
from fourfold.patterns.gang.ends import HOPELESS, End, error_of, first_failure, values_of
from fourfold.patterns.gang.logs import Log
from fourfold.system.machine import cores, user_name_of

MOST_PER_CORE = 64
"""Ranks of this machine for each of its cores. More would only wait for each other, and each takes some 20 MB before it has
loaded anything. Fewer: somebody who tries what many ranks do is refused."""

MEMBER = "fourfold.patterns.gang.away:Away"
"""What is a rank in a task of a cluster: engines import it there."""

PORTS_TRIED = 3
"""Starts with another port when somebody came to the first one before rank 0 did."""


def launch(
    fn: Callable[..., Any],
    world_size: int,
    args: Sequence[Any] = (),
    max_restarts: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    engine: Any = "processes",
    timeout: float | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[Any]:
    """Run `fn(*args)` in `world_size` processes that talk to each other: all of them start, or none runs.

    Each has RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment before `fn` is
    loaded, so `torch.distributed.init_process_group("gloo")` works in it as it does under torchrun. Cores are shared out:
    without OMP_NUM_THREADS in the environment, each rank has its part of them.

    Args:
        fn: A function, also of a script or notebook: it travels by value.
        world_size: How many processes.
        args: What each of them calls it with.
        max_restarts: How often the whole gang is started again after a rank has failed. FOURFOLD_RESTART_COUNT says how often
            it was.
        checkpoint: A folder, which is made, for `ff.gang.checkpoint(state)` and `ff.gang.restore()` in `fn`. What is there
            from a call before is found, too. On a cluster all its machines must see it.
        engine: "processes" of this machine; "spark", "ray", an address, or an object of `fourfold.engines`.
        timeout: Seconds for all, starts and restarts together.
        log_dir: A folder for `rank-N.log`, with all that each rank has printed.
        progress: Whether lines that ranks print appear here, as `[rank 1] …`.

    Returns:
        What `fn` returned in each rank, in the order of the ranks.

    Raises:
        Exception: That of the rank that failed first, with a note that names the rank and has its last lines.
        GangFailed: A rank died: the message has the signal or the code.
        GangTimeout: `timeout` is over.
        NotPicklable: The function cannot travel to the ranks, or a value back.
        UnsupportedOption: This engine starts no gangs.
        WorkerStartFailed: A rank could not be started.

    Guarantees:
        When it returns or raises, no rank is left, and nothing that a failed one has started. Ranks also end, by SIGKILL, when
        this process is killed. Ranks that are stopped get SIGTERM, and SIGKILL five seconds later.

    Example:
        >>> import fourfold as ff
        >>> def hello(greeting):
        ...     import os
        ...
        ...     return f"{greeting} from {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
        >>> ff.launch(hello, 2, ("hello",))
        ['hello from 0 of 2', 'hello from 1 of 2']
    """
    if not callable(fn):
        raise OptionTypeError(f"fn={fn!r} must be a function; it is of type {type(fn).__name__}")
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        raise OptionTypeError(f"args={args!r} must be a tuple of what the function is called with, such as args=({args!r},)")
    program = {"function": _pickled(fn, tuple(args)), "arguments": [each for each in sys.argv if isinstance(each, str)]}
    return _Launch(program, world_size, max_restarts, checkpoint, engine, timeout, log_dir, progress).run()


def launch_script(script: str, arguments: Sequence[str], world_size: int, **options: Any) -> None:
    """Run a script as `__main__` in each rank: `launch` for `fourfold launch script.py`.

    Args:
        script: Its path.
        arguments: Its `sys.argv[1:]`.
        world_size: As `launch`.
        **options: As `launch`.

    Raises:
        Exception: As `launch`; a script that ends with another code than 0 has failed.
    """
    path = os.path.abspath(script)
    if not os.path.isfile(path):
        raise OptionError(f"there is no script {script}")
    settled = {
        "max_restarts": 0,
        "checkpoint": None,
        "engine": "processes",
        "timeout": None,
        "log_dir": None,
        "progress": True,
    }
    _Launch({"script": path, "arguments": [script, *arguments]}, world_size, **{**settled, **options}).run()


def _pickled(fn: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    from fourfold.execute.pickling import dump_whole, explain_first

    try:
        return dump_whole((fn, args))
    except Exception as error:
        parts = {user_name_of(fn): fn, "args": args}
        raise NotPicklable(
            f"the function cannot travel to the ranks: {explain_first(parts, error)}. Make it inside the function"
        ) from error


class _Launch:
    """One call of `launch`."""

    def __init__(
        self,
        program: dict[str, Any],
        world_size: int,
        max_restarts: int,
        checkpoint: str | os.PathLike[str] | None,
        engine: Any,
        timeout: float | None,
        log_dir: str | os.PathLike[str] | None,
        progress: bool,
    ) -> None:
        self._program = pickle.dumps(program, protocol=5)
        self._size = whole_number("world_size", world_size, 1)
        self._max_restarts = whole_number("max_restarts", max_restarts, 0)
        self._timeout = seconds("timeout", timeout)
        self._engine = _checked(engine)
        self._shows = progress
        if self._engine is not None:
            self._engine.check_gang(self._size)
        elif self._size > (most := MOST_PER_CORE * cores().n_cores):
            raise OptionError(
                f"world_size={self._size} is more than {most}, which is {MOST_PER_CORE} for each of the {cores().n_cores} "
                "cores that this process may use: each rank is a process of its own"
            )
        folder = _folder("checkpoint", checkpoint)
        self._checkpoint = None if folder is None else str(folder)
        self._log_dir = _folder("log_dir", log_dir)

    def run(self) -> list[Any]:
        """Start the gang, and again, until all ranks have a value or nothing is left to try."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        restarts = ports = 0
        while True:
            try:
                ends, is_port_taken = self._once(restarts, deadline)
            except GangTimeout as late:
                late.args = (f"timeout={self._timeout:g}: {late}",)
                raise
            except GangLost as lost:
                if restarts >= self._max_restarts:
                    raise
                restarts += 1
                _tell(f"the gang was lost, and starts again ({restarts} of at most {self._max_restarts}): {lost}")
                continue
            failure = first_failure(ends)
            if failure is None:
                return values_of(ends)
            if is_port_taken and ports < PORTS_TRIED:
                ports += 1
                continue
            if failure.kind in HOPELESS or restarts >= self._max_restarts:
                raise error_of(failure, self._size, restarts)
            restarts += 1
            why = failure.how or f"{failure.data[1]}: {failure.data[2]}".splitlines()[0]
            _tell(f"rank {failure.rank} failed, and the gang starts again ({restarts} of at most {self._max_restarts}): {why}")

    def _once(self, restarts: int, deadline: float | None) -> tuple[list[End], bool]:
        """Start the gang once; returns how its ranks ended, and whether somebody else has taken the port of rank 0."""
        logs = {rank: self._log(rank, restarts) for rank in range(self._size)}
        if self._engine is not None:
            return self._elsewhere(logs, restarts, deadline), False
        port = places.free_port()
        while not places.is_free(port):
            port = places.free_port()
        shared = places.of_this_machine(self._size)
        environments = [
            shared
            | places.of_a_rank(
                rank,
                self._size,
                (rank, self._size),
                (places.LOOPBACK, port),
                restarts,
                self._checkpoint,
            )
            for rank in range(self._size)
        ]
        with Crew(self._program, environments, logs) as crew:
            crew.start(deadline)
            crew.go()
            ends = crew.await_end(deadline)
        return ends, any(end.failed and _speaks_of_a_taken_port(end) for end in ends) and not places.is_free(port)

    def _elsewhere(self, logs: dict[int, Log], restarts: int, deadline: float | None) -> list[End]:
        """Start it once on a cluster. What ranks have printed there is shown when they have ended."""
        arguments = {"program": self._program, "world_size": self._size, "restarts": restarts, "checkpoint": self._checkpoint}
        ends = [End(*told) for told in self._engine.run_gang(MEMBER, arguments, self._size, deadline)]
        for end in ends:
            logs[end.rank].take("stdout", end.kept)
            if end.failed and end.kind != "died":
                logs[end.rank].note(str(end.data[3]))
        for log in logs.values():
            log.close()
        return [end._replace(kept=b"") for end in ends]

    def _log(self, rank: int, restarts: int) -> Log:
        path = self._log_dir / f"rank-{rank}.log" if self._log_dir is not None else None
        return Log(rank, path, restarts, self._shows)


def _tell(what: str) -> None:
    logging.getLogger("fourfold").warning("%s", what)


def _speaks_of_a_taken_port(end: End) -> bool:
    text = f"{end.data[2]} {end.data[3]}" if end.kind == "raised" else end.words
    return any(word in text.lower() for word in ("address already in use", "eaddrinuse"))


def _checked(engine: Any) -> Any:
    """What starts the gang: None for this machine, or an engine that is open.

    Raises:
        UnsupportedOption: It starts no gangs.
        EngineError: There is no such cluster.
    """
    engine = resolve({"engine": engine}).engine
    if engine == "processes":
        return None
    name = engine if isinstance(engine, str) else engine.info.name
    kinds = {"spark": engines.Spark, "ray": engines.Ray}
    starts_gangs = hasattr(kinds.get(cluster_of(engine)) if isinstance(engine, str) else engine, "run_gang")
    if not starts_gangs:
        raise UnsupportedOption(
            f"engine={without_secrets(name)!r} starts no gangs: its tasks start when there is room, and not all at once. Use "
            'engine="processes" for this machine, engine="spark" or engine="ray"'
        )
    found = engine_named(engine, None).for_another_call() if isinstance(engine, str) else engine.for_another_call(engine.most)
    found.open()
    return found


def _folder(name: str, path: str | os.PathLike[str] | None) -> Path | None:
    """A folder that is there, with an absolute path: ranks may change theirs."""
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike):
        raise OptionTypeError(f"{name}={path!r} must be the path of a folder")
    folder = Path(path).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{name}={str(path)!r} cannot be used: {error}") from error
    return folder
