"""Columns that the folders of a file say, `year=2024/month=7/`, beside those that are in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from fourfold.data.files import DataFile
from fourfold.data.predicates import may_match, with_types
from fourfold.data.schema import cast_column
from fourfold.errors import OptionError


def filled(in_files: Any, keys: Mapping[str, Any]) -> Any:
    """The schema of the files with the columns of the folders behind; of one that is in both, the files know more."""
    import pyarrow as pa

    return pa.schema([*in_files, *(pa.field(name, type_) for name, type_ in keys.items() if name not in in_files.names)])


def columns_of(batch: Any, said: Sequence[tuple[str, str | None]], columns: Sequence[str], schema: Any) -> Any:
    """The table of these columns: from the batch, from what the folders say, or null where neither has it.

    Raises:
        SchemaConflict: A value does not fit the type of its column.
    """
    import pyarrow as pa

    texts = dict(said)
    arrays = []
    for name in columns:
        type_ = schema.field(name).type
        if name in batch.schema.names:
            arrays.append(cast_column(batch.column(name), name, type_))
        elif name in texts:
            arrays.append(pa.repeat(key_value(texts[name], type_), batch.num_rows))
        else:
            arrays.append(pa.nulls(batch.num_rows, type_))
    if not arrays:  # a table of no columns has its number of rows nowhere else
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        return table.select([])
    return pa.table(arrays, schema=pa.schema([schema.field(name) for name in columns]))


def key_columns(files: Sequence[DataFile], declared: Any) -> dict[str, Any]:
    """The types of the columns that folders give: as declared, or integers when all values are, else texts.

    Raises:
        OptionError: What a folder says is not of the declared type.
    """
    import pyarrow as pa

    types: dict[str, Any] = {}
    for at, (name, _) in enumerate(files[0].keys if files else ()):
        if declared is not None and name in declared.names:
            types[name] = declared.field(name).type
            continue
        values = [value for file in files if (value := file.keys[at][1]) is not None]
        types[name] = pa.int64() if values and all(_is_integer(value) for value in values) else pa.string()
    seen: set[tuple[str, str | None]] = set()
    for file in files:
        for name, value in file.keys:
            if (name, value) in seen:
                continue
            seen.add((name, value))
            try:
                key_value(value, types[name])
            except pa.ArrowException as error:
                raise OptionError(
                    f"{file.path} lies in a folder {name}={value}, which is no {types[name]}: {error}"
                ) from error
    return types


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and str(int(text)) == text and abs(int(text)) < 1 << 63


def key_value(text: str | None, type_: Any) -> Any:
    """What a folder says, as a scalar of Arrow."""
    import pyarrow as pa

    return pa.scalar(text, pa.string()).cast(type_)


def files_that_match(files: Sequence[DataFile], keys: Mapping[str, Any], where: Any, schema: Any = None) -> list[DataFile]:
    """The files of which rows may fulfil an expression, by what their folders say: none is opened for that.

    Args:
        files: All of them.
        keys: The types of the columns that folders give, of those that are in no file.
        where: The expression; None for none.
        schema: Of files and folders; None when no file was opened yet.
    """
    import pyarrow as pa

    if where is None or not keys:
        return list(files)
    if schema is None:
        schema = with_types(where, pa.schema(list(keys.items())))
    if schema is None:
        return list(files)
    folders = list(dict.fromkeys(file.keys for file in files))  # many files are in one
    kept = {folders[at] for at in may_match(where, [said_by(folder, keys) for folder in folders], schema)}
    return [file for file in files if file.keys in kept]


def said_by(folder: Sequence[tuple[str, str | None]], keys: Mapping[str, Any]) -> Any:
    """What folders say of all rows in them, as an expression."""
    import pyarrow.compute as pc

    said = pc.scalar(True)
    for name, text in folder:
        if name in keys:
            column = pc.field(name)
            said &= column.is_null() if text is None else column == key_value(text, keys[name])
    return said
