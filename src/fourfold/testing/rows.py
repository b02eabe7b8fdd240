"""Which row of the contract a test is for. The rows are in docs/contracts.md."""

from collections.abc import Callable
from typing import Any, TypeVar

Test = TypeVar("Test", bound=Callable[..., Any])


def contract(*rows: int) -> Callable[[Test], Test]:
    """Say which rows of the contract a test is for.

    Not a mark of pytest: in a project of yours that knows no such mark, one would be an error.
    """

    def note(test: Test) -> Test:
        test.contract_rows = rows  # type: ignore[attr-defined]
        return test

    return note
