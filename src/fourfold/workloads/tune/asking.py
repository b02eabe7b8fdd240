"""What passes between a trial where it runs and the desk: the words that both sides share."""

import datetime
from typing import Any, NamedTuple, Protocol


class Job(NamedTuple):
    """What a worker is told of a trial that it is to run.

    Attributes:
        number: Of the trial.
        started: When it began first.
        directions: Of the study.
        study_name: Likewise.
        attempts: How often it was begun, with this time.
    """

    number: int
    started: datetime.datetime | None
    directions: tuple[str, ...]
    study_name: str
    attempts: int


class Ask(Protocol):
    """The way to the desk, as long as one ticket is worked on."""

    def __call__(self, what: str, *args: Any) -> Any:
        """Ask the desk to do something; gives or raises what that did."""


class Line(Protocol):
    """Leads to the desk."""

    def opened(self, ticket: int) -> Any:
        """A context with an `Ask`."""
