"""The Python of Spark's workers is another one, or lacks something: what and where is told before any item runs."""

import os
import re
import socket
import subprocess
import sysconfig
import types
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, SparkConnect

import fourfold as ff
from fourfold.errors import EngineError, VersionMismatch
from fourfold.version import VERSION

FIND = Path(__file__).parents[1] / "scripts" / "find_python.sh"

HERE = rf"(?:{re.escape(socket.gethostname())}|localhost|127\.0\.0\.1)"


@pytest.fixture
def on_python(cluster: Cluster) -> Iterator[Callable[[str], Any]]:
    """Makes an engine whose workers have the Python at a path."""
    if cluster.address() != "local[2]":
        pytest.skip("the workers of this cluster have the Python that it was started with")
    context = cluster.engine().connection._given.sparkContext
    before = context.pythonExec

    def on_python(path: str) -> Any:
        context.pythonExec = path
        return cluster.engine()

    yield on_python
    context.pythonExec = before


def python_without(folder: Path, *missing: str) -> str:
    """Make an environment with all that is here but these packages; returns its Python."""
    venv.create(folder, symlinks=True)
    (there,) = folder.glob("lib/python3*/site-packages")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.lower().lstrip("_").startswith(("editable", "pyspark", *missing)):
            (there / entry.name).symlink_to(entry)
    return str(folder / "bin" / "python")


def another_python() -> str:
    """A Python of another minor version; "" when none is here."""
    here = sysconfig.get_python_version()
    others = [version for version in ("3.13", "3.12", "3.11") if version != here]
    return subprocess.run([FIND, *others], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def leave_a_mark(folder: Path) -> Callable[[int], int]:
    def fn(x: int) -> int:
        (folder / "an_item_ran").touch()
        return x

    return fn


def check_that_nothing_ran(folder: Path) -> None:
    assert not (folder / "an_item_ran").exists()


@pytest.mark.parametrize("missing", [("cloudpickle",), ("fourfold", "cloudpickle", "threadpoolctl", "psutil")])
def test_workers_without_fourfold_are_sent_what_they_need(on_python: Any, tmp_path: Path, missing: tuple[str, ...]) -> None:
    def look(x: int) -> tuple[int, str, str]:
        import cloudpickle

        import fourfold

        return x, fourfold.__file__, cloudpickle.__file__

    engine = on_python(python_without(tmp_path / "bare", *missing))
    values = ff.map(look, range(20), engine=engine)
    assert [x for x, _, _ in values] == [*range(20)]
    travelled = os.path.join("", f"fourfold-{os.getuid()}-")
    assert all(travelled in path for _, *paths in values for path in paths), values[0]


def test_another_fourfold_on_the_workers_is_refused_and_named(on_python: Any, tmp_path: Path) -> None:
    python = python_without(tmp_path / "bare", "fourfold")
    (there,) = (tmp_path / "bare").glob("lib/python3*/site-packages")
    (there / "fourfold").mkdir()
    (there / "fourfold" / "__init__.py").write_text('__version__ = "0.0.7"\n')
    with pytest.raises(VersionMismatch, match=rf"on {HERE}: fourfold 0\.0\.7 is there and this is {re.escape(VERSION)}"):
        ff.map(leave_a_mark(tmp_path), [1], engine=on_python(python))
    check_that_nothing_ran(tmp_path)


def test_another_minor_version_of_python_is_refused_and_named(on_python: Any, tmp_path: Path) -> None:
    python = another_python()
    if not python:
        pytest.skip("no other Python of 3.11 to 3.13 is on this machine")
    theirs = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], stdout=-1, text=True)
    wrong = rf"run Python {re.escape(theirs.stdout.strip())} on {HERE} and this is Python {sysconfig.get_python_version()}:"
    with pytest.raises(VersionMismatch, match=wrong):
        ff.map(leave_a_mark(tmp_path), [1], engine=on_python(python))
    check_that_nothing_ran(tmp_path)


def test_a_python_without_arrow_is_refused_and_named(on_python: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=rf"executors on {HERE} has no pyarrow, without which Spark runs no task"):
        ff.map(leave_a_mark(tmp_path), [1], engine=on_python(python_without(tmp_path / "bare", "pyarrow")))
    check_that_nothing_ran(tmp_path)


def test_a_python_that_is_not_there_is_named(on_python: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=rf'no task on {HERE}: IOException: Cannot run program "/no/python"'):
        ff.map(leave_a_mark(tmp_path), [1], engine=on_python("/no/python"))
    check_that_nothing_ran(tmp_path)


def test_what_a_connect_server_says_of_a_python_worker_is_its_cause(
    cluster: Cluster, tmp_path: Path, monkeypatch: Any
) -> None:
    if not isinstance(cluster, SparkConnect):
        pytest.skip("this is about Spark Connect")
    import pyspark.sql.connect.udf as functions

    # The server compares the Python of the client with its workers', and has only one of these.
    monkeypatch.setattr(functions, "sys", types.SimpleNamespace(version_info=(3, 99)))
    with pytest.raises(
        VersionMismatch, match=rf"the Spark executors run Python {sysconfig.get_python_version()}.* and this is"
    ):
        ff.map(leave_a_mark(tmp_path), [1], engine=cluster.engine())
    check_that_nothing_ran(tmp_path)
