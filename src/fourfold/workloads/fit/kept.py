"""Rows that are wanted again, as files on the machine where they were made: each of its workers maps them into its memory.

folder/
  3-0-1.X.npy          piece 3, view 0, batch 1: an array; of a csr matrix X.data.npy, X.indices.npy, X.indptr.npy, X.shape.npy
  3-0-1.y.npy  3-0-1.weight.npy
  3-0.done             how many batches there are; written last, so what has none is not there
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fourfold.workloads.fit.contract import Rows


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
        return Path(tempfile.gettempdir(), f"fourfold-fit-{os.getuid()}-{self.name}")

    def forget(self) -> None:
        """Remove what this machine keeps."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def find(self, piece: int, view: int, first: int | None) -> Iterator[Rows] | None:
        """The rows of a piece, batch by batch; None when this machine has not kept them."""
        try:
            n_batches = int(Path(self.folder, f"{piece}-{view}.done").read_text())
        except FileNotFoundError:
            return None
        return self._batches(f"{piece}-{view}", n_batches, first)

    def _batches(self, stem: str, n_batches: int, first: int | None) -> Iterator[Rows]:
        for at in range(n_batches):
            X, y, weight = (_loaded(self.folder, f"{stem}-{at}.{name}") for name in Rows._fields[:3])
            yield Rows(X, y, weight, first)
            first = None if first is None else first + int(X.shape[0])

    def keep(self, piece: int, view: int, at: int, rows: Rows) -> None:
        """Keep one batch. Another worker may do so at the same time: both write the same."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for name, value in zip(Rows._fields[:3], rows, strict=False):
            if value is not None:
                _save(self.folder, f"{piece}-{view}-{at}.{name}", value)

    def kept(self, piece: int, view: int, n_batches: int) -> None:
        """All batches of a piece are there."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _put(self.folder, f"{piece}-{view}.done", lambda file: file.write(str(n_batches).encode()))


def _save(folder: Path, name: str, value: Any) -> None:
    import numpy as np

    parts = {name: value}
    if hasattr(value, "tocsr"):
        shape = np.array(value.shape)
        parts = {f"{name}.data": value.data, f"{name}.indices": value.indices, f"{name}.indptr": value.indptr}
        parts[f"{name}.shape"] = shape
    for each, array in parts.items():
        _put(folder, f"{each}.npy", lambda file, array=array: np.save(file, array, allow_pickle=array.dtype == object))


def _put(folder: Path, name: str, write: Any) -> None:
    """Write a file that is there whole or not at all."""
    handle, path = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "wb") as file:
        write(file)
    os.replace(path, folder / name)


def _loaded(folder: Path, name: str) -> Any:
    import numpy as np

    def array(part: str) -> Any:
        path = folder / f"{part}.npy"
        try:
            return np.load(path, mmap_mode="r")
        except ValueError:  # objects, such as texts of a target, cannot be mapped
            return np.load(path, allow_pickle=True)

    if (folder / f"{name}.data.npy").exists():
        from scipy.sparse import csr_matrix

        data, indices, indptr, shape = (array(f"{name}.{part}") for part in ("data", "indices", "indptr", "shape"))
        return csr_matrix((data, indices, indptr), shape=tuple(int(each) for each in shape), copy=False)
    return array(name) if (folder / f"{name}.npy").exists() else None
