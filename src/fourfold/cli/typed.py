"""What an error of the library says of options, as somebody types it here: `overwrite=True` is `--overwrite`."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
from typing import Any

import typer

OTHER_NAMES = {
    "batch_format": "batch",
    "storage_options": "storage_option",
    "random_state": "seed",
    "n_jobs": "workers",
}
"""Options of the library whose names are others on the command line."""

WRITTEN = {"format": "write_format"}
"""Options of what is read that have the same name in the library as those of what is written, and how these are called here.
They are spoken of as what "cannot be written"."""

OF_OTHERS = {"overwrite": "--overwrite"}
"""Options that errors of commands speak of which do not have them: it is another command that is to be typed."""

_OPTION = re.compile(
    r"""(?<![\w/=&?.'"-])([a-z]\w*)=                          # no parameter of a URL, and no folder of that name
        (True|False|"[^"\s]*"|'[^'\s]*'|                     # what it is,
        -?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]?\d+)?|)           # or nothing, as in "a folder for run="
        (?=[:;,.)]*(?:\s|$))                                # and no name of a file, as in "seed=1.csv"
    """,
    re.VERBOSE,
)


_options: dict[str, Any] = {}
"""Those of the command that runs, by the name of their argument."""


def begin(context: typer.Context) -> None:
    """A command is about to run. Called by the app, before it."""
    commands: dict[str, Any] = getattr(context.command, "commands", {})
    command = commands.get(context.invoked_subcommand or "")
    _options.clear()
    _options.update((each.name, each) for each in getattr(command, "params", ()) if each.param_type_name == "option")


def as_typed(message: str) -> str:
    """A message in which options of the command that runs are written as it takes them; others stay as they are."""

    def typed(found: re.Match[str]) -> str:
        name, text = found[1], found[2]
        is_of_output = message.startswith(" cannot be written", found.end())
        option = _options.get(WRITTEN.get(name, name) if is_of_output else OTHER_NAMES.get(name, name))
        if option is None:
            return OF_OTHERS.get(name, found[0]) if text == "True" else found[0]
        return _typed(option, text) or found[0]

    return _OPTION.sub(typed, message)


def _typed(option: Any, text: str) -> str:
    """An option of the command line with this value, given as Python writes it; "" when it cannot have it."""
    if text in ("", "True"):
        return str(option.opts[0])
    if text == "False":
        return "".join(option.secondary_opts[:1])
    with contextlib.suppress(SyntaxError, ValueError):  # it was in quotes, and is no text of Python
        return f"{option.opts[0]} {shlex.quote(str(ast.literal_eval(text)))}"
    return ""
