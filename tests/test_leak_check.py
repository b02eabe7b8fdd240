"""The leak check that every test runs under sees each kind of leak."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import leaks
import pytest
from leaks import Holdings, living_descendants
from running import started, until

import fourfold as ff


def test_nothing_held_is_no_leak() -> None:
    assert Holdings.now().leaks() == []


def test_a_process_is_seen() -> None:
    before = Holdings.now()
    with subprocess.Popen(["sleep", "60"]) as process:
        leaks = before.leaks()
        process.kill()
    assert [leak for leak in leaks if "sleep 60" in leak]


def test_a_process_whose_parent_ended_is_seen() -> None:
    before = Holdings.now()
    code = "import subprocess; subprocess.Popen(['sleep', '61'])"
    subprocess.run([sys.executable, "-c", code], check=True)
    (leak,) = before.leaks()
    (orphan,) = [process for process in living_descendants(0) if process.name == "sleep"]
    os.kill(orphan.pid, 9)
    assert "sleep 61" in leak


def test_a_thread_is_seen_with_its_stack() -> None:
    before, over = Holdings.now(), threading.Event()
    thread = threading.Thread(target=over.wait, name="left-behind", daemon=True)
    thread.start()
    (leak,) = before.leaks()
    over.set()
    thread.join()
    assert "left-behind" in leak
    assert "threading.py" in leak


def test_an_open_file_is_seen() -> None:
    before = Holdings.now()
    with open(os.devnull) as file:
        assert before.leaks() == [f"the open file {file.fileno()} -> /dev/null"]


def test_a_socket_that_listens_is_seen() -> None:
    before = Holdings.now()
    with socket.create_server(("127.0.0.1", 0)):
        (leak,) = before.leaks()
    assert leak.endswith("which listens")


@pytest.mark.parametrize("folder", [tempfile.gettempdir(), "/dev/shm"])
def test_a_file_with_a_name_is_seen(folder: str) -> None:
    before = Holdings.now()
    with tempfile.NamedTemporaryFile(prefix="fourfold", dir=folder) as file:
        assert f"the file {file.name}" in before.leaks()


@pytest.mark.parametrize("make", [lambda: tempfile.mkstemp()[0], lambda: os.open(tempfile.mkdtemp(), os.O_RDONLY)])
def test_a_temporary_file_that_stays_is_seen(make) -> None:
    before = Holdings.now()
    fd = make()
    path = Path(os.readlink(f"/proc/self/fd/{fd}"))
    os.close(fd)
    assert before.leaks() == [f"the file {path}"]
    path.rmdir() if path.is_dir() else path.unlink()


def test_shared_memory_with_a_name_is_seen() -> None:
    # Made by another process: multiprocessing keeps a process and a pipe for good where it is made.
    before = Holdings.now()
    code = "from multiprocessing import shared_memory as s; m = s.SharedMemory(create=True, size=9); print(m.name, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        name = process.stdout.readline().strip()
        assert name.startswith("psm_")
        assert f"the file /dev/shm/{name}" in before.leaks()
        os.unlink(f"/dev/shm/{name}")
        process.kill()
    until(lambda: before.leaks() == [], "its tracker has ended")


@pytest.mark.parametrize("strangers", [False, True])
def test_a_semaphore_that_nobody_uses_is_seen_unless_others_may_have_made_it(monkeypatch, strangers) -> None:
    monkeypatch.setattr(leaks, "strangers_run_python", lambda ours: strangers)
    before, path = Holdings.now(), Path(f"/dev/shm/sem.of-a-test-{os.getpid()}")
    path.touch()
    found = before.leaks()
    path.unlink()
    assert found == ([] if strangers else [f"the file {path}"])


def test_a_process_that_runs_python_is_a_stranger_when_it_is_not_ours() -> None:
    ours = {os.getpid(), *(process.pid for process in leaks.descendants())}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert leaks.strangers_run_python(ours)
        process.kill()


def test_a_script_that_hangs_fails_with_the_stacks_of_all(tmp_path) -> None:
    text = """
        import fourfold as ff

        def hang(x):
            open("runs", "w").close()
            while True:
                pass

        def wait_for_ever():
            ff.map(hang, [1], engine="processes", workers=1)

        wait_for_ever()
    """
    with started(text, folder=tmp_path) as script:
        until(lambda: (tmp_path / "runs").exists(), "the item runs")
        with pytest.raises(AssertionError, match=r"the script has not ended after [\d.]+ s") as caught:
            script.end(timeout=0.1)
    assert "in hang\n" in str(caught.value)
    assert "in wait_for_ever\n" in str(caught.value)


def test_warm_workers_are_no_leak() -> None:
    before = Holdings.now()
    assert ff.map(abs, range(3), engine="processes", workers=2) == [0, 1, 2]
    assert before.leaks() == []


def test_a_run_that_is_not_closed_is_seen() -> None:
    before = Holdings.now()
    stream = ff.imap(abs, range(100), engine="processes", workers=2, chunk=1)
    next(stream)
    leaks = before.leaks()
    stream.close()
    assert "2 workers that a run has not given back" in leaks


def test_the_watchdog_says_where_workers_are(tmp_path) -> None:
    from conftest import write_stacks_of_workers

    def wait(x: int) -> int:
        threading.Event().wait(0.5)
        return x

    with open(tmp_path / "said", "wb") as file:
        asker = threading.Timer(0.3, write_stacks_of_workers, [file.fileno()])
        ff.map(abs, [1], engine="processes", workers=1)
        asker.start()
        ff.map(wait, range(2), engine="processes", workers=1, chunk=1)
        asker.join()
    assert "in wait\n" in (tmp_path / "said").read_text()
