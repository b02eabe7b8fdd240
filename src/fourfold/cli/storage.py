"""`--storage-option KEY=VALUE`: what the file system behind a URL is told, as `storage_options=` of `scan` and `write`.

    profile=work   secret=123   anon=true   client_kwargs={"endpoint_url": "http://host"}   port:=9000   secret=$NAME

A value is text, also when it looks like a number: a key, or the name of an account, may have digits only. Except `true` and
`false`, and lists and objects of JSON, `[…]` and `{…}`; and all of `KEY:=JSON`. `$NAME` is read from the environment: so it is
in no list of processes, and in no record of a run. Other values that may be secrets are not recorded either.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from fourfold.addresses import keep_out, without_secrets
from fourfold.errors import OptionError


def _option_of_store(name: str, help: str) -> Any:
    return typer.Option(name, metavar="KEY=VALUE", help=help, show_default=False)


StorageOption = Annotated[
    list[str] | None,
    _option_of_store(
        "--storage-option",
        "For file systems of URLs; repeat for more. KEY:=JSON for a number; $NAME is read from the environment.",
    ),
]
WriteStorageOption = Annotated[
    list[str] | None, _option_of_store("--write-storage-option", "For that of the output, where it is another one.")
]
OrderOption = Annotated[
    bool,
    typer.Option(
        "--order/--no-order",
        help="Rows in the order of the input; without it in any order, and small files are put together.",
    ),
]

OF_OPTIONS = frozenset({"client_kwargs", "target_options"})
"""Options that hold options."""

HARMLESS = OF_OPTIONS | frozenset({
    *{"anon", "profile", "region", "region_name", "project", "account_name", "host", "port", "path", "endpoint_url"},
    *{"use_ssl", "requester_pays", "protocol", "target_protocol", "default_block_size", "auto_mkdir"},
})  # fmt: skip
"""Options that are recorded with their values, so that `fourfold resume` can type them again. Any other may be a secret."""

_FROM_ENVIRONMENT = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def storage_of(name: str, texts: Sequence[str] | None) -> dict[str, Any]:
    """The options that `name`, repeated, says.

    Raises:
        OptionError: One is not KEY=VALUE, comes twice, or its variable is not there. No value is in the message.
    """
    options: dict[str, Any] = {}
    for text in texts or ():
        key, sign, value = text.partition("=")
        is_json, key = key.endswith(":"), key.removesuffix(":")
        if not key or not sign:
            raise OptionError(
                f"{name} must be KEY=VALUE, such as profile=work, and one of them has no {'=' if key else 'KEY'}"
            )
        if key in options:
            raise OptionError(f"{name} {key}=… is there twice")
        what, variable = f"{name} {key}", _FROM_ENVIRONMENT.fullmatch(value)
        given = value if variable is None else _from_environment(what, variable[1] or variable[2])
        options[key] = _json(what, given) if is_json else _plain(given) if variable is None else given
        if variable is None and not _is_harmless(key, options[key]):
            keep_out(text, f"{text.partition('=')[0]}=…")
    return options


def _from_environment(what: str, variable: str) -> str:
    if variable not in os.environ:
        raise OptionError(f"{what}: the environment has no {variable}")
    return os.environ[variable]


def _plain(text: str) -> Any:
    """What `KEY=` is followed by."""
    if text in ("true", "false") or text[:1] in ("{", "["):
        with suppress(ValueError):
            return json.loads(text, parse_constant=_refuse)
    return text


def _json(what: str, text: str) -> Any:
    """What `KEY:=` is followed by."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        raise OptionError(f"{what}:=… is no JSON, such as 9000 or null; {what}=… is for texts") from None


def _refuse(constant: str) -> NoReturn:
    """NaN and Infinity, which JSON has not."""
    raise ValueError(constant)


def _is_harmless(key: str, value: Any) -> bool:
    if key not in HARMLESS:
        return False
    if isinstance(value, dict):
        return all(_is_harmless(*each) for each in value.items())
    if key in OF_OPTIONS:  # it should be one, and is a text that may hold anything
        return False
    return not isinstance(value, list) and without_secrets(str(value)) == str(value)


def storage_for(inputs: Sequence[str], texts: Sequence[str] | None) -> dict[str, Any]:
    """The options for a command that reads only.

    Raises:
        OptionError: There are some, and no URL that they are for; or see `storage_of`.
    """
    reading, _ = storage_for_both(inputs, "", texts, None)
    return reading


def storage_for_both(
    inputs: Sequence[str], output: str, texts: Sequence[str] | None, write_texts: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options for what is read and for what is written: those of the former are for both, unless the latter has its own.

    Raises:
        OptionError: There are some, and no URL that they are for; or see `storage_of`.
    """
    from fourfold.data.files import is_url

    options, of_output = storage_of("--storage-option", texts), storage_of("--write-storage-option", write_texts)
    reading = options if any(map(is_url, inputs)) else {}
    writing = of_output or (options if is_url(output) else {})
    if options and not reading and writing is not options:
        raise OptionError(f"--storage-option is for URLs such as s3://bucket/in, and {(*inputs, output)[0]} is none")
    if of_output and not is_url(output):
        raise OptionError(f"--write-storage-option is for URLs such as s3://bucket/out, and {output} is none")
    return reading, writing
