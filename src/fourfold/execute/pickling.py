"""Objects to bytes and back, with the large buffers beside the pickle; and the path to what cannot be pickled."""

import functools
import io
import pickle
import sys
import time
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import cloudpickle

from fourfold.errors import NotPicklable
from fourfold.records import Buffer, Parcel
from fourfold.shown import safe_repr

MAX_DEPTH = 12
"""How deep to look for what cannot be pickled. Less: a vaguer message. More: a longer search of huge objects. Not measured."""


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Functions and classes of `__main__` by value; every array's data out of band, also of strided arrays.

    NumPy would put a strided array into the pickle itself, and it would come back writable where others are read-only.
    """

    def reducer_override(self, obj: Any) -> Any:
        reduced = _array_reduction(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


def _array_reduction(obj: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and type(obj) is numpy.ndarray and not obj.dtype.hasobject:
        if obj.dtype.kind in "mM":  # dates have no buffer protocol: they travel as the integers that they are
            return numpy.ndarray.view, (obj.view("i8"), obj.dtype)
        if not obj.flags.forc:
            return numpy.ascontiguousarray(obj).__reduce_ex__(5)
    return NotImplemented


class _ReadingPickler(_Pickler):
    """Notes by the way which modules whoever unpickles it will import, then or when the object is used."""

    modules: set[str]

    def reducer_override(self, obj: Any) -> Any:
        self.modules.update(_modules_of(obj))
        return super().reducer_override(obj)


def _modules_of(obj: Any) -> Iterable[str]:
    """The modules that one part of an object speaks of."""
    if isinstance(obj, types.ModuleType):
        return (obj.__name__,)
    if isinstance(obj, types.FunctionType | types.BuiltinFunctionType | type):
        # Those of no importable name travel by value: their own module is not imported, and what they use comes by here.
        module, is_by_value = _module_name(obj), "<" in getattr(obj, "__qualname__", "")
        # What a function imports when it is called was imported here, if it has run here.
        inner = obj.__code__.co_names if isinstance(obj, types.FunctionType) else ()
        return (*([] if is_by_value else [module]), *(name for name in inner if name in sys.modules))
    if _module_name(type(obj)).startswith("fourfold."):
        found: Iterable[str] = getattr(obj, "imports", ())
        return found
    return ()


def _module_name(obj: Any) -> str:
    """Where it says that it is from; "" when it says nothing, or no name."""
    name = getattr(obj, "__module__", None)
    return name if isinstance(name, str) else ""


def dump(obj: Any, modules: set[str] | None = None) -> Parcel:
    """Pickle one object: functions by value where they are not importable, buffers out of band and not copied.

    Args:
        obj: Anything.
        modules: None, or gets the names of the modules that it speaks of.

    Raises:
        Exception: Whatever the object's own pickling raises.
    """
    buffers: list[Buffer] = []
    file = io.BytesIO()
    _pickler(file, modules, lambda buffer: buffers.append(buffer.raw())).dump(obj)
    return Parcel(file.getvalue(), tuple(buffers))


def _pickler(file: Any, modules: set[str] | None, take: Callable[[pickle.PickleBuffer], None]) -> _Pickler:
    if modules is None:
        return _Pickler(file, protocol=5, buffer_callback=take)
    pickler = _ReadingPickler(file, protocol=5, buffer_callback=take)
    pickler.modules = modules
    return pickler


class _NamingPickler(pickle.Pickler):
    """Functions and classes by name, also those of `__main__`: for the same program, later."""

    def reducer_override(self, obj: Any) -> Any:
        return _array_reduction(obj)


def dump_by_name(obj: Any) -> Parcel:
    """Pickle one object for this very program: what has no name that can be imported is taken along, as by `dump`.

    Raises:
        Exception: Whatever the object's own pickling raises.
    """
    buffers: list[Buffer] = []
    file = io.BytesIO()
    try:
        _NamingPickler(file, protocol=5, buffer_callback=lambda buffer: buffers.append(buffer.raw())).dump(obj)
    except Exception:
        return dump(obj)
    return Parcel(file.getvalue(), tuple(buffers))


def dump_whole(obj: Any) -> bytes:
    """Pickle one small object with everything inside the stream."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(obj)
    return file.getvalue()


