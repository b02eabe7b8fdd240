"""How items are shown to people: by a short repr or, where FOURFOLD_REDACT=1 stands in the environment, not at all.

    "hunter2"  ──>  'hunter2'   or   <str of 7, digest 5f3a9c01>

The digest tells equal items from different ones, and no more: its key is random, and new in each program.
"""

import os
from collections.abc import Iterator

from fourfold.errors import OptionError

VARIABLE = "FOURFOLD_REDACT"

REPR_CHARS = 200
"""Characters of an item's repr that a message keeps. Less: harder to tell items apart. More: logs drown. Not measured."""

DIGEST_BYTES = 4
"""Of a digest. Fewer: different items look equal. More: longer to read."""

QUOTED_CHARS = 4
"""Texts of an item that are at least so long are looked for in messages. Shorter: words of the message are taken for them."""

QUOTED_TEXTS = 1000
"""Texts of an item that are looked for. More: a failure of a large item takes longer to be told. Not measured."""

_key = b""
_hides = False


def obey(text: str | None) -> None:
    """Do what the environment says: "1" hides items from now on, "0" or nothing shows them.

    Raises:
        OptionError: It says something else.
    """
    if text not in (None, "", "0", "1"):
        raise OptionError(
            f"the environment has {VARIABLE}={text!r}; it must be 1 (items are told by type, length and digest) or 0"
        )
    hide(_key or os.urandom(16) if text == "1" else b"")


def hide(key: bytes) -> None:
    """Hide items from now on, with this key for their digests; with none, show them."""
    global _key, _hides
    _key, _hides = key or _key, bool(key)


def key() -> bytes:
    """What `hide` needs in another process to do there as is done here."""
    return _key if _hides else b""


def safe_repr(item: object) -> str:
    """How an item is shown. Its repr may raise; long strings and sequences are not printed whole."""
    try:
        if _hides:
            return _without_content(item)
        if isinstance(item, str | bytes | bytearray) and len(item) > REPR_CHARS:
            return f"{item[:REPR_CHARS]!r}... ({len(item)} in all)"
        if type(item) in (list, tuple, set, frozenset, dict) and len(item) > REPR_CHARS:  # type: ignore[arg-type]
            return f"<{type(item).__name__} of {len(item)}>"  # type: ignore[arg-type]
        return clip(repr(item), REPR_CHARS)
    except Exception:
        return f"<unprintable {type(item).__name__}>"


def without_quotes(text: str, item: object) -> str:
    """A message or traceback about an item: where items are hidden, what it quotes of this one is, too."""
    if not _hides:
        return text
    for number, quoted in enumerate(_texts_of(item, depth=3)):
        if number == QUOTED_TEXTS:
            break
        if quoted in text:
            text = text.replace(quoted, _without_content(quoted))
    return text


def hidden(text: str) -> str:
    """How an item was shown, without what was shown of it."""
    import re

    return text if re.fullmatch(r"<\w+( of \d+)?, digest [0-9a-f]+>", text) else "<hidden>"


def clip(text: str, limit: int) -> str:
    """The first `limit` characters."""
    return text if len(text) <= limit else text[:limit] + "..."


def _without_content(item: object) -> str:
    import hashlib  # a millisecond, and only where something is hidden

    data = item if isinstance(item, bytes) else repr(item).encode("utf-8", "backslashreplace")
    digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=_key).hexdigest()
    length = getattr(type(item), "__len__", None)
    of = f" of {length(item)}" if length is not None else ""
    return f"<{type(item).__name__}{of}, digest {digest}>"


def _texts_of(item: object, depth: int) -> Iterator[str]:
    """The texts in an item that an exception may quote."""
    if isinstance(item, bytes):
        item = item.decode("utf-8", "backslashreplace")
    if isinstance(item, str):
        if len(item) >= QUOTED_CHARS:
            yield item
            if (quoted := repr(item)[1:-1]) != item:
                yield quoted
    elif depth and type(item) in (list, tuple, set, frozenset, dict):
        parts = item.values() if isinstance(item, dict) else item
        for part in parts:  # type: ignore[attr-defined]
            yield from _texts_of(part, depth - 1)
