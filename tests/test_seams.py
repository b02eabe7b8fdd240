"""The N-th system call of fourfold's own fails, N = 1, 2, 3 …, until none is left: the answer is right, or it is one of its errors.

Those of the journal are in test_journal.py.
"""

import itertools
import sys
import textwrap
import time
import timeit

import pytest
from running import SCALE, is_in_time, run_script

import fourfold as ff
from fourfold.cli.map import map_command
from fourfold.distribute.engines.on_processes import channel
from fourfold.distribute.engines.on_processes.pool import POOL
from fourfold.system import seams

pytestmark = pytest.mark.fault("F53")

BOUND_S = 10.0

IN_DRIVER = {
    "pool.spawn": ["EMFILE", "EAGAIN"],
    "template.start": ["EAGAIN", "ENOMEM"],
    "segments.create": ["EMFILE", "ENOMEM"],
    "segments.write": ["ENOSPC"],
    "segments.map": ["ENOMEM"],
    "channel.send": ["ENOBUFS", "EPIPE"],
}
CASES = [(seam, action) for seam, actions in IN_DRIVER.items() for action in actions]

ITEMS = [bytes([k]) * size for k, size in enumerate([1, 60_000, 1_200_000, 60_000, 1, 60_000])]


def outcome():
    """Run a small map: its values, or the error that it ends with."""
    begin = time.monotonic()
    try:
        return ff.map(lambda data: data * 2, ITEMS, engine="processes", workers=2, chunk=1)
    except ff.errors.FourfoldError as error:
        return error
    finally:
        assert is_in_time(time.monotonic() - begin, BOUND_S)


def is_right(found):
    """Whether it is the answer; an error must say something."""
    if isinstance(found, ff.errors.FourfoldError):
        assert str(found)
        assert not isinstance(found, ff.errors.Bug)
        return False
    assert found == [data * 2 for data in ITEMS]
    return True


@pytest.mark.fault("F53", faults=5)
@pytest.mark.slow
@pytest.mark.parametrize("once", ["", "+"], ids=["once", "from then on"])
@pytest.mark.parametrize(("seam", "action"), CASES)
def test_each_call_of_the_driver_that_can_fail_fails_once(seam, action, once):
    for number in itertools.count(1):
        try:
            POOL.close()
            seams.set_faults(f"{seam}:{number}{once}:{action}")
            found = outcome()
            was_hit = seams.calls[seam] >= number
        finally:
            seams.set_faults("")
        right = is_right(found)
        if not was_hit:
            break
        assert is_right(outcome()), "the next call works"
    assert right, "nothing failed in the last one"
    assert number > 1, "the seam is not there"


SCRIPT = """
    import fourfold as ff

    items = [bytes([k]) * size for k, size in enumerate([1, 60_000, 1_200_000, 60_000, 1, 60_000])]
    try:
        results = ff.map(lambda data: data * 2, items, engine="processes", workers=2, chunk=1)
        print(results == [data * 2 for data in items])
    except ff.errors.FourfoldError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.fault("F53", faults=5)
@pytest.mark.slow
@pytest.mark.parametrize("once", ["", "+"], ids=["once", "from then on"])
@pytest.mark.parametrize(
    ("seam", "action"),
    [
        ("template.fork", "EAGAIN"),
        ("segments.create", "EMFILE"),
        ("segments.write", "ENOSPC"),
        ("segments.map", "ENOMEM"),
        ("channel.send", "ENOBUFS"),
    ],
)
def test_each_call_of_any_process_that_can_fail_fails_once(tmp_path, seam, action, once):
    """Driver, template and each worker count for themselves."""
    said = set()
    for number in range(1, 6):
        begin = time.monotonic()
        ended = run_script(SCRIPT, folder=tmp_path, FOURFOLD_FAULT=f"{seam}:{number}{once}:{action}")
        assert is_in_time(time.monotonic() - begin, BOUND_S)
        assert (ended.code, ended.survivors) == (0, []), ended
        assert "Bug" not in ended.stdout
        said.add(ended.stdout)
    assert "True\n" in said or once, said


@pytest.mark.parametrize("seam", ["pool.spawn", "template.fork", "segments.create", "channel.send", "segments.write"])
def test_calls_that_take_their_time_change_nothing(tmp_path, seam):
    assert run_script(SCRIPT, folder=tmp_path, FOURFOLD_FAULT=f"{seam}:*:DELAY") == (0, "True\n", "", [])


NO_PIPE = """
import errno, os
from fourfold.distribute.engines.on_processes import tee
from fourfold.worker import main

