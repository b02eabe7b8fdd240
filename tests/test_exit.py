"""However a script starts and ends: nothing of ours on stderr, nobody left behind, and the script runs once.

Each test runs a script in a Python process of its own; `Ended` is (exit code, stdout, stderr, survivors).
"""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Ended, run_script, started

SQUARES = """
    import fourfold as ff

    print(ff.map(lambda x: x * x, range(4), engine="processes", workers=2))
"""

SQUARES_ARE_RIGHT = Ended(0, "[0, 1, 4, 9]\n", "", [])


# ---- how a script ends


def test_a_script_ends_quietly_with_warm_workers(tmp_path: Path) -> None:
    assert run_script(SQUARES, folder=tmp_path) == SQUARES_ARE_RIGHT


@pytest.mark.parametrize("flags", [("-X", "dev"), ("-W", "error"), ("-I",), ("-O",), ("-b", "-b")], ids=" ".join)
def test_a_script_ends_quietly_under_flags_that_complain(tmp_path: Path, flags: tuple[str, ...]) -> None:
    assert run_script(SQUARES, folder=tmp_path, python=flags) == SQUARES_ARE_RIGHT


@pytest.mark.parametrize("engine", ["serial", "threads", "processes", "auto"])
def test_a_script_ends_quietly_on_every_engine(tmp_path: Path, engine: str) -> None:
    text = f"""
        import fourfold as ff

        print(ff.map(abs, range(-3, 3), engine="{engine}", workers=2))
    """
    assert run_script(text, folder=tmp_path, python=("-X", "dev")) == (0, "[3, 2, 1, 0, 1, 2]\n", "", [])


def test_a_script_that_raises_shows_its_own_traceback_only(tmp_path: Path) -> None:
    ended = run_script(SQUARES + "    raise ValueError('of the script')\n", folder=tmp_path)
    assert (ended.code, ended.survivors) == (1, [])
    assert ended.stderr == (
        "Traceback (most recent call last):\n"
        f'  File "{tmp_path}/script.py", line 5, in <module>\n'
        "    raise ValueError('of the script')\n"
        "ValueError: of the script\n"
    )


def test_a_script_may_call_sys_exit(tmp_path: Path) -> None:
    assert run_script(SQUARES + "    import sys\n    sys.exit(3)\n", folder=tmp_path) == (3, "[0, 1, 4, 9]\n", "", [])


@pytest.mark.fault("F45")
def test_a_script_may_call_os_exit(tmp_path: Path) -> None:
    text = SQUARES.replace("print(", "print(flush=True, *") + "    import os\n    os._exit(4)\n"
    assert run_script(text, folder=tmp_path) == (4, "0 1 4 9\n", "", [])


def test_an_item_that_calls_sys_exit_ends_the_script_as_in_the_loop(tmp_path: Path) -> None:
    text = """
        import sys
        import fourfold as ff

        ff.map(sys.exit, [5], engine="processes", workers=2)
    """
    assert run_script(text, folder=tmp_path) == (5, "", "", [])


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
@pytest.mark.parametrize("flags", [(), ("-X", "dev")], ids=["plain", "dev"])
@pytest.mark.fault("F45")
def test_a_stream_may_be_unfinished_at_the_end(tmp_path: Path, engine: str, flags: tuple[str, ...]) -> None:
    text = f"""
        import fourfold as ff

        stream = ff.imap(lambda x: x * x, iter(int, 1), engine="{engine}", workers=2, chunk=1)
        print(next(stream), next(stream))
    """
    assert run_script(text, folder=tmp_path, python=flags) == (0, "0 0\n", "", [])


@pytest.mark.fault("F45")
def test_a_stream_may_be_held_by_a_cycle_at_the_end(tmp_path: Path) -> None:
    text = """
        import fourfold as ff

        held = {"stream": ff.imap(abs, iter(int, 1), engine="processes", workers=2)}
        held["itself"] = held
        print(next(held["stream"]))
    """
    assert run_script(text, folder=tmp_path) == (0, "0\n", "", [])


@pytest.mark.fault("F45")
def test_a_script_may_end_while_items_run_for_ever(tmp_path: Path) -> None:
    text = """
        import fourfold as ff

        def work(x):
            while x:
                pass
            return x

        stream = ff.imap(work, [0, 1, 1], engine="processes", workers=2, chunk=1)
        print(next(stream))
    """
    assert run_script(text, folder=tmp_path) == (0, "0\n", "", [])


