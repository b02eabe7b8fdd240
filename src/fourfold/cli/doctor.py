"""`fourfold doctor`: what this machine gives, where each figure comes from, and what to mend.

examine()          every figure, as JSON has it   (reads; changes nothing, opens no connection)
advise()           the figures that will hurt, each with a line to type
doctor_command()   prints both
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Annotated, Any

import typer

from fourfold.cli.exits import TracebackOption, one_line_errors

# Below this a pool of workers, each with its channel and its shared memory, can run out. Not measured.
_FEW_OPEN_FILES = 256

# Where there is no memfd, arrays travel through files in /dev/shm. Docker gives 64 MiB unless told otherwise.
_SMALL_SHARED_MEMORY_BYTES = 256 * 1024**2

_MIB = 1024**2

Figures = dict[str, Any]


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Print what this machine gives, where each figure comes from, and what to mend."""
    with one_line_errors(show_traceback):
        figures = examine()
        if as_json:
            print(json.dumps(figures, indent=2))
        else:
            _print_table(figures)


def examine() -> Figures:
    """Every figure, under names that carry their units, and the advice that follows from them."""
    figures: Figures = {
        "fourfold": _version("fourfold"),
        "python": _python(),
        "cores": _cores(),
        "memory": _memory(),
        "shared_memory": _shared_memory(),
        "open_files": _open_files(),
        "start_method": _start_method(),
        "blas": _blas(),
        "engines": _engines(),
        "extras": {name: _version(name) for name in ("pyarrow", "scikit-learn", "pandas", "optuna", "torch")},
        "java": _java(),
    }
    figures["advice"] = advise(figures)
    return figures


def advise(figures: Figures) -> list[dict[str, str]]:
    """What to mend: each with `what` is wrong and what to `type`."""
    advice: list[dict[str, str]] = []

    def say(what: str, type_this: str) -> None:
        advice.append({"what": what, "type": type_this})

    cores, shared, files = figures["cores"], figures["shared_memory"], figures["open_files"]
    if cores["n_cores"] == 1:
        say("one core only: no engine here can be faster than the loop", "docker run --cpus=2 …, or taskset -c 0,1 …")
    elif cores["n_cores"] < cores["of_machine"]:
        say(
            f"{cores['n_cores']} of {cores['of_machine']} cores may be used ({cores['source']})",
            f"docker run --cpus={cores['of_machine']} …, or taskset -c 0-{cores['of_machine'] - 1} …, if that is not meant",
        )
    if not shared["memfd"] and (shared["size_bytes"] or 0) < _SMALL_SHARED_MEMORY_BYTES:
        say("little shared memory: large arrays travel through files", "docker run --shm-size=1g …")
    if files["soft_limit"] is not None and files["soft_limit"] < _FEW_OPEN_FILES:
        say(f"only {files['soft_limit']} open files are allowed", f"ulimit -n {min(files['hard_limit'] or 4096, 4096)}")
    if figures["blas"]["variables"]:
        names = " ".join(figures["blas"]["variables"])
        say(f"{names} set in the environment: fourfold leaves the threads of these libraries as they are", f"unset {names}")
    if figures["extras"]["pyarrow"] is None:
        say("pyarrow is not installed: no parquet", "pip install 'fourfold[data]'")
    if any(each["name"] == "spark" and each["version"] for each in figures["engines"]) and not figures["java"]:
        say("pyspark is installed and Java is not", "apt-get install openjdk-17-jre-headless")
    return advice


def _version(distribution: str) -> str | None:
    from importlib import metadata  # 20 ms that help must not wait for

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Figures:
    gil_enabled = getattr(sys, "_is_gil_enabled", lambda: True)
    return {
        "version": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "has_gil": bool(gil_enabled()),
    }


def _cores() -> Figures:
    from fourfold.system.machine import cores

    n_cores, source = cores()
    return {"n_cores": n_cores, "source": source, "of_machine": os.cpu_count() or n_cores}


def _memory() -> Figures:
    import psutil

    from fourfold.system.machine import memory

    limit_bytes, source = memory()
    return {"limit_bytes": limit_bytes, "source": source, "available_bytes": psutil.virtual_memory().available}


def _shared_memory() -> Figures:
    figures: Figures = {"folder": "/dev/shm", "size_bytes": None, "free_bytes": None, "memfd": _has_memfd()}
    try:
        found = os.statvfs(figures["folder"])
    except OSError:
        return {**figures, "folder": None}
    return {
        **figures,
        "size_bytes": found.f_frsize * found.f_blocks,
        "free_bytes": found.f_frsize * found.f_bavail,
    }


def _has_memfd() -> bool:
    """Whether anonymous shared memory can really be made; a sandbox may forbid what the kernel has."""
    try:
        os.close(os.memfd_create("fourfold-doctor"))
    except (AttributeError, OSError):
        return False
    return True


