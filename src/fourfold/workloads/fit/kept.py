"""Rows that are wanted again, as files on the machine where they were made: each of its workers maps them into its memory.

folder/
  3-0-1.rows     piece 3, view 0, batch 1: what arrays there are, as JSON, then their bytes
  3-0.done       how many batches there are; written last, so what has none is not there

An iterative fit opens all of them in each iteration. NumPy's own files, one for each array, took as long to open as the work
on them (0.5 M × 28 in 28 pieces); these take a ninth of it.
"""

import json
import mmap
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fourfold.workloads.fit.contract import Rows

ALIGNED = 64
"""Arrays begin at multiples of so many bytes, a line of the cache."""


class Kept:
    """What the workers of one machine keep of one fit. It travels by its name.

    Args:
        name: Of the fit: no other one has it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def folder(self) -> Path:
        """On this machine. Only its owner can read it."""
        return Path(self._folder)

    @property
    def _folder(self) -> str:
        return os.path.join(tempfile.gettempdir(), f"fourfold-fit-{os.getuid()}-{self.name}")

    def forget(self) -> None:
        """Remove what this machine keeps."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def find(self, piece: int, view: int, first: int | None) -> Iterator[Rows] | None:
        """The rows of a piece, batch by batch; None when this machine has not kept them."""
        stem = os.path.join(self._folder, f"{piece}-{view}")
        try:
            with open(f"{stem}.done", "rb") as file:
                n_batches = int(file.read())
        except FileNotFoundError:
            return None
        return _batches(stem, n_batches, first)

    def keep(self, piece: int, view: int, at: int, rows: Rows) -> None:
        """Keep one batch. Another worker may do so at the same time: both write the same."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _put(self.folder, f"{piece}-{view}-{at}.rows", lambda file: _write(file, rows))

    def kept(self, piece: int, view: int, n_batches: int) -> None:
        """All batches of a piece are there."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _put(self.folder, f"{piece}-{view}.done", lambda file: file.write(str(n_batches).encode()))


def _put(folder: Path, name: str, write: Any) -> None:
    """Write a file that is there whole or not at all."""
    handle, path = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "wb") as file:
        write(file)
    os.replace(path, folder / name)


def _batches(stem: str, n_batches: int, first: int | None) -> Iterator[Rows]:
    for at in range(n_batches):
        with open(f"{stem}-{at}.rows", "rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        rows = _read(whole)._replace(first=first)
        yield rows
        first = None if first is None else first + rows.n_rows


# ---- one file ---------------------------------------------------------------------------------------------------------------


def _write(file: Any, rows: Rows) -> None:
    import numpy as np

    sparse, arrays = None, {name: value for name, value in zip(Rows._fields[:3], rows, strict=False) if value is not None}
    if hasattr(rows.X, "tocsr"):
        sparse = rows.X.shape
        arrays = {"data": rows.X.data, "indices": rows.X.indices, "indptr": rows.X.indptr} | arrays
        del arrays["X"]
    told: list[Any] = []
    blobs: list[Any] = []
    begin = 0
    for name, array in arrays.items():
        is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        if array.dtype.hasobject:  # such as texts of a target
            dtype = None
            blobs.append(pickle.dumps(array, protocol=5))
        else:
            dtype = array.dtype.str
            blobs.append(np.ascontiguousarray(array.T if is_fortran else array))
        told.append([name, dtype, array.shape, "F" if is_fortran else "C", begin])
        begin = _aligned(begin + memoryview(blobs[-1]).nbytes)
    head = json.dumps({"sparse": sparse, "arrays": told}).encode()
    file.write(len(head).to_bytes(8, "little") + head)
    for blob, (*_, begin) in zip(blobs, told, strict=True):
        file.write(bytes(_aligned(8 + len(head)) + begin - file.tell()))
        file.write(memoryview(blob).cast("B") if memoryview(blob).nbytes else b"")
    file.write(b"\0")  # where the last array has no bytes, its place is in the file all the same


def _read(whole: mmap.mmap) -> Rows:
    import numpy as np

    length = int.from_bytes(whole[:8], "little")
    head, start = json.loads(whole[8 : 8 + length]), _aligned(8 + length)
    found: dict[str, Any] = {}
    for name, dtype, shape, order, begin in head["arrays"]:
        if dtype is None:
            found[name] = pickle.loads(memoryview(whole)[start + begin :])
        else:
            found[name] = np.ndarray(shape, dtype, whole, start + begin, order=order)
    if head["sparse"] is None:
        return Rows(found["X"], found.get("y"), found.get("weight"))
    from scipy.sparse import csr_matrix

    X = csr_matrix(tuple(head["sparse"]), dtype=found["data"].dtype)  # to hand it the arrays is to have all of them checked
    X.data, X.indices, X.indptr = found["data"], found["indices"], found["indptr"]
    return Rows(X, found.get("y"), found.get("weight"))


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNED) * ALIGNED