@pytest.mark.fault("F45")
def test_a_script_may_end_while_workers_are_still_starting(tmp_path: Path) -> None:
    text = """
        from fourfold.distribute.engines.on_processes.engine import Processes

        engine = Processes(6, print)
        engine.open()
    """
    assert run_script(text, folder=tmp_path) == (0, "", "", [])


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.fault("F45")
def test_a_script_may_end_while_a_thread_of_it_calls(tmp_path: Path, daemon: bool) -> None:
    text = f"""
        import threading
        import fourfold as ff

        running = threading.Event()

        def numbers():
            for number in range(200):
                yield number
                if number > 20:
                    running.set()

        def call():
            results = ff.map(abs, numbers(), engine="processes", workers=2, chunk=1)
            if not {daemon}:
                print(len(results))

        threading.Thread(target=call, daemon={daemon}).start()
        running.wait()
    """
    assert run_script(text, folder=tmp_path) == (0, "" if daemon else "200\n", "", [])


@pytest.mark.fault("F45")
def test_a_pool_may_be_used_by_an_exit_handler(tmp_path: Path) -> None:
    text = """
        import atexit
        import fourfold as ff

        atexit.register(lambda: print(ff.map(abs, range(3), engine="processes", workers=2)))
        ff.map(abs, range(3), engine="processes", workers=2)
    """
    assert run_script(text, folder=tmp_path) == (0, "[0, 1, 2]\n", "", [])


@pytest.mark.fault("F44")
def test_a_forked_child_ends_quietly(tmp_path: Path) -> None:
    text = """
        import os, sys
        import fourfold as ff

        ff.map(abs, range(3), engine="processes", workers=2)
        pid = os.fork()
        if pid == 0:
            sys.exit(6)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(ff.map(abs, range(3), engine="processes", workers=2))
    """
    assert run_script(text, folder=tmp_path, python=("-X", "dev")) == (0, "6\n[0, 1, 2]\n", "", [])


def test_standard_error_may_be_closed(tmp_path: Path) -> None:
    text = """
        import os
        os.close(2)
        import fourfold as ff

        results = ff.map(lambda x: x * x, range(4), engine="processes", workers=2)
        os.write(1, str(list(results)).encode())
    """
    assert run_script(text, folder=tmp_path) == (0, "[0, 1, 4, 9]", "", [])


# ---- how a script starts


@pytest.mark.contract(10, "processes")
@pytest.mark.parametrize("how", ["file", "-c", "-"])
def test_functions_and_classes_of_a_script_without_a_guard_work_and_it_runs_once(tmp_path: Path, how: str) -> None:
    text = """
        import fourfold as ff
        print("once")

        class Point:
            def __init__(self, x):
                self.x = x
            def __eq__(self, other):
                return type(other) is Point and self.x == other.x

        class Failed(Exception):
            pass

        def move(point):
            if point.x < 0:
                raise Failed(point.x)
            return Point(point.x + offset)

        offset = 10
        results = ff.map(move, [Point(1), Point(2)], engine="processes", workers=2)
        print(results == [Point(11), Point(12)], type(results[0]) is Point)
        try:
            ff.map(move, [Point(-1)], engine="processes", workers=2)
        except Failed as error:
            print(repr(error))
    """
    assert run_script(text, folder=tmp_path, how=how) == (0, "once\nTrue True\nFailed(-1)\n", "", [])


def test_lambdas_and_closures_travel(tmp_path: Path) -> None:
    text = """
        import functools
        import fourfold as ff

        def adder(n):
            return lambda x: x + n

        class Model:
            def __init__(self, k):
                self.k = k
            def predict(self, x):
                return self.k * x

        def power(x, n):
            return x ** n

        with ff.using(engine="processes", workers=2):
            print(ff.map(adder(5), [1, 2]), ff.map(Model(3).predict, [1, 2]), ff.map(functools.partial(power, n=2), [3, 4]))
            print([f(1) for f in ff.map(lambda n: lambda x: x + n, [1, 2])])
    """
    assert run_script(text, folder=tmp_path) == (0, "[6, 7] [3, 6] [9, 16]\n[2, 3]\n", "", [])


def test_a_function_that_was_typed_at_a_prompt_works_and_so_does_its_next_version(tmp_path: Path) -> None:
    text = """
        import code

        console = code.InteractiveConsole({"__name__": "__main__"})
        for line in [
            "import fourfold as ff",
            "def f(x):",
            "    return x + 1",
            "",
            "print(ff.map(f, range(3), engine='processes', workers=2))",
            "def f(x):",
            "    return x - 1",
            "",
            "print(ff.map(f, range(3), engine='processes', workers=2))",
        ]:
            console.push(line)
    """
    assert run_script(text, folder=tmp_path) == (0, "[1, 2, 3]\n[-1, 0, 1]\n", "", [])


