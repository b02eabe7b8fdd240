"""Ctrl-C, and the other signals that end a driver: what finished is kept, it is said how to go on, and nobody is left behind."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recorded_items import recorded_items
from running import Script, is_in_time, run_script, started

import fourfold as ff

SCRIPT = """
    import os, sys, time
    import fourfold as ff

    def fn(item):
        open("busy", "w").close()
        time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else float(os.environ["ITEM_S"]))
        return item

    if __name__ == "__main__":
        ff.map(fn, range(100), run="run", engine=sys.argv[1], workers=2, chunk=1)
"""


def wait_until_busy(folder: Path, n_items: int = 1) -> None:
    """Returns when some items have begun."""
    for _ in range(n_items):
        with open(folder / "busy") as pipe:
            pipe.read()


def recorded(folder: Path) -> int:
    """How many items the run has."""
    from fourfold.runs.story import story_of

    return story_of(folder / "run").n_done


@pytest.mark.fault("F40")
def test_the_first_ctrl_c_keeps_what_ends_within_the_grace_and_says_how_to_go_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "busy")
    with started(SCRIPT, "processes", folder=tmp_path, ITEM_S="0.4") as script:
        wait_until_busy(tmp_path)
        script.interrupt()
        ended = script.end()
    assert (ended.code, ended.survivors) == (-signal.SIGINT, [])
    assert ended.stderr.endswith(
        "KeyboardInterrupt\nfourfold: what finished is recorded in run: the same call goes on from there\n"
    )
    assert ended.stderr.count("Traceback") == 1
    assert recorded(tmp_path) >= 1


STUCK = """
    import os, time
    import fourfold as ff

    def fn(item):
        with open(f"ran-{item}", "a") as file:
            file.write("+")
        if item == 5 and not os.path.exists("again"):
            open("busy", "w").close()
            time.sleep(60)
        time.sleep(0.05)
        return item

    if __name__ == "__main__":
        print(ff.map(fn, range(8), run="run", engine="processes", workers=1, chunk=8).report.n_recorded)
