"""Addresses of clusters hold secrets at times: what is printed, logged or raised shows them without.

sc://me:word@host:443/;token=abc;user_id=me   ->   sc://…@host:443/;token=…;user_id=me

Options of file systems do so, too: they travel to workers, and into no file of a run.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

HARMLESS = frozenset({"user_id", "use_ssl", "session_id", "user_agent"})
"""Parameters of an address that are no secrets. Any other one may be: Connect sends it along as a header."""

LITERAL = 4
"""Letters from which on a secret is also looked for alone, as foreign errors may quote it. Fewer: common words would go."""

_ADDRESS = re.compile(r"[\w+.-]+://[^\s'\"]+")
_LOGIN = re.compile(r"(?<=://)[^/?#]+(?=@)")
_PARAMETER = re.compile(r"(?<=[;?&])([\w.-]+)=([^;&]+)")


def without_secrets(text: str, address: str | None = None) -> str:
    """The text with … in place of logins and of the values of parameters.

    Args:
        text: An address, or a message with addresses in it.
        address: One whose secrets are not to be in the text in any other way either.

    Example:
        >>> without_secrets("no Spark at sc://host/;token=abc;user_id=me")
        'no Spark at sc://host/;token=…;user_id=me'
    """
    for secret in secrets_of(address or ""):
        if len(secret) >= LITERAL:
            text = text.replace(secret, "…")
    return _ADDRESS.sub(lambda found: _bare(found[0]), text)


def secrets_of(address: str) -> list[str]:
    """What nobody should read of an address, as it stands there and as its library decodes it; the longest first."""
    from urllib.parse import unquote  # takes a while, and is hardly ever needed

    values = [found[2] for found in _PARAMETER.finditer(address) if found[1] not in HARMLESS]
    for login in _LOGIN.findall(address):
        values += [login, login.partition(":")[2] or login]
    return sorted({form for value in values for form in (value, unquote(value))}, key=len, reverse=True)


def _bare(address: str) -> str:
    return _PARAMETER.sub(lambda found: found[0] if found[1] in HARMLESS else f"{found[1]}=…", _LOGIN.sub("…", address))


_of_commands: dict[str, str] = {}
"""Words of the command line of this process that may be secrets, and what is recorded in their place."""


def keep_out(word: str, shown: str) -> None:
    """A word of the command line may be a secret: `shown` is recorded in its place."""
    _of_commands[word] = shown


def without_kept_out(command: list[str]) -> list[str]:
    """The command as it is recorded: a word that is kept out may also be the end of another, as in `--option=key=abc`."""
    found = []
    for word in command:
        for secret, shown in _of_commands.items():
            if word == secret or word.endswith(f"={secret}"):
                word = word.removesuffix(secret) + shown
        found.append(word)
    return found


_kept_out: ContextVar[bool] = ContextVar("fourfold_kept_out", default=False)


class Credentials(dict[str, Any]):
    """Options of a file system: whoever pickles them gets them, except for a file or a fingerprint, where they are empty.

    So a key is not lying on the disk, and a run goes on with the key of today.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return Credentials, ({} if _kept_out.get() else dict(self),)

    def __repr__(self) -> str:
        return f"Credentials({', '.join(sorted(self))})"


@contextmanager
def credentials_kept_out() -> Iterator[None]:
    """What is pickled in this block has no Credentials in it."""
    token = _kept_out.set(True)
    try:
        yield
    finally:
        _kept_out.reset(token)
