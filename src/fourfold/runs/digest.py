"""Digests: a few bytes that are the same for an equal object in another process."""

import hashlib
import io
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

DIGEST_BYTES = 8
"""Bytes of a digest. Fewer: a changed item may look the same (now once in 10^19). More: a larger journal."""

APART_DEPTH = 6
"""How deep an object is taken apart that cannot be pickled whole. Less: changes deep inside are not seen. Not measured."""

PLAIN = frozenset({int, float, str, bytes, bool, type(None)})

_CHANGING = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet, weakref.ref)
"""What other objects come and go in: caches. Two looks at one never agree."""


def hash_of(*pieces: Any) -> bytes:
    """DIGEST_BYTES of these bytes."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


class _Pickler(pickle.Pickler):
    """Pickles for a digest: arrays by their digest, functions and classes by their names.

    Protocol 3, which names sets by their class: those of later protocols are single bytes that could be anything.
    """

    def __init__(self, file: io.BytesIO, met: list[Any], is_users: Callable[[Any], bool]) -> None:
        super().__init__(file, 3)
        # Without the memo two equal strings pickle the same whether they are one object or two.
        self.fast = True
        self._met, self._is_users = met, is_users

    def reducer_override(self, obj: Any) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and type(obj) is numpy.ndarray and not obj.dtype.hasobject:
            array = numpy.ascontiguousarray(obj)
            return str, (obj.dtype.str, obj.shape, hash_of(array.view(numpy.uint8).reshape(-1) if array.size else b""))
        if isinstance(obj, types.FunctionType | type) and self._is_users(obj):
            self._met.append(obj)
            return str, (name_of(obj),)
        if isinstance(obj, types.ModuleType):
            return str, (obj.__name__,)
        return NotImplemented


class _Canonical(_Pickler):
    """The same, with sets in an order of their own: theirs changes from process to process."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, set | frozenset):
            return f"{type(obj).__name__} {sorted(digest_of(each, self._met, self._is_users).hex() for each in obj)}"
        return None


def digest_of(obj: Any, met: list[Any], is_users: Callable[[Any], bool]) -> bytes:
    """The digest of an object that can be pickled; `met` gets the user's functions and classes in it, in order.

    Raises:
        Exception: Whatever its pickling raises.
    """
    data = _pickled(_Pickler, obj, met, is_users)
    if b"cbuiltins\nset\n" in data or b"cbuiltins\nfrozenset\n" in data or isinstance(obj, set | frozenset):
        met.clear()
        data = _pickled(_Canonical, obj, met, is_users)
    return hash_of(data)


def _pickled(kind: type[_Pickler], obj: Any, met: list[Any], is_users: Callable[[Any], bool]) -> bytes:
    file = io.BytesIO()
    pickler = kind(file, met, is_users)
    try:
        pickler.dump(obj)
    except ValueError:  # it contains itself: then the memo is needed
        file = io.BytesIO()
        pickler = kind(file, met, is_users)
        pickler.fast = False
        pickler.dump(obj)
    return file.getvalue()


def apart(name: str, obj: Any, depth: int = APART_DEPTH) -> Iterator[tuple[str, Any]]:
    """The named parts of an object that cannot be pickled as a whole: those that can be, or have no parts."""
    pieces: list[tuple[str, Any]] = []
    if isinstance(obj, dict):
        pieces = [(f"{name}[{key!r}]", value) for key, value in obj.items() if type(key) in PLAIN]
    elif isinstance(obj, list | tuple):
        pieces = [(f"{name}[{number}]", value) for number, value in enumerate(obj)]
    elif not isinstance(obj, (types.FunctionType, type, types.ModuleType, *_CHANGING)):
        pieces = [(f"{name}.{key}", value) for key, value in sorted(getattr(obj, "__dict__", {}).items())]
        for cls in type(obj).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if hasattr(obj, slot):
                    pieces.append((f"{name}.{slot}", getattr(obj, slot)))
    if not pieces or depth == 0:
        yield name, None
    for piece, value in pieces:
        try:
            digest_of(value, [], lambda _: True)
            yield piece, value
        except Exception:
            if isinstance(value, types.FunctionType | types.MethodType):
                yield piece, value
            else:
                yield from apart(piece, value, depth - 1)


def name_of(obj: Any) -> str:
    """The full name of a function or class, or of an object's class."""
    name = getattr(obj, "__qualname__", type(obj).__qualname__).replace("<locals>.", "")
    return f"{getattr(obj, '__module__', None) or '?'}.{name}"
