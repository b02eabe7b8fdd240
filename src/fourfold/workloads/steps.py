"""What users say of a step, checked, and made into one: for datasets and for frames in clusters alike."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fourfold.data.draw import Draw
from fourfold.data.kinds import check_kind
from fourfold.data.predicates import expression_of
from fourfold.data.schema import declared
from fourfold.data.steps import Filter, MapBatches, Select
from fourfold.errors import OptionError, OptionTypeError
from fourfold.system.machine import user_name_of
from fourfold.workloads.models import Model
from fourfold.workloads.predict import Predict
from fourfold.workloads.transform import Transform


def selected(columns: Sequence[str]) -> Select:
    """See `Dataset.select`."""
    names = names_of("columns", columns)
    if not names:
        raise OptionError("select([]) keeps no column: name at least one")
    return Select(names)


def names_of(option: str, value: Any) -> list[str]:
    """The names of columns that the user gave: a list, or one alone.

    Raises:
        OptionTypeError: They are something else.
    """
    names: list[Any] = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [None]
    if not all(isinstance(name, str) for name in names):
        raise OptionTypeError(f"{option}={value!r} must be a list of names")
    return names


def filtered(condition: Any, batch_format: str) -> Filter:
    """See `Dataset.filter`."""
    import pyarrow.compute as pc

    condition = expression_of(condition)
    if not isinstance(condition, pc.Expression) and not callable(condition):
        raise OptionTypeError(
            f"filter({condition!r}): give an expression of pyarrow.compute, a list of conditions such as [('x', '>', 3)], or "
            "a function of a batch"
        )
    return Filter(condition, check_kind("batch_format", batch_format))


def mapped(fn: Callable[..., Any], init: tuple[Any, ...], batch_size: int | str, batch_format: str, schema: Any) -> MapBatches:
    """See `Dataset.map_batches`."""
    if not callable(fn):
        raise OptionTypeError(f"fn={fn!r} must be a function of one batch, or a class; it is of type {type(fn).__name__}")
    if not isinstance(init, tuple):
        raise OptionTypeError(f"init={init!r} must be a tuple of arguments, such as init=({init!r},)")
    if init and not isinstance(fn, type):
        raise OptionError(f"init={init!r} is for classes; {user_name_of(fn)} is a function: use functools.partial")
    return MapBatches(fn, init, check_kind("batch_format", batch_format), batch_rows(batch_size), declared(schema))


def transformed(fitted: Any, dense: bool) -> Transform:
    """See `Dataset.transform`."""
    return Transform(fitted, dense)


def predicted(
    model: Any,
    *,
    method: str = "predict",
    keep: Sequence[str] | None = None,
    name: str | None = None,
    init: tuple[Any, ...] = (),
    batch_size: int | str = "auto",
    batch_format: str = "pandas",
    size_of: Callable[[Any], Any] | None = None,
    dedupe: Sequence[str] = (),
) -> Predict:
    """See `Dataset.predict`."""
    if size_of is not None and not callable(size_of):
        raise OptionTypeError(f"size_of={size_of!r} must be a function that gives a size for each row of a batch")
    keep = None if keep is None else names_of("keep", keep)
    dedupe = names_of("dedupe", dedupe)
    kind = check_kind("batch_format", batch_format)
    return Predict(Model(model, init), method, keep, name, batch_rows(batch_size), kind, size_of, dedupe)


def drawn(test: float, seed: int, by: str | None, name: str = "test") -> tuple[Draw, Draw]:
    """Those that are not drawn and those that are: see `Dataset.split`."""
    if isinstance(test, bool) or not isinstance(test, int | float):
        raise OptionTypeError(f"{name}={test!r} must be a number from 0 to 1")
    if not 0 <= test <= 1:
        raise OptionError(f"{name}={test!r} must be from 0 to 1: a share of the rows")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise OptionTypeError(f"seed={seed!r} must be a whole number from 0 up")
    return Draw(test, 1.0, seed, by), Draw(0.0, test, seed, by)


def batch_rows(batch_size: Any) -> int | None:
    """The most rows of a call, None for "auto"."""
    if batch_size == "auto":
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise OptionTypeError(f'batch_size={batch_size!r} must be a number of rows or "auto"')
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size} must be at least 1")
    return batch_size
