"""A matrix of mostly zeros as one column of a table: from the `transform` that made it to the `predict` that takes it.

    scipy's csr ──column_of──> list<index, value>, of as many bytes ──slices, filters, orders──> matrix_of ──> scipy's csr

It never leaves the worker that made it, and no function of the user and no file gets it: see `check_dense`.
"""

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from fourfold.errors import OptionTypeError

MOST_NAMES = 10_000
"""Columns of a matrix whose names are kept, for models that know names. More: a DataFrame of so many takes pandas longer than
the model. Not measured."""


@cache
def _sparse_type() -> Any:
    """The class of such a column's type. Made when it is first needed: Arrow is not imported before that."""
    import pyarrow as pa

    class SparseType(pa.ExtensionType):  # type: ignore[misc]
        """The type of a column whose values are rows of a matrix. Arrow keeps its text, and makes it anew of that."""

        def __init__(self, storage: Any, width: int, form: str, maker: str, names: Sequence[str] | None) -> None:
            self.width, self.form, self.maker = width, form, maker
            self.names = None if names is None else tuple(names)
            super().__init__(storage, "fourfold.sparse")

        def __arrow_ext_serialize__(self) -> bytes:
            return json.dumps([self.width, self.form, self.maker, self.names]).encode()

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Any:
            return cls(storage, *json.loads(serialized))

    return SparseType


@lru_cache(maxsize=8)
def _type_of(storage: Any, width: int, form: str, maker: str, names: tuple[str, ...] | None) -> Any:
    return _sparse_type()(storage, width, form, maker, names)


def is_sparse(type_: Any) -> bool:
    """Whether this is the type of such a column."""
    return isinstance(type_, _sparse_type())


def sparse_columns(schema: Any) -> list[str]:
    """The names of such columns."""
    return [field.name for field in schema if is_sparse(field.type)]


def names_within(type_: Any) -> tuple[str, ...]:
    """The names of the matrix's columns; none of another type, or where nobody knows them."""
    return (type_.names or ()) if is_sparse(type_) else ()


def column_of(matrix: Any, maker: str, names: tuple[str, ...] | None) -> Any:
    """A column that holds the rows of a sparse matrix of scipy; nothing is copied where it is a csr.

    Args:
        matrix: Of any form.
        maker: Who made it, for messages.
        names: Of the matrix's columns; None when there are none, or more than MOST_NAMES.
    """
    import pyarrow as pa

    rows = matrix.tocsr()
    cells = pa.StructArray.from_arrays([pa.array(rows.indices), pa.array(rows.data)], ["index", "value"])
    kind = pa.ListArray if rows.indptr.dtype.itemsize == 4 else pa.LargeListArray
    lists = kind.from_arrays(pa.array(rows.indptr), cells)
    return pa.ExtensionArray.from_storage(_type_of(lists.type, rows.shape[1], type(rows).__name__, maker, names), lists)


def matrix_of(table: Any, columns: Sequence[str]) -> Any:
    """The matrix that these sparse columns of a table hold, one beside the other.

    Its arrays are its own: some estimators sort them where they are.
    """
    from scipy import sparse

    blocks = [_matrix(table.column(name)) for name in columns]
    return blocks[0] if len(blocks) == 1 else sparse.hstack(blocks, format="csr")


def _matrix(column: Any) -> Any:
    from scipy import sparse

    parts = [_rows(chunk.storage, column.type) for chunk in column.chunks]
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


def _rows(lists: Any, type_: Any) -> Any:
    from scipy import sparse

    offsets = lists.offsets.to_numpy()
    index, value = (lists.values.field(at).to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]].copy() for at in (0, 1))
    return getattr(sparse, type_.form)((value, index, offsets - offsets[0]), shape=(len(lists), type_.width))


def check_dense(schema: Any, what: str) -> None:
    """Refuse a sparse column where a table is wanted.

    Args:
        schema: Of the table.
        what: Wants it, for the message.

    Raises:
        OptionTypeError: There is one.
    """
    for name in sparse_columns(schema):
        type_ = schema.field(name).type
        raise OptionTypeError(
            f"{type_.maker} gives a sparse matrix of {type_.width:,} columns, and only predict takes it as it is. For {what} "
            "write transform(…, dense=True), or let it give dense columns (sparse_output=False, sparse_threshold=0)",
            is_of_plan=True,
        )
