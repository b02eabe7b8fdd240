r"""Where rows of CSV end, by the rules of the reader that parses them, which is Arrow's.

    a,"x              a quote opens a value only where the value begins; within it, two quotes are one of its text,
    y ""z"" w",5" b   and line ends are text. Any other quote is text itself, like that of five inches here.
    \n                \n, \r or both end a row outside of such values.

Where each quote that should open a value does begin one, counting them tells what is within quotes, and NumPy does that for
a whole block at once. Only blocks with other quotes go through the slower automaton.
"""

import re
from functools import cache
from typing import Any

QUOTE, LINE_ENDS = 0x22, b"\r\n"


def row_end(block: bytes, delimiter: str | None) -> int:
    """Where the first row of a block ends that begins with a row: behind its line end; 0 when it does not end there.

    Args:
        block: Bytes of a file of lines.
        delimiter: Of CSV whose values in quotes may contain line ends; None when each line end ends a row.

    A carriage return at the very end may be half of a line end: it is none.
    """
    found = (_rows(delimiter).first if delimiter is not None else _LINE).match(block)
    return found.end() if found else 0


def last_row_end(block: bytes, delimiter: str | None) -> int:
    """Where the last row ends in a block that begins with a row; 0 when none ends in it. See `row_end`."""
    if delimiter is None or QUOTE not in block:
        return _last_line_end(block, len(block))
    quotes = _quotes(block)
    if _are_balanced(block, quotes, delimiter):
        right = len(block)
        while end := _last_line_end(block, right):
            n_before = int(quotes.searchsorted(end))
            if n_before % 2 == 0:
                return end
            right = int(quotes[n_before - 1])  # within a value: go on before it
    # Also where a \n stands in values only, and a carriage return alone ends rows.
    found = _rows(delimiter).all.match(block)
    return found.end() if found else 0


def is_open(block: bytes, delimiter: str) -> bool:
    """Whether a value in quotes of this block, which begins with a row, contains a line end, or is never closed."""
    import numpy as np

    if QUOTE not in block:
        return False
    quotes = _quotes(block)
    if not _are_balanced(block, quotes, delimiter):
        return _rows(delimiter).closed.fullmatch(block) is None
    line_ends = np.flatnonzero(np.isin(np.frombuffer(block, np.uint8), np.frombuffer(LINE_ENDS, np.uint8)))
    return bool(quotes.size % 2 or (quotes.searchsorted(line_ends) % 2).any())


def _last_line_end(block: bytes, right: int) -> int:
    r"""Behind the last line end before `right`. Carriage returns alone end lines too, where there is no \n at all."""
    if (at := block.rfind(b"\n", 0, right)) >= 0:
        return at + 1
    return block.rfind(b"\r", 0, min(right, len(block) - 1)) + 1


def _quotes(block: bytes) -> Any:
    """The places of all quotes."""
    import numpy as np

    return np.flatnonzero(np.frombuffer(block, np.uint8) == QUOTE)


def _are_balanced(block: bytes, quotes: Any, delimiter: str) -> bool:
    """Whether every other quote is the first byte of a value, or follows a quote: then counting tells what they mean."""
    import numpy as np

    opening = quotes[::2]
    before = np.frombuffer(block, np.uint8)[opening[int(opening[0] == 0) :] - 1]
    may_be = np.zeros(256, bool)
    may_be[[*delimiter.encode(), *LINE_ENDS, QUOTE]] = True
    return bool(may_be[before].all())


class _Rows:
    """What rows look like, for one delimiter. Nothing in it is ever tried a second time, so it is linear."""

    def __init__(self, delimiter: str) -> None:
        opening = rb'"(?<![^%s\r\n]")' % re.escape(delimiter.encode())
        stray = rb'(?!%s)"' % opening
        value = rb'%s[^"]*+(?:""[^"]*+)*+"' % opening
        row = rb'(?>(?:[^"\r\n]++|%s|%s)*+%s)' % (value, stray, _LINE_END)
        self.first, self.all = re.compile(row), re.compile(rb"(?:%s)++" % row)
        of_one_line = value.replace(rb'[^"]', rb'[^"\r\n]')
        self.closed = re.compile(rb'(?:[^"]++|%s|%s)*+' % (of_one_line, stray))


_LINE_END = rb"(?:\n|\r(?:\n|(?!\n|\Z)))"
_LINE = re.compile(rb"[^\r\n]*+" + _LINE_END)


@cache
def _rows(delimiter: str) -> _Rows:
    return _Rows(delimiter)