opened, asked = tee.Tee.open, []

def open(self):
    asked.append(1)
    if str(len(asked)) in os.environ["NO_PIPE"].split() or os.environ["NO_PIPE"] == "all":
        raise OSError(errno.EMFILE, "Too many open files")
    return opened(self)

tee.Tee.open = open
"""


@pytest.mark.parametrize("which", ["1", "2", "1 2", "all"])
def test_a_worker_for_which_there_is_no_pipe_does_not_start(tmp_path, which):
    (tmp_path / "no_pipe.py").write_text(NO_PIPE)
    text = 'from fourfold.distribute.engines.on_processes import pool\npool.WORKER_MAIN = "no_pipe:main"\n' + textwrap.dedent(
        SCRIPT
    )
    ended = run_script(text, folder=tmp_path, NO_PIPE=which)
    assert (ended.code, ended.stderr, ended.survivors) == (0, "", [])
    if which != "all":
        assert ended.stdout == "True\n"
    else:
        assert "Too many open files" in ended.stdout


# ---- the command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`fourfold map` in this process, in a folder with rows of which the second fails; gives its exit code and what it says."""
    (tmp_path / "functions_of_a_test.py").write_text(
        "def same(row):\n    if row['n'] == 'x': raise ValueError\n    return {'n': row['n']}\n"
    )
    (tmp_path / "in.csv").write_text("n\n1\nx\n3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "functions_of_a_test", raising=False)

    def run(output):
        with pytest.raises(SystemExit) as ended:
            map_command("functions_of_a_test:same", ["in.csv"], output, overwrite=True, engine="serial", progress=False)
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.fault("F53", faults=5)
@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("seam", ["sink.open", "sink.write", "sink.publish"])
@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet"])
def test_each_call_that_writes_an_output_fails_once(command, tmp_path, seam, action, output):
    for number in itertools.count(1):
        seams.set_faults(f"{seam}:{number}:{action}")
        try:
            code, said = command(output)
        finally:
            seams.set_faults("")
        left = sorted(path.name for path in tmp_path.iterdir())
        if f"fourfold: {output}" in said and "cannot be written" in said:
            assert code == 1, said
            # The list of failures is there before the output, which alone says that all is well.
            listed = [f"{output}.failures.jsonl"] if (seam, number) == ("sink.publish", 2) else []
            assert left == ["functions_of_a_test.py", "in.csv", *listed], said
            continue
        assert code == 3, said
        assert left == ["functions_of_a_test.py", "in.csv", output, f"{output}.failures.jsonl"], said
        assert "Traceback" not in said
        break
    assert number > 1, "the seam is not there"


# ---- what a seam costs


@pytest.mark.alone
def test_a_seam_that_nobody_waits_at_costs_next_to_nothing():
    bare = min(timeit.repeat("f('channel.send')", globals={"f": lambda name: None}, number=100_000, repeat=5))
    seam = min(timeit.repeat("f('channel.send')", globals={"f": seams.hit}, number=100_000, repeat=5))
    assert (seam - bare) / 100_000 < 100e-9 * SCALE


def test_a_fault_is_an_error_of_the_system_call():
    ours, theirs = channel.pair()
    with ours, theirs:
        seams.set_faults("channel.send:2:ENOBUFS")
        try:
            channel.send(ours, ("first",))
            with pytest.raises(OSError, match="No buffer space"):
                channel.send(ours, ("second",))
            channel.send(ours, ("third",))
        finally:
            seams.set_faults("")
        assert [channel.receive(theirs), channel.receive(theirs)] == [(("first",), []), (("third",), [])]
