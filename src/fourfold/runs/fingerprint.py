"""What a function and an item are, so that a later call can tell whether they are still the same.

A function is its instructions, its constants, what it closes over and the global names that it uses, and so on for those of
them that are the user's own. Comments, line numbers and docstrings do not count. Installed packages count by their version.
"""

import ast
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pickle
import sys
import sysconfig
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fourfold.runs.digest import PLAIN, apart, digest_of, hash_of, name_of

CONSTANT_CHARS = 60
"""Characters of a constant that a message can show. Not measured."""

MODEL = "the model "
"""How the name of a part begins that is a model: it is not changed, but another one."""

_DIGEST = "digest "
"""How a part begins that nobody can read."""

Parts = dict[str, Any]
"""What a program is made of: the name of each part, and its digest or the constants in it."""


def program_parts(named: Mapping[str, Any]) -> Parts:
    """Return the parts of a program, each with a digest.

    Args:
        named: The objects that it starts from: {"function": fn, "init": (...), "seed": 3}.
    """
    walk = _Walk()
    walk.parts["Python"] = "{}.{}".format(*sys.version_info)
    for name, obj in named.items():
        walk.visit_all(name, obj)
    return walk.parts


def differences(recorded: Parts, now: Parts) -> list[str]:
    """Sentences that say what changed between two programs; none when they are the same."""
    found = []
    for name in [*recorded, *(name for name in now if name not in recorded)]:
        old, new = recorded.get(name), now.get(name)
        if old == new:
            continue
        if old is None:
            found.append(f"{name} is new")
        elif new is None:
            found.append(f"{name} is gone")
        elif isinstance(old, dict) and isinstance(new, dict):
            found.append(f"{name} {_code_difference(old, new)}")
        elif isinstance(old, str) and isinstance(new, str) and not (old + new).count(_DIGEST):
            found.append(f"{name} was {old} and is {new}")
        elif name.startswith(MODEL):
            found.append(f"{name} is another one than the run was recorded with")
        else:
            found.append(f"{name} changed")
    return found


def _code_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    before, after = old["constants"], new["constants"]
    if len(before) == len(after):
        changed = [(was, now) for was, now in zip(before, after, strict=True) if was != now]
        if changed and old["code"] == new["code"]:
            told = [f"{was} is now {now}" if was[:1] != "a" else "a text or collection changed" for was, now in changed[:3]]
            return "has other constants: " + ", ".join(told)
    return "has other code"


def item_digest(item: Any) -> bytes:
    """Return the digest of an item. Of what cannot be pickled, the parts that can be count."""
    try:
        if type(item) in PLAIN:
            return hash_of(pickle.dumps(item, 5))
        met: list[Any] = []
        digest = digest_of(item, met, _is_users)
    except Exception:
        walk = _Walk()
        walk.visit_all("item", item)
        return hash_of(repr(walk.parts).encode())
    functions = [_text_of(each).encode() for each in met if isinstance(each, types.FunctionType)]
    return hash_of(digest, *functions) if functions else digest


_texts: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
"""What functions inside of items are: each is looked at once."""


def _text_of(function: Any) -> str:
    text = _texts.get(function)
    if text is None:
        _texts[function] = text = repr(program_parts({"": function}))
    return text