def load(parcel: Parcel) -> Any:
    """Unpickle what `dump` made. Arrays use the parcel's buffers as their memory, writable where the buffers are."""
    return pickle.loads(parcel.head, buffers=parcel.buffers)


class Weight(NamedTuple):
    """What it costs to send an object: seconds of pickling, bytes in the pickle, bytes of buffers beside it."""

    pickle_s: float
    stream_bytes: int
    buffer_bytes: int
    complete: bool


class _TooMuch(Exception):
    pass


class _LimitedFile:
    def __init__(self, limit: int) -> None:
        self.written, self.limit = 0, limit

    def write(self, data: Any) -> int:
        self.written += len(data)
        if self.written > self.limit:
            raise _TooMuch
        return len(data)


def weigh(obj: Any, limit_bytes: int, modules: set[str] | None = None) -> Weight:
    """Measure the pickling of an object, and give up (`complete` is False) past `limit_bytes` in the stream.

    `modules`, when given, gets the names of those that it speaks of.

    Raises:
        NotPicklable: It cannot be pickled; the message has the path.
    """
    file, beside = _LimitedFile(limit_bytes), 0

    def count(buffer: pickle.PickleBuffer) -> None:
        nonlocal beside
        beside += buffer.raw().nbytes

    begin = time.perf_counter()
    try:
        _pickler(file, modules, count).dump(obj)
        complete = True
    except _TooMuch:
        complete = False
    except Exception as error:
        raise NotPicklable(explain(obj, "item", error)) from error
    return Weight(time.perf_counter() - begin, file.written, beside, complete)


def explain(obj: Any, name: str, error: BaseException) -> str:
    """Return "path: reason" for an object whose pickling raised `error`: the innermost part that fails, by its path."""
    path = name
    seen = {id(obj)}
    for _ in range(MAX_DEPTH):
        found = next(((sub, part, why) for sub, part in _parts(obj) if id(part) not in seen and (why := _fails(part))), None)
        if found is None:
            break
        suffix, obj, error = found
        path += suffix
        seen.add(id(obj))
    return f"{path}: {str(error) or type(error).__name__}"


def explain_first(parts: dict[str, Any], error: BaseException) -> str:
    """The same for the first of the named parts that cannot be pickled."""
    return next((explain(part, name, why) for name, part in parts.items() if (why := _fails(part))), str(error))


def _fails(obj: Any) -> BaseException | None:
    try:
        dump(obj)
    except Exception as error:
        return error
    return None


def _parts(obj: Any) -> list[tuple[str, Any]]:
    """The named parts of an object, in the words of the language: `.name`, `[key]`."""
    parts: list[tuple[str, Any]] = []
    if isinstance(obj, dict):
        parts += [(f"[{_short(key)}]", value) for key, value in list(obj.items())]
    elif isinstance(obj, list | tuple):
        parts += [(f"[{number}]", value) for number, value in enumerate(obj)]
    elif isinstance(obj, functools.partial):
        parts += [(".func", obj.func)] + [(f".args[{n}]", each) for n, each in enumerate(obj.args)]
        parts += [(f".keywords[{key!r}]", value) for key, value in obj.keywords.items()]
    elif isinstance(obj, types.MethodType):
        parts += [(".__self__", obj.__self__)]
    elif isinstance(obj, types.FunctionType):
        names = obj.__code__.co_freevars
        parts += [(f" closure {n!r}", _content(cell)) for n, cell in zip(names, obj.__closure__ or (), strict=True)]
        parts += [(f" global {n!r}", obj.__globals__[n]) for n in obj.__code__.co_names if n in obj.__globals__]
    else:
        parts += [(f".{name}", value) for name, value in list(getattr(obj, "__dict__", {}).items())]
        for base in type(obj).__mro__:
            slots = base.__dict__.get("__slots__", ())
            slots = (slots,) if isinstance(slots, str) else slots
            parts += [(f".{name}", getattr(obj, name)) for name in slots if hasattr(obj, name)]
    return parts


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell: the name is not bound yet
        return None


def _short(key: Any) -> str:
    text = safe_repr(key)
    return text if len(text) <= 40 else text[:37] + "..."
