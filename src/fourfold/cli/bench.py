"""`fourfold bench`: the project's own benchmarks, from a source checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors
from fourfold.errors import FourfoldError


def bench_command(context: typer.Context, show_traceback: TracebackOption = False) -> None:
    """Run the benchmarks of a source checkout; arguments are passed on to benchmarks/run.py.

    Example: fourfold bench -- --help
    """
    with one_line_errors(show_traceback):
        script = find_benchmarks(Path.cwd())
        code = subprocess.call([sys.executable, str(script), *context.args], cwd=script.parents[1])
    raise SystemExit(code)


def find_benchmarks(start: Path) -> Path:
    """The `benchmarks/run.py` of the fourfold checkout that `start` lies in.

    Raises:
        FourfoldError: there is none from `start` upward.
    """
    for folder in (start, *start.parents):
        script = folder / "benchmarks" / "run.py"
        if script.is_file() and (folder / "src" / "fourfold").is_dir():
            return script
    raise FourfoldError(
        f"no benchmarks/run.py of fourfold in {start} or above it: the benchmarks are in the source, not in the "
        "installed package; clone the repository, and type `make bench` there"
    )
