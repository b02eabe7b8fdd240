"""A gang: processes that talk to each other. All start or none runs, one fails and all end, and they start again together."""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from running import is_in_time, run_script, started, until

import fourfold as ff
from fourfold.distribute.engines.on_ray import gang as ray_gang
from fourfold.errors import (
    GangFailed,
    GangTimeout,
    NotPicklable,
    OptionError,
    OptionTypeError,
    RemoteError,
    UnreadableInput,
    UnsupportedOption,
    UntrustedRun,
    WorkerStartFailed,
)
from fourfold.patterns.gang import crew, guard, launching, places
from fourfold.patterns.gang.ends import End, died, first_failure
from fourfold.patterns.gang.logs import Log

PATIENCE_S = 30.0


def rank() -> int:
    return int(os.environ["RANK"])


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.005)


# ---- values and environment


def test_values_come_in_the_order_of_ranks_whoever_ends_first(tmp_path):
    def fn(first, second):
        if rank() == 0:
            wait_for(tmp_path / "rank 1 is done")
        else:
            (tmp_path / "rank 1 is done").touch()
        return rank(), first + second

    assert ff.launch(fn, 2, (1, 2)) == [(0, 3), (1, 3)]


def test_ranks_wait_for_each_other_whatever_the_default_timeout_of_sockets_is():
    socket.setdefaulttimeout(0.001)
    try:
        assert ff.launch(rank, 2) == [0, 1]
    finally:
        socket.setdefaulttimeout(None)


def test_each_rank_knows_who_it_is_before_its_function_is_loaded(tmp_path):
    (tmp_path / "asks.py").write_text("import os\nSEEN = dict(os.environ)\n\ndef seen():\n    return SEEN\n")
    text = """
        import fourfold as ff, asks
        one, two = ff.launch(asks.seen, 2)
        names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR FOURFOLD_RESTART_COUNT TORCHELASTIC_RESTART_COUNT"
        print([one[name] for name in names.split()], [two[name] for name in names.split()])
        print(one["MASTER_PORT"] == two["MASTER_PORT"], int(one["MASTER_PORT"]) > 0)
    """
    ended = run_script(text, folder=tmp_path)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        "['0', '2', '0', '2', '127.0.0.1', '0', '0'] ['1', '2', '1', '2', '127.0.0.1', '0', '0']",
        "True True",
    ]


