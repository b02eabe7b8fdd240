"""What work has to import: how long that takes, and what one process may import for all the workers that it forks.

the program, pickled ──> modules that it speaks of ──> of FORK_SAFE: the template imports them, once
                                                   └─> others: each worker imports them itself
"""

import os
import sys
from collections.abc import Collection, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import NamedTuple

from fourfold.system.machine import THREAD_VARIABLES

FORK_SAFE = frozenset({"joblib", "numpy", "pandas", "pyarrow", "scipy", "sklearn"})
"""Packages that start no thread when they are imported, under ONE_THREAD, and work in forks of a process that has imported
them. Fewer: workers import the others one by one. More: a thread that somebody else's import starts is looked for afterwards,
but a lock or a connection is not."""

OURS = ("fourfold.data.", "fourfold.workloads.")
"""Modules of fourfold that not every worker has."""

NEEDS = {
    "joblib": ("numpy",),
    "pandas": ("dateutil", "numpy", "pyarrow"),
    "pyarrow": ("numpy",),
    "scipy": ("numpy",),
    "sklearn": ("joblib", "narwhals", "numpy", "rich", "scipy"),
}
"""What else is imported with one of them, where it is installed."""

MODULE_S = 0.001
"""Processor seconds to import one module, on average: pyarrow.parquet has 199 in 0.18 s, pandas 382 in 0.34 s, and
sklearn.ensemble 1,649 in 1.56 s (benchmarks/constants.py). Those of the standard library that come along, one in eight, are
not counted. Smaller: short work goes to workers that import longer than it takes. Larger: work that would gain from workers
stays the loop."""

ONE_THREAD = {**dict.fromkeys(THREAD_VARIABLES, "1"), "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""The environment in which these packages start no thread. Workers have another one when they run."""

INSTALLED = ("site-packages", "dist-packages")
"""Folders of what was installed, and is not the user's own."""

SEARCHED = 200
"""Modules of the user that are searched for what they import, at most. Not measured: to look at one takes some 10 µs."""


class Imports(NamedTuple):
    """The modules that a program speaks of.

    Attributes:
        modules: All of them.
        shared: Those that one process may import for all workers.
        have: Modules that all workers have, who will run it.
    """

    modules: frozenset[str] = frozenset()
    shared: tuple[str, ...] = ()
    have: frozenset[str] = frozenset()


class Load(NamedTuple):
    """What workers have to do before their first item, in seconds, besides the start that all new ones have.

    Attributes:
        once_s: Of a processor, to import what is imported once for all of them, while the caller goes on.
        each_s: Of a processor, in each of them: to import the rest, to unpickle the function and build what it needs.
        packages: What is imported, for messages.
        waiting_s: In each of them, without a processor: for what it builds.
    """

    once_s: float = 0.0
    each_s: float = 0.0
    packages: tuple[str, ...] = ()
    waiting_s: float = 0.0


def imports_of(modules: Collection[str]) -> Imports:
    """The imports of a program that speaks of these modules.

    None are shared where the user wants other threads than one for each library: those would be started before the fork.
    """
    if any(os.environ.get(name, "1") != "1" for name in THREAD_VARIABLES):
        return Imports(frozenset(modules))
    shared = sorted(name for name in _reached(modules) if _is_shared(name))
    return Imports(frozenset(modules), tuple(shared))


def load_of(imports: Imports) -> Load:
    """What it takes workers to import these modules, without those that they have.

    It is told from how many modules the same packages have in this process, which has run some of the work already.
    """
    modules, shared, have = imports
    once = _with_needs({_package(name) for name in shared if not name.startswith(OURS)})
    ours = OURS if any(name.startswith(OURS) for name in shared) else ()
    lacking = _reached(modules - have) - have
    each = {_package(name) for name in lacking} - once - {*sys.stdlib_module_names, "fourfold", "__main__", ""}
    each = _with_needs(each) - once
    n_once = n_each = 0
    for name in list(sys.modules):
        n_once += _package(name) in once or name.startswith(ours)
        n_each += _package(name) in each
    named = sorted({_package(name) for name in shared if not name.startswith(OURS)} | each)
    return Load(n_once * MODULE_S, n_each * MODULE_S, tuple(named))


def _is_shared(module: str) -> bool:
    """Whether it is one of FORK_SAFE, and not the user's own file of that name, or one of ours."""
    package = _package(module)
    return module.startswith(OURS) or (package in FORK_SAFE and not _is_of_user(package))


def _with_needs(packages: Collection[str]) -> set[str]:
    found: set[str] = set()
    left = {*packages}
    while left:
        package = left.pop()
        found.add(package)
        left |= {*NEEDS.get(package, ())} - found
    return found


def _package(module: str) -> str:
    return module.partition(".")[0]


def _reached(modules: Collection[str]) -> set[str]:
    """These, and what those of the user among them have imported."""
    found, left = set(modules), list(modules)
    for _ in range(SEARCHED):
        if not left:
            break
        name = left.pop()
        if _is_of_user(name) and name in sys.modules:
            new = {*_imported_by(sys.modules[name])} - found
            found |= new
            left += new
    return found


def _is_of_user(module: str) -> bool:
    package = _package(module)
    if package in sys.stdlib_module_names or package in ("fourfold", "__main__"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return bool(file) and not any(folder in file for folder in INSTALLED)


def _imported_by(module: ModuleType) -> Iterator[str]:
    for value in list(getattr(module, "__dict__", {}).values()):
        kind = type(value)  # what a proxy says that it is would be made by asking it
        if issubclass(kind, ModuleType):
            yield value.__name__
        elif issubclass(kind, type | FunctionType | BuiltinFunctionType):
            of = getattr(value, "__module__", None)
            if isinstance(of, str):
                yield of