@pytest.mark.parametrize("how", ["file", "-c", "-"])
def test_a_module_in_the_current_folder_is_found(tmp_path: Path, how: str) -> None:
    (tmp_path / "features.py").write_text("class Row:\n    pass\n\ndef double(x):\n    return 2 * x\n")
    text = """
        import features
        import fourfold as ff

        print(ff.map(features.double, range(3), engine="processes", workers=2))
        print(type(ff.map(lambda x: features.Row(), [1], engine="processes", workers=2)[0]) is features.Row)
    """
    assert run_script(text, folder=tmp_path, how=how) == (0, "[0, 2, 4]\nTrue\n", "", [])


def test_a_program_that_is_run_by_its_module_name_works(tmp_path: Path) -> None:
    package = tmp_path / "job"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("def double(x):\n    return 2 * x\n")
    (package / "__main__.py").write_text(
        "import fourfold as ff\n"
        "from .parts import double\n\n"
        "def triple(x):\n    return double(x) + x\n\n"
        "print(ff.map(triple, range(3), engine='processes', workers=2))\n"
    )
    text = "import runpy; runpy.run_module('job', run_name='__main__', alter_sys=True)"
    assert run_script(text, folder=tmp_path, how="-c") == (0, "[0, 3, 6]\n", "", [])


def test_what_items_print_comes_out_once_and_in_the_drivers_stream(tmp_path: Path) -> None:
    text = """
        import sys
        import fourfold as ff

        def speak(x):
            print("out", x)
            print("err", x, file=sys.stderr)

        ff.map(speak, [7], engine="processes", workers=2)
    """
    assert run_script(text, folder=tmp_path) == (0, "[item 0] out 7\n", "[item 0] err 7\n", [])


# ---- the driver is killed, or interrupted, while its workers are busy

BUSY = {
    "sleeping": "time.sleep(60)",
    "computing": "while True: pass",
    "holding the interpreter in C code": "c.sleep(60)",
    "waiting for a program": "subprocess.run(['sleep', '60'])",
    "waiting for a program's program": "subprocess.run(['sh', '-c', 'sleep 60; true'])",
    "deaf to signals": "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]\n    while True: pass",
}


def busy_script(what: str, engine: str = "processes") -> str:
    # The pipe's end comes when both items are about to be busy.
    return f"""
import fourfold as ff

def work(x):
    import ctypes, signal, subprocess, time
    c = ctypes.PyDLL(None)
    open("busy", "w").close()
    {BUSY[what]}

ff.map(work, range(2), engine="{engine}", workers=2)
"""


def await_busy(folder: Path) -> Callable[[], None]:
    os.mkfifo(folder / "busy")

    def wait() -> None:
        with open(folder / "busy") as pipe:
            pipe.read()

    return wait


@pytest.mark.contract(21, "processes")
@pytest.mark.parametrize("what", BUSY)
@pytest.mark.fault("F42")
def test_nobody_survives_a_driver_that_is_killed(tmp_path: Path, what: str) -> None:
    wait = await_busy(tmp_path)
    with started(busy_script(what), folder=tmp_path) as script:
        wait()
        script.process.kill()
        assert script.end() == (-signal.SIGKILL, "", "", [])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT"])
