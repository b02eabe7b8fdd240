"""Rows that a fit looks at again: files that workers of a machine share."""

import os

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from fourfold.workloads.fit.contract import Rows
from fourfold.workloads.fit.kept import Kept


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = Kept("one")
    found.open()
    yield found
    found.forget()


def keep(kept: Kept, *batches: Rows) -> None:
    new = kept.new(3, 0)
    for rows in batches:
        new.add(rows)
    new.finish()


X = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    "rows",
    [
        Rows(X),
        Rows(np.asfortranarray(X), np.array([1, 2, 3, 4], np.int8), np.ones(4)),
        Rows(X[:, :2], np.array(["a", "b", "cc", ""])),
        Rows(X, np.array(["a", "b", None, 1.5], object), np.ones(4)),
        Rows(X[:0], np.zeros(0), np.zeros(0)),
        Rows(X[:, :0], np.array([True, False, True, True])),
        Rows(X.astype(np.float32)),
        Rows(np.array(["some", "texts", "without", "numbers"], object)),
        Rows(csr_matrix(X), np.arange(4)),
        Rows(csr_matrix((4, 3)), np.arange(4), np.ones(4)),
    ],
    ids=lambda rows: f"{type(rows.X).__name__}{rows.X.dtype}{rows.X.shape}",
)
def test_what_is_kept_comes_back_as_it_was(kept: Kept, rows: Rows) -> None:
    keep(kept, rows, rows)
    first, second = kept.find(3, 0, 10)
    assert (first.first, second.first) == (10, 10 + rows.n_rows)
    for found in (first, second):
        for name in ("X", "y", "weight"):
            mine, theirs = getattr(found, name), getattr(rows, name)
            assert type(mine) is type(theirs)
            if theirs is not None:
                assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
                equal = mine.toarray() == theirs.toarray() if hasattr(mine, "tocsr") else mine == theirs
                assert np.all(equal)


def test_a_piece_that_is_not_kept_whole_is_not_there(kept: Kept) -> None:
    new = kept.new(3, 0)
    new.add(Rows(X))
    assert kept.find(3, 0, None) is None
    new.finish()
    assert [rows.first for rows in kept.find(3, 0, None)] == [None]
    assert kept.find(3, 1, None) is None
    discarded = kept.new(4, 0)
    discarded.add(Rows(X))
    discarded.discard()
    assert kept.find(4, 0, None) is None
    assert os.listdir(kept.folder) == ["3-0"]


def test_rows_are_mapped_and_not_to_be_changed(kept: Kept) -> None:
    keep(kept, Rows(X, np.ones(4, np.int8)), Rows(X))
    for rows in kept.find(3, 0, 0):
        assert not rows.X.flags.writeable
        assert not rows.X.flags.owndata
        assert rows.X.ctypes.data % 64 == 0


def test_what_a_view_shares_with_its_base_is_not_written_again(kept: Kept) -> None:
    base = Rows(np.arange(30000.0).reshape(10000, 3), np.arange(10000), np.ones(10000))
    keep(kept, base, base)
    new = kept.new(3, 1, base=0)
    for before in kept.find(3, 0, 5):
        new.add(before._replace(y=-before.y), before)
    new.finish()
    size, of_base = (os.stat(os.path.join(kept.folder, name)).st_size for name in ("3-1", "3-0"))
    assert size < of_base / 4
    for rows, first in zip(kept.find(3, 1, 5), (5, 10005), strict=True):
        assert np.array_equal(rows.X, base.X)
        assert np.array_equal(rows.y, -base.y)
        assert np.array_equal(rows.weight, base.weight)
        assert rows.first == first
    os.unlink(os.path.join(kept.folder, "3-0"))
    assert kept.find(3, 1, 5) is None