def _open_files() -> Figures:
    try:
        import resource
    except ImportError:  # not a Unix
        return {"soft_limit": None, "hard_limit": None}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (None if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return {"soft_limit": soft, "hard_limit": hard}


def _start_method() -> Figures:
    """How worker processes begin, in the words of multiprocessing."""
    if not hasattr(os, "fork"):
        return {"name": "none", "source": "engine processes needs fork, which is missing; serial and threads work"}
    if not sys.platform.startswith("linux"):
        return {"name": "untested", "source": "engine processes is tested on Linux only; serial and threads work"}
    return {
        "name": "forkserver",
        "source": "workers are forked from a new interpreter that has one thread, never from your process",
    }


def _blas() -> Figures:
    import numpy as np  # loads the library that it was built with
    import threadpoolctl

    from fourfold.system.machine import THREAD_VARIABLES

    libraries = [
        {
            "library": each["internal_api"],
            "version": each.get("version"),
            "threads": each["num_threads"],
            "path": each["filepath"],
        }
        for each in threadpoolctl.threadpool_info()
    ]
    variables = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    return {"libraries": libraries, "loaded_by": f"numpy {np.__version__}", "variables": variables}


def _engines() -> list[Figures]:
    """Each engine: the version of the package that it needs, and what keeps it from running (None: nothing)."""
    from fourfold.errors import FourfoldError
    from fourfold.options import CLUSTER_ENGINES, LOCAL_ENGINES, resolve

    engines = []
    for name in [each for each in LOCAL_ENGINES if each != "auto"] + list(CLUSTER_ENGINES):
        package = CLUSTER_ENGINES.get(name)
        problem = None
        try:
            resolve({"engine": name})
        except FourfoldError as exc:
            problem = str(exc)
        engines.append(
            {
                "name": name,
                "package": package,
                "version": _version(package) if package else None,
                "problem": problem,
            }
        )
    return engines


def _java() -> Figures | None:
    import subprocess

    home = os.environ.get("JAVA_HOME")
    path = shutil.which("java", path=os.path.join(home, "bin")) if home else None
    source = "JAVA_HOME" if path else "PATH"
    path = path or shutil.which("java")
    if path is None:
        return None
    try:
        told = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        return {"path": path, "source": source, "version": None, "problem": str(exc)}
    return {"path": path, "source": source, "version": (told.stderr or told.stdout).splitlines()[0], "problem": None}


def _print_table(figures: Figures) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("what", "here", "where the figure comes from"):
        table.add_column(heading, overflow="fold")
    for row in _lines(figures):
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:  # a pipe has no width; a wrapped path cannot be copied
        console.width = 160
    console.print(table)
    console.print()
    if not figures["advice"]:
        console.print("Nothing to mend.")
    for each in figures["advice"]:
        console.print(f"mend: {each['what']}\n      {each['type']}")


def _lines(figures: Figures) -> list[tuple[str, str, str]]:
    """The figures as rows of the printed table."""
    python, cores, memory = figures["python"], figures["cores"], figures["memory"]
    shared, files, start, java = (figures[k] for k in ("shared_memory", "open_files", "start_method", "java"))
    gil = "one thread at a time runs Python code" if python["has_gil"] else "no GIL: threads run Python code at once"
    shm = f"{_size(shared['size_bytes'])} in {shared['folder']}, {_size(shared['free_bytes'])} free"
    return [
        ("fourfold", figures["fourfold"] or "not installed", "installed package"),
        ("python", f"{python['version']}, {gil}", python["executable"]),
        ("cores", str(cores["n_cores"]), cores["source"]),
        ("memory", f"{_size(memory['limit_bytes'])}, {_size(memory['available_bytes'])} available", memory["source"]),
        ("shared memory", "anonymous (memfd)" if shared["memfd"] else shm, shm if shared["memfd"] else "statvfs"),
        ("open files", str(files["soft_limit"] or "no limit"), f"ulimit -n (at most {files['hard_limit'] or 'any'})"),
        ("start method", start["name"], start["source"]),
        *(
            (
                "BLAS",
                f"{each['library']} {each['version']}, {each['threads']} threads",
                f"threadpoolctl: {os.path.basename(each['path'])}",
            )
            for each in figures["blas"]["libraries"]
        ),
        *(("engine " + each["name"], _engine_text(each), _engine_source(each)) for each in figures["engines"]),
        *(
            ("package " + name, version or "not installed", "installed packages")
            for name, version in figures["extras"].items()
        ),
        ("java", java["version"] or java["problem"] if java else "not found", java["path"] if java else "JAVA_HOME, PATH"),
    ]


def _engine_text(engine: Figures) -> str:
    if engine["problem"] is None:
        return f"ready {engine['version'] or ''}".strip()
    return f"{engine['version']}, not ready" if engine["version"] else "not installed"


def _engine_source(engine: Figures) -> str:
    if engine["package"] is None:
        return "part of fourfold"
    # What to type is at the end of the message.
    return (engine["problem"] or f"package {engine['package']}").rpartition("Type: ")[2]


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "none"
    mib = size_bytes / _MIB
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
