"""What passes between a trial where it runs and the desk: the words that both sides share."""

import datetime
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

Given = Mapping[str, tuple[str, tuple[Any, ...], Any]]
"""What a trial is known to draw: by name, the method of a trial that asks for it, its arguments, and the value."""

NOTHING: Given = MappingProxyType({})


class Job(NamedTuple):
    """What a worker is told of a trial that it is to run.

    Attributes:
        number: Of the trial.
        started: When it began first.
        directions: Of the study.
        study_name: Likewise.
        attempts: How often it was begun, with this time.
        given: What it draws is known of these: it needs not ask, and says that it has them.
        is_first: Others wait for it, or rather for all that it asks for: see `fourfold.workloads.tune.quiet`.
        guess: What it is called when it runs before the study has it; None when it is there.
    """

    number: int
    started: datetime.datetime | None
    directions: tuple[str, ...]
    study_name: str
    attempts: int
    given: Given = NOTHING
    is_first: bool = False
    guess: int | None = None

    @property
    def key(self) -> int:
        """What it is called at the desk."""
        return self.number if self.guess is None else self.guess


class Withdrawn(BaseException):
    """A trial that ran before the study had it draws something else, and begins anew. No objective should catch it."""


class NotYet:
    """The answer for a trial that the study does not have yet: ask again."""


class Ask(Protocol):
    """The way to the desk, as long as one ticket is worked on."""

    def __call__(self, what: str, *args: Any) -> Any:
        """Ask the desk to do something; gives or raises what that did."""

    def say(self, what: str, *args: Any) -> None:
        """Let the desk do something, and do not wait for it; what that raised is raised by the next question."""


class Line(Protocol):
    """Leads to the desk."""

    def opened(self, ticket: int) -> Any:
        """A context with an `Ask`."""