def test_cores_are_shared_out_unless_the_environment_says_something_else(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(places, "cores", lambda: launching.cores()._replace(n_cores=6))
    assert places.of_this_machine(2)["OMP_NUM_THREADS"] == "3"
    assert places.of_this_machine(4)["MKL_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert places.of_this_machine(2)["OMP_NUM_THREADS"] == "5"


def test_a_function_of_a_script_travels_by_value_and_the_script_runs_once(tmp_path):
    text = """
        import fourfold as ff
        print("here")
        factor = 3
        class Point:
            def __init__(self, x): self.x = x
        def fn(x):
            import os
            return Point(factor * x + int(os.environ["RANK"]))
        print([point.x for point in ff.launch(fn, 2, (5,))])
    """
    ended = run_script(text, folder=tmp_path)
    assert (ended.code, ended.stdout.splitlines(), ended.stderr) == (0, ["here", "[15, 16]"], "")


def test_a_gang_of_one_is_a_process_of_its_own():
    ((pid, parent),) = ff.launch(lambda: (os.getpid(), os.getppid()), 1)
    assert pid != os.getpid()
    assert parent == os.getpid()


def test_a_large_value_comes_back_whole():
    (value,) = ff.launch(lambda: bytes(range(256)) * (1 << 16), 1)
    assert value == bytes(range(256)) * (1 << 16)


def test_a_value_is_read_once_however_long_its_rank_takes_to_end(tmp_path, monkeypatch):
    (tmp_path / "end").mkdir()
    reads = []
    usual = crew.pickle.loads
    looks = []

    def look(self, rank):
        if reads and len(looks) < 5:
            looks.append(rank)
        elif looks:
            (tmp_path / "end" / "now").touch()
        return usual_look(self, rank)

    def fn():
        threading.Thread(target=wait_for, args=(tmp_path / "end" / "now",)).start()
        return "value"

    usual_look = crew.Crew._look
    monkeypatch.setattr(crew.Crew, "_look", look)
    monkeypatch.setattr(crew.pickle, "loads", lambda data: reads.append(len(data)) or usual(data))
    assert ff.launch(fn, 1) == ["value"]
    assert len(looks) == 5
    assert len(reads) == 2  # what it has left, and the value in that


def test_a_fork_that_comes_out_of_the_function_does_not_answer_for_its_rank():
    def fn():
        pid = os.fork()
        if pid == 0:
            return "of the fork"
        os.waitpid(pid, 0)
        os._exit(0)

    with pytest.raises(GangFailed, match="rank 0 of 1 ended with code 0"):
        ff.launch(fn, 1)


# ---- all or none


def test_when_one_rank_cannot_be_started_none_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(crew.seams, "hit", fails_at("gang.start", 2))
    with pytest.raises(WorkerStartFailed, match=r"1 of 3 ranks could be started, and then: .*too many.*None of them runs now"):
        ff.launch(lambda: (tmp_path / "ran").touch(), 3)
    assert not (tmp_path / "ran").exists()


def fails_at(seam, number):
    seen = []

    def hit(name):
        seen.append(name)
        if name == seam and len(seen) == number:
            raise OSError(11, "too many processes")

    return hit


def test_when_one_rank_dies_before_all_are_there_none_runs(tmp_path, monkeypatch):
    real = crew.Crew._spawn

    def spawn(self, each, environment):
        real(self, each, environment)
        if each.number == 1:
            os.kill(each.process.pid, signal.SIGKILL)

    monkeypatch.setattr(crew.Crew, "_spawn", spawn)
    with pytest.raises(WorkerStartFailed, match=r"rank 1 was killed by SIGKILL.*none of the ranks runs now"):
        ff.launch(lambda: (tmp_path / "ran").touch(), 2)
    assert not (tmp_path / "ran").exists()


# ---- failures


def test_the_failure_that_was_first_is_raised_also_when_another_rank_failed_of_it(tmp_path):
    def fn():
        import fourfold.patterns.gang.member as member

        if rank() == 1:
            import atexit

            leave = member._leave

            def leave_and_tell(*args):
                leave(*args)
                (tmp_path / "rank 1 failed").touch()

            member._leave = leave_and_tell
            atexit.register(threading.Event().wait)  # it does not end before it is stopped
            raise ValueError("the cause")
        wait_for(tmp_path / "rank 1 failed")
        raise ConnectionError("peer is gone")

    with pytest.raises(ValueError, match="the cause") as caught:
        ff.launch(fn, 2)
    assert caught.value.__notes__ == ["fourfold: rank 1 of 2 raised this."]
    assert 'raise ValueError("the cause")' in str(caught.value.__cause__)
    assert "member.py" not in str(caught.value.__cause__)


def test_a_rank_that_the_kernel_is_still_ending_is_the_first_failure_and_not_what_others_say_of_it(tmp_path, monkeypatch):
    """Its sockets are closed before its parent can see it dead; on a busy machine, long before."""
    is_dying, reap, asked = crew._is_dying, crew.Crew._reap, []

    def ask(each):
        asked.append(each.number)
        return is_dying(each)

    monkeypatch.setattr(crew, "_is_dying", ask)
    monkeypatch.setattr(crew.Crew, "_reap", lambda self, each: (each.number == 0 or 1 in asked) and reap(self, each))

    def fn():
        if rank() == 1:
            (tmp_path / "new").write_text(str(os.getpid()))
            (tmp_path / "new").rename(tmp_path / "pid")
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for(tmp_path / "pid")
        until(lambda: not is_there(int((tmp_path / "pid").read_text())), "rank 1 dies")
        raise ConnectionError("peer is gone")

    with pytest.raises(GangFailed, match="rank 1 of 2 was killed by SIGKILL"):
        ff.launch(fn, 2)


def test_a_death_comes_before_what_others_say_of_it_and_an_end_after_the_value_comes_last():
    raised = [End(0, "raised", 7.0), End(1, "raised", 5.0), End(2, "value", 1.0)]
    assert first_failure(raised) == raised[1]
    assert first_failure([*raised, died(3, "was killed", "", after_value=False)]).rank == 3
    assert first_failure([*raised, died(3, "was killed", "", after_value=True)]).rank == 1
    assert first_failure([End(0, "value"), End(1, "stopped")]) is None


def test_the_last_lines_of_the_rank_that_failed_are_in_its_error():
    def fn():
        print("step", rank())
        os.write(2, b"from C code\n")
        if rank() == 1:
            raise ValueError("x")
        signal.pause()

    with pytest.raises(ValueError, match="x") as caught:
        ff.launch(fn, 2, progress=False)
    assert caught.value.__notes__[1].splitlines()[0] == "fourfold: the last lines of rank 1:"
    assert sorted(caught.value.__notes__[1].splitlines()[1:]) == ["from C code", "step 1"]


def test_a_rank_that_is_killed_is_named_with_its_signal_and_all_others_end():
    def fn():
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()

    began = time.monotonic()
    with pytest.raises(GangFailed, match=r"^rank 1 of 2 was killed by SIGKILL, before its function returned") as caught:
        ff.launch(fn, 2)
    assert caught.value.rank == 1
    assert is_in_time(time.monotonic() - began, 5.0)


def test_a_rank_that_leaves_with_os_exit_is_named_with_its_code_also_when_that_is_0():
    for code in (0, 3):
        with pytest.raises(GangFailed, match=rf"rank 0 of 1 ended with code {code} \(os._exit"):
            ff.launch(os._exit, 1, (code,))


def test_sys_exit_in_a_function_is_a_failure_of_its_rank_and_does_not_end_the_driver():
    with pytest.raises(GangFailed, match=r"rank 0 of 1 ended with sys.exit\(3\)"):
        ff.launch(sys.exit, 1, (3,))


def test_a_crash_shows_the_stack_of_its_rank():
    def crash():
        os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(GangFailed, match="rank 0 of 1 was killed by SIGSEGV") as caught:
        ff.launch(crash, 1, progress=False)
    assert "in crash" in caught.value.__notes__[0]


def test_an_exception_that_cannot_travel_keeps_its_type_and_message_as_text():
    def fn():
        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__(f"{a} and {b}")

        raise Odd(1, 2)

    with pytest.raises(RemoteError, match="Odd: 1 and 2"):
        ff.launch(fn, 1)


@pytest.mark.slow
def test_a_gang_that_hangs_ends_when_its_time_is_over_and_says_where():
    def waits_for_ever():
        threading.Event().wait()

    with pytest.raises(GangTimeout, match=r"timeout=1.5: 2 of 2 ranks had not ended in time: 0, 1") as caught:
        ff.launch(waits_for_ever, 2, timeout=1.5, progress=False)
    assert "in waits_for_ever" in caught.value.__notes__[0]
    assert isinstance(caught.value, TimeoutError)


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(tmp_path, monkeypatch):
    monkeypatch.setattr(crew.Crew.stop, "__defaults__", (0.3,))

    def fn():
        if rank() == 0:
            signal.signal(signal.SIGTERM, lambda *_: (tmp_path / "asked").touch())
            (tmp_path / "deaf").touch()
            while True:
                signal.pause()
        wait_for(tmp_path / "deaf")
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        ff.launch(fn, 2)
    assert (tmp_path / "asked").exists()


@pytest.mark.parametrize("end", [lambda: os._exit(3), lambda: int("x")], ids=["exits", "raises"])
def test_what_a_failed_rank_has_started_ends_with_it(end, tmp_path):
    def fn():
        import subprocess

        other = subprocess.Popen(["sleep", "600"], start_new_session=True)
        (tmp_path / "pid").write_text(str(other.pid))
        end()

    with pytest.raises((ValueError, GangFailed)):
        ff.launch(fn, 1)
    until(lambda: not is_there(int((tmp_path / "pid").read_text())), "its child ends")


def test_what_a_rank_has_started_and_left_in_its_group_ends_when_it_has_returned():
    def fn():
        import subprocess

        return subprocess.Popen(["sleep", "600"]).pid

    (pid,) = ff.launch(fn, 1)
    until(lambda: not is_there(pid), "its child ends")


def is_there(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---- the driver ends

WAITS = """
    import fourfold as ff
    def fn():
        import os, subprocess, time
        print("up", subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)
        if os.environ["RANK"] == "1":
            sum(range(10 ** 12))  # C code that never lets go of the interpreter
        time.sleep(600)
    ff.launch(fn, 2)
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nobody_behind(tmp_path):
    with started(WAITS, folder=tmp_path) as script:
        lines = {script.read_line()[:8] for _ in range(2)}
        assert lines == {"[rank 0]", "[rank 1]"}
        script.process.kill()
        assert script.end().survivors == []


@pytest.mark.skipif(sys.platform != "linux", reason="a mark is a limit that only Linux tells of others")
def test_the_guard_leaves_alone_who_has_the_number_of_a_rank_that_ended_long_ago():
    code = "import os, sys; print(flush=True); sys.stdin.read()"
    other = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(other, start_new_session=True, **pipes) as innocent:
        assert innocent.stdout.readline() == b"\n"
        with crew._python(guard, f"{os.getpid()}, {crew.family.new_mark()}", stdin=subprocess.PIPE) as watcher:
            watcher.communicate(f"{innocent.pid}\n".encode(), timeout=PATIENCE_S)  # its end is that of the driver
        innocent.communicate(timeout=PATIENCE_S)
    assert innocent.returncode == 0


@pytest.mark.slow
def test_ctrl_c_ends_all_ranks_and_then_the_driver(tmp_path):
    with started(WAITS, folder=tmp_path) as script:
        for _ in range(2):
            assert "up" in script.read_line()
        os.killpg(script.process.pid, signal.SIGINT)  # as a terminal does it
        ended = script.end()
    assert ended.survivors == []
    assert "KeyboardInterrupt" in ended.stderr
    assert "[rank" not in ended.stderr  # they did not hear it


# ---- again


@pytest.mark.slow
def test_a_gang_starts_again_from_its_last_checkpoint_and_knows_how_often(tmp_path):
    def fn():
        state = ff.gang.restore({"step": 0})
        begun_at, count = state["step"], os.environ["FOURFOLD_RESTART_COUNT"]
        for step in range(begun_at, 5):
            if step == 3 and count == "0" and rank() == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            ff.gang.checkpoint({"step": step + 1})
        return begun_at, count

    folder = tmp_path / "new" / "saved"
    first, second = ff.launch(fn, 2, max_restarts=1, checkpoint=folder)
    assert first == (3, "1")
    assert second[1] == "1"
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pickle"]
    # A call with the same folder goes on from there.
    assert ff.launch(fn, 1, checkpoint=folder) == [(5, "0")]


@pytest.mark.slow
def test_a_gang_starts_again_as_often_as_it_may_and_not_once_more(tmp_path, caplog):
    def fn():
        with open(tmp_path / "starts", "a") as file:
            file.write(os.environ["FOURFOLD_RESTART_COUNT"])
        raise ValueError("always")

    with pytest.raises(ValueError, match="always") as caught:
        ff.launch(fn, 1, max_restarts=2)
    assert (tmp_path / "starts").read_text() == "012"
    assert "fourfold: rank 0 of 1 raised this. The gang was started again 2 times." in caught.value.__notes__
    assert "rank 0 failed, and the gang starts again (2 of at most 2): ValueError: always" in caplog.text


def test_a_rank_that_is_killed_while_it_keeps_a_checkpoint_leaves_the_one_before(tmp_path):
    class Deadly:
        def __reduce__(self):
            os.kill(os.getpid(), signal.SIGKILL)

    def fn():
        if os.environ["FOURFOLD_RESTART_COUNT"] == "0":
            ff.gang.checkpoint("whole")
            ff.gang.checkpoint([bytes(1 << 20), Deadly()])
        left = len(os.listdir(tmp_path))
        found = ff.gang.restore()
        ff.gang.checkpoint("next")
        return found, left, len(os.listdir(tmp_path)), ff.gang.restore()

    assert ff.launch(fn, 1, max_restarts=1, checkpoint=tmp_path) == [("whole", 2, 1, "next")]


def test_only_rank_0_keeps_a_checkpoint(tmp_path):
    def fn():
        if rank() == 1:
            ff.gang.checkpoint("of rank 1")
        return ff.gang.restore("none yet")

    assert ff.launch(fn, 2, checkpoint=tmp_path) == ["none yet", "none yet"]


def test_a_checkpoint_that_others_could_have_written_is_not_unpickled(tmp_path):
    file = tmp_path / "checkpoint.pickle"
    file.write_bytes(pickle.dumps("state"))
    file.chmod(0o666)
    with pytest.raises(UntrustedRun, match=r"others may write it.*chmod 600"):
        ff.launch(ff.gang.restore, 1, checkpoint=tmp_path)


@pytest.mark.parametrize("left", [b"", pickle.dumps(["state"] * 100)[:-9], b"no pickle"])
def test_a_checkpoint_that_is_cut_off_is_named_with_what_to_do(left, tmp_path):
    file = tmp_path / "checkpoint.pickle"
    file.write_bytes(left)
    file.chmod(0o600)
    with pytest.raises(UnreadableInput, match=r"checkpoint\.pickle: is (empty|no whole).*move it away"):
        ff.launch(ff.gang.restore, 1, checkpoint=tmp_path)


def test_a_state_that_cannot_be_pickled_is_named_by_its_path_and_the_one_before_stays(tmp_path):
    def fn():
        ff.gang.checkpoint("whole")
        try:
            ff.gang.checkpoint({"lock": threading.Lock()})
        except NotPicklable as error:
            return str(error), ff.gang.restore(), os.listdir(tmp_path)

    ((message, state, files),) = ff.launch(fn, 1, checkpoint=tmp_path)
    assert "state['lock']" in message
    assert (state, files) == ("whole", ["checkpoint.pickle"])


def test_a_checkpoint_without_a_folder_says_what_to_give():
    with pytest.raises(OptionError, match=r"give ff\.launch one, with checkpoint="):
        ff.launch(ff.gang.checkpoint, 1, ("state",))
    with pytest.raises(OptionError, match=r"give ff\.launch one, with checkpoint="):
        ff.gang.restore()


# ---- ports


def test_a_port_that_is_taken_before_the_start_is_not_used(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], free := places.free_port()])
        monkeypatch.setattr(places, "free_port", lambda: next(ports))
        assert ff.launch(lambda: int(os.environ["MASTER_PORT"]), 1) == [free]


@pytest.mark.slow
def test_a_port_that_somebody_comes_to_before_rank_0_costs_no_restart(tmp_path):
    def fn():
        port = int(os.environ["MASTER_PORT"])
        (tmp_path / "mine").write_text(str(port))
        (tmp_path / "mine").rename(tmp_path / "port")
        wait_for(tmp_path / "go on")
        with socket.create_server(("127.0.0.1", port)):
            return port, os.environ["FOURFOLD_RESTART_COUNT"]

    taken = []

    def take():
        wait_for(tmp_path / "port")
        taken.append(socket.create_server(("127.0.0.1", int((tmp_path / "port").read_text()))))
        (tmp_path / "go on").touch()

    thread = threading.Thread(target=take)
    thread.start()
    ((port, restarts),) = ff.launch(fn, 1)
    thread.join()
    with taken[0]:
        assert port != taken[0].getsockname()[1]
    assert restarts == "0"


def test_a_port_of_the_function_that_is_taken_is_its_own_failure(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def fn():
            with open(tmp_path / "starts", "a") as file:
                file.write("x")
            socket.create_server(("127.0.0.1", port))

        with pytest.raises(OSError, match="in use"):
            ff.launch(fn, 1)
    assert (tmp_path / "starts").read_text() == "x"


# ---- what cannot travel


def test_a_function_that_cannot_travel_is_named_by_the_path_of_what_holds_it_back():
    lock = threading.Lock()
    with pytest.raises(NotPicklable, match=r"cannot travel to the ranks: .*lock"):
        ff.launch(lambda: lock, 2)
    with pytest.raises(NotPicklable, match=r"cannot travel to the ranks: args\[0\]"):
        ff.launch(print, 2, (lock,))


def test_a_value_that_cannot_travel_is_named_by_its_path_and_no_start_is_tried_again(tmp_path):
    def fn():
        with open(tmp_path / "starts", "a") as file:
            file.write("x")
        return {"lock": threading.Lock()}

    with pytest.raises(NotPicklable, match=r"rank 0 of 1: its value cannot travel back: value\['lock'\]"):
        ff.launch(fn, 1, max_restarts=3)
    assert (tmp_path / "starts").read_text() == "x"


def test_a_function_whose_module_ranks_do_not_have_says_so():
    class Absent:
        def __reduce__(self):
            return __import__, ("not_there_at_all",)

    with pytest.raises(ModuleNotFoundError, match="not_there_at_all") as caught:
        ff.launch(print, 1, (Absent(),), max_restarts=3)
    assert caught.value.__notes__ == ["fourfold: rank 0 of 1 could not load the function."]


# ---- arguments


@pytest.mark.parametrize("world_size", [0, -1])
def test_a_world_of_nobody_is_refused(world_size):
    with pytest.raises(OptionError, match=f"world_size={world_size} must be at least 1"):
        ff.launch(print, world_size)


def test_a_world_that_this_machine_cannot_hold_is_refused_before_anything_starts():
    most = launching.MOST_PER_CORE * launching.cores().n_cores
    with pytest.raises(OptionError, match=rf"world_size=1000000 is more than {most}"):
        ff.launch(print, 1_000_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 1.5}, "world_size=1.5 must be a whole number"),
        ({"max_restarts": -1}, "max_restarts=-1 must be at least 0"),
        ({"timeout": 0}, "timeout=0 must be a positive"),
        ({"args": "text"}, r"args='text' must be a tuple"),
        ({"fn": 3}, "fn=3 must be a function"),
        ({"checkpoint": 3}, "checkpoint=3 must be the path of a folder"),
    ],
)
def test_arguments_are_checked_before_anything_starts(options, message):
    with pytest.raises(OptionError, match=message):
        ff.launch(**{"fn": print, "world_size": 1} | options)


def test_arguments_of_a_wrong_type_are_type_errors():
    with pytest.raises(OptionTypeError):
        ff.launch(print, "2")


@pytest.mark.parametrize("engine", ["serial", "threads", "dask", "tcp://user:secret@host:1"])
def test_an_engine_that_starts_no_gangs_is_refused_and_says_which_does(engine):
    with pytest.raises(UnsupportedOption, match=r'starts no gangs.*engine="processes"') as caught:
        ff.launch(print, 2, engine=engine)
    assert "secret" not in str(caught.value)


# ---- what ranks print


def test_lines_are_shown_with_their_rank_and_kept_in_a_file_for_each(tmp_path, capfd):
    def fn():
        print("out", rank())
        os.write(2, b"err\n")
        print("no end", end="")
        if rank() == 1:
            raise ValueError("x")
        signal.pause()

    with pytest.raises(ValueError, match="x"):
        ff.launch(fn, 2, log_dir=tmp_path / "logs")
    out, err = capfd.readouterr()
    assert "[rank 1] out 1" in out.splitlines()
    assert "[rank 1] no end" in out.splitlines()
    assert "[rank 1] err" in err.splitlines()
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
    log = (tmp_path / "logs" / "rank-1.log").read_text()
    assert "out 1\n" in log
    assert 'raise ValueError("x")' in log


def test_progress_false_shows_nothing_and_a_restart_goes_on_in_the_same_log(tmp_path, capfd):
    def fn():
        print("start", os.environ["FOURFOLD_RESTART_COUNT"])
        if os.environ["FOURFOLD_RESTART_COUNT"] == "0":
            os._exit(1)

    ff.launch(fn, 1, max_restarts=1, progress=False, log_dir=tmp_path)
    assert capfd.readouterr().out == ""
    log = (tmp_path / "rank-0.log").read_text()
    assert log.splitlines() == ["start 0", "fourfold: started again, for the 1. time", "start 1"]


def test_a_rank_that_prints_no_end_of_line_takes_no_memory(tmp_path, capsys):
    log = Log(0, tmp_path / "log")
    for _ in range(100):
        log.take("stdout", bytes(65536))
        assert len(log.kept) <= 4096
        assert len(log._lines["stdout"]._text) <= 8192
    log.close()
    assert (tmp_path / "log").stat().st_size == 6_553_600
    assert re.match(r"\[rank 0\] \0{8192}\n", capsys.readouterr().out)


def test_a_log_that_cannot_be_written_is_told_and_the_gang_goes_on(tmp_path, caplog):
    log = Log(3, Path("/dev/full"), shows=False)
    log.take("stdout", b"words")
    log.take("stdout", b"more")
    log.close()
    assert caplog.text.count("the log of rank 3 ends here, and the gang goes on") == 1
    assert log.words() == "wordsmore"


# ---- the command

SCRIPT = """
import os, sys

if __name__ == "__main__":
    print("arguments", sys.argv[1:], "rank", os.environ["RANK"])
    if "fail" in sys.argv and os.environ["FOURFOLD_RESTART_COUNT"] == "0":
        raise ValueError("as asked")
    if "leave" in sys.argv:
        sys.exit(4)
    sys.exit(0)
"""


def command(folder, *arguments):
    (folder / "train.py").write_text(SCRIPT)
    (folder / "functions.py").write_text("import os\ndef add(a, b):\n    return f'{a}{b}', os.environ['RANK']\n")
    ended = run_script("from fourfold.cli import main; main()", *arguments, folder=folder, how="-c")
    return ended.code, ended.stdout.splitlines(), ended.stderr.splitlines()


def test_the_command_runs_a_script_as_main_in_each_rank_with_its_arguments(tmp_path):
    code, out, err = command(tmp_path, "launch", "train.py", "--rate", "0.1", "--world-size", "2", "--", "--timeout", "5")
    assert (code, err) == (0, [])
    assert sorted(out) == [f"[rank {n}] arguments ['--rate', '0.1', '--timeout', '5'] rank {n}" for n in (0, 1)]


def test_the_command_calls_a_function_with_texts_and_shows_its_values(tmp_path):
    code, out, err = command(tmp_path, "launch", "functions:add", "a", "b", "-n", "2")
    assert (code, err) == (0, [])
    assert out == ["rank 0 returned ('ab', '0')", "rank 1 returned ('ab', '1')"]


def test_the_command_fails_with_the_traceback_of_the_script_and_one_line(tmp_path):
    code, _, err = command(tmp_path, "launch", "train.py", "fail", "--world-size", "1")
    assert code == 1
    assert err[0] == "Traceback (most recent call last):"
    assert "train.py" in err[1]
    assert err[-1] == "fourfold: ValueError: as asked; fourfold: rank 0 of 1 raised this."


@pytest.mark.slow
def test_the_command_starts_again_as_often_as_it_may(tmp_path):
    code, out, err = command(tmp_path, "launch", "train.py", "fail", "--world-size", "1", "--max-restarts", "1")
    assert code == 0
    assert out == ["[rank 0] arguments ['fail'] rank 0"] * 2
    assert err == ["rank 0 failed, and the gang starts again (1 of at most 1): ValueError: as asked"]


def test_the_command_fails_when_a_script_leaves_with_another_code_than_0(tmp_path):
    code, _, err = command(tmp_path, "launch", "train.py", "leave", "--world-size", "1")
    assert code == 1
    assert err[-1].startswith("fourfold: rank 0 of 1 ended with sys.exit(4)")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train.py"], "Missing option '--world-size'"),
        (["train.py", "--world-size", "0"], "fourfold: --world-size 0 must be at least 1"),
        (["trian.py", "--world-size", "1"], "fourfold: there is no script trian.py"),
        (["functions:ad", "--world-size", "1"], "did you mean 'add'?"),
        (["functions:add", "--world-size", "1", "--engine", "dask"], "starts no gangs"),
    ],
)
def test_the_command_says_what_is_wrong_with_what_was_typed(arguments, line, tmp_path):
    code, _, err = command(tmp_path, "launch", *arguments)
    assert code == 2
    assert line in " ".join(err)


def test_ctrl_c_ends_the_command_with_130_and_nobody_is_left(tmp_path):
    (tmp_path / "waits.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    with started(
        "from fourfold.cli import main; main()", "launch", "waits.py", "--world-size", "2", folder=tmp_path, how="-c"
    ) as script:
        for _ in range(2):
            assert "up" in script.read_line()
        os.killpg(script.process.pid, signal.SIGINT)
        ended = script.end()
    assert (ended.code, ended.survivors) == (130, [])
    assert ended.stderr == "fourfold: interrupted, and all ranks have ended\n"


# ---- Ray, as far as it needs none ------------------------------------------------------------------------------------------


class FakeRay:
    """Answers at once, and notes for how long it was asked to wait for each way in which a rank has ended."""

    class exceptions:
        class RayError(Exception):
            pass

        class GetTimeoutError(RayError):
            pass

    def __init__(self):
        self.waits = []

    def get(self, ref, timeout):
        if ref == "end":
            self.waits.append(timeout)
        return ref

    def wait(self, refs, num_returns, timeout):
        return refs[:1], refs[1:]


class FakeActor:
    """A rank that has ended when somebody looks."""

    def __init__(self, state):
        for method, answer in {"place": "here", "start": "done", "go": None, "wait": state, "end": "end"}.items():
            setattr(self, method, SimpleNamespace(remote=lambda *_, answer=answer: answer))


@pytest.mark.parametrize(("state", "limit_s"), [("done", ray_gang.VALUES_S), ("failed", ray_gang.END_S)])
def test_values_of_ranks_that_ended_well_have_longer_to_travel_than_ends_of_those_that_are_stopped(state, limit_s):
    ray = FakeRay()
    assert ray_gang._Lead(ray, [FakeActor(state)], None).to_the_end() == ["end"]
    assert ray.waits == [limit_s]
    assert ray_gang.VALUES_S > 2 * ray_gang.END_S > 2 * crew.GRACE_S
