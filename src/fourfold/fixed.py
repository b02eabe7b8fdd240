"""The base of records that do not change: a frozen dataclass, without the 15 ms that `dataclasses` takes to import."""

from typing import Any, ClassVar, dataclass_transform


@dataclass_transform(frozen_default=True)
class Fixed:
    """Its fields are the annotations of the class, with the class's values as defaults.

    Raises:
        AttributeError: A field is set or deleted.
        TypeError: A field without a default is not given, or one is given that does not exist.
    """

    _hidden: ClassVar[tuple[str, ...]] = ()
    """Fields that repr leaves out."""

    def __init__(self, *values: Any, **named: Any) -> None:
        kind = type(self)
        fields = fields_of(kind)
        given = {**dict(zip(fields, values, strict=False)), **named}
        if len(values) > len(fields) or len(given) < len(values) + len(named) or not given.keys() <= _DEFAULTS[kind].keys():
            raise TypeError(f"{kind.__name__} takes {', '.join(fields)}, each once; it was given {values} and {named}")
        self.__dict__.update(_DEFAULTS[kind])
        self.__dict__.update(given)
        if len(given) < len(fields) and (missing := [name for name, value in self.__dict__.items() if value is _MISSING]):
            raise TypeError(f"{kind.__name__} needs {', '.join(missing)}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} does not change: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} does not change: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items() if name not in self._hidden)
        return f"{type(self).__name__}({shown})"


def fields_of(kind: type) -> tuple[str, ...]:
    """The names of the fields of a Fixed class, in order."""
    if kind not in _FIELDS:
        fields = tuple(name for name in kind.__annotations__ if not name.startswith("_"))
        _DEFAULTS[kind] = {name: getattr(kind, name, _MISSING) for name in fields}
        _FIELDS[kind] = fields  # the last: another thread goes by this one
    return _FIELDS[kind]


_MISSING = object()
_FIELDS: dict[type, tuple[str, ...]] = {}
_DEFAULTS: dict[type, dict[str, Any]] = {}
"""Of the classes that were asked for: records are made for each call."""
