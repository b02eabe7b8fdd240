"""Exit codes, and known errors as one line on stderr."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from fourfold.cli.typed import as_typed
from fourfold.errors import FourfoldError, OptionError
from fourfold.system.interrupts import written_before

DONE = 0
ERROR = 1
USAGE = 2
SOME_FAILED = 3
INTERRUPTED = 130
NOBODY_READS = 141


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, or SIGHUP (the terminal is gone). It takes the way of Ctrl-C: no item swallows it, all is cleaned up.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code after a signal: 128 and its number."""
    return 128 + interrupt.number if isinstance(interrupt, Terminated) else INTERRUPTED


def leave_the_pipe() -> None:
    """Nobody reads what is printed any more, as in `fourfold runs | head -1`: print the rest into nowhere.

    Raises:
        SystemExit: Always, with the code of a program that SIGPIPE ended.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(NOBODY_READS)


TracebackOption = Annotated[bool, typer.Option("--traceback", help="Show the whole traceback of an error, not only its line.")]


@contextmanager
def one_line_errors(show_traceback: bool, interrupted: str | Callable[[], str] = "interrupted") -> Iterator[None]:
    """Run a command: an error becomes one line on stderr and its exit code.

    Args:
        show_traceback: print the traceback above the line.
        interrupted: what to say after Ctrl-C, unless the output was there before it; or a function that tells it then.

    Raises:
        SystemExit: after an error or Ctrl-C, with the code that stands for it.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as exc:
        with suppress(OSError):  # the terminal may be gone
            written = written_before(exc)
            told = interrupted if isinstance(interrupted, str) else interrupted()
            say(f"interrupted, and {written}" if written else told)
        raise SystemExit(code_of(exc)) from None
    except BrokenPipeError:
        leave_the_pipe()
    except Exception as exc:
        if show_traceback:
            traceback.print_exc()
        hint = "" if show_traceback or isinstance(exc, FourfoldError) else " (--traceback shows where)"
        say(one_line(exc) + hint)
        raise SystemExit(USAGE if isinstance(exc, OptionError) else ERROR) from None


def one_line(error: BaseException) -> str:
    """The message of an error with its notes, without line breaks; its type too when it is not one of ours.

    One of ours speaks of options as they are typed here.
    """
    message = "; ".join([str(error), *getattr(error, "__notes__", [])])
    if isinstance(error, FourfoldError):
        message = as_typed(message)
    else:
        message = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return " ".join(message.split())


def say(line: str) -> None:
    """Print one line on stderr, under the name of the program."""
    print(f"fourfold: {line}", file=sys.stderr, flush=True)


def say_left_out(path: str, error: Exception) -> None:
    """Print that a run, folder or file was left out, and why; the command goes on with the others."""
    say(f"{printable(path)}: {printable(one_line(error))}")


def printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
