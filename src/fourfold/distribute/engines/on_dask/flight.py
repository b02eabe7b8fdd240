"""A ticket on its way as a task of Dask."""

from typing import Any, NamedTuple

from fourfold.distribute.orders import Stored


class Flight(NamedTuple):
    """A ticket on its way, and what was stored for it when it was sent.

    Attributes:
        future: Its task.
        name: Of its order.
        key: Of its program.
        program: Where that is, with the function of a task.
        cargo: Where what travels along is.
        was_whole: All of that was there, as far as Dask had said. Otherwise its loss tells nothing of it.
        is_later: What was stored had been lost before, and stored again.
        alone: No other was on its way, and none is sent before it is back.
    """

    future: Any
    name: str
    key: str
    program: Stored
    cargo: Any
    was_whole: bool = True
    is_later: bool = False
    alone: bool = False


def is_lost_data(error: BaseException) -> bool:
    """Whether Dask says by this that it has lost what a task needs."""
    return type(error).__name__ in ("FutureCancelledError", "CancelledError", "FuturesCancelledError")
