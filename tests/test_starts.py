"""Workers that hang before they are ready, and the process that starts them: told of, then ended, and never waited for in silence."""

import logging
import os
import re
import signal

import pytest
from leaks import the_pool
from running import SCALE, run_script, until

import fourfold as ff
from fourfold.distribute.engines.on_processes import starts
from fourfold.distribute.engines.on_processes.engine import Processes
from fourfold.distribute.engines.on_processes.page import PID
from fourfold.testing.rig import Rig

LIMIT_S = 0.2 * SCALE
"""Seconds that a start has in these tests."""

SCRIPT = """
    import logging, sys, time
    import fourfold as ff
    from fourfold.distribute.engines.on_processes import pool

    logging.basicConfig(format="%(message)s")
    if len(sys.argv) > 1:
        pool.WORKER_MAIN = sys.argv[1]
    begin = time.monotonic()
    try:
        ff.map(abs, range(100), engine="processes", workers=2)
    except ff.errors.EngineError as error:
        print(error)
"""

SHORT = {"FOURFOLD_TIME_SCALE": str(LIMIT_S / starts.START_S)}


@pytest.mark.fault("F16")
def test_a_template_that_hangs_is_told_of_and_ends_as_one_error(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if os.environ.get('FOURFOLD_ROLE') == 'worker':\n"
        "    print('waiting for the licence server', file=sys.stderr, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    ended = run_script(SCRIPT, folder=tmp_path, PYTHONPATH=str(tmp_path), **SHORT)
    assert (ended.code, ended.survivors) == (0, [])
    assert re.fullmatch(
        rf"workers could not start; the process that starts workers \(pid \d+\) started none in {LIMIT_S:g} s, and was stopped; "
        r"the last that it said: waiting for the licence server. Run `fourfold doctor`\n",
        ended.stdout,
    )
    told = re.findall(r"the process that starts workers \(pid (\d+)\) has been starting for", ended.stderr)
    assert len(told) == len(set(told)) == 3
    assert "The last that it said: waiting for the licence server" in ended.stderr


@pytest.mark.fault("F17")
def test_a_worker_that_hangs_before_it_is_ready_is_told_of_with_its_stack_and_ends_as_one_error(tmp_path):
    (tmp_path / "hanging.py").write_text(
        "import time\n"
        "from fourfold.distribute.engines.on_processes import stacks\n"
        "def wait_for_the_device():\n"
        "    time.sleep(1000)\n"
        "def main(end, page, *others):\n"
        "    stacks.write_into(page)\n"
        "    wait_for_the_device()\n"
    )
    ended = run_script(SCRIPT, "hanging:main", folder=tmp_path, **SHORT)
    assert (ended.code, ended.survivors) == (0, [])
    assert re.fullmatch(
        rf"workers could not start; worker \d+ \(pid \d+\) was not ready after {LIMIT_S:g} s, and was stopped at "
        r'File ".*hanging.py", line 4 in wait_for_the_device. Run `fourfold doctor`\n',
        ended.stdout,
    )
    assert re.search(
        rf"worker \d+ \(pid \d+\) has been starting for 0.\d s; after {LIMIT_S:g} s it is stopped. It is here", ended.stderr
    )
    assert "in wait_for_the_device" in ended.stderr


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(starts, "START_S", 0.8)  # times the scale: others do start in that time


@pytest.mark.slow
@pytest.mark.fault("F50")
def test_a_frozen_template_is_replaced_and_the_run_goes_on(short, caplog, tmp_path):
    caplog.set_level(logging.WARNING, "fourfold")
    pool = the_pool()
    if pool is not None:
        pool.close()
    ff.map(abs, range(10), engine="processes", workers=1)
    pool = the_pool()
    frozen, mark = pool._template.pid, tmp_path / "died"

    def die_once(x):
        if x == 7 and not mark.exists():
            mark.touch()
            assert os.getppid() == frozen
            os.kill(os.getppid(), signal.SIGSTOP)
            os._exit(7)
        return x

    results = ff.map(die_once, range(20), engine="processes", workers=1, chunk=1)
    assert results == list(range(20))
    assert pool._template.pid != frozen
    assert any(
        re.match(rf"the process that starts workers \(pid {frozen}\) has been starting .* It is frozen \(SIGSTOP\)", message)
        for message in caplog.messages
    )


def test_a_worker_that_was_ready_long_before_the_driver_came_back_to_hear_it_is_not_late():
    pool = the_pool()
    if pool is not None:
        pool.close()
    with Rig(Processes(1, lambda record: None)) as rig:
        (worker,) = rig.engine._workers
        until(worker.has_spoken, "the worker is ready")
        worker.born_at -= 1000
        rig.put(lambda x: os.getpid())
        assert rig.run([0])[0].values == [worker.page.fields[PID]]


def test_a_time_scale_that_is_no_number_is_an_error(monkeypatch):
    monkeypatch.setenv("FOURFOLD_TIME_SCALE", "slow")
    with pytest.raises(ff.errors.OptionError, match="FOURFOLD_TIME_SCALE='slow' must be a number"):
        ff.map(abs, [1], engine="processes")
