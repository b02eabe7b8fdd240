"""Which columns a table has: declared by the user, or what all batches have in common.

A batch may be of a narrower type than the others (only nulls, integers where others have fractions): it is widened. Anything
else is an error that names the column and both types.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fourfold.errors import OptionError, OptionTypeError
from fourfold.options import did_you_mean


class SchemaConflict(TypeError):
    """Two batches that cannot be in one table; `column` says where they differ, None when their columns have other names."""

    def __init__(self, message: str, column: str | None = None) -> None:
        super().__init__(message)
        self.column = column


def declared(schema: Any) -> Any:
    """The Arrow schema of what the user wrote: a schema, or a dict of names and types ("int64", `pa.int64()`, `int`).

    Raises:
        OptionTypeError: It is no schema.
    """
    import pyarrow as pa

    if schema is None or isinstance(schema, pa.Schema):
        return schema
    if isinstance(schema, Mapping):
        return pa.schema([pa.field(str(name), _type(name, each)) for name, each in schema.items()])
    raise OptionTypeError(
        f"schema={schema!r} must be a pyarrow schema, or a dict of names and types, such as {{'x': 'float64'}}"
    )


_OF_PYTHON: dict[Any, str] = {int: "int64", float: "float64", str: "string", bool: "bool", bytes: "binary"}


def _type(name: Any, type_: Any) -> Any:
    import pyarrow as pa

    if isinstance(type_, pa.DataType):
        return type_
    word = _OF_PYTHON.get(type_, type_)
    try:
        if word in ("timestamp", "datetime"):
            return pa.timestamp("us")
        return pa.type_for_alias(word)
    except (ValueError, TypeError):
        raise OptionTypeError(
            f"schema[{name!r}]={type_!r} is no type: write a pyarrow type, or its name, such as 'int64', 'float64', 'string'"
        ) from None


def unified(schemas: list[Any]) -> Any:
    """The schema that all of these fit into.

    Raises:
        SchemaConflict: There is none.
    """
    import pyarrow as pa

    first = schemas[0]
    for other in schemas[1:]:
        if other.equals(first):
            continue
        check_names(other.names, first.names)
        fields = [pa.field(field.name, common(field.name, field.type, other.field(field.name).type)) for field in first]
        first = pa.schema(fields)
    return first


def types_of_files(schemas: Iterable[tuple[str, Any]], declared: Any) -> dict[str, Any]:
    """The type of each column of files: the declared one, or that which holds the values of all.

    Args:
        schemas: Of each file, with its path.
        declared: None, or the columns that the user has said.

    Raises:
        OptionError: Two files do not go together.
    """
    types: dict[str, Any] = {}
    first: dict[str, str] = {}
    seen: list[Any] = []
    for path, schema in schemas:
        if seen and schema.equals(seen[-1]):
            continue
        seen.append(schema)
        for field in schema:
            name = field.name
            if declared is not None and name in declared.names:
                types[name] = declared.field(name).type
                continue
            try:
                types[name] = common(name, types.get(name, field.type), field.type)
            except SchemaConflict as error:
                raise OptionError(
                    f"column {name!r} is {field.type} in {path}, and {types[name]} in {first[name]}: declare its type, "
                    f"such as schema={{{name!r}: 'string'}}"
                ) from error
            first.setdefault(name, path)
    return {name: _without_views(type_) for name, type_ in types.items()}


def _without_views(type_: Any) -> Any:
    """Texts as all of Arrow takes them: rows of views cannot be filtered, and not be compared."""
    import pyarrow as pa

    return {"string_view": pa.string(), "binary_view": pa.binary()}.get(str(type_), type_)


def check_declared(declared: Any, names: Sequence[str]) -> None:
    """Raise OptionError when a column is declared that no file and no folder has."""
    for name in declared.names if declared is not None else ():
        if name not in names:
            raise OptionError(
                f"schema= names {name!r}{did_you_mean(name, [*names])}, and the columns are: {', '.join(map(repr, names))}"
            )


def check_names(names: list[str], wanted: list[str], what: str = "another batch has") -> None:
    """Raise SchemaConflict unless both have the same columns, in whatever order."""
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    if missing or unknown:
        said = [f"{word} {', '.join(map(repr, them))}" for word, them in (("misses", missing), ("has also", unknown)) if them]
        raise SchemaConflict(f"its columns differ from those that {what}: it {' and '.join(said)}")


def common(name: str, one: Any, other: Any) -> Any:
    """The type that holds the values of both.

    Raises:
        SchemaConflict: There is none.
    """
    import pyarrow as pa

    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        values = common(name, *(each.value_type if pa.types.is_dictionary(each) else each for each in (one, other)))
        both = pa.types.is_dictionary(one) and pa.types.is_dictionary(other)
        return pa.dictionary(pa.int32(), values) if both else values
    for widths in _WIDTHS:
        if {str(one), str(other)} <= {*widths}:
            return max(one, other, key=lambda each: widths.index(str(each)))
    if (_is_integer(one) and pa.types.is_floating(other)) or (pa.types.is_floating(one) and _is_integer(other)):
        return pa.float64()  # whatever their widths, so that the order in which three of them come decides nothing
    if _is_number(one) == _is_number(other) and not _is_text(one) and not _is_text(other):
        with contextlib.suppress(pa.ArrowException, TypeError):
            schemas = [pa.schema([("", one)]), pa.schema([("", other)])]
            both = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
            if not any(_loses_digits(each, both) for each in (one, other)):
                return both
    raise SchemaConflict(f"column {name!r} is {other} here and {one} in another batch: declare its type with schema=", name)


def _loses_digits(type_: Any, wider: Any) -> bool:
    """Whether decimals, however deep within it, are floats in the type that Arrow calls wider."""
    import pyarrow as pa

    if pa.types.is_decimal(type_):
        return bool(pa.types.is_floating(wider))
    within = _within(wider)
    return any(name in within and _loses_digits(each, within[name]) for name, each in _within(type_).items())


def _within(type_: Any) -> dict[str, Any]:
    """The types that a type is made of, by name: of the fields of a record, and of what a list or a map holds."""
    import pyarrow as pa

    if pa.types.is_struct(type_):
        return {field.name: field.type for field in type_}
    return {name: getattr(type_, name) for name in ("value_type", "key_type", "item_type") if hasattr(type_, name)}


_WIDTHS = (("string_view", "string", "large_string"), ("binary_view", "binary", "large_binary"))
"""Types of the same values, the one that holds all last."""


def _is_integer(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(type_))


def _is_number(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _is_text(type_: Any) -> bool:
    import pyarrow as pa

    return any(
        test(type_) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def fitted(table: Any, schema: Any) -> Any:
    """The table with the columns of the schema, in its order and types.

    Raises:
        SchemaConflict: Its columns have other names, or a value does not fit its column's type.
    """
    import pyarrow as pa

    if table.schema.equals(schema):
        return table
    check_names(table.column_names, schema.names, "are declared")
    columns = [cast_column(table.column(field.name), field.name, field.type) for field in schema]
    return pa.table(columns, schema=schema)


def cast_column(column: Any, name: str, type_: Any) -> Any:
    """A column with this type.

    Raises:
        SchemaConflict: A value does not fit it.
    """
    import pyarrow as pa

    if column.type.equals(type_):
        return column
    try:
        return column.cast(type_)
    except pa.ArrowException as error:
        raise SchemaConflict(f"column {name!r} is {column.type} and does not fit {type_}: {error}", name) from error
