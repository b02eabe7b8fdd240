"""How far a run is: a bar on a terminal, lines elsewhere, silence when asked; and it can never block the work."""

import fcntl
import io
import os
import pty
import re
import subprocess
import sys
import termios
import textwrap
import threading
import time

import optuna
import pytest
import ways

import fourfold as ff
from fourfold.aggregate import progress
from fourfold.workloads.tune import optimizing

way = ways.way


class Listening(io.StringIO):
    """A stderr that is no terminal, and tells when something has been written."""

    def __init__(self, terminal=False):
        super().__init__()
        self.written, self.terminal = threading.Event(), terminal

    def isatty(self):
        return self.terminal

    def write(self, text):
        count = super().write(text)
        self.written.set()
        return count


def listening(monkeypatch):
    """Put a `Listening` in the place of stderr. Not a fixture: pytest puts its own there when the test itself begins."""
    stream = Listening()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.fixture
def at_once(monkeypatch):
    """No delay before the first sign, and none between signs."""
    monkeypatch.setattr(progress, "DELAY_S", -1.0)
    monkeypatch.setattr(progress, "BAR_EVERY_S", 0.001)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.001)


def until_seen(stream, at):
    """A function whose item `at` goes on when something was shown. Item 0 is longer than the delay of `at_once`."""

    def function(item):
        until = time.perf_counter() + (0.005 if item == 0 else 0)
        while time.perf_counter() < until:
            pass
        if item == at:
            assert stream.written.wait(60), "nothing was shown"
        return item

    return function


# ---- lines ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["serial", "threads", "auto"])
def test_elsewhere_there_are_lines_with_count_total_and_rate(monkeypatch, at_once, engine):
    stderr = listening(monkeypatch)
    assert ff.map(until_seen(stderr, 8), range(10), engine=engine, workers=2, chunk=1) == list(range(10))
    first, *_ = lines = stderr.getvalue().splitlines()
    assert first.startswith("function: ")
    for line in lines:
        assert "/10 items, " in line
        assert "/s" in line


def test_processes_are_shown_too(monkeypatch, at_once, tmp_path):
    stderr = listening(monkeypatch)
    shown = tmp_path / "shown"

    def wait_until_shown(item):
        import os
        import time

        deadline = time.monotonic() + 60
        while item == 8 and not os.path.exists(shown):
            assert time.monotonic() < deadline

    def tell():
        if stderr.written.wait(60):
            shown.touch()

    teller = threading.Thread(target=tell)
    teller.start()
    ff.map(wait_until_shown, range(10), engine="processes", workers=2, chunk=1, progress=True)
    teller.join(60)
    assert "/10 items, " in stderr.getvalue()


def test_failures_are_counted(monkeypatch, at_once):
    stderr = listening(monkeypatch)
    wait = until_seen(stderr, 8)

    def fail_first(item):
        if item < 3:
            raise ValueError(item)
        return wait(item)

    ff.map(fail_first, range(10), engine="serial", chunk=1, on_error="skip", progress=True)
    assert " failed" in stderr.getvalue()


def test_without_a_length_there_is_no_total_and_no_time_left(monkeypatch, at_once):
    stderr = listening(monkeypatch)
    ff.map(until_seen(stderr, 8), iter(range(10)), engine="serial", chunk=1)
    assert " items, " in stderr.getvalue()
    assert "/10" not in stderr.getvalue()
    assert "left" not in stderr.getvalue()


def test_a_short_run_shows_nothing(monkeypatch):
    stderr = listening(monkeypatch)
    ff.map(abs, range(1000))
    ff.map(abs, range(1000), progress=True)
    assert stderr.getvalue() == ""


def test_nobody_who_asks_for_silence_is_shown_anything(monkeypatch, at_once):
    stderr = listening(monkeypatch)
    ff.map(lambda item: sum(range(10_000)), range(100), engine="serial", chunk=1, progress=False)
    assert stderr.getvalue() == ""


def test_asked_for_it_comes_earlier(monkeypatch):
    listening(monkeypatch)

    def delay(show):
        shown = progress.Progress(type("Counts", (), {"finished": 0, "failures": 0}), 10, show, False, "f")
        return shown._delay_s

    assert delay(True) < delay(None)


def test_the_lines_of_a_search_count_trials(monkeypatch, at_once):
    stderr = listening(monkeypatch)
    ff.optimize(lambda trial: sum(range(100_000)), n_trials=3, workers=1, mode="async")
    assert re.search(r"\d trials, ", stderr.getvalue()), stderr.getvalue()
    assert "items" not in stderr.getvalue()


def test_a_stream_that_is_left_takes_its_lines_with_it(monkeypatch, at_once):
    stderr = listening(monkeypatch)
    stream = ff.imap(until_seen(stderr, 3), range(10**9), engine="serial", chunk=1)
    for _ in range(5):
        next(stream)
    stream.close()
    after = stderr.getvalue()
    assert not [thread for thread in threading.enumerate() if thread.name == "fourfold-progress"]
    assert stderr.getvalue() == after


