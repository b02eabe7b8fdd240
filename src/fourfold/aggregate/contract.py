"""The contract of everything that makes one answer of many outcomes."""

from typing import Any, Protocol


class Aggregator(Protocol):
    """Combines chunks in any order of arrival into an answer that does not depend on that order.

    `fold` runs in workers, on the values of one chunk; the rest runs in the driver. Implementations are picklable.
    """

    def identity(self) -> Any:
        """The state before anything has arrived."""

    def fold(self, start: int, values: list[Any], holes: list[int]) -> Any:
        """Make a partial result of the values at positions `start`, `start + 1`, ...

        Called when: a chunk has run, in its worker.
        Must not: use the values at the offsets in `holes`; those items failed.
        """

    def absent(self, position: int) -> Any:
        """The partial result of an item that has no value for good."""

    def combine(self, state: Any, partial: Any) -> Any:
        """Take a partial result into the state; it may change the state and return it."""

    def finish(self, state: Any, count: int) -> Any:
        """The answer, when all `count` positions are in the state."""
