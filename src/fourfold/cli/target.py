"""MODULE:FUNCTION becomes the function; a wrong name is answered with the nearest right one."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from fourfold.errors import FourfoldError, OptionError


def load_function(target: str) -> Callable[..., Any]:
    """Import the function that `target` names; modules in the current folder are found first.

    Args:
        target: `module:function`, `package.module:Class` or `module:object.method`. Nothing of it is evaluated.

    Raises:
        OptionError: it is not of that form, or names what is not there or cannot be called.
        FourfoldError: the module is there and fails while it is imported.
    """
    found = load_object(target)
    if not callable(found):
        raise OptionError(f"{target} is of type {type(found).__name__}, and no function")
    function: Callable[..., Any] = found
    return function


def load_object(target: str) -> Any:
    """Import what `target` names: see `load_function`.

    Raises:
        OptionError: It is not of that form, or names what is not there.
        FourfoldError: The module is there and fails while it is imported.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise OptionError(f"{target!r} is not MODULE:FUNCTION, e.g. features:length{_file_hint(target)}")
    if "/" in module_name or module_name.endswith(".py"):
        raise OptionError(f"{module_name!r} is not a module name{_file_hint(target)}")
    found: Any = _import(module_name)
    for name in attribute.split("."):
        found = _attribute(found, name, module_name)
    return found


def _import(module_name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name and (module_name == exc.name or module_name.startswith(f"{exc.name}.")):
            raise OptionError(
                f"no module named {exc.name!r} in {here} or among the installed ones"
                f"{_nearest(exc.name, _modules_near(exc.name))}"
            ) from None
        raise FourfoldError(f"importing {module_name} failed: {exc}{_where(exc)}") from exc
    except SystemExit as exc:
        raise FourfoldError(
            f"importing {module_name} ended with sys.exit({exc.code!r}): put what the script runs under "
            f'if __name__ == "__main__":'
        ) from exc
    except Exception as exc:
        raise FourfoldError(f"importing {module_name} failed: {type(exc).__name__}: {exc}{_where(exc)}") from exc


def _attribute(owner: Any, name: str, module_name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        public = [key for key in dir(owner) if not key.startswith("_") and callable(getattr(owner, key, None))]
        # Those defined there, not the names it imports, when there is nothing near.
        own = [key for key in public if getattr(getattr(owner, key), "__module__", None) == module_name]
        hint = _nearest(name, public) or (f"; it has: {', '.join(own[:8])}" if own else "")
        what = f"module {module_name!r}" if inspect.ismodule(owner) else repr(owner)
        raise OptionError(f"{what} has no {name!r}{hint}") from None


def _modules_near(missing: str) -> list[str]:
    """The modules beside the one that is missing: at the top level, or in its package."""
    package, _, _ = missing.rpartition(".")
    if not package:
        return [module.name for module in pkgutil.iter_modules()]
    paths = getattr(sys.modules.get(package), "__path__", [])
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(paths)]


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _file_hint(target: str) -> str:
    """What to type when a file was given in the place of a module."""
    path, _, attribute = target.partition(":")
    if not path.endswith(".py"):
        return ""
    module = path.removesuffix(".py").removeprefix("./").replace("/", ".")
    return f"; for the file {path} type {module}:{attribute or 'FUNCTION'}"


def _where(error: BaseException) -> str:
    """The innermost place of the traceback that is in a file, as ` (file:line)`."""
    trace = error.__traceback__
    place = ""
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not path.startswith("<"):
            place = f" ({path}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place
