"""Code that travels to clusters lies in a folder of a worker's machine while a process uses it, and not for ever."""

import os
import tempfile
import time
from pathlib import Path

import pytest
from running import Script, run_script, started

from fourfold.distribute import cargo
from fourfold.distribute.cargo import UNUSED_S, remove_unused

WORKER = """
    import sys
    from fourfold.distribute import cargo

    zipped = cargo.pack([sys.argv[1]], ours=False)
    cargo.make_entry()("", cargo.name_of(zipped), lambda: zipped)
    import lies_there

    print(lies_there.__file__, flush=True)
    sys.stdin.readline()
"""
"""Does what a task of a cluster does, and stays as a worker does."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of workers."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@pytest.fixture
def code(tmp_path: Path) -> str:
    """What travels."""
    path = tmp_path / "code" / "lies_there.py"
    path.parent.mkdir()
    path.write_text("")
    return str(path)


def end(worker: Script) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.write("\n")
    assert worker.end().code == 0


def a_home(place: Path, letter: str = "a", more: str = "", age_s: float = 0.0) -> Path:
    home = place / f"fourfold-{os.getuid()}-{letter * 32}{more}"
    (home / "package").mkdir(parents=True)
    then = time.time() - age_s
    os.utime(home, (then, then))
    return home


def test_a_home_stays_while_a_process_uses_it(place: Path, code: str, tmp_path: Path) -> None:
    with started(WORKER, code, folder=tmp_path) as one:
        home = Path(one.read_line()).parent
        assert home.parent == place
        with started(WORKER, code, folder=tmp_path) as other:
            assert Path(other.read_line()).parent == home
            end(one)
            assert remove_unused(0.0) == []
            end(other)
    assert home.is_dir()
    assert remove_unused(0.0) == [str(home)]
    assert os.listdir(place) == []


def test_a_home_is_there_for_whoever_comes_within_a_day(place: Path, code: str, tmp_path: Path) -> None:
    home = a_home(place, age_s=UNUSED_S - 60)
    assert remove_unused() == []
    os.utime(home, (time.time() - UNUSED_S - 60,) * 2)
    assert remove_unused() == [str(home)]
    with started(WORKER, code, folder=tmp_path) as worker:
        home = Path(worker.read_line()).parent
        end(worker)
    os.utime(home, (0, 0))
    with started(WORKER, code, folder=tmp_path) as worker:  # who comes to it begins another day
        assert Path(worker.read_line()).parent == home
        end(worker)
    assert remove_unused() == []


def test_what_was_killed_while_it_unpacked_is_removed_too(place: Path) -> None:
    a_home(place, more="-x7ab2")
    assert len(remove_unused(0.0)) == 1
    assert os.listdir(place) == []


def test_nothing_else_is_removed(place: Path, tmp_path: Path) -> None:
    for name in ("fourfold-1-short", f"fourfold-{os.getuid() + 1}-{'a' * 32}", f"x-fourfold-{os.getuid()}-{'a' * 32}"):
        (place / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (place / f"fourfold-{os.getuid()}-{'b' * 32}").symlink_to(tmp_path / "elsewhere")
    (place / f"fourfold-{os.getuid()}-{'c' * 32}").touch()
    before = sorted(os.listdir(place))
    assert remove_unused(0.0) == []
    assert sorted(os.listdir(place)) == before
    assert (tmp_path / "elsewhere").is_dir()


def test_a_home_that_is_a_link_is_not_imported_from(place: Path, code: str, tmp_path: Path) -> None:
    zipped = cargo.pack([code], ours=False)
    (place / f"fourfold-{os.getuid()}-{cargo.name_of(zipped)}").symlink_to(Path(code).parent)
    ended = run_script(WORKER, code, folder=tmp_path)
    assert ended.code == 1
    assert ended.stdout == ""


CROWD = """
    import os, sys
    from fourfold.distribute import cargo

    zipped = cargo.pack([sys.argv[1]], ours=False)
    entry = cargo.make_entry()

    def use():
        entry("", cargo.name_of(zipped), lambda: zipped)
        import lies_there
        return os.path.exists(lies_there.__file__)

    def fork(work):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = 0 if work() else 2
            finally:
                os._exit(code)
        return pid

    def remove():
        n_removed = 0
        while not os.path.exists("over"):
            n_removed += len(cargo.remove_unused(0.0))
        return n_removed

    remover = fork(remove)
    n_fine = 0
    for _ in range(8):
        workers = [fork(use) for _ in range(3)]
        n_fine += sum(os.waitpid(pid, 0)[1] == 0 for pid in workers)
    open("over", "w").close()
    removed_some = os.waitpid(remover, 0)[1] == 0
    cargo.remove_unused(0.0)
    print(n_fine, removed_some)
"""


@pytest.mark.slow
def test_whoever_comes_while_it_is_removed_finds_it_or_makes_it_anew(place: Path, code: str, tmp_path: Path) -> None:
    ended = run_script(CROWD, code, folder=tmp_path)
    assert (ended.stdout, ended.stderr) == ("24 True\n", "")
    assert os.listdir(place) == []


REMOVED_MEANWHILE = """
    import os, shutil, sys
    from fourfold.distribute import cargo

    zipped = cargo.pack([sys.argv[1]], ours=False)
    homes, really_open = [], os.open

    def open_and_lose(path, *how, **more):
        fd = really_open(path, *how, **more)
        if not homes and str(path).endswith(cargo.name_of(zipped)):
            homes.append(path)
            shutil.rmtree(path)
        return fd

    os.open = open_and_lose
    cargo.make_entry()("", cargo.name_of(zipped), lambda: zipped)
    import lies_there

    print(lies_there.__file__ == os.path.join(homes[0], "lies_there.py"))
"""


def test_a_home_that_is_removed_before_it_is_held_is_made_anew(place: Path, code: str, tmp_path: Path) -> None:
    with started(WORKER, code, folder=tmp_path) as worker:
        worker.read_line()
        end(worker)
    assert run_script(REMOVED_MEANWHILE, code, folder=tmp_path) == (0, "True\n", "", [])
