"""File systems as they are in the end: full, or mounted to be read only. Mounted for one script, which nobody else sees."""

import re
import subprocess
import textwrap
import time

import pytest
import ways
from running import run_script

import fourfold as ff
from fourfold.errors import JournalError
from fourfold.system import seams

notebook = ways.notebook

pytestmark = pytest.mark.fault("F48")

MOUNT = """
    import ctypes, os

    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source, target, kind, flags, options=None):
        if libc.mount(source, target, kind, flags, options):
            raise OSError(ctypes.get_errno(), "mount")

    if libc.unshare(0x20000):  # CLONE_NEWNS: what is mounted from here on is for this process and its children
        raise OSError(ctypes.get_errno(), "unshare")
    mount(b"none", b"/", None, 0x4000 | 0x40000)  # MS_REC | MS_PRIVATE
"""


@pytest.fixture(scope="module")
def may_mount():
    """Skips where this user may mount nothing, not even for himself."""
    done = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip() or 'unshare failed'}")


def run_mounted(folder, text, *arguments):
    """Run a script that begins with mounts of its own."""
    return run_script(textwrap.dedent(MOUNT) + textwrap.dedent(text), *arguments, folder=folder)


FULL = """
    import sys
    import fourfold as ff

    os.mkdir("small")
    mount(b"tmpfs", b"small", b"tmpfs", 0, b"size=400k")
    left = os.open("small/filler", os.O_WRONLY | os.O_CREAT)
    options = {"engine": sys.argv[1], "workers": 2, "chunk": 1, "run": "small/run"}
    try:
        ff.map(lambda item: bytes([item]) * 20_000, range(100), **options)
    except ff.errors.JournalError as error:
        print(error)
        print(*error.__notes__)
        print(all(value == bytes([item]) * 20_000 for item, value in error.results.items()), len(error.results))
    results = len(os.listdir("small/run"))
    mount(b"none", b"small", None, 0x20, b"size=20m")  # MS_REMOUNT: somebody has made room
    results = ff.map(lambda item: bytes([item]) * 20_000, range(100), **options)
    print(results == [bytes([item]) * 20_000 for item in range(100)], results.report.n_recorded)
"""


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_disk_that_is_full_is_one_error_that_has_the_values_and_what_fits_is_kept(tmp_path, engine):
    ended = run_mounted(tmp_path, FULL, engine)
    assert (ended.code, ended.stderr, ended.survivors) == (0, "", [])
    said, note, values, after = ended.stdout.splitlines()
    assert said.startswith("the run ")
    assert "No space left on device" in said or "disk is full" in said
    assert "What was recorded before is safe" in said
    n_values, n_recorded = int(values.removeprefix("True ")), int(after.removeprefix("True "))
    assert note == f"fourfold: {n_values} values are there: .results of this error has them, by index"
    assert 5 <= n_recorded < n_values < 100


READ_ONLY = """
    import sys
    import fourfold as ff

    mount(b"run", b"run", None, 0x1000)  # MS_BIND
    mount(b"none", b"run", None, 0x1000 | 0x20 | 0x1)  # MS_BIND | MS_REMOUNT | MS_RDONLY
    try:
        ff.map(abs, range(int(sys.argv[1])), engine="serial", run="run")
    except ff.errors.JournalError as error:
        print(error)
    os.execv(sys.executable, [sys.executable, "-m", "fourfold", "show", "run"])
"""


@pytest.mark.slow
@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize("at", [9, 5], ids=["a run that is done", "one that was killed"])
def test_a_run_that_is_mounted_to_be_read_only_is_one_error_and_can_be_looked_at(tmp_path, at):
    text = f"""
        import os
        import fourfold as ff

        for value in ff.imap(abs, range(10), run="run", engine="serial", chunk=1):
            if value == {at} != 9:
                os._exit(0)
    """
    assert run_script(text, folder=tmp_path).code == 0
    ended = run_mounted(tmp_path, READ_ONLY, "10")
    assert (ended.code, ended.stderr, ended.survivors) == (0, "", [])
    said, shown, *_ = ended.stdout.splitlines()
    assert said.endswith("run/lock cannot be opened: Read-only file system")
    state, n_done = re.fullmatch(r"abs: (\w+), (\d+) of 10 items.*", shown).groups()
    assert (state, int(n_done) > at) == ("died" if at < 9 else "done", True)
    assert ff.map(abs, range(10), engine="serial", run=tmp_path / "run") == list(range(10))


# ---- the same without mounts


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
@pytest.mark.parametrize("on_error", ["raise", "collect", "skip"])
def test_when_there_is_no_room_the_error_has_every_value_that_came(tmp_path, notebook, engine, on_error):
    def fn(item):
        notebook.write(item)
        return 1 // (item != 3 or on_error == "raise") * item

    options = {"run": tmp_path / "run", "engine": engine, "workers": 2, "chunk": 1, "on_error": on_error}
    first = ff.map(fn, range(5), **options)
    seams.set_faults("journal.tail:4+:ENOSPC,journal.commit:3+:ENOSPC,journal.write:8+:ENOSPC")
    try:
        with pytest.raises(JournalError, match="No space left on device") as caught:
            ff.map(fn, range(60), **options)
    finally:
        seams.set_faults("")
    ran = set(map(int, notebook.lines()))
    failed = set() if on_error == "raise" else {3}
    results = caught.value.results
    assert {item: value for item, value in results.items() if item != 3 or on_error == "raise"} == {
        item: item for item in results if item not in failed
    }
    assert (3 in results) == (on_error != "skip")
    in_flight = 0 if engine == "serial" else 2 * 2
    assert len(ran - failed - results.keys()) <= in_flight
    assert len(first) <= len(results)
    assert ff.map(fn, range(60), **options)[59 if on_error != "skip" else 58] == 59


def test_a_stream_that_ends_for_want_of_room_has_what_it_had_not_given_out(tmp_path, notebook):
    def fn(item):
        notebook.write(item)
        return item

    stream, given = ff.imap(fn, range(60), run=tmp_path / "run", engine="processes", workers=2, chunk=1), []
    seams.set_faults("journal.tail:6+:ENOSPC,journal.commit:3+:ENOSPC,journal.write:8+:ENOSPC")
    try:
        with pytest.raises(JournalError, match="No space left on device") as caught:
            given += stream
    finally:
        seams.set_faults("")
    found = dict(caught.value.results)
    assert {item: item for item in found} == found
    assert not found.keys() & set(given)
    assert len(set(map(int, notebook.lines())) - set(given) - found.keys()) <= 2 * 2


def test_a_clock_that_was_set_back_changes_nothing(tmp_path, monkeypatch):
    run, now = tmp_path / "run", time.time()
    before = 0
    for years, n_items in ((0, 20), (-5, 40), (-60, 60), (3, 60)):
        monkeypatch.setattr(time, "time", lambda at=now + years * 365.25 * 86400: at)
        results = ff.map(abs, range(n_items), run=run, engine="serial", chunk=5)
        assert results == list(range(n_items))
        assert results.report.n_recorded == before
        before = n_items