def test_inside_an_item_nothing_is_shown(monkeypatch, at_once):
    stderr = listening(monkeypatch)

    def nested(item):
        return ff.map(lambda x: sum(range(3000)), range(50), chunk=1)

    ff.map(nested, range(2), engine="serial", progress=False)
    assert stderr.getvalue() == ""


# ---- streams that misbehave ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("I/O operation on closed file"), BrokenPipeError()], ids=repr)
def test_a_stderr_that_raises_does_not_reach_the_run(monkeypatch, at_once, error):
    class Raising(Listening):
        def write(self, text):
            super().write(text)
            raise error

    stream = Raising()
    monkeypatch.setattr(sys, "stderr", stream)
    assert ff.map(until_seen(stream, 8), range(10), engine="serial", chunk=1, progress=True) == list(range(10))


def test_without_a_stderr_the_run_runs(monkeypatch, at_once):
    monkeypatch.setattr(sys, "stderr", None)
    assert ff.map(abs, range(10), engine="serial", chunk=1, progress=True) == list(range(10))


def test_a_stderr_that_takes_nothing_does_not_block_the_run(monkeypatch, at_once):
    reader, writer = os.pipe()
    fill(writer)
    with os.fdopen(writer, "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert ff.map(lambda item: sum(range(1000)), range(200), engine="serial", chunk=1, progress=True) == [499500] * 200
        monkeypatch.undo()
        fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK)
        drain(reader)
    os.close(reader)


def fill(fd):
    """Write into a pipe until it takes no more."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    for size in (4096, 1):
        try:
            while True:
                os.write(fd, b"x" * size)
        except BlockingIOError:
            pass
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def drain(fd):
    try:
        while os.read(fd, 1 << 16):
            pass
    except BlockingIOError:
        return


SCRIPT = """
    import sys
    import fourfold as ff
    from fourfold.aggregate import progress

    progress.DELAY_S, progress.BAR_EVERY_S, progress.LINE_EVERY_S = -1.0, 0.001, 0.001

    def work(item):
        if item == 12:
            sys.stdin.readline()
        if item < 2:
            raise ValueError(item)

    ff.map(work, range(20), engine="serial", chunk=1, on_error="skip", progress={progress})
    print("done", flush=True)
"""


def script(tmp_path, progress=True):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT).format(progress=progress))
    return [sys.executable, str(path)]


def test_a_program_whose_stderr_takes_nothing_runs_and_ends_well(tmp_path):
    reader, writer = os.pipe()
    fill(writer)
    done = subprocess.run(
        script(tmp_path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writer, timeout=60, check=False
    )
    os.close(writer)
    os.close(reader)
    assert (done.returncode, done.stdout) == (0, b"done\n")


# ---- a terminal -----------------------------------------------------------------------------------------------------------------


def terminal():
    """Both ends of a terminal of 80 columns."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    return master, slave


def in_a_terminal(command, until):
    """Run a program with a terminal for its stderr; answer it when `until` is shown. Returns what was shown."""
    master, slave = terminal()
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    shown, answered = b"", False
    try:
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
            if until in shown and not answered:
                answered = True
                child.stdin.write(b"\n")
                child.stdin.flush()
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
        os.close(master)
    return child.returncode, out, shown.decode()


def test_on_a_terminal_a_bar_counts_items_and_failures(tmp_path):
    code, out, shown = in_a_terminal(script(tmp_path), until=b"failed")
    assert (code, out) == (0, b"done\n")
    assert "work: " in shown
    assert "20/20 [" in shown
    assert "item/s" in shown or "s/item" in shown
    assert "2 failed" in shown


def test_a_bar_is_wanted_by_default_on_a_terminal(tmp_path):
    _, out, shown = in_a_terminal(script(tmp_path, progress=None), until=b"item")
    assert out == b"done\n"
    assert "20/20 [" in shown


def test_nothing_is_shown_on_a_terminal_when_asked_for_silence(tmp_path):
    code, out, shown = silent_in_a_terminal(script(tmp_path, progress=False))
    assert (code, out, shown) == (0, b"done\n", "")


def silent_in_a_terminal(command):
    master, slave = terminal()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave, timeout=60, check=False)
    os.close(slave)
    fcntl.fcntl(master, fcntl.F_SETFL, os.O_NONBLOCK)
    try:
        shown = os.read(master, 4096)
    except OSError:
        shown = b""
    os.close(master)
    return done.returncode, done.stdout, shown.decode()


def test_tickets_that_find_no_trial_are_not_counted_as_trials(monkeypatch, at_once):
    stderr = listening(monkeypatch)
    monkeypatch.setattr(optimizing, "WAIT_S", 0.02)
    slow = lambda trial: time.sleep(0.3) if trial.number == 0 else None  # noqa: E731
    sampler = optuna.samplers.TPESampler(seed=0)
    ff.optimize(lambda trial: [slow(trial), 1.0][1], n_trials=3, sampler=sampler, workers=2, batch_size=2)
    counts = [int(each) for each in re.findall(r"(\d+)(?:/\d+)? trials", stderr.getvalue())]
    assert counts
    assert max(counts) <= 3