@pytest.mark.fault("F41")
def test_nobody_survives_a_driver_that_a_signal_ends(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    wait = await_busy(tmp_path)
    with started(busy_script("computing"), folder=tmp_path) as script:
        wait()
        script.process.send_signal(number)
        assert script.end() == (-number, "", "", [])


@pytest.mark.fault("F42")
def test_idle_workers_do_not_survive_a_driver_that_is_killed(tmp_path: Path) -> None:
    text = SQUARES.replace("print(", "print(flush=True, *") + "    import time\n    time.sleep(60)\n"
    with started(text, folder=tmp_path) as script:
        assert script.read_line() == "0 1 4 9"
        script.process.kill()
        assert script.end() == (-signal.SIGKILL, "", "", [])


@pytest.mark.fault("F42")
def test_nobody_survives_a_driver_that_is_killed_after_its_template(tmp_path: Path) -> None:
    wait = await_busy(tmp_path)
    text = busy_script("computing").replace(
        "ff.map(work",
        "import os, threading\nfrom fourfold.distribute.engines.on_processes.pool import POOL\n"
        "def kill():\n    open('ask', 'r').close()\n    POOL._template.kill()\n    POOL._template.wait()\n"
        "    print('killed', flush=True)\n"
        "threading.Thread(target=kill, daemon=True).start()\nff.map(work",
    )
    os.mkfifo(tmp_path / "ask")
    with started(text, folder=tmp_path) as script:
        wait()
        open(tmp_path / "ask", "w").close()
        assert script.read_line() == "killed"
        script.process.kill()
        assert script.end().survivors == []


INTERRUPTED = -signal.SIGINT


def only_a_keyboard_interrupt(stderr: str) -> bool:
    """One traceback, the driver's, and nothing else."""
    tracebacks = re.findall(r"^Traceback \(", stderr, re.MULTILINE)
    return stderr.startswith("Traceback (") and len(tracebacks) == 1 and stderr.endswith("\nKeyboardInterrupt\n")


@pytest.mark.contract(20, "processes")
@pytest.mark.slow
@pytest.mark.parametrize("what", BUSY)
@pytest.mark.fault("F40")
def test_ctrl_c_ends_the_driver_and_leaves_nobody(tmp_path: Path, what: str) -> None:
    wait = await_busy(tmp_path)
    with started(busy_script(what), folder=tmp_path) as script:
        wait()
        script.interrupt()
        ended = script.end()
    assert (ended.code, ended.stdout, ended.survivors) == (INTERRUPTED, "", [])
    assert only_a_keyboard_interrupt(ended.stderr), ended.stderr


@pytest.mark.contract(20, "serial", "threads")
@pytest.mark.parametrize("engine", ["serial", "threads"])
@pytest.mark.fault("F40")
def test_ctrl_c_ends_the_driver_on_other_engines(tmp_path: Path, engine: str) -> None:
    wait = await_busy(tmp_path)
    text = busy_script("sleeping", engine).replace("range(2)", "range(1)")
    with started(text, folder=tmp_path) as script:
        wait()
        script.interrupt()
        ended = script.end()
    assert (ended.code, ended.stdout, ended.survivors) == (INTERRUPTED, "", [])
    assert only_a_keyboard_interrupt(ended.stderr), ended.stderr


@pytest.mark.slow
@pytest.mark.fault("F41")
def test_a_second_ctrl_c_ends_the_driver_at_once(tmp_path: Path) -> None:
    wait = await_busy(tmp_path)
    with started(busy_script("computing"), folder=tmp_path) as script:
        wait()
        script.interrupt()
        script.interrupt()
        ended = script.end()
    assert (ended.code, ended.survivors) == (INTERRUPTED, [])


@pytest.mark.slow
@pytest.mark.fault("F40")
def test_the_next_call_works_after_ctrl_c(tmp_path: Path) -> None:
    text = busy_script("computing").replace("ff.map(work", "try:\n    ff.map(work") + (
        "except KeyboardInterrupt:\n    print(ff.map(abs, range(3), engine='processes', workers=2))\n"
    )
    wait = await_busy(tmp_path)
    with started(text, folder=tmp_path) as script:
        wait()
        script.interrupt()
        assert script.end() == (0, "[0, 1, 2]\n", "", [])


@pytest.mark.slow
@pytest.mark.parametrize("delay_ms", [0, 5, 15, 30, 50, 80])
@pytest.mark.fault("F40")
def test_ctrl_c_at_a_terminal_reaches_all_and_is_told_once(tmp_path: Path, delay_ms: int) -> None:
    # A terminal sends it to the whole group: to the driver, to the template, and to whoever is just being started.
    text = f"""
        import os, signal, threading, time
        import fourfold as ff
        from fourfold.distribute.engines.on_processes.pool import POOL

        def interrupt():
            while POOL._template is None:
                pass
            time.sleep({delay_ms} / 1000)
            os.killpg(0, signal.SIGINT)

        def work(x):
            while True:
                pass

        threading.Thread(target=interrupt).start()
        ff.map(work, range(4), engine="processes", workers=2)
    """
    ended = run_script(text, folder=tmp_path)
    assert (ended.code, ended.stdout, ended.survivors) == (INTERRUPTED, "", [])
    assert only_a_keyboard_interrupt(ended.stderr), ended.stderr


if sys.platform != "linux":
    pytest.skip("survivors are found through /proc", allow_module_level=True)
