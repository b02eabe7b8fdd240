"""What a function and an item are, so that a later call can tell whether they are still the same.

A function is its instructions, its constants, what it closes over and the global names that it uses, and so on for those of
them that are the user's own. Comments, line numbers and docstrings do not count. Installed packages count by their version.
"""

import dis
import functools
import hashlib
import io
import os
import pickle
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

DIGEST_BYTES = 8
"""Bytes of an item's digest. Fewer: a changed item may look the same (now once in 10^19). More: a larger journal."""

CONSTANT_CHARS = 60
"""Characters of a constant that a message can show. Not measured."""

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
        walk.visit(_name_of(obj) if isinstance(obj, types.FunctionType | types.BuiltinFunctionType | type) else name, obj)
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
        else:
            found.append(f"{name} changed")
    return found


def _code_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    before, after = old["constants"], new["constants"]
    if len(before) == len(after):
        changed = [(was, now) for was, now in zip(before, after, strict=True) if was != now]
        if changed and old["code"] == new["code"]:
            return "has other constants: " + ", ".join(f"{was} is now {now}" for was, now in changed[:3])
    return "has other code"


def item_digest(item: Any) -> bytes:
    """Return DIGEST_BYTES that are the same for an equal item in another process; b"" for what cannot be pickled."""
    try:
        if type(item) in _PLAIN:
            return _hash(pickle.dumps(item, 5))
        return _digest(item)
    except Exception:
        return b""


_PLAIN = frozenset({int, float, str, bytes, bool, type(None)})


def _hash(*pieces: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


class _Pickler(pickle.Pickler):
    """Pickles for a digest: arrays by their digest, functions and classes of the user by what they are.

    Protocol 3, which names sets by their class: those of later protocols are single bytes that could be anything.
    """

    def __init__(self, file: io.BytesIO, walk: "_Walk | None") -> None:
        super().__init__(file, 3)
        # Without the memo two equal strings pickle the same whether they are one object or two.
        self.fast = True
        self._walk = walk

    def reducer_override(self, obj: Any) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and type(obj) is numpy.ndarray and not obj.dtype.hasobject:
            array = numpy.ascontiguousarray(obj)
            return str, (obj.dtype.str, obj.shape, _hash(array.view(numpy.uint8).reshape(-1) if array.size else b""))
        if isinstance(obj, types.FunctionType | type) and _is_users(obj):
            return str, (_text_of(obj) if self._walk is None else self._walk.visit(_name_of(obj), obj),)
        if isinstance(obj, types.ModuleType):
            return str, (obj.__name__,)
        return NotImplemented


class _Canonical(_Pickler):
    """The same, with sets in an order of their own: theirs changes from process to process."""

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) in (set, frozenset):
            return f"{type(obj).__name__} {sorted(_digest(each, self._walk).hex() for each in obj)}"
        return None


def _digest(obj: Any, walk: "_Walk | None" = None) -> bytes:
    data = _pickled(_Pickler, obj, walk)
    if b"cbuiltins\nset\n" in data or b"cbuiltins\nfrozenset\n" in data:
        data = _pickled(_Canonical, obj, walk)
    return _hash(data)


def _pickled(kind: type[_Pickler], obj: Any, walk: "_Walk | None") -> bytes:
    file = io.BytesIO()
    pickler = kind(file, walk)
    try:
        pickler.dump(obj)
    except ValueError:  # it contains itself: then the memo is needed
        file = io.BytesIO()
        pickler = kind(file, walk)
        pickler.fast = False
        pickler.dump(obj)
    return file.getvalue()


_texts: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
"""What functions and classes inside of items are: each is looked at once."""


def _text_of(obj: Any) -> str:
    text = _texts.get(obj)
    if text is None:
        _texts[obj] = _name_of(obj)  # it may be in itself
        _texts[obj] = text = repr(program_parts({_name_of(obj): obj}))
    return text


