"""A file of kept rows: arrays as they lie in memory, one after the other, and at its end what they are.

array │ array │ … │ {"base": 0, "batches": [{"X": …, "y": …, "weight": …}, …]} │ its size, 8 bytes

What a step has left as it was is not kept twice: its place says that the file of the view before, the base, has it.
"""

import contextlib
import errno
import itertools
import json
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fourfold.system.seams import hit
from fourfold.workloads.fit.contract import Rows

ALIGNED = 64
"""Bytes at whose multiples an array begins: a line of the cache. Smaller: some processors read slower. Larger: holes."""

NAMES = Rows._fields[:3]

OF_BASE = "of the base"


class Keeping:
    """A file of kept rows that is being written. Another worker may write the same one: both write the same.

    Args:
        folder: Where it appears, when it is whole.
        name: Under which name.
        base: None, or the view whose rows these were before: what they share with it is not written again.
    """

    def __init__(self, folder: str, name: str, base: int | None = None) -> None:
        self._folder, self._name, self._base = folder, name, base
        self._batches: list[dict[str, Any]] = []
        handle, self._path = self._told(lambda: tempfile.mkstemp(dir=folder))
        self._file = os.fdopen(handle, "wb")

    def add(self, rows: Rows, before: Rows | None = None) -> None:
        """One more batch.

        Args:
            rows: What is kept.
            before: The same batch of the base.
        """
        batch = {name: value for name, value in zip(NAMES, rows, strict=False) if value is not None}
        self._batches.append({name: self._put(value, getattr(before, name, None)) for name, value in batch.items()})

    def finish(self) -> None:
        """All batches of the piece are there."""
        footer = json.dumps({"base": self._base, "batches": self._batches}).encode()
        self._told(lambda: self._file.write(footer + len(footer).to_bytes(8, "little")))
        self._told(self._file.close)
        os.replace(self._path, os.path.join(self._folder, self._name))

    def discard(self) -> None:
        """The piece has failed."""
        with contextlib.suppress(OSError):  # what was not written yet cannot be: that is known already
            self._file.close()
        Path(self._path).unlink(missing_ok=True)

    def _put(self, value: Any, before: Any) -> Any:
        if value is before:
            return OF_BASE
        if hasattr(value, "tocsr"):
            return {
                "shape": list(map(int, value.shape)),
                "form": type(value).__name__,
                "parts": [self._array(part) for part in (value.data, value.indices, value.indptr)],
            }
        return self._array(value)

    def _array(self, array: Any) -> list[Any]:
        """Where it is, and what: see `_array_of`."""
        if array.dtype == object:
            content: Any = pickle.dumps(array, protocol=5)
            about = ["", [len(content)], ""]
        else:
            order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
            content = (array.T if order == "F" else array).reshape(-1).view("u1")
            about = [array.dtype.str, list(array.shape), order]
        begin = -self._file.tell() % ALIGNED + self._file.tell()
        self._told(lambda: self._write(begin, content))
        return [begin, *about]

    def _write(self, begin: int, content: Any) -> None:
        hit("kept.write")
        self._file.write(bytes(begin - self._file.tell()))
        self._file.write(content)

    def _told(self, do: Any) -> Any:
        try:
            return do()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"there is no room in {tempfile.gettempdir()} on {socket.gethostname()} for the rows that this fit looks at "
                "again and again: make room, or set TMPDIR to a folder of a larger disk",
            ) from None


def batches_in(
    data: Any, first: int | None, base: Callable[[int, Sequence[str]], Iterator[Rows] | None], names: Sequence[str] = NAMES
) -> Iterator[Rows] | None:
    """The rows in a file; None when they are in another one, too, that is not there.

    Args:
        data: The file.
        first: The number of the first row.
        base: Gives the rows of another view of the same piece, as far as these are wanted of them.
        names: What is wanted: the rest is None.
    """
    size = int.from_bytes(data[-8:], "little")
    about = json.loads(data[-8 - size : -8])
    if about["base"] is None:
        return _batches(data, about["batches"], first, itertools.repeat(None), names)
    shared = [name for name in names if any(batch.get(name) == OF_BASE for batch in about["batches"])]
    before = base(about["base"], shared)
    return None if before is None else _batches(data, about["batches"], first, before, names)


def _batches(
    data: Any, batches: Sequence[Any], first: int | None, before: Iterator[Rows | None], names: Sequence[str]
) -> Iterator[Rows]:
    for batch, shared in zip(batches, before, strict=False):
        values = {
            name: getattr(shared, name) if batch.get(name) == OF_BASE else _value_of(data, batch.get(name)) for name in names
        }
        rows = Rows(**{"X": None, **values}, first=first)
        yield rows
        first = None if first is None else first + rows.n_rows


def _value_of(data: Any, about: Any) -> Any:
    if isinstance(about, dict):
        from scipy import sparse

        values, indices, indptr = (_array_of(data, *part) for part in about["parts"])
        matrix = getattr(sparse, about["form"])(tuple(about["shape"]), dtype=values.dtype)
        matrix.data, matrix.indices, matrix.indptr = values, indices, indptr  # to hand it these is to have all of them checked
        return matrix
    return None if about is None else _array_of(data, *about)


def _array_of(data: Any, begin: int, dtype: str, shape: Sequence[int], order: str) -> Any:
    import numpy as np

    if not dtype:  # objects, such as texts of a target, cannot be mapped
        return pickle.loads(data[begin : begin + shape[0]])
    return np.ndarray(tuple(shape), np.dtype(dtype), data, begin, order="F" if order == "F" else "C")