class _Walk:
    """Visits what a program is made of, each part once, the nearest first."""

    def __init__(self) -> None:
        self.parts: Parts = {}
        self._seen: dict[int, Any] = {}  # with the objects: an id is somebody else's when its object is gone
        self._work: deque[tuple[str, Any]] = deque()

    def visit_all(self, name: str, obj: Any) -> None:
        """Add an object and all it stands on."""
        self._work.append((name, obj))
        while self._work:
            self._visit(*self._work.popleft())

    def _visit(self, name: str, obj: Any) -> None:
        if type(obj) in PLAIN:
            self._value(name, obj)
            return
        if id(obj) in self._seen:
            return
        self._seen[id(obj)] = obj
        wrapped = getattr(obj, "__wrapped__", None)
        match obj:
            case functools.partial():
                self._work.append((name, obj.func))
                self._work.append((f"the arguments of {name_of(obj.func)}", (obj.args, obj.keywords)))
            case types.MethodType():
                self._work.append((name, obj.__func__))
                self._work.append((f"the object of {name_of(obj.__func__)}", obj.__self__))
            case types.FunctionType():
                self._function(obj)
            case types.BuiltinFunctionType():
                self._put(name_of(obj), "builtin")
            case type():
                self._class(obj)
            case types.ModuleType():
                self._module(obj)
            case _ if isinstance(wrapped, types.FunctionType):  # functools.cache, and what is made like it
                self._work.append((name, wrapped))
            case _:
                self._value(name, obj)

    def _put(self, name: str, part: Any) -> None:
        """Add a part; different things of the same name, such as lambdas, are told apart by a number."""
        number, unique = 1, name
        while self.parts.get(unique, part) != part:
            number += 1
            unique = f"{name} #{number}"
        self.parts[unique] = part

    def _function(self, function: types.FunctionType) -> None:
        name = name_of(function)
        if not _is_users(function):
            self._put(name, f"{function.__module__} {_version_of(_module_of(function))}")
            return
        code = function.__code__
        self._put(name, {"code": _code_digest(code), "constants": [*_constants(code)]})
        if function.__defaults__ or function.__kwdefaults__:
            self._value(f"the defaults of {name}", (function.__defaults__, function.__kwdefaults__))
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._work.append((f"{variable} in {name}", cell.cell_contents))
            except ValueError:  # not bound yet
                continue
        registry = getattr(function, "registry", None)
        if isinstance(registry, types.MappingProxyType):  # functools.singledispatch
            self._work.append((f"the registry of {name}", [*registry.values()]))
        self._globals(code, function.__globals__)
        for module in _imported_by(code):
            self._put(f"the module {module}", _source_digest(module))

    def _globals(self, code: types.CodeType, known: dict[str, Any]) -> None:
        module = known.get("__name__", "")
        for first, *attributes in sorted(_global_names(code)):
            if first not in known:
                continue  # a builtin, or an error of its own
            name, obj = f"{module}.{first}", known[first]
            # Of a module of the user and of an object with plain attributes, only what is asked for counts.
            while attributes and _has_plain(obj, attributes[0]):
                name = f"{obj.__name__ if isinstance(obj, types.ModuleType) else name}.{attributes[0]}"
                obj = getattr(obj, attributes.pop(0))
            self._work.append((name, obj))

    def _module(self, module: types.ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        if not _is_users(module) and package not in sys.stdlib_module_names:
            self._put(f"the package {package}", _version_of(module))

    def _class(self, cls: type) -> None:
        name = name_of(cls)
        if not _is_users(cls):
            self._put(name, f"{cls.__module__} {_version_of(_module_of(cls))}")
            return
        self._put(name, "class")
        self._work.extend((name_of(base), base) for base in cls.__bases__)
        for key, value in sorted(vars(cls).items()):
            functions = [each for each in (value, *_functions_in(value)) if isinstance(each, types.FunctionType)]
            self._work.extend((f"{name}.{key}", each) for each in functions)
            if not functions and (not key.startswith("__") or key == "__slots__"):
                self._work.append((f"{name}.{key}", value))

    def _value(self, name: str, value: Any) -> None:
        if type(value) in PLAIN:
            self._put(name, _shown(value) or f"{_DIGEST}{hash_of(repr(value).encode()).hex()}")
            return
        met: list[Any] = [type(value)] if _is_users(type(value)) else []
        try:
            found: list[Any] = []
            self._put(name, f"{_DIGEST}{digest_of(value, found, _is_users).hex()}")
            met += found
        except Exception:
            self._put(name, f"<{type(value).__qualname__}>")  # a lock, an open file: there is nothing to compare
            self._work.extend((piece, part) for piece, part in apart(name, value) if part is not None)
        self._work.extend((name_of(each), each) for each in met)


def _shown(value: Any) -> str:
    """How a message shows a value; "" for what it does not show: a text may be a password, and the journal is a file."""
    return repr(value) if isinstance(value, int | float | complex | None) and len(repr(value)) <= CONSTANT_CHARS else ""


def _functions_in(value: Any) -> Iterator[Any]:
    """What classmethod, property, cached_property, partialmethod and their like hold."""
    for attribute in ("__func__", "fget", "fset", "fdel", "func", "__wrapped__"):
        inner = getattr(value, attribute, None)
        if isinstance(inner, types.FunctionType):
            yield inner


def _has_plain(obj: Any, attribute: str) -> bool:
    if isinstance(obj, types.ModuleType):
        return _is_users(obj) and hasattr(obj, attribute)
    return not isinstance(obj, types.FunctionType | type) and attribute in getattr(obj, "__dict__", {})


def _imported_by(code: types.CodeType) -> Iterator[str]:
    """Modules of the user that the code imports when it runs: they may not be there yet, so their source is looked at."""
    for each in _all_codes(code):
        for step in dis.get_instructions(each):
            if step.opname == "IMPORT_NAME" and _source_of(step.argval) is not None:
                yield step.argval


@functools.lru_cache(maxsize=1000)
def _source_of(module: str) -> str | None:
    if module.partition(".")[0] in sys.stdlib_module_names or ("." in module and module.rpartition(".")[0] not in sys.modules):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    file = spec.origin if spec is not None else None
    return file if file is not None and file.endswith(".py") and not _is_installed(file) else None


def _source_digest(module: str) -> str:
    """The source of a module without comments and docstrings."""
    file = _source_of(module)
    assert file is not None
    try:
        with open(file, "rb") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError):
        return "unreadable"
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
    return f"{_DIGEST}{hash_of(ast.dump(tree).encode()).hex()}"