class _Walk:
    """Visits what a program is made of, each part once."""

    def __init__(self) -> None:
        self.parts: Parts = {}
        self._seen: dict[int, str] = {}
        self._kept: list[Any] = []  # an id is somebody else's when its object is gone

    def visit(self, name: str, obj: Any) -> str:
        """Add an object and all it stands on; returns the name it has here."""
        known = self._seen.get(id(obj))
        if known is not None:
            return known
        if isinstance(obj, types.FunctionType | types.MethodType | type | functools.partial | types.ModuleType):
            self._seen[id(obj)] = name
            self._kept.append(obj)
        match obj:
            case functools.partial():
                self.visit(_name_of(obj.func), obj.func)
                self._value(f"arguments of {_name_of(obj.func)}", (obj.args, obj.keywords))
            case types.MethodType():
                self.visit(_name_of(obj.__func__), obj.__func__)
                self._value(f"the object of {_name_of(obj)}", obj.__self__)
            case types.FunctionType():
                self._function(name, obj)
            case type():
                self._class(name, obj)
            case types.ModuleType():
                self.parts[name] = _version_of(obj)
            case _:
                self._value(name, obj)
        return name

    def _function(self, name: str, function: types.FunctionType) -> None:
        if not _is_users(function):
            self.parts[name] = f"{function.__module__} {_version_of(_module_of(function))}"
            return
        code = function.__code__
        self.parts[name] = {"code": _code_digest(code), "constants": [*_constants(code)]}
        if function.__defaults__ or function.__kwdefaults__:
            self._value(f"the defaults of {name}", (function.__defaults__, function.__kwdefaults__))
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._named(f"{variable} in {name}", cell.cell_contents)
            except ValueError:  # not bound yet
                continue
        self._globals(code, function.__globals__)

    def _globals(self, code: types.CodeType, known: dict[str, Any]) -> None:
        module = known.get("__name__", "")
        for chain in sorted(_global_names(code)):
            first, *attributes = chain
            if first not in known:
                continue  # a builtin, or an error of its own
            name, obj = f"{module}.{first}", known[first]
            while isinstance(obj, types.ModuleType) and _is_users(obj) and attributes and hasattr(obj, attributes[0]):
                name, obj = f"{obj.__name__}.{attributes[0]}", getattr(obj, attributes.pop(0))
            self._named(name, obj)

    def _named(self, name: str, obj: Any) -> None:
        """A function keeps its own name, whatever the variable is called; of a foreign module only the version counts."""
        if isinstance(obj, types.ModuleType):
            package = obj.__name__.partition(".")[0]
            if not _is_users(obj) and package not in sys.stdlib_module_names:
                self.parts[f"the package {package}"] = _version_of(obj)
        elif isinstance(obj, types.FunctionType | type):
            self.visit(_name_of(obj), obj)
        else:
            self.visit(name, obj)

    def _class(self, name: str, cls: type) -> None:
        if not _is_users(cls):
            self.parts[name] = f"{cls.__module__} {_version_of(_module_of(cls))}"
            return
        self.parts[name] = "class"
        for base in cls.__bases__:
            self.visit(_name_of(base), base)
        for key, value in sorted(vars(cls).items()):
            inner = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(inner, types.FunctionType):
                self.visit(f"{name}.{key}", inner)
            elif not key.startswith("__") or key in ("__slots__", "__call__"):
                self._value(f"{name}.{key}", value)

    def _value(self, name: str, value: Any) -> None:
        cls = type(value)
        if id(cls) not in self._seen and _is_users(cls):
            self.visit(_name_of(cls), cls)
        if type(value) in _PLAIN and len(repr(value)) <= CONSTANT_CHARS:
            self.parts[name] = repr(value)
            return
        try:
            self.parts[name] = f"{_DIGEST}{_digest(value, self).hex()}"
        except Exception:  # a lock, an open file: there is nothing to compare
            self.parts[name] = f"<{cls.__qualname__}>"


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
                text = _ordered_repr(step.argval)
                yield text if len(text) <= CONSTANT_CHARS else f"{text[:20]}... ({_hash(text.encode()).hex()})"


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


def _name_of(obj: Any) -> str:
    name = getattr(obj, "__qualname__", type(obj).__qualname__).replace("<locals>.", "")
    return f"{getattr(obj, '__module__', None) or '?'}.{name}"


def _module_of(obj: Any) -> types.ModuleType | None:
    return sys.modules.get(getattr(obj, "__module__", None) or "")


def _version_of(module: types.ModuleType | None) -> str:
    package = sys.modules.get(module.__name__.partition(".")[0]) if module is not None else None
    version = getattr(package, "__version__", None)
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
