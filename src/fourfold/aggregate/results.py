"""The answer of `ff.map`: a list, with what failed and what was done."""

from collections.abc import Callable, Iterator
from typing import Any

from fourfold.records import Failure, Report


class Results(list[Any]):
    """The values in input order.

    Attributes:
        failures: Every item that has no value, in input order, under `on_error="skip"` too.
        report: Figures and the verdict of the call.

    Example:
        >>> import fourfold as ff
        >>> results = ff.map(abs, [-1, 2])
        >>> results, results.failures
        ([1, 2], [])
    """

    failures: list[Failure]
    report: Report

    def __reduce__(self) -> tuple[Any, ...]:
        return Results, (list(self),), {"failures": self.failures, "report": self.report}


class Stream(Iterator[Any]):
    """The values of `ff.imap`, while others are still computed.

    Attributes:
        failures: Every item that has had no value so far, also under `on_error="skip"`.

    Example:
        >>> import fourfold as ff
        >>> stream = ff.imap(int, ["1", "x", "3"], on_error="skip")
        >>> list(stream), [failure.index for failure in stream.failures]
        ([1, 3], [1])
    """

    def __init__(
        self,
        values: Iterator[Any],
        failures: Callable[[], list[Failure]],
        report: Callable[[], Report],
        give_up: Callable[[], None],
    ) -> None:
        self._values, self._failures, self._report, self._give_up = values, failures, report, give_up

    def __next__(self) -> Any:
        return next(self._values)

    def close(self) -> None:
        """Stop: no more items are taken, and those that run end. Leaving a `for` loop early does the same, later."""
        self._values.close()  # type: ignore[attr-defined]
        self._give_up()  # when nobody has asked for a value, there was nothing to close

    @property
    def failures(self) -> list[Failure]:
        """By index, as far as the run has come."""
        return self._failures()

    @property
    def report(self) -> Report:
        """Figures and verdict, as far as the run has come."""
        return self._report()
