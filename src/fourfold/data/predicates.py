"""Conditions on rows as expressions of Arrow: checked before anything runs, and asked what they can say without the rows.

[("x", ">", 3)] ──> pc.field("x") > 3 ──checked──> which columns it looks at
                                      └─may_match─> False of year == 2013, or of 0 <= x <= 2: these rows need not be read
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fourfold.errors import OptionError, OptionTypeError
from fourfold.options import did_you_mean
from fourfold.shown import REPR_CHARS, clip

TRIALS = 2000
"""How many types are tried for columns of files that nobody has opened. Fewer: more files are opened in vain, when a condition
has five such columns. More: `scan` may take longer than a tenth of a second."""

BY_PLACE = "FieldPath("
"""In the text of an expression that speaks of the n-th column: which one that is depends on the columns that are read."""


def expression_of(condition: Any) -> Any:
    """The expression of a list of conditions as pandas and Arrow take it; anything else as it is.

    `[("x", ">", 3), ("y", "in", [1, 2])]`: all of them. A list of such lists: all of one of them.

    Raises:
        OptionTypeError: It is a list, but not of conditions.
    """
    if not isinstance(condition, list):
        return condition
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.filters_to_expression(condition)
    except (ValueError, TypeError, IndexError, pa.ArrowException) as error:
        raise OptionTypeError(
            f"filter={condition!r} must be a list of conditions (column, operator, value), or of such lists, such as "
            f"[('x', '>', 3), ('y', 'in', [1, 2])]: {error}"
        ) from error


def check_expression(expression: Any, schema: Any) -> None:
    """See that an expression can be evaluated on such a table.

    Raises:
        OptionError: There is no such column, its type is another, or no boolean comes of it.
    """
    import pyarrow as pa

    try:
        type_ = _bound(expression, schema)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        name, shown = _missing(error), _text(expression)
        if name is None:
            types = ", ".join(f"{field.name}: {field.type}" for field in schema if field.name in str(expression))
            hint = ". Compare decimals with decimal.Decimal" if "Precision is not great enough" in str(error) else ""
            raise OptionError(f"filter {shown}: {str(error).splitlines()[0]}{hint}. Columns: {types}") from error
        raise OptionError(
            f"filter {shown}: there is no column {name!r}{did_you_mean(name, schema.names)}. Columns: "
            f"{', '.join(schema.names)}"
        ) from error
    if not pa.types.is_boolean(type_):
        raise OptionError(f"filter {_text(expression)}: gives {type_}, and not a boolean for each row")


def _text(expression: Any) -> str:
    return clip(" ".join(str(expression).split()), REPR_CHARS)


def columns_of_expression(expression: Any, schema: Any) -> list[str] | None:
    """The columns of this schema that it looks at; None when nobody can tell.

    Arrow does not say: a column is one that it looks at when without it there is no expression.
    """
    text = str(expression)
    if BY_PLACE in text:
        return None
    near = [name for name in schema.names if name in text]
    used = [name for name in near if not can_be_evaluated(expression, schema.remove(schema.get_field_index(name)))]
    return used if can_be_evaluated(expression, _only(schema, used)) else None


def _only(schema: Any, names: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.schema([schema.field(name) for name in names])


def _bound(expression: Any, schema: Any) -> Any:
    """The type of what comes of it."""
    import pyarrow.dataset as pads

    scanner = pads.Scanner.from_batches(iter(()), schema=schema, columns={"": expression}, use_threads=False)
    return scanner.projected_schema.field(0).type


def can_be_evaluated(expression: Any, schema: Any) -> bool:
    """Whether a table of this schema has what an expression speaks of."""
    import pyarrow as pa

    try:
        _bound(expression, schema)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError):
        return False
    return True


def _missing(error: BaseException) -> str | None:
    """The column that is not there."""
    found = re.match(r"No match for FieldRef\.Name\((.*?)\) in ", str(error), re.DOTALL)
    return found.group(1) if found else None


def may_match(expression: Any, known: Sequence[Any], schema: Any) -> list[int]:
    """The places of those in `known` of which rows may fulfil the expression: each says what all rows of a file have."""
    import pyarrow.dataset as pads
    from pyarrow import fs

    format, files = pads.ParquetFileFormat(), fs.LocalFileSystem()  # nothing is opened: Arrow has this for datasets only
    parts = [format.make_fragment(str(at), files, partition_expression=each) for at, each in enumerate(known)]
    dataset = pads.FileSystemDataset(parts, schema, format, files)
    return sorted(int(part.path) for part in dataset.get_fragments(filter=expression))


def with_types(expression: Any, schema: Any) -> Any:
    """The schema, with columns for all that the expression speaks of besides, of types that suit it; None when none do.

    Of files that nobody has opened yet. What it says of the columns of the schema does not depend on these types.
    """
    import pyarrow as pa

    if BY_PLACE in str(expression):
        return None
    names = list(_unknown(expression, schema))
    types = (pa.int64(), pa.string(), pa.float64(), pa.bool_(), pa.timestamp("us"), pa.date32(), pa.timestamp("us", "UTC"))
    for chosen in itertools.islice(itertools.product(types, repeat=len(names)), TRIALS):
        whole = pa.schema([*schema, *map(pa.field, names, chosen)])
        if can_be_evaluated(expression, whole):
            return whole
    return None


def _unknown(expression: Any, schema: Any) -> Iterator[str]:
    """The columns that it speaks of and the schema has not: Arrow names one at a time, before it looks at types."""
    import pyarrow as pa

    while True:
        try:
            _bound(expression, schema)
        except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
            name = _missing(error)
            if name is None or name in schema.names:
                return
        else:
            return
        yield name
        schema = schema.append(pa.field(name, pa.null()))


def speaks_of_ranges(expression: Any, schema: Any) -> bool:
    """Whether least and greatest values of columns tell where it may be true.

    Of floats they do not tell whether there are NaNs, and Arrow takes them for all there is: `~(x < 5)` would leave out a NaN,
    which is not below 5. So of floats only `x < 5`, joined by "and" and "or", is taken: no NaN fulfils that.
    """
    used = columns_of_expression(expression, schema)
    if used is None:
        return False
    if not any(re.search("float|double", str(schema.field(name).type)) for name in used):
        return True
    return not re.search(r"\w\(|!=|nan|\) (?:==|<|>)|(?:==|<|>|=) \(", str(expression))