"""


@pytest.mark.slow
@pytest.mark.fault("F40")
def test_ctrl_c_keeps_what_finished_before_an_item_that_does_not_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "busy")
    with started(STUCK, folder=tmp_path) as script:
        wait_until_busy(tmp_path)
        script.interrupt()
        ended = script.end()
    assert (ended.code, ended.survivors) == (-signal.SIGINT, [])
    (tmp_path / "again").touch()
    with started(STUCK, folder=tmp_path) as script:
        ended = script.end()
    assert (ended.code, ended.stdout) == (0, "5\n")
    assert [len((tmp_path / f"ran-{item}").read_text()) for item in range(8)] == [1, 1, 1, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("engine", ["processes", "threads"])
@pytest.mark.fault("F40")
def test_two_signals_of_one_key_are_one(tmp_path: Path, engine: str) -> None:
    os.mkfifo(tmp_path / "busy")
    with started(SCRIPT, engine, folder=tmp_path, ITEM_S="0.6") as script:
        wait_until_busy(tmp_path)
        script.interrupt()
        script.interrupt()
        ended = script.end()
    assert (ended.code, ended.survivors) == (-signal.SIGINT, [])
    assert recorded(tmp_path) >= 1


@pytest.mark.slow
@pytest.mark.fault("F41")
def test_the_second_ctrl_c_ends_all_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "busy")
    patient = SCRIPT.replace("import fourfold as ff", "import fourfold as ff; from fourfold.distribute import driver")
    patient = patient.replace("ff.map(", "driver.GRACE_S = 50.0; ff.map(")  # so that a busy machine is no grace
    with started(patient, "processes", folder=tmp_path, ITEM_S="60") as script:
        wait_until_busy(tmp_path)
        script.interrupt()
        time.sleep(0.5)  # a person's finger: later than an echo, earlier than the grace
        script.interrupt()
        ended = script.end(timeout=30)
    assert (ended.code, ended.survivors) == (-signal.SIGINT, [])
    assert ended.stderr.count("Traceback") <= 2


@pytest.mark.slow
@pytest.mark.fault("F40")
def test_items_that_do_not_end_are_killed_after_the_grace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "busy")
    with started(SCRIPT, "processes", folder=tmp_path, ITEM_S="60") as script:
        wait_until_busy(tmp_path)
        began = time.monotonic()
        script.interrupt()
        ended = script.end()
    assert is_in_time(time.monotonic() - began, 5)
    assert (ended.code, ended.survivors) == (-signal.SIGINT, [])


@pytest.mark.contract(20, "serial", "threads", "processes")
@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
@pytest.mark.fault("F40")
def test_after_ctrl_c_the_next_call_goes_on(tmp_path: Path, engine: str) -> None:
    text = """
        import os, signal, sys
        import fourfold as ff

        def fn(item):
            if item == 30 and not os.path.exists("twice"):
                open("twice", "w").close()
                os.kill(int(os.environ["DRIVER"]), signal.SIGINT)
            return item * item

        if __name__ == "__main__":
            os.environ["DRIVER"] = str(os.getpid())
            options = {"run": "run", "engine": sys.argv[1], "workers": 2, "chunk": 1}
            try:
                ff.map(fn, range(1000), **options)
            except KeyboardInterrupt:
                results = ff.map(fn, range(1000), **options)
            print(results == [item * item for item in range(1000)], results.report.n_recorded >= 5)
    """
    assert run_script(text, engine, folder=tmp_path) == (0, "True True\n", "", [])


MOMENTS = """
    print("on", flush=True)
    import os, signal, time
    import fourfold as ff

    def fn(item):
        time.sleep(0.001)
        end = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(end, b"%d\\n" % item)
        os.close(end)
        return item * 0.1

    if __name__ == "__main__":
        results = ff.map(fn, range(600), run="run", engine="processes", workers=2, progress=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what follows is Python's own end
        print(repr(results))
"""

HINT = "fourfold: what finished is recorded in run: the same call goes on from there\n"


IN_AN_IMPORT = re.compile(
    r'Traceback \(most recent call last\):\n(  File "<frozen importlib.*\n)+KeyError: .*\n\n'
    r"During handling of the above exception, another exception occurred:\n\n"
)
"""Python looks into the cache of its import system, and says so when it is interrupted after it found nothing there."""

LOST_IN_AN_IMPORT = re.compile(
    r"Exception ignored in: <function _get_module_lock.*\nTraceback \(most recent call last\):\n"
    r'  File "<frozen importlib.*\nKeyboardInterrupt: *\n'
)
"""An interrupt that comes in a callback of the import system is dropped by Python, which says so: the script goes on."""


def is_one_interrupt(stderr: str) -> bool:
    """The driver's own traceback, and how to go on when the call had begun. Nothing else."""
    lines = IN_AN_IMPORT.sub("", stderr).removesuffix(HINT).splitlines()
    others = [line for line in lines[1:-1] if line and not line.startswith("  ")]
    return (lines[0], lines[-1], others) == ("Traceback (most recent call last):", "KeyboardInterrupt", [])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.fault("F40", faults=50)
def test_ctrl_c_at_any_moment_keeps_all_that_ran_and_leaves_a_whole_journal_and_nobody(tmp_path: Path) -> None:
    """50 seeded moments, from the first line of the script to the end of the run."""
    moments, n_interrupts, before = random.Random(3), 0, set()
    while n_interrupts < 50:
        n_ran = len(ran(tmp_path))
        with started(MOMENTS, folder=tmp_path) as script:
            assert script.read_line() == "on"
            with contextlib.suppress(subprocess.TimeoutExpired):
                script.process.wait(moments.uniform(0.0, 0.45))
            script.interrupt()
            ended = script.end()
        assert ended.survivors == []
        now = ran(tmp_path)
        assert not before & set(now[n_ran:]), "a recorded item ran again"
        before = recorded_items(tmp_path / "run")
        if ended.code == 0:  # the run was faster: begin a new one
            told = LOST_IN_AN_IMPORT.sub("", ended.stderr)
            assert (ended.stdout, told) == (repr([item * 0.1 for item in range(600)]) + "\n", "")
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "ran").unlink()
            before = set()
            continue
        n_interrupts += 1
        assert (ended.code, ended.stdout) == (-signal.SIGINT, "")
        assert is_one_interrupt(ended.stderr), ended.stderr
        assert before == set(now), "what ran is recorded"
        assert len(now) == len(set(now)), "and so nothing has run twice"
    ended = run_script(MOMENTS, folder=tmp_path)
    assert ended == (0, "on\n" + repr([item * 0.1 for item in range(600)]) + "\n", "", [])