def _code_digest(code: types.CodeType) -> str:
    """Instructions without line numbers, and with constants by type only: their values are compared by themselves."""
    digest = hashlib.blake2b(digest_size=16)
    for each in _all_codes(code):
        digest.update(f"{each.co_name} {each.co_argcount} {each.co_kwonlyargcount} {each.co_flags & 0xFF}".encode())
        digest.update(repr((each.co_varnames, each.co_freevars, each.co_cellvars)).encode())
        digest.update(each.co_exceptiontable)
        for step in dis.get_instructions(each):
            constant = step.opname.endswith("CONST")
            value = (
                type(step.argval).__name__ if constant else step.argval if isinstance(step.argval, str | int) else step.argrepr
            )
            digest.update(f"{step.opname} {value}\n".encode())
    return digest.hexdigest()


def _constants(code: types.CodeType) -> Iterable[str]:
    """The constants that the instructions use, in order. A docstring is not used by any."""
    for each in _all_codes(code):
        for step in dis.get_instructions(each):
            if step.opname.endswith("CONST") and not isinstance(step.argval, types.CodeType):
                yield _shown(step.argval) or f"a text or collection ({hash_of(_ordered_repr(step.argval).encode()).hex()})"


def _ordered_repr(constant: Any) -> str:
    return f"{{{', '.join(sorted(map(repr, constant)))}}}" if isinstance(constant, frozenset) else repr(constant)


def _all_codes(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_codes(constant)


def _global_names(code: types.CodeType) -> set[tuple[str, ...]]:
    """The global names that the code uses, each with the attributes that it asks of it: ("np", "random", "rand")."""
    found: set[tuple[str, ...]] = set()
    for each in _all_codes(code):
        chain: tuple[str, ...] = ()
        for step in dis.get_instructions(each):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                chain = (step.argval,)
            elif chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                found.discard(chain)
                chain = (*chain, step.argval)
            else:
                chain = ()
            if chain:
                found.add(chain)
    return found


def _module_of(obj: Any) -> types.ModuleType | None:
    return sys.modules.get(getattr(obj, "__module__", None) or "")


def _version_of(module: types.ModuleType | None) -> str:
    package = sys.modules.get(module.__name__.partition(".")[0]) if module is not None else None
    version = getattr(package, "__version__", None)
    if package is not None and not isinstance(version, str):
        try:
            version = importlib.metadata.version(package.__name__)
        except importlib.metadata.PackageNotFoundError:
            version = None
    return version if isinstance(version, str) else "without a version"


_STANDARD = os.path.join(os.path.realpath(sysconfig.get_path("stdlib")), "")
_PACKAGES = frozenset({"site-packages", "dist-packages"})


@functools.lru_cache(maxsize=1000)
def _is_installed(file: str) -> bool:
    path = os.path.realpath(file)
    return path.startswith(_STANDARD) or not _PACKAGES.isdisjoint(path.split(os.sep)) or file.startswith("<frozen")


def _is_users(obj: Any) -> bool:
    """Whether the user may edit its source: it is not the standard library's and not an installed package's."""
    module = obj if isinstance(obj, types.ModuleType) else _module_of(obj)
    if module is None or module.__name__ in sys.builtin_module_names:
        return module is None
    if module.__name__ == "__main__":
        return True
    if module.__name__.partition(".")[0] == __package__.partition(".")[0]:
        return False
    file = getattr(module, "__file__", None)
    return file is not None and not _is_installed(file)
