"""A model as bytes: what pickle writes, and its large arrays beside that, which are copied once and come here as they are."""

import pickle
from typing import Any, NamedTuple

from fourfold.execute.pickling import dump_whole

BESIDE_BYTES = 1 << 16
"""Bytes of an array from which it is kept beside. Smaller: models of a few numbers become many parts. Larger: more is copied
three times on its way, at about 1 GB a second. Not measured."""


class Pickled(NamedTuple):
    """A model that is not loaded.

    Attributes:
        head: The pickle.
        arrays: What is beside it: arrays of bytes.
    """

    head: bytes
    arrays: tuple[Any, ...] = ()

    @classmethod
    def of(cls, estimator: Any) -> "Pickled":
        """A model, by the name of its class, unless that is one of the user's script, which other programs have not."""
        beside: list[pickle.PickleBuffer] = []

        def stays_within(buffer: pickle.PickleBuffer) -> bool:
            if buffer.raw().nbytes < BESIDE_BYTES:
                return True
            beside.append(buffer)
            return False

        try:
            head = pickle.dumps(estimator, protocol=5, buffer_callback=stays_within)
        except Exception:
            return cls(dump_whole(estimator))
        return cls(dump_whole(estimator)) if b"__main__" in head else cls(head, _as_arrays(beside))

    def load(self) -> Any:
        """The model, with arrays of its own: it may be changed."""
        return pickle.loads(self.head, buffers=[bytearray(each) for each in self.arrays])

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return len(self.head) + sum(memoryview(each).nbytes for each in self.arrays)


def _as_arrays(buffers: list[pickle.PickleBuffer]) -> tuple[Any, ...]:
    """Copies: the next fit may write into an array that the class of the estimator keeps for all of them."""
    import numpy as np

    return tuple(np.frombuffer(each.raw(), np.uint8).copy() for each in buffers)