def ran(folder: Path) -> list[int]:
    """The items that have run, in this session or before."""
    return [int(line) for line in (folder / "ran").read_text().split()] if (folder / "ran").exists() else []


# ---- the command line


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text(
        "import os, time\n\ndef slow(row):\n    open('busy', 'w').close()\n"
        "    time.sleep(0.2 if os.path.exists('slowly') else 0)\n    return row\n"
    )
    (tmp_path / "slowly").touch()
    (tmp_path / "rows.txt").write_text("".join(f"{number}\n" for number in range(40)))
    os.mkfifo(tmp_path / "busy")
    return tmp_path


COMMAND = ["map", "slow:slow", "rows.txt", "-o", "out.jsonl", "--run", "run", "--engine", "processes", "--workers", "2"]


@contextlib.contextmanager
def command(folder: Path, *arguments: str):
    """The command line as a script that was started."""
    text = f"import sys; sys.argv[1:] = {list(arguments)!r}\nfrom fourfold.cli import main\nmain()\n"
    with started(text, folder=folder, how="-c") as script:
        yield script


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.fault("F41")
def test_a_signal_ends_the_command_with_its_code_and_one_line(rows: Path, name: str, code: int) -> None:
    with command(rows, *COMMAND) as script:
        wait_until_busy(rows)
        script.process.send_signal(getattr(signal, name))
        ended = script.end()
    assert (ended.code, ended.survivors) == (code, [])
    lines = [line for line in ended.stderr.splitlines() if "items," not in line]
    assert lines == ["fourfold: interrupted: out.jsonl was not written; what finished is in run; go on: fourfold resume run"]
    assert not (rows / "out.jsonl").exists()
    assert not list(rows.glob(".*.part"))


def test_the_line_that_an_interrupted_command_prints_finishes_it(rows: Path) -> None:
    with command(rows, *COMMAND) as script:
        wait_until_busy(rows)
        script.interrupt()
        ended = script.end()
    line = ended.stderr.splitlines()[-1]
    assert line.endswith("go on: fourfold resume run")
    (rows / "busy").unlink()
    (rows / "slowly").unlink()
    ended = run_fourfold(rows, *line.rpartition("fourfold ")[2].split())
    assert ended.returncode == 0, ended.stderr
    assert "40 of 40 items written" in ended.stderr
    assert [int(line) for line in (rows / "out.jsonl").read_text().replace('"', "").split()] == list(range(40))


def run_fourfold(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fourfold", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


TERMINAL = """
    import os, pty, sys
    sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, "-m", "fourfold", *sys.argv[1:]])))
"""


@pytest.mark.fault("F40")
def test_ctrl_c_typed_at_a_terminal_ends_the_command_and_leaves_the_terminal_usable(rows: Path) -> None:
    with started(TERMINAL, *COMMAND, folder=rows) as script:
        wait_until_busy(rows)
        assert script.process.stdin is not None
        script.process.stdin.write("\x03")
        script.process.stdin.flush()
        ended = typed(script)
    assert (ended.code, ended.survivors) == (130, [])
    assert "go on: fourfold resume run" in ended.stdout
    assert "Traceback" not in ended.stdout


def typed(script: Script):
    """The end of a script whose standard input is a person: it stays open."""
    script.process.wait(30)
    return script.end()


@pytest.mark.fault("F41")
def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    for number in range(3):
        ff.map(abs, [-1], run=tmp_path / str(number))
    shell = f"{sys.executable} -u -m fourfold runs . | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")
    full = f"{sys.executable} -u -m fourfold show 0 --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", full], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("141\n", "")
