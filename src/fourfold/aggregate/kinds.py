"""Failures of one kind together: the same error at the same line is one thing to mend, however often it happened."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

Group = TypeVar("Group", bound="Alike")


class Alike(Protocol):
    """What failures have that are grouped."""

    @property
    def error_type(self) -> str:
        """The name of the exception's class."""

    @property
    def place(self) -> str:
        """Where it was raised."""


def groups(failures: Iterable[Group]) -> list[list[Group]]:
    """Failures of one type and from one line together, the most frequent first."""
    found: dict[tuple[str, str], list[Group]] = {}
    for failure in failures:
        found.setdefault((failure.error_type, failure.place), []).append(failure)
    return sorted(found.values(), key=len, reverse=True)
