"""Every error that fourfold raises, drawn as a tree.

FourfoldError                      catch this to catch them all
├── OptionError (ValueError)       an argument or option has a value that cannot be used
│   ├── OptionTypeError (TypeError)    ... or the wrong type
│   │   └── UnknownOption              ... or a name that does not exist
│   └── UnsupportedOption              the chosen engine cannot honour the option
├── MissingExtra (ImportError)     an optional package is not installed; the message has the pip line
├── EngineError (RuntimeError)     the engine itself failed, not the function
│   ├── VersionMismatch                a cluster has another Python, or another fourfold
│   ├── WorkersKeepDying               workers die again and again and nothing gets done
│   └── WorkerStartFailed              no worker could be started
├── GangFailed (RuntimeError)      a rank of `ff.launch` ended without a value; the message names it
│   ├── GangLost                       a cluster has lost a machine, or given the gang up
│   └── GangTimeout (TimeoutError)     the gang ran longer than `timeout=`, and was stopped
├── InitFailed (RuntimeError)      a class function could not be built in a worker
├── NotPicklable (TypeError)       something cannot travel to or from a worker; names the path inside it
├── WorkerLost (RuntimeError)      the item killed the worker that ran it, also when it ran alone
│   ├── OutOfMemory (MemoryError)      ... because it took more memory than there was, or than `memory=` allows
│   └── Indeterminate                  ... or died with its driver, and `idempotent=False` forbids to run it again
├── ItemTimeout (TimeoutError)     the item ran longer than `timeout=`, and its worker was stopped
├── RemoteError (RuntimeError)     stands for an exception that could not travel back from a worker
├── UnsafeRandomness (RuntimeError)    items drew from a random state that all threads share
├── UnreadableInput (ValueError)   a file has no items in it that can be read; opens with the file and the line
├── UnwritableValue (TypeError)    a result cannot be written in the format of the output
├── TooManyFailures (RuntimeError) more items failed than `max_failures` allows
├── RunError (RuntimeError)        the folder of `run=` cannot be used
│   ├── RunChanged                     it was recorded by another function, or for other items; the message says which
│   ├── RunInUse                       another driver works on it right now
│   ├── UntrustedRun (PermissionError) others own it or could have changed it, or its seal is not ours: nothing was unpickled
│   ├── JournalCorrupt                 a file of it is damaged
│   └── JournalError (OSError)         a file of it cannot be written or read; what was recorded before is safe
└── Bug (RuntimeError)             fourfold broke one of its own rules: please report it

RemoteTraceback is no FourfoldError: it is the text of a worker's traceback, and stands as the cause of an item's exception.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class FourfoldError(Exception):
    """The root of all errors that fourfold raises by itself. Fields given by keyword become attributes."""

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        """As exceptions do; said here since tblib, which Dask brings along, makes others of those that do not say it."""
        return type(self), self.args, self.__dict__


class OptionError(FourfoldError, ValueError):
    """An argument or option has a value that cannot be used."""


class OptionTypeError(OptionError, TypeError):
    """An argument or option has the wrong type."""


class UnknownOption(OptionTypeError):
    """No option has this name."""


class UnsupportedOption(OptionError):
    """The chosen engine cannot honour this option. Raised before any work starts."""


class MissingExtra(FourfoldError, ImportError):
    """An optional package is not installed. The message has the line to type."""


class EngineError(FourfoldError, RuntimeError):
    """The engine failed, not the function that it ran."""


class VersionMismatch(EngineError):
    """The workers of a cluster have another Python, or another fourfold, than this process."""


class WorkersKeepDying(EngineError):
    """Workers died more often than the restart limit allows, with no item finished in between."""


class WorkerStartFailed(EngineError):
    """Not a single worker could be started."""


class GangFailed(FourfoldError, RuntimeError):
    """A rank ended without a value, and with no exception to raise: killed, by `os._exit`, … `.rank` is its number."""

    rank: int | None = None


class GangLost(GangFailed):
    """A cluster has lost a machine that a rank was on, or has given the gang up."""


class GangTimeout(GangFailed, TimeoutError):
    """The gang ran longer than `timeout=`. All its ranks were stopped."""


class InitFailed(FourfoldError, RuntimeError):
    """A class function raised while it was built in a worker. The cause is its own exception."""


class NotPicklable(FourfoldError, TypeError):
    """An object cannot travel between processes. The message names the path inside the object."""


class WorkerLost(FourfoldError, RuntimeError):
    """The item's worker died while it ran the item alone, `attempts` times."""


class OutOfMemory(WorkerLost, MemoryError):
    """The item's worker was killed because memory ran out, also when nothing else of the run was in flight."""


class Indeterminate(WorkerLost):
    """Nobody knows how the item ended: it may have had effects, and `idempotent=False` forbids to run it again."""


class ItemTimeout(FourfoldError, TimeoutError):
    """The item ran longer than `timeout=`, and its worker was stopped with all that it had started."""


class RemoteError(FourfoldError, RuntimeError):
    """Stands for an exception that could not be pickled; `error_type` names the original class."""


class UnsafeRandomness(FourfoldError, RuntimeError):
    """Items drew from `random` or `numpy.random`, whose state all threads share, in a seeded run on threads."""


class UnreadableInput(FourfoldError, ValueError):
    """A file that exists but does not hold what its format promises; the message opens with file:line."""


class UnwritableValue(FourfoldError, TypeError):
    """A result that the output format cannot hold; the message names the item, the column and the type."""


class TooManyFailures(FourfoldError, RuntimeError):
    """More items failed than `max_failures` allows. The failures are in `.failures`."""


class RunError(FourfoldError, RuntimeError):
    """The folder of `run=` cannot be used."""


class RunChanged(RunError):
    """The run was recorded by another function, with other options, or for other items. `.differences` may list them."""


class RunInUse(RunError):
    """Another driver works on the run right now."""


class UntrustedRun(RunError, PermissionError):
    """Somebody else owns the run's files, could have changed them, or has: the seals are wrong. Nothing was unpickled."""


class JournalCorrupt(RunError):
    """A file of the run is not what was written. The message names it."""


class JournalError(RunError, OSError):
    """A file of the run cannot be written or read. What was recorded before is safe.

    `.results` has, by index, the values that were there when `ff.map` or a stream ended with it, so that they need not be
    computed again: all of `ff.map`, recorded or not, and those that a stream had not given out.
    """

    results: Mapping[int, Any] = MappingProxyType({})


class Bug(FourfoldError, RuntimeError):
    """fourfold broke a rule of its own. Please report it with the message."""


class RemoteTraceback(Exception):
    """The traceback that a worker printed, as text, in the place of a cause."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
